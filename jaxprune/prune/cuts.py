"""Where bands of ranks begin and end: exactly, without sorting the corpus.

Documents are in the order of a key, those of equal keys in the order of their hash, then of their id. A
document takes up (start, end] of the running weight of its group, which goes up to the group's weight W.
A cut is a document: what comes up to it is on one side.

A sample says near which keys a cut is (Floyd & Rivest, Expected time bounds for selection, CACM 1975); one
scan weighs what comes before, one fetches what is near, of the order of N^(2/3) documents, and these are
sorted. Where the cut was not among them, they are looked for in a wider zone.

Legend: N documents, S keys (signals), n documents of a group that were fetched.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ibis
import ibis.expr.types as ir
import numpy as np
import pyarrow as pa
from ibis import _

Sides = tuple[str, ...]  # of "below" (the last document before the band) and "upto" (the last inside it)
Point = tuple[float, int, str]  # key, hash and id of a document
_NO_HASH = 2**63 - 1  # of a cut: all documents of its key come up to it
FIRST: Point = (-math.inf, -1, "")  # comes before every document
LAST: Point = (math.inf, _NO_HASH, "")  # after every document

_WHOLE = 4096  # documents of a group that is fetched as it is
_MARGIN = 2.0  # times the root of the sum of squared weights: 4 standard deviations of a sample's ranks
_WIDER = 16.0  # factor of the margin when a cut was not in its zone


@dataclass(frozen=True)
class Zone:
    """Where a cut is looked for: documents after `low` and up to `high`; `before` is the weight up to `low`."""

    low: Point
    high: Point
    before: int = 0


@dataclass(frozen=True, kw_only=True)
class Near:
    """The documents of a group that are in one of its zones."""

    weight: int  # W of the group
    certain: int  # weight of the documents that are inside every band whatever the cuts are
    key_Sn: np.ndarray
    hash_n: np.ndarray
    id_n: np.ndarray | None  # None where no two documents have one hash
    weight_n: np.ndarray

    @functools.cached_property
    def order_Sn(self) -> list[np.ndarray]:
        """The documents in the order of each key."""
        return [np.lexsort((*self.ties, key_n)) for key_n in self.key_Sn]

    @property
    def ties(self) -> tuple[np.ndarray, ...]:
        """What equal keys are ordered by, the last first, as `np.lexsort` takes it."""
        return (self.hash_n,) if self.id_n is None else (self.id_n, self.hash_n)

    def behind(self, signal: int, point: Point) -> np.ndarray:
        """Whether each document comes after a point, by key and hash."""
        return _behind(self.key_Sn[signal], self.hash_n, point)

    def inside(self, signal: int, zone: Zone) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Documents in a zone of a key, in order, and the start and end of each."""
        order_n = self.order_Sn[signal]
        is_in_n = self.behind(signal, zone.low) & ~self.behind(signal, zone.high)
        found = order_n[is_in_n[order_n]]
        end = zone.before + np.cumsum(self.weight_n[found])
        return found, end - self.weight_n[found], end

    def point(self, signal: int, document: int) -> Point:
        """A document as a cut."""
        identity = "" if self.id_n is None else str(self.id_n[document])
        return float(self.key_Sn[signal][document]), int(self.hash_n[document]), identity

    def cut(self, signal: int, found: np.ndarray, place: int) -> Point:
        """The cut behind a document of a zone: its key alone where the next one has another."""
        point = self.point(signal, found[place])
        is_alone = place + 1 < len(found) and self.key_Sn[signal][found[place + 1]] > point[0]
        return (point[0], _NO_HASH, "") if is_alone else point


Zones = dict[tuple[int, str], Zone]  # of a group, by signal and side
Cuts = dict[tuple[int, str], Point]
Guess = Callable[[str, int, "Near", float], dict[tuple[int, str], tuple[float, float]]]
"""Group, its weight, a sample of it (its weights scaled to W), a margin -> between which running weights cuts are."""
Settle = Callable[[str, Zones, Near], Cuts | None]
"""Group, zones, what is in them -> the cuts, or None where a zone was too small."""


