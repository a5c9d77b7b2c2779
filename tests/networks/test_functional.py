"""Laws of `functionalize` and `stack` over the catalogue of networks."""

import pytest
import torch
from torch import Tensor, nn

import funcexplain as fe
from tests.helpers import (
    ASSETS,
    NETWORKS,
    SHAPE,
    Recurrent,
    WithBuffers,
    assert_close,
    assert_gradient,
    assert_same,
    make_network,
    make_target,
    make_x0,
    params,
    scalar,
)

DTYPES = [torch.float32, torch.float64]
every_network = pytest.mark.parametrize("name", params(NETWORKS))


@every_network
@pytest.mark.parametrize("dtype", DTYPES)
def test_apply_is_the_module_in_eval_mode_for_one_window(name: str, dtype: torch.dtype) -> None:
    network, x = make_network(name, dtype), make_x0(dtype)
    apply, p = fe.functionalize(network)
    weights = apply(p, x)
    assert weights.shape == (ASSETS,)
    # torch takes a fused kernel for transformer layers whose parameters need no gradient.
    rounding = 1e-5 if dtype is torch.float32 else 1e-12
    assert_close(weights, network.eval()(x[None])[0].detach(), rtol=rounding)


@every_network
def test_mapped_gradient_equals_a_loop(name: str) -> None:
    apply, p = fe.functionalize(make_network(name))
    grad = torch.func.grad(scalar(apply, make_target()), argnums=1)
    xs = torch.stack([make_x0(seed=seed) for seed in range(3)])
    assert_close(torch.func.vmap(grad, in_dims=(None, 0))(p, xs), torch.stack([grad(p, x) for x in xs]))


@every_network
def test_mapped_parameters_equal_a_loop(name: str) -> None:
    networks = [make_network(name) for _ in range(3)]
    for network in networks[1:]:
        for p in network.parameters():
            nn.init.normal_(p, std=0.3)
    x = make_x0()
    apply, stacked = fe.stack(networks)
    expected = torch.stack([network.eval()(x[None])[0].detach() for network in networks])
    assert_close(torch.func.vmap(apply, in_dims=(0, None))(stacked, x), expected)


@every_network
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_transformation_equals_ordinary_autograd(name: str, dtype: torch.dtype) -> None:
    network = make_network(name, dtype).eval()
    apply, p = fe.functionalize(network)
    loss = scalar(apply, make_target(dtype))
    xs = torch.stack([make_x0(dtype, seed=seed) for seed in range(2)])
    slopes = []
    for x in xs:
        one = x[None].repeat(2, 1, 1, 1).requires_grad_()  # two rows: torch's own bug wants one
        fe.losses.mse(network(one)[0], make_target(dtype)).backward()
        assert one.grad is not None
        slopes.append(one.grad[0])
    expected, rounding = torch.stack(slopes), 1e-12 if dtype is torch.float64 else 2e-5
    grad = torch.func.grad(loss, argnums=1)
    nested = torch.func.vmap(torch.func.vmap(grad, (None, 0)), (None, 0))
    stacked = {name: torch.stack([tensor, tensor]) for name, tensor in p.items()}
    jacobian = torch.func.jacrev(apply, argnums=1)(p, xs[0])
    distance = 2 * (apply(p, xs[0]) - make_target(dtype)) / ASSETS
    for found, right in (
        (torch.stack([grad(p, x) for x in xs]), expected),
        (torch.func.vmap(grad, (None, 0))(p, xs), expected),
        (nested(p, xs[None])[0], expected),
        (torch.func.vmap(grad)(stacked, xs), expected),
        (torch.einsum("a,aclb->clb", distance, jacobian), expected[0]),
    ):
        assert found.dtype == dtype
        assert_close(found, right, rtol=rounding, atol=rounding * float(right.abs().max()))


def test_params_are_detached_copies() -> None:
    network = make_network("with_buffers")
    apply, p = fe.functionalize(network)
    x = make_x0()
    weights = apply(p, x)
    assert not any(tensor.requires_grad for tensor in p.values())
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
    assert_same(apply(p, x), weights)


