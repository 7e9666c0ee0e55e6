"""Chameleon: the formulas' numbers, and which domains each of its weights raises."""

import json
from pathlib import Path

import numpy as np
import pytest

from jaxprune.mix.chameleon import finetuning_weights, leverage, pretraining_weights

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "online_mixing" / "chameleon.json").read_text())
EMBEDDING_KD = np.array(GOLDEN["embeddings"])


def test_it_has_the_numbers_of_the_released_formulas():
    leverage_K = leverage(EMBEDDING_KD, GOLDEN["lambda_reg"])
    np.testing.assert_allclose(leverage_K, GOLDEN["krls_normalized"], atol=1e-9)
    np.testing.assert_allclose(
        pretraining_weights(leverage_K, GOLDEN["pt_temperature"]), GOLDEN["pretrain_weights"], atol=1e-9
    )
    np.testing.assert_allclose(
        finetuning_weights(leverage_K, GOLDEN["ft_temperature"]), GOLDEN["finetune_weights"], atol=1e-9
    )


def test_only_the_place_of_a_domain_among_the_others_counts():
    """A turn and a shift of all embeddings change nothing, and another order of domains only the order."""
    rng = np.random.default_rng(0)
    turn_DD = np.linalg.qr(rng.normal(size=(6, 6)))[0]
    expected_K = leverage(EMBEDDING_KD)
    np.testing.assert_allclose(leverage(EMBEDDING_KD @ turn_DD + rng.normal(size=6)), expected_K, atol=1e-12)
    np.testing.assert_allclose(leverage(EMBEDDING_KD[[2, 0, 3, 1]]), expected_K[[2, 0, 3, 1]], atol=1e-12)


def test_a_domain_amid_the_others_is_raised_for_pretraining_and_one_apart_for_finetuning():
    """Domain 3 is the mean of all, so that its leverage is 0 and takes the limit of exp(1 / S)."""
    leverage_K = leverage(np.array([[1.0, 0.0], [-3.0, 0.0], [2.0, 0.0], [0.0, 0.0]]))
    assert leverage_K[3] == pytest.approx(0, abs=1e-15)
    np.testing.assert_allclose(pretraining_weights(leverage_K), [0, 0, 0, 1], atol=1e-12)
    weights_K = finetuning_weights(leverage_K)
    assert weights_K.argmax() == 1 and weights_K.argmin() == 3 and weights_K.sum() == pytest.approx(1)


def test_embeddings_that_are_all_the_same_are_refused():
    with pytest.raises(ValueError, match="embeddings of the 3 domains are all the same"):
        leverage(np.ones((3, 5)))
