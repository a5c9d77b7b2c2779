"""Laws of `fold_recurrent`: every option, transformation and dtype is what ordinary autograd says."""

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, jacrev, vmap
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

import funcexplain as fe
from funcexplain.networks.opaque import Opaque
from funcexplain.networks.prepare import RULES
from funcexplain.networks.recurrent import DifferentiableKernels, explicit_cell, fold_recurrent
from tests.grids import assert_rows_equal_alone, targets, x0s
from tests.helpers import (
    RECURRENT,
    assert_close,
    assert_gradient,
    assert_same,
    assert_untouched,
    make_network,
    make_problem,
    make_target,
    make_x0,
    params,
    snapshot,
)
from tests.networks.transformations import (
    TRANSFORMATIONS,
    draw,
    loss,
    ordinary_grad,
    over_transformations,
)

# Said by the native layer, too, once a process.
pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")

STEPS, ROWS, CHANNELS, HIDDEN = 3, 2, 3, 2
LAYERS: dict[str, Callable[[], nn.RNNBase]] = {
    "lstm": lambda: nn.LSTM(CHANNELS, HIDDEN),
    "lstm_stacked": lambda: nn.LSTM(CHANNELS, HIDDEN, 2, bidirectional=True, batch_first=True),
    "lstm_projected": lambda: nn.LSTM(CHANNELS, HIDDEN, 2, proj_size=1, bidirectional=True, dropout=0.5),
    "lstm_no_bias": lambda: nn.LSTM(CHANNELS, HIDDEN, bias=False),
    "gru": lambda: nn.GRU(CHANNELS, HIDDEN),
    "gru_stacked": lambda: nn.GRU(
        CHANNELS, HIDDEN, 2, bidirectional=True, batch_first=True, dropout=0.5
    ),
    "gru_no_bias": lambda: nn.GRU(CHANNELS, HIDDEN, bias=False, batch_first=True),
    "rnn_tanh": lambda: nn.RNN(CHANNELS, HIDDEN),
    "rnn_relu": lambda: nn.RNN(CHANNELS, HIDDEN, 2, nonlinearity="relu", bidirectional=True),
    "rnn_no_bias": lambda: nn.RNN(CHANNELS, HIDDEN, bias=False, batch_first=True),
}
TOLERANCE = {torch.float32: {"rtol": 1e-4, "atol": 1e-5}, torch.float64: {"rtol": 1e-12, "atol": 1e-13}}
every_layer = pytest.mark.parametrize("name", params(LAYERS))


def make_layer(name: str, dtype: torch.dtype = torch.float64) -> nn.RNNBase:
    torch.manual_seed(sum(map(ord, name)))
    layer = LAYERS[name]().to(dtype).eval()
    for parameter in layer.parameters():
        nn.init.normal_(parameter, std=0.7)
    return layer


def make_folded(layer: nn.RNNBase) -> nn.RNNBase:
    return fold_recurrent(copy.deepcopy(layer))


def shapes(layer: nn.RNNBase, batched: bool = True, states: bool = True) -> list[tuple[int, ...]]:
    """Of the input and the initial states."""
    rows = (ROWS,) if batched else ()
    x = (*rows, STEPS, CHANNELS) if layer.batch_first else (STEPS, *rows, CHANNELS)
    stack = layer.num_layers * (2 if layer.bidirectional else 1)
    h0 = (stack, *rows, layer.proj_size or HIDDEN)
    c0 = [(stack, *rows, HIDDEN)] if isinstance(layer, nn.LSTM) else []
    return [x, *([h0, *c0] if states else [])]


def of_tensors(layer: nn.Module, *names: str) -> Callable[..., Any]:
    """The layer as a function of its input, its initial states and the parameters of these names."""

    def call(x: Tensor, *tensors: Tensor) -> Any:
        states, own = tensors[: len(tensors) - len(names)], tensors[len(tensors) - len(names) :]
        hx = () if not states else (states if isinstance(layer, nn.LSTM) else states[0],)
        return functional_call(layer, dict(zip(names, own, strict=True)), (x, *hx))

    return call


@over_transformations(LAYERS)
def test_every_transformation_equals_ordinary_autograd(
    name: str, transformation: str, dtype: torch.dtype
) -> None:
    layer = make_layer(name, dtype)
    levels, transformed, expected = TRANSFORMATIONS[transformation]
    # All forms of input take turns, so that each meets every transformation with some layer.
    turn = list(LAYERS).index(name)
    form = shapes(layer, batched=turn % 3 != 0, states=turn % 2 == 0)
    args = draw(form, levels, dtype)
    actual = transformed(of_tensors(make_folded(layer)))(*args)
    assert_close(actual, expected(of_tensors(layer))(*args), **TOLERANCE[dtype])


