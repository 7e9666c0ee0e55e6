"""Which documents are kept: a band of the ranks of their scores, documents or tokens counted.

Source: Ankner et al., Perplexed by Perplexity (arXiv 2405.20541), section 2. u in [0, 1) is a document's
rank, from the lowest score on, over the number of documents (or, counting tokens, the tokens of the
documents before it over all tokens); kept are low [0, r), medium [1/2 - r/2, 1/2 + r/2), high [1 - r, 1).
The edges are exact fractions and the bands half open, so low and high of shares that add up to 1 have no
document in common and leave none. Equal scores are in the order of the hash of the id.

Several signals: `intersection` keeps what is inside the same band of every signal, with the one width t >= r
of the bands at which r survives (the prior filter, arXiv 2509.18577); `product` ranks the product of the u
(of the middle of each document's place).

random ranks a number drawn from the hash and the seed. proportional keeps documents without replacement
with probability in proportion to w = exp(signal / temperature): the highest of ln w + Gumbel noise
(Efraimidis & Spirakis 2006; QuRating, arXiv 2402.09739; DSIR, arXiv 2302.03169), so density sampling is
temperature -1 of a log density. threshold compares the signal with given numbers.

Expressions are Ibis, for any backend that it has; DuckDB executes them out of core.
"""

from __future__ import annotations

import functools
import math
import operator
from fractions import Fraction
from hashlib import blake2b
from typing import Any

import ibis
import ibis.expr.types as ir
from ibis import _

from jaxprune.config import Select, Signal
from jaxprune.prune import cuts, intersection
from jaxprune.prune.criteria import CRITERIA
from jaxprune.prune.cuts import FIRST, LAST, Cuts, Near, Zones

Band = tuple[Fraction, Fraction]  # shares of a ranking between which documents are kept

_COLUMNS = ("id", "hash", "domain", "n_tokens")
_ROUNDS = 3
_HALF = (1 << 31) - 1


def select(table: ir.Table, rule: Select | None, seed: int = 0, band: Band | None = None) -> ir.Table:
    """Decides on each document.

    Args:
      table: of any backend of Ibis; a DataFrame or an Arrow table `t` is `ibis.memtable(t)`, Parquet files
        are `ibis.read_parquet(files)`. Columns: id, hash (`hash_of` the id, or another number from 0 to 2^62 - 1
        that looks random), domain, n_tokens, and for each signal of the rule one of its own name, or those that its
        formula reads (prune/criteria.py).
      rule: which documents are kept; None: all of them.
      seed: of the criteria `random` and `proportional`; the others do not use it.
      band: kept shares of the ranking, in place of those that the rule's criterion and rate say.

    Returns:
      `table` with the columns score (the first signal), one of its name for each further signal, kept
      (bool) and reason (empty where kept).

    Raises:
      ValueError: a column is missing, or the rule has a rate for a domain that there is not.
    """
    signals = ("perplexity",) if rule is None else rule.signals
    table = _with_signals(table, rule or Select())
    if rule is None:
        return table.mutate(kept=ibis.literal(True), reason=ibis.literal(""))
    columns = (*table.columns, "kept", "reason")
    removed = [(_.n_tokens < rule.min_tokens, f"under {rule.min_tokens} tokens")]
    removed += [
        (_[column].isnull() | _[column].isnan(), f"no {signal}")
        for signal, column in zip(signals, columns_of(signals), strict=True)
    ]
    if rule.criterion == "threshold":
        edges = ((operator.lt, rule.low, "below"), (operator.gt, rule.high, "above"))
        removed += [
            (compare(_.score, cuts.number(edge)), f"{side} the threshold")
            for compare, edge, side in edges
            if edge is not None
        ]
        return table.mutate(reason=ibis.cases(*removed, else_="")).mutate(kept=_.reason == "")
    is_ranked = ~functools.reduce(operator.or_, [holds for holds, _name in removed])
    table = table.mutate(
        rank_group=_.domain if rule.scope == "domain" else ibis.literal("all"),
        rank_weight=_.n_tokens if rule.weight == "tokens" else ibis.literal(1, "int64"),
    )
    table = _with_keys(table, rule, seed, is_ranked)
    n_keys = len(signals) if is_joint(rule) else 1
    of_ranking = {f"key_{number}": _[f"rank_key_{number}"] for number in range(n_keys)}
    of_ranking |= {"group": _.rank_group} if rule.scope == "domain" else {}
    of_ranking |= {"weight": _.rank_weight.cast("int64")} if rule.weight == "tokens" else {}
    ranked = table.filter(is_ranked).select("id", "hash", **of_ranking)
    found = _cuts(ranked, rule, n_keys, band)
    for domain in rule.rates:
        if domain not in found:
            raise ValueError(
                f"select.rates names {domain}, of which there is no document to rank: name some of "
                f"{', '.join(sorted(found))}"
            )
    reasons = removed + _outside(table, found, rule, n_keys)
    return table.mutate(reason=ibis.cases(*reasons, else_="")).mutate(kept=_.reason == "").select(*columns)


