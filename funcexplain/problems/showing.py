"""Displays of a problem: in one line, and as a table in a notebook."""

from __future__ import annotations

from html import escape
from typing import Any


def repr_of(problem: Any) -> str:
    """Rows, window, dtype, device and data of a problem in one line."""
    x0 = problem.args["x0"]
    rows = ", ".join(f"{dim.name}={dim.size}" for dim in problem.dims)
    return (
        f"Problem({f'rows=({rows}), ' if rows else ''}x0={tuple(x0.shape[-3:])}, dtype={x0.dtype}, "
        f"device={x0.device}, args={sorted(problem.args)})"
    )


def html_of(problem: Any) -> str:
    """The problem as an HTML table: target, rows, and varying entries."""
    x0 = problem.args["x0"]
    lines = [
        ("window (channels, lookback, assets)", str(tuple(x0.shape[-3:]))),
        ("numbers", f"{x0.dtype} on {x0.device}"),
        ("law of the search point", problem.law or "none"),
        *((f"{dim.size} rows of {dim.name}", ", ".join(sorted(dim.varying))) for dim in problem.dims),
        ("data", ", ".join(sorted(problem.args))),
    ]
    if problem.assets:
        lines.insert(1, ("assets", ", ".join(problem.assets)))
    cells = "".join(f"<tr><td>{escape(name)}</td><td>{escape(text)}</td></tr>" for name, text in lines)
    return f"<table><tbody>{cells}</tbody></table>"