@pytest.mark.parametrize(
    ("name", "batched", "states"),
    [(name, (turn + form) % 2 == 0, form == 0) for turn, name in enumerate(LAYERS) for form in range(2)],
)
def test_gradients_equal_finite_differences(name: str, batched: bool, states: bool) -> None:
    layer = make_layer(name)
    names = [n for n, _ in layer.named_parameters()][-5:]
    args = [
        *draw(shapes(layer, batched, states), 0),
        *[layer.get_parameter(n).detach().clone() for n in names],
    ]
    fn = loss(of_tensors(make_folded(layer), *names))
    grads = grad(fn, argnums=tuple(range(len(args))))(*args)
    for i, grads_i in enumerate(grads):
        assert_gradient(lambda t, i=i: fn(*args[:i], t, *args[i + 1 :]), args[i], grads_i)  # type: ignore[misc]


@every_layer
@pytest.mark.parametrize("mapped", ["parameters", "everything", "input"])
def test_parameters_may_be_mapped(name: str, mapped: str) -> None:
    layer = make_layer(name)
    names = [n for n, _ in layer.named_parameters()]
    form = [*shapes(layer), *[layer.get_parameter(n).shape for n in names]]
    inputs = len(form) - len(names)
    is_mapped = [
        mapped == "everything" or (mapped == "parameters") == (i >= inputs) for i in range(len(form))
    ]
    args = [draw([shape], int(m))[0] for shape, m in zip(form, is_mapped, strict=True)]
    in_dims = tuple(0 if m else None for m in is_mapped)
    argnums = tuple(range(len(form)))
    actual = vmap(grad(loss(of_tensors(make_folded(layer), *names)), argnums), in_dims)(*args)
    rows = [[a[b] if m else a for a, m in zip(args, is_mapped, strict=True)] for b in range(3)]
    each = [ordinary_grad(loss(of_tensors(layer, *names)))(*row) for row in rows]
    assert_close(
        actual,
        tuple(torch.stack(column) for column in zip(*each, strict=True)),
        **TOLERANCE[torch.float64],
    )


@pytest.mark.parametrize("name", params(["lstm", "gru_stacked", "rnn_relu"]))
def test_a_grid_of_models_and_inputs(name: str) -> None:
    layer = make_layer(name)
    names = [n for n, _ in layer.named_parameters()]
    (xs,) = draw(shapes(layer, states=False), 1)
    models = draw([layer.get_parameter(n).shape for n in names], 1)
    fn = grad(loss(of_tensors(make_folded(layer), *names)))
    grid = vmap(vmap(fn, (0, *[None] * len(names))), (None, *[0] * len(names)))(xs, *models)
    ordinary = ordinary_grad(loss(of_tensors(layer, *names)))
    expected = [[ordinary(x, *[p[m] for p in models])[0] for x in xs] for m in range(3)]
    assert_close(grid, torch.stack([torch.stack(row) for row in expected]), **TOLERANCE[torch.float64])


@pytest.mark.parametrize("name", params(["lstm_projected", "gru_stacked", "rnn_tanh"]))
@pytest.mark.parametrize("states", [True, False])
@pytest.mark.parametrize("transformation", params(["grad", "vmap", "vmap_grad", "grad_vmap"]))
def test_packed_sequences(name: str, states: bool, transformation: str) -> None:
    layer = make_layer(name)
    levels, transformed, expected = TRANSFORMATIONS[transformation]
    form = shapes(layer, states=states)
    if layer.batch_first:
        form[0] = (STEPS, ROWS, CHANNELS)
    packed = pack_padded_sequence(torch.zeros(form[0]), torch.tensor([2, STEPS]), enforce_sorted=False)
    args = draw([packed.data.shape, *form[1:]], levels)

    def of_data(layer: nn.Module) -> Callable[..., Any]:
        def call(data: Tensor, *hx: Tensor) -> Any:
            sequence = PackedSequence(data, *packed[1:])
            out, *hidden = of_tensors(layer)(sequence, *hx)
            return out.data, *hidden

        return call

    actual = transformed(of_data(make_folded(layer)))(*args)
    assert_close(actual, expected(of_data(layer))(*args), **TOLERANCE[torch.float64])


