"""ODM: domains as the arms of a bandit, whose reward is the training loss (Albalak et al., arXiv 2312.02406).

A domain of high loss is one that there is still something to learn from. Algorithm 1, after step t with exploration
rate e_t = min(1 / K, sqrt(ln K / (K t))):

1. R_i <- alpha R_i + (1 - alpha) L_i / p_i for the domains that were drawn,
2. p_i = (1 - K e_t) exp(e_(t-1) R_i) / sum_j exp(e_(t-1) R_j) + e_t.

What the authors released does otherwise: rewards are exp(L_i), not divided by p_i, and p is linear in R (`released`), or
exponential as above (`released_single`). With time `released` draws domains in proportion to their perplexity.

Legend: K domains.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from jaxprune.train.strategy import Decision, Observation, Signal, State, Strategy

Form = Literal["paper", "released", "released_single"]


@dataclass(frozen=True, kw_only=True)
class Odm(Strategy):
    """Settings as in `config.Odm`."""

    initial_K: tuple[float, ...]
    """Weights to begin with."""
    alpha: float = 0.9
    every: int = 1
    warmup: int = 0
    form: Form = "paper"

    signal: ClassVar[Signal] = "training"
    law: ClassVar[str] = "none: what is learnt from a domain is taken to be its loss"
    estimate: ClassVar[str] = "A is diagonal, with the smoothed training losses"
    solve: ClassVar[str] = "exponential weights with exploration (EXP3)"

    def begin(self, step: int) -> tuple[State, Decision]:
        state = {"t": 0, "reward": [0.0] * len(self.initial_K)}
        return state, Decision(weights_K=np.array(self.initial_K), until=step + max(self.every, self.warmup))

    def update(self, state: State, seen: Observation) -> tuple[State, Decision]:
        t = state["t"] + 1
        reward_K = rewarded(np.array(state["reward"]), seen.loss_K, seen.weights_K, self.alpha, self.form)
        weights_K = played(reward_K, t, self.form)
        return {"t": t, "reward": reward_K.tolist()}, Decision(
            weights_K=weights_K, until=seen.step + self.every, record={"reward": reward_K.tolist()}
        )


def rewarded(
    reward_K: np.ndarray, loss_K: np.ndarray, weights_K: np.ndarray, alpha: float, form: Form
) -> np.ndarray:
    """Smoothed rewards after losses, in nats per token, of what the weights drew: NaN for domains that were not drawn,
    which keep their reward."""
    with np.errstate(divide="ignore", over="ignore"):
        gain_K = loss_K / weights_K if form == "paper" else np.exp(loss_K)
    return np.where(np.isfinite(gain_K), alpha * reward_K + (1 - alpha) * gain_K, reward_K)


def exploration(t: int, n_domains: int) -> float:
    """e_t, from t = 1 on."""
    return min(1 / n_domains, math.sqrt(math.log(n_domains) / (n_domains * t)))


def played(reward_K: np.ndarray, t: int, form: Form) -> np.ndarray:
    """Weights after step t."""
    n_domains = len(reward_K)
    explore = exploration(t, n_domains)
    if form == "released":
        total = reward_K.sum()
        share_K = reward_K / total if total > 0 else np.full(n_domains, 1 / n_domains)
    else:
        share_K = np.exp(exploration(max(t - 1, 1), n_domains) * (reward_K - reward_K.max()))
        share_K /= share_K.sum()
    return (1 - n_domains * explore) * share_K + explore
