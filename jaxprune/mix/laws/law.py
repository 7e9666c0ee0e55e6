"""What a mixing law is to its users: `fit(table)` gives a fitted law, which predicts losses of mixtures.

Legend: N mixtures to predict, K domains, E targets.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from jaxprune.mix.table import MixtureTable

if TYPE_CHECKING:
    from jaxprune.mix.optimum import Optimum


@dataclass(frozen=True, kw_only=True)
class Coefficient:
    """A coefficient of a fitted law, with the interval that a bootstrap over runs gives it."""

    target: str
    name: str
    value: float
    low: float
    high: float


class Law(ABC):
    """A family of functions from mixtures to losses, before it has seen any."""

    name: ClassVar[str]
    source: ClassVar[str]  # paper

    @abstractmethod
    def fit(self, table: MixtureTable) -> FittedLaw:
        """The member of the family that fits the table.

        Raises:
          ValueError: the table cannot tell the coefficients, in one line.
        """


_SPREAD = 0.01  # of logs
_LEAST, POLE = 1e-6, 1e6  # nats per token, of predictions


class FittedLaw(ABC):
    """A law that predicts the losses of its table's targets.

    Attributes:
      law: what was fitted.
      table: to what.
      notes: warnings of the fit, a line each.
    """

    def __init__(self, law: Law, table: MixtureTable, notes: tuple[str, ...] = ()) -> None:
        self.law, self.table, self.notes = law, table, notes
        self.domains, self.targets = table.domains, table.targets

    def predict(self, weights_NK: np.ndarray, tokens_N: Any = None, params_N: Any = None) -> np.ndarray:
        """Losses of mixtures, [N, E], nats per token; at most 1e6 where a law has a pole.

        Args:
          weights_NK: proportions of the table's domains; one mixture [K] is taken as one row.
          tokens_N: training tokens, one for all or one each; None: the most in the table.
          params_N: parameters of the model, likewise; None: the most in the table.

        Raises:
          ValueError: shapes do not fit, weights do not sum to one, or the law knows one number of tokens only.
        """
        weights_NK = np.atleast_2d(np.asarray(weights_NK, float))
        if weights_NK.ndim != 2 or weights_NK.shape[1] != len(self.domains):
            raise ValueError(
                f"weights have shape {weights_NK.shape}: give [N, {len(self.domains)}], a proportion for each of {', '.join(self.domains)}"
            )
        total_N = weights_NK.sum(axis=1)
        if not np.allclose(total_N, 1, atol=1e-6) or (weights_NK < -1e-9).any():
            worst = float(total_N[np.argmax(np.abs(total_N - 1))])
            raise ValueError(
                f"weights sum to {worst:.6g}, the least is {weights_NK.min():.3g}: give proportions that sum to one"
            )
        weights_NK = np.maximum(weights_NK, 0)
        tokens_N = _each(tokens_N, self.table.tokens_R, len(weights_NK), "tokens")
        params_N = _each(params_N, self.table.params_R, len(weights_NK), "params")
        return np.clip(self._predict(weights_NK, tokens_N, params_N), _LEAST, POLE)

    @abstractmethod
    def _predict(self, weights_NK: np.ndarray, tokens_N: np.ndarray, params_N: np.ndarray) -> np.ndarray: ...

    def coefficients(
        self, n_resamples: int = 100, level: float = 0.95, seed: int = 0
    ) -> tuple[Coefficient, ...]:
        """Coefficients with intervals of a bootstrap over runs; a law that has none gives none."""
        return ()

    def refitted(self, table: MixtureTable) -> FittedLaw:
        """The same law fitted to other rows of its table; a law that can starts from where it is."""
        return self.law.fit(table)

    def optimum(self, **constraints: Any) -> Optimum:
        """The mixture of least predicted loss; the arguments are those of `jaxprune.mix.optimum.optimum`."""
        from jaxprune.mix.optimum import optimum

        return optimum(self, **constraints)


def varies(values_R: np.ndarray) -> bool:
    """Whether positive numbers (tokens, parameters) differ by enough to fit an exponent to."""
    return float(np.ptp(np.log(values_R))) > _SPREAD


def one_target(table: MixtureTable, e: int) -> MixtureTable:
    """The rows in which target `e` was measured, with that target alone."""
    name = table.targets[e]
    one = dataclasses.replace(table, targets=(name,), loss_RE=table.loss_RE[:, e : e + 1])
    return one.rows(np.isfinite(one.loss_RE[:, 0]))


def _each(given: Any, known_R: np.ndarray, n: int, what: str) -> np.ndarray:
    values_N = np.broadcast_to(np.asarray(known_R.max() if given is None else given, float), (n,))
    if not (values_N > 0).all():
        raise ValueError(f"{what} is {values_N.min():g}: give numbers above 0")
    if not varies(known_R) and not np.allclose(values_N, known_R.max(), rtol=0.02):
        raise ValueError(
            f"{what} is {values_N[0]:g}, but the law was fitted at {known_R.max():g} alone: fit a table with several numbers of {what}"
        )
    return values_N
