"""Compare a private copy with plain calls of the caller's own network.

No list of rules covers everything that a network may do: layers that the copy cannot find, hooks that
fill a dict of the caller's, settings that a stack of models ignores. One forward pass of both at one
window reveals these.
"""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakTensorKeyDictionary

from funcexplain.networks.convex_layers import ExactLayer
from funcexplain.networks.network import Apply, Network, Params, deferred_interrupts
from funcexplain.networks.plain import (
    Generators,
    call_in_eval_mode,
    captured_containers,
    containers_kept,
)
from funcexplain.networks.rounding import agree, coarsest_eps
from funcexplain.networks.stand_ins import replacement_of

# An exact allocator and the convex solver that it replaces differ by up to 0.008 in a weight.
_SOLVER_ATOL = 0.05
_CAUSES = (
    "usual causes are layers, parameters or features kept where named_modules() does not list them (in "
    "a list, a closure, a global, an object of your own), settings that differ between stacked models, "
    "and state that one call leaves to the next (a counter, a cache, a random generator); register "
    "layers as attributes, give all models the same settings, or pass a pure function as (apply, params)"
)


class Source(NamedTuple):
    """The module that a copy was made from.

    Attributes:
        module: the caller's own module; nothing of it changes.
        containers: mutable containers that it refers to.
        marks: of each parameter and buffer, a mark that changes when it is written to.
    """

    module: nn.Module
    containers: tuple[Any, ...]
    marks: tuple[Any, ...]

    @classmethod
    def of(cls, module: nn.Module, containers: tuple[Any, ...]) -> Source:
        """The source that a module is now."""
        return cls(module, (*containers, *captured_containers(module)), _marks(module))

    def verify(self, apply: Network, params: Params, x: Tensor) -> None:
        """Raise unless the copy holds the weights that the module holds in eval mode.

        One forward pass of each, at a window close to ``x``: at ``x`` itself, features that a hook kept
        from an earlier call may be right by chance. The copy is first called at another window, to
        reveal state between calls. A module that was trained since, or a copy that raises, is not
        compared.

        Args:
            apply: the copy.
            params: its parameters, those of the module.
            x: window ``(C, L, A)``.
        """
        if _marks(self.module) != self.marks:
            return
        failure: Exception | None = None
        # As a search calls it, with a gradient, where the network allows that.
        for window in (_nearby(x, 0.01)[None].requires_grad_(), x[None]):
            with (
                deferred_interrupts(),
                Generators(x.device) as generators,
                containers_kept(self.containers),
                warnings.catch_warnings(),
                torch.enable_grad(),
            ):
                warnings.simplefilter("ignore")
                try:
                    apply.samples(params, _nearby(x, -0.01)[None].requires_grad_())
                    generators.rewind()
                    copied = apply.samples(params, window)
                except Exception:
                    continue
                generators.rewind()
                try:
                    plain = call_in_eval_mode(self.module, window.detach())
                    if not (isinstance(plain, Tensor) and plain.is_floating_point()):
                        return  # the search refuses it
                    if drew := generators.have_moved():
                        again = call_in_eval_mode(self.module, window.detach())
                        drew = not _agree(apply, again, plain)
                except Exception as error:
                    failure = error
                    continue
            apply.draws = apply.draws or drew
            if not _agree(apply, copied, plain):  # both drew the same noise
                self._refuse(copied, plain)
            return
        if failure is not None:
            raise ValueError(
                f"functionalize: {type(self.module).__name__} in eval mode must accept the window, as "
                f"its private copy does, got {type(failure).__name__}: {failure}"
            ) from failure

    def _refuse(self, copied: Tensor, plain: Any) -> None:
        found = f"weights of shape {tuple(copied.shape)} and {getattr(plain, 'shape', type(plain))}"
        if isinstance(plain, Tensor) and plain.shape == copied.shape:
            found = f"weights that differ by {float((copied - plain).detach().abs().max()):.2g}"
        raise ValueError(
            f"functionalize: {type(self.module).__name__} in eval mode and its private copy with the "
            f"same parameters must hold the same weights, got {found} at one window; {_CAUSES}"
        )


class Origin(NamedTuple):
    """Where parameters come from: the tensors, the modules, and the copy that was made with them."""

    tensors: tuple[tuple[Callable[[], Tensor | None], int], ...]
    sources: tuple[Source, ...]
    apply: Callable[[], Network | None]


_ORIGINS: WeakTensorKeyDictionary = WeakTensorKeyDictionary()


def remember(params: dict[str, Tensor], sources: Sequence[Source], apply: Network) -> None:
    """Remember where parameters come from, for as long as they exist."""
    if params:
        tensors = tuple((weakref.ref(tensor), tensor._version) for tensor in params.values())
        first = next(iter(params.values()))
        _ORIGINS[first] = Origin(tensors, tuple(sources), weakref.ref(apply))


