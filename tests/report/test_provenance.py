"""A report shows one run: every artifact is that of the config, and of those beside it."""

import dataclasses
import json
import shutil

import pytest
from report_artifacts import finish, settings, texts, write_workdir

from jaxprune import config, pipeline
from jaxprune.artifact import ArtifactMissing, StageError, Workdir, write_json
from jaxprune.mix import weights
from jaxprune.prune import select
from jaxprune.prune.signals import stage as signals
from jaxprune.report import provenance


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    of = settings(arms=("none", "pruned"), seeds=(0,))
    return write_workdir(tmp_path_factory.mktemp("finished"), of, texts(24), {})


@pytest.fixture
def copied(finished, tmp_path):
    made, workdir = finished
    shutil.copytree(workdir.root, tmp_path / "run")
    return made, Workdir(tmp_path / "run")


def test_one_run_is_accepted_and_named_stage_by_stage(finished):
    assert list(provenance.read(*finished)) == [
        *("prepare", "train reference", "score", "select", "mix", "train none-0", "train pruned-0"),
        *("evaluate none-0", "evaluate pruned-0"),
    ]


@pytest.mark.parametrize(
    ("part", "changes", "stage", "what"),
    [
        ("corpus", {"heldout": 0.25}, "prepare", "corpus.heldout: 0.2 -> 0.25"),
        ("tokenizer", {"vocab_size": 500}, "prepare", "tokenizer.vocab_size: 400 -> 500"),
        ("reference", {"tokens": 70_000}, "train reference", "run.tokens: 60000 -> 70000"),
        ("select", {"rate": 0.2}, "select", "select.rate: 0.5 -> 0.2"),
        ("select", {"criterion": "low"}, "select", "select.criterion: medium -> low"),
        ("mix", {"method": "uniform"}, "mix", "mix.method: natural -> uniform"),
        ("final", {"tokens": 300_000}, "mix", "rows: 3128 -> 4688"),
        ("final", {"optimizer": config.Optimizer(peak_lr=1)}, "train none-0", "run.optimizer.peak_lr: "),
    ],
)
def test_a_setting_of_the_report_alone_is_refused(finished, part, changes, stage, what):
    made, workdir = finished
    other = dataclasses.replace(made, **{part: dataclasses.replace(getattr(made, part), **changes)})
    message = rf"`{stage}` was not made .*\({what}.*\): run `jaxprune run CONFIG`"
    with pytest.raises(StageError, match=message):
        provenance.read(other, workdir)


@pytest.mark.parametrize(
    ("stage", "part", "changes", "what", "commands"),
    [
        (
            *("select", "corpus", {"max_domain_bytes": 9}, "`prepare` .*corpus.max_domain_bytes: None -> 9"),
            ("prepare CONFIG", "train CONFIG --only reference", "score CONFIG"),
        ),
        ("select", "score", {"context": 32}, "`score` .*context: 64 -> 32", ("score CONFIG",)),
        (
            *("score", "reference", {"tokens": 70_000}, "`train reference` .*run.tokens: 60000 -> 70000"),
            ("train CONFIG --only reference",),
        ),
        (
            *("audit", "select", {"signals": ("nll",)}, r"`select` .*\(select.signals: .*\)"),
            ("select CONFIG",),
        ),
    ],
)
def test_a_stage_refuses_what_was_made_from_other_settings(finished, stage, part, changes, what, commands):
    """The commands that make it again are all, and no more than, what is out of date before the stage."""
    made, workdir = finished
    other = dataclasses.replace(made, **{part: dataclasses.replace(getattr(made, part), **changes)})
    run = ", then ".join(f"`jaxprune {command}`" for command in commands)
    with pytest.raises(StageError, match=f"{what}.*: run {run}$"):
        getattr(pipeline, stage)(other, workdir)


def test_a_signal_of_other_settings_is_refused(finished):
    """The selection would else be called up to date, though the setting is another."""
    made, workdir = finished
    made = dataclasses.replace(made, select=config.Select(signals=("density",)))
    with pytest.raises(ArtifactMissing, match=r"run `jaxprune score CONFIG --select.signals density`"):
        pipeline.select(made, workdir)
    signals.run(made, workdir)
    provenance.read(made, workdir, before="select")
    other = dataclasses.replace(made, score=config.Score(density=config.Density(bandwidth=0.5)))
    with pytest.raises(StageError, match=r"`signal density` was not made .*bandwidth: .* -> 0.5"):
        pipeline.select(other, workdir)


def test_what_changes_no_result_is_no_other_setting(finished):
    made, workdir = finished
    faster = dataclasses.replace(made.final, microbatches=2, log_every=1)
    provenance.read(dataclasses.replace(made, final=faster, score=config.Score(batch_tokens=1024)), workdir)


def test_select_and_mix_again_without_training_are_refused(copied):
    """Else the page would say what another rate keeps, over results of the old one."""
    made, workdir = copied
    other = dataclasses.replace(made, select=dataclasses.replace(made.select, rate=0.2))
    select.run(other, workdir)
    with pytest.raises(StageError, match=r"`mix` was not made .*select: "):
        provenance.read(other, workdir)
    weights.run(other, workdir)
    with pytest.raises(StageError, match=r"`train pruned-0` was not made .*: run `jaxprune run CONFIG`"):
        provenance.read(other, workdir)


def test_other_documents_and_other_weights_are_refused(copied):
    made, workdir = copied
    kept = workdir.select / "pruned.npy"
    before = kept.read_bytes()
    kept.write_bytes(before[:-8])
    with pytest.raises(StageError, match=r"`train pruned-0` .*documents: "):
        provenance.read(made, workdir)
    kept.write_bytes(before)
    provenance.read(made, workdir)
    mixtures = json.loads((workdir.mix / "weights.json").read_text())
    mixtures["none-0"]["weights"]["code"] += 0.1
    write_json(workdir.mix / "weights.json", mixtures)
    with pytest.raises(StageError, match=r"`train none-0` .*weights: "):
        provenance.read(made, workdir)


@pytest.mark.parametrize("given", ["prepare", "reference"])
def test_an_artifact_made_from_another_is_refused(copied, given):
    made, workdir = copied
    inputs = {"prepare": workdir.prepare, "reference": workdir.run("reference"), given: "another"}
    finish(workdir.score, "score", 1.0, {}, inputs, tokens=1)
    with pytest.raises(StageError, match=f"`score` was not made .*{given}: another -> "):
        provenance.read(made, workdir)


def test_an_evaluation_of_another_training_is_refused(copied):
    made, workdir = copied
    finish(
        workdir.evaluate("none-0"),
        "evaluate none-0",
        1.0,
        {},
        {"prepare": workdir.prepare, "train": "another"},
    )
    with pytest.raises(StageError, match=r"`evaluate none-0` was not made .*train: another -> "):
        provenance.read(made, workdir)
