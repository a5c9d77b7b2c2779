"""The catalogues that the laws run over, and comparisons that raise.

``NETWORKS``, ``LOSSES``, ``PENALTIES``, ``OPTIMIZERS`` and ``TRANSFORMS`` list what the project serves;
a newcomer joins the list and thereby all laws. Every network maps ``(N, C, L, A)`` to ``(N, A)`` for
the sizes below.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import optree
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import funcexplain as fe

weight_norm = getattr(parametrizations, "weight_norm", nn.utils.weight_norm)  # since torch 2.1
CHANNELS, LOOKBACK, ASSETS = 2, 6, 5
SHAPE = (CHANNELS, LOOKBACK, ASSETS)
SIZE = CHANNELS * LOOKBACK * ASSETS


class Mlp(nn.Module):
    """Dense layers with dropout; the plainest allocator."""

    def __init__(self, activation: nn.Module, norm: nn.Module | None = None) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Flatten(),
            norm or nn.Identity(),
            nn.Linear(SIZE, 16),
            activation,
            nn.Dropout(0.5),
            nn.Linear(16, ASSETS),
            nn.Softmax(-1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


class Conv(nn.Module):
    """Convolution over time shared by the assets, between two normalisation layers."""

    def __init__(self, first: nn.Module, second: nn.Module) -> None:
        super().__init__()
        self.first, self.second = first, second
        self.conv = nn.Conv2d(CHANNELS, 8, (3, 1), padding=(1, 0))

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.tanh(self.second(self.conv(self.first(x))))
        return torch.softmax(3.0 * hidden.mean((1, 2)), -1)


class Recurrent(nn.Module):
    """A recurrent cell over each asset's history; its cotangents come back channels-last."""

    def __init__(self, cell: Callable[[int, int], nn.Module], norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm
        self.cell = cell(CHANNELS, 8)

    def forward(self, x: Tensor) -> Tensor:
        histories = self.norm(x).permute(0, 2, 3, 1)
        hidden = torch.stack([self.cell(history)[0].permute(2, 0, 1) for history in histories])
        return torch.softmax(5.0 * hidden.mean((1, 2)), -1)


class Attention(nn.Module):
    """Transformer layers over the days, with layer normalisation."""

    def __init__(self, norm_first: bool = False, layers: int = 1) -> None:
        super().__init__()
        width = CHANNELS * ASSETS
        layer = nn.TransformerEncoderLayer(
            width, 2, 16, 0.1, "gelu", batch_first=True, norm_first=norm_first
        )
        self.layer = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.head = nn.Linear(width, ASSETS)

    def forward(self, x: Tensor) -> Tensor:
        days = x.permute(0, 2, 1, 3).flatten(2)
        return torch.softmax(self.head(self.layer(days).mean(1)), -1)


class MultiHead(nn.Module):
    """Attention of the last day to all days, sequence first, in a padded batch."""

    def __init__(self) -> None:
        super().__init__()
        width = CHANNELS * ASSETS
        self.attend, self.head = nn.MultiheadAttention(width, 2), nn.Linear(width, ASSETS)

    def forward(self, x: Tensor) -> Tensor:
        days = x.permute(2, 0, 1, 3).flatten(2)
        first = torch.zeros(len(x), LOOKBACK, dtype=torch.bool)
        first[:, 0] = True  # padding
        seen, weights = self.attend(days[-1:], days, days, key_padding_mask=first)
        return torch.softmax(self.head(seen[0]) + weights[:, 0, 1:], -1)


class TemporalConv(nn.Module):
    """Causal dilated convolutions over each asset's history, with weight_norm and a residual."""

    def __init__(self) -> None:
        super().__init__()
        self.first = weight_norm(nn.Conv1d(CHANNELS, 8, 2, dilation=1))
        self.second = weight_norm(nn.Conv1d(8, 8, 2, dilation=2))
        self.skip, self.head = nn.Conv1d(CHANNELS, 8, 1), nn.Linear(8, 1)

    def forward(self, x: Tensor) -> Tensor:
        histories = x.permute(0, 3, 1, 2).flatten(0, 1)
        hidden = torch.tanh(self.first(nn.functional.pad(histories, (1, 0))))
        hidden = nn.functional.elu_(self.second(nn.functional.pad(hidden, (2, 0))))
        last = (hidden + self.skip(histories))[..., -1]
        return torch.softmax(self.head(last).view(len(x), ASSETS), -1)


class Tied(nn.Module):
    """One layer used twice, and a parameter that has two names."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(SIZE, SIZE)
        self.again = self.embed
        self.head = nn.Linear(SIZE, ASSETS)

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(1)
        return torch.softmax(self.head(torch.tanh(self.again(torch.tanh(self.embed(flat))))), -1)


class OwnCall(nn.Module):
    """Overrides ``__call__``, not ``forward``, as deepdow's KeynesNet does."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(SIZE, ASSETS)

    def __call__(self, x: Tensor) -> Tensor:
        return torch.softmax(self.head(torch.tanh(x.flatten(1))), -1)


class WithBuffers(nn.Module):
    """Scales by buffers, and counts its calls in one, in place."""

    calls: Tensor
    sigma: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))
        self.register_buffer("sigma", torch.rand(CHANNELS, 1, 1) + 0.5)
        self.head = nn.Linear(SIZE, ASSETS)

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return torch.softmax(self.head(torch.tanh(x / self.sigma).flatten(1)), -1)


