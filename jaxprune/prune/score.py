"""The stage `score`: the NLL of every document that may be pruned, under the reference or another model.

A document's score does not depend on which others are scored with it, in what order, or in which
shard: for one mesh and one `batch_tokens` it is bitwise the same. Shards are files of their own, so
that a killed run goes on behind the last one that is whole.

Legend: N documents, W windows, B rows of a batch, S tokens of a row.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from flax import nnx

from jaxprune.artifact import Manifest, Workdir, require
from jaxprune.config import Config
from jaxprune.data.store import TRAIN, TokenStore
from jaxprune.model import flops
from jaxprune.model.loss import next_token_nll
from jaxprune.model.sharding import make_mesh
from jaxprune.progress import Meter
from jaxprune.prune import models, shards
from jaxprune.prune.bands import hash_of
from jaxprune.prune.forward import of_windows
from jaxprune.prune.translation import Translation
from jaxprune.prune.windows import Windows, cut
from jaxprune.train.checkpoint import load_params
from jaxprune.train.step import TokenLoss, make_score_step


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
        overlap: int = 0,
        translation: Translation | None = None,
        of: TokenLoss = next_token_nll,
    ) -> None:
        """What is scored, and how.

        Args:
          graphdef, params: the model, on `mesh`.
          context: the most targets of a window.
          batch_tokens: the size of a batch, padding included.
          overlap: targets of a window that the one before has scored.
          translation: into the model's own tokens; None: it reads those of the store.
          of: what is summed over tokens, in place of their NLL.

        Raises:
          ValueError: the overlap leaves no new target in a window.
        """
        if overlap >= context:
            raise ValueError(
                f"score.overlap is {overlap}: set less than {context}, the context of the model that scores"
            )
        self.graphdef, self.params, self.mesh = graphdef, params, mesh
        self.context, self.batch_tokens, self.overlap = context, batch_tokens, overlap
        self.translation = translation
        self._step = make_score_step(graphdef, of)

    @classmethod
    def load(cls, run: Path, config: Config) -> Scorer:
        """The final parameters of a finished training run, on the mesh of `config`."""
        mesh = make_mesh(config.mesh)
        graphdef, params, model, _ = load_params(run, mesh)
        return cls(graphdef, params, mesh, context=model.context, batch_tokens=config.score.batch_tokens)

    @classmethod
    def named(cls, name: str, config: Config, workdir: Workdir, of: TokenLoss = next_token_nll) -> Scorer:
        """The model that a setting names (prune/models.py), as `config.score` says.

        Raises:
          ValueError: there is no such model, or score.context or score.overlap does not fit it.
        """
        model = models.load(name, config, workdir)
        return cls(
            model.graphdef,
            model.params,
            model.mesh,
            context=context_of(config),
            batch_tokens=config.score.batch_tokens,
            overlap=config.score.overlap,
            translation=None
            if model.encoder is None
            else Translation(encoder=model.encoder, vocab_size=model.vocab_size),
            of=of,
        )

    def __call__(self, store: TokenStore, numbers: np.ndarray, progress: Meter) -> pa.Table:
        """Scores the documents `numbers` (int64, [N]) of a store.

        Returns:
          A row a document, in the order of `numbers`: number, id, hash (of the id, 62 bits), domain, n_tokens
          and n_bytes (of the store), n_scored (tokens that the model scored), nll_windows (nats, of each
          window of at most `context` tokens) and nll_sum (their sum in float64).

        Raises:
          ValueError: as `Translation`.
        """
        tokens, offsets_N1, places = store.tokens, store.offsets_N1, numbers
        if self.translation is not None:
            tokens, offsets_N1 = self.translation(store, numbers)
            places = np.arange(len(numbers))
        n_scored_N = offsets_N1[places + 1] - offsets_N1[places] - 1
        windows = cut(offsets_N1, places, self.context, self.overlap)
        nll_W = of_windows(
            functools.partial(self._step, self.params),
            tokens,
            windows,
            self.mesh,
            context=self.context,
            batch_tokens=self.batch_tokens,
            progress=progress,
            size_W=None if self.translation is None else _in_tokens_of(store, numbers, windows, n_scored_N),
        )
        return _table(store, numbers, windows.document_W, nll_W, n_scored_N)


def context_of(config: Config) -> int:
    """The most targets of a window: for all models whose scores are compared, as context helps to predict.

    Raises:
      ValueError: there is no such model, or score.context or score.overlap does not fit it.
    """
    contexts = {name: models.settings(name, config).context for name in config.compared}
    shortest = min(contexts, key=contexts.__getitem__)
    context = contexts[shortest] if config.score.context is None else config.score.context
    if context > contexts[shortest]:
        raise ValueError(
            f"score.context is {context}: set {contexts[shortest]}, the context of the model {shortest}, or less"
        )
    if config.score.overlap >= context:
        raise ValueError(
            f"score.overlap is {config.score.overlap}: set less than {context}, the context of the model {shortest}"
        )
    return context


def run(config: Config, workdir: Workdir) -> Manifest:
    """Scores the documents of the train split, unless they are scored already.

    Raises:
      ArtifactMissing: the corpus is not prepared or the model not trained yet.
      ValueError: as `Scorer`.
    """
    prepare = require(workdir.prepare, "jaxprune prepare CONFIG")
    store = TokenStore(workdir.prepare / "tokens")
    numbers = store.documents(TRAIN)

    def counts(folder: Path) -> dict[str, Any]:
        n_tokens = int((store.offsets_N1[numbers + 1] - store.offsets_N1[numbers] - 1).sum())
        model, vocab_size = models.shape(config.score.model, config, store)
        forward_flops = flops.train_flops_per_token(model, vocab_size, model.context) / 3
        return {
            "documents": len(numbers),
            "tokens": n_tokens,
            "parameters": flops.n_params(model, vocab_size),
            "flops": _n_computed(folder, config.score.overlap) * forward_flops,
        }

    return shards.build(
        workdir.score,
        "score",
        settings_of(config),
        {"prepare": prepare.fingerprint, **inputs_of(config, workdir)},
        store=store,
        numbers=numbers,
        shard_documents=config.score.shard_documents,
        load=lambda _: Scorer.named(config.score.model, config, workdir),
        counts=counts,
        fault=models.fault(config.score.model),
    )


def settings_of(config: Config) -> dict[str, Any]:
    """The settings that decide the score artifact; the model is among what it is made from."""
    return {"context": context_of(config), "overlap": config.score.overlap}


def inputs_of(config: Config, workdir: Workdir) -> dict[str, str]:
    """The model that scores, by what it is: `reference`, `second`, or a folder wherever it lies."""
    name = config.score.model
    return {name if name in models.TRAINED else "model": models.fingerprint(name, config, workdir)}


def _in_tokens_of(
    store: TokenStore, numbers: np.ndarray, windows: Windows, n_scored_N: np.ndarray
) -> np.ndarray:
    """The store's tokens shared out over windows of translated documents: whole numbers with the same sum."""
    n_tokens = int((store.offsets_N1[numbers + 1] - store.offsets_N1[numbers] - 1).sum())
    done_W = np.cumsum(windows.length_W - windows.start_W) * n_tokens // max(int(n_scored_N.sum()), 1)
    return np.diff(done_W, prepend=0)


