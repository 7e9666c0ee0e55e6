"""The second part of the stage `score`: signals beyond the NLL of the scoring model, each an artifact."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxprune import cluster
from jaxprune.artifact import Workdir, require
from jaxprune.config import Config, identity
from jaxprune.data.store import TRAIN, TokenStore
from jaxprune.prune import models, score, shards
from jaxprune.prune.criteria import sources_of
from jaxprune.prune.signals import (
    ask_llm,
    compression,
    density,
    dsir,
    el2n,
    joint,
    memorization,
    prior,
    second,
    unigram,
    vog,
)


@dataclass(frozen=True, kw_only=True)
class Source:
    """What makes the columns of one artifact."""

    load: Callable[[Config, Workdir, TokenStore, Path], shards.Measure]  # the folder is of the artifact
    settings: Callable[[Config], dict[str, Any]] = lambda config: {}  # that decide the result
    inputs: Callable[[Config, Workdir], dict[str, str]] = lambda config, workdir: {}  # beside `prepare`
    model: Callable[[Config], str | None] = lambda config: None  # whose numbers they are


def _target(config: Config) -> str:
    assert config.score.target is not None  # Config has checked it
    return config.score.target


SOURCES: dict[str, Source] = {
    "second": Source(
        load=lambda config, workdir, *_: second.load(config, workdir),
        settings=score.settings_of,
        inputs=second.inputs,
        model=lambda config: config.score.second,
    ),
    "el2n": Source(
        load=lambda config, workdir, *_: el2n.load(config, workdir),
        settings=score.settings_of,
        inputs=score.inputs_of,
        model=lambda config: config.score.model,
    ),
    "memorization": Source(
        load=lambda config, workdir, *_: memorization.load(config, workdir),
        inputs=score.inputs_of,
        model=lambda config: config.score.model,
    ),
    "vog": Source(
        load=lambda config, workdir, *_: vog.load(config, workdir),
        settings=lambda config: {"steps": list(config.vog_steps)},
        inputs=lambda config, workdir: vog.inputs(workdir),
        model=lambda config: "reference",
    ),
    "ask_llm": Source(
        load=lambda config, workdir, *_: ask_llm.load(config, workdir),
        settings=ask_llm.settings_of,
        inputs=ask_llm.inputs,
        model=lambda config: config.score.ask.model,
    ),
    "unigram": Source(load=lambda config, workdir, store, folder: unigram.load(store)),
    "prior": Source(load=lambda config, workdir, store, folder: prior.load(store)),
    "compression": Source(
        load=lambda config, workdir, *_: compression.load(workdir.prepare / "tokenizer"),
        settings=lambda config: {"zlib": compression.VERSION},
    ),
    "zip": Source(
        load=lambda config, workdir, store, folder: joint.load(
            config.score.zip, config.select.min_tokens, workdir.prepare / "tokenizer", store, folder
        ),
        settings=lambda config: {
            **identity(config.score.zip),
            "min_tokens": config.select.min_tokens,
            "zlib": compression.VERSION,
        },
    ),
    "density": Source(
        load=lambda config, workdir, store, folder: density.load(config.score.density, store),
        settings=lambda config: identity(config.score.density),
        inputs=lambda config, workdir: density.inputs(config.score.density, workdir),
    ),
    "dsir": Source(
        load=lambda config, workdir, store, folder: dsir.load(
            config.corpus, _target(config), workdir.prepare / "tokenizer", store
        ),
        settings=lambda config: {"target": _target(config)},
        inputs=lambda config, workdir: dsir.inputs(config.corpus, _target(config)),
    ),
}


def run(config: Config, workdir: Workdir) -> None:
    """Measures the documents that may be pruned by every signal that the config asks for.

    Every process works on those of a model; the others are process 0's.

    Raises:
      ArtifactMissing: the corpus is not prepared, or a model that a signal needs is not trained.
      ValueError: as the signals.
    """
    prepare = require(workdir.prepare, "jaxprune prepare CONFIG")
    store = TokenStore(workdir.prepare / "tokens")
    numbers = store.documents(TRAIN)
    for name in sources_of(config):
        source = SOURCES[name]
        model = source.model(config)

        def build(name: str = name, source: Source = source, fault: str = "") -> None:
            shards.build(
                workdir.signal(name),
                f"score: {name}",
                source.settings(config),
                {"prepare": prepare.fingerprint, **source.inputs(config, workdir)},
                store=store,
                numbers=numbers,
                shard_documents=config.score.shard_documents,
                load=functools.partial(source.load, config, workdir, store),
                counts=lambda _: {"documents": len(numbers)},
                fault=fault,
            )

        if model is None:
            cluster.alone(build)
        else:
            build(fault=models.fault(model))
