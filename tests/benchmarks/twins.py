"""From one date's window to the allocation of another: ``python -m tests.benchmarks.twins``.

Each pair begins at the real window of one date and asks for what the same network holds on another
date, which is within reach by construction. Methods take turns; processor seconds are those of one
solve of all pairs, by hit. Networks are trained first, each for about a minute at most.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

import funcexplain as fe
from funcexplain.commands.demo import HORIZON, LOOKBACK, SPAN
from funcexplain.markets.allocators import negative_sharpe, train_allocator
from funcexplain.markets.features import forward_returns, windows
from funcexplain.markets.prices import load

ATOL = 1e-3
TRAINING_STEPS = 100
NETWORKS = ("demo", "LinearNet", "KeynesNet", "KeynesNetRNN", "BachelierNet")


class Twins(NamedTuple):
    """Pairs of dates, and the network that they are asked of."""

    params: tuple[Any, Any]
    x0: Tensor
    target: Tensor
    mean: Tensor
    std: Tensor


def make_twins(network: str, data: str, count: int, seed: int) -> Twins:
    """Train a network on prices, and draw pairs of dates."""
    prices = load(data)
    stack, last_days = windows(prices, LOOKBACK, SPAN)
    stack = stack.float().contiguous()
    known, future = stack[:-HORIZON], forward_returns(prices, last_days[:-HORIZON], HORIZON).float()
    std, mean = torch.std_mean(known, dim=(0, 2, 3))
    apply, params = fe.functionalize(train(network, known, future))
    dates = torch.randint(len(stack), (2, count), generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        target = torch.func.vmap(apply, (None, 0))(params, stack[dates[1]])
    return Twins((apply, params), stack[dates[0]], target, mean.view(-1, 1, 1), std.view(-1, 1, 1))


def train(name: str, known: Tensor, future: Tensor) -> nn.Module:
    """A network trained as the demo's is; deepdow's with their own defaults."""
    if name == "demo":
        return train_allocator(known, future, num_steps=TRAINING_STEPS)
    from deepdow.nn import BachelierNet, KeynesNet, LinearNet

    _, channels, lookback, assets = known.shape
    torch.manual_seed(0)
    network: nn.Module = {
        "LinearNet": lambda: LinearNet(channels, lookback, assets),
        "KeynesNet": lambda: KeynesNet(channels, hidden_size=8, transform_type="Conv", n_groups=4),
        "KeynesNetRNN": lambda: KeynesNet(channels, hidden_size=8, transform_type="RNN", n_groups=4),
        "BachelierNet": lambda: BachelierNet(channels, assets, hidden_size=8),
    }[name]()
    forward: Callable[[Tensor], Tensor] = network.train()
    learned: list[tuple[str, Tensor]] = list(network.named_parameters())
    batch_size = 512
    if name == "BachelierNet":  # its solver is slow: trained through the exact allocator
        apply, params = fe.functionalize(network.eval())
        params = {n: p.requires_grad_(p.is_floating_point()) for n, p in params.items()}
        batch_size, learned = 128, [(n, params[n]) for n, _ in learned]

        def forward(x: Tensor) -> Tensor:
            return torch.func.vmap(apply, (None, 0))(params, x)

    optimizer = torch.optim.Adam([p for _, p in learned], lr=1e-2)
    for _ in range(TRAINING_STEPS):
        batch = torch.randint(len(known), (batch_size,))
        loss = negative_sharpe(forward(known[batch]), future[batch], 0.2)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    own = dict(network.named_parameters())
    with torch.no_grad():
        for parameter, value in learned:
            own[parameter].copy_(value)
    return network.eval()


def ask(twins: Twins, *, sigmas: bool, loss: Any = fe.losses.mse) -> fe.Problem:
    """The grid of all pairs, in units of sigma or of x."""
    problem = fe.problem(twins.params, twins.target[0], twins.x0[0], loss=loss)
    if sigmas:
        problem = fe.standardize(twins.mean, twins.std)(problem)
    return fe.vmap(problem, x0=twins.x0, reference=twins.x0, target=twins.target)


def methods(twins: Twins, max_steps: int) -> dict[str, Callable[[], fe.Solution]]:
    """What takes turns."""
    raw, sigmas = ask(twins, sigmas=False), ask(twins, sigmas=True)
    divergence = ask(twins, sigmas=True, loss=fe.losses.kl)

    def solve(problem: fe.Problem, method: Any, steps: int) -> Callable[[], fe.Solution]:
        return lambda: fe.solve(problem, method, max_steps=steps, atol=ATOL)

    return {
        "adam 0.1, MSE, raw (the original's)": solve(raw, fe.adam(lr=0.1), 300),
        "adam 0.1, KL, sigmas": solve(divergence, fe.adam(lr=0.1), 300),
        "adam 0.03, KL, sigmas": solve(divergence, fe.adam(lr=0.03), 300),
        "levenberg_marquardt": solve(sigmas, fe.levenberg_marquardt(), max_steps),
        "closest": lambda: fe.closest(sigmas, atol=ATOL, max_steps=max_steps),
    }


def describe(twins: Twins, solution: fe.Solution, times: Sequence[float]) -> list[str]:
    """Hits, steps, change and seconds per hit, as cells of a table."""
    hit = solution.hit
    hits = int(hit.sum())
    if not hits:
        return ["0", "-", "-", "-", "-"]
    change = ((solution.x - twins.x0) / twins.std).square().mean((1, 2, 3)).sqrt()[hit]
    steps = solution.num_steps[hit].double().quantile(torch.tensor([0.5, 0.9], dtype=torch.float64))
    each = [1e3 * seconds / hits for seconds in times]
    return [
        str(hits),
        f"{steps[0]:.0f}, {steps[1]:.0f}",
        f"{float(change.median()):.2f}",
        f"{statistics.median(each):.2f}",
        f"{min(each):.2f} to {max(each):.2f}",
    ]


def why_missed(twins: Twins, solution: fe.Solution) -> str:
    """Of pairs that are missed: how far, and whether an asset without slope holds them."""
    apply, params = twins.params
    jacobian = torch.func.vmap(torch.func.jacrev(apply, argnums=1), (None, 0))
    reasons = []
    for row in (~solution.hit).nonzero()[:, 0].tolist():
        slopes = jacobian(params, solution.x[row : row + 1])[0].flatten(1).abs().amax(1)
        still = (slopes == 0) & ((solution.weights[row] - twins.target[row]).abs() > ATOL)
        reason = "an asset held at a bound, where its weight has no slope" if still.any() else "slow"
        reasons.append(f"pair {row}: misses by {float(solution.error[row]):.2g}, {reason}")
    return "; ".join(reasons)


def main(words: Sequence[str] | None = None) -> None:
    """Measure and print one table for each data set and network."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.twins", description=__doc__)
    parser.add_argument("--data", nargs="+", default=("ecb",))
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=NETWORKS)
    parser.add_argument("--pairs", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--max-steps", type=int, default=60)
    parser.add_argument("--repetitions", type=int, default=3)
    arguments = parser.parse_args(words)
    torch.set_num_threads(1)
    print(f"torch {torch.__version__}, Python {platform.python_version()}, one thread")
    head = ["network", "method", "hits", "steps: median, p90", "change, sigmas", "ms per hit", "spread"]
    print(f"\n| {' | '.join(head)} |\n|{'---|' * len(head)}")
    missed = []
    for data in arguments.data:
        for name in arguments.networks:
            twins = make_twins(name, data, arguments.pairs, arguments.seed)
            calls = methods(twins, arguments.max_steps)
            times: dict[str, list[float]] = {method: [] for method in calls}
            for _ in range(arguments.repetitions):
                for method, call in calls.items():
                    began = time.process_time()
                    solution = call()
                    times[method].append(time.process_time() - began)
                    if len(times[method]) == arguments.repetitions:
                        cells = [f"{name}, {data}", method, *describe(twins, solution, times[method])]
                        print(f"| {' | '.join(cells)} |", flush=True)
                        if method == "levenberg_marquardt" and not solution.hit.all():
                            missed.append(f"{name}, {data}: {why_missed(twins, solution)}")
    print("\n".join(["", *missed]))


if __name__ == "__main__":
    main()
