"""The combined predictor: several laws, weighed by how well each predicts mixtures that it has not seen.

Stacked regression (Breiman 1996): each member predicts every mixture from a fit to the others, and the weights, none
negative and summing to one, are those under which these predictions err least. Whole mixtures are left out, since
checkpoints of one mixture say nearly the same.

Legend: N rows, M members, E targets.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize

from jaxprune.mix.laws.autoscale import AutoScale
from jaxprune.mix.laws.bimix import BiMix
from jaxprune.mix.laws.corrected import Corrected
from jaxprune.mix.laws.exponential import Exponential
from jaxprune.mix.laws.gaussian_process import GaussianProcess
from jaxprune.mix.laws.law import Coefficient, FittedLaw, Law
from jaxprune.mix.laws.reciprocal import Reciprocal
from jaxprune.mix.table import MixtureTable

MEMBERS: tuple[Law, ...] = (
    Corrected(law=BiMix(floor=True)),
    Corrected(law=Exponential()),
    Corrected(law=AutoScale()),
    Corrected(law=Reciprocal()),
    GaussianProcess(),
)
_FEWEST = 4  # mixtures
_COUNTS = 0.05  # weight above which a member's doubts are passed on
_SHARED = 0.3  # weight of the errors of all targets beside those of a target itself
_FAR = 3.0  # standard deviations of a target, beyond which an error is no worse


@dataclass(frozen=True, kw_only=True)
class Combined(Law):
    """A geometric mean of laws.

    Attributes:
      members: the laws.
      folds: of the cross-validation over mixtures; as many as there are mixtures, where these are fewer.
      seed: of the folds.
    """

    name = "combined"
    source = "Breiman 1996"
    members: tuple[Law, ...] = MEMBERS
    folds: int = 20
    seed: int = 0

    def fit(self, table: MixtureTable) -> FittedCombined:
        if table.n_mixtures < _FEWEST:
            raise ValueError(f"combined: the table has {table.n_mixtures} mixtures: give {_FEWEST} or more")
        fits = [law.fit(table) for law in self.members]
        weights_EM = stacking_weights(self.out_of_fold(table, fits), np.log(table.loss_RE))
        return FittedCombined(self, table, fits, weights_EM)

    def out_of_fold(self, table: MixtureTable, fits: Sequence[FittedLaw]) -> np.ndarray:
        """Log losses [M, N, E] that each member predicts for mixtures that it was not fitted to.

        Fits to a part start from those to the whole, `fits`, which saves most of the time.
        """
        n_mixtures = table.n_mixtures
        order = np.random.default_rng(self.seed).permutation(n_mixtures)
        fold_N = (order % min(self.folds, n_mixtures))[table.mixture_R]
        predicted_MNE = np.full((len(self.members), *table.loss_RE.shape), np.nan)
        for fold in np.unique(fold_N):
            out_N = fold_N == fold
            rest, out = table.rows(~out_N), table.rows(out_N)
            known_E = rest.measured_E  # a target of few rows may have all of them in one fold
            for m, fit in enumerate(fits):
                fitted = fit.refitted(rest.chosen_targets(known_E))
                losses_NE = fitted.predict(out.weights_RK, out.tokens_R, out.params_R)
                predicted_MNE[m][np.ix_(np.flatnonzero(out_N), np.flatnonzero(known_E))] = np.log(losses_NE)
        return predicted_MNE


class FittedCombined(FittedLaw):
    """Fitted members, and their weights for each target."""

    def __init__(
        self, law: Combined, table: MixtureTable, fits: list[FittedLaw], weights_EM: np.ndarray
    ) -> None:
        counted = [fit for fit, weight in zip(fits, weights_EM.max(axis=0), strict=True) if weight > _COUNTS]
        notes = tuple(f"{fit.law.name}: {note}" for fit in counted for note in fit.notes)
        super().__init__(law, table, notes)
        self.fits, self.weights_EM = fits, weights_EM

    def _predict(self, weights_NK: np.ndarray, tokens_N: np.ndarray, params_N: np.ndarray) -> np.ndarray:
        log_MNE = np.stack([np.log(fit.predict(weights_NK, tokens_N, params_N)) for fit in self.fits])
        return np.exp(np.einsum("em,mne->ne", self.weights_EM, log_MNE))

    def coefficients(
        self, n_resamples: int = 100, level: float = 0.95, seed: int = 0
    ) -> tuple[Coefficient, ...]:
        """The members' weights, which have no interval."""
        return tuple(
            Coefficient(
                target=target, name=f"weight[{fit.law.name}]", value=float(weight), low=np.nan, high=np.nan
            )
            for target, weights_M in zip(self.targets, self.weights_EM, strict=True)
            for fit, weight in zip(self.fits, weights_M, strict=True)
        )


def stacking_weights(predicted_MNE: np.ndarray, true_NE: np.ndarray) -> np.ndarray:
    """Weights [E, M] of least squared error, in units of each target's spread.

    A target's own errors count, and a third as much those of all: weights of its own alone would be noise where runs are
    few.
    """
    spread_E = np.maximum(np.nanstd(true_NE, axis=0), 1e-9)
    error_MNE = np.clip((predicted_MNE - true_NE) / spread_E, -_FAR, _FAR)
    gram_EMM = np.stack([_gram(error_MNE[:, :, e]) for e in range(true_NE.shape[1])])
    shared_MM = gram_EMM.mean(axis=0)
    return np.stack([_on_the_simplex(gram_MM + _SHARED * shared_MM) for gram_MM in gram_EMM])


def _gram(error_MN: np.ndarray) -> np.ndarray:
    error_MN = error_MN[:, np.isfinite(error_MN).all(axis=0)]
    return error_MN @ error_MN.T / max(error_MN.shape[1], 1)


def _on_the_simplex(gram_MM: np.ndarray) -> np.ndarray:
    """The w of least w' G w, none negative and summing to one."""
    n = len(gram_MM)
    gram_MM = gram_MM / max(np.trace(gram_MM) / n, 1e-300)
    found = minimize(
        lambda w: w @ gram_MM @ w,
        np.full(n, 1 / n),
        jac=lambda w: 2 * gram_MM @ w,
        bounds=[(0, 1)] * n,
        constraints={"type": "eq", "fun": lambda w: w.sum() - 1, "jac": lambda w: np.ones(n)},
        method="SLSQP",
        options={"ftol": 1e-12},
    )
    weights_M = np.maximum(found.x, 0)
    return weights_M / weights_M.sum()