def columns_of(signals: tuple[Signal, ...]) -> tuple[str, ...]:
    """The columns of `select` that hold the values of these signals."""
    return ("score", *signals[1:])


def is_joint(rule: Select) -> bool:
    """Whether several rankings decide together."""
    return rule.combine == "intersection" and len(rule.signals) > 1 and rule.criterion != "random"


def hash_of(identity: str) -> int:
    """The column hash of a document: what breaks ties and draws, the same wherever and whenever it is computed."""
    return int.from_bytes(blake2b(identity.encode(), digest_size=8).digest(), "big") >> 2


def uniform(hash_: Any, seed: int) -> Any:
    """A number in (0, 1) from a hash and a seed, in steps of 2^-52: an Ibis expression.

    Feistel rounds on the halves of the hash, with a product of numbers under 2^31 in each: integers that
    no backend lets overflow, and different hashes stay different.
    """
    left, right = hash_ >> 31, hash_ & _HALF
    for number in range(_ROUNDS):
        digest = blake2b(f"{seed}:{number}".encode(), digest_size=8).digest()
        factor, addend = (int.from_bytes(half, "big") & _HALF for half in (digest[:4], digest[4:]))
        product = right * (factor | 1 << 30 | 1) + addend
        left, right = right, left ^ ((product >> 15) & _HALF)
    bits = (left << 21) | (right >> 10)
    return (bits.cast("float64") + 0.5) / 2.0**52


def _with_signals(table: ir.Table, rule: Select) -> ir.Table:
    """The values of the rule's signals, as float64."""
    for column in _COLUMNS:
        if column not in table.columns:
            raise ValueError(f"the table of scores has no column {column}: it needs {', '.join(_COLUMNS)}")
    values = {}
    for signal, column in zip(rule.signals, columns_of(rule.signals), strict=True):
        try:
            value = table[signal] if signal in table.columns else CRITERIA[signal].value(rule).resolve(table)
        except AttributeError as error:
            raise ValueError(
                f"the table of scores has no column {error.name}, from which {signal} is computed: add it, or a "
                f"column {signal}"
            ) from None
        values[column] = value.cast("float64")
    return table.mutate(**values)


