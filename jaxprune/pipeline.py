"""The whole pipeline: each stage reads the artifacts of those before it and leaves its own.

prepare -> train reference -> score -> select -> mix -> train final runs -> evaluate -> report
"""

from __future__ import annotations

from jaxprune.artifact import Manifest, Workdir
from jaxprune.config import Config


def run(config: Config, workdir: Workdir) -> None:
    """Makes every artifact that is not there yet; ends with the report."""
    prepare(config, workdir)
    train(config, workdir, ("reference",))
    score(config, workdir)
    select(config, workdir)
    mix(config, workdir)
    train(config, workdir, tuple(config.final_runs))
    evaluate(config, workdir, ())
    report(config, workdir)


# Each stage is imported when it runs, so that the command line answers at once.


def prepare(config: Config, workdir: Workdir) -> Manifest:
    """Reads, deduplicates, splits and tokenises the corpus."""
    from jaxprune.data import prepare as stage

    return stage.run(config, workdir)


def train(config: Config, workdir: Workdir, names: tuple[str, ...]) -> None:
    """Trains the named runs; without names, all of them."""
    from jaxprune.train import stage

    for name in names or ("reference", *config.final_runs):
        stage.run(config, workdir, name)


def score(config: Config, workdir: Workdir) -> Manifest:
    """Scores the documents that may be pruned with the reference model."""
    from jaxprune.prune import score as stage

    return stage.run(config, workdir)


def select(config: Config, workdir: Workdir) -> Manifest:
    """Decides which documents each arm keeps."""
    from jaxprune.prune import select as stage

    return stage.run(config, workdir)


def mix(config: Config, workdir: Workdir) -> Manifest:
    """Decides the proportions of the domains in each final run."""
    from jaxprune.mix import weights as stage

    return stage.run(config, workdir)


def evaluate(config: Config, workdir: Workdir, names: tuple[str, ...]) -> None:
    """Evaluates the named runs on the held-out documents; without names, all final runs."""
    from jaxprune.evaluate import perplexity as stage

    for name in names or tuple(config.final_runs):
        stage.run(config, workdir, name)


def report(config: Config, workdir: Workdir) -> Manifest:
    """Writes the report from all artifacts."""
    from jaxprune.report import page as stage

    return stage.run(config, workdir)
