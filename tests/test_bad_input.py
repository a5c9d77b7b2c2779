"""Wrong input is refused at the edge, in words, and nothing of the caller's changes by it.

A row of a table says how the message begins (function, argument, what was expected) and what it says
was got. Every row also runs the law that network, tensors, problem and global state stay as they were.
"""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import funcexplain
from funcexplain.networks.prepare import RULES
from tests.helpers import assert_same, assert_untouched, clone_args, make_mask, make_network
from tests.helpers import make_target, make_x0, snapshot

fe: Any = funcexplain  # wrong types are the point of this file
F32, F64 = torch.float32, torch.float64
NAN, INF = math.nan, math.inf
UNCLEAR = pytest.mark.xfail(reason="accepted, or refused by torch in its own words")


class Given:
    """What a caller holds: a network left in train mode, tensors, a problem."""

    def __init__(self) -> None:
        self.network = make_network("mlp_batch_norm").train()
        self.target, self.x0, self.mask = make_target(), make_x0(), make_mask()
        self.problem = self.ask()

    def ask(self, **changes: Any) -> Any:
        own = {"network": self.network, "target": self.target, "x0": self.x0, "mask": self.mask}
        return fe.problem(**{**own, **changes})

    def explain(self, output: Callable[[Tensor], Any]) -> Any:
        return fe.explain(Returning(self.network, output), self.target, self.x0, max_steps=2)

    def solve(self, **changes: Any) -> Any:
        return fe.solve(self.problem, **{"max_steps": 2, **changes})

    def replace(self, **changes: Any) -> Any:
        own = {"model": self.network, "target_weights": self.target, "initial_guess": self.x0}
        return fe.gradient_wrt_input(**{**own, "n_iter": 2, "verbose": False, **changes})


