"""The mixture of least predicted loss, within what the data and the fitted runs allow.

Legend: K domains, N mixtures, E targets, P starts.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np
from scipy.optimize import brentq, minimize

from jaxprune.config.mix import MANY_EPOCHS
from jaxprune.mix.laws.bimix import BiMixForm
from jaxprune.mix.laws.law import FittedLaw, varies
from jaxprune.mix.laws.parametric import FittedParametric
from jaxprune.mix.laws.trees import FittedTrees
from jaxprune.mix.table import MixtureTable
from jaxprune.mix.threads import one_thread

_STEP = 1e-5  # of central differences in proportions
_STARTS = 8
_TINY = 1e-12
_NOISE = 1e-3  # nats, of a mean loss: nearer mixtures are not told apart
_ROUNDING = 1e-9  # of sums of bounds
_SAMPLES, _BEST = 20_000, 128  # of mixtures, where a law has no slopes


@dataclass(frozen=True, kw_only=True)
class Optimum:
    """A recommended mixture, and what laws say of it and of others.

    Attributes:
      weights: by domain.
      loss: the weighted mean loss that the law predicts for it, nats per token; what draws to the natural mixture is
        not part of it.
      tokens: at which.
      compared: name of a mixture (`optimum`, `natural`, `uniform`, `best observed`) -> name of a law -> mean loss.
        A mixture outside the range of the runs is extrapolated.
      bounded: domain -> the bound that its weight stands at.
      notes: what to know before it is trusted, a line each.
    """

    law: str
    weights: dict[str, float]
    loss: float
    tokens: float
    compared: dict[str, dict[str, float]]
    bounded: dict[str, str]
    notes: tuple[str, ...]


@one_thread()
def optimum(
    fitted: FittedLaw,
    *,
    second: FittedLaw | None = None,
    natural: Mapping[str, float] | None = None,
    evaluation: Mapping[str, float] | None = None,
    floors: Mapping[str, float] | None = None,
    available: Mapping[str, float] | None = None,
    epochs: float = MANY_EPOCHS,
    tokens: float | None = None,
    params: float | None = None,
    kl: float = 0.0,
    extrapolate: bool = False,
) -> Optimum:
    """The mixture at which a weighted mean of the targets' losses is least.

    The objective is the mean loss over targets (BiMix, 2405.14908, Eq. 15), plus `kl` times the divergence from the
    natural mixture (Olmix, 2602.12237).

    Args:
      fitted: the law that is minimised.
      second: a law of another kind, which is asked for its opinion.
      natural: the corpus's own proportions.
      evaluation: target -> its weight in the mean; targets that are not named do not count. None: all alike.
      floors: domain -> least proportion.
      available: domain -> tokens there are; a domain is not repeated more than `epochs` times.
      epochs: see `available`.
      tokens: of the run that is planned: caps follow from it, and the law is asked at it where it knows more than
        one number of tokens. None: the most in the table.
      params: of the planned model, likewise.
      kl: weight of the divergence, nats.
      extrapolate: leave the range of proportions in which each domain was observed.

    Raises:
      ValueError: a name is no domain or target, the bounds leave no mixture, or `kl` has no natural mixture.
    """
    for name, given in (
        ("natural", natural),
        ("evaluation", evaluation),
        ("floors", floors),
        ("available", available),
    ):
        check_pairs(given, name)
    for name, value in (("tokens", tokens), ("params", params), ("epochs", epochs), ("kl", kl)):
        check_number(value, name)
    table = fitted.table
    _check(fitted, second, available, tokens, epochs)
    natural_K = _proportions(natural, fitted.domains, "natural")
    missing = [] if natural is None else [name for name in fitted.domains if name not in natural]
    if missing:
        raise ValueError(
            f"natural leaves out {', '.join(missing)}: give every domain; 0 for one that the corpus lacks"
        )
    if not 0 <= kl < np.inf:
        raise ValueError(f"kl is {kl:g}: give a finite number, 0 or more")
    if kl > 0 and natural_K is None:
        raise ValueError(f"kl is {kl:g} but there is no natural mixture to stay near: give natural")
    share_E = _shares(evaluation, fitted.targets)
    planned = float(table.tokens_R.max() if tokens is None else tokens)
    bounds = _bounds(fitted, floors, available, epochs, planned, extrapolate)
    low_K, high_K = bounds
    problem = _Problem(fitted, share_E, None if tokens is None else planned, params, kl, natural_K)
    weights_K = _closed_form(problem, low_K, high_K)
    if weights_K is None:
        search = _sample if isinstance(fitted, FittedTrees) else _descend
        weights_K = search(problem, low_K, high_K)
    mixtures = {"optimum": weights_K}
    if natural_K is not None:
        mixtures["natural"] = natural_K
    mixtures["uniform"] = np.full(len(low_K), 1 / len(low_K))
    mixtures["best observed"] = _best_observed(fitted, share_E)
    laws = {fitted.law.name: fitted} | ({second.law.name: second} if second is not None else {})
    compared = {
        name: {law: float(_mean_loss(of, mixture_K, share_E, problem)) for law, of in laws.items()}
        for name, mixture_K in mixtures.items()
    }
    return Optimum(
        law=fitted.law.name,
        weights=dict(zip(fitted.domains, weights_K.tolist(), strict=True)),
        loss=compared["optimum"][fitted.law.name],
        tokens=planned,
        compared=compared,
        bounded=_bounded(fitted.domains, weights_K, low_K, high_K),
        notes=(
            *_notes(fitted, second, compared, mixtures, low_K, high_K),
            *_of_scale(fitted, tokens),
            *(
                ("the table has one model size: params are left aside",)
                if params and not varies(table.params_R)
                else ()
            ),
        ),
    )


def check_pairs(given: object, name: str, known: Collection[str] | None = None) -> None:
    """Raises ValueError unless `given` is None or a mapping of names, `known` where these are given, to numbers."""
    if given is None:
        return
    if not isinstance(given, Mapping):
        raise ValueError(f"{name} is {given!r}: give a dictionary of names and numbers")
    for key, value in given.items():
        if known is not None and key not in known:
            raise ValueError(f"{name} names {key}: the table has {', '.join(known)}")
        if not _is_number(value):
            raise ValueError(f"{name} has {value!r} for {key}: give a number")


def check_number(value: object, name: str) -> None:
    """Raises ValueError unless `value` is None or a number."""
    if value is not None and not _is_number(value):
        raise ValueError(f"{name} is {value!r}: give a number")


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)


@dataclass(frozen=True)
class _Problem:
    """What is minimised."""

    fitted: FittedLaw
    share_E: np.ndarray
    tokens: float | None
    params: float | None
    kl: float
    natural_K: np.ndarray | None

    def __call__(self, weights_NK: np.ndarray) -> np.ndarray:
        """The objective of mixtures, [N]; of no more than the law's own rounding off the simplex."""
        weights_NK = weights_NK / weights_NK.sum(axis=1, keepdims=True)
        value_N = _losses(self.fitted, weights_NK, self) @ self.share_E
        if self.kl > 0 and self.natural_K is not None:
            ratio_NK = np.maximum(weights_NK, _TINY) / np.maximum(self.natural_K, _TINY)
            value_N = value_N + self.kl * (weights_NK * np.log(ratio_NK)).sum(axis=1)
        return value_N

    def gradient(self, weights_K: np.ndarray) -> np.ndarray:
        """Central differences, one call of the law for all of them."""
        step_KK = _STEP * np.eye(len(weights_K))
        low_KK = np.maximum(weights_K - step_KK, 0)
        values = self(np.concatenate([weights_K + step_KK, low_KK]))
        width_K = np.diag(weights_K + step_KK - low_KK)
        return (values[: len(weights_K)] - values[len(weights_K) :]) / width_K


