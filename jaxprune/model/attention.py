"""Causal attention, by the kernel that suits the devices.

B rows, T positions of queries, S positions of keys, H query heads, G key and value heads,
R = H / G query heads that share a key head, C width of a head.
"""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp

from jaxprune import config

Kernel = Literal["xla", "cudnn", "splash"]
QUERY_BLOCK = 256


def choose(model: config.Model, platform: str) -> Kernel:
    return "xla"


def attend(q_BTHC: jax.Array, k_BTGC: jax.Array, v_BTGC: jax.Array, kernel: Kernel) -> jax.Array:
    """Causal attention of q on k and v, scaled by 1 / sqrt(C); returns [B, T, H, C] in q's type."""
    return _xla(q_BTHC, k_BTGC, v_BTGC)


def _xla(q_BTHC: jax.Array, k_BTGC: jax.Array, v_BTGC: jax.Array) -> jax.Array:
    """In blocks of queries, each of which sees only the keys up to its end."""
    length = q_BTHC.shape[1]
    blocks = []
    for start in range(0, length, QUERY_BLOCK):
        end = min(start + QUERY_BLOCK, length)
        blocks.append(_block(q_BTHC[:, start:end], k_BTGC[:, :end], v_BTGC[:, :end]))
    return blocks[0] if len(blocks) == 1 else jnp.concatenate(blocks, axis=1)


def _block(q_BTHC: jax.Array, k_BSGC: jax.Array, v_BSGC: jax.Array) -> jax.Array:
    """Attention of the last T of S positions."""
    B, T, H, C = q_BTHC.shape
    S, G = k_BSGC.shape[1:3]
    q_BTGRC = q_BTHC.reshape(B, T, G, H // G, C)
    score_BGRTS = jnp.einsum("btgrc,bsgc->bgrts", q_BTGRC, k_BSGC, preferred_element_type=jnp.float32)
    seen_TS = jnp.arange(S) <= jnp.arange(S - T, S)[:, None]
    score_BGRTS = jnp.where(seen_TS, score_BGRTS * C**-0.5, -jnp.inf)
    share_BGRTS = jax.nn.softmax(score_BGRTS, axis=-1).astype(v_BSGC.dtype)
    return jnp.einsum("bgrts,bsgc->btgrc", share_BGRTS, v_BSGC).reshape(B, T, H, C)
