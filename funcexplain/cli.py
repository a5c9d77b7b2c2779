"""The command line: ``funcexplain demo``, ``run``, ``check``, ``report``, ``why`` and ``whatif``.

Everything but argparse is imported when a command runs, so that ``--help`` is fast. A user's error is
one line on stderr and exit code 2; ``--debug`` shows the traceback.
"""

from __future__ import annotations

import argparse
import errno
import json
import math
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, redirect_stdout, suppress
from typing import Any, NoReturn

DEMO = """\
Train a small allocator on real prices, then ask what the market would have to look like for it to hold
another portfolio. Prints both as tables and saves DIR/overview.png and DIR/report.html; takes less than
a minute.
"""
RUN = """\
Ask your own network about your own prices, as stated in a config, and write the answer to the config's
folder: the solution, tables, a picture, a report. Exit code 0 if the network holds the target on every
date, 1 if not, 2 if the input is invalid, 74 if the disk is full, 130 after Ctrl-C, 141 if the output is
no longer read (as by head); the last three leave an earlier answer as it was.
"""
CHECK = """\
Check everything that a config names without solving it: keys, network, weights, prices, features,
target, folder, and the network's gradient. Exit code 0 if everything is valid, else 2.
"""
REPORT = """\
Write the report of a run again, from the files in its folder and the prices that its config names. No
code that the config names runs, unless --trust-config is given; the report leaves out and names the few
measures that need the network.
"""

WHY = """\
Split the change of the network's weights between two dates over the channels, days and assets whose
prices moved it. Prints tables in percentage points, says how far their parts are from the change, and
writes why.csv and why.png to the config's folder.
"""
WHATIF = """\
The weights that the network would hold after moves of the market, beside today's, and the trade. Prints
a table for each scenario and writes whatif.csv and whatif.png to the config's folder.
"""

_MAX_MESSAGE = 2000  # characters
_DISK_FULL = 74  # EX_IOERR of sysexits.h
_PIPE_CLOSED = 141  # 128 + SIGPIPE, as a shell reports it


class _Parser(argparse.ArgumentParser):
    """Raises its errors, so that all errors are reported in one place."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{message}; see {self.prog} --help")


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line and return its exit code.

    Args:
        argv: arguments without the program's name. Default: those of this process.

    Returns:
        0 for success (of ``run``: the target is hit), 1 if the target is not reached, 2 for a user's
        error, which is printed to stderr as one line, 74 if the disk is full, 130 after Ctrl-C, 141 if
        nobody reads the output any more.

    Raises:
        SystemExit: with code 0 after ``--help`` and ``--version``.

    Example:
        >>> main(["demo", "--target", "EUR"])
        2
    """
    argv = sys.argv[1:] if argv is None else argv
    try:
        code = _run(argv)
        sys.stdout.flush()  # a full disk or a closed pipe may appear only here
    except OSError as error:
        if not (isinstance(error, BrokenPipeError) or _is_full(error)):
            raise
        _discard_output()
        return _PIPE_CLOSED if isinstance(error, BrokenPipeError) else _DISK_FULL
    return code


def _run(argv: Sequence[str]) -> int:
    try:
        arguments = _parser().parse_args(argv)
        with _one_line_warnings(getattr(arguments, "quiet", False)):
            return int(arguments.command(arguments))
    except BrokenPipeError:
        raise
    except Exception as error:
        if "--debug" in argv:
            raise
        full = _is_full(error)
        code, message = (_DISK_FULL, "the disk is full: ") if full else (2, "")
        message += _message(error)
        _print_to_stderr(f"error: {message}")
        if "--json" in argv:
            print(json.dumps({"exit_code": code, "error": message}))
        return code
    except KeyboardInterrupt as interrupt:
        message = "interrupted" + (f": {interrupt}" if str(interrupt) else "")
        _print_to_stderr(message)
        if "--json" in argv:
            print(json.dumps({"exit_code": 130, "error": message}))
        return 130


def _is_full(error: BaseException | None) -> bool:
    """Whether an error comes from a disk or a quota without space."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        error = error.__cause__ or error.__context__
    return False


def _discard_output() -> None:
    """Give the standard streams that cannot be written to a place to flush to when Python ends."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            with suppress(OSError, ValueError):  # a stream of the caller's may have no file
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _print_to_stderr(text: str) -> None:
    """Print a message, which may hold names from files, as one line without control characters."""
    from funcexplain.solutions.writing import printable

    text = text if len(text) <= _MAX_MESSAGE else text[: _MAX_MESSAGE - 3] + "..."
    print(f"funcexplain: {printable(text)}", file=sys.stderr)


