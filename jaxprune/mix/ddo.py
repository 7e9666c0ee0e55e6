"""Direct data optimisation, AutoScale's experiment (2407.20177): what more or less of one domain does to the mean perplexity.

A base run has one unit of data of every domain; for each domain, other runs have some other multiple of its data and the
rest unchanged. A curve through a domain's runs says what its next token is worth, and the units are shared out so that
no domain's is worth more than another's. `jaxprune.mix.laws.autoscale.scaled` takes the best at two scales further.

Legend: K domains, X multiples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import brentq, least_squares

from jaxprune.mix.threads import one_thread

_STARTS = ((1.0, 1.0), (0.2, 0.3), (5.0, 2.0))  # of a and b
_EXACT = 1e-20  # a sum of squares that is rounding
_LOWER, _UPPER = (1e-9, 1e-6), (1e6, 1e4)  # of a and b
_TOLERANCE = 1e-15
_MOST_STEPS = 2000
_ROUNDING = 1e-12
_FEWEST = 3  # multiples, as there are coefficients


@dataclass(frozen=True, kw_only=True)
class DataCurves:
    """For each domain, mean perplexity over that of the base run = (x + a)^-b + c, x the multiple of its data.

    Attributes:
      domains: names.
      a_K, b_K, c_K: coefficients. a is what the other domains already teach of a domain, in its units.
      error_K: the largest miss of a curve, as a share of the base run's perplexity; 0 but for rounding where a curve of the
        family goes through three points (then another may too, which
        only a fourth multiple tells apart).
    """

    domains: tuple[str, ...]
    a_K: np.ndarray
    b_K: np.ndarray
    c_K: np.ndarray
    error_K: np.ndarray

    def predict(self, x_K: np.ndarray) -> np.ndarray:
        """Relative perplexity [K] with `x_K` of each domain's data, the other domains as in the base run."""
        return (x_K + self.a_K) ** -self.b_K + self.c_K

    def optimum(self, total: float | None = None, least: float = 0.2) -> np.ndarray:
        """The multiples [K] that sum to `total` (None: one for each domain) and make the sum of the curves least.

        The curves are convex, so that the best is where all slopes are one number and no domain is below `least`, the
        least multiple that the runs tried. Proportions are multiples over their sum where the base run is uniform.

        Raises:
          ValueError: `least` of every domain is more than `total`.
        """
        k = len(self.domains)
        total = float(k if total is None else total)
        if not 0 <= least < np.inf or not total < np.inf or total < k * least * (1 - _ROUNDING):
            raise ValueError(
                f"total is {total:g} and least {least:g} for {k} domains: give a total of at least {k} x least, and least 0 or more"
            )

        def shared_out(log_slope: float) -> np.ndarray:
            # b (x + a)^-(b + 1) = slope, where x is not below the least.
            x_K = np.exp((np.log(self.b_K) - log_slope) / (self.b_K + 1)) - self.a_K
            return np.maximum(x_K, least)

        # At the steepest slope of any curve all stand at the least, at the flattest one any has by far more than all.
        slope_K = np.log(self.b_K) - (self.b_K + 1) * np.log(least + self.a_K)
        flat_K = np.log(self.b_K) - (self.b_K + 1) * np.log(total + self.a_K)
        if total <= k * least * (1 + _ROUNDING):
            return np.full(k, float(least))
        found = brentq(
            lambda log_slope: shared_out(log_slope).sum() - total, flat_K.min(), slope_K.max(), xtol=1e-13
        )
        x_K = shared_out(float(found))  # pyright: ignore[reportArgumentType]
        free_K = x_K > least
        x_K[free_K] *= (total - x_K[~free_K].sum()) / x_K[free_K].sum()  # rounding of the root
        return x_K


