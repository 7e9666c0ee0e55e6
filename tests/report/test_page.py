"""The page: what its first lines claim, that it needs nothing but itself, and the runs that are not the usual."""

import dataclasses
import html
import json
import re
import shutil
from typing import get_type_hints

import numpy as np
import pytest
from report_artifacts import settings, texts, write_workdir

from jaxprune import config
from jaxprune.artifact import ArtifactMissing, Workdir, read_manifest, write_json
from jaxprune.report import headline, mixing, page


def _report(root, of=None, words=None, effect=None, **options):
    """Figures and text of the report of a made-up run."""
    made, workdir = write_workdir(root, of or settings(), words or texts(24), effect or {}, **options)
    page.run(made, workdir)
    return json.loads((workdir.report / "report.json").read_text()), (
        workdir.report / "index.html"
    ).read_text()


def _sentences(figures):
    return [gain["sentence"] for gain in figures["headline"]["gains"]]


def test_a_gain_is_claimed_with_its_interval(reported):
    _, workdir, figures = reported
    against_none, against_random = _sentences(figures)
    difference = figures["comparisons"][0]["bits_per_byte"]["mean"]
    assert f"pruning gained {-difference['value']:.3f} bits per byte" in against_none
    assert f"(95 % interval {-difference['high']:.3f} to {-difference['low']:.3f})" in against_none
    assert "Against random pruning" in against_random and "gained" in against_random
    for gain in figures["headline"]["gains"]:
        assert [claim["verdict"] for claim in gain["claims"]] == ["better", "better"]
    text = html.unescape((workdir.report / "index.html").read_text())
    assert all(sentence in text for sentence in _sentences(figures))
    assert figures["headline"]["pruned"] in text
    assert text.index(figures["headline"]["pruned"]) < text.index(against_none) < text.index('id="results"')
    assert "re-mixing" in " ".join(figures["headline"]["controls"])  # no control arm was run
    said = " ".join(text.split())
    assert "one scoring model and its scores (one seed, one split)" in said
    assert "corrected for the number of comparisons" in said


def test_a_loss_is_called_one(tmp_path):
    figures, text = _report(tmp_path, effect={"pruned": 0.1})
    worse = figures["comparisons"][0]["bits_per_byte"]["mean"]["value"]
    assert f"pruning made it worse by {worse:.3f} bits per byte (95 % interval" in _sentences(figures)[0]
    assert "Made it worse by" in text and "gained" not in "".join(_sentences(figures))


def test_what_seeds_cannot_show_is_no_gain(tmp_path):
    figures, text = _report(tmp_path, effect={"pruned": -0.02}, seed_noise=0.05)
    assert all("no difference that two seeds can show" in sentence for sentence in _sentences(figures))
    assert "No difference that two seeds can show" in text and "gained" not in "".join(_sentences(figures))


def test_one_seed_claims_nothing(tmp_path):
    figures, text = _report(tmp_path, settings(seeds=(3,)), effect={"pruned": -0.5})
    assert all("may be chance" in sentence for sentence in _sentences(figures))
    assert "with one seed there is no interval" in text and "gained" not in "".join(_sentences(figures))


def test_the_page_needs_nothing_but_itself(reported):
    text = (reported[1].report / "index.html").read_text()
    links = re.findall(r'(?:src|href|action|data)\s*=\s*"([^"]*)"', text)
    assert links
    assert all(link.startswith(("#", "https://arxiv.org/")) for link in links)
    assert not re.search(r"<script|<link|@import|url\((?!#)", text)
    assert len(text.encode()) < 1_500_000
    for anchor in re.findall(r'href="#([\w-]+)"', text):
        assert f'id="{anchor}"' in text, anchor


def test_every_variable_of_colour_is_defined(reported):
    text = (reported[1].report / "index.html").read_text()
    assert set(re.findall(r"var\(--([\w-]+)", text)) <= set(re.findall(r"--([\w-]+):", text))


