"""The loss: what it equals, what it does not depend on, what it refuses."""

import dataclasses
import math
import re

import dense
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

VOCAB = 300
FAMILIES = ("mpt", "modern")


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("chunk", [0, 10, 16, 64])
def test_nll_is_that_of_a_dense_float64_network(build, tokens_BS, family: str, chunk: int) -> None:
    """With chunks that divide the 40 positions, that leave a ragged one, that hold them all."""
    built = build(family, loss_chunk=chunk)
    expected = dense.next_token_nll(built.config, VOCAB, built.params, tokens_BS[:2])
    assert expected.std() > 0.5  # far from uniform: the network matters
    np.testing.assert_allclose(built.score(tokens_BS[:2]), expected, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("settings", [{"tie_embeddings": False}, {"bias": False}, {"position": "rope"}])
def test_mixed_settings_too(build, tokens_BS, settings: dict) -> None:
    built = build("mpt", **settings)
    expected = dense.next_token_nll(built.config, VOCAB, built.params, tokens_BS[:2])
    np.testing.assert_allclose(built.score(tokens_BS[:2]), expected, rtol=2e-5, atol=2e-5)


def test_one_row_and_one_position(build, tokens_BS) -> None:
    """Axes of length one, which a reshape may confuse with each other."""
    built = build("mpt", loss_chunk=39)
    whole = built.score(tokens_BS[:2])
    np.testing.assert_allclose(built.score(tokens_BS[:1]), whole[:1], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(built.score(tokens_BS[:1, :2]), whole[:1, :1], rtol=1e-5, atol=1e-5)


def test_chunks_change_no_gradient(build, tokens_BS) -> None:
    whole, ragged = (build("modern", loss_chunk=chunk).loss_and_gradient(tokens_BS)[1] for chunk in (0, 16))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), whole, ragged)


def test_logits_of_a_row_never_exist_at_once(build) -> None:
    """No array of the computation, backward pass included, has the vocabulary for more than a chunk."""
    built = build("mpt", loss_chunk=8)
    with jax.set_mesh(built.mesh):
        gradient = jax.make_jaxpr(jax.grad(built.mean_nll))(built.params, np.zeros((2, 68), np.int32)[:, :62])
    shapes = re.findall(r"f32\[([\d,]+,384)\]", re.sub(r"@(\w+|\([\w,]+\))", "", str(gradient)))
    rows = {math.prod(int(n) for n in shape.split(",")) // 384 for shape in shapes} - {32}  # 32: weight_DV
    assert rows == {2 * 8, 2 * (61 % 8)}


def test_batch_mates_change_no_bit(build, tokens_BS) -> None:
    built = build("mpt")
    others = np.random.default_rng(5).integers(0, VOCAB, tokens_BS.shape, dtype=np.int32)
    others[3] = tokens_BS[3]
    np.testing.assert_array_equal(built.score(tokens_BS)[3], built.score(others)[3])
    np.testing.assert_array_equal(built.score(tokens_BS)[::-1], built.score(tokens_BS[::-1]))


@pytest.mark.parametrize("family", FAMILIES)
def test_right_padding_changes_nothing(build, tokens_BS, family: str) -> None:
    built = build(family)
    short = built.score(tokens_BS[:, :20])
    for fill in (0, VOCAB - 1):
        padded = np.full((8, 60), fill, np.int32)
        padded[:, :20] = tokens_BS[:, :20]
        np.testing.assert_allclose(built.score(padded)[:, :19], short, rtol=1e-5, atol=1e-5)


def test_padded_vocabulary_has_no_mass(build, tokens_BS) -> None:
    """Whatever its rows hold, the first VOCAB entries' probabilities sum to one."""
    built = build("mpt")
    table_VD = np.array(built.params["table_VD"])
    table_VD[VOCAB:] = 100.0
    loud = dataclasses.replace(built, params=nnx.State({**built.params, "table_VD": jnp.asarray(table_VD)}))
    np.testing.assert_array_equal(loud.score(tokens_BS), built.score(tokens_BS))
    rows_BS = np.tile(tokens_BS[:1, :6], (VOCAB, 1))
    rows_BS[:, 5] = np.arange(VOCAB)
    np.testing.assert_allclose(np.exp(-built.score(rows_BS)[:, 4].astype(np.float64)).sum(), 1.0, rtol=1e-5)
    padding = loud.loss_and_gradient(tokens_BS)[1]["table_VD"][VOCAB:]
    np.testing.assert_array_equal(padding, np.zeros_like(padding))


def test_bfloat16_is_close_to_float32(build, tokens_BS) -> None:
    """Products of bfloat16 carry 8 bits; the mean over 320 positions averages them."""
    exact, rounded = (build("modern", dtype=dtype).score(tokens_BS) for dtype in ("float32", "bfloat16"))
    assert rounded.dtype == np.float32
    assert 0 < abs(rounded - exact).mean() < 0.02
    assert abs(rounded.mean() - exact.mean()) < 0.01


def test_errors_say_what_to_do(build) -> None:
    built = build("mpt", mesh=(2, 2, 1))
    with pytest.raises(ValueError, match="6 rows do not divide over mesh replica x fsdp = 4"):
        built.score(np.zeros((6, 9), np.int32))
    with pytest.raises(ValueError, match="rows of 65 positions are longer than the 64 learned positions"):
        built.score(np.zeros((4, 66), np.int32))
    with pytest.raises(ValueError, match=r"jax\.set_mesh"):
        built.nll(built.params, jnp.zeros((4, 9), jnp.int32))
