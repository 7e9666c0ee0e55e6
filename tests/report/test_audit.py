"""The audit: the documents around each edge, pages that need nothing but themselves, and selections of every kind."""

import dataclasses
import html
import json
import re
import types

import numpy as np
import pyarrow.parquet as pq
import pytest
from report_artifacts import settings, texts, write_workdir

from jaxprune import config
from jaxprune.artifact import StageError, read_manifest
from jaxprune.prune import select
from jaxprune.report import audit, charts, numbers


@pytest.fixture(scope="module", autouse=True)
def surprisal_without_a_model():
    """A token's nats are a tenth of its number; that they are the model's is tested with surprisal.py."""
    patch = pytest.MonkeyPatch()
    patch.setattr(audit.Scorer, "named", lambda *_: types.SimpleNamespace(translation=None))

    def nats(scorer, tokens, offsets_N1, numbers, first_N, progress):
        begin_N = offsets_N1[numbers] + 1
        return [tokens[begin : begin + n] / 10 for begin, n in zip(begin_N, first_N, strict=True)]

    patch.setattr(audit, "token_nats", nats)
    yield
    patch.undo()


def _made(root, of=None, words=None):
    made, workdir = write_workdir(root, of or settings(seeds=(0,)), words or texts(40), {})
    audit.run(made, workdir)
    return made, workdir, json.loads((workdir.audit / "audit.json").read_text())


@pytest.fixture(scope="module")
def audited(tmp_path_factory):
    return _made(tmp_path_factory.mktemp("audited"))


def _table(workdir, name):
    return pq.read_table(workdir.select / f"{name}.parquet").to_pylist()


def _numbers(of, domain, place):
    return {row["number"] for row in of["examples"][domain] if place in row["places"]}


def test_documents_at_the_edges_are_those_that_a_sort_finds(audited):
    made, workdir, figures = audited
    of, each = figures["selections"]["pruned"], made.audit.documents
    assert of["shown"] == figures["domains"]
    edge = of["common_thresholds"]
    for domain in figures["domains"]:
        rows = sorted(
            (row for row in _table(workdir, "pruned") if row["domain"] == domain),
            key=lambda row: row["score"],
        )
        ranked = [row for row in rows if row["n_tokens"] >= made.select.min_tokens]
        kept = [row for row in ranked if row["kept"]]
        below = [row for row in ranked if not row["kept"] and row["score"] < edge["low"]]
        above = [row for row in ranked if not row["kept"] and row["score"] > edge["high"]]
        wanted = {
            "lowest perplexity": ranked[:each],
            "highest perplexity": ranked[-each:],
            "just below the lower threshold": below[-each:],
            "just above the lower threshold": kept[:each],
            "just below the upper threshold": kept[-each:],
            "just above the upper threshold": above[:each],
        }
        for place, found in wanted.items():
            assert _numbers(of, domain, place) == {row["number"] for row in found}, (domain, place)
        shown = of["examples"][domain]
        assert [row["score"] for row in shown] == sorted(row["score"] for row in shown)
        assert len({row["number"] for row in shown}) == len(shown)


def test_random_documents_are_of_both_sides_and_of_the_seed(audited):
    made, workdir, figures = audited
    again, other = (_at_random(made, workdir, seed) for seed in (made.seed, made.seed + 1))
    assert again == _at_random(made, workdir, made.seed) != other
    for domain, rows in figures["selections"]["random-0"]["examples"].items():
        kept = [row for row in rows if "kept, at random" in row["places"]]
        removed = [row for row in rows if "removed, at random" in row["places"]]
        assert len(kept) == len(removed) == made.audit.documents, domain
        assert all(row["kept"] for row in kept) and not any(row["kept"] for row in removed)
        assert not any("threshold" in place for row in rows for place in row["places"])


def _at_random(made, workdir, seed):
    summary = json.loads((workdir.select / "summary.json").read_text())
    again = dataclasses.replace(made, seed=seed)
    figures = audit.collect(again, workdir, summary, workdir.root / "spill")
    return {
        row["number"]
        for rows in figures["selections"]["random-0"]["examples"].values()
        for row in rows
        if any("at random" in place for place in row["places"])
    }


