"""Models of returns, out of sample: run ``python -m tests.benchmarks.models``.

Each model is made of the days before a block of 20 days and judged on these, for the blocks after the
first 1 000 days. Simulated paths start from the states of the same days as the real ones.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import numpy as np
import torch
from scipy import stats
from torch import Tensor

import funcexplain as fe
from funcexplain.markets import covariances
from funcexplain.markets.features import log_returns
from funcexplain.markets.prices import load
from funcexplain.markets.turbulence import turbulence_of

FIRST, BLOCK, DRAWS = 1000, 20, 10
Make = Callable[[Tensor], fe.models.Model]
MODELS: dict[str, Make] = {
    "normal": lambda past: fe.models.normal(covariances.sample(past[-500:])),
    "student_t, df = 5": lambda past: fe.models.student_t(covariances.sample(past[-500:])),
    "filtered_history, Gaussian copula": lambda past: fe.models.filtered_history(past, df=np.inf),
    "filtered_history, RiskMetrics": lambda past: fe.models.filtered_history(
        past, volatility=(0.06, 0.94)
    ),
    "filtered_history": lambda past: fe.models.filtered_history(past),
}


def judge(make: Make, history: Tensor, blocks: range) -> dict[str, Tensor]:
    """Log-densities, shocks, normal scores of margins, and simulated paths of all blocks."""
    found: dict[str, list[Tensor]] = {name: [] for name in ("density", "z", "margins", "simulated")}
    num_assets = history.shape[1]
    for start in blocks:
        past, days = history[:start], history[start : start + BLOCK]
        model, base = make(past), past[-2000:].median(0).values.expand(BLOCK, -1)
        data = model.data(BLOCK, ahead=BLOCK)
        found["density"].append(model.log_density(days, base))
        found["z"].append(model.encode(days, base, data))
        # With one free asset, its shock is the normal score of its own margin.
        single = [
            model.data(BLOCK, free=row[None], ahead=BLOCK)
            for row in torch.eye(num_assets, dtype=torch.bool)
        ]
        encode = torch.func.vmap(model.encode, (None, None, 0))
        found["margins"].append(encode(days, base, fe.models.stack(single)).sum(0))
        generator = torch.Generator().manual_seed(start)
        noise = torch.randn(DRAWS, BLOCK, num_assets, dtype=days.dtype, generator=generator)
        paths = torch.func.vmap(model.decode, (0, None, None))(noise, base, data)
        found["simulated"].append(paths)
    return {name: torch.stack(parts) for name, parts in found.items()}


def moments(paths: Tensor) -> dict[str, Tensor]:
    """Kurtosis, autocorrelations of squares, and correlations of paths ``(N, D, A)``."""
    days = paths.flatten(0, 1)
    centered = days - days.mean(0)
    squares = centered.square() / centered.square().mean(0)
    paired = (squares - 1).unflatten(0, paths.shape[:2])
    lags = [(paired[:, lag:] * paired[:, :-lag]).mean((0, 1)) for lag in range(1, 6)]
    return {
        "kurtosis": squares.square().mean(0),
        "squares": torch.stack(lags) / (squares - 1).square().mean(0),
        "correlation": torch.corrcoef(days.T),
    }


def report(name: str, stride: int) -> None:
    """Print the table of one history."""
    history = log_returns(load(name))
    blocks = range(FIRST, len(history) - BLOCK + 1, BLOCK * stride)
    real = torch.stack([history[start : start + BLOCK] for start in blocks])
    print(f"\n{name}: {len(blocks)} blocks of {BLOCK} days, {history.shape[1]} assets\n")
    print(
        "| model | density | PIT refused | joint p | kurtosis | squares | correlations | turbulence p |"
    )
    print("|---|---|---|---|---|---|---|---|")
    reference, true = None, moments(real)
    for label, make in MODELS.items():
        found = judge(make, history, blocks)
        density = float(found["density"].mean())
        reference = density if reference is None else reference
        scores = found["margins"].flatten(0, 1).numpy()
        refused = sum(stats.kstest(column, "norm").pvalue < 0.01 for column in scores.T)
        squares = found["z"].square().sum(-1).flatten().numpy()
        joint = stats.kstest(squares, stats.chi2(history.shape[1]).cdf).pvalue
        simulated = found["simulated"].flatten(0, 1)
        made = moments(simulated)
        turbulence = [turbulence_of(paths, history).mean(1).numpy() for paths in (simulated, real)]
        off = (made["correlation"] - true["correlation"]).abs()
        print(
            f"| {label} | {density - reference:+.2f} | {refused} of {history.shape[1]} | {joint:.1e} | "
            f"{float((made['kurtosis'] / true['kurtosis']).median()):.2f} | "
            f"{float((made['squares'] - true['squares']).mean(1).abs().max()):.3f} | "
            f"{float(off.mean()):.3f} (max {float(off.max()):.3f}) | "
            f"{stats.ks_2samp(*turbulence).pvalue:.1e} |",
            flush=True,
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("histories", nargs="*", default=["ecb", "sp500"])
    parser.add_argument("--stride", type=int, default=1, help="judge every n-th block")
    chosen = parser.parse_args()
    for each in chosen.histories:
        report(each, chosen.stride)
