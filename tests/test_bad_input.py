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
NAN, INF, F64, F8 = math.nan, math.inf, torch.float64, torch.float8_e4m3fn
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
    ("problem", "x0", X0.to(F8), TypeError, "torch.float8_e4m3fn"),
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
    ("solve", "method", "adam", TypeError, "str"),
    ("solve", "method", fe.adam, TypeError, "adam; it is called with its settings first"),
    ("solve", "method", torch.optim.Adam, TypeError, "Adam; torch.optim changes tensors in place"),
    ("make_step", "problem", None, TypeError, "NoneType"),
    ("make_step", "atol", "0", TypeError, "str"),
    ("make_step", "atol", NAN, ValueError, "nan"),
    ("make_step", "keep", "first", ValueError, "'first'"),
    ("as_optimizer", "pair", (1, 2), TypeError, "tuple"),
    ("run", "num_steps", 1.0, TypeError, "float"),
    *[
        (where, *row)
        for where in ("box", "clip")
        for row in (
            ("lower", 9.5, ValueError, "lower > upper in 1 places"),
            ("lower", NAN, ValueError, "1 entries of 1"),
            ("lower", -(10**400), ValueError, "an int beyond all floats"),
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
    ("cast", "dtype", F8, TypeError, "torch.float8_e4m3fn"),
    ("cast", "device", "gpu", ValueError, "'gpu'"),
    ("cast", "device", "meta", ValueError, "'meta'"),
    ("standardize", "std", 0.0, ValueError, "0.0"),
    ("standardize", "std", -TARGET, ValueError, "a least value of -"),
    ("standardize", "mean", X0[0, 0, :3], ValueError, "(3,)"),
    ("standardize", "mean", [0.0], TypeError, "list"),
    ("jitter", "scale", -1.0, ValueError, "-1.0"),
    ("jitter", "scale", "1", TypeError, "str"),
    ("jitter", "scale", -X0.abs(), ValueError, "a least value of -"),
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
