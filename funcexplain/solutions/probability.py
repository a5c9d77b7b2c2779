"""The result `Probability`: how likely the target of every row is."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Self, cast

import numpy as np
import optree
import torch
from torch import Tensor

from funcexplain.solutions.html import element, table
from funcexplain.solutions.indexing import drops_dim, expand_index
from funcexplain.solutions.status import Status

_FIELDS = (
    *("estimate", "standard_error", "lower", "upper"),
    *("num_forwards", "effective_sample_size", "levels", "status"),
)
_MAX_SHOWN = 100  # rows of a table
_SENTENCES = {
    Status.HIT: "The probability is estimated.",
    Status.STALLED: (
        "Nearly all markets miss the target by the same amount, so that no path leads there; "
        "the probability is below the upper bound."
    ),
    Status.MAX_STEPS: "No market met the target within num_samples; see the upper bound.",
    Status.NONFINITE: "The network has no weights in some markets; these count as misses.",
    Status.INTERRUPTED: "The estimate was interrupted; this is what was known.",
}


@dataclass(frozen=True, eq=False, repr=False)
class Probability:
    """How likely targets are; every field leads with the row dimensions.

    An optree node, whose leaves are the tensors.

    Attributes:
        estimate: of the probability, float64; NaN if the target was never met.
        standard_error: of the estimate.
        lower: lower end of an interval that covers the probability in 95 of 100 cases.
        upper: its upper end; where the estimate is NaN, an upper bound.
        num_forwards: number of windows at which the network was called, int64.
        effective_sample_size: independent hits that would have the same relative error,
            ``(1 - p) p**2 / standard_error**2``.
        levels: error thresholds of subset simulation, ``(K,)``; padded with NaN in a grid.
        status: HIT where the probability is estimated, MAX_STEPS where the target was never met, STALLED
            where thresholds do not fall, NONFINITE where weights were NaN, INTERRUPTED after Ctrl-C. A
            `Status`; in a grid an int64 tensor of codes.
        methods: of every row, in row-major order.
        reasons: for the methods.
        dims: names of the row dimensions.

    Example:
        >>> p = torch.tensor(0.001, dtype=torch.float64)
        >>> n = torch.tensor(2000)
        >>> Probability(p, 0.1 * p, 0.8 * p, 1.2 * p, n, n, n[None], Status.HIT, ("subset",), ("",))
        Probability(0.001, interval=(0.0008, 0.0012), method=subset, status=HIT)
    """

    estimate: Tensor
    standard_error: Tensor
    lower: Tensor
    upper: Tensor
    num_forwards: Tensor
    effective_sample_size: Tensor
    levels: Tensor
    status: Status | Tensor
    methods: tuple[str, ...]
    reasons: tuple[str, ...]
    dims: tuple[str, ...] = ()

    @property
    def shape(self) -> tuple[int, ...]:
        """Sizes of the row dimensions, ``()`` for one question."""
        return tuple(self.estimate.shape)

    @property
    def log10(self) -> Tensor:
        """Base-10 logarithm of the estimate."""
        return self.estimate.log10()

    @property
    def beta(self) -> Tensor:
        """Reliability index: a half-space this many sigmas away is as likely, ``Phi(-beta)``."""
        return -torch.special.ndtri(self.estimate)

    @property
    def method(self) -> str:
        """The method, or the methods of several rows."""
        return ", ".join(sorted(set(self.methods)))

    @property
    def reason(self) -> str:
        """Why this method; for several rows, all reasons."""
        return " ".join(dict.fromkeys(self.reasons))

    @property
    def message(self) -> str:
        """The meaning of each status that occurs."""
        return " ".join(_SENTENCES[Status(int(code))] for code in self._codes().unique())

    def __getitem__(self, index: Any) -> Self:
        """Pick rows by ints, slices, ``...``, or one-dimensional int or bool tensors, one for each dim.

        Args:
            index: for one dimension, or a tuple for several.

        Returns:
            The probabilities of these rows.

        Raises:
            IndexError: if the row or dimension does not exist.
            TypeError: for anything else.
        """
        names, tensors = list(self.dims), self._tensors()
        numbers = torch.arange(math.prod(self.shape)).reshape(self.shape)
        for dim, item in reversed(list(enumerate(expand_index(index, self.dims)))):
            key = (*[slice(None)] * dim, item)
            tensors, numbers = {n: t[key] for n, t in tensors.items()}, numbers[key]
            if drops_dim(item):
                del names[dim]
        chosen = numbers.flatten().tolist()
        texts = [tuple(each[number] for number in chosen) for each in (self.methods, self.reasons)]
        if not names:
            levels = tensors["levels"]
            one: Any = {"levels": levels[~levels.isnan()], "status": Status(int(tensors["status"]))}
            tensors |= one
        return type(self)(**tensors, methods=texts[0], reasons=texts[1], dims=tuple(names))

    def __repr__(self) -> str:
        if not self.dims:
            low, high = float(self.lower), float(self.upper)
            status = Status(int(self._codes()))
            return (
                f"Probability({float(self.estimate):.3g}, interval=({low:.3g}, {high:.3g}), "
                f"method={self.method}, status={status})"
            )
        sizes = ", ".join(f"{name}={size}" for name, size in zip(self.dims, self.shape, strict=True))
        codes = self._codes().flatten().tolist()
        counts = ", ".join(f"{Status(code)} {codes.count(code)}" for code in sorted(set(codes)))
        known = self.estimate[~self.estimate.isnan()]
        span = f"{float(known.min()):.3g} to {float(known.max()):.3g}" if len(known) else "unknown"
        return f"Probability(rows=({sizes}), estimate={span}, status=({counts}))"

    def _repr_html_(self) -> str:
        heads = [*self.dims, "probability", "95% interval", "method", "status"]
        columns = [values.flatten().tolist() for values in (self.estimate, self.lower, self.upper)]
        lines = []
        for row, (estimate, low, high) in enumerate(zip(*columns, strict=True)):
            index = map(str, np.unravel_index(row, self.shape) if self.dims else ())
            status = Status(int(self._codes().flatten()[row]))
            found = (f"{estimate:.3g}", f"{low:.3g} to {high:.3g}", self.methods[row], str(status))
            lines.append([*index, *found])
        shown = lines[:_MAX_SHOWN]
        more = f"{len(lines) - len(shown)} more rows. " if len(lines) > len(shown) else ""
        return element("div", element("p", more + self.message), table(heads, shown))

    def _codes(self) -> Tensor:
        """The codes of ``status``."""
        status: Any = self.status
        return torch.as_tensor(int(status)) if isinstance(status, Status) else status

    def _tensors(self) -> dict[str, Tensor]:
        """The fields as tensors."""
        return {**{name: getattr(self, name) for name in _FIELDS}, "status": self._codes()}


def _flatten(value: Any) -> tuple[list[Tensor], Any, tuple[str, ...]]:
    return list(value._tensors().values()), (value.methods, value.reasons, value.dims), _FIELDS


def _unflatten(texts: Any, leaves: Any) -> Any:
    *tensors, status = leaves
    coded = isinstance(status, Tensor) and status.ndim == 0 and not status.is_floating_point()
    if coded and int(status) in list(Status):
        status = Status(int(status))
    methods, reasons, dims = texts
    fields: Any = dict(zip(_FIELDS, (*tensors, status), strict=True))
    return Probability(**fields, methods=methods, reasons=reasons, dims=dims)


optree.register_pytree_node(
    cast(Any, Probability), _flatten, _unflatten, namespace=optree.registry.__GLOBAL_NAMESPACE
)
