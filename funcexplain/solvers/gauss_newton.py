"""Levenberg-Marquardt: damped Gauss-Newton steps on the residuals of the target.

A network has only A outputs: one Jacobian and a system of A equations give the step of minimum norm that
would meet the target if the network were linear. Each row has its own damping: it falls while the linear
model predicts the reduction well; otherwise the step is rejected and the damping grows.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Literal, NamedTuple

import optree
import torch
from torch import Tensor

from funcexplain.problems.checks import check_number
from funcexplain.problems.problem import Args, Problem, identity
from funcexplain.solvers.damped_step import (
    WIDE,
    Model,
    PenaltyTerms,
    is_stationary,
    minimize_freely,
    minimize_within,
    solve_gram,
)
from funcexplain.solvers.gradient import is_readable, make_objective, where_rows
from funcexplain.solvers.jacobian import with_backward_jacobian, with_jacobian
from funcexplain.solvers.state import (
    Advance,
    BoundMethod,
    Evaluation,
    Objective,
    State,
    Stopping,
    ValueAndGrad,
)

Residual = Literal["auto", "weights", "sqrt", "log"]

# Added before logarithms and roots are taken: values much smaller than this are indistinguishable.
_FLOOR = 1e-8
_MINIMUM_DAMPING, _MAXIMUM_DAMPING = 1e-8, 1e12
# Minimum ratio of the actual to the predicted reduction with which a step is accepted.
_MINIMUM_RATIO = 1e-4
# A predicted reduction smaller than this fraction of the objective counts as zero.
_MINIMUM_REDUCTION = 1e-12
# Rounds in which values within bounds are found that a step would take out of them.
_ROUNDS = 3

# The residuals from the lower and the upper bound of each value, infinite where there is none.
Gaps = tuple[Tensor, Tensor]


class Linearization(NamedTuple):
    """Measured values ``(K,)``, the nearest values that meet the target, and the Jacobian ``(K, N)``."""

    measured: Tensor
    nearest: Tensor
    jacobian: Tensor


class LevenbergMarquardtState(NamedTuple):
    """The state of the method at its best point; K values measured, N entries searched.

    Attributes:
        z: the point.
        line: its linearization.
        gram: the Jacobian times its transpose, ``(K, K)``.
        penalty: the penalties there; an empty tuple if there are none.
        merit: sum of squared residuals and penalties there; NaN before the first evaluation.
        predicted: predicted reduction of the step under trial.
        damping: ``mu``, see `levenberg_marquardt`.
        nu: factor of the damping if the next step fails.
        in_logs: whether the residual is in logarithms (``"auto"`` decides for every row).
    """

    z: Tensor
    line: Linearization
    gram: Tensor
    penalty: PenaltyTerms | tuple[()]
    merit: Tensor
    predicted: Tensor
    damping: Tensor
    nu: Tensor
    in_logs: Tensor


class LevenbergMarquardt(NamedTuple):
    """The method that `levenberg_marquardt` returns: its settings."""

    residual: Residual
    damping: float

    def bind(
        self, problem: Problem, stopping: Stopping, gradient: Callable[[Objective], ValueAndGrad]
    ) -> BoundMethod:
        """Return the functions of one row's step: the Jacobian, and a damped step that is judged.

        The best point is kept: a failed step returns to it.
        """
        del gradient
        init, advance = partial(self._init, problem), partial(self._advance, problem)
        bound = bind_jacobian(problem, stopping, init, advance)
        of_one = problem.penalties or problem.costs or problem.project is not identity
        return bound._replace(advance_in_place=None if of_one else advance)

    def _init(self, problem: Problem, z: Tensor, args: Args) -> LevenbergMarquardtState:
        zero = z.new_zeros((), dtype=WIDE)
        entries = torch.zeros_like(z).flatten().to(WIDE)
        penalized = bool(problem.penalties or problem.costs)
        line = unknown_linearization(problem, z, args)
        return LevenbergMarquardtState(
            z=z,
            line=line,
            gram=_gram(line),
            penalty=PenaltyTerms(zero, entries, entries) if penalized else (),
            merit=zero + torch.nan,
            predicted=zero,
            damping=zero + self.damping,
            nu=zero + 2.0,
            in_logs=torch.full((), self.residual in ("auto", "log"), device=z.device),
        )

    def _advance(self, problem: Problem, state: State, args: Args, at: Evaluation) -> Advance:
        """Judge the evaluated point, and step from the best: of one row, or of rows that lead.

        Penalties and bounds are of one row alone.
        """
        carried: LevenbergMarquardtState = state.optimizer
        rows, line, penalty = state.status.ndim, linearize(problem, at, args), carried.penalty
        gram, first, in_logs = _gram(line), carried.merit.isnan(), carried.in_logs
        # Both points at once: every operation costs microseconds, even on K numbers.
        points = torch.stack([*line[:2], *carried.line[:2]]).to(WIDE)
        measured, nearest = points[::2], points[1::2]
        if self.residual == "auto":
            lowest = points[:2].amin(-1)
            in_logs = torch.where(first, (lowest > 0.0).all(0), in_logs & ~(lowest[0] < -_FLOOR))
        residuals, factors = residuals_of(measured, nearest, self.residual, in_logs)
        merits = residuals.square().sum(-1)
        usable = gram.flatten(rows).sum(-1)
        if carried.penalty:
            penalty = _penalty_terms(problem, state.z, args)
            merits = merits + torch.stack([penalty.value, carried.penalty.value])
            usable = usable + penalty.gradient.sum()
        merit, best = merits
        reduction, usable = best - merit, (merit + usable).isfinite()
        ratio = reduction / carried.predicted.clamp_min(torch.finfo(WIDE).tiny)
        improves = usable & (reduction > 0.0) & (ratio > _MINIMUM_RATIO)
        accepts = first | improves
        fall = (1.0 - (2.0 * ratio.clamp(0.0, 1.5) - 1.0) ** 3).clamp_min(1.0 / 3.0)
        damping = carried.damping * torch.where(improves, fall, carried.nu)
        damping = torch.where(first, carried.damping, damping.clamp(_MINIMUM_DAMPING, _MAXIMUM_DAMPING))

        judged: Any = (state.z, line[:2], gram, penalty, merit, residuals[0], factors[0])
        known: Any = (carried.z, carried.line[:2], *carried[2:4], best, residuals[1], factors[1])
        chosen: Any = optree.tree_map(partial(where_rows, accepts), judged, known)
        z, (m, n), gram, penalty, merit_here, r, factor = chosen
        line = Linearization(m, n, choose_jacobian(accepts, line.jacobian, carried.line.jacobian))
        misfit = r.square().sum(-1)
        penalized = misfit + penalty.value if penalty else misfit
        lam = damping * penalized / z.flatten(rows).shape[-1]
        if penalty or problem.project is not identity:
            none = torch.zeros_like(lam)
            terms = penalty or PenaltyTerms(none, none, none)
            model = Model(r, line.jacobian * factor[:, None], terms, lam)
            gaps = _gaps(problem, line, args, self.residual, in_logs) if penalty else None
            following, grads, predicted, ends = _step(problem, args, z, model, gaps, merit_here)
        else:
            scaled = gram.to(WIDE) * factor.unsqueeze(-1) * factor.unsqueeze(-2)
            y, predicted = solve_gram(scaled, r, lam, gram.dtype)
            along = (torch.stack([-y, 2.0 * r], -2) * factor.unsqueeze(-2)).to(gram.dtype)
            step, grads = (along @ line.jacobian.to(gram.dtype)).unbind(-2)
            following = z + step.to(z.dtype).view(z.shape)
            moved = (following - z).flatten(rows).abs().sum(-1)
            ends = (predicted <= _MINIMUM_REDUCTION * merit_here) | (moved == 0.0)
        ends = ends | (damping >= _MAXIMUM_DAMPING)
        count = r.shape[-1]
        value, best = (merits / count).to(z.dtype)
        nu = torch.where(accepts, 2.0, 2.0 * carried.nu)
        return Advance(
            z=where_rows(ends, state.z, following),
            carried=LevenbergMarquardtState(
                *(z, line, gram, penalty, merit_here, predicted, damping, nu, in_logs)
            ),
            # A non-finite trial does not end the search: it continues from the best point.
            value=torch.where(value.isfinite() | first, value, best),
            best=torch.where(first, torch.nan, best),
            loss=(misfit / count).to(z.dtype),
            grads=where_rows(ends, torch.zeros_like(z), (grads / count).to(z.dtype).view(z.shape)),
        )


def choose_jacobian(accepts: Tensor, judged: Tensor, known: Tensor) -> Tensor:
    """What was judged where it is accepted, else what was known; rejected rows are written over."""
    if not accepts.ndim or not is_readable(accepts):
        return where_rows(accepts, judged, known)
    judged, rejected = judged.contiguous(), (~accepts).nonzero()[:, 0]
    return judged.index_copy_(0, rejected, known[rejected].to(judged.dtype))


def _step(
    problem: Problem, args: Args, z: Tensor, model: Model, gaps: Gaps | None, merit: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The next point, the gradient, the predicted reduction, and whether it counts as zero."""
    undamped = model._replace(lam=torch.zeros_like(model.lam))
    point = z.flatten().to(WIDE)
    grads = undamped.gradient(torch.zeros_like(point))
    if gaps is not None:
        model = _reach_bounds(model, gaps)
    if problem.project is identity:
        following = (point + minimize_freely(model)).to(z.dtype).view(z.shape)
    else:
        project = partial(project_flat, problem, z, args)
        following = project(point + minimize_within(model, point, project)).view(z.shape)
    step = (following - z).flatten().to(WIDE)
    predicted = undamped.decrease(grads, step)
    if gaps is not None:  # what the target measures costs nothing within its bounds
        change = undamped.jacobian @ step
        predicted = (
            predicted + (undamped.r + change).square().sum() - beyond(gaps, change).square().sum()
        )
    if problem.project is identity:
        ends = predicted <= _MINIMUM_REDUCTION * merit
    else:
        ends = is_stationary(undamped, point, project)
    return following, grads, predicted, ends


