"""Weights that are found and not given: by a mixing law of the swarm's table, or by the entropies of the text.

Legend: K domains.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from jaxprune.artifact import Workdir, require
from jaxprune.config import Config
from jaxprune.data.store import TokenStore
from jaxprune.mix.entropy import entropies
from jaxprune.mix.laws import LAWS
from jaxprune.mix.optimum import MANY_EPOCHS
from jaxprune.mix.table import MixtureTable
from jaxprune.progress import say

Find = Callable[[np.ndarray, Mapping[str, int]], tuple[dict[str, float], dict[str, Any]]]
"""Documents of a selection (numbers) and the tokens that it keeps of each domain -> weights that sum to one, and how
they were found, as plain data."""

_MOST_TOKENS = 10_000_000  # of a domain, that its entropies are counted in


def by_law(config: Config, workdir: Workdir) -> Find:
    """The optimum of `mix.law`, fitted to the table of the swarm.

    Raises:
      ArtifactMissing: there is no table yet.
      ValueError: the law cannot be fitted to it; the bounds leave no mixture.
    """
    require(workdir.table, "jaxprune mix swarm CONFIG")
    table = MixtureTable.read(workdir.table / "table.csv")
    fitted, second = LAWS[config.mix.law].fit(table), LAWS[config.mix.second].fit(table)
    known: dict[str, tuple[dict[str, float], dict[str, Any]]] = {}

    def find(documents: np.ndarray, kept: Mapping[str, int]) -> tuple[dict[str, float], dict[str, Any]]:
        key = str(sorted(kept.items()))
        if key not in known:
            best = fitted.optimum(
                second=second,
                natural=kept,
                available=kept,
                epochs=config.mix.max_epochs or MANY_EPOCHS,
                tokens=float(config.final.trained_tokens),
                extrapolate=config.mix.extrapolate,
            )
            for note in best.notes:
                say(f"mix: {note}")
            known[key] = best.weights, dataclasses.asdict(best)
        return known[key]

    return find


def by_entropy(config: Config, store: TokenStore) -> Find:
    """exp(H) / sum exp(H) of `mix.entropy` (BiMix, 2405.14908, section 4), each domain's counted in as many tokens."""

    def find(documents: np.ndarray, kept: Mapping[str, int]) -> tuple[dict[str, float], dict[str, Any]]:
        least = min(tokens for tokens in kept.values() if tokens)
        of_domain = [
            int((store.domain_N[documents] == k).sum()) for k, name in enumerate(store.domains) if kept[name]
        ]
        found = entropies(
            store,
            documents,
            max_tokens=min(least, _MOST_TOKENS),
            max_documents=min(of_domain),
            seed=config.seed,
        )
        weights = found.proportions(config.mix.entropy)
        weights = {name: weights.get(name, 0.0) if kept[name] else 0.0 for name in store.domains}
        total = sum(weights.values())
        return {name: weight / total for name, weight in weights.items()}, {"entropy": config.mix.entropy}

    return find