def test_documents_and_names_cannot_write_the_page(tmp_path):
    evil = "<script>alert('x')</script><img src=x onerror=alert(1)>"
    words = {"a<b>": [f"{evil} {i} {'pad ' * i}" for i in range(12)], "plain": texts(12)["code"]}
    figures, text = _report(tmp_path, settings(name="</title><b>bold"), words)
    assert any(evil in example["text"] for of in figures["examples"].values() for example in of)
    assert "<script" not in text and "<img" not in text and "<b>bold" not in text and "a<b>" not in text
    assert html.escape(evil, quote=False).replace("'", "&#39;") in text


def test_all_control_arms_say_what_they_explain(tmp_path):
    arms: tuple[config.Arm, ...] = ("none", "random", "pruned", "reweighted", "within_domain")
    figures, text = _report(tmp_path, settings(arms=arms), effect={"reweighted": -0.1, "pruned": -0.2})
    mixture, documents, inside = figures["headline"]["controls"]
    assert "mixture alone" in mixture and "gained" in mixture
    assert "documents alone" in documents and "gained" in documents
    assert "inside each domain" in inside
    assert "re-mixing" not in text


@pytest.mark.parametrize("arms", [("none",), ("random", "pruned")])
def test_arms_that_were_not_run_are_not_compared(tmp_path, arms):
    figures, text = _report(tmp_path, settings(arms=arms))
    bases = [gain["base"] for gain in figures["headline"]["gains"]]
    assert bases == [base for base in ("none", "random") if base in arms and "pruned" in arms]
    assert set(figures["results"]) == set(arms)
    assert "<svg" in text


@pytest.mark.parametrize(
    ("rule", "edges", "kept", "density"),
    [
        ({"criterion": "low"}, {"high"}, "those of lowest perplexity:", "the dark band was kept"),
        ({"criterion": "medium"}, {"low", "high"}, "those of medium perplexity:", "the dark band was kept"),
        ({"criterion": "high"}, {"low"}, "those of highest perplexity:", "the dark band was kept"),
        (
            {"criterion": "random"},
            set(),
            "chosen at random:",
            "a random draw that does not look at perplexity",
        ),
        (
            {"criterion": "proportional", "temperature": -0.5},
            set(),
            "drawn in proportion to exp(log-perplexity / −0.5):",
            "a random draw that prefers low perplexity",
        ),
        (
            {"criterion": "threshold", "low": 3.0, "scope": "domain"},
            {"low"},
            "those of perplexity from 20.1:",
            "the dark band was kept",
        ),
    ],
)
def test_one_domain_and_every_criterion(tmp_path, rule, edges, kept, density):
    of = settings(select=config.Select(rate=0.4, **rule))
    figures, text = _report(tmp_path, of, {"only": texts(40)["prose"]})
    assert _edges(figures) == {"only": edges}
    said = figures["headline"]["pruned"]
    assert kept in said and density in figures["headline"]["density"]
    end = "the same thresholds in every domain." if "low" in rule else " over the whole corpus."
    assert said.endswith(end)
    is_ranked = rule["criterion"] in ("low", "medium", "high")
    assert ("ranked over the whole corpus" in said) == is_ranked
    assert ("40 % of the documents" in said) == (rule["criterion"] != "threshold")
    assert ("each threshold" in figures["headline"]["examples"]) == bool(edges)
    assert all(figures["headline"][part] in html.unescape(text) for part in ("pruned", "density", "examples"))
    _kept_parts_are_what_was_kept(figures)
    remixed = {"random": None, "proportional": "drawing from", "threshold": "cutting"}.get(
        rule["criterion"], "ranking"
    )
    controls = " ".join(figures["headline"]["controls"])
    assert controls == "" if remixed is None else f"{remixed} the whole corpus" in controls


def _edges(figures):
    """The thresholds that each domain has."""
    return {
        domain: {edge for edge, value in edges.items() if value is not None}
        for domain, edges in figures["pruning"]["thresholds"].items()
    }


