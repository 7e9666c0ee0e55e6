"""The page: what its first lines claim, that it needs nothing but itself, and the runs that are not the usual."""

import dataclasses
import html
import json
import re

import pytest
from report_artifacts import settings, texts, write_workdir

from jaxprune import config
from jaxprune.artifact import ArtifactMissing, read_manifest
from jaxprune.report import page


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
    assert "one reference model and its scores (one seed, one split)" in said
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


@pytest.mark.parametrize("criterion", ["low", "medium", "high", "random"])
def test_one_domain_and_every_criterion(tmp_path, criterion):
    select = config.Select(criterion=criterion, rate=0.4)
    figures, _ = _report(tmp_path, settings(select=select), {"only": texts(40)["prose"]})
    edges = figures["pruning"]["thresholds"]["only"]
    has = {"low": {"high"}, "medium": {"low", "high"}, "high": {"low"}, "random": set()}[criterion]
    assert {edge for edge, nll in edges.items() if nll is not None} == has
    assert "40 % of the documents" in figures["headline"]["pruned"]


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
