"""The stage `select`: what each arm keeps of the scored documents, and what that does to the domains.

Each document that an arm does not keep stays readable, with the reason.
"""

from __future__ import annotations

import dataclasses
import difflib
import shutil
import sys
from collections.abc import Collection, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import duckdb
import ibis
import ibis.expr.types as ir
import numpy as np
from ibis import _
from pyarrow.dataset import dataset, field

from jaxprune.artifact import Manifest, Workdir, build, require, write_json
from jaxprune.config import Arm, Config, Select, identity
from jaxprune.progress import say
from jaxprune.prune import shards
from jaxprune.prune.bands import Band, is_joint, select
from jaxprune.prune.criteria import CRITERIA

SCORE = "jaxprune score CONFIG"  # makes what this stage reads
MEMORY = "4GB"  # of DuckDB; beyond it goes to disk
_COLUMNS = ("number", "id", "domain", "n_tokens", "n_bytes", "score", "kept", "reason")
# Less work than DuckDB's own choices, by a third: it gives up sooner to look for repeated values.
_PARQUET = {"compression": "lz4_raw", "dictionary_size_limit": 1000}
_BANDS = ("low", "medium", "high", "threshold")  # of the criteria, those that keep what is between thresholds
_SIZES = ("documents", "tokens", "bytes")


def selection_of(arm: Arm, seed: int) -> str:
    """Name of the selection that a final run trains on."""
    return f"random-{seed}" if arm in ("random", "reweighted") else arm


def rules_of(config: Config) -> dict[str, tuple[Select | None, int]]:
    """The rule and the seed of each selection that the arms need, each once; no rule keeps everything.

    The random arms draw from the documents that `pruned` ranks, at its rate and in its scope. Under a
    threshold, which has no rate, the controls take what it comes to over the whole corpus (`band_of`).
    """
    rules: dict[str, tuple[Select | None, int]] = {}
    pruned = config.select
    is_threshold = pruned.criterion == "threshold"
    for arm, seed in config.final_runs.values():
        name = selection_of(arm, seed)
        if arm == "none":
            rules[name] = (None, config.seed)
        elif arm == "pruned":
            rules[name] = (pruned, config.seed)
        elif arm == "within_domain":
            criterion = "medium" if is_threshold else pruned.criterion
            rules[name] = (dataclasses.replace(pruned, criterion=criterion, scope="domain"), config.seed)
        else:
            scope = "global" if is_threshold else pruned.scope
            rates = {} if is_threshold else pruned.rates
            rules[name] = (dataclasses.replace(pruned, criterion="random", scope=scope, rates=rates), seed)
        if arm == "reweighted":  # takes the mixture of `pruned`
            rules["pruned"] = (pruned, config.seed)
    return rules


def band_of(name: str, kept: Band) -> Band | None:
    """What a selection keeps of its ranking where `pruned` is a threshold that keeps the shares `kept`.

    The random arms keep as much in all, and within_domain in each domain the documents between the same
    ranks; `pruned` itself has no band.
    """
    if name == "within_domain":
        return kept
    return (Fraction(0), kept[1] - kept[0]) if name.startswith("random") else None


def run(config: Config, workdir: Workdir) -> Manifest:
    """Makes the selections of all arms from the scores, unless they are made already.

    Raises:
      ArtifactMissing: the documents are not scored yet, or a signal is not computed.
      StageError: a file of scores or of a signal is missing or damaged.
      ValueError: a signal was computed for other documents than were scored; an arm keeps nothing; as `select`
        and `check_rates`.
    """
    folders = [*folders_of(config, workdir).values()]

    def make(folder: Path) -> dict[str, Any]:
        for scored in folders:
            shards.check_present(scored, SCORE)
        try:
            return _make(config, folders, folder)
        except ValueError:
            shutil.rmtree(folder)  # what was selected before is not continued
            raise
        except duckdb.Error:
            for scored in folders:
                shards.check_whole(scored, SCORE)
            raise

    return build(workdir.select, "select", settings_of(config), inputs_of(config, workdir), make)


