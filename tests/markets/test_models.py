"""Laws of models of returns: exact inverses, standard normal shocks, twins, frozen returns, rows."""

from __future__ import annotations

import math
import re
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

import funcexplain as fe
from funcexplain.markets import splines
from funcexplain.markets.features import features
from funcexplain.markets.paths import invert
from tests.helpers import assert_close, assert_gradient, assert_same
from tests.markets.market import ASSETS, F64, SPAN, covariance, generator, mixing, network, target

M: Any = fe.models  # wrong types are the point of some calls
LOOKBACK, DAYS, LONG = 8, 12, 400


@cache
def history(days: int = LONG) -> Tensor:
    """Heavy-tailed returns, calm at first and wild at the end."""
    noise = torch.randn(days, ASSETS, dtype=F64, generator=generator(11)) @ mixing().mT
    heavy = torch.rand(days, 1, dtype=F64, generator=generator(12)) + 0.2
    return noise / heavy * torch.linspace(0.5, 1.5, days, dtype=F64)[:, None]


MODELS: dict[str, Any] = {
    "normal": lambda: M.normal(covariance()),
    "student_t": lambda: M.student_t(covariance(), df=4.0),
    "filtered_history": lambda: M.filtered_history(history()),
    "Gaussian copula": lambda: M.filtered_history(history(), df=math.inf),
    "RiskMetrics": lambda: M.filtered_history(history(), df=5.0, volatility=(0.06, 0.94)),
}


@cache
def model_of(name: str) -> fe.models.Model:
    return MODELS[name]()


each_model = pytest.mark.parametrize("name", list(MODELS))


def free_mask() -> Tensor:
    mask = torch.rand(DAYS, ASSETS, generator=generator(3)) > 0.5
    mask[4] = False
    return mask


MASKS: dict[str, Tensor | None] = {"all": None, "one row": free_mask()[:1], "any": free_mask()}
each_mask = pytest.mark.parametrize("mask", list(MASKS))


def setting(name: str, mask: str) -> tuple[fe.models.Model, Tensor, dict[str, Tensor], Tensor]:
    """A model, a base path, data, and the flags of free shocks."""
    free = MASKS[mask]
    flags = torch.ones(DAYS, ASSETS, dtype=torch.bool) if free is None else free.expand(DAYS, ASSETS)
    return model_of(name), history()[-DAYS:], model_of(name).data(DAYS, free=free), flags


@each_model
@each_mask
def test_encode_inverts_decode(name: str, mask: str) -> None:
    model, base, data, flags = setting(name, mask)
    for seed, size in enumerate((1e-9, 0.1, 1.0, 2.5)):
        z = size * torch.randn(DAYS, ASSETS, dtype=F64, generator=generator(seed)) * flags
        returns = model.decode(z, base, data)
        assert_close(model.encode(returns, base, data), z, rtol=1e-9, atol=1e-9)
        assert_close(model.decode(model.encode(returns, base, data), base, data), returns, rtol=1e-9)


@each_model
@each_mask
def test_zero_is_the_base_path_and_frozen_returns_stay_as_they_are(name: str, mask: str) -> None:
    model, base, data, flags = setting(name, mask)
    z = torch.randn(DAYS, ASSETS, dtype=F64, generator=generator(4))  # not zero where frozen
    assert_same(model.decode(torch.zeros_like(z), base, data), base)
    assert_same(model.decode(z, base, data)[~flags], base[~flags])
    assert_same(model.decode(z, base, data), model.decode(z * flags, base, data))
    assert (model.decode(z, base, data)[flags] != base[flags]).all()
    for point in (z, torch.zeros_like(z)):
        slopes = torch.func.grad(lambda z: model.decode(z, base, data).cos().sum())(point)
        assert slopes.isfinite().all()
        assert (slopes[~flags] == 0).all()


@each_model
def test_gradients_equal_finite_differences(name: str) -> None:
    model, base, data, _ = setting(name, "any")
    base, mix = base[:3], torch.randn(3, ASSETS, dtype=F64, generator=generator(5))
    daily = ("factor", "mixing", "radial")
    data = {key: value[:3] if key in daily else value for key, value in data.items()}

    def value(z: Tensor) -> Tensor:
        return (mix * model.decode(z, base, data)).sum()

    for size in (0.01, 1.0, 3.0):  # not zero, where the second derivative jumps
        z = size * torch.randn(3, ASSETS, dtype=F64, generator=generator(6))
        assert_gradient(value, z, torch.func.grad(value)(z))