def find(ranked: ir.Table, n_keys: int, sides: Sides, guess: Guess, settle: Settle) -> dict[str, Cuts]:
    """The cuts of each group.

    What the scans read is first copied to a temporary table, since keys take longer to compute than to read.

    Args:
      ranked: columns hash, id and key_0 .. key_{S-1} (float64, no NaN), group (where there are several) and
        weight (int64, above 0; where it is not 1).
      n_keys: S.
      sides: that have a cut inside the ranking.
      guess: where to look, from a sample.
      settle: the cuts, from the documents that were found there.
    """
    usual = {"group": ibis.literal("all"), "weight": ibis.literal(1, "int64")}
    columns = [name for name in _columns(n_keys) if name in ranked.columns]
    absent = {name: value for name, value in usual.items() if name not in columns}
    backend: Any = ibis.get_backend(ranked)
    name = ibis.util.gen_name("keys")
    keys = backend.create_table(name, ranked.select(*columns), temp=True).mutate(**absent)
    try:
        return _find(keys, ranked.mutate(**absent), n_keys, sides, guess, settle)
    finally:
        backend.raw_sql(f'DROP TABLE "{name}"')


def _find(
    keys: ir.Table, ranked: ir.Table, n_keys: int, sides: Sides, guess: Guess, settle: Settle
) -> dict[str, Cuts]:
    totals = {
        row["group"]: (int(row["documents"]), int(row["weight"]))
        for row in keys.group_by("group")
        .agg(documents=_.count(), weight=_.weight.sum().cast("int64"))
        .to_pyarrow()
        .to_pylist()
    }
    places = [(signal, side) for signal in range(n_keys) for side in sides]
    sample = dict(_sample(keys, n_keys, totals))
    found: dict[str, Cuts] = {}
    margin = _MARGIN
    while left := sorted(set(totals) - set(found)):
        zones = {
            group: _zones(group, totals[group][1], sample.get(group), places, guess, margin) for group in left
        }
        for group, near, weighed in _fetch(keys, ranked, n_keys, zones, totals):
            cuts = settle(group, weighed, near)
            if cuts is not None:
                found[group] = cuts
        assert margin < math.inf or len(found) == len(totals)
        margin = margin * _WIDER if margin < 1e3 else math.inf
    return found


def after(key: Any, table: Any, group: Any, cuts: Mapping[str, Point]) -> Any:
    """Whether documents come after the cut of their group, as an Ibis expression.

    Args:
      key: what they are in the order of.
      table: has their hash and id, which are read where keys, and hashes, are equal.
      group: of each document.
      cuts: of the groups.
    """
    cut_key, cut_hash, cut_id = _parts(group, cuts)
    if all(point[1] == _NO_HASH for point in cuts.values()):
        return key > cut_key
    return ibis.cases(
        (key > cut_key, True),
        (key < cut_key, False),
        (table.hash > cut_hash, True),
        (table.hash < cut_hash, False),
        else_=(cut_id != "") & (table.id > cut_id),  # no id: there is no other document of this hash
    )


def _behind(key: Any, hash_: Any, point: Sequence[Any]) -> Any:
    """The same by key and hash alone; also of arrays."""
    return (key > point[0]) | ((key == point[0]) & (hash_ > point[1]))


def _sample(keys: ir.Table, n_keys: int, totals: dict[str, Any]) -> Iterator[tuple[str, Near]]:
    """About n^(2/3) documents of each group of n, chosen by their hash; none of small groups."""
    steps = {
        group: round(documents ** (1 / 3)) for group, (documents, _) in totals.items() if documents > _WHOLE
    }
    if not steps:
        return
    drawn = keys.filter(_.group.isin(list(steps)), _.hash % _of_group(_.group, steps, "int64") == 0)
    for group, near in _split(drawn.select(*_columns(n_keys)).to_pyarrow(), n_keys, totals, {}):
        scale = near.weight / max(near.weight_n.sum(), 1)
        yield group, dataclasses.replace(near, weight_n=near.weight_n * scale)


def _zones(
    group: str,
    weight: int,
    sample: Near | None,
    places: Sequence[tuple[int, str]],
    guess: Guess,
    margin: float,
) -> Zones:
    if sample is None or math.isinf(margin):
        return {place: Zone(FIRST, LAST) for place in places}
    slack = margin * math.sqrt(np.square(sample.weight_n).sum())
    zones = {}
    for place, (begin, end) in guess(group, weight, sample, slack).items():
        order_n = sample.order_Sn[place[0]]
        end_n = np.cumsum(sample.weight_n[order_n])
        low = int(np.searchsorted(end_n, begin - slack, side="right")) - 1
        high = int(np.searchsorted(end_n, end + slack, side="left"))
        zones[place] = Zone(
            FIRST if low < 0 else sample.point(place[0], order_n[low]),
            LAST if high >= len(order_n) else sample.point(place[0], order_n[high]),
        )
    return zones


