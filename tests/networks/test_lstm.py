"""Laws of `lstm`: it is torch's, in outputs and all gradients; and the rule takes it for many rows."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import funcexplain as fe
from funcexplain.networks import lstm as module
from funcexplain.networks import recurrent
from funcexplain.networks.lstm import is_faster_lstm, lstm
from tests.grids import assert_rows_equal_alone, models, targets, x0s
from tests.helpers import RECURRENT, assert_close, make_problem, params
from tests.networks import test_recurrent as recurrent_laws
from tests.networks.transformations import over_transformations

ROWS, STEPS, CHANNELS, UNITS = 3, 5, 2, 4
# Projections stay torch's.
SERVED = [n for n in recurrent_laws.LAYERS if n.startswith("lstm") and n != "lstm_projected"]
WITHIN = {torch.float64: {"rtol": 1e-12, "atol": 1e-12}, torch.float32: {"rtol": 1e-5, "atol": 1e-5}}


def draw(shape: tuple[int, ...], dtype: torch.dtype, scale: float = 1.0) -> Tensor:
    return (scale * torch.randn(shape, dtype=torch.float64)).to(dtype).requires_grad_()


def make_layer(dtype: torch.dtype = torch.float64, **options: Any) -> nn.LSTM:
    layer = nn.LSTM(CHANNELS, UNITS, **options).to(dtype)
    for parameter in layer.parameters():
        nn.init.normal_(parameter, std=0.7)
    return layer


def given(layer: nn.LSTM, rows: int = ROWS, steps: int = STEPS) -> tuple[Tensor, Tensor, Tensor]:
    """Input and initial states that need gradients."""
    dtype, stack = next(layer.parameters()).dtype, layer.num_layers * (2 if layer.bidirectional else 1)
    shape = (rows, steps) if layer.batch_first else (steps, rows)
    return (
        draw((*shape, CHANNELS), dtype),
        draw((stack, rows, UNITS), dtype),
        draw((stack, rows, UNITS), dtype),
    )


def ours(layer: nn.LSTM, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, ...]:
    shape = (layer.bias, layer.num_layers, layer.bidirectional, layer.batch_first)
    return lstm(x, (h, c), list(layer.parameters()), *shape)


def torchs(layer: nn.LSTM, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, ...]:
    out, (h, c) = layer(x, (h, c))
    return out, h, c


def slopes(
    outputs: tuple[Tensor, ...], used: tuple[int, ...], wanted: list[Tensor]
) -> tuple[Tensor, ...]:
    """Gradients of a sum to which every entry of the used outputs contributes in its own way."""
    total = sum(
        (outputs[k] * torch.linspace(0.5, 1.5, outputs[k].numel()).view(outputs[k].shape)).sum()
        for k in used
    )
    return torch.autograd.grad(total, wanted)  # type: ignore[arg-type]


# --- it is torch's --------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize("num_layers", [1, 2, 3])
def test_it_is_torchs_lstm(
    num_layers: int, bidirectional: bool, batch_first: bool, bias: bool, dtype: torch.dtype
) -> None:
    layer = make_layer(
        dtype, num_layers=num_layers, bidirectional=bidirectional, batch_first=batch_first, bias=bias
    )
    inputs = given(layer)
    found, expected = ours(layer, *inputs), torchs(layer, *inputs)
    assert_close(found, expected, **WITHIN[dtype])
    wanted = [*inputs, *layer.parameters()]
    every = (0, 1, 2)
    assert_close(slopes(found, every, wanted), slopes(expected, every, wanted), **WITHIN[dtype])


@pytest.mark.parametrize("used", [(0,), (1,), (2,), (0, 2)], ids=repr)
def test_outputs_that_nobody_uses_add_nothing(used: tuple[int, ...]) -> None:
    layer = make_layer(num_layers=2, bidirectional=True)
    inputs = given(layer)
    wanted = [*inputs, *layer.parameters()]
    found, expected = (slopes(call(layer, *inputs), used, wanted) for call in (ours, torchs))
    assert_close(found, expected, **WITHIN[torch.float64])


@pytest.mark.parametrize("wanted", ["x", "h", "c", "weights"])
def test_gradients_may_be_asked_for_one_by_one(wanted: str) -> None:
    layer = make_layer(num_layers=2)
    x, h, c = given(layer)
    weights: list[Tensor] = list(layer.parameters())
    chosen = {"x": [x], "h": [h], "c": [c], "weights": weights}[wanted]
    for tensor in (x, h, c, *layer.parameters()):
        tensor.requires_grad_(any(tensor is one for one in chosen))
    found, expected = (slopes(call(layer, x, h, c), (0, 1, 2), chosen) for call in (ours, torchs))
    assert_close(found, expected, **WITHIN[torch.float64])


@pytest.mark.parametrize(("rows", "steps"), [(1, 1), (1, 4), (6, 1), (600, 2)])
def test_any_number_of_rows_and_steps(rows: int, steps: int) -> None:
    layer = make_layer()
    inputs = given(layer, rows, steps)
    found, expected = ours(layer, *inputs), torchs(layer, *inputs)
    assert_close(found, expected, **WITHIN[torch.float64])
    wanted = [*inputs, *layer.parameters()]
    assert_close(
        slopes(found, (0, 1, 2), wanted), slopes(expected, (0, 1, 2), wanted), rtol=1e-11, atol=1e-11
    )


def test_any_layout_of_the_input_and_states() -> None:
    layer = make_layer(bidirectional=True)
    x = draw((CHANNELS, ROWS, STEPS), torch.float64)
    state = draw((1, 1, UNITS), torch.float64)

    def grads(call: Any) -> tuple[Tensor, ...]:
        states = state.expand(2, ROWS, UNITS)
        return slopes(call(layer, x.permute(2, 1, 0), states, states), (0, 1, 2), [x, state])

    assert_close(grads(ours), grads(torchs), **WITHIN[torch.float64])


@pytest.mark.parametrize("scale", [1e-6, 1e3])
def test_gates_that_are_all_but_shut_or_saturated(scale: float) -> None:
    layer = make_layer()
    x, h, c = (scale * t.detach() for t in given(layer))
    found, expected = ours(layer, x, h, c), torchs(layer, x, h, c)
    assert_close(found, expected, **WITHIN[torch.float64])


def test_two_backward_passes_through_one_graph() -> None:
    layer = make_layer()
    x, h, c = given(layer)
    jacobian = torch.autograd.functional.jacobian
    found = jacobian(lambda x: ours(layer, x, h, c)[0], x)
    assert_close(found, jacobian(lambda x: torchs(layer, x, h, c)[0], x), **WITHIN[torch.float64])


def test_what_it_is_given_stays_as_it_is() -> None:
    layer = make_layer(num_layers=2)
    inputs = given(layer)
    tensors = [*inputs, *layer.parameters()]
    before = [t.detach().clone() for t in tensors]
    out, h, c = ours(layer, *inputs)
    kept = [out.detach().clone(), h.detach().clone(), c.detach().clone()]
    slopes((out, h, c), (0, 1, 2), tensors)
    for tensor, old in zip([*tensors, out, h, c], [*before, *kept], strict=True):
        assert torch.equal(tensor, old)


# --- the rule takes it for many rows --------------------------------------------------------------


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Lets the rule take it from one sequence on; the sizes of the batches that it took."""
    sizes: list[int] = []

    def counted(data: Tensor, states: Any, *rest: Any) -> tuple[Tensor, ...]:
        sizes.append(states[0].shape[1])
        return lstm(data, states, *rest)

    monkeypatch.setattr(module, "_MIN_ROWS", 1)
    monkeypatch.setattr(recurrent, "lstm", counted)
    return sizes


