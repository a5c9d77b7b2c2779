"""The question: a frozen `Problem` of pure functions and ``args``, the data that may vary by row.

    z  --decode-->  x  --apply-->  weights  --loss-->  value
    search space    window         allocation          (plus penalties of x)

A transform is a function ``Problem -> Problem``. All data
(parameters, start, target, bounds, strengths) is in ``args``; the functions capture no data. So one
question can be mapped over seeds, starts, targets, assets and models (see `mapping`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any, Literal

import optree
import torch
from torch import Tensor, nn

from funcexplain.networks.adapt import adapt
from funcexplain.networks.functional import functionalize
from funcexplain.networks.network import Apply, set_seed
from funcexplain.networks.objects import clone_tensor
from funcexplain.networks.pickling import Unpicklable
from funcexplain.networks.verify import verify
from funcexplain.problems import checks, losses
from funcexplain.problems.criterion import EXACT, Criterion, Target
from funcexplain.problems.encoding import check_loss, check_sum, encode_targets
from funcexplain.problems.grid import RowDim, Rule, select
from funcexplain.problems.showing import html_of, repr_of

Args = dict[str, Any]
Loss = Callable[[Tensor, Tensor], Tensor]
Map = Callable[[Tensor, Args], Tensor]


def identity(point: Tensor, args: Args) -> Tensor:
    """The identity map: the search is over ``x`` itself."""
    return point


def _from_x0(args: Args) -> Tensor:
    return args["x0"]


@dataclass(frozen=True, eq=False, repr=False)
class Problem(Unpicklable):
    """One question about a network, or a grid of questions: pure functions and their data.

    Made by `problem`, changed by transforms (with ``dataclasses.replace``), mapped to a grid of rows by
    `vmap`, solved by `solve`. The functions work on one row. ``problem[i, j]`` selects rows.

    Attributes:
        apply: ``(params, x) -> weights``, the network for one window ``(C, L, A) -> (A,)``.
        loss: ``(measured, nearest) -> scalar``, the misfit: of weights and target, or of the values that
            goals measure and the nearest values that meet them.
        args: dict of everything that may vary by row: ``params``, ``x0`` ``(C, L, A)``, ``target``
            ``(A,)`` (goals: ``(K, A + 3)``), ``reference`` and bool ``mask`` ``(C, L, A)``, ``seed``
            (scalar int64), and the data of transforms.
        criterion: how weights are compared with the target.
        assets: names of the assets, if they have names.
        outputs: names of the weights, if they are not those of the assets.
        leverage: largest weight in absolute value that the network may hold, if that is known.
        rules: conditions on the data, also on stacks.
        normal: the ``decode`` under which ``z`` is standard normal, if one is; see `law`.
        altered_by: the transform that dropped this law.
        returns: ``(z, args) -> returns`` behind the window, ``(D, A)``, of a scenario.
        decode: ``(z, args) -> x``, from the search space to a window.
        encode: ``(x, args) -> z``, its inverse on the feasible set.
        start: ``args -> z``, the start of the search.
        project: ``(z, args) -> z``, back to the feasible set after an update.
        penalties: functions ``(x, args) -> scalar``, added to the loss.
        costs: functions ``(z, args) -> scalar`` of the search point, also added to the loss.
        nearby: ``(z, args) -> points`` ``(1 + D, *z.shape)``, ``z`` itself first, whose windows the
            network sees; see `smooth`. None: ``z`` alone.
        dims: dimensions of the grid, outermost first; empty for one question. An entry of ``args``
            begins with the dimensions along which it varies, in that order.
    """

    apply: Apply
    loss: Loss
    args: Args
    decode: Map = identity
    encode: Map = identity
    start: Callable[[Args], Tensor] = _from_x0
    project: Map = identity
    penalties: tuple[Map, ...] = ()
    costs: tuple[Map, ...] = ()
    dims: tuple[RowDim, ...] = ()
    criterion: Criterion = EXACT
    assets: tuple[str, ...] | None = None
    outputs: tuple[str, ...] | None = None
    leverage: float | None = None
    rules: tuple[Rule, ...] = ()
    normal: Map | None = None
    altered_by: str = ""
    returns: Map | None = None
    nearby: Map | None = None

    def __deepcopy__(self, memo: Any) -> Problem:
        return replace(self, args=deepcopy(self.args, memo))

    @property
    def shape(self) -> tuple[int, ...]:
        """Sizes of the row dimensions, ``()`` for one question."""
        return tuple(dim.size for dim in self.dims)

    @property
    def law(self) -> Literal["normal"] | None:
        """The law of the search point: ``"normal"`` if ``z`` is standard normal, as of a scenario.

        Then ``|z|**2 / 2`` is the negative log-density of a market, up to a constant: the closest hit is
        the likeliest market, and probabilities of ``z`` are those of markets. None without a law: for
        windows, and after a change of variables or bounds.
        """
        return "normal" if self.normal is not None and self.normal is self.decode else None

    def __getitem__(self, index: Any) -> Problem:
        """Select rows by an int (one row) or a slice for each leading row dimension.

        Args:
            index: an int or slice, or a tuple of these.

        Returns:
            The problem of these rows; an int removes its dimension.

        Raises:
            IndexError: if a dimension or row does not exist.
            TypeError: if an index is neither an int nor a slice.
        """
        items = index if isinstance(index, tuple) else (index,)
        if len(items) > len(self.dims):
            raise IndexError(f"problem: expected at most {len(self.dims)} indices, got {len(items)}")
        dims, args = self.dims, self.args
        for dim, item in reversed(list(enumerate(items))):
            dims, args = select(dims, args, dim, item)
        return replace(self, dims=dims, args=args)

    def windows(self, z: Tensor, args: Args) -> Tensor:
        """The window of a search point, ``(C, L, A)``, or with those nearby, ``(1 + D, C, L, A)``."""
        if self.nearby is None:
            return self.decode(z, args)
        return torch.func.vmap(lambda point: self.decode(point, args))(self.nearby(z, args))

    def evaluate(self, x: Tensor, args: Args) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Compute ``(value, (loss, weights))`` of one window; one forward pass of the network.

        Args:
            x: window, shape ``(C, L, A)``, or `windows` of a search point.
            args: data of the problem.

        Returns:
            The objective (loss plus penalties), the loss alone, and the weights ``(A,)``.

        Raises:
            TypeError: if the network does not return a tensor, or the loss a scalar tensor.
            ValueError: if the weights do not have the target's shape.
        """
        weights = self.apply(set_seed(args["params"], args["seed"]), x)
        return self.score(weights, x, args)

    def score(self, weights: Any, x: Tensor, args: Args) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Compute the result of `evaluate` from the network's output ``(A,)`` for the window ``x``."""
        target = args["target"]
        if not isinstance(weights, Tensor):
            raise TypeError(f"network must return one tensor of weights, got {type(weights).__name__}")
        expected = self.criterion.weights_like(target).shape
        if weights.shape != expected:
            raise ValueError(
                f"network must return weights of the target's shape {tuple(expected)} for one "
                f"window of shape {tuple(x.shape)}, got {tuple(weights.shape)}"
            )
        if not weights.is_floating_point():
            raise TypeError(f"network must return floating weights, got {weights.dtype}")
        loss = checks.check_scalar(
            "loss", self.loss, self.loss(*self.criterion.compare(weights, target))
        )
        value, window = loss, x if x.ndim == args["x0"].ndim else x[0]
        for penalty in self.penalties:
            value = value + penalty(window, args)
        return value, (loss, weights)

    def objective(self, x: Tensor, args: Args) -> tuple[Tensor, Tensor]:
        """Compute ``(value, weights)`` of one window: the objective, and the allocation as aux.

        Args:
            x: window, shape ``(C, L, A)``.
            args: data of the problem.

        Returns:
            Loss plus penalties, a scalar, and the network's weights ``(A,)``.

        Example:
            >>> import torch, funcexplain as fe
            >>> network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Softmax(-1))
            >>> p = fe.problem(network, torch.tensor([0.9, 0.1]), torch.zeros(1, 1, 2))
            >>> p.objective(p.args["x0"], p.args)
            (tensor(0.1600), tensor([0.5000, 0.5000]))
        """
        value, (_, weights) = self.evaluate(x, args)
        return value, weights

    def extra(self, z: Tensor, args: Args) -> Tensor:
        """Sum the penalties and costs of a search point: the objective without the loss, a scalar."""
        x = self.decode(z, args)
        terms = [penalty(x, args) for penalty in self.penalties]
        return sum(terms + [cost(z, args) for cost in self.costs], start=x.new_zeros(()))

    def __repr__(self) -> str:
        return repr_of(self)

    def _repr_html_(self) -> str:
        return html_of(self)


