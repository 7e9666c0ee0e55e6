"""A training run: its model, its optimizer, its length, and the devices that it is laid out on."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from jaxprune.config.base import Settings, check, neutral
from jaxprune.config.model import Model


@dataclass(frozen=True, kw_only=True)
class Optimizer(Settings):
    """Optimizer and learning-rate schedule."""

    name: Literal["adamw", "lion", "muon"] = "adamw"
    """`lion` is the decoupled Lion of the pruning paper (Ankner et al., section 3.1)."""
    peak_lr: float = 6e-4
    """Highest learning rate."""
    weight_decay: float | None = None
    """adamw, muon: decay per step is lr x weight_decay; None: 0.1. lion: decay per step is weight_decay
    x lr / peak_lr (decoupled, as in Composer); None: peak_lr, as in the paper."""
    b1: float | None = None
    """First momentum (muon: of the AdamW part); None: 0.9."""
    b2: float | None = None
    """Second momentum (muon: of the AdamW part); None: 0.95 for adamw and muon, 0.99 for lion."""
    eps: float = 1e-8
    """AdamW's denominator floor."""
    clip: float | None = 1.0
    """Global gradient norm above which gradients are scaled down; None: never."""
    schedule: Literal["cosine", "wsd", "constant"] = "cosine"
    """Shape after warm-up; `wsd`: stable, then a linear decay over the last `decay` share."""
    warmup: float = 0.02
    """Share of the steps over which the learning rate rises from 0."""
    decay: float = 0.2
    """wsd: share of the steps over which the learning rate falls."""
    final_lr: float = 0.1
    """Learning rate at the end, as a share of peak_lr."""

    def check_values(self) -> None:
        for name in ("peak_lr", "eps"):
            value = getattr(self, name)
            check(0 < value < math.inf, f"optimizer.{name} is {value}: set a finite number above 0")
        check(
            0 <= self.shrinkage < math.inf,
            f"optimizer.weight_decay is {self.weight_decay}: set a finite number, 0 or more",
        )
        for name, value in zip(("b1", "b2"), self.momenta, strict=True):
            check(0 <= value < 1, f"optimizer.{name} is {value}: set a number in [0, 1)")
        for name in ("warmup", "decay", "final_lr"):
            value = getattr(self, name)
            check(0 <= value <= 1, f"optimizer.{name} is {value}: set a share between 0 and 1")
        check(
            self.clip is None or self.clip > 0,
            f"optimizer.clip is {self.clip}: set a number above 0, or None",
        )
        check(
            self.schedule != "wsd" or self.warmup + self.decay <= 1,
            f"optimizer.warmup is {self.warmup} and optimizer.decay {self.decay}: "
            "under wsd make them add up to 1 at most",
        )

    @property
    def shrinkage(self) -> float:
        """Weight decay, or the optimizer's own."""
        if self.weight_decay is not None:
            return self.weight_decay
        return self.peak_lr if self.name == "lion" else 0.1

    @property
    def momenta(self) -> tuple[float, float]:
        """b1 and b2, or the optimizer's own."""
        usual_b2 = 0.99 if self.name == "lion" else 0.95
        return 0.9 if self.b1 is None else self.b1, usual_b2 if self.b2 is None else self.b2


@dataclass(frozen=True, kw_only=True)
class Run(Settings):
    """One training run: the reference, a proxy or the final model."""

    model: Model = field(default_factory=Model)
    optimizer: Optimizer = field(default_factory=Optimizer)
    tokens: int = 2_500_000_000
    """Tokens to train on, rounded up to whole steps."""
    batch_rows: int = 256
    """Rows of a global batch (B); a step trains on batch_rows x model.context tokens."""
    microbatches: int = neutral(1)
    """Parts into which a batch is cut; gradients are summed over them."""
    validate_every: int = neutral(250)
    """Steps between validations on the fixed held-out rows; 0: only at the end."""
    validation_rows: int = neutral(8)
    """Held-out rows for each domain (the same each time)."""
    checkpoint_every: int = neutral(250)
    """Steps between checkpoints."""
    keep_checkpoints: int = neutral(2)
    """Newest checkpoints that are kept while the run lasts; in the end only the last is."""
    log_every: int = neutral(10)
    """Steps between lines of metrics."""

    def check_values(self) -> None:
        for name in ("tokens", "batch_rows", "microbatches", "validation_rows", "checkpoint_every", "keep_checkpoints", "log_every"):  # fmt: skip
            value = getattr(self, name)
            check(value > 0, f"{name} is {value}: set a number above 0")
        check(self.validate_every >= 0, f"validate_every is {self.validate_every}: set 0 or more")
        check(
            self.batch_rows % self.microbatches == 0,
            f"microbatches is {self.microbatches}: set a divisor of batch_rows, {self.batch_rows}",
        )

    @property
    def steps(self) -> int:
        """Optimizer steps of the run."""
        return -(-self.tokens // (self.batch_rows * self.model.context))

    @property
    def trained_tokens(self) -> int:
        """Tokens of these steps."""
        return self.steps * self.batch_rows * self.model.context


@dataclass(frozen=True, kw_only=True)
class Mesh(Settings):
    """How devices are arranged; -1 takes the devices that the other axes leave."""

    replica: int = 1
    """Copies of the parameters: data parallelism across slices or nodes."""
    fsdp: int = -1
    """Parts into which parameters and batches are cut."""
    tensor: int = 1
    """Parts into which heads, MLP and vocabulary are cut."""

    def check_values(self) -> None:
        sizes = (self.replica, self.fsdp, self.tensor)
        check(
            all(size > 0 or size == -1 for size in sizes) and sizes.count(-1) <= 1,
            f"mesh is {sizes}: set sizes above 0, and -1 for at most one axis",
        )
