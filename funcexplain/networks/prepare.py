"""A private shallow copy of a network, in which rules replace parts that do not work under torch.func.

The copy shares the caller's parameters and buffers but owns every container around them (the dicts of
parameters, buffers, children and hooks, and what attributes hold, see `references`), so that its mode
can be set, parts replaced and hooks added while the caller's module does not change. ``copy.deepcopy``
does not work: it fails on networks with sparse buffers, such as those with a cvxpylayers layer.

A class that overrides ``train`` or ``eval`` may do more than set a flag: merge an adapter, or set a
temperature. It is called on a first copy with private tensors.

A rule is a function ``module -> module``. It is called with the private copy of one module, after its
children, and returns the replacement; it may change the copy in place. Names of parameters and buffers
must not change. To its parent a replaced layer looks unchanged (see `stand_in`).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.utils.weight_norm import WeightNorm

from funcexplain.networks.attention import explicit_attention, plain_encoder, plain_encoder_layer
from funcexplain.networks.convex_layers import exact_or_opaque
from funcexplain.networks.deepdow_layers import OpaqueRows, differentiable_zoom, mapped_root
from funcexplain.networks.foreign import Foreign, is_foreign
from funcexplain.networks.norms import (
    ExplicitWeightNorm,
    affine_batch_norm,
    contiguous_cotangents,
    explicit_weight_norm,
)
from funcexplain.networks.objects import attributes, clone_tensor, setter
from funcexplain.networks.plain import overrides_mode
from funcexplain.networks.recurrent import explicit_cell, fold_recurrent
from funcexplain.networks.references import REGISTRIES, TABLES, Place, redirect
from funcexplain.networks.stand_ins import stand_in

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
    "torch.nn.utils.parametrizations._WeightNorm": explicit_weight_norm,  # since torch 2.1
    "cvxpylayers.torch.cvxpylayer.CvxpyLayer": exact_or_opaque,
    "deepdow.layers.misc.CovarianceMatrix": mapped_root,
    "deepdow.layers.allocate.NCO": OpaqueRows,
    "deepdow.layers.allocate.Resample": OpaqueRows,
    "deepdow.layers.transform.Zoom": differentiable_zoom,
}
_OWN_RULES = tuple(RULES.values())


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
        network: the copy, in the requested mode and with the rules applied.
        slots: where it also keeps registered tensors.
        containers: the caller's own mutable containers that were copied.
        customized: whether a user's rule changed a part.
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

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("_orig_mod"), name)


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
    _check_tree(module, "", {}, set())
    own_modes = any(_sets_mode(part) for part in module.modules())
    with torch.random.fork_rng(devices=[]):  # rules and modes may draw
        containers: list[Any] = []
        if own_modes:
            module, places, containers = _copy(module, {}, None)
            _clone_tensors(module, places)
            # As the caller would: the classes of parts may override only one of these.
            module.train() if train else module.eval()
        network, places, copied = _copy(module, table, None if own_modes else train)
    names = {id(t): name for name, t in [*network.named_buffers(), *network.named_parameters()]}
    slots = tuple(Slot(names[id(p.tensor)], p.put) for p in places if id(p.tensor) in names)
    chosen = [_rule_of(part, table) for part in module.modules()]
    customized = any(rule is not None and rule not in _OWN_RULES for rule in chosen)
    return Copy(network, slots, tuple(containers if own_modes else copied), customized)


def _copy(
    module: nn.Module, table: Mapping[Any, Rule], train: bool | None
) -> tuple[nn.Module, list[Place], list[Any]]:
    """Copy a module and all that it refers to; ``train=None`` keeps the modes of its parts."""
    copies: dict[int, Any] = {}
    private: list[nn.Module] = []

    def copy(part: nn.Module, path: str) -> nn.Module:
        if id(part) not in copies:
            copies[id(part)] = new = copy_once(part, path)
            for name in TABLES & vars(part).keys() & vars(new).keys():
                copies[id(vars(part)[name])] = vars(new)[name]
        return copies[id(part)]

    def copy_once(part: nn.Module, path: str) -> nn.Module:
        mode = part.training if train is None else train
        _check_supported(part, path)
        if is_foreign(part):
            return Foreign(part, mode)
        if type(part).__name__ == "OptimizedModule":  # importing its class takes a second
            return _Uncompiled(copy(next(part.children()), path)).train(mode)
        twin = _twin(part, mode)
        for name, child in part._modules.items():
            if child is not None:
                twin._modules[name] = copy(child, f"{path}.{name}" if path else name)
        replacement = _apply_rule(twin, table)
        private.append(twin)
        if replacement is twin:
            return twin
        private.append(stand_in(twin, replacement, part))
        # What a rule made refers to the layer behind the stand-in.
        copies.update((id(own), own) for own in replacement.modules() if id(own) not in copies)
        return private[-1]

    network = copy(module, "")
    copies.update((id(own), own) for own in private)
    tensors = [t for root in (module, network) for t in (*root.parameters(), *root.buffers())]
    return network, *redirect(private, copies, tensors)


def _sets_mode(part: nn.Module) -> bool:
    """Whether a class does more than set a flag when its mode changes."""
    is_wrapper = is_foreign(part) or type(part).__name__ == "OptimizedModule"
    return overrides_mode(part) and not is_wrapper


def _clone_tensors(network: nn.Module, places: list[Place]) -> None:
    """Give a copy tensors of its own, so that it may change them in place."""
    clones: dict[int, Tensor] = {}

    def clone(tensor: Tensor) -> Tensor:
        if id(tensor) not in clones:
            new = clone_tensor(tensor)
            if isinstance(tensor, nn.Parameter):
                new = nn.Parameter(new, tensor.requires_grad)
            clones[id(tensor)] = new
        return clones[id(tensor)]

    for part in network.modules():
        registries: tuple[dict[str, Any], ...] = (part._parameters, part._buffers)
        for registry in registries:
            for name, tensor in registry.items():
                registry[name] = None if tensor is None else clone(tensor)
    for place in places:
        place.put(clone(place.tensor))


def _check_tree(part: nn.Module, path: str, above: dict[int, str], checked: set[int]) -> None:
    """Raise unless every module was initialized and none contains itself.

    Args:
        part: the module.
        path: its name in the tree.
        above: names of the modules that contain it, by id.
        checked: ids of the modules that are known.
    """
    kind, where = type(part).__name__, path or "the network"
    if id(part) in above:
        raise ValueError(
            f"functionalize: modules must form a tree, but {where} is {above[id(part)]} itself, which "
            "contains it; refer to it by a weakref, or by a function"
        )
    if id(part) in checked or is_foreign(part):
        return
    checked.add(id(part))
    if missing := {*REGISTRIES, "_forward_hooks"} - attributes(part).keys():
        raise TypeError(
            f"functionalize: {where} must be an initialized module, got a {kind} without "
            f"{min(missing)}; call super().__init__() in its __init__"
        )
    for name, child in part._modules.items():
        if child is not None:
            inside = f"{path}.{name}" if path else name
            _check_tree(child, inside, {**above, id(part): where}, checked)


def _check_supported(part: nn.Module, path: str) -> None:
    """Raise unless a module is differentiable, has its weights, and runs on one device."""
    kind, where = type(part).__name__, path or "the network"
    if isinstance(part, nn.DataParallel | nn.parallel.DistributedDataParallel):
        raise TypeError(f"functionalize: module must run on one device, got {kind}; pass its .module")
    if ".quantized" in type(part).__module__ and type(part).__module__.startswith("torch."):
        raise TypeError(
            f"functionalize: module must be differentiable, but {where} is a quantized {kind}; pass the "
            "float network that it was made from"
        )
    if isinstance(part, LazyModuleMixin) and part.has_uninitialized_params():
        raise ValueError(
            f"functionalize: {where} ({kind}) has no weights yet; run the network once on a window, or "
            "load its weights"
        )


def _twin(part: nn.Module, train: bool) -> nn.Module:
    """A shallow copy of one module in a mode, with its own tables and no backward hooks."""
    twin = object.__new__(type(part))
    for name, value in attributes(part).items():
        setter(twin, name)(value.copy() if name in TABLES else value)
    # Not by the class's own __setattr__, which may refuse.
    twin.__dict__.update(_backward_hooks=OrderedDict(), _backward_pre_hooks=OrderedDict())
    twin.__dict__["_compiled_call_impl"] = None  # bound to the caller's module
    object.__setattr__(twin, "training", train)
    for number, hook in twin._forward_pre_hooks.items():
        if type(hook) is WeightNorm:
            twin._forward_pre_hooks[number] = ExplicitWeightNorm(hook.name, hook.dim)
    if isinstance(part, LazyModuleMixin):
        _end_laziness(twin)
    return twin


def _end_laziness(twin: Any) -> None:
    """Make of a lazy layer with loaded weights what its first call would make of it."""
    hook, cls = vars(twin).get("_initialize_hook"), twin.cls_to_become
    if hook is None or cls is None:
        return
    twin._forward_pre_hooks.pop(hook.id, None)
    getattr(twin, "_forward_pre_hooks_with_kwargs", {}).pop(hook.id, None)
    twin._load_state_dict_pre_hooks.pop(vars(twin).pop("_load_hook").id, None)
    del twin._initialize_hook
    twin.__class__ = cls
    if vars(twin).get("in_features") == 0:
        twin.in_features = twin.weight.shape[1]
    if vars(twin).get("in_channels") == 0:
        twin.in_channels = twin.weight.shape[0 if twin.transposed else 1]
        twin.in_channels *= 1 if twin.transposed else twin.groups
    if vars(twin).get("num_features") == 0 and (twin.affine or twin.track_running_stats):
        twin.num_features = len(twin.weight if twin.affine else twin.running_mean)


def _rule_of(part: nn.Module, table: Mapping[Any, Rule]) -> Rule | None:
    """The rule of a module's nearest base class, if there is one."""
    bases = type(part).__mro__
    keys = (key for base in bases for key in (base, f"{base.__module__}.{base.__qualname__}"))
    return next((table[key] for key in keys if key in table), None)


def _apply_rule(twin: nn.Module, table: Mapping[Any, Rule]) -> nn.Module:
    """The module's replacement by its rule, if there is one."""
    rule = _rule_of(twin, table)
    replacement = twin if rule is None else rule(twin)
    if not isinstance(replacement, nn.Module):
        raise TypeError(
            f"functionalize: rules[{type(twin).__name__}] must return a torch.nn.Module, got "
            f"{type(replacement).__name__}"
        )
    return replacement


def _as_table(rules: Rules | None) -> dict[Any, Rule]:
    try:
        table: dict[Any, Any] = dict(RULES if rules is None else rules)
    except (TypeError, ValueError):
        table = {"": rules}
    if not all(isinstance(key, type | str) and callable(rule) for key, rule in table.items()):
        raise TypeError(f"functionalize: rules must map module types to functions, got {rules!r}")
    return table
