"""Allocation networks and layers of the literature, in small."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from tests.catalogue.entry import Allocator, Catalogue, Entry, assets, days, histories
from tests.helpers import ASSETS, CHANNELS, LOOKBACK, SIZE

HISTORY = CHANNELS * LOOKBACK
DAY = CHANNELS * ASSETS


class EiieCnn(Allocator):
    """Jiang, Xu, Liang (2017): one convolution for every asset, and the last weights as a channel."""

    held: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.short, self.long = nn.Conv2d(CHANNELS, 2, (3, 1)), nn.Conv2d(2, 6, (LOOKBACK - 2, 1))
        self.vote, self.cash = nn.Conv2d(7, 1, 1), nn.Parameter(torch.zeros(1))
        self.register_buffer("held", torch.full((1, 1, 1, ASSETS), 1 / ASSETS))

    def scores(self, x: Tensor) -> Tensor:
        hidden = F.relu(self.long(F.relu(self.short(x / x[:, :, -1:].abs().add(1.0)))))
        votes = self.vote(torch.cat([hidden, self.held.expand(len(x), -1, -1, -1)], 1))
        return votes[:, 0, 0] + self.cash


class EiieRecurrent(Allocator):
    """Jiang, Xu, Liang (2017): one recurrent cell for every asset."""

    def __init__(self, cell: Callable[..., nn.Module]) -> None:
        super().__init__()
        self.cell, self.vote = cell(CHANNELS, 4, batch_first=True), nn.Linear(4, 1)

    def scores(self, x: Tensor) -> Tensor:
        return 3.0 * self.vote(self.cell(histories(x).mT)[0][:, -1]).view(len(x), ASSETS)


class DeepLob(Allocator):
    """Zhang, Zohren, Roberts (2019): inception over time, then a recurrent layer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(CHANNELS, 4, (1, ASSETS))
        self.branches = nn.ModuleList(nn.Conv2d(4, 3, (k, 1), padding=(k // 2, 0)) for k in (1, 3, 5))
        self.pool, self.after = nn.MaxPool2d((3, 1), 1, (1, 0)), nn.Conv2d(4, 3, 1)
        self.cell, self.head = nn.LSTM(12, 6, batch_first=True), nn.Linear(6, ASSETS)

    def scores(self, x: Tensor) -> Tensor:
        stem = F.leaky_relu(self.stem(x), 0.01)
        seen = [branch(stem) for branch in self.branches] + [self.after(self.pool(stem))]
        return 3.0 * self.head(self.cell(torch.cat(seen, 1)[..., 0].mT)[0][:, -1])


class SharpeLstm(Allocator):
    """Zhang, Zohren, Roberts (2020), Deep Learning for Portfolio Optimization."""

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.head = nn.LSTM(DAY, 6, 2, batch_first=True, dropout=0.2), nn.Linear(6, ASSETS)

    def scores(self, x: Tensor) -> Tensor:
        return 3.0 * self.head(self.cell(days(x))[1][0][-1])


class DeepMomentum(nn.Module):
    """Lim, Zohren, Roberts (2019): positions in (-1, 1), scaled by volatility."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(HISTORY, 6), nn.Tanh(), nn.Linear(6, 1), nn.Tanh())

    def forward(self, x: Tensor) -> Tensor:
        volatility = x[:, 0].std(1).clamp_min(1e-2)
        positions = self.body(assets(x))[..., 0] / volatility
        return positions / positions.abs().sum(-1, keepdim=True)


class MomentumTransformer(Allocator):
    """Wood et al. (2021): a gated recurrent layer under causal attention."""

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.gate = nn.GRU(DAY, 8, batch_first=True), nn.Linear(8, 16)
        self.attend, self.norm = nn.MultiheadAttention(8, 2, batch_first=True), nn.LayerNorm(8)
        self.head = nn.Linear(8, ASSETS)

    def scores(self, x: Tensor) -> Tensor:
        seen = self.cell(days(x))[0]
        later = torch.ones(LOOKBACK, LOOKBACK, dtype=torch.bool, device=x.device).triu(1)
        hidden = self.attend(seen, seen, seen, attn_mask=later, need_weights=False)[0]
        return self.head(self.norm(seen + F.glu(self.gate(hidden)))[:, -1])


class GatedResidual(nn.Module):
    """The gated residual network of the Temporal Fusion Transformer."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.second, self.gate = (nn.Linear(width, width) for _ in range(3))
        self.norm, self.drop = nn.LayerNorm(width), nn.Dropout(0.1)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.drop(self.second(F.elu(self.first(x))))
        return self.norm(x + torch.sigmoid(self.gate(hidden)) * hidden)


class TemporalFusion(Allocator):
    """Lim et al. (2021): a softmax over variables selects among gated residual networks."""

    def __init__(self) -> None:
        super().__init__()
        self.residuals = nn.ModuleList(GatedResidual(LOOKBACK) for _ in range(CHANNELS))
        self.select, self.head = nn.Linear(HISTORY, CHANNELS), nn.Linear(LOOKBACK, 1)

    def scores(self, x: Tensor) -> Tensor:
        chosen = torch.softmax(self.select(assets(x)), -1)
        hidden = torch.stack([net(x[:, c].mT) for c, net in enumerate(self.residuals)], -1)
        return self.head(torch.einsum("nalc,nac->nal", hidden, chosen))[..., 0]


class Tcn(Allocator):
    """Bai, Kolter, Koltun (2018): causal convolutions that are cut off at the end."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList(
            nn.Conv1d(c, 4, 2, dilation=d, padding=d) for c, d in ((CHANNELS, 1), (4, 2), (4, 4))
        )
        self.head = nn.Linear(4, 1)

    def scores(self, x: Tensor) -> Tensor:
        hidden = histories(x)
        for conv in self.convs:
            out = F.relu(conv(hidden)[..., :LOOKBACK])
            hidden = out + hidden if out.shape == hidden.shape else out
        return self.head(hidden[..., -1]).unflatten(0, (-1, ASSETS))[..., 0]


class WaveNet(Allocator):
    """van den Oord et al. (2016): gated activations, and skips that are summed."""

    def __init__(self) -> None:
        super().__init__()
        self.start = nn.Conv1d(CHANNELS, 4, 1)
        self.gates = nn.ModuleList(nn.Conv1d(4, 8, 2, dilation=d) for d in (1, 2))
        self.skips = nn.ModuleList(nn.Conv1d(4, 3, 1) for _ in range(2))
        self.head = nn.Linear(3, 1)

    def scores(self, x: Tensor) -> Tensor:
        hidden, total = self.start(histories(x)), torch.zeros((), dtype=x.dtype)
        for gate, skip in zip(self.gates, self.skips, strict=True):
            signal, switch = gate(hidden).chunk(2, 1)
            out = signal.tanh() * switch.sigmoid()
            total = total + skip(out)[..., -1]
            hidden = hidden[..., -out.shape[-1] :] + out
        return self.head(torch.relu(total)).view(-1, ASSETS)


class NBeats(Allocator):
    """Oreshkin et al. (2020): blocks that subtract what they explain."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(HISTORY, 8), nn.ReLU(), nn.Linear(8, HISTORY + 1)) for _ in range(3)
        )

    def scores(self, x: Tensor) -> Tensor:
        left = assets(x)
        forecast = torch.zeros_like(left[..., 0])
        for block in self.blocks:
            back, ahead = block(left).split([HISTORY, 1], -1)
            left, forecast = left - back, forecast + ahead.squeeze(-1)
        return forecast


class DLinear(Allocator):
    """Zeng et al. (2023): a moving average and its rest, each through one linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.trend, self.rest = nn.Linear(LOOKBACK, 1), nn.Linear(LOOKBACK, 1)
        self.average = nn.AvgPool1d(3, 1)

    def scores(self, x: Tensor) -> Tensor:
        series = x.mean(1).mT
        padded = torch.cat([series[..., :1], series, series[..., -1:]], -1)
        trend = self.average(padded)
        return (self.trend(trend) + self.rest(series - trend)).squeeze(-1)


class NLinear(Allocator):
    """Zeng et al. (2023): the last value subtracted, and added again."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(LOOKBACK, 1)

    def scores(self, x: Tensor) -> Tensor:
        series = x[:, 0].transpose(1, 2)
        last = series[..., -1:]
        return (self.linear(series - last) + last)[..., 0]


class RevIn(Allocator):
    """Kim et al. (2022): reversible normalization; its statistics are detached, as published."""

    def __init__(self, detach: bool) -> None:
        super().__init__()
        self.scale, self.shift = nn.Parameter(torch.ones(ASSETS)), nn.Parameter(torch.zeros(ASSETS))
        self.linear, self.detach = nn.Linear(LOOKBACK, 1), detach

    def scores(self, x: Tensor) -> Tensor:
        mean, std = x.mean(2, keepdim=True), (x.var(2, keepdim=True, correction=0) + 1e-5).sqrt()
        if self.detach:
            mean, std = mean.detach(), std.detach()
        normal = (x - mean) / std * self.scale + self.shift
        ahead = self.linear(normal.mT)[..., 0]
        return ((ahead - self.shift) / self.scale * std[:, :, 0] + mean[:, :, 0]).mean(1)


class PatchTst(Allocator):
    """Nie et al. (2023): patches of a history as tokens of a transformer."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.place = nn.Linear(4, 8), nn.Parameter(0.02 * torch.randn(CHANNELS * 2, 8))
        self.encoder = nn.TransformerEncoderLayer(8, 2, 8, 0.1, batch_first=True)
        self.head = nn.Linear(32, 1)

    def scores(self, x: Tensor) -> Tensor:
        patches = histories(x).unfold(-1, 4, 2).flatten(1, 2)
        hidden = self.encoder(self.embed(patches) + self.place)
        return self.head(hidden.flatten(1)).view(len(x), ASSETS)


class ITransformer(Allocator):
    """Liu et al. (2024): attention between assets, each embedded with all of its history."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.qkv = nn.Linear(HISTORY, 8), nn.Linear(8, 24)
        self.norm, self.head = nn.LayerNorm(8), nn.Linear(8, 1)

    def scores(self, x: Tensor) -> Tensor:
        tokens = self.embed(assets(x))
        heads = self.qkv(tokens).unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4)
        seen = F.scaled_dot_product_attention(*heads.unbind(0))
        return 3.0 * self.head(self.norm(tokens + seen.transpose(1, 2).flatten(2)))[..., 0]


class GraphAttention(Allocator):
    """Velickovic et al. (2018), over the assets whose correlation is above a threshold."""

    def __init__(self) -> None:
        super().__init__()
        self.project, self.ends, self.head = nn.Linear(HISTORY, 6), nn.Linear(6, 2), nn.Linear(6, 1)

    def scores(self, x: Tensor) -> Tensor:
        centered = x[:, 0] - x[:, 0].mean(1, keepdim=True)
        unit = centered / centered.norm(dim=1, keepdim=True)
        far = unit.mT @ unit < 0.1
        nodes = self.project(assets(x))
        ahead, behind = self.ends(nodes).split(1, -1)
        logits = F.leaky_relu(ahead + behind.mT, 0.2).masked_fill(far, float("-inf"))
        return self.head(F.elu(torch.softmax(logits, -1) @ nodes)).squeeze(-1)


class Experts(Allocator):
    """Jacobs et al. (1991): a softmax gate mixes experts."""

    def __init__(self) -> None:
        super().__init__()
        self.experts = nn.ModuleList(nn.Linear(SIZE, ASSETS) for _ in range(3))
        self.gate = nn.Linear(SIZE, 3)

    def scores(self, x: Tensor) -> Tensor:
        flat = x.flatten(1)
        opinions = torch.stack([expert(flat) for expert in self.experts], 1)
        return (torch.softmax(self.gate(flat), -1)[..., None] * opinions).sum(1)


class Capsules(Allocator):
    """Sabour, Frosst, Hinton (2017): squashed vectors, routed by agreement."""

    def __init__(self) -> None:
        super().__init__()
        self.votes = nn.Parameter(0.3 * torch.randn(ASSETS, CHANNELS, LOOKBACK, 4))

    def scores(self, x: Tensor) -> Tensor:
        votes = torch.einsum("ncla,aclk->nack", x, self.votes)
        routes = torch.zeros_like(votes[..., 0])
        for _ in range(2):
            mixed = (torch.softmax(routes, 2)[..., None] * votes).sum(2)
            square = mixed.square().sum(-1, keepdim=True)
            capsule = square / (1 + square) * mixed / (square + 1e-9).sqrt()
            routes = routes + (votes * capsule[:, :, None]).sum(-1)
        return 5.0 * capsule.norm(dim=-1)


class SqueezeExcite(Allocator):
    """Hu et al. (2018): channels scaled by a gate that sees their means."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.gate = (
            nn.Conv2d(CHANNELS, 4, (3, 1)),
            nn.Sequential(
                nn.AdaptiveAvgPool2d(1),
                nn.Conv2d(4, 2, 1),
                nn.SiLU(),
                nn.Conv2d(2, 4, 1),
                nn.Hardsigmoid(),
            ),
        )

    def scores(self, x: Tensor) -> Tensor:
        hidden = F.mish(self.conv(x))
        return (hidden * self.gate(hidden)).amax(2).sum(1)


class DeepSets(Allocator):
    """Zaheer et al. (2017): each asset sees itself and the mean of all."""

    def __init__(self) -> None:
        super().__init__()
        self.own, self.pooled = nn.Linear(HISTORY, 6), nn.Linear(HISTORY, 6, bias=False)
        self.head = nn.Linear(6, 1)

    def scores(self, x: Tensor) -> Tensor:
        items = assets(x)
        hidden = F.softplus(self.own(items) - self.pooled(items.mean(1, keepdim=True)))
        return self.head(hidden).squeeze(-1)


class SetTransformer(Allocator):
    """Lee et al. (2019): attention of assets to a few inducing points, and back."""

    def __init__(self) -> None:
        super().__init__()
        self.points, self.embed = nn.Parameter(torch.randn(1, 3, 8)), nn.Linear(HISTORY, 8)
        self.there, self.back = (nn.MultiheadAttention(8, 2, batch_first=True) for _ in range(2))
        self.head = nn.Linear(8, 1)

    def scores(self, x: Tensor) -> Tensor:
        items, points = self.embed(assets(x)), self.points.repeat(x.size(0), 1, 1)
        seen = points + self.there(points, items, items)[0]
        return 3.0 * self.head(items + self.back(items, seen, seen)[0])[..., 0]


PUBLISHED: Catalogue = {
    "eiie_cnn": Entry(EiieCnn, lr=30.0),
    "eiie_rnn": Entry(lambda: EiieRecurrent(nn.RNN)),
    "eiie_lstm": Entry(lambda: EiieRecurrent(nn.LSTM)),
    "deep_lob": Entry(DeepLob),
    "sharpe_lstm": Entry(SharpeLstm),
    "deep_momentum": Entry(DeepMomentum),
    "momentum_transformer": Entry(MomentumTransformer),
    "temporal_fusion": Entry(TemporalFusion),
    "tcn": Entry(Tcn),
    "wave_net": Entry(WaveNet),
    "n_beats": Entry(NBeats),
    "d_linear": Entry(DLinear),
    "n_linear": Entry(NLinear),
    "rev_in": Entry(lambda: RevIn(detach=False)),
    "rev_in_detached": Entry(lambda: RevIn(detach=True), verdict="does NOT agree"),
    "patch_tst": Entry(PatchTst),
    "i_transformer": Entry(ITransformer),
    "graph_attention": Entry(GraphAttention),
    "experts": Entry(Experts),
    "capsules": Entry(Capsules),
    "squeeze_excite": Entry(SqueezeExcite),
    "deep_sets": Entry(DeepSets),
    "set_transformer": Entry(SetTransformer),
}
