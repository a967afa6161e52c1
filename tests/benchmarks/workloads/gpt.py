"""A small language model: a training step of a decoder with causal attention, with Adam."""

# pyright: basic, reportMissingImports=false

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np

from tests.benchmarks.workloads.base import Array, Inputs, Step, Workload, builds_in, torch_training_step

BATCH, LENGTH, VOCABULARY = 16, 64, 65
LAYERS, WIDTH, HEADS = 4, 128, 4
HIDDEN = 4 * WIDTH
HEAD = WIDTH // HEADS
LEARNING_RATE = 1e-3
BETA1, BETA2, EPSILON = 0.9, 0.999, 1e-8
NORM_EPSILON = 1e-5
COMPARED_STEPS = 3
BLOCK = {
    "gamma1": (WIDTH,),
    "beta1": (WIDTH,),
    "w_qkv": (WIDTH, 3 * WIDTH),
    "b_qkv": (3 * WIDTH,),
    "w_out": (WIDTH, WIDTH),
    "b_out": (WIDTH,),
    "gamma2": (WIDTH,),
    "beta2": (WIDTH,),
    "w_up": (WIDTH, HIDDEN),
    "b_up": (HIDDEN,),
    "w_down": (HIDDEN, WIDTH),
    "b_down": (WIDTH,),
}
SHAPES = {
    "tokens": (VOCABULARY, WIDTH),
    "places": (LENGTH, WIDTH),
    **{f"{name}.{layer}": shape for layer in range(LAYERS) for name, shape in BLOCK.items()},
    "gamma": (WIDTH,),
    "beta": (WIDTH,),
    "w": (WIDTH, VOCABULARY),
}


def make_inputs(rng: np.random.Generator) -> Inputs:
    text = rng.integers(0, VOCABULARY, (BATCH, LENGTH + 1)).astype(np.int32)
    inputs: dict[str, Array] = {"x": text[:, :-1].copy(), "t": text[:, 1:].copy()}
    for name, shape in SHAPES.items():
        if len(shape) == 1:
            inputs[name] = np.full(shape, name.startswith("gamma"), np.float32)
        else:
            scale = 0.02 if name in ("tokens", "places") else 1 / np.sqrt(shape[0])
            inputs[name] = (scale * rng.standard_normal(shape)).astype(np.float32)
    return inputs


def _initial(inputs: Inputs) -> dict[str, Array]:
    return {name: inputs[name] for name in SHAPES}


def _block(params: Mapping[str, Any], layer: int) -> list[Any]:
    return [params[f"{name}.{layer}"] for name in BLOCK]


def reference(inputs: Inputs) -> list[tuple[Array, ...]]:
    """Losses of the first steps, with the backward pass written out by hand."""
    params = {name: value.astype(np.float64) for name, value in _initial(inputs).items()}
    first = {name: np.zeros_like(p) for name, p in params.items()}
    second = {name: np.zeros_like(p) for name, p in params.items()}
    losses: list[tuple[Array, ...]] = []
    for step in range(1, COMPARED_STEPS + 1):
        loss, gradients = _loss_and_gradients(params, inputs["x"], inputs["t"])
        losses.append((loss,))
        for name, g in gradients.items():
            first[name] = BETA1 * first[name] + (1 - BETA1) * g
            second[name] = BETA2 * second[name] + (1 - BETA2) * g**2
            scale = np.sqrt(second[name] / (1 - BETA2**step)) + EPSILON
            params[name] = params[name] - LEARNING_RATE * first[name] / (1 - BETA1**step) / scale
    return losses


def _loss_and_gradients(params: Mapping[str, Array], x: Array, t: Array) -> tuple[Array, dict[str, Array]]:
    h = params["tokens"][x] + params["places"]
    kept: list[tuple[Array, ...]] = []
    for layer in range(LAYERS):
        h, values = _forward(h, *_block(params, layer))
        kept.append(values)
    normal, inverse = _normal(h)
    last = normal * params["gamma"] + params["beta"]
    logits = last @ params["w"]
    shifted = logits - logits.max(axis=-1, keepdims=True)
    sums = np.exp(shifted).sum(axis=-1, keepdims=True)
    hot = np.eye(VOCABULARY)[t]
    loss = np.mean(np.log(sums[..., 0]) - (shifted * hot).sum(axis=-1))
    d = (np.exp(shifted) / sums - hot) / t.size
    gradients = {"w": _weights(last, d)}
    d = d @ params["w"].T
    d, gradients["gamma"], gradients["beta"] = _normal_back(d, params["gamma"], normal, inverse)
    for layer in reversed(range(LAYERS)):
        d, found = _backward(d, kept[layer], *_block(params, layer))
        gradients |= {f"{name}.{layer}": g for name, g in zip(BLOCK, found, strict=True)}
    gradients["places"] = d.sum(axis=0)
    gradients["tokens"] = _weights(np.eye(VOCABULARY)[x], d)
    return loss, gradients


