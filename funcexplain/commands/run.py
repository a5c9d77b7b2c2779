"""The commands ``run``, ``check`` and ``report``, each readable from top to bottom.

Each prints lines with ``print_line`` and returns a dict of JSON values. For bad input, it raises a
ValueError, TypeError, OSError or ImportError whose message names the remedy.
"""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

import funcexplain as fe
from funcexplain.commands import outputs
from funcexplain.commands.checking import find_warnings, today_lines
from funcexplain.commands.comparing import compare
from funcexplain.commands.config import Config, read_config, read_configs
from funcexplain.commands.environment import torch_threads
from funcexplain.commands.execution import search_executor, solve_or_raise, solve_shared
from funcexplain.commands.folder import (
    ANSWERS,
    CONFIG,
    SOLUTION,
    SUMMARY,
    check_writable,
    fresh_folder,
    make_folder,
    read_summary,
    replace_files,
)
from funcexplain.commands.inputs import (
    Inputs,
    hash_inputs,
    load_inputs,
    load_recorded,
    make_method,
    refinement_settings,
    solve_settings,
)
from funcexplain.commands.paths import rebase
from funcexplain.commands.printing import (
    PrintLine,
    likelihood_sentence,
    met_sentence,
    outcome_lines,
    prices_line,
    print_plain,
)
from funcexplain.commands.toml import to_plain, to_toml
from funcexplain.networks.adapt import Adapted
from funcexplain.reports.drawing import require_matplotlib
from funcexplain.reports.report import LEFT_OUT

HIT, NOT_REACHED = 0, 1

_MAX_FAILURES = 3  # printed; the summary has all of them


def run_config(
    path: str | Path | Config,
    *,
    settings: Iterable[str] = (),
    workers: int | None = None,
    dask: str | None = None,
    timeout: float | None = None,
    accept: str | None = None,
    trust_model: bool = False,
    quiet: bool = False,
    print_line: PrintLine = print_plain,
) -> dict:
    """Solve the question of a config, and write the answer to its folder.

    Args:
        path: the config file, or a config.
        settings: entries to set in it, such as ``"question.at_least.CHF=0.3"``.
        workers: processes of this machine that share the searches. Default: only this process.
        dask: address of a Dask scheduler whose workers share them.
        timeout: maximum number of seconds for a chunk of searches in a worker; see `fe.clusters.solve`.
        accept: names of parts of the code, separated by commas, that may differ from those of the
            answers to resume; likewise.
        trust_model: whether a ``.pt2`` file may run its code.
        quiet: whether to hide the progress.
        print_line: called with each line of output.

    Returns:
        The summary; its ``"exit_code"`` is 0 if some start hit on every date, else 1. Of several
        questions, a dict of their summaries as ``"questions"``.

    Raises:
        KeyboardInterrupt: after Ctrl-C; the folder is as it was before. If workers share the searches,
            the next call resumes.
    """
    configs = {None: path} if isinstance(path, Config) else _read_all(path, settings)
    own: dict[str, Any] = {"workers": workers, "dask": dask, "timeout": timeout, "accept": accept}
    summaries: dict[str | None, dict[str, Any]] = {}
    for label, config in configs.items():
        if label is not None:
            print_line(f"{chr(10) if summaries else ''}Question {label}:")
        summaries[label] = _run(
            config, **own, trust_model=trust_model, quiet=quiet, print_line=print_line
        )
    if None in summaries:
        return summaries[None]
    return compare(summaries, Path(next(iter(configs.values())).output.folder).parent, print_line)


