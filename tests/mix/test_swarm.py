"""Proxies: what they draw from, what they leave behind, and that nothing but rounding depends on how they were run."""

import csv
import dataclasses
import os
import signal
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from scoring import mesh_of, write_store

from jaxprune import cli, config
from jaxprune.artifact import ArtifactMissing, Workdir, read_manifest, write_json
from jaxprune.data.store import TRAIN, TokenStore
from jaxprune.mix import mixtures, proxies, swarm
from jaxprune.pipeline import mix_swarm
from jaxprune.train.checkpoint import Checkpoints, load_params
from jaxprune.train.log import Diverged, Log

DOMAINS = ("a", "b", "c")
STEPS, ROWS, CONTEXT = 12, 8, 16
ROUNDING = 5e-6  # of twelve steps in float32, each of which may be some units of 6e-8 off


def documents(n: int = 120) -> list[np.ndarray]:
    """Of three domains in turn, each with a third of the vocabulary."""
    rng = np.random.default_rng(0)
    return [
        np.concatenate([[0], 1 + number % 3 * 32 + rng.integers(0, 32, int(rng.integers(30, 90)))])
        for number in range(n)
    ]


def settings(final: int = 3, **fields) -> config.Config:
    """Four mixtures, models of d_model 32, twelve steps; the final run has `final` times the tokens."""
    proxy = config.Run(
        model=config.Model(d_model=32, n_layers=2, n_heads=4, context=CONTEXT, dtype="float32"),
        optimizer=config.Optimizer(peak_lr=3e-3, warmup=0.2),
        tokens=STEPS * ROWS * CONTEXT,
        batch_rows=ROWS,
        validation_rows=2,
        checkpoint_every=5,
        log_every=3,
    )
    of_swarm = {"design": "maximin", "floor": 0.05, "runs": 4, "checkpoints": 3, "together": 1} | fields
    return config.Config(
        name="swarm",
        swarm=config.Swarm(proxy=proxy, **of_swarm),
        final=dataclasses.replace(proxy, tokens=final * proxy.tokens),
        arms=("none",),
        metrics=(),
    )


def prepare(root: Path) -> Workdir:
    workdir = Workdir(root)
    write_store(workdir.prepare / "tokens", documents())
    write_json(workdir.prepare / "manifest.json", {"stage": "prepare", "settings": {}})
    return workdir


