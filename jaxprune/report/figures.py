"""Every number of the report, from the artifacts: what `report.json` holds and the page draws.

Plain JSON data. A reader who doubts a chart finds its points here.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from jaxprune.artifact import Manifest, Workdir
from jaxprune.config import Config
from jaxprune.data import tokenizer
from jaxprune.data.store import SPLITS, TokenStore, totals
from jaxprune.data.tokenizer import Encoder
from jaxprune.evaluate import comparison
from jaxprune.mix.weights import MANY_EPOCHS
from jaxprune.report import selection
from jaxprune.report.costs import costs
from jaxprune.report.mixing import learnt, mixing
from jaxprune.train import metrics

_CURVE_POINTS = 200
_TEXT_CHARACTERS = 400

# What each comparison isolates, in the order in which the page shows those whose arms were run.
_COMPARISONS = (
    ("pruned", "none", "pruning, everything included"),
    ("pruned", "random", "which documents are kept, and the mixture that this brings about"),
    ("pruned", "reweighted", "which documents are kept, at the same mixture"),
    ("reweighted", "random", "the change of the mixture alone"),
    ("within_domain", "random", "which documents are kept inside each domain, the mixture left as it was"),
    ("within_domain", "none", "pruning inside each domain, everything included"),
    ("random", "none", "fewer documents, repeated more often"),
)


def collect(config: Config, workdir: Workdir, manifests: dict[str, Manifest], spill: Path) -> dict[str, Any]:
    """All figures of the report.

    Args:
      config: the settings of the run.
      workdir: its artifacts.
      manifests: the manifest of every stage by name, in the order in which they ran.
      spill: folder for what does not fit in memory.
    """
    store = TokenStore(workdir.prepare / "tokens")
    held_out = comparison.read(workdir, config.arms, config.seeds)
    selections = json.loads((workdir.select / "summary.json").read_text())
    return {
        "name": config.name,
        "score_model": config.score.model,
        "arms": list(config.arms),
        "seeds": list(config.seeds),
        "domains": list(store.domains),
        "training_tokens": manifests[f"train {next(iter(config.final_runs))}"].counts["tokens"],
        **_selected(workdir, store, selections, spill),
        "comparisons": _comparisons(config.arms, held_out),
        "results": _results(config, held_out),
        "composition": selections,
        "curves": _curves(config, workdir, store.domains),
        "mixture": _mixture(config, workdir, store.domains, manifests),
        "learnt": learnt(json.loads((workdir.mix / "weights.json").read_text())),
        "mixing": mixing(workdir, tuple(config.final_runs), store.domains, manifests),
        "costs": costs(config, store.vocab_size, manifests),
        "data": _data(workdir, store),
        "reproduce": {
            "settings": json.loads(json.dumps(dataclasses.asdict(config))),
            "fingerprints": {name: manifest.fingerprint for name, manifest in manifests.items()},
            "versions": manifests["prepare"].versions,
        },
    }


def _selected(
    workdir: Workdir, store: TokenStore, selections: Mapping[str, Any], spill: Path
) -> dict[str, Any]:
    """Of the selection that the page shows: what it keeps, the distribution of the scores, and examples."""
    name = selection.first(selections)
    of, rule = selections[name], selections[name]["rule"]
    unit = selection.unit(rule)
    with selection.connect(spill) as connection:
        table = selection.read(connection, workdir.select / f"{name}.parquet")
        documents = selection.ranked(table, rule)
        thresholds = selection.edges(of, documents, store.domains)
        lowest = 0.0 if unit is None else -math.inf
        distribution = selection.distribution(documents, thresholds, lowest)
        chosen = selection.choose(table, rule, thresholds, each=1)
    pruning = {
        "selection": name,
        "rule": rule,
        "signals": selection.signals(rule),
        "unit": unit,
        "thresholds": thresholds,
        "before": of["all"]["before"],
        "after": of["all"]["after"],
        "removed": of["removed"],
    }
    examples = _examples(chosen, store, tokenizer.load(workdir.prepare / "tokenizer"))
    return {"pruning": pruning, "distribution": distribution, "examples": examples}


def _examples(
    chosen: Sequence[Mapping[str, Any]], store: TokenStore, encoder: Encoder
) -> dict[str, list[dict[str, Any]]]:
    """Documents to read by domain, in ascending order of score."""
    examples: dict[str, list[dict[str, Any]]] = {domain: [] for domain in store.domains}
    for row in chosen:
        examples[row["domain"]].append(
            {
                "place": row["places"][0],
                "kept": row["kept"],
                "number": row["number"],
                "id": row["id"],
                "score": row["score"],
                "tokens": row["n_tokens"],
                "bytes": row["n_bytes"],
                **_beginning(store, encoder, row["number"]),
            }
        )
    return examples


def _beginning(store: TokenStore, encoder: Encoder, number: int) -> dict[str, Any]:
    """The first characters of a document, and whether it goes on."""
    tokens = store.stored(number)[1:]  # without the end-of-document token that begins it
    text = encoder.decode(np.asarray(tokens[:_TEXT_CHARACTERS]))
    return {
        "text": text[:_TEXT_CHARACTERS],
        "cut": len(text) > _TEXT_CHARACTERS or len(tokens) > _TEXT_CHARACTERS,
    }


def _comparisons(arms: Sequence[str], held_out: comparison.HeldOut) -> list[dict[str, Any]]:
    """Differences between arms; below zero, the first is better."""
    return [
        {"arm": arm, "base": base, "isolates": isolates}
        | {
            measure: {
                place: dataclasses.asdict(comparison.difference(held_out, arm, base, place, measure))
                for place in ("mean", "all")
            }
            for measure in comparison.MEASURES
        }
        for arm, base, isolates in _COMPARISONS
        if arm in arms and base in arms
    ]


def _results(config: Config, held_out: comparison.HeldOut) -> dict[str, Any]:
    """Held-out losses: arm -> place (a domain, `all`, `mean`) -> measure -> value, seeds, difference to `none`."""
    results: dict[str, Any] = {}
    for arm in config.arms:
        results[arm] = {}
        for place, loss in comparison.losses(held_out, arm).items():
            entry = {
                measure: {
                    "value": loss[measure],
                    "seeds": loss["per_seed"][measure],
                    "to_none": None
                    if arm == "none" or "none" not in config.arms
                    else dataclasses.asdict(comparison.difference(held_out, arm, "none", place, measure)),
                }
                for measure in comparison.MEASURES
            }
            results[arm][place] = entry | {"perplexity": _perplexity(entry["nll"])}
    return results


def _perplexity(nll: dict[str, Any]) -> dict[str, Any]:
    """The same loss as perplexity: exp of a mean of NLLs, so a geometric mean over seeds and domains."""
    to_none, value = nll["to_none"], math.exp(nll["value"])
    if to_none is not None:
        base = nll["value"] - to_none["value"]
        ends = {end: to_none[end] for end in ("value", "low", "high")}
        to_none = {e: None if by is None else math.exp(base + by) - math.exp(base) for e, by in ends.items()}
    return {"value": value, "seeds": [math.exp(seed) for seed in nll["seeds"]], "to_none": to_none}


def _curves(config: Config, workdir: Workdir, domains: Sequence[str]) -> dict[str, Any]:
    """Losses over training tokens: kind -> arm -> seed -> {tokens, loss: {series: values}}.

    Kinds are `heldout`, `training` and `difference`: held-out loss minus that of `none`.
    """
    curves: dict[str, Any] = {"heldout": {}, "training": {}}
    for arm in config.arms:
        for kind in curves:
            curves[kind][arm] = {}
        for seed in config.seeds:
            lines = metrics.read(workdir.run(f"{arm}-{seed}") / "metrics.jsonl")
            validated = [line for line in lines if math.isfinite(line.get("heldout", math.nan))]
            names = ["heldout", *(f"heldout/{domain}" for domain in domains)]
            curves["heldout"][arm][str(seed)] = {
                "tokens": [line["tokens"] for line in validated],
                "loss": {name: [line[name] for line in validated] for name in names},
            }
            trained = [line for line in lines if "loss" in line]
            curves["training"][arm][str(seed)] = {
                "tokens": _thinned([line["tokens"] for line in trained]),
                "loss": {"training": _thinned([line["loss"] for line in trained])},
            }
    return curves | {"difference": _to_none(curves["heldout"])}


def _to_none(heldout: dict[str, Any]) -> dict[str, Any]:
    """Held-out curves of the other arms minus that of `none` with the same seed."""
    return {
        arm: {
            seed: {
                "tokens": curve["tokens"],
                "loss": {
                    name: (np.array(values) - np.array(heldout["none"][seed]["loss"][name])).tolist()
                    for name, values in curve["loss"].items()
                },
            }
            for seed, curve in seeds.items()
        }
        for arm, seeds in heldout.items()
        if arm != "none" and "none" in heldout
    }


def _thinned(values: list[float]) -> list[float]:
    """At most `_CURVE_POINTS` values: means of equal runs of neighbours."""
    parts = np.array_split(np.array(values, float), min(len(values), _CURVE_POINTS)) if values else []
    return [float(part.mean()) for part in parts]


def _mixture(
    config: Config, workdir: Workdir, domains: Sequence[str], manifests: Mapping[str, Manifest]
) -> dict[str, Any]:
    """Weights and epochs of each domain: means over the seeds of an arm, and every run's own.

    Of runs whose weights were decided online, what they drew.
    """
    runs = json.loads((workdir.mix / "weights.json").read_text())
    for name, run in runs.items():
        if "online" in run:
            run["epochs"] = manifests[f"train {name}"].counts["epochs"]
            drawn = {domain: run["epochs"][domain] * run["rows"][domain] for domain in domains}
            run["weights"] = {domain: rows / sum(drawn.values()) for domain, rows in drawn.items()}
    arms: dict[str, Any] = {}
    for arm in config.arms:
        of_arm = [runs[f"{arm}-{seed}"] for seed in config.seeds]
        arms[arm] = {
            domain: {
                key: float(np.mean([run[source][domain] for run in of_arm]))
                for key, source in (("weight", "weights"), ("epochs", "epochs"))
            }
            for domain in domains
        }
    repeated = {
        arm: {d: entry["epochs"] for d, entry in of_arm.items() if entry["epochs"] > MANY_EPOCHS}
        for arm, of_arm in arms.items()
    }
    return {
        "method": config.mix.method,
        "temperature": config.mix.temperature if config.mix.method == "temperature" else None,
        "arms": arms,
        "many_epochs": MANY_EPOCHS,
        "repeated": {arm: often for arm, often in repeated.items() if often},
        "runs": runs,
        "mixed": {name: [domain for domain, n in run["rows"].items() if n > 0] for name, run in runs.items()},
    }


def _data(workdir: Workdir, store: TokenStore) -> dict[str, Any]:
    """Documents, tokens and bytes of each domain and split, and what was dropped before, by reason."""
    removed = pq.read_table(workdir.prepare / "removed.parquet", columns=["reason"])
    reasons = {row["values"]: row["counts"] for row in removed["reason"].value_counts().to_pylist()}
    return {
        "splits": list(SPLITS),
        **totals(store.folder, store.domains),
        "removed": dict(sorted(reasons.items(), key=lambda item: -item[1])),
        "vocab_size": store.vocab_size,
    }