def trained_norm(norm: nn.Module) -> nn.Module:
    """Give a normalisation layer statistics and scales as training would leave them."""
    for name, tensor in norm.state_dict().items():
        if name in ("running_mean", "bias"):
            nn.init.normal_(tensor)
        elif name in ("running_var", "weight"):
            nn.init.uniform_(tensor, 0.5, 2.0)
    return norm


def _spectral() -> nn.Module:
    network = Mlp(nn.Tanh())
    parametrizations.spectral_norm(network.layers[2])
    return network


def _weight_normed() -> nn.Module:
    network = Mlp(nn.Tanh())
    weight_norm(network.layers[2])
    return network


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "mlp_tanh": lambda: Mlp(nn.Tanh()),
    "mlp_gelu": lambda: Mlp(nn.GELU()),
    "mlp_softplus": lambda: Mlp(nn.Softplus()),
    "mlp_elu_in_place": lambda: Mlp(nn.ELU(inplace=True)),
    "mlp_batch_norm": lambda: Mlp(nn.Tanh(), trained_norm(nn.BatchNorm1d(SIZE))),
    "conv_instance_norm": lambda: Conv(nn.InstanceNorm2d(CHANNELS, affine=True), nn.GroupNorm(2, 8)),
    "conv_batch_norm": lambda: Conv(
        trained_norm(nn.BatchNorm2d(CHANNELS)), trained_norm(nn.BatchNorm2d(8))
    ),
    "conv_no_norm": lambda: Conv(nn.Identity(), nn.Identity()),
    "lstm_instance_norm": lambda: Recurrent(nn.LSTM, nn.InstanceNorm2d(CHANNELS, affine=True)),
    "gru_instance_norm": lambda: Recurrent(nn.GRU, nn.InstanceNorm2d(CHANNELS)),
    "rnn_batch_norm": lambda: Recurrent(nn.RNN, trained_norm(nn.BatchNorm2d(CHANNELS))),
    "attention": Attention,
    "multi_head": MultiHead,
    "encoder_norm_first": lambda: Attention(norm_first=True, layers=2),
    "temporal_conv": TemporalConv,
    "tied": Tied,
    "own_call": OwnCall,
    "with_buffers": WithBuffers,
    "spectral_norm": _spectral,
    "weight_norm": _weight_normed,
}
RECURRENT = ("lstm_instance_norm", "gru_instance_norm", "rnn_batch_norm")

LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "mse": fe.losses.mse,
    "mae": fe.losses.mae,
    "huber": partial(fe.losses.huber, delta=0.1),
    "kl": fe.losses.kl,
    "js": fe.losses.js,
    "cross_entropy": fe.losses.cross_entropy,
    "cosine_distance": fe.losses.cosine_distance,
}
PENALTIES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "l1": fe.penalties.l1,
    "l2": fe.penalties.l2,
    "smoothness": fe.penalties.smoothness,
    "group_assets": fe.penalties.group("assets"),
    "group_days": fe.penalties.group("days"),
    # Its covariance fixes the number of assets: no average over more of them (see test_penalties).
    "mahalanobis": fe.penalties.mahalanobis(torch.eye(ASSETS, dtype=torch.float64) + 0.5),
    "l2_in_sigmas": fe.penalties.scaled(fe.penalties.l2, torch.tensor([[[0.3]], [[2.0]]])),
}
OPTIMIZERS: dict[str, Callable[[], fe.Optimizer]] = {
    "adam": lambda: fe.adam(lr=0.05),
    "adam_other_betas": lambda: fe.adam(lr=0.02, betas=(0.5, 0.9), eps=1e-6),
    "sgd": lambda: fe.sgd(lr=0.5),
    "sgd_momentum": lambda: fe.sgd(lr=0.1, momentum=0.9),
}
TRANSFORMS: dict[str, Callable[[fe.Problem], fe.Problem]] = {
    "none": lambda problem: problem,
    "freeze": fe.freeze,
    "zero_masked": fe.zero_masked,
    "cast": fe.cast(dtype=torch.float64),
    "box": fe.box(-4.0, 4.0),
    "clip": fe.clip(-4.0, 4.0),
    "penalize": fe.penalize(fe.penalties.l2, strength=0.1),
    "standardize": fe.standardize(0.1, 0.7),
    "reparametrize": fe.reparametrize(torch.asinh, torch.sinh),
    "jitter": fe.jitter(0.1),
    # z is (rise, fall), twice the size of x, and only its split form without overlap is unique. Like
    # penalize, it moves the minimum away from the target.
    "sparsify": fe.sparsify(0.01),
}


