"""Is the gradient right? A comparison with central differences along random directions.

Neither torch nor the network is trusted: with a wrong kernel, a detached tensor or a wrong hand-written
backward pass, a search silently goes nowhere.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from funcexplain.networks.noise import normal
from funcexplain.problems.checks import check_count, check_number
from funcexplain.problems.problem import Problem, check_question
from funcexplain.problems.transforms import cast
from funcexplain.solvers.gradient import backward_value_and_grad


class Slope(NamedTuple):
    """The directional derivative of what is minimized, computed in two ways.

    Attributes:
        dtype: dtype that the gradient was computed in.
        gradient: inner product of the gradient with the direction.
        difference: central difference along the direction, in float64.
        error: their difference, relative to the norm of the gradient.
    """

    dtype: torch.dtype
    gradient: float
    difference: float
    error: float


@dataclass(frozen=True, repr=False)
class GradientCheck:
    """What `check_gradient` found.

    Attributes:
        slopes: one comparison per direction and dtype.
        rtol: largest relative error that passes.
        repeatable: whether two forward passes at one point agreed.
    """

    slopes: tuple[Slope, ...]
    rtol: float
    repeatable: bool = True

    @property
    def ok(self) -> bool:
        """Whether every gradient agrees with its difference."""
        return self.repeatable and all(slope.error <= self.rtol for slope in self.slopes)

    @property
    def verdict(self) -> str:
        """What was found, in one sentence."""
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
        return (
            f"The gradient {agrees} with central differences: largest relative error {worst:.2g}, "
            f"rtol {self.rtol:g}."
        )

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
        seed: decides the directions.

    Returns:
        What was found per direction; ``ok`` and ``verdict`` sum it up.

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
    check_question("check_gradient", problem)
    check_number("check_gradient", "rtol", rtol, minimum=0.0)
    if check_count("check_gradient", "num_directions", num_directions) < 1:
        raise ValueError("check_gradient: num_directions must be >= 1, got 0")

    def objective(z: Tensor, args: dict) -> tuple[Tensor, tuple[()]]:
        value, _ = problem.evaluate(problem.decode(z, args), args)
        return sum((cost(z, args) for cost in problem.costs), start=value), ()

    differentiate = backward_value_and_grad(objective)
    own, double = problem.args, cast(dtype=torch.float64)(problem).args
    slopes = []
    with torch.no_grad():
        z = problem.start(double)
        gradients = {
            dtype: differentiate(z.to(dtype), args)[1].double()
            for dtype, args in ((own["x0"].dtype, own), (torch.float64, double))
        }
        value = objective(z, double)[0]
        size = z.square().mean().sqrt()
        size = torch.where(size > 0, size, torch.ones_like(size))
        step = 6e-6 * size  # near the cube root of float64's rounding, where both errors are smallest
        seeds = torch.tensor(seed, device=z.device)
        for direction in normal(seeds, (num_directions, *z.shape), z.dtype):
            ahead, behind = (objective(z + h * direction, double)[0] for h in (step, -step))
            difference = (ahead - behind) / (2 * step)
            for dtype, grads in gradients.items():
                slope = (grads * direction).sum()
                # Below this a difference says nothing: rounding of the value, and a hundredth of what
                # curvature alone changes within one step.
                bend = (ahead + behind - 2 * value).abs() / (2 * step)
                floor = 1e-8 * value.abs() / size + 0.01 * bend + torch.finfo(z.dtype).tiny
                scale = torch.stack([grads.norm(), difference.abs(), floor]).amax()
                error = (slope - difference).abs() / scale
                slopes.append(Slope(dtype, float(slope), float(difference), float(error)))
        repeatable = bool(objective(z, double)[0] == value) or bool(value.isnan())
    return GradientCheck(tuple(slopes), rtol, repeatable)
