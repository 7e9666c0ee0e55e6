"""The strategy of a final run, from what the stage `mix` decided for it.

Legend: K domains.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Callable, Mapping
from typing import Any

from jaxprune.config import Mix, Run
from jaxprune.mix.online.aioli import Aioli
from jaxprune.mix.online.bounded import Bounded
from jaxprune.train.strategy import Strategy


def strategy(mix: Mix, run: Run, mixture: Mapping[str, Any], seed: int) -> Strategy:
    """The strategy of `mix.method`, for the domains that the run can draw from.

    Args:
      mix: names the strategy, and has its settings.
      run: whose weights it decides on.
      mixture: of the run in `weights.json`: `rows` of an epoch by domain, `weights` before `online.start`.
      seed: of the run.

    Raises:
      ValueError: the strategy does not fit the run or its domains.
    """
    rows, start = mixture["rows"], mixture["online"]["start"]
    domains = tuple(name for name, n in rows.items() if n > 0)
    if len(domains) < 2:
        raise ValueError(
            f"mix.method is {mix.method}, and {len(domains)} domain has as much as a row: keep more documents, or shorten "
            "final.model.context"
        )
    step_tokens = run.batch_rows * run.model.context
    limits = None
    if mix.max_epochs is not None:
        limits = tuple(mix.max_epochs * n * run.model.context for n in rows.values())
        check_supply(mix.max_epochs, sum(limits), run.trained_tokens)
    bounded = Bounded(
        inner=_MAKE[mix.method](mix, run, domains, seed),
        mixed_K=tuple(n > 0 for n in rows.values()),
        limit_K=limits,
        before_K=tuple(weight * start * step_tokens for weight in mixture["weights"].values()),
        steps=run.steps,
        step_tokens=step_tokens,
    )
    bounded.begin(start)  # raises where it does not fit, before anything is trained
    return bounded


def check_supply(max_epochs: float, limit: float, tokens: int) -> None:
    """Raises ValueError where all domains together have less than a run draws."""
    if limit < tokens:
        raise ValueError(
            f"mix.max_epochs is {max_epochs:g}, in which all domains together give {limit / tokens:.0%} of the run's tokens: "
            "raise it, keep more documents, or lower final.tokens"
        )


def _aioli(mix: Mix, run: Run, domains: tuple[str, ...], seed: int) -> Strategy:
    settings = {field.name: getattr(mix.aioli, field.name) for field in dataclasses.fields(mix.aioli)}
    targets = settings.pop("targets")
    return Aioli(
        **settings,
        n_domains=len(domains),
        steps=run.steps,
        seed=seed,
        targets_K=by_domain("mix.aioli.targets", targets, domains) if targets else None,
    )


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


_MAKE: dict[str, Callable[[Mix, Run, tuple[str, ...], int], Strategy]] = {"aioli": _aioli}
