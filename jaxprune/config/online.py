"""Strategies that change the mixture while the final model trains: their settings, with the papers' defaults."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from jaxprune.config.base import Settings, check


@dataclass(frozen=True, kw_only=True)
class Aioli(Settings):
    """Learns on the running model how the domains help each other (arXiv 2411.05735); docs/mixing.md."""

    rounds: int = 20
    """T: times that it learns and decides."""
    sweeps: int = 4
    """k: segments of each domain in a round, after each of which held-out losses are taken."""
    segment_steps: int | None = None
    """Steps of a segment; None: as many as `learning` gives."""
    learning: float = 0.1
    """delta: share of a round that is in segments, at least a step each; where segment_steps is None."""
    smoothing: float = 0.75
    """epsilon: share of a segment that is uniform over the domains; the rest is one domain."""
    eta: float = 0.2
    """Step of the exponentiated gradient."""
    ema: float | None = None
    """None: weights follow from those before (the paper). Else each round starts afresh, from what was learnt in all
    rounds, where this is the share of the past (the released scripts: 0.1 or 0.5)."""
    interactions: Literal["full", "diagonal"] = "full"
    """diagonal: what a domain does for the others is taken for nothing (Aioli-diagonal)."""
    estimator: Literal["least_squares", "reference"] = "least_squares"
    """reference: of intended shares, without drift and confidence, as in the authors' code."""
    drift: bool = True
    """Let the loss fall with time whatever is trained on; needs 2 sweeps."""
    confidence: float | None = 0.75
    """With which domains must be told apart before weights move; needs 2 sweeps. None: they always move."""
    floor: float = 0.01
    """Least weight of a domain, as a share of the uniform one."""
    shuffle: Literal["sweep", "round"] = "sweep"
    """Order of a round's segments: each sweep shuffled by itself (as released), or all together (the paper)."""
    targets: dict[str, float] = field(default_factory=dict)
    """What the held-out loss of each domain counts, 0 where it is not named; empty: all the same."""

    def check_values(self) -> None:
        for name in ("rounds", "sweeps"):
            check(getattr(self, name) > 0, f"mix.aioli.{name} is {getattr(self, name)}: set 1 or more")
        check(
            self.segment_steps is None or self.segment_steps > 0,
            f"mix.aioli.segment_steps is {self.segment_steps}: set 1 or more, or None",
        )
        check(0 < self.learning <= 1, f"mix.aioli.learning is {self.learning}: set a share above 0, up to 1")
        check(
            0 <= self.smoothing < 1,
            f"mix.aioli.smoothing is {self.smoothing}: set a share from 0 to below 1; at 1 all segments are the same",
        )
        check(0 <= self.eta < math.inf, f"mix.aioli.eta is {self.eta}: set a finite number, 0 or more")
        check(
            self.ema is None or 0 <= self.ema < 1,
            f"mix.aioli.ema is {self.ema}: set a share from 0 to below 1, or None",
        )
        check(
            self.confidence is None or 0 <= self.confidence < 1,
            f"mix.aioli.confidence is {self.confidence}: set a share from 0 to below 1, or None",
        )
        check(
            0 <= self.floor < 1,
            f"mix.aioli.floor is {self.floor}: set a share from 0 to below 1, at which no weight could move",
        )
        check(
            self.sweeps > 1
            or self.estimator == "reference"
            or not (self.drift or self.confidence is not None),
            "mix.aioli.sweeps is 1, after which neither drift nor noise can be told: set 2 or more, or "
            "mix.aioli.drift False and mix.aioli.confidence None",
        )
        check(
            all(0 <= weight < math.inf for weight in self.targets.values())
            and (not self.targets or sum(self.targets.values()) > 0),
            f"mix.aioli.targets is {self.targets}: weights must not be negative or infinite, nor all 0",
        )


@dataclass(frozen=True, kw_only=True)
class SkillIt(Settings):
    """A graph of what runs on single domains do for the others, times the present losses (arXiv 2307.14430)."""

    rounds: int = 10
    """Times that weights change."""
    evaluations: int = 2
    """Of the held-out losses in a round."""
    eta: float = 0.2
    """How sharply weights follow."""
    window: int = 3
    """Evaluations whose losses are summed."""

    def check_values(self) -> None:
        for name in ("rounds", "evaluations", "window"):
            check(getattr(self, name) > 0, f"mix.skillit.{name} is {getattr(self, name)}: set 1 or more")
        check(0 <= self.eta < math.inf, f"mix.skillit.eta is {self.eta}: set a finite number, 0 or more")


