"""What a run says of itself while it trains: sums, times, and the lines made of them.

K domains.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from jaxprune import config
from jaxprune.artifact import StageError
from jaxprune.model import flops
from jaxprune.train.hardware import peak_flops
from jaxprune.train.metrics import Metrics
from jaxprune.train.optimizer import make_schedule
from jaxprune.train.step import StepMetrics


class Diverged(StageError):
    """The loss is not finite."""


@dataclass
class Clock:
    """Goodput: the share of the time since the run began in which it was stepping.

    Compilation of the step counts as stepping; validation, saving, restarts and steps that a kill took
    back do not. The clock is part of the checkpoint, so a run killed before its first one begins anew.
    """

    began: float = dataclasses.field(default_factory=time.time)  # unix time
    stepping: float = 0.0  # seconds
    since: float | None = None

    def resume(self) -> None:
        self.since = time.time()

    def pause(self) -> None:
        if self.since is not None:
            self.stepping += time.time() - self.since
        self.since = None

    @property
    def seconds(self) -> float:
        """Spent stepping so far."""
        return self.stepping + (0.0 if self.since is None else time.time() - self.since)

    @property
    def goodput(self) -> float:
        return self.seconds / max(time.time() - self.began, 1e-9)


class Window:
    """Sums over the steps since the last line of metrics; part of the checkpoint."""

    def __init__(self, n_domains: int, **saved: list[float]) -> None:
        self.nll_K = np.array(saved.get("nll", [0.0] * n_domains))
        self.tokens_K = np.array(saved.get("tokens", [0.0] * n_domains))
        self.intended_K = np.array(saved.get("intended", [0.0] * n_domains))  # tokens, by the weights

    def state(self) -> dict[str, list[float]]:
        """Plain data to make it again."""
        sums = {"nll": self.nll_K, "tokens": self.tokens_K, "intended": self.intended_K}
        return {name: sum_K.tolist() for name, sum_K in sums.items()}

    def add(self, metrics: StepMetrics, weights_K: tuple[float, ...]) -> None:
        self.nll_K += np.asarray(metrics.nll_sum_K, np.float64)
        self.tokens_K += np.asarray(metrics.tokens_K, np.float64)
        self.intended_K += np.array(weights_K) * float(metrics.tokens_K.sum())

    def reset(self) -> None:
        for sum_K in (self.nll_K, self.tokens_K, self.intended_K):
            sum_K[:] = 0.0


class Log:
    """Turns metrics of steps into lines."""

    def __init__(
        self,
        title: str,
        run: config.Run,
        *,
        domains: tuple[str, ...],
        vocab_size: int,
        mesh: jax.sharding.Mesh,
        metrics: Metrics | None,
        clock: Clock,
        window: Window,
        weights_of: Callable[[int], tuple[float, ...]],
    ) -> None:
        """`weights_of` a step says what its batch was drawn with."""
        self.title, self.run, self.domains, self.mesh = title, run, domains, mesh
        self.metrics, self.clock, self.window, self.weights_of = metrics, clock, window, weights_of
        self.schedule = make_schedule(run.optimizer, run.steps)
        self.tokens_a_step = run.batch_rows * run.model.context
        self.flops_a_token = flops.train_flops_per_token(run.model, vocab_size, run.model.context)
        self.last: tuple[float, int] | None = None  # seconds of stepping, and step, of the last line
        self.note = "compiling"

    def step(self, step: int, metrics: StepMetrics) -> None:
        """Adds a step to the window and writes a line where one is due.

        Raises:
          Diverged: its loss or its gradient is not finite.
        """
        metrics = jax.device_get(metrics)
        loss, norm = float(metrics.nll_sum_K.sum() / metrics.tokens_K.sum()), float(metrics.grad_norm)
        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise Diverged(
                f"{self.title}: the loss of step {step} is {loss} and its gradient norm {norm}; lower "
                f"optimizer.peak_lr ({self.run.optimizer.peak_lr}) or optimizer.clip, or look at the data"
            )
        self.window.add(metrics, self.weights_of(step))
        self.note = f"step {step}  loss {loss:.3f}"
        if step % self.run.log_every == 0 or step == self.run.steps:
            self._line(step, norm, metrics.learnt_K)

    def validation(self, step: int, values: dict[str, float]) -> None:
        """Writes a line with held-out losses."""
        if self.metrics is not None:
            self.metrics.write(step, step * self.tokens_a_step, values)

    def _line(self, step: int, grad_norm: float, learnt_K: Any) -> None:
        window = self.window
        values = {
            "loss": float(window.nll_K.sum() / window.tokens_K.sum()),
            "grad_norm": grad_norm,
            "lr": float(np.asarray(self.schedule(step - 1))),
            "goodput": self.clock.goodput,
        }
        now = self.clock.seconds
        if self.last is not None:
            then, logged = self.last
            values["tokens_per_s"] = (step - logged) * self.tokens_a_step / max(now - then, 1e-9)
            peak = peak_flops(self.mesh.devices.flat[0].device_kind)
            if peak is not None:
                # MFU counts 6 N + 12 L D T FLOPs a token (full attention) against dense bf16 peak.
                achieved = values["tokens_per_s"] * self.flops_a_token
                values["mfu"] = achieved / (peak * self.mesh.size)
        self.last = (now, step)
        sums = zip(self.domains, window.nll_K, window.tokens_K, window.intended_K, strict=True)
        for domain, nll, tokens, intended in sums:
            if tokens:
                values[f"loss/{domain}"] = float(nll / tokens)
                values[f"share/{domain}"] = float(tokens / window.tokens_K.sum())
            if intended:
                values[f"weight/{domain}"] = float(intended / window.tokens_K.sum())
        if learnt_K is not None:
            named = zip(self.domains, learnt_K.tolist(), strict=True)
            values |= {f"learnt/{domain}": weight for domain, weight in named}
        if self.metrics is not None:
            self.metrics.write(step, step * self.tokens_a_step, values)
        window.reset()
