"""DoGE: weights of the domains whose gradients agree with those of the others (Fan et al., arXiv 2310.15393).

A proxy sees every domain alike. After each batch (algorithm 1), with the gradient g_k of the mean loss of domain k, clipped:

1. s_j = lr sum_(i != j) <g_j, g_i> (`domains`: generalisation to all of them), or s_j = lr <g_j, g_v> / mean_k |g_k| with the
   clipped gradient g_v of held-out rows (`heldout`, as Aioli's baselines have it, arXiv 2411.05735: A_ij = <grad L_i,
   grad L_j> of held-out loss i and training loss j), between 0 and 5 lr;
2. w_j <- w_j exp(s_j / mu), normalised;
3. the parameters take the gradient sum_j w_j g_j.

The final model is trained on the average of w over the steps. A domain that is not in the batch has the gradient 0.

Legend: M microbatches, B rows, S = T + 1 tokens of a row, K domains.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from jaxprune import config
from jaxprune.data.mixture import MixtureSource
from jaxprune.mix.online.doremi import HeldStep, raised, restored, smoothed
from jaxprune.model.loss import next_token_nll
from jaxprune.train.feed import Feed
from jaxprune.train.learner import Learner, LearningStep
from jaxprune.train.optimizer import make_optimizer, make_schedule
from jaxprune.train.step import StepMetrics, TrainState, applied, summed

Against = Literal["domains", "heldout"]
Tree = Any

_MOST = 5.0  # of s, in units of lr
_TINY = 1e-6


class Learnt(NamedTuple):
    """What the proxy has learnt."""

    weights_K: jax.Array
    average_K: jax.Array
    count: jax.Array  # of the weights that are in the average: steps


def began(mixed_K: tuple[bool, ...]) -> Learnt:
    """Uniform weights of the domains that can be drawn from."""
    uniform_K = jnp.array(mixed_K, jnp.float32) / sum(mixed_K)
    return Learnt(uniform_K, uniform_K, jnp.float32(0))


def clipped(grads: Tree, norm: jax.Array, most: float) -> Tree:
    """Gradients of norm `norm`, made no longer than `most`."""
    scale = jnp.minimum(most / (norm + _TINY), 1.0)
    return jax.tree.map(lambda leaf: leaf * scale, grads)


def alignment(inner_KK: jax.Array, lr: jax.Array) -> jax.Array:
    """s_j of `domains`, from the inner products of the domains' clipped gradients."""
    return lr * (inner_KK.sum(axis=1) - jnp.diag(inner_KK))


def alignment_with(inner_K: jax.Array, norm_K: jax.Array, lr: jax.Array) -> jax.Array:
    """s_j of `heldout`, from inner products with the held-out gradient and the norms of the domains' gradients."""
    return lr * inner_K / (norm_K.mean() + _TINY)


def moved(learnt: Learnt, aligned_K: jax.Array, lr: jax.Array, *, mu: float, smoothing: float) -> Learnt:
    """The weights after a batch, and their average. What has no weight gets none."""
    score_K = jnp.clip(aligned_K, 0.0, _MOST * lr)
    weights_K = smoothed(raised(learnt.weights_K, score_K / mu), smoothing)
    count = learnt.count + 1
    return Learnt(weights_K, learnt.average_K + (weights_K - learnt.average_K) / count, count)


@dataclass(frozen=True, kw_only=True)
class DoGE(Learner):
    """The proxy's way of learning; settings as in `config.DoGE`."""

    mixed_K: tuple[bool, ...]
    mu: float
    smoothing: float
    clip: float
    against: Against
    heldout: MixtureSource | None
    """Batches of held-out rows, of every domain alike; `domains` needs none."""

    def step(
        self, graphdef: nnx.GraphDef, run: config.Run, mesh: jax.sharding.Mesh, saved: dict[str, Any] | None
    ) -> LearningStep:
        learnt = began(self.mixed_K) if saved is None else restored(Learnt, saved)
        step = _make_step(graphdef, run.optimizer, run.steps, self.mu, self.smoothing, self.clip)
        return _Held(step, learnt, self.heldout, Feed(mesh, run.batch_rows, run.microbatches))


