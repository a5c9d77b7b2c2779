"""The same answers on a GPU, where there is one."""

from typing import Any

import pytest
import torch

import funcexplain as fe
from tests.grids import targets, x0s
from tests.helpers import NETWORKS, TRANSFORMS, assert_close, make_problem, params

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


@pytest.mark.parametrize("name", params(NETWORKS))
def test_every_network_has_the_same_answer(name: str) -> None:
    problem = make_problem(name)
    there = fe.solve(fe.cast(device="cuda")(problem), fe.adam(lr=0.05), max_steps=10)
    assert there.x.is_cuda
    assert_close(
        there.x.cpu(), fe.solve(problem, fe.adam(lr=0.05), max_steps=10).x, rtol=1e-6, atol=1e-8
    )


@pytest.mark.parametrize("wanted", [True, False])
def test_rows_have_the_same_answers(wanted: bool) -> None:
    grid = fe.vmap(make_problem(), x0=x0s(70), target=targets(70))
    settings: dict[str, Any] = {"max_steps": 40, "atol": 0.05, "chunk_size": 32}
    there = fe.solve(fe.cast(device="cuda")(grid), fe.sgd(lr=0.5), compile=wanted, **settings)
    here = fe.solve(grid, fe.sgd(lr=0.5), compile=False, **settings)
    assert_close(there.x.cpu(), here.x, rtol=1e-6, atol=1e-8)
    assert torch.equal(torch.as_tensor(there.status).cpu(), torch.as_tensor(here.status))


def test_one_compiled_question_has_the_same_answer() -> None:
    problem = make_problem()
    there = fe.solve(fe.cast(device="cuda")(problem), fe.adam(lr=0.05), max_steps=23, compile=True)
    here = fe.solve(problem, fe.adam(lr=0.05), max_steps=23)
    assert_close(there.x.cpu(), here.x, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("name", params(TRANSFORMS))
def test_every_transform_has_the_same_answer(name: str) -> None:
    problem = TRANSFORMS[name](make_problem())
    there = fe.solve(fe.cast(device="cuda")(problem), fe.adam(lr=0.05), max_steps=10)
    here = fe.solve(problem, fe.adam(lr=0.05), max_steps=10)
    assert_close(there.x.cpu(), here.x, rtol=1e-6, atol=1e-8)
