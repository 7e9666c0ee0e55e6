"""The command line: every mistake gets one line that helps, before anything is lost."""

import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from corpora import write_corpus

from jaxprune import cli, settings
from jaxprune.artifact import StageError

QUICKSTART = str(Path(__file__).parent.parent / "configs" / "quickstart.py")


def _stopped(status: int) -> StageError:
    error = StageError("saved")
    error.status = status
    return error


# What is typed -> what the one line must say.
WRONG = {
    "--select.rat 0.3": "did you mean --select.rate?",
    "--rate 0.3": "did you mean --select.rate?",
    "--final.optimizer.lr 1e-3": "did you mean --final.optimizer.peak_lr?",
    "--final.model.layers 2": "did you mean --final.model.n_layers?",
    "--tokenizer.vocab 512": "did you mean --tokenizer.vocab_size?",
    "--select.rate half": "'half'",
    "--select.rate 1.5": "select.rate is 1.5: set a share above 0 and up to 1",
    "--select.rate 0": "select.rate is 0.0: set a share above 0",
    "--select.criterion lowest": "--select.criterion is 'lowest': choose one of low, medium, high, random",
    "--arms none prune": "--arms is 'prune': choose one of none, random, pruned",
    "--arms none none": "name each arm once",
    "--seeds": "name each seed once",
    "--corpus.heldout 1": "corpus.heldout is 1.0: set a share between 0 and 1",
    "--corpus.sources": "name a source, or `embedded`",
    "--corpus.sources no/such/folder": "no/such/folder",
    "--tokenizer.vocab_size 100": "byte fallback needs at least 300",
    "--tokenizer.path no/such/tokenizer.json": "no/such/tokenizer.json",
    "--final.model.n_heads 5": "make it a multiple of model.n_heads, 5",
    "--final.model.n_kv_heads 3": "set a divisor of model.n_heads, 4",
    "--final.microbatches 3": "set a divisor of batch_rows, 8",
    "--final.tokens 0": "tokens is 0: set a number above 0",
    "--mix.method fixed": "give a weight for each domain",
    "--mix.method fixed --mix.weights code -1 manuals 2": "weights must not be negative",
    "--mesh.fsdp 0": "set sizes above 0, and -1 for at most one axis",
    "--final.model.dtype float16": "choose one of float32, bfloat16",
    "--mesh.fsdp 3": "make the sizes multiply to 8",
    "--final.batch_rows 12": "final: batch_rows is 12: make it a multiple of",
    "--final.model.n_heads 3 --final.model.n_kv_heads 3 --mesh.fsdp 4 --mesh.tensor 2": "n_heads is 3, which mesh.tensor=2",
    "--final.model.attention splash": "final: model.attention=splash runs on TPUs",
    "--mix.weights code 1": "set mix.method to fixed",
    "--mix.method fixed --mix.weights code": "write pairs of a domain and a number",
    "--mix.method fixed --mix.weights code nan": "weights must not be negative or infinite",
    "--mix.stages 0 code 1": "set mix.method to stages",
    "--mix.method stages --mix.stages code 1": "code stands before the first stage",
    "--mix.method stages --mix.stages 0 code": "code has no weight",
    "--mix.method stages --mix.stages 0.5 code 1": "which begin at [0.5]: let the first begin at 0",
    "--mix.method stages": "mix.method is stages, and none is given",
    "--mix.method own": "mix.own.strategy is not given: name a file and a class",
    "--mix.aioli.floor 1": "mix.aioli.floor is 1.0: set a share from 0 to below 1",
    "--mix.method aioli --mix.aioli.sweeps 1": "mix.aioli.sweeps is 1, after which neither drift nor noise",
    "--mix.method aioli --mix.aioli.smoothing 1": "at 1 all segments are the same",
    "--mix.method aioli --mix.aioli.targets code -1": "weights must not be negative",
    "--mix.prior_share 1": "mix.prior_share is 1.0: set a share from 0 to below 1",
    "--mix.rows 0": "mix.rows is 0: set 1 or more",
    "--arms pruned within_domain --select.scope domain": "select.scope is domain, which makes the arms",
    "--arms pruned within_domain --select.criterion random": "select.criterion is random, which makes",
    "--select.rate nan": "select.rate is nan: set a share",
    "--final.model.d_ff 0": "model.d_ff is 0: set a number above 0, or None",
    "--final.model.init_std -1": "model.init_std is -1.0: set a finite number above 0",
    "--final.model.rope_theta 0": "model.rope_theta is 0.0: set a finite number above 0",
    "--tokenizer.threads 0": "tokenizer.threads is 0: set a number above 0",
    "--final.optimizer.peak_lr inf": "optimizer.peak_lr is inf: set a finite number above 0",
    "--final.optimizer.weight_decay nan": "optimizer.weight_decay is nan: set a finite number",
    "--final.optimizer.b2 1": "optimizer.b2 is 1.0: set a number in [0, 1)",
    "--final.optimizer.eps 0": "optimizer.eps is 0.0: set a finite number above 0",
    "--final.optimizer.schedule wsd --final.optimizer.warmup 0.9 --final.optimizer.decay 0.5": "add up to 1 at most",
    "--seed -1": "seed is -1: set whole numbers from 0",
    "--seeds 0 -1": "seeds is (0, -1): set whole numbers from 0",
    "--seeds 0 4294967296": "set whole numbers from 0 to 4294967295",
    "--swarm.checkpoints 0": "swarm.checkpoints is 0 and a proxy takes",
    "--swarm.proxy.tokens 100": "swarm.checkpoints is 10 and a proxy takes 1 steps: set a number from 1",
    "--swarm.strengths 2 1": "swarm.strengths is (2.0, 1.0): set the least and the largest",
    "--swarm.seeds": "swarm.seeds is (): name each seed once",
    "--swarm.arm within_domain": "swarm.arm is within_domain, which is not one of arms",
    "--swarm.together 0": "swarm.together is 0: set a number above 0, or None",
    "stray": "write --SETTING VALUE",
}


