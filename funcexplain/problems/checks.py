"""Checks of arguments at the public entry points; code below them does not check again.

Every message names the public function (``where``), the argument (``name``), what was expected and what
was found.
"""

from __future__ import annotations

import math
import operator
import os
from collections.abc import Callable, Iterable
from numbers import Integral, Real
from typing import Any

import optree
import torch
from torch import Tensor

FLOATING = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def check_tensor(where: str, name: str, value: Any, *, infinite: bool = False) -> Tensor:
    """Raise unless a value is a dense, finite, floating tensor; return a detached copy.

    ``infinite`` allows infinite entries, but not NaN.
    """
    check_is_tensor(where, name, value)
    check_is_plain(where, name, value)
    if value.dtype not in FLOATING:
        raise TypeError(
            f"{where}: {name} must be floating, got {value.dtype}; call .float() or .double() on it"
        )
    bad = value.isnan() if infinite else ~value.isfinite()
    if bool(bad.any()):
        raise ValueError(
            f"{where}: {name} must {'have no NaN' if infinite else 'be finite'}, got {int(bad.sum())} "
            f"entries of {value.numel()} that are NaN{'' if infinite else ' or infinite'}"
        )
    return value.detach().clone()


def check_is_plain(where: str, name: str, value: Tensor) -> None:
    """Raise if a tensor is inside a torch.func transform, or not dense."""
    # Detaching such a tensor would silently cut its gradient. There is no public test for it.
    if torch._C._functorch.is_functorch_wrapped_tensor(value):
        raise RuntimeError(
            f"{where}: {name} must be a plain tensor, got one inside a torch.func transform; make the "
            "problem outside of it, and map or differentiate fe.run over args"
        )
    check_is_dense(where, name, value)


def check_is_dense(where: str, name: str, value: Tensor) -> None:
    """Raise unless a tensor is dense and holds data."""
    if value.layout is not torch.strided or value.is_nested or value.is_meta:
        kind = "nested" if value.is_nested else "meta" if value.is_meta else value.layout
        raise TypeError(f"{where}: {name} must be a dense tensor that holds data, got a {kind} one")


def check_is_tensor(where: str, name: str, value: Any) -> None:
    """Raise unless a value is a tensor."""
    if not isinstance(value, Tensor):
        raise TypeError(
            f"{where}: {name} must be a torch.Tensor, got {type(value).__name__}; "
            "torch.as_tensor converts arrays"
        )


def check_like(
    where: str, name: str, value: Any, other: Tensor, other_name: str, *, infinite: bool = False
) -> Tensor:
    """Raise unless a tensor has the dtype and device of another; see `check_tensor`."""
    value = check_tensor(where, name, value, infinite=infinite)
    if (value.dtype, value.device) != (other.dtype, other.device):
        raise TypeError(
            f"{where}: {name} must have the dtype and device of {other_name} ({other.dtype}, "
            f"{other.device}), got {value.dtype}, {value.device}; convert one of them first"
        )
    return value


def check_shape(where: str, name: str, value: Tensor, shape: tuple[int, ...], meaning: str) -> Tensor:
    """Raise unless a tensor has a shape; nothing broadcasts silently."""
    if value.shape != shape:
        raise ValueError(
            f"{where}: {name} must have shape {tuple(shape)}, {meaning}, got {tuple(value.shape)}"
        )
    return value


def check_window(where: str, x0: Any) -> Tensor:
    """Raise unless a tensor is one window ``(C, L, A)``; see `check_tensor`."""
    x0 = check_tensor(where, "x0", x0)
    if x0.ndim != 3:
        raise ValueError(
            f"{where}: x0 must be one window of shape (channels, lookback, assets), got "
            f"{tuple(x0.shape)}"
        )
    return x0


