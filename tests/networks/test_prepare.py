"""Laws of `prepare`: a private copy, rules by type, and nothing else changed."""

import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import funcexplain as fe
from funcexplain.networks.prepare import RULES, prepare
from funcexplain.networks.stand_ins import replacement_of
from tests.helpers import (
    NETWORKS,
    assert_close,
    assert_untouched,
    make_network,
    make_target,
    make_x0,
    params,
    snapshot,
)


@pytest.fixture
def registry() -> Iterator[None]:
    before = dict(RULES)
    yield
    RULES.clear()
    RULES.update(before)


@pytest.mark.parametrize("name", params(NETWORKS))
def test_the_copy_is_private_and_shares_its_tensors(name: str) -> None:
    network = make_network(name)
    before = snapshot(network)
    copy = prepare(network, train=False).network
    shared = {id(p) for p in (*network.parameters(), *network.buffers())}
    assert {id(p) for p in (*copy.parameters(), *copy.buffers())} == shared
    assert not {id(m) for m in network.modules()} & {id(m) for m in copy.modules()}
    assert [n for n, _ in copy.named_parameters()] == [n for n, _ in network.named_parameters()]
    for part in copy.modules():
        part.register_forward_hook(lambda *_: None)
    copy.register_buffer("new", torch.zeros(1))
    assert_untouched(before, network)


def test_a_part_used_twice_stays_one_part() -> None:
    part = nn.Linear(2, 2)
    copy = prepare(nn.ModuleDict({"a": part, "b": nn.Sequential(part)})).network
    assert copy["a"] is copy["b"][0]  # type: ignore[index]
    assert copy["a"] is not part  # type: ignore[index]


def test_a_rule_follows_the_nearest_base_class(registry: None) -> None:
    class Mine(nn.ReLU):
        pass

    fe.register_rule(nn.Module, lambda module: module)
    fe.register_rule(nn.ReLU, lambda module: nn.Tanh())
    network = nn.Sequential(Mine(), nn.Sigmoid())

    def kinds(**settings: Any) -> list[type]:
        parts = prepare(network, **settings).network.children()
        return [type(replacement_of(part)) for part in parts]

    assert kinds() == [nn.Tanh, nn.Sigmoid]
    assert kinds(rules=()) == [Mine, nn.Sigmoid]
    assert kinds(rules={Mine: lambda module: nn.ELU()}) == [nn.ELU, nn.Sigmoid]


def test_a_rule_of_the_user_reaches_the_search(registry: None) -> None:
    class Sign(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.sign(x)

    network = nn.Sequential(nn.Flatten(), Sign(), nn.Linear(60, 5), nn.Softmax(-1)).double()
    with pytest.warns(UserWarning, match="no gradient reaches the input"):
        assert fe.explain(network, make_target(), make_x0()).status is fe.Status.STALLED
    fe.register_rule(Sign, lambda module: nn.Tanh())
    assert fe.explain(network, make_target(), make_x0()).status is fe.Status.MAX_STEPS


def test_forward_hooks_run_and_backward_hooks_do_not() -> None:
    seen: list[str] = []
    network = make_network("mlp_tanh")
    network.register_forward_pre_hook(lambda *_: seen.append("before"))
    network.register_forward_hook(lambda *_: seen.append("after"))
    network.register_full_backward_hook(lambda *_: seen.append("backward"))
    fe.explain(network, make_target(), make_x0(), max_steps=1)
    assert seen == ["before", "after"] * 2


def old_weight_norm(name: str = "weight", dim: int | None = 0) -> nn.Sequential:
    layer = nn.Linear(60, 5)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # deprecated since torch 2.1
        torch.nn.utils.weight_norm(layer, name, dim)  # type: ignore[arg-type]
    return nn.Sequential(nn.Flatten(), layer, nn.Softmax(-1)).double()


@pytest.mark.parametrize(("name", "dim"), [("weight", 0), ("weight", 1), ("weight", None), ("bias", 0)])
def test_old_style_weight_norm_stays_on_the_copy(name: str, dim: int | None) -> None:
    network = old_weight_norm(name, dim)
    expected = network(make_x0()[None])[0].detach()
    before = getattr(network[1], name)
    apply, p = fe.functionalize(network)
    torch.testing.assert_close(apply(p, make_x0()), expected)
    assert getattr(network[1], name) is before


def test_old_style_weight_norm_is_mapped_at_once() -> None:
    networks = [old_weight_norm() for _ in range(2)]
    apply, p = fe.stack(networks)  # torch's own kernel would warn of a loop
    mapped = torch.func.vmap(apply, (0, None))(p, make_x0())
    torch.testing.assert_close(mapped, torch.cat([network(make_x0()[None]) for network in networks]))


class DoubledNorm(nn.BatchNorm2d):
    def forward(self, input: Tensor) -> Tensor:
        return 2.0 * super().forward(input)


class DoubledCell(nn.GRUCell):
    def forward(self, input: Tensor, hx: Tensor | None = None) -> Tensor:
        return 2.0 * super().forward(input, hx)


class DoubledAttention(nn.MultiheadAttention):
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        attended, weights = super().forward(*args, **kwargs)
        return 2.0 * attended, weights


class DoubledLayer(nn.TransformerEncoderLayer):
    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        return 2.0 * super().forward(*args, **kwargs)


@pytest.mark.parametrize(
    ("layer", "shape", "copies"),
    [
        (DoubledNorm(2), (3, 2, 4, 4), 1),
        (DoubledCell(4, 3), (5, 4), 1),
        (DoubledAttention(4, 2, batch_first=True), (3, 5, 4), 3),
        (DoubledLayer(4, 2, 8, batch_first=True), (3, 5, 4), 1),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_a_subclass_keeps_its_own_forward(layer: nn.Module, shape: tuple[int, ...], copies: int) -> None:
    # A rule that replaces `forward` on the instance would throw away what a subclass made of it.
    inputs = [torch.randn(shape)] * copies
    found, expected = prepare(layer).network(*inputs), layer.eval()(*inputs)
    if isinstance(layer, nn.MultiheadAttention):
        found, expected = found[0], expected[0]
    assert_close(found, expected, rtol=1e-5, atol=1e-6)