def settings_of(config: Config) -> dict[str, Any]:
    """The settings that decide the select artifact."""
    return {name: {"rule": _identity(rule), "seed": seed} for name, (rule, seed) in rules_of(config).items()}


def sources(config: Config) -> tuple[str, ...]:
    """The signal artifacts that the selections read."""
    return tuple(
        dict.fromkeys(source for signal in config.select.signals for source in CRITERIA[signal].sources)
    )


def command(config: Config) -> str:
    """What makes the signals that the selections read."""
    return f"score CONFIG --select.signals {' '.join(config.select.signals)}"


def folders_of(config: Config, workdir: Workdir) -> dict[str, Path]:
    """The artifacts that the selections read: the scores, and those of signals."""
    return {"score": workdir.score} | {name: workdir.signal(name) for name in sources(config)}


def inputs_of(config: Config, workdir: Workdir) -> dict[str, str]:
    """The fingerprints of the scores and the signals that the select artifact is made from.

    Raises:
      ArtifactMissing: one of them is not there yet.
    """
    return {
        name: require(folder, SCORE if name == "score" else f"jaxprune {command(config)}").fingerprint
        for name, folder in folders_of(config, workdir).items()
    }


def _make(config: Config, scored: Sequence[Path], folder: Path) -> dict[str, Any]:
    """Makes the selections in `folder` from the shards of scores and signals."""
    connection = ibis.duckdb.connect(memory_limit=MEMORY, temp_directory=str(folder / "spill"))
    try:
        scores = read(connection, scored)
        check_rates(config.select, scores.domain.as_table().distinct().to_pyarrow()["domain"].to_pylist())
        shares = realised(scores, config.select) if config.select.criterion == "threshold" else None
        summary = {}
        for name, (rule, seed) in rules_of(config).items():
            band = None if shares is None else band_of(name, shares)
            summary[name] = write(folder, name, scores, rule, seed, band)
            kept = summary[name]["all"]["after"]
            if kept["documents"] == 0:
                removed = ", ".join(f"{n:,} {reason}" for reason, n in summary[name]["removed"].items())
                raise ValueError(
                    f"the selection {name} keeps no document ({removed}): raise select.rate, lower "
                    "select.min_tokens, or give more documents"
                )
            say(
                f"select: {name} keeps {kept['documents']:,} documents ({kept['share_documents']:.1%}), "
                f"{kept['tokens']:,} tokens ({kept['share_tokens']:.1%})"
            )
    finally:
        connection.disconnect()
        shutil.rmtree(folder / "spill", ignore_errors=True)
    write_json(folder / "summary.json", summary)
    return {name: of["all"]["after"] for name, of in summary.items()}


def read(connection: Any, folders: Sequence[Path]) -> ir.Table:
    """The shards of scores and of signals as one table, in the order of the documents' numbers.

    Args:
      connection: DuckDB, by Ibis.
      folders: of score, then of signals; all hold the same documents in the same order, so that they are
        laid side by side: a join on 100 million numbers would take longer than all the rest.

    Raises:
      ValueError: a signal was computed for other documents than were scored.
    """
    for place, folder in enumerate(folders):
        connection.read_parquet(sorted(map(str, folder.glob("part-*.parquet"))), table_name=f"shards_{place}")
    for place, folder in enumerate(folders[1:], start=1):
        differ = f"SELECT count(*) FROM (SELECT number FROM shards_0) a POSITIONAL JOIN (SELECT number FROM shards_{place}) b WHERE a.number IS DISTINCT FROM b.number"
        if connection.raw_sql(differ).fetchone()[0]:
            raise ValueError(
                f"{folder} holds other documents than {folders[0]}: delete it and run `jaxprune score` again"
            )
    if len(folders) == 1:
        return _without_windows(connection.table("shards_0"))
    columns = ", ".join(["shards_0.*", *(f"shards_{n}.* EXCLUDE (number)" for n in range(1, len(folders)))])
    joined = " POSITIONAL JOIN ".join(f"shards_{place}" for place in range(len(folders)))
    connection.raw_sql(f"CREATE OR REPLACE VIEW scores AS SELECT {columns} FROM {joined}")
    return _without_windows(connection.table("scores"))