def origin_of(params: Params) -> Origin | None:
    """Where parameters come from, or None if that is unknown or one of them has changed."""
    if not isinstance(params, dict) or not params:
        return None
    tensors = list(params.values())
    if not all(isinstance(tensor, Tensor) for tensor in tensors):
        return None
    origin: Origin | None = _ORIGINS.get(tensors[0])
    if origin is None or len(origin.tensors) != len(tensors):
        return None
    pairs = zip(origin.tensors, tensors, strict=True)
    unchanged = all(ref() is t is not None and t._version == version for (ref, version), t in pairs)
    return origin if unchanged else None


def verify(apply: Apply, params: Params, x: Tensor, *, stacked: bool = False) -> None:
    """Raise unless a network with these parameters holds the weights of their modules.

    Args:
        apply: the network; functions that are not from `functionalize` are the caller's own.
        params: its parameters; stacked, those of several models.
        x: window ``(C, L, A)``.
        stacked: whether every tensor leads with a dimension of models.
    """
    if not isinstance(apply, Network):
        return
    apply.verify(x)
    origin = origin_of(params)
    if origin is not None and not stacked and origin.apply() is apply:
        return
    models = [params]
    if stacked:
        count = len(next(iter(params.values()))) if params else 0
        models = [{name: t[index] for name, t in params.items()} for index in range(count)]
    verify_models(apply, models, () if origin is None else origin.sources, x)


def verify_models(
    apply: Network, models: Sequence[Params], sources: Sequence[Source], x: Tensor
) -> None:
    """Raise unless one copy, with the parameters of several models, holds the weights of each.

    Args:
        apply: the copy.
        models: parameters.
        sources: the modules that they come from, if known.
        x: window ``(C, L, A)``.
    """
    if models:
        _check_binding(apply, models[0], x)
    if len(sources) == len(models):
        for index, (source, model) in enumerate(zip(sources, models, strict=True)):
            with naming_model(index, len(models)):
                source.verify(apply, model, x)


@contextmanager
def naming_model(index: int, count: int) -> Iterator[None]:
    """Name one model of several in the errors that refuse it."""
    try:
        yield
    except (TypeError, ValueError) as error:
        if count > 1:
            error.args = (f"{error} (modules[{index}] of {count})",)
        raise


def _check_binding(apply: Network, params: Params, x: Tensor) -> None:
    """Raise if a forward pass uses the module's own tensors instead of the given parameters."""
    given = {_storage(tensor) for tensor in params.values()}
    own = {_storage(tensor): name for name, tensor in apply.own.items()}
    with (
        deferred_interrupts(),
        Generators(x.device),
        _Uses({at: own[at] for at in own.keys() - given}) as uses,
    ):
        try:
            apply.samples(params, x[None])
        except Exception:
            return  # the search meets it again
    if uses.found:
        raise ValueError(
            "functionalize: the network must use the parameters that it is given, but it uses its own "
            f"{sorted(uses.found)} wherever it keeps them; {_CAUSES}"
        )


class _Uses(TorchFunctionMode):
    """Finds the calls of torch's functions that use tensors with some storages."""

    def __init__(self, names: dict[int, str]) -> None:
        super().__init__()
        self.names, self.found = names, set[str]()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call the function, and record the tensors that it uses."""
        for value in (*args, *(kwargs or {}).values()):
            for t in value if isinstance(value, list | tuple) else (value,):
                if isinstance(t, Tensor) and (name := self.name_of(t)):
                    self.found.add(name)
        return func(*args, **(kwargs or {}))

    def name_of(self, t: Tensor) -> str | None:
        """The name of the tensor whose memory this one uses."""
        with torch._C.DisableTorchFunction():
            return self.names.get(_storage(t))


def _marks(module: nn.Module) -> tuple[Any, ...]:
    tensors = [*module.named_parameters(), *module.named_buffers()]
    return tuple(
        (name, id(t), _storage(t), 0 if t.is_inference() else t._version) for name, t in tensors
    )


def _storage(t: Tensor) -> int:
    """Where a tensor's numbers are; 0 if that cannot be known."""
    return t.untyped_storage().data_ptr() if t.layout is torch.strided else 0


def _nearby(x: Tensor, size: float) -> Tensor:
    """A window close to another, with the same signs."""
    noise = torch.arange(x.numel(), dtype=x.dtype, device=x.device).cos().mul(size).view(x.shape)
    return torch.where(x == 0.0, noise.abs(), x * (1.0 + noise))


def _agree(apply: Network, a: Tensor, b: Tensor) -> bool:
    """Whether weights are equal but for rounding, and for the tolerance of convex solvers."""
    exact = any(isinstance(replacement_of(part), ExactLayer) for part in apply.module.modules())
    return agree(a, b, coarsest_eps(apply.own), _SOLVER_ATOL if exact else 0.0)
