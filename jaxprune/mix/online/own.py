"""A strategy of one's own, from a file that is no part of the package.

Legend: K domains.
"""

from __future__ import annotations

import hashlib
import importlib.util
import inspect
import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np

from jaxprune.train.strategy import Decision, Observation, Signal, State, Strategy

_ROUNDING = 1e-6  # of a sum of weights


@dataclass(frozen=True, kw_only=True)
class Own(Strategy):
    """A strategy whose decisions are looked at before they are followed."""

    inner: Strategy
    name: str
    """FILE:CLASS, for messages."""
    n_domains: int

    @property
    def signal(self) -> Signal:
        """That of the strategy."""
        return self.inner.signal

    def begin(self, step: int) -> tuple[State, Decision]:
        state, decision = self.inner.begin(step)
        try:
            back = json.loads(json.dumps(state))
        except (TypeError, ValueError) as error:
            raise ValueError(f"{self.name}: its state is not plain JSON data: {error}") from None
        if back != state:
            raise ValueError(
                f"{self.name}: its state {state} comes back from JSON as {back}: use lists, and text as keys"
            )
        if self.signal == "training" and decision.until <= step:
            raise ValueError(
                f"{self.name}: begin decides until step {decision.until}, and knows no training loss before step {step + 1}: "
                "let it decide on a step at least"
            )
        return state, self._checked(decision)

    def update(self, state: State, seen: Observation) -> tuple[State, Decision]:
        state, decision = self.inner.update(state, seen)
        if decision.until <= seen.step:
            raise ValueError(
                f"{self.name}: decides until step {decision.until} after step {seen.step}: let it decide on a step at least"
            )
        return state, self._checked(decision)

    def _checked(self, decision: Decision) -> Decision:
        weights_K = np.asarray(decision.weights_K, np.float64)
        if (
            weights_K.shape != (self.n_domains,)
            or not (weights_K >= 0).all()  # nor NaN
            or abs(weights_K.sum() - 1) > _ROUNDING
        ):
            raise ValueError(
                f"{self.name}: decides on the weights {decision.weights_K}: give {self.n_domains}, none negative, whose sum is 1"
            )
        return Decision(weights_K=weights_K, until=int(decision.until), record=decision.record)


def make(
    named: str,
    settings: Mapping[str, float],
    *,
    domains: tuple[str, ...],
    prior_K: tuple[float, ...],
    steps: int,
    seed: int,
) -> Own:
    """The strategy FILE.py:CLASS, called with `domains`, `prior_K`, `steps` and `seed`, and with its settings.

    Raises:
      ValueError: there is none, or it does not take these.
    """
    kind = load(named)
    given: dict[str, Any] = {"domains": domains, "prior_K": prior_K, "steps": steps, "seed": seed, **settings}
    try:
        inspect.signature(kind).bind(**given)
    except TypeError as error:
        raise ValueError(
            f"{named}: {error}; it is called with {', '.join(given)}, of which mix.own.settings gives "
            f"{', '.join(settings) or 'none'}"
        ) from None
    inner = kind(**given)
    if getattr(inner, "signal", None) not in get_args(Signal):
        raise ValueError(
            f"{named}: its signal is {getattr(inner, 'signal', None)}: set validation or training"
        )
    return Own(inner=inner, name=named, n_domains=len(domains))


def load(named: str) -> type[Strategy]:
    """The class of FILE.py:CLASS.

    Raises:
      ValueError: there is no such file or class, it is no strategy, or lacks a method.
    """
    path, name = _parts(named)
    module_name = f"jaxprune_own_{path.stem}"
    spec = importlib.util.spec_from_file_location(module_name, path)
    assert spec is not None and spec.loader is not None  # of a file whose name ends in .py
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module  # where dataclasses look for it
    spec.loader.exec_module(module)
    found = getattr(module, name, None)
    if not (isinstance(found, type) and issubclass(found, Strategy)):
        raise ValueError(
            f"mix.own.strategy is {named}, and {name} is no subclass of jaxprune.train.strategy.Strategy there"
        )
    if inspect.isabstract(found):
        raise ValueError(f"{named}: it has no {' and no '.join(sorted(found.__abstractmethods__))}")
    return found


def code(named: str) -> str:
    """A digest of the file of FILE.py:CLASS: what was decided by another text is not decided by this one."""
    return hashlib.sha256(_parts(named)[0].read_bytes()).hexdigest()[:16]


def _parts(named: str) -> tuple[Path, str]:
    path, _, name = named.rpartition(":")
    if not path.endswith(".py") or not name:
        raise ValueError(f"mix.own.strategy is {named!r}: name a file and a class in it, as FILE.py:CLASS")
    if not Path(path).is_file():
        raise ValueError(f"mix.own.strategy is {named}, and there is no file {Path(path).resolve()}")
    return Path(path), name
