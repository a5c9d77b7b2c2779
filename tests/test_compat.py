"""`gradient_wrt_input` beside the original: a re-statement of its loop, and deepdow itself if installed.

Fields compared: the returned window, the losses, the printed lines, the state of torch's generator.
Left out on purpose: the original's window still requires a gradient, ours is detached.
"""

import copy
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

import funcexplain as fe
from funcexplain.networks.norms import contiguous_cotangents
from funcexplain.networks.prepare import prepare
from tests.helpers import (
    ASSETS,
    NETWORKS,
    assert_same,
    assert_untouched,
    make_mask,
    make_network,
    make_target,
    make_x0,
    params,
    snapshot,
)

# One value per channel in training mode: refused by torch, there and here.
REFUSED = {"mlp_batch_norm"}
# Its buffers move with every forward pass in training mode; a pure function starts from them anew.
STATEFUL = {"spectral_norm"}
# What rights torch's gradient, and nothing else.
CURE = {_NormBase: contiguous_cotangents}
MASKS = {"no_mask": None, "some": make_mask(), "all_false": torch.zeros_like(make_mask())}


def restated(
    model: nn.Module, target: Tensor, x0: Tensor, n_iter: int, mask: Tensor | None, lr: float
) -> tuple[Tensor, list[float]]:
    """The original's loop in plain autograd, on a copy whose normalisation layers are cured."""
    model = prepare(copy.deepcopy(model), train=True, rules=CURE).network
    x = x0.clone().requires_grad_()
    free = torch.ones_like(x) if mask is None else mask.to(torch.bool)
    optimizer, hist = torch.optim.Adam([x], lr=lr), []
    for _ in range(n_iter):
        loss = ((model((x * free)[None])[0] - target) ** 2).mean()
        hist.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return x.detach(), hist


@pytest.mark.parametrize("name", params([n for n in NETWORKS if n not in REFUSED | STATEFUL]))
@pytest.mark.parametrize(
    ("mask", "dtype"), [*((mask, torch.float64) for mask in MASKS), ("some", torch.float32)]
)
def test_equals_the_original_loop_on_every_network(name: str, mask: str, dtype: torch.dtype) -> None:
    network, target, x0 = make_network(name, dtype), make_target(dtype), make_x0(dtype)
    torch.manual_seed(11)
    x, hist = restated(network, target, x0, 20, MASKS[mask], 0.1)
    expected_rng = torch.get_rng_state()
    torch.manual_seed(11)
    ours = fe.gradient_wrt_input(
        network, target, x0, n_iter=20, mask=MASKS[mask], lr=0.1, verbose=False, dtype=dtype
    )
    assert torch.equal(torch.get_rng_state(), expected_rng)
    torch.testing.assert_close(ours[0], x, rtol=0, atol=1e-6 if dtype is torch.float32 else 1e-9)
    torch.testing.assert_close(torch.tensor(ours[1]), torch.tensor(hist), rtol=1e-5, atol=1e-7)
    assert isinstance(ours[1], list)
    if mask == "all_false":
        assert_same(ours[0], x0)


@pytest.mark.parametrize("n_iter", [0, 1, 49, 50, 51, 101])
def test_prints_what_the_original_prints(n_iter: int, capsys: pytest.CaptureFixture[str]) -> None:
    network, target, x0 = make_network("conv_no_norm"), make_target(), make_x0()
    _, hist = fe.gradient_wrt_input(network, target, x0, n_iter=n_iter, dtype=torch.float64)
    lines = [
        f"{i}-th iteration, loss: {hist[i - 1]:.4f}" if i else "Starting optimization"
        for i in range(0, n_iter, 50)
    ]
    lines += [f"Optimization done, final loss: {hist[-1]:.4f}"] if n_iter else []
    assert capsys.readouterr().out.splitlines() == lines
    assert len(hist) == n_iter


