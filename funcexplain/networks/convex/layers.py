"""The allocators as modules, with the interface of deepdow's convex layers.

They have settings but no parameters and no state, follow the dtype and device of their input, and accept
any leading dimensions, including none. The settings are ``n_assets``, the number of assets A;
``max_weight``, the upper bound on each weight (a ``ValueError`` if ``n_assets * max_weight < 1``); and
for scores ``temperature``, which divides them, or ``None`` if it is an argument of each call.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from funcexplain.networks.convex.checks import check_cap
from funcexplain.networks.convex.quadratic import markowitz, risk_budgeting
from funcexplain.networks.convex.simplex import capped_softmax, sparsemax


class _Allocator(nn.Module):
    """A number of assets and an upper bound on each weight."""

    def __init__(self, n_assets: int, *, max_weight: float = 1.0) -> None:
        super().__init__()
        check_cap(type(self).__name__, n_assets, max_weight)
        self.n_assets, self.max_weight = n_assets, max_weight

    def _check_assets(self, name: str, tensor: Tensor) -> None:
        if tensor.shape[-1] != self.n_assets:
            raise ValueError(
                f"{type(self).__name__}: {name} must have {self.n_assets} assets in its last dimension "
                f"(n_assets), got shape {tuple(tensor.shape)}"
            )

    def extra_repr(self) -> str:
        """The settings, as arguments of the constructor."""
        return f"{self.n_assets}, max_weight={self.max_weight}"


class Markowitz(_Allocator):
    """`markowitz` as a module, instead of deepdow's ``NumericalMarkowitz``.

    Example:
        >>> import torch
        >>> from funcexplain.networks.convex import Markowitz
        >>> layer = Markowitz(4, max_weight=0.5)
        >>> layer(torch.zeros(8, 4), torch.eye(4).expand(8, 4, 4), torch.ones(8), torch.ones(8)).shape
        torch.Size([8, 4])
    """

    def forward(self, rets: Tensor, covmat_sqrt: Tensor, gamma_sqrt: Tensor, alpha: Tensor) -> Tensor:
        """Map ``(..., A)``, ``(..., A, A)``, ``(...)``, ``(...)`` to weights ``(..., A)``."""
        self._check_assets("rets", rets)
        return markowitz(rets, covmat_sqrt, gamma_sqrt, alpha, self.max_weight)


class RiskBudgeting(_Allocator):
    """`risk_budgeting` as a module, instead of deepdow's ``NumericalRiskBudgeting``.

    Example:
        >>> import torch
        >>> from funcexplain.networks.convex import RiskBudgeting
        >>> RiskBudgeting(4)(torch.eye(4).expand(8, 4, 4), torch.ones(8, 4)).shape
        torch.Size([8, 4])
    """

    def forward(self, covmat_sqrt: Tensor, b: Tensor) -> Tensor:
        """Map ``(..., A, A)`` and budgets ``(..., A)`` to weights ``(..., A)``."""
        self._check_assets("b", b)
        return risk_budgeting(covmat_sqrt, b, self.max_weight)


class _Scored(_Allocator):
    """An allocator of scores divided by a temperature."""

    allocate: Callable[[Tensor, float], Tensor]

    def __init__(
        self, n_assets: int, *, max_weight: float = 1.0, temperature: float | None = 1.0
    ) -> None:
        super().__init__(n_assets, max_weight=max_weight)
        if temperature is not None and not temperature > 0:
            raise ValueError(f"{type(self).__name__}: temperature must be > 0, got {temperature}")
        self.temperature = temperature

    def forward(self, x: Tensor, temperature: Tensor | None = None) -> Tensor:
        """Map scores ``(..., A)``, and temperatures ``(...)``, to weights ``(..., A)``."""
        self._check_assets("x", x)
        if (temperature is None) == (self.temperature is None):
            raise ValueError(
                f"{type(self).__name__}: temperature must be given either to the constructor or to the "
                f"call, got {self.temperature} and {temperature}; pass temperature=None to one of them"
            )
        divisor = self.temperature if temperature is None else temperature[..., None]
        # Exactly one of the two temperatures is not None.
        return self.allocate(x / divisor, self.max_weight)  # type: ignore[operator]

    def extra_repr(self) -> str:
        """The settings, as arguments of the constructor."""
        return f"{super().extra_repr()}, temperature={self.temperature}"


class Sparsemax(_Scored):
    """`sparsemax` of ``x / temperature`` as a module, instead of deepdow's ``SparsemaxAllocator``.

    Example:
        >>> import torch
        >>> from funcexplain.networks.convex import Sparsemax
        >>> Sparsemax(3, temperature=2.0)(torch.tensor([[2.0, 1.0, 0.0]]))
        tensor([[0.7500, 0.2500, 0.0000]])
    """

    allocate = staticmethod(sparsemax)


class CappedSoftmax(_Scored):
    """`capped_softmax` of ``x / temperature``, instead of deepdow's ``SoftmaxAllocator``.

    Example:
        >>> import torch
        >>> from funcexplain.networks.convex import CappedSoftmax
        >>> CappedSoftmax(3, max_weight=0.5, temperature=None)(torch.zeros(1, 3), torch.ones(1))
        tensor([[0.3333, 0.3333, 0.3333]])
    """

    allocate = staticmethod(capped_softmax)
