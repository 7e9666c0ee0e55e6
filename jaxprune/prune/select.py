"""The stage `select`: what each arm keeps of the scored documents, and what that does to the domains.

Each document that an arm does not keep stays readable, with the reason.
"""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ibis
import ibis.expr.types as ir
import numpy as np
import pyarrow.parquet as pq
from ibis import _

from jaxprune.artifact import Manifest, Workdir, build, require, write_json
from jaxprune.config import Arm, Config, Select, identity
from jaxprune.progress import say
from jaxprune.prune.bands import select

_MEMORY = "4GB"  # of DuckDB; beyond it goes to disk
_COLUMNS = ("number", "id", "domain", "n_tokens", "n_bytes", "score", "kept", "reason")
_SIZES = ("documents", "tokens", "bytes")


def selection_of(arm: Arm, seed: int) -> str:
    """Name of the selection that a final run trains on."""
    return f"random-{seed}" if arm in ("random", "reweighted") else arm


def rules_of(config: Config) -> dict[str, tuple[Select | None, int]]:
    """The rule and the seed of each selection that the arms need, each once; no rule keeps everything.

    The random arms draw from the documents that `pruned` ranks, at its rate and in its scope.
    """
    rules: dict[str, tuple[Select | None, int]] = {}
    pruned = config.select
    for arm, seed in config.final_runs.values():
        name = selection_of(arm, seed)
        if arm == "none":
            rules[name] = (None, config.seed)
        elif arm == "pruned":
            rules[name] = (pruned, config.seed)
        elif arm == "within_domain":
            rules[name] = (dataclasses.replace(pruned, scope="domain"), config.seed)
        else:
            rules[name] = (dataclasses.replace(pruned, criterion="random"), seed)
        if arm == "reweighted":  # takes the mixture of `pruned`
            rules["pruned"] = (pruned, config.seed)
    return rules


def run(config: Config, workdir: Workdir) -> Manifest:
    """Makes the selections of all arms from the scores, unless they are made already.

    Raises:
      ArtifactMissing: the documents are not scored yet.
    """
    score = require(workdir.score, "jaxprune score CONFIG")

    def make(folder: Path) -> dict[str, Any]:
        connection = ibis.duckdb.connect(memory_limit=_MEMORY, temp_directory=str(folder / "spill"))
        scores = connection.read_parquet(sorted(map(str, workdir.score.glob("part-*.parquet"))))
        summary = {}
        for name, (rule, seed) in rules_of(config).items():
            summary[name] = write(folder, name, scores, rule, seed)
            kept = summary[name]["all"]["after"]
            say(
                f"select: {name} keeps {kept['documents']:,} documents ({kept['share_documents']:.1%}), "
                f"{kept['tokens']:,} tokens ({kept['share_tokens']:.1%})"
            )
        connection.disconnect()
        shutil.rmtree(folder / "spill", ignore_errors=True)
        write_json(folder / "summary.json", summary)
        return {name: of["all"]["after"] for name, of in summary.items()}

    return build(workdir.select, "select", settings_of(config), {"score": score.fingerprint}, make)


def settings_of(config: Config) -> dict[str, Any]:
    """The settings that decide the select artifact."""
    return {name: {"rule": _identity(rule), "seed": seed} for name, (rule, seed) in rules_of(config).items()}


def write(folder: Path, name: str, scores: ir.Table, rule: Select | None, seed: int) -> dict[str, Any]:
    """Makes one selection: `<name>.parquet` (every document) and `<name>.npy` (the kept numbers).

    Args:
      folder: where the files go.
      name: of the selection.
      scores: the columns of a score shard, as a DuckDB table.
      rule, seed: as in `select`.

    Returns:
      {"rule", "thresholds": {"all" or domain: {"low", "high"}}, "domains": {domain: {"before", "after"}},
      "all": {"before", "after"}, "removed": {reason: documents}}. Thresholds are the lowest and highest
      score kept (None where nothing is). Before and after hold documents, tokens, bytes, and a domain's
      share of each before and after; under "all" the shares are of the corpus before.
    """
    path = folder / f"{name}.parquet"
    select(scores, rule, seed).select(*_COLUMNS).order_by("number").to_parquet(path)
    kept = pq.read_table(path, columns=["number"], filters=[("kept", "=", True)])
    np.save(folder / f"{name}.npy", kept["number"].to_numpy())
    counts = (
        ibis.get_backend(scores)
        .read_parquet(path)
        .group_by("domain", "reason")
        .agg(
            documents=_.count(),
            tokens=_.n_tokens.sum(),
            bytes=_.n_bytes.sum(),
            low=_.score.min(),
            high=_.score.max(),
        )
        .order_by("domain", "reason")
    )
    return {"rule": _identity(rule), "seed": seed, **_summary(counts.to_pyarrow().to_pylist(), rule)}


def _identity(rule: Select | None) -> dict[str, Any] | None:
    return None if rule is None else identity(rule)


def _summary(counts: list[dict[str, Any]], rule: Select | None) -> dict[str, Any]:
    kept = [row for row in counts if row["reason"] == ""]
    domains = sorted({row["domain"] for row in counts})
    thresholds = {}
    if rule is not None and rule.criterion != "random":
        for group in domains if rule.scope == "domain" else ["all"]:
            mine = [row for row in kept if rule.scope == "global" or row["domain"] == group]
            thresholds[group] = {
                "low": min((row["low"] for row in mine), default=None),
                "high": max((row["high"] for row in mine), default=None),
            }
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


def _sizes(rows: Sequence[dict[str, Any]]) -> dict[str, int]:
    return {name: sum(int(row[name]) for row in rows) for name in _SIZES}


def _with_shares(sizes: dict[str, int], whole: dict[str, int]) -> dict[str, Any]:
    return sizes | {f"share_{name}": sizes[name] / max(whole[name], 1) for name in _SIZES}
