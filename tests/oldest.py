"""Solve without what torch 2.0.1 lacks: ``python -m tests.oldest``, in a process of its own."""

import pkgutil
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch

# Without those that newer versions of torch call themselves.
MISSING = """
    torch.OutOfMemoryError torch.export torch.get_default_device torch.uint16 torch.float8_e4m3fn
    torch.compiler.set_stance torch.compiler.cudagraph_mark_step_begin torch._inductor.compile
    torch._C._TorchDispatchModeKey torch._C._get_dispatch_mode
    torch._functorch.pyfunctorch.temporarily_clear_interpreter_stack torch.func.debug_unwrap
    torch.nn.RMSNorm torch.nn.Buffer torch.nn.attention
    torch.nn.functional.rms_norm torch.nn.Module.set_submodule
    torch.nn.utils.parametrizations.weight_norm torch.nn.utils.parametrizations._WeightNorm
    torch.Tensor.nbytes torch.Tensor.itemsize
""".split()
LATER = ("materialize_grads", "stack_weights")
"""Arguments of functions of torch."""


def take_away() -> None:
    """Remove names and arguments, and refuse the attributes of types in C."""

    def refuse(*_: Any) -> Any:
        raise AttributeError("torch 2.0.1 does not have it")

    for name in MISSING:
        owner, _, attribute = name.rpartition(".")
        try:
            found = pkgutil.resolve_name(owner)
        except (AttributeError, ImportError):
            continue  # in 2.0.1 itself
        if found is torch.Tensor:
            setattr(found, attribute, property(refuse))
        elif hasattr(found, attribute):
            delattr(found, attribute)
    plain = torch.autograd.grad

    def grad(*args: Any, **settings: Any) -> Any:
        assert not set(LATER) & settings.keys(), settings
        return plain(*args, **settings)

    torch.autograd.grad = grad
    torch.__version__ = torch.torch_version.TorchVersion("2.0.1")


def solve() -> None:
    """A question, a grid, an ensemble, and a file, by both methods."""
    import funcexplain as fe

    generator = torch.Generator().manual_seed(0)
    x0 = torch.randn(2, 6, 3, dtype=torch.float64, generator=generator)
    target = torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64)
    lstm, dense = (Recurrent(kind).double() for kind in (torch.nn.LSTM, torch.nn.GRU))
    for network in (lstm, dense):
        problem = fe.freeze(fe.problem(network, target, x0))
        for method in (fe.adam(lr=0.05), fe.levenberg_marquardt()):
            alone = fe.solve(problem, method, max_steps=20)
            grid = fe.vmap(fe.vmap(problem, x0=torch.stack([x0, -x0])), target=target.expand(3, 3))
            rows = fe.solve(grid, method, max_steps=20, compile=True)
            assert rows.x.shape == (3, 2, *x0.shape)
            assert torch.allclose(rows[1, 0].x, alone.x)
            path = Path(tempfile.mkdtemp(), "solution.safetensors")
            rows.save(path)
            assert torch.equal(fe.load(path).x, rows.x)
    models = fe.stack([lstm, Recurrent(torch.nn.LSTM).double()])
    both = fe.solve(fe.consensus(fe.problem(models, target, x0)), fe.adam(), max_steps=3)
    assert both.weights.isfinite().all()

    def fails(state: Any, info: Any) -> None:
        raise ValueError("of the caller")

    with pytest.raises(ValueError, match="of the caller"):
        fe.solve(grid, fe.adam(), callback=fails, max_steps=3)


class Recurrent(torch.nn.Module):
    """A recurrent allocator."""

    def __init__(self, kind: Any) -> None:
        super().__init__()
        self.days, self.head = kind(6, 4, batch_first=True), torch.nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        days, _ = self.days(x.transpose(1, 2).flatten(2))
        return torch.softmax(self.head(days[:, -1]), -1)


if __name__ == "__main__":
    take_away()
    solve()
