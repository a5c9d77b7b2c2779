"""The loop, and `run`, its pure form. `engine` uses it for one question and for batches of rows."""

from __future__ import annotations

from collections.abc import Callable

import torch

from funcexplain.networks.network import raise_pending
from funcexplain.problems.checks import check_callable, check_count
from funcexplain.problems.problem import Args
from funcexplain.solvers.state import Info, Init, State, Step


def iterate(
    step: Step, state: State, args: Args, num_steps: int, ends: Callable[[State, Info], bool]
) -> State:
    """Take ``num_steps`` steps, or fewer if ``ends(state, info)`` is true after one of them.

    Raises:
        KeyboardInterrupt: between two steps, if Ctrl-C was held back.
    """
    for _ in range(num_steps):
        state, info = step(state, args)
        if ends(state, info):
            break
        raise_pending()
    return state


def run(init: Init, step: Step, args: Args, num_steps: int) -> tuple[State, Info]:
    """Take a fixed number of steps; pure, so that ``torch.func.vmap`` and ``grad`` go through it.

    Args:
        init: ``args -> state``, from `make_step`.
        step: ``(state, args) -> (state, info)``, from `make_step`.
        args: data of the problem, with everything that varies by row.
        num_steps: steps to take, >= 0.

    Returns:
        The state after the last step, and the infos stacked, each of shape ``(num_steps,)``.

    Raises:
        TypeError, ValueError: if ``num_steps`` is not an int >= 0.

    Example:
        >>> import torch, funcexplain as fe
        >>> network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Softmax(-1))
        >>> p = fe.problem(network, torch.tensor([0.9, 0.1]), torch.zeros(1, 1, 2))
        >>> init, step = fe.make_step(p, fe.adam())
        >>> def last(x0):
        ...     return fe.run(init, step, {**p.args, "x0": x0}, num_steps=5)[0].z
        >>> torch.func.vmap(last)(torch.zeros(3, 1, 1, 2)).shape
        torch.Size([3, 1, 1, 2])
    """
    check_callable("run", "init", init)
    check_callable("run", "step", step)
    check_count("run", "num_steps", num_steps)
    infos: list[Info] = []

    def collect(state: State, info: Info) -> bool:
        del state
        infos.append(info)
        return False

    state = iterate(step, init(args), args, num_steps, collect)
    if not infos:
        return state, Info(*(args["x0"].new_zeros(0) for _ in Info._fields))
    return state, Info(*map(torch.stack, zip(*infos, strict=True)))
