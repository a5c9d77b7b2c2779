"""From a module to a pure function: ``module -> (apply, params)``.

``apply(params, x) -> weights`` is written for one example ``(C, L, A) -> (A,)``; batches come from
``torch.func.vmap`` alone. Parameters and buffers are in ``params``, so that they can be cast,
stacked, mapped and differentiated; the caller's module is read once and never modified.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from threading import RLock
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd
from torch.nn.utils.stateless import _reparametrize_module

from funcexplain.networks.dropout import SeededDropout
from funcexplain.networks.opaque import Opaque
from funcexplain.networks.prepare import Rules, prepare
from funcexplain.networks.stand_ins import replacement_of

Params = Any

SEED = "dropout.seed"
Apply = Callable[[Params, Tensor], Tensor]


def functionalize(
    module: nn.Module, *, train: bool = False, rules: Rules | None = None
) -> tuple[Apply, dict[str, Tensor]]:
    """Turn a network into a pure function of its parameters and one input window.

    Args:
        module: network from ``(n_samples, C, L, A)`` to weights ``(n_samples, A)``. It is not modified.
        train: whether dropout is active. Its noise is a function of the scalar int64 tensor
            ``params["dropout.seed"]``, which a problem replaces by its own seed: one seed, one thinned
            network. Without that entry, noise comes from torch's global generator.
        rules: mapping ``module type -> rule`` for parts that do not work under torch.func (see
            `register_rule`). Default: the registry; ``()`` applies no rules.

    Returns:
        ``(apply, params)``: ``apply(params, x)`` maps ``(C, L, A)`` to weights ``(A,)``; ``params``
        holds detached copies of the parameters and buffers by their names in the module.

    Raises:
        TypeError: if ``module`` is not a (Python) module, or, from ``apply``, if it does not return one
            tensor.
        ValueError: if batch normalization is in training mode, or, from ``apply``, if the output does
            not have shape ``(1, A)`` for a batch of one.

    Example:
        >>> import torch, funcexplain as fe
        >>> network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(24, 4))
        >>> apply, params = fe.functionalize(network)
        >>> apply(params, torch.zeros(2, 3, 4)).shape
        torch.Size([4])
        >>> torch.func.jacrev(apply, argnums=1)(params, torch.zeros(2, 3, 4)).shape
        torch.Size([4, 2, 3, 4])
    """
    if not isinstance(module, nn.Module):
        raise TypeError(f"functionalize: module must be a torch.nn.Module, got {type(module).__name__}")
    network = prepare(module, train=train, rules=rules).network
    _check_training_mode(network)

    # Sparse buffers (the constants of a cvxpylayers layer) can be neither stacked nor mapped; they stay
    # in the network.
    buffers = {n: b for n, b in network.named_buffers() if b.layout is torch.strided}
    params = {n: t.detach().clone() for n, t in {**dict(network.named_parameters()), **buffers}.items()}

    names = frozenset(params)
    if train:
        device = next((tensor.device for tensor in params.values()), None)
        params[SEED] = torch.zeros((), dtype=torch.int64, device=device)
    return Network(network, names, frozenset(buffers)), params


class Network:
    """The ``apply`` that `functionalize` returns."""

    def __init__(
        self, module: nn.Module, names: frozenset[str], buffers: frozenset[str], lock: Any = None
    ) -> None:
        self._module, self._names, self._buffers = module, names, buffers
        # A call puts parameters into the module, so only one thread may call at a time.
        self._lock = lock or RLock()
        self._call: Callable[[Params, Tensor], Any] = self._call_once

    def __call__(self, params: Params, x: Tensor) -> Tensor:
        """Map one window ``(C, L, A)`` to weights ``(A,)``."""
        return self.samples(params, x[None])[0]

    def samples(self, params: Params, xs: Tensor) -> Tensor:
        """Map windows ``(N, C, L, A)`` to weights ``(N, A)`` by the network's own sample dimension."""
        with SeededDropout(params[SEED]) if SEED in params else nullcontext():
            # The network may modify its input in place.
            out = self._call(params, xs.clone())
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

    @contextmanager
    def bind(self, params: Params) -> Iterator[Network]:
        """Put parameters into the network once; see `bound`."""
        tensors = self._own(params)
        kept = [(name, t, t._version) for name, t in tensors.items() if name in self._buffers]
        fresh, writes = True, False

        def call(bound_params: Params, xs: Tensor) -> Any:
            nonlocal fresh, writes
            del bound_params
            if writes:
                return self._call_once(params, xs)
            out = self._module(xs)
            writes = any(
                t._version != version
                or self._module.get_buffer(name) is not t
                or (fresh and not torch.equal(t, params[name]))
                for name, t, version in kept
            )
            fresh = False
            return out

        prepared = Network(self._module, self._names, self._buffers, self._lock)
        prepared._call = call
        with self._lock, _reparametrize_module(self._module, tensors):
            yield prepared

    def __deepcopy__(self, memo: Any) -> Network:
        return self  # immutable

    def _call_once(self, params: Params, xs: Tensor) -> Any:
        with self._lock:
            return functional_call(self._module, self._own(params), (xs,))

    def _own(self, params: Params) -> dict[str, Tensor]:
        # functional_call would use the network's own tensors for missing names, and ignore unknown ones.
        if params.keys() - {SEED} != self._names:
            raise ValueError(
                "network: params must hold the names that functionalize returned, got a difference in "
                f"{sorted((params.keys() - {SEED}) ^ self._names)}"
            )
        # A forward pass may write to buffers (a counter, a cache); copies keep the call pure.
        return {
            name: params[name].clone() if name in self._buffers else params[name] for name in self._names
        }


