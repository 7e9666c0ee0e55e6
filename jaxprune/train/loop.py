"""The training loop: the same for the reference, the proxies and the final model.

Dimensions: M microbatches, B rows, S = T + 1 tokens of a row, K domains.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from jaxprune import config
from jaxprune.artifact import StageError
from jaxprune.data.loader import Loader
from jaxprune.data.mixture import Stage
from jaxprune.model import attention, flops, transformer
from jaxprune.progress import meter, say
from jaxprune.train import layout, stop
from jaxprune.train.checkpoint import Checkpoints
from jaxprune.train.feed import Feed
from jaxprune.train.hardware import describe
from jaxprune.train.learner import LearningStep
from jaxprune.train.log import Clock, Window
from jaxprune.train.plan import Plan
from jaxprune.train.profile import Profile
from jaxprune.train.step import StepMetrics, TrainState, abstract_optimizer, init_state, make_train_step
from jaxprune.train.validation import Validation


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
    layout.check(run, mesh)
    # 1. What the parameters are, for whoever loads them.
    plan.write_model(folder)
    with jax.set_mesh(mesh):
        # 2. The state: the newest whole checkpoint, or a fresh start.
        checkpoints = Checkpoints(folder / "checkpoints", run.keep_checkpoints, plan.keep_steps)
        graphdef, abstract = transformer.abstract(run.model, vocab_size, mesh)
        restored = checkpoints.restore(abstract, abstract_optimizer(abstract, run.optimizer, run.steps, mesh))
        if restored is None:
            start, position = 0, {}
            _, params = transformer.create(run.model, vocab_size, plan.seed, mesh)
            state = init_state(params, run.optimizer, run.steps)
        else:
            start, params, optimizer, position = restored
            state = TrainState(params, optimizer)
            say(f"{plan.title}: continuing after step {start} of {run.steps}")
        # 3. Metrics and the history of the mixture, without the lines after the checkpoint.
        metrics = plan.metrics(folder, None if restored is None else start)

        def losses(of: Validation) -> dict[str, float]:
            return of(graphdef, state.params, mesh)

        mixer = plan.mixer(folder, losses, start, position.get("mixing"))
        # 4. The loader of this process's rows, whose whole position is the step.
        feed = Feed(mesh, run.batch_rows, run.microbatches)
        if restored is not None:
            stages = tuple(Stage(start=s["start"], weights=tuple(s["weights"])) for s in position["stages"])
        else:
            stages = plan.stages if mixer is None else (*plan.stages, *mixer.begin(plan.mixing_start))
        loader = Loader(plan.source(stages, feed.rows), step=start)
        profile = Profile(folder / "profile", plan.profile)
        # 5. The rest of the run.
        try:
            clock = Clock(**position.get("clock", {}))
            window = Window(len(plan.store.domains), **position.get("window", {}))
            validation, log = plan.validation(), plan.log(metrics, clock, window, loader)
            learning: LearningStep | None = None
            if plan.learner is not None:
                learning = plan.learner.step(graphdef, run, mesh, position.get("learnt"))
            step_fn = learning or make_train_step(graphdef, run.optimizer, run.steps, len(plan.store.domains))

            def advance() -> StepMetrics:
                nonlocal state
                state, current = step_fn(state, *feed(next(loader)))
                return current

            def note_step(step: int, current: StepMetrics) -> str:
                log.step(step, current)
                if mixer is not None and (stage := mixer.observe(step, current)) is not None:
                    loader.append(stage)
                return log.note

            def is_mixed(step: int) -> bool:
                return mixer is not None and mixer.due(step)

            def mix(step: int) -> None:
                assert mixer is not None
                loader.append(mixer.decide(step))

            def validate(step: int) -> None:
                log.validation(step, losses(validation))

            def save(step: int) -> None:
                position = {
                    "stages": [dataclasses.asdict(stage) for stage in loader.source.schedule.stages],
                    "window": window.state(),
                    "clock": dataclasses.asdict(clock),
                }
                if mixer is not None:
                    position["mixing"] = mixer.state()
                if learning is not None:
                    position["learnt"] = learning.state()
                checkpoints.save(step, state.params, state.optimizer, position)

            if start == 0:
                say(
                    f"{plan.title}: {flops.n_params(run.model, vocab_size):,} parameters, "
                    f"{run.steps} steps of {run.batch_rows} x {run.model.context} tokens, "
                    f"{attention.choose(run.model, mesh)} attention, {describe(mesh)}"
                )
            train(
                plan.title,
                run,
                start,
                mesh,
                clock,
                advance=advance,
                log=note_step,
                validate=validate,
                save=save,
                is_mixed=is_mixed,
                mix=mix,
                keep_steps=plan.keep_steps,
                profile=profile,
            )
            if learning is not None:
                learning.write(folder)
            checkpoints.thin()
        finally:
            for opened in (profile, loader, mixer, metrics, checkpoints):
                if opened is not None:
                    opened.close()
    if mixer is None:
        return plan.counts()
    epochs_K = loader.source.epochs(run.steps).tolist()
    by_domain = dict(zip(plan.store.domains, epochs_K, strict=True))
    return plan.counts() | {"epochs": by_domain, "mixing": mixer.cost(clock.seconds)}


def train(
    title: str,
    run: config.Run,
    start: int,
    mesh: jax.sharding.Mesh,
    clock: Clock,
    *,
    advance: Callable[[], StepMetrics],
    log: Callable[[int, StepMetrics], str],
    validate: Callable[[int], None],
    save: Callable[[int], None],
    is_mixed: Callable[[int], bool] = lambda step: False,
    mix: Callable[[int], None] = lambda step: None,
    keep_steps: tuple[int, ...] = (),
    profile: Profile | None = None,
    n_runs: int = 1,
) -> None:
    """The loop itself, over the steps after `start`: when to step, to log, to validate, to save, and to stop.

    Args:
      title: for messages.
      run: how many steps there are, and which of them validate and save.
      start: steps that are done.
      mesh: whose processes stop after the same step.
      clock: runs while it steps.
      advance: dispatches the next step.
      log: reads the metrics of a step and returns what is shown behind the bar; raises `Diverged`.
      validate: takes the held-out losses after a step; before the first, after step 0.
      save: starts saving the state after a step.
      is_mixed: whether the weights change after a step, by its held-out losses.
      mix: changes them.
      keep_steps: saved too.
      profile: traces some steps.
      n_runs: trained at once.

    Raises:
      Interrupted: after SIGTERM or SIGINT, and after saving.
    """
    tokens_a_step = n_runs * run.batch_rows * run.model.context
    note = "compiling"
    with meter(title, run.steps * tokens_a_step, "tok") as bar, stop.requests(mesh) as asked_to_stop:
        bar.skip(start * tokens_a_step)
        bar.tell(note)
        if start == 0:
            validate(0)
        previous: StepMetrics | None = None
        clock.resume()
        for step in range(start + 1, run.steps + 1):
            if profile is not None:
                profile.before(step)
            current = advance()
            if profile is not None:
                profile.after(step, current)
            # Reading a step's metrics only after the next was dispatched keeps the device busy.
            if previous is not None:
                note = log(step - 1, previous)
            previous = current
            bar.add(tokens_a_step, note=note)
            last = step == run.steps
            is_validated = last or (run.validate_every > 0 and step % run.validate_every == 0)
            is_saved = last or step % run.checkpoint_every == 0 or step in keep_steps
            stopped_by = asked_to_stop()
            if is_validated or is_saved or stopped_by or is_mixed(step):
                note = log(step, previous)  # a step that diverged must not be saved
                previous = None
                clock.pause()
                if is_mixed(step):
                    mix(step)
                if is_validated:
                    validate(step)
                stopped_by = stopped_by or asked_to_stop()  # during validation too
                if is_saved or stopped_by:
                    save(step)
                clock.resume()
                if stopped_by and not last:
                    raise Interrupted(
                        f"{title}: saved after step {step}; the same command continues", stopped_by
                    )
