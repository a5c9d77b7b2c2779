"""What other processes build for themselves: a function by its name, and small arguments."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from funcexplain.problems.problem import Problem

# A recipe says how something is made; what is larger than this is the thing itself.
_LONGEST = 1 << 20


class Recipe(NamedTuple):
    """A function that can be imported, and what it is called with."""

    function: Callable[..., Any]
    kwargs: dict[str, Any]

    @property
    def name(self) -> str:
        """The function's name, for messages."""
        return getattr(self.function, "__qualname__", type(self.function).__qualname__)


def as_recipe(where: str, name: str, value: Any) -> Recipe:
    """Take ``callable`` or ``(callable, kwargs)`` as a recipe.

    Args:
        where: public function that was called.
        name: the argument.
        value: what was given for it.

    Returns:
        The recipe.

    Raises:
        TypeError: for anything else, or what cannot be pickled, such as a lambda.
        ValueError: for arguments that are too large for a recipe.

    Example:
        >>> as_recipe("solve", "build", (dict, {"a": 1})).kwargs
        {'a': 1}
    """
    function, kwargs = value if isinstance(value, tuple) and len(value) == 2 else (value, {})
    if not callable(function) or not isinstance(kwargs, Mapping):
        raise TypeError(
            f"{where}: {name} must be a function or a pair (function, kwargs), got {_told(value)}; "
            "workers import the function and call it"
        )
    recipe = Recipe(function, dict(kwargs))
    size = len(pickled(where, name, recipe))
    if size > _LONGEST:
        raise ValueError(
            f"{where}: {name} must be a recipe of at most {_LONGEST >> 20} MiB, got kwargs of "
            f"{size >> 20} MiB; pass the path of a file that the function reads"
        )
    return recipe


def build_problem(where: str, build: Recipe) -> Problem:
    """Call the recipe of a grid.

    Raises:
        TypeError: if it returns no Problem.
        ValueError: if it returns one question.
    """
    problem = build.function(**build.kwargs)
    if not isinstance(problem, Problem):
        raise TypeError(
            f"{where}: build must return a Problem, got {type(problem).__name__} from {build.name}"
        )
    if not problem.dims:
        raise ValueError(
            f"{where}: build must return a grid of rows, got one question from {build.name}; map it "
            "first, as in fe.vmap(problem, target=targets)"
        )
    return problem


def pickled(where: str, name: str, value: Any) -> bytes:
    """Pickle what travels, or say what cannot."""
    try:
        return pickle.dumps(value)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise TypeError(
            f"{where}: {name} must be something that workers can import, got one that cannot be pickled "
            f"({error}); define it at the top of a module, or pass (function, kwargs) that make it, as "
            'in (fe.adam, {"lr": 0.1})'
        ) from None


def _told(value: Any) -> str:
    if isinstance(value, Problem):
        return "a Problem; pass the function that builds it, so that no network is pickled"
    return type(value).__name__
