import json
import math
from dataclasses import replace

import numpy as np
import pytest
from stores import numbered_store

from jaxprune.artifact import Manifest, Workdir, write_json
from jaxprune.config import Config, Mix, MixStage, Model, Run, identity
from jaxprune.mix import weights
from jaxprune.train.stage import natural_weights

TOKENS = {"books": 6000, "code": 3000, "web": 1000}
ROWS = {"books": 60, "code": 30, "web": 10}


@pytest.mark.parametrize(
    ("mix", "expected"),
    [
        (Mix(method="natural"), (0.6, 0.3, 0.1)),
        (Mix(method="uniform"), (1 / 3, 1 / 3, 1 / 3)),
        (Mix(method="temperature", temperature=1), (0.6, 0.3, 0.1)),
        (Mix(method="temperature", temperature=math.inf), (1 / 3, 1 / 3, 1 / 3)),
        (Mix(method="temperature", temperature=2), np.sqrt([6, 3, 1]) / np.sqrt([6, 3, 1]).sum()),
        (Mix(method="fixed", weights={"web": 2, "books": 0, "code": 6}), (0, 0.75, 0.25)),
    ],
)
def test_proportions(mix, expected):
    found = weights.proportions(mix, TOKENS)
    assert list(found) == list(TOKENS)
    assert list(found.values()) == pytest.approx(list(expected))
    assert sum(found.values()) == pytest.approx(1, abs=1e-12)


def test_a_domain_of_which_nothing_is_kept_has_weight_zero():
    for method in ("natural", "uniform", "temperature"):
        found = weights.proportions(Mix(method=method), TOKENS | {"code": 0})
        assert found["code"] == 0 and sum(found.values()) == pytest.approx(1)
    with pytest.raises(ValueError, match=r"no document is kept.*select.rate"):
        weights.proportions(Mix(), dict.fromkeys(TOKENS, 0))


def test_fixed_weights_name_every_domain_and_no_other():
    with pytest.raises(ValueError, match="did you mean books"):
        weights.proportions(Mix(method="fixed", weights={"boks": 1, "code": 1, "web": 1}), TOKENS)
    with pytest.raises(ValueError, match="no weight for code, web"):
        weights.proportions(Mix(method="fixed", weights={"books": 1}), TOKENS)


def test_less_than_a_row_is_left_out_and_an_error_where_the_weight_was_asked_for(capsys):
    wanted = {"books": 0.5, "code": 0.3, "web": 0.2}
    rows = ROWS | {"web": 0}
    assert weights.drawable(wanted, rows, "none-0", strict=False) == pytest.approx(
        {"books": 0.625, "code": 0.375, "web": 0.0}
    )
    assert "web keeps less than one row" in capsys.readouterr().err
    with pytest.raises(ValueError, match="draws from web"):
        weights.drawable(wanted, rows, "none-0", strict=True)
    assert weights.drawable({"books": 1.0, "code": 0.0, "web": 0.0}, rows, "none-0", strict=True)
    with pytest.raises(ValueError, match="no domain keeps as much as one row"):
        weights.drawable(wanted, dict.fromkeys(ROWS, 0), "none-0", strict=False)


def test_more_epochs_than_the_limit_are_refused():
    weights.check_epochs({"books": 3.9, "code": 5.0}, None, "none-0")
    weights.check_epochs({"books": 3.9, "code": 5.0}, 5.0, "none-0")
    with pytest.raises(ValueError, match=r"none-0: code would be repeated 5 times.*mix.max_epochs is 4.5"):
        weights.check_epochs({"books": 3.9, "code": 5.0}, 4.5, "none-0")


def test_repetition_names_what_repeats_more_than_four_times_and_else_the_most():
    assert weights.repetition({"books": 4.0, "code": 1.0}) == "draws no domain more than 4 times over (books)"
    said = weights.repetition({"books": 4.1, "code": 9.0, "web": 4.0})
    assert said == "repeats code 9.0 times, books 4.1 times: above 4 a repeat teaches little"
    many = weights.repetition({f"domain{n}": 10.0 + n for n in range(100)})
    assert many.startswith("repeats domain99 109.0 times, ") and " and 95 more domains: above 4" in many


def selection(**documents_and_tokens):
    return {
        "domains": {
            domain: {"after": {"documents": documents, "tokens": tokens}}
            for domain, (documents, tokens) in documents_and_tokens.items()
        }
    }


def test_kept_tokens_count_the_token_that_separates_documents():
    kept = selection(books=(1, 32), code=(1, 31), web=(4, 60))
    assert weights.kept_tokens(kept, ("books", "code", "web", "zoo")) == {
        "books": 33,
        "code": 32,
        "web": 64,
        "zoo": 0,
    }