def test_a_document_has_its_scores_its_source_and_its_text(audited):
    made, workdir, figures = audited
    source = {row["id"]: row["text"] for row in _documents(workdir)}
    for number, document in figures["documents"].items():
        text = "".join(document["pieces"])
        assert source[document["id"]].startswith(text)
        left = document["left_out"]
        assert document["bytes"] - left["bytes"] == len(text.encode())
        assert document["tokens"] - left["tokens"] == sum(document["piece_tokens"])
        assert (left["tokens"] == 0) == (text == source[document["id"]])
        assert len(text) >= made.audit.characters or left["tokens"] == 0
        assert f"/{document['domain']}.jsonl, line " in document["source"], number
    scores = {row["number"]: row for row in pq.read_table(workdir.score / "part-00000.parquet").to_pylist()}
    for number, document in figures["documents"].items():
        row = scores[int(number)]
        assert document["nll"] == pytest.approx(row["nll_sum"] / row["n_scored"])
        assert document["bits_per_byte"] == pytest.approx(row["nll_sum"] / np.log(2) / row["n_bytes"])


def _documents(workdir):
    for path in (workdir.prepare / "documents").glob("part-*.parquet"):
        yield from pq.read_table(path, columns=["id", "text"]).to_pylist()


def _shown(page):
    """The inside of the first document's text."""
    begin = page.index('<pre class="surprisal">') + len('<pre class="surprisal">')
    return page[begin : page.index("</pre>", begin)]


def test_every_piece_is_on_the_page_with_its_nats(audited):
    _, workdir, figures = audited
    page = (workdir.audit / "index.html").read_text()
    for domain, rows in figures["selections"]["pruned"]["examples"].items():
        for row in rows:
            document = figures["documents"][str(row["number"])]
            article = page[page.index(f'<article id="{row["number"]}"') :]
            block = _shown(article)
            found = re.findall(r'<i class="n(\d)[^"]*" title="([\d.]+) nats[^"]*">(.*?)</i>', block, re.S)
            assert [html.unescape(text) for _, _, text in found] == document["pieces"], domain
            assert [float(nats) for _, nats, _ in found] == pytest.approx(document["piece_nats"], abs=0.0051)
            for shade, nats in zip((int(s) for s, _, _ in found), document["piece_nats"], strict=True):
                assert shade == sum(nats >= least for least in audit.SHADES)


def test_the_reasons_count_every_removed_document(audited):
    _, workdir, figures = audited
    for name, of in figures["selections"].items():
        removed = [row for row in _table(workdir, name) if not row["kept"]]
        assert sum(row["documents"] for row in of["reasons"]) == len(removed)
        assert {row["reason"] for row in of["reasons"]} == {row["reason"] for row in removed}
        assert sum(row["tokens"] for row in of["reasons"]) == sum(row["n_tokens"] for row in removed)
    dropped = {row["reason"]: row for row in figures["dropped"]}
    assert dropped["duplicate text"]["documents"] == 4  # the first of each domain, which comes twice
    assert all(".jsonl, line " in example["source"] for example in dropped["duplicate text"]["examples"])
    assert all(reason in html.unescape((workdir.audit / "index.html").read_text()) for reason in dropped)


def test_the_kept_part_of_a_density_is_its_share_and_ends_at_the_thresholds(audited):
    distribution = audited[2]["selections"]["pruned"]["distribution"]
    score_X = np.array(distribution["score"])
    step = score_X[1] - score_X[0]
    edge = audited[2]["selections"]["pruned"]["common_thresholds"]
    outside_X = (score_X < edge["low"] - step) | (score_X > edge["high"] + step)
    for entry in (distribution["all"], *distribution["domains"].values()):
        density_X, kept_X = np.array(entry["density"]), np.array(entry["kept_density"])
        assert density_X.sum() * step == pytest.approx(1, abs=0.03)
        assert (kept_X <= density_X + 1e-9).all() and not kept_X[outside_X].any()
    entry = distribution["all"]
    assert np.sum(entry["kept_density"]) * step == pytest.approx(entry["kept"], abs=0.05)


