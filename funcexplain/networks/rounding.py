"""Whether two computations of the same numbers agree."""

from __future__ import annotations

import torch
from torch import Tensor


def agree(a: Tensor, b: Tensor, atol: float = 0.0) -> bool:
    """Whether tensors are equal but for rounding, relative to the largest number; NaN equals NaN.

    Half of the digits must agree: an unstable computation loses some to the order of its operations,
    while another network's numbers differ in the first.

    Args:
        a: floating tensor.
        b: floating tensor, of the same shape.
        atol: absolute difference that is allowed besides.

    Example:
        >>> agree(torch.tensor([1.0, 2.0]), torch.tensor([1.0, 2.0001]))
        True
        >>> agree(torch.tensor([1.0, 2.0]), torch.tensor([1.0, 2.1]))
        False
    """
    if a.shape != b.shape:
        return False
    eps = max(torch.finfo(t.dtype).eps for t in (a, b))
    scale = float(b.detach().nan_to_num(posinf=0.0, neginf=0.0).abs().amax()) if b.numel() else 0.0
    allowed = atol + 3.0 * eps**0.5 * scale
    return torch.allclose(a.double(), b.double(), rtol=0.0, atol=allowed, equal_nan=True)
