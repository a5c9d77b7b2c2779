"""The pure function of a network: parameters are in its private copy only while a call needs them.

Ctrl-C is deferred meanwhile, and never lost. A KeyboardInterrupt in the middle of a step would leave
torch.func's levels unbalanced; in a `finally` it would prevent restoring the caller's module; in a
finalizer, Python would ignore it. So `deferred_interrupts` holds a press back until `raise_pending`,
between two steps, or until its end. Enclosing searches then stop, too: the outermost one raises, or
returns INTERRUPTED.
"""

from __future__ import annotations

import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from types import FrameType
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
# Seconds after an interrupted answer in which the next search raises, so that a loop of searches ends.
_GRACE = 1.0
_raise_until = 0.0


class Network(Unpicklable):
    """The ``apply`` that `functionalize` returns.

    Attributes:
        pending: raises unless the copy agrees with its module at a window; called once, with the first
            window that the network sees.
        module: the private copy.
        own: the tensors in it between calls, those of the caller's module.
        draws: whether the network draws random numbers in eval mode, so that no answer is repeatable.
        tried: results of trials of how rows share a batch.
    """

    def __init__(self, copy: Copy, params: dict[str, Tensor]) -> None:
        self.pending: Callable[[Tensor], None] | None = None
        self.draws = False
        self.tried: dict[Any, Any] = {}
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
        self._lock = threading.RLock()

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
                f"{type(out).__name__}; wrap it in a module that returns the weights alone, such as "
                "fe.adapt(network, output=0)"
            )
        if out.ndim != 2 or out.shape[0] != xs.shape[0]:
            raise ValueError(
                "network must return weights of shape (n_samples, n_assets); for one sample of shape "
                f"{tuple(xs.shape[1:])} it returned shape {tuple(out.shape)}"
            )
        return out

    def verify(self, x: Tensor) -> None:
        """Compare the copy with the caller's module at one window, once."""
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

    Inserting and removing parameters costs as much as a small network, and some networks read them in
    the backward pass, after the call (activation checkpointing, reversible layers). This context solves
    both. Functions that are not from `functionalize` do not need it.

    Example:
        >>> network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Softmax(-1))
        >>> from funcexplain import functionalize
        >>> apply, params = functionalize(network)
        >>> with bound(apply, params):
        ...     apply(params, torch.zeros(1, 1, 2))
        tensor([0.5000, 0.5000])
    """
    return apply.bind(params) if hasattr(apply, "bind") else nullcontext()


def set_seed(params: Params, seed: Tensor) -> Params:
    """Set the dropout seed, a scalar int64 tensor, if the parameters have one.

    Example:
        >>> set_seed({"dropout.seed": torch.tensor(0)}, torch.tensor(7))
        {'dropout.seed': tensor(7)}
    """
    return {**params, SEED: seed} if isinstance(params, dict) and SEED in params else params


def warn_of_noise(where: str, apply: Apply) -> None:
    """Warn if a network draws random numbers in eval mode."""
    if getattr(apply, "draws", False):
        warnings.warn(
            f"{where}: the network draws random numbers in eval mode (Gumbel noise, dropout with "
            "training=True or in a plain list, which eval() does not reach): two forward passes at one "
            "window differ, so no answer can be repeated; functionalize(network, train=True) gives "
            "dropout a seed",
            stacklevel=3,
        )


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


def slope(
    outputs: Tensor, z: Tensor, direction: Tensor, *, batched: bool = False, retain_graph: bool = False
) -> Tensor:
    """The pullback of a direction, or of several.

    A network may ignore its input or cut the graph. The result is zero then, as in torch.func.
    """
    found = None
    if outputs.requires_grad:
        (found,) = torch.autograd.grad(
            outputs, z, direction, retain_graph, is_grads_batched=batched, allow_unused=True
        )
    return z.detach().new_zeros(*direction.shape[:batched], *z.shape) if found is None else found


class Hold:
    """A SIGINT handler that passes a press on to the caller's on request; a second one at once.

    Attributes:
        answered: whether the result of the section is marked INTERRUPTED.
        raised: whether the section raises a KeyboardInterrupt.
        presses: how many there were, of all handlers.
    """

    presses = 0

    def __init__(self, handler: Callable[[int, FrameType | None], object]) -> None:
        self.answered = self.raised = self.over = False
        self._handler, self._pressed = handler, False
        self._error: BaseException | None = None

    def __call__(self, number: int, frame: FrameType | None) -> None:
        """Handle a press."""
        if self._pressed or self.over:  # over: the caller has kept and installed this handler
            self._handler(number, frame)
        self._pressed = True
        Hold.presses += 1

    def stops(self) -> bool:
        """Whether a press ends the search: whether the caller's handler has raised."""
        if self._pressed and self._error is None:
            try:
                self._handler(signal.SIGINT, None)
                self._pressed = False
            except BaseException as error:  # raised at the end of the section
                self._error = error
        return self._error is not None

    def end(self) -> None:
        """Raise what the caller's handler raised, unless the section honors it."""
        global _raise_until
        stops, error, self._error, self.over = self.stops(), self._error, None, True
        if not stops or error is None:
            return
        if not isinstance(error, KeyboardInterrupt) or not (self.answered or self.raised):
            raise error
        if self.answered:
            _raise_until = time.monotonic() + _GRACE


@contextmanager
def deferred_interrupts() -> Iterator[Hold]:
    """Defer Ctrl-C until `raise_pending`, or the end of the outermost such section.

    Does nothing outside the main thread, or where the caller's SIGINT handler is not a Python function.
    """
    before = signal.getsignal(signal.SIGINT)
    if not _in_main_thread() or not callable(before):
        yield Hold(signal.default_int_handler)
    elif isinstance(before, Hold) and not before.over:
        try:
            yield before
        finally:
            before.answered = False  # only the outermost answer counts
    else:
        hold = Hold(before)
        try:
            signal.signal(signal.SIGINT, hold)
            yield hold
        except KeyboardInterrupt:
            hold.answered, hold.raised = False, True
            raise
        finally:
            if signal.getsignal(signal.SIGINT) is hold:  # otherwise the caller has replaced it
                signal.signal(signal.SIGINT, before)
            hold.end()


def raise_pending() -> None:
    """Raise a KeyboardInterrupt if a press was deferred; only in the main thread."""
    if not Hold.presses:  # asking for the handler takes time
        return
    hold = signal.getsignal(signal.SIGINT)
    if isinstance(hold, Hold) and not hold.over and _in_main_thread() and hold.stops():
        raise KeyboardInterrupt


def raise_repeated() -> None:
    """Raise a KeyboardInterrupt if an interrupted answer was returned within the last second."""
    global _raise_until
    if _raise_until and _in_main_thread():
        until, _raise_until = _raise_until, 0.0
        if time.monotonic() < until:
            raise KeyboardInterrupt


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()
