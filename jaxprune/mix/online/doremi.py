"""DoReMi: weights of the domains in which a proxy lags most behind a reference (Xie et al., arXiv 2305.10429).

1. A reference is trained on the stratified mixture.
2. A proxy of the same size sees every domain alike, and minimises sum_k w_k l_k. After each batch (algorithm 1), with the
   excess loss e = l_proxy - l_reference of every token:
   s_k <- mean over the tokens of domain k of max(e, 0); w_k <- w_k exp(eta s_k), normalised; w <- (1 - c) w + c / K.
3. The final model is trained on the average of w over the steps.

A domain that is not in the batch keeps its score. `form` `mean`, of Aioli's baselines (arXiv 2411.05735), takes max(mean e, 0)
and leaves the uniform weights of the beginning out of the average.

Legend: M microbatches, B rows, S = T + 1 tokens of a row, K domains.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from jaxprune import config
from jaxprune.model.loss import next_token_nll
from jaxprune.train.checkpoint import load_params
from jaxprune.train.learner import Learner, LearningStep
from jaxprune.train.optimizer import make_optimizer
from jaxprune.train.step import StepMetrics, TrainState, applied, summed

Form = Literal["paper", "mean"]


_LEAST = 1e-30  # above what float32 rounds to 0


class Learnt(NamedTuple):
    """What the proxy has learnt."""

    score_K: jax.Array
    weights_K: jax.Array
    average_K: jax.Array
    count: jax.Array  # of the weights that are in the average


def began(mixed_K: tuple[bool, ...], form: Form, first_score: float) -> Learnt:
    """Uniform weights of the domains that can be drawn from; one that has not been seen yet has the score `first_score`."""
    uniform_K = jnp.array(mixed_K, jnp.float32) / sum(mixed_K)
    score_K = jnp.full(len(mixed_K), first_score, jnp.float32)
    return Learnt(score_K, uniform_K, uniform_K, jnp.float32(form == "paper"))


def scored(
    excess_BT: jax.Array, counted_BT: jax.Array, of_domain_BK: jax.Array, before_K: jax.Array, form: Form
) -> jax.Array:
    """s_K, from excess losses of the tokens that count; `of_domain_BK` is 1 where a row is of a domain."""
    kept_BT = jnp.maximum(excess_BT, 0.0) if form == "paper" else excess_BT
    sum_K = summed((kept_BT * counted_BT).sum(axis=1), of_domain_BK)
    tokens_K = summed(counted_BT.sum(axis=1), of_domain_BK)
    mean_K = jnp.maximum(sum_K / jnp.maximum(tokens_K, 1.0), 0.0)
    return jnp.where(tokens_K > 0, mean_K, before_K)


def moved(learnt: Learnt, score_K: jax.Array, *, eta: float, smoothing: float) -> Learnt:
    """The weights after a batch, and their average. What has no weight gets none."""
    weights_K = smoothed(raised(learnt.weights_K, eta * score_K), smoothing)
    count = learnt.count + 1
    average_K = learnt.average_K + (weights_K - learnt.average_K) / count
    return Learnt(score_K, weights_K, average_K, count)


def raised(weights_K: jax.Array, gain_K: jax.Array) -> jax.Array:
    """w exp(gain), divided by its sum: 0 only for what had no weight, so that what has lost can win again."""
    raised_K = jax.nn.softmax(jnp.log(weights_K) + gain_K)
    return jnp.where(weights_K > 0, jnp.maximum(raised_K, _LEAST), 0.0)


def smoothed(weights_K: jax.Array, smoothing: float) -> jax.Array:
    """(1 - c) w + c / K, over the domains that have a weight."""
    mixed_K = weights_K > 0
    return (1 - smoothing) * weights_K + smoothing * mixed_K / mixed_K.sum()


@dataclass(frozen=True, kw_only=True)
class DoReMi(Learner):
    """The proxy's way of learning; settings as in `config.DoReMi`."""

    reference: Path
    """The run of the reference."""
    mixed_K: tuple[bool, ...]
    eta: float
    smoothing: float
    form: Form

    def step(
        self, graphdef: nnx.GraphDef, run: config.Run, mesh: jax.sharding.Mesh, saved: dict[str, Any] | None
    ) -> LearningStep:
        reference_def, reference, _, vocab_size = load_params(self.reference, mesh)
        if saved is None:
            first_score = math.log(vocab_size) if self.form == "paper" else 1e-6
            learnt = began(self.mixed_K, self.form, first_score)
        else:
            learnt = restored(Learnt, saved)
        step = _make_step(
            graphdef, reference_def, run.optimizer, run.steps, self.eta, self.smoothing, self.form
        )
        return HeldStep(functools.partial(step, reference), learnt)


