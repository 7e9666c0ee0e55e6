"""Tiny models of both families on a mesh of fake devices."""

import dataclasses
import functools
from dataclasses import dataclass

import jax
import numpy as np
import pytest
from flax import nnx

from jaxprune import config
from jaxprune.model import presets, transformer
from jaxprune.model.loss import next_token_nll
from jaxprune.model.sharding import make_mesh

VOCAB = 300  # the table has 384 rows


@dataclass(frozen=True)
class Built:
    """A model with its parameters, on a mesh."""

    config: config.Model
    mesh: jax.sharding.Mesh
    graphdef: nnx.GraphDef
    params: nnx.State

    def nll(self, params: nnx.State, tokens_BS: jax.Array) -> jax.Array:
        return next_token_nll(nnx.merge(self.graphdef, params), tokens_BS)

    def mean_nll(self, params: nnx.State, tokens_BS: jax.Array) -> jax.Array:
        return self.nll(params, tokens_BS).mean()

    def score(self, tokens_BS: np.ndarray) -> np.ndarray:
        with jax.set_mesh(self.mesh):
            return np.asarray(self._score(self.params, tokens_BS))

    def loss_and_gradient(self, tokens_BS: np.ndarray) -> tuple[jax.Array, nnx.State]:
        with jax.set_mesh(self.mesh):
            return jax.jit(jax.value_and_grad(self.mean_nll))(self.params, tokens_BS)

    @functools.cached_property
    def _score(self):
        return jax.jit(self.nll)


def _perturbed(params: nnx.State) -> nnx.State:
    """Large weights and biases that are not zero: at initialisation much that is wrong changes nothing."""
    leaves, tree = jax.tree.flatten(params)
    rng = np.random.default_rng(1)
    moved = [leaf * 5 if leaf.ndim > 2 else leaf + 0.1 * rng.normal(size=leaf.shape) for leaf in leaves]
    return jax.tree.unflatten(
        tree,
        [jax.device_put(np.asarray(x, np.float32), y.sharding) for x, y in zip(moved, leaves, strict=True)],
    )


@pytest.fixture(scope="session")
def build():
    created = functools.cache(transformer.create)  # most of a test's time would be compiling this

    def build(family: str, mesh: tuple[int, int, int] = (1, 1, 1), **settings) -> Built:
        model = dataclasses.replace(
            {"mpt": presets.tiny, "modern": presets.tiny_modern}[family](), **settings
        )
        replica, fsdp, tensor = mesh
        devices = make_mesh(
            config.Mesh(replica=replica, fsdp=fsdp, tensor=tensor), jax.devices()[: int(np.prod(mesh))]
        )
        graphdef, _ = transformer.abstract(model, VOCAB, devices)
        plain = dataclasses.replace(model, dtype="float32", remat="none", unroll=1, loss_chunk=0)
        _, params = created(plain, VOCAB, 0, devices)
        return Built(model, devices, graphdef, _perturbed(params))

    return build


@pytest.fixture(scope="session")
def tokens_BS() -> np.ndarray:
    return np.random.default_rng(0).integers(0, VOCAB, (8, 41), dtype=np.int32)
