"""The compiled functions of a config, lowered for devices that need not be here.

Dimensions: M microbatches, B rows, S = T + 1 tokens of a row, K domains.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from jaxprune import config
from jaxprune.artifact import Workdir
from jaxprune.data import tokenizer
from jaxprune.model import transformer
from jaxprune.model.loss import next_token_nll
from jaxprune.model.sharding import BATCH, ROWS
from jaxprune.train import layout
from jaxprune.train.step import TrainState, abstract_optimizer, make_score_step, make_train_step

Tree = Any
_DOMAINS = 8  # of a corpus that is not prepared yet; they are rows of a small table in the step


@dataclass(frozen=True, kw_only=True)
class Program:
    """One step, and what its arguments are."""

    name: str
    run: config.Run  # whose model it is
    lower: Callable[[], jax.stages.Lowered]
    params: nnx.State  # shapes and layouts
    optimizer: Tree
    batch: Tree
    tokens: int  # that it computes, of all devices
    vocab_size: int
    mesh: jax.sharding.Mesh
    graphdef: nnx.GraphDef

    @property
    def is_training(self) -> bool:
        """Whether there is a backward pass."""
        return self.name.startswith("train")


def vocabulary(settings: config.Config, workdir: Workdir) -> tuple[int, int]:
    """Entries of the vocabulary and number of domains: of the prepared corpus, or what the config says of them.

    Raises:
      ValueError: the config's tokenizer cannot be read.
    """
    store = workdir.prepare / "tokens"
    if store.is_dir():
        from jaxprune.data.store import TokenStore

        opened = TokenStore(store)
        return opened.vocab_size, len(opened.domains)
    return tokenizer.vocab_size(settings.tokenizer), _DOMAINS


def make_program(
    name: str, settings: config.Config, mesh: jax.sharding.Mesh, vocab_size: int, n_domains: int = _DOMAINS
) -> Program:
    """The program `name` (of `command.NAMES`) as the pipeline would run it on the devices of `mesh`.

    train: a step of a final run. evaluate: a batch of its held-out rows. score: a batch of the longest rows through the
    model that scores. train-reference: a step of that model's training.

    Raises:
      ValueError: the run cannot be laid out on the mesh; scores come from a model that is not trained here.
    """
    if name in ("score", "train-reference") and not settings.scorers:
        raise ValueError(
            f"score.model is {settings.score.model}, whose shape the config does not know: leave {name} out"
        )
    if name in ("train", "evaluate"):
        run = settings.final
    else:
        run = settings.reference if settings.scorers[0] == "reference" else settings.second
    layout.check_divisible(run, mesh)
    parts = math.prod(mesh.shape[axis] for axis in ROWS)
    with jax.set_mesh(mesh):
        graphdef, params = transformer.abstract(run.model, vocab_size, mesh)

        def array(shape: tuple[int, ...], spec: P = BATCH) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct(shape, jnp.int32, sharding=NamedSharding(mesh, spec))

        optimizer: Tree = ()
        if name.startswith("train"):
            optimizer = abstract_optimizer(params, run.optimizer, run.steps, mesh)
            rows = run.batch_rows // run.microbatches
            batch = (
                array((run.microbatches, rows, run.model.context + 1), P(None, *BATCH)),
                array((run.microbatches, rows), P(None, *BATCH)),
            )
            step = make_train_step(graphdef, run.optimizer, run.steps, n_domains)
            arguments = (TrainState(params, optimizer), *batch)
            tokens = run.batch_rows * run.model.context
        else:
            rows = (
                max(run.batch_rows // run.microbatches, parts)
                if name == "evaluate"
                else max(settings.score.batch_tokens // run.model.context // parts, 1) * parts
            )
            batch = array((rows, run.model.context + 1)), array((rows,))
            if name == "score":
                batch = (*batch, array((rows,)))
            step, arguments = make_score_step(graphdef), (params, *batch)
            tokens = rows * run.model.context

    def lower() -> jax.stages.Lowered:
        with jax.set_mesh(mesh):
            return step.lower(*arguments)  # pyright: ignore[reportFunctionMemberAccess]

    return Program(
        name=name,
        run=run,
        lower=lower,
        params=params,
        optimizer=optimizer,
        batch=batch,
        tokens=tokens,
        vocab_size=vocab_size,
        mesh=mesh,
        graphdef=graphdef,
    )


def bytes_per_chip(tree: Tree) -> int:
    """Of arrays with these shapes and layouts, on one device."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
    )


def kept_for_backward(program: Program) -> int:
    """Bytes a device keeps of the forward pass of one microbatch for its backward pass: what autodiff saves.

    The compiler may keep less (it makes cheap values again) or lay it out in more.
    """
    parts = math.prod(program.mesh.shape[axis] for axis in ROWS)
    rows = program.batch[0].shape[1] // parts
    key = program.graphdef, program.vocab_size, rows, *program.mesh.shape.items()
    if key not in _KEPT:
        _KEPT[key] = _trace_kept(program)
    return _KEPT[key]


def kept_by_a_layer(program: Program) -> int:
    """Bytes of `kept_for_backward` that each layer would add if nothing of it were made again."""
    one, two = (kept_for_backward(_of_layers(program, n_layers)) for n_layers in (1, 2))
    return two - one


def _of_layers(program: Program, n_layers: int) -> Program:
    model = dataclasses.replace(program.run.model, n_layers=n_layers, remat="none", unroll=1)
    graphdef, params = transformer.abstract(model, program.vocab_size, program.mesh)
    return dataclasses.replace(program, graphdef=graphdef, params=params)


_KEPT: dict[Any, int] = {}
"""By all that it depends on: layouts are searched by the hundred."""


def _trace_kept(program: Program) -> int:
    tokens_BS = jax.ShapeDtypeStruct(
        program.batch[0].shape[1:], jnp.int32, sharding=NamedSharding(program.mesh, BATCH)
    )

    def residuals(params: nnx.State, tokens_BS: jax.Array) -> list[jax.Array]:
        def loss(params: nnx.State) -> jax.Array:
            return next_token_nll(nnx.merge(program.graphdef, params), tokens_BS).sum()

        return jax.tree.leaves(jax.vjp(loss, params)[1])

    with jax.set_mesh(program.mesh):
        traced = jax.jit(residuals).trace(program.params, tokens_BS).jaxpr.jaxpr
    arguments = set(map(id, traced.invars))
    total = 0
    for value in {id(out): out for out in traced.outvars if id(out) not in arguments}.values():
        parts = [program.mesh.shape[axis] for axis in _axes(value.aval.sharding.spec)]
        total += value.aval.size * value.aval.dtype.itemsize // math.prod(parts)
    return total


def _axes(spec: P) -> list[str]:
    """The mesh axes that cut an array."""
    named = [part for part in spec.partitions if part is not None]
    return [axis for part in named for axis in ((part,) if isinstance(part, str) else part)]