@pytest.mark.parametrize("typed", WRONG)
def test_a_wrong_setting_gets_one_line_that_helps(typed, tmp_path, capsys):
    status = cli.main(["run", QUICKSTART, "--workdir", str(tmp_path / "run"), *typed.split()])
    printed = capsys.readouterr().err.strip()
    assert status == 1
    *notes, error = printed.splitlines()
    assert WRONG[typed] in error
    assert all(note.startswith("without effect") for note in notes)


IMPORT = "from jaxprune.config import *\n"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (IMPORT + "def config(): return Config(name='x', sede=1)", "line 2: TypeError: Config.__init__() got an unexpected keyword argument 'sede'; did you mean seed?"),
        (IMPORT + "def config(): return Config(name='x', seed='1')", "line 2: Config.seed is '1': give a value of type int"),
        (IMPORT + "def config():\n  return Config(name='x', select=Select(rate='0.5'))", "line 3: Select.rate is '0.5': give a value of type float"),
        (IMPORT + "def config(): return Config(name='x', seeds=(0, '1'))", "Config.seeds is (0, '1'): give a value of type tuple[int, ...]"),
        (IMPORT + "def config(): return Config(name='x', select=Mix())", "Config.select is Mix("),
        (IMPORT + "def config(): return Config(name='x', select=Select(rate=2))", "line 2: select.rate is 2"),
        (IMPORT + "def config(): return Config()", "line 2: TypeError: Config.__init__() missing 1 required keyword-only argument: 'name'"),
        (IMPORT + "\nsettings = Selct(rate=0.5)", "line 3: NameError: name 'Selct' is not defined; did you mean Select?"),
        ("from jaxprune.config import Confg", "line 1: ImportError: cannot import name 'Confg'"),
        ("import jaxprune.confg", "line 1: ModuleNotFoundError: No module named 'jaxprune.confg'"),
        ("def config(): return 3", "not a jaxprune.config.Config"),
        ("x = 1", "no function `config`"),
        ("def config(:", "line 1"),
    ],
)  # fmt: skip
def test_a_wrong_config_file_gets_one_line_that_helps(text, said, tmp_path, capsys):
    path = tmp_path / "mine.py"
    path.write_text(text)
    assert cli.main(["config", str(path)]) == 1
    printed = capsys.readouterr().err.strip()
    assert said in printed
    assert str(path) in printed
    assert len(printed.splitlines()) == 1


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        (
            "--tokenizer.path some.model",
            "tokenizer.path is given: tokenizer.vocab_size, tokenizer.train_bytes",
        ),
        ("--tokenizer.eod_token x", "tokenizer.path is not given: tokenizer.eod_token"),
        ("--mix.temperature 3", "mix.method is natural: mix.temperature"),
        ("--mix.aioli.eta 1", "mix.method is natural: mix.aioli.eta"),
        ("--mix.rows 2", "mix.method is natural: mix.rows"),
        ("--mix.method aioli --mix.aioli.eta 1 --mix.rows 2", ""),
        ("--mix.method aioli --mix.prior natural", "mix.prior_share is 0: mix.prior"),
        ("--mix.method aioli --mix.prior natural --mix.prior_share 0.1", ""),
        ("--select.criterion random", "the arm pruned one more random arm"),
        ("--mix.method temperature --mix.temperature 3", ""),
        ("--score.second x", "no signal is ratio or excess: score.second"),
        ("--score.second x --score.signals excess", ""),
        ("--score.target x", "no signal is dsir: score.target"),
        ("--score.vog_checkpoints 3", "no signal is vog: score.vog_checkpoints"),
        ("--score.zip.step 30", "no signal is zip: score.zip.step"),
        ("--score.density.rows 30", "no signal is density: score.density.rows"),
        ("--score.ask.model x", "no signal is ask_llm: score.ask.model"),
        ("--swarm.floor 0.01", "swarm.design is dirichlet: swarm.floor"),
        ("--swarm.design maximin --swarm.power 1", "swarm.design is maximin: swarm.power"),
        ("--swarm.proxy.validate_every 3", "swarm.checkpoints says when: swarm.proxy.validate_every"),
        ("--second.tokens 10", "nothing reads the model second: second.tokens"),
    ],
)
def test_what_has_no_effect_is_said(typed, said, capsys):
    assert cli.main(["config", QUICKSTART, *typed.split()]) == 0
    notes = capsys.readouterr().err.splitlines()
    assert len(notes) == bool(said)
    assert said in "".join(notes)


