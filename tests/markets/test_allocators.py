"""Allocators: proper weights, scaled channels, and a training without side effects."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from funcexplain.markets.allocators import ConvAllocator, train_allocator
from funcexplain.markets.features import forward_returns, windows
from funcexplain.markets.prices import ecb

CHANNELS, LOOKBACK, ASSETS = 3, 8, 5


def made_windows(num: int = 64, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    scale = torch.tensor([0.01, 0.05, 0.002]).view(-1, 1, 1)
    return scale * torch.randn(num, CHANNELS, LOOKBACK, ASSETS, generator=generator)


def made_returns(num: int = 64, seed: int = 1) -> Tensor:
    return 0.01 * torch.randn(num, ASSETS, generator=torch.Generator().manual_seed(seed))


def effective_number(weights: Tensor) -> Tensor:
    """Number of equally held assets that would have the same Herfindahl index."""
    return 1.0 / weights.square().sum(dim=-1)


def trained(**settings: object) -> ConvAllocator:
    options: dict[str, Any] = {"num_steps": 5, **settings}
    return train_allocator(made_windows(), made_returns(), **options)


def assert_same_network(one: torch.nn.Module, other: torch.nn.Module) -> None:
    for (name, value), twin in zip(one.state_dict().items(), other.state_dict().values(), strict=True):
        assert torch.equal(value, twin), name


def test_weights_are_an_allocation() -> None:
    weights = ConvAllocator(CHANNELS, LOOKBACK, ASSETS)(made_windows())
    assert weights.shape == (64, ASSETS)
    assert (weights > 0).all()
    torch.testing.assert_close(weights.sum(dim=1), torch.ones(64))


def test_windows_do_not_see_each_other() -> None:
    network, x = ConvAllocator(CHANNELS, LOOKBACK, ASSETS).double(), made_windows().double()
    alone = torch.cat([network(x[[index]]) for index in range(len(x))])
    torch.testing.assert_close(network(x), alone, rtol=1e-12, atol=0.0)


def test_assets_share_their_kernels() -> None:
    """Until the bias is trained, exchanging assets exchanges their weights."""
    network, x = ConvAllocator(CHANNELS, LOOKBACK, ASSETS).double(), made_windows().double()
    order = torch.tensor([3, 0, 4, 1, 2])
    torch.testing.assert_close(network(x[..., order]), network(x)[:, order], rtol=1e-12, atol=0.0)


def test_channels_are_scaled_by_the_buffers() -> None:
    network, x = trained().double(), made_windows(seed=3).double()
    plain = trained().double()
    plain.mean.zero_()
    plain.std.fill_(1.0)
    torch.testing.assert_close(network(x), plain((x - network.mean) / network.std))


def test_buffers_are_the_moments_of_the_channels() -> None:
    network, x = trained(), made_windows().transpose(0, 1).flatten(1)
    torch.testing.assert_close(network.mean.flatten(), x.mean(dim=1))
    torch.testing.assert_close(network.std.flatten(), x.std(dim=1))
    assert network.mean.shape == network.std.shape == (CHANNELS, 1, 1)
    assert not network.training


def test_network_of_the_demo_is_small() -> None:
    assert sum(p.numel() for p in ConvAllocator(3, 20, 100).parameters()) < 5000


def test_seed_decides_everything() -> None:
    assert_same_network(trained(seed=4), trained(seed=4))
    assert not torch.equal(trained(seed=4).bias, trained(seed=5).bias)


def test_training_leaves_no_trace() -> None:
    x, returns = made_windows(), made_returns()
    before = torch.get_rng_state()
    copies = x.clone(), returns.clone()
    with torch.no_grad():
        without = train_allocator(x, returns, num_steps=3)
        assert not torch.is_grad_enabled()
    assert_same_network(without, train_allocator(x, returns, num_steps=3))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(x, copies[0])
    assert torch.equal(returns, copies[1])


def test_network_takes_the_dtype_of_the_windows() -> None:
    network = train_allocator(made_windows().double(), made_returns(), num_steps=2)
    assert {value.dtype for value in network.state_dict().values()} == {torch.float64}


def test_every_step_is_reported() -> None:
    seen: list[tuple[int, float]] = []
    trained(num_steps=4, callback=lambda step, loss: seen.append((step, loss)))
    assert [step for step, _ in seen] == [1, 2, 3, 4]
    assert all(isinstance(loss, float) for _, loss in seen)


def test_objective_is_sharpe_ratio_and_herfindahl_index() -> None:
    """Where all assets return the same, the loss of the first step depends only on the batch."""
    returns = torch.tensor([0.01, -0.01]).repeat(32)[:, None].expand(64, ASSETS).contiguous()
    seen: list[float] = []
    for concentration in (0.0, 1.0):
        settings: dict[str, Any] = {"num_steps": 1, "batch_size": 100_000}
        train_allocator(
            made_windows(),
            returns,
            concentration=concentration,
            callback=lambda _, loss: seen.append(loss),
            **settings,
        )
    sharpe_alone, with_index = seen
    assert abs(sharpe_alone) < 0.02  # mean 0 and standard deviation 0.01, up to the draw
    assert 1 / ASSETS <= with_index - sharpe_alone <= 1


def test_a_planted_signal_is_found() -> None:
    """The asset with the highest last value of channel 1 is the one that rises, under noise."""
    x = made_windows(512)
    future = 0.03 * torch.nn.functional.one_hot(x[:, 1, -1].argmax(dim=1), ASSETS)
    future = future + 2.0 * made_returns(512)
    network = train_allocator(x, future, num_steps=100, concentration=0.0)
    test = made_windows(512, seed=7)
    hit = network(test).argmax(dim=1) == test[:, 1, -1].argmax(dim=1)
    assert hit.float().mean() > 0.8


def test_concentration_spreads_the_weights() -> None:
    spread = [effective_number(trained(concentration=c, num_steps=40)(made_windows())).mean().item()
              for c in (0.0, 0.3, 3.0)]  # fmt: skip
    assert spread == sorted(spread)


def test_network_on_real_prices_moves() -> None:
    """Neither uniform nor always one asset, and not the same at all times."""
    prices = ecb()
    stack, days = windows(prices, 20, 20)
    stack = stack.float()
    network = train_allocator(stack[:-5], forward_returns(prices, days[:-5], 5))
    with torch.no_grad():
        weights = network(stack)
    spread = effective_number(weights)
    assert 3.0 < spread.median() < 12.0
    assert weights.std(dim=0).median() > 0.03
    assert weights.mean(dim=0).max() < 0.5


REFUSED: dict[str, tuple[Callable[[], object], str]] = {
    "short lookback": (lambda: ConvAllocator(3, 4, 5), "lookback of at least kernel = 5 days, got 4"),
    "one window": (
        lambda: train_allocator(made_windows()[0], made_returns()),
        r"shape \(N, C, L, A\), got torch.float32 of shape \(3, 8, 5\)",
    ),
    "integers": (lambda: train_allocator(made_windows().int(), made_returns()), "got torch.int32"),
    "other number": (
        lambda: train_allocator(made_windows(), made_returns(63)),
        r"future_returns of shape \(N, A\) = \(64, 5\), got \(63, 5\)",
    ),
    "too few": (
        lambda: train_allocator(made_windows(1), made_returns(1)),
        "at least 2 windows, got 1",
    ),
    "nan returns": (
        lambda: train_allocator(made_windows(), made_returns().log()),
        "finite future_returns, got nan or inf",
    ),
    "nan windows": (
        lambda: train_allocator(made_windows().log(), made_returns()),
        "finite and vary in each channel, got standard deviation nan in channel 0",
    ),
    "constant channel": (
        lambda: train_allocator(
            made_windows() * torch.tensor([1.0, 0, 1]).view(-1, 1, 1), made_returns()
        ),
        r"got standard deviation 0\.0 in channel 1",
    ),
}


@pytest.mark.parametrize(("call", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_bad_input_raises(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