def levenberg_marquardt(residual: Residual = "auto", *, damping: float = 10.0) -> LevenbergMarquardt:
    """Damped Gauss-Newton: minimizes the mean of squared residuals ``f(m) - f(n)``, plus penalties.

    ``m`` are the K values that a target bounds (for an allocation, the weights), ``n`` the nearest
    values that meet it. With their Jacobian ``J``, a step minimizes ``|r + J d|**2 + lam |d|**2``:
    ``d = -J' (J J' + lam I)^-1 r``. Penalties join with their gradient and the diagonal of their Hessian
    (for `l2`, all of it). ``lam = mu |r|**2 / N`` follows the misfit, so it vanishes at the target; the
    damping ``mu`` falls when the actual reduction matches the predicted one, and grows when it does not,
    in which case the step is rejected (Nielsen 1999). The objective never increases. Within bounds
    (`clip`) a step minimizes the same model over the feasible points.

    It takes few steps instead of hundreds, each with one forward pass and one batched reverse pass for
    all K values. Steps have minimum norm in the search space, so search in sigmas (`standardize`). A hit
    ends the search; so does a point where no step helps (STALLED; within bounds, where the projected
    gradient is zero), which for an infeasible target is the nearest in the sense of the residual. The
    problem's own loss is reported at the end, not minimized;
    `Solution.history` and `Info.loss` hold the mean of squared residuals at the best point so far.

    Args:
        residual: ``"weights"``: f(m) = m. ``"sqrt"``: 2 sqrt(m). ``"log"``: log(m), for which a weight
            of 0.001 is as far from zero as it is for a softmax. Roots and logarithms are of
            ``m + 1e-8``, and of 1e-8 where m is negative. ``"auto"``: logarithms where all m and n are
            positive at the start, until an m is negative; else the numbers themselves.
        damping: initial ``mu``, > 0; a change of root mean square ``1 / sqrt(mu)`` costs as much as the
            initial misfit. A larger damping takes smaller first steps and finds smaller changes.

    Returns:
        A method for `solve` and `make_step`.

    Raises:
        TypeError: if ``damping`` is not a number.
        ValueError: if it is not positive, or ``residual`` is unknown.

    Example:
        >>> import torch, funcexplain as fe
        >>> network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Softmax(-1))
        >>> p = fe.problem(network, torch.tensor([0.9, 0.1]), torch.zeros(1, 1, 2))
        >>> fe.solve(p, fe.levenberg_marquardt(), atol=1e-6).num_steps
        tensor(5)

    References:
        K. Levenberg (1944), https://doi.org/10.1090/qam/10666; D. W. Marquardt (1963),
        https://doi.org/10.1137/0111030; H. B. Nielsen (1999), Damping Parameter in Marquardt's Method,
        https://www2.imm.dtu.dk/pubdb/edoc/tr99_05.pdf; J. Fan, Y. Yuan (2005), On the Quadratic
        Convergence of the Levenberg-Marquardt Method, https://doi.org/10.1007/s00607-004-0083-1
    """
    if not isinstance(residual, str) or residual not in ("auto", "weights", "sqrt", "log"):
        raise ValueError(
            f"levenberg_marquardt: residual must be 'auto', 'weights', 'sqrt' or 'log', got {residual!r}"
        )
    mu = check_number("levenberg_marquardt", "damping", damping, minimum=0.0, strict=True)
    return LevenbergMarquardt(residual, mu)


