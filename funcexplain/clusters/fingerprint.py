"""What decides the answers of a run, as text: numbers by their digests, functions by name and settings.

Two problems with equal fingerprints have equal answers, so that a directory can be taken up again, and
a worker can tell that it has built the problem that was asked about.
"""

from __future__ import annotations

import dataclasses
import hashlib
import re
from collections.abc import Mapping
from functools import partial
from types import BuiltinFunctionType, CodeType, FunctionType, MethodType
from typing import Any

import optree
import torch
from torch import Tensor, nn

import funcexplain
from funcexplain.problems.problem import Problem

Fingerprint = dict[str, str]
_PLAIN = (type(None), bool, int, float, complex, str, bytes, torch.dtype, torch.device)
_ADDRESS = re.compile(r" at 0x[0-9a-f]+")
_LONGEST = 240  # characters that are shown as they are; of what is longer, the digest


def fingerprint(problem: Problem, method: Any, settings: Mapping[str, Any]) -> Fingerprint:
    """Describe everything that decides the answers.

    Args:
        problem: the grid.
        method: an optimizer, or settings of one.
        settings: of the search, by name.

    Returns:
        A line of text for every part, by its name.

    Example:
        >>> import torch, funcexplain as fe
        >>> network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Softmax(-1))
        >>> p = fe.problem(network, torch.tensor([0.9, 0.1]), torch.zeros(1, 1, 2))
        >>> one, other = (fingerprint(p, fe.adam(lr), {"atol": 0.0}) for lr in (0.1, 0.2))
        >>> [name for name in one if one[name] != other[name]]
        ['method']
    """
    parts = {f"args.{name}": _digest_of_tree(value) for name, value in sorted(problem.args.items())}
    parts["dims"] = ", ".join(f"{d.name}={d.size} ({'+'.join(sorted(d.varying))})" for d in problem.dims)
    for field in dataclasses.fields(problem):
        if field.name not in ("args", "dims"):
            parts[field.name] = _shortened(described(getattr(problem, field.name)))
    parts["method"] = _shortened(described(method))
    parts |= {f"settings.{name}": _shortened(described(v)) for name, v in sorted(settings.items())}
    return parts | {
        "versions.funcexplain": funcexplain.__version__,
        "versions.torch": str(torch.__version__),
    }


def key_of(parts: Fingerprint) -> str:
    """One hash of all parts."""
    text = "\n".join(f"{name}: {part}" for name, part in sorted(parts.items()))
    return hashlib.sha256(text.encode()).hexdigest()


def differences(before: Mapping[str, str], now: Mapping[str, str]) -> str:
    """Say which parts differ, for a message.

    Example:
        >>> differences({"settings.atol": "0.0"}, {"settings.atol": "0.1"})
        'settings.atol (0.0 there, 0.1 here)'
    """
    names = [name for name in {**before, **now} if before.get(name) != now.get(name)]
    none = "nothing"
    return ", ".join(
        f"{name} ({before.get(name, none)} there, {now.get(name, none)} here)" for name in names
    )


def described(value: Any, inside: tuple[int, ...] = ()) -> str:
    """Describe a function or a setting: equal text in every process that has made it alike."""
    if isinstance(value, _PLAIN):
        return repr(value)
    if isinstance(value, Tensor):
        return _digest_of_tree(value)
    if id(value) in inside:
        return "itself"
    inside = (*inside, id(value))

    def parts(values: Any) -> str:
        return ", ".join(described(part, inside) for part in values)

    if isinstance(value, nn.Module):
        return _ADDRESS.sub("", repr(value))
    if isinstance(value, Mapping):
        return ", ".join(sorted(f"{key}={described(item, inside)}" for key, item in value.items()))
    if isinstance(value, set | frozenset):
        return "{" + ", ".join(sorted(described(part, inside) for part in value)) + "}"
    if isinstance(value, list | tuple):
        return f"{type(value).__name__}({parts(value)})"
    if isinstance(value, partial):
        return f"partial({parts((value.func, *value.args, value.keywords))})"
    if isinstance(value, MethodType):
        return f"{described(value.__self__, inside)}.{value.__name__}"
    if isinstance(value, FunctionType):
        return _function(value, parts)
    name = f"{type(value).__module__}.{type(value).__qualname__}"
    if isinstance(value, type | BuiltinFunctionType):
        return f"{value.__module__}.{value.__qualname__}"
    if name.startswith("funcexplain.") or dataclasses.is_dataclass(value):
        return f"{name}({described(vars(value), inside)})"
    return name


def _function(function: FunctionType, parts: Any) -> str:
    """A function by its name and what it captures; one of the caller's also by what it does."""
    name = f"{function.__module__}.{function.__qualname__}"
    captured: list[Any] = []
    for cell in function.__closure__ or ():
        try:
            captured.append(cell.cell_contents)
        except ValueError:  # a name that has no value yet
            continue
    if not name.startswith("funcexplain."):
        captured.append(_code(function.__code__))
    captured += [default for default in (function.__defaults__, function.__kwdefaults__) if default]
    return f"{name}({parts(captured)})" if captured else name


def _code(code: CodeType) -> str:
    """A digest of instructions and constants, without the lines and file they stand in."""
    constants = [_code(c) if isinstance(c, CodeType) else described(c) for c in code.co_consts]
    text = repr((code.co_code, constants, code.co_names))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _digest_of_tree(value: Any) -> str:
    digest, leaves = hashlib.sha256(), optree.tree_leaves(value)
    for path, leaf in zip(optree.tree_paths(value), leaves, strict=True):
        digest.update(repr(path).encode())
        if isinstance(leaf, Tensor):
            digest.update(f"{leaf.dtype} {tuple(leaf.shape)}".encode())
            digest.update(leaf.detach().cpu().flatten().contiguous().view(torch.uint8).numpy().data)
        else:
            digest.update(described(leaf).encode())
    one = leaves[0] if len(leaves) == 1 and isinstance(leaves[0], Tensor) else None
    kind = f"{len(leaves)} tensors" if one is None else f"{one.dtype} {tuple(one.shape)}"
    return f"{kind} {digest.hexdigest()[:16]}"


def _shortened(text: str) -> str:
    if len(text) <= _LONGEST:
        return text
    return f"{text[: _LONGEST - 40]}... {hashlib.sha256(text.encode()).hexdigest()[:16]}"
