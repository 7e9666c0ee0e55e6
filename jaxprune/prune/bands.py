"""Which documents are kept: a band of the ranks of their scores, documents or tokens counted.

Source: Ankner et al., Perplexed by Perplexity (arXiv 2405.20541), section 2. A document's score is its
mean NLL per token under the reference model. u in [0, 1) is its rank, from the lowest score on, over the
number of documents (or, counting tokens, the tokens of the documents before it over all tokens); kept
are low [0, r), medium [1/2 - r/2, 1/2 + r/2), high [1 - r, 1). The edges are exact fractions and the bands
half open, so low and high of shares that add up to 1 have no document in common and leave none. Equal
scores are ordered by a hash of the id; random ranks by a hash of the seed and the id.

The corpus is never sorted: the document at each edge is found in two scans (which slice of the scores
holds the edge, then where in that slice), after which keeping is a comparison. Expressions are Ibis, for
any backend that it has; DuckDB executes them out of core.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import ibis
import ibis.expr.types as ir
import numpy as np
import pyarrow as pa
from ibis import _

from jaxprune.config import Select

_SLICES = 1000  # of scores, per nat
_CUTS = {
    "group": "string",
    "below_key": "float64",
    "below_tie": "string",
    "upto_key": "float64",
    "upto_tie": "string",
}


def select(scores: ir.Table, rule: Select | None, seed: int = 0) -> ir.Table:
    """Decides on each document.

    Args:
      scores: columns id, domain, n_tokens and nll_sum, of an Ibis table of any backend.
      rule: which documents are kept; None: all of them.
      seed: of the criterion `random`; the others do not use it.

    Returns:
      `scores` with the columns score (nats per token), kept (bool) and reason (empty where kept).
    """
    table = scores.mutate(score=_.nll_sum / _.n_tokens.nullif(0))
    if rule is None:
        return table.mutate(kept=ibis.literal(True), reason=ibis.literal(""))
    is_random = rule.criterion == "random"
    tie = ((f"{seed}:" + _.id) if is_random else _.id).hexdigest("md5")
    ranked = _ranked(table, rule, tie)
    cuts = _cuts(ranked.filter(_.n_tokens >= rule.min_tokens), rule, tie)
    reason = ibis.cases(  # a comparison with a missing edge is null, which is no case
        (_.n_tokens < rule.min_tokens, f"under {rule.min_tokens} tokens"),
        (~_after("below", tie), "random" if is_random else "below the band"),
        (_after("upto", tie), "random" if is_random else "above the band"),
        else_="",
    )
    decided = ranked.left_join(cuts, "group").mutate(reason=reason).mutate(kept=_.reason == "")
    return decided.select(*table.columns, "kept", "reason")


def _ranked(table: ir.Table, rule: Select, tie: Any) -> ir.Table:
    """Adds the columns that order documents inside their `group`: `key` (then `tie`), in coarse form `slice`."""
    is_random = rule.criterion == "random"
    return table.mutate(
        group=_.domain if rule.scope == "domain" else ibis.literal("all"),
        weight=_.n_tokens if rule.weight == "tokens" else ibis.literal(1, "int64"),
        key=ibis.literal(0.0) if is_random else _.score,
        slice=tie[:3] if is_random else (_.score * _SLICES).floor().cast("int64"),
    )


def _after(edge: str, tie: Any) -> Any:
    """Whether a document stands behind the document at an edge; hashes the ids of equal keys only."""
    key = _[f"{edge}_key"]
    return ibis.cases((_.key > key, True), (_.key < key, False), else_=tie > _[f"{edge}_tie"])


def _cuts(ranked: ir.Table, rule: Select, tie: Any) -> ir.Table:
    """For each group the last document before the band (below) and the last one inside it (upto).

    A document takes up (start, end] of its group's running weight, so the one sought is the one that
    holds the edge. An edge at 0 has none, and its columns are null.
    """
    slices = ranked.group_by("group", "slice").agg(weight=_.weight.sum()).order_by("group", "slice")
    found = slices.to_pyarrow()
    weight = found["weight"].to_numpy().astype(np.int64)
    groups, first, count = np.unique(
        found["group"].to_numpy(zero_copy_only=False), return_index=True, return_counts=True
    )
    edges = []
    for group, start, n_slices in zip(groups, first, count, strict=True):
        end = np.cumsum(weight[start : start + n_slices])
        for name, edge in zip(("below", "upto"), _edges(rule, int(end[-1])), strict=True):
            if edge > 0:
                place = int(np.searchsorted(end, edge))
                within = edge - int(end[place] - weight[start + place])
                edges.append((str(group), found["slice"][start + place].as_py(), name, within))
    types = {"group": "string", "slice": slices.schema()["slice"], "name": "string", "edge": "int64"}
    running = ibis.cumulative_window(group_by=["group", "name"], order_by=["key", "tie"])
    at_edges = (
        ranked.join(_table(edges, types), ["group", "slice"])
        .mutate(tie=tie)
        .mutate(end=_.weight.sum().over(running))
        .filter(_.end - _.weight < _.edge, _.edge <= _.end)
        .select("group", "name", "key", "tie")
    )
    cuts: dict[str, dict[str, tuple[float | None, str | None]]] = {}
    for row in at_edges.to_pyarrow().to_pylist():
        cuts.setdefault(row["group"], {})[row["name"]] = (row["key"], row["tie"])
    none = (None, None)
    return _table(
        [(group, *cut.get("below", none), *cut.get("upto", none)) for group, cut in sorted(cuts.items())],
        _CUTS,
    )


def _edges(rule: Select, total: int) -> tuple[int, int]:
    """Where the band begins and ends in a running weight that goes up to `total`."""
    rate = Fraction(str(rule.rate))  # as it was written: 0.1 is a tenth
    begin = {"medium": (1 - rate) / 2, "high": 1 - rate}.get(rule.criterion, Fraction(0))
    return math.ceil(begin * total), math.ceil((begin + rate) * total)


def _table(rows: Sequence[tuple[Any, ...]], types: dict[str, Any]) -> ir.Table:
    schema = ibis.schema(types).to_pyarrow()
    return ibis.memtable(
        pa.Table.from_pylist([dict(zip(types, row, strict=True)) for row in rows], schema=schema)
    )
