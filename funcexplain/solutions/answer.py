"""What an answer holds, and how rows of it are picked; `solution` adds how it is shown and kept."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, fields
from enum import IntEnum
from typing import Any, Self

import torch
from torch import Tensor

from funcexplain.problems.checks import as_index


class Status(IntEnum):
    """How a search ended; `sentence` says it in words.

    Example:
        >>> Status.HIT.sentence
        'The target is hit: every weight is within atol of it.'
    """

    HIT = 0
    STALLED = 1
    MAX_STEPS = 2
    NONFINITE = 3
    INTERRUPTED = 4
    FAILED = 5

    def __str__(self) -> str:
        return self.name

    @property
    def sentence(self) -> str:
        """What the status means, for a reader of the answer."""
        return _SENTENCES[self]


_SENTENCES = {
    Status.HIT: "The target is hit: every weight is within atol of it.",
    Status.STALLED: "The search stalled: nothing moves the input, or patience ended without progress.",
    Status.MAX_STEPS: "The budget of max_steps was used up before the target was hit.",
    Status.NONFINITE: "A value or gradient was not finite; this is the last finite input.",
    Status.INTERRUPTED: "The search was interrupted; this is what it had found, NaN if nothing.",
    Status.FAILED: "The row failed again and again, and is NaN; the run holds the error.",
}


@dataclass(frozen=True, eq=False, repr=False)
class Answer:
    """The fields of a `Solution`, and its rows. What is computed of an answer needs no more of it.

    Attributes:
        x: window that the search ended with, shape ``(C, L, A)``, in the problem's dtype.
        weights: what the network holds there, shape ``(A,)``; of a consensus ``(M, A)``.
        loss: misfit of ``weights`` to the target, scalar.
        history: loss before each update, shape ``(num_steps,)``; of a grid, each row has ``max_steps``
            places, with NaN after its end. Where only every k-th loss was kept, every k-th place.
        num_steps: updates that were taken, scalar int64.
        status: how the search ended, a `Status`; of a grid an int64 tensor of their codes.
        error: how near it came, the largest ``|weights - target|`` (of goals, ``|residual|``), scalar.
        dims: names of the row dimensions, outermost first; none for one question.
    """

    x: Tensor
    weights: Tensor
    loss: Tensor
    history: Tensor
    num_steps: Tensor
    status: Status | Tensor
    error: Tensor
    dims: tuple[str, ...] = ()

    @property
    def shape(self) -> tuple[int, ...]:
        """Sizes of the row dimensions, ``()`` for one question."""
        return tuple(self.num_steps.shape)

    @property
    def hit(self) -> Tensor:
        """Where the target is hit, a bool tensor of the rows' shape."""
        return torch.as_tensor(self.status == Status.HIT)

    @property
    def message(self) -> str:
        """How the search ended and how near it came, in words; of a grid, how many rows hit.

        Example:
            >>> import torch, funcexplain as fe
            >>> network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Softmax(-1))
            >>> p = fe.problem(network, torch.tensor([0.9, 0.1]), torch.zeros(1, 1, 2))
            >>> fe.solve(p, max_steps=0).message
            'The budget of max_steps was used up before the target was hit. It is missed by 0.4.'
        """
        if not self.dims:
            missed = "" if bool(self.hit) else f" It is missed by {float(self.error):.3g}."
            return f"{Status(int(self.status)).sentence}{missed}"
        hits, misses = int(self.hit.sum()), self.error[~self.hit]
        told = f"{hits} of {self.hit.numel()} rows hit their target."
        if len(misses):
            told += f" The others miss it by {_range(misses)}."
        return told

    def __getitem__(self, index: Any) -> Self:
        """Pick rows by ints, slices, ``...``, or one-dimensional int or bool tensors, one for each dim.

        Args:
            index: for one dimension, or a tuple for several. Several tensors pick their outer product.

        Returns:
            The solution of these rows. With an int for every dimension it is that of one question.

        Raises:
            IndexError: if there is no such row or dimension.
            TypeError: for anything else.
        """
        names, tensors = list(self.dims), self._tensors()
        for place, item in reversed(list(enumerate(self._items(index)))):
            picks_one = picks_one_row(item)
            key = (*[slice(None)] * place, item)
            tensors = {name: tensor[key] for name, tensor in tensors.items()}
            if picks_one:
                del names[place]
        return self._of(tensors, tuple(names))

    def _items(self, index: Any) -> list[Any]:
        """An index for each of the leading dimensions."""
        items = list(index) if isinstance(index, tuple) else [index]
        dots = [place for place, item in enumerate(items) if item is Ellipsis]
        if len(dots) > 1 or len(items) - len(dots) > len(self.dims):
            raise IndexError(
                f"solution: got the index {index!r} for {len(self.dims)} row dimensions {self.dims}"
            )
        if dots:
            missing = len(self.dims) - len(items) + 1
            items[dots[0] : dots[0] + 1] = [slice(None)] * missing
        return items

    def flat(self, rows: Tensor) -> Self:
        """Pick rows by their numbers in row-major order, whatever the dimensions; one question is row 0.

        Args:
            rows: numbers, int64, ``(B,)``.

        Returns:
            The solution of these rows, with one dimension ``row``.

        Example:
            >>> import torch, funcexplain as fe
            >>> network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Softmax(-1))
            >>> p = fe.problem(network, torch.tensor([0.9, 0.1]), torch.zeros(1, 1, 2))
            >>> grid = fe.vmap(fe.vmap(p, x0=torch.zeros(3, 1, 1, 2)), target=fe.one_hot_targets(2))
            >>> fe.solve(grid, max_steps=1).flat(torch.tensor([0, 5])).shape
            (2,)
        """
        lead, total = len(self.dims), math.prod(self.shape)
        tensors = {n: t.reshape(total, *t.shape[lead:])[rows] for n, t in self._tensors().items()}
        return self._of(tensors, ("row",))

    def isel(self, **items: Any) -> Self:
        """Pick rows by the names of dimensions.

        Args:
            items: an int, slice or one-dimensional tensor for each named dimension.

        Returns:
            The solution of these rows.

        Raises:
            ValueError: for a name that is no dimension.

        Example:
            >>> import torch, funcexplain as fe
            >>> network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Softmax(-1))
            >>> p = fe.problem(network, torch.tensor([0.9, 0.1]), torch.zeros(1, 1, 2))
            >>> starts = fe.vmap(p, x0=torch.zeros(3, 1, 1, 2), name="start")
            >>> grid = fe.vmap(starts, target=fe.one_hot_targets(2))
            >>> fe.solve(grid, max_steps=1).isel(start=0).shape
            (2,)
        """
        unknown = sorted(items.keys() - set(self.dims))
        if unknown:
            raise ValueError(f"isel: expected names among {self.dims}, got {unknown}")
        return self[tuple(items.get(name, slice(None)) for name in self.dims)]

    def best(self, *dims: str | int, by: Tensor | None = None) -> Self:
        """Pick the best row along dimensions: a hit before all others, then the least loss.

        Args:
            dims: names or numbers of the dimensions to pick along. Default: all of them.
            by: what is least in the best row, in place of the loss; of the rows' shape, such as the
                distance from today's market.

        Returns:
            The solution without these dimensions.

        Raises:
            ValueError: for a dimension that is none, one without rows, or ``by`` of another shape.

        Example:
            >>> import torch, funcexplain as fe
            >>> network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Softmax(-1))
            >>> p = fe.problem(network, torch.tensor([0.9, 0.1]), torch.zeros(1, 1, 2))
            >>> starts = fe.vmap(p, x0=torch.tensor([[[[0.0, 0.0]]], [[[1.0, 0.0]]]]), name="start")
            >>> fe.solve(starts, max_steps=0).best("start").x
            tensor([[[1., 0.]]])
        """
        if not self.dims and not dims:
            return self
        places = self._places_of_best(dims, by)
        kept = [place for place in range(len(self.dims)) if place not in places]
        rank = (self.loss if by is None else by).double().nan_to_num(nan=math.inf)
        # All dimensions to pick along become one, behind those that stay.
        rank, hit = (t.permute(*kept, *places).flatten(len(kept)) for t in (rank, self.hit))
        # Sorted by rank, then by hit: among equals the order of the first is kept.
        order = rank.argsort(dim=-1, stable=True)
        hits_first = (~hit.gather(-1, order)).to(torch.int8).argsort(dim=-1, stable=True)
        choice = order.gather(-1, hits_first)[..., 0]

        def picked(tensor: Tensor) -> Tensor:
            trailing = tensor.shape[len(self.dims) :]
            rest = range(len(self.dims), tensor.ndim)
            flat = tensor.permute(*kept, *places, *rest).flatten(len(kept), len(self.dims) - 1)
            index = choice.reshape(*choice.shape, 1, *[1] * len(trailing))
            index = index.expand(*choice.shape, 1, *trailing)
            return flat.gather(len(kept), index).squeeze(len(kept))

        tensors = self._tensors() if not places else {n: picked(t) for n, t in self._tensors().items()}
        return self._of(tensors, tuple(self.dims[place] for place in kept))

    def _places_of_best(self, dims: tuple[str | int, ...], by: Any) -> list[int]:
        """Numbers of the dimensions to pick along; refuses what `best` cannot pick by."""
        places = sorted({self._place(dim) for dim in dims} if dims else range(len(self.dims)))
        if by is not None and not isinstance(by, Tensor):
            raise TypeError(f"best: by must be a torch.Tensor, got {type(by).__name__}")
        if by is not None and tuple(by.shape) != self.shape:
            raise ValueError(f"best: by must have the rows' shape {self.shape}, got {tuple(by.shape)}")
        if any(self.shape[place] == 0 for place in places):
            raise ValueError(f"best: expected rows along every dimension, got the shape {self.shape}")
        return places

    @property
    def sample(self) -> Self:
        """The first row, with a dimension ``row``: it tells the window, dtype and device of all."""
        return self.flat(torch.arange(min(1, math.prod(self.shape))))

    def __iter__(self) -> Iterator[Self]:
        if not self.dims:
            raise TypeError("solution: expected a grid of rows to iterate over, got one question's")
        return (self[row] for row in range(self.shape[0]))

    def __repr__(self) -> str:
        if not self.dims:
            told = {name: _short(getattr(self, name)) for name in ("status", "loss", "num_steps", "x")}
        else:
            sizes = ", ".join(f"{name}={size}" for name, size in zip(self.dims, self.shape, strict=True))
            codes = Counter(torch.as_tensor(self.status).flatten().tolist())
            counts = ", ".join(f"{Status(code)} {count}" for code, count in sorted(codes.items()))
            x = f"{tuple(self.x.shape[len(self.dims) :])} {self.x.dtype}"
            told = {"rows": f"({sizes})", "status": f"({counts})", "x": x}
        return f"Solution({', '.join(f'{name}={text}' for name, text in told.items())})"

    def _tensors(self) -> dict[str, Tensor]:
        """The fields as tensors; what a mapped tree holds in their place is left as it is."""
        values = {field.name: getattr(self, field.name) for field in fields(Answer)[:-1]}
        if isinstance(self.status, Status):
            values["status"] = torch.as_tensor(self.status, dtype=torch.int64)
        return values

    def _of(self, tensors: dict[str, Tensor], dims: tuple[str, ...]) -> Self:
        """An answer from its fields; that of one question has its status and no places after its end."""
        kind = type(self)
        if dims:
            return kind(**tensors, dims=dims)
        history = tensors["history"]
        single: dict[str, Any] = {"status": Status(int(tensors["status"]))}
        return kind(**tensors | single | {"history": history[~history.isnan()]})

    def _place(self, dim: str | int) -> int:
        if dim in self.dims:
            return self.dims.index(dim)
        if type(dim) is int and -len(self.dims) <= dim < len(self.dims):
            return dim % len(self.dims)
        raise ValueError(f"best: expected a dimension among {self.dims} or its number, got {dim!r}")


def picks_one_row(item: Any) -> bool:
    """Whether an index picks one row and takes its dimension away; refuses what is no index."""
    if isinstance(item, slice) or (isinstance(item, Tensor) and item.ndim == 1):
        return False
    if as_index(item) is None:
        raise TypeError(
            "solution: rows are picked by int, slice, ... or one-dimensional tensor, got "
            f"{type(item).__name__}"
        )
    return True


def _range(misses: Tensor) -> str:
    known = misses[~misses.isnan()]
    if not len(known):
        return "unknown distances"
    least, most = (f"{float(miss):.3g}" for miss in known.aminmax())
    return least if least == most else f"{least} to {most}"


def _short(value: Any) -> str:
    if not isinstance(value, Tensor):
        return str(value)
    if value.ndim == 0:
        return f"{value.item():.3g}" if value.is_floating_point() else str(value.item())
    return f"{tuple(value.shape)} {value.dtype}"
