"""Drop-in for ``deepdow.explain.gradient_wrt_input``: same signature, results and printed lines.

Intended differences: the caller's model is untouched, ``n_iter=0`` works, gradients are right
where torch's are wrong, and the returned window is detached. Buffers that a network updates in training
mode (the power iteration of spectral normalization) are reset at every iteration, and invalid input
(NaN, a target of another length) raises.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase

from funcexplain.networks.functional import functionalize
from funcexplain.networks.network import SEED, bound, deferred_interrupts, raise_repeated
from funcexplain.networks.norms import contiguous_cotangents
from funcexplain.problems.checks import check_allocation, check_count, check_is_tensor, check_shape
from funcexplain.problems.problem import problem
from funcexplain.problems.transforms import zero_masked
from funcexplain.solvers.loop import run
from funcexplain.solvers.optimizers import adam
from funcexplain.solvers.state import Stopping
from funcexplain.solvers.step import make_plain_step

_PRINT_EVERY = 50


def gradient_wrt_input(
    model: nn.Module,
    target_weights: Tensor,
    initial_guess: Tensor,
    n_iter: int = 100,
    mask: Tensor | None = None,
    lr: float = 1e-1,
    verbose: bool = True,
    device: torch.device | None = None,
    dtype: torch.dtype | None = None,
) -> tuple[Tensor, list[float]]:
    """Find an input for which the model's allocation is close to the target, as deepdow does.

    Adam on ``mean((model(x * mask) - target)**2)`` with the model in train mode, so that dropout draws
    from torch's global generator: the same ``torch.manual_seed`` gives the same numbers as the
    original. New code should use `explain`.

    Args:
        model: network from ``(n_samples, C, L, A)`` to weights ``(n_samples, A)``.
        target_weights: allocation to reach, shape ``(A,)``.
        initial_guess: window where the search starts, shape ``(C, L, A)``.
        n_iter: number of updates.
        mask: True where an entry may change; the network sees zeros elsewhere, as in the original, and
            the returned ``x`` holds the initial guess there.
        lr: step size of Adam.
        verbose: print a line every 50 iterations, and one at the end.
        device: device to compute on; ``None`` is the CPU.
        dtype: dtype to compute in; ``None`` is float32.

    Returns:
        ``(x, hist)``: the window after the last update, and the loss before each update.

    Raises:
        ValueError: if the mask has another shape than the initial guess, or batch normalization has one
            value per channel.
        TypeError: if the mask is not a tensor.
        KeyboardInterrupt: after Ctrl-C, as the original does.

    Example:
        >>> import torch, funcexplain as fe
        >>> network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Softmax(-1))
        >>> guess, target = torch.zeros(1, 1, 2), torch.tensor([0.9, 0.1])
        >>> x, hist = fe.gradient_wrt_input(network, target, guess, n_iter=60)
        Starting optimization
        50-th iteration, loss: 0.0015
        Optimization done, final loss: 0.0008
        >>> x.shape, len(hist)
        (torch.Size([1, 1, 2]), 60)

    References:
        J. Krepl, deepdow 0.2.3, https://github.com/jankrepl/deepdow
    """
    check_count("gradient_wrt_input", "n_iter", n_iter)
    if not isinstance(model, nn.Module):
        raise TypeError(
            f"gradient_wrt_input: model must be a torch.nn.Module, got {type(model).__name__}"
        )
    check_is_tensor("gradient_wrt_input", "target_weights", target_weights)
    check_is_tensor("gradient_wrt_input", "initial_guess", initial_guess)
    if mask is not None:
        check_is_tensor("gradient_wrt_input", "mask", mask)
        check_shape("gradient_wrt_input", "mask", mask, initial_guess.shape, "that of initial_guess")
    place, precision = device or torch.device("cpu"), dtype or torch.float32
    # Only the rules that correct gradients: convex layers keep the original's solver.
    rules = {_NormBase: contiguous_cotangents, _BatchNorm: _use_sample_statistics}
    apply, params = functionalize(model, train=True, rules=rules)
    del params[SEED]  # dropout then draws from torch's global generator, as in the original
    params = {n: p.to(place, precision if p.is_floating_point() else p.dtype) for n, p in params.items()}
    guess = initial_guess.to(place, precision)
    target = check_allocation("gradient_wrt_input", target_weights.to(place, precision), guess)
    # The original accepts unreachable targets; equal weights stand in for them in the checks.
    equal = torch.full_like(target, 1.0 / len(target))
    question = problem((apply, params), equal, guess, mask=None if mask is None else mask.bool())
    question = zero_masked(replace(question, args={**question.args, "target": target}))
    hist: list[float] = []
    raise_repeated()
    with deferred_interrupts(), torch.no_grad(), bound(question.apply, question.args["params"]):
        init, step = make_plain_step(question, adam(lr=lr), Stopping())
        state = init(question.args)
        for done in range(0, n_iter, _PRINT_EVERY):
            if verbose:
                line = f"{done}-th iteration, loss: {hist[-1]:.4f}" if done else "Starting optimization"
                print(line)
            steps = min(_PRINT_EVERY, n_iter - done)
            state, info = run(lambda _: state, step, question.args, steps)  # noqa: B023 (called at once)
            hist += info.loss.tolist()
    if verbose and hist:
        print(f"Optimization done, final loss: {hist[-1]:.4f}")
    return state.z, hist


def _use_sample_statistics(module: nn.Module) -> nn.Module:
    """Let batch normalization use the statistics of its one sample, as the original does."""
    for name in ("running_mean", "running_var", "num_batches_tracked"):
        module._buffers[name] = None
    return contiguous_cotangents(module)
