"""Checkpoints: parameters, optimizer state and loader position in one atomic orbax step.

orbax restores flipped bytes of a committed checkpoint without a word, so each checkpoint carries a
digest of every leaf, computed on the devices and independent of how the leaf is sharded. A step
that cannot be read, or whose digests differ, is passed over for the one before it, with a message.
"""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from flax import nnx

from jaxprune import config
from jaxprune.model import transformer
from jaxprune.progress import say

Tree = Any  # a pytree of arrays


class Checkpoints:
    """The checkpoints of one run in `folder`, saved in the background."""

    def __init__(self, folder: Path, keep: int) -> None:
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep,
            cleanup_tmp_directories=True,
            enable_async_checkpointing=True,
        )
        self._manager = ocp.CheckpointManager(folder.absolute(), options=options)

    def save(self, step: int, params: Tree, optimizer: Tree, position: dict[str, Any]) -> None:
        """Starts saving the state after `step` optimizer steps; `position` is plain JSON data."""
        if self._manager.latest_step() == step:
            return
        record = {
            "position": position,
            "digests": {"params": digests(params), "optimizer": digests(optimizer)},
        }
        self._manager.save(
            step,
            args=ocp.args.Composite(
                params=ocp.args.StandardSave(params),
                optimizer=ocp.args.StandardSave(optimizer),
                record=ocp.args.JsonSave(record),
            ),
        )

    def restore(self, params: Tree, optimizer: Tree) -> tuple[int, Tree, Tree, dict[str, Any]] | None:
        """The newest whole checkpoint as (step, params, optimizer, position), or None without any.

        Args:
          params, optimizer: trees of `ShapeDtypeStruct` with the shardings to restore to, which may
            be of another mesh than the one that saved.
        """
        for step in sorted(self._manager.all_steps(), reverse=True):
            try:
                restored = self._manager.restore(
                    step,
                    args=ocp.args.Composite(
                        params=ocp.args.StandardRestore(params),
                        optimizer=ocp.args.StandardRestore(optimizer),
                        record=ocp.args.JsonRestore(),
                    ),
                )
                _check("params", restored["params"], restored["record"])
                _check("optimizer", restored["optimizer"], restored["record"])
            except Exception as error:  # orbax and tensorstore raise many kinds for a damaged file
                say(f"checkpoint {step} is damaged and is passed over: {_first_line(error)}")
                # Later saves of this step must not be refused because a damaged one exists.
                self._manager.delete(step)
                continue
            position = restored["record"]["position"]
            return step, restored["params"], restored["optimizer"], position
        return None

    def close(self) -> None:
        """Waits for saves under way."""
        self._manager.wait_until_finished()
        self._manager.close()


def load_params(folder: Path, mesh: jax.sharding.Mesh) -> tuple[nnx.GraphDef, nnx.State, config.Model, int]:
    """The final parameters of a finished run, on a mesh.

    Args:
      folder: the run's artifact.

    Returns:
      (graphdef, params, model config, vocabulary size).

    Raises:
      ValueError: the checkpoint is damaged.
    """
    described = json.loads((folder / "model.json").read_text())
    model, vocab_size = config.Model(**described["model"]), described["vocab_size"]
    graphdef, abstract = transformer.abstract(model, vocab_size, mesh)
    with ocp.CheckpointManager((folder / "checkpoints").absolute()) as manager:
        restored = manager.restore(
            manager.latest_step(),
            args=ocp.args.Composite(params=ocp.args.StandardRestore(abstract), record=ocp.args.JsonRestore()),
        )
    _check("params", restored["params"], restored["record"])
    return graphdef, restored["params"], model, vocab_size


def digests(tree: Tree) -> dict[str, int]:
    """A 64-bit digest of each leaf by its path: changes when any one word of it changes."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    words = _digests([leaf for _, leaf in leaves])
    return {
        jax.tree_util.keystr(path): (int(high) << 32) | int(low)
        for (path, _), (high, low) in zip(leaves, jax.device_get(words), strict=True)
    }


@jax.jit
def _digests(leaves: list[jax.Array]) -> list[tuple[jax.Array, jax.Array]]:
    return [(_weighted_sum(leaf, 0x9E3779B1), _weighted_sum(leaf, 0x85EBCA6B)) for leaf in leaves]


def _weighted_sum(leaf: jax.Array, prime: int) -> jax.Array:
    """Sum of the leaf's bits modulo 2^32, each word times an odd number that depends on its place.

    Integer sums do not depend on their order, so neither does the digest on the sharding; an odd
    factor is invertible modulo 2^32, so a change of one word always shows.
    """
    if leaf.dtype.itemsize == 4:
        bits = jax.lax.bitcast_convert_type(leaf, jnp.uint32)
    else:
        bits = jax.lax.bitcast_convert_type(leaf, jnp.dtype(f"uint{8 * leaf.dtype.itemsize}"))
        bits = bits.astype(jnp.uint32)
    place = functools.reduce(
        lambda place, axis: place * np.uint32(prime) + _along(leaf.shape, axis),
        range(leaf.ndim),
        jnp.uint32(0),
    )
    place = (place ^ (place >> 15)) * np.uint32(prime)
    factor = (place ^ (place >> 13)) | np.uint32(1)
    return jnp.sum(bits * factor, dtype=jnp.uint32)


def _along(shape: tuple[int, ...], axis: int) -> jax.Array:
    ones = [1] * len(shape)
    ones[axis] = shape[axis]
    return jnp.arange(shape[axis], dtype=jnp.uint32).reshape(ones)


def _check(name: str, tree: Tree, record: dict[str, Any]) -> None:
    for path, value in digests(tree).items():
        if record["digests"][name].get(path) != value:
            raise ValueError(f"the digest of {name}{path} differs from the one that was saved")


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
