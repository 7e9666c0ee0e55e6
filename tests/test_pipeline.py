"""The whole pipeline: killed anywhere it ends in the same artifacts, and changed settings reach what they touch."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pyarrow.parquet as pq
import pytest
from corpora import write_corpus

from jaxprune import cli, config
from jaxprune.artifact import Workdir, read_manifest
from jaxprune.model.sharding import make_mesh
from jaxprune.train.checkpoint import load_params

TINY = str(Path(__file__).parent / "tiny.py")
RUNS = ("reference", "none-0", "pruned-0")


def _command(workdir: Path, corpus: Path, *settings: str) -> list[str]:
    return ["run", TINY, "--workdir", str(workdir), "--corpus.sources", str(corpus), *settings]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def undisturbed(corpus, tmp_path_factory) -> Workdir:
    workdir = Workdir(tmp_path_factory.mktemp("undisturbed"))
    assert cli.main(_command(workdir.root, corpus)) == 0
    return workdir


def _same_files(ours: Path, theirs: Path, pattern: str) -> None:
    names = sorted(str(path.relative_to(theirs)) for path in theirs.glob(pattern))
    assert names == sorted(str(path.relative_to(ours)) for path in ours.glob(pattern))
    assert names
    for name in names:
        assert (ours / name).read_bytes() == (theirs / name).read_bytes(), name


def _same_tables(ours: Path, theirs: Path, pattern: str) -> None:
    names = sorted(str(path.relative_to(theirs)) for path in theirs.glob(pattern))
    assert names == sorted(str(path.relative_to(ours)) for path in ours.glob(pattern))
    assert names
    for name in names:
        assert pq.read_table(ours / name).equals(pq.read_table(theirs / name)), name


def _same_artifacts(ours: Workdir, theirs: Workdir) -> None:
    _same_files(ours.prepare, theirs.prepare, "tokens/*")
    _same_files(ours.prepare, theirs.prepare, "tokenizer/*")
    _same_tables(ours.prepare, theirs.prepare, "documents/*.parquet")
    _same_tables(ours.score, theirs.score, "*.parquet")
    _same_files(ours.select, theirs.select, "*.npy")
    _same_tables(ours.select, theirs.select, "*.parquet")
    _same_files(ours.mix, theirs.mix, "weights.json")
    mesh = make_mesh(config.Mesh(fsdp=1), jax.devices()[:1])
    for name in RUNS:
        with jax.set_mesh(mesh):
            pairs = zip(
                jax.tree.leaves(load_params(ours.run(name), mesh)[1]),
                jax.tree.leaves(load_params(theirs.run(name), mesh)[1]),
                strict=True,
            )
            for a, b in pairs:
                np.testing.assert_array_equal(a, b)
    for name in RUNS[1:]:
        _same_tables(ours.evaluate(name), theirs.evaluate(name), "scores.parquet")


def test_a_run_that_is_done_makes_nothing_again(undisturbed, corpus, capsys):
    before = {path: path.stat().st_mtime_ns for path in undisturbed.root.rglob("*") if path.is_file()}
    assert cli.main(_command(undisturbed.root, corpus)) == 0
    assert "made again" not in capsys.readouterr().err
    assert before == {path: path.stat().st_mtime_ns for path in undisturbed.root.rglob("*") if path.is_file()}


def test_ten_kills_at_random_moments_change_nothing(undisturbed, corpus, tmp_path):
    """SIGKILL in every stage, a random moment after it has begun."""
    workdir = Workdir(tmp_path / "killed")
    stages = [
        workdir.prepare, workdir.run("reference"), workdir.run("reference"), workdir.score, workdir.select,
        workdir.mix, workdir.run("none-0"), workdir.run("pruned-0"), workdir.evaluate("none-0"), workdir.report,
    ]  # fmt: skip
    rng = random.Random(int(time.time()))
    command = [sys.executable, "-m", "jaxprune.cli", *_command(workdir.root, corpus)]
    killed = 0
    for stage in stages:
        partial = stage.with_name(stage.name + ".partial")
        process = subprocess.Popen(command, stderr=subprocess.PIPE, start_new_session=True)
        while process.poll() is None and not partial.exists() and not stage.exists():
            time.sleep(0.002)
        time.sleep(rng.choice((0.0, 0.02, 0.3, 2.0)) * rng.random())
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            killed += 1
        assert process.communicate() is not None
    assert killed >= 8  # a stage may be over before the signal arrives
    finished = subprocess.run(command, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr
    _same_artifacts(workdir, undisturbed)


def test_a_changed_rate_runs_again_only_what_depends_on_it(undisturbed, corpus, tmp_path, capsys):
    import shutil

    workdir = Workdir(tmp_path / "changed")
    shutil.copytree(undisturbed.root, workdir.root)
    assert cli.main(_command(workdir.root, corpus, "--select.rate", "0.3")) == 0
    said = capsys.readouterr().err
    assert "rate: 0.5 -> 0.3" in said
    for name in ("prepare", "score", "train/reference"):
        assert read_manifest(workdir.root / name) == read_manifest(undisturbed.root / name)
    assert read_manifest(workdir.select) != read_manifest(undisturbed.select)


def test_the_report_answers_in_its_first_lines(undisturbed):
    page = (undisturbed.report / "index.html").read_text()
    figures = json.loads((undisturbed.report / "report.json").read_text())
    assert figures
    assert "pruned" in page


@pytest.mark.skipif(
    not (Path(__file__).parents[2] / "shared/data/corpus/dev_small").is_dir(),
    reason="needs the nine-domain sample of real text, which does not ship with the project",
)
def test_nine_domains_of_real_text_with_one_changed_setting(tmp_path):
    source = Path(__file__).parents[2] / "shared/data/corpus/dev_small"
    assert cli.main(_command(tmp_path / "run", source)) == 0
    weights = json.loads((tmp_path / "run/mix/weights.json").read_text())
    assert len(weights["pruned-0"]["weights"]) == 9
