"""The second part of the stage `score`: signals beyond the NLL of the scoring model, each an artifact."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxprune.artifact import Workdir, build, require
from jaxprune.config import Config, identity
from jaxprune.data.store import TRAIN, TokenStore
from jaxprune.prune import score, shards
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

    load: Callable[[Config, Workdir, TokenStore], shards.Measure]
    settings: Callable[[Config], dict[str, Any]] = lambda config: {}  # that decide the result
    inputs: Callable[[Config, Workdir], dict[str, str]] = lambda config, workdir: {}  # beside `prepare`


def _zip_share(config: Config) -> float:
    return config.select.rate if config.score.zip.share is None else config.score.zip.share


def _target(config: Config) -> str:
    assert config.score.target is not None  # Config has checked it
    return config.score.target


SOURCES: dict[str, Source] = {
    "second": Source(
        load=lambda config, workdir, store: second.load(config, workdir),
        settings=score.settings_of,
        inputs=second.inputs,
    ),
    "el2n": Source(
        load=lambda config, workdir, store: el2n.load(config, workdir),
        settings=score.settings_of,
        inputs=score.inputs_of,
    ),
    "memorization": Source(
        load=lambda config, workdir, store: memorization.load(config, workdir),
        inputs=score.inputs_of,
    ),
    "vog": Source(
        load=lambda config, workdir, store: vog.load(config, workdir),
        inputs=lambda config, workdir: vog.inputs(workdir),
    ),
    "ask_llm": Source(
        load=lambda config, workdir, store: ask_llm.load(config, workdir),
        settings=ask_llm.settings_of,
        inputs=ask_llm.inputs,
    ),
    "unigram": Source(load=lambda config, workdir, store: unigram.load(store)),
    "prior": Source(load=lambda config, workdir, store: prior.load(store)),
    "compression": Source(
        load=lambda config, workdir, store: compression.load(workdir.prepare / "tokenizer"),
        settings=lambda config: {"zlib": compression.VERSION},
    ),
    "zip": Source(
        load=lambda config, workdir, store: joint.load(
            config.score.zip, _zip_share(config), workdir.prepare / "tokenizer", store
        ),
        settings=lambda config: {
            **identity(config.score.zip),
            "share": _zip_share(config),
            "zlib": compression.VERSION,
        },
    ),
    "density": Source(
        load=lambda config, workdir, store: density.load(config.score.density, store),
        settings=lambda config: identity(config.score.density),
        inputs=lambda config, workdir: density.inputs(config.score.density),
    ),
    "dsir": Source(
        load=lambda config, workdir, store: dsir.load(
            config.corpus, _target(config), workdir.prepare / "tokenizer", store
        ),
        settings=lambda config: {"target": _target(config)},
        inputs=lambda config, workdir: dsir.inputs(config.corpus, _target(config)),
    ),
}


def run(config: Config, workdir: Workdir) -> None:
    """Measures the documents that may be pruned by every signal that the config asks for.

    Raises:
      ArtifactMissing: the corpus is not prepared, or a model that a signal needs is not trained.
      ValueError: as the signals.
    """
    prepare = require(workdir.prepare, "jaxprune prepare CONFIG")
    store = TokenStore(workdir.prepare / "tokens")
    numbers = store.documents(TRAIN)
    for name in sources_of(config):
        source = SOURCES[name]

        def fill(folder: Path, name: str = name, source: Source = source) -> dict[str, Any]:
            shards.fill(
                folder,
                f"score: {name}",
                store,
                numbers,
                config.score.shard_documents,
                lambda: source.load(config, workdir, store),
            )
            return {"documents": len(numbers)}

        inputs = {"prepare": prepare.fingerprint, **source.inputs(config, workdir)}
        build(workdir.signal(name), f"score: {name}", source.settings(config), inputs, fill)
