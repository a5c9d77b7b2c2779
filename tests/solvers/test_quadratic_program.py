"""The quadratic program of a step: optimality, curvature from earlier steps, rows."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from funcexplain.solvers.quadratic_program import solve_dual, solve_program
from tests.helpers import assert_close

F64 = torch.float64


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


@pytest.mark.parametrize("dependent", [False, True])
@pytest.mark.parametrize("count", [1, 2, 7])
def test_multipliers_hold_values_at_their_bounds(count: int, dependent: bool) -> None:
    jacobian, c = draw(9, count, 12, seed=count), 3.0 * draw(9, count, seed=20 + count)
    if dependent and count > 1:  # as the logits of weights that sum to one
        jacobian[:, -1] = -jacobian[:, :-1].sum(1)
        c[:, -1] = -c[:, :-1].sum(1)
    gram, upper = jacobian @ jacobian.mT, torch.full_like(c, 0.1)
    rho = torch.full((9,), 1e3, dtype=F64)
    found = solve_dual(gram, c, -upper, upper, rho)
    values = c - (gram @ found[..., None])[..., 0]
    assert (values.abs() <= 0.1 + 1e-6).all()
    held = found.abs() > 1e-6
    assert_close(values[held], 0.1 * found[held].sign(), rtol=0.0, atol=1e-6)


def test_no_multiplier_exceeds_its_maximum() -> None:
    one = torch.ones(3, dtype=F64)
    found = solve_dual(torch.eye(3, dtype=F64), 5.0 * one, -one, one, 2.0 * one[0])
    assert_close(found, 2.0 * one)


@pytest.mark.parametrize("damping", [0.0, 0.7])
def test_the_step_is_that_of_the_dense_bfgs_matrix(damping: float) -> None:
    size, memory, count = 10, 4, 3
    half = draw(size, size, seed=3)
    curvature = torch.eye(size, dtype=F64) + half @ half.mT / size
    steps = draw(memory, size, seed=4)
    steps[0] = 0.0  # none was taken yet
    changes = steps @ curvature
    matrix = (1.0 + damping) * torch.eye(size, dtype=F64)
    for s, y in zip(steps[1:], (changes + damping * steps)[1:], strict=True):
        bs = matrix @ s
        matrix = matrix - torch.outer(bs, bs) / (s @ bs) + torch.outer(y, y) / (y @ s)
    rows, factors, values = draw(1 + count, size, seed=5), draw(count, seed=6).exp(), draw(count, seed=7)
    far, scalar = torch.full_like(values, torch.inf), torch.tensor(damping, dtype=F64)
    pairs = torch.cat([steps, changes])

    def solve(lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
        return solve_program(rows, factors, pairs, scalar, lower, upper, scalar + 1e6, values)

    step, multipliers = solve(-far, far)
    assert_close(step, -torch.linalg.solve(matrix, rows[0]))
    assert (multipliers == 0.0).all()
    zero = torch.zeros_like(values)
    step, multipliers = solve(zero, zero)
    jacobian = factors[:, None] * rows[1:]
    assert_close(values + jacobian @ step, zero, rtol=0.0, atol=1e-9)
    assert_close(matrix @ step + rows[0] + multipliers @ jacobian, torch.zeros_like(step), atol=1e-8)


def test_rows_are_as_if_alone() -> None:
    rows, pairs, values = draw(5, 4, 8), 1e-3 * draw(5, 2, 8), draw(5, 3)
    pairs[:, 1] = 2.0 * pairs[:, 0]
    factors, bounds, rho = (
        torch.ones_like(values),
        (values - 0.5, values - 0.1),
        values[:, 0].exp() * 9.0,
    )
    given = (rows, factors, pairs, values[:, 0].abs(), *bounds, rho, values)
    together = torch.func.vmap(solve_program)(*given)
    for row in range(5):
        alone = solve_program(*[each[row] for each in given])
        for ours, theirs in zip(alone, together, strict=True):
            assert_close(ours, theirs[row], rtol=1e-9, atol=1e-12)