@each_model
def test_mapped_paths_are_the_single_ones(name: str) -> None:
    model, base, data, _ = setting(name, "any")
    z = torch.randn(5, DAYS, ASSETS, dtype=F64, generator=generator(7))
    paths = torch.func.vmap(lambda z: model.decode(z, base, data))(z)
    assert_close(paths, torch.stack([model.decode(row, base, data) for row in z]))
    back = torch.func.vmap(lambda r: model.encode(r, base, data))(paths)
    assert_close(back, torch.stack([model.encode(row, base, data) for row in paths]), atol=1e-12)


def assert_normal(z: Tensor) -> None:
    """Entries, lengths and products of standard normal vectors have their laws."""
    vectors = z.flatten(0, -2).numpy()
    assert min(stats.kstest(column, "norm").pvalue for column in vectors.T) > 0.002
    assert stats.kstest((vectors**2).sum(1), stats.chi2(vectors.shape[1]).cdf).pvalue > 0.01
    assert np.abs(np.corrcoef(vectors.T) - np.eye(vectors.shape[1])).max() < 4 / len(vectors) ** 0.5


@pytest.mark.parametrize("df", [2.5, 5.0, 60.0])
def test_the_shocks_of_scipys_student_vectors_are_standard_normal(df: float) -> None:
    law = stats.multivariate_t(shape=covariance().numpy() * (df - 2) / df, df=df, seed=8)
    returns = torch.from_numpy(law.rvs(4000))
    model = M.student_t(covariance(), df=df)
    assert_normal(model.encode(returns, torch.zeros_like(returns), model.data(len(returns))))
    assert_close(model.log_density(returns[:9]), torch.from_numpy(law.logpdf(returns[:9])), rtol=1e-4)


def test_a_normal_density_is_scipys() -> None:
    law = stats.multivariate_normal(cov=covariance().numpy())
    found = M.normal(covariance()).log_density(history()[:9] + 0.01, torch.tensor(0.01, dtype=F64))
    assert_close(found, torch.from_numpy(law.logpdf(history()[:9])), rtol=1e-10)


def test_the_shocks_of_simulated_days_are_standard_normal() -> None:
    """Student vectors of scipy's; the volatility goes on along each path, in a plain loop."""
    model, df = model_of("RiskMetrics"), 5.0
    data = model.data(DAYS, ahead=DAYS)
    law = stats.multivariate_t(shape=model.cov.numpy() * (df - 2) / df, df=df, seed=9)
    moves = splines.evaluate(data["margins"], torch.from_numpy(law.rvs((300, DAYS))))
    variance, days = data["variance"].expand(300, ASSETS), []
    for day in range(DAYS):
        days.append(variance.sqrt() * moves[:, day])
        variance = 0.06 * days[-1] ** 2 + 0.94 * variance
    base = torch.zeros(DAYS, ASSETS, dtype=F64)
    assert_normal(torch.func.vmap(lambda r: model.encode(r, base, data))(torch.stack(days, 1)))


def test_the_margins_of_the_history_are_its_own() -> None:
    model = model_of("filtered_history")
    single = torch.eye(ASSETS, dtype=torch.bool)
    for asset in range(ASSETS):
        data = model.data(LONG, free=single[asset : asset + 1])
        z = model.encode(history(), torch.zeros_like(history()), data)[:, asset]
        assert stats.kstest(z - z.median(), "norm").pvalue > 0.01


def test_a_density_of_filtered_history_integrates_to_one() -> None:
    model = M.filtered_history(history()[:, :1], df=6.0)
    days = torch.linspace(-1.5, 1.5, 6001, dtype=F64)[:, None]
    densities = torch.func.vmap(lambda r: model.log_density(r[None])[0])(days).exp()
    assert float(densities.sum()) * 3.0 / 6000 == pytest.approx(1.0, abs=1e-3)


def test_densities_of_days_are_those_given_the_days_before() -> None:
    model, days = model_of("filtered_history"), history()[:3]
    z = model.encode(days, torch.zeros_like(days), model.data(3, ahead=3))
    slopes = torch.func.jacrev(lambda r: model.encode(r, torch.zeros_like(r), model.data(3, ahead=3)))(
        days
    )
    whole = torch.linalg.slogdet(slopes.reshape(3 * ASSETS, 3 * ASSETS)).logabsdet
    constant = 0.5 * z.numel() * math.log(2 * math.pi)
    assert_close(model.log_density(days).sum(), whole - 0.5 * z.square().sum() - constant, rtol=1e-9)


