"""Which scored documents are kept."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from jaxprune.config.base import Settings, check
from jaxprune.config.score import Signal

Arm = Literal["none", "random", "pruned", "reweighted", "within_domain"]


@dataclass(frozen=True, kw_only=True)
class Select(Settings):
    """Which scored documents are kept."""

    signals: tuple[Signal, ...] = ("perplexity",)
    """What documents are ranked by; several are combined."""
    information_per: Literal["token", "byte", "document"] = "token"
    """What the signal information is divided by."""
    combine: Literal["intersection", "product"] = "intersection"
    """Of several signals: documents inside the same band of each, whose width is such that `rate` survives;
    or a band of the product of their ranks."""
    criterion: Literal["low", "medium", "high", "random", "proportional", "threshold"] = "medium"
    """What is kept: a band of the ranks (Ankner et al., section 2); a random draw, of equal chances or
    (proportional) in proportion to exp(signal / temperature); or (threshold) signals from low to high."""
    rate: float = 0.5
    """Share that is kept; threshold does not use it."""
    rates: dict[str, float] = field(default_factory=dict)
    """Share that is kept of a domain, with scope domain (--select.rates code .2 tests .9); domains that are not named
    keep `rate`."""
    scope: Literal["global", "domain"] = "global"
    """Rank over the whole corpus, or inside each domain (which leaves the mixture as it is)."""
    weight: Literal["documents", "tokens"] = "documents"
    """What `rate` is a share of."""
    temperature: float = 1.0
    """proportional: in the unit of the signal; small ones keep the highest, negative ones prefer low signals."""
    low: float | None = None
    """threshold: the lowest signal that is kept, in its unit (perplexity: nats per token); None: no limit."""
    high: float | None = None
    """threshold: the highest signal that is kept; None: no limit."""
    min_tokens: int = 8
    """Documents with fewer tokens have noisy scores: they are not ranked, and are removed."""

    def check_values(self) -> None:
        check(
            len(self.signals) > 0 and len(set(self.signals)) == len(self.signals),
            f"select.signals is {self.signals}: name one signal or more, each once",
        )
        check(
            self.criterion not in ("proportional", "threshold") or len(self.signals) == 1,
            f"select.criterion is {self.criterion}, which takes one signal, but select.signals is {self.signals}: "
            "name one, or set select.criterion to low, medium or high",
        )
        check(
            0 < self.rate <= 1,
            f"select.rate is {self.rate}: set a share above 0 and up to 1, such as 0.5",
        )
        check(
            all(0 <= rate <= 1 for rate in self.rates.values()),
            f"select.rates is {self.rates}: set shares from 0 to 1",
        )
        check(
            not self.rates or self.scope == "domain",
            f"select.rates is given but select.scope is {self.scope}: set select.scope to domain, or give no rates",
        )
        check(
            self.temperature != 0 and math.isfinite(self.temperature),
            f"select.temperature is {self.temperature}: set a finite number that is not 0",
        )
        check(
            self.criterion != "threshold" or not (self.low is None and self.high is None),
            "select.criterion is threshold but select.low and select.high are None: set one of them or both",
        )
        for name in ("low", "high"):
            value = getattr(self, name)
            check(
                value is None or math.isfinite(value),
                f"select.{name} is {value}: set a finite number, or None for no limit",
            )
        check(
            self.low is None or self.high is None or self.low <= self.high,
            f"select.low is {self.low} and select.high {self.high}: set a higher select.high",
        )
        check(self.min_tokens >= 1, f"select.min_tokens is {self.min_tokens}: set 1 or more")
