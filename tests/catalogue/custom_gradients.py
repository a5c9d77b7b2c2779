"""Backward passes of a network's own: custom functions, hooks, checkpoints, implicit layers, dtypes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint, checkpoint_sequential

from tests.catalogue.entry import Allocator, Catalogue, Entry
from tests.helpers import ASSETS, SIZE

HIDDEN = 8


class OldTanh(torch.autograd.Function):
    """Written before ``setup_context``."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        out = x.tanh()
        ctx.save_for_backward(out)
        return out

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        (out,) = ctx.saved_tensors
        return g * (1 - out * out)


class NewTanh(torch.autograd.Function):
    """With ``setup_context`` and a generated vmap rule."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x.tanh()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(output)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        (out,) = ctx.saved_tensors
        return g * (1 - out * out)


class WithoutRule(NewTanh):
    """With ``setup_context``, and without a vmap rule."""

    generate_vmap_rule = False


class OfALayer(torch.autograd.Function):
    """A linear layer whose backward pass reads the layer's parameters as they are then."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: nn.Linear) -> Tensor:
        ctx.layer = layer
        return x @ layer.weight.mT + layer.bias

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None]:
        return g @ ctx.layer.weight, None


class OfALayerMapped(torch.autograd.Function):
    """The same with ``setup_context`` and a generated vmap rule."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, layer: nn.Linear) -> Tensor:
        return x @ layer.weight.mT + layer.bias

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, nn.Linear], output: Tensor) -> None:
        ctx.layer = inputs[1]

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None]:
        return g @ ctx.layer.weight, None


class Reversible(torch.autograd.Function):
    """Recomputes its input from its output, as reversible networks do (Gomez et al. 2017)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: nn.Linear) -> Tensor:
        a, b = x.chunk(2, -1)
        ctx.layer, out = layer, torch.cat([a + torch.tanh(layer(b)), b], -1)
        ctx.save_for_backward(out)
        return out

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None]:
        (out,) = ctx.saved_tensors
        left, right = g.chunk(2, -1)
        with torch.enable_grad():
            b = out.chunk(2, -1)[1].detach().requires_grad_()
            (slope,) = torch.autograd.grad(torch.tanh(ctx.layer(b)), b, left)
        return torch.cat([left, right + slope], -1), None


class Rounded(torch.autograd.Function):
    """Straight through: rounds, and passes gradients on (Bengio, Leonard, Courville 2013)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return (4 * x).round() / 4

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return g


class Middle(Allocator):
    """Two linear layers, and between them ``middle``."""

    def __init__(self, width: int = HIDDEN) -> None:
        super().__init__()
        self.body, self.inner = nn.Linear(SIZE, width), nn.Linear(width, width)
        self.head = nn.Linear(width, ASSETS)

    def scores(self, x: Tensor) -> Tensor:
        return self.head(self.middle(self.body(x.flatten(1))))

    def middle(self, h: Tensor) -> Tensor:
        raise NotImplementedError


class Applied(Middle):
    """A custom function of the hidden layer."""

    def __init__(self, function: Any) -> None:
        super().__init__()
        self.function = function

    def middle(self, h: Tensor) -> Tensor:
        return self.function.apply(h)


class AppliedLayer(Applied):
    """A custom function of the hidden layer and of the module of the next."""

    def __init__(self, function: Any) -> None:
        super().__init__(function)
        if function is Reversible:
            self.inner = nn.Linear(HIDDEN // 2, HIDDEN // 2)

    def middle(self, h: Tensor) -> Tensor:
        return torch.tanh(self.function.apply(torch.tanh(h), self.inner))


class CapturedLayer(Middle):
    """A custom function that is made in ``forward`` and reads ``self`` in its backward pass."""

    def middle(self, h: Tensor) -> Tensor:
        network = self

        class Function(torch.autograd.Function):
            @staticmethod
            def forward(ctx: Any, x: Tensor) -> Tensor:
                return network.inner(x)

            @staticmethod
            def backward(ctx: Any, g: Tensor) -> Tensor:
                return g @ network.inner.weight

        return torch.tanh(Function.apply(torch.tanh(h)))


class Checkpointed(Middle):
    """A checkpoint: the hidden layers run again in the backward pass."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.drop = how, nn.Dropout(0.5)
        self.deep = nn.Sequential(
            nn.Linear(HIDDEN, HIDDEN), nn.Tanh(), nn.Linear(HIDDEN, HIDDEN), nn.Tanh()
        )

    def run(self, h: Tensor) -> Tensor:
        return self.drop(torch.tanh(self.inner(torch.sin(h))))

    def middle(self, h: Tensor) -> Tensor:
        if self.how == "sequential":
            return checkpoint_sequential(self.deep, 2, h, use_reentrant=False)
        return checkpoint(self.run, h, use_reentrant=self.how == "reentrant")


class Equilibrium(Middle):
    """Bai, Kolter, Koltun (2019): a fixed point, with the implicit gradient by a hook."""

    def __init__(self, hook: bool) -> None:
        super().__init__()
        self.hook = hook

    def cell(self, z: Tensor, h: Tensor) -> Tensor:
        return torch.tanh(0.5 * self.inner(z) + h)

    def middle(self, h: Tensor) -> Tensor:
        with torch.no_grad():
            z = torch.zeros_like(h)
            for _ in range(40):
                z = self.cell(z, h)
        z = self.cell(z, h)
        if not self.hook:
            return z
        if z.requires_grad:
            start = z.detach().requires_grad_()
            with torch.enable_grad():
                again = self.cell(start, h.detach())

            def implicit(g: Tensor) -> Tensor:
                out = g
                for _ in range(40):
                    out = torch.autograd.grad(again, start, out, retain_graph=True)[0] + g
                return out

            z.register_hook(implicit)
        return z


