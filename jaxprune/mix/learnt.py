"""Proxies that learn: weights of the domains (DoReMi, DoGE), or a graph of how they help each other (Skill-It).

They are swarm.proxy, on the documents that the swarm draws from, once for each of swarm.seeds; every one is an artifact,
trained by the one trainer, and never trained again. Without a mixture of their own they draw from all domains alike.

Legend: K domains.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxprune import cluster
from jaxprune.artifact import Manifest, StageError, Workdir, digest, require
from jaxprune.config import Config, identity
from jaxprune.data.mixture import MixtureSource, Stage
from jaxprune.data.store import HELDOUT, TokenStore
from jaxprune.mix import proxies, swarm
from jaxprune.mix.online.skillit import graph_of
from jaxprune.mix.proxies import Pool
from jaxprune.mix.swarm import Proxy
from jaxprune.model.sharding import make_mesh
from jaxprune.progress import say
from jaxprune.train.learner import LEARNT, Learner
from jaxprune.train.metrics import read
from jaxprune.train.plan import Plan


def check(config: Config) -> None:
    """Raises ValueError: the proxies do not fit the devices, or the method."""
    swarm.check(config)
    if config.mix.learns != "skillit" and config.swarm.proxy.microbatches > 1:
        raise ValueError(
            f"swarm.proxy.microbatches is {config.swarm.proxy.microbatches}, and {config.mix.learns} needs a batch in one "
            "piece: set it to 1"
        )


def train(config: Config, workdir: Workdir) -> None:
    """Trains the proxies that `mix.method` (or `mix.prior`) learns from, as far as they are not trained yet.

    Raises:
      ArtifactMissing: there is no token store, or no selection yet.
      Interrupted: as `loop.fit`.
      StageError: a proxy diverged.
      ValueError: as `check`; fewer than two domains can be mixed.
    """
    check(config)
    for group in _groups(config, workdir):
        swarm.train(group, workdir, together=1)
        _require_all(group, workdir)


def fingerprint(config: Config, workdir: Workdir) -> str:
    """Stands for all the proxies. Raises ArtifactMissing where one is not trained."""
    made = [
        require(workdir.proxy(proxy.name), "jaxprune mix CONFIG").fingerprint
        for group in _groups(config, workdir)
        for proxy in group
    ]
    return digest(made)


def weights(
    config: Config, workdir: Workdir, domains: tuple[str, ...]
) -> tuple[dict[str, float], dict[str, Any]]:
    """What the proxies learnt, the mean over their seeds, and the history of each seed (by step, the weights then)."""
    names = [f"{config.mix.learns}-{seed}" for seed in config.swarm.seeds]
    learnt = [json.loads((workdir.proxy(name) / LEARNT).read_text()) for name in names]
    mean_K = np.mean([one["average"] for one in learnt], axis=0)
    for name, weight in zip(domains, mean_K, strict=True):
        if weight == 0:
            say(
                f"mix: {name} gets no weight: the proxies had less than a row of it; keep more of its documents, or set "
                "swarm.simulate_epochs False"
            )
    history = {name: _history(workdir, name, domains) for name in names}
    return dict(zip(domains, (mean_K / mean_K.sum()).tolist(), strict=True)), {"history": history}


def graph(config: Config, workdir: Workdir, store: TokenStore) -> dict[str, dict[str, float]]:
    """Skill-It's graph, the mean over the seeds: share of the loss of a domain (inner) that training on one took away."""
    mixed = _mixed(config, workdir, store)[0]
    graphs_SKK = []
    for seed in config.swarm.seeds:
        ends = [_ends(workdir, f"skillit-{number}-{seed}", mixed) for number in range(len(mixed))]
        before_KK, after_KK = (np.array(side) for side in zip(*ends, strict=True))
        graphs_SKK.append(graph_of(before_KK, after_KK))
    mean_KK = np.mean(graphs_SKK, axis=0).tolist()
    return {trained: dict(zip(mixed, row, strict=True)) for trained, row in zip(mixed, mean_KK, strict=True)}


def _groups(config: Config, workdir: Workdir) -> list[list[Proxy]]:
    """The proxies, in groups of which each needs those before it to be trained."""
    store = TokenStore(workdir.prepare / "tokens")
    mixed, pool = _mixed(config, workdir, store)
    prepare = require(workdir.prepare, "jaxprune prepare CONFIG")
    inputs = {"prepare": prepare.fingerprint, "documents": pool.digest}
    seeds, method = config.swarm.seeds, config.mix.learns

    def proxy(name: str, weights: Sequence[float], seed: int, **parts: Any) -> Proxy:
        return _proxy(config, store, pool, inputs, name, weights, seed, **parts)

    uniform = [1 / len(mixed) if name in mixed else 0.0 for name in store.domains]
    if method == "skillit":
        alone = [
            (number, seed, [float(name == trained) for name in store.domains])
            for number, trained in enumerate(mixed)
            for seed in seeds
        ]
        return [[proxy(f"skillit-{number}-{seed}", weights, seed) for number, seed, weights in alone]]
    mixed_K = tuple(name in mixed for name in store.domains)
    if method == "doge":
        return [
            [
                proxy(f"doge-{seed}", uniform, seed, learner=_doge(config, store, mixed_K, seed))
                for seed in seeds
            ]
        ]
    references = [proxy(f"doremi-reference-{seed}", uniform, seed) for seed in seeds]
    learning = [
        proxy(
            f"doremi-{seed}",
            uniform,
            seed,
            learner=_doremi(config, workdir, mixed_K, reference),
            reference=reference.wanted.fingerprint,
        )
        for seed, reference in zip(seeds, references, strict=True)
    ]
    return [references, learning]