def test_there_is_a_page_for_every_selection_that_needs_nothing_but_itself(audited):
    _, workdir, figures = audited
    files = {"pruned": "index.html", "none": "none.html", "random-0": "random-0.html"}
    assert set(figures["selections"]) == set(files)
    for name, file in files.items():
        text = (workdir.audit / file).read_text()
        assert html.escape(figures["selections"][name]["words"], quote=False) in text
        links = re.findall(r'(?:src|href|action|data)\s*=\s*"([^"]*)"', text)
        assert set(files.values()) <= set(links)
        assert all(link.startswith("#") or link in files.values() for link in links)
        assert not re.search(r"<script|<link|@import|url\((?!#)", text)
        ids = re.findall(r'\bid="([^"]+)"', text)
        assert len(ids) == len(set(ids))
        assert {link[1:] for link in links if link.startswith("#")} <= set(ids)
        used = set(re.findall(r"var\(--([\w-]+)", text)) - {"depth"}  # which cells of the report define
        assert used <= set(re.findall(r"--([\w-]+):", text))


def test_documents_and_names_cannot_write_the_page(tmp_path):
    evil = "<script>alert('x')</script><img src=x onerror=alert(1)></i></pre>"
    words = {"a<b>": [f"{evil} {i} {'pad ' * i}" for i in range(16)], "plain": texts(16)["code"]}
    _, workdir, figures = _made(tmp_path, settings(name="</title><b>bold", seeds=(0,)), words)
    assert any(evil in "".join(document["pieces"]) for document in figures["documents"].values())
    for file in set(workdir.audit.glob("*.html")) - {workdir.audit / "pruned.html"}:
        text = file.read_text()
        assert "<script" not in text and "<img" not in text and "<b>bold" not in text and "a<b>" not in text
        assert "<" not in re.sub(r'<i class="n\d[^"]*" title="[^"]*">|</i>', "", _shown(text))


@pytest.mark.parametrize("criterion", ["low", "medium", "high", "random", "proportional", "threshold"])
def test_one_domain_and_every_criterion(tmp_path, criterion):
    rule = config.Select(criterion=criterion, rate=0.4, low=3.0 if criterion == "threshold" else None)
    of = settings(select=rule, arms=("pruned",), seeds=(0,))
    _, workdir, figures = _made(tmp_path, of, {"only": texts(40)["prose"]})
    has = {"low": {"high"}, "medium": {"low", "high"}, "high": {"low"}, "threshold": {"low"}}
    edges = figures["selections"]["pruned"]["thresholds"]["only"]
    assert {name for name, value in edges.items() if value is not None} == has.get(criterion, set())
    places = {p for row in figures["selections"]["pruned"]["examples"]["only"] for p in row["places"]}
    assert any("lower threshold" in place for place in places) == ("low" in has.get(criterion, ()))
    assert any("upper threshold" in place for place in places) == ("high" in has.get(criterion, ()))
    assert {"kept, at random", "removed, at random", "lowest perplexity", "highest perplexity"} <= places
    assert {path.name for path in workdir.audit.glob("*.html")} == {"index.html", "pruned.html"}
    assert "url=index.html" in (workdir.audit / "pruned.html").read_text()


def test_a_document_shows_each_signal_that_decided(tmp_path):
    rule = config.Select(signals=("prior_mean", "prior_std", "perplexity"), rate=0.4)
    of = settings(select=rule, arms=("pruned",), seeds=(0,))
    _, workdir, figures = _made(tmp_path, of, {"only": texts(40)["prose"]})
    [shown] = figures["selections"]["pruned"]["examples"].values()
    table = {row["number"]: row for row in _table(workdir, "pruned")}
    page = (workdir.audit / "index.html").read_text()
    for row in shown:
        assert row["prior_std"] == table[row["number"]]["prior_std"]
        assert f"prior std {numbers.score(row['prior_std'], 'probability')} · perplexity" in page


