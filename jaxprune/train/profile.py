"""A trace of some steps of a run, for XProf, TensorBoard's profile page or Perfetto."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax

from jaxprune.progress import say


class Profile:
    """Traces the steps from `first` to `last`, both included; of several processes each traces its own devices."""

    def __init__(self, folder: Path, steps: tuple[int, int] | None) -> None:
        """`folder`: where the traces go; `steps`: first and last, or None for no trace at all."""
        # Processes of one host would write over each other's.
        self._folder = folder / f"process-{jax.process_index()}" if jax.process_count() > 1 else folder
        self._steps = steps
        self._runs = False

    def before(self, step: int) -> None:
        """Called before a step is dispatched."""
        if self._steps is None or self._runs:
            return
        if step == self._steps[0]:
            jax.profiler.start_trace(self._folder)
            self._runs = True
        elif step > self._steps[0]:
            self._give_up(f"training goes on with step {step}")

    def after(self, step: int, result: Any) -> None:
        """Called when a step is dispatched; waits for the last step's `result`."""
        if self._runs and self._steps is not None and step == self._steps[1]:
            jax.block_until_ready(result)
            first = self._steps[0]
            self._stop()
            say(f"trace of steps {first} to {step}: {self._folder}")

    def close(self) -> None:
        """Ends a trace that is not at its end, as when the run stops."""
        if self._runs:
            self._stop()
        elif self._steps is not None:
            self._give_up("training has ended before")

    def _stop(self) -> None:
        self._runs, self._steps = False, None
        jax.profiler.stop_trace()

    def _give_up(self, why: str) -> None:
        assert self._steps is not None
        say(f"no trace of steps {self._steps[0]} to {self._steps[1]}: {why}")
        self._steps = None
