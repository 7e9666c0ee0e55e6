"""Whether a run fits the devices: asked before hours are spent on what comes before it."""

from __future__ import annotations

import jax

from jaxprune import config
from jaxprune.model import attention
from jaxprune.model.sharding import check_divides


def check(run: config.Run, mesh: jax.sharding.Mesh) -> None:
    """Raises ValueError unless the run's batch, model and attention kernel work on the devices of `mesh`."""
    rows_on_mesh = mesh.shape["replica"] * mesh.shape["fsdp"]
    if run.batch_rows % (run.microbatches * rows_on_mesh):
        raise ValueError(
            f"batch_rows is {run.batch_rows}: make it a multiple of microbatches ({run.microbatches}) x "
            f"mesh.replica x mesh.fsdp ({rows_on_mesh})"
        )
    check_divides(run.model, mesh)
    attention.choose(run.model, mesh)