def test_it_serves_many_sequences_on_a_cpu() -> None:
    assert is_faster_lstm(torch.zeros(1, 512, 4))
    assert not is_faster_lstm(torch.zeros(1, 511, 4))
    assert not is_faster_lstm(torch.zeros(1, 512, 4, device="meta"))


@over_transformations(SERVED)
def test_every_transformation_still_equals_ordinary_autograd(
    calls: list[int], name: str, transformation: str, dtype: torch.dtype
) -> None:
    recurrent_laws.test_every_transformation_equals_ordinary_autograd(name, transformation, dtype)
    assert calls


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
def test_projections_stay_torchs(calls: list[int]) -> None:
    law = recurrent_laws.test_every_transformation_equals_ordinary_autograd
    law("lstm_projected", "vmap_grad", torch.float64)
    assert not calls


@pytest.mark.parametrize("name", params(SERVED))
@pytest.mark.parametrize("mapped", ["parameters", "everything", "input"])
def test_parameters_may_still_be_mapped(calls: list[int], name: str, mapped: str) -> None:
    recurrent_laws.test_parameters_may_be_mapped(name, mapped)
    assert calls


@pytest.mark.parametrize("name", params(SERVED))
def test_gradients_still_equal_finite_differences(calls: list[int], name: str) -> None:
    recurrent_laws.test_gradients_equal_finite_differences(name, batched=True, states=True)
    assert calls


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
def test_packed_sequences_stay_torchs(calls: list[int]) -> None:
    recurrent_laws.test_packed_sequences("lstm_projected", states=True, transformation="vmap_grad")
    assert not calls


@pytest.mark.parametrize("name", params(RECURRENT))
def test_grids_still_equal_their_rows_alone(calls: list[int], name: str) -> None:
    grid = fe.vmap(make_problem(name), x0=x0s(4), target=targets(4))
    ensemble = fe.vmap(grid, params=models(2, name=name))
    for rows in (grid, ensemble):
        assert_rows_equal_alone(
            rows, lambda: fe.sgd(lr=0.5), max_steps=8, chunk_size=3, within=(1e-11, 1e-13)
        )
    assert bool(calls) == (name == "lstm_instance_norm")


def test_a_large_grid_equals_a_small_one() -> None:
    assert module._MIN_ROWS == 512
    # Each row is five sequences, one for each asset.
    grid = fe.vmap(make_problem("lstm_instance_norm"), x0=x0s(104), target=targets(104))
    large, small = (
        fe.solve(grid, fe.sgd(lr=0.5), max_steps=6, rows="vmap", chunk_size=size) for size in (104, 26)
    )
    assert_close(large, small)
