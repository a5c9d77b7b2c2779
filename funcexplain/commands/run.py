"""The commands ``run``, ``check`` and ``report``, each readable from top to bottom."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import torch
from torch import Tensor

import funcexplain as fe
from funcexplain.commands import outputs
from funcexplain.commands.config import Method, read_config
from funcexplain.commands.demo import writable
from funcexplain.commands.engine import engine, solve
from funcexplain.commands.outputs import has_returns
from funcexplain.commands.ready import Ready, digest, load, method_of, search_settings
from funcexplain.commands.toml import plain, to_toml
from funcexplain.reports.drawing import require_matplotlib

HIT, NOT_REACHED = 0, 1

Say = Callable[[str], object]

_FAILURES_TOLD = 3  # the others stand in the summary


def run(
    path: str | Path,
    *,
    workers: int | None = None,
    dask: str | None = None,
    trust_model: bool = False,
    quiet: bool = False,
    say: Say = print,
) -> dict:
    """Solve what a config asks, and write the answer to its folder.

    Args:
        path: the config file.
        workers: processes of this machine that share the searches. Default: this one has all.
        dask: address of a Dask scheduler whose workers share them.
        trust_model: whether a ``.pt2`` file may run its code.
        quiet: whether no progress is shown.
        say: called with each line for people.

    Returns:
        What was found, as JSON has it; under ``"exit_code"`` 0 if every date was hit from some start,
        else 1.

    Raises:
        ValueError, TypeError, OSError, ImportError: the input is bad; the message says what to do.
        KeyboardInterrupt: after Ctrl-C, where workers share the searches; the next call goes on.
    """
    config = read_config(path)
    if config.output.picture or config.output.report:
        require_matplotlib()
    with _threads(config.method), engine(workers, dask) as executor:
        ready = load(config, trust_model=trust_model)
        folder = writable(Path(config.output.folder))
        _tell(ready, say)
        began, bar = time.monotonic(), None if quiet else fe.progress()
        if executor is None or not ready.asked.problem.dims:
            solution = _solved_here(ready, folder, bar)
        else:
            solution = solve(
                ready, executor, folder / outputs.ANSWERS, trust_model=trust_model, callback=bar
            )
            (folder / outputs.SOLUTION).unlink(missing_ok=True)  # of an earlier run
        seconds = time.monotonic() - began
        (folder / outputs.CONFIG).write_text(to_toml(ready.config), encoding="utf-8")
        metrics = _measured(ready, solution)
        answer = outputs.answer_of(solution, metrics, ready.asked)
        files = outputs.write_tables(folder, answer, ready.asked, ready.history.prices.assets)
        if config.output.picture:
            files.append(outputs.write_picture(folder, answer, ready.asked, ready.history))
        if config.output.report:
            files.append(write_report(folder, ready, solution))
    found = outputs.summary(answer, ready.asked, ready.history.prices.assets)
    found |= {"seconds": round(seconds, 3), "folder": str(folder), "digest": digest(ready)}
    saved, failures = outputs.SOLUTION, list[fe.clusters.Failure]()
    if isinstance(solution, fe.clusters.ChunkedSolution):
        saved, failures = outputs.ANSWERS, solution.failures
    found["failed"] = [
        {"first": failure.rows.start, "last": failure.rows.stop - 1, "error": failure.error}
        for failure in failures
    ]
    found["files"] = [outputs.CONFIG, saved, *files, outputs.SUMMARY]
    found["exit_code"] = HIT if found["dates_hit"] == found["dates"] else NOT_REACHED
    outputs.write_json(folder / outputs.SUMMARY, found)
    for line in outputs.told(answer, ready.asked, ready.history.prices.assets):
        say(line)
    for rows, error in failures[:_FAILURES_TOLD]:
        say(f"Searches {rows.start} to {rows.stop - 1} failed: {error.splitlines()[0]}")
    if len(failures) > _FAILURES_TOLD:
        say(f"... and {len(failures) - _FAILURES_TOLD} chunks more, in {outputs.SUMMARY}")
    say(f"{folder}: {', '.join(found['files'])}")
    return found


def check(path: str | Path, *, trust_model: bool = False, say: Say = print) -> dict:
    """Try everything that a config names without solving, the gradient of the first search included.

    Args:
        path: the config file.
        trust_model: whether a ``.pt2`` file may run its code.
        say: called with each line for people.

    Returns:
        What was found, as JSON has it.

    Raises:
        ValueError, TypeError, OSError, ImportError: the input is bad; the message says what to do.
    """
    config = read_config(path)
    if config.output.picture or config.output.report:
        require_matplotlib()
    _would_be_writable(Path(config.output.folder))
    with _threads(config.method):
        ready = load(config, trust_model=trust_model)
        _tell(ready, say)
        problem = ready.asked.problem
        found = fe.check_gradient(
            problem[(0,) * len(problem.dims)] if problem.dims else problem, rtol=0.05
        )
        if not found.ok or all(slope.gradient == 0.0 for slope in found.slopes):
            raise ValueError(
                f"network: {found.verdict} A search by gradients needs every layer differentiable"
            )
        say(found.verdict)
    say(f"{path} is fine; funcexplain run {path} solves it")
    today = dict(zip(ready.history.prices.assets, ready.asked.today[-1].tolist(), strict=True))
    searches = int(torch.Size(problem.shape).numel())
    checked = {"question": ready.asked.sentence, "searches": searches, "gradient": found.verdict}
    return {"exit_code": HIT, **checked, "today": outputs.as_json(today)}


def report(folder: str | Path, *, trust_model: bool = False, say: Say = print) -> dict:
    """Write the report of a folder again, from what `run` wrote there.

    Args:
        folder: the folder of a run; the command runs where the run did, so that paths lead to the same.
        trust_model: whether a ``.pt2`` file may run its code.
        say: called with each line for people.

    Returns:
        What was written, as JSON has it.

    Raises:
        ValueError, TypeError, OSError, ImportError: the folder is none of a run, or what it was run on
            has changed since.
    """
    folder = Path(folder)
    saved, shared = folder / outputs.SOLUTION, folder / outputs.ANSWERS
    try:
        config = read_config(folder / outputs.CONFIG)
        then = json.loads((folder / outputs.SUMMARY).read_text(encoding="utf-8"))["digest"]
        solution = fe.load(saved) if saved.is_file() else fe.clusters.open(shared)
    except (FileNotFoundError, NotADirectoryError, KeyError):
        raise FileNotFoundError(
            f"{str(folder)!r} is no folder of a run that has ended, which holds {outputs.CONFIG}, "
            f"{outputs.SUMMARY} and {outputs.SOLUTION} or {outputs.ANSWERS}; funcexplain run "
            "CONFIG.toml makes one"
        ) from None
    with _threads(config.method):
        ready = load(config, trust_model=trust_model)
        now = digest(ready)
        changed = [name for name in now if now[name] != then.get(name)]
        if changed or solution.shape != ready.asked.problem.shape:
            raise ValueError(
                f"{str(folder)!r}: the {' and the '.join(changed) or 'config'} changed since the run; "
                "run again, or put back what was there"
            )
        name = write_report(writable(folder), ready, solution)
    say(f"{folder / name}")
    return {"exit_code": HIT, "folder": str(folder), "files": [name]}


def write_report(folder: Path, ready: Ready, solution: fe.Solution) -> str:
    """Write the report of a solution, and return the name of its file."""
    history, asked, output = ready.history, ready.asked, ready.config.output
    fe.report(
        solution,
        asked.problem,
        folder / outputs.REPORT,
        history=history.days.to(history.windows.dtype) if has_returns(history) else None,
        assets=history.prices.assets,
        channels=history.channels,
        dates=history.window_days(asked.places[0]) if len(asked.places) == 1 else None,
        scale=history.std,
        title=output.title or asked.sentence,
        settings=outputs.as_json(plain(ready.config)),
        prices=_paths(ready, solution),
    )
    return outputs.REPORT


def _solved_here(ready: Ready, folder: Path, bar: Any) -> fe.Solution:
    """Solve all searches in this process, and save the answers."""
    method = ready.config.method
    solution = fe.solve(ready.asked.problem, method_of(method), callback=bar, **search_settings(method))
    settings = {"config": outputs.as_json(plain(ready.config)), "dates": ready.asked.dates}
    outputs.save(folder, solution, ready.asked, ready.history, settings)
    return solution


def _paths(ready: Ready, solution: fe.Solution) -> Callable[..., Any] | None:
    """Prices over a row's window, actual and as its returns make them; None where there are none."""
    history, asked = ready.history, ready.asked
    if not has_returns(history):
        return None

    def of_row(index: tuple[int, ...]) -> tuple[Tensor, Tensor] | None:
        date = index[solution.dims.index("date")] if "date" in solution.dims else 0
        last = int(history.last_days[asked.places[date]])
        actual = torch.as_tensor(history.prices.values[last - history.lookback : last + 1])
        x = (solution[index] if index else solution).x
        return (actual, fe.scenarios.prices_of(x[0].double(), actual[0])) if x.isfinite().all() else None

    return of_row


