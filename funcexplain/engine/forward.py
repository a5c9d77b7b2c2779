"""Weights of many windows: mapped if that equals the network's weights at each alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext
from typing import Any

import optree
import torch
from torch import Tensor

from funcexplain.networks.checks import is_out_of_memory
from funcexplain.networks.network import bound, set_seed
from funcexplain.networks.rounding import agree, coarsest_eps
from funcexplain.problems.problem import Args, Problem

Along = Mapping[str, int | None]
"""Where an entry of ``args`` leads with rows: 0, or None if they share it; see `mapped_dims`."""
# Windows in one call of the network: enough to fill its kernels, few enough for the cache.
_BATCH_SIZE = 256


def weights_of(
    problem: Problem,
    windows: Tensor,
    args: Args,
    dims: Along | None = None,
    *,
    skip_errors: bool = False,
) -> Tensor:
    """Compute the network's weights at several windows, without gradients.

    A single window is never mapped. Of several, the first, the middle and the last are also evaluated
    alone; if ``torch.func.vmap`` raises or differs, all windows are evaluated alone. So any network that
    accepts one window is supported.

    Args:
        problem: whose network is called.
        windows: ``(N, C, L, A)``. The network does not see those that are not finite.
        args: data of the problem.
        dims: 0 for each entry of ``args`` that leads with ``(N,)``, None for the others. Default: all
            windows share all data.
        skip_errors: whether windows at which the network raises give NaN instead of its error.

    Returns:
        Weights ``(N, A)``, or ``(N, M, A)`` for a consensus; NaN at windows that are not finite.

    Raises:
        Exception: what the network raises for one of the windows alone, unless ``skip_errors``.

    Example:
        >>> import torch, funcexplain as fe
        >>> class Signed(torch.nn.Module):                # vmap cannot map its `if`
        ...     def forward(self, x):
        ...         return torch.softmax(x.flatten(1) if x.sum() > 0 else -x.flatten(1), -1)
        >>> p = fe.problem(Signed(), torch.tensor([0.9, 0.1]), torch.zeros(1, 1, 2))
        >>> weights_of(p, torch.tensor([[1.0, 0.0], [-1.0, 0.0]]).view(2, 1, 1, 2), p.args)
        tensor([[0.7311, 0.2689],
                [0.7311, 0.2689]])
    """
    along = dict.fromkeys(args) if dims is None else dims
    numbers = windows.flatten(1).isfinite().all(1).nonzero()[:, 0]
    shared, params = along["params"] is None, args["params"]
    # Noise that a network draws does not move the caller's generator.
    with (
        torch.no_grad(),
        torch.random.fork_rng(devices=[]),
        bound(problem.apply, params) if shared else nullcontext(),
    ):
        found = _at(problem, windows, args, along, numbers, skip_errors)
    if len(numbers) == len(windows):
        return found
    weights = found.new_full((len(windows), *found.shape[1:]), torch.nan)
    weights[numbers] = found
    return weights


def _at(
    problem: Problem, windows: Tensor, args: Args, along: Along, numbers: Tensor, skip_errors: bool
) -> Tensor:
    """The weights at the windows with these numbers, all finite."""

    def take(name: str, at: int | Tensor) -> Any:
        whole = along[name] is None
        return args[name] if whole else optree.tree_map(lambda leaf: leaf[at], args[name])

    def alone(number: int) -> Tensor:
        try:
            _, (_, weights) = problem.evaluate(windows[number], {n: take(n, number) for n in args})
        except Exception as error:
            if not skip_errors or is_out_of_memory(error):
                raise
            return like.new_full(shape, torch.nan)
        return weights

    def weights(x: Tensor, params: Any, seed: Tensor) -> Tensor:
        return problem.apply(set_seed(params, seed), x)

    like, places = problem.criterion.weights_like(args["target"]), numbers.tolist()
    shape = like.shape if along["target"] is None else like.shape[1:]
    if not places:
        return like.new_empty(0, *shape)

    def mapped() -> Tensor:
        over = (0, along["params"], along["seed"])
        call = torch.func.vmap(weights, over, chunk_size=_BATCH_SIZE)
        return call(windows[numbers], take("params", numbers), take("seed", numbers))

    return held_against_alone(alone, [mapped], places, coarsest_eps(args))


def held_against_alone(
    alone: Callable[[int], Tensor], ways: Iterable[Callable[[], Tensor]], places: list[int], eps: float
) -> Tensor:
    """Results of many windows in a batch, if the first, the middle and the last agree with those alone.

    Args:
        alone: from the number of a window to its result.
        ways: functions that evaluate all in a batch; the first that does not raise and agrees is used.
            If there is none, all windows are evaluated alone.
        places: numbers of the windows, at least one.
        eps: of the coarsest dtype.
    """
    held = {number: alone(number) for number in {places[0], places[len(places) // 2], places[-1]}}
    for way in ways if len(places) > 1 else ():
        try:
            found = way()
        except Exception as error:  # of any type: what is wrong with a window alone raises below, too
            if is_out_of_memory(error):
                raise
        else:
            if all(agree(found[places.index(number)], one, eps) for number, one in held.items()):
                return found
    return torch.stack([held[number] if number in held else alone(number) for number in places])