def _forward(x: Array, *params: Array) -> tuple[Array, tuple[Array, ...]]:
    gamma1, beta1, w_qkv, b_qkv, w_out, b_out, gamma2, beta2, w_up, b_up, w_down, b_down = params
    normal1, inverse1 = _normal(x)
    q, k, v = _heads((normal1 * gamma1 + beta1) @ w_qkv + b_qkv)
    scores = np.where(np.tri(LENGTH, dtype=bool), q @ k.swapaxes(-1, -2) / np.sqrt(HEAD), -np.inf)
    p = np.exp(scores - scores.max(axis=-1, keepdims=True))
    p /= p.sum(axis=-1, keepdims=True)
    mixed = _merged(p @ v)
    x = x + mixed @ w_out + b_out
    normal2, inverse2 = _normal(x)
    up = (normal2 * gamma2 + beta2) @ w_up + b_up
    active, slope = _gelu(up)
    return x + active @ w_down + b_down, (normal1, inverse1, q, k, v, p, mixed, normal2, inverse2, active, slope)


def _backward(d: Array, kept: tuple[Array, ...], *params: Array) -> tuple[Array, list[Array]]:
    gamma1, beta1, w_qkv, _, w_out, _, gamma2, beta2, w_up, _, w_down, _ = params
    normal1, inverse1, q, k, v, p, mixed, normal2, inverse2, active, slope = kept
    d_up = (d @ w_down.T) * slope
    d_in, d_gamma2, d_beta2 = _normal_back(d_up @ w_up.T, gamma2, normal2, inverse2)
    later = [_weights(normal2 * gamma2 + beta2, d_up), d_up.sum((0, 1)), _weights(active, d), d.sum((0, 1))]
    d = d + d_in
    d_heads = (d @ w_out.T).reshape(BATCH, LENGTH, HEADS, HEAD).swapaxes(1, 2)
    d_p = d_heads @ v.swapaxes(-1, -2)
    d_scores = p * (d_p - (d_p * p).sum(axis=-1, keepdims=True)) / np.sqrt(HEAD)
    parts = (d_scores @ k, d_scores.swapaxes(-1, -2) @ q, p.swapaxes(-1, -2) @ d_heads)
    d_qkv = np.concatenate([_merged(part) for part in parts], axis=-1)
    d_in, d_gamma1, d_beta1 = _normal_back(d_qkv @ w_qkv.T, gamma1, normal1, inverse1)
    earlier = [d_gamma1, d_beta1, _weights(normal1 * gamma1 + beta1, d_qkv), d_qkv.sum((0, 1))]
    return d + d_in, [*earlier, _weights(mixed, d), d.sum((0, 1)), d_gamma2, d_beta2, *later]


def _normal(x: Array) -> tuple[Array, Array]:
    inverse = 1 / np.sqrt(x.var(axis=-1, keepdims=True) + NORM_EPSILON)
    return (x - x.mean(axis=-1, keepdims=True)) * inverse, inverse


def _normal_back(d: Array, gamma: Array, normal: Array, inverse: Array) -> tuple[Array, Array, Array]:
    e = d * gamma
    inner = e - e.mean(axis=-1, keepdims=True) - normal * (e * normal).mean(axis=-1, keepdims=True)
    return inverse * inner, (d * normal).sum((0, 1)), d.sum((0, 1))


def _gelu(x: Array) -> tuple[Array, Array]:
    """Its tanh form and the derivative."""
    c, k = np.sqrt(2 / np.pi), 0.044715
    tanh = np.tanh(c * (x + k * x**3))
    return 0.5 * x * (1 + tanh), 0.5 * (1 + tanh) + 0.5 * x * (1 - tanh**2) * c * (1 + 3 * k * x**2)


def _weights(x: Array, d: Array) -> Array:
    return np.tensordot(x, d, axes=((0, 1), (0, 1)))