def bind_jacobian(
    problem: Problem,
    stopping: Stopping,
    init: Callable[[Tensor, Args], Any],
    advance: Callable[[State, Args, Evaluation], Advance],
) -> BoundMethod:
    """Bind a method that evaluates Jacobians of the bounded values, and keeps its best point."""
    objective, measure = make_objective(problem), measure_of(problem)
    return BoundMethod(
        problem=problem,
        init=init,
        evaluate=with_jacobian(objective, measure),
        backward=partial(with_backward_jacobian, measure=measure),
        advance=advance,
        stopping=stopping._replace(keep="best"),
        jacobian=True,
    )


def measure_of(problem: Problem) -> Callable[[Tensor, Args], Tensor]:
    """The values that the target bounds, ``(weights, args) -> (K,)``; also for rows."""
    return lambda weights, args: problem.criterion.compare(weights, args["target"])[0]


def linearize(problem: Problem, at: Evaluation, args: Args) -> Linearization:
    """The linearization of an evaluation."""
    rows = at.value.ndim
    measured, nearest = problem.criterion.compare(at.weights, args["target"])
    nearest = nearest.expand_as(measured)  # rows may share a target
    return Linearization(measured.flatten(rows), nearest.flatten(rows), at.slopes)


def unknown_linearization(problem: Problem, z: Tensor, args: Args) -> Linearization:
    """A linearization of zeros, for a method's state before the first evaluation."""
    weights = torch.zeros_like(problem.criterion.weights_like(args["target"]))
    measured = measure_of(problem)(weights, args).flatten()
    return Linearization(measured, measured, measured[:, None] * torch.zeros_like(z).flatten())


