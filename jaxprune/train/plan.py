"""A run before it is trained, and what it is trained with."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxprune import cluster, config
from jaxprune.artifact import write_json
from jaxprune.data.loader import Loader
from jaxprune.data.mixture import MixtureSource, Stage
from jaxprune.data.store import TokenStore
from jaxprune.model import flops
from jaxprune.train.hardware import describe
from jaxprune.train.learner import Learner
from jaxprune.train.log import Clock, Log, Window
from jaxprune.train.metrics import Metrics
from jaxprune.train.mixer import Mixer
from jaxprune.train.strategy import Strategy
from jaxprune.train.validation import Validation


@dataclass(frozen=True, kw_only=True)
class Plan:
    """One run: what is trained, on which documents, in which proportions."""

    title: str
    run: config.Run
    store: TokenStore
    documents: np.ndarray  # int64 numbers of the documents to train on
    stages: tuple[Stage, ...]  # mixture weights over steps; where there is a strategy, before it begins
    strategy: Strategy | None = None  # decides on the weights while the run goes on
    mixing_start: int = 0  # first step that it decides on
    mixing_rows: int = 4  # of each domain, in the held-out slices that it is told the losses of
    learner: Learner | None = None  # learns weights of the domains by a step of its own
    seed: int  # of the initial weights and of the order of the rows
    mesh: jax.sharding.Mesh
    backends: tuple[str, ...] = ()
    profile: tuple[int, int] | None = None  # first and last step of those that are traced
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

    def validation(self, rows: int | None = None) -> Validation:
        """The held-out rows: so many of each domain, or as many as the run's setting says."""
        rows = self.run.validation_rows if rows is None else rows
        parts = self.mesh.shape["replica"] * self.mesh.shape["fsdp"]
        microbatch = self.run.batch_rows // self.run.microbatches
        all_rows = -(-rows * len(self.store.domains) // parts) * parts
        return Validation(
            self.store,
            context=self.run.model.context,
            rows=rows,
            batch_rows=max(min(microbatch, all_rows), parts),  # small slices are not padded to a microbatch
        )

    def mixer(
        self,
        folder: Path,
        measure: Callable[[Validation], dict[str, float]],
        step: int,
        saved: dict[str, Any] | None,
    ) -> Mixer | None:
        """What asks the strategy, if there is one; `measure` takes the losses of its slices, the rest is as `Mixer`."""
        if self.strategy is None:
            return None
        slices = self.validation(self.mixing_rows) if self.strategy.signal == "validation" else None

        def losses() -> np.ndarray:
            assert slices is not None
            by_name = measure(slices)
            return np.array([by_name[f"heldout/{name}"] for name in self.store.domains])

        return Mixer(
            self.strategy,
            domains=self.store.domains,
            steps=self.run.steps,
            measure=losses,
            folder=folder,
            step=step,
            saved=saved,
        )

    def log(self, metrics: Metrics | None, clock: Clock, window: Window, loader: Loader) -> Log:
        """What turns its steps into lines of metrics; the loader knows what they were drawn with."""
        return Log(
            self.title,
            self.run,
            domains=self.store.domains,
            vocab_size=self.store.vocab_size,
            mesh=self.mesh,
            metrics=metrics,
            clock=clock,
            window=window,
            weights_of=lambda step: loader.source.schedule.weights(step - 1),
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
