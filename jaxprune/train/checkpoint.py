"""Checkpoints: parameters, optimizer state and loader position in one atomic orbax step.

orbax restores flipped bytes of a committed checkpoint without a word, so each checkpoint carries a
digest of every leaf, computed on the devices and independent of how the leaf is sharded. A step
that cannot be read, or whose digests differ, is set aside for the one before it, with a message.
"""

from __future__ import annotations

import functools
import json
import shutil
import time
from collections.abc import Collection
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from flax import nnx
from orbax.checkpoint.checkpoint_managers import preservation_policy as policy

from jaxprune import cluster, config
from jaxprune.artifact import StageError
from jaxprune.model import transformer
from jaxprune.progress import say

Tree = Any  # a pytree of arrays


class Checkpoints:
    """The checkpoints of one run in `folder`, saved in the background: the newest, and some steps for good."""

    def __init__(self, folder: Path, newest: int, steps: Collection[int] = ()) -> None:
        policies = [policy.LatestN(newest), policy.CustomSteps(list(steps))]
        options = ocp.CheckpointManagerOptions(
            preservation_policy=policy.AnyPreservationPolicy(policies),
            cleanup_tmp_directories=True,
            enable_async_checkpointing=True,
        )
        self._folder, self._steps = folder.absolute(), steps
        self._manager = ocp.CheckpointManager(self._folder, options=options)

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

        Newer ones that cannot be restored are moved to `damaged/`, and never deleted.

        Args:
          params, optimizer: trees of `ShapeDtypeStruct` with the shardings to restore to, which may
            be of another mesh than the one that saved.

        Raises:
          StageError: there are checkpoints, and none can be restored: the fault may be elsewhere (a full
            device, a disk), so that nothing is moved and nothing starts afresh.
        """
        failed: dict[int, Exception] = {}
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
            except Exception as error:  # orbax and tensorstore raise many kinds for a damaged file
                failed[step] = error
            if not cluster.holds_everywhere(step not in failed):
                failed.setdefault(step, ValueError("another process cannot read it"))
                continue
            try:
                _check("params", restored["params"], restored["record"])
                _check("optimizer", restored["optimizer"], restored["record"])
            except Exception as error:  # the same in every process
                failed[step] = error
                continue
            self._set_aside(failed)
            position = restored["record"]["position"]
            return step, restored["params"], restored["optimizer"], position
        if failed:
            newest = max(failed)
            raise StageError(
                f"none of the checkpoints in {self._folder} can be restored; of step {newest}: "
                f"{_first_line(failed[newest])}. Mend that, or move the folder away to start afresh"
            ) from failed[newest]
        return None

    def thin(self) -> None:
        """At the end of the run: deletes all but the newest checkpoint, and the parameters of the steps for good."""
        self._manager.wait_until_finished()
        for step in sorted(self._manager.all_steps())[:-1]:
            if step not in self._steps:
                self._manager.delete(step)
            elif cluster.is_first():
                shutil.rmtree(self._folder / str(step) / "optimizer", ignore_errors=True)

    def _set_aside(self, failed: dict[int, Exception]) -> None:
        def move() -> None:
            for step, error in failed.items():
                say(f"checkpoint {step} is damaged and is passed over: {_first_line(error)}")
                aside = self._folder.parent / "damaged" / f"{step}-{time.time_ns()}"
                aside.parent.mkdir(exist_ok=True)
                (self._folder / str(step)).rename(aside)

        if failed:
            cluster.alone(move)
            self._manager.reload()

    def close(self) -> None:
        """Waits for saves under way."""
        self._manager.wait_until_finished()
        self._manager.close()


def saved_steps(folder: Path) -> list[int]:
    """The steps, ascending, whose parameters a finished run in `folder` keeps; the last is its end."""
    with ocp.CheckpointManager((folder / "checkpoints").absolute()) as manager:
        return sorted(manager.all_steps())


def described(folder: Path, mesh: jax.sharding.Mesh) -> tuple[nnx.GraphDef, nnx.State, config.Model, int]:
    """As `load_params`, with the shapes and shardings of the parameters in their place."""
    made = json.loads((folder / "model.json").read_text())
    model, vocab_size = config.Model(**made["model"]), made["vocab_size"]
    return *transformer.abstract(model, vocab_size, mesh), model, vocab_size


def load_params(
    folder: Path, mesh: jax.sharding.Mesh, step: int | None = None
) -> tuple[nnx.GraphDef, nnx.State, config.Model, int]:
    """The parameters of a finished run, on a mesh.

    Args:
      folder: the run's artifact.
      step: one of its `saved_steps`; None: the last.

    Returns:
      (graphdef, params, model config, vocabulary size).

    Raises:
      StageError: the checkpoint is damaged.
    """
    graphdef, abstract, model, vocab_size = described(folder, mesh)
    try:
        with ocp.CheckpointManager((folder / "checkpoints").absolute()) as manager:
            restored = manager.restore(
                manager.latest_step() if step is None else step,
                args=ocp.args.Composite(
                    params=ocp.args.StandardRestore(abstract), record=ocp.args.JsonRestore()
                ),
            )
        _check("params", restored["params"], restored["record"])
    except Exception as error:  # as in `restore`
        which = "final parameters" if step is None else f"parameters of step {step}"
        raise StageError(
            f"the {which} in {folder} cannot be read: {_first_line(error)}. If the files are "
            "damaged, delete that folder and run the same command to train it again"
        ) from error
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