def test_devices_are_asked_before_anything_is_made(tmp_path):
    assert cli.main(["run", QUICKSTART, "--workdir", str(tmp_path), "--final.batch_rows", "12"]) == 1
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]


def test_domains_of_the_mixture_are_asked_before_training(tmp_path, capsys):
    tiny = str(Path(__file__).parent / "tiny.py")
    words = ["--corpus.sources", str(write_corpus(tmp_path / "corpus")), "--mix.method", "fixed"]
    assert (
        cli.main(["run", tiny, "--workdir", str(tmp_path / "run"), *words, "--mix.weights", "cod", "1"]) == 1
    )
    assert "mix.weights names cod, which is no domain" in capsys.readouterr().err
    assert not list((tmp_path / "run").glob("train*"))


@pytest.mark.parametrize(
    "typed",
    [
        "evaluate --workdir DIR --only none-9 CONFIG",
        "train CONFIG --workdir DIR --only none-9",
        "train --workdir DIR --only none-9 CONFIG --seed 3",
    ],
)
def test_the_config_may_stand_behind_the_names_of_runs(typed, tmp_path, capsys):
    words = typed.replace("CONFIG", QUICKSTART).replace("DIR", str(tmp_path)).split()
    assert cli.main(words) == 1
    assert "there is no run none-9" in capsys.readouterr().err


@pytest.mark.parametrize("typed", ["run", "run --seed 3 CONFIG", "train --only CONFIG"])
def test_a_config_that_is_missing_gets_one_line(typed, capsys):
    assert cli.main(typed.replace("CONFIG", QUICKSTART).split()) == 1
    printed = capsys.readouterr().err.strip()
    assert "there is no CONFIG: write `jaxprune" in printed
    assert len(printed.splitlines()) == 1


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (
            RuntimeError("INTERNAL: no\nmore"),
            1,
            "error: RuntimeError: INTERNAL: no (--traceback shows where)",
        ),
        (ValueError("shapes\nmore"), 1, "error: ValueError: shapes (--traceback shows where)"),
        (OSError("disk full"), 1, "error: disk full"),
        (_stopped(130), 130, "saved"),
        (_stopped(143), 143, "saved"),
    ],
)
def test_every_error_is_one_line(error, status, said, tmp_path, capsys, monkeypatch):
    def fail(*_):
        raise error

    monkeypatch.setattr("jaxprune.pipeline.prepare", fail)
    command = ["prepare", QUICKSTART, "--workdir", str(tmp_path)]
    assert cli.main(command) == status
    assert capsys.readouterr().err.strip() == said
    with pytest.raises(type(error)):
        cli.main([*command, "--traceback"])


def test_a_missing_artifact_names_the_command_that_makes_it(tmp_path, capsys):
    assert cli.main(["score", QUICKSTART, "--workdir", str(tmp_path)]) == 1
    assert "run `jaxprune prepare CONFIG` first" in capsys.readouterr().err


