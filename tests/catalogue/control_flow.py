"""What a network decides by values, loops over, refuses, or reads from its own tensors."""

from __future__ import annotations

import random
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import rnn

from tests.catalogue.entry import Allocator, Catalogue, Entry, assets, days
from tests.helpers import ASSETS, CHANNELS, LOOKBACK, SIZE

Flow = Callable[[Tensor, Tensor], Tensor]  # (scores, x) -> scores


class Flows(Allocator):
    """A linear layer, and what becomes of its scores."""

    def __init__(self, flow: Flow) -> None:
        super().__init__()
        self.layer, self.flow = nn.Linear(SIZE, ASSETS), flow

    def scores(self, x: Tensor) -> Tensor:
        return self.flow(self.layer(torch.tanh(x.flatten(1))), x)


def branches_on_sum(h: Tensor, x: Tensor) -> Tensor:
    return h if h.sum() > 0 else -2 * h


def branches_on_item(h: Tensor, x: Tensor) -> Tensor:
    return h * 2.0 if x[0, 0, -1].mean().item() > 0 else h


def branches_on_any(h: Tensor, x: Tensor) -> Tensor:
    return h.sin() if (x[:, 0, -1] > 1.5).any() else h


def loops_to_a_value(h: Tensor, x: Tensor) -> Tensor:
    while h.abs().max().item() > 0.5:
        h = h * 0.7
    return h


def loops_a_count(h: Tensor, x: Tensor) -> Tensor:
    for _ in range(int(x[..., 0].abs().sum() * 2) % 4):
        h = h + h.cos()
    return h


def loops_over_samples(h: Tensor, x: Tensor) -> Tensor:
    return torch.stack([score * window.std() for score, window in zip(h, x, strict=True)])


def loops_and_branches(h: Tensor, x: Tensor) -> Tensor:
    return torch.stack(
        [score if window.mean() > 0 else -3 * score for score, window in zip(h, x, strict=True)]
    )


def batch_mean(h: Tensor, x: Tensor) -> Tensor:
    return h - h.mean(0, keepdim=True) * 0.5


def batch_rank(h: Tensor, x: Tensor) -> Tensor:
    return h * (1 + h.detach().mean(1).argsort().argsort()[:, None].to(h.dtype))


def couples_beyond(h: Tensor, x: Tensor) -> Tensor:
    return h - 0.5 * h.mean(0) if x.abs().max() > 4 else h


def couples_softly(h: Tensor, x: Tensor) -> Tensor:
    return h + torch.relu(x.abs().amax() - 3.2) * h.sum(0, keepdim=True)


def clips_by_total_norm(h: Tensor, x: Tensor) -> Tensor:
    return h / h.norm().clamp_min(4.0)


def first_window_decides(h: Tensor, x: Tensor) -> Tensor:
    return h * torch.sigmoid(x[:1].mean())


def asserts(h: Tensor, x: Tensor) -> Tensor:
    assert torch.isfinite(h).all()
    assert x.std() > 0, "a window without movement"
    return h


def raises_on_nan(h: Tensor, x: Tensor) -> Tensor:
    if not torch.isfinite(x).all():
        raise ValueError("input is not finite")
    return h


def catches(h: Tensor, x: Tensor) -> Tensor:
    try:
        return torch.cholesky_solve(h[..., None], torch.linalg.cholesky(x[:, 0, :5].mT + x[:, 0, :5]))[
            ..., 0
        ]
    except torch.linalg.LinAlgError:
        return h.cos()


def checks_args(h: Tensor, x: Tensor) -> Tensor:
    torch._assert(x.ndim == 4, "four dimensions")
    torch._assert((h.abs() < 1e6).all(), "bounded")
    return h


def boolean_index(h: Tensor, x: Tensor) -> Tensor:
    out = torch.zeros_like(h)
    out[h > 0] = 2 * h[h > 0]
    return out + h


def nonzero(h: Tensor, x: Tensor) -> Tensor:
    places = (h > 0).nonzero()
    return h.index_put(tuple(places.mT), h[tuple(places.mT)].square(), accumulate=True)


def masked_select(h: Tensor, x: Tensor) -> Tensor:
    return (
        h * x.masked_select(x.abs() < 1.0).numel() / x.numel()
        if len(x) == 1
        else torch.cat([masked_select(h[i : i + 1], x[i : i + 1]) for i in range(len(x))])
    )


def unique(h: Tensor, x: Tensor) -> Tensor:
    return h * (1.0 + len(torch.unique((h > 0).sum(1))))


def slice_written(h: Tensor, x: Tensor) -> Tensor:
    out = torch.empty_like(h)
    out[:, 0], out[:, 1:] = h[:, 0].sin(), h[:, 1:] * x[:, 0, -1, 1:]
    return out


def zeros_written(h: Tensor, x: Tensor) -> Tensor:
    out = torch.zeros(len(h), ASSETS, dtype=h.dtype)
    for asset in range(ASSETS):
        out[:, asset] = h[:, asset] * (asset + 1)
    return out


def input_written(h: Tensor, x: Tensor) -> Tensor:
    x[:, 0, 0] = 0.0
    x.mul_(2.0)
    return h + x.mean((1, 2))


def chosen_rows(h: Tensor, x: Tensor) -> Tensor:
    best = h.argmax(1)
    return h + x[torch.arange(len(x)), :, -1].mean(1) * nn.functional.one_hot(best, ASSETS)


def where(h: Tensor, x: Tensor) -> Tensor:
    return torch.where(h > 0, h.clamp_min(1e-12).sqrt(), h * x[:, 0, -1])


