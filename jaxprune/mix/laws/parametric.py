"""Laws with coefficients: for each target a function of mixture, tokens and parameters, fitted to log losses.

Legend: N rows, K domains, P coefficients, E targets.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np

from jaxprune.mix.laws.law import Coefficient, FittedLaw, Law, one_target, varies
from jaxprune.mix.laws.solve import Solution, solve
from jaxprune.mix.table import MixtureTable

NOISE = 3e-3  # of a log loss, between seeds and orders of the data; sets how much a prior weighs
SINGULAR = 1e12  # condition number of J^T J from which on coefficients are not told apart


class Points(NamedTuple):
    """Where a law is evaluated."""

    weights_NK: np.ndarray
    x_N: np.ndarray  # log of tokens over the table's
    z_N: np.ndarray  # log of parameters over the table's


class Curve(NamedTuple):
    """Values of a law and their derivatives in its coefficients."""

    log_loss_N: np.ndarray
    jacobian_NP: np.ndarray


@dataclass(frozen=True, kw_only=True)
class Form(ABC):
    """The function of one target.

    Attributes:
      names: of the coefficients.
      lower_P, upper_P: their bounds.
    """

    names: tuple[str, ...]
    lower_P: np.ndarray
    upper_P: np.ndarray

    @abstractmethod
    def curve(self, theta_P: np.ndarray, points: Points) -> Curve:
        """Log losses and their Jacobian."""

    @abstractmethod
    def starts(self, points: Points, loss_N: np.ndarray) -> Sequence[np.ndarray]:
        """Coefficients to begin a fit with."""

    def prior(self) -> tuple[np.ndarray, np.ndarray]:
        """A Gaussian prior as rows of (A, b): A theta - b has standard deviation one. None: no rows."""
        return np.zeros((0, len(self.names))), np.zeros(0)

    def importance(self, points: Points) -> np.ndarray:
        """What the residual of each row is multiplied by."""
        return np.ones(len(points.x_N))

    def shown(self, theta_P: np.ndarray) -> dict[str, float]:
        """Coefficients as the paper writes them."""
        return dict(zip(self.names, theta_P.tolist(), strict=True))

    def usable(self, points: Points) -> np.ndarray:
        """Mask of the rows that the law can be fitted to."""
        return np.ones(len(points.x_N), bool)

    def doubts(self, theta_P: np.ndarray, points: Points) -> list[str]:
        """What the points cannot tell, or the coefficients say against the law, a line each."""
        n_mixtures, k = len(np.unique(points.weights_NK.round(6), axis=0)), points.weights_NK.shape[1]
        if n_mixtures > k:
            return []
        return [f"{n_mixtures} mixtures cannot tell {k} domains apart: only the prior decides"]


@dataclass(frozen=True, kw_only=True)
class ParametricLaw(Law):
    """A law whose targets are fitted one by one."""

    delta: float = 1e-2  # log-loss residuals beyond it count in proportion (Huber)
    knows_params: ClassVar[bool] = False  # whether losses may depend on the size of the model

    @abstractmethod
    def forms(self, table: MixtureTable) -> list[Form]:
        """The candidates for a table of one target: the one that fits best is taken."""

    def fit(self, table: MixtureTable) -> FittedLaw:
        fits, notes = [], []
        if varies(table.params_R) and not self.knows_params:
            notes.append(f"{self.name} does not know model sizes, which vary: their losses are pooled")
        for e, target in enumerate(table.targets):
            fit = self._fit_target(one_target(table, e), table)
            fits.append(fit)
            notes += [f"{target}: {note}" for note in fit.notes]
        return self.fitted(table, fits, tuple(notes))

    def fitted(self, table: MixtureTable, fits: list[TargetFit], notes: tuple[str, ...]) -> FittedLaw:
        """What a fit of all targets is."""
        return FittedParametric(self, table, fits, notes)

    def _fit_target(self, table: MixtureTable, of: MixtureTable) -> TargetFit:
        [target] = table.targets
        if len(table) == 0:
            raise ValueError(f"{self.name}: no loss of {target} was measured: leave the target out")
        points, log_loss_N = points_of(table, of), np.log(table.loss_RE[:, 0])
        form = self._best_form(self.forms(table), points, log_loss_N)
        if form is None:
            raise ValueError(
                f"{self.name}: no row of {target} can be used, all its proportions are 0: use a law that can"
            )
        usable_N = form.usable(points)
        rows = Points(*(part[usable_N] for part in points))
        solution = fit_form(form, rows, log_loss_N[usable_N], self.delta)
        n_dropped = int((~usable_N).sum())
        notes = (*_notes(form, solution, table, n_dropped), *form.doubts(solution.theta_P, rows))
        return TargetFit(form=form, solution=solution, n_dropped=n_dropped, notes=notes)

    def _best_form(self, forms: list[Form], points: Points, log_loss_N: np.ndarray) -> Form | None:
        """The one that fits best, on the rows that all can use; those that can use less than half are no candidates."""
        usable = [(form, form.usable(points)) for form in forms]
        most = max(int(usable_N.sum()) for _, usable_N in usable)
        usable = [
            (form, usable_N) for form, usable_N in usable if usable_N.any() and 2 * usable_N.sum() >= most
        ]
        if len(usable) < 2:
            return usable[0][0] if usable else None
        common_N = np.logical_and.reduce([usable_N for _, usable_N in usable])
        costs = []
        for form, usable_N in usable:
            rows_N = common_N if common_N.any() else usable_N
            rows = Points(*(part[rows_N] for part in points))
            costs.append(fit_form(form, rows, log_loss_N[rows_N], self.delta).cost / rows_N.sum())
        return usable[int(np.argmin(costs))][0]


@dataclass(frozen=True, kw_only=True)
class TargetFit:
    """One target's function and coefficients."""

    form: Form
    solution: Solution
    n_dropped: int  # rows that the law cannot use
    notes: tuple[str, ...]