def check_mask(where: str, mask: Any, x0: Tensor) -> Tensor:
    """Raise unless a mask is bool and of x0's shape; ``None`` frees every entry."""
    if mask is None:
        return torch.ones_like(x0, dtype=torch.bool)
    if not isinstance(mask, Tensor):
        raise TypeError(
            f"{where}: mask must be a bool tensor (True = free to change), got {type(mask).__name__}; "
            "torch.as_tensor(mask, dtype=torch.bool) converts arrays"
        )
    if mask.dtype is not torch.bool:
        raise TypeError(
            f"{where}: mask must be a bool tensor (True = free to change), got {mask.dtype}; "
            "a 0/1 tensor converts with mask.bool()"
        )
    check_is_dense(where, "mask", mask)
    mask = mask.detach().clone().to(x0.device)
    return check_shape(where, "mask", mask, x0.shape, "that of x0")


def check_datum(where: str, name: str, value: Any, x0: Tensor, *, infinite: bool = False) -> Tensor:
    """A transform's number or tensor as a tensor of x0's dtype that broadcasts to one window."""
    if isinstance(value, bool) or not isinstance(value, Real | Tensor):
        raise TypeError(
            f"{where}: {name} must be a number or a torch.Tensor, got {type(value).__name__}"
        )
    if not isinstance(value, Tensor):
        try:
            value = torch.tensor(float(value), dtype=x0.dtype, device=x0.device)
        except OverflowError:
            raise ValueError(f"{where}: {name} must be finite, got an int above all floats") from None
    value = check_like(where, name, value, x0, "x0", infinite=infinite)
    window = x0.shape[-3:]  # in a grid, row dimensions come first
    try:
        fits = torch.broadcast_shapes(value.shape, window) == window
    except RuntimeError:
        fits = False
    if not fits:
        raise ValueError(
            f"{where}: {name} must broadcast to the shape of x0 {tuple(window)}, "
            f"got {tuple(value.shape)}"
        )
    return value


def check_name(where: str, name: Any) -> str:
    """Raise unless a value can name an entry of ``args``."""
    if not (isinstance(name, str) and name.isidentifier()) or name == "name":
        raise TypeError(
            f"{where}: name must be an identifier other than 'name' (an argument of fe.vmap), got "
            f'{name!r}; name a penalty that has no name of its own, as in name="proximity"'
        )
    return name


def check_strength(where: str, name: str, value: Any, x0: Tensor) -> Tensor:
    """Raise unless a penalty's strength is one number >= 0; see `check_datum`."""
    factor = check_datum(where, "strength", value, x0)
    if factor.ndim != 0 or bool(factor < 0):
        raise ValueError(
            f"{where}: strength must be one number >= 0, got {factor.tolist()}; "
            f"fe.vmap(problem, {name}=strengths) maps over several"
        )
    return factor


def check_number(where: str, name: str, value: Any, *, minimum: float, strict: bool = False) -> float:
    """Raise unless a value is a finite number, at least (``strict``: above) a minimum."""
    bound = f"> {minimum:g}" if strict else f">= {minimum:g}"
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{where}: {name} must be a number {bound}, got {type(value).__name__}")
    try:
        number = float(value)
    except OverflowError:
        raise ValueError(
            f"{where}: {name} must be finite and {bound}, got an int above all floats"
        ) from None
    if not math.isfinite(number) or number < minimum or (strict and number == minimum):
        raise ValueError(f"{where}: {name} must be finite and {bound}, got {value!r}")
    return number


def check_gradients(where: str) -> None:
    """Raise inside ``torch.inference_mode``, where every gradient would silently be zero."""
    if torch.is_inference_mode_enabled():
        raise RuntimeError(
            f"{where}: needs gradients, got torch.inference_mode(); leave it, or use torch.no_grad()"
        )


def check_outside_transforms(where: str) -> None:
    """Raise inside a torch.func transform, which would not see into a search."""
    if torch._C._functorch.peek_interpreter_stack() is not None:
        raise RuntimeError(
            f"{where}: must be called outside of torch.func transforms, got a call inside of one; map "
            "questions with fe.vmap, or map and differentiate fe.run over args"
        )


