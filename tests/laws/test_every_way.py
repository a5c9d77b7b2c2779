"""The law: every way to an answer gives the network's own answer, or refuses. Never another's.

The oracle knows nothing of the package: the caller's network in eval mode, one window at a time, and
gradient descent in a loop of plain torch. A network's flags (`tests.catalogue.entry.Entry`) say which
ways may refuse it, and what may be warned of.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import funcexplain as fe
from tests.catalogue.containers import CONTAINED
from tests.catalogue.control_flow import CONTROL_FLOW
from tests.catalogue.custom_gradients import CUSTOM_GRADIENTS
from tests.catalogue.entry import Catalogue, Entry, build, make_starts
from tests.catalogue.mathematics import MATHEMATICS
from tests.catalogue.normalisations import NORMALISATIONS
from tests.catalogue.published import PUBLISHED
from tests.catalogue.structure import STRUCTURE
from tests.helpers import assert_untouched, make_target, params, snapshot

CATALOGUE: Catalogue = {
    **PUBLISHED,
    **MATHEMATICS,
    **NORMALISATIONS,
    **CONTAINED,
    **STRUCTURE,
    **CONTROL_FLOW,
    **CUSTOM_GRADIENTS,
}
ROWS, STEPS = 4, 2
ALONE = "one (row|window) at a time|one at a time|row by row"
TORCH = "performance drop because we have not yet implemented the batching rule"


def call(network: nn.Module, x: Tensor) -> Tensor:
    """The network's weights for one window, which stays as it is."""
    return network(x[None].clone())[0]


@cache
def oracle_network(name: str, variant: int = 0) -> nn.Module:
    """A network in eval mode that the package never sees."""
    return build(CATALOGUE[name], variant).eval()


@cache
def oracle(name: str, row: int, variant: int = 0) -> tuple[Tensor, Tensor]:
    """The window after gradient descent from the start of a row, and its weights."""
    x = descended(name, row, STEPS, variant)
    return x, call(oracle_network(name, variant), x).detach()


def descended(name: str, row: int, steps: int, variant: int = 0) -> Tensor:
    """The window after steps of gradient descent from the start of a row."""
    entry, network = CATALOGUE[name], oracle_network(name, variant)
    x, target = make_starts(ROWS, entry.dtype)[row], make_target(entry.dtype)
    for _ in range(steps):
        x = x.detach().requires_grad_()
        # Where torch's kernel is wrong for a batch of one, the window stands beside its copy.
        weights = network(x.expand(2, *x.shape).clone())[0] if entry.twice else call(network, x)
        loss = (weights - target).square().mean()
        if loss.requires_grad:
            loss.backward()
            assert x.grad is not None
            x = x.detach() - entry.lr * x.grad
    return x.detach()


def assert_weights(name: str, x: Tensor, weights: Tensor, variant: int = 0) -> None:
    """Weights belong to their window."""
    expected = call(oracle_network(name, variant), x.detach()).detach()
    assert weights.dtype == expected.dtype
    within = max(1e-9, 0.1 * CATALOGUE[name].rtol)
    torch.testing.assert_close(weights, expected, rtol=within, atol=within)


def assert_answer(name: str, row: int, x: Tensor, variant: int = 0) -> None:
    """A window is the oracle's: the changes are compared, relative to their size."""
    entry, start = CATALOGUE[name], make_starts(ROWS, CATALOGUE[name].dtype)[row]
    expected, _ = oracle(name, row, variant)
    size = (expected - start).abs().max()
    distance = (x - expected).abs().max()
    assert distance <= entry.rtol * size + 64 * torch.finfo(x.dtype).eps, (
        f"row {row} is off by {distance:.1e} of {size:.1e}"
    )


def assert_rows(name: str, solution: fe.Solution, count: int = ROWS, variant: int = 0) -> None:
    for row in range(count):
        assert_answer(name, row, solution.x[row], variant)
        assert_weights(name, solution.x[row], solution.weights[row], variant)


def ask(network: nn.Module, entry: Entry) -> fe.Problem:
    return fe.problem(network, make_target(entry.dtype), make_starts(ROWS, entry.dtype)[0])


