"""Is the gradient right? A comparison with central differences along random directions.

With a wrong kernel, a detached tensor or a wrong hand-written backward pass, a search silently goes
nowhere.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from funcexplain.networks.network import bound, deferred_interrupts, raise_pending, set_seed
from funcexplain.networks.noise import normal
from funcexplain.networks.rounding import coarsest_eps
from funcexplain.problems.checks import check_count, check_memory, check_number, check_outside_transforms
from funcexplain.problems.problem import Args, Problem, check_question
from funcexplain.problems.transforms import cast
from funcexplain.solvers.gradient import backward_value_and_grad

# Tolerance, at least, where differences are not in float64.
_OWN_RTOL = 0.05
_RANDOM = {torch.rand, torch.randn}
_FACTORIES = _RANDOM | {
    *(torch.zeros, torch.ones, torch.full, torch.empty, torch.eye, torch.arange),
    *(torch.linspace, torch.logspace, torch.tensor, torch.as_tensor, torch.scalar_tensor),
    *(torch.hann_window, torch.hamming_window),
}


class Slope(NamedTuple):
    """The directional derivative of the objective, computed in two ways.

    Attributes:
        dtype: dtype that the gradient was computed in.
        gradient: inner product of the gradient with the direction.
        difference: central difference along the direction, normally in float64.
        error: their difference, relative to the norm of the gradient.
    """

    dtype: torch.dtype
    gradient: float
    difference: float
    error: float


@dataclass(frozen=True, repr=False)
class GradientCheck:
    """The result of `check_gradient`.

    Attributes:
        slopes: one comparison per direction and dtype.
        rtol: largest relative error that passes.
        repeatable: whether two forward passes at one point agreed to rounding.
        precision: dtype of the differences; the problem's own where the network fails in float64.
    """

    slopes: tuple[Slope, ...]
    rtol: float
    repeatable: bool = True
    precision: torch.dtype = torch.float64

    @property
    def ok(self) -> bool:
        """Whether every gradient agrees with its difference."""
        return self.repeatable and all(slope.error <= self.rtol for slope in self.slopes)

    @property
    def verdict(self) -> str:
        """The result in one sentence."""
        if not self.repeatable:
            return (
                "The network draws random numbers: two forward passes at one point differ, so "
                "differences mean nothing."
            )
        flat = all(slope.gradient == 0.0 for slope in self.slopes)
        if flat and all(slope.difference == 0.0 for slope in self.slopes):
            return (
                "What is minimized does not depend on the input near its start, where gradient and "
                "differences are zero: the input is ignored, or enters by steps (argmax, rounding)."
            )
        if flat:
            return (
                "The gradient is zero although what is minimized changes with the input: something on "
                "the way (detach, numpy) has no gradient."
            )
        worst = max(slope.error for slope in self.slopes)
        agrees = "agrees" if self.ok else "does NOT agree"
        found = (
            f"The gradient {agrees} with central differences: largest relative error {worst:.2g}, "
            f"rtol {self.rtol:g}."
        )
        if self.precision != torch.float64:
            name = str(self.precision).removeprefix("torch.")
            found += f" The differences are in {name}, since the network fails in float64."
        if not self.ok:
            found += (
                " The usual cause is a `.detach()` in the network, as of a mean or standard deviation."
            )
        return found

    def __repr__(self) -> str:
        rows = "\n".join(
            f"  {slope.dtype}: gradient {slope.gradient:+.6e}, "
            f"difference {slope.difference:+.6e}, relative error {slope.error:.1e}"
            for slope in self.slopes
        )
        return f"{self.verdict}\n{rows}"


def check_gradient(
    problem: Problem, *, rtol: float = 1e-2, num_directions: int = 4, seed: int = 0
) -> GradientCheck:
    """Compare a problem's gradient at its start with central differences along random directions.

    With standard normal entries in ``d``, ``<grad f(z), d>`` should be
    ``(f(z + h d) - f(z - h d)) / 2h``. The gradient is taken as `solve` takes it, in the problem's own
    dtype and in float64, the difference in float64. Errors are relative to the gradient's norm, the
    typical size of a slope along ``d``.

    Args:
        problem: the question; 2 forward passes per direction, 2 more, and one gradient per dtype.
        rtol: largest relative error that passes.
        num_directions: directions to try, at least 1.
        seed: seed of the directions.

    Returns:
        One comparison per direction and dtype; ``ok`` and ``verdict`` summarize them.

    Raises:
        TypeError: if ``problem`` is not a Problem.
        ValueError: if ``rtol`` is negative or ``num_directions`` is less than one.

    Example:
        >>> import torch, funcexplain as fe
        >>> network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Softmax(-1))
        >>> p = fe.problem(network, torch.tensor([0.9, 0.1]), torch.zeros(1, 1, 2))
        >>> fe.check_gradient(p).ok
        True
    """
    check_outside_transforms("check_gradient")
    check_question("check_gradient", problem)
    check_number("check_gradient", "rtol", rtol, minimum=0.0)
    if check_count("check_gradient", "num_directions", num_directions) < 1:
        raise ValueError("check_gradient: num_directions must be >= 1, got 0")
    check_count("check_gradient", "seed", seed)
    x0 = problem.args["x0"]
    num_bytes = 8 * num_directions * x0.numel()
    check_memory("check_gradient", "num_directions", num_directions, num_bytes, x0.device)

    own, double = problem.args, cast(dtype=torch.float64)(problem).args
    try:
        return _compare(problem, own, double, rtol, num_directions, seed)
    except (RuntimeError, TypeError) as error:
        if own["x0"].dtype == torch.float64 or not re.search(
            "dtype|scalar type|Float|Double", str(error)
        ):
            raise
        # A tensor that the network keeps as a plain attribute cannot be cast.
        return _compare(problem, own, own, max(rtol, _OWN_RTOL), num_directions, seed)


def _compare(
    problem: Problem, own: Args, wide: Args, rtol: float, num_directions: int, seed: int
) -> GradientCheck:
    """Compare gradients in both dtypes with differences in that of ``wide``."""
    precision, slopes = wide["x0"].dtype, []
    eps = torch.finfo(precision).eps
    with deferred_interrupts(), torch.no_grad(), ExitStack() as stack:
        gradients = {}
        for args in {own["x0"].dtype: own, precision: wide}.values():
            dtype = args["x0"].dtype
            with _evaluated(problem, args) as objective:
                z = problem.start(wide).to(dtype)
                gradients[dtype] = backward_value_and_grad(objective)(z, args)[1].to(precision)
        objective = stack.enter_context(_evaluated(problem, wide))
        z = problem.start(wide)
        value, again = (objective(z, wide)[0] for _ in range(2))
        size = z.square().mean().sqrt()
        size = torch.where(size > 0, size, torch.ones_like(size))
        # The cube root of rounding is where both errors of a difference are smallest.
        step = coarsest_eps(z, wide["params"]) ** (1 / 3) * size
        seeds = torch.tensor(seed, device=z.device)
        for direction in normal(seeds, (num_directions, *z.shape), z.dtype):
            raise_pending()
            ahead, behind = (objective(z + h * direction, wide)[0] for h in (step, -step))
            difference = (ahead - behind) / (2 * step)
            # Below this a difference says nothing: rounding of the value, and a hundredth of what
            # curvature alone changes within one step.
            bend = (ahead + behind - 2 * value).abs() / (2 * step)
            rounding = 250 * eps ** (2 / 3) * value.abs() / size + 10 * (again - value).abs() / step
            floor = rounding + 0.01 * bend + torch.finfo(z.dtype).tiny
            for dtype, grads in gradients.items():
                slope = (grads * direction).sum()
                scale = torch.stack([grads.norm(), difference.abs(), floor]).amax()
                error = (slope - difference).abs() / scale
                slopes.append(Slope(dtype, float(slope), float(difference), float(error)))
    repeatable = bool((again - value).abs() <= eps**0.75 * value.abs()) or bool(value.isnan())
    return GradientCheck(tuple(slopes), rtol, repeatable, precision)


class DoubleConstants(TorchFunctionMode):
    """Make constants float64 where no dtype is given; torch's own default does not change."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call a function of torch."""
        del types
        kwargs = kwargs or {}
        made = func(*args, **kwargs)
        given = kwargs.get("dtype") is not None or any(isinstance(arg, Tensor) for arg in args)
        if func not in _FACTORIES or given or made.dtype != torch.get_default_dtype():
            return made
        # Random numbers are drawn once.
        return made.double() if func in _RANDOM else func(*args, **kwargs, dtype=torch.float64)


@contextmanager
def _evaluated(problem: Problem, args: Args) -> Iterator[Callable[[Tensor, Args], tuple[Tensor, tuple]]]:
    """The objective, with its parameters in the network during forward and backward passes."""
    params = set_seed(args["params"], args["seed"])
    double = DoubleConstants() if args["x0"].dtype == torch.float64 else nullcontext()
    with bound(problem.apply, params), double:

        def objective(z: Tensor, args: Args) -> tuple[Tensor, tuple[()]]:
            value, _ = problem.evaluate(problem.windows(z, args), args)
            return sum((cost(z, args) for cost in problem.costs), start=value), ()

        yield objective