def test_casts_as_the_original_does() -> None:
    network = make_network("with_buffers", torch.float64)
    guess, target = make_x0(torch.float64), torch.eye(ASSETS, dtype=torch.int64)[1]
    mask = make_mask().float()
    x, _ = fe.gradient_wrt_input(network, target, guess, n_iter=2, mask=mask, verbose=False)
    assert x.dtype is torch.float32
    x, _ = fe.gradient_wrt_input(
        network, target, guess.float(), n_iter=2, verbose=False, dtype=torch.float64
    )
    assert x.dtype is torch.float64
    assert not x.requires_grad


@pytest.mark.parametrize("name", params([n for n in NETWORKS if n not in REFUSED | {"mlp_tanh"}]))
@pytest.mark.parametrize("training", [True, False])
def test_the_model_is_untouched(name: str, training: bool) -> None:
    network, target, x0 = make_network(name).train(training), make_target(), make_x0()
    before = snapshot(network)
    del before["rng"]  # dropout draws from it, as in the original
    before["rng"] = None
    fe.gradient_wrt_input(network, target, x0, n_iter=3, verbose=False)
    before["rng"] = torch.get_rng_state()
    assert_untouched(before, network)
    assert_same(x0, make_x0())


@pytest.mark.parametrize("name", params(REFUSED))
def test_one_value_per_channel_is_refused_as_in_the_original(name: str) -> None:
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        fe.gradient_wrt_input(make_network(name), make_target(), make_x0(), verbose=False)


def deepdow_networks() -> dict[str, Any]:
    """The original's own networks, with what they are made of."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        nets = pytest.importorskip("deepdow.nn", reason="deepdow is not installed")
    return {
        "DummyNet": lambda: nets.DummyNet(2),
        "MinimalNet": lambda: nets.MinimalNet(ASSETS),
        "KeynesNet_Conv": lambda: nets.KeynesNet(2, hidden_size=8, transform_type="Conv", n_groups=2),
        "KeynesNet_RNN": lambda: nets.KeynesNet(2, hidden_size=8, transform_type="RNN", n_groups=2),
        "LinearNet": lambda: nets.LinearNet(2, 6, ASSETS),
        "ThorpNet": lambda: nets.ThorpNet(ASSETS),
        "BachelierNet": lambda assets=ASSETS: nets.BachelierNet(2, assets, hidden_size=8),
    }


def deepdow_explain(*args: Any, **kwargs: Any) -> tuple[Tensor, list[float]]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from deepdow.explain import gradient_wrt_input
    return gradient_wrt_input(*args, **kwargs)


@pytest.mark.filterwarnings("ignore")  # cvxpy and its solvers warn about their own future
@pytest.mark.parametrize("mask", params(MASKS))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", ["DummyNet", "MinimalNet", "KeynesNet_Conv", "ThorpNet"])
def test_equals_deepdow_itself(name: str, dtype: torch.dtype, mask: str) -> None:
    network = deepdow_networks()[name]()
    target, x0, n_iter = torch.eye(ASSETS)[1], make_x0(torch.float32), 10 if name == "ThorpNet" else 120
    theirs, expected = deepdow_explain(
        copy.copy(network) if name == "ThorpNet" else copy.deepcopy(network),
        target, x0, n_iter=n_iter, mask=MASKS[mask], verbose=False, dtype=dtype,
    )  # fmt: skip
    x, hist = fe.gradient_wrt_input(
        network, target, x0, n_iter=n_iter, mask=MASKS[mask], verbose=False, dtype=dtype
    )
    torch.testing.assert_close(x, theirs.detach(), rtol=0, atol=1e-6)
    torch.testing.assert_close(torch.tensor(hist), torch.tensor(expected), rtol=0, atol=1e-6)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("n_iter", [1, 50, 101])
def test_prints_the_lines_of_deepdow(n_iter: int, capsys: pytest.CaptureFixture[str]) -> None:
    network, target, x0 = deepdow_networks()["DummyNet"](), torch.eye(ASSETS)[1], make_x0(torch.float32)
    lines = []
    for function, model in ((deepdow_explain, copy.deepcopy(network)), (fe.gradient_wrt_input, network)):
        function(model, target, x0, n_iter=n_iter)
        lines.append(capsys.readouterr().out)
    assert lines[0] == lines[1]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("mask", params(MASKS))
def test_the_originals_own_scenario(dtype: torch.dtype, mask: str) -> None:
    """A window of zeros, 2 channels, 3 days, 4 assets; what deepdow's own tests ask of its function."""
    network = deepdow_networks()["BachelierNet"](4)
    shape = (2, 3, 4)
    free = None if mask == "no_mask" else torch.zeros(shape, dtype=torch.bool)
    if free is not None and mask == "some":
        free[0] = True
    guess, target = torch.zeros(shape), torch.eye(4)[1]
    x, hist = fe.gradient_wrt_input(
        network, target, guess, n_iter=3, mask=free, verbose=False, dtype=dtype
    )
    assert x.dtype is dtype
    assert x.shape == shape
    assert len(hist) == 3
    kept = torch.zeros(shape, dtype=torch.bool) if free is None else ~free
    assert torch.equal(x[kept], guess.to(dtype)[kept])


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("mask", params(MASKS))
@pytest.mark.parametrize("name", ["KeynesNet_RNN", "BachelierNet"])
def test_equals_deepdow_with_the_cure_where_its_gradients_are_wrong(name: str, mask: str) -> None:
    network = deepdow_networks()[name]()
    target, x0 = torch.eye(ASSETS)[1], make_x0(torch.float32)
    n_iter = 100 if name == "KeynesNet_RNN" else 5
    answers = []
    for function, model in (
        (deepdow_explain, prepare(network, train=True, rules=CURE).network),
        (fe.gradient_wrt_input, network),
    ):
        torch.manual_seed(3)
        answers.append(function(model, target, x0, n_iter=n_iter, mask=MASKS[mask], verbose=False))
    (theirs, expected), (x, hist) = answers
    torch.testing.assert_close(x, theirs.detach(), rtol=0, atol=1e-5)
    torch.testing.assert_close(torch.tensor(hist), torch.tensor(expected), rtol=0, atol=1e-6)