def ask_rows(network: nn.Module, entry: Entry) -> fe.Problem:
    return fe.vmap(ask(network, entry), x0=make_starts(ROWS, entry.dtype))


def descend(problem: fe.Problem, entry: Entry, **settings: Any) -> fe.Solution:
    return fe.solve(problem, fe.sgd(lr=entry.lr), max_steps=STEPS, **settings)


def alone(name: str, network: nn.Module, entry: Entry) -> None:
    solution = descend(ask(network, entry), entry)
    assert_answer(name, 0, solution.x)
    assert_weights(name, solution.x, solution.weights)


def grid(name: str, network: nn.Module, entry: Entry) -> None:
    assert_rows(name, descend(ask_rows(network, entry), entry))


def vmap(name: str, network: nn.Module, entry: Entry) -> None:
    problem = ask_rows(network, entry)
    solution = attempt(not entry.mappable, "vmap", lambda: descend(problem, entry, rows="vmap"))
    if solution:
        assert_rows(name, solution)


def samples(name: str, network: nn.Module, entry: Entry) -> None:
    problem, words = ask_rows(network, entry), "rows='samples' needs independent samples"
    solution = attempt(not entry.samples, words, lambda: descend(problem, entry, rows="samples"))
    if solution:
        assert_rows(name, solution)


def ensemble(name: str, network: nn.Module, entry: Entry) -> None:
    problem, starts = ask(network, entry), make_starts(2, entry.dtype)
    apply, models = fe.stack([network, build(entry, 1)])
    if not models:
        return
    first = {key: stack[0] for key, stack in models.items()}
    problem = fe.problem((apply, first), make_target(entry.dtype), starts[0])
    solution = descend(fe.vmap(fe.vmap(problem, x0=starts), params=models), entry)
    for variant in range(2):
        assert_rows(name, solution[variant], 2, variant)


def consensus(name: str, network: nn.Module, entry: Entry) -> None:
    """One step along the mean of the models' gradients."""
    _, models = fe.stack([network, build(entry, 1)])
    if not models:
        return
    ensemble = fe.vmap(ask(network, entry), params=models)
    step = fe.sgd(lr=entry.lr)
    solution = attempt(
        not entry.mappable, "", lambda: fe.solve(fe.consensus(ensemble), step, max_steps=1)
    )
    if solution:
        start = make_starts(1, entry.dtype)[0]
        moves = [descended(name, 0, 1, variant) - start for variant in range(2)]
        expected, size = (moves[0] + moves[1]) / 2, max(move.abs().max() for move in moves)
        distance = (solution.x - start - expected).abs().max()
        assert distance <= entry.rtol * size + 64 * torch.finfo(start.dtype).eps
        for variant in range(2):
            assert_weights(name, solution.x, solution.weights[variant], variant)


def torch_func(name: str, network: nn.Module, entry: Entry) -> None:
    problem = ask(network, entry)

    def search(x0: Tensor) -> Tensor:
        init, step = fe.make_step(problem, fe.sgd(lr=entry.lr))
        return fe.run(init, step, {**problem.args, "x0": x0}, num_steps=STEPS)[0].z

    starts = make_starts(ROWS, entry.dtype)
    found = attempt(not entry.mappable, "", lambda: torch.func.vmap(search)(starts))
    for row, x in enumerate(() if found is None else found):
        assert_answer(name, row, x)


def gauss_newton(name: str, network: nn.Module, entry: Entry) -> None:
    solution = fe.solve(ask(network, entry), fe.levenberg_marquardt(), max_steps=STEPS)
    assert_weights(name, solution.x, solution.weights)
    weights = call(oracle_network(name), make_starts(1, entry.dtype)[0])
    first = (weights - make_target(entry.dtype)).square().mean()
    assert solution.loss <= first * (1 + entry.rtol)
    assert (solution.history.diff() <= 0).all()


def closest(name: str, network: nn.Module, entry: Entry) -> None:
    solution = fe.closest(ask(network, entry), atol=0.05, max_steps=2, refinements=1)
    assert_weights(name, solution.x, solution.weights)


