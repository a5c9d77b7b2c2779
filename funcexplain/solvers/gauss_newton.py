"""Levenberg-Marquardt: damped Gauss-Newton steps on what the target measures.

A network's output is only A numbers wide, so that the curvature of the misfit is known from A slopes:
one Jacobian, and a system of A equations, give a step of least norm to where the target would be met if
the network were linear. The damping is a row's own: it falls while the linear model foretells the gain,
and grows, with the step taken back, while it does not.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from funcexplain.problems.checks import check_number
from funcexplain.problems.criterion import Criterion
from funcexplain.problems.problem import Args, Problem, identity
from funcexplain.solvers.gradient import Objective
from funcexplain.solvers.jacobian import Linearized, linearize
from funcexplain.solvers.state import (
    Info,
    Rules,
    State,
    begin,
    decide,
    function_key,
    make_objective,
    where_rows,
)

Residual = Literal["auto", "weights", "sqrt", "log"]

# Added before logarithms and roots are taken: differences far below it are not told apart.
_FLOOR = 1e-8
WIDE = torch.float64
_LEAST_DAMPING, _MOST_DAMPING = 1e-8, 1e12
# Least share of the foretold gain with which a step is taken.
_LEAST_RATIO = 1e-4
# A foretold gain below this share of what is minimized is none.
_LEAST_GAIN = 1e-12
# Least damping, as a share of the squared slopes: the system stays solvable in float64.
LEAST_SHARE = 1e-12
# Projections after which the entries that rest on a bound are known, nearly always.
_PROJECTIONS = 2


class LevenbergMarquardt(NamedTuple):
    """The method that `levenberg_marquardt` returns: its settings."""

    residual: Residual
    damping: float


class Line(NamedTuple):
    """What is measured ``(K,)``, the nearest numbers that meet the target, and slopes ``(K, N)``."""

    measured: Tensor
    nearest: Tensor
    jacobian: Tensor


class Cost(NamedTuple):
    """The penalties' value, slope ``(N,)`` and curvature (its diagonal); without any, zeros ``()``."""

    value: Tensor
    slope: Tensor
    curvature: Tensor


class Damped(NamedTuple):
    """What the method carries of the best point so far; K things measured, N entries searched.

    Attributes:
        z: the point.
        line: its evaluation to first order.
        cost: the penalties there, with slope and curvature; a value of NaN before the first evaluation.
        foretold: gain that the model foretells for the step that is tried.
        damping: ``mu``, see `levenberg_marquardt`.
        growth: factor of the damping where the next step fails.
        in_logs: whether the residual is taken in logarithms (``"auto"`` decides for every row).
    """

    z: Tensor
    line: Line
    cost: Cost
    foretold: Tensor
    damping: Tensor
    growth: Tensor
    in_logs: Tensor


class Advance(NamedTuple):
    """What follows from an evaluation.

    Attributes:
        z: point to try next.
        carried: what the method carries on, `Damped` or another's own.
        value: what is minimized, at the point that was evaluated.
        best: the same at the best point before it, NaN if there was none.
        misfit: mean of squared residuals at the best point, this one included.
        grads: slope of what is minimized at the best point; zero where no step helps any more.
    """

    z: Tensor
    carried: Any
    value: Tensor
    best: Tensor
    misfit: Tensor
    grads: Tensor


class DampedParts(NamedTuple):
    """The functions that a step of one row is made of.

    Attributes:
        objective: ``(z, args) -> (value, (loss, weights))``.
        init: ``args -> state``.
        measure: ``(weights, args) -> measured``, of rows, too.
        advance: ``(state, args, linearized) -> Advance``.
        criterion: how weights are compared with the target.
        key: what the functions are made of; equal keys mean equal functions.
    """

    objective: Objective
    init: Callable[[Args], State]
    measure: Callable[[Tensor, Args], Tensor]
    advance: Callable[[State, Args, Linearized], Advance]
    criterion: Criterion
    key: tuple[Any, ...]


