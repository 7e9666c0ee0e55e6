"""What the report shows of weights that changed while a run trained, from its history.

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


def intended(history: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The decisions that were meant to train on, without the segments in which a strategy learns."""
    return [line for line in history if "segment" not in line and "segment" not in line.get("next", {})]


def _series(lines: Sequence[Mapping[str, Any]], kind: str, domains: Sequence[str]) -> dict[str, Any]:
    """Values of the domains at steps, at most `_POINTS` of them, evenly taken."""
    chosen = np.unique(np.linspace(0, len(lines) - 1, min(len(lines), _POINTS)).astype(int)) if lines else []
    taken = [lines[int(place)] for place in chosen]

    def value(line: Mapping[str, Any], domain: str) -> float | None:
        return line.get(f"share/{domain}", 0.0) if kind == "share" else line[kind].get(domain)

    return {
        "step": [line.get("start", line["step"]) for line in taken],
        "values": {domain: [value(line, domain) for line in taken] for domain in domains},
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
