"""MixMin: the released steps' numbers, and the mixture that examples were made of."""

import itertools
import json
from pathlib import Path

import numpy as np
import pytest

from jaxprune.mix.mixmin import descent, loss, weights

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "online_mixing" / "mixmin.json").read_text())
LOG_PROB_KN = np.array(GOLDEN["log_probs_domain_by_example"])
TOKENS_N = np.array(GOLDEN["lengths"])


def test_it_has_the_numbers_of_the_released_formulas():
    trajectory = list(itertools.islice(descent(LOG_PROB_KN, TOKENS_N, GOLDEN["lr"]), 6))
    for weights_K, golden in zip(trajectory, GOLDEN["trajectory"], strict=True):
        np.testing.assert_allclose(weights_K, golden["p"], atol=1e-9)
        assert loss(LOG_PROB_KN, TOKENS_N, weights_K) == pytest.approx(golden["loss"], abs=1e-9)
    np.testing.assert_array_equal(weights(LOG_PROB_KN, TOKENS_N, steps=5, lr=GOLDEN["lr"]), trajectory[5])


def test_it_finds_the_mixture_that_the_examples_were_made_of():
    """100 draws of three symbols, as often as 0.6 of the first domain and 0.4 of the second have them; no third."""
    prob_KV = np.array([[0.5, 0.3, 0.2], [0.1, 0.2, 0.7], [0.05, 0.9, 0.05]])
    counts_V = np.array([34, 26, 40])
    np.testing.assert_allclose(counts_V / 100, [0.6, 0.4, 0.0] @ prob_KV)
    log_prob_KN = np.log(np.repeat(prob_KV, counts_V, axis=1))
    found_K = weights(log_prob_KN, np.ones(100), steps=3000)
    np.testing.assert_allclose(found_K, [0.6, 0.4, 0.0], atol=1e-3)


def test_domains_in_another_order_give_the_same_weights():
    order = [2, 0, 1]
    np.testing.assert_allclose(
        weights(LOG_PROB_KN[order], TOKENS_N, steps=50), weights(LOG_PROB_KN, TOKENS_N, steps=50)[order]
    )


def test_weights_stay_a_mixture_however_far_apart_the_probabilities_are():
    log_prob_KN = np.array([[-5000.0, -10.0, -9000.0], [-10.0, -5000.0, -8000.0], [-9000.0] * 3])
    for lr in (1.0, 1e4):
        for weights_K in itertools.islice(descent(log_prob_KN, np.array([1.0, 2.0, 3.0]), lr), 30):
            assert np.isfinite(weights_K).all() and weights_K.sum() == pytest.approx(1)