def _check(
    fitted: FittedLaw,
    second: FittedLaw | None,
    available: Mapping[str, float] | None,
    tokens: float | None,
    epochs: float,
) -> None:
    if second is not None:
        if second.law.name == fitted.law.name:
            raise ValueError(f"the second law is {second.law.name} too: ask a law of another kind, or none")
        if (second.domains, second.targets) != (fitted.domains, fitted.targets):
            raise ValueError("the second law was fitted to other domains or targets: fit both to one table")
    if available and tokens is None and fitted.table.tokens_R.max() == 1:
        raise ValueError(
            "available is given, but the table has no tokens: give the tokens of the planned run"
        )
    if fitted.table.n_mixtures < 2:
        raise ValueError(
            "the table has one mixture, so that no other can be compared with it: run two or more"
        )
    for name, value in (("tokens", tokens), ("epochs", epochs)):
        if value is not None and not 0 < value < np.inf:
            raise ValueError(f"{name} is {value:g}: give a finite number above 0")


def _closed_form(problem: _Problem, low_K: np.ndarray, high_K: np.ndarray) -> np.ndarray | None:
    """BiMix's optimum: r_i = (w_i alpha_i K_i / lambda)^(1 / (1 + alpha_i)), clipped, with the one lambda that makes
    them sum to one (the Lagrange conditions of 2405.14908, Eq. 16). None where it does not hold: another law, a domain
    that two targets depend on, a floor, or a divergence."""
    fitted = problem.fitted
    if not isinstance(fitted, FittedParametric) or problem.kl > 0:
        return None
    forms = [fit.form for fit in fitted.fits]
    counted = [e for e, share in enumerate(problem.share_E) if share > 0]
    owns = [
        form.domain
        for e, form in enumerate(forms)
        if isinstance(form, BiMixForm) and not form.floor and e in counted
    ]
    if len(owns) < len(counted) or len(set(owns)) < len(owns):
        return None
    x = 0.0 if problem.tokens is None else float(np.log(problem.tokens / fitted.table.tokens_R.max()))
    alpha_K, gain_K = np.zeros(len(low_K)), np.zeros(len(low_K))
    for e in counted:
        form, theta_P = forms[e], fitted.fits[e].solution.theta_P
        assert isinstance(form, BiMixForm)
        alpha = max(
            float(theta_P[0]), 0.0
        )  # below 0: more of the domain does not help, and it gets its least
        alpha_K[form.domain] = alpha
        gain_K[form.domain] = problem.share_E[e] * alpha * form.bracket(theta_P, x)

    def at(log_multiplier: float) -> np.ndarray:
        with np.errstate(divide="ignore"):
            return np.clip(np.exp((np.log(gain_K) - log_multiplier) / (1 + alpha_K)), low_K, high_K)

    if high_K.sum() <= 1 + _ROUNDING or low_K.sum() >= 1 - _ROUNDING:
        return project(low_K, low_K, high_K)
    if at(-200.0).sum() < 1 or not gain_K.any():  # what remains goes to domains that no target depends on
        return None
    return at(float(brentq(lambda m: at(m).sum() - 1, -200.0, 200.0, xtol=1e-14)))  # pyright: ignore[reportArgumentType]


