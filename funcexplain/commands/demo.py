"""The demo: train a small allocator on real prices, then ask it for a portfolio that it does not hold.

Prices become features, features train a network, and the returns behind the network's last real window
are shocked until it holds the target. The answer is printed as two tables and saved as a picture and a
report. `run_demo`, read from top to bottom, is all of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryFile

import numpy as np
import torch
from torch import Tensor

import funcexplain as fe
from funcexplain.markets.allocators import ConvAllocator, train_allocator
from funcexplain.markets.covariances import sample
from funcexplain.markets.features import CHANNELS, forward_returns, log_returns, windows
from funcexplain.markets.paths import base_returns, prices_of
from funcexplain.markets.prices import Prices, load
from funcexplain.reports.drawing import require_matplotlib
from funcexplain.reports.plots import plot_overview

LOOKBACK, SPAN, HORIZON = 20, 20, 5  # days
DEFAULT_WEIGHT = 0.4
ATOL = 1e-3
ROUNDING = 1e-9
SHOWN_CHANGES = 8
COVARIANCE_DAYS = 500

Say = Callable[[str], object]


def run_demo(
    data: str | Path = "ecb",
    wanted: Mapping[str, float] | None = None,
    *,
    seed: int = 0,
    out: str | Path = "demo",
    training_steps: int = 100,
    max_steps: int = 100,
    num_starts: int = 4,
    say: Say = print,
) -> fe.Solution:
    """Train, ask, answer, and save ``overview.png`` and ``report.html``.

    The search is over shocks to the daily returns behind the window, in sigmas and correlated as in
    the history, so that all channels agree with one path of prices; it is repeated from several
    jittered starts. Among those that hit the target (every weight within 0.001) the one with the
    smallest shocks is the answer, else the one with the lowest loss.

    Args:
        data: ``"ecb"``, ``"sp500"`` or the path of a csv file; see `load`.
        wanted: weights by asset, each in [0, 1], together at most 1; the other assets share the rest
            in the proportions that they have today. Default: 0.4 for the asset held least.
        seed: decides the network and the starts, >= 0.
        out: folder for the picture and the report; made if missing.
        training_steps: steps of training.
        max_steps: most steps of each search.
        num_starts: number of searches, at least 1.
        say: called with each line of the report.

    Returns:
        The answer.

    Raises:
        ValueError: the target or the prices make no sense, or the history is too short.
        OSError: the prices cannot be read or the folder cannot be written.
        ImportError: matplotlib, or the package with the stock prices, is not installed.

    Example:
        >>> import tempfile
        >>> lines = []
        >>> solution = run_demo(out=tempfile.mkdtemp(), training_steps=2, max_steps=2, num_starts=1,
        ...                     say=lines.append)
        >>> lines[0]
        '16 assets, 4310 days, 2010-01-04 to 2026-10-30: US dollars per unit of currency, ...'
    """
    require_matplotlib()
    prices = load(data)
    assets, dates = prices.assets, prices.dates
    say(f"{len(assets)} assets, {len(dates)} days, {dates[0]} to {dates[-1]}: {prices.source}")
    _check(prices, wanted)
    folder = writable(Path(out))

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the network is so small that more threads only wait for each other
    try:
        network, windows = _trained(prices, seed, training_steps, say)
        x0 = windows[-1].clone()
        with torch.no_grad():
            today = network(x0[None])[0]
        if wanted is None:
            wanted = {assets[int(today.argmin())]: DEFAULT_WEIGHT}
        target = fill_target(wanted, today, assets)
        question = _question(wanted, dates[-1])
        say(f"\n{question}")
        seeds = seed * num_starts + torch.arange(num_starts)
        problem = _ask(network, target, windows, prices, seeds)
        solutions = fe.solve(problem, fe.levenberg_marquardt(), max_steps=max_steps, atol=ATOL)
        size = torch.stack([_size(row, problem[start]) for start, row in enumerate(solutions)])
        for start, solution in enumerate(solutions):
            outcome = _outcome(solution, size[start])
            say(f"  start {start + 1} of {num_starts}: {outcome}")
        path = _write_report(folder, solutions, problem, prices, windows, network, question)
    finally:
        torch.set_num_threads(threads)

    rank = torch.where(solutions.hit, size, size.amax() + 1.0 + solutions.loss)
    chosen = int(rank.nan_to_num(nan=torch.inf).argmin())
    best = solutions[chosen]
    for line in _weights_table(today, target, best.weights, assets):
        say(line)
    days = dates[-LOOKBACK:].tolist()
    for line in _changes_table(x0, best.x, network.std, assets, days):
        say(line)
    verdict = "The network holds the target" if best.status is fe.Status.HIT else "Not reached"
    say(f"\n{verdict}: {_outcome(best, size[chosen])}.")
    say(f"Report: {path}")
    path = folder / "overview.png"
    plot_overview(
        today,
        target,
        best.weights,
        best.x,
        x0,
        solutions.history,
        scale=network.std,
        assets=assets,
        channels=CHANNELS,
        dates=days,
        best=chosen,
        hit=solutions.hit,
        prices=_paths(prices, best.x),
        title=question,
    ).savefig(path)
    say(f"Picture: {path}")
    return best


def fill_target(wanted: Mapping[str, float], today: Tensor, assets: Sequence[str]) -> Tensor:
    """A whole allocation: named assets as wanted, the others in their proportions of today.

    Args:
        wanted: weights by asset, at most 1 together.
        today: the allocation that is held now, ``(A,)``.
        assets: ``A`` names.

    Returns:
        Weights that sum to one, ``(A,)``, with the dtype of ``today``. Where the others hold nothing
        today, they share the rest equally.

    Example:
        >>> fill_target({"EUR": 0.5}, torch.tensor([0.2, 0.2, 0.6]), ["EUR", "JPY", "GBP"])
        tensor([0.5000, 0.1250, 0.3750])
    """
    others = torch.tensor([name not in wanted for name in assets])
    named = torch.tensor([wanted.get(name, 0.0) for name in assets], dtype=today.dtype)
    shares = today * others
    shares = shares if shares.sum() > 0 else others.to(today)
    rest = 1.0 - sum(wanted.values())
    return named + rest * shares / shares.sum().clamp_min(torch.finfo(today.dtype).tiny)


def _check(prices: Prices, wanted: Mapping[str, float] | None) -> None:
    """Refuse what would fail, or mean nothing, after the training."""
    assets, num_days = prices.assets, len(prices.dates)
    if len(assets) < 2:
        raise ValueError(f"the demo needs at least 2 assets to choose among, got {list(assets)}")
    need = SPAN + LOOKBACK + HORIZON + 1
    if num_days < need:
        raise ValueError(
            f"the history is too short: the demo needs at least {need} days of prices, got {num_days}"
        )
    check_wanted(wanted or {}, assets)


def check_wanted(wanted: Mapping[str, float], assets: Sequence[str]) -> None:
    """Refuse weights by asset that `fill_target` cannot make an allocation of.

    Args:
        wanted: weights by asset.
        assets: ``A`` names.

    Raises:
        ValueError: an asset is unknown, a weight not in [0, 1], or all of them do not go together.

    Example:
        >>> check_wanted({"EUR": 0.5}, ["EUR", "JPY"])
    """
    for name, weight in wanted.items():
        if name not in assets:
            raise ValueError(f"target: no asset {name!r}; choose among {', '.join(assets)}")
        if not 0.0 <= weight <= 1.0:
            raise ValueError(f"target: expected the weight of {name} in 0 ... 1, got {weight:g}")
    total = sum(wanted.values())
    if total > 1.0 + ROUNDING:
        raise ValueError(f"target: expected weights that sum to at most 1, got {total:g}")
    if len(wanted) == len(assets) and total < 1.0 - ROUNDING:
        raise ValueError(
            f"target: all assets are named, so the weights have to sum to 1, got {total:g}; "
            "leave out an asset and it takes the rest"
        )


def writable(folder: Path) -> Path:
    """The folder, made and tried out before any work is done for it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=folder):
            return folder
    except OSError as error:
        raise OSError(
            f"cannot write to the folder {str(folder)!r}: {error.strerror}; choose another one"
        ) from error


