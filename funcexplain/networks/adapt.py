"""Networks with another layout of windows, other outputs, their own units, or more inputs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from funcexplain.networks.layouts import OWN, arrange, candidates, parse_layout

Horizon = int | Literal["mean"]
_ROUNDING = 1e-4


class Adapted(nn.Module):
    """The module that `adapt` returns; ``network`` is the given one."""

    mean: Tensor
    std: Tensor
    benchmark: Tensor

    def __init__(
        self,
        network: nn.Module,
        layout: str,
        output: str | int | None,
        horizon: Horizon | None,
        normalize: str | None,
        buffers: Mapping[str, Tensor],
        inputs: Mapping[str, Tensor],
        window: str | int | None,
    ) -> None:
        super().__init__()
        self.network, self.groups = network, parse_layout("adapt", layout)
        self.output, self.horizon, self.normalize = output, horizon, normalize
        self.scaled, self.active = "std" in buffers, "benchmark" in buffers
        for name, value in buffers.items():
            self.register_buffer(name, value)
        self.inputs = nn.Module()
        for name, value in inputs.items():
            self.inputs.register_buffer(name, value)
        self.given, self.window = tuple(inputs), window
        self.training = network.training  # train() would call that of an exported program, which raises

    def forward(self, x: Tensor) -> Tensor:
        """Map windows ``(N, C, L, A)`` to weights ``(N, A)``."""
        count = x.shape[0]
        if self.scaled:
            x = (x - self.mean) / self.std
        given = {name: getattr(self.inputs, name) for name in self.given}
        given = {name: value.expand(count, *value.shape) for name, value in given.items()}
        out = _pick(self._call(arrange(self.groups, x), given), self.output)
        if self.groups[0] == ("n", "a"):
            out = out.reshape(count, x.shape[-1], *out.shape[1:])
        weights = _at_horizon(out, self.horizon, x.shape[-1])
        if self.normalize == "softmax":
            weights = weights.softmax(-1)
        elif self.normalize == "sum":
            weights = weights / weights.sum(-1, keepdim=True)
        return weights - self.benchmark if self.active else weights

    def _call(self, window: Tensor, given: dict[str, Tensor]) -> Any:
        """The network at a window and the inputs, each an argument, or all in a dict or tuple."""
        if self.window is None:
            return self.network(window, **given)
        if isinstance(self.window, str):
            return self.network({self.window: window, **given})
        before, after = [*given.values()][: self.window], [*given.values()][self.window :]
        return self.network((*before, window, *after))


def adapt(
    network: nn.Module,
    *,
    layout: str = OWN,
    output: str | int | None = None,
    horizon: Horizon | None = None,
    normalize: Literal["softmax", "sum"] | None = None,
    mean: Tensor | None = None,
    std: Tensor | None = None,
    benchmark: Tensor | None = None,
    inputs: Mapping[str, Tensor] | None = None,
    window: str | int | None = None,
) -> nn.Module:
    """Adapt a network to windows ``(n_samples, C, L, A)`` and weights ``(n_samples, A)``.

    Args:
        network: a network of any of these forms; it does not change.
        layout: layout of its input, such as ``"n l (c a)"`` for a recurrent network over days,
            or ``"(n a) l c"`` for one of single assets, whose samples and assets are one axis.
        output: name or index of the weights, if it returns a tuple, dict or dataclass.
        horizon: for weights of several horizons, ``(n_samples, H, A)``: an index, or ``"mean"``.
        normalize: ``"softmax"`` for logits; ``"sum"`` divides scores by their sum.
        mean: for networks trained on ``(x - mean) / std``: a number for each channel, ``(C,)``, or a
            tensor that broadcasts to a window, such as ``(C, 1, 1)``.
        std: as ``mean``, positive; pass both or neither.
        benchmark: weights ``(A,)`` that are subtracted, so that targets and answers are active weights.
        inputs: more inputs by the names of its arguments, each for one sample; they stay fixed and are
            expanded over the samples.
        window: for a network that takes the window and ``inputs`` in one dict, the name of the window in
            it; in one tuple, its index. Default: each is an argument.

    Returns:
        A module for `problem`.

    Raises:
        TypeError: if an argument has another type.
        ValueError: for an invalid layout or ``window``, or if only one of ``mean`` and ``std`` is given.

    Example:
        >>> import torch, funcexplain as fe
        >>> class Desk(torch.nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.rnn, self.head = torch.nn.GRU(6, 4, batch_first=True), torch.nn.Linear(4, 2)
        ...     def forward(self, x):
        ...         hidden, _ = self.rnn(x)
        ...         return {"weights": self.head(hidden[:, -1]).softmax(-1), "hidden": hidden}
        >>> network = fe.adapt(Desk(), layout="n l (c a)", output="weights")
        >>> fe.problem(network, torch.tensor([0.7, 0.3]), torch.zeros(3, 5, 2))
        Problem(x0=(3, 5, 2), dtype=torch.float32, device=cpu, args=['mask', 'params', ...])
    """
    if not isinstance(network, nn.Module):
        raise TypeError(f"adapt: network must be a torch.nn.Module, got {type(network).__name__}")
    if isinstance(output, bool) or not isinstance(output, str | int | None):
        raise TypeError(f"adapt: output must be a name or an index, got {output!r}")
    if horizon != "mean" and (isinstance(horizon, bool) or not isinstance(horizon, int | None)):
        raise TypeError(f'adapt: horizon must be an index or "mean", got {horizon!r}')
    if normalize not in (None, "softmax", "sum"):
        raise ValueError(f'adapt: normalize must be "softmax" or "sum", got {normalize!r}')
    if isinstance(window, bool) or not isinstance(window, str | int | None):
        raise TypeError(f"adapt: window must be a name or an index, got {window!r}")
    if (mean is None) != (std is None):
        raise ValueError("adapt: mean and std must be given together, got one of them")
    buffers = {"mean": mean, "std": std, "benchmark": benchmark}
    kept = {name: _tensor(name, value) for name, value in buffers.items() if value is not None}
    for name in ("mean", "std"):
        if name in kept and kept[name].ndim == 1:
            kept[name] = kept[name].view(-1, 1, 1)
    if "std" in kept and bool((kept["std"] <= 0).any()):
        raise ValueError(
            f"adapt: std must be > 0, got a minimum of {float(kept['std'].min()):g}; use 1 for a "
            "constant channel"
        )
    more = {name: _tensor(f"inputs[{name!r}]", value) for name, value in (inputs or {}).items()}
    if isinstance(window, int) and not 0 <= window <= len(more):
        raise ValueError(f"adapt: window must be an index in 0 ... {len(more)}, or a name, got {window}")
    if window in more:
        raise ValueError(f"adapt: window must not have the name of an input, got {window!r}; rename one")
    return Adapted(network, layout, output, horizon, normalize, kept, more, window)


def fitting_layouts(network: nn.Module, window: Tensor, count: int, /, **settings: Any) -> list[str]:
    """Layouts in which a network maps windows ``(C, L, A)`` to ``count`` weights each.

    The library's own layout alone, if it fits; else all that fit and give the network different tensors.
    Samples must not affect each other. The network is called in eval mode, and must be in it.

    Args:
        network: the network.
        window: a window, whose days and assets are flipped for other samples.
        count: number of weights.
        settings: other arguments of `adapt`.

    Example:
        >>> network = torch.nn.Sequential(torch.nn.Conv1d(4, 4, 20), torch.nn.Flatten())
        >>> fitting_layouts(network, torch.rand(1, 20, 4), 4)
        ['n a l']
    """
    xs = torch.stack([window, window.flip(-1), window.flip(-2)])
    fitting, seen = list[str](), list[Tensor]()
    for layout in candidates(window.shape):
        arranged = arrange(parse_layout("adapt", layout), xs)
        same = any(other.shape == arranged.shape and torch.equal(other, arranged) for other in seen)
        if same or not _fits(adapt(network, layout=layout, **settings), xs, count):
            continue
        fitting.append(layout)
        seen.append(arranged)
        if layout == OWN:
            break
    return fitting


def _fits(network: nn.Module, xs: Tensor, count: int) -> bool:
    """Whether a network maps windows to weights, each on its own."""
    try:
        with torch.no_grad():
            together, alone = network(xs), network(xs[1:2])
            wanted = isinstance(together, Tensor) and together.shape == (len(xs), count)
            return wanted and torch.allclose(together[1:2], alone, rtol=1e-3, atol=_ROUNDING)
    except Exception:  # any type: this runs the user's network
        return False


def _pick(out: Any, key: str | int | None) -> Any:
    """The weights in what a network returns."""
    if key is None:
        if not isinstance(out, Tensor):
            raise TypeError(
                f"network must return one tensor of weights, got {type(out).__name__} of "
                f"{_describe(out)}; name "
                "them as output, a name or an index, in fe.adapt(network, output=...) or [network]"
            )
        return out
    try:
        attribute = isinstance(key, str) and not isinstance(out, Mapping)
        found = getattr(out, str(key)) if attribute else out[key]
    except (LookupError, AttributeError, TypeError):
        found = None
    if not isinstance(found, Tensor) or (isinstance(out, Tensor) and isinstance(key, int)):
        raise TypeError(f"network: output must be one of what it returns, {_describe(out)}; got {key!r}")
    return found


def outputs_of(out: Any) -> list[tuple[str | int, Tensor]]:
    """The tensors in a dict, tuple or dataclass, by name or index.

    Example:
        >>> outputs_of((None, torch.ones(1)))
        [(1, tensor([1.]))]
    """
    if isinstance(out, Mapping):
        items: Any = out.items()
    elif isinstance(out, tuple | list):
        items = enumerate(out)
    else:
        items = vars(out).items() if hasattr(out, "__dict__") and not isinstance(out, Tensor) else ()
    return [(name, value) for name, value in items if isinstance(value, Tensor)]


def _describe(out: Any) -> str:
    """Name and shape of each tensor that a network returns."""
    shapes = (f"{name!r} {tuple(value.shape)}" for name, value in outputs_of(out))
    return ", ".join(shapes) or type(out).__name__


def _at_horizon(out: Tensor, horizon: Horizon | None, num_assets: int) -> Tensor:
    """Weights ``(N, A)`` of one horizon, or the mean over horizons; an axis of size one is left out."""
    if out.ndim != 3:
        if horizon is not None:
            raise ValueError(
                f"network: horizon needs weights of shape (n_samples, H, A), got {tuple(out.shape)}; "
                "leave horizon out"
            )
        return out
    axis = 2 if out.shape[1] == num_assets and out.shape[2] not in (num_assets, num_assets + 1) else 1
    if horizon is None:
        if out.shape[axis] == 1:
            return out.squeeze(axis)
        raise ValueError(
            f"network must return weights (n_samples, A), got shape {tuple(out.shape)}; if they are for "
            f'{out.shape[axis]} horizons, give horizon, an index or "mean", in fe.adapt or [network]'
        )
    if horizon == "mean":
        return out.mean(axis)
    if not -out.shape[axis] <= horizon < out.shape[axis]:
        raise ValueError(f"network: horizon must be one of {out.shape[axis]}, got {horizon}")
    return out.select(axis, horizon)


def _tensor(name: str, value: Any) -> Tensor:
    """A copy of a floating tensor."""
    if not isinstance(value, Tensor) or not value.is_floating_point():
        kind = value.dtype if isinstance(value, Tensor) else type(value).__name__
        raise TypeError(f"adapt: {name} must be a floating tensor, got {kind}")
    return value.detach().clone()
