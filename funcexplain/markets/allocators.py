"""A small convolutional allocator for examples, and its training.

The network standardizes its channels with the statistics of the training windows, applies the same
convolutions over time to each asset, and turns one score per asset into weights with a softmax. It is
not a trading strategy but an example of a network, trained in seconds.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn


class ConvAllocator(nn.Module):
    """Convolutions over time, shared by all assets: windows ``(N, C, L, A)`` to weights ``(N, A)``.

    ``weights = softmax(score(asset's window) + bias[asset])``. All kernels have the size ``(k, 1)``, so
    an asset's score depends on its own window alone, and assets meet only in the softmax. ``tanh``
    keeps the score smooth, which helps a search by gradients.

    Args:
        num_channels: ``C``.
        lookback: days per window, ``L``, at least ``kernel``.
        num_assets: ``A``.
        hidden: number of feature maps in the first layer; the second has twice as many.
        kernel: days that a kernel of the first layer covers.

    Attributes:
        mean: buffer ``(C, 1, 1)``, subtracted from the input; zeros until trained.
        std: buffer ``(C, 1, 1)``, which then divides the input; ones until trained.

    Raises:
        ValueError: if the lookback is shorter than the kernel.

    Example:
        >>> network = ConvAllocator(num_channels=3, lookback=20, num_assets=16)
        >>> network(torch.zeros(2, 3, 20, 16)).shape
        torch.Size([2, 16])
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, num_channels: int, lookback: int, num_assets: int, hidden: int = 8, kernel: int = 5
    ) -> None:
        super().__init__()
        if lookback < kernel:
            raise ValueError(
                f"ConvAllocator: expected a lookback of at least kernel = {kernel} days, got {lookback}"
            )
        self.register_buffer("mean", torch.zeros(num_channels, 1, 1))
        self.register_buffer("std", torch.ones(num_channels, 1, 1))
        self.score = nn.Sequential(
            nn.Conv2d(num_channels, hidden, (kernel, 1)),
            nn.Tanh(),
            nn.Conv2d(hidden, 2 * hidden, (lookback - kernel + 1, 1)),
            nn.Tanh(),
            nn.Conv2d(2 * hidden, 1, (1, 1)),
        )
        self.bias = nn.Parameter(torch.zeros(num_assets))

    def forward(self, x: Tensor) -> Tensor:
        """Weights ``(N, A)``, positive and summing to one, for windows ``(N, C, L, A)``."""
        scores = self.score((x - self.mean) / self.std)  # (N, 1, 1, A)
        return torch.softmax(scores[:, 0, 0] + self.bias, dim=-1)


def train_allocator(
    windows: Tensor,
    future_returns: Tensor,
    *,
    seed: int = 0,
    num_steps: int = 100,
    batch_size: int = 512,
    lr: float = 1e-2,
    concentration: float = 0.2,
    callback: Callable[[int, float], object] | None = None,
) -> ConvAllocator:
    """Train a `ConvAllocator` for a high Sharpe ratio with diversified weights.

    With ``r[n] = sum_a weights[n, a] * future_returns[n, a]`` over a random batch, each step of Adam
    lowers

        ``-mean(r) / std(r) + concentration * mean_n sum_a weights[n, a]^2``

    The first term is the Sharpe ratio of the portfolio over the horizon of ``future_returns``, not
    annualized, for a riskless rate of zero and without costs. The second, the Herfindahl index,
    is ``1 / A`` for equal weights and 1 for a single asset: without it the network soon holds one asset
    at a time. The buffers ``mean`` and ``std`` are those of each channel over all windows.

    Args:
        windows: shape ``(N, C, L, A)``, floating; the network takes its dtype and device.
        future_returns: simple returns of the assets after each window, shape ``(N, A)``.
        seed: seed of the initial parameters and the batches; torch's global generator is untouched.
        num_steps: number of steps of Adam.
        batch_size: windows per step, drawn with replacement.
        lr: step size of Adam.
        concentration: strength of the Herfindahl index.
        callback: called as ``callback(step, loss)`` after each step, with ``step`` from 1.

    Returns:
        The trained network, in eval mode.

    Raises:
        ValueError: if shapes do not fit, there are fewer than 2 windows, values are not finite, or a
            channel is constant.

    Example:
        >>> windows, future = torch.randn(64, 3, 20, 4), 0.01 * torch.randn(64, 4)
        >>> network = train_allocator(windows, future, num_steps=2)
        >>> network(windows).shape, network.training
        (torch.Size([64, 4]), False)

    References:
        Zhang, Zohren, Roberts (2020), Deep learning for portfolio optimization, Journal of
        Financial Data Science 2(4), <https://arxiv.org/abs/2005.13665>.
        Woerheide, Persson (1993), An index of portfolio diversification, Financial Services
        Review 2(2).
    """
    _check(windows, future_returns)
    future_returns = future_returns.to(windows)
    num_windows, num_channels, lookback, num_assets = windows.shape
    std, mean = torch.std_mean(windows, dim=(0, 2, 3), keepdim=True)
    for channel, value in enumerate(std.flatten().tolist()):
        if not value > 0:  # also true for nan
            raise ValueError(
                f"train_allocator: expected windows that are finite and vary in each channel, "
                f"got standard deviation {value} in channel {channel}"
            )
    # torch.manual_seed would also seed the accelerators, which this fork does not restore.
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        torch.default_generator.manual_seed(seed)
        network = ConvAllocator(num_channels, lookback, num_assets).to(windows)
        network.mean.copy_(mean[0])
        network.std.copy_(std[0])
        optimizer = torch.optim.Adam(network.parameters(), lr=lr)
        for step in range(1, num_steps + 1):
            batch = torch.randint(num_windows, (batch_size,)).to(windows.device)
            loss = negative_sharpe(network(windows[batch]), future_returns[batch], concentration)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if callback is not None:
                callback(step, loss.item())
    return network.eval()


def negative_sharpe(weights: Tensor, returns: Tensor, concentration: float) -> Tensor:
    """The training loss: minus the Sharpe ratio of a batch, plus its mean Herfindahl index.

    Args:
        weights: allocations, ``(N, A)``.
        returns: returns of the assets after each window, ``(N, A)``.
        concentration: strength of the index.

    Example:
        >>> returns = torch.tensor([[0.01, 0.0], [0.03, 0.0]])
        >>> negative_sharpe(torch.tensor([[1.0, 0.0], [1.0, 0.0]]), returns, 0.2)
        tensor(-1.2141)
    """
    portfolio = (weights * returns).sum(dim=-1)
    # The small constant, a hundredth of a basis point, keeps a riskless batch finite.
    sharpe = portfolio.mean() / (portfolio.std() + 1e-6)
    return -sharpe + concentration * weights.square().sum(dim=-1).mean()


def _check(windows: Tensor, future_returns: Tensor) -> None:
    if windows.ndim != 4 or not windows.is_floating_point():
        raise ValueError(
            "train_allocator: expected windows as a floating tensor of shape (N, C, L, A), "
            f"got {windows.dtype} of shape {tuple(windows.shape)}"
        )
    expected = (windows.shape[0], windows.shape[3])
    if future_returns.shape != expected:
        raise ValueError(
            f"train_allocator: expected future_returns of shape (N, A) = {expected}, "
            f"got {tuple(future_returns.shape)}"
        )
    if windows.shape[0] < 2:
        raise ValueError(f"train_allocator: expected at least 2 windows, got {windows.shape[0]}")
    if not future_returns.isfinite().all():
        raise ValueError("train_allocator: expected finite future_returns, got nan or inf in them")
