"""Few changes: an absolute penalty whose answers hold true zeros, by any optimizer."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from funcexplain.problems.checks import check_name, check_strength
from funcexplain.problems.problem import Args, Problem, check_problem, identity, lifted
from funcexplain.problems.transforms import Transform, with_data


def sparsify(strength: float | Tensor, *, name: str = "sparsity") -> Transform:
    """Add ``strength * mean(|u - r|)`` so that what need not change does not change at all.

    ``u`` is what was searched before, ``r`` its value at the reference: after `standardize` changes
    count in sigmas. The change is split, ``u = r + rise - fall`` with ``rise, fall >= 0``, where the
    penalty is linear, ``strength * mean(rise + fall)``, and after every update both are projected on
    what is not negative. Such a step is the proximal step of the absolute value (for `sgd`: soft
    thresholding by ``lr * strength / N``), and its zeros are exact: entries of ``x`` that do not change
    equal the reference bit for bit. With `penalize` and `penalties.l1` an optimizer only wobbles around
    zero.

    Args:
        strength: factor, a number >= 0 or a scalar tensor of the problem's dtype.
        name: name of the strength in ``args``, by which it can be mapped.

    Returns:
        A transform. It comes after `standardize`, `box` and `clip`; `State.z` has ``rise`` and ``fall``
        in front.

    Raises:
        TypeError: if ``strength`` is no number, or ``name`` no identifier.
        ValueError: if ``strength`` is negative or no scalar, or the name is taken.

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

    def sparsified(problem: Problem) -> Problem:
        x0 = check_problem("sparsify", problem).args["x0"]
        factor = check_strength("sparsify", name, strength, x0)
        inner_decode, inner_encode, inner_start = problem.decode, problem.encode, problem.start
        inner_project = problem.project

        def joined(z: Tensor, args: Args) -> Tensor:
            return inner_encode(args["reference"], args) + (z[0] - z[1])

        def split(u: Tensor, args: Args) -> Tensor:
            change = u - inner_encode(args["reference"], args)
            return torch.stack([change, -change]).clamp_min(0.0)

        def project(z: Tensor, args: Args) -> Tensor:
            z = z.clamp_min(0.0)
            if inner_project is identity:
                return z
            u = joined(z, args)
            moved = inner_project(u, args)
            return torch.where(moved == u, z, split(moved, args))

        def decode(z: Tensor, args: Args) -> Tensor:
            x = inner_decode(joined(z, args), args)
            still = x.detach() == inner_decode(inner_encode(args["reference"], args), args)
            # Units and back may cost a last digit, which would be a change; its gradient passes.
            return torch.where(still, args["reference"] + (x - x.detach()), x)

        def cost(z: Tensor, args: Args) -> Tensor:
            # Over the entries of one of the two.
            return args[name] * 2.0 * z.mean()

        return replace(
            problem,
            args=with_data("sparsify", problem, **{name: factor}),
            decode=decode,
            encode=lambda x, args: split(inner_encode(x, args), args),
            start=lambda args: split(inner_start(args), args),
            project=project,
            costs=(*lifted(problem.costs, joined), cost),
        )

    return sparsified
