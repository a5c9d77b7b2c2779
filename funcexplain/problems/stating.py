"""From what a user asks for to what is in ``args``: an allocation, a target, or a list of targets."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import optree
import torch
from torch import Tensor

from funcexplain.networks.functional import Apply, with_seed
from funcexplain.networks.noise import normal
from funcexplain.problems import losses
from funcexplain.problems.checks import check_like, check_shape
from funcexplain.problems.criterion import EXACT, GOALS, Criterion
from funcexplain.problems.goals import Book, Target
from funcexplain.problems.reach import is_invested, least_miss

# Windows around the reference at which it is looked whether weights sum to one.
_LOOKS = 4
_USUAL_SUM = 1e-3
# These compare whole allocations; of goals they would make no sense.
_OF_ALLOCATIONS = (losses.kl, losses.js, losses.cross_entropy, losses.cosine_distance)


def check_allocation(where: str, target: Any, x0: Tensor) -> Tensor:
    """Refuse what is no allocation of x0's assets."""
    target = check_like(where, "target", target, x0, "x0")
    return check_shape(where, "target", target, x0.shape[-1:], "one weight per asset of x0")


def refuse_sum(where: str, apply: Apply, args: dict[str, Any]) -> None:
    """Refuse an allocation of another sum than all that the network holds."""
    total = float(args["target"].sum())
    if abs(total - 1.0) > _USUAL_SUM:  # else the network need not be asked
        with torch.no_grad():
            if is_invested(_weights(apply, args)):
                raise ValueError(
                    f"{where}: target must be within reach, got weights that sum to {total:.3g}, where "
                    "those of the network are >= 0 and sum to one whatever its input"
                )


def check_assets(assets: Any, x0: Tensor) -> tuple[str, ...] | None:
    """Refuse what are no names of x0's assets."""
    if assets is None:
        return None
    names = () if isinstance(assets, str) else tuple(assets)
    if len(set(names)) != x0.shape[-1] or not all(isinstance(name, str) for name in names):
        raise ValueError(
            f"problem: assets must be {x0.shape[-1]} different names, one for each asset of x0, got "
            f"{assets!r}"
        )
    return names


def check_params(params: Any, x0: Tensor) -> None:
    """Refuse parameters on another device or of another dtype than x0."""
    leaves = [p for p in optree.tree_leaves(params) if isinstance(p, Tensor)]
    devices = {p.device for p in leaves} - {x0.device}
    if devices:
        raise TypeError(
            f"problem: network and x0 must be on one device, got {devices.pop()} and {x0.device}; "
            "move one of them"
        )
    dtypes = {p.dtype for p in leaves if p.is_floating_point()}
    if dtypes and x0.dtype not in dtypes:
        raise TypeError(
            f"problem: network and x0 must have one dtype, got {dtypes.pop()} and {x0.dtype}; convert "
            "x0 and target to the network's, then fe.cast(dtype=...) casts the whole problem"
        )


def encode_targets(
    where: str,
    targets: Sequence[Target],
    apply: Apply,
    args: dict[str, Any],
    assets: tuple[str, ...] | None,
) -> tuple[Tensor, Criterion]:
    """State targets as numbers.

    Args:
        where: public function that was called.
        targets: targets, at least one, which measure equally many things.
        apply: the network.
        args: data of one question.
        assets: names of the assets.

    Returns:
        A stack with one target in each row, and how weights are compared with one.

    Raises:
        TypeError: if one is no target.
        ValueError: if an asset is unknown, targets do not go together, or one is out of reach.
    """
    for index, target in enumerate(targets):
        if not isinstance(target, Target):
            raise TypeError(
                f"{where}: target[{index}] must be a target, as the others are, got "
                f"{type(target).__name__}; an allocation is one as fe.targets.exact(weights)"
            )
    from_today = any(target.from_today for target in targets)
    like = args["x0"][0, 0]
    with torch.no_grad():
        weights = _weights(apply, args)
        if weights.ndim > 2:
            raise ValueError(
                f"{where}: a consensus keeps the targets that it was made with; map over targets first"
            )
        book = Book(like, assets, weights[0])
        exact = [target.weights(book) for target in targets if target.weights is not None]
        if len(exact) == len(targets):
            stack, criterion = torch.stack(exact), EXACT
        else:
            rows = [target.rows(book) for target in targets]
            counts = sorted({len(row) for row in rows})
            if len(counts) > 1:
                raise ValueError(
                    f"{where}: targets of one stack must measure equally many things, got {counts}; "
                    "map over those of each kind apart"
                )
            stack, criterion = torch.stack(rows), GOALS
        _refuse_out_of_reach(where, [target.call for target in targets], stack, criterion, weights)
    return stack, criterion._replace(from_today=from_today)


def refuse_loss(where: str, loss: Any, criterion: Criterion) -> None:
    """Refuse a loss that compares whole allocations where the target is none."""
    if criterion.ndim == GOALS.ndim and loss in _OF_ALLOCATIONS:
        raise ValueError(
            f"{where}: loss must compare what targets measure with their bounds, as fe.losses.mse and "
            f"mae do, got {loss.__name__}, which compares whole allocations"
        )


def _weights(apply: Apply, args: dict[str, Any]) -> Tensor:
    """What the network holds at the reference, and at windows around it, ``(1 + N, A)``."""
    params, reference = with_seed(args["params"], args["seed"]), args["reference"]
    noise = normal(args["seed"], (_LOOKS, *reference.shape), reference.dtype)
    windows = [reference, *(reference + _size(reference) * noise)]
    return torch.stack([apply(params, window) for window in windows])


def _size(reference: Tensor) -> Tensor:
    spread = reference.std(correction=0)
    return torch.where(spread > 0, spread, torch.ones_like(spread))


def _refuse_out_of_reach(
    where: str, calls: list[str], targets: Tensor, criterion: Criterion, weights: Tensor
) -> None:
    invested = is_invested(weights)
    misses = least_miss(criterion, targets, weights.shape[-1], invested=invested)
    worst = int(misses.argmax())
    if misses[worst] > 0:
        kind = (
            "weights >= 0 that sum to one, which is what the network holds," if invested else "weights"
        )
        raise ValueError(
            f"{where}: target must be within reach, got {calls[worst]}: no {kind} can meet it; the "
            f"nearest miss it by {float(misses[worst]):.3g}"
        )
