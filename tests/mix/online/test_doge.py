"""DoGE: the numbers of Aioli's baseline, and what both alignments mean."""

import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from jaxprune.mix.online.doge import alignment, alignment_with, began, clipped, moved

CASES = json.loads(
    (Path(__file__).parents[2] / "golden" / "online_mixing" / "doge_repo_variant.json").read_text()
)["cases"]
ATOL = 2e-6  # of float32


def _clipped(grad_D, most):
    return clipped(grad_D, jnp.linalg.norm(grad_D), most)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_it_has_the_numbers_of_aiolis_baseline(case):
    given = case["config"]
    learnt = began((True,) * 3)
    for golden in case["steps"]:
        of_N, grads_ND = (
            np.array(golden["train_domain_of_sample"]),
            np.array(golden["train_sample_grads"], np.float32),
        )
        grads_KD = jnp.stack(
            [
                _clipped(
                    jnp.array(grads_ND[of_N == k].mean(0) if (of_N == k).any() else 0 * grads_ND[0]),
                    given["max_grad_norm"],
                )
                for k in range(3)
            ]
        )
        heldout_D = _clipped(
            jnp.array(golden["val_sample_grads"], jnp.float32).mean(0), given["max_grad_norm"]
        )
        lr = jnp.float32(given["lr"])
        aligned_K = alignment_with(grads_KD @ heldout_D, jnp.linalg.norm(grads_KD, axis=1), lr)
        learnt = moved(learnt, aligned_K, lr, mu=given["mu"], smoothing=given["reweight_eps"])
        np.testing.assert_allclose(learnt.weights_K, golden["train_dw"], atol=ATOL)
        np.testing.assert_allclose(learnt.average_K, golden["avg_dw"], atol=ATOL)
        np.testing.assert_allclose(learnt.weights_K @ grads_KD, golden["applied_grad"], atol=ATOL)


def test_what_agrees_with_the_others_is_raised():
    """Two domains pull one way, the third against them; its own length does not help it."""
    grads_KD = jnp.array([[1.0, 0.1], [1.0, -0.1], [-3.0, 0.0]])
    lr = jnp.float32(0.1)
    aligned_K = alignment(grads_KD @ grads_KD.T, lr)
    np.testing.assert_allclose(aligned_K, 0.1 * np.array([0.99 - 3, 0.99 - 3, -6]), rtol=1e-6)
    grads_KD = grads_KD.at[2].set(jnp.array([0.0, 5.0]))
    learnt = moved(began((True,) * 3), alignment(grads_KD @ grads_KD.T, lr), lr, mu=0.1, smoothing=0.0)
    assert np.asarray(learnt.weights_K).argmax() == 0 and np.asarray(learnt.weights_K).argmin() == 2
