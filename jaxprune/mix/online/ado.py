"""ADO: draws from where a power law of the training losses falls fastest (Jiang et al., arXiv 2410.11820).

It costs nothing but fits on the host: L_k(n) = e^eps + e^a n^-alpha for every domain k, from its training losses, n the
tokens of all domains so far. Then, after each step t:

1. h, the smoothed shares that were drawn;
2. slope_k = max(alpha, floor) e^a n^-alpha / n, and rho_k ~ mu_k slope_k h_k^s with the prior mu, none below `least`;
3. p = gamma rho + (1 - gamma) rho_bar, and rho_bar the average of rho over the steps so far.

Legend: K domains, N points of a history, P parameters of a law, G starts of a fit.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from scipy.optimize import least_squares
from scipy.signal import savgol_filter
from scipy.special import expit

from jaxprune.train.strategy import Decision, Observation, Signal, State, Strategy

_MOST = 1024  # points of the history, of which then every two are made one
_FITTED = 128  # that a law is fitted to
_SMOOTHED = 101  # points of the filter (Savitzky-Golay, cubic)
_HUBER = 1e-3  # of log losses
# Bounds of a, eps and alpha, with n in units of the last point.
_LOW, _HIGH = np.array([-8.0, -2.0, 1e-3]), np.array([2.5, 1.5, 0.8])
_STARTS = 8  # of a fit, along each of a, eps and alpha
_TRIED = 8  # of these that are followed


@dataclass(frozen=True, kw_only=True)
class Ado(Strategy):
    """Settings as in `config.Ado`."""

    prior_K: tuple[float, ...]
    """mu: weights to begin with, and to lean to."""
    steps: int
    """Of the whole run."""
    every: int = 1
    refit: int = 1000
    history: float = 0.9
    policy: float = 0.1
    exponent: float = 0.5
    floor: float = 0.05
    least: float = 0.01

    signal: ClassVar[Signal] = "training"
    law: ClassVar[str] = "a power law of each domain's own loss"
    estimate: ClassVar[str] = "A is diagonal, with the slopes of fits to the training losses"
    solve: ClassVar[str] = "in proportion to prior, slope and share drawn"

    def begin(self, step: int) -> tuple[State, Decision]:
        prior = list(self.prior_K)
        state = {
            "n": 0.0,
            "t": 0,
            "fit_at": step + self.refit,
            "laws": None,
            "drawn": prior,
            "average": prior,
            "width": 1,
            "points": [],
        }
        return state, Decision(weights_K=np.array(prior), until=step + self.every)

    def update(self, state: State, seen: Observation) -> tuple[State, Decision]:
        share_K = seen.tokens_K / seen.tokens_K.sum()
        # Of the whole run: the laws hold from its first token on, also where a prior part came first.
        state = recorded(state, float(seen.drawn_K.sum()), seen.loss_K)
        drawn_K = self.history * np.array(state["drawn"]) + (1 - self.history) * share_K
        state = state | {"drawn": drawn_K.tolist(), "t": state["t"] + 1}
        record = {}
        if seen.step >= state["fit_at"]:
            laws_KP = fitted(state["points"], state["laws"], len(self.prior_K))
            state |= {"laws": laws_KP, "fit_at": seen.step + self.refit}
            record = {"laws": laws_KP}
        weights_K = np.array(self.prior_K)
        if any(state["laws"] or ()):  # with none, after too few decisions, still the prior
            laws_KP = np.array([law or [np.nan] * 3 for law in state["laws"]])
            rho_K = self.preferred(laws_KP, state["n"], drawn_K)
            weights_K = self.policy * rho_K + (1 - self.policy) * np.array(state["average"])
            state["average"] = averaged(np.array(state["average"]), rho_K, state["t"] - 1).tolist()
        return state, Decision(weights_K=weights_K, until=seen.step + self.every, record=record)

    def preferred(self, laws_KP: np.ndarray, n: float, drawn_K: np.ndarray) -> np.ndarray:
        """rho, from laws (a, eps, alpha; NaN: none, and the mean slope in its place) after n tokens."""
        slope_K = slopes(laws_KP, n, self.floor)
        slope_K = np.where(np.isfinite(slope_K), slope_K, np.nanmean(slope_K))
        rho_K = np.array(self.prior_K) * slope_K * drawn_K**self.exponent
        return at_least(rho_K / rho_K.sum(), self.least)


def recorded(state: State, n: float, loss_K: np.ndarray) -> State:
    """The state with one more point, after n tokens, of the history, which is bounded: points become wider
    where there are too many.

    A point is [n, how many decisions it is of, the mean loss of each domain or None].
    """
    points = [list(point) for point in state["points"]]
    loss = [None if np.isnan(value) else float(value) for value in loss_K]
    if points and points[-1][1] < state["width"]:
        points[-1] = _merged(points[-1], [n, 1, loss])
    else:
        points.append([n, 1, loss])
    width = state["width"]
    if len(points) > _MOST:
        points = _halved(points)
        width *= 2
    return state | {"n": n, "points": points, "width": width}


def slopes(laws_KP: np.ndarray, n: float, floor: float) -> np.ndarray:
    """-dL/dn of the laws at n, with alpha no less than `floor` in front."""
    a_K, _, alpha_K = laws_KP.T
    return np.maximum(alpha_K, floor) * np.exp(a_K) * n**-alpha_K / n


def at_least(weights_K: np.ndarray, least: float) -> np.ndarray:
    """Weights raised to `least`, and divided by their sum."""
    raised_K = np.maximum(weights_K, least)
    return raised_K / raised_K.sum()


def averaged(average_K: np.ndarray, rho_K: np.ndarray, t: int) -> np.ndarray:
    """The average of rho over t + 1 steps; those before the first fit count as the prior."""
    return average_K + (rho_K - average_K) / (t + 1)


def fitted(
    points: list[list], before: list[list[float] | None] | None, n_domains: int
) -> list[list[float] | None]:
    """a, eps, alpha of each domain; of one with too few points, those before, or None.

    Huber loss of log losses, from the best of a grid of starts, within bounds (Jiang et al., appendix).
    """
    laws: list[list[float] | None] = []
    for domain in range(n_domains):
        own = [(n, loss[domain]) for n, _, loss in points if loss[domain] is not None]
        if len(own) < 8:
            laws.append(None if before is None else before[domain])
            continue
        n_N, loss_N = np.array(own).T
        laws.append(_power_law(n_N, _smooth(loss_N)).tolist())
    return laws


def _smooth(loss_N: np.ndarray) -> np.ndarray:
    window = min(_SMOOTHED, len(loss_N) - 1 + len(loss_N) % 2)
    return np.asarray(savgol_filter(loss_N, window, 3)) if window > 3 else loss_N


def _power_law(n_N: np.ndarray, loss_N: np.ndarray) -> np.ndarray:
    """a, eps and alpha of e^eps + e^a n^-alpha.

    It is fitted in units of the last n, where e^a is the loss that is left to learn: bounds of a then hold for any size
    of a run. (Those of the authors, for n in their samples, cut steep laws off when n counts tokens.)
    """
    chosen = np.unique(np.linspace(0, len(n_N) - 1, min(len(n_N), _FITTED)).astype(int))
    log_n_N, log_loss_N = np.log(n_N[chosen] / n_N[-1]), np.log(np.maximum(loss_N[chosen], 1e-9))

    def residual(law_P: np.ndarray) -> np.ndarray:
        a, eps, alpha = law_P[..., None]
        return np.logaddexp(eps, a - alpha * log_n_N) - log_loss_N

    def slope(law_P: np.ndarray) -> np.ndarray:
        a, eps, alpha = law_P
        learnable_N = expit(a - alpha * log_n_N - eps)
        return np.stack([learnable_N, 1 - learnable_N, -log_n_N * learnable_N], axis=1)

    axes = [np.linspace(low, high, _STARTS) for low, high in zip(_LOW, _HIGH, strict=True)]
    grid_GP = np.stack(np.meshgrid(*axes), axis=-1).reshape(-1, 3)
    distance_G = np.abs(residual(grid_GP.T)).sum(axis=-1)
    found = [
        least_squares(
            residual,
            start,
            jac=slope,  # pyright: ignore[reportArgumentType]
            bounds=(_LOW, _HIGH),
            loss="huber",
            f_scale=_HUBER,
        )
        for start in grid_GP[np.argsort(distance_G)[:_TRIED]]
    ]
    a, eps, alpha = min(found, key=lambda of: of.cost).x
    return np.array([a + alpha * np.log(n_N[-1]), eps, alpha])


def _halved(points: list[list]) -> list[list]:
    pairs = [_merged(points[i], points[i + 1]) for i in range(0, len(points) - 1, 2)]
    return pairs if len(points) % 2 == 0 else [*pairs, points[-1]]


def _merged(one: list, other: list) -> list:
    """Two neighbouring points as one: the mean of their losses, weighed by what they are of."""
    (n_one, size_one, loss_one), (n_other, size_other, loss_other) = one, other
    size = size_one + size_other
    loss = [
        b if a is None else a if b is None else (size_one * a + size_other * b) / size
        for a, b in zip(loss_one, loss_other, strict=True)
    ]
    return [(size_one * n_one + size_other * n_other) / size, size, loss]
