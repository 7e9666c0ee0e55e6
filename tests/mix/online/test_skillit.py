"""Skill-It: the released numbers, and rounds of held-out losses."""

import json
from pathlib import Path

import numpy as np
import pytest

from jaxprune.mix.online.skillit import SkillIt, graph_of, weights
from jaxprune.train.strategy import Observation

(CASE,) = json.loads((Path(__file__).parents[2] / "golden" / "online_mixing" / "skillit.json").read_text())[
    "cases"
]
GRAPH = tuple(map(tuple, CASE["graph_input"]))


def test_it_has_the_numbers_of_the_released_code():
    """Which takes the weights of a round before the losses at its end are there."""
    graph_KK, loss_EK, eta = np.array(GRAPH), np.array(CASE["eval_losses_in_order"]), CASE["config"]["eta"]
    counters = np.array(CASE["eval_counters"])
    np.testing.assert_allclose(weights(graph_KK, np.ones((1, 3)), eta), CASE["p_per_round"][0], atol=1e-9)
    for number, golden in enumerate(CASE["p_per_round"][1:], start=1):
        recorded_EK = loss_EK[counters < number * CASE["config"]["update_steps"]][-CASE["config"]["window"] :]
        np.testing.assert_allclose(recorded_EK.sum(0), CASE["loss_window_sum"][number - 1], atol=1e-9)
        np.testing.assert_allclose(weights(graph_KK, recorded_EK, eta), golden, atol=1e-9)


def test_weights_change_once_a_round_by_the_last_losses():
    strategy = SkillIt(graph_KK=GRAPH, steps=100, rounds=4, evaluations=2, window=3)
    state, decision = strategy.begin(20)
    untils, seen = [decision.until], []
    rng = np.random.default_rng(0)
    while decision.until < 100:
        seen.append(rng.uniform(1, 3, 3))
        before_K = decision.weights_K
        observation = Observation(
            step=decision.until,
            loss_K=seen[-1],
            tokens_K=np.ones(3),
            drawn_K=np.ones(3),
            weights_K=before_K,
        )
        state, decision = strategy.update(json.loads(json.dumps(state)), observation)
        if len(seen) % 2:
            np.testing.assert_array_equal(decision.weights_K, before_K)
        else:
            np.testing.assert_allclose(decision.weights_K, weights(np.array(GRAPH), np.array(seen[-3:]), 0.2))
        untils.append(decision.until)
    assert untils == [30, 40, 50, 60, 70, 80, 90, 100]


def test_a_domain_that_teaches_what_is_not_learnt_yet_comes_first():
    """Domain 0 teaches 2, whose loss is high: a graph that is transposed would choose 2."""
    graph_KK = np.array([[0.1, 0.1, 0.9], [0.1, 0.2, 0.1], [0.2, 0.1, 0.3]])
    assert weights(graph_KK, np.array([[1.0, 1.0, 8.0]]), 0.2).argmax() == 0


def test_the_graph_is_the_share_of_the_loss_that_a_run_took_away():
    before_KK, after_KK = np.full((2, 2), 8.0), np.array([[2.0, 6.0], [4.0, 7.0]])
    np.testing.assert_allclose(graph_of(before_KK, after_KK), [[0.75, 0.25], [0.5, 0.125]])


def test_more_evaluations_than_steps_are_refused():
    with pytest.raises(ValueError, match="10 rounds x 2 evaluations are more than the 15 steps"):
        SkillIt(graph_KK=GRAPH, steps=15).begin(0)
