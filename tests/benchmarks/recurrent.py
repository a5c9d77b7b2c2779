"""What folding costs: 64 mapped rows through a recurrent layer against the plain batched layer.

Run ``python -m tests.benchmarks.recurrent [rounds]``. Both sides compute 64 losses of windows
``(L, A, C)`` and their gradients; the plain one is written by hand for a batch of ``64 A`` histories.
Times are medians of interleaved rounds, in one thread; the ratio is the median of the rounds' ratios.
The last column is the largest difference of the gradients, relative to the largest entry.
"""

import copy
import platform
import statistics
import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value, vmap

from funcexplain.networks.recurrent import fold_recurrent

ROWS, LOOKBACK, CHANNELS, HIDDEN = 64, 40, 2, 32
CELLS: dict[str, Callable[[], nn.RNNBase]] = {
    "LSTM": lambda: nn.LSTM(CHANNELS, HIDDEN),
    "LSTM, 2 layers": lambda: nn.LSTM(CHANNELS, HIDDEN, 2, bidirectional=True),
    "GRU": lambda: nn.GRU(CHANNELS, HIDDEN),
    "RNN": lambda: nn.RNN(CHANNELS, HIDDEN),
}
Run = Callable[[], tuple[Tensor, Tensor]]


def make_runs(layer: nn.RNNBase, windows: Tensor) -> tuple[Run, Run]:
    """Values and gradients for all rows: by the plain batched layer, and folded under torch.func."""
    params = {name: p.detach() for name, p in layer.named_parameters()}
    plain_layer = copy.deepcopy(layer).requires_grad_(False)
    folded_layer = fold_recurrent(copy.deepcopy(layer))
    rows, lookback, assets, channels = windows.shape

    def plain() -> tuple[Tensor, Tensor]:
        x = windows.detach().requires_grad_()
        histories = x.transpose(0, 1).reshape(lookback, rows * assets, channels)
        out = plain_layer(histories)[0].view(lookback, rows, -1)
        values = out.square().mean((0, 2))
        return torch.autograd.grad(values.sum(), x)[0], values.detach()

    def loss(x: Tensor) -> Tensor:
        return functional_call(folded_layer, params, (x,))[0].square().mean()

    mapped = vmap(grad_and_value(loss))
    return plain, lambda: mapped(windows)


def measure(plain: Run, folded: Run, rounds: int) -> tuple[float, float, float]:
    """Median milliseconds of both, and the median ratio."""
    times: list[tuple[float, float]] = []
    for _ in range(rounds + 3):
        start = time.perf_counter()
        plain()
        middle = time.perf_counter()
        folded()
        times.append((1e3 * (middle - start), 1e3 * (time.perf_counter() - middle)))
    times = times[3:]  # warm
    both = [statistics.median(column) for column in zip(*times, strict=True)]
    return both[0], both[1], statistics.median(b / a for a, b in times)


def main(rounds: int) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    print(f"torch {torch.__version__}, {platform.processor() or platform.machine()}, {rounds} rounds")
    print(f"{ROWS} rows, lookback {LOOKBACK}, {CHANNELS} channels, hidden size {HIDDEN}")
    print(
        f"{'layer':16}{'dtype':9}{'assets':>6}{'plain ms':>10}{'folded ms':>11}{'ratio':>7}{'error':>10}"
    )
    for dtype in (torch.float32, torch.float64):
        for assets in (1, 10):
            for name, make in CELLS.items():
                windows = torch.randn(ROWS, LOOKBACK, assets, CHANNELS, dtype=dtype)
                plain, folded = make_runs(make().to(dtype).eval(), windows)
                expected = plain()[0]
                error = float((folded()[0] - expected).abs().max() / expected.abs().max())
                a, b, ratio = measure(plain, folded, rounds)
                kind = str(dtype).removeprefix("torch.")
                print(f"{name:16}{kind:9}{assets:>6}{a:>10.2f}{b:>11.2f}{ratio:>7.2f}{error:>10.0e}")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 40)