def problem(
    network: nn.Module | tuple[Apply, Any],
    target: Tensor | Target,
    x0: Tensor,
    *,
    loss: Loss = losses.mse,
    mask: Tensor | None = None,
    reference: Tensor | None = None,
    seed: int = 0,
    assets: Sequence[str] | None = None,
    outputs: Sequence[Any] | None = None,
    inputs: Mapping[str, Tensor] | None = None,
    leverage: float | None = None,
) -> Problem:
    """Make a question: for which window does the network hold the target allocation?

    Arguments do not change and are not kept: tensors are copied, a module is made functional.

    Args:
        network: module from ``(n_samples, C, L, A)`` to weights ``(n_samples, A)``, explained in eval
            mode, or a pair ``(apply, params)`` with ``apply(params, x)`` for one window.
        target: allocation to reach, shape ``(A,)``, or a target in portfolio language, such as
            ``fe.targets.at_least(0, 0.3)``.
        x0: window at which the search starts, shape ``(C, L, A)``: channels, lookback, assets.
        loss: misfit ``(weights, target) -> scalar``; see ``fe.losses``. For goals, its
            arguments are the measured values and the nearest values that meet them, ``(K,)`` each:
            `mse` is the mean of squared residuals.
        mask: bool, shape ``(C, L, A)``; True = free to change. It has an effect only with `freeze` or
            `zero_masked`. Default: all free.
        reference: window that frozen entries keep and penalties measure from. Default: ``x0``.
        seed: seed of the noise of the start (see `jitter`) and of dropout in training mode (see
            `functionalize`).
        assets: names of the ``A`` assets, for targets that use names.
        outputs: names of the weights, if they are not those of the assets: ``[..., "CASH"]`` for a
            network that also holds cash; ``...`` means all assets.
        inputs: more inputs of the network by the names of its arguments, such as today's weights or a
            macro series, each for one window. They stay fixed; the search moves only the window.
        leverage: largest absolute weight that the network may hold; targets beyond it raise as
            infeasible (``math.inf``: none). Default: 10, or long-only weights that sum to one if the
            network holds such weights at the reference and at four windows around it.

    Returns:
        The problem; its search space is that of ``x`` until transforms change it.

    Raises:
        TypeError: if an argument is not a tensor, network or function, is not floating, if the mask is
            not bool, or dtypes or devices differ.
        ValueError: for a wrong shape, NaN or infinite values, an unknown asset, or an infeasible
            target; if a private copy of the module does not hold its weights (see `functionalize`).
        RuntimeError: inside ``torch.inference_mode`` or a torch.func transform.

    Example:
        >>> import torch, funcexplain as fe
        >>> network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(24, 4))
        >>> fe.problem(network, torch.full((4,), 0.25), torch.zeros(2, 3, 4))
        Problem(x0=(2, 3, 4), dtype=torch.float32, device=cpu, args=['mask', 'params', ...])
    """
    checks.check_gradients("problem")
    apply, params = _split_network(network, inputs)
    checks.check_callable("problem", "loss", loss)
    x0 = checks.check_window("problem", x0)
    if x0.numel() == 0:
        raise ValueError(f"problem: x0 must not be empty, got {tuple(x0.shape)}")
    names = checks.check_names("problem", assets, x0.shape[-1])
    labels = checks.check_outputs("problem", outputs, names)
    if not isinstance(target, Target):
        target = checks.check_allocation("problem", target, x0, len(labels) if labels else None)
    checks.check_outside_transforms("problem")
    checks.check_params(params, x0)
    mask = checks.check_mask("problem", mask, x0)
    reference = checks.check_like(
        "problem", "reference", x0 if reference is None else reference, x0, "x0"
    )
    checks.check_shape("problem", "reference", reference, x0.shape, "that of x0")
    args: Args = {
        "params": params,
        "x0": x0,
        "reference": reference,
        "mask": mask,
        "seed": torch.tensor(checks.check_count("problem", "seed", seed), device=x0.device),
    }
    # The caller's own dict of parameters, which may be known; args hold copies.
    verify(apply, network[1] if isinstance(network, tuple) else params, x0)
    criterion = EXACT
    if leverage is not None and not (isinstance(leverage, float) and leverage == math.inf):
        leverage = checks.check_number("problem", "leverage", leverage, minimum=0.0, strict=True)
    if isinstance(target, Target):
        stack, criterion = encode_targets("problem", [target], apply, args, labels or names, leverage)
        args["target"] = stack[0]
    else:
        args["target"] = target
        if leverage is None:
            check_sum("problem", apply, args)
    check_loss("problem", loss, criterion, args["target"])
    return Problem(
        apply, loss, args, criterion=criterion, assets=names, outputs=labels, leverage=leverage
    )


