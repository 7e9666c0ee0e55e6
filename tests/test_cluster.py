"""Several processes run a command as one does: the same files, and one message when a process is missing or dies."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pyarrow.parquet as pq
import pytest
from corpora import write_corpus

from jaxprune import cli, cluster, config
from jaxprune.artifact import Workdir
from jaxprune.model.sharding import make_mesh
from jaxprune.train import metrics
from jaxprune.train.checkpoint import load_params

TINY = str(Path(__file__).parent / "tiny.py")
SMALL = ["--reference.tokens", "2_000", "--reference.validate_every", "0", "--score.shard_documents", "4"]
MESH = ["--mesh.replica", "2", "--mesh.fsdp", "2"]
SIGNALS = ["--score.signals", "information", "el2n"]  # one that needs no model, and one of a model


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("corpus"), documents=90)


@pytest.fixture(scope="module")
def trained(corpus, tmp_path_factory) -> Workdir:
    workdir = Workdir(tmp_path_factory.mktemp("trained"))
    assert cli.main(["prepare", *_settings(workdir, corpus)]) == 0
    assert cli.main(["train", *_settings(workdir, corpus), "--only", "reference"]) == 0
    return workdir


def _settings(workdir: Workdir, corpus: Path) -> list[str]:
    return [TINY, "--workdir", str(workdir.root), "--corpus.sources", str(corpus), *SMALL]


@pytest.fixture(scope="module")
def start(corpus, tmp_path_factory):
    """Starts a command as a process of its own, with so many devices."""
    compiled = tmp_path_factory.mktemp("compiled")
    started = []

    def start(workdir: Workdir, devices: int, *options: str, command: str = "score") -> subprocess.Popen:
        environment = os.environ | {
            "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
            "JAX_COMPILATION_CACHE_DIR": str(compiled),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        }
        settings = [*_settings(workdir, corpus), *MESH, *SIGNALS]
        process = subprocess.Popen(
            [sys.executable, "-m", "jaxprune.cli", command, *settings, *options],
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()


def _address() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{free.getsockname()[1]}"


def _pair(start, workdir: Workdir, *options: str, command: str = "score") -> list[subprocess.Popen]:
    together = ["--processes", "2", "--coordinator", _address(), "--timeout", "60", *options]
    return [start(workdir, 2, "--process", str(process), *together, command=command) for process in (0, 1)]


def _wait_for(path: Path, process: subprocess.Popen) -> None:
    while not (path.exists() and (path.is_dir() or path.stat().st_size)) and process.poll() is None:
        time.sleep(0.01)


def _copy(workdir: Workdir, folder: Path) -> Workdir:
    """Another working directory with the same corpus and model."""
    folder.mkdir()
    for name in ("prepare", "train"):
        (folder / name).symlink_to(workdir.root / name)
    return Workdir(folder)


def test_killed_and_started_again_two_processes_make_the_files_of_one(start, trained, tmp_path):
    one, two = (_copy(trained, tmp_path / name) for name in ("one", "two"))
    alone = start(one, 4)
    assert alone.wait(240) == 0, alone.stderr.read()

    first, second = _pair(start, two)
    _wait_for(two.root / "score.partial" / "part-00001.parquet", first)
    second.send_signal(signal.SIGKILL)
    said = first.communicate(timeout=120)[1]  # hangs where nobody notices
    assert first.returncode == 75
    name = f"process 1 on {socket.gethostname()}"
    assert "2 processes, 4 devices" in said and f"{name}: 2 x cpu" in said
    assert f"error: {name} is gone" in said
    assert not two.score.exists()

    first, second = _pair(start, two)
    said = [process.communicate(timeout=240)[1] for process in (first, second)]
    assert (first.returncode, second.returncode) == (0, 0), said
    assert "score: continuing" in said[0]
    assert "score" not in said[1]  # one process speaks
    for folder in (one.score, one.signal("el2n"), one.signal("unigram")):
        parts = sorted(folder.glob("*.parquet"))
        assert len(parts) > 4
        for path in parts:
            other = two.root / path.relative_to(one.root)
            assert pq.read_table(path).equals(pq.read_table(other)), path


def test_two_processes_stop_together_and_one_continues_their_training(
    start, corpus, trained, tmp_path, capsys
):
    """Whichever of them is asked to stop; what one process trains alone differs by rounding."""
    workdir = Workdir(tmp_path / "two")
    workdir.root.mkdir()
    (workdir.root / "prepare").symlink_to(trained.prepare)
    partial = workdir.root / "train" / "reference.partial"
    pair = _pair(start, workdir, "--only", "reference", command="train")
    _wait_for(partial / "metrics.jsonl", pair[0])
    pair[1].send_signal(signal.SIGTERM)
    said = [process.communicate(timeout=240)[1] for process in pair]
    assert [process.returncode for process in pair] == [143, 143], said
    assert "train reference: saved after step" in said[0]
    assert cli.main(["train", *_settings(workdir, corpus), "--only", "reference"]) == 0
    assert "train reference: continuing after step" in capsys.readouterr().err
    lines, expected = (metrics.read(w.run("reference") / "metrics.jsonl") for w in (workdir, trained))
    assert [line["step"] for line in lines] == [line["step"] for line in expected]
    for line, other in zip(lines, expected, strict=True):
        for name in line.keys() - {"goodput", "tokens_per_s"}:
            # float32 sums in another order: 2^-24 a term and step, amplified by Adam; other rows change the third digit
            assert line[name] == pytest.approx(other[name], rel=1e-4), name


def test_four_processes_are_killed_two_go_on_and_one_ends_what_they_began(
    start, corpus, trained, tmp_path, capsys
):
    """One mesh over 4, 2 and 1 processes: the same rows in every step, and losses to rounding."""
    options = ["--only", "reference", "--reference.tokens", "8_000", "--reference.checkpoint_every", "1"]
    alone, workdir = Workdir(tmp_path / "alone"), Workdir(tmp_path / "four")
    for each in (alone, workdir):
        each.root.mkdir()
        (each.root / "prepare").symlink_to(trained.prepare)
    assert cli.main(["train", *_settings(alone, corpus), *options]) == 0
    partial = workdir.root / "train" / "reference.partial"

    def begin(processes: int) -> list[subprocess.Popen]:
        together = ["--processes", str(processes), "--coordinator", _address(), "--timeout", "60", *options]
        return [
            start(workdir, 4 // processes, "--process", str(index), *together, command="train")
            for index in range(processes)
        ]

    four = begin(4)
    _wait_for(partial / "checkpoints" / "1", four[0])
    four[3].send_signal(signal.SIGKILL)
    said = [process.communicate(timeout=240)[1] for process in four]
    assert [process.returncode for process in four[:3]] == [75, 75, 75], said
    assert f"process 3 on {socket.gethostname()} is gone" in said[0]
    assert "4 processes, 4 devices" in said[0]

    saved = max(int(path.name) for path in (partial / "checkpoints").iterdir() if path.name.isdecimal())
    two = begin(2)
    _wait_for(partial / "checkpoints" / str(saved + 1), two[0])
    two[1].send_signal(signal.SIGTERM)
    said = [process.communicate(timeout=240)[1] for process in two]
    assert [process.returncode for process in two] == [143, 143], said
    assert "train reference: continuing after step" in said[0]
    capsys.readouterr()
    assert cli.main(["train", *_settings(workdir, corpus), *options]) == 0
    assert "train reference: continuing after step" in capsys.readouterr().err
    lines, expected = (metrics.read(w.run("reference") / "metrics.jsonl") for w in (workdir, alone))
    assert len(lines) == len(expected)
    for line, other in zip(lines, expected, strict=True):
        for name in line.keys() - {"goodput", "tokens_per_s"}:
            if name.startswith("share/"):
                assert line[name] == other[name]  # counts of rows that were read
            assert line[name] == pytest.approx(other[name], rel=1e-4), name


def test_a_process_with_another_config_is_named(start, trained, tmp_path):
    workdir = _copy(trained, tmp_path / "other")
    address = _address()
    together = ["--processes", "2", "--coordinator", address, "--timeout", "60"]
    first = start(workdir, 2, "--process", "0", *together)
    second = start(workdir, 2, "--process", "1", *together, "--seed", "1")
    said = first.communicate(timeout=120)[1]
    assert (first.returncode, second.wait(60)) == (1, 1)
    assert f"process 1 on {socket.gethostname()} was given other settings" in said


def test_a_missing_process_is_named(start, trained, tmp_path):
    workdir = _copy(trained, tmp_path / "missing")
    together = ["--processes", "3", "--coordinator", _address(), "--start-timeout", "4"]
    both = [start(workdir, 1, "--process", str(process), *together) for process in (0, 2)]
    said = [process.communicate(timeout=120)[1] for process in both]
    assert [process.returncode for process in both] == [75, 75]
    assert "of 3 processes these are missing after 4 s: 1" in said[0]


def test_a_working_directory_that_is_not_shared_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(cluster, "is_first", lambda: False)
    monkeypatch.setattr(cluster, "_SEEN_S", 1.0)
    late = iter([False, True])
    cluster.until_seen(tmp_path, lambda: next(late))  # caches of network file systems
    with pytest.raises(FileNotFoundError, match="give a --workdir on a file system that all hosts share"):
        cluster.until_seen(tmp_path, lambda: False)


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        ("--processes 2", "add --process and --coordinator"),
        ("--distributed --process 1", "leave --processes, --process and --coordinator out"),
        ("--processes 2 --process 2 --coordinator a:1", "number them from 0 on"),
        ("--processes 2 --process 1 --coordinator a", "give HOST:PORT"),
        ("--processes 2 --process 1 --coordinator a:1 --timeout 0", "--timeout is 0: give 1 second or more"),
        (
            "--processes 2 --process 1 --coordinator a:1 --start-timeout 0",
            "--start-timeout is 0: give 1 second",
        ),
    ],
)
def test_wrong_options_get_one_line_that_helps(typed, message, tmp_path, capsys):
    assert cli.main(["score", TINY, "--workdir", str(tmp_path), *typed.split()]) == 1
    said = capsys.readouterr().err.strip()
    assert message in said and len(said.splitlines()) == 1


AIOLI = ["--mix.method", "aioli", "--mix.aioli.rounds", "2", "--mix.aioli.sweeps", "2", "--mix.rows", "1",
         "--arms", "none", "--select.criterion", "low", "--final.checkpoint_every", "7"]  # fmt: skip


def test_two_processes_mix_online_as_one_does_and_one_goes_on_from_them(start, corpus, trained, tmp_path):
    """On the same two devices bitwise, wherever they are: decisions are process 0's, and a sum of two has one order.

    The run is stopped between two decisions, and one process takes it over.
    """
    one = _copy(trained, tmp_path / "one")
    (one.root / "train").unlink()
    (one.root / "train").mkdir()
    (one.root / "train" / "reference").symlink_to(trained.run("reference"))
    for command in ("score", "select", "mix"):
        assert cli.main([command, *_settings(one, corpus), *AIOLI]) == 0
    two = Workdir(tmp_path / "two")
    shutil.copytree(one.root, two.root, symlinks=True)
    options = [*AIOLI, "--only", "none-0", "--mesh.replica", "1", "--mesh.fsdp", "2"]

    def begin(workdir: Workdir, processes: int) -> list[subprocess.Popen]:
        together = ["--processes", str(processes), "--coordinator", _address(), "--timeout", "60"]
        return [
            start(workdir, 2 // processes, "--process", str(index), *together, *options, command="train")
            for index in range(processes)
        ]

    (alone,) = begin(one, 1)
    said = alone.communicate(timeout=240)[1]
    assert alone.returncode == 0, said
    pair = begin(two, 2)
    history = two.root / "train" / "none-0.partial" / "mixing.jsonl"
    while pair[0].poll() is None and not (history.exists() and len(metrics.read(history)) > 7):
        time.sleep(0.01)
    pair[1].send_signal(signal.SIGTERM)
    said = [process.communicate(timeout=240)[1] for process in pair]
    assert [process.returncode for process in pair] == [143, 143], said
    (last,) = begin(two, 1)
    said = last.communicate(timeout=240)[1]
    assert last.returncode == 0 and "train none-0: continuing after step" in said
    lines, expected = (metrics.read(w.run("none-0") / "mixing.jsonl") for w in (two, one))
    assert len(lines) > 12
    assert [line | {"seconds": 0} for line in lines] == [line | {"seconds": 0} for line in expected]
    mesh = make_mesh(config.Mesh(), jax.devices()[:1])
    leaves, others = (jax.tree.leaves(load_params(w.run("none-0"), mesh)[1]) for w in (two, one))
    for leaf, other in zip(leaves, others, strict=True):
        np.testing.assert_array_equal(leaf, other)
