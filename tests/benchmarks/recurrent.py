"""What folding costs: 64 mapped rows through a recurrent layer against the plain batched layer.

Run ``python -m tests.benchmarks.recurrent [rounds]``. All sides compute 64 losses of windows
``(L, A, C)`` and their gradients: the plain one is written by hand for a batch of ``64 A`` histories;
under torch.func it is ``vmap(grad)``, or ``vmap`` of the loss and one backward pass of the sum. Times
are medians of interleaved rounds, in one thread; ratios are medians of the rounds' ratios. The last
column is the largest difference of the gradients, relative to the largest entry.
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


def make_runs(layer: nn.RNNBase, windows: Tensor) -> tuple[Run, Run, Run]:
    """Values and gradients for all rows: plain batched layer, vmap(grad), and grad(vmap)."""
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

    mapped, values_of = vmap(grad_and_value(loss)), vmap(loss)

    def one_backward() -> tuple[Tensor, Tensor]:
        x = windows.detach().requires_grad_()
        values = values_of(x)
        return torch.autograd.grad(values.sum(), x)[0], values.detach()

    return plain, lambda: mapped(windows), one_backward


def measure(runs: tuple[Run, ...], rounds: int) -> tuple[list[float], list[float]]:
    """Median milliseconds of all, and the median ratios to the first."""
    times: list[list[float]] = []
    for _ in range(rounds + 3):
        row = []
        for run in runs:
            start = time.perf_counter()
            run()
            row.append(1e3 * (time.perf_counter() - start))
        times.append(row)
    columns = list(zip(*times[3:], strict=True))  # warm
    ratios = [[b / a for a, b in zip(columns[0], column, strict=True)] for column in columns[1:]]
    return [statistics.median(c) for c in columns], [statistics.median(r) for r in ratios]


def main(rounds: int) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    print(f"torch {torch.__version__}, {platform.processor() or platform.machine()}, {rounds} rounds")
    print(f"{ROWS} rows, lookback {LOOKBACK}, {CHANNELS} channels, hidden size {HIDDEN}")
    print("| layer | dtype | assets | plain | vmap(grad) | ratio | grad(vmap) | ratio | error |")
    print("|---|---|---|---|---|---|---|---|---|")
    for dtype in (torch.float32, torch.float64):
        for assets in (1, 10):
            for name, make in CELLS.items():
                windows = torch.randn(ROWS, LOOKBACK, assets, CHANNELS, dtype=dtype)
                runs = make_runs(make().to(dtype).eval(), windows)
                expected, *others = (run()[0] for run in runs)
                error = max(float((o - expected).abs().max() / expected.abs().max()) for o in others)
                (plain, gradient, value), ratios = measure(runs, rounds)
                kind = str(dtype).removeprefix("torch.")
                print(
                    f"| {name} | {kind} | {assets} | {plain:.2f} ms | "
                    f"{gradient:.2f} ms | {ratios[0]:.2f} | {value:.2f} ms | {ratios[1]:.2f} | "
                    f"{error:.0e} |"
                )


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 40)
