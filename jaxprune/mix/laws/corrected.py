"""A law and what it misses: a Gaussian process of the residuals, over mixtures.

A law with few coefficients is dependable where runs are few, and wrong by the same amount however many there are. The
process takes over what runs show of that, and next to nothing where their residuals look like noise.

Legend: N mixtures, E targets.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxprune.mix.laws.gaussian_process import MOST_ROWS, Process, features
from jaxprune.mix.laws.law import Coefficient, FittedLaw, Law
from jaxprune.mix.table import MixtureTable


@dataclass(frozen=True, kw_only=True)
class Corrected(Law):
    """log L = the log of a law + a process."""

    law: Law

    @property
    def name(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        return f"{self.law.name}+process"

    source = "Kennedy & O'Hagan 2001"

    def fit(self, table: MixtureTable) -> FittedCorrected:
        return FittedCorrected(self, table, self.law.fit(table))


class FittedCorrected(FittedLaw):
    """A fitted law and the process of its residuals."""

    law: Corrected

    def __init__(self, law: Corrected, table: MixtureTable, base: FittedLaw) -> None:
        self.base = base
        super().__init__(law, table, self.base.notes)
        rows = table.thinned(MOST_ROWS)
        expected_NE = self.base.predict(rows.weights_RK, rows.tokens_R, rows.params_R)
        self.process = Process(
            features(table, rows.weights_RK, rows.tokens_R, rows.params_R), np.log(rows.loss_RE / expected_NE)
        )

    def _predict(self, weights_NK: np.ndarray, tokens_N: np.ndarray, params_N: np.ndarray) -> np.ndarray:
        residual_NE = self.process(features(self.table, weights_NK, tokens_N, params_N))
        return self.base.predict(weights_NK, tokens_N, params_N) * np.exp(residual_NE)

    def refitted(self, table: MixtureTable) -> FittedLaw:
        return FittedCorrected(self.law, table, self.base.refitted(table))

    def coefficients(self, **options: Any) -> tuple[Coefficient, ...]:
        """Those of the law."""
        return self.base.coefficients(**options)
