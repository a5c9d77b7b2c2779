"""What decides the answers of a run, as text.

Two problems with equal fingerprints have equal answers, so that a directory can be taken up again, and
a worker can tell that it has built the problem that was asked about.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from typing import Any

import torch

import funcexplain
from funcexplain.clusters.describing import described, digest_of_tree
from funcexplain.problems.problem import Problem

Fingerprint = dict[str, str]
_LONGEST = 240  # characters that are kept as they are; of what is longer, the digest
_LONGEST_SHOWN = 200  # characters that a message shows


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
    parts = {f"args.{name}": digest_of_tree(value) for name, value in sorted(problem.args.items())}
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
    """Say which parts differ, for a message: settings and data first, and what is short as it is.

    Example:
        >>> differences({"settings.atol": "0.0"}, {"settings.atol": "0.1"})
        'settings.atol (0.0 there, 0.1 here)'
    """
    names = [name for name in {**before, **now} if before.get(name) != now.get(name)]
    names.sort(key=lambda name: "." not in name)
    told = []
    for name in names:
        there, here = before.get(name, "nothing"), now.get(name, "nothing")
        short = max(len(there), len(here)) <= _LONGEST_SHOWN
        told.append(f"{name} ({there} there, {here} here)" if short else name)
    return ", ".join(told)


def _shortened(text: str) -> str:
    if len(text) <= _LONGEST:
        return text
    return f"{text[: _LONGEST - 40]}... {hashlib.sha256(text.encode()).hexdigest()[:16]}"