def check_problem(where: str, value: Any) -> Problem:
    """Raise unless a value is a `Problem`; raise in inference mode."""
    checks.check_gradients(where)
    if not isinstance(value, Problem):
        raise TypeError(
            f"{where}: problem must be a Problem, got {type(value).__name__}; "
            "fe.problem(network, target, x0) makes one"
        )
    return value


def check_search(where: str, value: Any) -> Problem:
    """Raise unless a value is a `Problem`; raise in inference mode and inside torch.func transforms."""
    checks.check_outside_transforms(where)
    return check_problem(where, value)


def check_question(where: str, value: Any) -> Problem:
    """Raise unless a value is a `Problem` of one row."""
    if check_problem(where, value).dims:
        raise ValueError(
            f"{where}: problem must be one question, got a grid of rows {value.shape}; select a row, "
            f"as in problem[{', '.join('0' * len(value.dims))}]"
        )
    return value


def _split_network(network: Any, inputs: Mapping[str, Tensor] | None) -> tuple[Apply, Any]:
    """A network as ``(apply, params)``, where the given inputs are among the parameters."""
    if isinstance(network, nn.Module):
        return functionalize(adapt(network, inputs=inputs) if inputs else network)
    if isinstance(network, tuple) and len(network) == 2 and not isinstance(network[1], nn.Module):
        apply, params = network
        if callable(apply):
            # With live parameters an outer autograd graph would record the whole search.
            copies = optree.tree_map(lambda p: clone_tensor(p) if isinstance(p, Tensor) else p, params)
            if not inputs:
                return apply, copies
            holder: Any = adapt(nn.Identity(), inputs=inputs)
            given = holder.inputs.state_dict()
            return lambda p, x: apply(p["params"], x, **p["inputs"]), {"params": copies, "inputs": given}
    raise TypeError(
        "problem: network must be a torch.nn.Module or a pair (apply, params) with "
        f"apply(params, x) -> weights, got {type(network).__name__}"
    )


def decode_costs(costs: tuple[Map, ...], decode: Map) -> tuple[Map, ...]:
    """Costs of the decoded point, for a search over a new variable."""
    return tuple(lambda z, args, cost=cost: cost(decode(z, args), args) for cost in costs)
