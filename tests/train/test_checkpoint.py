"""What a finished run keeps of its checkpoints."""

import jax
import numpy as np
import pytest

from jaxprune.artifact import StageError
from jaxprune.train.checkpoint import load_params, saved_steps
from jaxprune.train.loop import fit


def test_a_finished_run_keeps_the_parameters_of_its_last_checkpoints(make_plan, tmp_path):
    plan = make_plan(keep_checkpoints=3, checkpoint_every=3)
    fit(plan, tmp_path)
    assert saved_steps(tmp_path) == [6, 9, 12]
    folders = {step: tmp_path / "checkpoints" / str(step) for step in (6, 9, 12)}
    size = {
        step: sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        for step, folder in folders.items()
    }
    assert max(size[6], size[9]) < size[12] / 2  # the optimizer has two moments
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