def _kept_parts_are_what_was_kept(figures):
    """Of one signal: all between the thresholds, or without thresholds the kept share."""
    score_X = np.array(figures["distribution"]["score"])
    step = score_X[1] - score_X[0]
    for domain, entry in figures["distribution"]["domains"].items():
        low, high = figures["pruning"]["thresholds"][domain].values()
        density_X, kept_X = np.array(entry["density"]), np.array(entry["kept_density"])
        if low is None and high is None:
            assert kept_X.sum() * step == pytest.approx(entry["kept"], abs=0.02), domain
            continue
        low, high = (-np.inf if low is None else low), (np.inf if high is None else high)
        is_inside_X = (score_X >= low) & (score_X <= high)
        is_near_X = is_inside_X & (kept_X > 0)  # smoothing reaches over a threshold where nothing is inside
        np.testing.assert_array_equal(kept_X[is_near_X], density_X[is_near_X])
        assert is_near_X.any() == (entry["kept"] > 0), domain
        assert not kept_X[(score_X < low - step) | (score_X > high + step)].any()


def _section(text, name, following):
    """What a person reads in a part of the page."""
    part = text[text.index(f'id="{name}"') : text.index(f'id="{following}"')]
    return html.unescape(" ".join(re.sub(r"<(style|pre).*?</\1>|<[^>]+>", " ", part, flags=re.S).split()))


def test_another_signal_is_named_in_place_of_perplexity(tmp_path):
    rule = config.Select(signals=("information",), criterion="high")
    figures, text = _report(tmp_path, settings(select=rule, arms=("none", "pruned"), seeds=(0,)))
    said = figures["headline"]["pruned"]
    low = figures["pruning"]["thresholds"]["code"]["low"]
    assert "those of highest information:" in said and f"of information from {low:.4g}, ranked" in said
    shown = _section(text, "scores", "composition")
    assert "Documents by information" in shown and "information (nats)" in shown and "perplexity" not in shown
    examples = _section(text, "examples", "curves")
    assert "lowest and highest information" in examples and "perplexity" not in examples
    for of in figures["examples"].values():
        assert {"lowest information", "highest information"} <= {row["place"] for row in of}
        assert all(f"information {row['score']:.4g}" in examples for row in of)
    assert "perplexity" not in said and low > 5  # H under the model and H of the unigrams, in nats
    _kept_parts_are_what_was_kept(figures)


def test_several_signals_are_shown_by_the_first(tmp_path):
    rule = config.Select(signals=("prior_mean", "prior_std"), combine="intersection", criterion="low")
    figures, text = _report(tmp_path, settings(select=rule, arms=("none", "pruned"), seeds=(0,)))
    assert "those of lowest prior mean and prior std at once:" in figures["headline"]["pruned"]
    assert set(map(frozenset, _edges(figures).values())) == {frozenset({"high"})}
    shown = _section(text, "scores", "composition")
    assert "prior mean (nats per token)" in shown and "first of 2 signals" in shown
    assert "light between them was removed by prior std" in shown and "perplexity" not in shown
    score_X = np.array(figures["distribution"]["score"])
    high = figures["pruning"]["thresholds"]["code"]["high"]
    entry = figures["distribution"]["all"]
    density_X, kept_X = np.array(entry["density"]), np.array(entry["kept_density"])
    assert kept_X[score_X < high].sum() < 0.95 * density_X[score_X < high].sum()  # the second removed some


def test_rates_of_domains_are_said_and_change_the_mixture(tmp_path):
    rates = {"code": 0.8, "web": 0.25}
    rule = config.Select(scope="domain", rates=rates)
    figures, text = _report(tmp_path, settings(select=rule, seeds=(0,)), texts(40))
    said = figures["headline"]["pruned"]
    assert said.endswith("ranked inside each domain (code 80 %, web 25 %, of each other domain 50 %).")
    for domain, entry in figures["distribution"]["domains"].items():
        assert entry["kept"] == pytest.approx(rates.get(domain, 0.5), abs=0.05)
    (remixed,) = figures["headline"]["controls"]
    assert "random pruning has the same rates" in remixed
    assert "thresholds, which each domain has for itself" in _section(text, "scores", "composition")
    assert len({edges["low"] for edges in figures["pruning"]["thresholds"].values()}) == 4
    _kept_parts_are_what_was_kept(figures)


