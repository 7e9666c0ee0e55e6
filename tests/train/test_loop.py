"""One loop: resumed bitwise, the same on every mesh, and honest when it fails."""

import json
import os
import signal

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from jaxprune import config
from jaxprune.artifact import StageError
from jaxprune.model.sharding import make_mesh
from jaxprune.train.checkpoint import load_params
from jaxprune.train.log import Diverged, Log
from jaxprune.train.loop import Interrupted, fit
from jaxprune.train.metrics import read
from jaxprune.train.validation import Validation

TIMES = ("goodput", "tokens_per_s")


def _fit_until(plan, folder, monkeypatch, step, do):
    """Trains until the metrics of a step have been read, and then does something."""
    original = Log.step

    def then(self, at, metrics):
        original(self, at, metrics)
        if at == step:
            do()

    with monkeypatch.context() as patch:
        patch.setattr(Log, "step", then)
        fit(plan, folder)


def _die():
    raise MemoryError("killed")


def _same(folder, mesh, params):
    for ours, theirs in zip(_params(folder, mesh), params, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def _params(folder, mesh):
    with jax.set_mesh(mesh):
        return [np.asarray(leaf) for leaf in jax.tree.leaves(load_params(folder, mesh)[1])]


def _lines(folder):
    lines = read(folder / "metrics.jsonl")
    return [{name: value for name, value in line.items() if name not in TIMES} for line in lines]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """Final parameters and metrics of a run that nothing disturbed, made once."""
    made = {}

    def get(plan):
        if not made:
            folder = tmp_path_factory.mktemp("undisturbed")
            fit(plan, folder)
            made["params"], made["lines"] = _params(folder, plan.mesh), _lines(folder)
        return made["params"], made["lines"]

    return get


def test_it_learns_and_says_so(make_plan, undisturbed):
    _, lines = undisturbed(make_plan())
    losses = [line["loss"] for line in lines if "loss" in line]
    assert losses[-1] < losses[0] - 0.1
    heldout = [line for line in lines if "heldout" in line]
    assert [line["step"] for line in heldout] == [0, 5, 10, 12]
    assert heldout[-1]["heldout"] < heldout[0]["heldout"]
    last = [line for line in lines if "loss" in line][-1]
    shares = [value for name, value in last.items() if name.startswith("share/")]
    assert sum(shares) == pytest.approx(1)
    assert last["loss"] == pytest.approx(
        sum(last[f"loss/{d}"] * last[f"share/{d}"] for d in ("a", "b", "c")), rel=1e-5
    )


@pytest.mark.parametrize(("step", "saved"), [(1, None), (6, 4), (12, 8)])
def test_an_interrupted_run_continues_bitwise(
    make_plan, undisturbed, tmp_path, monkeypatch, capsys, step, saved
):
    """What was saved is not done again, and what was not is."""
    params, lines = undisturbed(make_plan())
    plan = make_plan()
    with pytest.raises(MemoryError):
        _fit_until(plan, tmp_path, monkeypatch, step, _die)
    capsys.readouterr()
    fit(plan, tmp_path)
    said = capsys.readouterr().err
    assert "damaged" not in said
    assert (f"continuing after step {saved} of 12" in said) if saved else ("continuing" not in said)
    _same(tmp_path, plan.mesh, params)
    assert _lines(tmp_path) == lines


def test_sigterm_saves_and_the_run_continues_bitwise(make_plan, undisturbed, tmp_path, monkeypatch, capsys):
    params, lines = undisturbed(make_plan())
    plan = make_plan(checkpoint_every=100)
    with pytest.raises(Interrupted, match="saved after step 8") as raised:
        _fit_until(plan, tmp_path, monkeypatch, 7, lambda: os.kill(os.getpid(), signal.SIGTERM))
    assert raised.value.status == 143
    fit(plan, tmp_path)
    assert "continuing after step 8 of 12" in capsys.readouterr().err
    _same(tmp_path, plan.mesh, params)
    assert _lines(tmp_path) == lines


def test_a_request_to_stop_during_validation_is_not_lost(make_plan, tmp_path, monkeypatch):
    plan = make_plan(checkpoint_every=100)
    original = Validation.__call__
    calls = []

    def stop(self, *arguments):
        calls.append(None)
        if len(calls) == 2:  # the first is before step 1, the second after step 5
            os.kill(os.getpid(), signal.SIGTERM)
        return original(self, *arguments)

    monkeypatch.setattr(Validation, "__call__", stop)
    with pytest.raises(Interrupted, match="saved after step 5"):
        fit(plan, tmp_path)
    assert (tmp_path / "checkpoints" / "5").is_dir()


def test_a_damaged_checkpoint_is_set_aside_for_the_one_before(
    make_plan, undisturbed, tmp_path, monkeypatch, capsys
):
    params, _ = undisturbed(make_plan())
    plan = make_plan()
    with pytest.raises(MemoryError):
        _fit_until(plan, tmp_path, monkeypatch, 10, _die)
    # Saved bytes are compressed; writing a leaf with one bit flipped is the damage that restores silently.
    saved = tmp_path / "checkpoints" / "8" / "params"
    with ocp.StandardCheckpointer() as checkpointer:
        tree = checkpointer.restore(saved.absolute())
        first, *_ = jax.tree.leaves(tree)
        flipped = np.asarray(first).copy()
        flipped.view(np.uint32).flat[5] ^= 1
        tree = jax.tree.map(lambda leaf: flipped if leaf is first else leaf, tree)
        checkpointer.save(saved.absolute(), tree, force=True)
    fit(plan, tmp_path)
    said = capsys.readouterr().err
    assert "checkpoint 8 is damaged and is passed over: the digest of params" in said
    assert "continuing after step 4 of 12" in said
    assert [path.name.split("-")[0] for path in (tmp_path / "damaged").iterdir()] == ["8"]
    _same(tmp_path, plan.mesh, params)


def test_a_fault_that_is_not_damage_loses_nothing(make_plan, tmp_path, monkeypatch):
    plan = make_plan()
    with pytest.raises(MemoryError):
        _fit_until(plan, tmp_path, monkeypatch, 10, _die)
    before = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())

    def fails(*_, **__):
        raise RuntimeError("RESOURCE_EXHAUSTED: out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(ocp.CheckpointManager, "restore", fails)
        with pytest.raises(StageError, match="of step 8: RESOURCE_EXHAUSTED"):
            fit(plan, tmp_path)
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == before


MESHES = {
    "2": config.Mesh(fsdp=2),
    "8": config.Mesh(fsdp=8),
    "4x2": config.Mesh(fsdp=4, tensor=2),
    "2x2x2": config.Mesh(replica=2, fsdp=2, tensor=2),
}


@pytest.mark.parametrize("mesh", MESHES)
def test_meshes_and_device_counts_give_the_same_losses(make_plan, undisturbed, tmp_path, mesh):
    _, lines = undisturbed(make_plan())
    devices = jax.devices()[: 2 if mesh == "2" else 8]
    fit(make_plan(mesh=make_mesh(MESHES[mesh], devices)), tmp_path)
    for ours, theirs in zip(_lines(tmp_path), lines, strict=True):
        for name, value in theirs.items():
            assert ours[name] == pytest.approx(value, rel=2e-4), name


def test_a_run_continues_on_another_mesh(make_plan, undisturbed, tmp_path, monkeypatch, capsys):
    _, lines = undisturbed(make_plan())
    plan = make_plan(mesh=make_mesh(MESHES["4x2"], jax.devices()))
    with pytest.raises(MemoryError):
        _fit_until(plan, tmp_path, monkeypatch, 6, _die)
    fit(make_plan(), tmp_path)
    said = capsys.readouterr().err
    assert "continuing after step 4 of 12" in said and "damaged" not in said
    for ours, theirs in zip(_lines(tmp_path), lines, strict=True):
        for name, value in theirs.items():
            assert ours[name] == pytest.approx(value, rel=2e-4), name


@pytest.mark.parametrize("optimizer", ["lion", "muon"])
def test_every_optimizer_learns_on_a_mesh(make_plan, tmp_path, optimizer):
    mesh = make_mesh(MESHES["2x2x2"], jax.devices())
    fit(make_plan(mesh=mesh, optimizer={"name": optimizer}), tmp_path)
    heldout = [line["heldout"] for line in _lines(tmp_path) if "heldout" in line]
    assert heldout[-1] < heldout[0] - 0.05


def test_microbatches_change_nothing_but_rounding(make_plan, undisturbed, tmp_path):
    _, lines = undisturbed(make_plan())
    fit(make_plan(microbatches=4), tmp_path)
    for ours, theirs in zip(_lines(tmp_path), lines, strict=True):
        for name, value in theirs.items():
            assert ours[name] == pytest.approx(value, rel=2e-4), name


def test_a_loss_that_is_not_finite_stops_the_run_and_is_not_saved(make_plan, tmp_path):
    plan = make_plan(optimizer={"peak_lr": 1e30, "clip": None, "warmup": 0.0}, checkpoint_every=1)
    with pytest.raises(Diverged, match=r"the loss of step \d+ is (nan|inf)"):
        fit(plan, tmp_path)
    lines = (tmp_path / "metrics.jsonl").read_text()
    assert "NaN" not in lines
    saved = sorted(int(p.name) for p in (tmp_path / "checkpoints").iterdir() if p.name.isdigit())
    for step in saved:
        record = json.loads((tmp_path / "checkpoints" / str(step) / "record" / "metadata").read_text())
        assert np.isfinite(record["position"]["window"]["nll"]).all()


def test_a_batch_that_does_not_fit_the_mesh_is_refused(make_plan, tmp_path):
    with pytest.raises(ValueError, match="batch_rows is 4: make it a multiple of"):
        fit(make_plan(batch_rows=4, mesh=make_mesh(MESHES["8"], jax.devices())), tmp_path)


@pytest.mark.parametrize(("batch_rows", "devices"), [(64, 1), (64, 8), (8, 8)])
def test_held_out_slices_are_not_padded_to_a_microbatch(make_plan, batch_rows, devices):
    """Online mixing asks for them after every segment."""
    mesh = make_mesh(config.Mesh(fsdp=devices), jax.devices()[:devices])
    plan = make_plan(mesh=mesh, batch_rows=batch_rows)
    small = plan.validation(2)
    n_rows = int((small.length_R > 0).sum())
    assert n_rows <= len(small.rows_RS) < n_rows + devices
    assert small.batch_rows % devices == 0 and len(small.rows_RS) % small.batch_rows == 0
    assert plan.validation(10_000).batch_rows == batch_rows  # and no more than that at once