class FittedParametric(FittedLaw):
    """Coefficients for each target."""

    law: ParametricLaw

    def __init__(
        self, law: ParametricLaw, table: MixtureTable, fits: list[TargetFit], notes: tuple[str, ...]
    ) -> None:
        super().__init__(law, table, notes)
        self.fits = fits

    def _predict(self, weights_NK: np.ndarray, tokens_N: np.ndarray, params_N: np.ndarray) -> np.ndarray:
        points = Points(
            weights_NK,
            np.log(tokens_N / _center(self.table.tokens_R)),
            np.log(params_N / _center(self.table.params_R)),
        )
        with np.errstate(divide="ignore", over="ignore"):
            curves = [fit.form.curve(fit.solution.theta_P, points).log_loss_N for fit in self.fits]
        return np.exp(np.stack(curves, axis=1))

    def refitted(self, table: MixtureTable) -> FittedLaw:
        """From the coefficients of the whole table; anew where other rows may choose another form, or miss a target."""
        ones = [one_target(table, e) for e in range(len(table.targets))]
        if table.targets != self.targets or any(
            len(one) == 0 or len(self.law.forms(one)) > 1 for one in ones
        ):
            return self.law.fit(table)
        fits = []
        for fit, one in zip(self.fits, ones, strict=True):
            points = points_of(one, table)
            usable_N = fit.form.usable(points)
            if not usable_N.any():
                return self.law.fit(table)
            rows = Points(*(values_N[usable_N] for values_N in points))
            log_loss_N = np.log(one.loss_RE[usable_N, 0])
            solution = fit_form(fit.form, rows, log_loss_N, self.law.delta, [fit.solution.theta_P])
            n_dropped = int((~usable_N).sum())
            fits.append(TargetFit(form=fit.form, solution=solution, n_dropped=n_dropped, notes=()))
        return self.law.fitted(table, fits, ())

    def coefficients(
        self, n_resamples: int = 100, level: float = 0.95, seed: int = 0
    ) -> tuple[Coefficient, ...]:
        """Coefficients with percentile intervals of a bootstrap over runs.

        Rows of one run have correlated errors, so that whole runs are drawn; a single run has no interval (NaN).
        """
        if not 0 < level < 1:
            raise ValueError(f"level is {level:g}: set a share between 0 and 1, such as 0.95")
        rng = np.random.default_rng(seed)
        rows_of = [np.flatnonzero(self.table.run_R == run) for run in self.table.runs]
        n_resamples = n_resamples if len(rows_of) > 1 else 0
        draws = [rng.integers(len(rows_of), size=len(rows_of)) for _ in range(n_resamples)]
        samples = [self._resampled(np.concatenate([rows_of[run] for run in draw])) for draw in draws]
        coefficients = []
        for e, (target, fit) in enumerate(zip(self.targets, self.fits, strict=True)):
            drawn = [sample[e] for sample in samples if sample[e]]
            for name, value in fit.form.shown(fit.solution.theta_P).items():
                values = [shown[name] for shown in drawn]
                low, high = (
                    np.quantile(values, [(1 - level) / 2, (1 + level) / 2]) if values else (np.nan, np.nan)
                )
                coefficients.append(
                    Coefficient(target=target, name=name, value=value, low=float(low), high=float(high))
                )
        return tuple(coefficients)

    def _resampled(self, rows: np.ndarray) -> list[dict[str, float]]:
        """Coefficients of each target on other rows, from those of the whole table."""
        table = self.table.rows(rows)
        shown = []
        for e, fit in enumerate(self.fits):
            one = one_target(table, e)
            points = points_of(one, self.table)
            usable_N = fit.form.usable(points)
            if not usable_N.any():
                shown.append({})
                continue
            part = Points(*(values[usable_N] for values in points))
            solution = fit_form(
                fit.form, part, np.log(one.loss_RE[usable_N, 0]), self.law.delta, [fit.solution.theta_P]
            )
            shown.append(fit.form.shown(solution.theta_P))
        return shown


