"""What one selection did, asked of its table: distribution of scores, reasons, and documents worth reading.

All are queries (Ibis on DuckDB) with small answers, so that a table may be larger than memory.

Legend: X points of the axis of scores, K domains.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ibis
import ibis.expr.types as ir
import numpy as np
from ibis import _

from jaxprune.config import Signal
from jaxprune.prune.criteria import CRITERIA
from jaxprune.prune.select import MEMORY

Rule = Mapping[str, Any]  # config.Select, as the summary of the stage `select` has it
Thresholds = Mapping[str, Mapping[str, float | None]]  # of each domain; None where there is none

_AXIS_POINTS = 240
_TAIL = 0.001  # of the documents at each end, which would else set the scale of the axis
_EDGES = {"domain": "string", "low": "float64", "high": "float64"}
_ENDS = {"low": ("high",), "high": ("low",)}  # of the criteria whose band has one edge


@contextmanager
def connect(spill: Path) -> Iterator[Any]:
    """DuckDB, which puts what does not fit in its memory into the folder `spill`, and removes it at the end."""
    connection = ibis.duckdb.connect(memory_limit=MEMORY, temp_directory=str(spill))
    try:
        yield connection
    finally:
        connection.disconnect()
        shutil.rmtree(spill, ignore_errors=True)


def first(summary: Mapping[str, Any]) -> str:
    """The selection that a page is about: `pruned`, or the first that removes anything, or the first."""
    removing = [name for name, of in summary.items() if of["rule"] is not None]
    return "pruned" if "pruned" in summary else (removing or list(summary))[0]


def signals(rule: Rule | None) -> list[str]:
    """The signals of a rule in words; the first is the column `score`."""
    return ["perplexity"] if rule is None else [signal.replace("_", " ") for signal in rule["signals"]]


def further(rule: Rule | None) -> tuple[Signal, ...]:
    """The columns of the signals behind the first."""
    return () if rule is None else tuple(rule["signals"][1:])


def unit(rule: Rule | None) -> str | None:
    """Of the column `score`; None: NLL in nats per token, which is log-perplexity."""
    if rule is None or rule["signals"][0] == "perplexity":
        return None
    return CRITERIA[rule["signals"][0]].unit


def read(connection: Any, path: Path) -> ir.Table:
    """A selection's table; documents without a score (an empty one, say) have null."""
    table = connection.read_parquet(path)
    values = [column for column, type_ in table.schema().items() if type_.is_floating()]
    return table.mutate(**{name: ibis.ifelse(_[name].isnan(), None, _[name]) for name in values})


def ranked(table: ir.Table, rule: Rule | None) -> ir.Table:
    """The documents of a selection's table that have a rank: not too short for one, and a value of each signal."""
    if rule is None:
        return table.filter(_.n_tokens >= 1, _.score.notnull())
    columns = ("score", *further(rule))
    return table.filter(_.n_tokens >= rule["min_tokens"], *(_[column].notnull() for column in columns))


def distribution(documents: ir.Table, thresholds: Thresholds, lowest: float) -> dict[str, Any]:
    """Density of the scores, and the part of it that was kept, over one axis.

    Args:
      documents: those that have a rank.
      thresholds: of each domain, as from `edges`.
      lowest: the lowest score that there can be.

    Returns:
      {"score": X points, "domains": {domain: entry}, "all": entry}; an entry has documents, kept (their
      share), median, density and kept_density (a part of it) at the points.
    """
    ends = documents.agg(
        low=documents.score.quantile(_TAIL), high=documents.score.quantile(1 - _TAIL)
    ).to_pyarrow()
    low, high = (ends[name][0].as_py() or 0.0 for name in ("low", "high"))
    room = 0.06 * (high - low) or 0.05
    score_X = np.linspace(max(lowest, low - room), high + room, _AXIS_POINTS)
    step = float(score_X[1] - score_X[0])
    place = ((_.score - float(score_X[0])) / step + 0.5).floor().cast("int64")
    is_inside = (_.low.isnull() | (_.score >= _.low)) & (_.high.isnull() | (_.score <= _.high))
    counts = (
        documents.inner_join(_limits(thresholds), "domain")
        .mutate(place=place.clip(-_AXIS_POINTS, 2 * _AXIS_POINTS), is_inside=is_inside)
        .group_by("domain", "place")
        .agg(documents=_.count(), inside=_.is_inside.sum(), kept=_.kept.sum())
        .to_pyarrow()
        .to_pylist()
    )
    spreads = {
        "domains": documents.group_by("domain").agg(**_SPREAD).to_pyarrow().to_pylist(),
        "all": documents.agg(**_SPREAD).to_pyarrow().to_pylist(),
    }
    of_domain = {row["domain"]: row for row in spreads["domains"]}
    entries = {}
    for domain, edge in thresholds.items():
        mine = [row for row in counts if row["domain"] == domain]
        entries[domain] = _entry(mine, of_domain.get(domain), score_X, edge)
    return {
        "score": [round(float(score), 5) for score in score_X],
        "domains": entries,
        "all": _entry(counts, spreads["all"][0], score_X, common(thresholds)),
    }