def realised(scores: ir.Table, rule: Select) -> Band:
    """Between which shares of the ranking a threshold keeps, counted as `rule.weight` says.

    Raises:
      ValueError: it keeps nothing.
    """
    size = _.n_tokens if rule.weight == "tokens" else ibis.literal(1, "int64")
    decided = select(scores, rule).select("reason", size=size)
    weights = decided.group_by("reason").agg(weight=_["size"].sum().cast("int64")).to_pyarrow()
    by_reason = dict(zip(weights["reason"].to_pylist(), weights["weight"].to_pylist(), strict=True))
    below, kept, above = (
        by_reason.get(f"{side} the threshold" if side else "", 0) for side in ("below", "", "above")
    )
    total = max(below + kept + above, 1)
    if kept == 0:
        raise ValueError(_no_document(scores, rule))
    return Fraction(below, total), Fraction(below + kept, total)


def check_rates(rule: Select, domains: Collection[str]) -> None:
    """Raises ValueError: the rule has a rate for a domain that there is not."""
    for name in rule.rates:
        if name not in domains:
            near = difflib.get_close_matches(name, domains, n=1)
            hint = f"did you mean {near[0]}?" if near else f"its domains are {', '.join(sorted(domains))}"
            raise ValueError(f"select.rates names {name}, which is no domain of the corpus: {hint}")


def _no_document(scores: ir.Table, rule: Select) -> str:
    """Why a threshold keeps nothing."""
    [signal] = rule.signals
    open_ended = dataclasses.replace(rule, low=-sys.float_info.max, high=None)
    decided = select(scores, open_ended).filter(_.kept)
    extent = decided.agg(low=decided.score.min(), high=decided.score.max()).to_pyarrow().to_pylist()[0]
    limits = " and ".join(
        f"select.{name} is {value:g}"
        for name, value in (("low", rule.low), ("high", rule.high))
        if value is not None
    )
    if extent["low"] is None:
        return f"no document has {rule.min_tokens} tokens and a {signal}: lower select.min_tokens"
    return (
        f"{limits}, which keeps no document: {signal} goes from {extent['low']:.4g} to {extent['high']:.4g} "
        f"({CRITERIA[signal].unit}), so set limits in between"
    )


def write(
    folder: Path, name: str, scores: ir.Table, rule: Select | None, seed: int, band: Band | None = None
) -> dict[str, Any]:
    """Makes one selection: `<name>.parquet` (every document) and `<name>.npy` (the kept numbers).

    Args:
      folder: where the files go.
      name: of the selection.
      scores: the columns of score shards and signals in the order of `number`, as a DuckDB table.
      rule, seed, band: as in `select`.

    Returns:
      {"rule", "thresholds": {"all" or domain: {"low", "high"}}, "domains": {domain: {"before", "after"}},
      "all": {"before", "after"}, "removed": {reason: documents}}. Thresholds are the lowest and highest
      score kept (None where nothing is), and {signal: {"low", "high"}} for each further signal; a draw and
      a product of ranks have none. Before and after hold documents, tokens, bytes, and a domain's share of
      each before and after; under "all" the shares are of the corpus before.
    """
    path = folder / f"{name}.parquet"
    further = () if rule is None else rule.signals[1:]
    decided = select(scores, rule, seed, band).select(*_COLUMNS, *further)
    if rule is not None and _is_product(rule):
        decided = decided.order_by("number")  # the other rules leave the order as it is
    decided.to_parquet(path, **_PARQUET)
    columns = ("score", *further)
    made = ibis.get_backend(scores).read_parquet(path)
    counts = (
        made.group_by("domain", "reason")
        .agg(
            documents=_.count(),
            tokens=_.n_tokens.sum(),
            bytes=_.n_bytes.sum(),
            **{f"low_{column}": _[column].min() for column in columns},
            **{f"high_{column}": _[column].max() for column in columns},
        )
        .order_by("domain", "reason")
        .to_pyarrow()
        .to_pylist()
    )
    n_kept = sum(row["documents"] for row in counts if row["reason"] == "")
    _write_kept(path, folder / f"{name}.npy", n_kept)
    said = _identity(rule)
    if said is not None and band is not None:
        said["rate"] = float(band[1] - band[0])
    return {"rule": said, "seed": seed, **_summary(counts, rule)}


