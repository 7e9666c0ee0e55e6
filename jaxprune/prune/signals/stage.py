"""The second part of the stage `score`: signals beyond the NLL of the scoring model, each an artifact."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxprune.artifact import Workdir, build, require
from jaxprune.config import Config
from jaxprune.data.store import TRAIN, TokenStore
from jaxprune.prune import shards
from jaxprune.prune.criteria import sources_of
from jaxprune.prune.signals import unigram


@dataclass(frozen=True, kw_only=True)
class Source:
    """What makes the columns of one artifact."""

    load: Callable[[Config, Workdir, TokenStore], shards.Measure]
    settings: Callable[[Config], dict[str, Any]] = lambda config: {}  # that decide the result
    inputs: Callable[[Config, Workdir], dict[str, str]] = lambda config, workdir: {}  # beside `prepare`


SOURCES: dict[str, Source] = {
    "unigram": Source(load=lambda config, workdir, store: unigram.load(config, store)),
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
