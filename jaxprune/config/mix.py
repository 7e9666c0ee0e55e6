"""In what proportions the domains are drawn from."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from jaxprune.config.base import Settings, check


@dataclass(frozen=True, kw_only=True)
class Mix(Settings):
    """Proportions of the domains in the final run's training tokens."""

    method: Literal["natural", "uniform", "temperature", "fixed"] = "natural"
    """natural: the kept tokens of each domain; temperature: natural ** (1 / temperature)."""
    temperature: float = 2.0
    """temperature: 1 is natural, infinity is uniform; no other method uses it."""
    weights: dict[str, float] = field(default_factory=dict)
    """fixed: a weight for each domain; they are divided by their sum."""
    max_epochs: float | None = None
    """Refuse a run in which a domain repeats more often than this; None: only warn above 4."""

    def check_values(self) -> None:
        check(
            self.temperature > 0,
            f"mix.temperature is {self.temperature}: set a number above 0",
        )
        check(
            self.max_epochs is None or self.max_epochs > 0,
            f"mix.max_epochs is {self.max_epochs}: set a number above 0, or None",
        )
        check(
            all(0 <= weight < math.inf for weight in self.weights.values()),
            f"mix.weights is {self.weights}: weights must not be negative or infinite",
        )
        check(
            self.method != "fixed" or sum(self.weights.values()) > 0,
            "mix.method is fixed but mix.weights is empty: give a weight for each domain (--mix.weights DOMAIN WEIGHT ...)",
        )
        check(
            self.method == "fixed" or not self.weights,
            f"mix.weights is given but mix.method is {self.method}: set mix.method to fixed, or give no weights",
        )
