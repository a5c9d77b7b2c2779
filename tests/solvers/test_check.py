"""`check_gradient` passes what is right, and catches what is wrong, cut or not there."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.utils.checkpoint
from torch import Tensor, nn

import funcexplain as fe
from tests.helpers import (
    assert_untouched,
    make_network,
    make_problem,
    snapshot,
)

DTYPES = [torch.float32, torch.float64]


class Wrong(torch.autograd.Function):
    """The square, with a derivative that forgets the factor two."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.square()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad * ctx.saved_tensors[0]


def with_output(function: Callable[[Tensor], Tensor]) -> fe.Problem:
    def apply(p: dict[str, Tensor], x: Tensor) -> Tensor:
        return torch.softmax(function(x).flatten()[:5], 0)

    return make_problem((apply, {}), mask=None)


@pytest.mark.parametrize("dtype", DTYPES)
def test_it_catches_torchs_normalisation_bug_when_the_cure_is_off(dtype: torch.dtype) -> None:
    pair = fe.functionalize(make_network("lstm_instance_norm", dtype), rules=())
    problem = make_problem(pair, dtype)
    found = fe.check_gradient(problem)
    assert not found.ok
    assert "does NOT agree" in found.verdict
    with pytest.warns(UserWarning, match="solve: The gradient does NOT agree with central differences"):
        fe.solve(problem, max_steps=1, check=True)


def test_it_catches_a_wrong_backward_pass() -> None:
    found = fe.check_gradient(with_output(Wrong.apply))
    assert not found.ok
    assert all(slope.error > 0.05 for slope in found.slopes)


@pytest.mark.parametrize("cut", [Tensor.detach, lambda x: x + (x.detach() - x)])
def test_a_gradient_that_is_cut_is_told_from_an_input_that_is_ignored(
    cut: Callable[[Tensor], Tensor],
) -> None:
    found = fe.check_gradient(with_output(cut))
    assert not found.ok
    assert "although what is minimized changes" in found.verdict
    ignored = fe.check_gradient(with_output(lambda x: torch.zeros_like(x)))
    assert ignored.ok
    assert "does not depend on the input" in ignored.verdict


def test_a_network_that_draws_random_numbers_is_named() -> None:
    found = fe.check_gradient(with_output(lambda x: x + torch.randn_like(x)))
    assert not found.ok
    assert "draws random numbers" in found.verdict


CONSTANTS: dict[str, Callable[[Tensor], Tensor]] = {
    "zeros": lambda x: torch.cat([x.flatten()[:4], torch.zeros(1)]) @ torch.eye(5),
    "ones": lambda x: x.flatten(1)[:, :5].sum(0) @ torch.ones(5, 5).tril(),
    "arange": lambda x: x.flatten()[:5] @ torch.diag(torch.arange(5.0)),
    "tensor": lambda x: x.flatten()[:5] @ torch.tensor([[0.1] * 5] * 5).triu(),
    "linspace": lambda x: torch.lerp(x.flatten()[:5], torch.linspace(0, 1, 5), 0.3),
}


@pytest.mark.parametrize("name", CONSTANTS)
def test_constants_made_in_the_forward_pass_are_no_trouble(name: str) -> None:
    def apply(p: dict[str, Tensor], x: Tensor) -> Tensor:
        return torch.softmax(CONSTANTS[name](x), 0)

    found = fe.check_gradient(make_problem((apply, {}), torch.float32, mask=None))
    assert found.ok, found
    assert found.precision == torch.float64
    assert torch.get_default_dtype() == torch.float32


def test_where_float64_fails_differences_are_in_the_own_dtype() -> None:
    kept = torch.linspace(-1.0, 1.0, 25).view(5, 5)
    for factor, right in ((1.0, True), (0.5, False)):

        def apply(p: dict[str, Tensor], x: Tensor, factor: float = factor) -> Tensor:
            u = x.flatten()[:5]
            return torch.softmax((factor * u + (1.0 - factor) * u.detach()) @ kept, 0)

        found = fe.check_gradient(make_problem((apply, {}), torch.float32, mask=None))
        assert found.ok == right, found
        assert "in float32, since the network fails in float64" in found.verdict


