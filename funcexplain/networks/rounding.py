"""Whether two computations of the same numbers agree."""

from __future__ import annotations

from typing import Any

import optree
import torch
from torch import Tensor


def agree(a: Tensor, b: Tensor, eps: float = 0.0, atol: float = 0.0, rows: int = 0) -> bool:
    """Whether tensors are equal up to rounding, relative to the largest number; NaN equals NaN.

    Half of the digits must agree: an unstable computation loses some to the order of its operations,
    while another network's numbers differ in the first.

    Args:
        a: floating tensor.
        b: floating tensor.
        eps: rounding of the computation, if coarser than that of the tensors; see `coarsest_eps`.
        atol: additional absolute tolerance.
        rows: number of leading dimensions, 0 or 1; each row is compared relative to its largest number.

    Example:
        >>> agree(torch.tensor([1.0, 2.0]), torch.tensor([1.0, 2.0001]))
        True
        >>> agree(torch.tensor([1.0, 2.0]), torch.tensor([1.0, 2.1]))
        False
    """
    if a.shape != b.shape:
        return False
    if a.dtype == b.dtype and torch.equal(a, b):
        return True
    rtol = min(3.0 * max(eps, coarsest_eps(a, b)) ** 0.5, 0.03)
    a, b = (
        t.detach().double().flatten(rows) if t.ndim > rows else t.detach()[..., None] for t in (a, b)
    )
    if not b.numel():
        return True
    scale = b.nan_to_num(posinf=0.0, neginf=0.0).abs().amax(-1)
    equal = (a == b) | (a.isnan() & b.isnan())
    differences = torch.where(equal, 0.0, (a - b).abs())
    return bool((differences.amax(-1) <= atol + rtol * scale).all())


def coarsest_eps(*trees: Any) -> float:
    """The relative rounding of the coarsest floating dtype in pytrees.

    Example:
        >>> coarsest_eps({"a": torch.zeros(1)}, torch.zeros(1, dtype=torch.bfloat16))
        0.0078125
    """
    tree: Any = trees
    leaves: Any = optree.tree_leaves(tree)
    floats = (leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.is_floating_point())
    return max((torch.finfo(leaf.dtype).eps for leaf in floats), default=0.0)
