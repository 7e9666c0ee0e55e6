"""`mix fit`, `mix optimum` and `mix compare` on a table, and the weights that a law or entropy gives a final run."""

import csv
import json

import numpy as np
import pytest
from test_swarm import DOMAINS, prepare, settings

from jaxprune import cli
from jaxprune.artifact import ArtifactMissing, write_json
from jaxprune.config import Mix
from jaxprune.config.mix import LawName
from jaxprune.data.store import TRAIN, TokenStore
from jaxprune.mix import found, weights
from jaxprune.mix.entropy import entropies
from jaxprune.mix.laws import LAWS


@pytest.fixture
def table(tmp_path):
    """A file of forty runs of three domains, whose losses follow their own proportions."""
    path = tmp_path / "table.csv"
    write_table(path, DOMAINS)
    return path


def write_table(path, domains, n_runs=20):
    weights = np.random.default_rng(0).dirichlet(np.ones(len(domains)), n_runs) * 0.9 + 0.1 / len(domains)
    losses = np.array([2.0, 3.0, 3.2]) * weights ** -np.array([0.10, 0.05, 0.02])
    with path.open("w", newline="") as file:
        lines = csv.writer(file)
        lines.writerow(["run_id", "tokens", *(f"w_{d}" for d in domains), *(f"loss_{d}" for d in domains)])
        lines.writerows(
            [f"{i:03d}-0", 1536, *w, *loss] for i, (w, loss) in enumerate(zip(weights, losses, strict=True))
        )


def test_fit_shows_coefficients_and_writes_them(table, tmp_path, capsys):
    out = tmp_path / "fit.json"
    assert cli.main(["mix", "fit", str(table), "--law", "bimix", "--resamples", "5", "--out", str(out)]) == 0
    assert "95 % interval" in capsys.readouterr().out
    found = {(c["target"], c["name"]): c for c in json.loads(out.read_text())["coefficients"]}
    assert found["a", "alpha"]["value"] == pytest.approx(0.10, abs=1e-6)
    assert found["c", "alpha"]["low"] <= found["c", "alpha"]["value"] <= found["c", "alpha"]["high"]


def test_optimum_keeps_to_what_there_is(table, tmp_path, capsys):
    out = tmp_path / "optimum.json"
    words = [
        "mix",
        "optimum",
        str(table),
        "--law",
        "bimix",
        "--natural",
        "a",
        "1",
        "b",
        "2",
        "c",
        "7",
        "--out",
        str(out),
    ]
    assert cli.main([*words, "--available", "a", "100", "--tokens", "1536", "--epochs", "2"]) == 0
    found = json.loads(out.read_text())
    assert found["weights"]["a"] == pytest.approx(200 / 1536) and sum(
        found["weights"].values()
    ) == pytest.approx(1)
    assert set(found["compared"]["natural"]) == {"bimix", "reciprocal"}
    shown = capsys.readouterr().out
    assert "best observed" in shown and "most, 0.1302" in shown


def test_compare_shows_every_law(table, tmp_path, capsys):
    out = tmp_path / "compare.json"
    assert cli.main(["mix", "compare", str(table), "--laws", "bimix", "linear", "--out", str(out)]) == 0
    found = json.loads(out.read_text())
    assert (
        found["n_held_out"] == 5
        and found["at_end"]["bimix"]["error_E"] < found["at_end"]["linear"]["error_E"]
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["fit", "none.csv"], "there is no table none.csv"),
        (["optimum", "TABLE", "--natural", "a"], "--natural is a: write pairs of a name and a number"),
        (["optimum", "TABLE", "--floors", "z", "0.1"], "floors names z: the table has a, b, c"),
        (["optimum", "TABLE", "--tokens", "-1"], "--tokens is -1: give a finite number above 0"),
        (["optimum", "TABLE", "--second", "combined"], "--second is combined, as --law"),
        (["fit", "TABLE", "--seed", "3"], "--seed is no option of this command"),
        (["compare", "TABLE", "--laws", "bimx"], "there is no law bimx"),
        (["fit", "TABLE", "--law", "power"], "all rows have the same tokens"),
    ],
)
def test_mistakes_get_one_line(table, words, message, capsys):
    assert cli.main(["mix", *(str(table) if word == "TABLE" else word for word in words)]) == 1
    [line] = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error")]
    assert message in line


def test_options_are_checked_before_a_law_is_fitted(table, monkeypatch, capsys):
    monkeypatch.setattr(LAWS["bimix"].__class__, "fit", lambda *_: pytest.fail("fitted"))
    for words in (["--floors", "z", "0.1"], ["--evaluation", "z", "1"], ["--kl", "-1"], ["--epochs", "0"]):
        assert cli.main(["mix", "optimum", str(table), "--law", "bimix", *words]) == 1
        assert words[0] in capsys.readouterr().err


def test_settings_behind_a_config_are_its_own(tmp_path, capsys):
    path = tmp_path / "own.py"
    path.write_text("from jaxprune.config import Config\n\n\ndef config():\n    return Config(name='own')\n")
    words = ["mix", "fit", str(path), "--workdir", str(tmp_path), "--law", "bimix"]
    assert cli.main([*words, "--swarm.runz", "3"]) == 1
    assert "there is no setting --swarm.runz" in capsys.readouterr().err
    assert cli.main([*words, "--swarm.runs", "30"]) == 1
    assert "jaxprune mix swarm" in capsys.readouterr().err


