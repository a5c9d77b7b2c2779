"""The arguments of the command line, and the help texts.

An option's destination is the parameter of the command's function that takes it.
"""

from __future__ import annotations

import argparse
import math
from typing import NoReturn

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


def make_parser() -> argparse.ArgumentParser:
    """The parser of all commands; ``function`` is the module and the name of a command's function."""
    from funcexplain import __version__

    parser = _Parser(
        prog="funcexplain",
        description="What would the market have to look like for my network to hold this portfolio?",
    )
    parser.add_argument("--version", action="version", version=f"funcexplain {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    debug, common, config, one, files, pdf = (_Parser(add_help=False) for _ in range(6))
    _flag(debug, "debug", "show the traceback of an error")
    _flag(common, "quiet", "print only errors")
    _flag(common, "json", "print one JSON object instead of lines")
    _flag(
        common,
        "trust_model",
        "allow loading a .pt2 file, which runs code from it; only if you trust its author",
    )
    config.add_argument("path", metavar="CONFIG.toml", nargs="?", help="default: config.toml")
    config.add_argument(
        "--set",
        action="append",
        default=[],
        dest="settings",
        metavar="question.at_least.CHF=0.3",
        help="set an entry of the config for this call; may be repeated",
    )
    one.add_argument(
        "--question", metavar="NAME", help="which question of a config of several: its name or number"
    )
    files.add_argument("--network", metavar="FILE.py[:make]", help="the network's file")
    files.add_argument("--prices", metavar="FILE.csv", help="the price file, or ecb")
    files.add_argument("--weights", metavar="FILE", help="the network's weights")
    files.add_argument("--target", metavar="EUR=0.4,CHF=20%", help="minimum weights")
    _flag(pdf, "pdf", "print the report to a PDF, too (needs Chromium, Chrome or WeasyPrint)")

    def add(name: str, function: str, text: str, about: str, *parents: _Parser) -> _Parser:
        own = commands.add_parser(name, help=text, description=about, parents=[*parents, debug])
        own.set_defaults(function=function)
        return own

    demo = add("demo", "demo.run_demo", "ask a trained network about real prices", DEMO)
    run = add(
        "run", "run.run_config", "answer the question of a config", RUN, config, common, pdf, files
    )
    add("check", "check.check_config", "check a config without solving it", CHECK, config, common)
    report = add("report", "run.rewrite_report", "rewrite the report of a run", REPORT, common, pdf)
    why = add(
        "why", "why.explain_change", "what moved the weights between two dates", WHY, config, one, common
    )
    whatif = add(
        "whatif", "whatif.ask_what_if", "weights after moves of the market", WHATIF, config, one, common
    )
    init = add("init", "init.init_config", "write a config for your network", INIT, files, common)
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
    demo.add_argument(
        "--seed", type=_seed, default=0, help="seed of the network and the starts (default: 0)"
    )
    demo.add_argument("--out", default="demo", metavar="DIR", help="folder (default: demo)")
    report.add_argument("folder", metavar="DIR")
    _flag(
        report,
        "trust_config",
        "build the network, which runs the code that the folder's config names; only if you trust its "
        "author",
    )
    init.add_argument("names", metavar="NETWORK PRICES", nargs="*", help="mine.py and market.csv")
    init.add_argument("--out", default="config.toml", metavar="FILE", help="default: config.toml")
    executor = run.add_mutually_exclusive_group()
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
    run.add_argument(
        "--timeout",
        type=_seconds,
        metavar="SECONDS",
        help="retry a chunk of distributed searches after this many seconds (default: no limit)",
    )
    _flag(run, "xlsx", "also write the tables as one Excel file (needs openpyxl)")
    run.add_argument(
        "--accept",
        metavar="NAMES",
        help="resume distributed searches although these parts of the code changed, such as network or "
        "versions.torch,behavior; only if their answers remain valid",
    )
    for flag, name in (("--from", "start"), ("--to", "end")):
        why.add_argument(flag, dest=name, required=True, metavar="YYYY-MM-DD", help="a trading day")
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
    _flag(whatif, "unscaled", "replay returns without scaling by volatility")
    return parser


def _flag(parser: argparse.ArgumentParser, name: str, text: str) -> None:
    """An option that is set or not."""
    parser.add_argument(f"--{name.replace('_', '-')}", action="store_true", help=text)


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
