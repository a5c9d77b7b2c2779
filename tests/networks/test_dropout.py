"""Dropout from a seed: one seed, one thinned network, alone and mapped."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

import funcexplain as fe
from funcexplain.networks.dropout import SeededDropout
from tests.helpers import (
    Attention,
    assert_close,
    assert_gradient,
    assert_same,
    make_network,
    make_problem,
    make_target,
    make_x0,
)

FUNCTIONS: dict[str, Callable[..., Tensor]] = {
    "dropout": F.dropout,
    "dropout1d": F.dropout1d,
    "dropout2d": F.dropout2d,
    "dropout3d": F.dropout3d,
}
SHAPES = {
    "dropout": (50, 40),
    "dropout1d": (50, 40, 3),
    "dropout2d": (50, 40, 3, 2),
    "dropout3d": (50, 40, 3, 2, 2),
}


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("p", [0.0, 0.25, 0.8, 1.0])
def test_a_seeded_dropout_has_the_law_of_torchs(name: str, p: float) -> None:
    x = torch.ones(SHAPES[name], dtype=torch.float64)
    before = torch.get_rng_state()
    with SeededDropout(torch.tensor(3)):
        y = FUNCTIONS[name](x, p, training=True)
        assert_same(FUNCTIONS[name](x, p, training=False), x)
    assert torch.equal(before, torch.get_rng_state())
    flat = y.reshape(*y.shape[:2], -1)
    assert (flat == flat[..., :1]).all()  # a feature is kept or dropped as a whole
    kept = flat[..., 0] != 0
    if p < 1.0:
        assert_close(y[y != 0], torch.full_like(y[y != 0], 1 / (1 - p)))
    count = kept.numel()
    assert abs(float(kept.double().mean()) - (1 - p)) <= 4 * (p * (1 - p) / count) ** 0.5


def test_calls_and_seeds_draw_independent_masks() -> None:
    def masks(seed: int) -> list[Tensor]:
        with SeededDropout(torch.tensor(seed)):
            return [F.dropout(torch.ones(10_000), 0.5) > 0 for _ in range(2)]

    drawn = [*masks(0), *masks(1)]
    for i, one in enumerate(drawn):
        for other in drawn[:i]:
            assert abs(float((one == other).double().mean()) - 0.5) < 0.02


@pytest.mark.parametrize("make", [lambda: make_network("mlp_tanh"), lambda: Attention().double()])
def test_a_network_in_training_mode_is_a_pure_function_of_its_seed(
    make: Callable[[], nn.Module],
) -> None:
    apply, p = fe.functionalize(make(), train=True)
    x, before = make_x0(), torch.get_rng_state()

    def weights(seed: Tensor) -> Tensor:
        return apply({**p, "dropout.seed": seed}, x)

    seeds = torch.arange(4)
    alone = torch.stack([weights(seed) for seed in seeds])
    assert_same(weights(seeds[2]), alone[2])
    assert_close(torch.func.vmap(weights)(seeds), alone)
    assert len({tuple(row.tolist()) for row in alone}) == 4
    assert torch.equal(before, torch.get_rng_state())

    def loss(x: Tensor) -> Tensor:
        return fe.losses.mse(apply(p, x), make_target())

    assert_gradient(loss, x, torch.func.grad(loss)(x))


def test_a_search_in_training_mode_follows_the_problems_seed() -> None:
    pair = fe.functionalize(make_network("mlp_tanh"), train=True)
    before = torch.get_rng_state()
    answers = [fe.solve(make_problem(pair, seed=seed), max_steps=5) for seed in (1, 1, 2)]
    assert_same(answers[0], answers[1])
    assert not torch.equal(answers[0].x, answers[2].x)
    assert torch.equal(before, torch.get_rng_state())
    problem = make_problem(pair)
    init, step = fe.make_step(problem)

    def search(seed: Tensor) -> Tensor:
        return fe.run(init, step, {**problem.args, "seed": seed}, num_steps=5)[0].z

    mapped = torch.func.vmap(search)(torch.tensor([1, 2]))
    assert_close(mapped, torch.stack([answers[0].x, answers[2].x]), rtol=1e-9, atol=1e-11)
    assert fe.check_gradient(problem).ok


@pytest.mark.filterwarnings("ignore:RNN module weights")
@pytest.mark.parametrize("cell", [nn.LSTM, nn.GRU, nn.RNN])
def test_dropout_inside_a_recurrent_kernel_is_refused(cell: type[nn.RNNBase]) -> None:
    class Network(nn.Module):
        def __init__(self, dropout: float) -> None:
            super().__init__()
            self.cell = cell(10, 5, 2, dropout=dropout, batch_first=True)  # type: ignore[arg-type]

        def forward(self, x: Tensor) -> Tensor:
            return self.cell(x.permute(0, 2, 1, 3).flatten(2))[0].mean(1)

    for dropout, train in ((0.5, False), (0.0, True), (0.5, True)):
        apply, p = fe.functionalize(Network(dropout), train=train)
        if dropout > 0 and train:
            with pytest.raises(RuntimeError, match="in training mode draws from torch's global"):
                apply(p, make_x0(torch.float32))
        else:
            assert apply(p, make_x0(torch.float32)).shape == (5,)


def test_dropout_inside_an_opaque_part_is_refused_in_training_mode() -> None:
    body = nn.Sequential(nn.Flatten(), nn.Linear(60, 5), nn.Dropout(0.5), nn.Softmax(-1))
    network = fe.opaque(body, 0, 0)
    with pytest.raises(ValueError, match=r"is opaque and holds a Dropout.*train=False"):
        fe.functionalize(network, train=True)
    apply, p = fe.functionalize(network)
    assert apply(p, make_x0(torch.float32)).shape == (5,)


def test_noise_that_no_seed_reaches_is_refused() -> None:
    network = nn.Sequential(nn.Flatten(), nn.AlphaDropout(0.5), nn.Linear(60, 5))
    apply, p = fe.functionalize(network, train=True)
    with pytest.raises(RuntimeError, match=r"alpha_dropout in training mode.*train=False"):
        apply(p, make_x0(torch.float32))
    apply, p = fe.functionalize(network)
    assert apply(p, make_x0(torch.float32)).shape == (5,)