class _Held(HeldStep):
    """As `HeldStep`, with the next held-out batch where there are such."""

    def __init__(self, step: Any, learnt: Learnt, heldout: MixtureSource | None, feed: Feed) -> None:
        super().__init__(step, learnt)
        self._heldout, self._feed, self._taken = heldout, feed, int(learnt.count)

    def __call__(
        self, state: TrainState, tokens_MBS: jax.Array, domain_MB: jax.Array
    ) -> tuple[TrainState, StepMetrics]:
        heldout_MBS = None
        if self._heldout is not None:
            batch = self._heldout[self._taken]
            heldout_MBS = self._feed({name: values[self._feed.rows] for name, values in batch.items()})[0]
        self._taken += 1
        state, self._learnt, metrics = self._step(state, self._learnt, tokens_MBS, domain_MB, heldout_MBS)
        return state, metrics


@functools.lru_cache(maxsize=2)
def _make_step(
    graphdef: nnx.GraphDef, settings: config.Optimizer, steps: int, mu: float, smoothing: float, clip: float
) -> Any:
    """The step, compiled once. It takes a backward pass for each domain over the whole batch: proxies are small."""
    transform, schedule = make_optimizer(settings, steps), make_schedule(settings, steps)

    @functools.partial(jax.jit, donate_argnums=0)
    def step(
        state: TrainState,
        learnt: Learnt,
        tokens_MBS: jax.Array,
        domain_MB: jax.Array,
        heldout_MBS: jax.Array | None,
    ) -> tuple[TrainState, Learnt, StepMetrics]:
        tokens_BS, domain_B = tokens_MBS[0], domain_MB[0]
        n_domains = len(learnt.weights_K)
        of_domain_BK = (domain_B[:, None] == jnp.arange(n_domains)).astype(jnp.float32)

        def nll(params: nnx.State, tokens_BS: jax.Array) -> jax.Array:
            return next_token_nll(nnx.merge(graphdef, params), tokens_BS).mean(axis=1)

        nll_B, pull_back = jax.vjp(lambda params: nll(params, tokens_BS), state.params)
        rows_K = of_domain_BK.sum(axis=0)
        own_KB = (of_domain_BK / jnp.maximum(rows_K, 1.0)).T
        grads_K = jax.lax.map(lambda own_B: pull_back(own_B.astype(nll_B.dtype))[0], own_KB)
        norm_K = jnp.sqrt(_inner(grads_K, grads_K))
        scale_K = jnp.minimum(clip / (norm_K + _TINY), 1.0)
        grads_K = jax.tree.map(lambda leaf: _by_domain(scale_K, leaf) * leaf, grads_K)
        lr = jnp.asarray(schedule(learnt.count), jnp.float32)
        if heldout_MBS is None:
            rows = [
                _inner(jax.tree.map(lambda leaf, k=k: leaf[k][None], grads_K), grads_K)
                for k in range(n_domains)
            ]
            aligned_K = alignment(jnp.stack(rows), lr)
        else:
            grads = jax.grad(lambda params: nll(params, heldout_MBS[0]).mean())(state.params)
            grads = clipped(grads, optax.global_norm(grads), clip)
            inner_K = _inner(grads_K, jax.tree.map(lambda leaf: leaf[None], grads))
            aligned_K = alignment_with(inner_K, norm_K * scale_K, lr)
        after = moved(learnt, aligned_K, lr, mu=mu, smoothing=smoothing)
        grads = jax.tree.map(lambda leaf: (_by_domain(after.weights_K, leaf) * leaf).sum(axis=0), grads_K)
        n_tokens = tokens_BS.shape[1] - 1
        nll_sum_K = summed(nll_B * n_tokens, of_domain_BK)
        tokens_K = (domain_B[:, None] == jnp.arange(n_domains)).sum(0) * n_tokens
        metrics = StepMetrics(nll_sum_K, tokens_K, optax.global_norm(grads), after.weights_K)
        return applied(transform, state, grads), after, metrics

    return step


def _by_domain(values_K: jax.Array, leaf: jax.Array) -> jax.Array:
    return values_K.reshape(-1, *[1] * (leaf.ndim - 1))


def _inner(one_K: Tree, other_K: Tree) -> jax.Array:
    """Inner products of trees, whose leaves have the domains (or one) along a first axis: [K]."""
    parts = jax.tree.map(lambda a, b: (a * b).sum(axis=tuple(range(1, a.ndim))), one_K, other_K)
    return functools.reduce(jnp.add, jax.tree.leaves(parts))