def common(thresholds: Thresholds) -> Mapping[str, float | None]:
    """The thresholds of all domains where they are the same, else none."""
    first, *others = thresholds.values()
    return first if all(other == first for other in others) else {"low": None, "high": None}


_SPREAD: dict[str, Any] = {
    "documents": _.count(),
    "kept": _.kept.mean(),
    "deviation": _.score.std(how="pop"),
    "first": _.score.quantile(0.25),
    "median": _.score.quantile(0.5),
    "third": _.score.quantile(0.75),
}


def _entry(
    counts: Sequence[Mapping[str, Any]],
    spread: Mapping[str, Any] | None,
    score_X: np.ndarray,
    edge: Mapping[str, float | None],
) -> dict[str, Any]:
    """One distribution, from the documents in each bin (the axis's, and as many on both sides of it).

    The kept part ends at the thresholds, over which smoothing would carry it: between them it is the density
    times the share of the documents there that was kept.
    """
    if spread is None or spread["documents"] == 0:
        nothing = [0.0] * _AXIS_POINTS
        return {"documents": 0, "kept": 0.0, "median": None, "density": nothing, "kept_density": nothing}
    step = float(score_X[1] - score_X[0])
    low, high = edge["low"], edge["high"]
    columns = ("documents", "kept", "documents" if low is None and high is None else "inside")
    bins = np.zeros((len(columns), 3 * _AXIS_POINTS + 1))
    for row in counts:
        bins[:, row["place"] + _AXIS_POINTS] += [row[column] for column in columns]
    width = min(spread["deviation"], (spread["third"] - spread["first"]) / 1.34)
    smoothing = _kernel(min(width, _AXIS_POINTS / 4 * step), spread["documents"], step)
    axis = slice(_AXIS_POINTS, 2 * _AXIS_POINTS)
    smooth = [np.convolve(of, smoothing, mode="same")[axis] / (spread["documents"] * step) for of in bins]
    density_X, kept_X, inside_X = smooth
    is_between_X = (score_X >= (-math.inf if low is None else low - step / 2)) & (
        score_X <= (math.inf if high is None else high + step / 2)
    )
    share_X = np.clip(kept_X / np.maximum(inside_X, 1e-12), 0, 1) * is_between_X
    return {
        "documents": spread["documents"],
        "kept": spread["kept"],
        "median": spread["median"],
        "density": [round(float(value), 5) for value in density_X],
        "kept_density": [round(float(value), 5) for value in density_X * share_X],
    }


def _kernel(spread: float, n_documents: int, step: float) -> np.ndarray:
    """Weights that smooth counts in bins of width `step`: a Gaussian of Silverman's bandwidth, of an odd length."""
    bandwidth = max(0.9 * spread * n_documents**-0.2, 2 * step)
    reach = int(np.ceil(4 * bandwidth / step))
    weights = np.exp(-0.5 * (step * np.arange(-reach, reach + 1) / bandwidth) ** 2)
    return weights / weights.sum()


