"""The laws of Shukor et al. (2507.09404): each domain adds to what is learnt, with an exponent of its own.

Legend: N rows, K domains, P coefficients.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from jaxprune.mix.laws.law import varies
from jaxprune.mix.laws.parametric import Curve, Form, ParametricLaw, Points
from jaxprune.mix.table import MixtureTable

_FLOORS = (0.05, 0.3, 0.6, 0.85)  # starts, as shares of the least loss
_GAMMAS = (0.1, 0.4)  # starts
_EXPONENTS = (0.3, 0.8)  # starts
_TINY = 1e-300


@dataclass(frozen=True, kw_only=True)
class Reciprocal(ParametricLaw):
    """additive: L(h, D, N) = E + 1 / sum_j C_j h_j^gamma_j + B D^-beta + A N^-alpha.

    joint: B^(h) and A^(h) in place of B and A, with B^(h) = (sum_j CB_j h_j)^gammaB and A^(h) likewise: then the best
    mixture moves with scale. The terms in tokens D and parameters N are there where these vary, both relative to the
    most in the table.

    Attributes:
      form: additive or joint.
      prior_sd: standard deviations of gamma_j and of log C_j around their means over j. With runs fewer than
        coefficients the exponents all but agree, which on real tables predicts better than to let each go its way.
    """

    source = "2507.09404"
    knows_params: ClassVar[bool] = True
    form: Literal["additive", "joint"] = "additive"
    prior_sd: tuple[float, float] = (0.15, 2.0)

    @property
    def name(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        return "joint" if self.form == "joint" else "reciprocal"

    def forms(self, table: MixtureTable) -> list[Form]:
        scales = tuple(
            symbol for symbol, values_R in (("B", table.tokens_R), ("A", table.params_R)) if varies(values_R)
        )
        return [ReciprocalForm.of(table.domains, scales, self.form == "joint", self.prior_sd)]


@dataclass(frozen=True, kw_only=True)
class ReciprocalForm(Form):
    """Coefficients: log E, log C and gamma of each domain, then for each scale log B and beta (joint: log CB of each
    domain, gammaB and beta)."""

    n_domains: int
    scales: tuple[str, ...]
    joint: bool
    prior_sd: tuple[float, float]

    @classmethod
    def of(
        cls, domains: tuple[str, ...], scales: tuple[str, ...], joint: bool, prior_sd: tuple[float, float]
    ) -> ReciprocalForm:
        bounds: dict[str, tuple[float, float]] = {"log_E": (-10, 5)}
        bounds |= {f"log_C[{domain}]": (-15, 8) for domain in domains}
        bounds |= {f"gamma[{domain}]": (1e-3, 3) for domain in domains}
        for scale in scales:
            if joint:
                bounds |= {f"log_C{scale}[{domain}]": (-15, 15) for domain in domains} | {
                    f"gamma{scale}": (-3, 3)
                }
            else:
                bounds |= {f"log_{scale}": (-20, 5)}
            bounds |= {"beta" if scale == "B" else "alpha": (1e-3, 5)}
        lower_P, upper_P = np.array(list(bounds.values()), float).T
        return cls(
            names=tuple(bounds), lower_P=lower_P, upper_P=upper_P, n_domains=len(domains), scales=scales, joint=joint, prior_sd=prior_sd
        )  # fmt: skip

    def curve(self, theta_P: np.ndarray, points: Points) -> Curve:
        k = self.n_domains
        floor, c_K, gamma_K = np.exp(theta_P[0]), np.exp(theta_P[1 : k + 1]), theta_P[k + 1 : 2 * k + 1]
        log_w_NK = np.log(np.maximum(points.weights_NK, _TINY))
        parts_NK = c_K * np.exp(gamma_K * log_w_NK)
        mixed_N = 1 / parts_NK.sum(axis=1)
        slope_NK = -(mixed_N**2)[:, None] * parts_NK
        loss_N = floor + mixed_N
        columns = [np.full((len(loss_N), 1), floor), slope_NK, slope_NK * log_w_NK]
        place = 2 * k + 1
        for scale in self.scales:
            along_N = points.x_N if scale == "B" else points.z_N
            if self.joint:
                parts_NK = np.exp(theta_P[place : place + k]) * points.weights_NK
                gamma, exponent = theta_P[place + k : place + k + 2]
                total_N = parts_NK.sum(axis=1)
                falling_N = np.exp(gamma * np.log(total_N) - exponent * along_N)
                columns += [
                    (gamma * falling_N / total_N)[:, None] * parts_NK,
                    (falling_N * np.log(total_N))[:, None],
                ]
                place += k + 2
            else:
                log_b, exponent = theta_P[place : place + 2]
                falling_N = np.exp(log_b - exponent * along_N)
                columns.append(falling_N[:, None])
                place += 2
            columns.append(-(falling_N * along_N)[:, None])
            loss_N = loss_N + falling_N
        return Curve(np.log(loss_N), np.concatenate(columns, axis=1) / loss_N[:, None])

    def starts(self, points: Points, loss_N: np.ndarray) -> Sequence[np.ndarray]:
        late_N = (points.x_N >= points.x_N.max() - 0.01) & (points.z_N >= points.z_N.max() - 0.01)
        late_N = late_N if late_N.any() else np.ones(len(loss_N), bool)
        weights_NK, late_loss_N = points.weights_NK[late_N], loss_N[late_N]
        k = self.n_domains
        starts = []
        for share in _FLOORS:
            e = share * late_loss_N.min()
            for gamma in _GAMMAS:
                powered_NK = weights_NK**gamma
                c_K = _positive(powered_NK, 1 / (late_loss_N - e))
                for exponent in _EXPONENTS if self.scales else (0.0,):
                    theta = [[np.log(e)], np.log(c_K), np.full(k, gamma)]
                    for scale in self.scales:
                        along_N = points.x_N if scale == "B" else points.z_N
                        early_N = along_N <= np.quantile(along_N, 0.2)
                        drop = max(float(np.median(loss_N[early_N]) - np.median(late_loss_N)), 1e-2)
                        log_b = np.log(drop / max(np.expm1(-exponent * float(along_N[early_N].mean())), 1e-2))
                        theta.append(
                            np.array([*np.full(k, log_b), 1.0, exponent] if self.joint else [log_b, exponent])
                        )
                    starts.append(np.concatenate(theta))
        return starts

    def prior(self) -> tuple[np.ndarray, np.ndarray]:
        k = self.n_domains
        gamma_sd, log_c_sd = self.prior_sd
        rows_AP, rows_A = np.zeros((2 * k, len(self.names))), np.zeros(2 * k)
        rows_AP[:k, 1 : k + 1] = (np.eye(k) - 1 / k) / log_c_sd
        rows_AP[k:, k + 1 : 2 * k + 1] = (np.eye(k) - 1 / k) / gamma_sd
        if not self.joint:
            return rows_AP, rows_A
        more_AP = np.zeros((len(self.scales) * (k + 1), len(self.names)))
        more_A = np.zeros(len(more_AP))
        for i in range(len(self.scales)):
            place, row = 2 * k + 1 + i * (k + 2), i * (k + 1)
            more_AP[row : row + k, place : place + k] = (np.eye(k) - 1 / k) / log_c_sd
            more_AP[row + k, place + k] = 1 / gamma_sd
            more_A[row + k] = 1 / gamma_sd
        return np.concatenate([rows_AP, more_AP]), np.concatenate([rows_A, more_A])

    def shown(self, theta_P: np.ndarray) -> dict[str, float]:
        return {
            name.removeprefix("log_"): float(np.exp(value) if name.startswith("log_") else value)
            for name, value in zip(self.names, theta_P.tolist(), strict=True)
        }


def _positive(powered_NK: np.ndarray, target_N: np.ndarray) -> np.ndarray:
    """Positive coefficients of powered @ c = target, by least squares, none of them lost at 0."""
    k = powered_NK.shape[1]
    mean = float(target_N.mean() / powered_NK.sum(axis=1).mean())
    gram_KK = powered_NK.T @ powered_NK + 1e-3 * len(target_N) / k * np.eye(k)
    c_K = mean + np.linalg.solve(gram_KK, powered_NK.T @ (target_N - mean * powered_NK.sum(axis=1)))
    return np.maximum(c_K, 1e-2 * mean)
