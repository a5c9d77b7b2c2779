"""The command line: ``funcexplain demo``, ``init``, ``run``, ``check`` and ``report``.

Everything but argparse is imported when a command runs, so that ``--help`` is fast. A user's error is
one line on stderr and exit code 2; ``--debug`` shows the traceback.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, redirect_stdout
from functools import partial
from typing import Any, NoReturn

DEMO = """\
Train a small allocator on real prices, then ask what the market would have to look like for it to hold
another portfolio. Prints both as tables and saves DIR/overview.png and DIR/report.html; takes less than
a minute.
"""
RUN = """\
Ask your own network about your own prices, as stated in a config, and write the answer to the config's
folder: the solution, tables of weights and metrics, a picture, a report. Exit code 0 if the network
holds the target on every date, 1 if not, 2 if the input is invalid, 130 after Ctrl-C, which
leaves an earlier answer as it was.
"""
INIT = """\
Write a commented config for a network and a price file, after trying how they fit together: the size and
layout of the windows, and the weights among the outputs. Without names, takes the only network, prices
and weights in this folder.
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

_MAX_MESSAGE = 2000  # characters


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
        error, which is printed to stderr as one line, 130 after Ctrl-C.

    Raises:
        SystemExit: with code 0 after ``--help`` and ``--version``.

    Example:
        >>> main(["demo", "--target", "EUR"])
        2
    """
    argv = sys.argv[1:] if argv is None else argv
    try:
        arguments = _parser().parse_args(argv)
        with _one_line_warnings(getattr(arguments, "quiet", False)):
            return int(arguments.command(arguments))
    except Exception as error:
        if "--debug" in argv:
            raise
        message = _message(error)
        _print_to_stderr(f"error: {message}")
        if "--json" in argv:
            print(json.dumps({"exit_code": 2, "error": message}))
        return 2
    except KeyboardInterrupt as interrupt:
        detail = f": {interrupt}" if str(interrupt) else ""
        _print_to_stderr(f"interrupted{detail}")
        return 130


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
    target: dict[str, float] = {}
    for part in text.split(","):
        name, equals, number = (piece.strip() for piece in part.rpartition("="))
        try:
            weight = float(number.removesuffix("%")) / (100.0 if number.endswith("%") else 1.0)
        except ValueError:
            equals = ""
        if not (name and equals):
            raise ValueError(f"--target: expected NAME=WEIGHT such as EUR=0.4 or CHF=20%, got {part!r}")
        if name in target:
            raise ValueError(f"--target: {name} appears twice in {text!r}")
        target[name] = weight
    return target


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
        ("run", "run_config", "ask your own network, as stated in a config", RUN, "CONFIG.toml"),
        ("check", "check_config", "check a config without solving it", CHECK, "CONFIG.toml"),
        ("report", "rewrite_report", "write the report of a run again", REPORT, "DIR"),
    ):
        own = commands.add_parser(name, help=summary, description=description)
        if name == "report":
            own.add_argument("path", metavar=argument)
        else:
            own.add_argument("path", metavar=argument, nargs="?", help="default: config.toml")
            own.add_argument(
                "--set",
                action="append",
                default=[],
                dest="entries",
                metavar="question.at_least.CHF=0.3",
                help="set an entry of the config for this call; may be repeated",
            )
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
        settings=["trust_model", "workers", "dask", "timeout", "accept", "quiet"]
    )
    _add_files(commands.choices["run"])
    init = commands.add_parser("init", help="write a config for your network", description=INIT)
    init.add_argument("names", metavar="NETWORK PRICES", nargs="*", help="mine.py and market.csv")
    _add_files(init)
    init.add_argument("--out", default="config.toml", metavar="FILE", help="default: config.toml")
    init.add_argument("--trust-model", action="store_true", help="allow a file that runs code")
    init.add_argument("--quiet", action="store_true", help="print nothing but errors")
    init.add_argument("--json", action="store_true", help="print one JSON object instead of lines")
    init.add_argument("--debug", action="store_true", help="show the traceback of an error")
    init.set_defaults(command=_init)
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
        "--accept",
        metavar="NAMES",
        help="resume shared searches although these parts of the code changed, such as network or "
        "versions.torch,behavior; only if their answers remain valid",
    )
    return parser


def _add_files(parser: argparse.ArgumentParser) -> None:
    """Options of a first try, without a config."""
    parser.add_argument("--network", metavar="FILE.py[:make]", help="the network's file")
    parser.add_argument("--prices", metavar="FILE.csv", help="the price file, or ecb")
    parser.add_argument("--weights", metavar="FILE", help="the network's weights")
    parser.add_argument("--target", metavar="EUR=0.4,CHF=20%", help="minimum weights")


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
    """Call a function of `commands.run` and print its results: lines, one JSON object, or nothing."""
    from funcexplain.commands import run

    function: Callable[..., dict[str, Any]] = getattr(run, arguments.function)
    settings = {name: getattr(arguments, name) for name in arguments.settings}
    path: Any = arguments.path
    if arguments.function != "rewrite_report":
        settings["settings"] = arguments.entries
        path = path or "config.toml"
    files = {name: getattr(arguments, name, None) for name in ("network", "prices", "weights", "target")}
    if any(files.values()):
        from funcexplain.commands.init import first_config

        if arguments.path is not None:
            raise ValueError(
                "--network: a first try has no config; leave out CONFIG.toml, or the options"
            )
        target = arguments.target and parse_target(arguments.target)
        path = first_config(
            **{**files, "target": target},
            entries=arguments.entries,
            trust_model=arguments.trust_model,
            print_line=_printer(arguments),
        )
    return _show(arguments, partial(function, path, **settings))


def _init(arguments: argparse.Namespace) -> int:
    """Write a config."""
    from funcexplain.commands.init import init_config

    if len(arguments.names) > 2:
        raise ValueError(f"init: expected a network and prices, got {len(arguments.names)} names")
    network, prices = (*arguments.names, None, None)[:2]
    target = arguments.target and parse_target(arguments.target)
    return _show(
        arguments,
        partial(
            init_config,
            network or arguments.network,
            prices or arguments.prices,
            weights=arguments.weights,
            target=target,
            out=arguments.out,
            trust_model=arguments.trust_model,
        ),
    )


def _printer(arguments: argparse.Namespace) -> Callable[[str], None]:
    """What prints lines, unless there is to be one JSON object or nothing."""
    from funcexplain.commands.printing import print_plain

    def print_line(line: str) -> None:
        if not (arguments.quiet or arguments.json):
            print_plain(line)

    return print_line


def _show(arguments: argparse.Namespace, function: Callable[..., dict[str, Any]]) -> int:
    """Call a function, and print its lines, one JSON object, or nothing."""
    # With --json, what the user's network prints goes to stderr.
    with redirect_stdout(sys.stderr) if arguments.json else nullcontext():
        results = function(print_line=_printer(arguments))
    if arguments.json:
        print(json.dumps(results, allow_nan=False))
    return int(results["exit_code"])
