"""The stage `score`: the NLL of every document that may be pruned, under the reference model.

A document's score does not depend on which others are scored with it, in what order, or in which
shard: for one mesh and one `batch_tokens` it is bitwise the same. Shards are files of their own, so
that a killed run goes on behind the last one that is whole.

Legend: N documents, W windows, B rows of a batch, S tokens of a row.
"""

from __future__ import annotations

from hashlib import blake2b
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pyarrow as pa
from flax import nnx
from jax.sharding import NamedSharding

from jaxprune.artifact import Manifest, Workdir, build, require
from jaxprune.config import Config, identity
from jaxprune.data.store import TRAIN, TokenStore
from jaxprune.model.sharding import BATCH, ROWS, make_mesh
from jaxprune.progress import Meter
from jaxprune.prune import shards
from jaxprune.prune.windows import batches, cut
from jaxprune.train.checkpoint import load_params
from jaxprune.train.step import make_score_step


class Scorer:
    """A model that scores documents; their rows are shared by all devices of the mesh."""

    def __init__(
        self,
        graphdef: nnx.GraphDef,
        params: nnx.State,
        mesh: jax.sharding.Mesh,
        *,
        context: int,
        batch_tokens: int,
    ) -> None:
        """`context` is the most targets of a window, `batch_tokens` the size of a batch, padding included."""
        self.params, self.mesh = params, mesh
        self.context, self.batch_tokens = context, batch_tokens
        self._step = make_score_step(graphdef)

    @classmethod
    def load(cls, run: Path, config: Config) -> Scorer:
        """The final parameters of a finished training run, on the mesh of `config`."""
        mesh = make_mesh(config.mesh)
        graphdef, params, model, _ = load_params(run, mesh)
        return cls(graphdef, params, mesh, context=model.context, batch_tokens=config.score.batch_tokens)

    def __call__(self, store: TokenStore, numbers: np.ndarray, progress: Meter) -> pa.Table:
        """Scores the documents `numbers` (int64, [N]) of a store.

        Returns:
          A row a document, in the order of `numbers`: number, id, hash (of the id, 62 bits), domain, n_tokens
          and n_bytes (of the store), n_scored (tokens that the model scored), nll_windows (nats, of each
          window of at most `context` tokens) and nll_sum (their sum in float64).

        Raises:
          ValueError: the model's NLL of a document is not finite.
        """
        windows = cut(store.offsets_N1, numbers, self.context)
        nll_W = np.empty(len(windows.length_W), np.float64)
        sharding = NamedSharding(self.mesh, BATCH)
        parts = int(np.prod([self.mesh.shape[axis] for axis in ROWS]))
        pending: tuple[np.ndarray, jax.Array, int] | None = None

        def fetch() -> None:
            if pending is not None:
                window_W, nll_B, n_tokens = pending
                nll_W[window_W] = np.asarray(nll_B)[: len(window_W)]
                progress.add(n_tokens)

        with jax.set_mesh(self.mesh):
            for batch in batches(
                store.tokens, windows, context=self.context, batch_tokens=self.batch_tokens, parts=parts
            ):
                # With several processes each would put and fetch its own part of the rows here.
                tokens_BS, length_B = jax.device_put((batch.tokens_BS, batch.length_B), sharding)
                nll_B = self._step(self.params, tokens_BS, length_B)
                fetch()  # of the batch before, while the devices work on this one
                pending = batch.window_W, nll_B, int(batch.length_B.sum())
        fetch()
        return _table(store, numbers, windows.document_W, nll_W)


def run(config: Config, workdir: Workdir) -> Manifest:
    """Scores the documents of the train split, unless they are scored already.

    Raises:
      ArtifactMissing: the corpus is not prepared or the reference not trained yet.
      ValueError: as `Scorer`.
    """
    prepare = require(workdir.prepare, "jaxprune prepare CONFIG")
    reference = require(workdir.run("reference"), "jaxprune train CONFIG --only reference")
    store = TokenStore(workdir.prepare / "tokens")
    numbers = store.documents(TRAIN)
    is_checked = False

    def make(folder: Path) -> dict[str, Any]:
        nonlocal is_checked
        is_checked = True
        shards.fill(
            folder,
            "score",
            store,
            numbers,
            config.score.shard_documents,
            lambda: Scorer.load(workdir.run("reference"), config),
        )
        n_tokens = store.offsets_N1[numbers + 1] - store.offsets_N1[numbers] - 1
        return {"documents": len(numbers), "tokens": int(n_tokens.sum())}

    inputs = {"prepare": prepare.fingerprint, "reference": reference.fingerprint}
    manifest = build(workdir.score, "score", identity(config.score), inputs, make)
    if not is_checked:
        make(workdir.score)  # it stood there already: repairs what was damaged since
    return manifest


def _table(store: TokenStore, numbers: np.ndarray, document_W: np.ndarray, nll_W: np.ndarray) -> pa.Table:
    ids = store.ids(numbers)
    nll_sum_N = np.bincount(document_W, nll_W, len(numbers))
    wrong = np.flatnonzero(~np.isfinite(nll_sum_N))
    if len(wrong):
        raise ValueError(
            f"the model's NLL of document {ids[wrong[0]]} is {nll_sum_N[wrong[0]]} (and of {len(wrong) - 1} "
            "others not finite): its training has diverged, lower optimizer.peak_lr and train it again"
        )
    edge_N1 = np.searchsorted(document_W, np.arange(len(numbers) + 1))
    n_tokens_N = store.offsets_N1[numbers + 1] - store.offsets_N1[numbers] - 1
    return pa.table(
        {
            "number": numbers,
            "id": pa.array(ids, pa.string()),
            "hash": pa.array([_hash(identity) for identity in ids], pa.int64()),
            "domain": pa.array([store.domains[domain] for domain in store.domain_N[numbers]], pa.string()),
            "n_tokens": n_tokens_N,
            "n_bytes": store.n_bytes_N[numbers],
            "n_scored": n_tokens_N,
            "nll_sum": nll_sum_N,
            "nll_windows": pa.ListArray.from_arrays(edge_N1.astype(np.int32), nll_W),
        }
    )


def _hash(identity: str) -> int:
    """What breaks ties and draws at random in selections: the same wherever and whenever it is computed."""
    return int.from_bytes(blake2b(identity.encode(), digest_size=8).digest(), "big") >> 2
