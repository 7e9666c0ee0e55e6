"""A Gaussian process from mixtures to log losses: the law for whoever trusts no formula.

Legend: N rows, M rows to predict, F features, E targets, S length scales, L noise levels.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.spatial.distance import cdist

from jaxprune.mix.laws.law import FittedLaw, Law, varies
from jaxprune.mix.table import MixtureTable
from jaxprune.mix.threads import one_thread

_LENGTHS = np.geomspace(0.1, 10, 13)
_NOISES = np.geomspace(1e-4, 1e2, 25)  # variance of the noise over that of the function
MOST_ROWS = 1000  # of the eigendecompositions: of a larger table, fewer checkpoints of each run


class Process:
    """Functions of features with a Matern-5/2 kernel and mean 0, one for each target. The length scale and the noise that
    make the observations most likely are shared by all targets that were measured in the same rows."""

    def __init__(self, features_NF: np.ndarray, y_NE: np.ndarray) -> None:
        """Conditions each target on the rows in which y is finite; without any it stays at 0."""
        patterns_XN, pattern_E = np.unique(np.isfinite(y_NE).T, axis=0, return_inverse=True)
        self.n_targets = y_NE.shape[1]
        self.parts = []
        for x, rows_N in enumerate(patterns_XN):
            targets = np.flatnonzero(pattern_E.ravel() == x)
            if rows_N.any():
                rows_NF, y_rows_NE = features_NF[rows_N], y_NE[rows_N][:, targets]
                self.parts.append((targets, rows_NF, *_condition(rows_NF, y_rows_NE)))

    def __call__(self, features_MF: np.ndarray) -> np.ndarray:
        """The mean of what is likely, [M, E]."""
        mean_ME = np.zeros((len(features_MF), self.n_targets))
        for targets, rows_NF, length, dual_NE in self.parts:
            mean_ME[:, targets] = _matern(cdist(features_MF, rows_NF) / length) @ dual_NE
        return mean_ME


@one_thread()
def _condition(features_NF: np.ndarray, y_NE: np.ndarray) -> tuple[float, np.ndarray]:
    """The likeliest length scale, and (K + noise)^-1 y with the likeliest noise."""
    distance_NN = cdist(features_NF, features_NF)
    best, length, dual_NE = -np.inf, 1.0, np.zeros_like(y_NE)
    for candidate in _LENGTHS:
        value_N, vector_NN = np.linalg.eigh(_matern(distance_NN / candidate))
        along_NE = vector_NN.T @ y_NE
        spectrum_LN = np.maximum(value_N, 0) + _NOISES[:, None]
        variance_LE = (along_NE**2 / spectrum_LN[:, :, None]).mean(axis=1)  # of each target's function
        log_variance_LE = len(y_NE) * np.log(variance_LE + 1e-300)
        likelihood_L = -0.5 * (np.log(spectrum_LN).sum(axis=1)[:, None] + log_variance_LE).sum(axis=1)
        choice = int(np.argmax(likelihood_L))
        if likelihood_L[choice] > best:
            best, length = float(likelihood_L[choice]), float(candidate)
            dual_NE = vector_NN @ (along_NE / spectrum_LN[choice][:, None])
    return length, dual_NE


@dataclass(frozen=True, kw_only=True)
class GaussianProcess(Law):
    """log L = a plane in the mixture + a process in the square roots of proportions (whose distance is Hellinger's)."""

    name = "gaussian_process"
    source = "Rasmussen & Williams 2006"

    def fit(self, table: MixtureTable) -> FittedProcess:
        if table.n_mixtures < 2:
            raise ValueError("gaussian_process: the table has one mixture: give two or more")
        measured_E = np.isfinite(table.loss_RE).any(axis=0)
        if not measured_E.all():
            empty = table.targets[int(np.argmin(measured_E))]
            raise ValueError(f"gaussian_process: no loss of {empty} was measured: leave the target out")
        return FittedProcess(self, table)


class FittedProcess(FittedLaw):
    """A plane and a process, for all targets."""

    def __init__(self, law: GaussianProcess, table: MixtureTable) -> None:
        super().__init__(law, table)
        rows = table.thinned(MOST_ROWS)
        features_NF = features(table, rows.weights_RK, rows.tokens_R, rows.params_R)
        y_NE = np.log(rows.loss_RE)
        self.mean_E = np.nanmean(y_NE, axis=0)
        plane_NP = _plane(features_NF, len(self.domains))
        self.plane_PE = np.stack([_ridge(plane_NP, y_N) for y_N in (y_NE - self.mean_E).T], axis=1)
        self.process = Process(features_NF, y_NE - self.mean_E - plane_NP @ self.plane_PE)

    def _predict(self, weights_NK: np.ndarray, tokens_N: np.ndarray, params_N: np.ndarray) -> np.ndarray:
        features_NF = features(self.table, weights_NK, tokens_N, params_N)
        plane_NP = _plane(features_NF, len(self.domains))
        return np.exp(self.mean_E + plane_NP @ self.plane_PE + self.process(features_NF))


def features(
    table: MixtureTable, weights_NK: np.ndarray, tokens_N: np.ndarray, params_N: np.ndarray
) -> np.ndarray:
    """Square roots of proportions, then logs of tokens and parameters over the most in the table, as far as they vary
    there."""
    pairs = ((table.tokens_R, tokens_N), (table.params_R, params_N))
    logs = [np.log(values_N / known_R.max())[:, None] for known_R, values_N in pairs if varies(known_R)]
    return np.concatenate([np.sqrt(weights_NK), *logs], axis=1)


def _plane(features_NF: np.ndarray, n_domains: int) -> np.ndarray:
    """What the plane is linear in: proportions themselves, and the logs."""
    return np.concatenate([features_NF[:, :n_domains] ** 2, features_NF[:, n_domains:]], axis=1)


def _ridge(plane_NP: np.ndarray, y_N: np.ndarray) -> np.ndarray:
    """Coefficients of a plane through the rows in which y is finite."""
    measured_N = np.isfinite(y_N)
    plane_NP, y_N = plane_NP[measured_N], y_N[measured_N]
    gram_PP = plane_NP.T @ plane_NP / len(y_N) + 1e-3 * np.eye(plane_NP.shape[1])
    return np.linalg.solve(gram_PP, plane_NP.T @ y_N / len(y_N))


def _matern(scaled: np.ndarray) -> np.ndarray:
    root = np.sqrt(5) * scaled
    return (1 + root + root**2 / 3) * np.exp(-root)
