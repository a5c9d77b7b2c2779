"""What a notebook shows: tables of every noun, and pictures as methods."""

from typing import Any

import pytest
import torch

import funcexplain as fe
from tests.grids import targets
from tests.helpers import make_problem


def grid() -> tuple[fe.Solution, fe.Problem]:
    problem = fe.vmap(make_problem(mask=None), target=targets(3))
    return fe.solve(problem, fe.levenberg_marquardt(), max_steps=20, atol=1e-3), problem


def shown(value: Any) -> str:
    text = value._repr_html_()
    assert text.count("<table>") == text.count("</table>") == 1
    assert text.count("<tr>") == text.count("</tr>")
    return text


def test_nouns_are_tables() -> None:
    solution, problem = grid()
    assert "3 rows of target" in shown(problem)
    assert "<b>" not in shown(make_problem(assets=["<b>", *"BCDE"]))
    metrics = fe.evaluate(solution, problem, scale=1.0)
    assert all(name in shown(metrics) for name in metrics.names)
    assert "median" in shown(metrics)
    assert "median" not in shown(fe.evaluate(solution[0], problem[0], scale=1.0))
    assert "<td>lr</td><td>0.5</td>" in shown(fe.adam(lr=0.5))
    shown(fe.as_optimizer((lambda z: (), lambda g, s, z: (-g, s))))
    one = torch.tensor([0.25, torch.nan], dtype=torch.float64)
    status = torch.tensor([0, 2])
    chance = fe.Probability(
        one, one, one, one, status, status, one[:, None], status, ("subset",) * 2, ("",) * 2, ("date",)
    )
    assert "0.25" in shown(chance)
    assert "subset" in shown(chance[0])


def test_pictures_are_methods() -> None:
    solution, problem = grid()
    plots = fe.plot(solution, problem, assets=list("ABCDE"), scale=2.0)
    for name in ("weights", "changes", "cumulative", "history"):
        assert name in repr(plots)
        ax = getattr(plots, name)()
        assert getattr(plots, name)(ax=ax) is ax
    best = int(torch.where(solution.hit, solution.loss, torch.inf).argmin())
    alone = fe.plot(solution[best], problem[best]).cumulative()
    one, other = (
        [bar.get_height() for bar in ax.patches]  # type: ignore[attr-defined]
        for ax in (plots.cumulative(), alone)
    )
    assert one == pytest.approx(other)
    with pytest.raises(ValueError, match="plot: solution must have the rows"):
        fe.plot(solution, problem[0])
    with pytest.raises(ValueError, match="plot: assets"):
        fe.plot(solution, problem, assets=["A"])
