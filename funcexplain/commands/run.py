"""The commands ``run`` and ``report``, each readable from top to bottom.

Each prints lines with ``print_line`` and returns a dict of JSON values.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

import funcexplain as fe
from funcexplain.commands import outputs
from funcexplain.commands.audit import audit
from funcexplain.commands.check import describe_inputs
from funcexplain.commands.comparing import ask_each, compare, describe_earlier
from funcexplain.commands.config import Config
from funcexplain.commands.draws import Drawn, load_draws, save_draws, write_fan
from funcexplain.commands.environment import torch_threads
from funcexplain.commands.execution import search_executor, solve_here, solve_shared
from funcexplain.commands.findings import add_findings, check_findings, recorded_findings
from funcexplain.commands.folder import (
    ANSWERS,
    CONFIG,
    DRAWS,
    PDF,
    SOLUTION,
    SUMMARY,
    fresh_folder,
    make_folder,
    read_summary,
    replace_files,
)
from funcexplain.commands.inputs import Inputs, hash_inputs, load_inputs, load_recorded, make_loader
from funcexplain.commands.printing import PrintLine, outcome_lines, print_plain
from funcexplain.commands.reading import read_all, read_one, rebase, require_plots
from funcexplain.commands.tables import write_tables, write_workbook
from funcexplain.commands.toml import to_plain, to_toml
from funcexplain.reports.origin import LEFT_OUT
from funcexplain.reports.pdf import require_printer, write_pdf
from funcexplain.solutions.tables import require

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
    xlsx: bool = False,
    pdf: bool = False,
    quiet: bool = False,
    print_line: PrintLine = print_plain,
) -> dict:
    """Solve the question of a config, and write the answer to its folder.

    Args:
        path: the config file, or a config.
        settings: entries to set in it, such as ``"question.at_least.CHF=0.3"``.
        workers: number of local processes for the searches. Default: only this process.
        dask: address of a Dask scheduler whose workers run them.
        timeout: maximum number of seconds for a chunk of searches in a worker; see `fe.clusters.solve`.
        accept: names of parts of the code, separated by commas, that may have changed since the
            answers to resume; see `fe.clusters.solve`.
        trust_model: whether a ``.pt2`` file may run its code.
        xlsx: whether to also write the tables as one Excel file.
        pdf: whether to also print the report to a PDF.
        quiet: whether to hide the progress.
        print_line: called with each line of output.

    Returns:
        The summary; its ``"exit_code"`` is 0 if some start hit on every date, else 1. Of several
        questions, a dict of their summaries as ``"questions"``; one that is refused has its ``"error"``.

    Raises:
        KeyboardInterrupt: after Ctrl-C; the folder does not change. With workers, the next call
            resumes.
    """
    command = "funcexplain run" if isinstance(path, Config) else f"funcexplain run {path}"
    configs: dict[str | None, Config] = {}
    configs |= {None: path} if isinstance(path, Config) else read_all(path, settings)
    load = make_loader(trust_model=trust_model, say=print_line)
    for name, value in {"--timeout": timeout, "--accept": accept}.items():
        if value is not None and workers is None and dask is None:
            raise ValueError(f"{name}: only searches that are shared have it; add --workers or --dask")
    if xlsx:
        require("--xlsx", "openpyxl", "excel")  # before any work is done
    if pdf:
        require_printer()

    def ask(config: Config) -> dict[str, Any]:
        require_plots(config)
        with torch_threads(config.method.threads), search_executor(workers, dask) as executor:
            inputs = load(config)
            folder = make_folder(Path(config.output.folder))
            describe_inputs(inputs, print_line)
            check_findings(config, inputs.query)
            began, bar = time.monotonic(), None if quiet else fe.progress(unit="searches")
            consequence = f"nothing is written to {str(folder)!r}"
            solution: Any
            if executor is None or not inputs.query.problem.dims:
                solution = solve_here(inputs.query.problem, config.method, consequence, bar)
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
            seconds = round(time.monotonic() - began, 3)
            outcome = outputs.make_outcome(solution, _evaluate(inputs, solution), inputs.query)
            summary = outputs.summarize(outcome, inputs.query, inputs.history)
            sentences, drawn = add_findings(inputs, summary["answers"], consequence)
            digest = hash_inputs(inputs)
            summary |= {"audit": audit(command, digest), "seconds": seconds, "folder": str(folder)}
            summary |= {"digest": digest, "failed": _failures(solution)}
            summary["exit_code"] = HIT if summary["dates_hit"] == summary["dates"] else NOT_REACHED
            with fresh_folder(folder) as fresh:
                summary["files"] = _write(
                    fresh, folder, inputs, outcome, summary, drawn, xlsx=xlsx, pdf=pdf
                )
                earlier = replace_files(folder, fresh, summary)
        for line in (*outcome_lines(outcome, inputs.query, inputs.query.names), *sentences):
            print_line(line)
        for line in _failure_lines(summary["failed"]):
            print_line(line)
        print_line(f"{folder}: {', '.join(summary['files'])}")
        if ANSWERS not in summary["files"] and (folder / ANSWERS).exists():
            print_line(
                f"{folder / ANSWERS} has answers of an earlier run with workers; remove what is old"
            )
        for line in map(describe_earlier, earlier):
            print_line(line)
        return summary

    summaries = ask_each(configs, ask, print_line)
    if None in summaries:
        return summaries[None]
    return compare(summaries, Path(next(iter(configs.values())).output.folder).parent, print_line)


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


def _failures(solution: Any) -> list[dict[str, Any]]:
    """The searches that raised, with their first and last row and the error."""
    if isinstance(solution, fe.clusters.ChunkedSolution):
        failed = [(each.rows, each.error) for each in solution.failures]
    else:
        failed = [(range(row, row + 1), error) for row, error in solution.exceptions.items()]
    return [{"first": rows.start, "last": rows.stop - 1, "error": error} for rows, error in failed]


def _failure_lines(failed: list[dict[str, Any]]) -> Iterable[str]:
    """A line for each of the first failures."""
    for first, last, error in (each.values() for each in failed[:_MAX_FAILURES]):
        which = f"Searches {first} to {last}" if last > first else f"Search {first}"
        yield f"{which} failed: {error.splitlines()[0]}"
    if len(failed) > _MAX_FAILURES:
        yield f"... and {len(failed) - _MAX_FAILURES} more, in {SUMMARY}"


def _write(
    fresh: Path,
    folder: Path,
    inputs: Inputs,
    outcome: outputs.Outcome,
    summary: Mapping[str, Any],
    drawn: Drawn | None,
    *,
    xlsx: bool,
    pdf: bool,
) -> list[str]:
    """Write the files of a run but its summary, for its folder; their names."""
    config, query, history = inputs.config, inputs.query, inputs.history
    solution, assets = outcome.solution, history.prices.assets
    draws, found = (None, None) if drawn is None else (drawn.draws, drawn.found)
    (fresh / CONFIG).write_text(to_toml(rebase(config, os.curdir, folder)), encoding="utf-8")
    files = [CONFIG]
    if isinstance(solution, fe.clusters.ChunkedSolution):
        files.append(ANSWERS)
    else:
        settings = {"config": _settings(inputs, folder), "dates": query.dates}
        files.append(outputs.save_solution(fresh, solution, query, history, settings))
    tables = write_tables(fresh, outcome, query, history)
    files += [*tables, write_workbook(fresh, tables)] if xlsx else tables
    if config.output.picture:
        files.append(outputs.write_picture(fresh, outcome, query, history, found))
    if draws is not None and found is not None:
        files.append(save_draws(fresh, draws, assets))
        if config.output.picture:
            best = solution.flat(torch.tensor(outcome.best))[0]
            files.append(write_fan(fresh, found, query, best, assets, history.period))
    if config.output.report:
        files += _write_report(fresh, folder, inputs, solution, draws, summary, pdf=pdf)
    return [*files, SUMMARY]


def rewrite_report(
    folder: str | Path,
    *,
    trust_config: bool = False,
    trust_model: bool = False,
    pdf: bool = False,
    print_line: PrintLine = print_plain,
) -> dict:
    """Rewrite the report of a folder, from the files that `run_config` wrote there.

    Code that the config names runs only with ``trust_config``. Without it, the network is not built, its
    weights today come from the summary, and the report omits and lists what needs the network.
    """
    if pdf:
        require_printer()
    folder = Path(folder)
    before = read_summary(folder)
    config, shared = read_one(folder / CONFIG), ANSWERS in before["files"]
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
            draws = load_draws(folder) if DRAWS in before["files"] else None
            written = _write_report(fresh, folder, inputs, solution, draws, before, pdf=pdf)
            names = dict.fromkeys([*(n for n in before["files"] if n != PDF), *written])
            replace_files(folder, fresh, {**before, "files": [*names]})
    for name in written:
        print_line(f"{folder / name}")
    left_out = [] if trust_config else list(LEFT_OUT)
    if left_out:
        print_line(
            f"Without the network, which was not built: {', '.join(left_out)} are left out, and whether "
            "it has changed since the run was not checked; --trust-config builds it"
        )
    return {"exit_code": HIT, "folder": str(folder), "files": written, "left_out": left_out}


def _settings(inputs: Inputs, folder: Path) -> Any:
    """The config of a folder, independent of the current one."""
    return outputs.as_json(to_plain(rebase(inputs.config, os.curdir, folder)))


def _write_report(
    fresh: Path,
    folder: Path,
    inputs: Inputs,
    solution: fe.Solution,
    draws: fe.Solution | None,
    summary: Mapping[str, Any],
    *,
    pdf: bool,
) -> list[str]:
    """Write the report, and print it if wanted; the names of the files."""
    name = outputs.write_report(
        fresh,
        solution,
        inputs.query,
        inputs.history,
        title=inputs.config.output.title,
        settings=_settings(inputs, folder) | summary.get("audit", {}),
        probe=inputs.network is not None,
        draws=draws,
        **recorded_findings(summary["answers"]),
    )
    if not pdf:
        return [name]
    write_pdf(fresh / name, fresh / PDF)
    return [name, PDF]
