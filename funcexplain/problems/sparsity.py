"""Sparse changes: an absolute penalty whose solutions have exact zeros, with any optimizer."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from funcexplain.problems.checks import check_name, check_strength
from funcexplain.problems.law import drop_law
from funcexplain.problems.problem import Args, Map, Problem, check_problem, decode_costs, identity
from funcexplain.problems.transforms import Transform, add_data, strength_rule


def keep_unchanged(decode: Map, problem: Problem) -> Map:
    """A map to windows whose entries are bit-equal to the reference where they equal its image.

    A round trip through the units of a problem may change the last digit.
    """

    def exact(z: Tensor, args: Args) -> Tensor:
        x = decode(z, args)
        unchanged = x.detach() == problem.decode(problem.encode(args["reference"], args), args)
        # Only the value is corrected.
        return torch.where(unchanged, args["reference"] + (x - x.detach()), x)

    return exact


def sparsify(strength: float | Tensor, *, name: str = "sparsity") -> Transform:
    """Add ``strength * mean(|u - r|)``, so that entries change only where needed.

    ``u`` is the search variable so far, ``r`` its value at the reference: after `standardize`, changes
    count in sigmas. The change is split, ``u = r + rise - fall`` with ``rise, fall >= 0``, which makes
    the penalty linear, ``strength * mean(rise + fall)``; after every update both are projected to
    non-negative values. Such a step is the proximal step of the absolute value (for `sgd`: soft
    thresholding by ``lr * strength / N``), and its zeros are exact: entries of ``x`` that do not change
    equal the reference bit for bit. With `penalize` and `penalties.l1`, an optimizer oscillates around
    zero instead.

    Args:
        strength: factor, a number >= 0 or a scalar tensor of the problem's dtype.
        name: name of the strength in ``args``, by which it can be mapped.

    Returns:
        A transform, to be applied after `standardize`, `box` and `clip`; `State.z` begins with a
        dimension ``(rise, fall)``.

    Raises:
        TypeError: if ``strength`` is not a number, or ``name`` is not an identifier.
        ValueError: if ``strength`` is negative or not a scalar, or the name exists.

    Example:
        >>> import torch, funcexplain as fe
        >>> def network(params, x):
        ...     return torch.softmax(x.sum((0, 1)) * torch.tensor([1.0, 0.1]), -1)
        >>> p = fe.problem((network, {}), torch.tensor([0.7, 0.3]), torch.zeros(1, 1, 2))
        >>> sparse = fe.sparsify(0.05)(p)
        >>> fe.solve(sparse, fe.sgd(lr=1.0), max_steps=200).x.count_nonzero()
        tensor(1)

    References:
        M. Figueiredo, R. Nowak, S. Wright (2007), Gradient Projection for Sparse Reconstruction,
        https://doi.org/10.1109/JSTSP.2007.910281; N. Parikh, S. Boyd (2014), Proximal Algorithms,
        https://doi.org/10.1561/2400000003
    """
    check_name("sparsify", name)

    def add_sparsity(problem: Problem) -> Problem:
        x0 = check_problem("sparsify", problem).args["x0"]
        factor = check_strength("sparsify", name, strength, x0)
        inner_decode, inner_encode, inner_start = problem.decode, problem.encode, problem.start
        inner_project = problem.project

        def join(z: Tensor, args: Args) -> Tensor:
            return inner_encode(args["reference"], args) + (z[0] - z[1])

        def split(u: Tensor, args: Args) -> Tensor:
            change = u - inner_encode(args["reference"], args)
            return torch.stack([change, -change]).clamp_min(0.0)

        def project(z: Tensor, args: Args) -> Tensor:
            z = z.clamp_min(0.0)
            if inner_project is identity:
                return z
            u = join(z, args)
            moved = inner_project(u, args)
            return torch.where(moved == u, z, split(moved, args))

        def cost(z: Tensor, args: Args) -> Tensor:
            # A mean over rise and fall halves the mean over entries.
            return args[name] * 2.0 * z.mean()

        changed = replace(
            problem,
            args=add_data("sparsify", problem, **{name: factor}),
            decode=keep_unchanged(lambda z, args: inner_decode(join(z, args), args), problem),
            encode=lambda x, args: split(inner_encode(x, args), args),
            start=lambda args: split(inner_start(args), args),
            project=project,
            costs=(*decode_costs(problem.costs, join), cost),
            rules=(*problem.rules, strength_rule(name)),
        )
        return drop_law(problem, changed, "sparsify")

    return add_sparsity
