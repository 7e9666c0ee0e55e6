"""Data mixing laws (2403.16952): the loss of a domain is exponential in a linear function of the mixture.

Legend: N rows, K domains, P coefficients.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from jaxprune.mix.laws.law import varies
from jaxprune.mix.laws.parametric import Curve, Form, ParametricLaw, Points
from jaxprune.mix.table import MixtureTable

_FLOORS = (0.2, 0.5, 0.7, 0.85, 0.95, 0.99)  # starts, as shares of the least loss
_EXPONENTS = (0.3, 0.8)  # starts


@dataclass(frozen=True, kw_only=True)
class Exponential(ParametricLaw):
    """L_i(r) = c_i + exp(t_i . r), and + exp(u_i . r) s^-b_i where tokens s vary.

    The paper's factor k_i is redundant, since k exp(t . r) = exp((t + log k) . r) on the simplex. t_ij is the log of
    what a mixture of domain j alone leaves above the floor. The term in tokens is ours: the paper extrapolates along
    the training of each run first (`nested.py`); the product exp(t . r) (B s^-b + C) would let the floor scale
    with the mixture, which real tables contradict.

    Attributes:
      prior_sd: of t_ij around their mean over j; what decides where runs are fewer than coefficients.
    """

    name = "exponential"
    source = "2403.16952"
    prior_sd: float = 10.0

    def forms(self, table: MixtureTable) -> list[Form]:
        return [ExponentialForm.of(table.domains, varies(table.tokens_R), self.prior_sd)]


@dataclass(frozen=True, kw_only=True)
class ExponentialForm(Form):
    """Coefficients: log c and t of each domain, then u of each domain and b where tokens vary."""

    n_domains: int
    in_volume: bool
    prior_sd: float

    @classmethod
    def of(cls, domains: tuple[str, ...], in_volume: bool, prior_sd: float) -> ExponentialForm:
        bounds = {"log_c": (-10, 5)} | {f"t[{domain}]": (-15, 10) for domain in domains}
        if in_volume:
            bounds |= {f"u[{domain}]": (-15, 10) for domain in domains} | {"b": (1e-3, 5)}
        lower_P, upper_P = np.array(list(bounds.values()), float).T
        return cls(
            names=tuple(bounds),
            lower_P=lower_P,
            upper_P=upper_P,
            n_domains=len(domains),
            in_volume=in_volume,
            prior_sd=prior_sd,
        )

    def curve(self, theta_P: np.ndarray, points: Points) -> Curve:
        k = self.n_domains
        mixed_N = np.exp(points.weights_NK @ theta_P[1 : k + 1])
        floor = np.exp(theta_P[0])
        loss_N = floor + mixed_N
        columns = [np.full((len(loss_N), 1), floor), mixed_N[:, None] * points.weights_NK]
        if self.in_volume:
            b = theta_P[-1]
            falling_N = np.exp(points.weights_NK @ theta_P[k + 1 : 2 * k + 1] - b * points.x_N)
            loss_N = loss_N + falling_N
            columns += [falling_N[:, None] * points.weights_NK, -(falling_N * points.x_N)[:, None]]
        return Curve(np.log(loss_N), np.concatenate(columns, axis=1) / loss_N[:, None])

    def starts(self, points: Points, loss_N: np.ndarray) -> Sequence[np.ndarray]:
        late_N = points.x_N >= points.x_N.max() - 0.01
        weights_NK, late_loss_N = points.weights_NK[late_N], loss_N[late_N]
        static = []
        for share in _FLOORS:
            c = share * late_loss_N.min()
            static.append(np.concatenate([[np.log(c)], ridge(weights_NK, np.log(late_loss_N - c))]))
        if not self.in_volume:
            return static
        starts = []
        for theta_P in static[::2]:
            settled_N = np.exp(theta_P[0]) + np.exp(points.weights_NK @ theta_P[1:])
            for b in _EXPONENTS:
                # What is left to learn at x = 0 counts among the settled part: the fit moves it.
                rest_N = np.maximum(loss_N - settled_N, 1e-3) / np.maximum(np.expm1(-b * points.x_N), 1e-2)
                u_K = np.full(self.n_domains, np.log(np.median(rest_N[~late_N])))
                starts.append(np.concatenate([theta_P, u_K, [b]]))
        return starts

    def prior(self) -> tuple[np.ndarray, np.ndarray]:
        k = self.n_domains
        deviations_KK = (np.eye(k) - 1 / k) / self.prior_sd
        rows_AP = np.zeros((k * (1 + self.in_volume), len(self.names)))
        rows_AP[:k, 1 : k + 1] = deviations_KK
        if self.in_volume:
            rows_AP[k:, k + 1 : 2 * k + 1] = deviations_KK
        return rows_AP, np.zeros(len(rows_AP))

    def shown(self, theta_P: np.ndarray) -> dict[str, float]:
        named = dict(zip(self.names, theta_P.tolist(), strict=True))
        return {"c": float(np.exp(named.pop("log_c")))} | named


def ridge(weights_NK: np.ndarray, y_N: np.ndarray, strength: float = 1e-3) -> np.ndarray:
    """Coefficients [K] of the plane y = w . t through mixtures, drawn a little to their mean."""
    mean = y_N.mean()
    k = weights_NK.shape[1]
    gram_KK = weights_NK.T @ weights_NK + strength * len(y_N) / k * np.eye(k)
    return mean + np.linalg.solve(gram_KK, weights_NK.T @ (y_N - mean))