def _n_computed(folder: Path, overlap: int) -> int:
    """The model's tokens that its windows predict, those of overlaps again."""
    total = 0
    for path in sorted(folder.glob("part-*.parquet")):
        table = pq.read_table(path, columns=["n_scored", "nll_windows"])
        n_windows_N = np.concatenate([np.diff(part.offsets) for part in table["nll_windows"].chunks])
        total += int(table["n_scored"].to_numpy().sum() + overlap * np.maximum(n_windows_N - 1, 0).sum())
    return total


def _table(
    store: TokenStore,
    numbers: np.ndarray,
    document_W: np.ndarray,
    nll_W: np.ndarray,
    n_scored_N: np.ndarray,
) -> pa.Table:
    ids = store.ids(numbers)
    nll_sum_N = np.bincount(document_W, nll_W, len(numbers))
    edge_N1 = np.searchsorted(document_W, np.arange(len(numbers) + 1))
    n_tokens_N = store.offsets_N1[numbers + 1] - store.offsets_N1[numbers] - 1
    return pa.table(
        {
            "number": numbers,
            "id": pa.array(ids, pa.string()),
            "hash": pa.array([hash_of(identity) for identity in ids], pa.int64()),
            "domain": pa.array([store.domains[domain] for domain in store.domain_N[numbers]], pa.string()),
            "n_tokens": n_tokens_N,
            "n_bytes": store.n_bytes_N[numbers],
            "n_scored": n_scored_N,
            "nll_sum": nll_sum_N,
            "nll_windows": pa.ListArray.from_arrays(edge_N1.astype(np.int32), nll_W),
        }
    )
