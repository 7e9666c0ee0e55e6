"""The strategy of a final run, from what the stage `mix` decided for it.

Legend: K domains.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Callable, Mapping
from typing import Any

from jaxprune.artifact import StageError
from jaxprune.config import Mix, Run, identity
from jaxprune.mix.online import own
from jaxprune.mix.online.ado import Ado
from jaxprune.mix.online.aioli import Aioli
from jaxprune.mix.online.bounded import Bounded
from jaxprune.mix.online.odm import Odm
from jaxprune.mix.online.skillit import SkillIt
from jaxprune.train.strategy import Strategy


def strategy(mix: Mix, run: Run, mixture: Mapping[str, Any], seed: int) -> Strategy:
    """The strategy of `mix.method`, for the domains that the run can draw from.

    Args:
      mix: names the strategy, and has its settings.
      run: whose weights it decides on.
      mixture: of the run in `weights.json`: `rows` of an epoch by domain, `weights` before `online.start`.
      seed: of the run.

    Raises:
      StageError: the mixture was decided with other settings.
      ValueError: the strategy does not fit the run or its domains.
    """
    decided = mixture["online"]
    if mix.method not in _MAKE or decided != online(mix, run, decided.get("graph")):
        raise StageError(
            f"the stage mix was run with other settings (of {decided['strategy']}): run `jaxprune mix CONFIG` with these, and "
            "then this command"
        )
    rows, start = mixture["rows"], decided["start"]
    domains = tuple(name for name, n in rows.items() if n > 0)
    if len(domains) < 2:
        raise ValueError(
            f"mix.method is {mix.method}, and {len(domains)} domain has as much as a row: keep more documents, or shorten "
            "final.model.context"
        )
    step_tokens = run.batch_rows * run.model.context
    if start >= run.steps:
        raise ValueError(
            f"mix.prior_share is {mix.prior_share:g} and leaves {mix.method} none of {run.steps} steps: lower it, or train longer"
        )
    before = tuple(weight * start * step_tokens for weight in mixture["weights"].values())
    limits = None
    if mix.max_epochs is not None:
        limits = tuple(mix.max_epochs * n * run.model.context for n in rows.values())
        check_supply(mix.max_epochs, sum(map(max, limits, before)), run.trained_tokens)
        for name, limit, drawn in zip(rows, limits, before, strict=True):
            if drawn > limit > 0:
                raise ValueError(
                    f"mix.prior draws {name} {mix.max_epochs * drawn / limit:.2g} times over before {mix.method} begins, and "
                    f"mix.max_epochs is {mix.max_epochs:g}: lower mix.prior_share, or keep more of its documents"
                )
    bounded = Bounded(
        inner=_MAKE[mix.method](mix, run, mixture, domains, seed),
        mixed_K=tuple(n > 0 for n in rows.values()),
        limit_K=limits,
        before_K=before,
        steps=run.steps,
        step_tokens=step_tokens,
    )
    bounded.begin(start)  # raises where it does not fit, before anything is trained
    return bounded


def view(mix: Mix) -> str:
    """A strategy inside the linear mixing framework of Aioli (section 3): its law, its estimate of A, and how p is solved."""
    member = own.load(mix.own.strategy) if mix.method == "own" else _MEMBERS[mix.method]
    return f"law: {member.law}; A: {member.estimate.removeprefix('A ')}; p: {member.solve}"


def online(mix: Mix, run: Run, graph: Mapping[str, Any] | None) -> dict[str, Any]:
    """What decides the weights of a final run while it is trained, but for its documents and its seed: plain JSON data."""
    return {
        "strategy": mix.method,
        "settings": identity(getattr(mix, mix.method)),
        **({"code": own.code(mix.own.strategy)} if mix.method == "own" else {}),
        "start": round(mix.prior_share * run.steps),
        "rows": mix.rows,
        "max_epochs": mix.max_epochs,
        **({} if graph is None else {"graph": graph}),
    }


def check_supply(max_epochs: float, limit: float, tokens: int) -> None:
    """Raises ValueError where all domains together have less than a run draws."""
    if limit < tokens:
        raise ValueError(
            f"mix.max_epochs is {max_epochs:g}, in which all domains together give {limit / tokens:.0%} of the run's tokens: "
            "raise it, keep more documents, or lower final.tokens"
        )


Make = Callable[[Mix, Run, Mapping[str, Any], tuple[str, ...], int], Strategy]


def _aioli(mix: Mix, run: Run, mixture: Mapping[str, Any], domains: tuple[str, ...], seed: int) -> Strategy:
    settings = _of(mix.aioli)
    targets = settings.pop("targets")
    return Aioli(
        **settings,
        n_domains=len(domains),
        steps=run.steps,
        seed=seed,
        targets_K=by_domain("mix.aioli.targets", targets, domains) if targets else None,
    )


def _skillit(mix: Mix, run: Run, mixture: Mapping[str, Any], domains: tuple[str, ...], seed: int) -> Strategy:
    graph = mixture["online"]["graph"]
    for name in domains:
        if name not in graph:
            raise ValueError(
                f"mix.method is skillit, and its graph has no {name}, of which proxies had less than a row: keep more of its "
                "documents, or set swarm.simulate_epochs False"
            )
    graph_KK = tuple(tuple(graph[trained][heldout] for heldout in domains) for trained in domains)
    return SkillIt(**_of(mix.skillit), graph_KK=graph_KK, steps=run.steps)


def _odm(mix: Mix, run: Run, mixture: Mapping[str, Any], domains: tuple[str, ...], seed: int) -> Strategy:
    dynamic, first = run.steps - mixture["online"]["start"], max(mix.odm.warmup, mix.odm.every)
    if first >= dynamic:
        raise ValueError(
            f"mix.odm decides first after {first} steps (warmup {mix.odm.warmup}, every {mix.odm.every}) of {dynamic}: no weight "
            "would change; lower it, or train longer"
        )
    return Odm(**_of(mix.odm), initial_K=_prior(mixture, domains))


def _ado(mix: Mix, run: Run, mixture: Mapping[str, Any], domains: tuple[str, ...], seed: int) -> Strategy:
    dynamic = run.steps - mixture["online"]["start"]
    if mix.ado.refit >= dynamic:
        raise ValueError(
            f"mix.ado.refit is {mix.ado.refit}, and ado decides on {dynamic} steps: no law would be fitted and the weights stay "
            "those of the prior; lower it, or train longer"
        )
    if mix.ado.least * len(domains) >= 1:
        raise ValueError(
            f"mix.ado.least is {mix.ado.least} for {len(domains)} domains, of which none could weigh more than another: set less "
            f"than {1 / len(domains):.2g}"
        )
    return Ado(**_of(mix.ado), prior_K=_prior(mixture, domains), steps=run.steps)


def _own(mix: Mix, run: Run, mixture: Mapping[str, Any], domains: tuple[str, ...], seed: int) -> Strategy:
    return own.make(
        mix.own.strategy,
        mix.own.settings,
        domains=domains,
        prior_K=_prior(mixture, domains),
        steps=run.steps,
        seed=seed,
    )


def _prior(mixture: Mapping[str, Any], domains: tuple[str, ...]) -> tuple[float, ...]:
    return tuple(mixture["weights"][name] for name in domains)


def _of(settings: Any) -> dict[str, Any]:
    return {field.name: getattr(settings, field.name) for field in dataclasses.fields(settings)}


def by_domain(setting: str, given: Mapping[str, float], domains: tuple[str, ...]) -> tuple[float, ...]:
    """What a setting says of each domain, 0 where it does not name it.

    Raises:
      ValueError: it names another, or says 0 of all.
    """
    for name in given:
        if name not in domains:
            near = difflib.get_close_matches(name, domains, n=1)
            raise ValueError(
                f"{setting} names {name}, which is no domain that is drawn from: "
                + (f"did you mean {near[0]}?" if near else f"these are {', '.join(domains)}")
            )
    return tuple(given.get(name, 0.0) for name in domains)


_MEMBERS: dict[str, type[Strategy]] = {"aioli": Aioli, "skillit": SkillIt, "odm": Odm, "ado": Ado}
_MAKE: dict[str, Make] = {"aioli": _aioli, "skillit": _skillit, "odm": _odm, "ado": _ado, "own": _own}
