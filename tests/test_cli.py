"""The command line: every mistake gets one line that helps, before anything is lost."""

import subprocess
import sys
from pathlib import Path

import pytest

from jaxprune import cli

QUICKSTART = str(Path(__file__).parent.parent / "configs" / "quickstart.py")

# What is typed -> what the one line must say.
WRONG = {
    "--select.rat 0.3": "did you mean select.rate?",
    "--rate 0.3": "did you mean select.rate?",
    "--final.optimizer.lr 1e-3": "did you mean final.optimizer.peak_lr?",
    "--final.model.layers 2": "did you mean final.model.n_layers?",
    "--tokenizer.vocab 512": "did you mean tokenizer.vocab_size?",
    "--select.rate half": "'half'",
    "--select.rate 1.5": "select.rate is 1.5: set a share above 0 and up to 1",
    "--select.rate 0": "select.rate is 0.0: set a share above 0",
    "--select.criterion lowest": "'low', 'medium', 'high', 'random'",
    "--arms none prune": "'within_domain'",
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
    "--final.model.dtype float16": "'float32', 'bfloat16'",
    "stray": "write --SETTING VALUE",
}


@pytest.mark.parametrize("typed", WRONG)
def test_a_wrong_setting_gets_one_line_that_helps(typed, tmp_path, capsys):
    status = cli.main(["run", QUICKSTART, "--workdir", str(tmp_path / "run"), *typed.split()])
    printed = capsys.readouterr().err.strip()
    assert status == 1
    assert WRONG[typed] in printed
    assert len(printed.splitlines()) == 1
    assert "Traceback" not in printed


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("from jaxprune.config import *\ndef config(): return Config(name='x', sede=1)", "did you mean seed?"),
        ("from jaxprune.config import *\ndef config(): return Config(name='x', seed='1')", "seed is '1', which is not a int"),
        ("from jaxprune.config import *\ndef config(): return Config(name='x', select=Select(rate=2))", "select.rate is 2"),
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
    assert len(printed.splitlines()) == 1


def test_a_missing_artifact_names_the_command_that_makes_it(tmp_path, capsys):
    assert cli.main(["score", QUICKSTART, "--workdir", str(tmp_path)]) == 1
    assert "run `jaxprune prepare CONFIG` first" in capsys.readouterr().err


def test_overrides_reach_the_config(capsys):
    assert cli.main(["config", QUICKSTART, "--select.rate", "0.25", "--mix.weights", "code", "1"]) == 0
    printed = capsys.readouterr().out
    assert "select.rate = 0.25" in printed
    assert "mix.weights = {'code': 1.0}" in printed


def test_help_explains_every_field(capsys):
    import dataclasses

    from jaxprune import config

    assert cli.main(["run", QUICKSTART, "--help"]) == 0
    printed = capsys.readouterr().out
    for group in ("corpus", "tokenizer", "reference", "score", "select", "mix", "final", "mesh"):
        settings = getattr(config.Config(name="x"), group)
        for field in dataclasses.fields(settings):
            if not dataclasses.is_dataclass(getattr(settings, field.name)):
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
