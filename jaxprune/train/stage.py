"""The stage `train`: one training run of the pipeline, from artifacts to an artifact."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from typing import Any

import numpy as np

from jaxprune.artifact import Manifest, Workdir, build, read_manifest, require
from jaxprune.config import Config, identity
from jaxprune.data.mixture import Stage
from jaxprune.data.store import REFERENCE, TokenStore
from jaxprune.model.sharding import make_mesh
from jaxprune.progress import say
from jaxprune.train.loop import fit
from jaxprune.train.plan import Plan
from jaxprune.train.strategy import Strategy

CHANGES = ("stages", "online")
"""Parts of a mixture by which its weights change during the run."""
StrategyOf = Callable[[dict[str, Any], int], Strategy]
"""A final run's mixture (its entry in `weights.json`) and seed -> what decides its weights while it is trained."""


def run(config: Config, workdir: Workdir, name: str, strategy_of: StrategyOf) -> Manifest:
    """Trains `reference`, `second`, or a final run `<arm>-<seed>`, unless it is trained already.

    `strategy_of` is asked where the mixture says that the weights are decided online.

    Raises:
      ArtifactMissing: an earlier stage has not run.
      Interrupted, Diverged, ValueError: as `loop.fit`.
    """
    keep_steps: tuple[int, ...] = ()
    mixture: dict[str, Any] = {}
    inputs = {"prepare": require(workdir.prepare, "jaxprune prepare CONFIG").fingerprint}
    store = TokenStore(workdir.prepare / "tokens")
    if name in ("reference", "second"):
        settings, seed = (config.reference if name == "reference" else config.second), config.seed
        keep_steps = config.vog_steps if name == "reference" else ()
        documents = store.documents(REFERENCE)
        weights = natural_weights(store, documents, settings.model.context, name)
    else:
        settings, seed = config.final, config.final_runs[name][1]
        require(workdir.select, "jaxprune select CONFIG")
        require(workdir.mix, "jaxprune mix CONFIG")
        mixture = json.loads((workdir.mix / "weights.json").read_text())[name]
        selection = workdir.select / f"{mixture['selection']}.npy"
        # What the run draws from, and not the whole stage: a further arm leaves the runs that are done.
        with selection.open("rb") as file:
            inputs["documents"] = hashlib.file_digest(file, "sha256").hexdigest()[:16]
        documents = np.load(selection)
        weights = tuple(mixture["weights"][domain] for domain in store.domains)
    stages = mixture.get("stages", [])
    online = mixture.get("online")
    start = 0 if online is None else online["start"]
    plan = Plan(
        title=f"train {name}",
        run=settings,
        store=store,
        documents=documents,
        stages=_stages(weights, stages, store.domains) if online is None or start > 0 else (),
        strategy=None if online is None else strategy_of(mixture, seed),
        mixing_start=start,
        mixing_rows=1 if online is None else online["rows"],
        seed=seed,
        mesh=make_mesh(config.mesh),
        backends=config.metrics,
        profile=config.profile_steps,
        keep_steps=keep_steps,
    )
    made_by: dict[str, Any] = {"run": identity(settings), "seed": seed, "weights": list(weights)}
    made_by |= {part: mixture[part] for part in CHANGES if part in mixture}
    present = read_manifest(workdir.run(name))
    if keep_steps:
        made_by["keep_steps"] = list(keep_steps)
    elif present is not None and present.settings == made_by | {
        "keep_steps": present.settings.get("keep_steps")
    }:
        made_by = present.settings  # it keeps more than is asked for now, and is the same run
    manifest = build(workdir.run(name), plan.title, made_by, inputs, lambda folder: fit(plan, folder))
    if plan.profile is not None and manifest == present:
        say(f"{plan.title}: no trace of steps {plan.profile[0]} to {plan.profile[1]}: nothing is trained")
    return manifest


def _stages(
    weights: tuple[float, ...], stages: list[dict[str, Any]], domains: tuple[str, ...]
) -> tuple[Stage, ...]:
    if not stages:
        return (Stage(start=0, weights=weights),)
    return tuple(
        Stage(start=stage["start"], weights=tuple(stage["weights"][domain] for domain in domains))
        for stage in stages
    )


def natural_weights(
    store: TokenStore, documents: np.ndarray, context: int, name: str = "reference"
) -> tuple[float, ...]:
    """Each domain's share of the documents' stored tokens; a domain of less than one row gets none.

    The same rule as `natural` of the final runs (mix.weights).

    Raises:
      ValueError: no domain has as much as one row.
    """
    length_N = store.offsets_N1[documents + 1] - store.offsets_N1[documents]
    tokens_K = np.bincount(store.domain_N[documents], length_N, len(store.domains))
    for domain in np.flatnonzero((tokens_K > 0) & (tokens_K <= context)):
        say(
            f"{store.domains[domain]}: {tokens_K[domain]:.0f} tokens are less than a row of {context + 1}, left out"
        )
    tokens_K[tokens_K <= context] = 0
    if not tokens_K.any():
        raise ValueError(
            f"no domain of the reference's {len(documents):,} documents has as much as a row of {context + 1} tokens: "
            f"raise corpus.reference, or shorten {name}.model.context"
        )
    return tuple(float(weight) for weight in tokens_K / tokens_K.sum())
