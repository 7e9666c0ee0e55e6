"""Several small runs at once: one program over stacked parameters, where one run alone leaves the device idle.

The runs share their settings and differ in mixture, seed and documents. Each sees the batches of `loop.fit`, leaves the
same files, and has the same numbers to rounding. One checkpoint holds them all. Only one process can do it.

Dimensions: N runs, M microbatches, B rows, S = T + 1 tokens of a row.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from jaxprune import config
from jaxprune.data.loader import Loader
from jaxprune.model import flops, transformer
from jaxprune.model.sharding import BATCH
from jaxprune.progress import say
from jaxprune.train import layout
from jaxprune.train.checkpoint import Checkpoints
from jaxprune.train.hardware import describe
from jaxprune.train.log import Clock, Window
from jaxprune.train.loop import train
from jaxprune.train.plan import Plan
from jaxprune.train.step import (
    StepMetrics,
    TrainState,
    TrainStep,
    abstract_optimizer,
    init_state,
    make_train_step,
)

Tree = Any


def fit_together(title: str, plans: Sequence[Plan], folder: Path) -> dict[str, Any]:
    """Trains all plans to the end, from wherever an earlier call in the same folder was stopped.

    Leaves in `folder/<n>` what `fit` leaves of plan n. The result is bitwise that of a call that was never stopped.

    Args:
      title: for messages.
      plans: of the same `run`, on the same store and mesh.
      folder: where the checkpoint of them all goes too.

    Returns:
      Counts for the manifest.

    Raises:
      Interrupted, Diverged, ValueError: as `fit`.
    """
    run, mesh, store = plans[0].run, plans[0].mesh, plans[0].store
    assert all((plan.run, plan.mesh, plan.store) == (run, mesh, store) for plan in plans)
    assert all(
        plan.strategy is None and plan.learner is None for plan in plans
    )  # weights that change differ between runs in time
    layout.check(run, mesh)
    folders = [folder / str(number) for number in range(len(plans))]
    for plan, own in zip(plans, folders, strict=True):
        own.mkdir(exist_ok=True)
        plan.write_model(own)
    with jax.set_mesh(mesh):
        checkpoints = Checkpoints(folder / "checkpoints", run.keep_checkpoints)
        graphdef, abstract = transformer.abstract(run.model, store.vocab_size, mesh)
        optimizer = abstract_optimizer(abstract, run.optimizer, run.steps, mesh)
        restored = checkpoints.restore(*(_stacked(tree, len(plans), mesh) for tree in (abstract, optimizer)))
        if restored is None:
            start, position = 0, {"windows": [{}] * len(plans), "clock": {}}
            state = _initial(plans)
        else:
            start, params, optimizer, position = restored
            state = TrainState(params, optimizer)
            say(f"{title}: continuing after step {start} of {run.steps}")
        loaders = [Loader(plan.source(plan.stages), step=start) for plan in plans]
        step_before = None if restored is None else start
        metrics = [plan.metrics(own, step_before) for plan, own in zip(plans, folders, strict=True)]
        try:
            clock = Clock(**position["clock"])
            windows = [Window(len(store.domains), **saved) for saved in position["windows"]]
            logs = [
                plan.log(lines, clock, window, loader)
                for plan, lines, window, loader in zip(plans, metrics, windows, loaders, strict=True)
            ]
            validation = plans[0].validation()
            step_fn = _make_step(graphdef, run.optimizer, run.steps, len(store.domains))

            def advance() -> StepMetrics:
                nonlocal state
                batches = [next(loader) for loader in loaders]
                state, current = step_fn(state, *_to_mesh(batches, run.microbatches, mesh))
                return current

            def log(step: int, current: StepMetrics) -> str:
                current = jax.device_get(current)
                for number, of_run in enumerate(logs):
                    of_run.step(step, _own(current, number))
                return logs[0].note

            def validate(step: int) -> None:
                values = validation.of_each(graphdef, state.params, mesh)
                for of_run, of_values in zip(logs, values, strict=True):
                    of_run.validation(step, of_values)

            def save(step: int) -> None:
                position = {
                    "windows": [window.state() for window in windows],
                    "clock": dataclasses.asdict(clock),
                }
                checkpoints.save(step, state.params, state.optimizer, position)

            if start == 0:
                say(
                    f"{title}: {len(plans)} x {flops.n_params(run.model, store.vocab_size):,} parameters, "
                    f"{run.steps} steps of {run.batch_rows} x {run.model.context} tokens, {describe(mesh)}"
                )
            train(
                title,
                run,
                start,
                mesh,
                clock,
                advance=advance,
                log=log,
                validate=validate,
                save=save,
                n_runs=len(plans),
            )
        finally:
            for opened in (*loaders, *metrics, checkpoints):
                if opened is not None:
                    opened.close()
        for number, (plan, own) in enumerate(zip(plans, folders, strict=True)):
            _write_end(plan, _own(state, number), own)
    return {"runs": len(plans), **plans[0].counts()}


def _write_end(plan: Plan, state: TrainState, folder: Path) -> None:
    """The one checkpoint that a finished run keeps."""
    checkpoints = Checkpoints(folder / "checkpoints", 1)
    stages = [dataclasses.asdict(stage) for stage in plan.stages]
    try:
        checkpoints.save(plan.run.steps, state.params, state.optimizer, {"stages": stages})
    finally:
        checkpoints.close()


@functools.lru_cache(maxsize=2)
def _make_step(graphdef: nnx.GraphDef, settings: config.Optimizer, steps: int, n_domains: int) -> TrainStep:
    """The step of one run, over states and batches stacked along a first axis."""
    return jax.jit(jax.vmap(make_train_step(graphdef, settings, steps, n_domains)), donate_argnums=0)


def _initial(plans: Sequence[Plan]) -> TrainState:
    """The states before the first step."""
    run, mesh, vocab_size = plans[0].run, plans[0].mesh, plans[0].store.vocab_size
    params = [transformer.create(run.model, vocab_size, plan.seed, mesh)[1] for plan in plans]
    together = jax.jit(lambda *trees: jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees))(*params)
    return jax.vmap(lambda params: init_state(params, run.optimizer, run.steps))(together)


def _own(tree: Tree, number: int) -> Tree:
    """What is stacked, of one run."""
    return jax.tree.map(lambda leaf: leaf[number], tree)


def _stacked(tree: Tree, n_runs: int, mesh: jax.sharding.Mesh) -> Tree:
    """Shapes and layouts of so many such trees, stacked; all devices share each of the runs."""

    def stacked(leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        sharding = NamedSharding(mesh, P(None, *leaf.sharding.spec))
        return jax.ShapeDtypeStruct((n_runs, *leaf.shape), leaf.dtype, sharding=sharding)

    return jax.tree.map(stacked, tree)


def _to_mesh(
    batches: Sequence[dict[str, np.ndarray]], microbatches: int, mesh: jax.sharding.Mesh
) -> tuple[jax.Array, jax.Array]:
    """This process's rows of every run as parts of global tokens_NMBS and domain_NMB."""
    tokens_NBS, domain_NB = (
        np.stack([batch[name] for batch in batches]) for name in ("tokens_BS", "domain_B")
    )
    tokens_NMBS = tokens_NBS.reshape(len(batches), microbatches, -1, tokens_NBS.shape[-1])
    domain_NMB = domain_NB.reshape(len(batches), microbatches, -1)
    sharding = NamedSharding(mesh, P(None, None, *BATCH))
    return (
        jax.make_array_from_process_local_data(sharding, tokens_NMBS),
        jax.make_array_from_process_local_data(sharding, domain_NMB),
    )
