"""One wrong argument is refused at the edge, in words, and nothing of the caller's changes by it.

Every message begins with the public function and the argument, and says what was got.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import funcexplain
from funcexplain.networks.prepare import RULES
from tests.helpers import (
    assert_same,
    assert_untouched,
    clone_args,
    make_mask,
    make_network,
    make_target,
    make_x0,
    snapshot,
)

fe: Any = funcexplain  # wrong types are the point of this file
NAN, INF, F64 = math.nan, math.inf, torch.float64
F8 = getattr(torch, "float8_e4m3fn", torch.int8)  # torch 2.0 has no floats of 8 bits
TARGET, X0, MASK = make_target(), make_x0(), make_mask()
NET = nn.Sequential(nn.Flatten(), nn.Linear(60, 5, dtype=F64))


class Given:
    """What a caller holds, the network left in train mode; all of it must stay as it is."""

    def __init__(self) -> None:
        self.network = make_network("mlp_batch_norm").train()
        self.tensors = {"target": TARGET.clone(), "x0": X0.clone(), "mask": MASK.clone()}
        self.problem = self.ask()
        self.before = snapshot(self.network)
        self.kept = clone_args({**self.tensors, "args": self.problem.args})
        self.rules = dict(RULES)

    def ask(self, **changes: Any) -> Any:
        return fe.problem(**{"network": self.network, **self.tensors, **changes})

    def assert_untouched(self) -> None:
        assert_untouched(self.before, self.network)
        assert_same({**self.tensors, "args": self.problem.args}, self.kept)
        assert self.rules == RULES


# How each function is called with one argument wrong and the others right.
FUNCTIONS: dict[str, Callable[..., Any]] = {
    "problem": lambda g, **wrong: g.ask(**wrong),
    "functionalize": lambda g, **wrong: fe.functionalize(**{"module": g.network, **wrong}),
    "stack": lambda g, **wrong: fe.stack(**wrong),
    "register_rule": lambda g, **wrong: fe.register_rule(
        **{"module_type": nn.Tanh, "rule": abs, **wrong}
    ),
    "adam": lambda g, **wrong: fe.adam(**wrong),
    "sgd": lambda g, **wrong: fe.sgd(**wrong),
    "as_optimizer": lambda g, **wrong: fe.as_optimizer(**wrong),
    "make_step": lambda g, **wrong: fe.make_step(**{"problem": g.problem, **wrong}),
    "solve": lambda g, **wrong: fe.solve(**{"problem": g.problem, "max_steps": 2, **wrong}),
    "vmap": lambda g, **wrong: fe.vmap(
        wrong.pop("problem", g.problem), **{"seed": torch.arange(2), **wrong}
    ),
    "consensus": lambda g, **wrong: fe.consensus(**wrong),
    "progress": lambda g, **wrong: fe.progress(**wrong),
    "run": lambda g, **wrong: fe.run(abs, abs, {}, **wrong),
    "cast": lambda g, **wrong: fe.cast(**wrong)(g.problem),
    "box": lambda g, **wrong: fe.box(**{"lower": -9.0, "upper": 9.0, **wrong})(g.problem),
    "clip": lambda g, **wrong: fe.clip(**{"lower": -9.0, "upper": 9.0, **wrong})(g.problem),
    "standardize": lambda g, **wrong: fe.standardize(**{"mean": 0.0, "std": 1.0, **wrong})(g.problem),
    "jitter": lambda g, **wrong: fe.jitter(**wrong)(g.problem),
    "reparametrize": lambda g, **wrong: fe.reparametrize(
        **{"encode": torch.asinh, "decode": torch.sinh, **wrong}
    )(g.problem),
    "penalize": lambda g, **wrong: fe.penalize(**{"penalty": fe.penalties.l2, "strength": 1.0, **wrong})(
        g.problem
    ),
    "gradient_wrt_input": lambda g, **wrong: fe.gradient_wrt_input(
        **{"model": g.network, "target_weights": TARGET, "initial_guess": X0, "verbose": False, **wrong}
    ),
}
# function, argument, wrong value, error, what the message says was got
ARGUMENTS: list[tuple[str, str, Any, type[Exception], str]] = [
    ("problem", "target", TARGET[:1], ValueError, "(1,)"),
    ("problem", "target", TARGET[None], ValueError, "(1, 5)"),
    ("problem", "target", TARGET[0], ValueError, "()"),
    ("problem", "target", TARGET.float(), TypeError, "torch.float32, cpu; convert"),
    ("problem", "target", TARGET.long(), TypeError, "torch.int64; call .float()"),
    ("problem", "target", TARGET * NAN, ValueError, "5 entries of 5 that are NaN"),
    ("problem", "target", TARGET.numpy(), TypeError, "ndarray; torch.as_tensor converts"),
    ("problem", "target", [0.2] * 5, TypeError, "list; torch.as_tensor converts"),
    ("problem", "x0", X0[None], ValueError, "(1, 2, 6, 5)"),
    ("problem", "x0", X0[0], ValueError, "(6, 5)"),
    ("problem", "x0", X0[:, :0], ValueError, "(2, 0, 5)"),
    ("problem", "x0", TARGET, ValueError, "(5,)"),
    ("problem", "x0", X0 + 0j, TypeError, "torch.complex128"),
    ("problem", "x0", X0 * INF, ValueError, "60 entries of 60"),
    ("problem", "x0", X0.numpy(), TypeError, "ndarray"),
    ("problem", "x0", None, TypeError, "NoneType"),
    ("problem", "x0", X0.to_sparse(), TypeError, "a torch.sparse_coo one"),
    ("problem", "x0", X0.to("meta"), TypeError, "a meta one"),
    ("problem", "x0", X0.to(F8), TypeError, str(F8)),
    ("problem", "mask", MASK[:1], ValueError, "(1, 6, 5)"),
    ("problem", "mask", MASK[0, 0], ValueError, "(5,)"),
    (
        "problem",
        "mask",
        MASK.double(),
        TypeError,
        "torch.float64; a 0/1 tensor converts with mask.bool()",
    ),
    ("problem", "mask", MASK.numpy(), TypeError, "ndarray"),
    ("problem", "mask", MASK.to("meta"), TypeError, "a meta one"),
    ("problem", "reference", X0[:1], ValueError, "(1, 6, 5)"),
    ("problem", "reference", X0.float(), TypeError, "torch.float32, cpu"),
    ("problem", "reference", X0 * NAN, ValueError, "60 entries"),
    ("problem", "reference", 0.0, TypeError, "float"),
    ("problem", "seed", -1, ValueError, "-1"),
    ("problem", "seed", 1.0, TypeError, "float"),
    ("problem", "seed", True, TypeError, "bool"),
    ("problem", "seed", 1 << 63, ValueError, str(1 << 63)),
    ("problem", "loss", "mse", TypeError, "str"),
    ("problem", "network", NET.forward, TypeError, "method"),
    ("problem", "network", fe.functionalize(NET)[::-1], TypeError, "tuple"),
    ("problem", "network", [NET, NET], TypeError, "list"),
    ("problem", "network", nn.Linear(5, 5), TypeError, "torch.float32 and torch.float64; convert x0"),
    ("functionalize", "module", "net", TypeError, "str"),
    ("functionalize", "module", nn.Tanh, TypeError, "type"),
    ("functionalize", "module", nn.DataParallel(NET), TypeError, "DataParallel; pass its .module"),
    ("functionalize", "rules", 3, TypeError, "3"),
    ("functionalize", "rules", {nn.Linear: lambda module: None}, TypeError, "NoneType"),
    ("register_rule", "module_type", "Linear", TypeError, "'Linear'"),
    ("register_rule", "module_type", nn.Tanh(), TypeError, "Tanh()"),
    ("register_rule", "module_type", int, TypeError, "<class 'int'>"),
    ("register_rule", "rule", None, TypeError, "NoneType"),
    ("stack", "modules", [], ValueError, "none"),
    ("stack", "modules", NET, TypeError, "Sequential"),
    ("stack", "modules", [NET, 3], TypeError, "int"),
    ("adam", "lr", -0.1, ValueError, "-0.1"),
    ("adam", "lr", NAN, ValueError, "nan"),
    ("adam", "lr", "0.1", TypeError, "str"),
    ("adam", "lr", True, TypeError, "bool"),
    ("adam", "eps", -1.0, ValueError, "-1.0"),
    ("adam", "betas", 0.9, TypeError, "0.9"),
    ("adam", "betas", (0.9, 1.0), ValueError, "1.0"),
    ("adam", "betas", (-0.1, 0.9), ValueError, "-0.1"),
    ("sgd", "lr", -1.0, ValueError, "-1.0"),
    ("sgd", "momentum", -0.5, ValueError, "-0.5"),
    ("solve", "problem", NET, TypeError, "Sequential; fe.problem("),
    ("solve", "max_steps", 1e2, TypeError, "float"),
    ("solve", "max_steps", True, TypeError, "bool"),
    ("solve", "max_steps", -1, ValueError, "-1"),
    ("solve", "callback", "print", TypeError, "str"),
    ("solve", "atol", -1.0, ValueError, "-1.0"),
    ("solve", "atol", None, TypeError, "NoneType"),
    ("solve", "keep", "first", ValueError, "'first'"),
    *[
        ("solve", argument, value, error, got)
        for argument in ("chunk_size", "history", "patience")
        for value, error, got in (
            (0, ValueError, "0"),
            (-3, ValueError, "-3"),
            (2.0, TypeError, "float"),
            ("all", TypeError, "str"),
        )
    ],
    ("solve", "chunk_size", True, TypeError, "bool"),
    ("solve", "history", None, TypeError, "NoneType"),
    ("solve", "patience", True, TypeError, "bool"),
    ("solve", "rtol", -0.1, ValueError, "-0.1"),
    ("solve", "rtol", NAN, ValueError, "nan"),
    ("solve", "rtol", None, TypeError, "NoneType"),
    ("solve", "method", "adam", TypeError, "str"),
    ("solve", "method", fe.adam, TypeError, "adam; it is called with its settings first"),
    ("solve", "method", torch.optim.Adam, TypeError, "Adam; torch.optim changes tensors in place"),
    ("make_step", "problem", None, TypeError, "NoneType"),
    ("make_step", "atol", "0", TypeError, "str"),
    ("make_step", "atol", NAN, ValueError, "nan"),
    ("make_step", "keep", "first", ValueError, "'first'"),
    ("vmap", "problem", NET, TypeError, "Sequential; fe.problem("),
    ("vmap", "name", "two words", TypeError, "'two words'"),
    ("vmap", "name", "", TypeError, "''"),
    ("vmap", "name", 3, TypeError, "3"),
    ("vmap", "x0", X0, ValueError, "(2, 6, 5)"),
    ("vmap", "x0", X0[None, :, :3], ValueError, "(1, 2, 3, 5)"),
    ("vmap", "x0", X0[None, None], ValueError, "(1, 1, 2, 6, 5)"),
    ("vmap", "x0", X0[None].float(), TypeError, "torch.float32, cpu; convert it first"),
    ("vmap", "x0", X0[None].to("meta"), TypeError, "a meta one"),
    ("vmap", "x0", X0[None].numpy(), TypeError, "ndarray; torch.as_tensor converts"),
    ("vmap", "x0", [X0, X0], TypeError, "list"),
    ("vmap", "target", TARGET, ValueError, "(5,)"),
    ("vmap", "target", None, TypeError, "NoneType"),
    ("vmap", "mask", MASK[None].double(), TypeError, "torch.float64"),
    ("vmap", "mask", MASK, ValueError, "(2, 6, 5)"),
    ("vmap", "seed", torch.rand(2), TypeError, "torch.float32"),
    ("vmap", "seed", torch.tensor([True, False]), TypeError, "torch.bool"),
    ("vmap", "seed", torch.tensor(3), ValueError, "()"),
    ("vmap", "seed", range(3), TypeError, "range"),
    ("vmap", "params", {}, TypeError, "PyTreeSpec"),
    ("vmap", "params", {"weight": X0}, TypeError, "PyTreeSpec"),
    ("vmap", "params", dict(make_network("mlp_batch_norm").state_dict()), ValueError, "("),
    ("vmap", "x0", torch.stack([X0, X0]).to_sparse(), TypeError, "a torch.sparse_coo one"),
    ("consensus", "problem", NET, TypeError, "Sequential; fe.problem("),
    ("progress", "every", "soon", TypeError, "str"),
    ("progress", "every", -1.0, ValueError, "-1.0"),
    ("progress", "stream", "log.txt", TypeError, "str"),
    ("as_optimizer", "pair", (1, 2), TypeError, "tuple"),
    ("run", "num_steps", 1.0, TypeError, "float"),
    *[
        (where, *row)
        for where in ("box", "clip")
        for row in (
            ("lower", 9.5, ValueError, "lower > upper in 1 entries"),
            ("lower", NAN, ValueError, "1 entries of 1"),
            ("lower", -(10**400), ValueError, "an int above all floats"),
            ("lower", torch.full((5,), -9.0), TypeError, "torch.float32"),
            ("lower", torch.full((5, 1), -9.0, dtype=F64), ValueError, "(5, 1)"),
            ("upper", None, TypeError, "NoneType"),
            ("upper", np.full(5, 9.0), TypeError, "ndarray"),
            ("upper", True, TypeError, "bool"),
        )
    ],
    ("box", "lower", -INF, ValueError, "1 entries of 1 that are NaN or infinite"),
    ("cast", "dtype", torch.int64, TypeError, "torch.int64"),
    ("cast", "dtype", "float64", TypeError, "'float64'"),
    ("cast", "dtype", F8, TypeError, str(F8)),
    ("cast", "device", "gpu", ValueError, "'gpu'"),
    ("cast", "device", "meta", ValueError, "'meta'"),
    ("standardize", "std", 0.0, ValueError, "0.0"),
    ("standardize", "std", -TARGET, ValueError, "a minimum of -"),
    ("standardize", "mean", X0[0, 0, :3], ValueError, "(3,)"),
    ("standardize", "mean", [0.0], TypeError, "list"),
    ("jitter", "scale", -1.0, ValueError, "-1.0"),
    ("jitter", "scale", "1", TypeError, "str"),
    ("jitter", "scale", -X0.abs(), ValueError, "a minimum of -"),
    ("reparametrize", "encode", "log", TypeError, "str"),
    ("penalize", "penalty", "l2", TypeError, "str"),
    ("penalize", "strength", -1.0, ValueError, "-1.0"),
    ("penalize", "strength", "1", TypeError, "str"),
    ("penalize", "strength", TARGET, ValueError, "["),
    ("penalize", "strength", torch.tensor(-1.0, dtype=F64), ValueError, "-1.0"),
    ("penalize", "name", 3, TypeError, "3"),
    ("gradient_wrt_input", "model", "net", TypeError, "str"),
    ("gradient_wrt_input", "target_weights", TARGET.numpy(), TypeError, "ndarray"),
    ("gradient_wrt_input", "initial_guess", [0.0], TypeError, "list"),
    ("gradient_wrt_input", "n_iter", 2.0, TypeError, "float"),
    ("gradient_wrt_input", "n_iter", -2, ValueError, "-2"),
    ("gradient_wrt_input", "mask", MASK.numpy(), TypeError, "ndarray"),
    ("gradient_wrt_input", "mask", MASK[0], ValueError, "(6, 5)"),
]


def rows() -> list[Any]:
    table = []
    for function, argument, value, error, got in ARGUMENTS:
        name = f"{function}-{argument}-{got.split(';')[0].replace(' ', '_')}"
        table.append(pytest.param(function, argument, value, error, got, id=name))
    return table


@pytest.mark.parametrize(("function", "argument", "value", "error", "got"), rows())
def test_wrong_argument_is_refused_and_changes_nothing(
    function: str, argument: str, value: Any, error: type[Exception], got: str
) -> None:
    given = Given()
    message = rf"(?s)^{function}: {argument}\b.*got {re.escape(got)}"
    with pytest.raises(error, match=message):
        FUNCTIONS[function](given, **{argument: value})
    given.assert_untouched()


def several(p: Any) -> Any:
    return fe.vmap(fe.vmap(p, target=torch.stack([TARGET, TARGET])), x0=torch.stack([X0, X0]))


# What is wrong with more than one argument, or with what the others make of it.
STACKS: list[tuple[Callable[[Any], Any], type[Exception], str]] = [
    (lambda p: fe.vmap(p), ValueError, r"vmap: expected at least one stack.*got none"),
    (lambda p: fe.vmap(p, name="start"), ValueError, r"vmap: expected at least one stack.*got none"),
    (lambda p: fe.vmap(name="start"), ValueError, r"vmap: expected at least one stack.*got none"),
    (
        lambda p: fe.vmap(p, x0s=X0[None]),
        ValueError,
        r"vmap: args hold \['mask', 'params', 'reference', 'seed', 'target', 'x0'\], got .*'x0s'",
    ),
    (
        lambda p: fe.vmap(p, x0=torch.stack([X0, X0]), seed=torch.arange(3)),
        ValueError,
        r"vmap: stacks of one call must have one leading size, got \{'x0': 2, 'seed': 3\}; nest",
    ),
    (
        lambda p: fe.vmap(several(p), name="target", seed=torch.arange(3)),
        ValueError,
        "vmap: name must differ from those of other row dimensions, got 'target'",
    ),
    (
        lambda p: fe.vmap(several(p), x0=torch.stack([X0, X0])),
        ValueError,
        r"vmap: x0 must have shape \(rows, 2, 2, 6, 5\).*got \(2, 2, 6, 5\)",
    ),
    (
        lambda p: fe.vmap(
            p,
            params={
                k: torch.stack([v] * (3 if "weight" in k else 2)) for k, v in p.args["params"].items()
            },
        ),
        ValueError,
        r"vmap: all tensors of params must have one leading size, got \[2, 3\]",
    ),
    (
        lambda p: fe.vmap(p, params={k: v[None].float() for k, v in p.args["params"].items()}),
        TypeError,
        r"vmap: params\['.*'\] must be a stack of the problem's dtype.*got torch.float32, cpu",
    ),
    (
        lambda p: fe.vmap(fe.problem((lambda q, x: x[0, 0], {}), TARGET, X0), params={}),
        ValueError,
        "vmap: params ",
    ),
    (
        lambda p: fe.make_step(p, patience=3),
        ValueError,
        "make_step: patience needs an atol, since without one no search ends",
    ),
    (
        lambda p: fe.make_step(p, patience=0, atol=0.0),
        ValueError,
        "make_step: patience must be >= 1, or None to wait indefinitely, got 0",
    ),
]


@pytest.mark.parametrize(("call", "error", "message"), STACKS)
def test_arguments_that_do_not_go_together_are_refused(call: Any, error: Any, message: str) -> None:
    given = Given()
    with pytest.raises(error, match=f"(?s)^{message}"):
        call(given.problem)
    given.assert_untouched()


def test_stacks_inside_of_a_transform_are_refused() -> None:
    # Refused where it is given: what torch says later, in `solve`, does not name it.
    problem = Given().problem

    def loss(stack: torch.Tensor) -> torch.Tensor:
        return fe.solve(fe.vmap(problem, x0=stack), max_steps=1).loss.sum()

    for transformed in (torch.func.grad(loss), lambda x: torch.func.vmap(loss)(x[None])):
        with pytest.raises(RuntimeError, match="vmap: x0 must be a plain tensor, got one inside"):
            transformed(torch.stack([X0, X0]))


def test_inference_mode_makes_no_grid() -> None:
    problem = Given().problem
    with torch.inference_mode():
        stack = torch.stack([X0, X0 + 1])
        for call in (lambda: fe.vmap(problem, x0=stack), lambda: fe.consensus(problem)):
            with pytest.raises(RuntimeError, match=r"needs gradients, got torch\.inference_mode"):
                call()
    assert fe.solve(fe.vmap(problem, x0=stack), max_steps=1).shape == (2,)
