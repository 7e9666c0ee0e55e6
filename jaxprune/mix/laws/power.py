"""The law along one run (ADO, 2410.11820): each target falls with training tokens, whatever the mixture.

Legend: N rows, P coefficients.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from jaxprune.mix.laws.law import varies
from jaxprune.mix.laws.parametric import Curve, Form, ParametricLaw, Points
from jaxprune.mix.table import MixtureTable

_EXPONENTS = (0.1, 0.3, 0.6, 1.0, 1.6)  # starts


@dataclass(frozen=True, kw_only=True)
class Power(ParametricLaw):
    """L_k(n) = e_k + b_k n^-a_k (ADO, section 3), with n relative to the most tokens in the table.

    Meant for the checkpoints of one run, to say where it will end. A residual counts in proportion to n^2, and a has
    a wide prior (0.5, standard deviation 0.3): no run follows the law from its warm-up on, and on real tables both
    bring the predicted end nearer.
    """

    name = "power"
    source = "2410.11820"
    delta: float = 1e-3  # as ADO's: along one run there is no misfit between mixtures

    def forms(self, table: MixtureTable) -> list[Form]:
        if not varies(table.tokens_R):
            raise ValueError("power: all rows have the same tokens: give several checkpoints of a run")
        lower_P, upper_P = np.array([-10, -20, 1e-3], float), np.array([5, 5, 5], float)
        return [PowerForm(names=("log_e", "log_b", "a"), lower_P=lower_P, upper_P=upper_P)]


@dataclass(frozen=True, kw_only=True)
class PowerForm(Form):
    """Coefficients: log e, log b, a."""

    def curve(self, theta_P: np.ndarray, points: Points) -> Curve:
        log_e, log_b, a = theta_P
        falling_N = log_b - a * points.x_N
        log_loss_N = np.logaddexp(log_e, falling_N)
        share_N = np.exp(falling_N - log_loss_N)
        return Curve(log_loss_N, np.stack([1 - share_N, share_N, -share_N * points.x_N], axis=1))

    def starts(self, points: Points, loss_N: np.ndarray) -> Sequence[np.ndarray]:
        starts = []
        for a in _EXPONENTS:
            design_N2 = np.stack([np.ones_like(loss_N), np.exp(-a * points.x_N)], axis=1)
            e, b = np.linalg.lstsq(design_N2 / loss_N[:, None], np.ones_like(loss_N))[0]
            starts.append(np.array([np.log(max(e, 1e-2)), np.log(max(b, 1e-3)), a]))
        return starts

    def doubts(self, theta_P: np.ndarray, points: Points) -> list[str]:
        n_mixtures = len(np.unique(points.weights_NK.round(6), axis=0))
        return [f"{n_mixtures} mixtures are pooled: fit the checkpoints of one run"] if n_mixtures > 1 else []

    def importance(self, points: Points) -> np.ndarray:
        return np.exp(2 * points.x_N)

    def prior(self) -> tuple[np.ndarray, np.ndarray]:
        return np.array([[0.0, 0.0, 1 / 0.3]]), np.array([0.5 / 0.3])

    def shown(self, theta_P: np.ndarray) -> dict[str, float]:
        log_e, log_b, a = theta_P.tolist()
        return {"e": float(np.exp(log_e)), "b": float(np.exp(log_b)), "a": a}
