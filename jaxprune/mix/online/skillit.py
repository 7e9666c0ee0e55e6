"""Skill-It: a graph of which domains teach which, learnt beforehand, times what there is still to learn (Chen et al.,
arXiv 2307.14430), as a baseline of Aioli (arXiv 2411.05735, section 4).

1. A run on each domain j alone gives G_ji, the share of the held-out loss of i that it took away. It is the transpose of
   the A of the other members: rows are trained on.
2. p_0 ~ exp(eta sum_i G_ji); then, every so many steps, p_j ~ exp(eta sum_i G_ji S_i), where S_i sums the held-out losses
   of i at the last `window` evaluations. p does not follow from the p before it.

The losses are in the order of the domains that the graph has, whatever their names; the one that training ends a round
with counts at once.

Legend: K domains, E evaluations.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from jaxprune.train.strategy import Decision, Observation, Signal, State, Strategy


@dataclass(frozen=True, kw_only=True)
class SkillIt(Strategy):
    """Settings as in `config.SkillIt`."""

    graph_KK: tuple[tuple[float, ...], ...]
    """G: rows are trained on, columns held out."""
    steps: int
    """Of the whole run."""
    rounds: int = 10
    """Times that p changes."""
    evaluations: int = 2
    """Of the held-out losses in a round."""
    eta: float = 0.2
    window: int = 3

    signal: ClassVar[Signal] = "validation"
    law: ClassVar[str] = "linear dynamic"
    estimate: ClassVar[str] = "A_ij = G_ji L_i: a graph of runs on single domains, times the present losses"
    solve: ClassVar[str] = "exponentiated gradient from uniform"

    def begin(self, step: int) -> tuple[State, Decision]:
        """Raises ValueError where there are more evaluations than steps."""
        dynamic, wanted = self.steps - step, self.rounds * self.evaluations
        if wanted > dynamic:
            raise ValueError(
                f"mix.skillit: {self.rounds} rounds x {self.evaluations} evaluations are more than the {dynamic} steps "
                "of the run: lower one, or train longer"
            )
        weights_K = weights(np.array(self.graph_KK), np.ones((1, len(self.graph_KK))), self.eta)
        state = {"start": step, "evaluated": 0, "losses": [], "weights": weights_K.tolist()}
        return state, Decision(weights_K=weights_K, until=self._after(state))

    def update(self, state: State, seen: Observation) -> tuple[State, Decision]:
        losses = [*state["losses"], seen.loss_K.tolist()][-self.window :]
        after = state | {"evaluated": state["evaluated"] + 1, "losses": losses}
        if after["evaluated"] % self.evaluations == 0:
            after["weights"] = weights(np.array(self.graph_KK), np.array(losses), self.eta).tolist()
        return after, Decision(weights_K=np.array(after["weights"]), until=self._after(after))

    def _after(self, state: State) -> int:
        dynamic = self.steps - state["start"]
        return state["start"] + dynamic * (state["evaluated"] + 1) // (self.rounds * self.evaluations)


def weights(graph_KK: np.ndarray, loss_EK: np.ndarray, eta: float) -> np.ndarray:
    """p_j ~ exp(eta sum_i G_ji S_i), S the sum of the losses."""
    gain_K = eta * graph_KK @ loss_EK.sum(axis=0)
    raised_K = np.exp(gain_K - gain_K.max())
    return raised_K / raised_K.sum()


def graph_of(before_KK: np.ndarray, after_KK: np.ndarray) -> np.ndarray:
    """G from runs on single domains: held-out losses (columns) before and after training on a domain (rows), nats."""
    return (before_KK - after_KK) / before_KK
