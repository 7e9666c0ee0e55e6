"""That the artifacts that a stage reads are those of its config, and were made from each other.

A stage that was run again by itself, or a setting given to one command alone, would else put
results under settings and selections that they do not come from.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jaxprune.artifact import Manifest, StageError, Workdir, differences, require
from jaxprune.config import Config, identity
from jaxprune.data.store import TokenStore
from jaxprune.mix import weights
from jaxprune.prune import score, select
from jaxprune.prune.signals import stage as signals
from jaxprune.train.stage import CHANGES


def read(config: Config, workdir: Workdir, before: str | None = None) -> dict[str, Manifest]:
    """The manifest of every stage by name, in the order in which they ran.

    Args:
      config: the settings of the run.
      workdir: its artifacts.
      before: a stage; only those before it are read. None: all are.

    Raises:
      ArtifactMissing: a stage has not run.
      StageError: an artifact was made from other settings than the config's, or from another artifact than
        the one that is there.
    """
    stages = [*itertools.takewhile(lambda stage: stage[0] != before, _stages(config, workdir))]
    manifests = {name: require(folder, f"jaxprune {command}") for name, folder, command in stages}
    for name, settings, inputs in _origins(config, workdir, manifests):
        if name == before:
            break
        made = manifests[name]
        changed = [
            *differences({key: made.settings.get(key) for key in settings}, settings),
            *differences({key: made.inputs.get(key) for key in inputs}, inputs),
        ]
        if changed:
            what = textwrap.shorten("; ".join(_by_setting(name, changed)), 200, placeholder=" ...")
            raise StageError(
                f"`{name}` was not made from this config and the artifacts that are there ({what}): "
                f"run {_again(name, [] if before is None else stages)}"
            )
    return manifests


def _by_setting(stage: str, changed: list[str]) -> list[str]:
    """What changed, named as the command line does: a rule of `select` is that of several selections."""
    if stage == "select":
        changed = [re.sub(r"^[\w-]+\.rule\.", "select.", line) for line in changed]
    return [*dict.fromkeys(changed)]


def _again(stage: str, stages: list[tuple[str, Path, str]]) -> str:
    """The commands that make a stage and those behind it again."""
    if not stages:
        return "`jaxprune run CONFIG`, which makes again what has changed"
    left = itertools.dropwhile(lambda of: of[0] != stage, stages)
    return ", then ".join(f"`jaxprune {command}`" for command in dict.fromkeys(of[2] for of in left))


def _stages(config: Config, workdir: Workdir) -> Iterator[tuple[str, Path, str]]:
    """Name, artifact and command of each stage."""
    yield "prepare", workdir.prepare, "prepare CONFIG"
    for name in config.scorers:
        yield f"train {name}", workdir.run(name), f"train CONFIG --only {name}"
    yield "score", workdir.score, "score CONFIG"
    for name in select.sources(config):
        yield f"signal {name}", workdir.signal(name), select.command(config)
    yield "select", workdir.select, "select CONFIG"
    yield "mix", workdir.mix, "mix CONFIG"
    for name in config.final_runs:
        yield f"train {name}", workdir.run(name), "train CONFIG"
    for name in config.final_runs:
        yield f"evaluate {name}", workdir.evaluate(name), "evaluate CONFIG"


def _origins(
    config: Config, workdir: Workdir, manifests: dict[str, Manifest]
) -> Iterator[tuple[str, dict[str, Any], dict[str, str]]]:
    """Each stage with the settings and inputs that it has now, one at a time: a later one reads what is checked.

    Left out are the reference's weights, which follow from the rest, and the files of the corpus, which may be gone.
    """
    now = {name: manifest.fingerprint for name, manifest in manifests.items()}
    prepare = {"prepare": now["prepare"]}
    corpus = {"corpus": identity(config.corpus), "tokenizer": identity(config.tokenizer)}
    yield "prepare", {**corpus, "seed": config.seed}, {}
    for name in config.scorers:
        yield f"train {name}", {"run": identity(getattr(config, name)), "seed": config.seed}, prepare
    yield "score", score.settings_of(config), {**prepare, **score.inputs_of(config, workdir)}
    for name in select.sources(config):
        source = signals.SOURCES[name]
        yield f"signal {name}", source.settings(config), {**prepare, **source.inputs(config, workdir)}
    yield "select", select.settings_of(config), select.inputs_of(config, workdir)
    yield "mix", weights.settings_of(config), {**prepare, "select": now["select"]}
    domains = TokenStore(workdir.prepare / "tokens").domains
    mixtures = json.loads((workdir.mix / "weights.json").read_text())
    for name, (_, seed) in config.final_runs.items():
        mixture = mixtures[name]
        with (workdir.select / f"{mixture['selection']}.npy").open("rb") as file:
            documents = hashlib.file_digest(file, "sha256").hexdigest()[:16]
        mixed = {"weights": [mixture["weights"][domain] for domain in domains]}
        mixed |= {part: mixture[part] for part in CHANGES if part in mixture}
        settings = {"run": identity(config.final), "seed": seed, **mixed}
        yield f"train {name}", settings, {**prepare, "documents": documents}
    for name in config.final_runs:
        yield f"evaluate {name}", {}, {**prepare, "train": now[f"train {name}"]}
