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
from jaxprune.config.mix import MANY_EPOCHS
from jaxprune.data.store import TokenStore
from jaxprune.mix.design import recommended_runs
from jaxprune.mix.entropy import Entropies, entropies
from jaxprune.mix.laws import LAWS
from jaxprune.mix.table import MixtureTable
from jaxprune.progress import say

Find = Callable[[np.ndarray, Mapping[str, int], Mapping[str, int]], tuple[dict[str, float], dict[str, Any]]]
"""Documents of a selection (numbers), its kept tokens of each domain, and the tokens that an epoch of each draws ->
weights of all domains that sum to one, and how they were found, as plain data."""

_MOST_TOKENS = 10_000_000  # of a domain, that its entropies are counted in
_FEW_TOKENS = 100_000  # of a domain, below which its entropies say little of it
_FEW_DOCUMENTS = 30  # likewise, for the entropy of documents


def by_law(config: Config, workdir: Workdir) -> Find:
    """The optimum of `mix.law`, fitted to the end of the swarm's runs; of `joint`, whose optimum moves with scale, to all
    checkpoints.

    Raises:
      ArtifactMissing: there is no table yet.
      ValueError: the law cannot be fitted to it; the bounds leave no mixture.
    """
    require(workdir.table, "jaxprune mix swarm CONFIG")
    table = MixtureTable.read(workdir.table / "table.csv").informative()
    for note in table.notes:
        say(f"mix: {note}")
    table = table if config.mix.law == "joint" else table.end()
    wanted = recommended_runs(len(table.domains), config.mix.law)
    if table.n_mixtures < wanted:
        say(
            f"mix: {table.n_mixtures} mixtures are few for {len(table.domains)} domains and the law {config.mix.law}, "
            f"which wants {wanted}: set swarm.runs"
        )
    fitted, second = LAWS[config.mix.law].fit(table), LAWS[config.mix.second].fit(table)
    known: dict[str, tuple[dict[str, float], dict[str, Any]]] = {}

    def find(
        documents: np.ndarray, kept: Mapping[str, int], drawn: Mapping[str, int]
    ) -> tuple[dict[str, float], dict[str, Any]]:
        key = str((sorted(kept.items()), sorted(drawn.items())))
        if key not in known:
            best = fitted.optimum(
                second=second,
                natural={name: kept[name] for name in table.domains},
                available={name: drawn[name] for name in table.domains},
                epochs=config.mix.max_epochs or MANY_EPOCHS,
                tokens=float(config.final.trained_tokens),
                extrapolate=config.mix.extrapolate,
            )
            for note in best.notes:
                say(f"mix: {note}")
            known[key] = {name: best.weights.get(name, 0.0) for name in kept}, dataclasses.asdict(best)
        return known[key]

    return find


def best(workdir: Workdir, domains: tuple[str, ...]) -> tuple[dict[str, float], dict[str, Any]]:
    """The mixture of the swarm whose runs end with the least mean loss of the domains, over its seeds: a grid search.

    Raises:
      ArtifactMissing: there is no table yet.
    """
    require(workdir.table, "jaxprune mix swarm CONFIG")
    table = MixtureTable.read(workdir.table / "table.csv").end()
    mixtures_MK, mixture_R = np.unique(table.weights_RK, axis=0, return_inverse=True)
    mixture_R = mixture_R.ravel()
    loss_M = np.bincount(mixture_R, table.loss_RE.mean(axis=1)) / np.bincount(mixture_R)
    chosen = int(np.argmin(loss_M))
    weights = dict(zip(table.domains, mixtures_MK[chosen].tolist(), strict=True))
    how = {"loss": float(loss_M[chosen]), "mixtures": len(loss_M), "runs": len(mixture_R)}
    return {name: weights.get(name, 0.0) for name in domains}, how


def by_entropy(config: Config, store: TokenStore) -> Find:
    """exp(H) / sum exp(H) of `mix.entropy` (BiMix, 2405.14908, section 4).

    All domains that can be drawn from are measured in as many tokens, or documents, as the smallest of them has.
    """
    known: dict[bytes, Entropies] = {}

    def find(
        documents: np.ndarray, kept: Mapping[str, int], drawn: Mapping[str, int]
    ) -> tuple[dict[str, float], dict[str, Any]]:
        mixed_K = np.array([drawn[name] > 0 for name in store.domains])
        measured = documents[mixed_K[store.domain_N[documents]]]
        n_documents_K = np.bincount(store.domain_N[measured], minlength=len(store.domains))
        smallest = min(
            (n for n, mixed in zip(store.domains, mixed_K, strict=True) if mixed), key=kept.__getitem__
        )
        least = kept[smallest]
        fewest = int(n_documents_K[mixed_K].min())
        if least < _FEW_TOKENS or fewest < _FEW_DOCUMENTS:
            say(
                f"mix: {smallest} has {least:,} tokens, and the least documents of a domain are {fewest}: all are measured "
                "in as many, in which entropies say little"
            )
        if measured.tobytes() not in known:
            known[measured.tobytes()] = entropies(
                store, measured, max_tokens=min(least, _MOST_TOKENS), max_documents=fewest, seed=config.seed
            )
        return known[measured.tobytes()].proportions(config.mix.entropy), {"entropy": config.mix.entropy}

    return find