def checked(name: str, network: nn.Module, entry: Entry) -> None:
    found = fe.check_gradient(ask(network, entry))
    assert re.search(entry.verdict, found.verdict), found
    assert entry.verdict or found.ok, found


Way = Callable[[str, nn.Module, Entry], None]
WAYS: dict[str, Way] = {
    "alone": alone,
    "grid": grid,
    "vmap": vmap,
    "samples": samples,
    "ensemble": ensemble,
    "consensus": consensus,
    "torch_func": torch_func,
    "gauss_newton": gauss_newton,
    "closest": closest,
    "check_gradient": checked,
}


def attempt(flagged: bool, words: str, search: Callable[[], Any]) -> Any:
    """What a search finds; None where it refuses, as a flag allows, and says why."""
    try:
        return search()
    except Exception as error:
        if not flagged or words not in "\n".join([str(error), *getattr(error, "__notes__", [])]):
            raise
        return None


@contextmanager
def watched(network: nn.Module, entry: Entry, capfd: pytest.CaptureFixture[str]) -> Iterator[None]:
    """The network and the output stay untouched; only what the flags name is refused or warned of."""
    before = snapshot(network)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            yield
        except (TypeError, ValueError, RuntimeError) as error:
            if not entry.refused or not re.search(entry.refused, str(error)):
                raise
    slow = ALONE if not entry.mappable else ""
    allowed = "|".join(words for words in (TORCH, entry.warns, slow) if words)
    unknown = [str(w.message) for w in caught if not re.search(allowed, str(w.message))]
    assert not unknown
    assert_untouched(before, network)
    assert capfd.readouterr() == ("", "")


ALWAYS = ("alone", "grid", "vmap", "samples")
QUIET = [name for name, entry in CATALOGUE.items() if not entry.noisy]


def cases() -> list[Any]:
    """Every network alone and in rows, and in half of the other ways, which take turns among neighbors.

    Without flags a grid is a case of samples or vmap.
    """
    return [
        pytest.param(name, way, id=f"{name}-{way}")
        for turn, name in enumerate(QUIET)
        for place, way in enumerate(WAYS)
        if (way in ALWAYS or (turn + place) % 2 == 0)
        and (way != "grid" or CATALOGUE[name]._replace(make=nn.Module) != Entry(nn.Module))
    ]


@pytest.mark.parametrize(("name", "way"), cases())
def test_right_or_refused(name: str, way: str, capfd: pytest.CaptureFixture[str]) -> None:
    entry = CATALOGUE[name]
    network = build(entry)
    with watched(network, entry, capfd):
        WAYS[way](name, network, entry)


@pytest.mark.parametrize("name", params(sorted(CATALOGUE.keys() - QUIET)))
def test_noise_is_named(name: str) -> None:
    entry = CATALOGUE[name]
    with pytest.warns(UserWarning, match="random"):
        descend(ask(build(entry), entry), entry)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = fe.check_gradient(ask(build(entry), entry))
    assert "random" in found.verdict


SMOOTH = [n for n in QUIET if not CATALOGUE[n].verdict and CATALOGUE[n].dtype is torch.float64]


@pytest.mark.parametrize("name", params(SMOOTH))
@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
def test_the_oracle_goes_downhill(name: str) -> None:
    """Its first move is along minus the gradient, by a central difference of its own network."""
    entry, network, target = CATALOGUE[name], oracle_network(name), make_target(CATALOGUE[name].dtype)
    x = make_starts(1)[0]
    direction = torch.randn(x.shape, generator=torch.Generator().manual_seed(5), dtype=x.dtype)
    step = 1e-6 * direction
    with torch.no_grad():
        ahead, behind = ((call(network, z) - target).square().mean() for z in (x + step, x - step))
    slope = (ahead - behind) / 2e-6
    grads = (x - descended(name, 0, 1)) / entry.lr
    size = grads.norm() + slope.abs()
    assert ((grads * direction).sum() - slope).abs() <= 1e-5 * size + 1e-9
