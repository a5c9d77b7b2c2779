"""The command line: ``funcexplain demo``.

Everything but argparse is imported when a command runs, so that ``--help`` answers at once. What the
user got wrong is one line on stderr and exit code 2; ``--debug`` lets the traceback through.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import NoReturn

DEMO = """\
Train a small allocator on real prices, then ask what the market would have to look like for it to hold
another portfolio. Prints both as tables and saves DIR/overview.png; takes less than a minute.
"""


class _Parser(argparse.ArgumentParser):
    """Raises what is wrong, so that all errors leave by the same door."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{message}; see {self.prog} --help")


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line and return its exit code.

    Args:
        argv: arguments without the program's name. Default: those of this process.

    Returns:
        0 for success; 2 for a user's error, of which one line is printed to stderr.

    Raises:
        SystemExit: with code 0 after ``--help`` and ``--version``.

    Example:
        >>> main(["demo", "--target", "EUR"])
        2
    """
    argv = sys.argv[1:] if argv is None else argv
    try:
        arguments = _parser().parse_args(argv)
        return int(arguments.command(arguments))
    except (ValueError, OSError, ImportError) as error:
        if "--debug" in argv:
            raise
        print(f"funcexplain: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2


def parse_target(text: str) -> dict[str, float]:
    """Weights by asset from text such as ``EUR=0.4,CHF=20%``.

    Args:
        text: ``NAME=WEIGHT`` separated by commas; a weight is a number, or a percentage with ``%``.

    Returns:
        The weights in the order of the text. Whether they make sense is the demo's to say, which knows
        the assets.

    Raises:
        ValueError: the text does not read like that, or names an asset twice.

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
            raise ValueError(f"--target: {name} is named twice in {text!r}")
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
        help="weights to ask for; the other assets keep today's proportions (default: 40%% in the asset "
        "that the network holds least)",
    )
    demo.add_argument("--seed", type=_seed, default=0, help="network and starts (default: 0)")
    demo.add_argument("--out", default="demo", metavar="DIR", help="folder (default: demo)")
    demo.add_argument("--debug", action="store_true", help="show the traceback of an error")
    demo.set_defaults(command=_demo)
    return parser


def _seed(text: str) -> int:
    if not text.isdecimal() or int(text) >= 2**32:
        raise argparse.ArgumentTypeError(f"expected a whole number in 0 ... {2**32 - 1}, got {text!r}")
    return int(text)


def _demo(arguments: argparse.Namespace) -> int:
    target = None if arguments.target is None else parse_target(arguments.target)
    from funcexplain.demo import run_demo

    run_demo(arguments.data, target, seed=arguments.seed, out=arguments.out)
    return 0
