"""AutoScale (2407.20177): a domain's tokens count by how many there are, whatever the others are.

Legend: N rows, K domains, P coefficients.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from jaxprune.mix.laws.exponential import ridge
from jaxprune.mix.laws.parametric import Curve, Form, ParametricLaw, Points
from jaxprune.mix.table import MixtureTable

_EXPONENTS = (0.05, 0.2, 0.6)  # starts
_FLOORS = (0.1, 0.5, 0.8)  # starts, as shares of the least loss


@dataclass(frozen=True, kw_only=True)
class AutoScale(ParametricLaw):
    """L(n) = c + sum_j (n0_j + n_j)^-gamma_j, with n_j the tokens of domain j.

    n is in units of the most tokens in the table over the number of domains; n0_j is what the other domains already
    teach of j. The form in mixtures, n_j = r_j D, is Olmix's (2602.12237).
    """

    name = "autoscale"
    source = "2407.20177"

    def forms(self, table: MixtureTable) -> list[Form]:
        k = len(table.domains)
        bounds = {"log_c": (-10, 5)} | {f"log_n0[{domain}]": (-12, 12) for domain in table.domains}
        bounds |= {f"gamma[{domain}]": (1e-3, 3) for domain in table.domains}
        lower_P, upper_P = np.array(list(bounds.values()), float).T
        return [AutoScaleForm(names=tuple(bounds), lower_P=lower_P, upper_P=upper_P, n_domains=k)]


@dataclass(frozen=True, kw_only=True)
class AutoScaleForm(Form):
    """Coefficients: log c, then log n0 and gamma of each domain."""

    n_domains: int

    def curve(self, theta_P: np.ndarray, points: Points) -> Curve:
        k = self.n_domains
        floor, n0_K, gamma_K = np.exp(theta_P[0]), np.exp(theta_P[1 : k + 1]), theta_P[k + 1 :]
        n_NK = n0_K + k * points.weights_NK * np.exp(points.x_N)[:, None]
        log_n_NK = np.log(n_NK)
        parts_NK = np.exp(-gamma_K * log_n_NK)
        loss_N = floor + parts_NK.sum(axis=1)
        columns = [np.full((len(loss_N), 1), floor), -gamma_K * parts_NK / n_NK * n0_K, -parts_NK * log_n_NK]
        return Curve(np.log(loss_N), np.concatenate(columns, axis=1) / loss_N[:, None])

    def starts(self, points: Points, loss_N: np.ndarray) -> Sequence[np.ndarray]:
        # Where a domain is absent n0^-gamma is what it costs, so that a plane through the losses says which count.
        cost_K = np.maximum(-ridge(points.weights_NK, loss_N - loss_N.mean()), 0)
        starts = []
        for share in _FLOORS:
            for gamma in _EXPONENTS:
                level = (1 - share) * loss_N.min() / self.n_domains
                log_n0_K = -np.log(level + cost_K / self.n_domains) / gamma
                starts.append(
                    np.concatenate([[np.log(share * loss_N.min())], log_n0_K, np.full(self.n_domains, gamma)])
                )
        return starts

    def prior(self) -> tuple[np.ndarray, np.ndarray]:
        rows_AP = np.zeros((self.n_domains, len(self.names)))
        rows_AP[:, self.n_domains + 1 :] = np.eye(self.n_domains) / 0.5
        return rows_AP, np.full(self.n_domains, 0.2 / 0.5)

    def shown(self, theta_P: np.ndarray) -> dict[str, float]:
        return {
            name.removeprefix("log_"): float(np.exp(value) if name.startswith("log_") else value)
            for name, value in zip(self.names, theta_P.tolist(), strict=True)
        }


def scaled(tokens_K: np.ndarray, more_tokens_K: np.ndarray) -> np.ndarray:
    """The best tokens of each domain one step further, from the best at two scales (their section 4).

    Each domain grows by the factor that it grew by: n3 = n2 n2 / n1. Proportions are n3 over its sum.

    Raises:
      ValueError: a number is not above 0.
    """
    tokens_K, more_tokens_K = np.asarray(tokens_K, float), np.asarray(more_tokens_K, float)
    if not ((tokens_K > 0).all() and (more_tokens_K > 0).all()):
        raise ValueError(
            f"tokens are {tokens_K} and {more_tokens_K}: give numbers above 0 for every domain, at two scales"
        )
    return more_tokens_K**2 / tokens_K
