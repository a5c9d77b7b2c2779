"""Jacobians of the weights at many windows: in a batch if that equals each alone."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, cast

import optree
import torch
from torch import Tensor

from funcexplain.engine.forward import Along, held_against_alone
from funcexplain.networks.checks import is_out_of_memory
from funcexplain.networks.network import SEED, Network, bound, set_seed
from funcexplain.networks.rounding import coarsest_eps
from funcexplain.networks.trial import reads_values
from funcexplain.problems.problem import Args, Problem
from funcexplain.solvers.jacobian import with_backward_jacobian


def slopes_of(
    problem: Problem,
    windows: Tensor,
    args: Args,
    dims: Along | None = None,
    *,
    skip_errors: bool = False,
) -> Tensor:
    """Compute the Jacobian of the network's weights at several windows, in one batch.

    Windows are mapped, or share the network's own sample dimension; the first, the middle and the last
    are also differentiated alone, and all are where these differ, as in `weights_of`.

    Args:
        problem: whose network is differentiated.
        windows: ``(N, C, L, A)``, finite, ``N >= 1``.
        args: data of the problem.
        dims: as for `weights_of`.
        skip_errors: whether windows at which the network raises give NaN instead of its error.

    Returns:
        Jacobians ``(N, K, C * L * A)`` of the K weights.

    Raises:
        Exception: what the network raises for one of the windows alone, unless ``skip_errors``.

    Example:
        >>> import torch, funcexplain as fe
        >>> network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Softmax(-1))
        >>> p = fe.problem(network, torch.tensor([0.9, 0.1]), torch.zeros(1, 1, 2))
        >>> slopes_of(p, torch.zeros(1, 1, 1, 2), p.args)
        tensor([[[ 0.2500, -0.2500],
                 [-0.2500,  0.2500]]])
    """
    along = dict.fromkeys(args) if dims is None else dims
    shared, apply = along["params"] is None, problem.apply

    def data(at: int | slice) -> dict[str, Any]:
        names = ("params", "seed")
        return {
            n: args[n] if along[n] is None else optree.tree_map(lambda leaf: leaf[at], args[n])
            for n in names
        }

    def one(x: Tensor, args: Args) -> Tensor:
        return apply(set_seed(args["params"], args["seed"]), x)

    def alone(number: int) -> Tensor:
        own = data(number)
        try:
            with bound(apply, own["params"]):  # a backward pass may read the network
                return _differentiate(one)(windows[number], own)
        except Exception as error:
            if not skip_errors or is_out_of_memory(error):
                raise
        like = problem.criterion.weights_like(args["target"])
        count = like.numel() if along["target"] is None else like[0].numel()
        return windows.new_full((count, windows[0].numel()), torch.nan)

    def in_samples() -> Tensor:
        network = cast(Network, apply)
        if reads_values(network, args["params"], windows):
            raise ValueError("the network reads values, by which one window may decide for all")
        return _differentiate(lambda x, args: network.samples(args["params"], x), 1)(windows, data(0))

    def mapped() -> Tensor:
        over = (0, {name: along[name] for name in ("params", "seed")})
        return _differentiate(torch.func.vmap(one, over), 1)(windows, data(slice(None)))

    with (
        torch.no_grad(),
        torch.random.fork_rng(devices=[]),
        bound(apply, args["params"]) if shared else nullcontext(),
    ):
        samples = isinstance(apply, Network) and shared and SEED not in args["params"]
        ways = [mapped, in_samples] if samples else [mapped]
        return held_against_alone(alone, ways, list(range(len(windows))), coarsest_eps(args))


def _differentiate(
    weights: Callable[[Tensor, Args], Tensor], rows: int = 0
) -> Callable[[Tensor, Args], Tensor]:
    """From windows to the Jacobians of their weights, by reverse passes."""

    def objective(x: Tensor, args: Args) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        found = weights(x, args)
        total = found.flatten(rows).sum(-1)
        return total, (total, found)

    evaluate = with_backward_jacobian(objective, lambda found, args: found)
    return lambda x, args: evaluate(x, args).slopes