def _write_kept(table: Path, path: Path, n_kept: int) -> None:
    """The kept numbers of a selection, int64, ascending, never all in memory."""
    with path.open("wb") as file:
        header = {"descr": "<i8", "fortran_order": False, "shape": (n_kept,)}
        np.lib.format.write_array_header_1_0(file, header)
        last, written = -1, 0
        for batch in dataset(table).to_batches(columns=["number"], filter=field("kept")):
            if len(batch) == 0:
                continue
            number_B = batch["number"].to_numpy().astype("<i8", copy=False)
            assert number_B[0] > last and (np.diff(number_B) > 0).all(), (
                f"{table} is not in the order of number"
            )
            last, written = int(number_B[-1]), written + len(number_B)
            file.write(number_B.tobytes())
    assert written == n_kept, (written, n_kept)


def _without_windows(scores: ir.Table) -> ir.Table:
    """Without the lists of NLLs by window, which no rule reads."""
    return scores.drop(*({"nll_windows"} & set(scores.columns)))


def _is_product(rule: Select) -> bool:
    return len(rule.signals) > 1 and not is_joint(rule) and rule.criterion != "random"


def _identity(rule: Select | None) -> dict[str, Any] | None:
    return None if rule is None else identity(rule)


def _summary(counts: list[dict[str, Any]], rule: Select | None) -> dict[str, Any]:
    kept = [row for row in counts if row["reason"] == ""]
    domains = sorted({row["domain"] for row in counts})
    thresholds = {}
    if rule is not None and rule.criterion in _BANDS and not _is_product(rule):
        in_domains = rule.scope == "domain" and rule.criterion != "threshold"
        for group in domains if in_domains else ["all"]:
            mine = [row for row in kept if not in_domains or row["domain"] == group]
            thresholds[group] = _extent(mine, "score")
            thresholds[group] |= {signal: _extent(mine, signal) for signal in rule.signals[1:]}
    before, after = _sizes(counts), _sizes(kept)
    by_domain = {}
    for domain in domains:
        mine, mine_kept = ([row for row in rows if row["domain"] == domain] for rows in (counts, kept))
        by_domain[domain] = {
            "before": _with_shares(_sizes(mine), before),
            "after": _with_shares(_sizes(mine_kept), after),
        }
    return {
        "thresholds": thresholds,
        "domains": by_domain,
        "all": {"before": _with_shares(before, before), "after": _with_shares(after, before)},
        "removed": {
            reason: sum(row["documents"] for row in counts if row["reason"] == reason)
            for reason in sorted({row["reason"] for row in counts} - {""})
        },
    }


def _extent(rows: Sequence[dict[str, Any]], column: str) -> dict[str, float | None]:
    return {
        "low": min((row[f"low_{column}"] for row in rows), default=None),
        "high": max((row[f"high_{column}"] for row in rows), default=None),
    }


def _sizes(rows: Sequence[dict[str, Any]]) -> dict[str, int]:
    return {name: sum(int(row[name]) for row in rows) for name in _SIZES}


def _with_shares(sizes: dict[str, int], whole: dict[str, int]) -> dict[str, Any]:
    return sizes | {f"share_{name}": sizes[name] / max(whole[name], 1) for name in _SIZES}