def levenberg_marquardt(residual: Residual = "auto", *, damping: float = 10.0) -> LevenbergMarquardt:
    """Damped Gauss-Newton: minimizes the mean of squared residuals ``f(m) - f(n)``, plus penalties.

    ``m`` are the K numbers that a target measures (an allocation: the weights), ``n`` the nearest
    numbers that meet it. With their Jacobian ``J`` a step is the ``d`` of least
    ``|r + J d|**2 + lam |d|**2``: ``d = -J' (J J' + lam I)^-1 r``. Penalties join with their slope and
    the diagonal of their curvature (which is all of it for `l2`, by Woodbury's identity).
    ``lam = mu |r|**2 / N`` follows the misfit, so that it vanishes at the target; the factor ``mu``
    falls with steps that gain what was foretold and grows with those that do not, which are taken back
    (Nielsen 1999). What is minimized never grows.

    It needs few steps where Adam needs hundreds, each with one forward pass and one reverse pass for all
    K together. Steps are of least norm in the search space: search in sigmas (`standardize`). A hit ends
    the search; so does a point where no step helps (STALLED), which for a target out of reach is the
    nearest in the residual's sense. The problem's own loss is reported at the end, not minimized;
    `Solution.history` and `Info.loss` hold the mean of squared residuals at the best point so far.

    Args:
        residual: ``"weights"``: f(m) = m. ``"sqrt"``: 2 sqrt(m). ``"log"``: log(m), which sees a weight
            of a thousandth as far from zero, as a softmax does. Roots and logarithms are of
            ``m + 1e-8``, and of 1e-8 where m is negative. ``"auto"``: logarithms where all m and n are
            positive at the start, until an m is negative; else the numbers themselves.
        damping: ``mu`` at the start, > 0; a change of root mean square ``1 / sqrt(mu)`` costs as much as
            the present misfit. Larger: smaller first steps, and smaller changes in the end.

    Returns:
        A method for `solve` and `make_step`.

    Raises:
        TypeError: if ``damping`` is no number.
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


def make_damped_parts(problem: Problem, method: LevenbergMarquardt, rules: Rules) -> DampedParts:
    """Make the functions of one row's step."""
    compare, costs = problem.criterion.compare, bool(problem.penalties or problem.costs)

    def measure(weights: Tensor, args: Args) -> Tensor:
        return compare(weights, args["target"])[0]

    def init(args: Args) -> State:
        def carry(z: Tensor) -> Damped:
            weights = torch.zeros_like(problem.criterion.weights_like(args["target"]))
            measured, entries = measure(weights, args).flatten(), torch.zeros_like(z).flatten()
            none = z.new_zeros((), dtype=WIDE)
            return Damped(
                z=z,
                line=Line(measured, measured, measured[:, None] * entries),
                cost=Cost(none + torch.nan, *(2 * [entries.to(WIDE) if costs else none])),
                foretold=none,
                damping=none + method.damping,
                growth=none + 2.0,
                in_logs=torch.full((), method.residual in ("auto", "log"), device=z.device),
            )

        return begin(problem, rules, args, carry)

    def advance(state: State, args: Args, at: Linearized) -> Advance:
        measured, nearest = (t.flatten() for t in compare(at.weights, args["target"]))
        line, cost = Line(measured, nearest, at.jacobian), _cost(problem, state.z, args)
        carried: Damped = state.optimizer
        first = carried.cost.value.isnan()
        in_logs = carried.in_logs
        if method.residual == "auto":
            positive = (measured > 0.0).all() & (nearest > 0.0).all()
            in_logs = torch.where(first, positive, in_logs & ~(measured < -_FLOOR).any())
        merit, old = (
            residual_of(a_line, method.residual, in_logs).square().sum() + a_cost.value
            for a_line, a_cost in ((line, cost), (carried.line, carried.cost))
        )
        # Sums are the fastest passes over memory that see what is not finite.
        usable = (merit + at.jacobian.sum(dtype=WIDE) + cost.slope.sum()).isfinite()
        ratio = (old - merit) / carried.foretold.clamp_min(torch.finfo(WIDE).tiny)
        gains = usable & (merit < old) & (ratio > _LEAST_RATIO)
        takes = first | gains
        fall = (1.0 - (2.0 * ratio.clamp(0.0, 1.5) - 1.0) ** 3).clamp_min(1.0 / 3.0)
        damping = carried.damping * torch.where(gains, fall, carried.growth)
        damping = torch.where(first, carried.damping, damping.clamp(_LEAST_DAMPING, _MOST_DAMPING))

        z = torch.where(takes, state.z, carried.z)
        line = Line(*(torch.where(takes, *pair) for pair in zip(line, carried.line, strict=True)))
        cost = Cost(*(torch.where(takes, *pair) for pair in zip(cost, carried.cost, strict=True)))
        r = residual_of(line, method.residual, in_logs)
        jacobian = sloped(line, method.residual, in_logs)
        misfit = r.square().sum()
        lam = damping * misfit / z.numel()
        step = _step(jacobian, r, cost, lam)
        following = (z.flatten().to(WIDE) + step).to(z.dtype).view(z.shape)
        if problem.project is not identity:
            following = _projected(problem, z, step, jacobian, r, cost, lam, args)
        step = (following - z).flatten().to(WIDE)
        grads = 2.0 * jacobian.T @ r + cost.slope
        bent = (jacobian @ step).square().sum() + 0.5 * (cost.curvature * step.square()).sum()
        foretold = -(grads @ step) - bent
        ends = (foretold <= _LEAST_GAIN * torch.where(takes, merit, old)) | (damping >= _MOST_DAMPING)
        count = len(measured)
        return Advance(
            z=torch.where(ends, state.z, following),
            carried=Damped(
                z, line, cost, foretold, damping, torch.where(takes, 2.0, 2.0 * carried.growth), in_logs
            ),
            value=(merit / count).to(z.dtype),
            best=(old / count).to(z.dtype),
            misfit=(misfit / count).to(z.dtype),
            grads=torch.where(ends, 0.0, grads / count).to(z.dtype).view(z.shape),
        )

    key = (function_key(problem), method, rules)
    return DampedParts(make_objective(problem), init, measure, advance, problem.criterion, key)


