"""BiMix (2405.14908): the loss of a domain in its own proportion and in the volume of training.

Legend: N rows, K domains, P coefficients.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from jaxprune.mix.laws.law import varies
from jaxprune.mix.laws.parametric import Curve, Form, ParametricLaw, Points
from jaxprune.mix.table import MixtureTable

_SPREAD = 0.01  # of log proportions, below which their exponent is not told
_BETAS = (0.1, 0.3, 0.6, 1.0, 1.6)  # starts


@dataclass(frozen=True, kw_only=True)
class BiMix(ParametricLaw):
    """L_i(r_i, s) = r_i^-alpha_i (B_i s^-beta_i + C_i) (section 3, Eq. 1 to 3).

    The paper's fifth coefficient A_i only multiplies B_i and C_i and is 1 here. s is training tokens over the
    most in the table, so that B + C is the loss there at proportion 1. Where tokens do not vary, L = C r^-alpha.

    Attributes:
      floor: add a fitted eps_i to each proportion, so that rows without the domain can be used.
      own: target -> the domain whose proportion it depends on. Others depend on the domain of their name, or, where
        there is none, on the one that explains them best.
    """

    source = "2405.14908"
    floor: bool = False
    own: Mapping[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        return "bimix_floor" if self.floor else "bimix"

    def forms(self, table: MixtureTable) -> list[Form]:
        [target] = table.targets
        lowered = [domain.lower() for domain in table.domains]
        named = self.own.get(target, target).lower()
        if target in self.own and named not in lowered:
            raise ValueError(
                f"bimix: {target} shall depend on {self.own[target]}, but the domains are {', '.join(table.domains)}"
            )
        candidates = [lowered.index(named)] if named in lowered else list(range(len(lowered)))
        return [BiMixForm.of(domain, varies(table.tokens_R), self.floor) for domain in candidates]


@dataclass(frozen=True, kw_only=True)
class BiMixForm(Form):
    """Coefficients: alpha, log C, then log B and beta where tokens vary, then log eps of a floor."""

    domain: int
    in_volume: bool
    floor: bool

    @classmethod
    def of(cls, domain: int, in_volume: bool, floor: bool) -> BiMixForm:
        bounds = {"alpha": (-2, 3), "log_C": (-20, 5)}
        bounds |= {"log_B": (-20, 10), "beta": (1e-3, 5)} if in_volume else {}
        bounds |= {"log_eps": (-15, 0)} if floor else {}
        lower_P, upper_P = np.array(list(bounds.values()), float).T
        return cls(
            names=tuple(bounds),
            lower_P=lower_P,
            upper_P=upper_P,
            domain=domain,
            in_volume=in_volume,
            floor=floor,
        )

    def curve(self, theta_P: np.ndarray, points: Points) -> Curve:
        alpha, log_c = theta_P[:2]
        eps = np.exp(theta_P[-1]) if self.floor else 0.0
        proportion_N = points.weights_NK[:, self.domain] + eps
        log_r_N = np.log(proportion_N)
        columns = [-log_r_N]
        if self.in_volume:
            log_b, beta = theta_P[2:4]
            falling_N = log_b - beta * points.x_N
            bracket_N = np.logaddexp(falling_N, log_c)
            share_N = np.exp(falling_N - bracket_N)
            columns += [1 - share_N, share_N, -share_N * points.x_N]
        else:
            bracket_N = np.full(len(log_r_N), log_c)
            columns.append(np.ones(len(log_r_N)))
        if self.floor:
            columns.append(-alpha * eps / proportion_N)
        return Curve(bracket_N - alpha * log_r_N, np.stack(columns, axis=1))

    def starts(self, points: Points, loss_N: np.ndarray) -> Sequence[np.ndarray]:
        floor = [np.log(0.01)] if self.floor else []
        log_r_N = np.log(points.weights_NK[:, self.domain] + (0.01 if self.floor else 0.0))
        late_N = points.x_N >= points.x_N.max() - 0.01
        alpha = -_slope(log_r_N[late_N], np.log(loss_N[late_N])) if np.ptp(log_r_N[late_N]) > _SPREAD else 0.0
        bracket_N = loss_N * np.exp(alpha * log_r_N)
        if not self.in_volume:
            return [np.array([alpha, np.log(bracket_N).mean(), *floor])]
        starts = []
        for beta in _BETAS:
            falling_N = np.exp(-beta * points.x_N)
            b, c = np.linalg.lstsq(
                np.stack([falling_N, np.ones_like(falling_N)], 1) / bracket_N[:, None],
                np.ones_like(bracket_N),
            )[0]
            starts.append(np.array([alpha, np.log(max(c, 1e-3)), np.log(max(b, 1e-3)), beta, *floor]))
        return starts

    def shown(self, theta_P: np.ndarray) -> dict[str, float]:
        shown = {"A": 1.0, "alpha": theta_P[0], "C": np.exp(theta_P[1])}
        if self.in_volume:
            shown |= {"B": np.exp(theta_P[2]), "beta": theta_P[3]}
        return {name: float(value) for name, value in shown.items()} | (
            {"eps": float(np.exp(theta_P[-1]))} if self.floor else {}
        )

    def usable(self, points: Points) -> np.ndarray:
        return np.ones(len(points.x_N), bool) if self.floor else points.weights_NK[:, self.domain] > 0

    def doubts(self, theta_P: np.ndarray, points: Points) -> list[str]:
        if np.ptp(np.log(points.weights_NK[:, self.domain] + (1e-3 if self.floor else 0.0))) < _SPREAD:
            return ["its proportion hardly varies, which leaves alpha untold"]
        return [] if theta_P[0] > 0 else [f"alpha is {theta_P[0]:.3g}: more of its domain does not help it"]

    def bracket(self, theta_P: np.ndarray, x: float) -> float:
        """B s^-beta + C at log tokens `x`, without a floor: what the optimum weighs domains by."""
        assert not self.floor
        at_one = Points(np.ones((1, self.domain + 1)), np.array([x]), np.zeros(1))
        return float(np.exp(self.curve(theta_P, at_one).log_loss_N[0]))


def _slope(x_N: np.ndarray, y_N: np.ndarray) -> float:
    centered_N = x_N - x_N.mean()
    return float(centered_N @ (y_N - y_N.mean()) / (centered_N @ centered_N))
