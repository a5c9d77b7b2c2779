"""Misuse that is no wrong argument: functions that return nonsense, transforms that do not fit.

It is refused in words, and nothing of the caller's changes.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import funcexplain
from tests import helpers
from tests.test_bad_input import Given

fe: Any = funcexplain  # wrong types are the point of this file
TARGET, X0 = helpers.make_target(), helpers.make_x0()
LINEAR, TANH, change = nn.Linear(2, 2), nn.Tanh(), fe.reparametrize
L2 = fe.penalize(fe.penalties.l2, strength=1.0)
MASKS = fe.penalize(fe.penalties.l2, strength=1.0, name="mask")
UNITS = fe.standardize(0.0, 2.0)


class Wrapped(nn.Module):
    """A network around another; ``run`` is what its forward calls."""

    def __init__(self, inner: nn.Module, run: Callable[[nn.Module, Tensor], Any]) -> None:
        super().__init__()
        self.inner, self.run = inner, run

    def forward(self, x: Tensor) -> Any:
        return self.run(self.inner, x)


def returns(output: Callable[[Tensor], Any]) -> Callable[[Given], Any]:
    """A search with a network that returns ``output(weights)``."""

    def search(given: Given) -> Any:
        network = Wrapped(given.network, lambda inner, x: output(inner(x)))
        return fe.solve(given.ask(network=network), max_steps=2)

    return search


def loses(loss: Callable[..., Any]) -> Callable[[Given], Any]:
    return lambda given: fe.solve(given.ask(loss=loss), max_steps=2)


def goes(*transforms: Any) -> Callable[[Given], Any]:
    return lambda given: fe.solve(fe.pipe(given.problem, *transforms), max_steps=2)


def costs(penalty: Callable[..., Any]) -> Callable[[Given], Any]:
    return goes(fe.penalize(penalty, strength=1.0, name="cost"))


def goes_unnamed(given: Given) -> Any:
    return goes(fe.penalize(lambda x, reference: x.sum(), strength=1.0))(given)


def updates(update: Callable[..., Any]) -> Callable[[Given], Any]:
    return lambda given: fe.solve(given.problem, (lambda z: (), update), max_steps=2)


def in_vmap(given: Given) -> Any:
    return torch.func.vmap(lambda x0: given.ask(x0=x0).args["x0"])(X0[None])


def in_grad(given: Given) -> Any:
    return torch.func.grad(lambda target: given.ask(target=target).args["target"].sum())(TARGET)


def in_inference_mode(given: Given) -> Any:
    with torch.inference_mode():
        return fe.solve(given.problem, max_steps=2)


def pruned(given: Given) -> Any:
    apply, params = fe.functionalize(given.network)
    return apply({name: params[name] for name in sorted(params)[1:]}, X0)


T, V, R = TypeError, ValueError, RuntimeError
# what is done, error, how the message begins, what else it says
CALLS: dict[str, tuple[Callable[[Given], Any], type[Exception], str, str]] = {
    "weights_tuple": (
        returns(lambda w: (w, w)),
        T,
        "network must return one tensor",
        "got tuple; wrap it",
    ),
    "weights_dict": (returns(lambda w: {"w": w}), T, "network must return one tensor", "got dict"),
    "weights_none": (returns(lambda w: None), T, "network must return one tensor", "got NoneType"),
    "weights_vector": (returns(lambda w: w[0]), V, "network must return weights", "shape (5,)"),
    "weights_block": (returns(lambda w: w[None]), V, "network must return weights", "shape (1, 1, 5)"),
    "weights_fewer": (returns(lambda w: w[:, :1]), V, "network must return weights", "got (1,)"),
    "weights_integer": (returns(Tensor.long), T, "network must return", "got torch.int64"),
    "weights_complex": (returns(lambda w: w + 0j), T, "network must return", "got torch.complex128"),
    "loss_vector": (loses(torch.sub), T, "loss (sub) must return", "got shape (5,)"),
    "loss_number": (loses(lambda w, t: 0.5), T, "loss (<lambda>) must return", "got float"),
    "loss_integer": (loses(lambda w, t: (w > t).sum()), T, "loss (<lambda>) must", "torch.int64"),
    "penalty_vector": (costs(torch.sub), T, "penalty (sub) must return", "got shape (2, 6, 5)"),
    "penalty_number": (costs(lambda x, r: 0.5), T, "penalty (<lambda>) must return", "got float"),
    "penalty_unnamed": (goes_unnamed, T, "penalize: name", "got '<lambda>'"),
    "penalty_twice": (goes(L2, L2), V, "penalize: args already hold ['l2']", "another name"),
    "penalty_mask": (goes(MASKS), V, "penalize: args already hold ['mask']", "another name"),
    "box_after_clip": (
        goes(fe.clip(-9, 9), fe.box(-9, 9)),
        V,
        "box: args already hold",
        "'lower', 'upper'",
    ),
    "two_units": (goes(UNITS, UNITS), V, "standardize: args already hold ['mean', 'std']", ""),
    "outside_box": (goes(fe.box(-0.1, 0.1)), V, "box: x0 must be within the bounds", "entries outside"),
    "outside_clip": (goes(fe.clip(-0.1, 0.1)), V, "clip: x0 must be within", "entries outside"),
    "log_of_negative": (
        goes(change(torch.log, torch.exp)),
        V,
        "reparametrize: the output of enc",
        "got 31",
    ),
    "decode_shape": (
        goes(change(torch.sinh, lambda z: z[0])),
        V,
        "reparametrize: the output of decode",
        "(6, 5)",
    ),
    "decode_none": (
        goes(change(torch.sinh, lambda z: None)),
        T,
        "reparametrize: the output of decode",
        "NoneType",
    ),
    "encode_dtype": (
        goes(change(Tensor.float, torch.sinh)),
        T,
        "reparametrize: the output of enc",
        "got torch.f",
    ),
    "box_uncalled": (goes(fe.box), T, "pipe: transforms[0] (box)", "as in fe.box(lower, upper)"),
    "cast_uncalled": (goes(fe.cast), T, "pipe: transforms[0] (cast)", "as in fe.box(lower, upper)"),
    "jitter_uncalled": (goes(fe.jitter), T, "jitter: scale", "got Problem"),
    "penalty_in_pipe": (
        goes(fe.penalties.l2),
        T,
        "pipe: transforms[0] (l2)",
        "must be a function Problem",
    ),
    "no_transform": (goes(fe.freeze, None), T, "pipe: transforms[1]", "got NoneType"),
    "list_in_pipe": (goes([fe.freeze]), T, "pipe: transforms[0]", "got list"),
    "no_result": (
        goes(id),
        T,
        "pipe: transforms[0] (id) must return a Problem",
        "got int; call",
    ),
    "pipe_network": (lambda g: fe.pipe(g.network, fe.freeze), T, "pipe: problem", "fe.problem(network"),
    "freeze_network": (lambda g: fe.freeze(g.network), T, "freeze: problem", "got Mlp"),
    "freeze_nothing": (lambda g: fe.freeze(), T, "freeze() missing 1 required", "'problem'"),
    "update_scalar": (updates(lambda grads, s, z: (grads.sum(), s)), V, "method: updates", "got ()"),
    "batch_norm": (
        lambda g: fe.functionalize(g.network, train=True),
        V,
        "functionalize: tr",
        "BatchNorm1d",
    ),
    "params_missing": (pruned, V, "network: params must hold the names", "got a difference"),
    "stack_unlike": (
        lambda g: fe.stack([LINEAR, TANH]),
        V,
        "stack: modules[1] (Tanh)",
        "'bias', 'weight'",
    ),
    "stack_settings": (lambda g: fe.stack([nn.ELU(1.0), nn.ELU(2.0)]), V, "stack: modules[1] (ELU)", ""),
    "in_vmap": (in_vmap, R, "problem: x0", "got one inside a torch.func transform"),
    "in_grad": (in_grad, R, "problem: target", "got one inside a torch.func transform"),
    "in_inference_mode": (in_inference_mode, R, "solve: needs gradients", "torch.no_grad()"),
}


@pytest.mark.parametrize("name", helpers.params(CALLS))
def test_misuse_is_refused_and_changes_nothing(name: str) -> None:
    call, error, begins, says = CALLS[name]
    given = Given()
    with pytest.raises(error, match=f"(?s)^{re.escape(begins)}.*{re.escape(says)}"):
        call(given)
    given.assert_untouched()


@pytest.mark.parametrize("output", [Tensor.detach, torch.zeros_like, torch.round])
def test_network_without_gradient_stalls_at_once(output: Callable[[Tensor], Any]) -> None:
    with pytest.warns(UserWarning, match="no gradient reaches the input"):
        solution = returns(output)(Given())
    assert (solution.status, int(solution.num_steps)) == (fe.Status.STALLED, 0)
