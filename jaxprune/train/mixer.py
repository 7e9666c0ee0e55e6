"""Online mixing inside a run: asks its strategy when it is due, and hands on the stages that it decides on.

A decision holds from a step that the strategy's signal fixes, whatever is prefetched: after held-out losses from the
next step on; after training losses from the step after that, since a step's losses are read while the next one is
computed.

Legend: K domains.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxprune import cluster
from jaxprune.data.mixture import Stage
from jaxprune.train.metrics import Lines
from jaxprune.train.step import StepMetrics
from jaxprune.train.strategy import Decision, Observation, State, Strategy

HISTORY = "mixing.jsonl"
Measure = Callable[[], np.ndarray]
"""Mean held-out NLL of each domain's slice under the present parameters, nats per token: float64 [K]."""


class Mixer:
    """The strategy of one run, and what it has seen since it last decided.

    `folder/mixing.jsonl` gets a line for each decision: `step` (steps done), `start` and `until` (it is for the steps
    after start, and until is the last of them), `weights`; `loss` and `shares` by domain of what led to it; `seconds`
    that it took, and what the strategy says of it.
    """

    def __init__(
        self,
        strategy: Strategy,
        *,
        domains: tuple[str, ...],
        steps: int,
        measure: Measure,
        folder: Path,
        step: int,
        saved: dict[str, Any] | None,
    ) -> None:
        """Goes on after `step` of `steps` from what `state` has saved; None: has yet to begin.

        The strategy sees the domains in the order of `domains`, whatever their names.
        """
        self._strategy, self._domains, self._steps, self._measure = strategy, domains, steps, measure
        self._is_trained_on = strategy.signal == "training"
        self._lines = Lines(folder / HISTORY, -1 if saved is None else step) if cluster.is_first() else None
        saved = saved or {}
        self._state: State = saved.get("state", {})
        self._start: int = saved.get("start", 0)
        self._until: int = saved.get("until", 0)
        self._nll_K = np.array(saved.get("nll", [0.0] * len(domains)))
        self._tokens_K = np.array(saved.get("tokens", [0.0] * len(domains)))
        self._drawn_K = np.array(saved.get("drawn", [0.0] * len(domains)))
        self._weighed_K = np.array(
            saved.get("weighed", [0.0] * len(domains))
        )  # weights of these steps, summed
        self._stages: list[list[Any]] = saved.get(
            "stages", []
        )  # start and weights: of the step before, and from there on
        self.seconds: float = saved.get("seconds", 0.0)
        """Spent on decisions since the run began, the losses that they need included."""

    def state(self) -> dict[str, Any]:
        """Plain data to go on from."""
        return {
            "state": self._state,
            "start": self._start,
            "until": self._until,
            "nll": self._nll_K.tolist(),
            "tokens": self._tokens_K.tolist(),
            "drawn": self._drawn_K.tolist(),
            "weighed": self._weighed_K.tolist(),
            "stages": self._stages,
            "seconds": self.seconds,
        }

    def begin(self, start: int) -> tuple[Stage, ...]:
        """The stage from `start` on, the first step that the strategy decides on; none where it has to see the losses
        there first, which `due` then asks for.

        Raises:
          ValueError: the strategy does not fit the run.
        """
        began = time.time()
        self._start = start
        decision = self._take(lambda: self._strategy.begin(start))
        if decision.until > start:
            return (self._note(0, start, decision, None, began),)  # before the first step of the run
        return (self.decide(0),) if start == 0 else ()

    def observe(self, step: int, metrics: StepMetrics) -> Stage | None:
        """Counts a step's tokens and losses; where training losses are what the strategy waits for, its decision."""
        metrics = jax.device_get(metrics)
        self._drawn_K += np.asarray(metrics.tokens_K, np.float64)
        if step <= self._start:  # of what the run is trained on before the strategy begins
            return None
        self._nll_K += np.asarray(metrics.nll_sum_K, np.float64)
        self._tokens_K += np.asarray(metrics.tokens_K, np.float64)
        self._weighed_K += next(weights for start, weights in reversed(self._stages) if start < step)
        if not self._is_trained_on or step != self._until or step + 1 >= self._steps:
            return None
        began = time.time()
        with np.errstate(invalid="ignore"):
            loss_K = self._nll_K / self._tokens_K
        return self._ask(step, step + 1, loss_K, began)

    def due(self, step: int) -> bool:
        """Whether the strategy waits for the held-out losses after `step`."""
        return not self._is_trained_on and step == self._until and step < self._steps

    def decide(self, step: int) -> Stage:
        """Measures the losses after `step`; the stage from there on."""
        began = time.time()
        return self._ask(step, step, self._measure(), began)

    def _ask(self, step: int, start: int, loss_K: np.ndarray, began: float) -> Stage:
        seen = Observation(
            step=step,
            loss_K=loss_K,
            tokens_K=self._tokens_K.copy(),
            drawn_K=self._drawn_K.copy(),
            weights_K=self._weighed_K / max(self._weighed_K.sum(), 1.0),
        )
        decision = self._take(lambda: self._strategy.update(self._state, seen))
        assert decision.until > step, "a strategy that has seen the losses decides on at least one step"
        self._nll_K[:], self._tokens_K[:], self._weighed_K[:] = 0.0, 0.0, 0.0
        return self._note(step, start, decision, seen, began)

    def _take(self, decide: Callable[[], tuple[State, Decision]]) -> Decision:
        """The decision of process 0, which all follow: the last bits of algebra may differ between hosts."""

        def decided() -> dict[str, Any]:
            state, decision = decide()
            return {
                "state": state,
                "weights": decision.weights_K.tolist(),
                "until": decision.until,
                "record": decision.record,
            }

        plain = cluster.alone(decided)
        self._state, self._until = plain["state"], plain["until"]
        return Decision(weights_K=np.array(plain["weights"]), until=plain["until"], record=plain["record"])

    def _note(
        self, step: int, start: int, decision: Decision, seen: Observation | None, began: float
    ) -> Stage:
        stage = Stage(start=start, weights=tuple(decision.weights_K))
        self._stages = [*self._stages[-1:], [start, list(stage.weights)]]
        seconds = time.time() - began
        self.seconds += seconds
        if self._lines is not None:
            line: dict[str, Any] = {"step": step, "start": start, "until": min(decision.until, self._steps)}
            line["weights"] = self._named(np.array(stage.weights))
            if seen is not None:
                line["loss"] = self._named(seen.loss_K)
                line["shares"] = self._named(seen.tokens_K / max(seen.tokens_K.sum(), 1.0))
            self._lines.write(line | decision.record | {"seconds": seconds})
        return stage

    def _named(self, values_K: np.ndarray) -> dict[str, float | None]:
        return {
            name: None if math.isnan(value) else value
            for name, value in zip(self._domains, values_K.tolist(), strict=True)
        }

    def cost(self, stepping: float) -> dict[str, float]:
        """Seconds spent on decisions, and their share of those and the seconds spent stepping."""
        return {"seconds": self.seconds, "share": self.seconds / max(self.seconds + stepping, 1e-9)}

    def close(self) -> None:
        """Closes the history."""
        if self._lines is not None:
            self._lines.close()