@dataclass(frozen=True, kw_only=True)
class Odm(Settings):
    """A bandit whose reward is the training loss (arXiv 2312.02406)."""

    alpha: float = 0.9
    """Share of the past in the smoothed rewards."""
    every: int = 1
    """Steps between decisions."""
    warmup: int = 0
    """Steps before the first decision, if more than `every`."""
    form: Literal["paper", "released", "released_single"] = "paper"
    """paper: rewards over weights, exponential; released: rewards exp(loss), weights linear in them (the authors' code),
    or exponential (their code for single domains)."""

    def check_values(self) -> None:
        check(0 <= self.alpha < 1, f"mix.odm.alpha is {self.alpha}: set a share from 0 to below 1")
        check(self.every > 0, f"mix.odm.every is {self.every}: set 1 or more")
        check(self.warmup >= 0, f"mix.odm.warmup is {self.warmup}: set 0 or more")


@dataclass(frozen=True, kw_only=True)
class Ado(Settings):
    """Power laws of the training losses, and more of what falls fastest (arXiv 2410.11820). The prior is mix.prior."""

    every: int = 1
    """Steps between decisions."""
    refit: int = 1000
    """Steps between fits, and before the first; until then weights are those of mix.prior."""
    history: float = 0.9
    """Share of the past in the smoothed shares that were drawn."""
    policy: float = 0.1
    """Share of the newest preference in the weights; the rest is the average of all."""
    exponent: float = 0.5
    """Power of the shares that were drawn."""
    floor: float = 0.05
    """Least exponent of a law that a slope is taken with."""
    least: float = 0.01
    """Least weight of a domain in a preference, before these are divided by their sum."""

    def check_values(self) -> None:
        for name in ("every", "refit"):
            check(getattr(self, name) > 0, f"mix.ado.{name} is {getattr(self, name)}: set 1 or more")
        for name in ("history", "policy", "least"):
            check(
                0 <= getattr(self, name) <= 1,
                f"mix.ado.{name} is {getattr(self, name)}: set a share from 0 to 1",
            )
        for name in ("exponent", "floor"):
            check(
                0 <= getattr(self, name) < math.inf,
                f"mix.ado.{name} is {getattr(self, name)}: set a finite number, 0 or more",
            )


@dataclass(frozen=True, kw_only=True)
class Own(Settings):
    """A strategy of your own (docs/mixing.md)."""

    strategy: str = ""
    """FILE.py:CLASS, a jaxprune.train.strategy.Strategy. Its text is part of what a run is made by."""
    settings: dict[str, float] = field(default_factory=dict)
    """It is called with these, beside domains, prior_K (weights of mix.prior), steps and seed."""


@dataclass(frozen=True, kw_only=True)
class DoReMi(Settings):
    """Weights of the domains in which a proxy lags behind a reference of its size (arXiv 2305.10429). Both are
    swarm.proxy, once for each of swarm.seeds."""

    eta: float = 1.0
    """Step of the exponentiated gradient."""
    smoothing: float = 1e-3
    """Share of the weights that is uniform, after each step."""
    form: Literal["paper", "mean"] = "paper"
    """Excess losses are cut at 0 by token, or (mean: as in Aioli's baselines, there with eta 0.01) by domain."""

    def check_values(self) -> None:
        check(0 <= self.eta < math.inf, f"mix.doremi.eta is {self.eta}: set a finite number, 0 or more")
        check(0 <= self.smoothing <= 1, f"mix.doremi.smoothing is {self.smoothing}: set a share from 0 to 1")


@dataclass(frozen=True, kw_only=True)
class DoGE(Settings):
    """Weights of the domains whose gradients agree with the others' in a proxy (arXiv 2310.15393): swarm.proxy, once for
    each of swarm.seeds, with a backward pass for each domain."""

    mu: float = 0.01
    """What agreement is divided by; small: sharp. Agreement is in units of the learning rate: 0.01 is for AdamW's (5e-4)."""
    smoothing: float = 0.0
    """Share of the weights that is uniform, after each step."""
    clip: float = 5.0
    """Longest gradient of a domain."""
    against: Literal["domains", "heldout"] = "domains"
    """What gradients must agree with: those of the other domains, or that of held-out rows."""

    def check_values(self) -> None:
        for name in ("mu", "clip"):
            value = getattr(self, name)
            check(0 < value < math.inf, f"mix.doge.{name} is {value}: set a finite number above 0")
        check(0 <= self.smoothing <= 1, f"mix.doge.smoothing is {self.smoothing}: set a share from 0 to 1")
