"""A short look at an answer as HTML, for notebooks and the top of reports; it needs no matplotlib."""

from __future__ import annotations

from collections import Counter

import torch
from torch import Tensor

from funcexplain.reports.page import Html, element, table
from funcexplain.solutions.answer import Answer, Status

QUANTILES = (0.0, 0.25, 0.5, 0.75, 0.95, 1.0)


def summary(answer: Answer) -> Html:
    """How the search ended and how near it came; of a grid, in numbers over all rows.

    Args:
        answer: of one question or a grid.

    Returns:
        A sentence and a small table.

    Example:
        >>> import torch, funcexplain as fe
        >>> network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Softmax(-1))
        >>> p = fe.problem(network, torch.tensor([0.9, 0.1]), torch.zeros(1, 1, 2))
        >>> summary(fe.solve(p, max_steps=0))[:34]
        '<div><p>The budget of max_steps wa'
    """
    lines = rows_of(answer) if answer.dims else single(answer)
    return element("div", element("p", answer.message), table((), lines, numbers=(1,)))


def single(answer: Answer) -> list[tuple[str, str]]:
    """The numbers of one question."""
    return [
        ("status", str(Status(int(answer.status)))),
        ("largest error", number(answer.error)),
        ("loss", number(answer.loss)),
        ("steps", str(int(answer.num_steps))),
        ("window", f"{tuple(answer.x.shape)} {answer.x.dtype}"),
    ]


def rows_of(answer: Answer) -> list[tuple[str, str]]:
    """Counts and quantiles over the rows of a grid."""
    sizes = " x ".join(f"{size} {name}" for name, size in zip(answer.dims, answer.shape, strict=True))
    total = answer.num_steps.numel()
    counts = Counter(torch.as_tensor(answer.status).flatten().tolist())
    lines = [("rows", f"{total} ({sizes})")]
    lines += [(f"status {Status(code)}", str(count)) for code, count in sorted(counts.items())]
    lines.append(("hit rate", f"{100 * int(answer.hit.sum()) / total:.1f}%" if total else "none"))
    return lines


def quantiles(values: Tensor) -> list[str]:
    """`QUANTILES` of what is known, as text."""
    known = values.flatten().double().cpu()
    known = known[known.isfinite()]
    if not len(known):
        return ["unknown"] * len(QUANTILES)
    # By sorting: torch.quantile refuses more than 16 million numbers.
    known = known.sort().values
    return [number(known[round(share * (len(known) - 1))]) for share in QUANTILES]


def number(value: Tensor | float) -> str:
    """A number with three digits."""
    return f"{float(value):.3g}"
