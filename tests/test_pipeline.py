"""The whole pipeline: killed anywhere it ends in the same artifacts, and changed settings reach what they touch."""

import html
import json
import os
import random
import shutil
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
from jaxprune.report.numbers import decimals, percent, short
from jaxprune.train.checkpoint import load_params
from jaxprune.train.metrics import read

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
    """SIGKILL in every stage, a random moment after it has begun; in training, after it has saved."""
    workdir = Workdir(tmp_path / "killed")
    runs = {name: workdir.run(name) for name in RUNS}
    moments = [  # an artifact, and what of it has begun
        (workdir.prepare, "."),
        (runs["reference"], "."),
        (runs["reference"], "checkpoints/5"),
        (workdir.score, "."),
        (workdir.select, "."),
        (workdir.mix, "."),
        (runs["none-0"], "checkpoints/10"),
        (runs["pruned-0"], "."),
        (workdir.evaluate("none-0"), "."),
        (workdir.report, "."),
    ]
    seed = int(time.time())
    print(f"moments drawn with seed {seed}")  # shown when the test fails
    rng = random.Random(seed)
    command = [sys.executable, "-m", "jaxprune.cli", *_command(workdir.root, corpus)]
    killed, said = 0, ""
    for artifact, part in moments:
        moment = artifact.with_name(artifact.name + ".partial") / part
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True) as process:
            # Some artifacts are made within milliseconds: where the moment was missed, it is over once they are whole.
            while process.poll() is None and not moment.exists() and not artifact.exists():
                time.sleep(0.002)
            time.sleep(rng.random() * rng.choice((0.0, 0.05, 0.5)))
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                killed += 1
            said += process.communicate()[1]
    assert killed >= 8  # the last stages may be over before the signal arrives
    finished = subprocess.run(command, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr
    said += finished.stderr
    assert "train reference: continuing after step" in said
    assert "train none-0: continuing after step" in said
    assert "damaged" not in said
    _same_artifacts(workdir, undisturbed)


def _artifacts(workdir: Workdir) -> list[Path]:
    runs = [path for name in RUNS for path in (workdir.run(name), workdir.evaluate(name))]
    return [workdir.prepare, workdir.score, workdir.select, workdir.mix, workdir.report, *runs]


def test_a_changed_rate_runs_again_only_what_depends_on_it(undisturbed, corpus, tmp_path, capsys):
    workdir = Workdir(tmp_path / "changed")
    shutil.copytree(undisturbed.root, workdir.root)
    assert cli.main(_command(workdir.root, corpus, "--select.rate", "0.3")) == 0
    said = capsys.readouterr().err
    assert "rate: 0.5 -> 0.3" in said
    for name in ("prepare", "score", "train/reference"):
        assert read_manifest(workdir.root / name) == read_manifest(undisturbed.root / name)
    assert read_manifest(workdir.select) != read_manifest(undisturbed.select)
    # The unpruned arm draws from what it drew from before.
    assert read_manifest(workdir.run("none-0")) == read_manifest(undisturbed.run("none-0"))
    assert read_manifest(workdir.run("pruned-0")) != read_manifest(undisturbed.run("pruned-0"))


def test_the_report_answers_in_its_first_lines(undisturbed):
    """In words and numbers of the artifacts: what was pruned, what it changed on both mixes, which mixture."""
    table = pq.read_table(undisturbed.select / "pruned.parquet")
    kept = len(np.load(undisturbed.select / "pruned.npy"))
    losses = {
        arm: json.loads((undisturbed.evaluate(f"{arm}-0") / "summary.json").read_text())
        for arm in ("none", "pruned")
    }
    changes = []
    for place in ("mean", "all"):
        change = {m: losses["pruned"][place][m] - losses["none"][place][m] for m in ("bits_per_byte", "nll")}
        word, sign = ("better", -1) if change["bits_per_byte"] < 0 else ("worse", 1)
        changes += [
            f"{word} by {decimals(sign * change['bits_per_byte'])} bits per byte",
            f"{decimals(sign * change['nll'])} nats per token",
        ]
    run = json.loads((undisturbed.mix / "weights.json").read_text())["pruned-0"]
    answers = [
        f"Pruning kept 50 % of the documents, those of medium perplexity: {kept} of {len(table)} documents and",
        f"Against no pruning, in the mean over domains, pruning came out {changes[0]}, {changes[1]}, which may",
        f"on the natural mix of the corpus it came out {changes[2]}, {changes[3]}, which may be chance",
        "Arm pruned trained on ",
        *(f"{domain} {percent(weight)}" for domain, weight in run["weights"].items()),
        f"every arm on {short(run['tokens'])} tokens.",
    ]
    page = html.unescape((undisturbed.report / "index.html").read_text())
    first_lines = page[page.index("<main>") : page.index('id="results"')]
    assert [answer for answer in answers if answer not in first_lines] == []
    assert "Against random" not in page  # which was not run


def test_online_mixing_is_one_setting_and_shows_what_it_drew(corpus, tmp_path, capsys):
    """Aioli from the command line, after a prior part: its weights, what it drew, and the same again after a kill."""
    aioli = ("--arms", "none", "--mix.method", "aioli", "--mix.prior", "natural", "--mix.prior_share", "0.1",
             "--mix.aioli.rounds", "1", "--mix.aioli.sweeps", "2", "--mix.rows", "1")  # fmt: skip
    workdir = Workdir(tmp_path / "run")
    assert cli.main(_command(workdir.root, corpus, *aioli)) == 0
    history = read(workdir.run("none-0") / "mixing.jsonl")
    steps = config.Run(tokens=20_000, batch_rows=8, model=config.Model(context=64)).steps
    assert history[0]["start"] == round(0.1 * steps) and history[-1]["until"] == steps
    manifest = read_manifest(workdir.run("none-0"))
    assert manifest is not None and manifest.counts["mixing"]["seconds"] > 0
    report = json.loads((workdir.report / "report.json").read_text())
    shown = report["mixture"]["arms"]["none"]
    drawn = sum(
        of["epochs"] * report["mixture"]["runs"]["none-0"]["rows"][name] for name, of in shown.items()
    )
    assert drawn == pytest.approx(8 * steps)
    assert sum(of["weight"] for of in shown.values()) == pytest.approx(1)
    assert "aioli" in report["headline"]["mixture"]
    shown = report["mixing"]["none-0"]
    assert shown["decisions"] == len(history) and shown["share"] == manifest.counts["mixing"]["share"]
    rounds = [line for line in history if "A" in line]
    assert shown["weights"]["step"] == [line["start"] for line in rounds]
    for domain, values in shown["weights"]["values"].items():
        assert values == [line["weights"][domain] for line in rounds]
    assert [matrix["A"] for matrix in shown["A"]] == [line["A"] for line in rounds]
    page = (workdir.report / "index.html").read_text()
    assert page.count('aria-label="How training on a domain') == len(rounds)
    assert 'aria-label="shares by domain over the steps of none-0"' in page
    capsys.readouterr()
    assert cli.main(_command(workdir.root, corpus, *aioli, "--profile", "2:3")) == 0
    said = capsys.readouterr().err
    assert "none-0: up to date" in said and "train none-0: no trace of steps 2 to 3" in said
    assert cli.main(["mix", *_command(workdir.root, corpus, *aioli)[1:], "--mix.aioli.rounds", "1000"]) == 1
    assert "lower mix.aioli.sweeps" in capsys.readouterr().err  # before anything is made
    capsys.readouterr()
    assert cli.main(["mix", *_command(workdir.root, corpus, *aioli)[1:], "--strategy", "odm"]) == 1
    assert "--strategy odm and --mix.method are the same setting" in capsys.readouterr().err
    others = [word for word in aioli if word not in ("--mix.method", "aioli")]
    assert cli.main(["mix", *_command(workdir.root, corpus, *others)[1:], "--strategy", "odm"]) == 0
    decided = json.loads((workdir.mix / "weights.json").read_text())["none-0"]["online"]
    assert decided["strategy"] == "odm"
    assert cli.main(_command(workdir.root, corpus, *aioli, "--mix.aioli.eta", "0.3")) == 0
    assert "none-0: up to date" not in capsys.readouterr().err


def test_the_strategy_of_the_docs_decides_from_a_file_of_its_own(undisturbed, corpus, tmp_path, capsys):
    text = (Path(__file__).parents[1] / "docs" / "mixing.md").read_text()
    (page,) = [block for block in text.split("```python\n") if "class Greedy" in block]
    file = tmp_path / "greedy.py"
    file.write_text(page.partition("```")[0])
    greedy = ("--arms", "none", "--mix.method", "own", "--mix.own.strategy", f"{file}:Greedy", "--mix.own.settings",
              "every", "15", "--mix.rows", "1")  # fmt: skip
    workdir = Workdir(shutil.copytree(undisturbed.root, tmp_path / "run"))
    command = _command(workdir.root, corpus, *greedy)[1:]
    assert cli.main(["mix", *command]) == 0
    assert cli.main(["train", *command, "--only", "none-0"]) == 0
    history = read(workdir.run("none-0") / "mixing.jsonl")
    assert [line["step"] for line in history] == list(range(0, history[-1]["until"], 15))
    for line in history[1:]:
        worst = max(line["loss"], key=line["loss"].__getitem__)
        assert (
            line["weights"][worst] == max(line["weights"].values())
            and line["own"]["most"] == line["loss"][worst]
        )
    capsys.readouterr()
    file.write_text(file.read_text().replace("argmax", "argmin"))
    assert cli.main(["train", *command, "--only", "none-0"]) == 1
    assert "the stage mix was run with other settings" in capsys.readouterr().err


@pytest.mark.skipif(
    not (Path(__file__).parents[2] / "shared/data/corpus/dev_small").is_dir(),
    reason="needs the nine-domain sample of real text, which does not ship with the project",
)
def test_nine_domains_of_real_text_with_one_changed_setting(tmp_path):
    source = Path(__file__).parents[2] / "shared/data/corpus/dev_small"
    assert cli.main(_command(tmp_path / "run", source)) == 0
    weights = json.loads((tmp_path / "run/mix/weights.json").read_text())
    assert len(weights["pruned-0"]["weights"]) == 9
