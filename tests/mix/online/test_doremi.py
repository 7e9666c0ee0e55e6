"""DoReMi: the numbers of both released codes."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType

from jaxprune.mix.online.doremi import Learnt, began, moved, scored

FOLDER = Path(__file__).parents[2] / "golden" / "online_mixing"
ORIGINAL, VARIANT = (
    json.loads((FOLDER / f"doremi_{name}.json").read_text())["cases"] for name in ("original", "repo_variant")
)
ATOL = 2e-6  # of float32


@pytest.fixture(autouse=True)
def mesh():
    with jax.set_mesh(
        jax.make_mesh((1,), ("rows",), axis_types=(AxisType.Explicit,), devices=jax.devices()[:1])
    ):
        yield


def _of_domain(domain_B, n_domains):
    return (jnp.array(domain_B)[:, None] == jnp.arange(n_domains)).astype(jnp.float32)


@pytest.mark.parametrize("case", ORIGINAL, ids=lambda case: case["name"])
def test_it_has_the_numbers_of_the_authors_code(case):
    given = case["config"]
    learnt = began((True,) * given["k"], "paper", given["initial_perdomain_scores"])
    for golden in case["steps"]:
        score_K = scored(
            jnp.array(golden["excess_loss_per_token"], jnp.float32),
            jnp.array(golden["token_mask"], jnp.float32),
            _of_domain(golden["domain_ids"], given["k"]),
            learnt.score_K,
            "paper",
        )
        learnt = moved(learnt, score_K, eta=given["reweight_eta"], smoothing=given["reweight_eps"])
        np.testing.assert_allclose(learnt.score_K, golden["perdomain_scores"], atol=ATOL)
        np.testing.assert_allclose(learnt.weights_K, golden["train_domain_weights"], atol=ATOL)
        np.testing.assert_allclose(learnt.average_K, golden["avg_domain_weights"], atol=ATOL)


@pytest.mark.parametrize("case", VARIANT, ids=lambda case: case["name"])
def test_the_other_form_has_the_numbers_of_aiolis_baseline(case):
    """A batch of a token of each domain that is there, whose excess loss is the domain's mean."""
    given = case["config"]
    learnt = began((True,) * len(case["steps"][0]["proxy_loss"]), "mean", 1e-6)
    for golden in case["steps"]:
        excess_K = np.array(golden["proxy_loss"]) - np.array(golden["ref_loss"])
        present = np.flatnonzero(excess_K)
        score_K = scored(
            jnp.array(excess_K[present, None], jnp.float32),
            jnp.ones((len(present), 1)),
            _of_domain(present, len(excess_K)),
            learnt.score_K,
            "mean",
        )
        learnt = moved(learnt, score_K, eta=given["mu"], smoothing=given["reweight_eps"])
        np.testing.assert_allclose(learnt.score_K, golden["perdomain_scores"], atol=ATOL)
        np.testing.assert_allclose(learnt.weights_K, golden["train_dw"], atol=ATOL)
        np.testing.assert_allclose(learnt.average_K, golden["avg_dw"], atol=ATOL)


def test_what_has_lost_all_can_win_again():
    """exp(-120) is 0 in float32, and logarithms do not come back from it."""
    learnt = began((True, True, True), "paper", 0.0)
    for score_K, smoothing in (([0.0, 12.0, 1.0], 0.0), ([12.0, 0.0, 1.0], 0.0), ([12.0, 0.0, 1.0], 1e-3)):
        learnt = moved(learnt, jnp.array(score_K), eta=10.0, smoothing=smoothing)
    weights_K = np.asarray(learnt.weights_K)
    assert weights_K[0] > 0.99 and weights_K[1] == pytest.approx(1e-3 / 3, rel=1e-3)


def test_a_domain_that_cannot_be_drawn_from_never_gets_a_weight():
    learnt = began((True, False, True), "paper", 4.0)
    for _ in range(3):
        learnt = moved(learnt, jnp.array([0.1, 4.0, 0.3]), eta=1.0, smoothing=0.1)
    assert isinstance(learnt, Learnt)
    weights_K = np.asarray(learnt.weights_K)
    assert weights_K[1] == 0 and weights_K.sum() == pytest.approx(1) and weights_K[2] > weights_K[0]
