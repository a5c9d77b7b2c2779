"""Networks with another layout, other outputs, units or inputs, and the layouts that fit them."""

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import funcexplain as fe
from funcexplain.networks.adapt import fitting_layouts
from funcexplain.networks.layouts import arrange, candidates, format_layout, parse_layout

X = torch.arange(2 * 3 * 5 * 4).reshape(2, 3, 5, 4).double()
TARGET = torch.tensor([0.4, 0.3, 0.2, 0.1]).double()


class Returns(nn.Module):
    """Returns what a function makes of a linear layer's outputs."""

    def __init__(self, make: Any, outputs: int = 4) -> None:
        super().__init__()
        self.make, self.layer = make, nn.Linear(60, outputs, dtype=torch.float64)

    def forward(self, x: Tensor, **given: Tensor) -> Any:
        """Flatten and call."""
        return self.make(self.layer(0.01 * x.flatten(1)), **given)


@dataclass
class Out:
    weights: Tensor


@pytest.mark.parametrize(
    ("layout", "expected"),
    [
        ("n c l a", X),
        ("n l (c a)", X.transpose(1, 2).flatten(2)),
        ("n l (a c)", X.permute(0, 2, 3, 1).flatten(2)),
        ("n a l c", X.transpose(1, 3)),
        ("(n a) l c", X.permute(0, 3, 2, 1).flatten(0, 1)),
        ("l n (c a)", X.permute(2, 0, 1, 3).flatten(2)),
        ("n 1 (c l) a", X.flatten(1, 2)[:, None]),
    ],
)
def test_layouts(layout: str, expected: Tensor) -> None:
    groups = parse_layout("adapt", layout)
    assert torch.equal(arrange(groups, X), expected)
    assert format_layout(groups) == layout


@pytest.mark.parametrize(
    "layout",
    ["", "n", "c l a", "n c c", "n (c l", "n x l a", "(n c) l a", "l (n a) c", "nc l a", 3, "(n)"],
)
def test_layouts_that_are_none_are_refused(layout: Any) -> None:
    with pytest.raises(ValueError, match="layout must"):
        fe.adapt(nn.Identity(), layout=layout)(X)


def test_candidates_are_different_layouts_of_every_axis() -> None:
    found = list(candidates((3, 5, 4)))
    assert len(set(found)) == len(found)
    for layout in found:
        assert (
            sorted(arrange(parse_layout("adapt", layout), X).flatten().tolist()) == X.flatten().tolist()
        )


