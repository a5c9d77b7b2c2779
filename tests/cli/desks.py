"""A catalogue of networks as desks have them: their code, what a config says, and a wrapper by hand."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from funcexplain.markets.features import features, log_returns

CODE = """
from dataclasses import dataclass

import torch
from torch import nn

import funcexplain as fe


class Flat(nn.Module):
    "Any window, flattened, to so many outputs."

    def __init__(self, inputs=36, outputs=3, seed=0):
        super().__init__()
        self.layer = nn.Linear(inputs, outputs, dtype=torch.float64)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            self.layer.weight.copy_(4.0 * torch.randn(outputs, inputs, generator=generator))
            self.layer.bias.zero_()

    def forward(self, x):
        return self.layer(x.flatten(1)).softmax(-1)


class Recurrent(nn.Module):
    def __init__(self, inputs=9, outputs=3):
        super().__init__()
        torch.manual_seed(1)
        self.rnn = nn.GRU(inputs, 6, batch_first=True, dtype=torch.float64)
        self.head = nn.Linear(6, outputs, dtype=torch.float64)

    def forward(self, x):
        return (20.0 * self.head(self.rnn(20.0 * x)[0][:, -1])).softmax(-1)


class Days(nn.Module):
    "Days before channels, (n, l, c, a)."

    def __init__(self):
        super().__init__()
        self.inner = Flat(24, seed=2)

    def forward(self, x):
        assert x.shape[1:] == (4, 2, 3)
        return self.inner(x)


class Convolution(nn.Module):
    "One channel, (n, a, l)."

    def __init__(self):
        super().__init__()
        torch.manual_seed(3)
        self.layer = nn.Conv1d(3, 3, 4, dtype=torch.float64)

    def forward(self, x):
        return (30.0 * self.layer(x)[:, :, 0]).softmax(-1)


class OfOneAsset(nn.Module):
    "A score of each asset alone, ((n a), l, c)."

    def __init__(self):
        super().__init__()
        torch.manual_seed(4)
        self.rnn = nn.LSTM(3, 4, batch_first=True, dtype=torch.float64)
        self.head = nn.Linear(4, 1, dtype=torch.float64)

    def forward(self, x):
        return 40.0 * self.head(self.rnn(20.0 * x)[0][:, -1])


class Tuple(Flat):
    def forward(self, x):
        return x, super().forward(x)


class Dict(Flat):
    def forward(self, x):
        return {"risk": x.sum(), "weights": super().forward(x)}


@dataclass
class Out:
    weights: torch.Tensor
    loss: float = 0.0


class Data(Flat):
    def forward(self, x):
        return Out(super().forward(x))


class Horizons(Flat):
    def __init__(self):
        super().__init__(outputs=6)

    def forward(self, x):
        return self.layer(x.flatten(1)).view(-1, 2, 3).softmax(-1)


class Cash(Flat):
    def __init__(self):
        super().__init__(outputs=4)


class LongShort(Flat):
    def forward(self, x):
        return self.layer(x.flatten(1)).tanh()


class Logits(Flat):
    def forward(self, x):
        return self.layer(x.flatten(1))


class Macro(Flat):
    def forward(self, x, today, rate):
        return (self.layer(x.flatten(1)) + today + rate).softmax(-1)


class Windows(Flat):
    def forward(self, windows):
        fast, slow = windows["fast"], windows["slow"]
        return (self.layer(fast.flatten(1)) + slow.mean((1, 2))).softmax(-1)


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = Flat(seed=5).layer
        self.b = nn.Linear(36, 3, dtype=torch.float64)
        self.b.weight, self.b.bias = self.a.weight, self.a.bias

    def forward(self, x):
        return (self.a(x.flatten(1)) + self.b(x.flatten(1))).softmax(-1)


def of_returns(returns, days=3):
    "Two channels, one of them of the mean over a few days."
    mean = torch.stack([returns[days - 1 - k : len(returns) - k] for k in range(days)]).mean(0)
    return torch.stack([returns[days - 1 :], 10.0 * mean * mean.abs()])


of_returns.channels = ("daily", "trend")


def of_prices(prices):
    "Prices over the last price of the window, as many days as prices."
    return (10.0 * (prices / prices[-1:] - 1.0))[None]


def of_levels(prices):
    return prices[1:][None]


def branches(returns):
    return returns[None] if returns.sum() > 0 else -returns[None]


def flat_result(returns):
    return returns


