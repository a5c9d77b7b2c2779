"""The demo: train a small allocator on real prices, then ask when it would hold another portfolio.

Features of the prices train a network, and the search shocks the returns of the coming days until the
network holds the target. The answer, the likeliest such market found, is printed as two tables and saved
as a picture and a report. Read `run_demo` from top to bottom.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

import funcexplain as fe
from funcexplain.commands.allocation import check_wanted
from funcexplain.commands.audit import audit
from funcexplain.commands.config import Config, NetworkConfig, QuestionConfig
from funcexplain.commands.draws import draw_markets, write_fan
from funcexplain.commands.environment import torch_threads
from funcexplain.commands.execution import solve_here
from funcexplain.commands.features import Windows
from funcexplain.commands.folder import FAN, make_folder
from funcexplain.commands.history import History, make_history
from funcexplain.commands.method import DEFAULT, METHODS, MethodConfig, StartsConfig
from funcexplain.commands.outputs import make_outcome, write_picture, write_report
from funcexplain.commands.prices import PricesConfig
from funcexplain.commands.printing import (
    PrintLine,
    changes_table,
    describe_starts,
    prices_line,
    print_plain,
    weights_table,
)
from funcexplain.commands.question import build_query, describe_question
from funcexplain.markets.allocators import ConvAllocator, train_allocator
from funcexplain.markets.features import CHANNELS, features, forward_returns, windows
from funcexplain.markets.prices import Prices, load
from funcexplain.reports import wording
from funcexplain.reports.cards import likelihood_sentence
from funcexplain.reports.drawing import require_matplotlib

LOOKBACK, SPAN, HORIZON = 20, 20, 5  # days
DEFAULT_WEIGHT, SMALL = 0.2, 0.05
ATOL = 1e-3
DRAWS, SAMPLES = 128, 16_000


def run_demo(
    data: str | Path = "ecb",
    wanted: Mapping[str, float] | None = None,
    *,
    seed: int = 0,
    out: str | Path = "demo",
    training_steps: int = 100,
    max_steps: int = 100,
    num_starts: int = 8,
    ahead: int = 10,
    print_line: PrintLine = print_plain,
) -> fe.Solution:
    """Train, ask, answer, and save ``overview.png`` and ``report.html``.

    The search is over shocks to the coming days' returns, under a model estimated from the history, so
    that all channels agree with one path of prices. It starts from the path without shocks, from
    historical precedents of the target, and from jittered points, and moves each to the closest hit (no
    weight more than 0.001 below its minimum). The answer is the likeliest of these, or without a hit the
    start of lowest loss.

    Args:
        data: ``"ecb"``, ``"sp500"`` or the path of a csv file; see `load`.
        wanted: minimum weights by asset, each in [0, 1], summing to at most 1. Default: 0.2 of the
            largest position below 5 %.
        seed: seed of the network and the starts, >= 0.
        out: folder for the picture and the report; made if missing.
        training_steps: steps of training.
        max_steps: maximum number of steps of each search.
        num_starts: number of searches, at least 1.
        ahead: number of coming trading days to shock.
        print_line: called with each line of output.

    Returns:
        The answer.

    Raises:
        KeyboardInterrupt: after Ctrl-C.

    Example:
        >>> import tempfile
        >>> lines = []
        >>> solution = run_demo(out=tempfile.mkdtemp(), training_steps=2, max_steps=2, num_starts=1,
        ...                     print_line=lines.append)
        >>> lines[0]
        '16 assets, 4310 days, 2010-01-04 to 2026-10-30: US dollars per unit of currency, ...'
    """
    require_matplotlib()
    prices = load(data)
    assets = prices.assets
    print_line(prices_line(prices))
    _check(prices, wanted)
    folder = make_folder(Path(out))
    with torch_threads(1):
        network, history = train_on(prices, seed, training_steps, print_line)
        with torch.no_grad():
            today = network(history.windows[-1:])[0]
        if not wanted:
            small = torch.where(today < SMALL, today, 0.0)
            wanted = {assets[int(small.argmax())]: DEFAULT_WEIGHT}
        # Shrunk, where a short history has a normal market, so that few days are enough.
        question = QuestionConfig(at_least=dict(wanted), ahead=ahead, covariance="ledoit_wolf")
        print_line("")
        print_line(describe_question(question, history.ends[-1:]))
        starts = StartsConfig(num_starts, seed=seed)
        method = MethodConfig(settings=METHODS[DEFAULT], atol=ATOL, max_steps=max_steps, starts=starts)
        config = Config(NetworkConfig(), PricesConfig(str(data)), question, method=method)
        query = build_query(config, network, history)
        solutions = solve_here(query.problem, method, "there is no report")
        outcome = make_outcome(solutions, {}, query)
        rows, size = solutions.flat(torch.arange(num_starts)), outcome.size
        for start, solution in enumerate(rows):
            print_line(f"  start {start}: {_describe_result(solution, size[start])}")
        chance = fe.probability(query.from_reference, atol=ATOL)
        settings = {"method": "levenberg_marquardt", "atol": ATOL, "prices": prices.source}
        drawn = draw_markets(query, DRAWS, ATOL, assets, num_samples=SAMPLES)
        report = write_report(
            folder,
            solutions,
            query,
            history,
            title=None,
            settings=settings | audit("funcexplain demo", {}),
            probability=chance,
            draws=drawn.draws,
        )

    best = rows[outcome.best[0]]
    columns = {"today": today, "reached": best.weights}
    order = (best.weights - today).abs().argsort(descending=True, stable=True).tolist()
    days, scale = history.window_days(-1, ahead), history.scale(-1)[1]
    for line in weights_table(columns, assets, order):
        print_line(line)
    if outcome.met[0]:
        print_line("")
        print_line(wording.met(ahead))
    else:
        for line in changes_table(query.references[0], best.x, scale, assets, CHANNELS, days):
            print_line(line)
        verdict = "The network holds the target" if best.hit else "Not reached"
        print_line("")
        found = describe_starts(outcome).replace(" found", " starts found")
        print_line(f"{verdict}: {_describe_result(best, size[outcome.best[0]])}{found}.")
    print_line(likelihood_sentence(chance, ahead))
    print_line(drawn.sentence)
    print_line(f"Report: {folder / report}")
    if drawn.found is not None:
        print_line(f"Fan: {folder / write_fan(folder, drawn.found, query, best, assets)}")
    else:
        (folder / FAN).unlink(missing_ok=True)  # of an earlier demo
    picture = write_picture(folder, outcome, query, history, drawn.found)
    print_line(f"Picture: {folder / picture}")
    return best


def _check(prices: Prices, wanted: Mapping[str, float] | None) -> None:
    """Raise before the training if the question would fail, or have no meaning, after it."""
    assets, num_days = prices.assets, len(prices.dates)
    if len(assets) < 2:
        raise ValueError(f"the demo needs at least 2 assets to choose from, got {list(assets)}")
    need = SPAN + LOOKBACK + HORIZON + 1
    if num_days < need:
        raise ValueError(
            f"the history is too short: the demo needs at least {need} days of prices, got {num_days}"
        )
    check_wanted(wanted or {}, assets)


def train_on(
    prices: Prices, seed: int, num_steps: int, print_line: PrintLine
) -> tuple[ConvAllocator, History]:
    """Train a network on prices; returns it with the windows that it was trained on."""
    stack, last_days = windows(prices, LOOKBACK, SPAN)
    stack = stack.float()
    known = stack[:-HORIZON]  # the windows whose future is known
    future = forward_returns(prices, last_days[:-HORIZON], HORIZON)
    print_line(f"Training on {len(known)} windows of {LOOKBACK} days:")

    def report(step: int, loss: float) -> None:
        if step % 25 == 0 or step == num_steps:
            print_line(f"  step {step} of {num_steps}: loss {loss:+.3f}")

    network = train_allocator(known, future, seed=seed, num_steps=num_steps, callback=report)
    compute = partial(features, span=SPAN)
    history = make_history(prices, Windows(CHANNELS, SPAN, stack, compute), stack.dtype)
    return network, history


def _describe_result(solution: fe.Solution, size: Tensor) -> str:
    """Largest miss, steps and size of the shocks."""
    return (
        f"largest miss {100 * float(solution.error):.2f} percentage points, "
        f"{int(solution.num_steps)} steps, shocks of {float(size):.2f} sigmas together"
    )
