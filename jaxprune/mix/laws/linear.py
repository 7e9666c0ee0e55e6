"""The linear regression that RegMix (2407.01492) compares with its trees.

Legend: N rows, K domains, P coefficients.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from jaxprune.mix.laws.exponential import ridge
from jaxprune.mix.laws.law import varies
from jaxprune.mix.laws.parametric import Curve, Form, ParametricLaw, Points
from jaxprune.mix.table import MixtureTable

_LEAST = 1e-3  # nats, of a prediction


@dataclass(frozen=True, kw_only=True)
class Linear(ParametricLaw):
    """L = t . r, and + d log s where tokens s vary: the loss of a mixture is the mean of what its domains give."""

    name = "linear"
    source = "2407.01492"

    def forms(self, table: MixtureTable) -> list[Form]:
        names = [f"t[{domain}]" for domain in table.domains] + (["d"] if varies(table.tokens_R) else [])
        wide_P = np.full(len(names), 1e3)
        return [LinearForm(names=tuple(names), lower_P=-wide_P, upper_P=wide_P)]


@dataclass(frozen=True, kw_only=True)
class LinearForm(Form):
    """Coefficients: t of each domain, then d where tokens vary."""

    def curve(self, theta_P: np.ndarray, points: Points) -> Curve:
        design_NP = np.concatenate([points.weights_NK, points.x_N[:, None]], axis=1)[:, : len(theta_P)]
        loss_N = np.maximum(design_NP @ theta_P, _LEAST)
        return Curve(np.log(loss_N), design_NP / loss_N[:, None])

    def starts(self, points: Points, loss_N: np.ndarray) -> Sequence[np.ndarray]:
        start_K = ridge(points.weights_NK, loss_N)
        return [np.concatenate([start_K, np.zeros(len(self.names) - len(start_K))])]
