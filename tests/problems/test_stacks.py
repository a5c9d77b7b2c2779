"""Stacks to map over, against plain restatements."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import funcexplain as fe
from tests.grids import F64
from tests.helpers import ASSETS, SHAPE, assert_close, assert_same, make_problem, make_x0

DTYPES = [torch.float64, torch.float32, torch.bfloat16]


def test_one_hot_targets_are_the_rows_of_the_identity() -> None:
    assert_same(fe.one_hot_targets(4), torch.eye(4))
    assert_same(fe.one_hot_targets(ASSETS, dtype=F64, device="cpu"), torch.eye(ASSETS, dtype=F64))
    grid = fe.vmap(make_problem(), target=fe.one_hot_targets(ASSETS, dtype=F64))
    first, last = (fe.solve(grid, fe.adam(lr=0.1), max_steps=steps) for steps in (0, 60))
    own = last.weights.diagonal()
    assert (own > first.weights.diagonal()).all()


def test_asset_masks_free_one_asset_each() -> None:
    masks = fe.asset_masks(make_x0())
    assert masks.shape == (ASSETS, *SHAPE)
    assert masks.dtype is torch.bool
    for asset, mask in enumerate(masks):
        assert mask[..., asset].all()
        assert mask.sum() == mask[..., asset].numel()
    solution = fe.solve(fe.vmap(fe.freeze(make_problem()), mask=masks), max_steps=3)
    changed = solution.x != make_x0()
    assert not (changed & ~masks).any()
    assert changed.flatten(1).any(1).all()
    masks[0] = False  # memory of its own
    assert masks[1].any()


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_start_of_a_seed_is_the_same_in_every_stack(dtype: torch.dtype) -> None:
    x0, before = make_x0(dtype), torch.get_rng_state()
    starts = fe.starts(x0, scale=0.2, seeds=torch.tensor([3, 0, 7, 3]))
    assert starts.shape == (4, *SHAPE)
    assert starts.dtype is dtype
    assert_same(starts[0], starts[3])
    for place, seed in enumerate((3, 0, 7)):
        assert_same(fe.starts(x0, scale=0.2, seeds=torch.tensor([seed]))[0], starts[place])
    assert_same(fe.starts(x0, scale=0.0, seeds=torch.arange(2)), torch.stack([x0, x0]))
    assert fe.starts(x0, scale=0.2, seeds=torch.arange(0)).shape == (0, *SHAPE)
    assert torch.equal(before, torch.get_rng_state())


def test_starts_are_those_of_jitter_with_the_scale_asked_for() -> None:
    x0, seeds = make_x0(), torch.arange(200)
    for scale in (0.2, torch.tensor([0.1, 3.0], dtype=F64).view(2, 1, 1)):
        starts = fe.starts(x0, scale=scale, seeds=seeds)
        grid = fe.vmap(fe.jitter(scale)(make_problem()), seed=seeds)
        assert_close(fe.solve(grid, max_steps=0).x, starts)
        noise = (starts - x0) / scale
        assert abs(float(noise.mean())) < 4 / noise.numel() ** 0.5
        assert abs(float(noise.std()) - 1) < 4 / noise.numel() ** 0.5


@pytest.mark.parametrize(("days", "lookback"), [(9, 4), (9, 1), (9, 9)])
def test_windows_are_slices_oldest_first(days: int, lookback: int) -> None:
    history = torch.randn(2, days, 5, dtype=F64, generator=torch.Generator().manual_seed(0))
    table = history.numpy()
    twin = np.stack([table[:, day : day + lookback] for day in range(days - lookback + 1)])
    windows = fe.windows(history, lookback)
    assert_same(windows, torch.from_numpy(twin))
    assert windows.is_contiguous()
    windows.zero_()
    assert history.any()


def test_windows_are_searched_from_day_to_day() -> None:
    windows = fe.windows(torch.randn(2, 9, 5, dtype=F64), lookback=6)
    grid = fe.vmap(fe.freeze(make_problem()), x0=windows, reference=windows)
    solution = fe.solve(grid, max_steps=2)
    frozen = ~make_problem().args["mask"]
    assert_same(solution.x[:, frozen], windows[:, frozen])


X0 = make_x0()


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: fe.one_hot_targets(0), ValueError, "n_assets must be >= 1, got 0"),
        (lambda: fe.one_hot_targets(2.0), TypeError, "n_assets must be an int"),  # type: ignore[arg-type]
        (lambda: fe.one_hot_targets(2, dtype=torch.int64), TypeError, "dtype must be .*torch.int64"),
        (lambda: fe.asset_masks(X0[0]), ValueError, r"x0 must be one window.*got \(6, 5\)"),
        (lambda: fe.asset_masks(X0.numpy()), TypeError, "x0 must be a torch.Tensor, got ndarray"),  # type: ignore[arg-type]
        (lambda: fe.starts(X0[None], scale=1.0, seeds=torch.arange(2)), ValueError, "x0 must be one"),
        (lambda: fe.starts(X0, scale=-1.0, seeds=torch.arange(2)), ValueError, "scale .*got -1.0"),
        (
            lambda: fe.starts(X0, scale=-X0.abs(), seeds=torch.arange(2)),
            ValueError,
            "scale must be >= 0",
        ),
        (lambda: fe.starts(X0, scale=X0[0, 0, :3], seeds=torch.arange(2)), ValueError, r"got \(3,\)"),
        (lambda: fe.starts(X0, scale=X0.float(), seeds=torch.arange(2)), TypeError, "got torch.float32"),
        (lambda: fe.starts(X0, scale=1.0, seeds=torch.rand(2)), TypeError, "seeds .*got torch.float32"),
        (lambda: fe.starts(X0, scale=1.0, seeds=[1, 2]), TypeError, "seeds must be .*got list"),  # type: ignore[arg-type]
        (lambda: fe.starts(X0, scale=1.0, seeds=torch.tensor(1)), ValueError, r"seeds .*got \(\)"),
        (lambda: fe.windows(X0, 7), ValueError, r"at least lookback days.*got \(2, 6, 5\) and 7"),
        (lambda: fe.windows(X0, 0), ValueError, "lookback must be >= 1"),
        (lambda: fe.windows(X0[0], 2), ValueError, "history must have shape"),
        (lambda: fe.windows(X0 / 0, 2), ValueError, "history must be finite"),
        (lambda: fe.windows(X0.long(), 2), TypeError, "history must be floating"),
        (lambda: fe.windows(X0, 2.0), TypeError, "lookback must be an int"),  # type: ignore[arg-type]
    ],
)
def test_what_makes_no_stack_is_refused(call: object, error: type[Exception], message: str) -> None:
    assert callable(call)
    with pytest.raises(error, match=message):
        call()
