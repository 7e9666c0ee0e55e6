"""A run before it is trained, and what it is trained with."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxprune import cluster, config
from jaxprune.artifact import write_json
from jaxprune.data.mixture import MixtureSource, Stage
from jaxprune.data.store import TokenStore
from jaxprune.model import flops
from jaxprune.train.hardware import describe
from jaxprune.train.log import Clock, Log, Window
from jaxprune.train.metrics import Metrics
from jaxprune.train.validation import Validation


@dataclass(frozen=True, kw_only=True)
class Plan:
    """One run: what is trained, on which documents, in which proportions."""

    title: str
    run: config.Run
    store: TokenStore
    documents: np.ndarray  # int64 numbers of the documents to train on
    stages: tuple[Stage, ...]  # mixture weights over steps
    seed: int  # of the initial weights and of the order of the rows
    mesh: jax.sharding.Mesh
    backends: tuple[str, ...] = ()
    keep_steps: tuple[int, ...] = ()  # whose parameters stay when the run is finished, beside the last

    def write_model(self, folder: Path) -> None:
        """Says what the parameters are, for whoever loads them."""
        if cluster.is_first():
            model = dataclasses.asdict(self.run.model)
            write_json(folder / "model.json", {"model": model, "vocab_size": self.store.vocab_size})

    def source(self, stages: tuple[Stage, ...], rows: np.ndarray | None = None) -> MixtureSource:
        """The batches under these stages, or these rows of them."""
        return MixtureSource(
            self.store,
            self.documents,
            context=self.run.model.context,
            batch_rows=self.run.batch_rows,
            stages=stages,
            seed=self.seed,
            rows=rows,
        )

    def metrics(self, folder: Path, step: int | None) -> Metrics | None:
        """The metrics in `folder`, without the lines after the step that the run continues from (None: afresh).

        Only the first of several processes has them.
        """
        return Metrics(folder, -1 if step is None else step, self.backends) if cluster.is_first() else None

    def validation(self) -> Validation:
        """The held-out rows."""
        return Validation(
            self.store,
            context=self.run.model.context,
            rows=self.run.validation_rows,
            batch_rows=max(
                self.run.batch_rows // self.run.microbatches,
                self.mesh.shape["replica"] * self.mesh.shape["fsdp"],
            ),
        )

    def log(self, metrics: Metrics | None, clock: Clock, window: Window) -> Log:
        """What turns its steps into lines of metrics."""
        return Log(
            self.title,
            self.run,
            domains=self.store.domains,
            vocab_size=self.store.vocab_size,
            mesh=self.mesh,
            metrics=metrics,
            clock=clock,
            window=window,
        )

    def counts(self) -> dict[str, Any]:
        """Of the finished run, for the manifest."""
        run, vocab_size = self.run, self.store.vocab_size
        return {
            "steps": run.steps,
            "tokens": run.trained_tokens,
            "documents": len(self.documents),
            "parameters": flops.n_params(run.model, vocab_size),
            "train_flops": run.trained_tokens
            * flops.train_flops_per_token(run.model, vocab_size, run.model.context),
            "devices": describe(self.mesh),
        }
