"""TorchScript and ``torch.export`` programs as networks or as their parts, through `opaque`.

Such a program runs outside of Python or is traced for given sizes. torch.func therefore meets operations
that it cannot map, so mapped rows are folded into the program's own batch; a program with a batch of
fixed size runs one row at a time (see `opaque`). Its parameters keep their names.
"""

from __future__ import annotations

import contextlib
import copy
from typing import Any

from torch import Tensor, fx, jit, nn

from funcexplain.networks.opaque import Opaque
from funcexplain.networks.references import REGISTRIES


def is_foreign(part: nn.Module) -> bool:
    """Whether a module is a TorchScript or ``torch.export`` program."""
    return isinstance(part, jit.ScriptModule) or (
        isinstance(part, fx.GraphModule) and hasattr(part, "validate_inputs")
    )


class Foreign(nn.Module):
    """A program behind `opaque`, with its parameters, buffers and children under their own names."""

    def __init__(self, program: nn.Module, train: bool) -> None:
        super().__init__()
        own = _Scripted(program, train) if isinstance(program, jit.ScriptModule) else _exported(program)
        for name in REGISTRIES:
            self.__dict__[name] = vars(own)[name]
        self.calls = (Opaque(own),)  # in a tuple: its names would begin with "fn"
        self.train(train)

    def forward(self, *inputs: Tensor) -> Any:
        """Call the program."""
        return self.calls[0](*inputs)


class _Scripted(nn.Module):
    """A TorchScript program that reads its parameters and buffers from Python modules of the same names.

    ``functional_call`` cannot put tensors into a program, but they can be assigned to a copy of it.
    """

    def __init__(self, program: nn.Module, train: bool) -> None:
        super().__init__()
        own = copy.deepcopy(program)
        with contextlib.suppress(RuntimeError, AttributeError):  # a frozen program has no mode
            own.train(train)
        self.owners = tuple(own.modules())
        self.shells = (self, *(nn.Module() for _ in self.owners[1:]))
        by_owner = dict(zip(map(id, program.modules()), self.shells, strict=True))
        for part, shell in zip(program.modules(), self.shells, strict=True):
            vars(shell)["_parameters"] = dict(part.named_parameters(recurse=False))
            vars(shell)["_buffers"] = dict(part.named_buffers(recurse=False))
            vars(shell)["_modules"] = {name: by_owner[id(p)] for name, p in part.named_children()}

    def forward(self, *inputs: Tensor) -> Any:
        owner: Any
        for owner, shell in zip(self.owners, self.shells, strict=True):
            for name, tensor in (*shell._parameters.items(), *shell._buffers.items()):
                setattr(owner, name, tensor)
            if hasattr(owner, "_flat_weights"):  # a recurrent layer reads its weights from a list
                owner._flat_weights = [getattr(owner, n) for n in owner._flat_weights_names]
        return self.owners[0](*inputs)


def _exported(program: nn.Module) -> nn.Module:
    """A copy of an exported program, tables and children included."""
    own: nn.Module = object.__new__(type(program))
    vars(own).update(vars(program))
    for name in REGISTRIES:
        vars(own)[name] = dict(vars(program)[name])
    for name, child in program.named_children():
        own._modules[name] = _exported(child)
    return own
