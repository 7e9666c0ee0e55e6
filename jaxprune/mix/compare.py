"""Laws side by side: how well each predicts mixtures, and the end of runs, that it has not seen.

Legend: N held-out rows, E targets, B resamples.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from scipy.stats import spearmanr

from jaxprune.mix.laws.law import POLE, FittedLaw, Law, varies
from jaxprune.mix.laws.nested import power_at
from jaxprune.mix.laws.parametric import ParametricLaw
from jaxprune.mix.table import MixtureTable

_RESAMPLES = 200


@dataclass(frozen=True, kw_only=True)
class Errors:
    """Of one law on held-out rows, by target.

    Attributes:
      r2_E: share of the variance of losses that is explained.
      error_E: mean of |predicted - measured| / measured.
      rank_E: Spearman's correlation.
      error_low, error_high: 95 % interval of the mean of error_E over targets, by a bootstrap over mixtures.
    """

    r2_E: np.ndarray
    error_E: np.ndarray
    rank_E: np.ndarray
    error_low: float
    error_high: float


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Held-out errors of laws.

    Attributes:
      targets: what is predicted.
      n_fitted, n_held_out: mixtures.
      tokens: at which mixtures are compared.
      at_end: law -> errors across held-out mixtures at these tokens, of a fit to the other mixtures there.
      along: law with coefficients -> errors over all checkpoints of held-out mixtures, of a fit to all checkpoints of the others; mostly
        the common fall of the loss. Empty where tokens do not vary.
      last: errors of each run's last checkpoint, of a power law of those before it; None where there are too few.
      failed: law -> why it could not be fitted.
    """

    targets: tuple[str, ...]
    n_fitted: int
    n_held_out: int
    tokens: float
    at_end: dict[str, Errors]
    along: dict[str, Errors]
    last: Errors | None
    failed: dict[str, str]


def compare(
    table: MixtureTable,
    laws: Mapping[str, Law],
    held_out: MixtureTable | None = None,
    tell: Callable[[str], None] = lambda name: None,
) -> Comparison:
    """Held-out errors of laws.

    Args:
      table: to fit, or, without `held_out`, to split by mixtures.
      laws: by the name they are shown under.
      held_out: other mixtures of the same domains.
      tell: called with the name of each law before it is fitted.

    Raises:
      ValueError: the tables do not fit each other, or runs share no number of tokens.
    """
    fit_table, held_out = (table, held_out) if held_out is not None else table.split()
    if fit_table.domains != held_out.domains or fit_table.targets != held_out.targets:
        raise ValueError(
            f"the held-out table has domains {', '.join(held_out.domains)} and targets {', '.join(held_out.targets)}: "
            "give one with those of the table to fit"
        )
    end = fit_table.end()
    tokens = float(end.tokens_R[0])
    held_out_end = held_out.rows(held_out.tokens_R == tokens)
    if len(held_out_end) < 2:
        raise ValueError(
            f"{len(held_out_end)} held-out mixtures were measured at {tokens:g} tokens: two or more are needed"
        )
    at_end, along, failed = {}, {}, {}
    for name, law in laws.items():
        tell(name)
        try:
            at_end[name] = errors(law.fit(end), held_out_end)
            if isinstance(law, ParametricLaw) and varies(fit_table.tokens_R):
                along[name] = errors(law.fit(fit_table), held_out)
        except ValueError as error:
            failed[name] = str(error)
    return Comparison(
        targets=table.targets,
        n_fitted=end.n_mixtures,
        n_held_out=held_out_end.n_mixtures,
        tokens=tokens,
        at_end=at_end,
        along=along,
        last=last_checkpoints(table),
        failed=failed,
    )


def errors(fitted: FittedLaw, held_out: MixtureTable) -> Errors:
    """Errors of a fitted law on the rows of another table; rows at a pole of the law do not count."""
    predicted_NE = fitted.predict(held_out.weights_RK, held_out.tokens_R, held_out.params_R)
    predicted_NE = np.where(predicted_NE < POLE, predicted_NE, np.nan)
    return _errors(predicted_NE, held_out.loss_RE, held_out.weights_RK)


def last_checkpoints(table: MixtureTable) -> Errors | None:
    """How well a power law of a run's checkpoints predicts the one at the end; None where runs have fewer than five."""
    end = table.end()
    tokens = float(end.tokens_R[0])
    earlier = table.rows(table.tokens_R < tokens)
    predicted_RE = np.full(end.loss_RE.shape, np.nan)
    for row, run in enumerate(end.run_R):
        checkpoints = earlier.rows(earlier.run_R == run)
        if len(checkpoints):
            predicted_RE[row] = power_at(checkpoints, tokens)
    if not np.isfinite(predicted_RE).any():
        return None
    return _errors(predicted_RE, end.loss_RE, end.weights_RK)


def _errors(predicted_NE: np.ndarray, true_NE: np.ndarray, weights_NK: np.ndarray) -> Errors:
    r2, rank = [], []
    for predicted_N, true_N in zip(predicted_NE.T, true_NE.T, strict=True):
        both_N = np.isfinite(predicted_N) & np.isfinite(true_N)
        p_N, t_N = predicted_N[both_N], true_N[both_N]
        total = ((t_N - t_N.mean()) ** 2).sum() if len(t_N) else 0.0
        r2.append(1 - ((p_N - t_N) ** 2).sum() / total if total > 0 else np.nan)
        varied = len(t_N) > 1 and np.ptp(p_N) > 0 and np.ptp(t_N) > 0
        rank.append(float(spearmanr(p_N, t_N)[0]) if varied else np.nan)  # pyright: ignore[reportArgumentType]
    relative_NE = np.abs(predicted_NE - true_NE) / true_NE
    _, mixture_N = np.unique(weights_NK.round(6), axis=0, return_inverse=True)
    by_mixture = np.array(
        [np.nanmean(relative_NE[mixture_N.ravel() == m]) for m in range(mixture_N.max() + 1)]
    )
    draws_B = np.random.default_rng(0).integers(len(by_mixture), size=(_RESAMPLES, len(by_mixture)))
    low, high = np.quantile(by_mixture[draws_B].mean(axis=1), [0.025, 0.975])
    return Errors(
        r2_E=np.array(r2),
        error_E=np.array([_mean(relative_N) for relative_N in relative_NE.T]),
        rank_E=np.array(rank),
        error_low=float(low),
        error_high=float(high),
    )


def _mean(values: np.ndarray) -> float:
    """Of what is finite; NaN of nothing."""
    values = values[np.isfinite(values)]
    return float(values.mean()) if len(values) else float("nan")
