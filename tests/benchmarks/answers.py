"""Answers of ``run``: is a smaller change known, and do grades follow the probability?

``python -m tests.benchmarks.answers`` asks small networks trained on the currencies for portfolios, in
the days behind today and in the ten to come. Of each answer it prints ``|z|``, the smallest ``|z|`` of
``--starts`` searches, the log10 probability by subset simulation, and how unusual a report calls it. The
last lines are the ratios of ``|z|`` and Spearman's correlations with the probability.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator

import torch
from torch import Tensor, nn

import funcexplain as fe
from funcexplain.commands.config import Config, parse_config
from funcexplain.commands.demo import LOOKBACK, SPAN, train_on
from funcexplain.commands.history import History
from funcexplain.commands.inputs import REFINEMENTS
from funcexplain.commands.outputs import make_outcome
from funcexplain.commands.question import Query, build_query
from funcexplain.markets.allocators import negative_sharpe
from funcexplain.markets.features import forward_returns
from funcexplain.markets.prices import load
from funcexplain.reports import wording
from funcexplain.reports.precedents import precedents

HORIZON, ATOL = 5, 1e-3
NETWORKS = ["conv 0", "conv 1", "lstm"]


class Recurrent(nn.Module):
    """An LSTM for each asset, with shared weights."""

    def __init__(self, known: Tensor) -> None:
        super().__init__()
        std, mean = torch.std_mean(known, dim=(0, 2, 3), keepdim=True)
        self.std: Tensor
        self.mean: Tensor
        self.register_buffer("std", std[0])
        self.register_buffer("mean", mean[0])
        self.cell, self.head = nn.LSTM(known.shape[1], 12, batch_first=True), nn.Linear(12, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Weights ``(N, A)``."""
        days = ((x - self.mean) / self.std).permute(0, 3, 2, 1).flatten(0, 1)
        return torch.softmax(self.head(self.cell(days)[0][:, -1]).view(len(x), -1), -1)


def networks(names: list[str]) -> Iterator[tuple[str, nn.Module, History]]:
    """Networks trained on the currencies."""
    prices = load("ecb")
    for seed in (0, 1):
        network, history = train_on(prices, seed, 100, lambda line: None)
        if f"conv {seed}" in names:
            yield f"conv {seed}", network, history
    if "lstm" in names:
        torch.manual_seed(0)
        yield "lstm", train(Recurrent(history.windows[:-HORIZON]), history), history


def train(network: nn.Module, history: History) -> nn.Module:
    """Train on all windows, as the network of the demo."""
    known = history.windows[:-HORIZON]
    future = forward_returns(history.prices, history.last_days[:-HORIZON], HORIZON).to(known)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
    for _ in range(150):
        batch = torch.randint(len(known), (256,))
        optimizer.zero_grad()
        negative_sharpe(network(known[batch]), future[batch], 0.2).backward()
        optimizer.step()
    return network.eval()


def goals(weights: Tensor, assets: tuple[str, ...]) -> Iterator[dict[str, object]]:
    """Goals from near to far, from today's weights."""
    order = weights.argsort(descending=True).tolist()
    first, second, fourth, eighth, last = (assets[order[place]] for place in (0, 1, 3, 7, -1))
    yield {"at_least": {fourth: float(weights[order[3]]) + 0.1}}
    yield {"at_least": {eighth: 0.3}}
    yield {"exit": [first]}
    yield {"at_least": {last: 0.25}}
    yield {"at_least": {second: 0.2}, "at_most": {first: 0.05}}


def config_of(goal: dict[str, object], ahead: int, starts: int | None) -> Config:
    """The question in a config, with the default starts or more."""
    question = {**goal, **({"ahead": ahead} if ahead else {})}
    table = {
        "network": {"factory": "mine:make"},
        "prices": {"file": "ecb"},
        "question": question,
        "features": {"lookback": LOOKBACK, "span": SPAN},
        "method": {"starts": {"number": starts, "jitter": 1.0}} if starts else {},
    }
    return parse_config(table)


def answer(query: Query) -> tuple[fe.Solution, float]:
    """The closest answer of all starts, and its ``|z|``."""
    found = fe.closest(query.problem, atol=ATOL, refinements=REFINEMENTS)
    outcome = make_outcome(found, {}, query)
    (best,) = outcome.best
    return found[best], float(outcome.size[best])


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--starts", type=int, default=32, help="0: do not search again")
    parser.add_argument("--samples", type=int, default=5000, help="0: no probability")
    parser.add_argument("--networks", nargs="+", default=NETWORKS, choices=NETWORKS)
    given = parser.parse_args()
    torch.set_num_threads(1)
    ratios, found = list[float](), list[tuple[float, float, float]]()
    print(f"{'question':60}    |z|  ratio  log10 p  of |z|  rarity  grade")
    for name, network, history in networks(given.networks):
        assets = history.prices.assets
        with torch.no_grad():
            today = network(history.windows[-1:])[0]
        for ahead in (0, 10):
            for goal in goals(today, assets):
                query = build_query(config_of(goal, ahead, None), network, history)
                solution, size = answer(query)
                label = f"{name}, {ahead or 'past'}: {goal}"[:60]
                if not solution.hit or size == 0.0:
                    print(f"{label:60}  {'not reached' if size else 'met already'}", flush=True)
                    continue
                ratio = p = float("nan")
                if given.starts:
                    more = build_query(config_of(goal, ahead, given.starts), network, history)
                    ratio = size / min(size, answer(more)[1])
                    ratios.append(ratio)
                question = query.from_reference
                if given.samples:
                    chance = fe.probability(question, num_samples=given.samples, atol=ATOL)
                    p = float(chance.estimate.log10())
                days = history.until(-1).to(history.windows.dtype)
                metrics = fe.evaluate(solution, question, days, draws=0)
                measured, worst = (
                    {key: float(value) for key, value in values.items()}
                    for values in (metrics, metrics.worst)
                )
                past = precedents(question, days, history.scale(-1)[1], atol=ATOL)
                grade = wording.grade(measured, worst, past)
                found.append((p, measured["log10_chance"], wording.GRADES.index(grade)))
                print(
                    f"{label:60} {size:6.2f}  {ratio:5.3f}  {p:7.2f}  {measured['log10_chance']:6.2f}  "
                    f"{measured['rarity']:6.3f}  {grade}",
                    flush=True,
                )
    if ratios:
        table = torch.tensor(ratios)
        within = int((table <= 1.05).sum())
        print(f"ratio of |z|: median {table.median():.3f}, at most 1.05 in {within} of {len(table)}")
    if given.samples:
        from scipy.stats import spearmanr

        known = torch.tensor([each for each in found if each[0] > -torch.inf])
        for column, what in ((1, "log10 chance"), (2, "grade")):
            value = spearmanr(known[:, 0], known[:, column]).statistic
            print(f"Spearman of the probability with the {what}, {len(known)} questions: {value:.2f}")


if __name__ == "__main__":
    main()
