"""The stage `audit`: what each selection kept and removed, for a person to read and as JSON.

Legend: N documents that are shown, P pieces of a document.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ibis
import numpy as np
from ibis import _
from markupsafe import Markup

from jaxprune import cluster
from jaxprune.artifact import ArtifactMissing, Manifest, Workdir, build, write_json
from jaxprune.config import Config
from jaxprune.data import tokenizer
from jaxprune.data.store import TokenStore
from jaxprune.mix import weights
from jaxprune.progress import meter
from jaxprune.prune.criteria import CRITERIA
from jaxprune.prune.score import Scorer
from jaxprune.report import page, provenance, selection
from jaxprune.report.headline import ARMS, pruned
from jaxprune.report.surprisal import beginning, token_nats

SHADES = (1, 2, 4, 6, 8, 10, 12)  # nats from which a token's background is the next shade
_TO_INDEX = '<!doctype html><meta http-equiv="refresh" content="0; url=index.html"><title>audit</title>'
_EXAMPLES = 3  # of each reason, by id


def run(config: Config, workdir: Workdir) -> Manifest:
    """Writes `index.html`, a page for each further selection, and `audit.json`; the first one's name leads to its page.

    Raises:
      ArtifactMissing, StageError: as `provenance.read`.
      ValueError: there is no selection of the name audit.selection.
    """
    manifests = provenance.read(config, workdir, before="mix")
    summary = json.loads((workdir.select / "summary.json").read_text())
    first = _first_selection(config.audit.selection, summary)

    def make(folder: Path) -> dict[str, Any]:
        figures = collect(config, workdir, summary, folder / "spill")
        files = {name: "index.html" if name == first else f"{name}.html" for name in (first, *summary)}

        def write() -> None:
            write_json(folder / "audit.json", figures)
            for name, file in files.items():
                (folder / file).write_text(render(figures, name, files), encoding="utf-8")
            (folder / f"{first}.html").write_text(_TO_INDEX)

        cluster.alone(write)
        return {"documents": len(figures["documents"]), "pages": len(files)}

    settings = {
        "audit": dataclasses.asdict(config.audit),
        "seed": config.seed,
        "name": config.name,
        "mix": weights.settings_of(config),
    }
    inputs = {name: manifest.fingerprint for name, manifest in manifests.items()}
    return build(workdir.audit, "audit", settings, inputs, make)


def _first_selection(wanted: str | None, summary: Mapping[str, Any]) -> str:
    if wanted is None:
        return selection.first(summary)
    if wanted not in summary:
        raise ValueError(
            f"audit.selection is {wanted}: the selections of this config are {', '.join(summary)}"
        )
    return wanted


def collect(config: Config, workdir: Workdir, summary: Mapping[str, Any], spill: Path) -> dict[str, Any]:
    """All numbers and documents of the audit, as plain JSON data. Every process computes surprisal, process 0 the rest.

    Args:
      config: the settings of the run.
      workdir: its artifacts.
      summary: of the stage `select`.
      spill: folder for what does not fit in memory.
    """
    store = TokenStore(workdir.prepare / "tokens")

    def choose() -> dict[str, Any]:
        with selection.connect(spill) as connection:
            return {
                name: _selection(
                    config, selection.read(connection, workdir.select / f"{name}.parquet"), of, store.domains
                )
                for name, of in summary.items()
            }

    selections = cluster.alone(choose)
    numbers = {
        document["number"]
        for of in selections.values()
        for documents in of["examples"].values()
        for document in documents
    }
    surprisal = _surprisal_of(config, workdir, store, np.array(sorted(numbers), np.int64))

    def describe() -> dict[str, Any]:
        with selection.connect(spill) as connection:
            return {
                "name": config.name,
                "domains": list(store.domains),
                "settings": dataclasses.asdict(config.audit),
                "seed": config.seed,
                "selections": selections,
                "documents": _documents(workdir, connection, surprisal),
                "dropped": _dropped(
                    connection.read_parquet(workdir.prepare / "removed.parquet"), config.seed
                ),
                "repetition": _repetition(config, workdir, store, summary),
            }

    return cluster.alone(describe)


def _selection(
    config: Config, table: Any, summary: Mapping[str, Any], domains: Sequence[str]
) -> dict[str, Any]:
    """One selection: its rule in words, figures, and which documents are shown of it."""
    rule = summary["rule"]
    unit = selection.unit(rule)
    documents = selection.ranked(table, rule)
    thresholds = selection.edges(summary, documents, domains)
    lost = {name: of["before"]["tokens"] - of["after"]["tokens"] for name, of in summary["domains"].items()}
    shown = sorted(sorted(lost, key=lambda name: -lost[name])[: config.audit.domains])
    chosen = selection.choose(
        table, rule, {name: thresholds[name] for name in shown}, config.audit.documents, config.seed
    )
    before, after = summary["all"]["before"], summary["all"]["after"]
    described = {
        "rule": rule,
        "signals": selection.signals(rule),
        "unit": unit,
        "further": {column: CRITERIA[column].unit for column in selection.further(rule)},
        "thresholds": thresholds,
    }
    return {
        **described,
        "words": pruned(described | {"before": before, "after": after}),
        "common_thresholds": selection.common(thresholds),
        "composition": {"domains": summary["domains"], "all": summary["all"]},
        "distribution": selection.distribution(documents, thresholds, 0.0 if unit is None else -math.inf),
        "reasons": selection.reasons(table),
        "shown": shown,
        "examples": {name: [row for row in chosen if row["domain"] == name] for name in shown},
    }


def _surprisal_of(
    config: Config, workdir: Workdir, store: TokenStore, numbers: np.ndarray
) -> dict[int, tuple[list[str], list[int], np.ndarray]]:
    """By number, the pieces in which a document begins, the tokens of each, and the nats of all these tokens."""
    scorer = Scorer.named(config.score.model, config, workdir)
    if scorer.translation is None:
        encoder = tokenizer.load(workdir.prepare / "tokenizer")
        tokens, offsets_N1, places = store.tokens, store.offsets_N1, numbers
    else:  # the model has tokens of its own
        encoder = scorer.translation.encoder
        tokens, offsets_N1 = scorer.translation(store, numbers)
        places = np.arange(len(numbers))
    texts = [
        beginning(encoder, tokens[offsets_N1[place] + 1 : offsets_N1[place + 1]], config.audit.characters)
        for place in places.tolist()
    ]
    first_N = np.array([sum(counts) for _, counts in texts], np.int64)
    with meter("audit: surprisal", float(first_N.sum()), "tokens") as progress:
        nats = token_nats(scorer, tokens, offsets_N1, places, first_N, progress)
    return {
        number: (*text, nats_P) for number, text, nats_P in zip(numbers.tolist(), texts, nats, strict=True)
    }


def _documents(
    workdir: Workdir,
    connection: Any,
    surprisal: Mapping[int, tuple[list[str], list[int], np.ndarray]],
) -> dict[str, Any]:
    """The documents that are shown, by number: where they come from, scores, and the surprisal of their text."""
    scores = connection.read_parquet(sorted(map(str, workdir.score.glob("part-*.parquet"))))
    columns = ("number", "id", "domain", "n_bytes", "n_scored", "nll_sum")
    found = scores.filter(_.number.isin(list(surprisal))).select(*columns).to_pyarrow().to_pylist()
    rows = {row["number"]: row for row in found}
    sources = _sources(workdir, connection, [row["id"] for row in found])
    documents = {}
    for number, (pieces, counts, nats_P) in surprisal.items():
        row = rows[number]
        ends = np.cumsum(counts, dtype=np.int64)
        summed = np.diff(np.concatenate([[0.0], np.cumsum(nats_P)])[np.concatenate([[0], ends])])
        documents[str(number)] = {
            "id": row["id"],
            "domain": row["domain"],
            "source": sources.get(row["id"]),
            "tokens": row["n_scored"],
            "bytes": row["n_bytes"],
            "nll": row["nll_sum"] / max(row["n_scored"], 1),
            "bits_per_byte": row["nll_sum"] / math.log(2) / max(row["n_bytes"], 1),
            "pieces": pieces,
            "piece_tokens": counts,
            "piece_nats": [round(float(value), 4) for value in summed],
            "left_out": {
                "tokens": row["n_scored"] - int(sum(counts)),
                "bytes": row["n_bytes"] - len("".join(pieces).encode()),
            },
        }
    return documents


def _sources(workdir: Workdir, connection: Any, ids: Sequence[str]) -> dict[str, str]:
    """The file that each document comes from; of an id that occurs again, that of the first."""
    shards = sorted(map(str, (workdir.prepare / "documents").glob("part-*.parquet")))
    found = connection.read_parquet(shards).filter(_.id.isin(list(ids))).select("id", "source").to_pyarrow()
    return {row["id"]: row["source"] for row in reversed(found.to_pylist())}


def _dropped(removed: Any, seed: int) -> list[dict[str, Any]]:
    """What was dropped before scoring, by reason: documents, and a few of them."""
    order = ibis.window(group_by="reason", order_by=[(f"{seed}:" + _.id).hexdigest("md5"), _.source])
    counted = removed.group_by("reason").agg(documents=_.count()).order_by(ibis.desc("documents"), "reason")
    few = (
        removed.mutate(rank=ibis.row_number().over(order))
        .filter(_.rank < _EXAMPLES)
        .order_by("reason", "rank")
    )
    examples = few.select("id", "domain", "source", "reason").to_pyarrow().to_pylist()
    return [
        row | {"examples": [example for example in examples if example["reason"] == row["reason"]]}
        for row in counted.to_pyarrow().to_pylist()
    ]


def _repetition(
    config: Config, workdir: Workdir, store: TokenStore, summary: Mapping[str, Any]
) -> dict[str, Any]:
    """How often each arm would repeat each domain in its training tokens; `error` where it cannot be trained."""
    tokens = config.final.steps * config.final.batch_rows * config.final.model.context
    try:
        runs = weights.mixtures(config, summary, store.domains, weights.finder(config, workdir, store))
    except (ValueError, ArtifactMissing) as error:
        return {"tokens": tokens, "arms": {}, "error": str(error)}
    arms = {
        arm: {"epochs": epochs, "words": _repeats(epochs), "often": max(epochs.values()) > weights.MANY_EPOCHS}
        for arm, epochs in weights.most_epochs(config, runs).items()
    }  # fmt: skip
    return {"tokens": tokens, "many": weights.MANY_EPOCHS, "arms": arms, "error": None}


def _repeats(epochs: Mapping[str, float]) -> str:
    """As `weights.repetition`; nothing repeats where less than all of a domain is drawn."""
    domain = max(epochs, key=epochs.__getitem__)
    if epochs[domain] > 1:
        return weights.repetition(epochs)
    return f"repeats nothing: it draws {epochs[domain]:.2g} of {domain}, and of no domain more"


def render(figures: Mapping[str, Any], name: str, files: Mapping[str, str]) -> str:
    """The page of one selection, which needs nothing but itself.

    Args:
      figures: what `collect` gives.
      name: of the selection.
      files: the page of each selection.
    """
    environment = page.environment(figures["domains"])
    environment.filters["surprisal"] = _surprisal
    shown = figures["selections"][name]["shown"]
    composition = figures["selections"][name]["composition"]["domains"]
    drawn = {
        "domains": figures["domains"],
        "pruning": {"selection": name},
        "composition": {name: {"domains": {domain: composition[domain] for domain in shown}}},
    }
    return environment.get_template("audit.html").render(
        figures=figures,
        name=name,
        files=files,
        of=figures["selections"][name],
        drawn=drawn,
        has_thresholds=any(
            edge is not None
            for edges in figures["selections"][name]["thresholds"].values()
            for edge in edges.values()
        ),
        shades=SHADES,
        arms=ARMS,
    )


def _surprisal(document: Mapping[str, Any]) -> Markup:
    """The text of a document, each piece on the shade of its nats."""
    marked = []
    parts = zip(document["pieces"], document["piece_tokens"], document["piece_nats"], strict=True)
    for text, n_tokens, nats in parts:
        shade = sum(nats >= least for least in SHADES)
        classes = f"n{shade} nl" if text.startswith("\n") else f"n{shade}"
        title = f"{nats:.2f} nats" if n_tokens == 1 else f"{nats:.2f} nats, {n_tokens} tokens"
        marked.append(Markup('<i class="{}" title="{}">{}</i>').format(classes, title, text))
    return Markup("").join(marked)