@pytest.mark.filterwarnings("ignore")
def test_right_gradients_reach_what_the_original_does_not() -> None:
    network = deepdow_networks()["KeynesNet_RNN"]()
    target, x0 = torch.eye(ASSETS)[1], make_x0(torch.float32)
    _, theirs = deepdow_explain(copy.deepcopy(network), target, x0, n_iter=150, verbose=False)
    _, ours = fe.gradient_wrt_input(network, target, x0, n_iter=150, verbose=False)
    assert ours[0] == pytest.approx(theirs[0])
    assert ours[-1] < 0.9 * ours[0]
    assert ours[-1] < theirs[-1]


@pytest.mark.filterwarnings("ignore")
def test_one_value_per_channel_is_refused_as_in_deepdow() -> None:
    for function in (deepdow_explain, fe.gradient_wrt_input):
        with pytest.raises(ValueError, match="more than 1 value per channel"):
            function(deepdow_networks()["LinearNet"](), torch.eye(ASSETS)[1], make_x0(), verbose=False)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "name", ["DummyNet", "KeynesNet_Conv", "KeynesNet_RNN", "LinearNet", "ThorpNet", "BachelierNet"]
)
def test_one_question_about_a_deepdow_network_is_answered(name: str) -> None:
    network = deepdow_networks()[name]()
    before = {
        key: value.clone()
        for key, value in network.state_dict().items()
        if value.layout is torch.strided
    }
    solution = fe.explain(network, make_target(torch.float32), make_x0(torch.float32), max_steps=3)
    assert float(solution.weights.sum()) == pytest.approx(1.0, abs=1e-3)
    for key, value in before.items():
        assert torch.equal(network.state_dict()[key], value)