def _measured(ready: Ready, solution: fe.Solution) -> Any:
    history = ready.history
    days = history.days.to(history.windows.dtype)
    return fe.evaluate(
        solution,
        ready.asked.problem,
        days if has_returns(history) and days.shape[1] > history.lookback else None,
        scale=history.std,
        atol=ready.config.method.atol,
    )


def _tell(ready: Ready, say: Say) -> None:
    prices, problem, method = ready.history.prices, ready.asked.problem, ready.config.method
    count = sum(parameter.numel() for parameter in ready.network.parameters())
    say(
        f"{len(prices.assets)} assets, {len(prices.dates)} days, {prices.dates[0]} to "
        f"{prices.dates[-1]}: {prices.source}"
    )
    dtype = str(ready.history.windows.dtype).removeprefix("torch.")
    say(f"Network: {type(ready.network).__name__} of {count} parameters, {dtype}")
    say(ready.asked.sentence)
    dims = " x ".join(f"{dim.size} {dim.name}s" for dim in problem.dims) or "1 search"
    say(f"Search: {dims}, {method.name}, at most {method.max_steps} steps, atol {method.atol:g}")


@contextmanager
def _threads(method: Method) -> Iterator[None]:
    """As many threads as the config says: small networks are fastest with one."""
    before = torch.get_num_threads()
    torch.set_num_threads(method.threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _would_be_writable(folder: Path) -> None:
    """Refuse a folder that cannot be made or written to, and leave nothing behind."""
    place = folder
    while not place.exists() and place != place.parent:
        place = place.parent
    try:
        with TemporaryFile(dir=place):
            pass
    except OSError as error:
        raise OSError(
            f"cannot write to the folder {str(folder)!r}: {error.strerror}; choose another one"
        ) from error
