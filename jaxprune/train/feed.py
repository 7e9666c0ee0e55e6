"""Which rows of a batch a process reads, and how they become arrays on the devices of all processes.

Dimensions: M microbatches, B rows of a microbatch, S = T + 1 tokens of a row.
"""

from __future__ import annotations

import jax
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from jaxprune.model.sharding import BATCH


class Feed:
    """Puts batches on a mesh. A batch is its microbatches end to end, however many processes read it."""

    def __init__(self, mesh: jax.sharding.Mesh, batch_rows: int, microbatches: int) -> None:
        self._sharding = NamedSharding(mesh, P(None, *BATCH))
        self._shape_MB = microbatches, batch_rows // microbatches
        parts = NamedSharding(mesh, BATCH).addressable_devices_indices_map(self._shape_MB[1:]).values()
        every_B = np.arange(self._shape_MB[1])
        self._own = np.unique(np.concatenate([every_B[part] for part in parts]))  # of a microbatch
        self.rows = np.add.outer(np.arange(microbatches) * self._shape_MB[1], self._own).ravel()
        """Rows of a batch that the devices of this process hold, ascending."""

    def __call__(self, batch: dict[str, np.ndarray]) -> tuple[jax.Array, jax.Array]:
        """tokens_MBS and domain_MB, from this process's rows of them."""
        return self._put(batch["tokens_BS"]), self._put(batch["domain_B"])

    def _put(self, value: np.ndarray) -> jax.Array:
        own = value.reshape(self._shape_MB[0], len(self._own), *value.shape[1:])

        def part(index: tuple[slice, ...] | None) -> np.ndarray:
            assert index is not None
            start, stop, _ = index[1].indices(self._shape_MB[1])
            first = int(np.searchsorted(self._own, start))
            return own[:, first : first + stop - start]

        return jax.make_array_from_callback((*self._shape_MB, *value.shape[1:]), self._sharding, part)
