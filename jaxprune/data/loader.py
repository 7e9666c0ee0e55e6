"""The loader: batches of the mixture in the order of the steps, made ahead of time by one thread of Grain."""

from __future__ import annotations

from collections.abc import Iterator

import grain
import numpy as np

from jaxprune.data.mixture import MixtureSource, Stage


class Loader(Iterator[dict[str, np.ndarray]]):
    """Iterates over steps; its whole state is `step`, the next one to hand out.

    To resume, make a loader of the same source (with all the stages so far) at that step.
    """

    def __init__(self, source: MixtureSource, step: int = 0, prefetch: int = 4) -> None:
        """Starts at `step`; `prefetch` batches are made ahead (0: each when it is asked for)."""
        self.source = source
        self.step = step
        self._prefetch = prefetch
        self._batches: grain.DatasetIterator[dict[str, np.ndarray]] | None = self._open()

    def _open(self) -> grain.DatasetIterator[dict[str, np.ndarray]]:
        # Reading without threads of its own, and one thread above it: the default of 16 threads and 500
        # elements costs ten times as much on a memory map, and could not be joined.
        steps = grain.MapDataset.source(self.source)[self.step :]
        one_by_one = steps.to_iter_dataset(grain.ReadOptions(num_threads=0, prefetch_buffer_size=0))
        return iter(
            grain.experimental.ThreadPrefetchIterDataset(one_by_one, prefetch_buffer_size=self._prefetch)
        )

    def __next__(self) -> dict[str, np.ndarray]:
        """The batch of `step`: {"tokens_BS": int32 [B, T + 1], "domain_B": int32 [B]}."""
        if self._batches is None:
            raise ValueError("this loader is closed: make a new one at the step it was at")
        batch = next(self._batches)
        self.step += 1
        return batch

    def append(self, stage: Stage) -> None:
        """Weights from step `stage.start` on. Give every process the same stage before the same step.

        The iterator is made anew from `step`. Changing the source in place would not be enough: batches
        made ahead under the old weights would still be handed out, and a worker process has a copy.

        Raises:
          ValueError: the stage starts at a step that has been handed out, or does not fit the source. The loader
            is then as it was.
        """
        if stage.start < self.step:
            raise ValueError(
                f"a stage starts at step {stage.start}, but step {self.step} is next: start it there or later"
            )
        source = self.source.append(stage)
        self.close()
        self.source = source
        self._batches = self._open()

    def close(self) -> None:
        """Stops and joins the thread; threads left running can keep a process from ending."""
        if self._batches is not None:
            self._batches.close()
            self._batches = None