@pytest.mark.parametrize(
    ("network", "settings", "call"),
    [
        (Returns(lambda w: (w.sum(), w)), {"output": 1}, lambda out: out[1]),
        (Returns(lambda w: {"w": w}), {"output": "w"}, lambda out: out["w"]),
        (Returns(Out), {"output": "weights"}, lambda out: out.weights),
        (Returns(lambda w: w[..., None]), {}, lambda out: out[..., 0]),
        (Returns(lambda w: w.view(-1, 2, 4), 8), {"horizon": -1}, lambda out: out[:, -1]),
        (Returns(lambda w: w.view(-1, 4, 2), 8), {"horizon": 0}, lambda out: out[..., 0]),
        (Returns(lambda w: w.view(-1, 2, 4), 8), {"horizon": "mean"}, lambda out: out.mean(1)),
        (Returns(lambda w: w), {"normalize": "softmax"}, lambda out: out.softmax(-1)),
        (Returns(torch.exp), {"normalize": "sum"}, lambda out: out / out.sum(-1, keepdim=True)),
        (Returns(lambda w: w), {"benchmark": TARGET}, lambda out: out - TARGET),
    ],
    ids=["tuple", "dict", "dataclass", "column", "last", "first", "mean", "softmax", "sum", "active"],
)
def test_outputs(network: nn.Module, settings: dict[str, Any], call: Any) -> None:
    adapted = fe.adapt(network, **settings)
    assert torch.equal(adapted(X), call(network(X)))
    apply, params = fe.functionalize(adapted)
    torch.testing.assert_close(torch.func.vmap(apply, (None, 0))(params, X), call(network(X)))


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({}, TypeError, r"got dict of 'w' \(2, 4\); name them as output"),
        ({"output": "v"}, TypeError, r"output must be one of what it returns, 'w' \(2, 4\); got 'v'"),
        ({"output": 3.0}, TypeError, "output must be a name or an index"),
        ({"output": "w", "horizon": 1}, ValueError, "horizon needs weights of shape"),
        ({"output": "w", "mean": TARGET}, ValueError, "mean and std must be given together"),
        ({"output": "w", "mean": TARGET, "std": 0 * TARGET}, ValueError, "std must be > 0"),
        ({"normalize": "max"}, ValueError, "normalize must be"),
        ({"window": 1}, ValueError, "window must be an index in 0 ... 0, or a name, got 1"),
        ({"window": True}, TypeError, "window must be a name or an index"),
        ({"window": "a", "inputs": {"a": TARGET}}, ValueError, "must not have the name of an input"),
        ({"inputs": {"a": 3}}, TypeError, r"inputs\['a'\] must be a floating tensor"),
    ],
)
def test_arguments_that_do_not_fit(settings: Any, error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        fe.adapt(Returns(lambda w: {"w": w}), **settings)(X)


def test_units_and_inputs() -> None:
    mean, std = torch.tensor([1.0, 2.0, 3.0]).double(), torch.tensor([2.0, 4.0, 8.0]).double()
    network = Returns(lambda w, today, rate: (w + today) * rate[:, None])
    adapted = fe.adapt(
        network, mean=mean, std=std, inputs={"today": TARGET, "rate": torch.tensor(2.0).double()}
    )
    scaled = (X - mean[:, None, None]) / std[:, None, None]
    expected = network(scaled, today=TARGET.expand(2, 4), rate=torch.full((2,), 2.0).double())
    assert torch.equal(adapted(X), expected)


@pytest.mark.parametrize("window", ["fast", 0, 1, 2])
def test_networks_of_a_dict_or_a_tuple_of_windows(window: str | int) -> None:
    slow, rate = torch.linspace(0.0, 1.0, 108).double().view(3, 9, 4), torch.tensor(2.0).double()
    inner = Returns(lambda w: w)

    class Windows(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, windows: Any) -> Tensor:
            if isinstance(window, str):
                fast, first, second = (windows[name] for name in ("fast", "slow", "rate"))
            else:
                first, second = (windows[at] for at in range(3) if at != window)
                fast = windows[window]
            return (self.inner(fast) + first.mean((1, 2)) * second[:, None]).softmax(-1)

    adapted = fe.adapt(Windows(), inputs={"slow": slow, "rate": rate}, window=window)
    expected = (inner(X) + 2.0 * slow.mean((0, 1))).softmax(-1)
    torch.testing.assert_close(adapted(X), expected)
    problem = fe.problem(adapted, fe.targets.at_least(0, 0.4), 0.1 * X[0])
    assert fe.check_gradient(problem).ok


def test_given_inputs_are_mapped_as_alone() -> None:
    def combine(w: Tensor, today: Tensor) -> Tensor:
        return (w + today).softmax(-1)

    network, stack = Returns(combine), torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    for given in (network, _pure()):
        problem = fe.problem(given, TARGET, 0.1 * X[0], inputs={"today": TARGET})
        grid = fe.vmap(problem, inputs={"today": stack.double()})
        assert grid.dims[0].name == "inputs"
        found = fe.solve(grid, fe.levenberg_marquardt(), max_steps=3)
        for row, today in enumerate(stack.double()):
            alone = fe.problem(given, TARGET, 0.1 * X[0], inputs={"today": today})
            one = fe.solve(alone, fe.levenberg_marquardt(), max_steps=3)
            torch.testing.assert_close(found.weights[row], one.weights)
    with pytest.raises(ValueError, match=r"given inputs \['today'\], got \['rate'\]"):
        fe.vmap(problem, inputs={"rate": stack.double()})


def _pure() -> Any:
    apply, params = fe.functionalize(Returns(lambda w: w))
    return lambda p, x, today: (apply(p, x) + today).softmax(-1), params


def test_only_layouts_that_keep_samples_apart_fit() -> None:
    class LSTM(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = nn.LSTM(12, 4, batch_first=True, dtype=torch.float64)

        def forward(self, x: Tensor) -> Tensor:
            """Last hidden state."""
            return self.rnn(x)[0][:, -1]

    window = torch.rand(3, 5, 4).double()
    assert set(fitting_layouts(LSTM(), window, 4)) == {"n l (a c)", "n l (c a)"}
    assert fitting_layouts(Returns(lambda w: w), window, 4) == ["n c l a"]
    assert fitting_layouts(Returns(lambda w: w - w.mean(0)), window, 4) == []


def test_a_network_with_cash() -> None:
    network = Returns(lambda w: w.softmax(-1), 5)
    p = fe.problem(
        network, fe.targets.at_least("CASH", 0.3), 0.1 * X[0], assets=[*"abcd"], outputs=[..., "CASH"]
    )
    solution = fe.solve(p, fe.levenberg_marquardt(), max_steps=30, atol=1e-6)
    assert bool(solution.hit)
    assert solution.weights.shape == (5,)
    assert list(solution.to_pandas(assets=p.outputs).columns)[-1] == "weight_CASH"
    with pytest.raises(ValueError, match=r"outputs=\[\*assets, \"CASH\"\]"):
        fe.problem(network, fe.targets.at_least(0, 0.3), X[0])
    with pytest.raises(ValueError, match=r"name all weights: outputs"):
        fe.problem(network, torch.ones(5).double() / 5, X[0])


def test_distributions_are_not_compared_with_shorts() -> None:
    short = torch.tensor([0.9, 0.3, -0.3, 0.1]).double()
    with pytest.raises(ValueError, match="kl compares distributions"):
        fe.problem(Returns(lambda w: w), short, X[0], loss=fe.losses.kl)


def test_tied_entries_stay_equal_in_any_units() -> None:
    x0 = 0.1 * X[0].clone()
    x0[1] = x0[1, :, :1]
    network = Returns(lambda w: w.softmax(-1))
    problem = fe.problem(network, TARGET, x0)
    orders = [
        (fe.standardize(0.0, 2.0), fe.tie(channels=[1])),
        (fe.tie(channels=[1]), fe.standardize(0.0, 2.0)),
    ]
    answers = [
        fe.solve(fe.pipe(problem, *order), fe.levenberg_marquardt(), max_steps=4).x for order in orders
    ]
    torch.testing.assert_close(*answers)
    assert torch.equal(answers[0][1], answers[0][1, :, :1].expand(5, 4))
    assert fe.check_gradient(fe.tie(channels=[1])(problem)).ok
    with pytest.raises(ValueError, match="entries of x0 that are tied must be equal along assets"):
        fe.tie()(problem)
    with pytest.raises(ValueError, match="dims must be names among"):
        fe.tie("channels")
