"""What a model says of each next token: its negative log-likelihood, for training, scoring and evaluation,
and the length of its error vector.

B rows, S = T + 1 tokens of a row, T positions, D model width, V vocabulary (padded), C positions of
a chunk, N chunks.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
from jax.sharding import reshard

from jaxprune.model import sharding
from jaxprune.model.linear import gathered_once, product
from jaxprune.model.transformer import Transformer


def next_token_nll(model: Transformer, tokens_BS: jax.Array) -> jax.Array:
    """-log p(tokens_BS[:, t + 1] | tokens_BS[:, : t + 1]), [B, T] float32, in nats.

    Logits exist for `loss_chunk` positions of each row at a time and are made again for the backward
    pass, so that [B, T, V] never exists. Call it inside `jax.set_mesh(mesh)`; rows come out as BATCH.

    Raises:
      ValueError: no mesh is set, the rows do not divide over it, or they are longer than the model's
        learned positions.
    """
    return _of_targets(_nll, model, tokens_BS)


def next_token_error(model: Transformer, tokens_BS: jax.Array) -> jax.Array:
    """|| p(. | tokens_BS[:, : t + 1]) - onehot(tokens_BS[:, t + 1]) ||_2, [B, T] float32, from 0 to sqrt 2.

    As `next_token_nll` otherwise.
    """
    return _of_targets(_error, model, tokens_BS)


def _nll(logits_BCV: jax.Array, is_target_BCV: jax.Array) -> jax.Array:
    # A comparison and a sum, because a lookup would gather the vocabulary's parts.
    chosen_BC = jnp.where(is_target_BCV, logits_BCV, 0.0).sum(axis=-1)
    return jax.nn.logsumexp(logits_BCV, axis=-1) - chosen_BC


def _error(logits_BCV: jax.Array, is_target_BCV: jax.Array) -> jax.Array:
    # Not sum p^2 - 2 p_y + 1, which cancels where p_y is near 1.
    p_BCV = jnp.exp(logits_BCV - jax.nn.logsumexp(logits_BCV, axis=-1, keepdims=True))
    return jnp.sqrt(jnp.square(p_BCV - is_target_BCV).sum(axis=-1))


def _of_targets(
    of: Callable[[jax.Array, jax.Array], jax.Array], model: Transformer, tokens_BS: jax.Array
) -> jax.Array:
    """`of`(logits_BCV, is_target_BCV), [B, C], of every target, chunk by chunk."""
    _check(model, tokens_BS)
    tokens_BS = reshard(tokens_BS, sharding.ACT_BT)
    hidden_BTD, target_BT = model(tokens_BS[:, :-1]), tokens_BS[:, 1:]
    weight_DV = gathered_once(model.unembedding())

    def of_chunk(hidden_BCD: jax.Array, target_BC: jax.Array) -> jax.Array:
        logits_BCV = product(hidden_BCD, weight_DV, jnp.float32)
        entry_V = jnp.arange(logits_BCV.shape[-1], out_sharding=P("tensor"))
        logits_BCV = jnp.where(entry_V < model.vocab_size, logits_BCV, -jnp.inf)
        return of(logits_BCV, entry_V == target_BC[..., None])

    T, chunk = target_BT.shape[1], model.model.loss_chunk
    if chunk == 0 or chunk >= T:
        return of_chunk(hidden_BTD, target_BT)  # one chunk: keeping its logits costs no more than making them
    of_chunk = jax.checkpoint(of_chunk)
    whole = T - T % chunk

    def chunks(x: jax.Array) -> jax.Array:
        B, _, *D = x.shape
        spec = P(sharding.ROWS, *[None] * (x.ndim))
        return jnp.moveaxis(
            jnp.reshape(x[:, :whole], (B, whole // chunk, chunk, *D), out_sharding=spec), 1, 0
        )

    _, y_NBC = jax.lax.scan(
        lambda _, xs: (None, of_chunk(*xs)), None, (chunks(hidden_BTD), chunks(target_BT))
    )
    y_BT = jnp.reshape(jnp.moveaxis(y_NBC, 0, 1), (-1, whole), out_sharding=sharding.ACT_BT)
    if whole == T:
        return y_BT
    return jnp.concatenate((y_BT, of_chunk(hidden_BTD[:, whole:], target_BT[:, whole:])), axis=1)


def _check(model: Transformer, tokens_BS: jax.Array) -> None:
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        raise ValueError("next_token_nll needs a mesh: call it inside `with jax.set_mesh(mesh):`")
    rows, parts = tokens_BS.shape[0], mesh.shape["replica"] * mesh.shape["fsdp"]
    if rows % parts:
        raise ValueError(
            f"{rows} rows do not divide over mesh replica x fsdp = {parts}: make them a multiple of {parts}"
        )
    length, context = tokens_BS.shape[1] - 1, model.model.context
    if model.position_TD is not None and length > context:
        raise ValueError(
            f"rows of {length} positions are longer than the {context} learned positions of the model: "
            f"cut them to {context}"
        )
