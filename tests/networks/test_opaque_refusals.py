"""What `opaque` refuses: second derivatives, rows that see each other, captured tensors, wrong use."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import grad, hessian, jacfwd, jacrev, vmap

from funcexplain.networks.opaque import opaque
from tests.helpers import assert_close
from tests.networks.transformations import draw

N = 4


@pytest.mark.parametrize(
    "second",
    [
        lambda f: grad(lambda x: grad(f)(x).sum()),
        lambda f: jacrev(jacrev(f)),
        lambda f: vmap(grad(lambda x: grad(f)(x).sum())),
        lambda f: lambda x: torch.func.jvp(f, (x,), (x,)),
        jacfwd,
        hessian,
    ],
)
def test_a_second_derivative_is_refused(second: Any) -> None:
    layer = opaque(torch.sin)
    with pytest.raises(RuntimeError, match=r"opaque: only one derivative.*finite differences"):
        second(lambda x: layer(x).sum())(draw([(N, 2)], 1)[0])


@pytest.mark.parametrize(
    ("norm", "refused"),
    [
        (nn.BatchNorm1d(3), True),
        (nn.BatchNorm1d(3).eval(), False),
        (nn.BatchNorm1d(3, track_running_stats=False).eval(), True),
        (nn.LayerNorm(3), False),
    ],
)
def test_rows_that_see_each_other_are_refused(norm: nn.Module, refused: bool) -> None:
    network = nn.Sequential(nn.Linear(3, 3), norm).double()
    layer = opaque(network)
    (x,) = draw([(N, 3)], 1)
    assert layer(x[0]).shape == (N, 3)
    if refused:
        with pytest.raises(ValueError, match=r"opaque: 1 \(BatchNorm1d\) uses the statistics of its"):
            vmap(layer)(x)
    else:
        assert_close(vmap(layer)(x), torch.stack([network(row) for row in x]))


@pytest.mark.parametrize("fn", ["closure", "method", "closure_of_module"])
def test_a_tensor_behind_the_back_of_torch_func_is_refused(fn: str) -> None:
    module = nn.Linear(3, 2).double()
    (x, w) = draw([(N, 3), (2, 3)], 0)

    def total(w: Tensor) -> Tensor:
        def inside(x: Tensor) -> Tensor:
            return x @ w.T

        functions = {
            "closure": inside,
            "method": module.forward,
            "closure_of_module": lambda x: module(x),
        }
        module._parameters["weight"] = w  # type: ignore[assignment]
        return opaque(functions[fn])(x).sum()

    with pytest.raises(
        ValueError,
        match=r"opaque: fn must not capture tensors.*got a (Tensor|Linear)",
    ):
        grad(total)(w)


ONE, TWO = (torch.zeros(N, 2),), (torch.zeros(N, 2), torch.zeros(N + 1))


@pytest.mark.parametrize(
    ("make", "args", "error", "message"),
    [
        (lambda: opaque(3), (), TypeError, "fn must be callable, got int"),  # type: ignore[arg-type]
        (lambda: opaque(torch.sin, 0.0), (), TypeError, r"in_batch must be an int.*got 0.0"),  # type: ignore[arg-type]
        (lambda: opaque(torch.sin, 0, [0]), (), TypeError, r"out_batch must be an int"),  # type: ignore[arg-type]
        (lambda: opaque(torch.sin, 0, None), (), ValueError, "every output has a batch dim"),
        (
            lambda: opaque(torch.sin, None, 0),
            (),
            ValueError,
            "no output has a batch dim, got out_batch=0",
        ),
        (lambda: opaque(torch.add), (ONE[0], 1.0), TypeError, "every argument.*got.*float.*partial"),
        (lambda: opaque(torch.add, (0,)), TWO, ValueError, r"in_batch=\(0,\) must hold.* 2 arguments"),
        (
            lambda: opaque(torch.add),
            TWO,
            ValueError,
            "expected 4 rows in dim 0 of argument 1.*got shape",
        ),
        (
            lambda: opaque(torch.sin, 2),
            ONE,
            ValueError,
            r"in_batch is 2 for argument 0, of shape \(4, 2\)",
        ),
        (lambda: opaque(torch.sum), ONE, ValueError, r"out_batch is 0 for output 0, of shape \(\)"),
        (lambda: opaque(lambda x: x.mean(0)), ONE, ValueError, "expected 4 rows in dim 0 of output 0"),
        (
            lambda: opaque(lambda x: {"a": x}),
            ONE,
            TypeError,
            "every output of fn must be a tensor, got dict",
        ),
        (lambda: opaque(lambda x: (x, 1)), ONE, TypeError, r"every output.*got \['Tensor', 'int'\]"),
        (
            lambda: opaque(torch.max, 0, (0, 0, 0)),
            ONE,
            ValueError,
            "out_batch is 0 for|must hold one dim",
        ),
    ],
)
def test_wrong_use_is_refused(make: Any, args: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        grad(lambda x: make()(x, *args[1:]).sum())(*args[:1] or ONE)


def test_a_map_over_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one row, got size 0"):
        vmap(opaque(torch.sin))(torch.zeros(0, N, 3))
