"""Laws of the rules for normalisation: batch norm written out is torch's, the rest stays as it is."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, jacrev, vmap

import funcexplain as fe
from funcexplain.networks.norms import affine_batch_norm
from tests.helpers import assert_close, assert_gradient, assert_same, pairs, params, trained_norm
from tests.networks.transformations import draw, loss, ordinary_grad

CHANNELS, ROWS = 3, 4
NORMS: dict[str, tuple[Callable[..., nn.Module], tuple[int, ...]]] = {
    "1d_plain": (nn.BatchNorm1d, (ROWS, CHANNELS)),
    "1d": (nn.BatchNorm1d, (ROWS, CHANNELS, 5)),
    "2d": (nn.BatchNorm2d, (ROWS, CHANNELS, 5, 2)),
    "3d": (nn.BatchNorm3d, (ROWS, CHANNELS, 2, 3, 2)),
}
every_norm = pytest.mark.parametrize("name", params(NORMS))
every_affine = pytest.mark.parametrize("affine", [True, False])


def make_norm(name: str, dtype: torch.dtype = torch.float64, **options: Any) -> nn.Module:
    """With statistics and scales as training would leave them, in eval mode."""
    return trained_norm(NORMS[name][0](CHANNELS, **options)).to(dtype).eval()


def written(norm: nn.Module) -> nn.Module:
    return affine_batch_norm(copy.deepcopy(norm))


def of_tensors(norm: nn.Module) -> tuple[Callable[..., Tensor], list[Tensor]]:
    """The layer as a function of its input and all that it has learned, and that."""
    learned = {n: t.detach() for n, t in norm.state_dict().items() if t.is_floating_point()}

    def call(x: Tensor, *tensors: Tensor) -> Tensor:
        return functional_call(norm, dict(zip(learned, tensors, strict=True)), (x,))

    return call, list(learned.values())


# --- it is torch's --------------------------------------------------------------------------------


@every_norm
@every_affine
@pytest.mark.parametrize("eps", [1e-5, 0.3])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_it_is_torchs_layer(name: str, affine: bool, eps: float, dtype: torch.dtype) -> None:
    norm = make_norm(name, dtype, affine=affine, eps=eps)
    (x,) = draw([NORMS[name][1]], 0, dtype)
    rounding = 1e-12 if dtype is torch.float64 else 1e-5
    assert_close(written(norm)(x), norm(x), rtol=rounding, atol=rounding)


@every_norm
@every_affine
def test_gradients_are_torchs(name: str, affine: bool) -> None:
    norm = make_norm(name, affine=affine)
    weights = dict(norm.named_parameters())

    def of_weights(norm: nn.Module) -> Callable[..., Tensor]:
        return loss(lambda x, *own: functional_call(norm, dict(zip(weights, own, strict=True)), (x,)))

    args = [draw([NORMS[name][1]], 0)[0], *[p.detach() for p in weights.values()]]
    expected = ordinary_grad(of_weights(norm))(*args)
    argnums = tuple(range(len(args)))
    assert_close(ordinary_grad(of_weights(written(norm)))(*args), expected)
    assert_close(grad(of_weights(written(norm)), argnums)(*args), expected)
    for place, slope in enumerate(expected):
        assert_gradient(
            lambda t, i=place: of_weights(norm)(*args[:i], t, *args[i + 1 :]),  # type: ignore[misc]
            args[place],
            slope,
        )


@every_norm
@every_affine
@pytest.mark.parametrize("mapped", ["input", "learned", "everything"])
def test_rows_and_models_may_be_mapped(name: str, affine: bool, mapped: str) -> None:
    norm = make_norm(name, affine=affine)
    call, learned = of_tensors(norm)
    ours, _ = of_tensors(written(norm))
    (x,) = draw([NORMS[name][1]], int(mapped != "learned"))
    own = [torch.stack([t, 0.5 * t, 2.0 * t]) for t in learned] if mapped != "input" else learned
    in_dims = (None if mapped == "learned" else 0, *[None if mapped == "input" else 0] * len(own))
    rows = [
        [a if d is None else a[row] for a, d in zip((x, *own), in_dims, strict=True)] for row in range(3)
    ]
    assert_close(vmap(ours, in_dims)(x, *own), torch.stack([call(*row) for row in rows]))

    # torch has no gradient for running statistics, so only that of the input is compared.
    def of_input(own: Any) -> Callable[[Tensor], Tensor]:
        return lambda x: call(x, *own)

    slopes = torch.stack([ordinary_grad(loss(of_input(own)))(x)[0] for x, *own in rows])
    assert_close(vmap(grad(loss(ours)), in_dims)(x, *own), slopes)
    each = [torch.autograd.functional.jacobian(of_input(own), x) for x, *own in rows]
    assert_close(vmap(jacrev(ours), in_dims)(x, *own), torch.stack(each))


def test_a_grid_of_models_and_rows() -> None:
    norm = make_norm("2d")
    call, learned = of_tensors(norm)
    ours, _ = of_tensors(written(norm))
    (xs,) = draw([NORMS["2d"][1]], 1)
    own = [torch.stack([t, 0.5 * t]) for t in learned]
    models = (None, *[0] * len(own))
    grid = vmap(vmap(ours, (0, *[None] * len(own))), models)(xs, *own)
    expected = [[call(x, *[t[m] for t in own]) for x in xs] for m in range(2)]
    assert_close(grid, torch.stack([torch.stack(row) for row in expected]))


@every_norm
def test_the_module_keeps_its_names_and_learned_tensors(name: str) -> None:
    norm = make_norm(name)
    before = {n: t.clone() for n, t in norm.state_dict().items()}
    ours = written(norm)
    ours(torch.randn(NORMS[name][1], dtype=torch.float64))
    assert_same(dict(ours.state_dict()), before)
    assert repr(ours) == repr(norm)
    assert "forward" not in vars(norm)


# --- wrong input is torch's to refuse -------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("1d", (CHANNELS,)),
        ("1d", (ROWS, CHANNELS, 2, 2)),
        ("2d", (ROWS, CHANNELS)),
        ("2d", (CHANNELS, 5, 2)),
        ("3d", (ROWS, CHANNELS, 5, 2)),
    ],
)
def test_wrong_dimensions_are_refused_in_the_words_of_torch(name: str, shape: tuple[int, ...]) -> None:
    norm, x = make_norm(name), torch.zeros(shape, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"expected .*D") as of_torch:
        norm(x)
    for call in (written(norm), lambda x: vmap(written(norm))(x[None])):
        with pytest.raises(ValueError, match=r"expected .*D") as found:
            call(x)
        assert str(found.value) == str(of_torch.value)


@every_norm
@every_affine
@pytest.mark.parametrize(("own", "got"), [(CHANNELS, 1), (1, CHANNELS), (CHANNELS, 2)])
def test_a_wrong_number_of_channels_is_refused(name: str, affine: bool, own: int, got: int) -> None:
    # A scale and a shift of one channel would broadcast; torch refuses other channels.
    layer, shape = NORMS[name]
    norm = layer(own, affine=affine).eval()
    x = torch.zeros(shape[0], got, *shape[2:])
    for call in (norm, written(norm)):
        with pytest.raises(RuntimeError):
            call(x)


# --- what is no scale and shift stays torch's -----------------------------------------------------


@every_norm
@pytest.mark.parametrize("options", [{}, {"track_running_stats": False}], ids=["train", "no_statistics"])
def test_statistics_of_the_batch_stay_torchs(name: str, options: dict[str, Any]) -> None:
    norm = make_norm(name, **options).train(not options)
    ours, (x,) = written(norm), draw([NORMS[name][1]], 0)
    expected = ordinary_grad(loss(norm))(x)
    assert "forward" not in vars(ours)
    assert_same(ordinary_grad(loss(ours))(x), expected)
    assert_same(dict(ours.state_dict()), dict(norm.state_dict()))  # moved alike


def test_a_network_with_every_batch_norm_is_a_function() -> None:
    network = nn.Sequential(
        trained_norm(nn.BatchNorm2d(2)),
        nn.Flatten(2),
        trained_norm(nn.BatchNorm1d(2, affine=False)),
        nn.Flatten(),
        trained_norm(nn.BatchNorm1d(12)),
    ).double()
    apply, p = fe.functionalize(network)
    (xs,) = draw([(2, 3, 2)], 1)
    assert_close(vmap(apply, (None, 0))(p, xs), network.eval()(xs).detach())


# --- gradients do not depend on memory layouts ----------------------------------------------------

LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": lambda t: t.contiguous(),
    "channels_last": lambda t: t.contiguous(
        memory_format=torch.channels_last if t.ndim == 4 else torch.channels_last_3d
    ),
    "rows_first": lambda t: (
        t.permute(2, 3, *range(4, t.ndim), 0, 1)
        .contiguous()
        .permute(t.ndim - 2, t.ndim - 1, *range(t.ndim - 2))
    ),
    "reversed": lambda t: (
        t.permute(*reversed(range(t.ndim))).contiguous().permute(*reversed(range(t.ndim)))
    ),
}
KERNELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "instance_2d": (lambda: nn.InstanceNorm2d(CHANNELS, affine=True), (1, CHANNELS, 5, 4)),
    "instance_3d": (lambda: nn.InstanceNorm3d(CHANNELS), (1, CHANNELS, 2, 3, 4)),
    "batch_2d_without_statistics": (
        lambda: nn.BatchNorm2d(CHANNELS, track_running_stats=False),
        (1, CHANNELS, 5, 4),
    ),
    "batch_3d_without_statistics": (
        lambda: nn.BatchNorm3d(CHANNELS, track_running_stats=False),
        (1, CHANNELS, 2, 3, 4),
    ),
    "batch_2d": (lambda: make_norm("2d"), (1, CHANNELS, 5, 4)),
}


class Laid(nn.Module):
    """A layer whose input and cotangent have given layouts, between contiguous ones."""

    def __init__(self, norm: nn.Module, before: str, after: str) -> None:
        super().__init__()
        self.norm, self.before, self.after = norm, LAYOUTS[before], LAYOUTS[after]

    def forward(self, x: Tensor) -> Tensor:
        out = self.norm(self.before(x))
        # A product's cotangent has the layout of its other factor.
        factor = torch.linspace(0.5, 1.5, out.numel(), dtype=x.dtype).view(out.shape)
        return (out.square() * self.after(factor)).flatten(1)


@pytest.mark.parametrize("name", params(KERNELS))
@pytest.mark.parametrize(("before", "after"), pairs(LAYOUTS, LAYOUTS))
def test_gradients_do_not_depend_on_layouts(name: str, before: str, after: str) -> None:
    make, shape = KERNELS[name]
    apply, p = fe.functionalize(Laid(make().double().eval(), before, after))
    (x,) = draw([shape], 0)
    x = x[0]
    found = grad(lambda x: apply(p, x).sum())(x)
    assert_gradient(lambda x: apply(p, x).sum(), x, found)
    one = x.clone().requires_grad_()
    (plain,) = torch.autograd.grad(apply(p, one).sum(), one)
    assert_close(plain, found)
