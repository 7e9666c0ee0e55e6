"""A strategy of one's own, from a file that is no part of the package.

Legend: K domains.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import math
import sys
import traceback
import types
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
    steps: int
    """Of the run."""

    @property
    def signal(self) -> Signal:
        """That of the strategy."""
        return self.inner.signal

    def begin(self, step: int) -> tuple[State, Decision]:
        state, decision = self._checked("begin", self.inner.begin(step), step)
        if self.signal == "training" and decision.until <= step:
            raise ValueError(
                f"{self.name}: begin decides until step {decision.until}, and knows no training loss before step {step + 1}: "
                "let it decide on a step at least"
            )
        return state, decision

    def update(self, state: State, seen: Observation) -> tuple[State, Decision]:
        state, decision = self._checked("update", self.inner.update(state, seen), seen.step)
        if decision.until <= seen.step:
            raise ValueError(
                f"{self.name}: decides until step {decision.until} after step {seen.step}: let it decide on a step at least"
            )
        return state, decision

    def _checked(self, method: str, given: object, step: int) -> tuple[State, Decision]:
        """What the strategy gave, as a run that is killed would find it in its checkpoint.

        What it records stands under `own` in the history, whose other fields are the run's.
        """
        if not (isinstance(given, tuple) and len(given) == 2 and isinstance(given[1], Decision)):
            raise ValueError(f"{self.name}: {method} gives {given!r}: let it give a state and a Decision")
        state, decision = given
        weights_K = np.asarray(decision.weights_K, np.float64)
        if (
            weights_K.shape != (self.n_domains,)
            or not (weights_K >= 0).all()  # nor NaN
            or abs(weights_K.sum() - 1) > _ROUNDING
        ):
            raise ValueError(
                f"{self.name}: decides on the weights {decision.weights_K}: give {self.n_domains}, none negative, whose sum is 1"
            )
        until = self.steps if decision.until == math.inf else decision.until
        if not float(until).is_integer() or until < step:
            raise ValueError(
                f"{self.name}: {method} decides until step {until} at step {step}: give a whole number that is not before it"
            )
        record = {"own": self._plain("record", decision.record)} if decision.record else {}
        return self._plain("state", state), Decision(weights_K=weights_K, until=int(until), record=record)

    def _plain(self, what: str, data: Any) -> Any:
        try:
            back = json.loads(json.dumps(data, allow_nan=False))
        except (TypeError, ValueError) as error:
            raise ValueError(f"{self.name}: its {what} {data} is not plain JSON data: {error}") from None
        if back != data:
            raise ValueError(
                f"{self.name}: its {what} {data} comes back from JSON as {back}: use lists, and text as keys"
            )
        return back


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
    of_run: dict[str, Any] = {"domains": domains, "prior_K": prior_K, "steps": steps, "seed": seed}
    if taken := sorted(of_run.keys() & settings.keys()):
        raise ValueError(f"mix.own.settings gives {', '.join(taken)}, which the run says: name it otherwise")
    given = of_run | dict(settings)
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
    return Own(inner=inner, name=named, n_domains=len(domains), steps=steps)


def load(named: str) -> type[Strategy]:
    """The class of FILE.py:CLASS.

    Raises:
      ValueError: there is no such file or class, it is no strategy, or lacks a method.
    """
    path, name = _parts(named)
    module = types.ModuleType(f"jaxprune_own_{path.stem}")
    module.__file__ = str(path)
    sys.modules[module.__name__] = module  # where dataclasses look for it
    try:  # the text itself, whose digest `code` takes, and not bytecode that may be of another
        exec(compile(path.read_bytes(), str(path), "exec"), module.__dict__)
    except SyntaxError as error:
        raise ValueError(f"{error.filename}, line {error.lineno}: {error.msg}") from error
    except Exception as error:  # whatever a user's program raises
        lines = [
            line
            for frame, line in traceback.walk_tb(error.__traceback__)
            if frame.f_code.co_filename == str(path)
        ]
        raise ValueError(f"{path}, line {lines[-1]}: {type(error).__name__}: {error}") from error
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