def _descend(problem: _Problem, low_K: np.ndarray, high_K: np.ndarray) -> np.ndarray:
    """Sequential quadratic programming from several mixtures; laws with poles or hills have more than one minimum."""
    k = len(low_K)
    rng = np.random.default_rng(0)
    observed_NK = np.unique(problem.fitted.table.weights_RK.round(9), axis=0)
    starts_NK = np.concatenate([np.full((1, k), 1 / k), observed_NK, rng.dirichlet(np.ones(k), 256)])
    starts_NK = np.stack([project(start_K, low_K, high_K) for start_K in starts_NK])
    order = np.argsort(problem(starts_NK))[:_STARTS]
    best, best_K = np.inf, starts_NK[order[0]]
    for start_K in starts_NK[order]:
        found = minimize(
            lambda w_K: float(problem(w_K[None])[0]),
            start_K,
            jac=problem.gradient,
            bounds=list(zip(low_K, high_K, strict=True)),
            constraints={"type": "eq", "fun": lambda w_K: w_K.sum() - 1, "jac": lambda w_K: np.ones(k)},
            method="SLSQP",
            options={"ftol": 1e-12, "maxiter": 300},
        )
        candidate_K = project(found.x, low_K, high_K)
        value = float(problem(candidate_K[None])[0])
        if value < best:
            best, best_K = value, candidate_K
    return best_K


