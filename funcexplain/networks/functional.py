"""From a module to a pure function: ``module -> (apply, params)``.

``apply(params, x) -> weights`` is written for one example ``(C, L, A) -> (A,)``; batches come from
``torch.func.vmap`` alone. Parameters and buffers are in ``params``, so that they can be cast,
stacked, mapped and differentiated; the caller's module is read once and never modified.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from funcexplain.networks.network import SEED, Apply, Network, deferred_interrupts
from funcexplain.networks.objects import clone_tensor
from funcexplain.networks.opaque import Opaque
from funcexplain.networks.prepare import Rules, prepare
from funcexplain.networks.stand_ins import replacement_of
from funcexplain.networks.verify import Source, naming_model, remember, verify_models


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
        ValueError: if batch normalization is in training mode; from ``apply``, if the output does not
            have shape ``(1, A)`` for a batch of one, or if, at the first window, the copy's weights
            differ from the module's own in eval mode (for example, because it cannot find some layers).

    Example:
        >>> import torch, funcexplain as fe
        >>> network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(24, 4))
        >>> apply, params = fe.functionalize(network)
        >>> apply(params, torch.zeros(2, 3, 4)).shape
        torch.Size([4])
        >>> torch.func.jacrev(apply, argnums=1)(params, torch.zeros(2, 3, 4)).shape
        torch.Size([4, 2, 3, 4])
    """
    with deferred_interrupts():
        apply, params, source = _copy(module, train=train, rules=rules)
    if source is not None:
        apply.pending = partial(source.verify, apply, params)
        remember(params, [source], apply)
    return apply, params


def _copy(
    module: nn.Module, *, train: bool = False, rules: Rules | None = None
) -> tuple[Network, dict[str, Tensor], Source | None]:
    """The function of a private copy, its parameters, and the source that it can be compared with."""
    if not isinstance(module, nn.Module):
        raise TypeError(f"functionalize: module must be a torch.nn.Module, got {type(module).__name__}")
    copy = prepare(module, train=train, rules=rules)
    network = copy.network
    _check_training_mode(network)
    # Sparse buffers (the constants of a cvxpylayers layer) can be neither stacked nor mapped; they stay
    # in the network.
    buffers = {n: b for n, b in network.named_buffers() if b.layout is torch.strided}
    params = {n: clone_tensor(t) for n, t in {**dict(network.named_parameters()), **buffers}.items()}
    if train:
        device = next((tensor.device for tensor in params.values()), None)
        params[SEED] = torch.zeros((), dtype=torch.int64, device=device)
    # Neither seeded dropout nor a rule of the caller's means to give the module's own weights.
    comparable = not train and not copy.customized
    return Network(copy, params), params, Source.of(module, copy.containers) if comparable else None


def stack(modules: Sequence[nn.Module]) -> tuple[Apply, dict[str, Tensor]]:
    """Turn models of one architecture into one function with stacked parameters.

    Args:
        modules: M networks of the same class, with parameters of the same names, shapes and dtypes.
            Other settings (sizes, rates) are those of the first.

    Returns:
        ``(apply, params)``; every tensor of ``params`` has a leading dimension M, ready for
        ``torch.func.vmap(apply, in_dims=(0, None))``.

    Raises:
        ValueError: if there are no modules, or one does not match the first (with its index); at the
            first window, if a model's own weights differ from the first model's with its parameters.

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
    copies = []
    with deferred_interrupts():
        for index, module in enumerate(modules):
            with naming_model(index, len(modules)):
                copies.append(_copy(module))
    applies, models, sources = zip(*copies, strict=True)
    apply, (first, *others) = applies[0], models
    signature = {name: (tensor.shape, tensor.dtype) for name, tensor in first.items()}
    for index, params in enumerate(others, start=1):
        other = {name: (tensor.shape, tensor.dtype) for name, tensor in params.items()}
        if _parts(applies[index].module) != _parts(apply.module) or other != signature:
            differing = sorted(
                n for n in signature.keys() | other.keys() if signature.get(n) != other.get(n)
            )
            raise ValueError(
                f"stack: modules[{index}] ({type(modules[index]).__name__}) does not match modules[0] "
                f"({type(modules[0]).__name__}) in parts, settings or parameters, got a difference in "
                f"{differing or 'parts or settings'}"
            )
    stacked = {
        name: torch.stack([tensor, *(params[name] for params in others)])
        for name, tensor in first.items()
    }
    known = [source for source in sources if source is not None]
    if len(known) == len(modules):
        apply.pending = partial(verify_models, apply, models, known)
        remember(stacked, known, apply)
    return apply, stacked


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
