"""The training step and the scoring step: pure functions of arrays, compiled once for each shape.

Dimensions: M microbatches, B rows of a microbatch, S = T + 1 tokens of a row, K domains.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from jaxprune import config
from jaxprune.model.loss import next_token_nll
from jaxprune.model.transformer import Transformer
from jaxprune.train.optimizer import make_optimizer

Tree = Any


class TrainState(NamedTuple):
    """What a step reads and writes."""

    params: nnx.State  # float32
    optimizer: Tree


class StepMetrics(NamedTuple):
    """What a step reports, still on the device."""

    nll_sum_K: jax.Array  # nats, summed over the tokens of each domain
    tokens_K: jax.Array
    grad_norm: jax.Array  # before clipping
    learnt_K: jax.Array | None = None  # weights of the domains, in a run that learns them


TokenLoss = Callable[[Transformer, jax.Array], jax.Array]  # of tokens_BS: [B, T]
TrainStep = Callable[[TrainState, jax.Array, jax.Array], tuple[TrainState, StepMetrics]]


def init_state(params: nnx.State, settings: config.Optimizer, steps: int) -> TrainState:
    """State before the first step; moments are sharded as their parameters are."""
    return TrainState(params, jax.jit(make_optimizer(settings, steps).init)(params))


def abstract_optimizer(
    params: nnx.State, settings: config.Optimizer, steps: int, mesh: jax.sharding.Mesh
) -> Tree:
    """Shapes and shardings of the optimizer's state, from those of the parameters.

    `eval_shape` knows layouts only on an abstract mesh, and none for scalars; a checkpoint is
    restored to devices.
    """
    shapes = jax.eval_shape(make_optimizer(settings, steps).init, params)

    def placed(leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        spec = P() if leaf.sharding is None else leaf.sharding.spec
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=NamedSharding(mesh, spec))

    return jax.tree.map(placed, shapes)


@functools.lru_cache(maxsize=8)
def make_train_step(
    graphdef: nnx.GraphDef, settings: config.Optimizer, steps: int, n_domains: int
) -> TrainStep:
    """Compiles (once for all runs that share these) the step of a run of `steps` steps.

    The step takes the state, which it donates, tokens_MBS and domain_MB (int32), and returns the
    new state and its metrics. Gradients are those of the mean NLL over all the tokens of the batch:
    sums over microbatches, divided once.
    """
    transform = make_optimizer(settings, steps)

    def nll_sum(params: nnx.State, tokens_BS: jax.Array, domain_B: jax.Array) -> tuple[jax.Array, jax.Array]:
        nll_BT = next_token_nll(nnx.merge(graphdef, params), tokens_BS)
        nll_B = nll_BT.sum(axis=1)
        of_domain_BK = (domain_B[:, None] == jnp.arange(n_domains)).astype(jnp.float32)
        return nll_B.sum(), summed(nll_B, of_domain_BK)

    gradient = jax.value_and_grad(nll_sum, has_aux=True)

    @functools.partial(jax.jit, donate_argnums=0)
    def step(
        state: TrainState, tokens_MBS: jax.Array, domain_MB: jax.Array
    ) -> tuple[TrainState, StepMetrics]:
        params = state.params

        def accumulate(carry: tuple[Tree, jax.Array], batch: tuple[jax.Array, jax.Array]) -> Any:
            (_, nll_sum_K), grads = gradient(params, *batch)
            return jax.tree.map(jnp.add, carry, (grads, nll_sum_K)), None

        n_micro, n_rows, n_tokens = tokens_MBS.shape
        if n_micro == 1:
            (_, nll_sum_K), grads = gradient(params, tokens_MBS[0], domain_MB[0])
        else:
            # All of them in one loop: the compiler keeps the activations of a microbatch that stands beside it.
            nothing = jax.tree.map(jnp.zeros_like, params), jnp.zeros(n_domains)
            (grads, nll_sum_K), _ = jax.lax.scan(accumulate, nothing, (tokens_MBS, domain_MB))
        grads = jax.tree.map(lambda grad: grad / (n_micro * n_rows * (n_tokens - 1)), grads)
        tokens_K = (domain_MB[..., None] == jnp.arange(n_domains)).sum((0, 1)) * (n_tokens - 1)
        return applied(transform, state, grads), StepMetrics(nll_sum_K, tokens_K, optax.global_norm(grads))

    return step


def applied(transform: optax.GradientTransformation, state: TrainState, grads: Tree) -> TrainState:
    """The state after the optimizer's update."""
    updates, optimizer = transform.update(grads, state.optimizer, state.params)
    return TrainState(cast(nnx.State, optax.apply_updates(state.params, updates)), optimizer)


def summed(value_B: jax.Array, of_domain_BK: jax.Array) -> jax.Array:
    """Sums over the rows of each domain; `of_domain_BK` is 1 where a row is of a domain."""
    return jnp.einsum("b,bk->k", value_B, of_domain_BK, out_sharding=P(None))


@functools.lru_cache(maxsize=8)
def make_score_step(graphdef: nnx.GraphDef, of: TokenLoss = next_token_nll) -> Callable[..., jax.Array]:
    """Compiles (once for each shape) the NLL of rows, or what else `of` says of each target.

    The step takes the parameters, tokens_BS (int32, right-padded with anything), length_B and, where it
    is not 0, start_B (int32), and returns nll_B (float32, nats, summed over the targets from start_B to
    length_B). It is the training loss before averaging: the same function of the same tokens.
    """

    @jax.jit
    def step(
        params: nnx.State, tokens_BS: jax.Array, length_B: jax.Array, start_B: jax.Array | None = None
    ) -> jax.Array:
        nll_BT = of(nnx.merge(graphdef, params), tokens_BS)
        target_T = jnp.arange(nll_BT.shape[1])
        counted_BT = target_T < length_B[:, None]
        if start_B is not None:
            counted_BT &= target_T >= start_B[:, None]
        return jnp.where(counted_BT, nll_BT, 0.0).sum(axis=1)

    return step