def _sample(problem: _Problem, low_K: np.ndarray, high_K: np.ndarray) -> np.ndarray:
    """The mean of the best of many mixtures, for laws of steps (RegMix, 2407.01492, section 3.4)."""
    rng = np.random.default_rng(0)
    observed_NK = problem.fitted.table.weights_RK
    around_NK = observed_NK[rng.integers(len(observed_NK), size=_SAMPLES // 2)]
    drawn_NK = np.concatenate(
        [
            rng.dirichlet(np.ones(len(low_K)), _SAMPLES - len(around_NK)),
            rng.standard_gamma(30 * around_NK + 0.3),
        ]
    )
    drawn_NK = drawn_NK / drawn_NK.sum(axis=1, keepdims=True)
    inside_NK = np.stack([project(drawn_K, low_K, high_K) for drawn_K in drawn_NK])
    best = np.argsort(problem(inside_NK), kind="stable")[:_BEST]
    return inside_NK[best].mean(axis=0)


def project(weights_K: np.ndarray, low_K: np.ndarray, high_K: np.ndarray) -> np.ndarray:
    """The nearest mixture within bounds: weights are shifted alike and clipped until they sum to one."""
    if high_K.sum() <= 1 + _ROUNDING:
        return high_K / high_K.sum()
    if low_K.sum() >= 1 - _ROUNDING:
        return low_K / low_K.sum()
    lowest, highest = (low_K - weights_K).min(), (high_K - weights_K).max()
    shift = brentq(
        lambda s: np.clip(weights_K + s, low_K, high_K).sum() - 1, lowest - 1, highest + 1, xtol=1e-15
    )
    return np.clip(weights_K + shift, low_K, high_K)  # pyright: ignore[reportOperatorIssue]


def _bounds(
    fitted: FittedLaw,
    floors: Mapping[str, float] | None,
    available: Mapping[str, float] | None,
    epochs: float,
    tokens: float,
    extrapolate: bool,
) -> tuple[np.ndarray, np.ndarray]:
    domains, observed_RK = fitted.domains, fitted.table.weights_RK
    low_K, high_K = np.full(len(domains), 1e-6), np.ones(len(domains))
    reason = "floors and caps"
    if not extrapolate:
        low_K, high_K = observed_RK.min(axis=0), observed_RK.max(axis=0)
        reason += f" and the range of the {len(fitted.table.runs)} runs (extrapolate leaves it)"
    for name, value in (available or {}).items():
        k = _index(name, domains, "available")
        if not value >= 0:
            raise ValueError(f"available tokens of {name} are {value}: give a number, 0 or more")
        high_K[k] = min(high_K[k], epochs * value / tokens)
    low_K = np.minimum(low_K, high_K)  # what there is decides, even below what was tried
    for name, value in (floors or {}).items():
        k = _index(name, domains, "floors")
        if not 0 <= value <= 1:
            raise ValueError(f"the floor of {name} is {value}: give a proportion from 0 to 1")
        low_K[k] = max(low_K[k], value)
    crossed = [domains[k] for k in np.flatnonzero(low_K > high_K + _TINY)]
    if crossed:
        raise ValueError(
            f"{', '.join(crossed)}: the floor is above what {reason} allow: lower the floor, or allow more epochs"
        )
    if low_K.sum() > 1 + _ROUNDING:
        raise ValueError(f"the least proportions of {reason} sum to {low_K.sum():.4g}, above one: lower them")
    if high_K.sum() < 1 - _ROUNDING:
        raise ValueError(
            f"the most that {reason} allow sums to {high_K.sum():.4g}, below one: allow more epochs (now {epochs:g}), "
            "plan fewer tokens, or add data"
        )
    return low_K, np.maximum(high_K, low_K)


def _best_observed(fitted: FittedLaw, share_E: np.ndarray) -> np.ndarray:
    """The mixture of the run that measured best at the end; missing losses count as the law predicts them."""
    end = _ends(fitted.table)
    predicted_RE = fitted.predict(end.weights_RK, end.tokens_R, end.params_R)
    loss_RE = np.where(np.isfinite(end.loss_RE), end.loss_RE, predicted_RE)
    return end.weights_RK[int(np.argmin(loss_RE @ share_E))]


def _ends(table: MixtureTable) -> MixtureTable:
    """The rows at the tokens that most runs reached; where they share none, the last of each run."""
    try:
        return table.end()
    except ValueError:
        return table.last()


def _mean_loss(law: FittedLaw, weights_K: np.ndarray, share_E: np.ndarray, problem: _Problem) -> float:
    return float((_losses(law, weights_K[None], problem) @ share_E)[0])


def _losses(law: FittedLaw, weights_NK: np.ndarray, problem: _Problem) -> np.ndarray:
    """Losses at the planned tokens and parameters; of a law that knows one number of them, there."""
    known = law.table
    tokens = problem.tokens if varies(known.tokens_R) else None
    params = problem.params if varies(known.params_R) else None
    return law.predict(weights_NK, tokens, params)


def _bounded(
    domains: tuple[str, ...], weights_K: np.ndarray, low_K: np.ndarray, high_K: np.ndarray
) -> dict[str, str]:
    bounded = {}
    for domain, weight, low, high in zip(domains, weights_K, low_K, high_K, strict=True):
        if weight <= low + 1e-6:
            bounded[domain] = f"least, {low:.4g}"
        elif weight >= high - 1e-6:
            bounded[domain] = f"most, {high:.4g}"
    return bounded


def _notes(
    fitted: FittedLaw,
    second: FittedLaw | None,
    compared: dict[str, dict[str, float]],
    mixtures: dict[str, np.ndarray],
    low_K: np.ndarray,
    high_K: np.ndarray,
) -> tuple[str, ...]:
    notes = []
    least_K, most_K = fitted.table.weights_RK.min(axis=0), fitted.table.weights_RK.max(axis=0)
    for name, mixture_K in mixtures.items():
        outside = [
            domain
            for domain, w, low, high in zip(fitted.domains, mixture_K, least_K, most_K, strict=True)
            if not low - 1e-6 <= w <= high + 1e-6
        ]
        if outside:
            notes.append(
                f"the {name} mixture is outside the range of the runs in {', '.join(outside)}: its loss is extrapolated"
            )
    if second is None:
        notes.append("no second law was asked")
    else:
        law = second.law.name
        for other in ("uniform", "natural", "best observed"):
            if other not in compared:
                continue
            allowed = (low_K - _ROUNDING <= mixtures[other]).all() and (
                mixtures[other] <= high_K + _ROUNDING
            ).all()
            if allowed and compared["optimum"][law] > compared[other][law] + _NOISE:
                gap = compared["optimum"][law] - compared[other][law]
                notes.append(f"{law} disagrees: it puts the optimum {gap:.4f} nats above the {other} mixture")
    return tuple(notes)


def _of_scale(fitted: FittedLaw, tokens: float | None) -> tuple[str, ...]:
    known_R = fitted.table.tokens_R
    if tokens is None or tokens == known_R.max():
        return ()
    if not varies(known_R):
        return (
            f"the runs have {known_R.max():.3g} tokens and {tokens:.3g} are planned: the law takes the best mixture for the same",
        )
    if tokens > known_R.max():
        return (
            f"{tokens:.3g} tokens are {tokens / known_R.max():.3g} times the most of the runs: losses are extrapolated",
        )
    return ()


def _index(name: str, known: tuple[str, ...], what: str) -> int:
    if name not in known:
        raise ValueError(f"{what} names {name}: the table has {', '.join(known)}")
    return known.index(name)


def _proportions(given: Mapping[str, float] | None, domains: tuple[str, ...], what: str) -> np.ndarray | None:
    if given is None:
        return None
    values_K = np.zeros(len(domains))
    for name, value in given.items():
        values_K[_index(name, domains, what)] = value
    if not (np.isfinite(values_K).all() and (values_K >= 0).all() and values_K.sum() > 0):
        raise ValueError(f"{what} is {dict(given)}: give finite numbers of 0 or more, not all 0")
    return values_K / values_K.sum()


def _shares(evaluation: Mapping[str, float] | None, targets: tuple[str, ...]) -> np.ndarray:
    if evaluation is None:
        return np.full(len(targets), 1 / len(targets))
    shares_E = _proportions(evaluation, targets, "evaluation")
    assert shares_E is not None
    return shares_E