def _run(
    config: Config,
    *,
    workers: int | None,
    dask: str | None,
    timeout: float | None,
    accept: str | None,
    trust_model: bool,
    quiet: bool,
    print_line: PrintLine,
) -> dict[str, Any]:
    """Solve one question, and write the answer to its folder."""
    files = [CONFIG]
    _require_plots(config)
    for name, value in {"--timeout": timeout, "--accept": accept}.items():
        if value is not None and workers is None and dask is None:
            raise ValueError(f"{name}: only searches that are shared have it; add --workers or --dask")
    with torch_threads(config.method.threads), search_executor(workers, dask) as executor:
        inputs = load_inputs(config, trust_model=trust_model, say=print_line)
        folder = make_folder(Path(config.output.folder))
        _describe(inputs, print_line)
        query, history = inputs.query, inputs.history
        began, bar = time.monotonic(), None if quiet else fe.progress()
        if executor is None or not query.problem.dims:
            method = config.method
            solution = solve_or_raise(
                query.problem,
                make_method(method),
                f"nothing is written to {str(folder)!r}",
                refinement_settings(method),
                callback=bar,
                **solve_settings(method),
            )
        else:
            solution = solve_shared(
                inputs,
                executor,
                folder / ANSWERS,
                trust_model=trust_model,
                timeout=timeout,
                accept=accept.split(",") if accept else (),
                callback=bar,
            )
        seconds = time.monotonic() - began
        outcome = outputs.make_outcome(solution, _evaluate(inputs, solution), query)
        summary = outputs.summarize(outcome, query, query.names)
        chance = None
        if config.question.how_likely:
            chance = fe.probability(query.from_reference, atol=config.method.atol)
            for row, answer in enumerate(summary["answers"]):
                answer["probability"] = outputs.describe_chance(chance[row] if chance.dims else chance)
        if isinstance(solution, fe.clusters.ChunkedSolution):
            failures = solution.failures
        else:
            errors = solution.exceptions.items()
            failures = [fe.clusters.Failure(range(row, row + 1), error) for row, error in errors]
        with fresh_folder(folder) as fresh:
            written = rebase(inputs.config, os.curdir, folder)
            (fresh / CONFIG).write_text(to_toml(written), encoding="utf-8")
            if isinstance(solution, fe.clusters.ChunkedSolution):
                files.append(ANSWERS)
            else:
                settings = {"config": _settings(inputs, folder), "dates": query.dates}
                files.append(outputs.save_solution(fresh, solution, query, history, settings))
            files += outputs.write_tables(fresh, outcome, query, query.names)
            if config.output.picture:
                files.append(outputs.write_picture(fresh, outcome, query, history))
            if config.output.report:
                files.append(_write_report(fresh, folder, inputs, solution))
            summary |= {
                "seconds": round(seconds, 3),
                "folder": str(folder),
                "digest": hash_inputs(inputs),
                "failed": [
                    {"first": failure.rows.start, "last": failure.rows.stop - 1, "error": failure.error}
                    for failure in failures
                ],
                "files": [*files, SUMMARY],
                "exit_code": HIT if summary["dates_hit"] == summary["dates"] else NOT_REACHED,
            }
            replace_files(folder, fresh, summary)
    for line in outcome_lines(outcome, query, query.names):
        print_line(line)
    if chance is not None and not chance.dims:
        print_line(likelihood_sentence(chance, query.ahead))
    for rows, error in failures[:_MAX_FAILURES]:
        which = f"Searches {rows.start} to {rows.stop - 1}" if len(rows) > 1 else f"Search {rows.start}"
        print_line(f"{which} failed: {error.splitlines()[0]}")
    if len(failures) > _MAX_FAILURES:
        print_line(f"... and {len(failures) - _MAX_FAILURES} more, in {SUMMARY}")
    print_line(f"{folder}: {', '.join(summary['files'])}")
    return summary


def check_config(
    path: str | Path,
    *,
    settings: Iterable[str] = (),
    trust_model: bool = False,
    print_line: PrintLine = print_plain,
) -> dict:
    """Check everything that a config names without solving, and the gradient of the first search.

    It prints today's weights, and the range of the features in the last window and in history.
    """
    found = {
        label: _check(config, trust_model, print_line)
        for label, config in _read_all(path, settings).items()
    }
    print_line(f"{path} is valid; funcexplain run {path} solves it")
    return found.get(None, {"exit_code": HIT, "questions": found})


def _check(config: Config, trust_model: bool, print_line: PrintLine) -> dict[str, Any]:
    """Check one question."""
    _require_plots(config)
    check_writable(Path(config.output.folder))
    with torch_threads(config.method.threads):
        inputs = load_inputs(config, trust_model=trust_model, say=print_line)
        _describe(inputs, print_line)
        query, problem = inputs.query, inputs.query.problem
        first = problem[(0,) * len(problem.dims)] if problem.dims else problem
        checked = fe.check_gradient(first, rtol=0.05)
        verdict, flat = checked.verdict, all(slope.gradient == 0.0 for slope in checked.slopes)
        if flat and float(first.criterion.error(query.held[0], first.args["target"])) == 0.0:
            verdict = met_sentence(query)
        elif flat or not checked.ok:
            raise ValueError(f"network: {verdict} A search by gradients needs differentiable layers")
        for line in today_lines(inputs):
            print_line(line)
        print_line(verdict)
    today = dict(zip(query.names, query.today[-1].tolist(), strict=True))
    return {
        "exit_code": HIT,
        "question": query.sentence,
        "searches": int(torch.Size(problem.shape).numel()),
        "gradient": verdict,
        "today": outputs.as_json(today),
        "sum": outputs.as_json(float(query.today[-1].sum())),
        "parameters": sum(parameter.numel() for parameter in inputs.network.parameters()),
        "digest": hash_inputs(inputs),
        "warnings": list(find_warnings(inputs)),
    }