def composed():
    c = fe.channels
    strength = c.scaled(c.rsi(4), 50.0, 100.0)
    return c.log_return(), c.zscore(c.momentum(3), 5), strength, c.rank(c.volatility(3))
"""


class Desk(NamedTuple):
    """One network as a desk has it.

    Attributes:
        network: the table ``network`` of its config.
        wrap: makes the hand-written wrapper from the module of `CODE`.
        parts: other tables of its config.
        save: writes its weights or other files into a folder.
        channels: from returns to its window; None for the library's three.
        outputs: names of its weights, if they are not the assets'.
        span: returns that the first day of a window needs.
        trusted: whether loading it needs ``--trust-model``.
    """

    network: dict[str, Any]
    wrap: Callable[[Any], nn.Module]
    parts: dict[str, dict[str, Any]] = {}  # noqa: RUF012 (is not changed)
    save: Callable[[Any, Path], None] | None = None
    channels: Callable[[Any], Callable[[Tensor], Tensor]] | None = None
    outputs: tuple[str, ...] | None = None
    span: int = 5
    trusted: bool = False


class By(nn.Module):
    """A wrapper as a user writes it, around a network."""

    def __init__(self, network: nn.Module, call: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.network, self.call = network, call

    def forward(self, x: Tensor) -> Tensor:
        """Call the network."""
        return self.call(self.network, x)


def by(name: str, call: Callable[[nn.Module, Tensor], Tensor]) -> Callable[[Any], nn.Module]:
    return lambda module: By(getattr(module, name)(), call)


def made(name: str, **arguments: Any) -> Callable[[Any], nn.Module]:
    return lambda module: getattr(module, name)(**arguments)


def checkpoint(prefix: str, name: str = "w.ckpt", **more: Any) -> Callable[[Any, Path], None]:
    def save(module: Any, folder: Path) -> None:
        state = {f"{prefix}{key}": value for key, value in module.Flat(seed=7).state_dict().items()}
        torch.save({"state_dict": state, "epoch": 3, **more} if more else state, folder / name)

    return save


def script(module: Any, folder: Path) -> None:
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.trace(module.Flat(), torch.zeros(2, 3, 4, 3).double()).save(folder / "w.ts")


def tied(module: Any, folder: Path) -> None:
    from funcexplain.solutions.archive import write_archive

    state = module.Tied().state_dict()
    del state["b.weight"], state["b.bias"]  # which safetensors leaves out
    write_archive("save", folder / "w.safetensors", {n: t.clone() for n, t in state.items()}, {})


def units(module: Any, folder: Path) -> None:
    mean, std = torch.tensor([0.0, 0.01, 0.02]).double(), torch.tensor([0.5, 1.0, 0.25]).double()
    torch.save({"state_dict": module.Flat().state_dict(), "mean": mean, "std": std}, folder / "w.pt")


def scaled(network: nn.Module, x: Tensor) -> Tensor:
    mean, std = torch.tensor([0.0, 0.01, 0.02]).to(x), torch.tensor([0.5, 1.0, 0.25]).to(x)
    return network((x - mean[:, None, None]) / std[:, None, None])


def macro(network: nn.Module, x: Tensor) -> Tensor:
    today, rate = x.new_tensor([0.2, 0.0, -0.1]), x.new_tensor(0.5)
    return network(x, today.expand(len(x), 3), rate.expand(len(x)).unsqueeze(-1))


SLOW = torch.linspace(-1.0, 1.0, 54, dtype=torch.float64, device="cpu").view(2, 9, 3)

DESKS = {
    "own": Desk({"factory": "Flat"}, made("Flat")),
    "recurrent": Desk(
        {"factory": "Recurrent", "layout": "n l (c a)"},
        by("Recurrent", lambda net, x: net(x.transpose(1, 2).flatten(2))),
    ),
    "assets_first": Desk(
        {"factory": "Recurrent", "layout": "n l (a c)"},
        by("Recurrent", lambda net, x: net(x.permute(0, 2, 3, 1).flatten(2))),
    ),
    "days_first": Desk(
        {"factory": "Days"},
        by("Days", lambda net, x: net(x.transpose(1, 2))),
        {"features": {"channels": ["momentum", "return"]}},
        channels=lambda module: lambda returns: features(returns, 5)[[1, 0]],
    ),
    "one_channel": Desk(
        {"factory": "Convolution"},
        by("Convolution", lambda net, x: net(x[:, 0].transpose(1, 2))),
        {"features": {"channels": ["return"]}},
        channels=lambda module: lambda returns: returns[None],
        span=1,
    ),
    "of_one_asset": Desk(
        {"factory": "OfOneAsset", "layout": "(n a) l c", "normalize": "softmax"},
        by(
            "OfOneAsset",
            lambda net, x: net(x.permute(0, 3, 2, 1).flatten(0, 1)).view(len(x), -1).softmax(-1),
        ),
    ),
    "tuple": Desk({"factory": "Tuple", "output": 1}, by("Tuple", lambda net, x: net(x)[1])),
    "dict": Desk({"factory": "Dict", "output": "weights"}, by("Dict", lambda net, x: net(x)["weights"])),
    "dataclass": Desk(
        {"factory": "Data", "output": "weights"}, by("Data", lambda net, x: net(x).weights)
    ),
    "horizon": Desk({"factory": "Horizons", "horizon": 1}, by("Horizons", lambda net, x: net(x)[:, 1])),
    "mean_horizon": Desk(
        {"factory": "Horizons", "horizon": "mean"}, by("Horizons", lambda net, x: net(x).mean(1))
    ),
    "cash": Desk(
        {"factory": "Cash", "outputs": ["...", "CASH"]},
        made("Cash"),
        {"question": {"at_least": {"CASH": "50%"}}},
        outputs=("GOLD", "OIL", "RICE", "CASH"),
    ),
    "long_short": Desk(
        {"factory": "LongShort"}, made("LongShort"), {"question": {"at_least": {"OIL": 0.4}}}
    ),
    "logits": Desk(
        {"factory": "Logits", "normalize": "softmax"}, by("Logits", lambda net, x: net(x).softmax(-1))
    ),
    "units": Desk(
        {"factory": "Flat", "weights": "w.pt"},
        by("Flat", scaled),
        {"features": {"scaling": "weights"}},
        save=units,
    ),
    "inputs": Desk(
        {"factory": "Macro", "inputs": {"today": {"GOLD": 0.2, "RICE": "-10%"}, "rate": [0.5]}},
        by("Macro", macro),
    ),
    "windows": Desk(
        {"factory": "Windows", "window": "fast", "inputs": {"slow": "slow.npy"}},
        by("Windows", lambda network, x: network({"fast": x, "slow": SLOW.expand(len(x), 2, 9, 3)})),
        save=lambda module, folder: np.save(folder / "slow.npy", SLOW.numpy()),
    ),
    "lightning": Desk(
        {"factory": "Flat", "weights": "w.ckpt"},
        made("Flat", seed=7),
        save=checkpoint("model.", hyper_parameters={"lr": 0.1}),
    ),
    "compiled": Desk(
        {"factory": "Flat", "weights": "w.bin"},
        made("Flat", seed=7),
        save=checkpoint("_orig_mod.module.", "w.bin"),
    ),
    "tied": Desk({"factory": "Tied", "weights": "w.safetensors"}, made("Tied"), save=tied),
    "torchscript": Desk({"weights": "w.ts"}, made("Flat"), save=script, trusted=True),
    "features_of_returns": Desk(
        {"factory": "Flat", "arguments": {"inputs": 24}},
        made("Flat", inputs=24),
        {"features": {"factory": "of_returns", "arguments": {"days": 2}}},
        channels=lambda module: lambda returns: module.of_returns(returns, 2),
        span=2,
    ),
    "features_of_prices": Desk(
        {"factory": "Flat", "arguments": {"inputs": 12}},
        made("Flat", inputs=12),
        {"features": {"factory": "of_prices"}},
        channels=lambda module: (
            lambda returns: module.of_prices(
                torch.cat([torch.zeros_like(returns[:1]), returns]).cumsum(0).exp()
            )
        ),
        span=0,
    ),
    "composed": Desk(
        {"factory": "Flat", "arguments": {"inputs": 48}},
        made("Flat", inputs=48),
        {"features": {"factory": "composed"}},
        channels=lambda module: __import__("funcexplain").channels.join(*module.composed()),
        span=7,
    ),
}


def window_of(desk: Desk, module: Any, prices: Any, lookback: int = 4) -> tuple[Tensor, Tensor, Any]:
    """Today's window, the returns behind it, and the function from one to the other."""
    compute = (lambda returns: features(returns, 5)) if desk.channels is None else desk.channels(module)
    returns = log_returns(prices)[-(lookback + desk.span - 1) :]
    return compute(returns), returns, compute