def test_help_and_a_law_that_is_unknown(table, capsys):
    for words in (["mix", "fit", "--help"], ["mix", "optimum", "--help"], ["mix", "compare", "--help"]):
        with pytest.raises(SystemExit) as left:
            cli.main(words)
        assert left.value.code == 0 and "TABLE" in capsys.readouterr().out


def test_the_settings_know_every_law_of_mixtures():
    assert set(LawName.__args__) == set(LAWS) - {"power"}


def test_a_final_run_gets_the_optimum_of_the_law(tmp_path):
    workdir = prepare(tmp_path)
    config = settings()
    by = config.__class__(**{**vars(config), "mix": Mix(method="law", law="bimix", max_epochs=2)})
    with pytest.raises(ArtifactMissing, match="jaxprune mix swarm"):
        found.by_law(by, workdir)
    workdir.table.mkdir(parents=True)
    write_table(workdir.table / "table.csv", DOMAINS)
    write_json(workdir.table / "manifest.json", {"stage": "mix swarm", "settings": {}})
    kept = dict.fromkeys(
        DOMAINS, by.final.trained_tokens
    )  # two epochs of each are twice the run: no cap binds
    wanted, how = found.by_law(by, workdir)(np.zeros(0, int), kept, kept)
    assert sum(wanted.values()) == pytest.approx(1) and wanted["a"] > wanted["b"] > wanted["c"]
    assert how["law"] == "bimix" and "reciprocal" in how["compared"]["optimum"]
    scarce = kept | {"a": by.final.trained_tokens // 8}
    assert found.by_law(by, workdir)(np.zeros(0, int), scarce, scarce)[0]["a"] == pytest.approx(0.25)


def test_a_final_run_gets_the_weights_of_entropy(tmp_path):
    workdir = prepare(tmp_path)
    store = TokenStore(workdir.prepare / "tokens")
    config = settings()
    by = config.__class__(**{**vars(config), "mix": Mix(method="entropy", entropy="shannon")})
    documents = store.documents(TRAIN)
    kept = {name: 1000 for name in DOMAINS}
    wanted, how = found.by_entropy(by, store)(documents, kept, kept)
    fewest = int(np.bincount(store.domain_N[documents]).min())
    expected = entropies(store, documents, max_tokens=1000, max_documents=fewest, seed=by.seed).proportions(
        "shannon"
    )
    assert wanted == pytest.approx(expected) and how == {"entropy": "shannon"}
    # A domain of less than a row is not mixed, and does not decide how much of the others is read.
    tiny = found.by_entropy(by, store)(documents, kept | {"b": 7}, kept | {"b": 0})[0]
    assert tiny["b"] == 0 and tiny["a"] / tiny["c"] == pytest.approx(wanted["a"] / wanted["c"], rel=0.05)


def test_the_stage_takes_weights_at_their_cap(tmp_path):
    """Two epochs of what an epoch draws, rows and not tokens, is what mix.max_epochs allows."""
    workdir = prepare(tmp_path)
    store = TokenStore(workdir.prepare / "tokens")
    config = settings()
    by = config.__class__(**{**vars(config), "mix": Mix(method="law", law="bimix", max_epochs=2)})
    workdir.table.mkdir(parents=True)
    write_table(workdir.table / "table.csv", DOMAINS)
    write_json(workdir.table / "manifest.json", {"stage": "mix swarm", "settings": {}})
    kept = {"a": by.final.trained_tokens // 8 + 5, "b": 10**6, "c": 10**6}
    sizes = {name: {"after": {"tokens": n, "documents": 0}} for name, n in kept.items()}
    workdir.select.mkdir()
    np.save(workdir.select / "none.npy", store.documents(TRAIN))
    write_json(workdir.select / "summary.json", {"none": {"domains": sizes}})
    write_json(workdir.select / "manifest.json", {"stage": "select", "settings": {}})
    weights.run(by, workdir)
    made = json.loads((workdir.mix / "weights.json").read_text())["none-0"]
    assert made["epochs"]["a"] == pytest.approx(2) and made["found"]["law"] == "bimix"


def test_what_no_proxy_drew_or_measured_is_left_out(tmp_path):
    workdir = prepare(tmp_path)
    config = settings()
    by = config.__class__(**{**vars(config), "mix": Mix(method="law", law="bimix")})
    workdir.table.mkdir(parents=True)
    path = workdir.table / "table.csv"
    write_table(path, DOMAINS)
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0] + ",w_d,loss_d", *(line + ",0," for line in lines[1:])]) + "\n")
    write_json(workdir.table / "manifest.json", {"stage": "mix swarm", "settings": {}})
    kept = dict.fromkeys((*DOMAINS, "d"), by.final.trained_tokens)
    weights_of, _ = found.by_law(by, workdir)(np.zeros(0, int), kept, kept)
    assert weights_of["d"] == 0 and sum(weights_of.values()) == pytest.approx(1)
