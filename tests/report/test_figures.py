"""Every figure is that of the artifacts, computed here another way."""

import json
import math

import numpy as np
import pyarrow.parquet as pq
import pytest

from jaxprune.artifact import read_manifest
from jaxprune.data.store import TokenStore
from jaxprune.train.metrics import read


def _evaluated(workdir, name):
    return pq.read_table(workdir.evaluate(name) / "scores.parquet").to_pydict()


def _loss(scores, domain=None):
    """Nats per token and bits per byte of a domain, or of all documents."""
    mine = [i for i, name in enumerate(scores["domain"]) if domain in (None, name)]
    nats, tokens, size = (sum(scores[key][i] for i in mine) for key in ("nll_sum", "n_tokens", "n_bytes"))
    return nats / tokens, nats / size / math.log(2)


def test_held_out_losses_and_their_differences(reported):
    config, workdir, figures = reported
    by_seed = {name: _evaluated(workdir, name) for name in config.final_runs}
    for arm in config.arms:
        for domain in figures["domains"]:
            expected = [_loss(by_seed[f"{arm}-{seed}"], domain) for seed in config.seeds]
            cell = figures["results"][arm][domain]
            np.testing.assert_allclose(cell["nll"]["seeds"], [nll for nll, _ in expected])
            np.testing.assert_allclose(cell["bits_per_byte"]["seeds"], [bits for _, bits in expected])
            assert cell["perplexity"]["value"] == pytest.approx(
                math.exp(np.mean([nll for nll, _ in expected]))
            )
    pruned_none = next(e for e in figures["comparisons"] if (e["arm"], e["base"]) == ("pruned", "none"))
    for place, mean in {
        "all": lambda scores: _loss(scores)[1],
        "mean": lambda scores: np.mean([_loss(scores, domain)[1] for domain in figures["domains"]]),
    }.items():
        by_arm = {arm: np.mean([mean(by_seed[f"{arm}-{s}"]) for s in config.seeds]) for arm in config.arms}
        shown = pruned_none["bits_per_byte"][place]
        assert shown["value"] == pytest.approx(by_arm["pruned"] - by_arm["none"])
        assert shown["low"] < shown["value"] < shown["high"]
        to_none = figures["results"]["pruned"][place]["perplexity"]["to_none"]["value"]
        pruned, none = (figures["results"][arm][place]["perplexity"]["value"] for arm in ("pruned", "none"))
        assert to_none == pytest.approx(pruned - none)


def test_what_was_pruned(reported):
    _, workdir, figures = reported
    table = pq.read_table(workdir.select / "pruned.parquet").to_pydict()
    kept = [i for i, is_kept in enumerate(table["kept"]) if is_kept]
    pruning = figures["pruning"]
    assert pruning["before"]["documents"] == len(table["kept"])
    assert pruning["after"]["documents"] == len(kept)
    assert pruning["after"]["tokens"] == sum(table["n_tokens"][i] for i in kept)
    for domain in figures["domains"]:
        edges = pruning["thresholds"][domain]
        assert edges == {
            "low": min(table["score"][i] for i in kept),
            "high": max(table["score"][i] for i in kept),
        }
        mine = [i for i in range(len(table["domain"])) if table["domain"][i] == domain]
        share = sum(table["kept"][i] for i in mine) / len(mine)
        assert figures["distribution"]["domains"][domain]["kept"] == pytest.approx(share)
        after = figures["composition"]["pruned"]["domains"][domain]["after"]
        assert after["bytes"] == sum(table["n_bytes"][i] for i in mine if table["kept"][i])


def test_densities_integrate_to_one_and_have_the_median_in_the_middle(reported):
    *_, figures = reported
    nll_X = np.array(figures["distribution"]["score"])
    for entry in figures["distribution"]["domains"].values():
        density_X = np.array(entry["density"])
        assert np.trapezoid(density_X, nll_X) == pytest.approx(1.0, abs=0.02)
        below = nll_X <= entry["median"]
        assert np.trapezoid(density_X[below], nll_X[below]) == pytest.approx(0.5, abs=0.06)


def test_examples_are_the_extremes_and_the_neighbours_of_the_thresholds(reported):
    _, workdir, figures = reported
    table = pq.read_table(workdir.select / "pruned.parquet").to_pydict()
    text = {
        record["id"]: record["text"]
        for part in (workdir.prepare / "documents").glob("*.parquet")
        for record in pq.read_table(part, columns=["id", "text"]).to_pylist()
    }
    for domain in figures["domains"]:
        scores = {table["id"][i]: table["score"][i] for i, d in enumerate(table["domain"]) if d == domain}
        kept = {table["id"][i]: table["kept"][i] for i in range(len(table["id"]))}
        order = sorted(scores, key=lambda name: scores[name])
        shown = figures["examples"][domain]
        assert [shown[0]["id"], shown[-1]["id"]] == [order[0], order[-1]]
        for example in shown:
            assert example["kept"] == kept[example["id"]]
            assert example["score"] == scores[example["id"]]
            assert text[example["id"]].startswith(example["text"])
            assert example["cut"] == (len(text[example["id"]]) > len(example["text"]))
        for above in (example for example in shown if "just above" in example["place"]):
            below = order[order.index(above["id"]) - 1]
            assert kept[below] != above["kept"]
        places = {example["place"] for example in shown}
        assert {"lowest perplexity", "highest perplexity"} <= places
        edges = figures["pruning"]["thresholds"][domain]
        for end, word in (("low", "lower"), ("high", "upper")):
            is_cut = min(scores.values()) < edges[end] < max(scores.values())
            assert any(word in place for place in places) == is_cut, (domain, end)