class Returning(nn.Module):
    """A network that returns something else than its weights."""

    def __init__(self, network: nn.Module, output: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.network, self.output = network, output

    def forward(self, x: Tensor) -> Any:
        return self.output(self.network(x))


def bad(
    name: str, call: Callable[[Given], Any], error: type[Exception], said: str, got: str, **marks: Any
) -> Any:
    """A row: ``call(given)`` raises ``error`` with a message that begins with ``said``."""
    return pytest.param(call, error, f"(?s)^{re.escape(said)}.*{re.escape(got)}", id=name, **marks)


def meta(tensor: Tensor) -> Tensor:
    return tensor.to("meta")


def scripted(module: nn.Module) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return torch.jit.script(module)


Q = "problem: "
QUESTIONS = [
    bad("target_of_one", lambda g: g.ask(target=g.target[:1]), ValueError, Q + "target", "got (1,)"),
    bad("target_row", lambda g: g.ask(target=g.target[None]), ValueError, Q + "target", "got (1, 5)"),
    bad("target_scalar", lambda g: g.ask(target=g.target[0]), ValueError, Q + "target", "got ()"),
    bad("x0_batch", lambda g: g.ask(x0=g.x0[None]), ValueError, Q + "x0", "got (1, 2, 6, 5)"),
    bad("x0_matrix", lambda g: g.ask(x0=g.x0[0]), ValueError, Q + "x0", "got (6, 5)"),
    bad("x0_empty", lambda g: g.ask(x0=g.x0[:, :0]), ValueError, Q + "x0", "got (2, 0, 5)"),
    bad("swapped", lambda g: fe.problem(g.network, g.x0, g.target), ValueError, Q + "x0", "got (5,)"),
    bad("mask_channel", lambda g: g.ask(mask=g.mask[:1]), ValueError, Q + "mask", "got (1, 6, 5)"),
    bad("mask_assets", lambda g: g.ask(mask=g.mask[0, 0]), ValueError, Q + "mask", "got (5,)"),
    bad("reference_row", lambda g: g.ask(reference=g.x0[:1]), ValueError, Q + "ref", "got (1, 6, 5)"),
    bad("target_f32", lambda g: g.ask(target=g.target.float()), TypeError, Q + "target", "got torch.f"),
    bad("ref_f32", lambda g: g.ask(reference=g.x0.float()), TypeError, Q + "ref", "got torch.float32"),
    bad(
        "network_f64",
        lambda g: g.ask(x0=g.x0.float(), target=g.target.float()),
        TypeError,
        Q + "network and x0 must have one dtype",
        "got torch.float64 and torch.float32",
    ),
    bad("target_int", lambda g: g.ask(target=torch.ones(5).long()), TypeError, Q + "target", "got torch.i"),
    bad("x0_complex", lambda g: g.ask(x0=g.x0 + 0j), TypeError, Q + "x0", "got torch.complex128"),
    bad("x0_bool", lambda g: g.ask(x0=g.mask), TypeError, Q + "x0", "got torch.bool"),
    bad("target_nan", lambda g: g.ask(target=g.target * NAN), ValueError, Q + "target", "got 5 entries"),
    bad("x0_inf", lambda g: g.ask(x0=g.x0 * INF), ValueError, Q + "x0", "got 60 entries of 60"),
    bad("ref_nan", lambda g: g.ask(reference=g.x0 * NAN), ValueError, Q + "reference", "got 60 entries"),
    bad("target_numpy", lambda g: g.ask(target=g.target.numpy()), TypeError, Q + "target", "got ndarray"),
    bad("target_list", lambda g: g.ask(target=[0.2] * 5), TypeError, Q + "target", "got list; torch.as_"),
    bad("x0_none", lambda g: g.ask(x0=None), TypeError, Q + "x0", "got NoneType"),
    bad("mask_float", lambda g: g.ask(mask=g.mask.double()), TypeError, Q + "mask", "mask.bool()"),
    bad("mask_numpy", lambda g: g.ask(mask=g.mask.numpy()), TypeError, Q + "mask", "got ndarray"),
    bad("x0_sparse", lambda g: g.ask(x0=g.x0.to_sparse()), TypeError, Q + "x0", "got", marks=UNCLEAR),
    bad("x0_meta", lambda g: g.ask(x0=meta(g.x0)), TypeError, Q + "x0", "got", marks=UNCLEAR),
    bad("mask_meta", lambda g: g.ask(mask=meta(g.mask)), TypeError, Q + "mask", "got", marks=UNCLEAR),
    bad(
        "x0_float8",
        lambda g: g.ask(x0=g.x0.to(torch.float8_e4m3fn)),
        TypeError,
        Q + "x0",
        "got torch.float8_e4m3fn",
        marks=UNCLEAR,
    ),
    bad(
        "x0_in_vmap",
        lambda g: torch.func.vmap(lambda x0: g.ask(x0=x0).args["x0"])(g.x0[None]),
        TypeError,
        Q + "x0",
        "got one inside a torch.func transform",
        marks=UNCLEAR,
    ),
    bad(
        "target_in_grad",
        lambda g: torch.func.grad(lambda t: g.ask(target=t).args["target"].sum())(g.target),
        TypeError,
        Q + "target",
        "got one inside a torch.func transform",
        marks=UNCLEAR,
    ),
    bad("seed_negative", lambda g: g.ask(seed=-1), ValueError, Q + "seed", "got -1"),
    bad("seed_float", lambda g: g.ask(seed=1.0), TypeError, Q + "seed", "got float"),
    bad("seed_bool", lambda g: g.ask(seed=True), TypeError, Q + "seed", "got bool"),
    bad("seed_huge", lambda g: g.ask(seed=2**63), ValueError, Q + "seed", f"got {2**63}", marks=UNCLEAR),
    bad("loss_name", lambda g: g.ask(loss="mse"), TypeError, Q + "loss", "got str"),
    bad("no_network", lambda g: g.ask(network=g.x0), TypeError, Q + "network", "got Tensor"),
    bad("apply_alone", lambda g: g.ask(network=lambda p, x: x), TypeError, Q + "network", "got function"),
    bad("pair_swapped", lambda g: g.ask(network=({}, abs)), TypeError, Q + "network", "got tuple"),
    bad(
        "two_networks",
        lambda g: g.ask(network=[g.network, g.network]),
        TypeError,
        Q + "network",
        "got list",
        marks=UNCLEAR,
    ),
]

N = "network must return "
FUNCTIONS = [
    bad("tuple", lambda g: g.explain(lambda w: (w, w)), TypeError, N + "one tensor", "got tuple; wrap it"),
    bad("dict", lambda g: g.explain(lambda w: {"weights": w}), TypeError, N + "one tensor", "got dict"),
    bad("none", lambda g: g.explain(lambda w: None), TypeError, N + "one tensor", "got NoneType"),
    bad("vector", lambda g: g.explain(lambda w: w[0]), ValueError, N + "weights of shape", "(5,)"),
    bad("block", lambda g: g.explain(lambda w: w[None]), ValueError, N + "weights of shape", "(1, 1, 5)"),
    bad("fewer", lambda g: g.explain(lambda w: w[:, :1]), ValueError, N + "weights of the", "got (1,)"),
    bad("integer", lambda g: g.explain(Tensor.long), TypeError, N, "got torch.int64", marks=UNCLEAR),
    bad("complex", lambda g: g.explain(lambda w: w + 0j), TypeError, N, "got torch.c", marks=UNCLEAR),
    bad(
        "loss_vector",
        lambda g: fe.solve(g.ask(loss=lambda weights, target: weights - target)),
        TypeError,
        "<lambda> must return a scalar tensor",
        "got shape (5,)",
    ),
    bad(
        "loss_number",
        lambda g: fe.solve(g.ask(loss=lambda weights, target: 0.5)),
        TypeError,
        "<lambda> must return a scalar tensor",
        "got float",
    ),
    bad(
        "penalty_vector",
        lambda g: fe.solve(fe.penalize(lambda x, r: x - r, strength=1.0, name="p")(g.problem)),
        TypeError,
        "penalty (<lambda>) must return a",
        "got shape (2, 6, 5)",
        marks=UNCLEAR,
    ),
    bad(
        "penalty_number",
        lambda g: fe.solve(fe.penalize(lambda x, r: 0.5, strength=1.0, name="p")(g.problem)),
        TypeError,
        "penalty (<lambda>) must return a",
        "got float",
        marks=UNCLEAR,
    ),
]

S = "solve: "
SEARCHES = [
    bad("no_problem", lambda g: fe.solve(g.network), TypeError, S + "problem", "got Mlp; fe.problem("),
    bad("max_steps_float", lambda g: g.solve(max_steps=1e2), TypeError, S + "max_steps", "got float"),
    bad("max_steps_bool", lambda g: g.solve(max_steps=True), TypeError, S + "max_steps", "got bool"),
    bad("max_steps_str", lambda g: g.solve(max_steps="9"), TypeError, S + "max_steps", "got str"),
    bad("max_steps_negative", lambda g: g.solve(max_steps=-1), ValueError, S + "max_steps", "got -1"),
    bad("callback", lambda g: g.solve(callback="print"), TypeError, S + "callback", "got str"),
    bad("atol_of_solve", lambda g: g.solve(atol=-1), ValueError, S + "atol", "got -1", marks=UNCLEAR),
    bad("atol_none", lambda g: g.solve(atol=None), TypeError, S + "atol", "got NoneType", marks=UNCLEAR),
    bad("keep_of_solve", lambda g: g.solve(keep="x"), ValueError, S + "keep", "got 'x'", marks=UNCLEAR),
    bad("atol_str", lambda g: fe.make_step(g.problem, atol="0"), TypeError, "make_step: atol", "got str"),
    bad("atol_nan", lambda g: fe.make_step(g.problem, atol=NAN), ValueError, "make_step: atol", "got nan"),
    bad("keep", lambda g: fe.make_step(g.problem, keep="first"), ValueError, "make_step: keep", "'first'"),
    bad("step_of_none", lambda g: fe.make_step(None), TypeError, "make_step: problem", "got NoneType"),
    bad("num_steps", lambda g: fe.run(abs, abs, {}, 1.0), TypeError, "run: num_steps", "got float"),
    bad("torch_adam", lambda g: g.solve(method=torch.optim.Adam), TypeError, "", "torch.optim changes"),
    bad("method_str", lambda g: g.solve(method="adam"), TypeError, "", "method must be an optimizer"),
    bad(
        "adam_uncalled",
        lambda g: g.solve(method=fe.adam),
        TypeError,
        S + "method must be an optimizer",
        "fe.adam(lr=0.1)",
        marks=UNCLEAR,
    ),
    bad(
        "updates_scalar",
        lambda g: g.solve(method=(lambda z: (), lambda grads, state, z: (-grads.sum(), state))),
        ValueError,
        "method: updates",
        "got ()",
        marks=UNCLEAR,
    ),
    bad("lr", lambda g: fe.adam(lr=-0.1), ValueError, "adam: lr", "got -0.1"),
    bad("lr_nan", lambda g: fe.adam(lr=NAN), ValueError, "adam: lr", "got nan"),
    bad("lr_str", lambda g: fe.adam(lr="0.1"), TypeError, "adam: lr", "got str"),
    bad("lr_bool", lambda g: fe.adam(lr=True), TypeError, "adam: lr", "got bool"),
    bad("lr_problem", lambda g: fe.adam(g.problem), TypeError, "adam: lr", "got Problem"),
    bad("eps", lambda g: fe.adam(eps=-1e-8), ValueError, "adam: eps", "got -1e-08"),
    bad("beta_one", lambda g: fe.adam(betas=(0.9, 1.0)), ValueError, "adam: betas[1]", "got 1.0"),
    bad("beta_negative", lambda g: fe.adam(betas=(-0.1, 0.9)), ValueError, "adam: betas[0]", "got -0.1"),
    bad("betas_number", lambda g: fe.adam(betas=0.9), TypeError, "adam: betas must be a pair", "got 0.9"),
    bad("sgd_lr", lambda g: fe.sgd(lr=-1.0), ValueError, "sgd: lr", "got -1.0"),
    bad("momentum", lambda g: fe.sgd(momentum=-0.5), ValueError, "sgd: momentum", "got -0.5"),
]


def bounded(where: str) -> list[Any]:
    """Rows that `box` and `clip` share."""
    bound, said = getattr(fe, where), f"{where}: "
    twice = fe.clip(-9.0, 9.0)
    low = torch.full((5, 1), -9.0, dtype=F64)
    return [
        bad(f"{where}_order", lambda g: bound(9.0, -9.0)(g.problem), ValueError, said + "lower", "got lower"),
        bad(f"{where}_x0", lambda g: bound(-0.1, 0.1)(g.problem), ValueError, said + "x0", "entries outside"),
        bad(f"{where}_inf", lambda g: bound(-INF, 9.0)(g.problem), ValueError, said + "lower", "got 1 ent"),
        bad(f"{where}_f32", lambda g: bound(low[0].float(), 9)(g.problem), TypeError, said + "lower", "got t"),
        bad(f"{where}_shape", lambda g: bound(low, 9.0)(g.problem), ValueError, said + "lower", "got (5, 1)"),
        bad(f"{where}_none", lambda g: bound(-9.0, None)(g.problem), TypeError, said + "upper", "got None"),
        bad(f"{where}_numpy", lambda g: bound(-9, np.ones(5))(g.problem), TypeError, said + "up", "got nda"),
        bad(f"{where}_bool", lambda g: bound(False, True)(g.problem), TypeError, said + "lower", "got bool"),
        bad(f"{where}_net", lambda g: bound(-9, 9)(g.network), TypeError, said + "problem", "got Mlp"),
        bad(f"{where}_twice", lambda g: bound(-9, 9)(twice(g.problem)), ValueError, said, "['lower', 'upper']"),
        bad(
            f"{where}_huge",
            lambda g: bound(-(10**400), 9)(g.problem),
            ValueError,
            said + "lower",
            "got",
            marks=UNCLEAR,
        ),
    ]
