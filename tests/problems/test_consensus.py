"""Laws of `consensus`: one window at which all models of an ensemble hold the target."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import funcexplain as fe
from tests.grids import F64, assert_rows_equal_alone, models, numbers, row_indices, targets, x0s
from tests.helpers import (
    ASSETS,
    SIZE,
    assert_close,
    assert_same,
    make_network,
    make_problem,
    make_target,
    make_x0,
)


def gentle() -> fe.Optimizer:
    return fe.sgd(lr=0.5)


def test_a_consensus_of_one_model_is_that_models_problem() -> None:
    network = make_network("conv_batch_norm")
    plain = make_problem(network)
    folded = fe.consensus(fe.vmap(plain, params=fe.stack([network])[1]))
    assert folded.shape == ()
    for settings in ({"max_steps": 8}, {"max_steps": 300, "atol": 1e-2}):
        one, other = fe.solve(plain, gentle(), **settings), fe.solve(folded, gentle(), **settings)
        assert other.weights.shape == (1, 5)
        assert_close((one.x, one.loss, one.history), (other.x, other.loss, other.history))
        assert (one.status, int(one.num_steps)) == (other.status, int(other.num_steps))


def test_a_consensus_minimizes_the_mean_of_the_losses() -> None:
    def loss_and_slope(problem: fe.Problem) -> tuple[Tensor, Tensor]:
        def value(x: Tensor) -> Tensor:
            return problem.objective(x, problem.args)[0]

        return value(make_x0()), torch.func.grad(value)(make_x0())

    own = targets(3)
    for loss in (fe.losses.mse, fe.losses.kl):
        problem = make_problem(loss=loss)
        each = fe.vmap(problem, params=models(3))
        several = fe.vmap(problem, params=models(3), target=own)
        from_stack = make_problem((problem.apply, models(3)), loss=loss)
        for grid, folded in [
            (each, fe.consensus(each)),
            (several, fe.consensus(several)),
            (each, fe.consensus(from_stack)),
        ]:
            alone = [loss_and_slope(grid[row]) for row in range(3)]
            mean = tuple(torch.stack(part).mean(0) for part in zip(*alone, strict=True))
            assert_close(loss_and_slope(folded), mean)
            weights = folded.objective(make_x0(), folded.args)[1]
            assert_close(
                weights, torch.stack([grid[m].objective(make_x0(), grid[m].args)[1] for m in range(3)])
            )


def test_a_consensus_is_a_hit_where_every_model_is_within_atol() -> None:
    folded = fe.consensus(fe.vmap(make_problem(), params=models(2)))
    seen: list[float] = []
    solution = fe.solve(
        folded,
        fe.adam(lr=0.05),
        max_steps=400,
        atol=2e-2,
        callback=lambda s, i: seen.append(float(i.error)),
    )
    assert solution.status is fe.Status.HIT
    assert (solution.weights - make_target()).abs().max() <= 2e-2
    assert all(error > 2e-2 for error in seen[:-1])
    assert solution.num_steps > 1


@pytest.mark.parametrize(
    "make",
    [
        lambda p: fe.vmap(fe.vmap(p, target=targets(2)), params=models(3)),
        lambda p: fe.vmap(fe.vmap(p, params=models(3)), target=targets(2)),
        lambda p: fe.vmap(
            fe.vmap(p, params=models(3), target=targets(3)), target=targets(6).view(2, 3, 5)
        ),
        lambda p: fe.vmap(
            fe.vmap(p, target=targets(2)), params=models(3), target=targets(6).view(3, 2, 5)
        ),
        lambda p: fe.vmap(
            fe.vmap(fe.vmap(p, x0=x0s(2)), params=models(3)), proximity=numbers(2, F64, 0.0, 1.0)
        ),
    ],
)
def test_a_consensus_is_mapped_as_any_problem(make: Callable[[fe.Problem], fe.Problem]) -> None:
    problem = fe.penalize(fe.penalties.l2, strength=0.1, name="proximity")(make_problem())
    grid = make(problem)
    place = [dim.name for dim in grid.dims].index("params")
    folded = fe.consensus(grid)
    assert len(folded.dims) == len(grid.dims) - 1
    solution = assert_rows_equal_alone(folded, gentle, max_steps=6, chunk_size=2)
    assert solution.weights.shape == (*folded.shape, 3, 5)
    for index in row_indices(folded):
        for model in range(3):  # which target is whose
            own = grid[(*index[:place], model, *index[place:])]
            assert_same(folded[index].args["target"][model], own.args["target"])
    several = torch.stack([folded.args["target"], 0.5 * folded.args["target"]])
    assert_rows_equal_alone(fe.vmap(folded, target=several), gentle, max_steps=2)


def test_a_consensus_refuses_what_is_no_ensemble() -> None:
    several = fe.vmap(
        fe.vmap(make_problem(), params=models(2)),
        params={k: torch.stack([v, v]) for k, v in models(2).items()},
    )
    for problem, message in [
        (make_problem(), "params must be stacked, one set per model, got those of one network"),
        (
            fe.vmap(make_problem(), params=models(2), x0=x0s(2)),
            r"only target may vary together.*\['params', 'x0'\]",
        ),
        (fe.vmap(make_problem(), params=models(2))[:0], "at least one model, got an empty stack"),
        (several, "params must vary along one row dimension, got several"),
    ]:
        with pytest.raises(ValueError, match=f"consensus: .*{message}"):
            fe.consensus(problem)
    with pytest.raises(TypeError, match="consensus: problem must be a Problem, got dict"):
        fe.consensus({})  # type: ignore[arg-type]


def test_a_consensus_of_models_in_training_mode_follows_the_problems_seed() -> None:
    pairs = [fe.functionalize(make_network("mlp_tanh"), train=True) for _ in range(2)]
    # The models' params are mapped; the one seed among them must not be.
    stacked = {name: torch.stack([pair[1][name] for pair in pairs]) for name in pairs[0][1]}
    grid = fe.vmap(make_problem(pairs[0]), params=stacked)
    alone = fe.solve(grid[0], gentle(), max_steps=3)
    folded = fe.solve(fe.consensus(grid), gentle(), max_steps=3)  # twice the same model
    assert_close((folded.x, folded.loss), (alone.x, alone.loss))


class Branches(nn.Module):
    """A model with an ``if``, which vmap cannot map; its twin has none."""

    def __init__(self, seed: int, branch: bool = True) -> None:
        super().__init__()
        self.branch, self.head = branch, nn.Linear(SIZE, ASSETS).double()
        with torch.no_grad():
            for parameter in self.parameters():
                generator = torch.Generator().manual_seed(seed)
                parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=F64))

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.head(torch.tanh(x.flatten(1)))
        if self.branch:
            return torch.softmax(hidden if hidden.sum() > 0 else -hidden, -1)
        return torch.softmax(hidden * hidden.sum(1, keepdim=True).detach().sign(), -1)


def test_models_that_cannot_be_mapped_are_called_one_by_one() -> None:
    found = []
    for branch in (True, False):
        models = [Branches(seed, branch) for seed in (1, 2)]
        ensemble = fe.vmap(make_problem(models[0]), params=fe.stack(models)[1])
        found.append(fe.solve(fe.consensus(ensemble), fe.sgd(lr=0.1), max_steps=5))
    assert_close((found[0].x, found[0].weights), (found[1].x, found[1].weights))
