"""Answers that survive noise: `smooth` averages the network, `robust` asks for a share of hits.

    points = z, z + scale * n, z - scale * n, ...       antithetic pairs, the same in every step and row
    x  --decode-->  windows  --apply-->  weights of each  --mean, or one target for each-->

The noise is added to the search point. In a scenario that is noise of the path, so the channels of a
noisy window agree; every noisy window respects what `decode` ensures, such as frozen entries and bounds.
The law of ``z`` is kept.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from funcexplain.networks.network import SEED, Apply, Network, bound, set_seed
from funcexplain.networks.noise import normal
from funcexplain.networks.pickling import Unpicklable
from funcexplain.networks.trial import reads_values
from funcexplain.problems.checks import check_count, check_number, check_positive
from funcexplain.problems.consensus import choose_way, consensus, first_window, mean_loss
from funcexplain.problems.grid import Rule, varying_dims
from funcexplain.problems.mapping import vmap
from funcexplain.problems.problem import Args, Problem, check_problem
from funcexplain.problems.transforms import Transform, add_data

# Other numbers than those of starts and measures with the same seed.
_STREAM = 0x5F0E_7C15_3A2D_91B7
_RULE = Rule(("smoothing",), lambda scale: scale < 0, "smoothing must be >= 0, got a negative scale")


def smooth(*, scale: float, draws: int = 16, seed: int = 0) -> Transform:
    """Ask about the mean of the network's weights under noise: a randomized smoothing of the network.

    ``w(z) = mean_d network(decode(z + scale * n_d))`` with standard normal ``n``, in antithetic pairs
    ``n, -n`` that are the same for every step and row. The mean smooths out fine structure of the
    network that ordinary noise undoes. A search ends where the mean just holds the target; about half of
    the noise draws miss it there (for a linear network, exactly half). Convex measures, such as the
    turnover, are larger under noise than for the mean. `robust` asks for a share of the draws instead.

    The noise is in the units of the search space at this point of the pipe: sigmas after `standardize`,
    daily sigmas of the shocks in a scenario.

    A solution's ``weights``, ``loss`` and ``error`` are those of the mean. For the network's own at
    ``x``, evaluate the problem without `smooth`: ``fe.evaluate(solution, plain)``.

    Args:
        scale: standard deviation of the noise, >= 0.
        draws: number of noisy windows, even; a step costs as much as that many forward passes.
        seed: seed of the noise; torch's global generator is not used.

    Returns:
        A transform; its data are ``args["smoothing"]``, the scale, and ``args["noise"]``,
        ``(draws, *z.shape)``. Both can be mapped. A later `reparametrize` must encode noisy windows.

    Raises:
        TypeError: if an argument is not a number.
        ValueError: if ``scale`` is negative, ``draws`` is not even, or the problem has noise already.

    Example:
        >>> import torch, funcexplain as fe
        >>> network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Softmax(-1))
        >>> p = fe.problem(network, torch.tensor([0.8, 0.2]), torch.zeros(1, 1, 2))
        >>> solution = fe.solve(fe.smooth(scale=0.5)(p), fe.adam(lr=0.1), atol=1e-3)
        >>> solution.hit, bool(network(solution.x[None])[0, 0] > 0.8)  # the mean is less extreme
        (tensor(True), True)

    References:
        J. Cohen, E. Rosenfeld, J. Z. Kolter (2019), Certified Adversarial Robustness via Randomized
        Smoothing, https://arxiv.org/abs/1902.02918
    """
    scale = check_number("smooth", "scale", scale, minimum=0.0)
    draws, seed = _check_draws("smooth", draws), check_count("smooth", "seed", seed)
    return partial(_add_noise, "smooth", scale=scale, draws=draws, seed=seed, gather=_mean)


def robust(
    *,
    models: Any = None,
    noise: float = 0.0,
    level: float = 0.9,
    draws: int = 16,
    seed: int = 0,
) -> Transform:
    """Ask that the target holds in a share of models and noises: a chance constraint by sample average.

    Each model under each noise, drawn as in `smooth`, has its own weights. The error of an answer is the
    ``level`` quantile of their errors: the smallest that a share ``level`` of them does not exceed. The
    answer is a hit if that is within ``atol``. The loss, which a search decreases, is the mean.
    `closest` constrains all of them and keeps the closest point at which the share holds. The target
    holds less often under fresh noise than under the ``draws`` of the search: ask for more noise than
    the answer has to survive, or for more draws.

    Args:
        models: parameters of several models, stacked as by `stack`. Default: those of the problem, also
            of a `consensus`.
        noise: standard deviation of the noise, in the units of the search space; 0 for none.
        level: share of models and noises, in (0, 1].
        draws: number of noises, even.
        seed: seed of the noise.

    Returns:
        A transform with the data of `smooth`. Weights are ``(N, A)`` with ``N`` the number of models
        times ``draws``, starting with all models under the first noise.

    Raises:
        TypeError: if an argument is not a number, or ``models`` are not parameters of the network.
        ValueError: for a number out of range, or if there are neither several models nor noise.

    Example:
        >>> import torch, funcexplain as fe
        >>> network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Softmax(-1))
        >>> p = fe.problem(network, fe.targets.at_least(0, 0.6), torch.zeros(1, 1, 2))
        >>> q = fe.robust(noise=0.1, level=0.9, draws=20)(p)
        >>> weights = fe.solve(q, fe.levenberg_marquardt(), max_steps=50, atol=1e-3).weights
        >>> int((weights[:, 0] >= 0.599).sum()) >= 18
        True

    References:
        J. Luedtke, S. Ahmed (2008), A Sample Approximation Approach for Optimization with Probabilistic
        Constraints, https://doi.org/10.1137/070702928
    """
    noise = check_number("robust", "noise", noise, minimum=0.0)
    level = check_number("robust", "level", level, minimum=0.0, strict=True)
    if level > 1.0:
        raise ValueError(f"robust: level must be a share in (0, 1], got {level:g}")
    draws, seed = _check_draws("robust", draws), check_count("robust", "seed", seed)

    def ask(problem: Problem) -> Problem:
        check_problem("robust", problem)
        if models is not None:
            name = "robust_models"
            problem = consensus(vmap(problem, params=models, name=name))
        several = _target_ndim(problem) > problem.criterion.ndim
        if not several and not noise:
            raise ValueError(
                "robust: expected models, noise > 0 or both, got one model without noise; pass "
                "models=fe.stack(modules)[1] or noise=0.1"
            )
        if noise:
            gather = partial(_each, draws)
            noisy = _add_noise("robust", problem, scale=noise, draws=draws, seed=seed, gather=gather)
            place = problem.args["target"].ndim - _target_ndim(problem)
            target = torch.stack([problem.args["target"]] * draws, dim=place)
            target = target.flatten(place, place + several)
            loss = problem.loss if several else mean_loss(problem.loss)
            problem = replace(noisy, loss=loss, args={**noisy.args, "target": target})
        return replace(problem, criterion=problem.criterion._replace(level=level))

    return ask


def check_without_noise(where: str, problem: Problem) -> None:
    """Raise if the network is called under noise, which fixed entries would lack."""
    if problem.nearby is not None:
        raise ValueError(
            f"{where}: problem must be without noise, got one after fe.smooth or fe.robust; "
            "leave that out"
        )


class Nearby(Unpicklable):
    """The network at a window, or at the windows of `Problem.windows`.

    Attributes:
        apply: the network, of one window.
        several: the network of several windows, ``(params, windows) -> (D, *weights)``.
        gather: from the weights under each noise, ``(D, *weights)`` or one of each, to those compared.
        draws: whether the network draws random numbers in eval mode.
    """

    def __init__(self, apply: Apply, several: Apply, gather: Callable[[Tensor], Tensor]) -> None:
        self.apply, self.several, self.gather = apply, several, gather
        self.draws = getattr(apply, "draws", False)

    def __call__(self, params: Any, x: Tensor) -> Tensor:
        """Map a window ``(C, L, A)``, or one and those nearby ``(1 + D, C, L, A)``, to weights."""
        alone = x.ndim == 3
        return self.gather(self.apply(params, x)[None] if alone else self.several(params, x[1:]))

    def samples(self, params: Any, xs: Tensor) -> Tensor:
        """Map several windows with those nearby, ``(B, 1 + D, C, L, A)``, to weights in one call."""
        noisy = xs[:, 1:]
        weights = self.several(params, noisy.flatten(0, 1))
        return torch.func.vmap(self.gather)(weights.unflatten(0, noisy.shape[:2]))

    def bind(self, params: Any) -> AbstractContextManager[None]:
        """Keep parameters in the network."""
        return bound(self.apply, params)


def _mean(weights: Tensor) -> Tensor:
    return weights.mean(0)


def _each(draws: int, weights: Tensor) -> Tensor:
    """The weights under each noise; without noise, as many equal ones."""
    return weights.expand(draws, *weights.shape[1:]).flatten(0, -2)


def _add_noise(
    where: str,
    problem: Problem,
    *,
    scale: float,
    draws: int,
    seed: int,
    gather: Callable[[Tensor], Tensor],
) -> Problem:
    """The problem whose network is called under noise of the search point."""
    check_problem(where, problem)
    x0 = problem.args["x0"]
    like = x0.new_zeros(x0.shape[-3:])
    if 0 not in problem.shape:
        row = problem[(0,) * len(problem.dims)]
        like = problem.start(row.args)
    half = normal(torch.tensor(seed ^ _STREAM, device=x0.device), (draws // 2, *like.shape), like.dtype)
    noise = torch.stack([half, -half], dim=1).flatten(0, 1)
    args = add_data(where, problem, smoothing=x0.new_tensor(scale), noise=noise)

    def nearby(z: Tensor, args: Args) -> Tensor:
        return torch.cat([z[None], z + args["smoothing"] * args["noise"]])

    noisy = replace(problem, args=args, rules=(*problem.rules, _RULE), nearby=nearby)
    several = _loop(problem.apply)
    if 0 not in problem.shape:
        row = noisy[(0,) * len(problem.dims)]
        several = _call_windows(where, problem.apply, row)
    return replace(noisy, apply=Nearby(problem.apply, several, gather))


def _loop(apply: Apply) -> Apply:
    return lambda params, xs: torch.stack([apply(params, x) for x in xs])


def _call_windows(where: str, apply: Apply, row: Problem) -> Apply:
    """A function for several windows: mapped, on the network's samples, or one after another."""

    def samples(params: Any, xs: Tensor) -> Tensor:
        assert isinstance(apply, Network)
        return apply.samples(params, xs)

    def mapped(params: Any, xs: Tensor) -> Tensor:
        return torch.func.vmap(apply, (None, 0))(params, xs)

    def at(index: int, params: Any, xs: Tensor) -> Tensor:
        return apply(params, xs[index])

    if getattr(apply, "draws", False):  # no two calls agree
        return _loop(apply)
    params = set_seed(row.args["params"], row.args["seed"])
    # A network may decide by what its batch holds: a few windows of other signs and sizes show that.
    noisy = row.windows(row.start(row.args), row.args).detach()[[0, 1, -1]]
    few = torch.cat([noisy, -first_window(row)[None], 10.0 * noisy[:1]])
    few = few[[_is_accepted(apply, params, x) for x in few]]
    own = isinstance(apply, Network) and SEED not in params
    with bound(apply, params):
        shares = own and len(few) > 1 and not reads_values(apply, params, few)
        ways = [mapped, *([samples] if shares else []), _loop(apply)]
        return choose_way(where, ways, params, few, [(partial(at, i), params) for i in range(len(few))])


def _is_accepted(apply: Apply, params: Any, x: Tensor) -> bool:
    """Whether a network gives finite weights at a window."""
    try:
        with torch.no_grad():
            return bool(x.isfinite().all()) and bool(apply(params, x).isfinite().all())
    except Exception:
        return False


def _target_ndim(problem: Problem) -> int:
    """Number of dimensions of one row's target; one more than the criterion's for several models."""
    return problem.args["target"].ndim - len(varying_dims(problem.dims, "target"))


def _check_draws(where: str, draws: Any) -> int:
    draws = check_positive(where, "draws", draws)
    if draws % 2:
        raise ValueError(
            f"{where}: draws must be even, for pairs of opposite noise, got {draws}; pass {draws + 1}"
        )
    return draws
