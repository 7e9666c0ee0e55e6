"""Optimizers and learning-rate schedules: AdamW, decoupled Lion, Muon.

Parameters are stacked over layers (a leading L axis), so a matrix of a block has three axes or
more: what decays and what Muon orthogonalises is decided by name and not by rank.
"""

from __future__ import annotations

from typing import Any

import jax
import optax
from jax.sharding import PartitionSpec as P
from optax.contrib import MuonDimensionNumbers, muon

from jaxprune import config

Tree = Any


def make_schedule(settings: config.Optimizer, steps: int) -> optax.Schedule:
    """Learning rate by step (from 0) over a run of `steps` steps.

    Linear warm-up to `peak_lr`, then `cosine` to `final_lr` x `peak_lr`, `wsd` (stable, then a
    linear decay over the last `decay` share), or `constant`.
    """
    peak, end = settings.peak_lr, settings.peak_lr * settings.final_lr
    warmup = round(settings.warmup * steps)
    rest = max(steps - warmup, 1)
    # Step 0 must not be wasted on a learning rate of 0, so the rise starts one step in.
    rise = optax.linear_schedule(peak / (warmup + 1), peak, warmup)
    if settings.schedule == "cosine":
        after = optax.cosine_decay_schedule(peak, rest, alpha=settings.final_lr)
    elif settings.schedule == "wsd":
        decay = max(round(settings.decay * steps), 1)
        stable = max(rest - decay, 0)
        after = optax.join_schedules(
            [optax.constant_schedule(peak), optax.linear_schedule(peak, end, decay)], [stable]
        )
    else:
        after = optax.constant_schedule(peak)
    return optax.join_schedules([rise, after], [warmup])


def make_optimizer(settings: config.Optimizer, steps: int) -> optax.GradientTransformation:
    """The optimizer of a run of `steps` steps, with clipping by global norm before it.

    lion: Composer's decoupled Lion multiplies parameters by 1 - weight_decay x lr / peak_lr at each
    step; optax's multiplies by 1 - lr x weight_decay, hence the division (Ankner et al., section
    3.1, with llm-foundry's optimizer). It decays all parameters, as there.
    adamw: everything but norms and biases decays. muon: the blocks' matrices, which it orthogonalises,
    decay; embeddings, norms and biases are left to AdamW without decay.
    """
    rate, (b1, b2) = make_schedule(settings, steps), settings.momenta
    if settings.name == "adamw":
        transform = optax.adamw(
            rate,
            b1=b1,
            b2=b2,
            eps=settings.eps,
            weight_decay=settings.shrinkage,
            mask=_is_matrix,
        )
    elif settings.name == "lion":
        transform = optax.lion(
            rate,
            b1=b1,
            b2=b2,
            weight_decay=settings.shrinkage / settings.peak_lr,
        )
    else:
        transform = _on_whole_arrays(
            muon(
                rate,
                weight_decay=settings.shrinkage,
                adam_b1=b1,
                adam_b2=b2,
                muon_weight_dimension_numbers=_muon_dimensions,
                # Updates as large as AdamW's, so that one learning rate serves both parts.
                consistent_rms=0.2,
            )
        )
    if settings.clip is None:
        return transform
    return optax.chain(optax.clip_by_global_norm(settings.clip), transform)


def _is_matrix(params: Tree) -> Tree:
    """What decays: everything but norms' scales and biases."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: not _name(path).startswith(("scale_", "bias_")), params
    )


def _muon_dimensions(params: Tree) -> Tree:
    """Muon takes the linear layers of the blocks, [L, in, out] each; AdamW takes the rest."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: MuonDimensionNumbers(1, 2) if _name(path) == "weight_LIO" else None, params
    )


def _name(path: tuple[Any, ...]) -> str:
    """Name of a parameter: the last part of its path that is one."""
    names = [str(key) for entry in path for key in [getattr(entry, "key", getattr(entry, "name", None))]]
    return next(name for name in reversed(names) if "_" in name)


def _on_whole_arrays(inner: optax.GradientTransformation) -> optax.GradientTransformation:
    """Gathers each array over the mesh for the update, and lays the results out as they were.

    Newton-Schulz multiplies a matrix with its transpose, which has no layout when the matrix is cut
    over two axes. The state stays cut; the gathering costs an all-gather of gradient and momentum.
    """

    def update(updates: Tree, state: Tree, params: Tree | None = None) -> tuple[Tree, Tree]:
        new_updates, new_state = inner.update(*jax.tree.map(_whole, (updates, state, params)))
        return jax.tree.map(_laid_out_as, (new_updates, new_state), (updates, state))

    return optax.GradientTransformation(inner.init, update)


def _whole(array: jax.Array) -> jax.Array:
    return jax.sharding.reshard(array, P(*[None] * array.ndim))


def _laid_out_as(array: jax.Array, like: jax.Array) -> jax.Array:
    return jax.sharding.reshard(array, jax.typeof(like).sharding.spec)