def _mixed(config: Config, workdir: Workdir, store: TokenStore) -> tuple[tuple[str, ...], Pool]:
    """The domains that proxies can draw from, and what they draw from."""
    pool = proxies.pool(config, workdir, store)
    mixed = tuple(name for name, n in zip(store.domains, pool.rows_K, strict=True) if n > 0)
    if len(mixed) < 2:
        raise ValueError(
            f"{len(mixed)} domains have as much as one row of swarm.proxy.model.context tokens, and {config.mix.learns} needs "
            "2: shorten it, or keep more documents"
        )
    return mixed, pool


def _proxy(
    config: Config,
    store: TokenStore,
    pool: Pool,
    inputs: Mapping[str, str],
    name: str,
    weights: Sequence[float],
    seed: int,
    *,
    learner: Learner | None = None,
    reference: str | None = None,
) -> Proxy:
    settings = config.swarm.proxy
    plan = Plan(
        title=f"proxy {name}",
        run=settings,
        store=store,
        documents=pool.documents,
        stages=(Stage(start=0, weights=tuple(weights)),),
        learner=learner,
        seed=seed,
        mesh=make_mesh(config.mesh),
        backends=config.metrics,
    )
    made_by = {
        "run": identity(settings),
        "seed": seed,
        "weights": list(plan.stages[0].weights),
        "validation_rows": settings.validation_rows,
    }
    if learner is not None:
        made_by["learner"] = {config.mix.learns: identity(getattr(config.mix, str(config.mix.learns)))}
    known = {**inputs, **({} if reference is None else {"reference": reference})}
    return Proxy(name, plan, Manifest(stage=plan.title, settings=made_by, inputs=known))


def _doremi(config: Config, workdir: Workdir, mixed_K: tuple[bool, ...], reference: Proxy) -> Learner:
    from jaxprune.mix.online.doremi import DoReMi

    settings = config.mix.doremi
    return DoReMi(
        reference=workdir.proxy(reference.name),
        mixed_K=mixed_K,
        eta=settings.eta,
        smoothing=settings.smoothing,
        form=settings.form,
    )


def _doge(config: Config, store: TokenStore, mixed_K: tuple[bool, ...], seed: int) -> Learner:
    from jaxprune.mix.online.doge import DoGE

    settings, run = config.mix.doge, config.swarm.proxy
    heldout = None
    if settings.against == "heldout":
        heldout = MixtureSource(
            store,
            store.documents(HELDOUT),
            context=run.model.context,
            batch_rows=run.batch_rows,
            stages=(Stage(start=0, weights=tuple(map(float, mixed_K))),),
            seed=seed,
        )
    return DoGE(
        mixed_K=mixed_K,
        mu=settings.mu,
        smoothing=settings.smoothing,
        clip=settings.clip,
        against=settings.against,
        heldout=heldout,
    )


def _require_all(group: Sequence[Proxy], workdir: Workdir) -> None:
    made = cluster.alone(lambda: [swarm.is_made(proxy, workdir) for proxy in group])
    missing = [proxy.name for proxy, is_made in zip(group, made, strict=True) if not is_made]
    if missing:
        raise StageError(
            f"mix: the proxies {', '.join(missing)} diverged: lower swarm.proxy.optimizer.peak_lr"
        )


def _history(workdir: Workdir, name: str, domains: tuple[str, ...]) -> dict[str, Any]:
    lines = [line for line in read(workdir.proxy(name) / "metrics.jsonl") if f"learnt/{domains[0]}" in line]
    by_domain = {domain: [line[f"learnt/{domain}"] for line in lines] for domain in domains}
    return {"step": [line["step"] for line in lines], "weights": by_domain}


def _ends(workdir: Workdir, name: str, domains: tuple[str, ...]) -> tuple[list[float], list[float]]:
    """Held-out losses before the first step and after the last."""
    lines = [line for line in read(workdir.proxy(name) / "metrics.jsonl") if "heldout" in line]
    first, *_, last = lines
    return [first[f"heldout/{domain}"] for domain in domains], [
        last[f"heldout/{domain}"] for domain in domains
    ]