def make_damped_step(parts: DampedParts, rules: Rules) -> Callable[[State, Args], tuple[State, Info]]:
    """Make the pure step of one question."""
    linearized = linearize(parts.objective, parts.measure)

    def step(state: State, args: Args) -> tuple[State, Info]:
        at = linearized(state.z, args)
        error = parts.criterion.error(at.weights, args["target"])
        return settle(rules, state, error, at, parts.advance(state, args, at))

    return step


def settle(
    rules: Rules, state: State, error: Tensor, at: Linearized, advance: Advance
) -> tuple[State, Info]:
    """Decide as for every method, but keep the best point, to which a step that fails is taken back.

    Args:
        rules: settings.
        state: of one row, or of a batch that leads with its rows.
        error: largest distance from the target.
        at: evaluation of ``state.z``.
        advance: what follows from it.

    Returns:
        The next state and what to report: the misfit of the best point in place of the loss.
    """
    kept = state.kept._replace(value=advance.best)
    # A failed try at which nothing is finite is no end: the search goes on from the best point.
    failed = ~advance.value.isfinite() & ~kept.value.isnan()
    value, loss, weights = (
        where_rows(failed, old, new)
        for old, new in zip(kept[1:], (advance.value, at.loss, at.weights), strict=True)
    )
    next_state, info = decide(
        rules._replace(keep="best"),
        state._replace(kept=kept),
        error,
        ((value, (loss, weights)), advance.grads),
        (advance.z, advance.carried),
    )
    return next_state, info._replace(loss=advance.misfit)