def data_curves(
    multiples_X: np.ndarray, perplexity_KX: np.ndarray, domains: Sequence[str] | None = None
) -> DataCurves:
    """Fits a curve to each domain's runs, by least squares.

    Args:
      multiples_X: of a domain's data, three or more that differ, with 1, the base run, among them.
      perplexity_KX: mean perplexity over the validation domains, of the run with that multiple of that domain; of the base
        run, the same for all, where the multiple is 1.
      domains: names.

    Raises:
      ValueError: shapes or numbers do not fit, the base run is missing, or perplexity does not fall with a domain's data.
    """
    multiples_X, perplexity_KX = np.asarray(multiples_X, float), np.asarray(perplexity_KX, float)
    if multiples_X.ndim != 1 or perplexity_KX.ndim != 2 or perplexity_KX.shape[1:] != multiples_X.shape:
        raise ValueError(
            f"multiples of shape {multiples_X.shape} and perplexities of shape {perplexity_KX.shape} do not fit: give [X] and [K, X]"
        )
    names = tuple(f"domain{k}" for k in range(len(perplexity_KX))) if domains is None else tuple(domains)
    if len(names) != len(perplexity_KX):
        raise ValueError(f"{len(names)} names for {len(perplexity_KX)} domains: give one each")
    if (
        len(np.unique(multiples_X)) < _FEWEST
        or not ((multiples_X >= 0) & np.isfinite(multiples_X)).all()
        or 1 not in multiples_X
    ):
        raise ValueError(
            f"the multiples of data are {multiples_X}: give {_FEWEST} or more that differ, none negative, and 1 among them"
        )
    if not ((perplexity_KX > 0) & np.isfinite(perplexity_KX)).all():
        raise ValueError(
            f"a perplexity is {perplexity_KX.min():g}: give finite numbers above 0 for every run"
        )
    ratio_KX = perplexity_KX / perplexity_KX[:, multiples_X == 1].mean(axis=1, keepdims=True)
    fits_KP = np.array([_fit(name, multiples_X, y_X) for name, y_X in zip(names, ratio_KX, strict=True)])
    a_K, b_K, c_K = fits_KP.T
    curve_KX = (multiples_X + a_K[:, None]) ** -b_K[:, None] + c_K[:, None]
    error_K = np.abs(curve_KX - ratio_KX).max(axis=1)
    return DataCurves(domains=names, a_K=a_K, b_K=b_K, c_K=c_K, error_K=error_K)


@one_thread()
def _fit(name: str, x_X: np.ndarray, y_X: np.ndarray) -> tuple[float, float, float]:
    """a, b and c; c follows from the others."""
    if np.polyfit(x_X, y_X, 1)[0] >= 0:
        raise ValueError(
            f"{name}: the mean perplexity does not fall with its data, it is {y_X} of the base run's at {x_X} of it: "
            "leave the domain out, or train longer runs"
        )

    def residuals(theta_P: np.ndarray) -> np.ndarray:
        falling_X = (x_X + theta_P[0]) ** -theta_P[1]
        return falling_X - falling_X.mean() - (y_X - y_X.mean())

    def jacobian(theta_P: np.ndarray) -> np.ndarray:
        a, b = theta_P
        falling_X = (x_X + a) ** -b
        slopes_XP = np.stack([-b * falling_X / (x_X + a), -falling_X * np.log(x_X + a)], axis=1)
        return slopes_XP - slopes_XP.mean(axis=0)

    best = None
    for start in _STARTS:
        found = least_squares(
            residuals,
            start,
            jac=jacobian,  # pyright: ignore[reportArgumentType]
            bounds=(_LOWER, _UPPER),
            x_scale="jac",
            xtol=_TOLERANCE,
            ftol=_TOLERANCE,
            gtol=_TOLERANCE,
            max_nfev=_MOST_STEPS,
        )
        # Two curves may go through the same three points: then the first stays.
        if best is None or found.cost < best.cost - _EXACT:
            best = found
    assert best is not None, "no start"
    a, b = (float(value) for value in best.x)
    return a, b, float((y_X - (x_X + a) ** -b).mean())
