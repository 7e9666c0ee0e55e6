"""Whether a run fits the devices: asked before hours are spent on what comes before it."""

from __future__ import annotations

import functools
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx

from jaxprune import config
from jaxprune.model import attention, transformer
from jaxprune.model.loss import next_token_nll
from jaxprune.model.sharding import check_divides, make_mesh


def check(run: config.Run, mesh: jax.sharding.Mesh) -> None:
    """Raises ValueError unless the run's batch, model and attention kernel work on the devices of `mesh`."""
    check_divisible(run, mesh)
    attention.choose(run.model, mesh)
    if run.model.dtype != "float32" and mesh.devices.flat[0].platform == "cpu":
        why = _untrainable(run.model.dtype)
        if why:
            raise ValueError(
                f"model.dtype is {run.model.dtype}, in which XLA cannot train on this CPU ({why}): set model.dtype float32"
            )


def check_divisible(run: config.Run, mesh: jax.sharding.Mesh) -> None:
    """Raises ValueError unless the run's batch and model can be cut over `mesh`."""
    rows_on_mesh = mesh.shape["replica"] * mesh.shape["fsdp"]
    if run.batch_rows % (run.microbatches * rows_on_mesh):
        raise ValueError(
            f"batch_rows is {run.batch_rows}: make it a multiple of microbatches ({run.microbatches}) x "
            f"mesh.replica x mesh.fsdp ({rows_on_mesh})"
        )
    check_divides(run.model, mesh)


@functools.cache
def _untrainable(dtype: Literal["float32", "bfloat16"]) -> str:
    """Why the smallest model has no gradients in `dtype` on a CPU; empty where it has. Asked of XLA, since it depends on
    its version and on the CPU (jax 0.10.2: none at any width from 8 to 512, while losses alone can be computed)."""
    mesh = make_mesh(config.Mesh(), jax.local_devices(backend="cpu")[:1])
    tiny = config.Model(d_model=8, n_layers=1, n_heads=2, context=8, dtype=dtype)
    graphdef, params = transformer.create(tiny, 32, 0, mesh)
    with jax.set_mesh(mesh):
        tokens_BS = jnp.zeros((1, 9), jnp.int32)
        try:
            jax.block_until_ready(
                jax.jit(jax.grad(lambda p: next_token_nll(nnx.merge(graphdef, p), tokens_BS).mean()))(params)
            )
        except jax.errors.JaxRuntimeError as error:
            return str(error).splitlines()[0]
    return ""
