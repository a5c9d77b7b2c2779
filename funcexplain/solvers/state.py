"""The nouns of a search: state, report, stopping rules, and the protocol of a method.

A method turns a problem into the functions of one row's step (`BoundMethod`). `step` puts them together
with the verdict, in the same way for every method. All leaves are tensors, so that everything here
passes through ``torch.func``; of a batch, all fields lead with its rows.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

from torch import Tensor

from funcexplain.problems.problem import Args, Problem
from funcexplain.solutions.status import Status

Keep = Literal["last", "best"]
DEFAULT_RTOL = 1e-3
"""Relative improvement of the value that resets the patience."""


class Iterate(NamedTuple):
    """A point of the search with its evaluation."""

    z: Tensor
    value: Tensor
    loss: Tensor
    weights: Tensor


class Trend(NamedTuple):
    """Whether the value still falls: the minimum so far, and the steps since it last improved."""

    minimum: Tensor
    waited: Tensor


class State(NamedTuple):
    """The state that the loop carries.

    Attributes:
        z: point that is evaluated next.
        optimizer: the state of the method (`Advance.carried`).
        kept: the evaluated point that is the answer so far.
        status: a `Status` code; MAX_STEPS during the search.
        num_steps: updates so far.
        trend: a `Trend` where ``patience`` is given, else an empty tuple.
    """

    z: Tensor
    optimizer: Any
    kept: Iterate
    status: Tensor
    num_steps: Tensor
    trend: Trend | tuple[()]

    @property
    def done(self) -> Tensor:
        """Whether the search has ended, a bool scalar."""
        return self.status != Status.MAX_STEPS


class Info(NamedTuple):
    """A step's report of the point before its update; scalars.

    Attributes:
        loss: misfit.
        value: the objective, loss plus penalties.
        grad_norm: Euclidean norm of the gradient in the search space.
        error: largest ``|weights - target|``, of goals the largest ``|residual|``.
    """

    loss: Tensor
    value: Tensor
    grad_norm: Tensor
    error: Tensor


class Stopping(NamedTuple):
    """When a search ends, and which point it answers with; see `make_step`.

    Attributes:
        settles: whether a hit ends the search only where the value no longer falls, as with penalties.
    """

    atol: float | None = None
    keep: Keep = "last"
    patience: int | None = None
    rtol: float = DEFAULT_RTOL
    settles: bool = False


class Evaluation(NamedTuple):
    """A point to first order.

    Attributes:
        value: the objective, loss plus penalties.
        loss: misfit.
        weights: allocation.
        slopes: gradient of the value, or the Jacobian ``(K, N)`` of the values that the target bounds.
    """

    value: Tensor
    loss: Tensor
    weights: Tensor
    slopes: Tensor


class Advance(NamedTuple):
    """The reaction of a method to an evaluation.

    Attributes:
        z: point to evaluate next.
        carried: next state of the method.
        value: the value by which the evaluated point is judged; finite unless the search should end
            NONFINITE.
        best: the same for the kept point, NaN if there is none yet: normally ``state.kept.value``. A
            method whose objective changes during the search returns the kept point's value under it.
        loss: what the step reports as its loss.
        grads: gradient of the objective; zero if no step helps any more.
    """

    z: Tensor
    carried: Any
    value: Tensor
    best: Tensor
    loss: Tensor
    grads: Tensor


Objective = Callable[[Tensor, Args], tuple[Tensor, tuple[Tensor, Tensor]]]
Evaluate = Callable[[Tensor, Args], Evaluation]
ValueAndGrad = Callable[[Tensor, Any], tuple[tuple[Tensor, Any], Tensor]]
Init = Callable[[Args], State]
Step = Callable[[State, Args], tuple[State, Info]]


class BoundMethod(NamedTuple):
    """A method bound to a problem: the functions of one row's step.

    Attributes:
        problem: the question, or the grid whose rows are searched.
        init: ``(z, args) -> carried``, the method's state at the start.
        evaluate: ``(z, args) -> Evaluation`` of one row, pure, through ``torch.func``.
        backward: from an objective ``(z, args) -> (value, (loss, weights))``, of one question or of a
            batch of rows, to its ``(z, args) -> Evaluation`` by one plain backward pass.
        advance: ``(state, args, evaluation) -> Advance``, pure, of one row.
        stopping: when the search ends, and which point is kept.
        advance_in_place: the same as ``advance``, of one question or, of a grid, of a batch of rows; it
            may overwrite the method's part of the state. None if that would not help.
        jacobian: whether the slopes of an evaluation are a Jacobian.
    """

    problem: Problem
    init: Callable[[Tensor, Args], Any]
    evaluate: Evaluate
    backward: Callable[[Objective], Evaluate]
    advance: Callable[[State, Args, Evaluation], Advance]
    stopping: Stopping
    advance_in_place: Callable[[State, Args, Evaluation], Advance] | None = None
    jacobian: bool = False


@runtime_checkable
class Method(Protocol):
    """A search method for `solve`: an optimizer, Levenberg-Marquardt, or your own."""

    def bind(
        self, problem: Problem, stopping: Stopping, gradient: Callable[[Objective], ValueAndGrad]
    ) -> BoundMethod:
        """Return the functions of one row's step.

        Args:
            problem: the question, or the grid whose rows are searched.
            stopping: when the search ends.
            gradient: from an objective to its value and gradient, for `BoundMethod.evaluate`.
        """
        ...