def make_network(name: str, dtype: torch.dtype = torch.float64) -> nn.Module:
    """Build a network of the catalogue, the same one every time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(sum(map(ord, name)))
        return NETWORKS[name]().to(dtype)


def scalar(apply: Callable[[Any, Tensor], Tensor], target: Tensor) -> Callable[[Any, Tensor], Tensor]:
    """The misfit of a pure network, ``(params, x) -> scalar``."""
    return lambda p, x: fe.losses.mse(apply(p, x), target)


def make_target(dtype: torch.dtype = torch.float64, seed: int = 1) -> Tensor:
    """An allocation with every weight well above zero."""
    generator = torch.Generator().manual_seed(seed)
    return torch.softmax(torch.randn(ASSETS, generator=generator, dtype=torch.float64), 0).to(dtype)


def make_x0(dtype: torch.dtype = torch.float64, seed: int = 2) -> Tensor:
    """A window of standard normal noise."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(SHAPE, generator=generator, dtype=torch.float64).to(dtype)


def make_mask(seed: int = 3) -> Tensor:
    """A mask that frees about two thirds of the entries."""
    return torch.rand(SHAPE, generator=torch.Generator().manual_seed(seed)) < 0.67


def make_problem(
    network: Any = "mlp_tanh", dtype: torch.dtype = torch.float64, **changes: Any
) -> fe.Problem:
    """A problem of the catalogue's sizes with a mask; ``changes`` go to ``fe.problem``.

    ``network`` is a name of the catalogue, or what ``fe.problem`` takes.
    """
    arguments: dict[str, Any] = {
        "network": make_network(network, dtype) if isinstance(network, str) else network,
        "target": make_target(dtype),
        "x0": make_x0(dtype),
        "mask": make_mask(),
        **changes,
    }
    return fe.problem(**arguments)


def assert_close(actual: Any, expected: Any, *, rtol: float = 1e-12, atol: float = 1e-14) -> None:
    """Compare two pytrees leaf by leaf, dtype and shape included."""
    left, left_spec = optree.tree_flatten(actual)
    right, right_spec = optree.tree_flatten(expected)
    assert left_spec == right_spec
    for a, b in zip(left, right, strict=True):
        torch.testing.assert_close(a, b, rtol=rtol, atol=atol)


def assert_same(actual: Any, expected: Any) -> None:
    """Compare two pytrees bit for bit; NaN equals NaN."""
    left, left_spec = optree.tree_flatten(actual)
    right, right_spec = optree.tree_flatten(expected)
    assert left_spec == right_spec
    for a, b in zip(left, right, strict=True):
        assert a.dtype == b.dtype
        assert torch.equal(a.nan_to_num(nan=-7.0), b.nan_to_num(nan=-7.0))


def assert_gradient(fn: Callable[[Tensor], Tensor], x: Tensor, grads: Tensor) -> None:
    """Compare a gradient with central differences in float64, entry by entry."""
    assert x.dtype is torch.float64
    step = 1e-6
    slopes = torch.zeros_like(x).flatten()
    for index in range(x.numel()):
        shift = torch.zeros_like(x).flatten()
        shift[index] = step
        shift = shift.view_as(x)
        slopes[index] = (fn(x + shift) - fn(x - shift)).detach() / (2 * step)
    scale = float(slopes.abs().max())
    torch.testing.assert_close(grads.flatten(), slopes, rtol=1e-6, atol=1e-7 * scale + 1e-11)


def snapshot(module: nn.Module) -> dict[str, Any]:
    """Everything of a module that a search must leave as it was."""
    return {
        "state": {name: tensor.clone() for name, tensor in module.state_dict().items()},
        "identity": {name: id(p) for name, p in module.named_parameters(remove_duplicate=False)},
        "grads": {name: p.grad for name, p in module.named_parameters()},
        "requires_grad": {name: p.requires_grad for name, p in module.named_parameters()},
        "modes": {name: part.training for name, part in module.named_modules()},
        "hooks": {
            name: {key: len(value) for key, value in vars(part).items() if "hooks" in key and value}
            for name, part in module.named_modules()
        },
        "attributes": {name: set(vars(part)) for name, part in module.named_modules()},
        "rng": torch.get_rng_state(),
        "grad_mode": torch.is_grad_enabled(),
    }


def assert_untouched(before: dict[str, Any], module: nn.Module) -> None:
    """Compare a module with its earlier `snapshot`."""
    after = snapshot(module)
    for name, tensor in before.pop("state").items():
        assert torch.equal(tensor.to_dense(), after["state"][name].to_dense()), name
    assert torch.equal(before.pop("rng"), after.pop("rng"))
    after.pop("state")
    assert before == after


def params(catalogue: Iterable[str]) -> Any:
    """Readable parametrization over a catalogue's names."""
    return [pytest.param(name, id=name) for name in catalogue]


def pairs(longer: Iterable[Any], shorter: Iterable[Any], each: int = 2) -> Any:
    """Pairs of names of two catalogues that act apart: not all, but each with several of the other."""
    others = list(shorter)
    return [
        pytest.param(name, others[(place + turn) % len(others)])
        for place, name in enumerate(longer)
        for turn in range(each)
    ]


def clone_args(args: dict[str, Any]) -> dict[str, Any]:
    """A deep copy of a problem's data."""
    return copy.deepcopy(args)