def scatter(h: Tensor, x: Tensor) -> Tensor:
    return h.scatter_add(1, x[:, 0].argmax(1) % ASSETS, x[:, 1, 0])


def numpy_trip(h: Tensor, x: Tensor) -> Tensor:
    return torch.from_numpy(np.tanh(h.detach().numpy()))


def numpy_scale(h: Tensor, x: Tensor) -> Tensor:
    return h * torch.as_tensor(np.std(x.detach().numpy(), axis=(1, 2)))


def to_list(h: Tensor, x: Tensor) -> Tensor:
    return h * torch.tensor([max(row) for row in h.tolist()], dtype=h.dtype)[:, None]


def noise(h: Tensor, x: Tensor) -> Tensor:
    return h + 0.3 * torch.randn_like(h)


def gumbel(h: Tensor, x: Tensor) -> Tensor:
    return nn.functional.gumbel_softmax(h, tau=1.0)


def dropout_always(h: Tensor, x: Tensor) -> Tensor:
    return nn.functional.dropout(h, 0.5, training=True)


def python_noise(h: Tensor, x: Tensor) -> Tensor:
    return h * random.random()


def seeded_noise(h: Tensor, x: Tensor) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    return h + torch.randn(ASSETS, generator=generator, dtype=h.dtype)


def log_density(h: Tensor, x: Tensor) -> Tensor:
    cov = x[:, 0].mT @ x[:, 0] / LOOKBACK + torch.eye(ASSETS, dtype=x.dtype)
    law = torch.distributions.MultivariateNormal(torch.zeros_like(h), cov)
    return h + 0.1 * law.log_prob(x[:, 1, -1])[:, None] * h


def unchecked_density(h: Tensor, x: Tensor) -> Tensor:
    law = torch.distributions.Normal(h, x[:, 0].std(1), validate_args=False)
    return law.log_prob(x[:, 1, -1])


class Packed(Allocator):
    """A recurrent layer over packed sequences."""

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.head = nn.GRU(CHANNELS * ASSETS, 6, batch_first=True), nn.Linear(6, ASSETS)

    def scores(self, x: Tensor) -> Tensor:
        packed = rnn.pack_padded_sequence(days(x), [LOOKBACK - 1] * len(x), batch_first=True)
        out, _ = rnn.pad_packed_sequence(self.cell(packed)[0], batch_first=True)
        return 3.0 * self.head(out[:, -1])


class CountedWindows(Allocator):
    """Padding of a length that the window decides, one window after the other."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(CHANNELS, 1)

    def scores(self, x: Tensor) -> Tensor:
        lengths = [1 + int((window[0, :, 0] > 0).sum()) for window in x]
        means = [window[:, -length:].mean(1) for window, length in zip(x, lengths, strict=True)]
        return self.head(torch.stack(means).mT)[..., 0]


class FewAssets(Allocator):
    """Attention of each asset to those that rose, picked by a boolean index."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(CHANNELS * LOOKBACK, 4)

    def scores(self, x: Tensor) -> Tensor:
        tokens, rows = self.embed(assets(x)), []
        for token, window in zip(tokens, x, strict=True):
            rose = token[window[0].sum(0) >= window[0].sum(0).median()]
            rows.append((torch.softmax(token @ rose.mT, -1) @ rose).sum(-1))
        return 3.0 * torch.stack(rows)


COUPLED: tuple[Flow, ...] = (
    batch_mean,
    batch_rank,
    couples_softly,
    clips_by_total_norm,
    first_window_decides,
)
DECIDING: tuple[Flow, ...] = (  # by values of the whole batch
    branches_on_sum,
    branches_on_item,
    branches_on_any,
    loops_to_a_value,
    loops_a_count,
    unique,
    catches,
)
FOLDED: tuple[Flow, ...] = (
    asserts,
    raises_on_nan,
    checks_args,
    boolean_index,
    nonzero,
)  # of samples alone
PLAIN: tuple[Flow, ...] = (
    slice_written,
    input_written,
    where,
    scatter,
    unchecked_density,
)
NOISE: tuple[Flow, ...] = (noise, gumbel, dropout_always, python_noise)


def _flow(flow: Flow, **flags: object) -> Entry:
    return Entry(lambda: Flows(flow), **flags)  # type: ignore[arg-type]


CONTROL_FLOW: Catalogue = {
    **{flow.__name__: _flow(flow, samples=False) for flow in COUPLED},
    **{flow.__name__: _flow(flow, samples=False, mappable=False) for flow in DECIDING},
    **{flow.__name__: _flow(flow, mappable=False) for flow in FOLDED},
    **{flow.__name__: _flow(flow) for flow in PLAIN},
    **{flow.__name__: _flow(flow, noisy=True) for flow in NOISE},
    "couples_beyond": _flow(couples_beyond, samples=False, mappable=False, lr=2000.0),
    "loops_over_samples": _flow(loops_over_samples, samples=False),
    "loops_and_branches": _flow(loops_and_branches, samples=False, mappable=False),
    "masked_select": _flow(masked_select, samples=False, mappable=False),
    "log_density": _flow(log_density, mappable=False),
    "numpy_trip": _flow(
        numpy_trip, mappable=False, verdict="has no gradient", warns="no gradient reaches the input"
    ),
    "numpy_scale": _flow(numpy_scale, mappable=False, verdict="does NOT agree"),
    "to_list": _flow(to_list, mappable=False, verdict="does NOT agree"),
    "packed": Entry(Packed, mappable=False),
    "counted_windows": Entry(CountedWindows, samples=False, mappable=False),
    "few_assets": Entry(FewAssets, samples=False, mappable=False),
}