def _with_keys(table: ir.Table, rule: Select, seed: int, is_ranked: Any) -> ir.Table:
    """What documents are in the order of: key_0, and so on where several rankings decide together."""
    columns = columns_of(rule.signals)
    if rule.criterion == "random":
        return table.mutate(rank_key_0=uniform(_.hash, seed))
    if rule.criterion == "proportional":
        gumbel = -(-uniform(_.hash, seed).ln()).ln()
        return table.mutate(rank_key_0=_.score / rule.temperature + gumbel)
    if len(columns) == 1 or is_joint(rule):
        return table.mutate(**{f"rank_key_{number}": _[column] for number, column in enumerate(columns)})
    table = table.mutate(rank_holds=is_ranked)
    groups = ["rank_group", "rank_holds"]
    places = [
        (
            _.rank_weight.sum().over(
                ibis.cumulative_window(group_by=groups, order_by=[_[column], _.hash, _.id])
            )
            - _.rank_weight / 2
        )
        / _.rank_weight.sum().over(ibis.window(group_by=groups))
        for column in columns
    ]
    table = table.mutate(rank_key_0=functools.reduce(operator.mul, places))
    # For the scans to come, each of which would sort again.
    return ibis.get_backend(table).create_table(ibis.util.gen_name("ranks"), table, temp=True)


def _cuts(ranked: ir.Table, rule: Select, n_keys: int, band: Band | None) -> dict[str, Cuts]:
    shares = {"low": ("upto",), "random": ("upto",), "high": ("below",), "proportional": ("below",)}
    sides = shares.get(rule.criterion, ("below", "upto")) if band is None else ("below", "upto")
    if is_joint(rule):
        search = intersection.Search(rule.criterion, n_keys, sides, functools.partial(_target, rule))
        return cuts.find(ranked, n_keys, sides, search.guess, search.settle)

    def edges(group: str, weight: int) -> dict[str, int]:
        """Running weights at which the band begins and ends."""
        begin, end = _band(rule, group) if band is None else band
        both = {"below": math.ceil(begin * weight), "upto": math.ceil(end * weight)}
        return {side: both[side] for side in sides}

    def guess(
        group: str, weight: int, sample: Near, slack: float
    ) -> dict[tuple[int, str], tuple[float, float]]:
        return {(0, side): (edge, edge) for side, edge in edges(group, weight).items()}

    def settle(group: str, zones: Zones, near: Near) -> Cuts | None:
        settled = {}
        for side, edge in edges(group, near.weight).items():
            found, _start_n, end_n = near.inside(0, zones[0, side])
            if edge == 0:
                settled[0, side] = FIRST
            elif zones[0, side].before < edge and len(found) and edge <= end_n[-1]:
                settled[0, side] = near.cut(0, found, int(end_n.searchsorted(edge)))
            else:
                return None
        return settled

    return cuts.find(ranked, n_keys, sides, guess, settle)


def _rate(rule: Select, group: str) -> Fraction:
    return Fraction(str(rule.rates.get(group, rule.rate)))  # as it was written: 0.1 is a tenth


def _target(rule: Select, group: str, weight: int) -> int:
    """The weight of a group that is kept."""
    return math.ceil(_rate(rule, group) * weight)


def _band(rule: Select, group: str) -> Band:
    """Where the band of one ranking begins and ends."""
    rate = _rate(rule, group)
    begin = {"medium": (1 - rate) / 2, "high": 1 - rate, "proportional": 1 - rate}
    first = begin.get(rule.criterion, Fraction(0))
    return first, first + rate


def _outside(table: ir.Table, found: dict[str, Cuts], rule: Select, n_keys: int) -> list[tuple[Any, str]]:
    """Why a document that is ranked is removed."""
    said = []
    words = {"random": ("random", "random"), "proportional": ("not drawn", "not drawn")}
    for number in range(n_keys):
        name = f" of {rule.signals[number]}" if n_keys > 1 else ""
        below, above = words.get(rule.criterion, (f"below the band{name}", f"above the band{name}"))
        for side, usual, word in (("below", FIRST, below), ("upto", LAST, above)):
            points = {group: settled.get((number, side), usual) for group, settled in found.items()}
            if set(points.values()) <= {usual}:
                continue  # nothing is on that side
            is_behind = cuts.after(table[f"rank_key_{number}"], table, table.rank_group, points)
            said.append((~is_behind if side == "below" else is_behind, word))
    return said
