"""Channels to compose: values by hand or by pandas, and laws that all of them obey."""

import re
from collections.abc import Callable

import pandas as pd
import pytest
import torch

import funcexplain as fe
from funcexplain.markets.channels import Channels, parse
from funcexplain.markets.features import features

c = fe.channels
RETURNS = 0.02 * torch.randn(60, 4, generator=torch.Generator().manual_seed(0)).double()
MAKERS: dict[str, Callable[[], Channels]] = {
    "log_return": c.log_return,
    "simple_return": c.simple_return,
    "momentum": lambda: c.momentum(5),
    "volatility": lambda: c.volatility(5),
    "rsi": lambda: c.rsi(6),
    "moving_average_ratio": lambda: c.moving_average_ratio(6, 2),
    "zscore": lambda: c.zscore(c.momentum(3), 7),
    "cross_section": lambda: c.cross_section(c.volatility(3)),
    "rank": lambda: c.rank(c.momentum(4)),
    "scaled": lambda: c.scaled(c.momentum(3), 0.01, 0.5),
    "join": lambda: c.join(c.log_return(), c.zscore(c.rsi(3), 4), c.rank(c.volatility(5))),
}


@pytest.mark.parametrize("name", MAKERS)
def test_a_day_depends_on_its_last_days_alone(name: str) -> None:
    made = MAKERS[name]()
    whole = made(RETURNS)
    assert whole.shape == (len(made.names), len(RETURNS) - made.days + 1, 4)
    for day in (made.days - 1, 30, 59):
        alone = made(RETURNS[day - made.days + 1 : day + 1])
        torch.testing.assert_close(alone[:, 0], whole[:, day - made.days + 1])


@pytest.mark.parametrize("name", MAKERS)
def test_gradients_are_right_and_map(name: str) -> None:
    made = MAKERS[name]()
    few = RETURNS[: made.days + 1].clone().requires_grad_()
    assert torch.autograd.gradcheck(made, (few,))
    rows = torch.stack([RETURNS[:20], RETURNS[20:40]])
    torch.testing.assert_close(torch.func.vmap(made)(rows)[1], made(rows[1]))
    still = torch.zeros(made.days, 4, dtype=torch.float64)
    assert bool(torch.func.jacrev(made)(still).isfinite().all())


def test_values_are_those_of_pandas() -> None:
    frame = pd.DataFrame(RETURNS.numpy())
    prices = pd.DataFrame(RETURNS.cumsum(0).exp().numpy())
    gain = prices.diff().clip(lower=0).rolling(5).mean()
    loss = (-prices.diff()).clip(lower=0).rolling(5).mean()
    expected = {
        "momentum(5)": frame.rolling(5).sum(),
        "volatility(5)": frame.rolling(5).std(),
        "zscore(return, 9)": (frame - frame.rolling(9).mean()) / frame.rolling(9).std(),
        "moving_average_ratio(7)": prices / prices.rolling(7).mean() - 1,
        "rsi(5)": 100 * gain / (gain + loss),
        "cross_section(return)": frame.sub(frame.mean(axis=1), axis=0).div(frame.std(axis=1), axis=0),
        "rank(return, 0)": (frame.rank(axis=1) - 1) / 3,
    }
    for text, values in expected.items():
        found = parse(text)(RETURNS)[0]
        torch.testing.assert_close(found[-40:], torch.tensor(values.to_numpy()[-40:]))


def test_the_standard_features_are_three_of_them() -> None:
    made = c.join(c.log_return(), c.momentum(6), c.volatility(6))
    assert torch.equal(features(RETURNS, 6), made(RETURNS))
    named = [parse(name, 6)(RETURNS)[:, -9:] for name in ("return", "momentum", "volatility")]
    assert torch.equal(torch.cat(named), made(RETURNS)[:, -9:])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("momentun(3)", "there is no channel 'momentun'; did you mean 'momentum'"),
        ("momentum(0)", "momentum: span must be >= 1, got 0"),
        ("zscore(3)", "zscore: channels must be Channels"),
        ("momentum(3).real", "expected a channel such as"),
        ("__import__('os')", "there is no channel '__import__'"),
        ("3", "expected a channel such as"),
        ("", "expected a channel such as"),
        ("momentum(span=3)", "expected a channel such as"),
        ("(" * 1000, "expected a channel such as"),
    ],
)
def test_expressions_that_are_not_channels_are_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        parse(text)


def test_bad_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match=r"at least 5 days for momentum\(5\), got 4"):
        c.momentum(5)(RETURNS[:4])
    with pytest.raises(TypeError, match="returns must be floating with shape"):
        c.momentum(5)(RETURNS[0])
    with pytest.raises(ValueError, match="with different names"):
        c.join(c.momentum(5), c.momentum(5))
    with pytest.raises(TypeError, match=r"channels\[0\] must be Channels"):
        c.join(3)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="fast must be below span"):
        c.moving_average_ratio(5, 5)
    with pytest.raises(ValueError, match="std must be > 0"):
        c.scaled(c.momentum(5), 0.0, 0.0)
