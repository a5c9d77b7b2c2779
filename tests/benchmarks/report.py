"""Rows of measurements, their check against each other, and the tables made of them."""

from __future__ import annotations

import csv
import datetime
import io
import math
import platform
import statistics
from collections.abc import Callable, Iterable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tests.benchmarks.catalogue import Case

RTOL, ATOL = 1e-4, 1e-6
# Adam divides a gradient by its own size: where one is nearly nothing, or a kink of the network is near,
# rounding decides a step. In float32 a few problems therefore end elsewhere; in float64 none does.
STRAYS = {"float32": 0.1, "float64": 0.002}
SOLVERS = ("eager", "compiled", "batched", "jax")  # that must agree; the first one is the reference
LEGEND = """*original*: one after the other, timed and scored on the first few problems. *limit*: a part
of the step that no program can leave out, not a solve. *KiB per problem*: what a solve adds to the peak
of the process. *elsewhere*: problems whose last loss is not that of the table's first solver. A row with
a note is in no ratio."""
PACKAGES = ("torch", "jax", "optax", "deepdow", "numpy")


class Row(NamedTuple):
    """A framework's figures for a case.

    Attributes:
        times: microseconds per step and problem, one for each repetition.
        first: seconds of the first call, which compiles.
        memory: bytes per problem that a solve adds to the peak of the process; nan if unknown.
        losses: of the final windows.
        strays: share of problems that end elsewhere than the reference's.
        note: why the row does not count; empty if it does.
    """

    network: str
    dtype: str
    problems: int
    steps: int
    framework: str
    times: tuple[float, ...] = ()
    first: float = math.nan
    memory: float = math.nan
    losses: tuple[float, ...] = ()
    strays: float = 0.0
    note: str = ""
    answered: int = 1

    @classmethod
    def of(cls, case: Case, framework: str, reply: dict[str, Any]) -> Row:
        """The row that a worker's reply to a case tells."""
        named = cls(case.network, case.dtype, case.problems, case.steps, framework)
        if "error" in reply:
            return named._replace(note=reply["error"])
        answered, memory = reply["problems"], reply["memory"]
        early = reply["num_steps"] < case.steps
        # Of a few problems nothing is seen but pages of the allocator.
        mapped = framework in SOLVERS and memory is not None and answered >= 64
        return named._replace(
            first=reply["first"],
            memory=memory / answered if mapped else math.nan,
            losses=tuple(reply["losses"]),
            note=f"ends after {reply['num_steps']} steps" if early else "",
            answered=answered,
        )

    def with_times(self, seconds: Sequence[float]) -> Row:
        """The row with its timings, in seconds of a solve."""
        return self._replace(times=tuple(1e6 * t / self.steps / self.answered for t in seconds))

    @property
    def median(self) -> float:
        """Microseconds per step and problem."""
        return statistics.median(self.times) if self.times else math.nan


def judge(rows: Sequence[Row]) -> list[Row]:
    """Mark the rows of one case whose losses are not those of the reference."""
    told = {row.framework: row for row in rows if row.losses and row.framework in SOLVERS}
    reference = next((told[name] for name in SOLVERS if name in told), None)
    return [compared(row, reference) if reference and row in told.values() else row for row in rows]


def compared(row: Row, reference: Row) -> Row:
    found, expected = np.array(row.losses), np.array(reference.losses)
    strays = float(1 - np.isclose(found, expected, RTOL, ATOL).mean())
    if strays <= STRAYS[row.dtype]:
        return row._replace(strays=strays)
    worst = float(np.abs(found - expected).max())
    note = f"void: {strays:.0%} of losses differ from {reference.framework}'s, by up to {worst:.1e}"
    return row._replace(strays=strays, note=note)


def make_header(repetitions: int) -> str:
    """Versions, machine, date and threads, as a paragraph."""
    versions = [f"Python {platform.python_version()}"]
    for package in PACKAGES:
        try:
            versions.append(f"{package} {metadata.version(package)}")
        except metadata.PackageNotFoundError:
            versions.append(f"no {package}")
    today = f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d}"
    return (
        f"{', '.join(versions)}. {cpu_model()}, one thread on one core. {today}. "
        f"Medians of {repetitions} interleaved repetitions."
    )


def cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.machine()


def to_markdown(header: str, rows: Sequence[Row]) -> str:
    """All tables: the ratios first, and then the rows."""
    parts = ["# Benchmarks", header, LEGEND, *summaries(rows)]
    for network, dtype in dict.fromkeys((row.network, row.dtype) for row in rows):
        lines = [
            f"## {network}, {dtype}\n",
            "| problems | framework | us per step and problem | fastest to slowest | first call, s | "
            "KiB per problem | median loss | elsewhere | steps | note |",
            "|---|---|---|---|---|---|---|---|---|---|",
        ]
        lines += [to_line(row) for row in rows if (row.network, row.dtype) == (network, dtype)]
        parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n"


def to_line(row: Row) -> str:
    spread = f"{number(min(row.times))} to {number(max(row.times))}" if row.times else "-"
    loss = f"{statistics.median(row.losses):.6g}" if row.losses else "-"
    cells = [
        row.problems,
        row.framework,
        number(row.median),
        spread,
        number(row.first),
        number(row.memory / 1024),
        loss,
        f"{row.strays:.1%}" if row.framework in SOLVERS and row.losses else "-",
        row.steps,
        row.note,
    ]
    return "| " + " | ".join(map(str, cells)) + " |"


def number(value: float) -> str:
    """Three digits, or a dash for what is not known."""
    if math.isnan(value):
        return "-"
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"


def summaries(rows: Sequence[Row]) -> Iterable[str]:
    """The ratios that matter, each as a table of networks by problems with geometric means."""
    mlp = [row for row in rows if row.network == "mlp"]
    for ours in ("compiled", "eager", "batched"):
        yield from ratios(f"Time of {ours} / time of JAX", rows, ours, "jax")
    for ours in ("compiled", "eager"):
        yield from ratios(f"Time of the original / time of {ours}", rows, "original", ours)
        yield from ratios(f"Time of {ours} / time of batched", rows, ours, "batched")
    for ours in ("compiled", "eager", "jax"):
        yield from ratios(f"Time of {ours} / time of the matrix products alone", mlp, ours, "limit")
    for ours in ("compiled", "eager"):
        title = f"Memory per problem of {ours} / that of JAX"
        yield from ratios(title, rows, ours, "jax", lambda row: row.memory)


def ratios(
    title: str,
    rows: Sequence[Row],
    above: str,
    below: str,
    figure: Callable[[Row], float] = lambda row: row.median,
) -> Iterable[str]:
    """A table of ``figure`` of one framework over that of another, of all rows that count."""
    known = {(*row[:3], row.framework): figure(row) for row in rows if not row.note}
    found = {
        key[:3]: value / known[*key[:3], below]
        for key, value in known.items()
        if key[3] == above and value > 0 and known.get((*key[:3], below), 0.0) > 0
    }
    if not found:
        return
    sizes = sorted({size for _, _, size in found})
    lines = [
        f"**{title}**\n",
        "| problems | " + " | ".join(map(str, sizes)) + " |",
        "|---" * (1 + len(sizes)) + "|",
    ]
    for network, dtype in dict.fromkeys(key[:2] for key in found):
        cells = [number(found.get((network, dtype, size), math.nan)) for size in sizes]
        lines.append(f"| {network}, {dtype} | " + " | ".join(cells) + " |")
    means = [statistics.geometric_mean(v for k, v in found.items() if k[2] == size) for size in sizes]
    lines.append("| geometric mean | " + " | ".join(map(number, means)) + " |")
    yield "\n".join(lines)


def to_csv(rows: Sequence[Row]) -> str:
    """One line for each row, with all figures."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(
        "network dtype problems framework steps median_us min_us max_us first_seconds "
        "bytes_per_problem median_loss strays note".split()
    )
    for row in rows:
        times = row.times or (math.nan,)
        loss = statistics.median(row.losses) if row.losses else math.nan
        cells = (row.median, min(times), max(times), row.first, row.memory, loss, row.strays)
        figures = ["" if math.isnan(cell) else f"{cell:.6g}" for cell in cells]
        writer.writerow([*row[:3], row.framework, row.steps, *figures, row.note])
    return text.getvalue()
