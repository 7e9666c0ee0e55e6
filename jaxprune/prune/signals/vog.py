"""Variance of gradients: how much a model's view of a document changed while it was trained.

Source: Anand et al., Influence Scores at Scale (arXiv 2311.16298), after Agarwal et al. (arXiv 2008.11600). With
g_k the gradient, at checkpoint k of K, of the logit of the true class with respect to the input,
VoG = mean over the input's entries of sqrt((1 / K) sum_k (g_k - mean g)^2). The classifiers of the paper have
one true class; a language model has one a position, and the logit is their sum over the next tokens of the
document's first window. The input is its embedded tokens; entries are positions times width. The paper keeps
high scores. The checkpoints are those that the reference run keeps.

Legend: K checkpoints, B rows of a batch, S = T + 1 tokens of a row, T positions, D model width, V vocabulary.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

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
from jaxprune.model.sharding import make_mesh
from jaxprune.progress import Meter
from jaxprune.prune import models
from jaxprune.prune.forward import of_windows
from jaxprune.prune.shards import Measure
from jaxprune.prune.windows import cut
from jaxprune.train.checkpoint import load_params, saved_steps

_SMALLER = 8  # batches than for scoring: the backward pass keeps what every layer computed


def load(config: Config, workdir: Workdir) -> Measure:
    """Measures documents by the checkpoints that the reference run keeps.

    Raises:
      ValueError: it keeps fewer than two.
    """
    run = workdir.run("reference")
    steps, mesh = saved_steps(run), make_mesh(config.mesh)
    if len(steps) < 2:
        raise ValueError(
            f"the signal vog compares checkpoints, and {run} keeps {len(steps)}: set reference.keep_checkpoints to 2 "
            "or more and reference.checkpoint_every to less than the run's steps, delete that folder, and train it again"
        )
    loaded = [load_params(run, mesh, step) for step in steps]
    graphdef, _, model, _ = loaded[-1]
    return measure_by(
        graphdef,
        [params for _, params, _, _ in loaded],
        mesh,
        context=model.context,
        batch_tokens=config.score.batch_tokens // _SMALLER,
    )


def inputs(workdir: Workdir) -> dict[str, str]:
    """What the table is made from beside the documents.

    Raises:
      ArtifactMissing: the reference is not trained yet.
    """
    reference = models.fingerprint("reference", workdir)
    # Which checkpoints are kept is no part of it: they do not change what is trained.
    return {"reference": reference, "steps": " ".join(map(str, saved_steps(workdir.run("reference"))))}


def measure_by(
    graphdef: nnx.GraphDef,
    checkpoints: Sequence[nnx.State],
    mesh: jax.sharding.Mesh,
    *,
    context: int,
    batch_tokens: int,
) -> Measure:
    """Measures documents by a model's parameters at several times of its training.

    The table holds number and vog (float64; a logit for each unit of the embedding). Only the first `context`
    tokens of a document are looked at.
    """
    with jax.set_mesh(mesh):
        stacked = jax.jit(lambda *trees: jax.tree.map(lambda *x: jnp.stack(x), *trees))(*checkpoints)
    step = functools.partial(_make_step(graphdef), stacked)

    def measure(store: TokenStore, numbers: np.ndarray, progress: Meter) -> pa.Table:
        first = cut(store.offsets_N1, numbers, context).of_documents()
        n_tokens_N = store.offsets_N1[numbers + 1] - store.offsets_N1[numbers] - 1
        vog_N = np.zeros(len(numbers))
        vog_N[first.document_W] = of_windows(
            step,
            store.tokens,
            first,
            mesh,
            context=context,
            batch_tokens=batch_tokens,
            progress=progress,
            size_W=n_tokens_N[first.document_W],
        )
        return pa.table({"number": numbers, "vog": vog_N})

    return measure


def gradient(
    graphdef: nnx.GraphDef, params: nnx.State, tokens_BS: jax.Array, length_B: jax.Array
) -> jax.Array:
    """Of the sum of the first length_B true next tokens' logits by the embedded inputs, [B, T, D] float32."""
    model = nnx.merge(graphdef, params)
    counted_BT = jnp.arange(tokens_BS.shape[1] - 1) < length_B[:, None]
    target_BT = reshard(tokens_BS[:, 1:], sharding.ROWS_BT)
    row_BTD = model.unembedding().T.at[target_BT].get(out_sharding=sharding.ROWS_BTD)
    row_BTD = reshard(row_BTD, sharding.ACT_BTD)

    def logit(x_BTD: jax.Array) -> jax.Array:
        logit_BT = (model.hidden(x_BTD).astype(jnp.float32) * row_BTD).sum(axis=-1)
        return jnp.where(counted_BT, logit_BT, 0.0).sum()  # rows do not see each other

    return jax.grad(logit)(model.embed(tokens_BS[:, :-1])).astype(jnp.float32)


@functools.lru_cache(maxsize=8)
def _make_step(graphdef: nnx.GraphDef) -> Callable[..., jax.Array]:
    """(parameters stacked over K, tokens_BS, length_B) -> VoG of the first length_B targets, [B]."""

    @jax.jit
    def step(stacked: nnx.State, tokens_BS: jax.Array, length_B: jax.Array, start_B: jax.Array) -> jax.Array:
        tokens_BS = reshard(tokens_BS, sharding.ACT_BT)
        n_checkpoints = jax.tree.leaves(stacked)[0].shape[0]

        def add(carry: tuple[jax.Array, jax.Array], at: tuple[jax.Array, nnx.State]) -> tuple:
            """Welford's update: exact where gradients are equal, and only two of them exist at once."""
            (mean_BTD, squares_BTD), (k, params) = carry, at
            g_BTD = gradient(graphdef, params, tokens_BS, length_B)
            change_BTD = g_BTD - mean_BTD
            mean_BTD = mean_BTD + change_BTD / (k + 1)
            return (mean_BTD, squares_BTD + change_BTD * (g_BTD - mean_BTD)), None

        first = gradient(graphdef, jax.tree.map(lambda x: x[0], stacked), tokens_BS, length_B)
        rest = jnp.arange(1, n_checkpoints), jax.tree.map(lambda x: x[1:], stacked)
        (_, squares_BTD), _ = jax.lax.scan(add, (first, jnp.zeros_like(first)), rest)
        deviation_BTD = jnp.sqrt(squares_BTD / n_checkpoints)
        # Behind the document gradients are 0: no target that counts sees it.
        return deviation_BTD.sum(axis=(1, 2)) / (jnp.maximum(length_B, 1) * deviation_BTD.shape[2])

    return step
