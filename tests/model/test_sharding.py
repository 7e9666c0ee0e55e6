"""Meshes: the same results on any, and nothing whole where it should be cut."""

import dataclasses

import jax
import numpy as np
import optax
import pytest
from flax import nnx

from jaxprune import config
from jaxprune.model import presets, transformer
from jaxprune.model.sharding import make_mesh

VOCAB = 300
MESHES = {"mpt": [(1, 2, 1), (1, 8, 1), (2, 2, 2)], "modern": [(4, 2, 1), (2, 2, 2)]}  # replica, fsdp, tensor


@pytest.mark.parametrize("family", MESHES)
def test_meshes_change_nothing(build, tokens_BS, family: str) -> None:
    """Initial weights bitwise; losses and gradients to rounding, with a chunked loss."""
    settings = {"loss_chunk": 16, "tie_embeddings": family == "mpt"}
    alone = build(family, **settings)
    loss, gradient = alone.loss_and_gradient(tokens_BS)
    for mesh in MESHES[family]:
        spread = build(family, mesh=mesh, **settings)
        jax.tree.map(np.testing.assert_array_equal, alone.params, spread.params)
        spread_loss, spread_gradient = spread.loss_and_gradient(tokens_BS)
        np.testing.assert_allclose(spread_loss, loss, rtol=1e-5)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-6), spread_gradient, gradient
        )


def test_every_matrix_stays_cut(build, tokens_BS) -> None:
    """Parameters, gradients and moments: an eighth of each matrix on a device, and the same eighth."""
    built = build("modern", mesh=(1, 4, 2), tie_embeddings=False)
    with jax.set_mesh(built.mesh):
        moments = jax.jit(optax.adamw(1e-3).init)(built.params)
    _, gradient = built.loss_and_gradient(tokens_BS)
    for path, param in jax.tree_util.tree_leaves_with_path(built.params):
        name = jax.tree_util.keystr(path)
        part = param.addressable_shards[0].data.size / param.size
        assert part == (1 / 8 if "weight" in name or "table" in name else 1), name
    layout = jax.tree.map(lambda x: x.sharding, built.params)
    for tree in (gradient, moments[0].mu, moments[0].nu):
        assert jax.tree.map(lambda x: x.sharding, tree) == layout


def test_creation_holds_no_whole_matrix() -> None:
    model = dataclasses.replace(presets.tiny(), d_model=256, n_layers=4)
    mesh = make_mesh(config.Mesh())
    with jax.set_mesh(mesh):
        make = jax.jit(lambda key: nnx.as_pure(nnx.state(transformer.Transformer(model, VOCAB, key))))
        memory = make.lower(jax.random.key(0)).compile().memory_analysis()
    whole = 4 * sum(x.size for x in jax.tree.leaves(transformer.abstract(model, VOCAB, mesh)[1]))
    assert memory.output_size_in_bytes + memory.temp_size_in_bytes < 0.6 * whole


def test_gathered_weights_do_not_outlive_their_use(build) -> None:
    """Between the passes of 16 layers no device holds the whole model, though nothing is rematerialised."""
    built = build("mpt", mesh=(1, 8, 1), d_model=64, n_layers=16, d_ff=1024)
    with jax.set_mesh(built.mesh):
        compiled = jax.jit(jax.grad(built.mean_nll)).lower(built.params, np.zeros((8, 9), np.int32)).compile()
    blocks = 4 * sum(x.size for x in jax.tree.leaves(built.params["blocks"]))
    assert compiled.memory_analysis().temp_size_in_bytes < 0.5 * blocks


def test_abstract_is_what_create_makes(build) -> None:
    model = presets.tiny()
    mesh = make_mesh(config.Mesh(replica=2, fsdp=2, tensor=2))
    graphdef, params = transformer.create(model, VOCAB, 0, mesh)
    same, shapes = transformer.abstract(model, VOCAB, mesh)
    assert graphdef == same and hash(graphdef) == hash(same)
    assert jax.tree.structure(params) == jax.tree.structure(shapes)
    for a, b in zip(jax.tree.leaves(params), jax.tree.leaves(shapes), strict=True):
        assert (a.shape, a.dtype, a.sharding) == (b.shape, b.dtype, b.sharding)


@pytest.mark.parametrize(
    ("mesh", "sizes"),
    [
        (config.Mesh(), (1, 8, 1)),
        (config.Mesh(replica=-1, fsdp=2), (4, 2, 1)),
        (config.Mesh(fsdp=-1, tensor=2, replica=2), (2, 2, 2)),
    ],
)
def test_minus_one_takes_the_rest(mesh: config.Mesh, sizes: tuple[int, ...]) -> None:
    made = make_mesh(mesh)
    assert tuple(made.shape.values()) == sizes
    assert set(made.axis_types) == {jax.sharding.AxisType.Explicit}


@pytest.mark.parametrize("mesh", [config.Mesh(fsdp=3), config.Mesh(replica=3), config.Mesh(fsdp=4)])
def test_a_mesh_that_does_not_fit_is_an_error(mesh: config.Mesh) -> None:
    with pytest.raises(ValueError, match="8 devices"):
        make_mesh(mesh)


@pytest.mark.parametrize(
    ("mesh", "change", "message"),
    [
        ((1, 8, 1), {"d_model": 36}, r"model\.d_model is 36, which mesh\.fsdp=8"),
        ((1, 2, 4), {"n_heads": 2}, r"model\.n_heads is 2, which mesh\.tensor=4"),
        ((1, 2, 4), {"n_kv_heads": 2}, r"model\.n_kv_heads is 2, which mesh\.tensor=4"),
        ((1, 4, 2), {"d_ff": 33}, r"model\.d_ff is 33, which mesh\.tensor=2"),
    ],
)
def test_a_model_that_does_not_divide_is_an_error(build, mesh, change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build("mpt", mesh=mesh, **change)
