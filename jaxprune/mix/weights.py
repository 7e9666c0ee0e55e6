"""The stage `mix`: in what proportions each final run draws from the domains, and how often they repeat.

A row is what a run draws: `context` + 1 tokens of a domain's kept documents, each with its
end-of-document token, laid end to end (neighbours share one token). An epoch draws each row once.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxprune.artifact import Manifest, Workdir, build, require, write_json
from jaxprune.config import Arm, Config, Mix, identity
from jaxprune.config.mix import LEARNT, MANY_EPOCHS
from jaxprune.data.store import TokenStore
from jaxprune.progress import say
from jaxprune.prune.select import selection_of

Find = Callable[[str, Mapping[str, int], Mapping[str, int]], tuple[dict[str, float], dict[str, Any]]]
"""A selection's name, its kept tokens of each domain, and the tokens that an epoch of each draws -> weights that sum to
one, and how they were found."""
_NAMED = 5  # domains in a line
_ROUNDING = 1e-6  # of a weight that is at its cap


def run(config: Config, workdir: Workdir) -> Manifest:
    """Decides the weights of every final run, unless they are decided already.

    Raises:
      ArtifactMissing: there is no selection yet.
      ValueError: as `mixtures` and `check_epochs`.
    """
    prepare = require(workdir.prepare, "jaxprune prepare CONFIG")
    selected = require(workdir.select, "jaxprune select CONFIG")
    store = TokenStore(workdir.prepare / "tokens")
    inputs = {"prepare": prepare.fingerprint, "select": selected.fingerprint}
    if config.mix.offline in ("law", "best"):
        inputs["table"] = require(workdir.table, "jaxprune mix swarm CONFIG").fingerprint
    graph = None
    if config.mix.learns is not None:
        from jaxprune.mix import learnt  # takes longer to import than most runs of this stage

        inputs["proxies"] = learnt.fingerprint(config, workdir)
        if config.mix.learns == "skillit":
            graph = learnt.graph(config, workdir, store)

    def make(folder: Path) -> dict[str, Any]:
        selections = json.loads((workdir.select / "summary.json").read_text())
        runs = mixtures(config, selections, store.domains, finder(config, workdir, store), graph)
        if config.mix.is_online:
            from jaxprune.mix.online.make import view  # takes longer to import than most runs of this stage

            say(f"mix: {config.mix.method} decides while the final runs are trained ({view(config.mix)})")
        else:
            for name, run in runs.items():
                check_epochs(run["epochs"], config.mix.max_epochs, name)
            for arm, epochs in most_epochs(config, runs).items():
                say(f"mix: {arm} {drawing(_mean_weights(config, runs, arm))}; it {repetition(epochs)}")
        write_json(folder / "weights.json", runs)
        return {name: {"most_epochs": max(run["epochs"].values())} for name, run in runs.items()}

    return build(workdir.mix, "mix", settings_of(config), inputs, make)


def finder(config: Config, workdir: Workdir, store: TokenStore) -> Find:
    """Weights by the method of the config.

    Raises:
      ArtifactMissing, ValueError: as `found.by_law`.
    """
    method = config.mix.offline
    if method == "unimax":
        budget = config.final.trained_tokens
        epochs = config.mix.max_epochs or MANY_EPOCHS
        return lambda _, kept, drawn: (unimax(drawn, budget, epochs), {"epochs": epochs})
    if method in LEARNT:
        from jaxprune.mix import learnt

        found_weights = learnt.weights(config, workdir, store.domains)
        return lambda _, kept, drawn: found_weights
    if method not in ("law", "best", "entropy"):
        return lambda _, kept, drawn: (proportions(config.mix, kept), {})
    from jaxprune.mix import found  # laws and entropies take longer to import than most runs of this stage

    if method == "best":
        best = found.best(workdir, store.domains)
        return lambda _, kept, drawn: best
    find = found.by_law(config, workdir) if method == "law" else found.by_entropy(config, store)
    return lambda selection, kept, drawn: find(np.load(workdir.select / f"{selection}.npy"), kept, drawn)


def mixtures(
    config: Config,
    selections: Mapping[str, Any],
    domains: tuple[str, ...],
    find: Find,
    graph: Mapping[str, Any] | None = None,
) -> dict[str, dict[str, Any]]:
    """What each final run draws from: selection, method, weights and epochs by domain, and training tokens.

    Args:
      config: says how many tokens a run trains on.
      selections: the summary of the stage `select`.
      domains: of the corpus.
      find: the weights, and how they were found.
      graph: of Skill-It.

    Raises:
      ValueError: as `proportions` and `drawable`.
    """
    final = config.final
    training_rows = final.steps * final.batch_rows
    runs = {}
    for name, (arm, seed) in config.final_runs.items():
        selection = selection_of(arm, seed)
        mixture = "pruned" if arm == "reweighted" else selection
        kept = kept_tokens(selections[selection], domains)
        rows = {domain: max(n - 1, 0) // final.model.context for domain, n in kept.items()}
        drawn = {domain: n * final.model.context for domain, n in rows.items()}
        wanted, how = find(mixture, kept_tokens(selections[mixture], domains), drawn)
        strict = config.mix.offline in ("fixed", "stages")
        stages = []
        if config.mix.method == "stages":
            stages = [
                {"start": start, "weights": drawable(weights, rows, name, strict)}
                for start, weights in zip(
                    stage_starts(config.mix, final.steps), staged(config.mix, domains), strict=True
                )
            ]
            wanted = _average(stages, final.steps)
        weights = drawable(wanted, rows, name, strict)
        runs[name] = {
            "selection": selection,
            "method": config.mix.method + (" of pruned" if arm == "reweighted" else ""),
            "weights": weights,
            **({"stages": stages} if stages else {}),
            "rows": rows,
            "epochs": {
                domain: weight * training_rows / max(rows[domain], 1) for domain, weight in weights.items()
            },
            "tokens": training_rows * final.model.context,
            **({"found": how} if how else {}),
            **({"online": _online(config, graph)} if config.mix.is_online else {}),
        }
    return runs


def _online(config: Config, graph: Mapping[str, Any] | None) -> dict[str, Any]:
    from jaxprune.mix.online.make import online

    return online(config.mix, config.final, graph)


def stage_starts(mix: Mix, steps: int) -> list[int]:
    """The first step of each of `mix.stages`.

    Raises:
      ValueError: of so many steps, two of them begin at the same, or one with the end.
    """
    starts = [round(stage.at * steps) for stage in mix.stages]
    for stage, start, end in zip(mix.stages, starts, [*starts[1:], steps], strict=False):
        if end <= start:
            raise ValueError(
                f"mix.stages: the stage at {stage.at:g} has none of the run's {steps} steps: move it or the next, or train longer"
            )
    return starts


def staged(mix: Mix, domains: tuple[str, ...]) -> list[dict[str, float]]:
    """The weights of each of `mix.stages`, which add up to 1.

    Raises:
      ValueError: they miss a domain or name one that the corpus does not have.
    """
    return [given("mix.stages", stage.weights, domains) for stage in mix.stages]


def _average(stages: Sequence[Mapping[str, Any]], steps: int) -> dict[str, float]:
    """Weights over the whole of a run."""
    ends = [*(stage["start"] for stage in stages[1:]), steps]
    average = dict.fromkeys(stages[0]["weights"], 0.0)
    for stage, end in zip(stages, ends, strict=True):
        for name, weight in stage["weights"].items():
            average[name] += weight * (end - stage["start"]) / steps
    return average


def unimax(tokens: Mapping[str, int], budget: int, epochs: float) -> dict[str, float]:
    """As uniform as `epochs` allow, which no domain exceeds (UniMax, Chung et al., arXiv 2304.09151, algorithm 1).

    From the smallest domain on, each gets an equal share of the budget that is left, or all its epochs.

    Args:
      tokens: that an epoch of each domain draws.
      budget: tokens of the run.
      epochs: most of each domain. Where all domains together have less than the budget, all repeat alike more often.
    """
    if not any(tokens.values()):
        return dict.fromkeys(tokens, 1 / len(tokens))  # none has a row, which whoever draws from them says
    left, shares = float(budget), {}
    for place, name in enumerate(sorted(tokens, key=lambda name: tokens[name])):
        shares[name] = min(left / (len(tokens) - place), epochs * tokens[name])
        left -= shares[name]
    return {name: shares[name] / sum(shares.values()) for name in tokens}


def settings_of(config: Config) -> dict[str, Any]:
    """The settings that decide the mix artifact."""
    code = {}
    if config.mix.method == "own":
        from jaxprune.mix.online import own

        code = {"code": own.code(config.mix.own.strategy)}
    return {
        "mix": identity(config.mix),
        **code,
        "runs": list(config.final_runs),
        "rows": config.final.steps * config.final.batch_rows,
        "context": config.final.model.context,
    }


def kept_tokens(selection: Mapping[str, Any], domains: tuple[str, ...]) -> dict[str, int]:
    """Kept tokens by domain as rows hold them, each document's end-of-document token included.

    From a selection's summary, which counts text; 0 for a domain that has none.
    """
    kept = {domain: sizes["after"] for domain, sizes in selection["domains"].items()}
    stored = {domain: sizes["tokens"] + sizes["documents"] for domain, sizes in kept.items()}
    return {domain: stored.get(domain, 0) for domain in domains}


def proportions(mix: Mix, tokens: Mapping[str, int]) -> dict[str, float]:
    """Weights that add up to 1, from the kept tokens of each domain.

    Raises:
      ValueError: fixed weights that miss a domain or name one that the corpus does not have; or no
        tokens at all.
    """
    if sum(tokens.values()) == 0:
        raise ValueError("no document is kept: raise select.rate, or lower select.min_tokens")
    if mix.offline == "stages":
        return staged(mix, tuple(tokens))[0]
    if mix.offline == "fixed":
        return given("mix.weights", mix.weights, tuple(tokens))
    most = max(tokens.values())
    power = {"natural": 1.0, "uniform": 0.0, "temperature": 1 / mix.temperature}[mix.offline]
    wanted = {name: (count / most) ** power if count else 0.0 for name, count in tokens.items()}
    return {name: weight / sum(wanted.values()) for name, weight in wanted.items()}


def given(setting: str, weights: Mapping[str, float], domains: tuple[str, ...]) -> dict[str, float]:
    """Weights that a setting gives to every domain, divided by their sum.

    Raises:
      ValueError: it misses a domain, or names one that the corpus does not have.
    """
    for name in weights:
        if name not in domains:
            near = difflib.get_close_matches(name, domains, n=1)
            raise ValueError(
                f"{setting} names {name}, which is no domain of the corpus: "
                + (f"did you mean {near[0]}?" if near else f"its domains are {', '.join(domains)}")
            )
    missing = [name for name in domains if name not in weights]
    if missing:
        raise ValueError(f"{setting} has no weight for {', '.join(missing)}: give one; 0 leaves a domain out")
    return {name: weights[name] / sum(weights.values()) for name in domains}


def drawable(
    weights: Mapping[str, float], rows: Mapping[str, int], title: str, strict: bool
) -> dict[str, float]:
    """The weights without the domains that have less than one row, which cannot be drawn from.

    Raises:
      ValueError: `strict`, and such a domain has a weight; or none is left.
    """
    short = [name for name, weight in weights.items() if weight > 0 and rows[name] == 0]
    if short and strict:
        raise ValueError(
            f"{title}: mix.weights draws from {', '.join(short)}, where less than one row is kept: "
            "set the weight to 0, keep more documents, or shorten final.model.context"
        )
    left = {name: 0.0 if name in short else weight for name, weight in weights.items()}
    if sum(left.values()) == 0:
        raise ValueError(
            f"{title}: no domain keeps as much as one row: keep more documents, or shorten final.model.context"
        )
    for name in short:
        say(f"{title}: {name} keeps less than one row and is left out (its weight was {weights[name]:.2g})")
    return {name: weight / sum(left.values()) for name, weight in left.items()}


def check_epochs(epochs: Mapping[str, float], max_epochs: float | None, title: str) -> None:
    """Refuses what repeats too often.

    Raises:
      ValueError: a domain repeats more often than `max_epochs`.
    """
    for name, times in epochs.items():
        if max_epochs is not None and times > max_epochs * (1 + _ROUNDING):
            raise ValueError(
                f"{title}: {name} would be repeated {times:.3g} times, and mix.max_epochs is {max_epochs:g}: "
                "lower its weight, keep more of it, or lower final.tokens"
            )


def most_epochs(config: Config, runs: Mapping[str, Mapping[str, Any]]) -> dict[Arm, dict[str, float]]:
    """How often each arm repeats each domain, in the seed that repeats it most."""
    most: dict[Arm, dict[str, float]] = {}
    for name, (arm, _) in config.final_runs.items():
        of_arm = most.setdefault(arm, {})
        for domain, times in runs[name]["epochs"].items():
            of_arm[domain] = max(times, of_arm.get(domain, 0.0))
    return most


def _mean_weights(config: Config, runs: Mapping[str, Mapping[str, Any]], of_arm: Arm) -> dict[str, float]:
    of = [runs[name]["weights"] for name, (arm, _) in config.final_runs.items() if arm == of_arm]
    return {domain: sum(weights[domain] for weights in of) / len(of) for domain in of[0]}


def drawing(weights: Mapping[str, float]) -> str:
    """What an arm draws, as a part of a sentence: the largest weights by name."""
    ordered = sorted(((name, w) for name, w in weights.items() if w > 0), key=lambda item: -item[1])
    named = ", ".join(f"{name} {weight:.1%}" for name, weight in ordered[:_NAMED])
    more = f" and {sum(weight for _, weight in ordered[_NAMED:]):.1%} of {len(ordered) - _NAMED} more domains"
    return f"draws {named}{more if len(ordered) > _NAMED else ''}"


def repetition(epochs: Mapping[str, float]) -> str:
    """How often the domains of an arm repeat, as the end of a sentence; those above `MANY_EPOCHS` by name."""
    ordered = sorted(epochs.items(), key=lambda item: -item[1])
    often = [f"{domain} {times:.1f} times" for domain, times in ordered if times > MANY_EPOCHS]
    if not often:
        domain, times = ordered[0]
        return f"draws no domain more than {times:.2g} times over ({domain})"
    more = f" and {len(often) - _NAMED} more domains" if len(often) > _NAMED else ""
    return f"repeats {', '.join(often[:_NAMED])}{more}: above {MANY_EPOCHS} a repeat teaches little"