class Hooked(Middle):
    """Tensor hooks: one scales the gradient, under the usual condition."""

    def middle(self, h: Tensor) -> Tensor:
        h = torch.tanh(h)
        if h.requires_grad:
            h.register_hook(lambda g: 0.5 * g)
        return h


class ModuleHooked(Middle):
    """A full backward hook that clips gradients: it belongs to training."""

    def __init__(self) -> None:
        super().__init__()
        self.inner.register_full_backward_hook(lambda module, before, after: None)

    def middle(self, h: Tensor) -> Tensor:
        return torch.tanh(self.inner(h))


class Slopes(Middle):
    """``torch.autograd.grad`` inside of ``forward``: an energy-based layer."""

    def middle(self, h: Tensor) -> Tensor:
        with torch.enable_grad():
            h = h if h.requires_grad else h.detach().requires_grad_()
            energy = torch.tanh(self.inner(h)).square().sum()
            (slope,) = torch.autograd.grad(energy, h, create_graph=True)
        return h - slope


class FuncSlopes(Middle):
    """``torch.func.grad`` inside of ``forward``."""

    def middle(self, h: Tensor) -> Tensor:
        return h - torch.func.grad(lambda z: torch.tanh(self.inner(z)).square().sum())(h)


class MappedInside(Middle):
    """``torch.func.vmap`` inside of ``forward``."""

    def middle(self, h: Tensor) -> Tensor:
        return torch.func.vmap(lambda row: torch.tanh(self.inner(row)).cumsum(0))(h)


class Detached(Middle):
    """A target network without gradient beside the body."""

    def middle(self, h: Tensor) -> Tensor:
        with torch.no_grad():
            still = torch.tanh(self.inner(h))
        return torch.tanh(h) * still


class Mixed(Middle):
    """Another dtype inside of a network of float32."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how

    def middle(self, h: Tensor) -> Tensor:
        return torch.tanh(h)

    def forward(self, x: Tensor) -> Tensor:
        if self.how == "double_softmax":
            return torch.softmax(self.scores(x).double(), -1)
        if self.how == "double_and_back":
            return torch.softmax(self.scores(x).double(), -1).to(x.dtype)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            scores = self.scores(x)
        weights = torch.softmax(scores.float(), -1)
        return weights if self.how == "autocast" else weights.bfloat16()


class HalfBody(nn.Module):
    """A body of bfloat16 under a head of float32."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(SIZE, HIDDEN).bfloat16(), nn.Linear(HIDDEN, ASSETS)

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.tanh(self.body(x.flatten(1).bfloat16()))
        return torch.softmax(self.head(hidden.float()), -1)


class Constants(Middle):
    """Constants of float32 in a network of float64."""

    def middle(self, h: Tensor) -> Tensor:
        half, eye = torch.full((HIDDEN,), 0.5), torch.eye(HIDDEN)
        return torch.tanh(h * half + h @ eye.to(h.dtype)) + torch.zeros(HIDDEN)


WRONG = "does NOT agree"
FLOAT = {"dtype": torch.float32, "rtol": 1e-3}
HALF = {"dtype": torch.float32, "rtol": 0.1, "verdict": "agrees|does NOT agree"}

CUSTOM_GRADIENTS: Catalogue = {
    "old_function": Entry(lambda: Applied(OldTanh), mappable=False),
    "new_function": Entry(lambda: Applied(NewTanh)),
    "function_without_rule": Entry(lambda: Applied(WithoutRule), mappable=False),
    "straight_through": Entry(lambda: Applied(Rounded), mappable=False, verdict=WRONG),
    "function_of_a_layer": Entry(lambda: AppliedLayer(OfALayer), mappable=False),
    "mapped_function_of_a_layer": Entry(lambda: AppliedLayer(OfALayerMapped), mappable=False),
    "reversible": Entry(lambda: AppliedLayer(Reversible), mappable=False),
    "captured_layer": Entry(CapturedLayer, mappable=False),
    "checkpoint": Entry(lambda: Checkpointed("plain"), mappable=False),
    "checkpoint_reentrant": Entry(
        lambda: Checkpointed("reentrant"),
        mappable=False,
        refused="use_reentrant=False",
        warns="None of the inputs have",
    ),
    "checkpoint_sequential": Entry(lambda: Checkpointed("sequential"), mappable=False),
    "equilibrium": Entry(lambda: Equilibrium(True), mappable=False),
    "equilibrium_one_step": Entry(lambda: Equilibrium(False), verdict=WRONG),
    "hooked": Entry(Hooked, mappable=False, verdict=WRONG),
    "module_hooked": Entry(ModuleHooked),
    "slopes": Entry(Slopes, mappable=False),
    "func_slopes": Entry(FuncSlopes),
    "mapped_inside": Entry(MappedInside),
    "detached": Entry(Detached, verdict=WRONG),
    "constants": Entry(Constants),
    "double_softmax": Entry(lambda: Mixed("double_softmax"), **FLOAT),  # type: ignore[arg-type]
    "double_and_back": Entry(lambda: Mixed("double_and_back"), **FLOAT),  # type: ignore[arg-type]
    "autocast": Entry(lambda: Mixed("autocast"), mappable=False, **HALF),  # type: ignore[arg-type]
    "autocast_weights": Entry(lambda: Mixed("autocast_weights"), **HALF),  # type: ignore[arg-type]
    "half_body": Entry(HalfBody, **HALF),  # type: ignore[arg-type]
}
