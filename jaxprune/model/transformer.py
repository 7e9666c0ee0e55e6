"""A decoder-only transformer: modules, initial parameters, their layout.

Two families share it: the pruning paper's MPT (learned positions, LayerNorm, GELU, biases, tied
embeddings; Ankner et al., section 3.1) and a modern one (RoPE, RMSNorm, SwiGLU, grouped queries). What
GPT-2, GPT-NeoX and Llama 3 do otherwise is a setting too. Parameters of the blocks are stacked over
layers, and the blocks run in a scan over them. Matrices are named `weight_` or `table_`, vectors
`scale_` or `bias_`.

B rows, T positions, D model width, V vocabulary (padded), L layers, H query heads, G key and value
heads, C width of a head, R rotary wavelengths (pairs of channels), F MLP width.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import NamedSharding, reshard
from jax.sharding import PartitionSpec as P

from jaxprune import config
from jaxprune.model import attention, sharding
from jaxprune.model.linear import Linear

Keys = Iterator[jax.Array]  # one for each matrix


def padded_vocab(vocab_size: int) -> int:
    """Rows of the embedding: the next multiple of 128, so that it divides and tiles on any mesh."""
    return -(-vocab_size // 128) * 128


def create(
    model: config.Model, vocab_size: int, seed: int, mesh: jax.sharding.Mesh
) -> tuple[nnx.GraphDef, nnx.State]:
    """The model's definition and its initial parameters, float32, laid out on the mesh.

    Every device makes its own part, and the values are bitwise the same on every mesh.

    Raises:
      ValueError: the model does not divide over the mesh, or has no such attention kernel there.
    """
    graphdef, _ = abstract(model, vocab_size, mesh)
    with jax.set_mesh(mesh):
        return graphdef, _initial(model, vocab_size, jax.random.key(seed))


@functools.partial(jax.jit, static_argnums=(0, 1))
def _initial(model: config.Model, vocab_size: int, key: jax.Array) -> nnx.State:
    return nnx.as_pure(nnx.state(Transformer(model, vocab_size, key)))


def abstract(model: config.Model, vocab_size: int, mesh: jax.sharding.Mesh) -> tuple[nnx.GraphDef, nnx.State]:
    """As `create`, with a `jax.ShapeDtypeStruct` and its sharding for each parameter."""
    sharding.check_divides(model, mesh)
    resolved = dataclasses.replace(model, attention=attention.choose(model, mesh))
    with jax.set_mesh(mesh):
        graphdef, params = jax.eval_shape(
            lambda: nnx.split(Transformer(resolved, vocab_size, jax.random.key(0)))
        )
    return graphdef, jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=NamedSharding(mesh, x.sharding.spec)),
        nnx.as_pure(params),
    )


class Transformer(nnx.Module):
    """Tokens to hidden states; `product(hidden, unembedding())` are the logits."""

    def __init__(self, model: config.Model, vocab_size: int, key: jax.Array):
        keys = iter(jax.random.split(key, 9))  # at once: each split alone would take as long to compile
        rows = padded_vocab(vocab_size)
        self.model, self.vocab_size = model, vocab_size
        self.table_VD = _table(keys, (rows, model.d_model), sharding.EMB_VD, model.init_std)
        self.position_TD = (
            _table(keys, (model.context, model.d_model), sharding.POS_TD, model.init_std)
            if model.position == "learned"
            else None
        )
        self.blocks = Block(model, keys)
        self.norm = Norm(model, ())
        self.weight_DV = (
            None
            if model.tie_embeddings
            else _table(keys, (model.d_model, rows), sharding.HEAD_DV, model.init_std)
        )

    def __call__(self, tokens_BT: jax.Array) -> jax.Array:
        """Hidden states after the last norm, [B, T, D] in the model's compute type."""
        return self.hidden(self.embed(tokens_BT))

    def hidden(self, x_BTD: jax.Array) -> jax.Array:
        """As a call, from embedded tokens."""
        graphdef, params = nnx.split(self.blocks)

        def layer(x_BTD: jax.Array, params: nnx.State) -> tuple[jax.Array, None]:
            return nnx.merge(graphdef, params)(x_BTD), None

        x_BTD, _ = jax.lax.scan(
            _rematerialised(layer, self.model.remat), x_BTD, params, unroll=self.model.unroll
        )
        return self.norm(x_BTD)

    def embed(self, tokens_BT: jax.Array) -> jax.Array:
        """The sum of the tables' rows, [B, T, D].

        Each device looks up its part of the width for the rows of all fsdp parts, which then change
        places: what travels is the size of activations, and neither the tables nor their gradients move.
        """
        tokens_BT = reshard(tokens_BT, sharding.ROWS_BT)
        x_BTD = self.table_VD[...].at[tokens_BT].get(out_sharding=sharding.ROWS_BTD)
        if self.position_TD is not None:
            x_BTD = x_BTD + self.position_TD[...][: tokens_BT.shape[1]]
        return reshard(x_BTD.astype(self.model.dtype), sharding.ACT_BTD)

    def unembedding(self) -> jax.Array:
        """weight_DV of the logits, float32."""
        return self.table_VD[...].T if self.weight_DV is None else self.weight_DV[...]


