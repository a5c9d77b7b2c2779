"""The demo: train a small allocator on real prices, then ask it for a portfolio that it does not hold.

Prices become features, features train a network, and the network's last real window is changed until
it holds the target. The answer is printed as two tables and saved as one picture. `run_demo`, read from
top to bottom, is all of it.
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
from funcexplain.markets.features import CHANNELS, forward_returns, windows
from funcexplain.markets.prices import Prices, load
from funcexplain.solutions.drawing import require_matplotlib
from funcexplain.solutions.plots import plot_overview

LOOKBACK, SPAN, HORIZON = 20, 20, 5  # days
DEFAULT_WEIGHT = 0.4
ATOL = 1e-3
ROUNDING = 1e-9
SHOWN_CHANGES = 8

Say = Callable[[str], object]


def run_demo(
    data: str | Path = "ecb",
    wanted: Mapping[str, float] | None = None,
    *,
    seed: int = 0,
    out: str | Path = "demo",
    training_steps: int = 100,
    max_steps: int = 1000,
    num_starts: int = 4,
    say: Say = print,
) -> fe.Solution:
    """Train, ask, answer, report, and save ``overview.png``.

    The search runs in units of each channel's standard deviation, keeps volatilities from becoming
    negative, and is repeated from several jittered starts. Among those that hit the target (every
    weight within 0.001) the one with the smallest change is the answer, else the one with the lowest
    loss.

    Args:
        data: ``"ecb"``, ``"sp500"`` or the path of a csv file; see `load`.
        wanted: weights by asset, each in [0, 1], together at most 1; the other assets share the rest
            in the proportions that they have today. Default: 0.4 for the asset held least.
        seed: decides the network and the starts, >= 0.
        out: folder for the picture; made if missing.
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
        network, x0 = _trained(prices, seed, training_steps, say)
        with torch.no_grad():
            today = network(x0[None])[0]
        if wanted is None:
            wanted = {assets[int(today.argmin())]: DEFAULT_WEIGHT}
        target = fill_target(wanted, today, assets)
        question = _question(wanted, dates[-1])
        say(f"\n{question}")
        seeds = seed * num_starts + torch.arange(num_starts)
        solutions = _answer(network, target, x0, seeds, max_steps)
        for start, solution in enumerate(solutions, start=1):
            say(f"  start {start} of {num_starts}: {_outcome(solution, target, x0, network)}")
    finally:
        torch.set_num_threads(threads)

    size = torch.stack([_size(solution, x0, network) for solution in solutions])
    rank = torch.where(solutions.hit, size, size.amax() + 1.0 + solutions.loss)
    chosen = int(rank.nan_to_num(nan=torch.inf).argmin())
    best = solutions[chosen]
    for line in _weights_table(today, target, best.weights, assets):
        say(line)
    days = dates[-LOOKBACK:].tolist()
    for line in _changes_table(x0, best.x, network.std, assets, days):
        say(line)
    verdict = "The network holds the target" if best.status is fe.Status.HIT else "Not reached"
    say(f"\n{verdict}: {_outcome(best, target, x0, network)}.")
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
    """The trained network and the last window of the history, ``(C, L, A)``."""
    stack, last_days = windows(prices, LOOKBACK, SPAN)
    stack = stack.float()
    known = stack[:-HORIZON]  # the windows whose future is known
    future = forward_returns(prices, last_days[:-HORIZON], HORIZON)
    say(f"Training on {len(known)} windows of {LOOKBACK} days:")

    def report(step: int, loss: float) -> None:
        if step % 25 == 0 or step == num_steps:
            say(f"  step {step} of {num_steps}: loss {loss:+.3f}")

    network = train_allocator(known, future, seed=seed, num_steps=num_steps, callback=report)
    return network, stack[-1].clone()


def _answer(
    network: ConvAllocator, target: Tensor, x0: Tensor, seeds: Tensor, max_steps: int
) -> fe.Solution:
    """One search from each of several jittered starts."""
    # Only volatility, the last channel, is bounded: a negative one would be no market at all.
    lowest = torch.full_like(network.mean, -torch.inf)
    lowest[CHANNELS.index("volatility")] = 0.0
    problem = fe.pipe(
        fe.problem(network, target, x0, loss=fe.losses.kl),
        fe.standardize(network.mean, network.std),
        fe.jitter(0.05),
        fe.clip(lowest, torch.inf),
    )
    # With the usual eps of 1e-8 Adam moves all entries about equally. One as large as a typical
    # gradient leaves those alone that hardly matter: a smaller change, and one that can be read.
    method = fe.adam(lr=0.2, betas=(0.5, 0.999), eps=0.03)
    return fe.solve(fe.vmap(problem, seed=seeds), method, max_steps=max_steps, atol=ATOL, keep="best")


def _size(solution: fe.Solution, x0: Tensor, network: ConvAllocator) -> Tensor:
    """Root mean square change, in sigmas."""
    return ((solution.x - x0) / network.std).square().mean().sqrt()


def _outcome(solution: fe.Solution, target: Tensor, x0: Tensor, network: ConvAllocator) -> str:
    miss = 100 * float((solution.weights - target).abs().max())
    return (
        f"largest miss {miss:.2f} percentage points, {int(solution.num_steps)} steps, "
        f"root mean square change {_size(solution, x0, network):.2f} sigmas"
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