@pytest.mark.parametrize(
    ("model", "words", "axis"),
    [
        ("reference", "scored by the reference model", "perplexity under the reference model"),
        ("second", "scored by the second model", "perplexity under the second model"),
        ("models/some-160m/", "scored by the model models/some-160m/", "perplexity under some-160m (log"),
    ],
)
def test_the_model_that_scored_is_named(reported, model, words, axis):
    shown = _section(page.render(reported[2] | {"score_model": model}), "scores", "composition")
    assert words in shown and axis in shown
    assert ("the reference model" in shown) == (model == "reference")


def test_a_domain_of_which_nothing_is_kept(tmp_path):
    select = config.Select(criterion="low", rate=0.15)  # of the four domains one is far easier
    figures, text = _report(tmp_path, settings(select=select))
    gone = [
        d for d, of in figures["composition"]["pruned"]["domains"].items() if of["after"]["documents"] == 0
    ]
    assert gone
    for domain in gone:
        assert figures["mixture"]["arms"]["pruned"][domain] == {"weight": 0.0, "epochs": 0.0}
        assert all(not example["kept"] for example in figures["examples"][domain])
        assert domain in text


def test_ranking_inside_domains_does_not_warn_of_re_mixing(tmp_path):
    figures, _ = _report(tmp_path, settings(select=config.Select(scope="domain")))
    assert "ranked inside each domain" in figures["headline"]["pruned"]
    assert figures["headline"]["controls"] == []
    lows = {edges["low"] for edges in figures["pruning"]["thresholds"].values()}
    assert len(lows) == len(figures["domains"])


def test_a_report_that_stands_is_not_made_again_and_a_missing_stage_is_named(reported):
    made, workdir, _ = reported
    before = read_manifest(workdir.report)
    assert page.run(made, workdir) == before
    with pytest.raises(ArtifactMissing, match="jaxprune train"):
        page.run(dataclasses.replace(made, arms=(*made.arms, "within_domain")), workdir)


def test_the_headline_has_words_for_every_method_of_mixing():
    for method in get_type_hints(config.Mix)["method"].__args__:
        mixture = {"arms": {"none": {"web": {"weight": 1.0}}}, "method": method, "temperature": 2.0}
        figures = {"mixture": mixture, "arms": ["none"], "training_tokens": 10}
        assert f"({method}: " in headline._mixture(figures)


def test_what_proxies_learnt_is_drawn(reported, tmp_path):
    made, workdir, figures = reported
    assert figures["learnt"] == {"proxies": {}, "mixed": [], "A": [], "most": 0.0}
    again = Workdir(shutil.copytree(workdir.root, tmp_path / "run"))
    runs = json.loads((again.mix / "weights.json").read_text())
    history = {"step": [*range(1, 501)], "weights": {name: [0.25] * 500 for name in figures["domains"]}}
    graph = {"code": {"code": 0.5, "web": -0.25}, "web": {"code": 0.125, "web": 0.375}}
    for run in runs.values():
        run["found"] = {"history": {"doremi-0": history}}
    write_json(again.mix / "weights.json", runs)
    shutil.rmtree(again.report)
    page.run(made, again)
    found = json.loads((again.report / "report.json").read_text())["learnt"]["proxies"]["doremi-0"]
    assert len(found["step"]) == len(found["values"]["web"]) == 200
    assert (found["step"][0], found["step"][-1]) == (1, 500)
    assert (
        'aria-label="learnt by domain over the steps of doremi-0"'
        in (again.report / "index.html").read_text()
    )
    # Rows of A are measured on; the graph names first what was trained on.
    assert mixing.learnt({"none-0": {"online": {"graph": graph}}}) == {
        "proxies": {}, "mixed": ["code", "web"], "A": [[0.5, 0.125], [-0.25, 0.375]], "most": 0.5,
    }  # fmt: skip
