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

import functools
import math
import operator
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import ibis
import ibis.expr.types as ir
import numpy as np
import pyarrow as pa
from ibis import _

Sides = tuple[str, ...]  # of "below" (the last document before the band) and "upto" (the last inside it)
Point = tuple[float, int, str]  # key, hash and id of a document
FIRST: Point = (-math.inf, -1, "")  # comes before every document
LAST: Point = (math.inf, 2**63 - 1, "")  # after every document

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
    id_n: np.ndarray  # empty strings unless hashes collide
    weight_n: np.ndarray

    @functools.cached_property
    def order_Sn(self) -> list[np.ndarray]:
        """The documents in the order of each key."""
        return [np.lexsort((self.id_n, self.hash_n, key_n)) for key_n in self.key_Sn]

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
        return float(self.key_Sn[signal][document]), int(self.hash_n[document]), str(self.id_n[document])


Zones = dict[tuple[int, str], Zone]  # of a group, by signal and side
Cuts = dict[tuple[int, str], Point]
Guess = Callable[[str, int, "Near", float], dict[tuple[int, str], tuple[float, float]]]
"""Group, its weight, a sample of it (its weights scaled to W), a margin -> between which running weights cuts are."""
Settle = Callable[[str, Zones, Near], Cuts | None]
"""Group, zones, what is in them -> the cuts, or None where a zone was too small."""


def find(ranked: ir.Table, n_keys: int, sides: Sides, guess: Guess, settle: Settle) -> dict[str, Cuts]:
    """The cuts of each group.

    Args:
      ranked: columns group, weight (int64, above 0), hash, id and key_0 .. key_{S-1} (float64, no NaN).
      n_keys: S.
      sides: that have a cut inside the ranking.
      guess: where to look, from a sample.
      settle: the cuts, from the documents that were found there.
    """
    totals = {
        row["group"]: (int(row["documents"]), int(row["weight"]))
        for row in ranked.group_by("group")
        .agg(documents=_.count(), weight=_.weight.sum().cast("int64"))
        .to_pyarrow()
        .to_pylist()
    }
    places = [(signal, side) for signal in range(n_keys) for side in sides]
    sample = dict(_sample(ranked, n_keys, totals))
    found: dict[str, Cuts] = {}
    margin = _MARGIN
    while left := sorted(set(totals) - set(found)):
        zones = {
            group: _zones(group, totals[group][1], sample.get(group), places, guess, margin) for group in left
        }
        for group, near, weighed in _fetch(ranked, n_keys, zones, totals):
            cuts = settle(group, weighed, near)
            if cuts is not None:
                found[group] = cuts
        assert margin < math.inf or len(found) == len(totals)
        margin = margin * _WIDER if margin < 1e3 else math.inf
    return found


def after(key: Any, hash_: Any, identity: Any, cut: tuple[Any, Any, Any]) -> Any:
    """Whether documents come after a cut: Ibis expressions, of which the id is read where all else is equal."""
    return ibis.cases(
        (key > cut[0], True),
        (key < cut[0], False),
        (hash_ > cut[1], True),
        (hash_ < cut[1], False),
        else_=(cut[2] != "") & (identity > cut[2]),  # no id: there is no other document of this hash
    )


def _behind(key: Any, hash_: Any, point: Sequence[Any]) -> Any:
    """The same by key and hash alone; also of arrays."""
    return (key > point[0]) | ((key == point[0]) & (hash_ > point[1]))


def _sample(ranked: ir.Table, n_keys: int, totals: dict[str, Any]) -> Iterator[tuple[str, Near]]:
    """About n^(2/3) documents of each group of n, chosen by their hash; none of small groups."""
    steps = {
        group: round(documents ** (1 / 3)) for group, (documents, _) in totals.items() if documents > _WHOLE
    }
    if not steps:
        return
    table = memtable(
        [{"group": group, "step": step} for group, step in steps.items()],
        {"group": "string", "step": "int64"},
    )
    drawn = ranked.inner_join(table, "group").filter(_.hash % _.step == 0)
    for group, near in _split(drawn.select(*_columns(n_keys)).to_pyarrow(), n_keys, totals, {}):
        scale = near.weight / max(near.weight_n.sum(), 1)
        yield group, Near(
            weight=near.weight, certain=0, key_Sn=near.key_Sn, hash_n=near.hash_n, id_n=near.id_n,
            weight_n=near.weight_n * scale,
        )  # fmt: skip


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
    ranked: ir.Table, n_keys: int, zones: dict[str, Zones], totals: dict[str, Any]
) -> Iterator[tuple[str, Near, Zones]]:
    """The documents of each group that are in its zones, and the zones with the weight before them."""
    places = list(next(iter(zones.values())))
    names = {place: f"{place[1]}_{place[0]}" for place in places}
    types = {"group": "string"} | {
        f"{end}_{part}_{name}": type_
        for name in names.values()
        for end in ("low", "high")
        for part, type_ in (("key", "float64"), ("hash", "int64"))
    }
    rows = [
        {"group": group}
        | {
            f"{end}_{part}_{names[place]}": getattr(zone, end)[number]
            for place, zone in of_group.items()
            for end in ("low", "high")
            for number, part in enumerate(("key", "hash"))
        }
        for group, of_group in zones.items()
    ]
    joined = ranked.inner_join(memtable(rows, types), "group")
    is_behind = {
        (place, end): _behind(
            joined[f"key_{place[0]}"],
            joined.hash,
            (joined[f"{end}_key_{names[place]}"], joined[f"{end}_hash_{names[place]}"]),
        )
        for place in places
        for end in ("low", "high")
    }
    # Behind the zone of the edge before the band and not yet in that of the edge behind it: surely inside.
    is_certain = functools.reduce(
        operator.and_,
        [is_behind[p, "high"] if p[1] == "below" else ~is_behind[p, "low"] for p in places],
    )
    weights = {"certain": joined.weight.sum(where=is_certain)} | {
        names[place]: joined.weight.sum(where=~is_behind[place, "low"]) for place in places
    }
    weighed = {row["group"]: row for row in joined.group_by("group").agg(**weights).to_pyarrow().to_pylist()}
    is_near = functools.reduce(operator.or_, [is_behind[p, "low"] & ~is_behind[p, "high"] for p in places])
    near = joined.filter(is_near)
    documents = near.select(*_columns(n_keys)).to_pyarrow()
    if _collide(documents):
        documents = near.select(*_columns(n_keys), "id").to_pyarrow()
    certain = {group: int(row["certain"] or 0) for group, row in weighed.items()}
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
    id_n = (
        documents["id"].to_numpy().astype(str)[order_n]
        if "id" in documents.column_names
        else np.full(len(order_n), "")
    )
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
                id_n=id_n[mine],
                weight_n=arrays["weight"][mine],
            ),
        )


def memtable(rows: Sequence[dict[str, Any]], types: dict[str, str]) -> ir.Table:
    """A small table of an expression."""
    schema = ibis.schema(types).to_pyarrow()
    return ibis.memtable(pa.Table.from_pylist(list(rows), schema=schema))
