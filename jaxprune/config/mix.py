"""In what proportions the domains are drawn from, and the runs from which that is found."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from jaxprune.config.base import Settings, check, neutral
from jaxprune.config.model import Model
from jaxprune.config.online import Ado, Aioli, DoGE, DoReMi, Odm, Own, SkillIt
from jaxprune.config.run import Run
from jaxprune.config.select import Arm

MANY_EPOCHS = 4  # up to which repeated data is nearly as good as new (Muennighoff et al., arXiv 2305.16264)

Prior = Literal[
    "natural", "uniform", "temperature", "fixed", "unimax", "entropy", "law", "best", "doremi", "doge"
]
Method = Literal["natural", "uniform", "temperature", "fixed", "stages", "unimax", "entropy", "law", "best", "doremi", "doge",
                 "aioli", "skillit", "odm", "ado", "own"]  # fmt: skip
ONLINE = ("aioli", "skillit", "odm", "ado", "own")
"""Methods that decide while the final model trains."""
LEARNT = ("doremi", "doge")
"""Methods whose weights a proxy learns while it trains."""

LawName = Literal["combined", "bimix", "bimix_floor", "exponential", "loglinear", "reciprocal", "joint", "autoscale",
                  "trees", "linear", "gaussian_process"]  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class MixStage(Settings):
    """Proportions that hold from some time of the run on."""

    at: float = 0.0
    """Share of the run's steps after which they begin; the first at 0."""
    weights: dict[str, float] = field(default_factory=dict)
    """A weight for each domain; they are divided by their sum."""

    def check_values(self) -> None:
        check(0 <= self.at < 1, f"mix.stages: at is {self.at}: set a share from 0 to below 1")
        check(
            all(0 <= weight < math.inf for weight in self.weights.values())
            and sum(self.weights.values()) > 0,
            f"mix.stages: the weights at {self.at} are {self.weights}: give finite ones, none negative, not all 0",
        )


@dataclass(frozen=True, kw_only=True)
class Mix(Settings):
    """Proportions of the domains in the final run's training tokens."""

    method: Method = "natural"
    """natural: the kept tokens of each domain; temperature: natural ** (1 / temperature); fixed: `weights`; stages:
    `stages`; unimax: as uniform as `max_epochs` allows (arXiv 2304.09151); entropy: in proportion to exp(entropy) of the
    text; law: the optimum of a mixing law, fitted to the losses of a swarm of proxies; best: the mixture of the swarm's
    best proxy; doremi, doge: learnt by a proxy. Decided while the run goes on: aioli, skillit (which learns a graph from
    proxies first), odm, ado, own (a class of yours)."""
    temperature: float = 2.0
    """temperature: 1 is natural, infinity is uniform; no other method uses it."""
    weights: dict[str, float] = field(default_factory=dict)
    """fixed: a weight for each domain; they are divided by their sum."""
    stages: tuple[MixStage, ...] = ()
    """stages: weights that change at given times."""
    prior: Prior = "uniform"
    """online methods: the method whose weights the run begins with, for prior_share of its steps. odm begins with them
    too, and ado leans to them."""
    prior_share: float = 0.0
    """online methods: share of the steps on the weights of `prior`, before the strategy begins."""
    rows: int = 4
    """aioli, skillit, own: held-out rows of each domain whose losses the strategy is told, the same each time."""
    aioli: Aioli = field(default_factory=Aioli)
    skillit: SkillIt = field(default_factory=SkillIt)
    odm: Odm = field(default_factory=Odm)
    ado: Ado = field(default_factory=Ado)
    own: Own = field(default_factory=Own)
    doremi: DoReMi = field(default_factory=DoReMi)
    doge: DoGE = field(default_factory=DoGE)
    law: LawName = "combined"
    """law: which one (docs/mixing.md)."""
    second: LawName = "reciprocal"
    """law: another one, which is asked what it thinks of the optimum."""
    extrapolate: bool = False
    """law: allow proportions outside the range of the swarm's runs."""
    entropy: Literal["shannon", "joint", "conditional", "von_neumann"] = "conditional"
    """entropy: of the tokens, of adjacent tokens, of a token given the one before (BiMix's best), of documents."""
    max_epochs: float | None = None
    """Refuse a run in which a domain repeats more often than this; None: only warn above 4. law, unimax: no domain is
    given more; None: 4. Online methods: weights are cut to it; None: never."""

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
            0 <= self.prior_share < 1,
            f"mix.prior_share is {self.prior_share}: set a share from 0 to below 1",
        )
        check(
            self.method != "skillit" or self.prior not in LEARNT,
            f"mix.method is skillit and mix.prior {self.prior}, which both train proxies: set another prior",
        )
        check(self.rows > 0, f"mix.rows is {self.rows}: set 1 or more")
        check(
            self.method != "own" or self.own.strategy != "",
            "mix.method is own, and mix.own.strategy is not given: name a file and a class in it, as FILE.py:CLASS",
        )
        starts = [stage.at for stage in self.stages]
        check(
            self.method != "stages" or self.stages != (),
            "mix.method is stages, and none is given: give mix.stages, each the share of the run after which it begins and a "
            "weight for every domain, such as --mix.stages 0 code 1 web 3 0.7 code 1 web 1",
        )
        check(
            self.method != "stages" or (starts[:1] == [0.0] and starts == sorted({*starts})),
            f"mix.method is stages, which begin at {starts}: let the first begin at 0 and each later one after it",
        )
        check(
            self.method == "stages" or not self.stages,
            f"mix.stages is given but mix.method is {self.method}: set mix.method to stages, or give none",
        )
        check(
            self.offline != "law" or self.law != self.second,
            f"mix.second is {self.second}, as mix.law: name another law",
        )
        check(
            self.offline != "fixed" or sum(self.weights.values()) > 0,
            f"mix.{self._named} is fixed but mix.weights is empty: give a weight for each domain (--mix.weights DOMAIN WEIGHT ...)",
        )
        check(
            self.offline == "fixed" or not self.weights,
            f"mix.weights is given but mix.{self._named} is {self.offline}: set mix.method to fixed, or give no weights",
        )

    @property
    def is_online(self) -> bool:
        """Whether weights are decided while the final model trains."""
        return self.method in ONLINE

    @property
    def offline(self) -> Method:
        """What decides the weights that a final run begins with."""
        return self.prior if self.is_online else self.method

    @property
    def learns(self) -> str | None:
        """The method that trains proxies of its own, if one does."""
        return "skillit" if self.method == "skillit" else self.offline if self.offline in LEARNT else None

    @property
    def _named(self) -> str:
        return "prior" if self.is_online else "method"


