"""What the corpus allows a strategy: no domain without a row, and none beyond its epochs.

Legend: K domains.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from jaxprune.mix import caps
from jaxprune.train.strategy import Decision, Observation, Signal, State, Strategy


@dataclass(frozen=True, kw_only=True)
class Bounded(Strategy):
    """A strategy over the domains that can be drawn from, with its weights cut to what is left of each.

    Weights that are cut go to the other domains in proportion. The inner strategy keeps its own: it is told the
    shares that were drawn.
    """

    inner: Strategy
    mixed_K: tuple[bool, ...]
    """Domains of which there is a row; `inner` knows only these."""
    limit_K: tuple[float, ...] | None
    """Tokens that may be drawn from each domain in the whole run; None: any number."""
    before_K: tuple[float, ...]
    """Tokens drawn from each domain before the strategy begins."""
    steps: int
    """Of the run."""
    step_tokens: int
    """Tokens of a step."""

    @property
    def signal(self) -> Signal:
        """That of the strategy."""
        return self.inner.signal

    def begin(self, step: int) -> tuple[State, Decision]:
        inner, decision = self.inner.begin(step)
        return self._widened(inner, decision, np.array(self.before_K), step, self._lag)

    def update(self, state: State, seen: Observation) -> tuple[State, Decision]:
        mixed_K = np.array(self.mixed_K)
        own = replace(
            seen,
            loss_K=seen.loss_K[mixed_K],
            tokens_K=seen.tokens_K[mixed_K],
            drawn_K=seen.drawn_K[mixed_K],
            weights_K=seen.weights_K[mixed_K],
        )
        inner, decision = self.inner.update(state["inner"], own)
        lag = self._lag
        # The step that is drawn by then as the last decision said.
        drawn_K = seen.drawn_K + lag * self.step_tokens * np.array(state["weights"])
        return self._widened(inner, decision, drawn_K, seen.step + lag, lag)

    @property
    def _lag(self) -> int:
        """Steps after `until` for which a decision still holds, since the next one comes that late."""
        return 1 if self.signal == "training" else 0

    def _widened(
        self, inner: State, decision: Decision, drawn_K: np.ndarray, start: int, lag: int
    ) -> tuple[State, Decision]:
        weights_K = np.zeros(len(self.mixed_K))
        weights_K[np.array(self.mixed_K)] = decision.weights_K
        n_steps = min(decision.until + lag, self.steps) - start
        record = decision.record
        if self.limit_K is not None and n_steps > 0:
            room_K = np.array(self.limit_K) - drawn_K
            cap_K = np.clip(room_K / (n_steps * self.step_tokens), 0.0, 1.0)
            if (weights_K > cap_K).any():
                short = int((weights_K > cap_K).sum())
                weights_K, record = _cut(weights_K, cap_K), record | {"cut": short}
        return {"inner": inner, "weights": weights_K.tolist()}, replace(
            decision, weights_K=weights_K, record=record
        )


def _cut(weights_K: np.ndarray, cap_K: np.ndarray) -> np.ndarray:
    """The weights under the caps. Where those of the weighted domains are too little, all with room share the rest."""
    open_K = np.where(cap_K > 0, np.maximum(weights_K, 1e-12), 0.0)
    cap_K = cap_K / min(1.0, cap_K.sum())  # a run's last rows, to rounding
    return caps.nearest(open_K[None], cap_K)[0]