def test_a_domain_of_which_nothing_is_kept_and_one_of_many_domains(tmp_path):
    domains = tuple(f"domain {n:02d}" for n in range(12))
    rule = config.Select(criterion="threshold", high=1.902)  # keeps one document
    shown = config.Audit(domains=3, documents=1, characters=40)
    of = settings(select=rule, arms=("pruned",), seeds=(0,), audit=shown)
    longer = dataclasses.replace(of.final.model, context=128)  # than that document
    of = dataclasses.replace(of, final=dataclasses.replace(of.final, model=longer))
    made, workdir = write_corpus_only(tmp_path, of, texts(12, domains))
    audit.run(made, workdir)
    figures = json.loads((workdir.audit / "audit.json").read_text())
    selection = figures["selections"]["pruned"]
    assert len(selection["shown"]) == len(selection["examples"]) == 3
    assert set(selection["distribution"]["domains"]) == set(domains) == set(selection["thresholds"])
    lost = {d: of["before"]["tokens"] for d, of in selection["composition"]["domains"].items()}
    assert set(selection["shown"]) == set(sorted(lost, key=lambda d: -lost[d])[:3])
    assert selection["composition"]["all"]["after"]["documents"] == 1
    assert not all(any(row["kept"] for row in rows) for rows in selection["examples"].values())
    assert "no domain keeps as much as one row" in figures["repetition"]["error"]
    page = (workdir.audit / "index.html").read_text()
    assert "cannot be trained on" in page and all(domain in page for domain in domains)


def write_corpus_only(root, of, words):
    """As `write_workdir`, up to the selection: `mix` would refuse to train on less than a row."""
    made, workdir = write_workdir(root, dataclasses.replace(of, select=config.Select()), words, {})
    made = dataclasses.replace(made, select=of.select)
    select.run(made, workdir)
    return made, workdir


def test_repetition_is_that_of_the_budget(audited):
    _, workdir, figures = audited
    mixtures = json.loads((workdir.mix / "weights.json").read_text())
    for arm, entry in figures["repetition"]["arms"].items():
        assert entry["epochs"] == pytest.approx(mixtures[f"{arm}-0"]["epochs"])
        assert entry["often"] == (max(entry["epochs"].values()) > 4)
    assert any(entry["often"] for entry in figures["repetition"]["arms"].values())
    assert 'class="warning"' in (workdir.audit / "index.html").read_text()


def test_the_axis_of_another_signal_is_in_its_unit(audited):
    entry = audited[2]["selections"]["pruned"]["distribution"]["all"]
    score_X = list(np.linspace(-2.0, 2.0, len(entry["density"])))
    edges = {"low": -1.0, "high": None}
    perplexity = charts.scores(score_X, entry, edges, None, "arm-none", "a")
    other = charts.scores(score_X, entry, edges, "bits per byte", "arm-none", "a")
    assert ">perplexity (logarithmic)<" in perplexity and ">bits per byte<" in other
    assert ">−1<" in other and ">−1<" not in perplexity


def test_an_audit_that_stands_is_not_made_again_and_another_rule_is_refused(audited):
    made, workdir, _ = audited
    assert audit.run(made, workdir) == read_manifest(workdir.audit)
    other = dataclasses.replace(made, select=dataclasses.replace(made.select, rate=0.2))
    with pytest.raises(StageError, match=r"`select` was not made .*rate: 0.5 -> 0.2"):
        audit.run(other, workdir)
    with pytest.raises(ValueError, match=r"audit\.selection is prund: .* none, random-0, pruned"):
        audit.run(dataclasses.replace(made, audit=config.Audit(selection="prund")), workdir)


@pytest.mark.parametrize("dark", [False, True])
def test_text_can_be_read_on_every_shade(audited, dark):
    """Contrast by WCAG 2: 4.5 to 1."""
    page = (audited[1].audit / "index.html").read_text()

    def colour(name):
        light, *darker = re.findall(rf"--{name}: #([0-9a-f]{{6}})", page)
        assert darker, name
        value = darker[0] if dark else light
        return np.array([int(value[i : i + 2], 16) / 255 for i in (0, 2, 4)])

    def luminance(rgb):
        return np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4) @ [
            0.2126,
            0.7152,
            0.0722,
        ]

    shares = [int(share) / 100 for share in re.findall(r"\.n\d \{ background: color-mix\(.*? (\d+)%", page)]
    assert len(shares) == len(audit.SHADES)
    for share in (0.0, *shares):
        background = share * colour("heat") + (1 - share) * colour("card")
        one, other = sorted(luminance(rgb) + 0.05 for rgb in (colour("ink"), background))
        assert other / one >= 4.5, share