def _fetch(
    keys: ir.Table, ranked: ir.Table, n_keys: int, zones: dict[str, Zones], totals: dict[str, Any]
) -> Iterator[tuple[str, Near, Zones]]:
    """The documents of each group that are in its zones, and the zones with the weight before them."""
    places = list(next(iter(zones.values())))
    names = {place: f"{place[1]}_{place[0]}" for place in places}
    is_left: Any = _.group.isin(list(zones)) if len(zones) < len(totals) else ibis.literal(True)
    is_behind, is_near = {}, []
    for place in places:
        key = _[f"key_{place[0]}"]
        low, high = (
            _parts(_.group, {group: getattr(of[place], end) for group, of in zones.items()})
            for end in ("low", "high")
        )
        is_behind[place, "low"], is_behind[place, "high"] = (
            _behind(key, _.hash, low),
            _behind(key, _.hash, high),
        )
        # First by the key alone, which is quick to see.
        is_near.append(
            (key >= low[0]) & (key <= high[0]) & is_behind[place, "low"] & ~is_behind[place, "high"]
        )
    weights = {names[place]: _.weight.sum(where=~is_behind[place, "low"]) for place in places}
    if n_keys > 1:
        # Behind the zone of the edge before the band and not yet in that of the edge behind it.
        inside = [is_behind[p, "high"] if p[1] == "below" else ~is_behind[p, "low"] for p in places]
        weights["certain"] = _.weight.sum(where=functools.reduce(operator.and_, inside))
    sums = keys.filter(is_left).group_by("group").agg(**weights).to_pyarrow().to_pylist()
    weighed = {row["group"]: row for row in sums}
    is_wanted: Any = is_left & functools.reduce(operator.or_, is_near)
    documents = keys.filter(is_wanted).select(*_columns(n_keys)).to_pyarrow()
    if _collide(documents):
        documents = ranked.filter(is_wanted).select(*_columns(n_keys), "id").to_pyarrow()
    certain = {group: int(row.get("certain") or 0) for group, row in weighed.items()}
    split = dict(_split(documents, n_keys, totals, certain))
    for group, of_group in zones.items():
        filled = {
            place: Zone(zone.low, zone.high, int(weighed[group][names[place]] or 0))
            for place, zone in of_group.items()
        }
        if group in split:
            yield group, split[group], filled


def _columns(n_keys: int) -> list[str]:
    return ["group", "weight", "hash", *(f"key_{signal}" for signal in range(n_keys))]


def _collide(documents: pa.Table) -> bool:
    """Whether two documents have the same hash."""
    hash_n = np.sort(documents["hash"].to_numpy())
    return bool((hash_n[1:] == hash_n[:-1]).any())


def _split(
    documents: pa.Table, n_keys: int, totals: dict[str, Any], certain: dict[str, int]
) -> Iterator[tuple[str, Near]]:
    """The documents of each group."""
    groups = documents["group"].combine_chunks().dictionary_encode()
    code_n = groups.indices.to_numpy()
    order_n = np.argsort(code_n, kind="stable")
    arrays = {name: documents[name].to_numpy()[order_n] for name in _columns(n_keys)[1:]}
    has_ids = "id" in documents.column_names
    id_n = documents["id"].to_numpy().astype(str)[order_n] if has_ids else None
    starts = np.searchsorted(code_n[order_n], np.arange(len(groups.dictionary) + 1))
    for group, begin, end in zip(groups.dictionary.to_pylist(), starts[:-1], starts[1:], strict=True):
        mine = slice(begin, end)
        yield (
            group,
            Near(
                weight=totals[group][1],
                certain=certain.get(group, 0),
                key_Sn=np.stack([arrays[f"key_{signal}"][mine] for signal in range(n_keys)]),
                hash_n=arrays["hash"][mine],
                id_n=None if id_n is None else id_n[mine],
                weight_n=arrays["weight"][mine],
            ),
        )


def _parts(group: Any, points: Mapping[str, Point]) -> list[Any]:
    """Key, hash and id of each document's point."""
    types = ("float64", "int64", "string")
    return [
        _of_group(group, {name: point[part] for name, point in points.items()}, type_)
        for part, type_ in enumerate(types)
    ]


def _of_group(group: Any, values: Mapping[str, Any], type_: str) -> Any:
    """The value of each document's group, as an Ibis expression.

    No join, since that would not leave documents in their order.
    """
    literals = {
        name: number(value) if type_ == "float64" else ibis.literal(value, type_)
        for name, value in values.items()
    }
    first = next(iter(literals.values()))
    return first if len(set(values.values())) == 1 else group.cases(*literals.items(), else_=first)


def number(value: float) -> Any:
    """A float64, exactly: backends take a literal for a decimal, but read text as the nearest double."""
    return ibis.literal(repr(float(value))).cast("float64")
