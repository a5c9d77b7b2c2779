"""A private shallow copy of a network, in which rules replace parts that do not work under torch.func.

The copy shares the caller's parameters and buffers but owns every container around them (the dicts of
parameters, buffers, children and hooks, and plain lists and dicts), so that its mode can be set, parts
replaced and hooks added while the caller's module does not change. ``copy.deepcopy`` does not work: it
fails on networks with sparse buffers, such as those with a cvxpylayers layer.

A rule is a function ``module -> module``. It is called with the private copy of one module, after its
children, and returns the replacement; it may change the copy in place. Names of parameters and buffers
must not change.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from types import MethodType
from typing import Any, NamedTuple

from torch import Tensor, jit, nn
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase
from torch.nn.utils import parametrizations

from funcexplain.networks.attention import explicit_attention, plain_encoder, plain_encoder_layer
from funcexplain.networks.convex_layers import exact_or_opaque
from funcexplain.networks.deepdow_layers import OpaqueRows, differentiable_zoom
from funcexplain.networks.norms import affine_batch_norm, contiguous_cotangents, explicit_weight_norm
from funcexplain.networks.recurrent import explicit_cell, fold_recurrent

Rule = Callable[[nn.Module], nn.Module]
Rules = Mapping[Any, Rule] | Iterable[tuple[type[nn.Module], Rule]]  # keys: module types

# A dotted name is a type whose package need not be installed.
RULES: dict[type[nn.Module] | str, Callable[[Any], nn.Module]] = {
    _NormBase: contiguous_cotangents,
    _BatchNorm: affine_batch_norm,
    nn.RNNBase: fold_recurrent,
    nn.RNNCellBase: explicit_cell,
    nn.MultiheadAttention: explicit_attention,
    nn.TransformerEncoderLayer: plain_encoder_layer,
    nn.TransformerEncoder: plain_encoder,
    "cvxpylayers.torch.cvxpylayer.CvxpyLayer": exact_or_opaque,
    "deepdow.layers.allocate.NCO": OpaqueRows,
    "deepdow.layers.allocate.Resample": OpaqueRows,
    "deepdow.layers.transform.Zoom": differentiable_zoom,
}
if hasattr(parametrizations, "_WeightNorm"):  # since torch 2.1
    RULES[parametrizations._WeightNorm] = explicit_weight_norm

# The containers that nn.Module itself keeps.
_CONTAINERS = {name for name, value in vars(nn.Module()).items() if isinstance(value, dict | set)}


class Slot(NamedTuple):
    """A place outside of a module's own tables that holds a registered tensor, such as a list's item.

    Attributes:
        name: of the tensor, as ``named_parameters`` gives it.
        put: puts another tensor there.
    """

    name: str
    put: Callable[[Tensor], None]


class Copy(NamedTuple):
    """A private copy of a network; see `prepare`.

    Attributes:
        network: the copy, in the mode asked for and with the rules applied.
        slots: where it also keeps registered tensors.
        containers: the caller's own mutable containers that were copied.
        customized: whether a rule that is not the package's own changed a part.
    """

    network: nn.Module
    slots: tuple[Slot, ...] = ()
    containers: tuple[Any, ...] = ()
    customized: bool = False


class _Uncompiled(nn.Module):
    """Replaces the wrapper that torch.compile puts around a module; names do not change."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self._orig_mod = module

    def forward(self, *inputs: Any, **named: Any) -> Any:
        return self._orig_mod(*inputs, **named)


def register_rule(module_type: type[nn.Module], rule: Rule) -> None:
    """Add a rule that every later `functionalize` applies to modules of a type.

    It also applies to subclasses; if several rules match, that of the nearest base class applies. An
    earlier rule for the same type is replaced.

    Args:
        module_type: subclass of ``torch.nn.Module``.
        rule: function from a private copy of such a module to its replacement.

    Raises:
        TypeError: if ``module_type`` is not a module class or ``rule`` is not callable.

    Example:
        >>> import torch, funcexplain as fe
        >>> class Sign(torch.nn.Module):          # its gradient is zero everywhere
        ...     def forward(self, x):
        ...         return torch.sign(x)
        >>> fe.register_rule(Sign, lambda module: torch.nn.Tanh())
        >>> apply, params = fe.functionalize(torch.nn.Sequential(torch.nn.Flatten(), Sign()))
        >>> apply(params, torch.zeros(1, 1, 2))
        tensor([0., 0.])
    """
    if not (isinstance(module_type, type) and issubclass(module_type, nn.Module)):
        raise TypeError(
            f"register_rule: module_type must be a subclass of torch.nn.Module, got {module_type!r}"
        )
    if not callable(rule):
        raise TypeError(f"register_rule: rule must be callable, got {type(rule).__name__}")
    RULES[module_type] = rule


