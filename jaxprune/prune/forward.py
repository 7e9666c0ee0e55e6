"""A number for each window of some documents: batches of rows through a compiled step.

Every process of a cluster makes the same batches, puts the rows of its own devices, and gets all numbers.

A window's number does not depend on which others are computed with it, in what order, or how many: for
one mesh and one `batch_tokens` it is bitwise the same.

Legend: W windows, B rows of a batch, S tokens of a row.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import numpy as np

from jaxprune.model.sharding import BATCH, ROWS, everywhere, put
from jaxprune.progress import Meter
from jaxprune.prune.windows import Windows, batches

Step = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]
"""tokens_BS, length_B and start_B (int32, as `windows.Batch`) -> [B]; rows do not see each other."""


def of_windows(
    step: Step,
    tokens: np.ndarray,
    windows: Windows,
    mesh: jax.sharding.Mesh,
    *,
    context: int,
    batch_tokens: int,
    progress: Meter,
    size_W: np.ndarray | None = None,
) -> np.ndarray:
    """What `step` gives for each window, float64 [W].

    Args:
      step: called inside `jax.set_mesh(mesh)`, with rows cut over the mesh.
      tokens, windows, context, batch_tokens: as `windows.batches`.
      progress: told when windows are done.
      size_W: what each window adds to it; None: its targets that count.
    """
    if size_W is None:
        size_W = windows.length_W - windows.start_W
    value_W = np.empty(len(windows.length_W), np.float64)
    parts = int(np.prod([mesh.shape[axis] for axis in ROWS]))
    pending: tuple[np.ndarray, jax.Array] | None = None

    def fetch() -> None:
        if pending is not None:
            window_W, value_B = pending
            value_W[window_W] = np.asarray(value_B)[: len(window_W)]
            progress.add(int(size_W[window_W].sum()))

    progress.tell("compiling")
    with jax.set_mesh(mesh):
        for batch in batches(tokens, windows, context=context, batch_tokens=batch_tokens, parts=parts):
            rows = (batch.tokens_BS, batch.length_B, batch.start_B)
            value_B = everywhere(step(*(put(values, mesh, BATCH) for values in rows)))
            fetch()  # of the batch before, while the devices work on this one
            pending = batch.window_W, value_B
    fetch()
    return value_W
