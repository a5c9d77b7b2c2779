"""The command line: ``demo``, ``init``, ``run``, ``check``, ``report``, ``why`` and ``whatif``.

Everything but argparse is imported when a command runs, so that ``--help`` is fast. A user's error is
one line on stderr and exit code 2; ``--debug`` shows the traceback.
"""

from __future__ import annotations

import argparse
import errno
import json
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, redirect_stdout, suppress
from importlib import import_module
from inspect import signature
from typing import Any

from funcexplain.commands.parser import make_parser

_MAX_MESSAGE = 2000  # characters
_DISK_FULL = 74  # EX_IOERR of sysexits.h
_PIPE_CLOSED = 141  # 128 + SIGPIPE, as a shell reports it


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line and return its exit code.

    Args:
        argv: arguments without the program's name. Default: those of this process.

    Returns:
        0 for success (of ``run``: the target is hit), 1 if the target is not reached, 2 for a user's
        error, which is printed to stderr as one line, 74 if the disk is full, 130 after Ctrl-C, 141 if
        the output pipe is closed.

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
        arguments = make_parser().parse_args(argv)
        with _one_line_warnings(getattr(arguments, "quiet", False)):
            return _call(arguments)
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
    seen = set[int]()  # an exception may be among its own causes
    while error is not None and id(error) not in seen:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        seen.add(id(error))
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
        # torch's own, when it loads its decompositions: nothing that a user can change.
        warnings.filterwarnings("ignore", ".*torch.jit.script")
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


def _call(arguments: argparse.Namespace) -> int:
    """Call a command's function, and print its results: lines, one JSON object, or nothing."""
    options = vars(arguments)
    module, name = arguments.function.split(".")
    if options.get("target") is not None:
        options["target"] = parse_target(arguments.target)
    if module == "demo":
        return _demo(arguments)
    from funcexplain.commands.printing import print_plain

    def print_line(line: str) -> None:
        if not (arguments.quiet or arguments.json):
            print_plain(line)

    function = getattr(import_module(f"funcexplain.commands.{module}"), name)
    options["print_line"] = print_line
    # With --json, what the user's network prints goes to stderr.
    with redirect_stdout(sys.stderr) if arguments.json else nullcontext():
        if module == "init":
            _name_files(options)
        elif "settings" in options:
            options["path"] = _first_config(options) or arguments.path or "config.toml"
        taken = signature(function).parameters.keys() & options.keys()
        results: dict[str, Any] = function(**{name: options[name] for name in taken})
    for label, question in results.get("questions", {}).items():
        if "error" in question:
            _print_to_stderr(f"error: question {label}: {question['error']}")
    if arguments.json:
        print(json.dumps(results, allow_nan=False))
    return int(results["exit_code"])


def _demo(arguments: argparse.Namespace) -> int:
    from funcexplain.commands.demo import run_demo

    run_demo(arguments.data, arguments.target, seed=arguments.seed, out=arguments.out)
    return 0


def _name_files(options: dict[str, Any]) -> None:
    """Take the network and the prices of ``init`` from names without an option."""
    names = options["names"]
    if len(names) > 2:
        raise ValueError(f"init: expected a network and prices, got {len(names)} names")
    options |= dict(zip(("network", "prices"), names, strict=False))


def _first_config(options: dict[str, Any]) -> Any:
    """The config of a run whose files are options; None if it has a config file."""
    files: dict[str, Any] = {
        name: options.get(name) for name in ("network", "prices", "weights", "target")
    }
    if not any(files.values()):
        return None
    from funcexplain.commands.init import first_config

    if options["path"] is not None:
        raise ValueError("--network: a first try has no config; leave out CONFIG.toml, or the options")
    return first_config(
        **files, **{name: options[name] for name in ("settings", "trust_model", "print_line")}
    )