def rewrite_report(
    folder: str | Path,
    *,
    trust_config: bool = False,
    trust_model: bool = False,
    print_line: PrintLine = print_plain,
) -> dict:
    """Write the report of a folder again, from the files that `run_config` wrote there.

    Unless ``trust_config``, no code that the config names runs: the network is not built, its weights
    today are those of the summary, and the report leaves out and names what needs more of it.

    Raises:
        ValueError: if the network, the prices or the files of the folder have changed since the run.
        FileNotFoundError: if it is not the folder of a run.
    """
    folder = Path(folder)
    before = read_summary(folder)
    config, shared = _read(folder / CONFIG), ANSWERS in before["files"]
    solution = fe.clusters.open(folder / ANSWERS) if shared else fe.load(folder / SOLUTION)
    with torch_threads(config.method.threads):
        if trust_config:
            inputs = load_inputs(config, trust_model=trust_model)
        else:
            inputs = load_recorded(config, before, solution.sample.x.dtype)
        now = hash_inputs(inputs)
        changed = [name for name in now if now[name] != before["digest"].get(name)]
        if changed or solution.shape != inputs.query.problem.shape:
            raise ValueError(
                f"{str(folder)!r}: the {' and the '.join(changed) or 'config'} changed since the run; "
                "run again, or restore the original"
            )
        with fresh_folder(make_folder(folder)) as fresh:
            name = _write_report(fresh, folder, inputs, solution)
            names = dict.fromkeys([*before["files"], name])
            replace_files(folder, fresh, {**before, "files": [*names]})
    print_line(f"{folder / name}")
    left_out = [] if trust_config else list(LEFT_OUT)
    if left_out:
        print_line(
            f"Without the network, which was not built: {', '.join(left_out)} are left out, and whether "
            "it has changed since the run was not checked; --trust-config builds it"
        )
    return {"exit_code": HIT, "folder": str(folder), "files": [name], "left_out": left_out}


def _read(path: str | Path) -> Config:
    """Read a config, with paths relative to the current folder."""
    return rebase(read_config(path), os.path.dirname(path), os.curdir)


def _read_all(path: str | Path, settings: Iterable[str]) -> dict[str | None, Config]:
    """Read the configs of a file by the labels of their questions, as `_read` does."""
    folder = os.path.dirname(path)
    return {
        label: rebase(config, folder, os.curdir)
        for label, config in read_configs(path, settings).items()
    }


def _require_plots(config: Config) -> None:
    """Check that matplotlib is installed if it is needed."""
    if config.output.picture or config.output.report:
        require_matplotlib()


def _settings(inputs: Inputs, folder: Path) -> Any:
    """The config as in a folder, whatever the current one is."""
    return outputs.as_json(to_plain(rebase(inputs.config, os.curdir, folder)))


def _write_report(fresh: Path, folder: Path, inputs: Inputs, solution: fe.Solution) -> str:
    return outputs.write_report(
        fresh,
        solution,
        inputs.query,
        inputs.history,
        title=inputs.config.output.title,
        settings=_settings(inputs, folder),
        probe=inputs.network is not None,
    )


def _evaluate(inputs: Inputs, solution: fe.Solution) -> Any:
    """Measure the answers, each by the history up to its date."""
    history, last = inputs.history, inputs.query.positions[-1]
    days = history.until(last).to(history.windows.dtype)
    known = history.has_returns and days.shape[1] > history.lookback
    return fe.evaluate(
        solution,
        inputs.query.problem,
        days if known else None,
        scale=None if known else history.scale(last)[1],
        atol=inputs.config.method.atol,
    )


def _describe(inputs: Inputs, print_line: PrintLine) -> None:
    """Print prices, network, question and search."""
    problem, method = inputs.query.problem, inputs.config.method
    print_line(prices_line(inputs.history.prices))
    assert inputs.network is not None
    count = sum(parameter.numel() for parameter in inputs.network.parameters())
    dtype = str(inputs.history.windows.dtype).removeprefix("torch.")
    module = inputs.network.network if isinstance(inputs.network, Adapted) else inputs.network
    print_line(f"Network: {type(module).__name__} with {count} parameters, {dtype}")
    if inputs.query.market is None:
        print_line("Market: each channel by itself; no path of prices need make such a window")
    else:
        print_line(f"Market: {inputs.query.market}, from the prices up to each date")
    print_line(inputs.query.sentence)
    dims = " x ".join(f"{dim.size} {dim.name}s" for dim in problem.dims) or "1 search"
    kind = "the first hit" if method.answer == "first" else "then towards the reference"
    for warning in find_warnings(inputs):
        warnings.warn(warning, stacklevel=2)
    print_line(
        f"Search: {dims}, {method.name}, at most {method.max_steps} steps, atol {method.atol:g}, {kind}"
    )