class Block(nnx.Module):
    """One layer. Its parameters are stacked over layers, and a call sees one layer's."""

    def __init__(self, model: config.Model, keys: Keys):
        self.parallel = model.parallel_residual
        self.attention_norm = Norm(model, (model.n_layers,))
        self.attention = Attention(model, keys)
        self.mlp_norm = Norm(model, (model.n_layers,))
        self.mlp = Mlp(model, keys)

    def __call__(self, x_BTD: jax.Array) -> jax.Array:
        y_BTD = x_BTD + self.attention(self.attention_norm(x_BTD))
        return y_BTD + self.mlp(self.mlp_norm(x_BTD if self.parallel else y_BTD))


class Attention(nnx.Module):
    """Causal attention with grouped queries; heads are cut over `tensor`."""

    def __init__(self, model: config.Model, keys: Keys):
        self.model = model
        D, C = model.d_model, model.d_model // model.n_heads
        bias = model.has_attention_bias
        self.query = _inward(model, keys, D, model.n_heads * C, bias)
        self.key = _inward(model, keys, D, model.kv_heads * C, bias)
        self.value = _inward(model, keys, D, model.kv_heads * C, bias)
        self.output = _outward(model, keys, model.n_heads * C, D, bias)

    def __call__(self, x_BTD: jax.Array) -> jax.Array:
        B, T, _ = x_BTD.shape
        q_BTHC, k_BTGC, v_BTGC = (
            jnp.reshape(project(x_BTD), (B, T, heads, -1), out_sharding=sharding.ACT_BTHC)
            for project, heads in (
                (self.query, self.model.n_heads),
                (self.key, self.model.kv_heads),
                (self.value, self.model.kv_heads),
            )
        )
        if self.model.position == "rope":
            frequency_R = frequencies(self.model)
            q_BTHC, k_BTGC = rotate(q_BTHC, frequency_R), rotate(k_BTGC, frequency_R)
        y_BTHC = attention.attend(q_BTHC, k_BTGC, v_BTGC, self.model.attention)
        return self.output(jnp.reshape(y_BTHC, (B, T, -1), out_sharding=sharding.ACT_BTF))


class Mlp(nnx.Module):
    """GELU (exact, or by tanh) or SwiGLU; its width is cut over `tensor`."""

    def __init__(self, model: config.Model, keys: Keys):
        D, F = model.d_model, model.mlp_width
        self.approximate = model.mlp == "gelu_tanh"
        self.gate = _inward(model, keys, D, F, model.bias) if model.mlp == "swiglu" else None
        self.up = _inward(model, keys, D, F, model.bias)
        self.down = _outward(model, keys, F, D, model.bias)

    def __call__(self, x_BTD: jax.Array) -> jax.Array:
        if self.gate is None:
            return self.down(jax.nn.gelu(self.up(x_BTD), approximate=self.approximate))
        return self.down(jax.nn.silu(self.gate(x_BTD)) * self.up(x_BTD))


