"""Variance of gradients: how much a model's view of a document changed while it was trained.

Source: Anand et al., Influence Scores at Scale (arXiv 2311.16298), after Agarwal et al. (arXiv 2008.11600). With
g_k the gradient, at checkpoint k of K, of the logit of the true class with respect to the input,
VoG = mean over the input's entries of sqrt((1 / K) sum_k (g_k - mean g)^2). The classifiers of the paper have
one true class; a language model has one a position, and the logit is their sum over the next tokens of the
document's first window. The input is its embedded tokens; entries are positions times width. The paper keeps
high scores. The checkpoints are of the reference run, `score.vog_checkpoints` of them, evenly spaced up to its end.

Legend: K checkpoints, B rows of a batch, S = T + 1 tokens of a row, T positions, D model width, V vocabulary.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import pyarrow as pa
from flax import nnx
from jax.sharding import reshard

from jaxprune.artifact import Workdir, require
from jaxprune.config import Config
from jaxprune.data.store import TokenStore
from jaxprune.model import sharding
from jaxprune.model.sharding import make_mesh
from jaxprune.progress import Meter
from jaxprune.prune.forward import of_windows
from jaxprune.prune.shards import Measure
from jaxprune.prune.windows import cut
from jaxprune.train.checkpoint import described, load_params, saved_steps

_SMALLER = 8  # batches than for scoring: the backward pass keeps what every layer computed


def load(config: Config, workdir: Workdir) -> Measure:
    """Measures documents by the checkpoints of the reference run that `config.vog_steps` names.

    Raises:
      ValueError: the run was made when other checkpoints, or none, were asked for.
    """
    run, mesh, steps = workdir.run("reference"), make_mesh(config.mesh), config.vog_steps
    kept = saved_steps(run)
    if tuple(kept) != steps:
        raise ValueError(
            f"the signal vog compares the reference after steps {_list(steps)}, and {run} keeps {_list(kept)}: run "
            "`jaxprune train CONFIG --only reference`, which trains it again"
        )
    graphdef, _, model, _ = described(run, mesh)
    return measure_by(
        graphdef,
        (load_params(run, mesh, step)[1] for step in steps),
        mesh,
        context=model.context,
        batch_tokens=config.score.batch_tokens // _SMALLER,
    )


def inputs(workdir: Workdir) -> dict[str, str]:
    """What the table is made from beside the documents.

    Raises:
      ArtifactMissing: the reference is not trained yet.
    """
    made = require(workdir.run("reference"), "jaxprune train CONFIG --only reference")
    return {"reference": made.fingerprint}


def measure_by(
    graphdef: nnx.GraphDef,
    checkpoints: Iterable[nnx.State],
    mesh: jax.sharding.Mesh,
    *,
    context: int,
    batch_tokens: int,
) -> Measure:
    """Measures documents by a model's parameters at several times of its training, each taken once.

    The table holds number and vog (float64; a logit for each unit of the embedding). Only the first `context`
    tokens of a document are looked at.
    """
    with jax.set_mesh(mesh):
        stacked = _stacked(checkpoints)
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


def _stacked(checkpoints: Iterable[nnx.State]) -> nnx.State:
    """The checkpoints over each other, leaf by leaf: what is stacked is let go, so that one leaf exists twice."""
    structure, leaves = None, []  # of each checkpoint
    for params in checkpoints:
        structure = jax.tree.structure(params)
        leaves.append(jax.tree.leaves(params)[::-1])
    del params
    assert structure is not None
    return structure.unflatten(
        [jnp.stack([own.pop() for own in leaves]) for _ in range(structure.num_leaves)]
    )


def _list(steps: Sequence[int]) -> str:
    return ", ".join(map(str, steps)) or "none"


@functools.lru_cache(maxsize=8)
def _make_step(graphdef: nnx.GraphDef) -> Callable[..., jax.Array]:
    """(parameters stacked over K, tokens_BS, length_B) -> VoG of the first length_B targets, [B]."""

    @jax.jit
    def step(stacked: nnx.State, tokens_BS: jax.Array, length_B: jax.Array, start_B: jax.Array) -> jax.Array:
        tokens_BS = reshard(tokens_BS, sharding.ACT_BT)
        n_checkpoints = jax.tree.leaves(stacked)[0].shape[0]

        def add(carry: tuple[jax.Array, jax.Array], at: tuple[jax.Array, nnx.State]) -> tuple:
            """Welford's update: exact where gradients are equal, from zeros too, and few of them exist at once."""
            (mean_BTD, squares_BTD), (k, params) = carry, at
            g_BTD = gradient(graphdef, params, tokens_BS, length_B)
            change_BTD = g_BTD - mean_BTD
            mean_BTD = mean_BTD + change_BTD / (k + 1)
            return (mean_BTD, squares_BTD + change_BTD * (g_BTD - mean_BTD)), None

        shape_BTD = (tokens_BS.shape[0], tokens_BS.shape[1] - 1, stacked["table_VD"].shape[-1])
        zeros_BTD = jnp.zeros(shape_BTD, jnp.float32, out_sharding=sharding.ACT_BTD)
        (_, squares_BTD), _ = jax.lax.scan(add, (zeros_BTD, zeros_BTD), (jnp.arange(n_checkpoints), stacked))
        deviation_BTD = jnp.sqrt(squares_BTD / n_checkpoints)
        # Behind the document gradients are 0: no target that counts sees it.
        return deviation_BTD.sum(axis=(1, 2)) / (jnp.maximum(length_B, 1) * deviation_BTD.shape[2])

    return step