def test_curves_are_the_metrics_and_differences_are_to_the_same_seed(reported):
    config, workdir, figures = reported
    for seed in config.seeds:
        lines = {arm: read(workdir.run(f"{arm}-{seed}") / "metrics.jsonl") for arm in config.arms}
        heldout = {arm: [line["heldout"] for line in lines[arm] if "heldout" in line] for arm in config.arms}
        assert figures["curves"]["heldout"]["pruned"][str(seed)]["loss"]["heldout"] == heldout["pruned"]
        by = np.subtract(heldout["pruned"], heldout["none"])
        shown = figures["curves"]["difference"]["pruned"][str(seed)]["loss"]["heldout"]
        np.testing.assert_allclose(shown, by)
        assert "none" not in figures["curves"]["difference"]
        training = [line["loss"] for line in lines["none"] if "loss" in line]
        assert np.mean(figures["curves"]["training"]["none"][str(seed)]["loss"]["training"]) == pytest.approx(
            np.mean(training)
        )


def test_mixture_is_the_mean_over_seeds(reported):
    config, workdir, figures = reported
    weights = json.loads((workdir.mix / "weights.json").read_text())
    for arm in config.arms:
        for domain in figures["domains"]:
            entry = figures["mixture"]["arms"][arm][domain]
            for key, source in (("weight", "weights"), ("epochs", "epochs")):
                expected = np.mean([weights[f"{arm}-{seed}"][source][domain] for seed in config.seeds])
                assert entry[key] == pytest.approx(expected)
        assert sum(entry["weight"] for entry in figures["mixture"]["arms"][arm].values()) == pytest.approx(1)
    often = {(arm, domain) for arm, of_arm in figures["mixture"]["repeated"].items() for domain in of_arm}
    entries = figures["mixture"]["arms"]
    assert often == {(a, d) for a in entries for d in entries[a] if entries[a][d]["epochs"] > 4}
    assert often  # the fixture repeats its few documents


def test_costs_add_up_and_a_forward_pass_is_two_n_and_attention_a_token(reported):
    config, workdir, figures = reported
    costs, store = figures["costs"], TokenStore(workdir.prepare / "tokens")
    scored = pq.read_table(workdir.score / "part-00000.parquet")
    assert costs["stages"]["score"]["tokens"] == sum(scored["n_tokens"].to_pylist())
    evaluated = [_evaluated(workdir, name)["n_tokens"] for name in config.final_runs]
    assert costs["stages"]["evaluate"]["tokens"] == sum(map(sum, evaluated))
    for stage, kind, run in (("score", "scoring", config.reference), ("evaluate", "final", config.final)):
        model = run.model
        multiplied = costs["parameters"][kind] - model.context * model.d_model  # positions are looked up
        attention = 4 * model.n_layers * model.d_model * model.context
        expected = (2 * multiplied + attention) * costs["stages"][stage]["tokens"]
        assert costs["stages"][stage]["flops"] == pytest.approx(expected)
    assert costs["flops"] == pytest.approx(sum(stage["flops"] for stage in costs["stages"].values()))
    assert costs["overhead"]["scoring"] == pytest.approx(
        costs["stages"]["score"]["flops"] / costs["final_flops"]
    )
    assert costs["stages"]["train pruned"]["runs"] == 2
    assert costs["stages"]["train pruned"]["flops"] == pytest.approx(2 * costs["final_flops"])
    assert costs["stages"]["evaluate"]["runs"] == len(config.final_runs)
    assert costs["seconds"] == pytest.approx(sum(stage["seconds"] for stage in costs["stages"].values()))
    assert store.vocab_size == figures["data"]["vocab_size"]


def test_training_tokens_are_those_that_were_trained(reported):
    config, workdir, figures = reported
    for name in config.final_runs:
        manifest = read_manifest(workdir.run(name))
        assert manifest is not None and figures["training_tokens"] == manifest.counts["tokens"]


def test_data_counts_splits_and_what_was_dropped(reported):
    _, workdir, figures = reported
    store = TokenStore(workdir.prepare / "tokens")
    for k, domain in enumerate(figures["domains"]):
        for s, split in enumerate(figures["data"]["splits"]):
            numbers = np.flatnonzero((store.split_N == s) & (store.domain_N == k))
            assert figures["data"]["documents"][domain][split] == len(numbers)
            assert figures["data"]["tokens"][domain][split] == sum(
                len(store.stored(int(n))) - 1 for n in numbers
            )
    removed = pq.read_table(workdir.prepare / "removed.parquet")["reason"].to_pylist()
    assert figures["data"]["removed"] == {reason: removed.count(reason) for reason in set(removed)}
    assert sum(figures["data"]["removed"].values()) == 8  # the fixture's copies and empty documents