def _heads(x: Array) -> Array:
    return x.reshape(BATCH, LENGTH, 3, HEADS, HEAD).transpose(2, 0, 3, 1, 4)


def _merged(x: Array) -> Array:
    return x.swapaxes(1, 2).reshape(BATCH, LENGTH, WIDTH)


def build_symgrad(inputs: Inputs, threads: int) -> Step:
    import symgrad as sg

    g = sg.Graph()
    x = g.input("x", inputs["x"].shape, sg.int32)
    t = g.input("t", inputs["t"].shape, sg.int32)
    params = {name: g.param(name, value) for name, value in _initial(inputs).items()}
    h = sg.nn.embedding(params["tokens"], x) + params["places"]
    for layer in range(LAYERS):
        gamma1, beta1, w_qkv, b_qkv, w_out, b_out, gamma2, beta2, w_up, b_up, w_down, b_down = _block(params, layer)
        qkv = sg.nn.layer_norm(h, gamma1, beta1, eps=NORM_EPSILON) @ w_qkv + b_qkv
        qkv = sg.permute_dims(sg.reshape(qkv, (BATCH, LENGTH, 3, HEADS, HEAD)), (2, 0, 3, 1, 4))
        mixed = sg.nn.attention(qkv[0], qkv[1], qkv[2], causal=True)
        h = h + sg.reshape(sg.permute_dims(mixed, (0, 2, 1, 3)), (BATCH, LENGTH, WIDTH)) @ w_out + b_out
        up = sg.nn.layer_norm(h, gamma2, beta2, eps=NORM_EPSILON) @ w_up + b_up
        h = h + sg.nn.gelu(up, approximate="tanh") @ w_down + b_down
    logits = sg.nn.layer_norm(h, params["gamma"], params["beta"], eps=NORM_EPSILON) @ params["w"]
    loss = sg.mean(sg.nn.softmax_cross_entropy(logits, t))
    updates = sg.optim.adam(g.params, sg.grad(loss, g.params), lr=LEARNING_RATE, beta1=BETA1, beta2=BETA2, eps=EPSILON)
    train = sg.compile([x, t], loss, updates=updates, threads=threads)
    batch, labels = inputs["x"], inputs["t"]
    return lambda: (train(batch, labels),)


def build_jax(inputs: Inputs, threads: int) -> Step:
    """Rows of all sequences in one matrix, outside the attention: faster here than with an axis of batches."""
    import jax
    import jax.numpy as jnp

    def normal(x: Any, gamma: Any, beta: Any) -> Any:
        inverse = jax.lax.rsqrt(x.var(axis=-1, keepdims=True) + NORM_EPSILON)
        return (x - x.mean(axis=-1, keepdims=True)) * inverse * gamma + beta

    def mean_loss(params: Any, x: Any, t: Any) -> Any:
        h = (params["tokens"][x] + params["places"]).reshape(-1, WIDTH)
        for layer in range(LAYERS):
            gamma1, beta1, w_qkv, b_qkv, w_out, b_out, gamma2, beta2, w_up, b_up, w_down, b_down = _block(params, layer)
            qkv = (normal(h, gamma1, beta1) @ w_qkv + b_qkv).reshape(BATCH, LENGTH, 3, HEADS, HEAD)
            q, k, v = (qkv[:, :, part].swapaxes(1, 2) for part in range(3))
            scores = q @ k.swapaxes(-1, -2) / np.float32(np.sqrt(HEAD))
            p = jax.nn.softmax(jnp.where(np.tri(LENGTH, dtype=bool), scores, -jnp.inf))
            h = h + (p @ v).swapaxes(1, 2).reshape(-1, WIDTH) @ w_out + b_out
            h = h + jax.nn.gelu(normal(h, gamma2, beta2) @ w_up + b_up, approximate=True) @ w_down + b_down
        scores = jax.nn.log_softmax(normal(h, params["gamma"], params["beta"]) @ params["w"])
        return -jnp.mean(jnp.take_along_axis(scores, t.reshape(-1, 1), axis=-1))

    @partial(jax.jit, donate_argnums=0)
    def train(state: Any, x: Any, t: Any) -> Any:
        params, first, second, step = state
        loss, gradients = jax.value_and_grad(mean_loss)(params, x, t)
        step = step + 1
        first = jax.tree.map(lambda m, g: BETA1 * m + (1 - BETA1) * g, first, gradients)
        second = jax.tree.map(lambda v, g: BETA2 * v + (1 - BETA2) * g * g, second, gradients)
        rate, scale = LEARNING_RATE / (1 - BETA1**step), 1 / (1 - BETA2**step)
        params = jax.tree.map(lambda p, m, v: p - rate * m / (jnp.sqrt(v * scale) + EPSILON), params, first, second)
        return (params, first, second, step), loss

    params = {name: jnp.array(value) for name, value in _initial(inputs).items()}
    zeros = [{name: jnp.zeros_like(p) for name, p in params.items()} for _ in range(2)]
    state = (params, *zeros, jnp.float32(0))
    x, t = jnp.asarray(inputs["x"]), jnp.asarray(inputs["t"])

    def step() -> tuple[Any, ...]:
        # The loss and the new state come from one execution: they are ready together.
        nonlocal state
        state, loss = train(state, x, t)
        return (loss.block_until_ready(),)

    return step