def _trained(prices: Prices, seed: int, num_steps: int, say: Say) -> tuple[ConvAllocator, Tensor]:
    """The trained network, and all windows of the history, ``(N, C, L, A)``."""
    stack, last_days = windows(prices, LOOKBACK, SPAN)
    stack = stack.float()
    known = stack[:-HORIZON]  # the windows whose future is known
    future = forward_returns(prices, last_days[:-HORIZON], HORIZON)
    say(f"Training on {len(known)} windows of {LOOKBACK} days:")

    def report(step: int, loss: float) -> None:
        if step % 25 == 0 or step == num_steps:
            say(f"  step {step} of {num_steps}: loss {loss:+.3f}")

    return train_allocator(known, future, seed=seed, num_steps=num_steps, callback=report), stack


def _ask(
    network: ConvAllocator, target: Tensor, windows: Tensor, prices: Prices, seeds: Tensor
) -> fe.Problem:
    """The question, from several jittered starts."""
    x0, last_day = windows[-1], torch.tensor(len(prices.dates) - 1)
    returns = base_returns(prices, last_day, LOOKBACK, SPAN).to(x0)
    cov = sample(log_returns(prices)[-COVARIANCE_DAYS:])
    # Shrunk a little towards equal variances, so that a short history will do.
    cov = 0.9 * cov + 0.1 * cov.diagonal().mean() * torch.eye(len(cov))
    problem = fe.pipe(
        fe.problem(network, target, x0, loss=fe.losses.kl, assets=prices.assets),
        fe.scenarios.scenario(returns, cov.to(x0)),
        fe.jitter(0.05),
    )
    return fe.vmap(problem, seed=seeds, name="start")