def edges(
    selection: Mapping[str, Any], documents: ir.Table, domains: Sequence[str]
) -> dict[str, dict[str, float | None]]:
    """The thresholds of each domain's scores, {"low", "high"}; None where there is no such edge.

    Of a band, the lowest and the highest score kept, where documents that have a rank lie beyond them; under
    the criterion `threshold`, what was set. A draw has none, nor has a band of the product of ranks.

    Args:
      selection: its entry in the summary of the stage `select`.
      documents: those that have a rank.
      domains: of the corpus.
    """
    rule, groups = selection["rule"], selection["thresholds"]
    thresholds: dict[str, dict[str, float | None]] = {
        domain: {"low": None, "high": None} for domain in domains
    }
    if not groups:
        return thresholds
    if rule["criterion"] == "threshold":
        return {domain: {"low": rule["low"], "high": rule["high"]} for domain in domains}
    in_domains = rule["scope"] == "domain"
    extents = documents.group_by(group=_.domain if in_domains else ibis.literal("all"))
    found = extents.agg(low=_.score.min(), high=_.score.max()).to_pyarrow().to_pylist()
    extent_of = {row["group"]: row for row in found}
    for domain in domains:
        group = domain if in_domains else "all"
        kept, extent = groups.get(group), extent_of.get(group)
        if kept is None or extent is None or kept["low"] is None:
            continue
        is_cut = {"low": extent["low"] < kept["low"], "high": extent["high"] > kept["high"]}
        for end in _ENDS.get(rule["criterion"], ("low", "high")):
            thresholds[domain][end] = kept[end] if is_cut[end] else None
    return thresholds


def reasons(table: ir.Table) -> list[dict[str, Any]]:
    """Removed documents by reason: reason, documents, tokens, bytes; most documents first."""
    counted = (
        table.filter(~_.kept)
        .group_by("reason")
        .agg(documents=_.count(), tokens=_.n_tokens.sum(), bytes=_.n_bytes.sum())
        .order_by(ibis.desc("documents"), "reason")
    )
    return counted.to_pyarrow().to_pylist()


def choose(
    table: ir.Table, rule: Rule | None, thresholds: Thresholds, each: int, seed: int | None = None
) -> list[dict[str, Any]]:
    """Documents at the extremes, around each threshold, and at random, by domain.

    Args:
      table: of the selection.
      rule: its rule.
      thresholds: of the domains that are looked at.
      each: documents of a domain at each place; at random, of the kept and of each reason.
      seed: of the random ones; None: there are none.

    Returns:
      number, id, domain, n_tokens, n_bytes, score, further signals, kept, reason and places (in words) of each
      document, by domain and ascending score.
    """
    everything = table.inner_join(_limits(thresholds), "domain")
    documents = ranked(everything, rule)
    inside, outside = documents.filter(_.kept), documents.filter(~_.kept)
    signal = signals(rule)[0]
    falling = ibis.desc(_.score)
    places = {
        f"lowest {signal}": _first(documents, each, _.score),
        f"highest {signal}": _first(documents, each, falling),
        "just below the lower threshold": _first(outside.filter(_.score <= _.low), each, falling),
        "just above the lower threshold": _first(inside.filter(_.score >= _.low), each, _.score),
        "just below the upper threshold": _first(inside.filter(_.score <= _.high), each, falling),
        "just above the upper threshold": _first(outside.filter(_.score >= _.high), each, _.score),
    }
    if seed is not None:
        random = (f"{seed}:" + _.id).hexdigest("md5")
        places["kept, at random"] = _first(everything.filter(_.kept), each, random)
        places["removed, at random"] = _first(everything.filter(~_.kept), each, random, "reason")
    queries = [numbers.mutate(place=ibis.literal(place)) for place, numbers in places.items()]
    found: dict[int, set[str]] = {}
    for row in ibis.union(*queries).to_pyarrow().to_pylist():
        found.setdefault(row["number"], set()).add(row["place"])
    columns = ("number", "id", "domain", "n_tokens", "n_bytes", "score", *further(rule), "kept", "reason")
    chosen = table.filter(_.number.isin(list(found))).select(*columns).order_by("domain", "score", "number")
    return [
        row | {"places": [place for place in places if place in found[row["number"]]]}
        for row in chosen.to_pyarrow().to_pylist()
    ]


def _first(table: ir.Table, each: int, order: Any, *groups: str) -> ir.Table:
    """The numbers of the first `each` documents of a domain (and of other groups in it)."""
    window = ibis.window(group_by=["domain", *groups], order_by=[order, _.number])
    return table.mutate(rank=ibis.row_number().over(window)).filter(_.rank < each).select("number")


def _limits(thresholds: Thresholds) -> ir.Table:
    """Thresholds as a table of domain, low and high."""
    rows = [{"domain": domain, **edge} for domain, edge in thresholds.items()]
    return ibis.memtable(rows, schema=ibis.schema(_EDGES))