@dataclass(frozen=True, kw_only=True)
class Swarm(Settings):
    """Proxies: small models trained on many mixtures, from whose held-out losses a mixing law is fitted."""

    design: Literal["dirichlet", "grid", "maximin"] = "dirichlet"
    """How mixtures are chosen. dirichlet: draws around the natural one (RegMix); grid: caps halved again and
    again (Data Mixing Laws); maximin: far from each other, the natural and the uniform among them."""
    runs: int | None = None
    """Mixtures; None: as many as a law across domains needs, 3 x (domains + 1)."""
    strengths: tuple[float, float] = (0.1, 5.0)
    """dirichlet: least and largest concentration of the draws; small ones are nearly one domain alone."""
    power: float = 0.5
    """dirichlet: they are around natural ** power; 0 is uniform."""
    floor: float = 0.0
    """maximin: least proportion of every domain; above 0 for laws with a pole at 0."""
    max_epochs: float = 15.0
    """Most epochs of a domain in a proxy, which caps its proportion (RegMix: 15)."""
    seeds: tuple[int, ...] = (0,)
    """Each mixture is trained once with each seed; several show the noise that a law cannot explain."""
    arm: Arm | None = None
    """Whose documents proxies are trained on; None: those of `pruned` where arms has it, else of the first arm.
    `none` needs no scores. Random arms: those of their first seed."""
    simulate_epochs: bool = True
    """Cut each domain to the share proxy tokens / final tokens of its documents, so that a proxy repeats
    data as often as the final run does (arXiv 2606.07597)."""
    proxy: Run = field(
        default_factory=lambda: Run(
            model=Model(d_model=256, n_layers=2, n_heads=4), tokens=1_000_000_000, batch_rows=128
        )
    )
    """What is trained on each mixture; the default is of the size of RegMix's: some million parameters without
    embeddings, a billion tokens."""
    checkpoints: int = 10
    """Evenly spaced times of a proxy's training at which its held-out losses are taken, its end included;
    takes the place of proxy.validate_every."""
    together: int | None = neutral(None)
    """Proxies that are trained at once as one program, on the same devices; None: 1 on CPUs, 8 elsewhere."""

    def check_values(self) -> None:
        for name in ("runs", "together"):
            value = getattr(self, name)
            check(value is None or value > 0, f"swarm.{name} is {value}: set a number above 0, or None")
        low, high = self.strengths
        check(
            0 < low <= high < math.inf,
            f"swarm.strengths is {self.strengths}: set the least and the largest, both above 0",
        )
        check(0 <= self.power <= 1, f"swarm.power is {self.power}: set a number from 0 to 1")
        check(0 <= self.floor < 1, f"swarm.floor is {self.floor}: set a share from 0 up to 1 / domains")
        check(self.max_epochs > 0, f"swarm.max_epochs is {self.max_epochs}: set a number above 0")
        check(
            len(self.seeds) > 0 and len(set(self.seeds)) == len(self.seeds),
            f"swarm.seeds is {self.seeds}: name each seed once",
        )
        check(
            all(0 <= seed < 2**32 for seed in self.seeds),  # jax takes the lower 32 bits
            f"swarm.seeds is {self.seeds}: set whole numbers from 0 to {2**32 - 1}",
        )
        check(
            0 < self.checkpoints <= self.proxy.steps,
            f"swarm.checkpoints is {self.checkpoints} and a proxy takes {self.proxy.steps} steps: set a number from 1 "
            "to that",
        )