def fit_form(
    form: Form,
    points: Points,
    log_loss_N: np.ndarray,
    delta: float,
    starts: Sequence[np.ndarray] | None = None,
) -> Solution:
    """The coefficients that fit log losses best, under the prior of the form."""
    prior_AP, prior_A = form.prior()
    importance_N = form.importance(points)

    def residuals(theta_P: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        curve = form.curve(theta_P, points)
        return (
            np.concatenate(
                [importance_N * (curve.log_loss_N - log_loss_N), NOISE * (prior_AP @ theta_P - prior_A)]
            ),
            np.concatenate([importance_N[:, None] * curve.jacobian_NP, NOISE * prior_AP]),
        )

    starts = form.starts(points, np.exp(log_loss_N)) if starts is None else starts
    return solve(residuals, starts, form.lower_P, form.upper_P, delta, n_data=len(log_loss_N))


def points_of(table: MixtureTable, of: MixtureTable) -> Points:
    """The rows of a table, with tokens and parameters relative to those of the table `of`."""
    return Points(
        table.weights_RK,
        np.log(table.tokens_R / _center(of.tokens_R)),
        np.log(table.params_R / _center(of.params_R)),
    )


def _center(values_R: np.ndarray) -> float:
    return float(values_R.max())


def _notes(form: Form, solution: Solution, table: MixtureTable, n_dropped: int) -> tuple[str, ...]:
    notes = []
    if n_dropped:
        notes.append(f"{n_dropped} of {len(table)} rows cannot be used, their own proportion is 0")
    at_bound = [name for name, at in zip(form.names, solution.at_bound_P, strict=True) if at]
    if at_bound:
        notes.append(f"{', '.join(at_bound)} {'is' if len(at_bound) == 1 else 'are'} at a bound of the fit")
    n_coefficients = len(form.names)
    if len(table) < n_coefficients:
        notes.append(
            f"{len(table)} rows for {n_coefficients} coefficients: only the prior decides between them"
        )
    elif solution.condition > SINGULAR:
        notes.append(
            f"the data cannot tell the coefficients apart (condition number {solution.condition:.0e})"
        )
    return tuple(notes)