def prepare(module: nn.Module, *, train: bool = False, rules: Rules | None = None) -> Copy:
    """Copy a module shallowly, set the copy's mode, and apply rules to its parts (default: `RULES`).

    Forward hooks are kept; backward hooks, which torch.func cannot run, are removed.
    """
    table = _as_table(rules)
    twins: list[nn.Module] = []
    copies: dict[int, nn.Module] = {}

    def copy(part: nn.Module, path: str) -> nn.Module:
        if id(part) not in copies:
            _check_supported(part, path)
            if type(part).__name__ == "OptimizedModule":  # importing its class takes a second
                copies[id(part)] = _Uncompiled(copy(next(part.children()), path)).train(train)
                return copies[id(part)]
            twin = _twin(part, train)
            twins.append(twin)
            for name, child in part._modules.items():
                if child is not None:
                    twin._modules[name] = copy(child, f"{path}.{name}" if path else name)
            copies[id(part)] = _apply_rule(twin, table)
        return copies[id(part)]

    network = copy(module, "")
    for twin in twins:
        for name, value in vars(twin).items():
            if name not in ("_parameters", "_buffers", "_modules"):
                twin.__dict__[name] = _redirect(value, copies)
    return Copy(network)


def _check_supported(part: nn.Module, path: str) -> None:
    """Raise unless a module's parts are Python modules on one device."""
    if isinstance(part, jit.ScriptModule):
        raise TypeError(
            f"functionalize: expected a Python torch.nn.Module, but {path or 'the network'} is a "
            f"compiled {type(part).__name__}; pass the module that it was scripted from"
        )
    if isinstance(part, nn.DataParallel | nn.parallel.DistributedDataParallel):
        raise TypeError(
            f"functionalize: module must run on one device, got {type(part).__name__}; pass its .module"
        )


def _twin(part: nn.Module, train: bool) -> nn.Module:
    """A shallow copy of one module in a mode, with its own containers and no backward hooks."""
    twin = object.__new__(type(part))
    twin.__dict__.update(vars(part))
    for name in _CONTAINERS & vars(part).keys():
        twin.__dict__[name] = vars(part)[name].copy()
    twin._backward_hooks = OrderedDict()
    twin._backward_pre_hooks = OrderedDict()
    twin._compiled_call_impl = None  # bound to the caller's module
    twin.training = train
    return twin


def _apply_rule(twin: nn.Module, table: Mapping[Any, Rule]) -> nn.Module:
    """The module's replacement by the rule of its nearest base class, if there is one."""
    bases = type(twin).__mro__
    keys = (key for base in bases for key in (base, f"{base.__module__}.{base.__qualname__}"))
    rule = next((table[key] for key in keys if key in table), None)
    replacement = twin if rule is None else rule(twin)
    if not isinstance(replacement, nn.Module):
        raise TypeError(
            f"functionalize: rules[{type(twin).__name__}] must return a torch.nn.Module, got "
            f"{type(replacement).__name__}"
        )
    return replacement


def _redirect(value: Any, copies: Mapping[int, nn.Module]) -> Any:
    """An attribute with modules replaced by their copies; lists and dicts are always new.

    A list of layers or a bound method in an attribute (or as a hook) would otherwise run the caller's
    modules, in their mode and with their parameters.
    """
    if isinstance(value, nn.Module):
        return copies.get(id(value), value)
    if isinstance(value, MethodType) and id(value.__self__) in copies:
        return MethodType(value.__func__, copies[id(value.__self__)])
    if type(value) in (list, tuple):
        return type(value)(_redirect(item, copies) for item in value)
    if type(value) in (dict, OrderedDict):
        return type(value)((key, _redirect(item, copies)) for key, item in value.items())
    return value


def _as_table(rules: Rules | None) -> dict[Any, Rule]:
    try:
        table: dict[Any, Any] = dict(RULES if rules is None else rules)
    except (TypeError, ValueError):
        table = {"": rules}
    if not all(isinstance(key, type | str) and callable(rule) for key, rule in table.items()):
        raise TypeError(f"functionalize: rules must map module types to functions, got {rules!r}")
    return table
