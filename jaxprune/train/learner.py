"""What a run learns beside its parameters: weights of the domains, by a training step of its own.

Legend: M microbatches, B rows, S = T + 1 tokens of a row, K domains.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

import jax
from flax import nnx

from jaxprune import cluster, config
from jaxprune.artifact import write_json
from jaxprune.train.step import StepMetrics, TrainState

LEARNT = "learnt.json"


class LearningStep(ABC):
    """A step that also changes what is learnt, which it holds between steps."""

    @abstractmethod
    def __call__(
        self, state: TrainState, tokens_MBS: jax.Array, domain_MB: jax.Array
    ) -> tuple[TrainState, StepMetrics]:
        """As a training step; the metrics have `learnt_K`, the weights after it."""

    @abstractmethod
    def state(self) -> dict[str, Any]:
        """What is learnt so far, plain data: `average` is the result."""

    def write(self, folder: Path) -> None:
        """Leaves the result beside the finished run."""
        state = self.state()
        if cluster.is_first():
            write_json(folder / LEARNT, state)


class Learner(ABC):
    """How a run learns weights: makes its step, within the mesh of the run."""

    @abstractmethod
    def step(
        self,
        graphdef: nnx.GraphDef,
        run: config.Run,
        mesh: jax.sharding.Mesh,
        saved: dict[str, Any] | None,
    ) -> LearningStep:
        """The step, with what `LearningStep.state` has saved; None: from the beginning."""
