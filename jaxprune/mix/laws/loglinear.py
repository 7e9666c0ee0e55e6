"""The log-linear law of Olmix (2602.12237), whose optimum stays near the natural mixture."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from jaxprune.mix.laws.exponential import Exponential
from jaxprune.mix.laws.law import FittedLaw
from jaxprune.mix.laws.parametric import FittedParametric, TargetFit
from jaxprune.mix.table import MixtureTable

if TYPE_CHECKING:
    from jaxprune.mix.optimum import Optimum


@dataclass(frozen=True, kw_only=True)
class LogLinear(Exponential):
    """L_i(r) = exp(c_i) + exp(t_i . r): the function of `exponential`, without its prior.

    What is Olmix's is the optimum: the divergence from the natural mixture counts with it, and a domain is repeated
    at most four times.

    Attributes:
      kl: weight of the divergence from the natural mixture, nats.
    """

    name = "loglinear"
    source = "2602.12237"
    prior_sd: float = 1e3
    kl: float = 0.05

    def fitted(self, table: MixtureTable, fits: list[TargetFit], notes: tuple[str, ...]) -> FittedLaw:
        return FittedLogLinear(self, table, fits, notes)


class FittedLogLinear(FittedParametric):
    """Coefficients for each target."""

    law: LogLinear

    def optimum(self, *, natural: Mapping[str, float] | None = None, **constraints: Any) -> Optimum:
        """As of other laws, with the law's own `kl` where a natural mixture is given."""
        constraints.setdefault("kl", self.law.kl if natural is not None else 0.0)
        return super().optimum(natural=natural, **constraints)
