"""The training loop: the same for the reference, the proxies and the final model.

Dimensions: M microbatches, B rows, S = T + 1 tokens of a row, K domains.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxprune import cluster, config
from jaxprune.artifact import StageError, write_json
from jaxprune.data.loader import Loader
from jaxprune.data.mixture import MixtureSource, Stage
from jaxprune.data.store import TokenStore
from jaxprune.model import flops, transformer
from jaxprune.progress import meter, say
from jaxprune.train import layout, stop
from jaxprune.train.checkpoint import Checkpoints
from jaxprune.train.feed import Feed
from jaxprune.train.hardware import describe
from jaxprune.train.log import Clock, Log, Window
from jaxprune.train.metrics import Metrics
from jaxprune.train.step import StepMetrics, TrainState, abstract_optimizer, init_state, make_train_step
from jaxprune.train.validation import Validation


@dataclass(frozen=True, kw_only=True)
class Plan:
    """One run: what is trained, on which documents, in which proportions."""

    title: str
    run: config.Run
    store: TokenStore
    documents: np.ndarray  # int64 numbers of the documents to train on
    stages: tuple[Stage, ...]  # mixture weights over steps
    seed: int  # of the initial weights and of the order of the rows
    mesh: jax.sharding.Mesh
    backends: tuple[str, ...] = ()
    keep_steps: tuple[int, ...] = ()  # whose parameters stay when the run is finished, beside the last


class Interrupted(StageError):
    """The run was asked to stop by a signal, and saved its state first."""

    def __init__(self, message: str, by: int) -> None:
        super().__init__(message)
        self.status = 128 + by  # as shells report it


def fit(plan: Plan, folder: Path) -> dict[str, Any]:
    """Trains to the end, from wherever an earlier call in the same folder was stopped.

    The result is bitwise that of a run that was never stopped. SIGTERM and SIGINT save and raise.

    Args:
      plan: the run.
      folder: where checkpoints and metrics go, and from where they are resumed.

    Returns:
      Counts for the manifest.

    Raises:
      Interrupted: after SIGTERM or SIGINT; the state is saved.
      Diverged: the loss of the step that it names is not finite; the checkpoints before it stand.
      ValueError: the batch cannot be laid out on the mesh.
    """
    run, mesh, vocab_size = plan.run, plan.mesh, plan.store.vocab_size
    rows_on_mesh = mesh.shape["replica"] * mesh.shape["fsdp"]
    layout.check(run, mesh)
    # 1. What the parameters are, for whoever loads them.
    if cluster.is_first():
        write_json(
            folder / "model.json",
            {"model": dataclasses.asdict(run.model), "vocab_size": vocab_size},
        )
    with jax.set_mesh(mesh):
        # 2. The state: the newest whole checkpoint, or a fresh start.
        checkpoints = Checkpoints(folder / "checkpoints", run.keep_checkpoints, plan.keep_steps)
        graphdef, abstract = transformer.abstract(run.model, vocab_size, mesh)
        restored = checkpoints.restore(abstract, abstract_optimizer(abstract, run.optimizer, run.steps, mesh))
        if restored is None:
            start = 0
            position: dict[str, Any] = {"stages": [dataclasses.asdict(s) for s in plan.stages]}
            _, params = transformer.create(run.model, vocab_size, plan.seed, mesh)
            state = init_state(params, run.optimizer, run.steps)
        else:
            start, params, optimizer, position = restored
            state = TrainState(params, optimizer)
            say(f"{plan.title}: continuing after step {start} of {run.steps}")
        # 3. The loader of this process's rows, whose whole position is the step.
        feed = Feed(mesh, run.batch_rows, run.microbatches)
        source = MixtureSource(
            plan.store,
            plan.documents,
            context=run.model.context,
            batch_rows=run.batch_rows,
            stages=tuple(Stage(start=s["start"], weights=tuple(s["weights"])) for s in position["stages"]),
            seed=plan.seed,
            rows=feed.rows,
        )
        loader = Loader(source, step=start)
        # 4. Metrics, without the lines after the checkpoint.
        metrics = None
        if cluster.is_first():
            metrics = Metrics(folder, -1 if restored is None else start, plan.backends)
        # 5. The rest of the run.
        try:
            clock = Clock(**position.get("clock", {}))
            window = Window(len(plan.store.domains), **position.get("window", {}))
            validation = Validation(
                plan.store,
                context=run.model.context,
                rows=run.validation_rows,
                batch_rows=max(run.batch_rows // run.microbatches, rows_on_mesh),
            )
            step_fn = make_train_step(graphdef, run.optimizer, run.steps, len(plan.store.domains))
            log = Log(
                plan.title,
                run,
                domains=plan.store.domains,
                vocab_size=vocab_size,
                mesh=mesh,
                metrics=metrics,
                clock=clock,
                window=window,
            )

            def save(step: int) -> None:
                position = {
                    "stages": [dataclasses.asdict(stage) for stage in loader.source.schedule.stages],
                    "window": window.state(),
                    "clock": dataclasses.asdict(clock),
                }
                checkpoints.save(step, state.params, state.optimizer, position)

            if start == 0:
                say(
                    f"{plan.title}: {flops.n_params(run.model, vocab_size):,} parameters, "
                    f"{run.steps} steps of {run.batch_rows} x {run.model.context} tokens, {describe(mesh)}"
                )
            tokens_a_step = run.batch_rows * run.model.context
            with (
                meter(plan.title, run.steps * tokens_a_step, "tok") as bar,
                stop.requests(mesh) as asked_to_stop,
            ):
                bar.skip(start * tokens_a_step)
                bar.tell("compiling")
                if start == 0:
                    log.validation(0, validation(graphdef, state.params, mesh))
                previous: StepMetrics | None = None
                clock.resume()
                for step in range(start + 1, run.steps + 1):
                    state, current = step_fn(state, *feed(next(loader)))
                    # Reading a step's metrics only after the next was dispatched keeps the device busy.
                    if previous is not None:
                        log.step(step - 1, previous)
                    previous = current
                    bar.add(tokens_a_step, note=log.note)
                    last = step == run.steps
                    validate = last or (run.validate_every > 0 and step % run.validate_every == 0)
                    checkpoint = last or step % run.checkpoint_every == 0 or step in plan.keep_steps
                    stopped_by = asked_to_stop()
                    if validate or checkpoint or stopped_by:
                        log.step(step, previous)  # a step that diverged must not be saved
                        previous = None
                        clock.pause()
                        if validate:
                            log.validation(step, validation(graphdef, state.params, mesh))
                        stopped_by = stopped_by or asked_to_stop()  # during validation too
                        if checkpoint or stopped_by:
                            save(step)
                        clock.resume()
                        if stopped_by and not last:
                            raise Interrupted(
                                f"{plan.title}: saved after step {step}; the same command continues",
                                stopped_by,
                            )
                checkpoints.thin()
        finally:
            loader.close()
            if metrics is not None:
                metrics.close()
            checkpoints.close()
    return {
        "steps": run.steps,
        "tokens": run.steps * run.batch_rows * run.model.context,
        "documents": len(plan.documents),
        "parameters": flops.n_params(run.model, vocab_size),
        "train_flops": run.steps
        * run.batch_rows
        * run.model.context
        * flops.train_flops_per_token(run.model, vocab_size, run.model.context),
        "devices": describe(mesh),
    }
