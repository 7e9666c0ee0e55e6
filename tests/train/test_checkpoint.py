"""What a finished run keeps of its checkpoints."""

import dataclasses
import os
import signal

import jax
import numpy as np
import pytest

from jaxprune.artifact import StageError
from jaxprune.train.checkpoint import load_params, saved_steps
from jaxprune.train.log import Log
from jaxprune.train.loop import Interrupted, fit

KEEP = (5, 6, 12)


def test_a_finished_run_keeps_its_end(make_plan, tmp_path):
    fit(make_plan(keep_checkpoints=3, checkpoint_every=3), tmp_path)
    assert saved_steps(tmp_path) == [12]


def test_steps_that_are_asked_for_stay_whatever_interrupts_the_run(make_plan, tmp_path, monkeypatch):
    plan = dataclasses.replace(make_plan(keep_checkpoints=1, checkpoint_every=4), keep_steps=KEEP)
    for name in ("undisturbed", "interrupted"):
        (tmp_path / name).mkdir()
    fit(plan, tmp_path / "undisturbed")
    original = Log.step
    for stop in (2, 5, 9):

        def then(self, at, metrics, stop=stop):
            original(self, at, metrics)
            if at == stop:
                os.kill(os.getpid(), signal.SIGTERM)

        with monkeypatch.context() as patch, pytest.raises(Interrupted):
            patch.setattr(Log, "step", then)
            fit(plan, tmp_path / "interrupted")
    fit(plan, tmp_path / "interrupted")
    assert saved_steps(tmp_path / "undisturbed") == saved_steps(tmp_path / "interrupted") == list(KEEP)
    with jax.set_mesh(plan.mesh):
        for step in KEEP:
            ours, theirs = (
                load_params(tmp_path / name, plan.mesh, step)[1] for name in ("undisturbed", "interrupted")
            )
            jax.tree.map(np.testing.assert_array_equal, ours, theirs)


def test_steps_that_are_asked_for_keep_their_parameters_only(make_plan, tmp_path):
    plan = dataclasses.replace(make_plan(), keep_steps=KEEP)
    fit(plan, tmp_path)
    folders = {step: tmp_path / "checkpoints" / str(step) for step in KEEP}
    size = {
        step: sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        for step, folder in folders.items()
    }
    assert max(size[5], size[6]) < size[12] / 2  # the optimizer has two moments
    with jax.set_mesh(plan.mesh):
        early, late, last = (
            [np.asarray(leaf) for leaf in jax.tree.leaves(load_params(tmp_path, plan.mesh, step)[1])]
            for step in (6, 12, None)
        )
    assert all((a != b).any() for a, b in zip(early, late, strict=True))
    assert all((a == b).all() for a, b in zip(late, last, strict=True))


def test_a_step_that_is_not_there_is_an_error_that_names_it(make_plan, tmp_path):
    plan = make_plan()
    fit(plan, tmp_path)
    with pytest.raises(StageError, match="the parameters of step 5 in .* cannot be read"):
        load_params(tmp_path, plan.mesh, 5)