def restored(kind: Any, saved: dict[str, Any]) -> Any:
    """What `HeldStep.state` has saved, as arrays."""
    values = {name.removesuffix("_K"): name for name in kind._fields}
    return kind(**{name: jnp.asarray(saved[plain], jnp.float32) for plain, name in values.items()})


class HeldStep(LearningStep):
    """A compiled step of (state, learnt, tokens, domains), and what is learnt."""

    def __init__(self, step: Any, learnt: Any) -> None:
        self._step, self._learnt = step, learnt

    def __call__(
        self, state: TrainState, tokens_MBS: jax.Array, domain_MB: jax.Array
    ) -> tuple[TrainState, StepMetrics]:
        state, self._learnt, metrics = self._step(state, self._learnt, tokens_MBS, domain_MB)
        return state, metrics

    def state(self) -> dict[str, Any]:
        learnt = jax.device_get(self._learnt)
        named = {name.removesuffix("_K"): value for name, value in learnt._asdict().items()}
        return {name: np.asarray(value, np.float64).tolist() for name, value in named.items()}


@functools.lru_cache(maxsize=2)
def _make_step(
    graphdef: nnx.GraphDef,
    reference_def: nnx.GraphDef,
    settings: config.Optimizer,
    steps: int,
    eta: float,
    smoothing: float,
    form: Form,
) -> Any:
    """The step, compiled once: the gradient is that of the mean over tokens of w of their domain times their loss, divided
    by the mean of these w, since domains are drawn alike and w would else count twice."""
    transform = make_optimizer(settings, steps)

    @functools.partial(jax.jit, donate_argnums=1)
    def step(
        reference: nnx.State, state: TrainState, learnt: Learnt, tokens_MBS: jax.Array, domain_MB: jax.Array
    ) -> tuple[TrainState, Learnt, StepMetrics]:
        tokens_BS, domain_B = tokens_MBS[0], domain_MB[0]
        n_domains = len(learnt.weights_K)
        of_domain_BK = (domain_B[:, None] == jnp.arange(n_domains)).astype(jnp.float32)
        nll_BT, pull_back = jax.vjp(lambda p: next_token_nll(nnx.merge(graphdef, p), tokens_BS), state.params)
        excess_BT = nll_BT - next_token_nll(nnx.merge(reference_def, reference), tokens_BS)
        score_K = scored(excess_BT, jnp.ones_like(nll_BT), of_domain_BK, learnt.score_K, form)
        after = moved(learnt, score_K, eta=eta, smoothing=smoothing)
        weight_B = jnp.einsum("bk,k->b", of_domain_BK, after.weights_K)
        weight_BT = weight_B[:, None] * jnp.ones_like(nll_BT)
        (grads,) = pull_back((weight_BT / weight_BT.sum()).astype(nll_BT.dtype))
        nll_sum_K = summed(nll_BT.sum(axis=1), of_domain_BK)
        tokens_K = (domain_B[:, None] == jnp.arange(n_domains)).sum(0) * nll_BT.shape[1]
        metrics = StepMetrics(nll_sum_K, tokens_K, optax.global_norm(grads), after.weights_K)
        return applied(transform, state, grads), after, metrics

    return step