def check_count(where: str, name: str, value: Any) -> int:
    """Raise unless a value is an integer from 0 to below 2**63."""
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"{where}: {name} must be an int >= 0, got {type(value).__name__}")
    count = int(value)
    if not 0 <= count < 1 << 63:
        raise ValueError(f"{where}: {name} must be >= 0 and below 2**63, got {count}")
    return count


def check_memory(
    where: str, name: str, value: Any, num_bytes: float, device: torch.device, remedy: str = ""
) -> None:
    """Raise if the tensors of an argument do not fit the memory of a device."""
    if num_bytes > _total_memory(device):
        raise ValueError(
            f"{where}: {name} must fit memory, got {value}, which needs {num_bytes / 2**30:.3g} GiB"
            f"{remedy}"
        )


def _total_memory(device: torch.device) -> float:
    """Bytes of memory that a device has, infinite where that is unknown."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[1]
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # not Unix
        return math.inf


def check_positive(where: str, name: str, value: Any) -> int:
    """Raise unless a value is an integer >= 1."""
    count = check_count(where, name, value)
    if count < 1:
        raise ValueError(f"{where}: {name} must be >= 1, got {count}")
    return count


def as_index(item: Any) -> int | None:
    """An integer index, or ``None`` if a value is not an integer; bools are not."""
    if isinstance(item, bool) or getattr(item, "dtype", None) is torch.bool:
        return None
    try:
        return operator.index(item)
    except TypeError:
        return None


def check_callable(where: str, name: str, value: Any) -> None:
    """Raise unless a value can be called."""
    if not callable(value):
        raise TypeError(f"{where}: {name} must be callable, got {type(value).__name__}")


def check_dtype(where: str, dtype: Any) -> None:
    """Raise unless a dtype is floating or ``None``."""
    if dtype is not None and dtype not in FLOATING:
        raise TypeError(f"{where}: dtype must be a floating torch.dtype, got {dtype!r}")


def check_device(where: str, device: Any) -> None:
    """Raise unless a device is available and holds data, or ``None``."""
    try:
        empty = torch.zeros((), device="cpu" if device is None else device)
    except (RuntimeError, AssertionError, TypeError, ValueError) as error:  # torch's choice varies
        reason = str(error).splitlines()[0]
        raise ValueError(f"{where}: device must be available, got {device!r}: {reason}") from None
    if empty.is_meta:
        raise ValueError(f"{where}: device must hold data, got 'meta'")


def check_scale(where: str, scale: Any, x0: Tensor) -> Tensor:
    """Raise unless a scale can be the standard deviation of x0's entries; see `check_datum`."""
    sigma = check_datum(where, "scale", scale, x0)
    if bool((sigma < 0).any()):
        raise ValueError(f"{where}: scale must be >= 0, got a minimum of {sigma.min():g}")
    return sigma


def check_scalar(kind: str, function: Callable[..., Any], value: Any) -> Tensor:
    """Raise unless a loss or penalty returned a floating scalar tensor."""
    if not isinstance(value, Tensor) or value.ndim != 0 or not value.is_floating_point():
        name = getattr(function, "__name__", repr(function))
        got = type(value).__name__
        if isinstance(value, Tensor):
            got = f"shape {tuple(value.shape)}, {value.dtype}"
        raise TypeError(f"{kind} ({name}) must return a floating scalar tensor, got {got}")
    return value


def check_covariance(where: str, value: Any) -> Tensor:
    """Raise unless a value is a covariance ``(..., A, A)``: symmetric and positive definite."""
    cov = check_tensor(where, "cov", value)
    if cov.ndim < 2 or cov.shape[-1] != cov.shape[-2]:
        raise ValueError(f"{where}: cov must be square, got {tuple(cov.shape)}")
    # Relative: daily covariances are about 1e-4, too small for torch's absolute tolerance of 1e-8.
    largest = cov.abs().amax((-2, -1), keepdim=True)
    if bool(((cov - cov.mT).abs() > 1e-4 * largest).any()):
        raise ValueError(f"{where}: cov must be symmetric, got one that is not")
    if bool(torch.linalg.cholesky_ex(cov.double()).info.any()):
        raise ValueError(
            f"{where}: cov must be positive definite, got one that is not; use more observations "
            "than assets, or shrinkage towards a diagonal"
        )
    return cov