def bound(apply: Apply, params: Params) -> AbstractContextManager[Apply]:
    """Prepare a network for many calls with the same parameters.

    ``functional_call`` puts parameters into the network and removes them at every call, which costs as
    much as a small network. Here it is done once. The context holds an ``apply`` that ignores its params
    argument; functions that are not from `functionalize` do not change.

    Example:
        >>> network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Softmax(-1))
        >>> apply, params = functionalize(network)
        >>> with bound(apply, params) as prepared:
        ...     prepared(params, torch.zeros(1, 1, 2))
        tensor([0.5000, 0.5000])
    """
    return apply.bind(params) if isinstance(apply, Network) else nullcontext(apply)


def set_seed(params: Params, seed: Tensor) -> Params:
    """Set the dropout seed, a scalar int64 tensor, if the parameters have one.

    Example:
        >>> set_seed({"dropout.seed": torch.tensor(0)}, torch.tensor(7))
        {'dropout.seed': tensor(7)}
    """
    return {**params, SEED: seed} if isinstance(params, dict) and SEED in params else params


def stack(modules: Sequence[nn.Module]) -> tuple[Apply, dict[str, Tensor]]:
    """Turn models of one architecture into one function with stacked parameters.

    Args:
        modules: M networks of the same class, with parameters of the same names, shapes and dtypes.
            Other settings (sizes, rates) are those of the first.

    Returns:
        ``(apply, params)``; every tensor of ``params`` has a leading dimension M, ready for
        ``torch.func.vmap(apply, in_dims=(0, None))``.

    Raises:
        ValueError: if there are no modules, or one does not match the first (with its index).

    Example:
        >>> import torch, funcexplain as fe
        >>> def make():
        ...     return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(24, 4))
        >>> apply, params = fe.stack([make(), make(), make()])
        >>> torch.func.vmap(apply, in_dims=(0, None))(params, torch.zeros(2, 3, 4)).shape
        torch.Size([3, 4])
    """
    if isinstance(modules, nn.Module) or not isinstance(modules, Iterable):
        raise TypeError(
            f"stack: modules must be a list of networks, got {type(modules).__name__}; "
            "a ModuleList converts with list(...)"
        )
    modules = list(modules)
    if not modules:
        raise ValueError("stack: modules must hold at least one network, got none")
    for index, module in enumerate(modules):
        if not isinstance(module, nn.Module):
            raise TypeError(
                f"stack: modules[{index}] must be a torch.nn.Module, got {type(module).__name__}"
            )
    (apply, first), *others = [functionalize(module) for module in modules]
    signature = {name: (tensor.shape, tensor.dtype) for name, tensor in first.items()}
    for index, (_, params) in enumerate(others, start=1):
        other = {name: (tensor.shape, tensor.dtype) for name, tensor in params.items()}
        if _parts(modules[index]) != _parts(modules[0]) or other != signature:
            differing = sorted(
                n for n in signature.keys() | other.keys() if signature.get(n) != other.get(n)
            )
            raise ValueError(
                f"stack: modules[{index}] ({type(modules[index]).__name__}) does not match modules[0] "
                f"({type(modules[0]).__name__}) in parts, settings or parameters, got a difference in "
                f"{differing or 'parts or settings'}"
            )
    return apply, {
        name: torch.stack([tensor, *(params[name] for _, params in others)])
        for name, tensor in first.items()
    }


def _parts(module: nn.Module) -> list[tuple[str, str, str]]:
    """The parts of a network with their printed settings."""
    # Class names, since torch makes a new class for every parametrized layer.
    return [(name, type(p).__qualname__, p.extra_repr()) for name, p in module.named_modules()]


def _check_training_mode(network: nn.Module) -> None:
    """Raise if a part in training mode would mix rows, or draw noise that cannot be seeded."""
    for name, part in network.named_modules():
        if isinstance(part, _BatchNorm) and part.training and part.running_mean is not None:
            raise ValueError(
                f"functionalize: train=True, but {name or 'the network'} ({type(part).__name__}) would "
                "mix the rows of a batch and move its running statistics in training mode; use "
                "train=False, or give it track_running_stats=False"
            )
        inside = part.modules() if isinstance(replacement_of(part), Opaque) else ()
        drops = [p for p in inside if isinstance(p, _DropoutNd) and p.training and p.p > 0]
        if drops:
            raise ValueError(
                f"functionalize: train=True, but {name or 'the network'} is opaque and holds a "
                f"{type(drops[0]).__name__}, which cannot be seeded there; use train=False, or keep "
                "dropout outside of the opaque part"
            )
