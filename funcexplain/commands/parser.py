"""The arguments of the command line, and the help texts."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from typing import NoReturn

Command = Callable[[argparse.Namespace], int]
"""Runs a command, and returns its exit code."""

DEMO = """\
Train a small allocator on real prices, then ask what the market would have to look like for it to hold
another portfolio. Prints both as tables and saves DIR/overview.png and DIR/report.html; takes about
a minute.
"""
RUN = """\
Answer the question of a config about your network and prices, and write the answer to the config's
folder: the solution, tables, a picture, a report. Exit code 0 if the network holds the target on every
date, 1 if not, 2 if the input is invalid, 74 if the disk is full, 130 after Ctrl-C, 141 if the output
pipe is closed (as by head); the last three keep an earlier answer unchanged.
"""
INIT = """\
Write a commented config for a network and a price file. Finds the size and layout of the windows, and
the weights among the outputs, by trial. Without names, uses the only network, prices and weights in
this folder.
"""
CHECK = """\
Check everything that a config names, without a search: keys, network, weights, prices, features,
target, folder, and the network's gradient. Exit code 0 if everything is valid, else 2.
"""
REPORT = """\
Rewrite the report of a run, from the files in its folder and the prices that its config names. Code that
the config names runs only with --trust-config; without it, the report omits and lists the few measures
that need the network.
"""

WHY = """\
Split the change of the network's weights between two dates over the channels, days and assets whose
prices moved it. Prints tables in percentage points and the distance of the parts from the change, and
writes why.csv and why.png to the config's folder.
"""
WHATIF = """\
Compute the weights that the network would hold after moves of the market, and the trades from today's.
Prints a table for each scenario and writes whatif.csv and whatif.png to the config's folder.
"""


class _Parser(argparse.ArgumentParser):
    """Raises its errors, so that all errors are reported in one place."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{message}; see {self.prog} --help")


def make_parser(demo: Command, init: Command, call: Command) -> argparse.ArgumentParser:
    """The parser of all commands.

    Args:
        demo: runs ``demo``.
        init: runs ``init``.
        call: runs any other command.
    """
    from funcexplain import __version__

    parser = _Parser(
        prog="funcexplain",
        description="What would the market have to look like for my network to hold this portfolio?",
    )
    parser.add_argument("--version", action="version", version=f"funcexplain {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    shown = commands.add_parser("demo", help="ask a trained network about real prices", description=DEMO)
    shown.add_argument(
        "--data",
        default="ecb",
        metavar="ecb|sp500|FILE.csv",
        help="prices: 16 currencies (default), 20 US stocks (needs skfolio), or a csv file with a date "
        "column first and one column of prices per asset",
    )
    shown.add_argument(
        "--target",
        metavar="EUR=0.4,CHF=20%",
        help="minimum weights (default: 20%% in the largest position below 5%%)",
    )
    shown.add_argument(
        "--seed", type=_seed, default=0, help="seed of the network and the starts (default: 0)"
    )
    shown.add_argument("--out", default="demo", metavar="DIR", help="folder (default: demo)")
    shown.add_argument("--debug", action="store_true", help="show the traceback of an error")
    shown.set_defaults(command=demo)
    for name, function, summary, description, argument in (
        ("run", "run.run_config", "answer the question of a config", RUN, "CONFIG.toml"),
        ("check", "check.check_config", "check a config without solving it", CHECK, "CONFIG.toml"),
        ("report", "run.rewrite_report", "rewrite the report of a run", REPORT, "DIR"),
        ("why", "why.explain_change", "what moved the weights between two dates", WHY, "CONFIG.toml"),
        ("whatif", "whatif.ask_what_if", "weights after moves of the market", WHATIF, "CONFIG.toml"),
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
        own.add_argument("--quiet", action="store_true", help="print only errors")
        own.add_argument("--json", action="store_true", help="print one JSON object instead of lines")
        own.add_argument(
            "--trust-model",
            action="store_true",
            help="allow loading a .pt2 file, which runs code from it; only if you trust its author",
        )
        own.add_argument("--debug", action="store_true", help="show the traceback of an error")
        own.set_defaults(
            command=call, function=function, settings=["trust_model"], has_config=name != "report"
        )
    commands.choices["report"].set_defaults(settings=["trust_config", "trust_model", "pdf"])
    for name in ("run", "report"):
        commands.choices[name].add_argument(
            "--pdf",
            action="store_true",
            help="print the report to a PDF, too (needs Chromium, Chrome or WeasyPrint)",
        )
    commands.choices["report"].add_argument(
        "--trust-config",
        action="store_true",
        help="build the network, which runs the code that the folder's config names; only if you trust "
        "its author",
    )
    commands.choices["run"].set_defaults(
        settings=["trust_model", "workers", "dask", "timeout", "accept", "xlsx", "pdf", "quiet"]
    )
    _add_files(commands.choices["run"])
    made = commands.add_parser("init", help="write a config for your network", description=INIT)
    made.add_argument("names", metavar="NETWORK PRICES", nargs="*", help="mine.py and market.csv")
    _add_files(made)
    made.add_argument("--out", default="config.toml", metavar="FILE", help="default: config.toml")
    made.add_argument("--trust-model", action="store_true", help="allow a file that runs code")
    made.add_argument("--quiet", action="store_true", help="print only errors")
    made.add_argument("--json", action="store_true", help="print one JSON object instead of lines")
    made.add_argument("--debug", action="store_true", help="show the traceback of an error")
    made.set_defaults(command=init)
    executor = commands.choices["run"].add_mutually_exclusive_group()
    executor.add_argument(
        "--workers",
        type=_workers,
        metavar="N",
        help="distribute the searches over N processes; the same command resumes after Ctrl-C",
    )
    executor.add_argument(
        "--dask",
        metavar="tcp://HOST:PORT",
        help="distribute them over the workers of a Dask scheduler, which must see this folder",
    )
    commands.choices["run"].add_argument(
        "--timeout",
        type=_seconds,
        metavar="SECONDS",
        help="retry a chunk of distributed searches after this many seconds (default: no limit)",
    )
    commands.choices["run"].add_argument(
        "--xlsx", action="store_true", help="also write the tables as one Excel file (needs openpyxl)"
    )
    commands.choices["run"].add_argument(
        "--accept",
        metavar="NAMES",
        help="resume distributed searches although these parts of the code changed, such as network or "
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
        metavar='"EUR=-5%,JPY=2% over 5 days"',
        help="a scenario: price changes over the last of the days ahead; may be repeated",
    )
    whatif.add_argument(
        "--replay",
        action="append",
        default=[],
        metavar="2020-03-02:2020-03-20",
        help="a scenario: repeats the returns between two dates, scaled by each asset's volatility "
        "today relative to then; may be repeated",
    )
    whatif.add_argument(
        "--scenarios",
        metavar="FILE.csv",
        help="one scenario per line: a column of price changes for each asset, which may be empty, and "
        "optional columns scenario (a name) and days",
    )
    whatif.add_argument(
        "--others",
        choices=["conditional", "still"],
        default="conditional",
        help="assets without a shock follow the shocked ones as the model of returns expects (default), "
        "or do not move",
    )
    whatif.add_argument(
        "--unscaled", action="store_true", help="replay returns without scaling by volatility"
    )
    return parser


def _add_files(parser: argparse.ArgumentParser) -> None:
    """Options for a run without a config."""
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