def test_parts_in_half_precision_have_differences_of_their_own_rounding() -> None:
    torch.manual_seed(0)
    body, head = torch.nn.Linear(6, 4, dtype=torch.bfloat16), torch.nn.Linear(4, 3)
    for right in (True, False):

        class Half(torch.nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.body, self.head = body, head

            def forward(self, x: Tensor, right: bool = right) -> Tensor:
                x = x if right else 0.5 * (x + x.detach())
                hidden = torch.tanh(self.body(x.flatten(1).bfloat16()))
                return torch.softmax(self.head(hidden.float()), -1)

        problem = fe.problem(Half(), torch.tensor([0.8, 0.1, 0.1]), torch.randn(1, 2, 3))
        found = fe.check_gradient(problem)
        assert found.ok == right, found


def test_detached_statistics_are_named_as_the_usual_cause() -> None:
    def normalized(x: Tensor) -> Tensor:
        return (x - x.mean().detach()) / x.std().detach()

    found = fe.check_gradient(with_output(normalized))
    assert not found.ok
    assert "`.detach()`" in found.verdict


def test_rounding_that_is_not_repeatable_is_not_randomness() -> None:
    calls = iter(range(10_000))

    def rounded(x: Tensor) -> Tensor:
        return x * (1.0 + 1e-15 * (next(calls) % 3))

    found = fe.check_gradient(with_output(rounded))
    assert found.ok, found
    noisy = fe.check_gradient(with_output(lambda x: x + 1e-6 * torch.randn_like(x)))
    assert "draws random numbers" in noisy.verdict


def test_backward_passes_that_read_parameters_see_those_of_the_problem() -> None:
    class Checkpointed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(nn.Flatten(), nn.Linear(60, 8), nn.Tanh())
            self.head = nn.Linear(8, 5)

        def forward(self, x: Tensor) -> Tensor:
            hidden = torch.utils.checkpoint.checkpoint(self.body, x, use_reentrant=False)
            return torch.softmax(self.head(hidden), -1)

    for dtype in DTYPES:
        networks = [Checkpointed().to(dtype) for _ in range(2)]
        apply, other = fe.functionalize(networks[0])[0], fe.functionalize(networks[1])[1]
        for network in (networks[0], (apply, other)):
            found = fe.check_gradient(make_problem(network, dtype))
            assert found.ok, found


def test_a_search_with_a_right_gradient_does_not_warn_and_is_the_same() -> None:
    network = make_network("conv_instance_norm")
    before = snapshot(network)
    checked = fe.solve(make_problem(network), max_steps=3, check=True)
    assert torch.equal(checked.x, fe.solve(make_problem(network), max_steps=3).x)
    assert_untouched(before, network)


def test_it_says_per_direction_what_it_found() -> None:
    lines = repr(fe.check_gradient(make_problem(dtype=torch.float32), num_directions=2)).splitlines()
    assert lines[0].startswith("The gradient agrees with central differences")
    assert len(lines) == 1 + 4
    assert all("gradient" in line and "difference" in line for line in lines[1:])


def test_a_network_that_is_flat_at_its_target_passes() -> None:
    problem = make_problem(nn.Sequential(nn.Flatten(), nn.Linear(60, 5), nn.Softmax(-1)).double())
    _, weights = problem.objective(problem.args["x0"], problem.args)
    problem.args["target"] = weights
    assert fe.check_gradient(problem).ok


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rtol": -1.0}, "check_gradient: rtol must be"),
        ({"num_directions": 0}, "check_gradient: num_directions must be >= 1, got 0"),
    ],
)
def test_wrong_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fe.check_gradient(make_problem(), **settings)