def test_overrides_reach_the_config(capsys):
    assert cli.main(["config", QUICKSTART, "--select.rate", "0.25", "--tokenizer.path", "my model"]) == 0
    printed = capsys.readouterr().out
    assert "--select.rate 0.25\n" in printed
    assert "--tokenizer.path 'my model'\n" in printed


@pytest.mark.parametrize(
    "typed",
    [
        [],
        ["--mix.method", "fixed", "--mix.weights", "my code", "1", "b", "0.5", "--corpus.id_field", ""],
        ["--mix.method", "stages", "--mix.stages", "0", "a", "1", "b", "2", "0.25", "my code", "3"],
        ["--name", "it's", "--metrics", "--seeds", "3", "4", "--final.model.tie_embeddings", "False"],
    ],
)
def test_the_printed_config_is_the_command_line_that_makes_it(typed, tmp_path):
    other = tmp_path / "other.py"  # nothing of it may be left
    other.write_text(
        IMPORT + "def config(): return Config(name='o', mix=Mix(method='fixed', weights={'z': 1.0}))"
    )
    config = settings.load(QUICKSTART, typed)
    for path in (QUICKSTART, str(other)):
        assert settings.load(path, shlex.split(settings.show(config))) == config


def test_a_bucket_is_no_working_directory(capsys):
    assert cli.main(["run", QUICKSTART, "--workdir", "gs://bucket/runs"]) == 1
    assert "--workdir is gs://bucket/runs, a bucket: artifacts need a folder" in capsys.readouterr().err
    assert not Path("gs:").exists()


def test_a_command_has_help_without_a_config(capsys):
    for command in ("run", "compile"):
        assert cli.main([command, "--help"]) == 0
        printed = capsys.readouterr()
        assert f"jaxprune {command} CONFIG" in printed.out and not printed.err


def test_help_explains_every_field(capsys):
    import dataclasses

    from jaxprune import config

    assert cli.main(["run", "--workdir", "somewhere", QUICKSTART, "--help"]) == 0
    printed = capsys.readouterr().out
    for group in ("corpus", "tokenizer", "reference", "score", "select", "mix", "swarm", "final", "mesh"):
        of_group = getattr(config.Config(name="x"), group)
        for field in dataclasses.fields(of_group):
            if not dataclasses.is_dataclass(getattr(of_group, field.name)):
                assert f"--{group}.{field.name}" in printed
    # tyro prints a field that has no docstring as a bare default.
    assert "\n       (default:" not in printed


def test_two_processes_do_not_share_a_working_directory(tmp_path, capsys):
    from jaxprune.artifact import Workdir, locked

    with locked(Workdir(tmp_path)):
        command = [sys.executable, "-m", "jaxprune.cli", "score", QUICKSTART, "--workdir", str(tmp_path)]
        other = subprocess.run(command, capture_output=True, text=True)
    assert other.returncode == 1
    assert "another jaxprune works in" in other.stderr


def test_ctrl_c_again_and_again_ends_in_one_line():
    program = """
import os, signal, time
from jaxprune import cli
def command(options, rest):
    try:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(10)
    finally:
        for _ in range(3):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.01)
cli._command = command
cli.entry()
"""
    done = subprocess.run([sys.executable, "-c", program, "run", "x.py"], capture_output=True, text=True)
    assert done.returncode == 130
    assert done.stderr == "interrupted: the same command continues where it was\n"


def test_a_reader_that_has_enough_is_no_error():
    program = (
        f"{sys.executable} -m jaxprune.cli config configs/quickstart.py | head -n 1; exit ${{PIPESTATUS[0]}}"
    )
    done = subprocess.run(
        ["bash", "-c", program], capture_output=True, text=True, cwd=Path(cli.__file__).parents[1]
    )
    assert (done.returncode, done.stderr) in ((141, ""), (0, ""))
    assert done.stdout == "--name quickstart\n"


def test_sigterm_ends_a_command_that_has_nothing_to_save(tmp_path):
    """By a handler: the first process of a container has no default."""
    script = "from jaxprune import cli; import time; cli.main = lambda: print('on', flush=True) or time.sleep(60); cli.entry()"
    process = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.readline() == "on\n"
    process.terminate()
    assert process.communicate(timeout=30)[1] == "stopped: the same command continues where it was\n"
    assert process.returncode == 143
