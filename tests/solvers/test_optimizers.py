"""Optimizers beside their twins in torch.optim, under transforms, and foreign ones."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torchopt
from torch import Tensor

import funcexplain as fe
from tests.helpers import (
    OPTIMIZERS,
    assert_close,
    assert_same,
    make_network,
    make_problem,
    make_target,
    make_x0,
    params,
)

TWINS: dict[str, tuple[fe.Optimizer, Callable[[list[Tensor]], torch.optim.Optimizer]]] = {
    "adam": (fe.adam(), lambda p: torch.optim.Adam(p, lr=1e-1)),
    "adam_small_lr": (fe.adam(lr=1e-3), lambda p: torch.optim.Adam(p, lr=1e-3)),
    "adam_betas": (
        fe.adam(lr=0.05, betas=(0.5, 0.99)),
        lambda p: torch.optim.Adam(p, lr=0.05, betas=(0.5, 0.99)),
    ),
    "adam_no_momentum": (
        fe.adam(lr=0.05, betas=(0.0, 0.9), eps=1e-4),
        lambda p: torch.optim.Adam(p, lr=0.05, betas=(0.0, 0.9), eps=1e-4),
    ),
    "sgd": (fe.sgd(lr=0.01), lambda p: torch.optim.SGD(p, lr=0.01)),
    "sgd_momentum": (
        fe.sgd(lr=0.002, momentum=0.9),
        lambda p: torch.optim.SGD(p, lr=0.002, momentum=0.9),
    ),
}
every_twin = pytest.mark.parametrize("name", params(TWINS))


def valley(x: Tensor) -> Tensor:
    """A curved valley with very different slopes; gradients change sign along the way."""
    scale = torch.logspace(-3, 1, x.numel(), dtype=x.dtype)
    return (scale * (x - torch.sin(3 * x)) ** 2).sum()


@every_twin
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_steps_equal_torch_optim_on_the_same_gradients(name: str, dtype: torch.dtype) -> None:
    """Displacements from the common start are compared, so that standing still cannot pass."""
    optimizer, make_twin = TWINS[name]
    start = torch.linspace(-2, 2, 12, dtype=dtype)
    start[5] = 0.0
    x = start.clone().requires_grad_()
    twin, z = make_twin([x]), start.clone()
    state = optimizer.init(z)
    for _ in range(200):
        twin.zero_grad()
        valley(x).backward()
        assert x.grad is not None
        # The twin's gradient drives both: what is compared is the update rule, not a chaotic path.
        updates, state = optimizer.update(x.grad.clone(), state, z)
        z = z + updates
        twin.step()
    moved = x.detach() - start
    assert moved.abs().max() > 0.1
    rounding = {torch.float32: 1e-6, torch.float64: 1e-13}[dtype]
    assert_close(z - start, moved, rtol=rounding, atol=rounding)


@pytest.mark.parametrize("name", params(["adam", "sgd"]))
def test_a_search_equals_torch_optim(name: str) -> None:
    network, target = make_network("mlp_tanh"), make_target()
    optimizer, make_twin = TWINS[name]
    problem = make_problem("mlp_tanh", mask=None)
    solution = fe.solve(problem, optimizer, max_steps=150)
    x = make_x0().requires_grad_()
    twin = make_twin([x])
    history = []
    for _ in range(150):
        twin.zero_grad()
        loss = fe.losses.mse(network.eval()(x[None])[0], target)
        loss.backward()
        history.append(loss.detach())
        twin.step()
    assert_close(solution.x - make_x0(), x.detach() - make_x0(), rtol=1e-8, atol=1e-10)
    assert_close(solution.history, torch.stack(history), rtol=1e-8, atol=1e-14)


@pytest.mark.parametrize("name", params(OPTIMIZERS))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dtype_and_shape_are_kept_and_nothing_is_written_to(name: str, dtype: torch.dtype) -> None:
    optimizer, z, grads = OPTIMIZERS[name](), make_x0(dtype), make_x0(dtype, seed=9)
    state = optimizer.init(z)
    before = (z.clone(), grads.clone(), [leaf.clone() for leaf in state])
    updates, after = optimizer.update(grads, state, z)
    assert updates.dtype == dtype
    assert updates.shape == z.shape
    assert [leaf.dtype for leaf in after] == [leaf.dtype for leaf in state]
    assert_same((z, grads, list(state)), before)


@pytest.mark.parametrize("name", params(OPTIMIZERS))
def test_a_mapped_optimizer_equals_a_loop(name: str) -> None:
    optimizer = OPTIMIZERS[name]()

    def three_updates(z: Tensor) -> Tensor:
        state = optimizer.init(z)
        for _ in range(3):
            updates, state = optimizer.update(torch.cos(z), state, z)
            z = z + updates
        return z

    zs = torch.stack([make_x0(seed=seed) for seed in range(4)])
    assert_close(torch.func.vmap(three_updates)(zs), torch.stack([three_updates(z) for z in zs]))


def test_adam_has_finite_derivatives_where_gradients_are_zero() -> None:
    optimizer, z = fe.adam(), torch.zeros(3, dtype=torch.float64)

    def moved(grads: Tensor) -> Tensor:
        return optimizer.update(grads, optimizer.init(z), z)[0]

    jacobian = torch.func.jacrev(moved)(torch.tensor([0.0, 1.0, -2.0], dtype=torch.float64))
    assert jacobian.isfinite().all()


@pytest.mark.parametrize(
    ("foreign", "own"),
    [
        pytest.param(torchopt.adam(lr=0.05), fe.adam(lr=0.05), id="adam"),
        pytest.param(torchopt.sgd(lr=0.5), fe.sgd(lr=0.5), id="sgd"),
        pytest.param(torchopt.sgd(lr=0.1, momentum=0.9), fe.sgd(lr=0.1, momentum=0.9), id="momentum"),
    ],
)
def test_torchopt_optimizers_pass_through(foreign: Any, own: fe.Optimizer) -> None:
    problem = make_problem()
    answers = [fe.solve(problem, method, max_steps=50) for method in (foreign, own)]
    # torchopt corrects its bias in float32.
    assert_close(answers[0].x - make_x0(), answers[1].x - make_x0(), rtol=1e-3, atol=1e-4)
    assert answers[0].loss < answers[0].history[0]


@pytest.mark.filterwarnings("ignore:There is a performance drop")
@pytest.mark.parametrize("make", [torchopt.adamw, torchopt.rmsprop, torchopt.adagrad])
def test_torchopt_transformations_lower_the_loss_and_can_be_mapped(make: Any) -> None:
    problem = make_problem()
    init, step = fe.make_step(problem, make(lr=0.01))

    def last(x0: Tensor) -> Tensor:
        return fe.run(init, step, {**problem.args, "x0": x0}, num_steps=20)[1].loss

    losses = torch.func.vmap(last)(torch.stack([make_x0(), make_x0(seed=5)]))
    assert (losses[:, -1] < losses[:, 0]).all()
    assert_close(losses[0], last(make_x0()), rtol=1e-10)


TORCHOPT: dict[str, Callable[[], Any]] = {
    "adam": lambda: torchopt.adam(lr=0.05),
    "adamw": lambda: torchopt.adamw(lr=0.05, weight_decay=0.1),
    "adamax": lambda: torchopt.adamax(lr=0.05),
    "adagrad": lambda: torchopt.adagrad(lr=0.05),
    "adadelta": lambda: torchopt.adadelta(lr=0.5),
    "radam": lambda: torchopt.radam(lr=0.05),
    "rmsprop": lambda: torchopt.rmsprop(lr=0.05),
    "sgd": lambda: torchopt.sgd(lr=0.1, momentum=0.9),
    "clipped": lambda: torchopt.chain(torchopt.clip_grad_norm(0.01), torchopt.adam(lr=0.05)),
}


@pytest.mark.filterwarnings("ignore:There is a performance drop")
@pytest.mark.parametrize("name", params(TORCHOPT))
def test_torchopt_optimizers_equal_a_loop_of_torchopt_alone_and_in_a_grid(name: str) -> None:
    problem, starts = make_problem(mask=None), torch.stack([make_x0(), make_x0(seed=5)])
    grad = torch.func.grad(lambda x: problem.objective(x, problem.args)[0])

    def looped(x0: Tensor) -> Tensor:
        x, foreign = x0, TORCHOPT[name]()
        state = foreign.init(x)
        for _ in range(8):
            updates, state = foreign.update(grad(x), state, params=x, inplace=False)
            x = x + updates
        return x

    expected = torch.stack([looped(x0) for x0 in starts])
    assert (expected - starts).abs().max() > 1e-3
    alone = fe.solve(problem, TORCHOPT[name](), max_steps=8)
    assert_close(alone.x - starts[0], expected[0] - starts[0], rtol=1e-6, atol=1e-9)
    if name not in ("radam", "clipped"):  # they branch in Python on what is mapped
        grid = fe.solve(fe.vmap(problem, x0=starts), TORCHOPT[name](), max_steps=8)
        # A count that is mapped corrects adamax's bias in float32.
        assert_close(grid.x - starts, expected - starts, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("keep", ["last", "best"])
@pytest.mark.parametrize("chunk_size", [None, 2])
def test_states_may_hold_anything_but_tensors(keep: Any, chunk_size: int | None) -> None:
    def init(z: Tensor) -> dict[str, Any]:
        return {"count": 0, "lr": 0.5, "nothing": None, "fast": True, "list": [None, (1, 2.0)]}

    def update(grads: Tensor, state: dict[str, Any], z: Tensor) -> tuple[Tensor, dict[str, Any]]:
        lr = state["lr"] * (1.0 + 0.0 * state["count"])
        assert state["nothing"] is None
        return -lr * grads, {**state, "count": state["count"] + 1, "lr": state["lr"] * 0.9}

    def decaying(z: Tensor) -> Tensor:
        return torch.tensor(0.5, dtype=torch.float64)

    def decay(grads: Tensor, lr: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        return -lr * grads, lr * 0.9

    problem = make_problem()
    grid = fe.vmap(problem, x0=torch.stack([make_x0(seed=seed) for seed in range(3)]))
    for question in (problem, grid):
        chunks: dict[str, Any] = {} if question is problem else {"chunk_size": chunk_size}
        found, expected = (
            fe.solve(question, pair, max_steps=5, keep=keep, atol=1e-9, **chunks)
            for pair in ((init, update), (decaying, decay))
        )
        assert_close(found.x, expected.x)
    stateless = fe.solve(grid, (lambda z: None, lambda g, state, z: (-0.5 * g, state)), max_steps=5)
    assert_close(stateless.x, fe.solve(grid, fe.sgd(lr=0.5), max_steps=5).x)


def test_without_a_transform_an_optimizer_sees_its_own_numbers() -> None:
    seen: list[Any] = []

    def update(grads: Tensor, state: Any, z: Tensor) -> tuple[Tensor, Any]:
        seen.append(state)
        return -grads, state

    state: Any = (3, 0.25, True, None, [])
    fe.solve(make_problem(), (lambda z: state, update), max_steps=2)
    assert seen == [state, state, state][: len(seen)]
    assert [type(leaf) for leaf in seen[-1]] == [int, float, bool, type(None), list]


def test_any_pair_of_functions_is_an_optimizer() -> None:
    def init(z: Tensor) -> tuple[()]:
        return ()

    def update(grads: Tensor, state: tuple[()], z: Tensor) -> tuple[Tensor, tuple[()]]:
        return -0.5 * grads, state

    problem = make_problem()
    answers = [fe.solve(problem, method, max_steps=5) for method in ((init, update), fe.sgd(lr=0.5))]
    assert_same(answers[0], answers[1])