def _penalty_terms(problem: Problem, z: Tensor, args: Args) -> PenaltyTerms:
    """The penalties at a point, times K, as the sum of squared residuals is."""
    target = args["target"]
    count = problem.criterion.compare(problem.criterion.weights_like(target), target)[0].numel()

    def total(z: Tensor) -> Tensor:
        return count * problem.extra(z, args)

    def summed(z: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        gradient, value = torch.func.grad_and_value(total)(z)
        return gradient.sum(), (gradient, value)

    # The Hessian times ones: its diagonal where entries do not interact, as those of l2 do not.
    curvature, (gradient, value) = torch.func.grad(summed, has_aux=True)(z)
    terms = (gradient.flatten(), curvature.flatten().clamp_min(0.0))
    return PenaltyTerms(value.to(WIDE), *(term.to(WIDE) for term in terms))


def _gaps(problem: Problem, line: Linearization, args: Args, kind: Residual, in_logs: Tensor) -> Gaps:
    """The residuals from the lower and the upper bounds of the measured values."""
    measured = line.measured.to(WIDE)
    bounds = [bound.flatten().to(WIDE) for bound in problem.criterion.bounds(args["target"])[:2]]
    lower, upper = (
        torch.where(bound.isinf(), -bound, residuals_of(measured, bound, kind, in_logs)[0])
        for bound in bounds
    )
    return lower, upper


def beyond(gaps: Gaps, change: Tensor) -> Tensor:
    """How far outside of its bounds each value is after a change, signed."""
    lower, upper = gaps
    return (lower + change).clamp_max(0.0) + (upper + change).clamp_min(0.0)


def _reach_bounds(model: Model, gaps: Gaps) -> Model:
    """The model of the values that are outside of their bounds after its own step.

    Others are free: a model of a value that is within its bounds would keep it where it is.
    """
    lower, upper = gaps
    jacobian, outside, exact = model.jacobian, model.r, lower == upper
    for _ in range(_ROUNDS):
        below, above = outside < 0.0, outside > 0.0
        r = torch.where(exact | below, lower, torch.where(above, upper, 0.0))
        active = exact | below | above
        model = model._replace(r=r, jacobian=jacobian * active[:, None])
        outside = beyond(gaps, jacobian @ minimize_freely(model))
    return model


def residuals_of(
    measured: Tensor, nearest: Tensor, kind: Residual, in_logs: Tensor
) -> tuple[Tensor, Tensor]:
    """Residuals ``f(m) - f(n)`` and their slopes ``f'(m)``, in shape ``(..., K)`` and dtype of ``m``."""
    plain, none = measured - nearest, torch.ones_like(measured)
    if kind == "weights":
        return plain, none
    m, n = (t.clamp_min(0.0) + _FLOOR for t in (measured, nearest))
    if kind == "sqrt":
        return 2.0 * (m.sqrt() - n.sqrt()), (measured >= 0.0) / m.sqrt()
    logarithmic = m.log() - n.log(), (measured >= 0.0) / m
    in_logs = in_logs.unsqueeze(-1)
    return torch.where(in_logs, logarithmic[0], plain), torch.where(in_logs, logarithmic[1], none)


def _gram(line: Linearization) -> Tensor:
    """The Jacobian times its transpose, in float32 at least."""
    jacobian = line.jacobian.to(torch.promote_types(line.jacobian.dtype, torch.float32))
    return jacobian @ jacobian.mT


def project_flat(problem: Problem, z: Tensor, args: Args, point: Tensor) -> Tensor:
    """The projection of a point ``(N,)`` of the search space of ``z``, in its dtype."""
    return problem.project(point.to(z.dtype).view(z.shape), args).flatten()