def _cost(problem: Problem, z: Tensor, args: Args) -> Cost:
    """The penalties at a point, times the number of things measured, as the residuals' sum is."""
    target = args["target"]
    count = problem.criterion.compare(problem.criterion.weights_like(target), target)[0].numel()

    def total(z: Tensor) -> Tensor:
        return count * problem.extra(z, args)

    if not problem.penalties and not problem.costs:
        none = z.new_zeros((), dtype=WIDE)
        return Cost(none, none, none)

    def summed(z: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        slope, value = torch.func.grad_and_value(total)(z)
        return slope.sum(), (slope, value)

    # The curvature's product with ones: its diagonal where entries do not mix, as those of l2 do not.
    bend, (slope, value) = torch.func.grad(summed, has_aux=True)(z)
    return Cost(value.to(WIDE), slope.flatten().to(WIDE), bend.flatten().clamp_min(0.0).to(WIDE))


def residual_of(line: Line, kind: Residual, in_logs: Tensor) -> Tensor:
    """Residuals ``f(m) - f(n)``, ``(K,)``, in float64."""
    measured, nearest = line.measured.to(WIDE), line.nearest.to(WIDE)
    plain = measured - nearest
    if kind == "weights":
        return plain
    m, n = (t.clamp_min(0.0) + _FLOOR for t in (measured, nearest))
    if kind == "sqrt":
        return 2.0 * (m.sqrt() - n.sqrt())
    return torch.where(in_logs, m.log() - n.log(), plain)


def sloped(line: Line, kind: Residual, in_logs: Tensor) -> Tensor:
    """Slopes of the residuals, ``f'(m) J``, ``(K, N)``, in float64."""
    measured = line.measured.to(WIDE)
    m = measured.clamp_min(0.0) + _FLOOR
    if kind == "weights":
        factor = torch.ones_like(m)
    elif kind == "sqrt":
        factor = (measured >= 0.0) / m.sqrt()
    else:
        factor = torch.where(in_logs, (measured >= 0.0) / m, 1.0)
    return line.jacobian * factor[:, None]


def _projected(
    problem: Problem,
    z: Tensor,
    step: Tensor,
    jacobian: Tensor,
    r: Tensor,
    cost: Cost,
    lam: Tensor,
    args: Args,
) -> Tensor:
    """The next point within bounds: entries that would leave rest there, the others make up for them."""
    point, held = z.flatten().to(WIDE), torch.zeros_like(z, dtype=torch.bool).flatten()
    for _ in range(_PROJECTIONS):
        aim = (point + step).to(z.dtype)
        rest = problem.project(aim.view(z.shape), args).flatten()
        held = held | ((rest - aim).abs() > 1e2 * torch.finfo(z.dtype).eps * (1.0 + aim.abs()))
        fixed, free = torch.where(held, rest.to(WIDE) - point, 0.0), torch.where(held, 0.0, 1.0)
        bent = Cost(cost.value, (cost.slope + cost.curvature * fixed) * free, cost.curvature)
        step = fixed + _step(jacobian * free, r + jacobian @ fixed, bent, lam) * free
    return problem.project((point + step).to(z.dtype).view(z.shape), args)


def _step(jacobian: Tensor, r: Tensor, cost: Cost, lam: Tensor) -> Tensor:
    """The least of ``|r + J d|**2 + cost(d) + lam |d|**2`` by Woodbury's identity: a (K, K) system."""
    products = jacobian @ jacobian.T
    least = LEAST_SHARE * products.diagonal().sum() + torch.finfo(WIDE).tiny
    slope, curvature = 0.5 * cost.slope, 0.5 * cost.curvature + torch.maximum(lam, least)
    if curvature.ndim == 0:  # no penalties: what is large is passed over as rarely as possible
        return -jacobian.T @ (_solved(products / curvature, r) / curvature)
    weighted = jacobian / curvature
    y = _solved(weighted @ jacobian.T, r - weighted @ slope)
    return -(slope / curvature + weighted.T @ y)


def _solved(products: Tensor, lines: Tensor) -> Tensor:
    """``(products + I)^-1 lines``."""
    factor, failed = torch.linalg.cholesky_ex(products + torch.eye(len(lines)).to(products))
    # A system that cannot be factored gives no step, and the damping grows until one can be.
    return torch.where(failed == 0, torch.cholesky_solve(lines[:, None], factor)[:, 0], 0.0)