class Norm(nnx.Module):
    """LayerNorm or RMSNorm over D; statistics in float32."""

    def __init__(self, model: config.Model, stack: tuple[int, ...]):
        self.center, self.eps = model.norm == "layer", model.norm_eps
        shape = (*stack, model.d_model)
        self.scale_D = nnx.Param(jnp.ones(shape))
        self.bias_D = nnx.Param(jnp.zeros(shape)) if self.center and model.bias else None

    def __call__(self, x_BTD: jax.Array) -> jax.Array:
        y_BTD = x_BTD.astype(jnp.float32)
        if self.center:
            y_BTD = y_BTD - y_BTD.mean(axis=-1, keepdims=True)
        y_BTD = y_BTD * jax.lax.rsqrt(jnp.square(y_BTD).mean(axis=-1, keepdims=True) + self.eps)
        y_BTD = y_BTD * self.scale_D[...]
        if self.bias_D is not None:
            y_BTD = y_BTD + self.bias_D[...]
        return y_BTD.astype(x_BTD.dtype)


def frequencies(model: config.Model) -> jax.Array:
    """Radians a position of each pair of channels that rotary positions turn, float32 [R].

    Where `rope_factor` lengthens them, it is as Llama 3.1 does, or all of them ("position interpolation",
    Chen et al., 2023).
    """
    C = model.rope_width
    frequency_R = model.rope_theta ** (-jnp.arange(0, C, 2) / C)
    if model.rope_factor == 1:
        return frequency_R
    kept_R = jnp.zeros(C // 2)
    if model.rope_long:
        high, low = 2 * math.pi / model.rope_short, 2 * math.pi / model.rope_long
        kept_R = jnp.clip((frequency_R - low) / (high - low), 0, 1)
    return frequency_R * (kept_R + (1 - kept_R) / model.rope_factor)


def rotate(x_BTHC: jax.Array, frequency_R: jax.Array) -> jax.Array:
    """Rotary positions (Su et al., 2021): channels r and r + R turn together, as in Llama's checkpoints.

    Channels from 2 R on stay as they are.
    """
    T, R = x_BTHC.shape[1], len(frequency_R)
    angle_TR = jnp.arange(T)[:, None] * frequency_R
    cos_TR, sin_TR = (f(angle_TR)[:, None, :] for f in (jnp.cos, jnp.sin))
    x_BTHC, dtype = x_BTHC.astype(jnp.float32), x_BTHC.dtype
    a, b, *rest = jnp.split(x_BTHC, [R, 2 * R] if x_BTHC.shape[-1] > 2 * R else [R], axis=-1)
    turned = (a * cos_TR - b * sin_TR, b * cos_TR + a * sin_TR)
    return jnp.concatenate((*turned, *rest), axis=-1).astype(dtype)


def _table(keys: Keys, shape: tuple[int, int], spec: P, std: float) -> nnx.Param:
    return nnx.Param(std * jax.random.normal(next(keys), shape, out_sharding=spec))


def _inward(model: config.Model, keys: Keys, width_in: int, width_out: int, bias: bool) -> Linear:
    """A projection from the residual stream."""
    shape = (model.n_layers, width_in, width_out)
    return Linear(next(keys), shape, sharding.IN_LDF, std=model.init_std, bias=bias)


def _outward(model: config.Model, keys: Keys, width_in: int, width_out: int, bias: bool) -> Linear:
    """A projection into the residual stream, which 2 L of them add up in."""
    shape = (model.n_layers, width_in, width_out)
    std = model.init_std / (2 * model.n_layers) ** 0.5
    return Linear(next(keys), shape, sharding.OUT_LFD, std=std, bias=bias)


def _rematerialised(layer: Callable[..., Any], remat: str) -> Callable[..., Any]:
    """`layer` that keeps for its backward pass: everything (none), products of weights (dots), its input (full)."""
    if remat == "none":
        return layer
    keep = jax.checkpoint_policies.save_only_these_names("product")
    return jax.checkpoint(layer, policy=keep if remat == "dots" else None)
