"""What the report shows of weights that changed while a run trained, and of those that proxies learnt.

Legend: K domains.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxprune.artifact import Manifest, Workdir
from jaxprune.train import metrics
from jaxprune.train.mixer import HISTORY

_POINTS = 200
_MATRICES = 4


def mixing(
    workdir: Workdir, names: Sequence[str], domains: Sequence[str], manifests: Mapping[str, Manifest]
) -> dict[str, Any]:
    """By run: intended weights, drawn shares and held-out losses of the domains over steps, A over rounds, and the cost.

    Runs whose weights were decided before have no history and are left out.
    """
    return {
        name: {
            "weights": _series(intended(history), "weights", domains),
            "shares": _series(
                [line for line in metrics.read(workdir.run(name) / "metrics.jsonl") if "loss" in line],
                "share",
                domains,
            ),
            "loss": _series([line for line in history if "loss" in line], "loss", domains),
            "A": _matrices(history),
            "decisions": len(history),
            **manifests[f"train {name}"].counts["mixing"],
        }
        for name in names
        if (workdir.run(name) / HISTORY).exists()
        for history in [metrics.read(workdir.run(name) / HISTORY)]
    }


def learnt(runs: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """What proxies learnt, of the entries of `weights.json`: weights over their steps, by proxy, or Skill-It's graph.

    The first run's: those of other selections draw by the same.
    """
    run = next(iter(runs.values()))
    graph = run.get("online", {}).get("graph")
    mixed = [] if graph is None else list(graph)
    # As A: rows are domains whose loss was measured. The graph has those trained on outside.
    A = [[graph[trained][heldout] for trained in mixed] for heldout in mixed] if graph else []
    return {
        "proxies": {
            name: _thinned(history["step"], history["weights"])
            for name, history in run.get("found", {}).get("history", {}).items()
        },
        "mixed": mixed,
        "A": A,
        "most": float(np.abs(A).max()) if A else 0.0,
    }


def intended(history: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The decisions that were meant to train on, without the segments in which a strategy learns."""
    return [line for line in history if "segment" not in line and "segment" not in line.get("next", {})]


def _series(lines: Sequence[Mapping[str, Any]], kind: str, domains: Sequence[str]) -> dict[str, Any]:
    """Values of the domains at steps, at most `_POINTS` of them, evenly taken."""

    def value(line: Mapping[str, Any], domain: str) -> float | None:
        return line.get(f"share/{domain}", 0.0) if kind == "share" else line[kind].get(domain)

    return _thinned(
        [line.get("start", line["step"]) for line in lines],
        {domain: [value(line, domain) for line in lines] for domain in domains},
    )


def _thinned(step: Sequence[int], values: Mapping[str, Sequence[float | None]]) -> dict[str, Any]:
    chosen = np.unique(np.linspace(0, len(step) - 1, min(len(step), _POINTS)).astype(int)) if step else []
    return {
        "step": [step[int(place)] for place in chosen],
        "values": {domain: [of[int(place)] for place in chosen] for domain, of in values.items()},
    }


def _matrices(history: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A of some rounds, the first and the last among them: round, step, A, trust, its largest entry."""
    lines = [line for line in history if "A" in line]
    chosen = (
        np.unique(np.linspace(0, len(lines) - 1, min(len(lines), _MATRICES)).astype(int)) if lines else []
    )
    taken = [lines[int(place)] for place in chosen]
    return [
        {name: line[name] for name in ("round", "step", "A", "trust")}
        | {"most": float(np.abs(line["A"]).max())}
        for line in taken
    ]
