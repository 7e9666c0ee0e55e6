"""What one selection did, asked of its table: distribution of scores, reasons, and documents worth reading.

All are queries (Ibis on DuckDB) with small answers, so that a table may be larger than memory.

Legend: X points of the axis of scores, K domains.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ibis
import ibis.expr.types as ir
import numpy as np
from ibis import _

from jaxprune.report.documents import kernel

_AXIS_POINTS = 240
_TAIL = 0.001  # of the documents at each end, which would else set the scale of the axis
_EDGES = {"domain": "string", "low": "float64", "high": "float64"}


def read(connection: Any, path: Path) -> ir.Table:
    """A selection's table; documents without a score (an empty one, say) have null."""
    table = connection.read_parquet(path)
    return table.mutate(score=ibis.ifelse(_.score.isnan(), None, _.score))


def ranked(table: ir.Table, rule: Mapping[str, Any] | None) -> ir.Table:
    """The documents of a selection's table that have a rank: those that are not too short for one."""
    least = 1 if rule is None else rule["min_tokens"]
    return table.filter(_.n_tokens >= least, _.score.notnull())


def distribution(
    documents: ir.Table, thresholds: Mapping[str, Mapping[str, float | None]], lowest: float
) -> dict[str, Any]:
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
    counts = (
        documents.mutate(place=place.clip(-_AXIS_POINTS, 2 * _AXIS_POINTS))
        .group_by("domain", "place")
        .agg(documents=_.count(), kept=_.kept.sum())
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


def common(thresholds: Mapping[str, Mapping[str, float | None]]) -> Mapping[str, float | None]:
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

    The kept part ends at the thresholds, over which smoothing would carry it: inside it is the density times
    the share that was kept thereabouts.
    """
    if spread is None or spread["documents"] == 0:
        nothing = [0.0] * _AXIS_POINTS
        return {"documents": 0, "kept": 0.0, "median": None, "density": nothing, "kept_density": nothing}
    step = float(score_X[1] - score_X[0])
    ranked_bins, kept_bins = np.zeros((2, 3 * _AXIS_POINTS + 1))
    for row in counts:
        ranked_bins[row["place"] + _AXIS_POINTS] += row["documents"]
        kept_bins[row["place"] + _AXIS_POINTS] += row["kept"]
    width = min(spread["deviation"], (spread["third"] - spread["first"]) / 1.34)
    smoothing = kernel(min(width, _AXIS_POINTS / 4 * step), spread["documents"], step)
    middle_bins = score_X[0] + step * np.arange(-_AXIS_POINTS, 2 * _AXIS_POINTS + 1)
    low, high = (
        (-math.inf if edge["low"] is None else edge["low"]),
        (math.inf if edge["high"] is None else edge["high"]),
    )
    inside_bins = (middle_bins >= low - step / 2) & (middle_bins <= high + step / 2)
    density, band, kept = (
        np.convolve(of, smoothing, mode="same") / (spread["documents"] * step)
        for of in (ranked_bins, ranked_bins * inside_bins, kept_bins)
    )
    share = np.clip(kept / np.maximum(band, 1e-12), 0, 1) * inside_bins
    axis = slice(_AXIS_POINTS, 2 * _AXIS_POINTS)
    return {
        "documents": spread["documents"],
        "kept": spread["kept"],
        "median": spread["median"],
        "density": [round(float(value), 5) for value in density[axis]],
        "kept_density": [round(float(value), 5) for value in (density * share)[axis]],
    }


def edges(selection: Mapping[str, Any], table: ir.Table, domains: Sequence[str]) -> dict[str, dict[str, Any]]:
    """The thresholds of each domain's scores, {"low", "high"}; None where the band has no such edge.

    A selection's summary has the lowest and the highest score kept. One is an edge where documents that have
    a rank lie beyond it.

    Args:
      selection: its entry in the summary of the stage `select`.
      table: its documents that have a rank.
      domains: of the corpus.
    """
    groups = selection["thresholds"]
    by_domain = "all" not in groups
    extents = (
        table.group_by("domain") if by_domain else table.mutate(domain=ibis.literal("all")).group_by("domain")
    )
    found = {
        row["domain"]: row
        for row in extents.agg(low=_.score.min(), high=_.score.max()).to_pyarrow().to_pylist()
    }
    thresholds = {}
    for domain in domains:
        group = domain if by_domain else "all"
        kept, extent = groups.get(group), found.get(group)
        thresholds[domain] = {"low": None, "high": None}
        if kept is not None and extent is not None and kept["low"] is not None:
            if extent["low"] < kept["low"]:
                thresholds[domain]["low"] = kept["low"]
            if extent["high"] > kept["high"]:
                thresholds[domain]["high"] = kept["high"]
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
    table: ir.Table,
    rule: Mapping[str, Any] | None,
    thresholds: Mapping[str, Mapping[str, float | None]],
    each: int,
    seed: int,
) -> list[dict[str, Any]]:
    """Documents at the extremes, around each threshold, and at random, by domain.

    Args:
      table: of the selection.
      rule: its rule.
      thresholds: of the domains that are looked at.
      each: documents of a domain at each place; at random, of the kept and of each reason.
      seed: of the random ones.

    Returns:
      number, id, domain, n_tokens, n_bytes, score, kept, reason and places (in words) of each document,
      by domain and ascending score.
    """
    rows = [{"domain": domain, **edge} for domain, edge in thresholds.items()]
    limits = ibis.memtable(rows, schema=ibis.schema(_EDGES))
    everything = table.inner_join(limits, "domain")
    documents = ranked(everything, rule)
    random = (f"{seed}:" + _.id).hexdigest("md5")
    inside, outside = documents.filter(_.kept), documents.filter(~_.kept)
    places = [
        _first(documents, "lowest", each, _.score),
        _first(documents, "highest", each, ibis.desc(_.score)),
        _first(outside.filter(_.score <= _.low), "just removed, below the lower threshold", each, ibis.desc(_.score)),
        _first(inside.filter(_.score >= _.low), "just kept, above the lower threshold", each, _.score),
        _first(inside.filter(_.score <= _.high), "just kept, below the upper threshold", each, ibis.desc(_.score)),
        _first(outside.filter(_.score >= _.high), "just removed, above the upper threshold", each, _.score),
        _first(everything.filter(_.kept), "kept, at random", each, random),
        _first(everything.filter(~_.kept), "removed, at random", each, random, "reason"),
    ]  # fmt: skip
    found: dict[int, list[str]] = {}
    for row in ibis.union(*places).order_by("number").to_pyarrow().to_pylist():
        found.setdefault(row["number"], []).append(row["place"])
    columns = ("number", "id", "domain", "n_tokens", "n_bytes", "score", "kept", "reason")
    chosen = table.filter(_.number.isin(list(found))).select(*columns).order_by("domain", "score", "number")
    return [row | {"places": sorted(found[row["number"]])} for row in chosen.to_pyarrow().to_pylist()]


def _first(table: ir.Table, place: str, each: int, order: Any, *groups: str) -> ir.Table:
    """The numbers of the first `each` documents of a domain (and of other groups in it)."""
    window = ibis.window(group_by=["domain", *groups], order_by=[order, _.number])
    first = table.mutate(rank=ibis.row_number().over(window)).filter(_.rank < each)
    return first.select("number", place=ibis.literal(place))
