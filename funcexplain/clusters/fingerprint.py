"""Fingerprints: everything that determines the answers of a run, as text.

Two problems with equal fingerprints have equal answers, so that a directory can be resumed, and a worker
can check that it has built the right problem.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from typing import Any

import torch

import funcexplain
from funcexplain.engine.describing import describe_value, digest_of_tree
from funcexplain.problems.problem import Problem

Fingerprint = dict[str, str]
_MAX_LENGTH = 240  # characters of a part; a longer one ends in its digest
_MAX_SHOWN = 200  # characters of a part in a message


def fingerprint(problem: Problem, method: Any, settings: Mapping[str, Any]) -> Fingerprint:
    """Describe everything that determines the answers: one line of text per part, by name.

    Example:
        >>> import torch, funcexplain as fe
        >>> network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Softmax(-1))
        >>> p = fe.problem(network, torch.tensor([0.9, 0.1]), torch.zeros(1, 1, 2))
        >>> one, other = (fingerprint(p, fe.adam(lr), {"atol": 0.0}) for lr in (0.1, 0.2))
        >>> [name for name in one if one[name] != other[name]]
        ['method']
    """
    parts = {f"args.{name}": digest_of_tree(value) for name, value in sorted(problem.args.items())}
    parts["dims"] = ", ".join(f"{d.name}={d.size} ({'+'.join(sorted(d.varying))})" for d in problem.dims)
    for field in dataclasses.fields(problem):
        if field.name not in ("args", "dims", "normal", "altered_by"):
            parts[field.name] = _shorten(describe_value(getattr(problem, field.name)))
    parts["method"] = _shorten(describe_value(method))
    parts |= {f"settings.{name}": _shorten(describe_value(v)) for name, v in sorted(settings.items())}
    return parts | {
        "versions.funcexplain": funcexplain.__version__,
        "versions.torch": str(torch.__version__),
    }


def hash_fingerprint(parts: Fingerprint) -> str:
    """One hash of all parts."""
    text = "\n".join(f"{name}: {part}" for name, part in sorted(parts.items()))
    return hashlib.sha256(text.encode()).hexdigest()


def differences(before: Mapping[str, str], now: Mapping[str, str]) -> str:
    """List the parts that differ, for a message: settings and data first, short values in full.

    Example:
        >>> differences({"settings.atol": "0.0"}, {"settings.atol": "0.1"})
        'settings.atol (0.0 there, 0.1 here)'
    """
    names = [name for name in {**before, **now} if before.get(name) != now.get(name)]
    names.sort(key=lambda name: "." not in name)
    changes = []
    for name in names:
        there, here = before.get(name, "nothing"), now.get(name, "nothing")
        short = max(len(there), len(here)) <= _MAX_SHOWN
        changes.append(f"{name} ({there} there, {here} here)" if short else name)
    return ", ".join(changes)


def _shorten(text: str) -> str:
    if len(text) <= _MAX_LENGTH:
        return text
    return f"{text[: _MAX_LENGTH - 40]}... {hashlib.sha256(text.encode()).hexdigest()[:16]}"