@every_layer
def test_mapped_rows_go_through_the_kernel_at_once(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from funcexplain.networks import recurrent

    sizes: list[int] = []

    def make_opaque(fn: Any, *dims: Any, **settings: Any) -> nn.Module:
        def counted(x: Tensor, *rest: Tensor) -> Any:
            sizes.append(x.numel())
            return fn(x, *rest)

        return Opaque(counted, *dims, **settings)

    monkeypatch.setattr(recurrent, "Opaque", make_opaque)
    layer = make_folded(make_layer(name))
    (xs,) = draw(shapes(layer, states=False), 2)
    vmap(vmap(grad(loss(of_tensors(layer)))))(xs)
    vmap(vmap(jacrev(lambda x: layer(x)[0])))(xs)
    assert sizes == [xs.numel()] * 2


@every_layer
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_all_directions_of_a_jacobian_share_a_backward_pass(
    name: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes: list[int] = []
    grad = torch.autograd.grad

    def counted(*args: Any, **settings: Any) -> Any:
        passes.append(1)
        return grad(*args, **settings)

    layer = make_folded(make_layer(name, dtype))
    (xs,) = draw(shapes(layer, states=False), 2, dtype)
    jacobian = vmap(vmap(jacrev(lambda x: layer(x)[0])))
    alone = torch.stack([torch.stack([jacrev(lambda x: layer(x)[0])(x) for x in row]) for row in xs])
    monkeypatch.setattr(torch.autograd, "grad", counted)
    assert_close(jacobian(xs), alone, **TOLERANCE[dtype])
    assert len(passes) == 2  # that of jacrev, and the one through the layer


@pytest.mark.parametrize("name", params(["lstm_stacked", "gru", "rnn_tanh"]))
def test_jacobians_equal_finite_differences(name: str) -> None:
    layer = make_folded(make_layer(name))
    (x,) = draw(shapes(layer, states=False), 0)
    steps = 1e-6 * torch.eye(x.numel(), dtype=x.dtype).view(-1, *x.shape)
    with torch.no_grad():
        columns = [(layer(x + h)[0] - layer(x - h)[0]).flatten() / 2e-6 for h in steps]
    jacobian = jacrev(lambda x: layer(x)[0].flatten())(x).flatten(1)
    assert_close(jacobian, torch.stack(columns, 1), rtol=1e-6, atol=1e-8)


@every_layer
def test_without_a_transform_the_layer_is_torchs_own(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("funcexplain.networks.recurrent._FoldKernels", None)
    layer = make_layer(name)
    folded = make_folded(layer)
    args = draw(shapes(layer), 0)
    assert_same(of_tensors(folded)(*args), of_tensors(layer)(*args))
    # Dropout between layers is torch's, too.
    torch.manual_seed(1)
    expected = layer.train()(args[0])
    torch.manual_seed(1)
    assert_same(folded.train()(args[0]), expected)


def test_the_module_keeps_its_names_type_and_settings() -> None:
    layer = make_layer("lstm_projected")
    folded = make_folded(layer)
    assert isinstance(folded, nn.LSTM)
    assert repr(folded) == repr(layer)
    assert_same(dict(folded.state_dict()), dict(layer.state_dict()))
    assert fold_recurrent(folded) is folded
    (xs,) = draw(shapes(layer, states=False), 1)
    assert_same(vmap(copy.deepcopy(folded))(xs), vmap(folded)(xs))


def test_a_subclass_keeps_its_own_forward() -> None:
    class Doubled(nn.GRU):
        def forward(self, input: Tensor, hx: Any = None) -> Any:  # type: ignore[override]
            out, hidden = super().forward(2.0 * input, hx)
            return 3.0 * out, hidden

    layer = Doubled(CHANNELS, HIDDEN).double()
    folded = fold_recurrent(copy.deepcopy(layer))
    (xs,) = draw([(STEPS, ROWS, CHANNELS)], 1)
    each = [layer(x) for x in xs]
    assert_close(vmap(folded)(xs), tuple(torch.stack(column) for column in zip(*each, strict=True)))


@pytest.mark.parametrize("name", params(RECURRENT))
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_networks_with_recurrent_layers_can_be_mapped(name: str, dtype: torch.dtype) -> None:
    network = make_network(name, dtype)
    before, lists = snapshot(network), [id(w) for w in network.cell._flat_weights]  # type: ignore[union-attr]
    rules: dict[Any, Any] = {**RULES, nn.RNNBase: fold_recurrent}
    apply, p = fe.functionalize(network, rules=rules)
    target = make_target(dtype)
    slope = grad(lambda p, x: fe.losses.mse(apply(p, x), target), argnums=1)
    xs = torch.stack([make_x0(dtype, seed=seed) for seed in range(3)])
    rows = vmap(slope, (None, 0))(p, xs)
    assert_close(rows, torch.stack([slope(p, x) for x in xs]), **TOLERANCE[dtype])
    models = {n: torch.stack([t, t.flip(0)]) for n, t in p.items() if t.ndim} | {
        n: torch.stack([t, t]) for n, t in p.items() if not t.ndim
    }
    grid = vmap(vmap(slope, (None, 0)), (0, None))(models, xs)
    assert_close(grid[0], rows, **TOLERANCE[dtype])
    assert_untouched(before, network)
    assert [id(w) for w in network.cell._flat_weights] == lists  # type: ignore[union-attr]


@pytest.mark.parametrize("name", params(RECURRENT))
def test_rows_of_levenberg_marquardt_equal_their_rows_alone(name: str) -> None:
    grid = fe.vmap(make_problem(name), x0=x0s(2), target=targets(2))
    assert_rows_equal_alone(grid, fe.levenberg_marquardt, rows="vmap", max_steps=2, within=(1e-9, 1e-11))


def test_dropout_under_a_transform_is_refused() -> None:
    layer = make_folded(make_layer("gru_stacked")).train()
    (xs,) = draw(shapes(layer, states=False), 1)
    with pytest.raises(RuntimeError, match=r"GRU: dropout=0.5 between layers.*use eval mode"):
        vmap(layer, randomness="different")(xs)
    layer.eval()
    vmap(layer)(xs)


def test_a_second_derivative_is_refused() -> None:
    layer = make_folded(make_layer("lstm"))
    (x,) = draw(shapes(layer, states=False), 0)
    with pytest.raises(RuntimeError, match="only one derivative"):
        grad(lambda x: grad(lambda x: layer(x)[0].sum())(x).sum())(x)


def test_wrong_input_is_refused_in_the_words_of_torch() -> None:
    layer = make_folded(make_layer("lstm"))
    with pytest.raises(RuntimeError, match=r"input\.size"):
        vmap(layer)(torch.zeros(3, STEPS, ROWS, CHANNELS + 1, dtype=torch.float64))


@pytest.mark.parametrize("states", ["none", "shared", "mapped"])
@pytest.mark.parametrize(
    "cell", [nn.RNNCell, partial(nn.RNNCell, nonlinearity="relu"), nn.LSTMCell, nn.GRUCell]
)
def test_cells_map_with_any_states(cell: Any, states: str) -> None:
    layer = cell(CHANNELS, HIDDEN).double()
    followed = explicit_cell(copy.deepcopy(layer))
    pair = cell is nn.LSTMCell
    xs = torch.randn(STEPS, ROWS, CHANNELS, dtype=torch.float64)
    hs = torch.randn(STEPS, ROWS, HIDDEN, dtype=torch.float64)
    if states != "mapped":
        hs = hs[:1].expand(STEPS, ROWS, HIDDEN)

    def value(layer: nn.Module, x: Tensor, h: Tensor) -> Tensor:
        given = None if states == "none" else ((h, 2 * h) if pair else h)
        out = layer(x, given)
        return (out[0] + out[1] if pair else out).square().sum()

    expected = []
    for x, h in zip(xs, hs, strict=True):
        own = x.detach().requires_grad_()
        expected.append(torch.autograd.grad(value(layer, own, h.detach()), own)[0])
    slope = grad(lambda x, h: value(followed, x, h))
    rows = vmap(slope)(xs, hs) if states == "mapped" else vmap(slope, (0, None))(xs, hs[0])
    assert_close(rows, torch.stack(expected))
    models = {n: torch.stack([p, 2 * p]).detach() for n, p in layer.named_parameters()}
    outs = vmap(lambda p: functional_call(followed, p, (xs[0],)))(models)
    assert_close(outs[0][0] if pair else outs[0], layer(xs[0])[0] if pair else layer(xs[0]))


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_kernels_in_training_mode_compute_what_eval_mode_computes(kind: Any, packed: bool) -> None:
    """What a GPU, whose kernels have no backward pass in eval mode, is given instead."""
    layer = kind(3, 4, num_layers=2, dropout=0.5, batch_first=True).double().eval()
    x: Any = torch.randn(2, 5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    if packed:
        x = nn.utils.rnn.pack_padded_sequence(x, [5, 3], batch_first=True)
    with DifferentiableKernels():
        found = layer(x)[0]
    expected = layer(x)[0]
    assert torch.equal(found.data, expected.data)
