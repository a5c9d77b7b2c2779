"""Laws of losses and penalties: twins, gradients, zeros, mapping."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

import funcexplain as fe
from tests.helpers import (
    LOSSES,
    PENALTIES,
    assert_close,
    assert_gradient,
    make_target,
    make_x0,
    params,
)

every_loss = pytest.mark.parametrize("name", params(LOSSES))
every_penalty = pytest.mark.parametrize("name", params(PENALTIES))
# numpy's float64 stands beside torch's.
TWINS: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
    "mse": lambda w, t: np.mean((w - t) ** 2),
    "mae": lambda w, t: np.mean(np.abs(w - t)),
    "huber": lambda w, t: np.mean([d * d / 2 if d <= 0.1 else 0.1 * (d - 0.05) for d in np.abs(w - t)]),
    "kl": lambda w, t: np.sum(t * np.log(t / w)),
    "js": lambda w, t: np.sum(t * np.log(2 * t / (t + w))) / 2 + np.sum(w * np.log(2 * w / (t + w))) / 2,
    "cross_entropy": lambda w, t: -np.sum(t * np.log(w)),
    "cosine_distance": lambda w, t: 1 - w @ t / np.sqrt((w @ w) * (t @ t)),
}


@every_loss
def test_loss_equals_its_numpy_twin(name: str) -> None:
    w, t = make_target(seed=4), make_target(seed=5)
    expected = torch.tensor(TWINS[name](w.numpy(), t.numpy()), dtype=torch.float64)
    assert_close(LOSSES[name](w, t), expected)


def test_losses_equal_their_torch_twins() -> None:
    w, t = make_target(seed=4), make_target(seed=5)
    assert_close(fe.losses.mse(w, t), F.mse_loss(w, t))
    assert_close(fe.losses.mae(w, t), F.l1_loss(w, t))
    assert_close(fe.losses.huber(w, t), F.huber_loss(w, t))
    assert_close(fe.losses.kl(w, t), F.kl_div(w.log(), t, reduction="sum"))


@every_loss
def test_gradient_of_a_loss_equals_finite_differences(name: str) -> None:
    w, t = make_target(seed=4), make_target(seed=5)
    assert_gradient(lambda w: LOSSES[name](w, t), w, torch.func.grad(LOSSES[name])(w, t))


@every_loss
def test_a_loss_is_least_at_its_target(name: str) -> None:
    t, loss = make_target(seed=5), LOSSES[name]
    least = loss(t, t)
    if name != "cross_entropy":
        assert abs(float(least)) < 1e-15
    for seed in range(20):
        assert loss(make_target(seed=10 + seed), t) > least


@every_loss
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_loss_is_finite_at_one_hot_allocations_with_a_finite_gradient(
    name: str, dtype: torch.dtype
) -> None:
    one_hot = torch.eye(4, dtype=dtype)
    for w in one_hot:
        for t in one_hot:
            value, grads = LOSSES[name](w, t), torch.func.grad(LOSSES[name])(w, t)
            assert value.dtype == dtype
            assert value.isfinite()
            assert grads.isfinite().all()


@every_loss
def test_a_mapped_loss_equals_a_loop(name: str) -> None:
    ws = torch.stack([make_target(seed=seed) for seed in range(4)])
    t, loss = make_target(seed=5), LOSSES[name]
    expected = torch.stack([loss(w, t) for w in ws])
    assert_close(torch.func.vmap(loss, in_dims=(0, None))(ws, t), expected)


@every_penalty
def test_a_penalty_is_zero_at_the_reference_and_positive_beside_it(name: str) -> None:
    penalty, reference = PENALTIES[name], make_x0()
    assert penalty(reference, reference) == 0
    assert penalty(make_x0(seed=9), reference) > 0


@every_penalty
def test_gradient_of_a_penalty_equals_finite_differences(name: str) -> None:
    penalty, x, reference = PENALTIES[name], make_x0(seed=9), make_x0()
    grads = torch.func.grad(penalty)(x, reference)
    assert_gradient(lambda x: penalty(x, reference), x, grads)


@every_penalty
def test_a_penalty_does_not_depend_on_where_the_reference_is(name: str) -> None:
    penalty, x, reference = PENALTIES[name], make_x0(seed=9), make_x0()
    assert_close(penalty(x + 3.0, reference + 3.0), penalty(x, reference))


@pytest.mark.parametrize("name", params(n for n in PENALTIES if n != "mahalanobis"))
def test_a_penalty_averages_over_assets(name: str) -> None:
    def doubled(x: Tensor) -> Tensor:
        return torch.cat([x, x], dim=-1)

    penalty, x, reference = PENALTIES[name], make_x0(seed=9), make_x0()
    assert_close(penalty(doubled(x), doubled(reference)), penalty(x, reference))


def test_smoothness_charges_spikes_and_not_shifts() -> None:
    reference = make_x0()
    spike = reference.clone()
    spike[0, 2, 0] += 1.0
    steps = reference[:, 1:].numel()
    assert_close(
        fe.penalties.smoothness(spike, reference), torch.tensor(2.0 / steps, dtype=torch.float64)
    )
    assert fe.penalties.smoothness(reference + 1.0, reference) < 1e-30
    assert fe.penalties.smoothness(reference[:, :1], reference[:, :1] + 1.0) == 0
