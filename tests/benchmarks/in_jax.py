"""The same networks and the same search in JAX: ``jit(vmap(scan))`` with optax's Adam.

Networks are written for one window, as JAX likes them, with the parameters of their torch twins.
Where one has two natural forms, the worker tries both and times the faster one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array, lax

from tests.benchmarks.catalogue import (
    ASSETS,
    CHANNELS,
    GROUPS,
    HEADS,
    HIDDEN,
    LOOKBACK,
    LR,
    Case,
    make_network,
    make_questions,
)
from tests.benchmarks.frameworks import Answer, Way

Params = dict[str, Array]
Apply = Callable[[Params, Array], Array]


def mlp(params: Params, x: Array) -> Array:
    hidden = jax.nn.relu(dense(params, "1", x.reshape(-1)))
    hidden = jax.nn.relu(dense(params, "3", hidden))
    return jax.nn.softmax(dense(params, "5", hidden))


def conv(params: Params, x: Array) -> Array:
    """With XLA's convolution."""
    image = normalize(x, (1, 2))[None]
    hidden = lax.conv_general_dilated(image, params["conv.weight"], (1, 1), ((1, 1), (0, 0)))[0]
    return after_conv(params, hidden)


def conv_by_taps(params: Params, x: Array) -> Array:
    """As one matrix product with three shifted copies of the window."""
    padded = jnp.pad(normalize(x, (1, 2)), ((0, 0), (1, 1), (0, 0)))
    taps = jnp.stack([padded[:, shift : shift + LOOKBACK] for shift in range(3)], 1)
    weight = params["conv.weight"].reshape(HIDDEN, 3 * CHANNELS)
    hidden = weight @ taps.reshape(3 * CHANNELS, LOOKBACK * ASSETS)
    return after_conv(params, hidden.reshape(HIDDEN, LOOKBACK, ASSETS))


def after_conv(params: Params, hidden: Array) -> Array:
    hidden = hidden + params["conv.bias"][:, None, None]
    hidden = normalize(hidden.reshape(GROUPS, -1), 1).reshape(hidden.shape)
    hidden = hidden * params["second.weight"][:, None, None] + params["second.bias"][:, None, None]
    return jax.nn.softmax(jax.nn.relu(hidden).mean((0, 1)))


def lstm(params: Params, x: Array) -> Array:
    def cell(carry: tuple[Array, Array], inputs: Array) -> tuple[tuple[Array, Array], None]:
        hidden, memory = carry
        gates = inputs + hidden @ params["cell.weight_hh_l0"].T
        write, forget, new, show = jnp.split(gates, 4, -1)
        memory = jax.nn.sigmoid(forget) * memory + jax.nn.sigmoid(write) * jnp.tanh(new)
        return (jax.nn.sigmoid(show) * jnp.tanh(memory), memory), None

    bias = params["cell.bias_ih_l0"] + params["cell.bias_hh_l0"]
    inputs = x.transpose(1, 2, 0) @ params["cell.weight_ih_l0"].T + bias
    nothing = jnp.zeros((ASSETS, HIDDEN), x.dtype)
    # Unrolling the days was slower in every size tried, and took up to ten times as long to compile.
    (hidden, _), _ = lax.scan(cell, (nothing, nothing), inputs)
    return jax.nn.softmax(dense(params, "head", hidden)[:, 0])


def transformer(params: Params, x: Array) -> Array:
    days = x.transpose(1, 0, 2).reshape(LOOKBACK, -1)
    width = days.shape[1]
    mixed = days @ params["block.self_attn.in_proj_weight"].T + params["block.self_attn.in_proj_bias"]
    query, key, value = (
        part.reshape(LOOKBACK, HEADS, -1).transpose(1, 0, 2) for part in jnp.split(mixed, 3, -1)
    )
    attention = jax.nn.softmax(query @ key.transpose(0, 2, 1) / (width / HEADS) ** 0.5)
    seen = (attention @ value).transpose(1, 0, 2).reshape(LOOKBACK, width)
    days = layer_norm(params, "block.norm1", days + dense(params, "block.self_attn.out_proj", seen))
    inner = jax.nn.gelu(dense(params, "block.linear1", days), approximate=False)
    days = layer_norm(params, "block.norm2", days + dense(params, "block.linear2", inner))
    return jax.nn.softmax(dense(params, "head", days.mean(0)))


def dense(params: Params, name: str, x: Array) -> Array:
    weight = params[f"{name}.weight"]
    # For one vector, XLA's product with a transposed matrix takes five times as long as this one.
    return (weight @ x if x.ndim == 1 else x @ weight.T) + params[f"{name}.bias"]


def normalize(x: Array, axes: int | tuple[int, ...]) -> Array:
    centered = x - x.mean(axes, keepdims=True)
    return centered * lax.rsqrt((centered**2).mean(axes, keepdims=True) + 1e-5)


def layer_norm(params: Params, name: str, x: Array) -> Array:
    return normalize(x, -1) * params[f"{name}.weight"] + params[f"{name}.bias"]


FORMS: dict[str, tuple[Apply, ...]] = {
    "mlp": (mlp,),
    "conv": (conv, conv_by_taps),
    "lstm": (lstm,),
    "transformer": (transformer,),
}


def in_jax(case: Case) -> list[Way]:
    """The whole search in one compiled program, all questions in one batch; one way for each form."""
    state = make_network(case.network, case.dtype).state_dict()
    params = {name: jnp.asarray(tensor.numpy()) for name, tensor in state.items()}
    targets, starts = map(jnp.asarray, make_questions(case))
    assert starts.dtype == case.dtype, "float64 needs JAX_ENABLE_X64=1"
    if case.problems == 1:  # one question has no batch
        targets, starts = targets[0], starts[0]

    def read(out: tuple[Array, Array, Array]) -> Answer:
        return Answer(np.asarray(out[1]).reshape(-1), case.steps)

    return [
        Way(compile_search(apply, case, params, targets, starts), read, case.problems)
        for apply in FORMS[case.network]
    ]


def compile_search(
    apply: Apply, case: Case, params: Params, targets: Array, starts: Array
) -> Callable[[], Any]:
    optimizer = optax.adam(LR)

    def search(params: Params, target: Array, x0: Array) -> tuple[Array, Array, Array]:
        def loss_of(x: Array) -> Array:
            return ((apply(params, x) - target) ** 2).mean()

        def step(carry: tuple[Array, Any], _: None) -> tuple[tuple[Array, Any], Array]:
            x, state = carry
            loss, gradient = jax.value_and_grad(loss_of)(x)
            updates, state = optimizer.update(gradient, state)
            return (optax.apply_updates(x, updates), state), loss

        (x, _), losses = lax.scan(step, (x0, optimizer.init(x0)), None, length=case.steps)
        return x, loss_of(x), losses

    program = jax.jit(search if case.problems == 1 else jax.vmap(search, in_axes=(None, 0, 0)))
    return lambda: jax.block_until_ready(program(params, targets, starts))