def _message(error: Exception) -> str:
    """The error on one line; an unexpected type of error is named, with a hint to ``--debug``."""
    notes = getattr(error, "__notes__", [])
    words = "; ".join(" ".join(text.split()) for text in (str(error), *notes) if text)
    if isinstance(error, ValueError | TypeError | OSError | ImportError) and words:
        return words
    return f"{type(error).__name__}: {words or 'no message'}; --debug shows the traceback"


@contextmanager
def _one_line_warnings(quiet: bool) -> Iterator[None]:
    """Print each warning once and as one line, or none of them."""

    def show(message: Warning | str, *args: Any, **kwargs: Any) -> None:
        del args, kwargs
        _print_to_stderr(f"warning: {' '.join(str(message).split())}")

    with warnings.catch_warnings():
        warnings.simplefilter("ignore" if quiet else "default")
        warnings.showwarning = show
        yield


def parse_target(text: str) -> dict[str, float]:
    """Parse weights by asset from text such as ``EUR=0.4,CHF=20%``.

    Args:
        text: ``NAME=WEIGHT`` separated by commas; a weight is a number, or a percentage with ``%``.

    Returns:
        The weights in the order of the text; the demo, which knows the assets, checks them.

    Raises:
        ValueError: if the text has another form, or names an asset twice.

    Example:
        >>> parse_target("EUR=0.4, CHF=20%")
        {'EUR': 0.4, 'CHF': 0.2}
    """
    from funcexplain.commands.entries import parse_amounts

    return parse_amounts("--target", text, "NAME=WEIGHT such as EUR=0.4 or CHF=20%")


