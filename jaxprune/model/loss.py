"""Next-token negative log-likelihood: what training, scoring and evaluation all call.

B rows, S = T + 1 tokens of a row, T positions, D model width, V vocabulary (padded), C positions of
a chunk, N chunks.
"""

from __future__ import annotations

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
    _check(model, tokens_BS)
    tokens_BS = reshard(tokens_BS, sharding.ACT_BT)
    hidden_BTD, target_BT = model(tokens_BS[:, :-1]), tokens_BS[:, 1:]
    weight_DV = gathered_once(model.unembedding())

    def nll(hidden_BCD: jax.Array, target_BC: jax.Array) -> jax.Array:
        logits_BCV = product(hidden_BCD, weight_DV, jnp.float32)
        entry_V = jnp.arange(logits_BCV.shape[-1], out_sharding=P("tensor"))
        logits_BCV = jnp.where(entry_V < model.vocab_size, logits_BCV, -jnp.inf)
        # A comparison and a sum, because a lookup would gather the vocabulary's parts.
        chosen_BC = jnp.where(entry_V == target_BC[..., None], logits_BCV, 0.0).sum(axis=-1)
        return jax.nn.logsumexp(logits_BCV, axis=-1) - chosen_BC

    T, chunk = target_BT.shape[1], model.model.loss_chunk
    if chunk == 0 or chunk >= T:
        return nll(hidden_BTD, target_BT)  # one chunk: keeping its logits costs no more than making them
    nll = jax.checkpoint(nll)
    whole = T - T % chunk

    def chunks(x: jax.Array) -> jax.Array:
        B, _, *D = x.shape
        spec = P(sharding.ROWS, *[None] * (x.ndim))
        return jnp.moveaxis(
            jnp.reshape(x[:, :whole], (B, whole // chunk, chunk, *D), out_sharding=spec), 1, 0
        )

    _, nll_NBC = jax.lax.scan(lambda _, xs: (None, nll(*xs)), None, (chunks(hidden_BTD), chunks(target_BT)))
    nll_BT = jnp.reshape(jnp.moveaxis(nll_NBC, 0, 1), (-1, whole), out_sharding=sharding.ACT_BT)
    if whole == T:
        return nll_BT
    return jnp.concatenate((nll_BT, nll(hidden_BTD[:, whole:], target_BT[:, whole:])), axis=1)


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