def on_one_device(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(swarm, "make_mesh", lambda _: mesh_of(1, fsdp=1))


def when(patch: pytest.MonkeyPatch, title: str, step: int, do) -> None:
    """Does something when the metrics of a step of the run with this title are read."""
    original = Log.step

    def then(self, at, metrics):
        original(self, at, metrics)
        if self.title == title and at == step:
            do()

    patch.setattr(Log, "step", then)


def killed(root: str) -> None:
    """Runs the swarm in a process that dies in its third proxy; saving step 10 has waited for step 5."""
    with pytest.MonkeyPatch.context() as patch:
        on_one_device(patch)
        when(patch, "proxy 002-0", STEPS, lambda: os.kill(os.getpid(), signal.SIGKILL))
        mix_swarm(settings(), prepare(Path(root)))


@pytest.fixture(autouse=True)
def one_device(monkeypatch):
    on_one_device(monkeypatch)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> Workdir:
    """A swarm trained one proxy after the other."""
    workdir = prepare(tmp_path_factory.mktemp("one_by_one"))
    with pytest.MonkeyPatch.context() as patch:
        on_one_device(patch)
        mix_swarm(settings(), workdir)
    return workdir


@pytest.fixture(scope="module")
def together(tmp_path_factory) -> Workdir:
    """The same swarm, trained as one program, which was stopped on the way."""
    workdir = prepare(tmp_path_factory.mktemp("together"))
    with pytest.MonkeyPatch.context() as patch:
        on_one_device(patch)
        mix_swarm(settings(together=4), workdir)
    return workdir


def rows(workdir: Workdir) -> list[dict[str, str]]:
    with (workdir.table / "table.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_the_table_has_a_row_for_each_checkpoint_of_each_run(undisturbed):
    table = rows(undisturbed)
    columns = [
        "run_id",
        "params",
        "step",
        "tokens",
        *(f"w_{d}" for d in DOMAINS),
        *(f"loss_{d}" for d in DOMAINS),
    ]
    assert list(table[0]) == columns
    assert [(row["run_id"], row["step"]) for row in table] == [
        (f"{mixture:03d}-0", str(step)) for mixture in range(4) for step in (4, 8, 12)
    ]
    model = settings().swarm.proxy.model
    matrices = model.n_layers * 12 * model.d_model**2
    vectors = model.n_layers * 13 * model.d_model + 2 * model.d_model
    designed = mixtures.read(undisturbed.design / "mixtures.csv")
    for row in table:
        assert int(row["params"]) == matrices + vectors
        assert int(row["tokens"]) == int(row["step"]) * ROWS * CONTEXT
        assert {d: float(row[f"w_{d}"]) for d in DOMAINS} == pytest.approx(designed[row["run_id"]], rel=1e-12)
        assert sum(float(row[f"w_{d}"]) for d in DOMAINS) == pytest.approx(1)
    assert read_manifest(undisturbed.table).counts["params"] == "non-embedding"


@pytest.mark.parametrize("how", ["undisturbed", "together"])
def test_losses_are_those_of_the_saved_parameters_on_the_same_rows(how, request):
    workdir = request.getfixturevalue(how)
    last = {row["run_id"]: row for row in rows(workdir)}
    for proxy in swarm.proxies_of(settings(), workdir):
        with jax.set_mesh(proxy.plan.mesh):
            graphdef, params, *_ = load_params(workdir.proxy(proxy.name), proxy.plan.mesh)
            found = proxy.plan.validation()(graphdef, params, proxy.plan.mesh)
        for domain in DOMAINS:
            assert float(last[proxy.name][f"loss_{domain}"]) == pytest.approx(
                found[f"heldout/{domain}"], rel=ROUNDING
            )


def test_a_domain_is_learnt_better_where_it_has_more_weight(undisturbed):
    last = list({row["run_id"]: row for row in rows(undisturbed)}.values())
    for domain in DOMAINS:
        ordered = sorted(last, key=lambda row: float(row[f"w_{domain}"]))
        assert float(ordered[-1][f"loss_{domain}"]) < float(ordered[0][f"loss_{domain}"])


def test_a_killed_swarm_ends_in_the_same_table(undisturbed, tmp_path, capsys):
    here = Path(__file__).parent
    paths = os.pathsep.join([str(here), str(here.parent), os.environ.get("PYTHONPATH", "")])
    program = f"import test_swarm; test_swarm.killed({str(tmp_path)!r})"
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | {"PYTHONPATH": paths},
        capture_output=True,
        text=True,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    workdir = Workdir(tmp_path)
    assert not workdir.table.exists()
    mix_swarm(settings(), workdir)
    said = capsys.readouterr().err
    assert "2 of 4 proxies are trained already" in said
    assert "proxy 002-0: continuing after step " in said
    assert (workdir.table / "table.csv").read_bytes() == (undisturbed.table / "table.csv").read_bytes()


def test_together_they_are_what_they_are_one_by_one(undisturbed, together):
    for ours, theirs in zip(rows(together), rows(undisturbed), strict=True):
        for column, value in theirs.items():
            if column.startswith("loss_"):
                assert float(ours[column]) == pytest.approx(float(value), rel=ROUNDING), theirs["run_id"]
            else:
                assert ours[column] == value
    assert not any(together.proxies_together.iterdir())


def test_a_stopped_group_continues_bitwise(together, tmp_path, monkeypatch, capsys):
    def die(*_, **__):
        raise MemoryError("killed")

    def then_die(self, step, params, optimizer, position):
        original(self, step, params, optimizer, position)
        if "windows" not in position:  # of one run
            die()

    original = Checkpoints.save
    workdir = prepare(tmp_path)
    for moment in ("training", "writing its runs", "handing them out"):
        with monkeypatch.context() as patch, pytest.raises(MemoryError):
            if moment == "training":
                when(patch, "proxy 003-0", 7, die)
            elif moment == "writing its runs":
                patch.setattr(Checkpoints, "save", then_die)
            else:
                patch.setattr(swarm.shutil, "copytree", die)
            mix_swarm(settings(together=4), workdir)
    said = capsys.readouterr().err
    assert "proxies 000-0 to 003-0: continuing after step 5 of 12" in said
    assert "proxies 000-0 to 003-0: continuing after step 12 of 12" in said
    monkeypatch.setattr(swarm, "fit_together", None)  # nothing is trained again
    mix_swarm(settings(together=4), workdir)
    assert (workdir.table / "table.csv").read_bytes() == (together.table / "table.csv").read_bytes()


def test_what_is_trained_is_not_trained_again_however_it_was(undisturbed, together, monkeypatch, capsys):
    monkeypatch.setattr(swarm, "fit", None)
    monkeypatch.setattr(swarm, "fit_together", None)
    mix_swarm(settings(together=4), undisturbed)
    mix_swarm(settings(together=1), together)
    assert "made again" not in capsys.readouterr().err
    with pytest.raises(TypeError):  # other losses are asked for
        mix_swarm(settings(checkpoints=4), undisturbed)


def test_batches_have_the_weights_of_the_mixture(undisturbed):
    designed = mixtures.read(undisturbed.design / "mixtures.csv")
    for proxy in swarm.proxies_of(settings(), undisturbed):
        source = proxy.plan.source(proxy.plan.stages)
        domain_R = np.concatenate([source[step]["domain_B"] for step in range(STEPS)])
        for number, domain in enumerate(DOMAINS):
            wanted = designed[proxy.name][domain] * STEPS * ROWS
            assert abs(np.count_nonzero(domain_R == number) - wanted) < 1.5


@pytest.mark.parametrize("final", [2, 5])
def test_simulated_epochs_repeat_a_domain_as_often_as_the_final_run(tmp_path, final):
    workdir = prepare(tmp_path)
    store = TokenStore(workdir.prepare / "tokens")
    whole_K = proxies.tokens_of(store, store.documents(TRAIN))
    pool = proxies.pool(settings(final), workdir, store)
    assert pool.share == 1 / final
    longest = int(np.diff(store.offsets_N1).max())
    left_K = proxies.tokens_of(store, pool.documents)
    assert (np.abs(left_K - whole_K / final) <= longest / 2).all()  # the nearest number of documents
    assert set(pool.documents) < set(store.documents(TRAIN))
    assert set(pool.documents) <= set(proxies.pool(settings(1), workdir, store).documents)
    # A weight of 1 is one epoch or more, in both, of the tokens that are left.
    epochs_K = STEPS * ROWS / pool.rows_K
    of_final_K = final * STEPS * ROWS / ((whole_K - 1) // CONTEXT)
    assert epochs_K == pytest.approx(of_final_K, rel=(longest / 2 + CONTEXT) / left_K.min())


def test_without_simulated_epochs_nothing_is_cut(tmp_path):
    workdir = prepare(tmp_path)
    store = TokenStore(workdir.prepare / "tokens")
    pool = proxies.pool(settings(simulate_epochs=False), workdir, store)
    assert pool.share == 1
    np.testing.assert_array_equal(pool.documents, store.documents(TRAIN))


def test_a_cut_leaves_a_row_and_says_so(tmp_path, capsys):
    workdir = prepare(tmp_path)
    assert (proxies.pool(settings(10_000), workdir, TokenStore(workdir.prepare / "tokens")).rows_K >= 1).all()
    mixtures.run(settings(10_000, max_epochs=1000.0), workdir)
    said = " ".join(capsys.readouterr().err.split())
    assert "a: the share 0.0001 of its documents is less than a row and is raised to one" in said


def test_a_domain_of_less_than_a_row_has_no_weight(tmp_path, capsys):
    workdir = prepare(tmp_path)
    asked = settings(runs=None, simulate_epochs=False)
    longer = dataclasses.replace(asked.swarm.proxy.model, context=1390)
    proxy = dataclasses.replace(asked.swarm.proxy, model=longer, tokens=STEPS * ROWS * 1390)
    store = TokenStore(workdir.prepare / "tokens")
    tokens_K = proxies.tokens_of(store, store.documents(TRAIN))
    assert sorted(tokens_K > 1390) == [False, True, True]  # else this tests nothing
    mixtures.run(
        dataclasses.replace(asked, swarm=dataclasses.replace(asked.swarm, proxy=proxy, max_epochs=1e3)),
        workdir,
    )
    [short] = np.flatnonzero(tokens_K <= 1390)
    designed = mixtures.read(workdir.design / "mixtures.csv")
    assert len(designed) == 9  # as for two domains
    assert all(weights[DOMAINS[short]] == 0 for weights in designed.values())
    assert f"{DOMAINS[short]} has less than a row of 1391 tokens and is left out" in capsys.readouterr().err


@pytest.mark.parametrize("design", ["dirichlet", "grid", "maximin"])
def test_no_mixture_repeats_a_domain_more_often_than_allowed(tmp_path, design, capsys):
    workdir = prepare(tmp_path)
    asked = settings(design=design, max_epochs=2.0, floor=0.0, seeds=(3, 4), simulate_epochs=False)
    mixtures.run(asked, workdir)
    designed = mixtures.read(workdir.design / "mixtures.csv")
    assert list(designed) == [f"{mixture:03d}-{seed}" for mixture in range(4) for seed in (3, 4)]
    store = TokenStore(workdir.prepare / "tokens")
    rows_K = proxies.pool(asked, workdir, store).rows_K
    for weights in designed.values():
        weight_K = np.array([weights[domain] for domain in DOMAINS])
        assert weight_K.sum() == pytest.approx(1)
        assert (weight_K * STEPS * ROWS <= 2.0 * rows_K * (1 + 1e-9)).all()
    assert f"4 mixtures ({design}) x 2 seeds of 3 domains" in " ".join(capsys.readouterr().err.split())


def test_a_swarm_that_needs_more_data_than_there_is_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"swarm\.max_epochs is 0\.01, in which all domains together give"):
        mixtures.run(settings(max_epochs=0.01), prepare(tmp_path))
    with pytest.raises(ArtifactMissing, match="jaxprune select CONFIG"):
        mixtures.run(dataclasses.replace(settings(), arms=("pruned",)), Workdir(tmp_path))


def test_the_number_of_mixtures_is_that_which_a_law_needs(tmp_path):
    workdir = prepare(tmp_path)
    mixtures.run(settings(runs=None), workdir)
    assert read_manifest(workdir.design).counts["mixtures"] == 12


@pytest.mark.parametrize("command", ["design", "swarm"])
def test_the_commands_explain_themselves(command, capsys):
    assert cli.main(["mix", command, "--help"]) == 0
    assert f"jaxprune mix {command} CONFIG" in capsys.readouterr().out


def test_a_misspelt_command_behind_mix_is_named(capsys):
    with pytest.raises(SystemExit):
        cli.main(["mix", "desing", "x.py"])
    assert "did you mean mix design?" in capsys.readouterr().err


def test_a_proxy_that_diverges_is_left_out_of_the_table(tmp_path, monkeypatch, capsys):
    def diverge():
        raise Diverged("proxy 001-0: the loss of step 3 is nan")

    on_one_device(monkeypatch)
    when(monkeypatch, "proxy 001-0", 3, diverge)
    workdir = prepare(tmp_path)
    mix_swarm(settings(runs=2), workdir)
    with (workdir.table / "table.csv").open() as file:
        assert {row["run_id"] for row in csv.DictReader(file)} == {"000-0"}
    assert "it is left out of the table" in " ".join(capsys.readouterr().err.split())