def check_allocation(where: str, target: Any, x0: Tensor, count: int | None = None) -> Tensor:
    """Raise unless a target is an allocation of x0's assets, or of ``count`` outputs."""
    if isinstance(target, list | tuple | dict):
        raise TypeError(
            f"{where}: target must be a torch.Tensor of weights or a target of fe.targets, got "
            f"{type(target).__name__}; torch.as_tensor converts numbers, fe.targets.all_of joins targets"
        )
    target = check_like(where, "target", target, x0, "x0")
    meaning = f"one weight per asset of x0 {tuple(x0.shape)}, (channels, lookback, assets)"
    if count is not None:
        return check_shape(where, "target", target, (count,), "one weight for each of outputs")
    if target.shape == (x0.shape[-1] + 1,):
        meaning += '; if the network holds cash, too, name all weights: outputs=[*assets, "CASH"]'
    return check_shape(where, "target", target, x0.shape[-1:], meaning)


def check_names(where: str, assets: Any, count: int, name: str = "assets") -> tuple[str, ...] | None:
    """Raise unless there is one different name for each asset of x0, or for each weight."""
    if assets is None:
        return None
    names = tuple(assets) if isinstance(assets, Iterable) and not isinstance(assets, str) else ()
    if not all(isinstance(text, str) for text in names) or not len(set(names)) == len(names) == count:
        kind = "asset of x0" if name == "assets" else "weight"
        raise ValueError(
            f"{where}: {name} must be {count} different names, one for each {kind}, got {assets!r}"
        )
    return names


def check_outputs(where: str, outputs: Any, assets: tuple[str, ...] | None) -> tuple[str, ...] | None:
    """Names of the weights, with ``...`` for the assets; None for those of the assets."""
    if outputs is None:
        return None
    given = list(outputs) if isinstance(outputs, Iterable) and not isinstance(outputs, str) else []
    if ... in given and assets is None:
        raise ValueError(f"{where}: outputs must be names, since assets have none, got {outputs!r}")
    names = [name for item in given for name in (assets or () if item is ... else (item,))]
    return check_names(where, names, max(1, len(names)), "outputs")


def check_params(params: Any, x0: Tensor) -> None:
    """Raise unless parameters have x0's dtype and device."""
    leaves = [p for p in optree.tree_leaves(params) if isinstance(p, Tensor)]
    devices = {p.device for p in leaves} - {x0.device}
    if devices:
        raise TypeError(
            f"problem: network and x0 must be on one device, got {devices.pop()} and {x0.device}; "
            "move one of them"
        )
    dtypes = {p.dtype for p in leaves if p.is_floating_point()}
    if dtypes and x0.dtype not in dtypes:
        raise TypeError(
            f"problem: network and x0 must have one dtype, got {dtypes.pop()} and {x0.dtype}; convert "
            "x0 and target to the network's; fe.cast(dtype=...) then casts the whole problem"
        )


def check_pair(result: Any) -> tuple[Tensor, Any]:
    """Raise unless an optimizer's update returned updates and a state."""
    pair = result if isinstance(result, tuple | list) and len(result) == 2 else (None, None)
    if not isinstance(pair[0], Tensor):
        got = type(result).__name__
        if isinstance(result, tuple | list):
            got = f"{got} of {', '.join(type(part).__name__ for part in result) or 'nothing'}"
        raise TypeError(
            f"method: update must return a pair (updates, state), updates a tensor, got {got}; an "
            "optimizer without state returns (updates, ())"
        )
    return pair[0], pair[1]