def test_the_volatility_is_that_of_a_plain_loop() -> None:
    alpha, beta = 0.08, 0.9
    model = M.filtered_history(history(), volatility=(alpha, beta))
    mean = history().square().mean(0)
    variance = mean
    for day, returns in enumerate(history()):
        assert_close(model.data(LONG - day)["variance"], variance, rtol=1e-10)
        variance = (1 - alpha - beta) * mean + alpha * returns.square() + beta * variance
    assert_close(model.data(5, ahead=5)["variance"], variance, rtol=1e-10)


def test_the_volatility_is_that_of_arch() -> None:
    arch = pytest.importorskip("arch")
    model = M.filtered_history(history())
    constant, alpha, beta = model.state["volatility"][:, 0].tolist()
    twin = arch.arch_model(history()[:, 0].numpy(), mean="Zero", vol="GARCH", rescale=False)
    found = twin.fix([constant, alpha, beta]).conditional_volatility[-50:]
    # What they took for the first day is forgotten.
    assert_close(model.variance[-51:-1, 0].sqrt(), torch.from_numpy(found), rtol=1e-3)


def test_estimates_recover_what_was_simulated() -> None:
    noise = stats.multivariate_t(shape=np.eye(ASSETS) * 0.6, df=5, seed=10).rvs(3000)
    variance, days = np.full(ASSETS, 1e-4), []
    for drawn in noise:
        days.append(np.sqrt(variance) * drawn)
        variance = 0.02 * 1e-4 + 0.08 * days[-1] ** 2 + 0.9 * variance
    model = M.filtered_history(torch.from_numpy(np.stack(days)))
    _, alpha, beta = model.state["volatility"][:, 0].tolist()
    assert (alpha, beta) == (pytest.approx(0.08, abs=0.03), pytest.approx(0.9, abs=0.04))
    assert model.df == pytest.approx(5.0, abs=1.0)


@pytest.mark.parametrize("shape", [(), (7,)])
def test_splines_are_inverted_exactly_within_and_beyond_their_knots(shape: tuple[int, ...]) -> None:
    points = torch.rand(*shape, 9, dtype=F64, generator=generator(13)).cumsum(-1)
    values = torch.rand(*shape, 9, dtype=F64, generator=generator(14)).add(0.05).cumsum(-1)
    table = splines.spline(points, values)
    x = torch.linspace(-2, 12, 57, dtype=F64).reshape(57, *[1] * len(shape)).expand(57, *shape)
    y = splines.evaluate(table, x)
    assert (y.diff(dim=0) > 0).all()
    assert_close(splines.invert(table, y), x, rtol=1e-9, atol=1e-10)
    assert_close(splines.evaluate(table, points.movedim(-1, 0)), values.movedim(-1, 0), rtol=1e-12)


# Questions: the models behind windows.


def window(returns: Tensor) -> Tensor:
    return features(returns, SPAN)


def question(x0: Tensor) -> fe.Problem:
    return fe.problem(network(LOOKBACK, x0.dtype), target(x0.dtype), x0, loss=fe.losses.kl)


@each_model
def test_a_scenario_searches_under_every_model(name: str) -> None:
    base = history()[-DAYS:]
    problem = fe.scenarios.scenario(base, model_of(name), free=free_mask())(question(window(base)))
    z = problem.start(problem.args)
    assert float(z.abs().max()) < 1e-9
    assert_same(problem.decode(torch.zeros_like(z), problem.args), window(base))
    solution = fe.solve(problem, fe.adam(lr=0.1), max_steps=15, keep="best")
    assert float(solution.loss) < 0.9 * float(solution.history[0])
    found = invert(solution.x, base)
    assert_close(found[~free_mask()], base[~free_mask()], rtol=1e-8, atol=1e-12)
    assert_close(
        fe.scenarios.shocks(solution, problem)[~free_mask()], torch.zeros_like(base)[~free_mask()]
    )


def test_a_covariance_stands_for_the_normal_model() -> None:
    base = history()[-DAYS:]
    problems = [
        fe.scenarios.scenario(base, law)(question(window(base)))
        for law in (covariance(), model_of("normal"))
    ]
    assert_same(*({**p.args, "params": None} for p in problems))


