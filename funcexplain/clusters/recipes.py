"""Recipes for objects that workers build themselves: an importable function and small arguments."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from funcexplain.problems.problem import Problem

# A larger recipe contains the object itself.
_MAX_BYTES = 1 << 20


class Recipe(NamedTuple):
    """A function that can be imported, and its keyword arguments."""

    function: Callable[..., Any]
    kwargs: dict[str, Any]

    @property
    def name(self) -> str:
        """The function's name, for messages."""
        return getattr(self.function, "__qualname__", type(self.function).__qualname__)


def as_recipe(where: str, name: str, value: Any) -> Recipe:
    """Convert ``callable`` or ``(callable, kwargs)`` to a recipe.

    Raises:
        TypeError: for another type, or if it cannot be pickled, such as a lambda.
        ValueError: if the keyword arguments are too large for a recipe.

    Example:
        >>> as_recipe("solve", "build", (dict, {"a": 1})).kwargs
        {'a': 1}
    """
    function, kwargs = value if isinstance(value, tuple) and len(value) == 2 else (value, {})
    if not callable(function) or not isinstance(kwargs, Mapping):
        kind = type(value).__name__
        if isinstance(value, Problem):
            kind = "a Problem; pass the function that builds it, so that no network is pickled"
        raise TypeError(
            f"{where}: {name} must be a function or a pair (function, kwargs), got {kind}; workers "
            "import the function and call it"
        )
    recipe = Recipe(function, dict(kwargs))
    size = len(pickle_for_workers(where, name, recipe))
    if size > _MAX_BYTES:
        raise ValueError(
            f"{where}: {name} must be a recipe of at most {_MAX_BYTES >> 20} MiB, got kwargs of "
            f"{size >> 20} MiB; pass the path of a file that the function reads"
        )
    return recipe


def build_problem(where: str, build: Recipe) -> Problem:
    """Call a recipe; raises unless it returns a grid."""
    problem = build.function(**build.kwargs)
    if not isinstance(problem, Problem):
        raise TypeError(
            f"{where}: build must return a Problem, got {type(problem).__name__} from {build.name}"
        )
    if not problem.dims:
        raise ValueError(
            f"{where}: build must return a grid of rows, got a single question from {build.name}; map "
            "it first, as in fe.vmap(problem, target=targets)"
        )
    return problem


def pickle_for_workers(where: str, name: str, value: Any) -> bytes:
    """Pickle a value for the workers; raises with the remedy if that is impossible."""
    try:
        return pickle.dumps(value)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise TypeError(
            f"{where}: {name} must be something that workers can import, got one that cannot be pickled "
            f"({error}); define it at the top of a module, or pass (function, kwargs) that make it, as "
            'in (fe.adam, {"lr": 0.1})'
        ) from None