def test_natural_is_the_same_for_the_reference_and_for_final_runs(tmp_path):
    """Weights of the same documents, once as `train` and once as `mix` has them: short documents are mostly EOD."""
    context, lengths = 32, {"long": [50, 70], "short": [2] * 40, "tiny": [20]}
    stored = [(length, k) for k, of_domain in enumerate(lengths.values()) for length in of_domain]
    store = numbered_store(tmp_path, *zip(*stored, strict=True), n_domains=len(lengths))
    names = dict(zip(lengths, store.domains, strict=True))
    of_domain = {names[name]: (len(of), sum(of) - len(of)) for name, of in lengths.items()}

    reference = natural_weights(store, np.arange(store.n_documents), context)
    kept = weights.kept_tokens(selection(**of_domain), store.domains)
    rows = {name: max(n - 1, 0) // context for name, n in kept.items()}
    final = weights.drawable(weights.proportions(Mix(), kept), rows, "none-0", strict=False)
    assert reference == pytest.approx(tuple(final.values())) == (0.6, 0.4, 0.0)


def test_a_reference_without_a_row_is_an_error_that_says_what_to_set(tmp_path):
    store = numbered_store(tmp_path, [20, 30], [0, 1], 2)
    with pytest.raises(ValueError, match=r"row of 33 .*corpus\.reference.*reference\.model\.context"):
        natural_weights(store, np.arange(2), 32)
    with pytest.raises(ValueError, match=r"corpus\.reference"):
        natural_weights(store, np.arange(0), 32)


@pytest.fixture
def workdir(tmp_path, monkeypatch):
    """Selections of three domains, one of which `pruned` does not keep."""
    workdir = Workdir(tmp_path)
    for folder, stage in ((workdir.prepare, "prepare"), (workdir.select, "select")):
        folder.mkdir()
        manifest = Manifest(stage=stage, settings={})
        write_json(folder / "manifest.json", {"stage": manifest.stage, "settings": manifest.settings})
    write_json(
        workdir.select / "summary.json",
        {
            "none": selection(books=(8, 5992), code=(20, 2980), web=(500, 500)),
            "pruned": selection(books=(8, 992), code=(0, 0), web=(8, 2992)),
            "random-0": selection(books=(8, 2992), code=(8, 1492), web=(8, 492)),
            "random-1": selection(books=(8, 3100), code=(8, 1400), web=(1, 10)),
        },
    )

    class Store:
        domains = ("books", "code", "web")

    monkeypatch.setattr(weights, "TokenStore", lambda folder: Store)
    return workdir


def config_of(**fields):
    final = Run(model=Model(context=32), batch_rows=4, tokens=12_800)
    return Config(name="test", final=final, arms=("none", "pruned", "random", "reweighted"), **fields)


def test_run_gives_every_final_run_its_weights_and_epochs(workdir):
    weights.run(config_of(), workdir)
    runs = json.loads((workdir.mix / "weights.json").read_text())
    assert set(runs) == {
        f"{arm}-{seed}" for arm in ("none", "pruned", "random", "reweighted") for seed in (0, 1)
    }
    assert runs["none-0"]["weights"] == pytest.approx({"books": 0.6, "code": 0.3, "web": 0.1})
    assert runs["none-0"]["weights"] == runs["none-1"]["weights"]
    assert runs["pruned-0"]["weights"] == pytest.approx({"books": 0.25, "code": 0, "web": 0.75})
    assert runs["reweighted-0"]["weights"] == pytest.approx(runs["pruned-0"]["weights"])
    assert runs["reweighted-0"]["selection"] == "random-0"
    assert runs["reweighted-1"]["weights"] == {"books": 1.0, "code": 0.0, "web": 0.0}  # web: under a row
    for name, run in runs.items():
        assert run["tokens"] == 12_800
        drawn = sum(run["weights"][domain] for domain in run["weights"]) * 12_800
        assert drawn == pytest.approx(12_800), name
    # 0.25 of 400 rows from (992 + 8 - 1) // 32 rows, which hold the tokens that separate documents too.
    assert runs["pruned-0"]["epochs"] == pytest.approx({"books": 100 / 31, "code": 0, "web": 300 / 93})


def test_run_says_how_often_each_arm_repeats_in_the_seed_that_repeats_most(workdir, capsys):
    weights.run(config_of(), workdir)
    printed = " ".join(capsys.readouterr().err.split())
    runs = json.loads((workdir.mix / "weights.json").read_text())
    assert "; it draws no domain more than 1.3 times" in printed
    assert "; it draws no domain more than 3.2 times" in printed
    most = max(runs[f"reweighted-{seed}"]["epochs"]["web"] for seed in (0, 1))
    assert most > weights.MANY_EPOCHS
    assert f"; it repeats web {most:.1f} times" in printed
    assert "mix: reweighted draws books 62.5%, web 37.5%; it repeats web" in printed  # means of both seeds
    assert printed.count("mix: ") == 4  # a line for each arm


def test_the_largest_weights_are_named_and_the_rest_counted():
    assert weights.drawing({"a": 0.25, "b": 0.75, "c": 0.0}) == "draws b 75.0%, a 25.0%"
    many = {f"d{k}": (k + 1) / 28 for k in range(7)}
    assert weights.drawing(many).endswith("d2 10.7% and 10.7% of 2 more domains")


def test_run_refuses_more_epochs_than_asked_for(workdir):
    with pytest.raises(ValueError, match=r"mix\.max_epochs is 2"):
        weights.run(config_of(mix=Mix(max_epochs=2)), workdir)
    assert not workdir.mix.exists()


def test_unimax_is_as_uniform_as_the_epochs_allow():
    drawn = {"books": 6000, "code": 1000, "web": 100}
    assert weights.unimax(drawn, 3000, 4) == pytest.approx(
        {"books": 1300 / 3000, "code": 1300 / 3000, "web": 400 / 3000}
    )
    assert weights.unimax(drawn, 300, 4) == pytest.approx(dict.fromkeys(drawn, 1 / 3))
    all_short = weights.unimax(drawn, 10**6, 4)  # every domain repeats alike more often
    assert all_short == pytest.approx({name: n / 7100 for name, n in drawn.items()})
    assert list(weights.unimax(dict(reversed(drawn.items())), 3000, 4)) == ["web", "code", "books"]


def test_a_run_in_stages_has_its_stages_and_their_average(workdir):
    stages = (
        MixStage(weights={"books": 1, "code": 0, "web": 1}),
        MixStage(at=0.75, weights={"books": 0, "code": 1, "web": 0}),
    )
    config = replace(config_of(mix=Mix(method="stages", stages=stages)), arms=("none",))
    weights.run(config, workdir)
    run = json.loads((workdir.mix / "weights.json").read_text())["none-0"]
    assert [stage["start"] for stage in run["stages"]] == [0, 75]
    assert run["stages"][1]["weights"] == {"books": 0.0, "code": 1.0, "web": 0.0}
    assert run["weights"] == pytest.approx({"books": 0.375, "code": 0.25, "web": 0.375})
    assert run["epochs"]["code"] == pytest.approx(100 / (3000 // 32))
    with pytest.raises(ValueError, match="mix.stages has no weight for web"):
        weights.staged(
            Mix(method="stages", stages=(MixStage(weights={"books": 1, "code": 1}),)), tuple(TOKENS)
        )


def test_the_best_proxies_mixture_is_that_of_the_least_loss_over_seeds(workdir):
    """Seed 1 of mixture b has the least loss of all, and mixture a the least mean."""
    workdir.table.mkdir(parents=True)
    write_json(workdir.table / "manifest.json", {"stage": "mix swarm", "settings": {}})
    rows = ["run_id,w_books,w_code,w_web,loss_books,loss_code,loss_web"]
    for run, mixture, loss in (("a-0", "0.5,0.25,0.25", 3.0), ("a-1", "0.5,0.25,0.25", 3.1),
                               ("b-0", "0.2,0.4,0.4", 3.6), ("b-1", "0.2,0.4,0.4", 2.9)):  # fmt: skip
        rows.append(f"{run},{mixture},{loss},{loss},{loss}")
    (workdir.table / "table.csv").write_text("\n".join(rows) + "\n")
    weights.run(replace(config_of(mix=Mix(method="best")), arms=("none",)), workdir)
    run = json.loads((workdir.mix / "weights.json").read_text())["none-0"]
    assert run["weights"] == pytest.approx({"books": 0.5, "code": 0.25, "web": 0.25})
    assert run["found"] == pytest.approx({"loss": 3.05, "mixtures": 2, "runs": 4})


def test_stages_that_begin_together_or_with_the_end_are_refused():
    for at, says in (((0.0, 0.01), "the stage at 0 has none"), ((0.0, 0.99), "the stage at 0.99 has none")):
        stages = tuple(MixStage(at=share, weights={"books": 1.0}) for share in at)
        with pytest.raises(ValueError, match=says):
            weights.stage_starts(Mix(method="stages", stages=stages), 20)


def test_a_run_without_stages_has_no_starts():
    assert weights.stage_starts(Mix(), 20) == []


def test_unimax_without_a_row_leaves_the_message_to_whoever_draws():
    assert weights.unimax({"books": 0, "code": 0}, 100, 4.0) == {"books": 0.5, "code": 0.5}


def test_an_online_strategy_is_told_in_the_mixture_and_begins_after_the_prior(workdir, capsys):
    mix = Mix(method="aioli", prior="natural", prior_share=0.2, max_epochs=1.0)
    weights.run(replace(config_of(mix=mix), arms=("none",)), workdir)
    run = json.loads((workdir.mix / "weights.json").read_text())["none-0"]
    assert run["weights"] == pytest.approx({"books": 0.6, "code": 0.3, "web": 0.1})
    assert run["rows"] == {"books": 187, "code": 93, "web": 31}
    assert run["online"] == {
        "strategy": "aioli",
        "settings": identity(mix.aioli),
        "start": 20,
        "rows": 4,
        "max_epochs": 1.0,
    }
    said = capsys.readouterr().err
    assert "aioli decides while the final runs are trained (law: linear dynamic; A: explains what" in said
    assert "p: exponentiated gradient)" in said
