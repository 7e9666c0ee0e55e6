"""Causal attention, by the kernel that suits the devices.

`splash` (Pallas) on TPUs, `cudnn` on NVIDIA GPUs, `xla` elsewhere and in float32. Rows may be padded
on the right and of any length; no kernel sees a mask other than the causal one.

B rows, T positions of queries, S positions of keys, H query heads, G key and value heads,
R = H / G query heads that share a key head, C width of a head.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as splash_mask

from jaxprune import config
from jaxprune.model.linear import precision
from jaxprune.model.sharding import ACT_BTGRC, ACT_BTHC

Kernel = Literal["xla", "cudnn", "splash"]

QUERY_BLOCK = 256  # of the XLA path; on a CPU 128 and 512 are slower at T = 2048


def choose(model: config.Model, mesh: jax.sharding.Mesh) -> Kernel:
    """The kernel that `model.attention` means on the devices of `mesh`.

    `auto` takes a fused kernel only in bfloat16: they multiply in no more than that, whatever they are given.

    Raises:
      ValueError: the named kernel does not run on these devices, or not with this model.
    """
    device, width = mesh.devices.flat[0], model.d_model // model.n_heads
    nvidia = device.platform in ("gpu", "cuda") and "nvidia" in device.device_kind.lower()
    obstacles: dict[Kernel, str | None] = {
        "xla": None,
        "splash": None if device.platform == "tpu" else f"runs on TPUs, and this is {device.device_kind}",
        "cudnn": (
            f"runs on NVIDIA GPUs, and this is {device.device_kind}" if not nvidia
            else f"needs model.dtype bfloat16, and it is {model.dtype}" if model.dtype != "bfloat16"
            else f"needs heads of 8, 16, ... 128 channels, and d_model / n_heads is {width}" if width % 8 or width > 128
            else None
        ),
    }  # fmt: skip
    wanted = model.attention
    if wanted == "auto":
        fused: tuple[Kernel, ...] = ("splash", "cudnn") if model.dtype == "bfloat16" else ()
        for kernel in fused:
            if obstacles[kernel] is None:
                return kernel
        return "xla"
    if obstacles[wanted] is not None:
        raise ValueError(f"model.attention={wanted} {obstacles[wanted]}: set model.attention to auto or xla")
    return wanted


def attend(q_BTHC: jax.Array, k_BTGC: jax.Array, v_BTGC: jax.Array, kernel: str) -> jax.Array:
    """Causal attention, scores scaled by 1 / sqrt(C): [B, T, H, C], in the type and layout of q."""
    assert kernel in ("xla", "cudnn", "splash"), f"{kernel} was not resolved by choose()"
    if kernel == "xla":
        return _xla(q_BTHC, k_BTGC, v_BTGC)
    return _on_each_device(_splash if kernel == "splash" else _cudnn)(q_BTHC, k_BTGC, v_BTGC)


def _on_each_device(kernel: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    """A kernel sees the rows and heads of its device, whole: neither is summed over."""
    return jax.shard_map(kernel, in_specs=(ACT_BTHC,) * 3, out_specs=ACT_BTHC, check_vma=False)


def _cudnn(q_BTHC: jax.Array, k_BTGC: jax.Array, v_BTGC: jax.Array) -> jax.Array:
    return jax.nn.dot_product_attention(q_BTHC, k_BTGC, v_BTGC, is_causal=True, implementation="cudnn")


def _splash(q_BTHC: jax.Array, k_BTGC: jax.Array, v_BTGC: jax.Array) -> jax.Array:
    _, T, H, C = q_BTHC.shape
    padded = -(-T // 128) * 128  # the kernel's blocks; no query sees a key that pads
    block = next(size for size in (512, 256, 128) if padded % size == 0)
    kernel = splash.make_splash_mha(
        splash_mask.MultiHeadMask([splash_mask.CausalMask((padded, padded))] * H),
        block_sizes=splash.BlockSizes(
            block_q=block, block_kv=block,
            block_q_dkv=block, block_kv_dkv=block,
            block_q_dq=block, block_kv_dq=block,
        ),
        head_shards=1,
        q_seq_shards=1,
    )  # fmt: skip

    def headed(x_BTHC: jax.Array) -> jax.Array:
        return jnp.pad(x_BTHC, ((0, 0), (0, padded - T), (0, 0), (0, 0))).swapaxes(1, 2)

    y_BHTC = jax.vmap(kernel)(headed(q_BTHC * C**-0.5), headed(k_BTGC), headed(v_BTGC))
    assert isinstance(y_BHTC, jax.Array)
    return y_BHTC.swapaxes(1, 2)[:, :T]


def _xla(q_BTHC: jax.Array, k_BTGC: jax.Array, v_BTGC: jax.Array) -> jax.Array:
    """In blocks of queries, each with the keys up to its end; scores of one block exist at a time."""
    B, T, H, C = q_BTHC.shape
    G = k_BTGC.shape[2]
    q_BTGRC = jnp.reshape(q_BTHC * C**-0.5, (B, T, G, H // G, C), out_sharding=ACT_BTGRC)
    q_BGRTC = q_BTGRC.transpose(0, 2, 3, 1, 4)
    k_BGSC, v_BGSC = k_BTGC.swapaxes(1, 2), v_BTGC.swapaxes(1, 2)
    # One block keeps its scores for the backward pass; of several, each makes them again.
    block = _block if T <= QUERY_BLOCK else jax.checkpoint(_block)
    ends = [*range(QUERY_BLOCK, T, QUERY_BLOCK), T]
    y_BGRTC = jnp.concatenate(
        [
            block(q_BGRTC[:, :, :, start:end], k_BGSC[:, :, :end], v_BGSC[:, :, :end])
            for start, end in zip([0, *ends], ends, strict=False)
        ],
        axis=3,
    )
    return jnp.reshape(y_BGRTC.transpose(0, 3, 1, 2, 4), (B, T, H, C), out_sharding=ACT_BTHC)


def _block(q_BGRTC: jax.Array, k_BGSC: jax.Array, v_BGSC: jax.Array) -> jax.Array:
    """Attention of the last T of S positions."""
    T, S = q_BGRTC.shape[3], k_BGSC.shape[2]
    einsum = functools.partial(
        jnp.einsum, precision=precision(q_BGRTC.dtype), preferred_element_type=jnp.float32
    )
    # Added, not selected: XLA then fuses it with the product (on a CPU, a fifth of the time).
    hidden_TS = jnp.where(jnp.arange(S) <= jnp.arange(S - T, S)[:, None], 0.0, -jnp.inf)
    score_BGRTS = einsum("bgrtc,bgsc->bgrts", q_BGRTC, k_BGSC) + hidden_TS
    top_BGRT1 = jax.lax.stop_gradient(score_BGRTS.max(axis=-1, keepdims=True))
    share_BGRTS = jnp.exp(score_BGRTS - top_BGRT1)
    total_BGRT1 = share_BGRTS.sum(axis=-1, keepdims=True)
    y_BGRTC = einsum("bgrts,bgsc->bgrtc", share_BGRTS.astype(v_BGSC.dtype), v_BGSC)
    return (y_BGRTC / total_BGRT1).astype(q_BGRTC.dtype)
