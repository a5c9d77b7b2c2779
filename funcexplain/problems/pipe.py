"""Apply transforms one after another."""

from __future__ import annotations

import inspect
from collections.abc import Callable

from funcexplain.problems.problem import Problem, check_problem


def pipe(problem: Problem, *transforms: Callable[[Problem], Problem]) -> Problem:
    """Apply transforms to a problem from left to right; later ones wrap earlier ones.

    Args:
        problem: the question.
        transforms: functions ``Problem -> Problem``.

    Returns:
        The transformed problem; ``problem`` itself does not change.

    Raises:
        TypeError: if an argument or the result of a transform is not a Problem (with its position).

    Example:
        >>> import torch, funcexplain as fe
        >>> network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Softmax(-1))
        >>> p = fe.problem(network, torch.tensor([0.9, 0.1]), torch.zeros(1, 1, 2))
        >>> fe.pipe(p, fe.freeze, fe.cast(dtype=torch.float64)).args["x0"].dtype
        torch.float64
    """
    check_problem("pipe", problem)
    for index, transform in enumerate(transforms):
        name = getattr(transform, "__name__", repr(transform))
        if not callable(transform):
            raise TypeError(
                f"pipe: transforms[{index}] must be a function Problem -> Problem, "
                f"got {type(transform).__name__}"
            )
        try:
            inspect.signature(transform).bind(problem)
        except TypeError as error:
            raise TypeError(
                f"pipe: transforms[{index}] ({name}) must be a function Problem -> Problem, got one "
                f"with other arguments ({error}); call a transform with its settings first, as in "
                "fe.box(lower, upper)"
            ) from None
        except ValueError:  # some built-in functions have no signature
            pass
        result = transform(problem)
        if not isinstance(result, Problem):
            raise TypeError(
                f"pipe: transforms[{index}] ({name}) must return a Problem, got "
                f"{type(result).__name__}; call a transform with its settings first, as in "
                "fe.box(lower, upper)"
            )
        problem = result
    return problem
