"""Errors at the edge: what cannot be answered is refused in words; what surrounds a call stays."""

from __future__ import annotations

import copy
import gzip
import json
import math
import pickle
import tomllib
import warnings
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import funcexplain
from funcexplain.commands.outputs import as_json
from funcexplain.commands.toml import format_toml
from funcexplain.markets import features, paths, prices
from funcexplain.solutions import archive

fe: Any = funcexplain  # wrong types are the point of this file
F64 = torch.float64
GENERATOR = torch.Generator().manual_seed(0)
X0 = torch.randn(1, 2, 3, dtype=F64, generator=GENERATOR)
TARGET, HISTORY = (
    torch.full((3,), 1 / 3, dtype=F64),
    torch.randn(1, 9, 3, dtype=F64, generator=GENERATOR),
)
SEEDS = torch.arange(3)


def network(*last: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(6, 3), *last).double()


SOFT, LINEAR = network(nn.Softmax(-1)), network()
ASKED = fe.problem(SOFT, TARGET, X0)
GRID = fe.vmap(ASKED, seed=SEEDS)
FOUND, ROWS = fe.solve(ASKED, max_steps=2), fe.solve(GRID, max_steps=2)
t, S = fe.targets, fe.scenarios
PRICES: Any = prices
FEATURES: Any = features
PATHS: Any = paths


def numbers(*values: float) -> Tensor:
    return torch.tensor(values, dtype=F64)


