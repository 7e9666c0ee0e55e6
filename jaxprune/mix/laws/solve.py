"""The fit of one law to one target: robust least squares in log space, from several starts.

The solver is SciPy's trust region reflective method (Branch et al. 1999), which BiMix's authors use too
(2405.14908, section 4): it knows bounds and a robust loss.

Legend: N rows, P coefficients.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import least_squares

from jaxprune.mix.threads import one_thread

Residuals = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]
"""theta_P -> residuals [N] and their Jacobian [N, P]."""

_TOLERANCE = 1e-8
_MOST_STEPS = 100  # in a valley that the data leave flat, more of them change coefficients and no prediction
_AT_BOUND = 1e-6  # of the distance between the bounds


@dataclass(frozen=True, kw_only=True)
class Solution:
    """Coefficients, and what is to be known of them."""

    theta_P: np.ndarray
    cost: float  # half the sum of Huber losses of the residuals
    at_bound_P: np.ndarray  # bool
    condition: float  # of J^T J at the solution, coefficients at a bound left out


@one_thread()
def solve(
    residuals: Residuals,
    starts: Sequence[np.ndarray],
    lower_P: np.ndarray,
    upper_P: np.ndarray,
    delta: float,
    polish: int = 3,
    n_data: int | None = None,
) -> Solution:
    """The best of the local minima that the `polish` most promising starts lead to.

    Args:
      residuals: what is made small.
      starts: coefficients to begin with; those outside the bounds are moved inside.
      lower_P, upper_P: bounds.
      delta: residuals beyond it count in proportion and not squared (Huber).
      polish: how many starts, best first, are followed to their minimum.
      n_data: residuals that are data, the first ones; others are a prior, which does not count towards the condition.
    """
    margin_P = 1e-3 * np.minimum(upper_P - lower_P, 1.0)
    inside = [np.clip(start, lower_P + margin_P, upper_P - margin_P) for start in starts]
    inside.sort(key=lambda start: huber(residuals(start)[0], delta))
    best: tuple[float, np.ndarray] | None = None
    for start in inside[:polish]:
        last: dict[bytes, np.ndarray] = {}

        def value(theta_P: np.ndarray, last: dict[bytes, np.ndarray] = last) -> np.ndarray:
            residual_N, jacobian_NP = residuals(theta_P)
            last.clear()
            last[theta_P.tobytes()] = jacobian_NP
            return residual_N

        def jacobian(theta_P: np.ndarray, last: dict[bytes, np.ndarray] = last) -> np.ndarray:
            known = last.get(theta_P.tobytes())
            return residuals(theta_P)[1] if known is None else known

        found = least_squares(
            value,
            start,
            jac=jacobian,  # pyright: ignore[reportArgumentType]
            bounds=(lower_P, upper_P),
            loss="huber",
            f_scale=delta,
            xtol=_TOLERANCE,
            ftol=_TOLERANCE,
            gtol=_TOLERANCE,
            max_nfev=_MOST_STEPS,
        )
        if best is None or found.cost < best[0]:
            best = found.cost, found.x
    assert best is not None, "a law without a start"
    cost, theta_P = best
    at_bound_P = np.minimum(theta_P - lower_P, upper_P - theta_P) < _AT_BOUND * (upper_P - lower_P)
    _, jacobian_NP = residuals(theta_P)
    free_NP = jacobian_NP[:n_data, ~at_bound_P]
    singular = np.linalg.svd(free_NP, compute_uv=False) if free_NP.size else np.ones(1)
    determined = len(singular) == free_NP.shape[1] and singular[-1] > 0
    condition = float((singular[0] / singular[-1]) ** 2) if determined else np.inf
    return Solution(theta_P=theta_P, cost=float(cost), at_bound_P=at_bound_P, condition=condition)


def huber(residual_N: np.ndarray, delta: float) -> float:
    """Half the sum of Huber losses: squares up to `delta`, lines beyond."""
    size_N = np.abs(residual_N)
    return float(np.where(size_N <= delta, 0.5 * size_N**2, delta * (size_N - 0.5 * delta)).sum())
