"""The ways to answer all questions of a case in torch. Each delivers the same from a whole solve.

That is the windows, the losses of all steps, and the loss of the final window, which takes one more
evaluation of the network; only the original, as it is, leaves that one out.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

import funcexplain as fe
from tests.benchmarks.catalogue import LR, WIDTH, Case, make_network, make_questions

SAMPLE = 4  # questions that the original, which takes one after the other, is timed on


class Answer(NamedTuple):
    """Losses of the final windows, ``(problems,)``, and the most steps that one took."""

    losses: NDArray[np.floating[Any]]
    num_steps: int


class Way(NamedTuple):
    """A framework made ready for a case.

    Attributes:
        run: one whole solve; this is what is timed.
        read: the answer, from what ``run`` returned; not timed.
        problems: questions that ``run`` answers.
    """

    run: Callable[[], Any]
    read: Callable[[Any], Answer]
    problems: int


def make_tensors(case: Case) -> tuple[nn.Module, Tensor, Tensor]:
    """Network, targets and starts of a case."""
    targets, starts = map(torch.from_numpy, make_questions(case))
    return make_network(case.network, case.dtype), targets, starts


def solved(case: Case, compile: bool) -> Way:
    """This package: one question, or a grid of them."""
    network, targets, starts = make_tensors(case)
    question = fe.problem(network, targets[0], starts[0])
    if case.problems > 1:
        question = fe.vmap(question, target=targets, x0=starts)

    def run() -> fe.Solution:
        return fe.solve(question, fe.adam(LR), max_steps=case.steps, compile=compile)

    def read(solution: fe.Solution) -> Answer:
        steps = torch.as_tensor(solution.num_steps)
        return Answer(solution.loss.detach().reshape(-1).numpy(), int(steps.max()))

    return Way(run, read, case.problems)


def original(case: Case) -> Way:
    """deepdow's function, question by question, on a sample of them."""
    from deepdow.explain import gradient_wrt_input

    network, targets, starts = make_tensors(case)
    sample = min(SAMPLE, case.problems)
    # The original switches to training mode, where dropout would make every solve another one.
    network.train = lambda mode=True: network  # type: ignore[method-assign]
    dtype = getattr(torch, case.dtype)

    def run() -> list[Tensor]:
        return [
            gradient_wrt_input(network, target, x, n_iter=case.steps, lr=LR, verbose=False, dtype=dtype)[
                0
            ]
            for target, x in zip(targets[:sample], starts[:sample], strict=True)
        ]

    def read(windows: list[Tensor]) -> Answer:
        with torch.no_grad():
            weights = torch.cat([network(x[None]) for x in windows])
        losses = ((weights - targets[:sample]) ** 2).mean(-1)
        return Answer(losses.numpy(), case.steps)

    return Way(run, read, sample)


def batched(case: Case) -> Way:
    """What one would write by hand: the network's own sample dimension, Adam in place."""
    network, targets, starts = make_tensors(case)
    network.requires_grad_(False)  # spares the gradients of the parameters, which nobody wants

    def losses_of(x: Tensor) -> Tensor:
        return ((network(x) - targets) ** 2).mean(-1)

    def run() -> tuple[Tensor, Tensor, Tensor]:
        x = starts.clone().requires_grad_()
        mean, square, root = torch.zeros_like(x), torch.zeros_like(x), torch.empty_like(x)
        losses = []
        for step in range(1, case.steps + 1):
            values = losses_of(x)
            losses.append(values.detach())
            gradient = torch.zeros_like(x)
            if values.requires_grad:
                (gradient,) = torch.autograd.grad(values.sum(), x)
            with torch.no_grad():
                mean.lerp_(gradient, 0.1)
                square.mul_(0.999).addcmul_(gradient, gradient, value=0.001)
                # Adam's two corrections, folded into the step size and eps.
                correction = (1 - 0.999**step) ** 0.5
                torch.sqrt(square, out=root).add_(1e-8 * correction)
                x.addcdiv_(mean, root, value=-LR * correction / (1 - 0.9**step))
        with torch.no_grad():
            return x.detach(), losses_of(x), torch.stack(losses)

    return Way(run, lambda out: Answer(out[1].numpy(), case.steps), case.problems)


def limit(case: Case) -> list[Way]:
    """What the machine itself takes for a part of the step that no program can leave out.

    For the dense network these are the products with its matrices, forwards and back to the input, by
    torch's own kernels; with rows in pieces of several sizes, of which the fastest counts. For all other
    networks it is one pass over the state of the search, the window and Adam's two means, that reads and
    writes it: a bound, but far below what a network costs. With few problems most of either is the time
    to call torch, which a compiled program does not need.
    """
    if case.network == "mlp":
        pieces = {min(case.problems, size) for size in (128, 512, case.problems)}
        return [repeated(products(case, size), case) for size in sorted(pieces)]
    state = torch.ones(3, case.problems * WIDTH, dtype=getattr(torch, case.dtype))
    return [repeated(state.neg_, case)]


def products(case: Case, piece: int) -> Callable[[], None]:
    """A step's products with the matrices of the dense network; rows stay in the cache."""
    network = make_network(case.network, case.dtype)
    matrices = [part.weight.detach() for part in network.modules() if isinstance(part, nn.Linear)]
    calls = []
    for rows in [piece] * (case.problems // piece) + [case.problems % piece]:
        for factor in [side for matrix in matrices for side in (matrix.t(), matrix)] if rows else []:
            left, out = factor.new_ones(rows, factor.shape[0]), factor.new_empty(rows, factor.shape[1])
            if rows == 1:
                calls.append(partial(torch.mv, factor.t(), left[0], out=out[0]))
            else:
                calls.append(partial(torch.mm, left, factor, out=out))

    def step() -> None:
        for call in calls:
            call()

    return step


def repeated(step: Callable[[], Any], case: Case) -> Way:
    def run() -> None:
        for _ in range(case.steps):
            step()

    return Way(run, lambda _: Answer(np.empty(0), case.steps), case.problems)


# Of several ways to answer, the fastest counts.
FRAMEWORKS: dict[str, Callable[[Case], list[Way]]] = {
    "eager": lambda case: [solved(case, compile=False)],
    "compiled": lambda case: [solved(case, compile=True)],
    "original": lambda case: [original(case)],
    "batched": lambda case: [batched(case)],
    "limit": limit,
}