def _torch_loss(params: Any, x: Any, t: Any) -> Any:
    from torch.nn import functional

    h = params["tokens"][x] + params["places"]
    for layer in range(LAYERS):
        gamma1, beta1, w_qkv, b_qkv, w_out, b_out, gamma2, beta2, w_up, b_up, w_down, b_down = _block(params, layer)
        qkv = functional.layer_norm(h, (WIDTH,), gamma1, beta1, NORM_EPSILON) @ w_qkv + b_qkv
        q, k, v = qkv.reshape(BATCH, LENGTH, 3, HEADS, HEAD).permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        h = h + mixed.transpose(1, 2).reshape(BATCH, LENGTH, WIDTH) @ w_out + b_out
        up = functional.layer_norm(h, (WIDTH,), gamma2, beta2, NORM_EPSILON) @ w_up + b_up
        h = h + functional.gelu(up, approximate="tanh") @ w_down + b_down
    logits = functional.layer_norm(h, (WIDTH,), params["gamma"], params["beta"], NORM_EPSILON) @ params["w"]
    return functional.cross_entropy(logits.reshape(-1, VOCABULARY), t.reshape(-1))


def build_torch(inputs: Inputs, threads: int) -> Step:
    import torch

    params = {name: torch.from_numpy(value.copy()).requires_grad_() for name, value in _initial(inputs).items()}
    betas = (BETA1, BETA2)
    optimizer = torch.optim.Adam(params.values(), lr=LEARNING_RATE, betas=betas, eps=EPSILON, fused=True)
    x, t = (torch.from_numpy(inputs[name].astype(np.int64)) for name in ("x", "t"))
    return torch_training_step(optimizer, lambda: _torch_loss(params, x, t))


def build_torch_compile(inputs: Inputs, threads: int) -> Step:
    import torch

    params = {name: torch.from_numpy(value.copy()) for name, value in _initial(inputs).items()}
    first, second = ({name: torch.zeros_like(p) for name, p in params.items()} for _ in range(2))
    count = torch.zeros(())
    x, t = (torch.from_numpy(inputs[name].astype(np.int64)) for name in ("x", "t"))

    @torch.compile(fullgraph=True)
    def train(params: Any, first: Any, second: Any, count: Any, x: Any, t: Any) -> Any:
        gradients, loss = torch.func.grad_and_value(_torch_loss)(params, x, t)
        count.add_(1)
        rate, scale = LEARNING_RATE / (1 - BETA1**count), 1 / (1 - BETA2**count)
        for name, g in gradients.items():
            first[name].mul_(BETA1).add_(g, alpha=1 - BETA1)
            second[name].mul_(BETA2).addcmul_(g, g, value=1 - BETA2)
            params[name].sub_(rate * first[name] / ((second[name] * scale).sqrt() + EPSILON))
        return loss

    return lambda: (train(params, first, second, count, x, t),)


WORKLOADS = (
    Workload(
        name="gpt",
        summary=f"training step, decoder of {LAYERS} layers, width {WIDTH}, {HEADS} heads, {LENGTH} tokens of "
        f"{VOCABULARY}, batch {BATCH}, gelu, layer norm, causal attention, Adam, float32",
        outputs=("loss",),
        tolerance=1e-5,
        inputs=make_inputs,
        reference=reference,
        builds=builds_in(globals()),
        compared_steps=COMPARED_STEPS,
    ),
)