def _parser() -> argparse.ArgumentParser:
    from funcexplain import __version__

    parser = _Parser(
        prog="funcexplain",
        description="What would the market have to look like for my network to hold this portfolio?",
    )
    parser.add_argument("--version", action="version", version=f"funcexplain {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    demo = commands.add_parser("demo", help="ask a trained network about real prices", description=DEMO)
    demo.add_argument(
        "--data",
        default="ecb",
        metavar="ecb|sp500|FILE.csv",
        help="prices: 16 currencies (default), 20 US stocks (needs skfolio), or a csv file with a date "
        "column first and one column of prices per asset",
    )
    demo.add_argument(
        "--target",
        metavar="EUR=0.4,CHF=20%",
        help="minimum weights (default: 20%% in the largest position below 5%%)",
    )
    demo.add_argument("--seed", type=_seed, default=0, help="seed of network and starts (default: 0)")
    demo.add_argument("--out", default="demo", metavar="DIR", help="folder (default: demo)")
    demo.add_argument("--debug", action="store_true", help="show the traceback of an error")
    demo.set_defaults(command=_demo)
    for name, function, summary, description, argument in (
        ("run", "run.run_config", "ask your own network, as stated in a config", RUN, "CONFIG.toml"),
        ("check", "run.check_config", "check a config without solving it", CHECK, "CONFIG.toml"),
        ("report", "run.rewrite_report", "write the report of a run again", REPORT, "DIR"),
        ("why", "why.explain_change", "what moved the weights between two dates", WHY, "CONFIG.toml"),
        ("whatif", "whatif.ask_what_if", "the weights after moves of the market", WHATIF, "CONFIG.toml"),
    ):
        own = commands.add_parser(name, help=summary, description=description)
        own.add_argument("path", metavar=argument)
        own.add_argument("--quiet", action="store_true", help="print nothing but errors")
        own.add_argument("--json", action="store_true", help="print one JSON object instead of lines")
        own.add_argument(
            "--trust-model",
            action="store_true",
            help="allow loading a .pt2 file, which runs code from it; only if you trust its author",
        )
        own.add_argument("--debug", action="store_true", help="show the traceback of an error")
        own.set_defaults(command=_call, function=function, settings=["trust_model"])
    commands.choices["report"].set_defaults(settings=["trust_config", "trust_model"])
    commands.choices["report"].add_argument(
        "--trust-config",
        action="store_true",
        help="build the network, which runs the code that the folder's config names; only if you trust "
        "its author",
    )
    commands.choices["run"].set_defaults(
        settings=["trust_model", "workers", "dask", "timeout", "accept", "xlsx", "quiet"]
    )
    executor = commands.choices["run"].add_mutually_exclusive_group()
    executor.add_argument(
        "--workers",
        type=_workers,
        metavar="N",
        help="share the searches among N processes; answers are kept, and the same command resumes "
        "after Ctrl-C",
    )
    executor.add_argument(
        "--dask",
        metavar="tcp://HOST:PORT",
        help="share them among the workers of a Dask scheduler that see this folder",
    )
    commands.choices["run"].add_argument(
        "--timeout",
        type=_seconds,
        metavar="SECONDS",
        help="end and retry a chunk of shared searches after so many seconds (default: no limit)",
    )
    commands.choices["run"].add_argument(
        "--xlsx", action="store_true", help="write the tables as one Excel file, too (needs openpyxl)"
    )
    commands.choices["run"].add_argument(
        "--accept",
        metavar="NAMES",
        help="resume shared searches although these parts of the code changed, such as network or "
        "versions.torch,behavior; only if their answers remain valid",
    )
    why, whatif = commands.choices["why"], commands.choices["whatif"]
    why.set_defaults(settings=["trust_model", "start", "end"])
    for flag, name in (("--from", "start"), ("--to", "end")):
        why.add_argument(flag, dest=name, required=True, metavar="YYYY-MM-DD", help="a trading day")
    whatif.set_defaults(settings=["trust_model", "shock", "replay", "scenarios", "others", "unscaled"])
    whatif.add_argument(
        "--shock",
        action="append",
        default=[],
        metavar='"EUR=-5%%,JPY=2%% over 5 days"',
        help="a scenario: changes of price over the last of the days ahead; may be repeated",
    )
    whatif.add_argument(
        "--replay",
        action="append",
        default=[],
        metavar="2020-03-02:2020-03-20",
        help="a scenario: the returns between two dates of the prices happen again, in proportion to "
        "each asset's volatility then and today; may be repeated",
    )
    whatif.add_argument(
        "--scenarios",
        metavar="FILE.csv",
        help="scenarios, one a line: a column of changes of price for each asset, empty where it is not "
        "given, and optional columns scenario (a name) and days",
    )
    whatif.add_argument(
        "--others",
        choices=["conditional", "still"],
        default="conditional",
        help="assets without a shock follow the shocked ones as the model of returns expects (default), "
        "or stand still",
    )
    whatif.add_argument(
        "--unscaled", action="store_true", help="replay returns as they were, not by volatility"
    )
    return parser


def _seed(text: str) -> int:
    if not text.isdecimal() or int(text) >= 2**32:
        raise argparse.ArgumentTypeError(f"expected an integer in 0 ... {2**32 - 1}, got {text!r}")
    return int(text)


def _workers(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected an integer of at least 1, got {text!r}")
    return int(text)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0.0 < seconds < math.inf:
        raise argparse.ArgumentTypeError(f"expected a number of seconds > 0, got {text!r}")
    return seconds


def _demo(arguments: argparse.Namespace) -> int:
    target = None if arguments.target is None else parse_target(arguments.target)
    from funcexplain.commands.demo import run_demo

    run_demo(arguments.data, target, seed=arguments.seed, out=arguments.out)
    return 0


def _call(arguments: argparse.Namespace) -> int:
    """Call a command's function and print its results: lines, one JSON object, or nothing."""
    from importlib import import_module

    from funcexplain.commands.printing import print_plain

    module, name = arguments.function.split(".")
    command = import_module(f"funcexplain.commands.{module}")
    function: Callable[..., dict[str, Any]] = getattr(command, name)
    settings = {name: getattr(arguments, name) for name in arguments.settings}

    def print_line(line: str) -> None:
        if not (arguments.quiet or arguments.json):
            print_plain(line)

    # With --json, what the user's network prints goes to stderr.
    with redirect_stdout(sys.stderr) if arguments.json else nullcontext():
        results = function(arguments.path, print_line=print_line, **settings)
    if arguments.json:
        print(json.dumps(results, allow_nan=False))
    return int(results["exit_code"])
