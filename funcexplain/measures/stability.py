"""Stability of an answer: across starts, under noise, and across models.

`diversity`, `spread` and `overlap` are pure functions of the rows of one group, such as the starts of
one question, ``(S, n)`` with one flat row each; rows that are not finite are left out.
`errors_under_noise` and `errors_of_models` evaluate the network again, by a function ``errors`` as
`Errors`, at the windows ``x`` of the rows, ``(B, C, L, A)``, with their data ``args``; `under_noise`
evaluates it under ordinary noise of the market.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import optree
import torch
from torch import Tensor

from funcexplain.engine.forward import weights_of
from funcexplain.networks.noise import normal
from funcexplain.networks.verify import verify
from funcexplain.problems.grid import mapped_dims
from funcexplain.problems.problem import Args, Problem

_PAIRS = 1 << 20  # compared at a time
NOISES = (0.05, 0.1, 0.25)
"""Standard deviations of ordinary noise, in sigmas."""

Errors = Callable[..., Tensor]
"""``(windows (B, C, L, A), args, shared) -> (B,)``: largest deviation from the target of each window.

``shared`` names entries of ``args`` with one value for all windows, even if they vary in the problem.
"""


def diversity(points: Tensor) -> Tensor:
    """Mean distance of each row to the others, root mean square over entries: the diversity of answers.

    ``mean_(j != i) sqrt(mean((p_i - p_j)**2))``; its mean over rows is the mean pairwise distance.

    Args:
        points: ``(S, n)``, in sigmas.

    Returns:
        ``(S,)``; NaN if there are no other rows.

    Example:
        >>> diversity(torch.tensor([[0.0], [1.0], [3.0]]))
        tensor([2.0000, 1.5000, 2.5000])

    References:
        R. K. Mothilal, A. Sharma, C. Tan (2020), Explaining Machine Learning Classifiers through Diverse
        Counterfactual Explanations, https://arxiv.org/abs/1905.07697
    """
    finite = points.isfinite().all(-1)
    kept = torch.where(finite[:, None], points, 0.0)
    # All pairs by a product of matrices. Points are centered first, so that rounding is small relative
    # to their distances, even if they are close.
    centered = torch.where(finite[:, None], points - kept.sum(0) / finite.sum(), 0.0)
    squares = centered.square().sum(-1)

    def distances(lines: Tensor) -> Tensor:
        products = centered[lines] @ centered.mT
        gaps = squares[lines][:, None] + squares - 2.0 * products
        return (gaps.clamp_min(0.0) / points.shape[-1]).sqrt()

    return _mean_over_others(distances, finite)


def spread(points: Tensor) -> Tensor:
    """Standard deviation over rows, root mean square over entries: ``sqrt(mean_n var_S(p))``.

    Args:
        points: ``(S, n)``, in sigmas.

    Returns:
        Scalar, the same for the whole group; NaN for fewer than two rows.

    Example:
        >>> spread(torch.tensor([[0.0, 1.0], [2.0, 1.0]]))
        tensor(1.)
    """
    finite = points.isfinite().all(-1)
    count = finite.sum()
    kept = torch.where(finite[:, None], points, 0.0)
    center = kept.sum(0) / count
    squares = torch.where(finite[:, None], (kept - center).square(), 0.0).sum(0)
    return (squares / (count - 1)).mean().sqrt()


def overlap(changes: Tensor, top: int) -> Tensor:
    """Mean Jaccard index of the entries with the largest changes: do rows change the same entries?

    ``mean_(j != i) |T_i & T_j| / |T_i | T_j|`` with ``T`` the ``top`` entries of largest ``|d|``.

    Args:
        changes: ``(S, n)``, in sigmas.
        top: number of entries, at most ``n``.

    Returns:
        ``(S,)`` in ``[0, 1]``; NaN if there are no other rows.

    Example:
        >>> overlap(torch.tensor([[3.0, 2.0, 0.0], [0.0, 2.0, 3.0]]), top=2)
        tensor([0.3333, 0.3333])

    References:
        P. Jaccard (1912), The Distribution of the Flora in the Alpine Zone,
        https://doi.org/10.1111/j.1469-8137.1912.tb05611.x
    """
    finite = changes.isfinite().all(-1)
    sizes = torch.where(finite[:, None], changes, 0.0).abs()
    largest = sizes.topk(top, dim=-1).indices
    marks = torch.zeros_like(sizes).scatter(-1, largest, 1.0)

    def jaccard(lines: Tensor) -> Tensor:
        common = marks[lines] @ marks.mT
        return common / (2 * top - common)

    return _mean_over_others(jaccard, finite)


def _mean_over_others(values: Callable[[Tensor], Tensor], finite: Tensor) -> Tensor:
    """Row means of an ``(S, S)`` matrix over other finite rows, in blocks; NaN for rows not finite."""
    numbers = torch.arange(len(finite), device=finite.device)
    means = []
    for lines in numbers.split(max(1, _PAIRS // max(1, len(finite)))):
        others = finite[lines][:, None] & finite & (lines[:, None] != numbers)
        means.append(torch.where(others, values(lines), 0.0).sum(-1) / others.sum(-1))
    return torch.cat(means)


def errors_under_noise(errors: Errors, x: Tensor, args: Args, scale: Tensor, seeds: Tensor) -> Tensor:
    """Largest deviation from the target at ``x + scale * noise(seed)``, ``(D, B)`` for ``D`` seeds.

    Only free entries get noise, of standard deviation ``scale``, which broadcasts to x. It is a function
    of the seed alone: the same for all rows, and without torch's global generator. The share of misses
    among the draws is the invalidation rate.

    References:
        M. Pawelczyk, T. Datta, J. van-den-Heuvel, G. Kasneci, H. Lakkaraju (2022), Probabilistically
        Robust Recourse, https://arxiv.org/abs/2203.06768
    """
    drawn = []
    for seed in seeds:
        moved = x + (scale * normal(seed, x.shape[1:], torch.float64)).to(x.dtype)
        drawn.append(errors(torch.where(args["mask"], moved, x), args))
    return torch.stack(drawn)


def under_noise(
    problem: Problem, points: Tensor, args: Args, scale: Tensor | None, seeds: Tensor
) -> dict[float, Tensor]:
    """Weights near some points under ordinary noise.

    Args:
        problem: the question or grid.
        points: search points of a scenario, whose noise is of the path, else windows, whose free entries
            get noise, ``(B, ...)``.
        args: data of the rows, as from `take_rows`.
        scale: one sigma of the windows, which broadcasts to these; None in a scenario.
        seeds: seed of the noise for each draw, the same for all rows and sizes.

    Returns:
        For each size of `NOISES`, and for zero, weights ``(draws, B, A)``; one draw without noise.
    """
    dims = mapped_dims(problem.dims, args)
    data = {name: value for name, value in args.items() if name != "params"}
    decode = torch.func.vmap(problem.decode, (0, mapped_dims(problem.dims, data)))
    unit = torch.ones((), dtype=torch.float64, device=seeds.device) if scale is None else scale

    def weights(moved: Tensor) -> Tensor:
        windows = decode(moved, data) if scale is None else torch.where(args["mask"], moved, points)
        return weights_of(problem, windows, args, dims, skip_errors=True)

    def noise(seed: Tensor) -> Tensor:
        return unit * normal(seed, points.shape[1:], torch.float64)

    found = {0.0: weights(points)[None]}
    for size in NOISES:
        draws = [weights(points + (size * noise(seed)).to(points)) for seed in seeds]
        found[size] = torch.stack(draws)
    return found


def errors_of_models(errors: Errors, x: Tensor, args: Args, models: Any) -> Tensor:
    """Largest deviation from the target at ``x``, ``(M, B)`` for ``M`` models of an ensemble.

    Their parameters are stacked tensor by tensor, as `stack` does.

    References:
        S. Upadhyay, S. Joshi, H. Lakkaraju (2021), Towards Robust and Reliable Algorithmic Recourse,
        on answers that a retrained model no longer confirms, https://arxiv.org/abs/2102.13620
    """
    errors_by_model = []
    for params in unstack(models):
        errors_by_model.append(errors(x, {**args, "params": params}, ("params",)))
    return torch.stack(errors_by_model)


def unstack(models: Any) -> list[Any]:
    """The parameters of each of several models, from a stack."""
    size = len(optree.tree_leaves(models)[0])
    return [optree.tree_map(lambda leaf: leaf[model], models) for model in range(size)]  # noqa: B023


def check_models(where: str, problem: Problem, models: Any) -> None:
    """Raise unless models are stacked parameters of the problem's network."""
    row = problem[(0,) * len(problem.dims)].args["params"]
    own, tree = optree.tree_flatten(row)
    leaves, other = optree.tree_flatten(models)
    if other != tree or not leaves or not all(isinstance(leaf, Tensor) for leaf in leaves):
        raise TypeError(
            f"{where}: models must be parameters of the problem's network, stacked tensor by tensor, "
            f"got another structure ({other}, expected {tree}); fe.stack(models)[1] stacks them"
        )
    sizes = {tuple(leaf.shape[:1]) for leaf in leaves}
    fits = all(leaf.shape[1:] == mine.shape for leaf, mine in zip(leaves, own, strict=True))
    if not fits or len(sizes) > 1 or sizes == {(0,)}:
        raise ValueError(
            f"{where}: models must lead with one number of models >= 1 before the shapes of the "
            "problem's own parameters, got other shapes; fe.stack(models)[1] stacks them"
        )
    x0 = problem.args["x0"]
    verify(problem.apply, models, x0.reshape(-1, *x0.shape[-3:])[0], stacked=True)
