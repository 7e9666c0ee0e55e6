"""ODM: the released numbers, and a bandit that goes where the loss is."""

import json
from pathlib import Path

import numpy as np
import pytest

from jaxprune.mix.online.odm import Form, Odm, exploration, played, rewarded
from jaxprune.train.strategy import Observation

CASES = json.loads((Path(__file__).parents[2] / "golden" / "online_mixing" / "odm.json").read_text())["cases"]
FORMS: dict[str, Form] = {
    "smoothed_mean_group_update": "released",
    "smoothed_mean_single_update": "released_single",
}


def _seen(step, loss_K, weights_K):
    loss_K = np.array(loss_K, float)
    tokens_K = np.where(np.isnan(loss_K), 0.0, 1.0)
    return Observation(
        step=step, loss_K=loss_K, tokens_K=tokens_K, drawn_K=tokens_K, weights_K=np.array(weights_K)
    )


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_it_has_the_numbers_of_the_released_code(case):
    strategy = Odm(initial_K=(0.25,) * 4, alpha=case["config"]["smoothing_factor"], form=FORMS[case["name"]])
    state, _ = strategy.begin(0)
    for golden in case["steps"]:
        loss_K = np.full(4, np.nan)
        for name, reward in zip(golden["datasets"], golden["rewards"], strict=True):
            loss_K[int(name[1:])] = reward
        state, decision = strategy.update(
            json.loads(json.dumps(state)), _seen(golden["iteration"], loss_K, np.ones(4))
        )
        assert exploration(golden["iteration"], 4) == pytest.approx(golden["eps"], abs=1e-9)
        np.testing.assert_allclose(state["reward"], golden["estimated_reward"], atol=1e-9)
        np.testing.assert_allclose(decision.weights_K, golden["probabilities"], atol=1e-9)


def test_the_papers_rewards_are_weighed_by_importance():
    """R <- .9 R + .1 L / p, by hand; a domain that was not drawn keeps its reward."""
    reward_K = rewarded(np.array([10.0, 10.0]), np.array([4.0, np.nan]), np.array([0.2, 0.8]), 0.9, "paper")
    np.testing.assert_allclose(reward_K, [0.9 * 10 + 0.1 * 20, 10.0])
    weights_K = played(np.array([1.0, 2.0, 4.0]), 100, "paper")
    e, before = exploration(100, 3), exploration(99, 3)
    raised_K = np.exp(before * np.array([1.0, 2.0, 4.0]))
    np.testing.assert_allclose(weights_K, (1 - 3 * e) * raised_K / raised_K.sum() + e)


def test_rewards_are_weighed_by_the_weights_that_drew_and_not_by_its_own():
    """As they differ where a cap on epochs cuts them."""
    strategy = Odm(initial_K=(0.5, 0.3, 0.2))
    state, _ = strategy.begin(0)
    drew_K, loss_K = np.array([0.0, 1.0, 0.0]), np.array([np.nan, 2.0, np.nan])
    for _ in range(50):
        state, decision = strategy.update(state, _seen(1, loss_K, drew_K))
    assert decision.weights_K[1] < 0.9
    np.testing.assert_allclose(state["reward"], [0.0, 2.0 * (1 - 0.9**50), 0.0])


@pytest.mark.parametrize("form", ["paper", "released", "released_single"])
def test_weights_are_a_mixture_that_goes_where_the_loss_is(form):
    strategy = Odm(initial_K=(0.2, 0.3, 0.5), warmup=4, form=form)
    state, decision = strategy.begin(10)
    assert decision.until == 14 and decision.weights_K.tolist() == [0.2, 0.3, 0.5]
    rng = np.random.default_rng(0)
    for step in range(14, 400):
        loss_K = np.where(rng.random(3) < 0.7, [3.0, 2.0, 1.0], np.nan)
        state, decision = strategy.update(state, _seen(step, loss_K, decision.weights_K))
        assert decision.weights_K.sum() == pytest.approx(1) and (decision.weights_K > 0).all()
    assert decision.weights_K.argmax() == 0 and decision.weights_K.argmin() == 2