def _size(solution: fe.Solution, problem: fe.Problem) -> Tensor:
    """Root mean square shock, in daily sigmas."""
    return fe.scenarios.shocks(solution, problem).square().mean().sqrt()


def _outcome(solution: fe.Solution, size: Tensor) -> str:
    return (
        f"largest miss {100 * float(solution.error):.2f} percentage points, "
        f"{int(solution.num_steps)} steps, root mean square shock {float(size):.2f} sigmas a day"
    )


def _paths(prices: Prices, x: Tensor) -> tuple[Tensor, Tensor]:
    """Prices over the window's days, actual and as its returns make them."""
    actual = torch.as_tensor(prices.values[-LOOKBACK - 1 :])
    returns = x[..., CHANNELS.index("return"), :, :].double()
    rows = returns.reshape(-1, *returns.shape[-2:])
    scenario = torch.stack([prices_of(row, actual[0]) for row in rows])
    return actual, scenario.view(*x.shape[:-3], *actual.shape)


def _write_report(
    folder: Path,
    solutions: fe.Solution,
    problem: fe.Problem,
    prices: Prices,
    windows: Tensor,
    network: ConvAllocator,
    question: str,
) -> Path:
    return fe.report(
        solutions,
        problem,
        folder / "report.html",
        # Of each window its last day: the features of every day.
        history=windows[:, :, -1].movedim(0, 1),
        channels=CHANNELS,
        dates=prices.dates[-LOOKBACK:].tolist(),
        scale=network.std,
        prices=_paths(prices, solutions.x),
        title=question,
        settings={"method": "levenberg_marquardt", "atol": ATOL, "prices": prices.source},
    )


def _question(wanted: Mapping[str, float], day: np.datetime64) -> str:
    named = [f"{100 * weight:g}% {name}" for name, weight in wanted.items()]
    if len(named) > 4:
        named = [*named[:3], f"{len(named) - 3} more"]
    last = f" and {named.pop()}" if len(named) > 1 else ""
    return (
        f"What would the market of {day} have to look like "
        f"for the network to hold {', '.join(named)}{last}?"
    )


def _weights_table(
    today: Tensor, target: Tensor, reached: Tensor, assets: Sequence[str]
) -> Iterator[str]:
    """Allocations in percent, the largest target first."""
    width = max(7, *map(len, assets))
    yield f"\n{'Weights':{width}}  {'today':>8}  {'target':>8}  {'reached':>8}"
    for index in target.argsort(descending=True, stable=True).tolist():
        cells = (f"{100 * float(w[index]):7.2f}%" for w in (today, target, reached))
        yield f"{assets[index]:{width}}  " + "  ".join(cells)


def _changes_table(
    x0: Tensor, x: Tensor, sigma: Tensor, assets: Sequence[str], dates: Sequence[object]
) -> Iterator[str]:
    """The largest changes of the window, in percent and in sigmas."""
    change = (x - x0) / sigma
    width = max(5, *map(len, assets))
    form = f"{{:10}}  {{:{width}}}  {{:10}}  {{:>10}}  {{:>10}}  {{:>6}}"
    yield "\nLargest changes:"
    yield form.format("day", "asset", "channel", "from", "to", "sigmas")
    for flat in change.flatten().abs().topk(min(SHOWN_CHANGES, change.numel())).indices.tolist():
        channel, day, asset = at = tuple(map(int, np.unravel_index(flat, change.shape)))
        before, after = (f"{100 * float(values[at]):+.2f}%" for values in (x0, x))
        sigmas = f"{float(change[at]):+.2f}"
        yield form.format(str(dates[day]), assets[asset], CHANNELS[channel], before, after, sigmas)
