"""The whole tree of settings: everything that a run needs."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Literal

from jaxprune.config.audit import Audit
from jaxprune.config.base import NEUTRAL, Settings, check, neutral
from jaxprune.config.data import Corpus, Tokenizer
from jaxprune.config.mix import Mix, Swarm
from jaxprune.config.run import Mesh, Run
from jaxprune.config.score import Score, Signal
from jaxprune.config.select import Arm, Select


@dataclass(frozen=True, kw_only=True)
class Config(Settings):
    """Everything `jaxprune run` needs."""

    name: str
    """Name of the run, shown in the report."""
    seed: int = 0
    """Seed of the splits, the reference model and the random arms."""
    corpus: Corpus = field(default_factory=Corpus)
    tokenizer: Tokenizer = field(default_factory=Tokenizer)
    reference: Run = field(default_factory=Run)
    second: Run = field(default_factory=Run)
    """Another size, trained on the documents of the reference where score.model is `second`, or where a signal reads
    score.second (or score.ask.model), which is."""
    score: Score = field(default_factory=Score)
    select: Select = field(default_factory=Select)
    mix: Mix = field(default_factory=Mix)
    swarm: Swarm = field(default_factory=Swarm)
    final: Run = field(default_factory=Run)
    audit: Audit = field(default_factory=Audit, metadata=NEUTRAL)
    arms: tuple[Arm, ...] = ("none", "random", "pruned")
    """Final runs to compare, all with the same number of training tokens. none: no pruning; random:
    random at the same rate; pruned: `select`; reweighted: random, re-weighted to the domain shares
    of `pruned`; within_domain: `select` inside each domain."""
    seeds: tuple[int, ...] = (0, 1)
    """Each arm is trained once with each seed."""
    mesh: Mesh = field(default_factory=Mesh, metadata=NEUTRAL)
    profile: str | None = neutral(None)
    """Steps FIRST:LAST of every training run that are traced, such as 10:15; the trace is in profile/ of the run's folder
    and opens in XProf, TensorBoard or Perfetto."""
    metrics: tuple[Literal["tensorboard"], ...] = neutral(("tensorboard",))
    """Where metrics go besides metrics.jsonl."""

    def check_values(self) -> None:
        check(
            self.profile is None or self.profile_steps is not None,
            f"profile is {self.profile}: set FIRST:LAST, two steps from 1 on in this order, such as 10:15",
        )
        check(
            len(self.arms) > 0 and len(set(self.arms)) == len(self.arms),
            f"arms is {self.arms}: name each arm once",
        )
        check(
            len(self.seeds) > 0 and len(set(self.seeds)) == len(self.seeds),
            f"seeds is {self.seeds}: name each seed once",
        )
        for name, seeds in (("seed", (self.seed,)), ("seeds", self.seeds)):
            check(
                all(0 <= seed < 2**32 for seed in seeds),  # jax takes the lower 32 bits
                f"{name} is {getattr(self, name)}: set whole numbers from 0 to {2**32 - 1}",
            )
        check(
            self.swarm.arm in (None, "none", *self.arms),
            f"swarm.arm is {self.swarm.arm}, which is not one of arms: name one of {', '.join(self.arms)}, or none",
        )
        check(
            self.score.target is not None or "dsir" not in self.signals,
            "the signal dsir needs score.target, which is None: name text that documents should be like",
        )
        check(
            self.score.ask.model is not None or "ask_llm" not in self.signals,
            "the signal ask_llm needs score.ask.model, which is None: name the folder of an instruction model",
        )
        check(
            "vog" not in self.signals or self.reference.steps >= self.score.vog_checkpoints,
            f"score.vog_checkpoints is {self.score.vog_checkpoints} and the reference takes {self.reference.steps} steps: "
            "set that or less, or raise reference.tokens",
        )
        compared = sorted({"ratio", "excess"} & {*self.signals})
        check(
            not compared or self.score.second not in (None, self.score.model),
            f"the signal {' and '.join(compared)} needs a model beside score.model ({self.score.model}), and score.second "
            f"is {self.score.second}: set it to second (trained here) or to a folder",
        )
        for name, value in (("scope", "domain"), ("criterion", "random")):
            check(
                getattr(self.select, name) != value or not {"pruned", "within_domain"} <= set(self.arms),
                f"select.{name} is {value}, which makes the arms pruned and within_domain the same: leave out one",
            )

    @property
    def profile_steps(self) -> tuple[int, int] | None:
        """First and last step of `profile`."""
        found = re.fullmatch(r"(\d+):(\d+)", self.profile or "")
        steps = None if found is None else (int(found[1]), int(found[2]))
        return steps if steps is not None and 1 <= steps[0] <= steps[1] else None

    @property
    def signals(self) -> tuple[Signal, ...]:
        """The signals that select or that are asked for beside."""
        return tuple(dict.fromkeys((*self.select.signals, *self.score.signals)))

    @property
    def compared(self) -> tuple[str, ...]:
        """The models whose NLL is taken in the same windows: that of the scores, and a second if a signal reads it."""
        first, second = self.score.model, self.score.second
        is_read = not {"ratio", "excess"}.isdisjoint(self.signals)
        return (first, second) if is_read and second is not None else (first,)

    @property
    def models(self) -> tuple[str, ...]:
        """The models that scores and signals read, each once."""
        of_signals = {"vog": "reference", "ask_llm": self.score.ask.model}
        read = [name for signal, name in of_signals.items() if signal in self.signals and name is not None]
        return tuple(dict.fromkeys((*self.compared, *read)))

    @property
    def scorers(self) -> tuple[str, ...]:
        """Those of the models that are trained here."""
        return tuple(name for name in ("reference", "second") if name in self.models)

    @property
    def vog_steps(self) -> tuple[int, ...]:
        """The steps of the reference run whose parameters the signal vog reads; none if it is not asked for."""
        if "vog" not in self.signals:
            return ()
        parts, steps = self.score.vog_checkpoints, self.reference.steps
        return tuple(steps * part // parts for part in range(1, parts + 1))

    @property
    def proxy_arm(self) -> Arm:
        """The arm whose documents the proxies are trained on."""
        if self.swarm.arm is not None:
            return self.swarm.arm
        return "pruned" if "pruned" in self.arms else self.arms[0]

    @property
    def final_runs(self) -> dict[str, tuple[Arm, int]]:
        """Name (`<arm>-<seed>`) -> arm and seed of each final run."""
        return {f"{arm}-{seed}": (arm, seed) for arm in self.arms for seed in self.seeds}
