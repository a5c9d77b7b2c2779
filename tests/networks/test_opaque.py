"""Laws of `opaque`: every transformation of every function is what ordinary autograd says."""

import gc
import weakref
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, jacrev, vmap

import funcexplain as fe
from funcexplain.networks.opaque import Opaque, opaque
from tests.helpers import assert_close, assert_same, params
from tests.networks.transformations import TRANSFORMATIONS, draw, loss, ordinary_grad

N = 4


class Cumsum(torch.autograd.Function):
    """A sum over numpy: nothing that torch.func could see through."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return torch.from_numpy(np.cumsum(x.detach().numpy(), -1))

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return torch.from_numpy(np.cumsum(g.numpy()[..., ::-1], -1)[..., ::-1].copy())


class Halves(nn.Module):
    """A module with parameters, a buffer, and outputs with different batch dims."""

    scale: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 4)
        self.register_buffer("scale", torch.tensor([0.5, 2.0, 1.0]))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        first, second = torch.tanh(self.linear(x * self.scale)).chunk(2, -1)
        return first, second.T


class Case(NamedTuple):
    fn: Callable[..., Any]
    in_batch: Any
    out_batch: Any
    shapes: list[tuple[int, ...]]


def make_halves() -> Halves:
    torch.manual_seed(3)
    return Halves().double()


CASES: dict[str, Case] = {
    "identity": Case(lambda x: x, 0, 0, [(N, 3)]),
    "out_of_torch": Case(lambda x: Cumsum.apply(x.sin()), 0, 0, [(N, 3)]),
    "two_inputs": Case(lambda x, y: (x * y[:, None]).exp(), 0, 0, [(N, 3), (N,)]),
    "middle_dims": Case(
        lambda x, y: torch.einsum("tnc,cnd->ntd", x.tanh(), y), 1, 0, [(2, N, 3), (3, N, 2)]
    ),
    "negative_dims": Case(lambda x, y: x.T.square() + y, (-1, 0), -2, [(3, N), (N, 3)]),
    "shared_input": Case(lambda x, w: torch.tanh(x @ w), (0, None), 0, [(N, 3), (3, 2)]),
    "no_rows": Case(
        lambda x, w: torch.linalg.solve(w @ w.T + torch.eye(3), x), None, None, [(3,), (3, 3)]
    ),
    "integer_output": Case(lambda x: torch.sort(x * x, -1), 0, 0, [(N, 3)]),
    "constant_output": Case(lambda x: (x.detach() * 2.0, x.square()), 0, 0, [(N, 3)]),
    "unused_input": Case(lambda x, y: x.square(), 0, 0, [(N, 3), (N,)]),
    "module": Case(make_halves(), 0, (0, 1), [(N, 3)]),
}


@pytest.fixture(autouse=True)
def _double() -> Any:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


@pytest.mark.parametrize("transformation", params(TRANSFORMATIONS))
@pytest.mark.parametrize("name", params(CASES))
def test_every_transformation_equals_ordinary_autograd(name: str, transformation: str) -> None:
    case = CASES[name]
    levels, transformed, expected = TRANSFORMATIONS[transformation]
    args = draw(case.shapes, levels)
    layer = opaque(case.fn, case.in_batch, case.out_batch)
    if name == "integer_output" and transformation == "vmap":
        values, indices = transformed(layer)(*args)
        assert_close((values, indices), tuple(torch.sort(args[0] ** 2, -1)))
    else:
        assert_close(transformed(layer)(*args), expected(case.fn)(*args))


@pytest.mark.parametrize("in_dims", [(0, None), (None, 0), (None, 1), (1, 0)])
@pytest.mark.parametrize("name", ["two_inputs", "shared_input", "no_rows"])
def test_what_is_not_mapped_is_the_same_for_all_rows(name: str, in_dims: tuple[Any, Any]) -> None:
    case = CASES[name]
    shapes = [
        shape if d is None else (*shape[:d], 3, *shape[d:])
        for shape, d in zip(case.shapes, in_dims, strict=True)
    ]
    args = draw(shapes, 0)
    layer = opaque(case.fn, case.in_batch, case.out_batch)
    actual = vmap(grad(loss(layer), argnums=(0, 1)), in_dims)(*args)
    rows = [
        [a if d is None else a.select(d, b) for a, d in zip(args, in_dims, strict=True)]
        for b in range(3)
    ]
    each = [ordinary_grad(loss(case.fn))(*row) for row in rows]
    assert_close(actual, tuple(torch.stack(column) for column in zip(*each, strict=True)))


@pytest.mark.parametrize("mapped", ["x", "params", "both", "grid"])
def test_parameters_of_a_module_are_arguments(mapped: str) -> None:
    module = make_halves()
    network = nn.Sequential(opaque(module, 0, (0, 1)))
    names = [name for name, _ in (*network.named_parameters(), *network.named_buffers())]
    assert names == ["0.fn.linear.weight", "0.fn.linear.bias", "0.fn.scale"]
    tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    shapes = [tensor.shape for tensor in tensors.values()]

    def folded(x: Tensor, *p: Tensor) -> Any:
        return functional_call(network, dict(zip(names, p, strict=True)), (x,))

    def native(x: Tensor, *p: Tensor) -> Any:
        return functional_call(module, dict(zip(tensors, p, strict=True)), (x,))

    (x,) = draw([(N, 3)], 1 if mapped != "params" else 0)
    p = draw(shapes, 1 if mapped != "x" else 0)
    argnums = tuple(range(4))

    def mapping(fn: Any) -> Any:
        inner = grad(loss(fn), argnums)
        if mapped == "grid":
            rows = vmap(inner, (0, None, None, None))
            return vmap(rows, (None, 0, 0, 0))
        return vmap(inner, (0 if mapped != "params" else None, *[None if mapped == "x" else 0] * 3))

    # The module itself holds nothing that torch.func could not map.
    assert_close(mapping(folded)(x, *p), mapping(native)(x, *p), rtol=1e-11, atol=1e-13)


def test_without_a_transform_the_function_is_called_as_it_is() -> None:
    layer = opaque(lambda x: x**3)
    x = torch.tensor([2.0], requires_grad=True)
    (slope,) = torch.autograd.grad(layer(x), x, create_graph=True)
    assert_same(torch.autograd.grad(slope, x), (torch.tensor([12.0]),))


def test_ordinary_autograd_around_a_map_reaches_inputs_and_parameters() -> None:
    module = make_halves()
    (x,) = draw([(N, 3)], 1)
    total = loss(vmap(opaque(module, 0, (0, 1))))
    leaves = (x.requires_grad_(), *module.parameters())
    actual = torch.autograd.grad(total(x), leaves)
    assert_close(actual, torch.autograd.grad(loss(vmap(module))(x), leaves))


def test_one_forward_whatever_is_asked() -> None:
    batches: list[int] = []

    def fn(x: Tensor) -> Tensor:
        batches.append(len(x))
        return x.sin()

    layer = opaque(fn)
    (x,) = draw([(N, 2)], 2)
    vmap(layer)(x[0])
    batches.clear()  # of the trial
    vmap(vmap(grad(lambda x: layer(x).sum())))(x)
    vmap(vmap(jacrev(layer)))(x)
    jacrev(layer)(x[0, 0])
    assert batches == [9 * N, 9 * N, N]


class Probe:
    """Something that can be watched."""


class Watched(torch.autograd.Function):
    """The identity; its node in the graph holds a probe."""

    alive: ClassVar[list[weakref.ref[Probe]]] = []

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.probe = Probe()
        Watched.alive.append(weakref.ref(ctx.probe))
        return x.clone()

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        assert ctx.probe is not None
        return g


@pytest.mark.parametrize(
    "transform", [grad, vmap, jacrev, lambda f: vmap(grad(f)), lambda f: vmap(jacrev(f))]
)
def test_the_inner_graph_does_not_outlive_the_call(transform: Any) -> None:
    Watched.alive.clear()
    (x,) = draw([(N, 2)], 1)
    gc.disable()  # there are no circles for it to find
    try:
        result = transform(lambda x: Opaque(Watched.apply, trial=False)(x).sum())(x)
        assert len(Watched.alive) == 1
        assert Watched.alive[0]() is None
    finally:
        gc.enable()
    assert result.isfinite().all()


def test_no_graph_is_built_where_gradients_are_off() -> None:
    recorded: list[bool] = []

    def fn(x: Tensor) -> Tensor:
        out = x.exp()
        recorded.append(out.requires_grad)
        return out

    layer = opaque(fn)
    (x,) = draw([(N, 2)], 1)
    vmap(layer)(x)
    recorded.clear()  # of the trial
    with torch.no_grad():
        vmap(layer)(x)
    vmap(grad(lambda x: layer(x).sum()))(x)
    assert recorded == [False, True]


def test_a_network_of_the_library_may_hold_one() -> None:
    network = nn.Sequential(opaque(nn.Sequential(nn.Flatten(), nn.Linear(60, 5))), nn.Softmax(-1))
    apply, p = fe.functionalize(network.double())
    xs = draw([(2, 6, 5)], 1)[0]
    rows = vmap(apply, (None, 0))(p, xs)
    assert_close(rows, network(xs).detach())
    models = {name: torch.stack([tensor, 2.0 * tensor]) for name, tensor in p.items()}
    assert_close(vmap(apply, (0, None))(models, xs[0])[0], rows[0])


@pytest.mark.filterwarnings("ignore")
def test_a_convex_layer_equals_one_question_at_a_time() -> None:
    cp = pytest.importorskip("cvxpy")
    layers = pytest.importorskip("cvxpylayers.torch")
    returns, weights = cp.Parameter(5), cp.Variable(5)
    problem = cp.Problem(
        cp.Minimize(cp.sum_squares(weights) - returns @ weights), [cp.sum(weights) == 1, weights >= 0]
    )
    solver = layers.CvxpyLayer(problem, parameters=[returns], variables=[weights])
    tight = {"eps": 1e-10, "max_iters": 200_000, "mode": "dense"}

    def batched(returns: Tensor) -> Tensor:
        return solver(returns, solver_args=tight)[0]

    layer = opaque(batched)
    target = torch.linspace(0.0, 0.4, 5)

    def misfit(fn: Any) -> Any:
        return lambda x: (fn(x[None])[0] - target).square().sum()

    (rows,) = draw([(5,)], 1)
    actual = vmap(grad(misfit(layer)))(rows)
    # The solver stops where its tolerance says, a little differently for a batch.
    each = torch.stack([ordinary_grad(misfit(batched))(row)[0] for row in rows])
    assert_close(actual, each, rtol=1e-6, atol=1e-8)
    assert_close(vmap(grad(misfit(opaque(solver_module(solver, tight)))))(rows), actual)


def solver_module(solver: nn.Module, tight: dict[str, Any]) -> nn.Module:
    """A module that holds the sparse buffers of a convex layer."""

    class Solver(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.solver = solver

        def forward(self, returns: Tensor) -> Tensor:
            return self.solver(returns, solver_args=tight)[0]

    return Solver()
