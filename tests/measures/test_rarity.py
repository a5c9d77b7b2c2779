"""How rare a path is: real ones seldom are, impossible ones always, and later days change nothing."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from scipy.stats import chi

import funcexplain as fe
from funcexplain.markets.features import features, log_returns
from funcexplain.markets.paths import base_returns
from funcexplain.markets.prices import load
from funcexplain.measures.paths import known_days
from funcexplain.measures.rarity import Layout, Record, judge, log10_chance, rarity, read
from funcexplain.reports.precedents import precedents
from funcexplain.reports.wording import RARE
from tests.helpers import assert_close

LAYOUT = Layout(days=39, lookback=20, free=39)


@cache
def returns(name: str = "ecb") -> torch.Tensor:
    try:
        return log_returns(load(name))
    except ModuleNotFoundError as error:
        pytest.skip(str(error))


@cache
def record(name: str = "ecb") -> Record:
    return read(returns(name), LAYOUT)


def small(days: int = 160, assets: int = 3, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 0.01 * torch.randn(days, assets, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("name", ["ecb", "sp500"])
def test_real_paths_are_seldom_rare(name: str) -> None:
    scores, ends = record(name).scores, record(name).ends
    shares = []
    for score, end in zip(scores, ends, strict=True):
        before = end - LAYOUT.free
        fair = scores[(ends <= before) & (2 * ends >= before)]
        shares.append((1 + int((fair <= score).sum())) / (1 + len(fair)) if len(fair) >= 10 else 1.0)
    assert 0.02 < float(np.mean(np.array(shares) <= RARE)) < 0.15


@pytest.mark.parametrize("name", ["ecb", "sp500"])
def test_impossible_paths_are_rare(name: str) -> None:
    history, real = returns(name)[: -LAYOUT.days], returns(name)[-LAYOUT.days :]
    month, sigma = history.unfold(0, 20, 1).sum(-1), history.std(0)
    paths = [real.clone() for _ in range(5)]
    paths[0][-4, 0] = 1.3 * history[:, 0].min()  # a fall beyond history
    paths[1][-20:, 0] = 1.3 * month[:, 0].min() / 20  # a trend
    total = (
        math.log(0.72) if name == "ecb" else 1.3 * float(history[:, 0].unfold(0, 39, 1).sum(-1).min())
    )
    paths[2][:19, 0] = total / 19  # a fall in the days before the window
    paths[3][-20:] += 1.3 * month.mean(1).abs().max() / 20  # all assets trend together
    paths[4][-20:] = 6 * sigma * 20**0.5 / 20
    found = judge(record(name), torch.stack([*paths, real]), len(history))
    assert (found.share[:5] <= RARE).all()
    assert found.share[5] > RARE
    # A longer span of the same kind: none of the real paths moved as far.
    assert (found.tails[:4].amin(1) < -math.log10(found.paths[0])).all()
    worst = [found.statistics[int(at)] for at in found.tails.argmin(1)]
    assert (worst[0].kind, worst[0].days, worst[0].asset) == ("fall", 1, 0)
    assert worst[2].kind == "fall"


def test_tails_are_ranks_among_real_paths() -> None:
    history, layout = small(), Layout(10, 6, 4)
    paths = small(40, seed=1).view(4, 10, 3)
    found = judge(read(history, layout), paths, len(history))
    real = history.unfold(0, 10, 1).mT.numpy()

    def moves(path: np.ndarray, span: int) -> np.ndarray:
        """All spans that touch the last four days."""
        columns = np.concatenate([path, path.mean(1, keepdims=True)], 1)
        ends = range(max(span, 7), 11)
        return np.stack([columns[end - span : end].sum(0) for end in ends])

    for place, (kind, days, asset) in enumerate(found.statistics):
        if kind in ("rise", "fall"):
            sign = 1 if kind == "rise" else -1
            past = np.array([(sign * moves(path, days)[:, asset]).max() for path in real])
            value = np.array([(sign * moves(path, days)[:, asset]).max() for path in paths.numpy()])
            np.testing.assert_allclose(found.values[:, place], value, rtol=1e-9)
            inside = value <= past.max()
            shares = (1 + (past >= value[:, None]).sum(1)) / (1 + len(past))
            np.testing.assert_allclose(10 ** found.tails[:, place][inside], shares[inside])
            assert (10 ** found.tails[:, place].numpy() <= shares * (1 + 1e-9)).all()
    assert len(found.statistics) == found.tails.shape[1] == 2 * 4 * 3 + 4 + 3


def test_later_days_change_nothing() -> None:
    history, layout = small(300), Layout(10, 6, 4)
    paths = small(20, seed=1).view(2, 10, 3)
    whole = read(history, layout)
    for known in (120, 251):
        found, cut = judge(whole, paths, known), judge(read(history[:known], layout), paths, known)
        assert torch.equal(found.share, cut.share)
        assert_close(found.tails, cut.tails, rtol=1e-12)
        assert torch.equal(found.scores, cut.scores)
    alone = judge(whole, paths[1:], 251)
    assert torch.equal(alone.share, found.share[1:])
    assert_close(alone.tails, found.tails[1:], rtol=1e-12)


def test_what_cannot_be_judged_is_unknown() -> None:
    path = small(10, seed=1)
    assert rarity(path, small(19)).share.isnan()
    assert rarity(path, small(25)).share.isnan()
    assert rarity(small(10, 20), small(30, 20)).tails.isnan().all()
    found = rarity(path.expand(2, 3, 10, 3), small())
    assert found.share.shape == found.paths.shape == (2, 3)
    assert found.tails.shape == (2, 3, len(found.statistics))
    still = torch.cat([small(), torch.zeros(160, 1).double()], 1)
    moved = still[:10].clone()
    assert rarity(moved, still).share > 0.1
    moved[3, 3] = 1e-3
    assert rarity(moved, still).tails.amin() == -math.inf  # an asset that never moved


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"paths": torch.zeros(10, 2).double()}, ValueError, r"rarity: paths must have shape"),
        ({"paths": torch.zeros(10, 3)}, TypeError, "rarity: paths must have the dtype"),
        ({"history": torch.zeros(3).double()}, ValueError, "rarity: history must have shape"),
        ({"lookback": 11}, ValueError, r"rarity: lookback must be in 1 \.\.\. 10"),
        ({"free": 0}, ValueError, "rarity: free must be"),
    ],
)  # fmt: skip
def test_bad_arguments_are_refused(change: dict, error: type[Exception], message: str) -> None:
    arguments = {"paths": small(10), "history": small(), "lookback": None, "free": None} | change
    with pytest.raises(error, match=message):
        rarity(arguments.pop("paths"), arguments.pop("history"), **arguments)


def test_the_chance_of_shocks_is_that_of_scipy() -> None:
    for free in (1, 2, 39, 624):
        sizes = torch.tensor([0.0, 0.5, 3.0, 20.0, 30.0, 36.0], dtype=torch.float64)
        found = log10_chance(sizes[:, None, None], free)
        np.testing.assert_allclose(
            found, chi(free).logsf(sizes.numpy()) / math.log(10), rtol=1e-6, atol=1e-12
        )
    far = log10_chance(torch.tensor([[50.0]], dtype=torch.float64))
    assert float(far) == pytest.approx(
        -(1250 + math.log(50) + math.log(math.pi / 2) / 2) / math.log(10), rel=1e-3
    )


def test_the_date_of_a_question_is_the_end_of_its_window() -> None:
    history = small(60)[None]
    assert known_days(history, history[:, 20:30], free=4) == (30, 26)
    assert known_days(history.float(), history[:, 20:30].float(), free=10) == (30, 20)
    ahead = torch.cat([history[:, 20:26], torch.zeros(1, 4, 3).double()], 1)
    assert known_days(history, ahead, free=4) == (26, 26)
    assert known_days(history, torch.zeros(1, 10, 3).double(), free=10) == (60, 60)


@cache
def dated() -> tuple[fe.Problem, torch.Tensor, list[int]]:
    """Questions about three dates in a scenario, features of all days, and the places of the dates."""
    prices = small(200).cumsum(0).exp()
    ends = [120, 160, 199]
    base = base_returns(prices, torch.tensor(ends), lookback=6, span=5)
    windows = torch.func.vmap(lambda r: features(r, span=5))(base)
    layers = torch.nn.Flatten(), torch.nn.Linear(3 * 6 * 3, 3), torch.nn.Softmax(-1)
    torch.manual_seed(0)
    network = torch.nn.Sequential(*layers).double()
    layers[1].weight.data.mul_(50.0)
    problem = fe.problem(network, fe.targets.at_least(0, 0.5), windows[0])
    free = fe.scenarios.shock_mask(10, 3, last_days=4)
    scenario = fe.scenarios.scenario(base[0], 1e-4 * torch.eye(3).double(), free=free)(problem)
    rows = fe.vmap(scenario, x0=windows, reference=windows, returns=base, name="date")
    return rows, features(log_returns(prices), span=5), [end - 5 for end in ends]


def test_a_past_date_is_measured_as_with_the_history_cut_there() -> None:
    rows, history, ends = dated()
    solution = fe.solve(rows, max_steps=20)
    together = fe.evaluate(solution, rows, history, draws=0)
    assert together["log10_chance"].shape == (3,)
    for row, end in enumerate(ends):
        window = rows[row].args["reference"]
        assert known_days(history, window, free=4) == (end + 1, end - 3)
        cut = fe.evaluate(solution[row], rows[row], history[:, : end + 1], draws=0)
        for name in cut:
            torch.testing.assert_close(
                together[name][row], cut[name], rtol=1e-10, atol=1e-12, equal_nan=True
            )
        for name in cut.worst:
            assert_close(together.worst[name][row], cut.worst[name], rtol=1e-10, atol=1e-12)
        whole, short = (precedents(rows[row], h, 1.0) for h in (history, history[:, : end + 1]))
        assert whole.known == end + 1
        for left, right in zip(whole, short, strict=True):
            assert torch.equal(torch.as_tensor(left), torch.as_tensor(right))
    assert not torch.equal(solution.x, rows.args["reference"])
    shocks = fe.scenarios.shocks(solution, rows)
    assert_close(together["log10_chance"], log10_chance(shocks), rtol=1e-9)


def test_an_answer_is_judged_by_what_it_makes_more_extreme() -> None:
    """Days to come without shocks are calmer than any real ones: that is not the answer's doing."""
    rows, history, _ = dated()
    row = rows[2]
    still = fe.solve(row, max_steps=0)
    unmoved = fe.evaluate(still, row, history, draws=0)
    assert unmoved["rarity"] == 1.0
    assert unmoved["rarity_today"] < 1.0
    assert unmoved.worst["tail"] == 0.0
    # A fall of the first asset by half on one day is.
    z = torch.zeros_like(still.z)
    z[-1, 0] = -70.0
    fallen = replace(still, z=z, x=row.decode(z, row.args))
    worst = fe.evaluate(fallen, row, history, draws=0)
    assert worst["rarity"] < 0.1 < unmoved["rarity"]
    assert worst.worst["value"] > worst.worst["today"]


def test_precedents_hold_the_target_before_they_are_near() -> None:
    rows, history, _ = dated()
    found = precedents(rows[2], history, 1.0, count=9)
    assert 0 < found.held < found.total
    kept = min(found.held, 9)
    assert (found.error[:kept] <= 1e-3).all()
    assert found.change[:kept].equal(found.change[:kept].sort().values)
    assert found.held <= found.near <= found.total