# what is done, error, what it says
REFUSED: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "huge target": (lambda: fe.problem(SOFT, t.at_least(0, 1e18), X0), ValueError, "error is 1e\\+18"),
    "largest target": (lambda: fe.problem(SOFT, t.at_least(0, 1e308), X0), ValueError, "1e\\+308"),
    "huge margin": (lambda: fe.problem(SOFT, t.top(0, margin=1e300), X0), ValueError, "feasible"),
    "huge allocation": (lambda: fe.problem(SOFT, t.exact(TARGET * 1e300), X0), ValueError, "feasible"),
    "leverage": (
        lambda: fe.problem(LINEAR, t.at_least(0, 11.0), X0),
        ValueError,
        "no weights can meet it without a position above 10, .*pass leverage=",
    ),
    "own leverage": (
        lambda: fe.problem(SOFT, t.at_least(0, 3.0), X0, leverage=2.0),
        ValueError,
        "above 2, long or short",
    ),
    "no leverage": (lambda: fe.problem(SOFT, TARGET, X0, leverage=0.0), ValueError, "problem: leverage"),
    "history": (lambda: fe.solve(GRID, max_steps=10**12), ValueError, "solve: history .*history=False"),
    "closest": (lambda: fe.closest(GRID, max_steps=10**12), ValueError, "closest: history"),
    "draws": (lambda: fe.evaluate(ROWS, GRID, HISTORY, draws=10**12), ValueError, "evaluate: draws"),
    "seed": (lambda: fe.evaluate(ROWS, GRID, seed=2**63 - 1), ValueError, "evaluate: seed"),
    "directions": (
        lambda: fe.check_gradient(ASKED, num_directions=10**12),
        ValueError,
        "check_gradient: num_directions",
    ),
    "check seed": (lambda: fe.check_gradient(ASKED, seed=None), TypeError, "check_gradient: seed"),
    "one hot": (lambda: fe.one_hot_targets(10**12), ValueError, "one_hot_targets: n_assets"),
    "one hot device": (lambda: fe.one_hot_targets(2, device="gpu"), ValueError, "one_hot_targets: dev"),
    "shocks": (lambda: S.shock_mask(2**62, 2**62), ValueError, "shock_mask: num_days"),
    "bootstrap": (
        lambda: S.bootstrap(HISTORY[0], 10**12, seeds=SEEDS),
        ValueError,
        "bootstrap: num_days",
    ),
    "channel": (
        lambda: S.turbulence(HISTORY[0], channel=9)(X0, X0),
        ValueError,
        "turbulence: channel must be one of 1, got 9",
    ),
    "lower": (
        lambda: fe.vmap(fe.clip(-9.0, 9.0)(ASKED), lower=numbers(-1, 10)),
        ValueError,
        "vmap: lower must be <= upper, got lower > upper in row 1",
    ),
    "upper": (
        lambda: fe.vmap(fe.box(-9.0, torch.full_like(X0, 9.0))(ASKED), upper=X0[None] - 99),
        ValueError,
        "vmap: lower must be <= upper, .* in row 0",
    ),
    "std": (
        lambda: fe.vmap(fe.standardize(0.0, 1.0)(ASKED), std=numbers(1, 0)),
        ValueError,
        "vmap: std must be > 0, .* in row 1",
    ),
    "strength": (
        lambda: fe.vmap(fe.penalize(fe.penalties.l2, strength=1.0)(ASKED), l2=numbers(1, -1)),
        ValueError,
        "vmap: l2 must be >= 0, .* in row 1",
    ),
    "sparsity": (
        lambda: fe.vmap(fe.sparsify(1.0)(ASKED), sparsity=numbers(-1)),
        ValueError,
        "vmap: sparsity must be >= 0, .* in row 0",
    ),
    "jitter": (
        lambda: fe.vmap(fe.jitter(1.0)(ASKED), jitter=numbers(1, 2, -1)),
        ValueError,
        "vmap: jitter must be >= 0, .* in row 2",
    ),
    "covariances": (
        lambda: S.factors(torch.stack([torch.eye(2) * 1e6, torch.tensor([[1.0, 0.5], [0.4, 1.0]])])),
        ValueError,
        "factors: cov must be symmetric",
    ),
    "updates": (
        lambda: fe.solve(ASKED, (lambda z: (), lambda g, s, z: g), max_steps=1),
        TypeError,
        "method: update must return a pair .*got Tensor",
    ),
    "three": (
        lambda: fe.solve(GRID, (lambda z: (), lambda g, s, z: (g, s, s)), max_steps=1),
        TypeError,
        "method: update must return a pair .*got tuple of Tensor, tuple, tuple",
    ),
    "no tensor": (
        lambda: fe.solve(ASKED, fe.Optimizer(lambda z: (), lambda g, s, z: (0.1, s)), max_steps=1),
        TypeError,
        "method: update must return a pair .*got tuple of float, tuple",
    ),
    "prices": (lambda: S.prices_of(None, TARGET), TypeError, "prices_of: returns .*got NoneType"),
    "first": (lambda: S.prices_of(HISTORY[0], TARGET[:2]), ValueError, "prices_of: first"),
    "invert": (lambda: PATHS.invert(None, HISTORY[0]), TypeError, "invert: window"),
    "returns": (lambda: FEATURES.log_returns([1.0]), TypeError, "log_returns: prices must .*got list"),
    "days": (lambda: FEATURES.forward_returns(HISTORY[0], [1], 1), TypeError, "forward_returns: days"),
    "today": (
        lambda: t.turnover(0.1).residual(TARGET, today=[0.5]),
        TypeError,
        "residual: today must be a torch.Tensor",
    ),
    "residual": (lambda: t.top(0).residual(SEEDS), TypeError, "residual: weights must be floating"),
    "residual assets": (
        lambda: t.top(0).residual(TARGET, assets=3),
        ValueError,
        "residual: assets must be 3 different names",
    ),
    "hit": (lambda: t.top(0).hit(TARGET, atol=None), TypeError, "hit: atol"),
    "assets": (lambda: fe.problem(SOFT, TARGET, X0, assets=3), ValueError, "problem: assets"),
    "along": (lambda: fe.evaluate(ROWS, GRID, along=3), ValueError, "evaluate: along"),
    "path": (lambda: PRICES.load(None), TypeError, "load: name_or_path"),
    "csv": (lambda: PRICES.read_csv(3), TypeError, "read_csv: path"),
    "run": (lambda: fe.run(None, None, {}, 1), TypeError, "run: init must be callable"),
    "number": (lambda: fe.solve(ASKED, atol=10**400), ValueError, "solve: atol .*above all floats"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_answered_is_refused_in_words(name: str) -> None:
    call, error, says = REFUSED[name]
    with pytest.raises(error, match=f"(?s){says}"):
        call()


def test_a_leverage_that_the_caller_knows_decides_what_is_feasible() -> None:
    for leverage in (20.0, math.inf):
        asked = fe.problem(LINEAR, t.at_least(0, 11.0), X0, leverage=leverage)
        assert fe.vmap(asked, target=[t.at_least(0, 12.0)]).shape == (1,)
    fe.problem(SOFT, 2 * TARGET, X0, leverage=math.inf)  # its weights at other windows are unknown


def test_rows_that_are_not_finite_break_no_rule() -> None:
    bounded = fe.vmap(fe.clip(-9.0, 9.0)(ASKED), lower=numbers(-1, math.nan))
    assert fe.solve(bounded, max_steps=1).status.tolist()[1] == fe.Status.NONFINITE


def test_numbers_of_any_type_are_numbers() -> None:
    for atol in (Fraction(1, 2), 10**30):
        assert fe.solve(ASKED, atol=atol).hit
        fe.prune(FOUND, ASKED, atol=atol)


OTHERS = {
    "windows": fe.problem(network(nn.Softmax(-1)), TARGET, X0.view(2, 1, 3)),
    "dtype": fe.cast(dtype=torch.float32)(ASKED),
    "assets": fe.problem((lambda q, x: x.sum((0, 1)), {}), TARGET[:2], X0[..., :2]),
}


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize("function", ["prune", "evaluate"])
def test_an_answer_of_another_problem_is_refused(function: str, name: str) -> None:
    with pytest.raises((TypeError, ValueError), match=f"^{function}: solution must"):
        getattr(fe, function)(FOUND, OTHERS[name])


CALLS: dict[str, Callable[[], Any]] = {
    "problem": lambda: fe.problem(SOFT, TARGET, X0),
    "explain": lambda: fe.explain(SOFT, TARGET, X0),
    "solve": lambda: fe.solve(ASKED, max_steps=1),
    "solve a grid": lambda: fe.solve(GRID, max_steps=1),
    "closest": lambda: fe.closest(ASKED),
    "prune": lambda: fe.prune(FOUND, ASKED),
    "evaluate": lambda: fe.evaluate(FOUND, ASKED),
    "check_gradient": lambda: fe.check_gradient(ASKED),
}


@pytest.mark.parametrize("transform", [torch.func.grad, torch.func.vmap, torch.func.jacrev])
@pytest.mark.parametrize("name", CALLS)
def test_calls_inside_of_torch_func_are_refused(name: str, transform: Any) -> None:
    def inside(x: Tensor) -> Tensor:
        CALLS[name]()
        return x.sum()

    where = name.split()[0].replace("explain", "problem")
    with pytest.raises(
        RuntimeError, match=f"^{where}: must be .*torch.func transform|^{where}: .*got one"
    ):
        transform(inside)(TARGET)


def test_problems_say_why_they_cannot_be_pickled() -> None:
    for value in (ASKED, GRID, ASKED.apply, t.top(0)):
        with pytest.raises(TypeError, match=r"cannot be pickled, .*pass `build`"):
            pickle.dumps(value)
        copy.copy(value)
    twin = copy.deepcopy(GRID)
    assert twin.args["x0"] is not GRID.args["x0"]
    assert torch.equal(fe.solve(twin, max_steps=2).x, ROWS.x)


@pytest.mark.parametrize("place", range(10, 60, 7))
def test_damaged_gzip_is_named(tmp_path: Path, place: int) -> None:
    text = "date,A\n" + "".join(f"2024-01-{day:02},{day * 1.37}\n" for day in range(1, 29))
    data = bytearray(gzip.compress(text.encode()))
    data[place] ^= 0xFF
    (tmp_path / "a.csv.gz").write_bytes(data)
    with pytest.raises(ValueError, match=r"a\.csv\.gz, .*"):
        prices.read_csv(tmp_path / "a.csv.gz")


def test_times_of_a_config_are_written_back() -> None:
    text = "a = {t = 07:32:00, s = 07:32:00.5, d = 2024-01-31, w = 2024-01-31T07:32:00+02:00}"
    table = tomllib.loads(text)["a"]
    assert tomllib.loads(f"a = {format_toml(table)}")["a"] == table
    assert json.loads(json.dumps(as_json(table)))["t"] == "07:32:00"


@pytest.mark.parametrize(
    ("field", "tensor"),
    [
        ("status", torch.zeros(3, dtype=F64)),
        ("status", torch.zeros(3, dtype=torch.bool)),
        ("num_steps", torch.zeros(3, dtype=torch.int32)),
        ("x", torch.zeros(3, 1, 2, 3, dtype=torch.int64)),
        ("loss", torch.zeros(3, dtype=torch.int64)),
        ("error", torch.zeros(3, 2)),
        ("weights", torch.zeros(3)),
    ],
)
def test_files_with_fields_of_another_kind_are_refused(
    tmp_path: Path, field: str, tensor: Tensor
) -> None:
    notes = {"dims": ["seed"], "labels": {}, "settings": {}}
    archive.write_archive("save", tmp_path / "a", {**ROWS._tensors(), field: tensor}, notes)
    with pytest.raises(ValueError, match=rf"^load: .*{field} {tensor.dtype}.* not a saved solution"):
        fe.load(tmp_path / "a")


ANYWHERE: dict[str, Callable[[], Any]] = {
    "solve": lambda: fe.solve(fe.problem(SOFT, TARGET, X0), max_steps=2, check=True).x,
    "rows": lambda: fe.solve(fe.vmap(ASKED, seed=SEEDS), fe.levenberg_marquardt(), max_steps=2).x,
    "bounds": lambda: fe.solve(fe.clip(-9.0, 9.0)(ASKED), fe.levenberg_marquardt(), max_steps=2).x,
    "closest": lambda: fe.closest(GRID, max_steps=2, refinements=2).x,
    "prune": lambda: fe.prune(ROWS, GRID, atol=1.0).x,
    "evaluate": lambda: fe.evaluate(ROWS, GRID, HISTORY, draws=2)["l1"],
    "report": lambda: ROWS.loss * len(ROWS._repr_html_() + FOUND.message),
    "hit": lambda: FOUND.hit.double(),
    "index": lambda: ROWS[1:].best().x,
    "slice": lambda: fe.solve(GRID[1:], max_steps=1).x,
    "cast": lambda: fe.cast(dtype=torch.float32)(ASKED).args["x0"],
    "targets": lambda: fe.solve(
        fe.vmap(fe.problem(SOFT, t.top(0), X0), target=[t.top(1), t.top(2)]), max_steps=1
    ).x,
    "goals": lambda: fe.solve(
        fe.problem(
            SOFT,
            t.all_of(
                t.at_least(0, 0.2), t.between(0.0, 0.9), t.group([0, 1], at_most=0.8),
                t.turnover(0.5), t.concentration(0.9), t.top(2, margin=0.01),
            ),
            X0,
        ),
        max_steps=1,
    ).x,
    "scaled": lambda: fe.penalties.scaled(fe.penalties.l1, 2.0)(X0, X0 + 1),
    "ensemble": lambda: fe.solve(
        fe.consensus(fe.vmap(ASKED, params=fe.stack([SOFT, SOFT])[1])), max_steps=1
    ).x,
    "bootstrap": lambda: S.bootstrap(HISTORY[0], 5, seeds=SEEDS),
}  # fmt: skip


@pytest.mark.parametrize("name", ANYWHERE)
def test_the_default_device_changes_nothing(name: str) -> None:
    expected = ANYWHERE[name]()
    with torch.device("meta"):
        found = ANYWHERE[name]()
    assert torch.equal(found, expected)


def test_files_are_read_whatever_the_default_device(tmp_path: Path) -> None:
    ROWS.save(tmp_path / "a")
    with torch.device("meta"):
        assert torch.equal(fe.load(tmp_path / "a").x, ROWS.x)


def test_windows_that_the_network_refuses_are_not_the_nearest() -> None:
    class Timid(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            if bool(x.abs().max() > 5.0):
                raise ValueError("too far")
            return torch.softmax(x.sum((1, 2)), -1)

    windows = torch.stack([X0, 9.0 + X0, X0 + 1, 9.0 - X0])
    found = S.nearest_dates(Timid(), windows, TARGET, 4)
    assert {*found.places[:2].tolist()} == {0, 2}
    assert found.error[2:].isinf().all()


def test_a_refused_model_of_a_stack_has_a_number() -> None:
    class Scaled(nn.Module):
        def __init__(self, scale: float) -> None:
            super().__init__()
            self.inner, self.scale = network(nn.Softmax(-1)), scale

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(self.scale * x)

    apply, params = fe.stack([Scaled(1.0), Scaled(1.0), Scaled(2.0)])
    with pytest.raises(ValueError, match=r"differ by .*\(modules\[2\] of 3\)"):
        apply({name: tensor[0] for name, tensor in params.items()}, X0)
    with pytest.raises(ValueError, match=r"no weights yet.*\(modules\[1\] of 2\)"):
        fe.stack([nn.Linear(2, 2), nn.LazyLinear(2)])


ERRORS = [
    torch.linalg.LinAlgError("mine"),
    MemoryError("mine"),
    RuntimeError("can't allocate memory: mine"),
    ValueError("mine"),
]


class Reports:
    """A callback that raises when rows are reported."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def __call__(self, state: Any, info: Any) -> None: ...

    def report(self, progress: Any) -> None:
        if progress.done or progress.over:
            raise self.error


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("problem", [ASKED, GRID, GRID[:1]], ids=["one", "grid", "one row"])
def test_an_error_of_a_callback_is_the_callers(problem: Any, error: Exception) -> None:
    def fails(state: Any, info: Any) -> None:
        if int(state.num_steps.max()) == 2:
            raise error

    for callback in (fails, Reports(error)):
        with pytest.raises(type(error)) as caught:
            fe.solve(problem, max_steps=3, callback=callback)
        assert caught.value is error


def test_warnings_filters_stay() -> None:
    before = list(warnings.filters)
    fe.solve(GRID, max_steps=1, check=True)
    assert warnings.filters == before
