"""The pure function of a network: parameters are in its private copy only while a call needs them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from threading import RLock
from typing import Any

import torch
from torch import Tensor
from torch._C import _functorch
from torch.nn.utils import parametrize

from funcexplain.networks.dropout import SeededDropout
from funcexplain.networks.pickling import Unpicklable
from funcexplain.networks.prepare import Copy
from funcexplain.networks.versions import without_transforms

Params = Any
Apply = Callable[[Params, Tensor], Tensor]

SEED = "dropout.seed"


class Network(Unpicklable):
    """The ``apply`` that `functionalize` returns.

    Attributes:
        pending: raises unless the copy, at a window, equals the module that it was made from; called
            with the first window that the network sees, unless that was done before.
        module: the private copy.
        own: the tensors that are in it between calls, those of the caller's module.
        draws: whether the network draws random numbers in eval mode, so that no answer is repeatable.
    """

    def __init__(self, copy: Copy, params: dict[str, Tensor]) -> None:
        self.pending: Callable[[Tensor], None] | None = None
        self.draws = False
        self.module, self._slots = copy.network, copy.slots
        buffers = dict(self.module.named_buffers())
        own = {**dict(self.module.named_parameters()), **buffers}
        # What is in the module now: its own tensors, or those of `bind`.
        self._current = self.own = {name: own[name] for name in params if name != SEED}
        self._buffers = [name for name in self._current if name in buffers]
        names = {id(tensor): name for name, tensor in self._current.items()}
        # A tensor may have several places, as tied parameters do.
        self._places: list[tuple[dict[str, Any], str, str]] = [
            (table, key, names[id(tensor)])
            for part in self.module.modules()
            for table in (part._parameters, part._buffers)
            for key, tensor in table.items()
            if id(tensor) in names
        ]
        self._bound: Params = None
        self._writes, self._tried = False, False
        # Parameters are in the module during a call, so only one thread may call at a time.
        self._lock = RLock()

    def __call__(self, params: Params, x: Tensor) -> Tensor:
        """Map one window ``(C, L, A)`` to weights ``(A,)``."""
        return self.samples(params, x[None])[0]

    def samples(self, params: Params, xs: Tensor) -> Tensor:
        """Map windows ``(N, C, L, A)`` to weights ``(N, A)`` by the network's own sample dimension."""
        if self.pending is not None and len(xs):
            self.verify(xs[0])
        with SeededDropout(params[SEED]) if SEED in params else nullcontext(), self.bind(params):
            # The network may modify its input in place.
            out = self.module(xs.clone())
            self._undo_writes(params)
        if not isinstance(out, Tensor):
            raise TypeError(
                "network must return one tensor of weights (n_samples, n_assets), got "
                f"{type(out).__name__}; wrap it in a module that returns the weights alone"
            )
        if out.ndim != 2 or out.shape[0] != xs.shape[0]:
            raise ValueError(
                "network must return weights of shape (n_samples, n_assets); for one sample of shape "
                f"{tuple(xs.shape[1:])} it returned shape {tuple(out.shape)}"
            )
        return out

    def verify(self, x: Tensor) -> None:
        """Hold the copy against the caller's module at one window, unless that was done before."""
        pending, self.pending = self.pending, None
        if pending is None or torch._C._len_torch_dispatch_stack():  # is being traced
            self.pending = pending
            return
        try:
            with without_transforms():
                pending(_unwrapped(x))
        except Exception:
            self.pending = pending
            raise

    @contextmanager
    def bind(self, params: Params) -> Iterator[None]:
        """Keep parameters in the module, for calls with the same ones and for backward passes."""
        with self._lock:
            if self._holds(params):
                yield
                return
            if params.keys() - {SEED} != self._current.keys():
                raise ValueError(
                    "network: params must hold the names that functionalize returned, got a difference "
                    f"in {sorted((params.keys() - {SEED}) ^ self._current.keys())}"
                )
            outer = self._bound, self._current
            # torch's cache of parametrized tensors would serve those of one model to another.
            cache, parametrize._cache_enabled = parametrize._cache_enabled, 0
            self._put({name: params[name] for name in self._current} | self._copied_buffers(params))
            self._bound = params
            try:
                yield
            finally:
                parametrize._cache_enabled = cache
                self._bound = outer[0]
                self._put(outer[1])

    def _holds(self, params: Params) -> bool:
        """Whether these parameters are in the module."""
        bound = self._bound
        if bound is None or bound is params:
            return bound is not None
        return all(params.get(name) is bound[name] for name in self._current)

    def _put(self, tensors: dict[str, Tensor]) -> None:
        """Put tensors into all of their places."""
        for table, key, name in self._places:
            table[key] = tensors[name]
        for slot in self._slots:
            slot.put(tensors[slot.name])
        self._current = tensors

    def _copied_buffers(self, params: Params) -> dict[str, Tensor]:
        return {name: params[name].clone() for name in self._buffers}

    def _undo_writes(self, params: Params) -> None:
        """Renew the buffers if the forward pass wrote to them (a counter, a cache): calls are pure."""
        if not self._buffers:
            return
        now = self._current
        if not self._writes:
            self._writes = any(
                table.get(key) is not now[name] or now[name]._version
                for table, key, name in self._places
                if name in self._buffers
            )
            if not (self._tried or self._writes or torch._C._are_functorch_transforms_active()):
                # A write through `.data` is not counted.
                self._tried = True
                self._writes = any(not torch.equal(now[name], params[name]) for name in self._buffers)
        if self._writes:
            self._put(now | self._copied_buffers(params))


def bound(apply: Apply, params: Params) -> AbstractContextManager[None]:
    """Keep parameters in a network for many calls with the same ones, and for their backward passes.

    Putting parameters into a network and removing them costs as much as a small network. Some networks
    read them in the backward pass (activation checkpointing, reversible layers), after the call. Inside
    this context neither matters. Functions that are not from `functionalize` need no context.

    Example:
        >>> network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Softmax(-1))
        >>> from funcexplain import functionalize
        >>> apply, params = functionalize(network)
        >>> with bound(apply, params):
        ...     apply(params, torch.zeros(1, 1, 2))
        tensor([0.5000, 0.5000])
    """
    return apply.bind(params) if isinstance(apply, Network) else nullcontext()


def set_seed(params: Params, seed: Tensor) -> Params:
    """Set the dropout seed, a scalar int64 tensor, if the parameters have one.

    Example:
        >>> set_seed({"dropout.seed": torch.tensor(0)}, torch.tensor(7))
        {'dropout.seed': tensor(7)}
    """
    return {**params, SEED: seed} if isinstance(params, dict) and SEED in params else params


def _unwrapped(x: Tensor) -> Tensor:
    """One plain window under all transforms, none of which may be active."""
    mapped = []
    while _functorch.is_functorch_wrapped_tensor(x):
        if _functorch.is_batchedtensor(x):
            mapped.append(_functorch.maybe_get_bdim(x))
        x = _functorch.get_unwrapped(x)
    for dim in reversed(mapped):
        x = x.select(dim, 0)
    return x.detach()
