"""The whole pipeline: each stage reads the artifacts of those before it and leaves its own.

prepare -> train reference -> score -> select -> mix -> train final runs -> evaluate -> report

Of several processes (cluster.py) all work on the stages with a model; the others are process 0's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxprune import artifact, cluster
from jaxprune.artifact import Manifest, Workdir
from jaxprune.config import Config

if TYPE_CHECKING:
    from jaxprune.train.strategy import Strategy


def run(config: Config, workdir: Workdir) -> None:
    """Makes every artifact that is not there yet; ends with the report.

    Raises:
      ValueError: before anything is made, a run does not fit the devices, or a model or a file that scores
        or signals read cannot be used; after `prepare`, mix.weights or select.rates does not fit the domains; or
        as the stages.
    """
    _check_devices(config)
    _check_scoring(config)
    _check_strategy(config)
    prepare(config, workdir)
    _check_domains(config, workdir)
    train(config, workdir, config.scorers)
    score(config, workdir)
    select(config, workdir)
    if config.mix.offline in ("law", "best"):
        mix_swarm(config, workdir)
    mix(config, workdir)
    train(config, workdir, tuple(config.final_runs))
    evaluate(config, workdir, ())
    report(config, workdir)


def _check_devices(config: Config) -> None:
    from jaxprune.model.sharding import make_mesh
    from jaxprune.train import layout

    mesh = make_mesh(config.mesh)
    for name in (*config.scorers, "final"):
        try:
            layout.check(getattr(config, name), mesh)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
    if config.mix.offline in ("law", "best"):
        from jaxprune.mix import swarm

        swarm.check(config)
    if config.mix.learns is not None:
        from jaxprune.mix import learnt

        learnt.check(config)


def _check_scoring(config: Config) -> None:
    from jaxprune.model.sharding import make_mesh
    from jaxprune.prune import preflight

    preflight.check(config, make_mesh(config.mesh))


def _check_strategy(config: Config) -> None:
    if config.mix.method == "own":
        from jaxprune.mix.online import own

        own.load(config.mix.own.strategy)


def _check_domains(config: Config, workdir: Workdir) -> None:
    from jaxprune.data.store import TokenStore
    from jaxprune.mix.weights import proportions, stage_starts, staged
    from jaxprune.prune.select import check_rates

    artifact.require(workdir.prepare, "jaxprune prepare CONFIG")
    domains = TokenStore(workdir.prepare / "tokens").domains
    check_rates(config.select, domains)
    if config.mix.offline == "fixed":
        # How many tokens each keeps is not known yet, and fixed weights do not ask.
        proportions(config.mix, dict.fromkeys(domains, 1))
    staged(config.mix, domains)
    stage_starts(config.mix, config.final.steps)
    if config.mix.is_online:
        # Nor is it known which domains keep a row, and how many: all have enough, whatever mix.max_epochs says of them.
        config = replace(config, mix=replace(config.mix, max_epochs=None))
        rows = dict.fromkeys(domains, config.final.steps * config.final.batch_rows)
        from jaxprune.mix.online.make import online

        graph = {name: dict.fromkeys(domains, 0.0) for name in domains}
        decided = online(config.mix, config.final, graph if config.mix.method == "skillit" else None)
        mixture = {"rows": rows, "weights": dict.fromkeys(domains, 1 / len(domains)), "online": decided}
        _strategy(config, mixture, config.seed)


def _alone(folder: Path, make: Callable[[], Manifest]) -> None:
    """Process 0 makes an artifact that needs no model."""
    fingerprint = cluster.alone(lambda: make().fingerprint)
    artifact.wait_for(folder, fingerprint)


# Each stage is imported when it runs, so that the command line answers at once.


def prepare(config: Config, workdir: Workdir) -> None:
    """Reads, deduplicates, splits and tokenises the corpus."""
    from jaxprune.data import prepare as stage

    _alone(workdir.prepare, lambda: stage.run(config, workdir))


def train(config: Config, workdir: Workdir, names: tuple[str, ...]) -> None:
    """Trains the named runs; without names, all of them."""
    from jaxprune.train import stage

    for name in names or (*config.scorers, *config.final_runs):
        stage.run(config, workdir, name, lambda mixture, seed: _strategy(config, mixture, seed))


def _strategy(config: Config, mixture: dict[str, Any], seed: int) -> Strategy:
    from jaxprune.mix.online.make import strategy

    return strategy(config.mix, config.final, mixture, seed)


def score(config: Config, workdir: Workdir) -> None:
    """Scores the documents that may be pruned with the reference model."""
    from jaxprune.prune import score as stage
    from jaxprune.prune.signals import stage as signals
    from jaxprune.report import provenance

    provenance.read(config, workdir, before="score")
    stage.run(config, workdir)
    signals.run(config, workdir)


def select(config: Config, workdir: Workdir) -> None:
    """Decides which documents each arm keeps."""
    from jaxprune.prune import select as stage
    from jaxprune.report import provenance

    provenance.read(config, workdir, before="select")
    _alone(workdir.select, lambda: stage.run(config, workdir))


def mix(config: Config, workdir: Workdir) -> None:
    """Decides the proportions of the domains in each final run."""
    from jaxprune.mix import weights as stage
    from jaxprune.report import provenance

    provenance.read(config, workdir, before="mix")
    _check_domains(config, workdir)
    if config.mix.learns is not None:
        from jaxprune.mix import learnt

        learnt.train(config, workdir)
    _alone(workdir.mix, lambda: stage.run(config, workdir))


def mix_design(config: Config, workdir: Workdir) -> None:
    """Chooses the mixtures that proxies are trained on; not part of `run`."""
    from jaxprune.mix import mixtures as stage

    _alone(workdir.design, lambda: stage.run(config, workdir))


def mix_swarm(config: Config, workdir: Workdir) -> None:
    """Trains the proxies of the design, which it makes if need be, and tables their losses; not part of `run`."""
    from jaxprune.mix import swarm as stage

    mix_design(config, workdir)
    stage.run(config, workdir)


def evaluate(config: Config, workdir: Workdir, names: tuple[str, ...]) -> None:
    """Evaluates the named runs on the held-out documents; without names, all final runs."""
    from jaxprune.evaluate import perplexity as stage

    for name in names or tuple(config.final_runs):
        stage.run(config, workdir, name)


def report(config: Config, workdir: Workdir) -> None:
    """Writes the report from all artifacts."""
    from jaxprune.report import page as stage

    _alone(workdir.report, lambda: stage.run(config, workdir))


def audit(config: Config, workdir: Workdir) -> None:
    """Writes pages of what each selection kept and removed; not part of `run`."""
    from jaxprune.report import audit as stage

    stage.run(config, workdir)
