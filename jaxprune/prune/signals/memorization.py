"""Memorisation: how much of a document a model says word for word when it is given the beginning.

Source: Marion et al., When Less is More (arXiv 2309.04564), section 3, after Biderman et al.: of a prompt of M
tokens the model's greedy continuation (the likeliest token, again and again) is compared with the N tokens
that follow in the document, and the score is the share of them that it hits, place by place; M = N = 32. The
prompt is the document's first 32 tokens, after the end-of-document token. The paper keeps the least
memorised. A document of fewer than 64 tokens has no score: null. One costs 32 forward passes over its first 64
tokens, 2,048 tokens in all: more than its NLL, unless it is longer.

Legend: B rows of a batch, S = 1 + M + N tokens of a row, T positions, D model width, V vocabulary (padded).
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pyarrow as pa
from flax import nnx
from jax.sharding import reshard

from jaxprune.artifact import Workdir
from jaxprune.config import Config
from jaxprune.data.store import TokenStore
from jaxprune.model import sharding
from jaxprune.model.linear import product
from jaxprune.progress import Meter
from jaxprune.prune import models
from jaxprune.prune.forward import of_windows
from jaxprune.prune.shards import Measure
from jaxprune.prune.translation import Translation
from jaxprune.prune.windows import Windows

PROMPT = 32
CONTINUATION = 32
LENGTH = PROMPT + CONTINUATION  # positions of a row


def load(config: Config, workdir: Workdir) -> Measure:
    """Measures documents by the model `score.model`, in its own tokens.

    Raises:
      ArtifactMissing, ValueError: as `models.load`; the model's context is too short.
    """
    model = models.load(config.score.model, config, workdir)
    return measure_by(
        model.graphdef,
        model.params,
        model.mesh,
        context=model.context,
        batch_tokens=config.score.batch_tokens,
        translation=None
        if model.encoder is None
        else Translation(encoder=model.encoder, vocab_size=model.vocab_size),
    )


def measure_by(
    graphdef: nnx.GraphDef,
    params: nnx.State,
    mesh: jax.sharding.Mesh,
    *,
    context: int,
    batch_tokens: int,
    translation: Translation | None = None,
) -> Measure:
    """Measures documents by a model on a mesh; the settings are those of `Scorer`.

    The table holds number and memorization (a share, float64; null for documents that are too short).

    Raises:
      ValueError: the model's context is too short.
    """
    check_context(context)
    step = functools.partial(_make_step(graphdef), params)

    def measure(store: TokenStore, numbers: np.ndarray, progress: Meter) -> pa.Table:
        tokens, offsets_N1, places = store.tokens, store.offsets_N1, numbers
        if translation is not None:
            tokens, offsets_N1 = translation(store, numbers)
            places = np.arange(len(numbers))
        is_long_N = offsets_N1[places + 1] - offsets_N1[places] > LENGTH
        long = np.flatnonzero(is_long_N)
        rows = Windows(
            document_W=long,
            begin_W=offsets_N1[places[long]],
            start_W=np.zeros(len(long), np.int64),
            length_W=np.full(len(long), LENGTH),
        )
        n_tokens_N = store.offsets_N1[numbers + 1] - store.offsets_N1[numbers] - 1
        share_N = np.zeros(len(numbers))
        share_N[long] = of_windows(
            step,
            tokens,
            rows,
            mesh,
            context=LENGTH,
            batch_tokens=batch_tokens,
            progress=progress,
            size_W=n_tokens_N[long],
        )
        progress.add(int(n_tokens_N[~is_long_N].sum()))
        return pa.table({"number": numbers, "memorization": pa.array(share_N, mask=~is_long_N)})

    return measure


def check_context(context: int) -> None:
    """Raises ValueError unless a model of this context can be asked."""
    if context < LENGTH:
        raise ValueError(
            f"the signal memorization reads {LENGTH} tokens, more than the model's context of {context}: "
            "score with a model of a longer context, or leave the signal out"
        )


@functools.lru_cache(maxsize=8)
def _make_step(graphdef: nnx.GraphDef) -> Callable[..., jax.Array]:
    """(params, tokens_BS) -> the share of the continuation that is hit, [B]."""

    @jax.jit
    def step(params: nnx.State, tokens_BS: jax.Array, *_: jax.Array) -> jax.Array:
        model = nnx.merge(graphdef, params)
        tokens_BS = reshard(tokens_BS, sharding.ACT_BT)
        place_S = jnp.arange(LENGTH + 1)

        def extend(position: jax.Array, said_BS: jax.Array) -> jax.Array:
            # What stands behind `position` is not seen by it: attention is causal.
            hidden_BTD = model(said_BS[:, :-1])
            last_B1D = jax.lax.dynamic_slice_in_dim(hidden_BTD, position, 1, axis=1)
            logits_B1V = product(last_B1D, model.unembedding(), jnp.float32)
            logits_B1V = reshard(logits_B1V, sharding.ACT_BTD)  # whole: small, and `argmax` is not cut
            logits_B1V = logits_B1V[..., : model.vocab_size]
            is_known_B1 = jnp.isfinite(logits_B1V.max(axis=-1))
            token_B1 = jnp.where(is_known_B1, jnp.argmax(logits_B1V, axis=-1), -1)
            return jnp.where(place_S == position + 1, token_B1, said_BS)

        said_BS = jax.lax.fori_loop(PROMPT, LENGTH, extend, tokens_BS)
        share_B = (said_BS == tokens_BS)[:, PROMPT + 1 :].mean(axis=1)
        return jnp.where((said_BS < 0).any(axis=1), jnp.nan, share_B)  # logits that are no numbers

    return step
