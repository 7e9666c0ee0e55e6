"""The network: causality, and what changes how it is computed but not the result."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxprune import config
from jaxprune.model import attention, transformer
from jaxprune.model.flops import n_params
from jaxprune.model.sharding import make_mesh
from jaxprune.model.transformer import padded_vocab

FAMILIES = ("mpt", "modern")


@pytest.mark.parametrize("family", FAMILIES)
def test_no_position_sees_a_later_one(build, monkeypatch, family: str) -> None:
    """By gradient: with a token of its own at each position, the hidden state at t depends on the
    embedding of s exactly when s <= t."""
    monkeypatch.setattr(attention, "QUERY_BLOCK", 8)
    built = build(family, tie_embeddings=False)

    def hidden(params: nnx.State, t: int) -> jax.Array:
        hidden_BTD = nnx.merge(built.graphdef, params)(jnp.arange(20)[None])
        return jnp.where((jnp.arange(20) == t)[:, None], jnp.sin(hidden_BTD), 0.0).sum()

    with jax.set_mesh(built.mesh):
        gradient = jax.jit(jax.grad(hidden))
        influence_TVD = np.stack([gradient(built.params, t)["table_VD"] for t in range(20)])
    np.testing.assert_array_equal(np.abs(influence_TVD[:, :20]).max(axis=-1) > 0, np.tri(20, dtype=bool))


def test_jit_changes_nothing(build, tokens_BS) -> None:
    built = build("modern")
    with jax.set_mesh(built.mesh):
        eager = built.nll(built.params, jnp.asarray(tokens_BS[:2]))
    np.testing.assert_allclose(built.score(tokens_BS[:2]), eager, rtol=1e-5, atol=1e-5)


def test_scan_and_remat_change_nothing(build, tokens_BS) -> None:
    loss, gradient = build("modern").loss_and_gradient(tokens_BS)
    for settings in ({"unroll": 2}, {"remat": "dots"}, {"remat": "full"}):
        other_loss, other_gradient = build("modern", **settings).loss_and_gradient(tokens_BS)
        np.testing.assert_allclose(other_loss, loss, rtol=1e-5)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-6), other_gradient, gradient
        )


def test_remat_keeps_less(build) -> None:
    """What lives between the passes: everything, products of weights, inputs of blocks."""

    def temporaries(remat: str) -> int:
        built = build("modern", d_model=64, n_layers=8, n_heads=4, d_ff=256, remat=remat)
        with jax.set_mesh(built.mesh):
            compiled = (
                jax.jit(jax.grad(built.mean_nll)).lower(built.params, np.zeros((32, 65), np.int32)).compile()
            )
        return compiled.memory_analysis().temp_size_in_bytes

    none, dots, full = (temporaries(remat) for remat in ("none", "dots", "full"))
    assert full < 0.6 * dots < 0.6 * none


def test_grouped_queries_with_a_key_head_each_are_plain_attention(build, tokens_BS) -> None:
    shared = build("mpt", n_kv_heads=2)
    plain = build("mpt", n_kv_heads=4)
    params = nnx.to_pure_dict(shared.params)
    for name in ("key", "value"):
        layer = params["blocks"]["attention"][name]
        for leaf, x in layer.items():
            heads = np.repeat(np.asarray(x).reshape(*x.shape[:-1], 2, 8), 2, axis=-2)
            layer[leaf] = jnp.asarray(heads.reshape(*x.shape[:-1], 32))
    assert jax.tree.map(jnp.shape, nnx.State(params)) == jax.tree.map(jnp.shape, plain.params)
    with jax.set_mesh(plain.mesh):
        repeated = jax.device_put(nnx.State(params), jax.tree.map(lambda x: x.sharding, plain.params))
        nll_BT = jax.jit(plain.nll)(repeated, tokens_BS)
    np.testing.assert_allclose(nll_BT, shared.score(tokens_BS), rtol=1e-5, atol=1e-5)


def test_rotary_scores_depend_on_the_distance_alone() -> None:
    q_C, k_C = np.random.default_rng(0).normal(size=(2, 8)).astype(np.float32)
    frequency_R = transformer.frequencies(config.Model(d_model=8, n_heads=1, rope_theta=100.0))
    q_TC, k_SC = (transformer.rotate(jnp.tile(x, (1, 30, 1, 1)), frequency_R)[0, :, 0] for x in (q_C, k_C))
    score_TS = np.asarray(q_TC @ k_SC.T)
    for distance in range(-29, 30):
        diagonal = np.diagonal(score_TS, distance)
        np.testing.assert_allclose(diagonal, np.broadcast_to(diagonal[0], diagonal.shape), atol=1e-5)
    assert np.std(score_TS[0]) > 0.1


def test_initial_weights() -> None:
    model = config.Model(d_model=128, n_layers=8, n_heads=4, context=64)
    mesh = make_mesh(config.Mesh(), jax.devices()[:1])
    _, params = transformer.create(model, 500, 3, mesh)
    for path, x in jax.tree_util.tree_leaves_with_path(params):
        name = jax.tree_util.keystr(path)
        assert x.dtype == jnp.float32
        if "scale" in name or "bias" in name:
            assert np.all(x == ("scale" in name)), name
        else:
            into_stream = "output" in name or "down" in name
            assert x.std() == pytest.approx(0.02 / (4.0 if into_stream else 1.0), rel=0.02), name
    _, other = transformer.create(model, 500, 4, mesh)
    assert not np.array_equal(params["table_VD"], other["table_VD"])


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("tied", [True, False])
def test_parameters_are_counted_exactly(build, family: str, tied: bool) -> None:
    built = build(family, tie_embeddings=tied)
    assert sum(x.size for x in jax.tree.leaves(built.params)) == n_params(built.config, 300)


def test_vocabulary_is_padded_to_128() -> None:
    assert [padded_vocab(n) for n in (1, 128, 129, 50_257, 100_277)] == [128, 128, 256, 50_304, 100_352]