@pytest.mark.parametrize("name", ["normal", "student_t", "filtered_history"])
def test_float32_models_are_near_those_of_float64(name: str) -> None:
    base, z = history()[-DAYS:], torch.randn(DAYS, ASSETS, dtype=F64, generator=generator(15))
    if name in ("normal", "student_t"):
        model = {"normal": M.normal, "student_t": M.student_t}[name](covariance().float())
        wide = {"normal": M.normal, "student_t": M.student_t}[name](covariance().float().double())
    else:
        model, wide = (
            M.filtered_history(history().float()),
            M.filtered_history(history().float().double()),
        )
    found = model.decode(z.float(), base.float(), model.data(DAYS))
    assert found.dtype is torch.float32
    assert_close(found.double(), wide.decode(z, base, wide.data(DAYS)), rtol=1e-3, atol=1e-5)


def test_dates_with_states_of_their_own_are_the_single_questions() -> None:
    dates = (300, 340, 400)
    models = [M.filtered_history(history()[:date], df=6.0, volatility=(0.05, 0.9)) for date in dates]
    bases = torch.stack([history()[date - DAYS : date] for date in dates])
    stack = torch.stack([window(base) for base in bases])
    free = free_mask()
    first = fe.scenarios.scenario(bases[0], models[0], free=free)(question(stack[0]))
    states = M.stack([model.data(DAYS, free=free) for model in models])
    grid = fe.vmap(first, x0=stack, reference=stack, returns=bases, **states)
    solution = fe.solve(grid, fe.adam(lr=0.1), max_steps=8)
    for row, (base, model) in enumerate(zip(bases, models, strict=True)):
        alone = fe.scenarios.scenario(base, model, free=free)(question(window(base)))
        assert_close(
            solution.x[row], fe.solve(alone, fe.adam(lr=0.1), max_steps=8).x, rtol=1e-8, atol=1e-11
        )


def still() -> Tensor:
    returns = history().clone()
    returns[:, 2] = 0.0
    return returns


WRONG: dict[str, tuple[Any, type[Exception], str]] = {
    "short": (
        lambda: M.filtered_history(history()[:100]),
        ValueError,
        "filtered_history: returns must have at least 250 days, got 100",
    ),
    "constant price": (
        lambda: M.filtered_history(still()),
        ValueError,
        "filtered_history: the price of every asset must move, got a constant price of asset 2",
    ),
    "duplicate": (
        lambda: M.filtered_history(history()[:, [0, 1, 1]]),
        ValueError,
        "filtered_history: cov must be positive definite",
    ),
    "no returns": (
        lambda: M.filtered_history(3),
        TypeError,
        "filtered_history: returns must be a torch",
    ),
    "nan": (
        lambda: M.filtered_history(history() * math.nan),
        ValueError,
        "filtered_history: returns must",
    ),
    "df": (
        lambda: M.student_t(covariance(), df=2.0),
        ValueError,
        "student_t: df must be finite and > 2",
    ),
    "df of a copula": (
        lambda: M.filtered_history(history(), df="5"),
        TypeError,
        "filtered_history: df must be a number > 2",
    ),
    "explosive": (
        lambda: M.filtered_history(history(), volatility=(0.2, 0.9)),
        ValueError,
        "filtered_history: volatility must be a pair (alpha, beta), both >= 0, with a sum of",
    ),
    "no pair": (
        lambda: M.filtered_history(history(), volatility=0.94),
        TypeError,
        "filtered_history: volatility must be a pair (alpha, beta)",
    ),
    "singular": (
        lambda: M.normal(torch.ones(2, 2)),
        ValueError,
        "factors: cov must be positive definite",
    ),
    "long path": (
        lambda: model_of("filtered_history").data(LONG + 1),
        ValueError,
        "filtered_history: returns must have at least the 401 known days of the path, got 400",
    ),
    "another history": (
        lambda: fe.scenarios.scenario(history()[-DAYS - 1 : -1], model_of("filtered_history")),
        ValueError,
        "scenario: the history of the model filtered_history must end with the 12 known returns",
    ),
    "assets": (
        lambda: fe.scenarios.scenario(history()[-DAYS:, :2], model_of("student_t")),
        ValueError,
        "scenario: cov must have shape (2, 2)",
    ),
    "dtype": (
        lambda: fe.scenarios.scenario(history()[-DAYS:].float(), model_of("student_t")),
        TypeError,
        "scenario: cov must have the dtype and device of returns",
    ),
}


@pytest.mark.parametrize(("call", "error", "message"), WRONG.values(), ids=WRONG.keys())
def test_wrong_settings_raise(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"^{re.escape(message)}"):
        call()