def test_a_network_that_writes_to_its_buffers_is_a_pure_function() -> None:
    network = WithBuffers().double()
    apply, p = fe.functionalize(network)
    for _ in range(3):
        apply(p, make_x0())
    assert p["calls"] == network.calls == 0


def test_parameters_that_are_tied_stay_tied() -> None:
    apply, p = fe.functionalize(make_network("tied"))
    assert not any(name.startswith("again") for name in p)
    zeroed = {name: tensor * ("embed" not in name) for name, tensor in p.items()}
    assert_same(apply(zeroed, make_x0()), apply(zeroed, torch.zeros(SHAPE, dtype=torch.float64)))


def test_without_the_rule_the_gradient_of_a_normalisation_layer_is_wrong() -> None:
    """Guards the guard: the day torch is right by itself, the rule can go."""
    network = make_network("lstm_instance_norm")
    gradients = []
    for rules in (None, ()):
        apply, p = fe.functionalize(network, rules=rules)
        x = make_x0().requires_grad_()
        fe.losses.mse(apply(p, x), make_target()).backward()
        assert x.grad is not None
        gradients.append(x.grad)
    right, wrong = gradients
    assert float((right - wrong).norm() / right.norm()) > 0.1


@pytest.mark.parametrize("norm", [nn.InstanceNorm2d(2), nn.BatchNorm2d(2), nn.GroupNorm(1, 2)])
def test_normalisation_reads_a_channels_last_cotangent_rightly(norm: nn.Module) -> None:
    network = Recurrent(nn.LSTM, norm).double()
    apply, p = fe.functionalize(network)
    loss, x = scalar(apply, make_target()), make_x0()
    assert_gradient(lambda x: loss(p, x), x, torch.func.grad(loss, argnums=1)(p, x))


def test_without_a_seed_train_mode_draws_dropout_from_the_global_generator() -> None:
    network = make_network("mlp_tanh")
    apply, p = fe.functionalize(network, train=True)
    del p["dropout.seed"]
    torch.manual_seed(5)
    weights = apply(p, make_x0())
    torch.manual_seed(5)
    assert_same(weights, network.train()(make_x0()[None])[0].detach())
    assert not torch.equal(weights, apply(p, make_x0()))


def test_a_batch_norm_without_running_statistics_may_train() -> None:
    network = nn.Sequential(nn.BatchNorm2d(2, track_running_stats=False), nn.Flatten())
    apply, p = fe.functionalize(network, train=True)
    assert apply(p, torch.randn(2, 3, 4)).shape == (24,)


@pytest.mark.parametrize(
    ("others", "message"),
    [
        ([], "got none"),
        ([nn.Linear(3, 4), nn.Linear(3, 5)], r"modules\[1\].*does not match.*bias.*weight"),
        ([nn.Linear(3, 4), nn.Linear(3, 4).double()], r"modules\[1\].*does not match"),
        ([nn.ReLU(), nn.Tanh()], r"modules\[1\] \(Tanh\) does not match modules\[0\] \(ReLU\)"),
    ],
)
def test_stack_refuses_what_does_not_match(others: list[nn.Module], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fe.stack(others)


@pytest.mark.parametrize("name", params(["conv_instance_norm", "conv_batch_norm", "mlp_tanh"]))
def test_forward_mode_equals_reverse_mode(name: str) -> None:
    apply, p = fe.functionalize(make_network(name))
    forward, reverse = (
        mode(apply, argnums=1)(p, make_x0()) for mode in (torch.func.jacfwd, torch.func.jacrev)
    )
    assert_close(forward, reverse)


def test_a_list_that_a_network_keeps_is_left_alone() -> None:
    class Keeping(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.seen: list[Tensor] = []
            self.cache: dict[str, Tensor] = {}

        def forward(self, x: Tensor) -> Tensor:
            weights = torch.softmax(x.flatten(1)[:, :5], -1)
            self.seen.append(weights)
            self.cache["weights"] = weights
            return weights

    network = Keeping()
    fe.explain(network, make_target(), make_x0(), max_steps=2)
    assert network.seen == []
    assert network.cache == {}
