"""ADO: the authors' numbers with injected laws, planted laws found, and a history that stays small."""

import json
from pathlib import Path

import numpy as np
import pytest

from jaxprune.mix.online.ado import Ado, at_least, fitted, recorded
from jaxprune.train.strategy import Observation

GOLDEN = json.loads((Path(__file__).parents[2] / "golden" / "online_mixing" / "ado.json").read_text())


def test_weights_are_raised_to_a_least_as_in_the_released_code():
    for case in GOLDEN["clip_min_probability"]:
        np.testing.assert_allclose(
            at_least(np.array(case["inp"], float), case["min_prob"]), case["out"], atol=1e-9
        )


def test_it_has_the_numbers_of_the_released_code_with_the_same_laws():
    given = GOLDEN["config"]
    strategy = Ado(
        prior_K=tuple(given["prior_from_token_counts"]),
        steps=100,
        history=given["gamma_history"],
        policy=given["gamma_policy"],
        exponent=given["s_exponent"],
        floor=given["alpha_floor"],
        least=given["min_prob"],
    )
    state, _ = strategy.begin(0)
    checked, drawn_K = 0, np.zeros(4)
    for golden in GOLDEN["steps"]:
        tokens_K = np.bincount(golden["task_ids"], minlength=4).astype(float)
        if golden["dist"] is not None:  # as after a fit; n in their samples
            state["laws"] = given["fitted_params"]
            drawn_K = tokens_K * (golden["n_seen"][0] / tokens_K.sum())
        observation = Observation(
            step=golden["itr"], loss_K=np.ones(4), tokens_K=tokens_K, drawn_K=drawn_K, weights_K=tokens_K
        )
        state, decision = strategy.update(state, observation)
        np.testing.assert_allclose(state["drawn"], golden["p_history"], atol=1e-9)
        if golden["dist"] is None:
            continue
        np.testing.assert_allclose(decision.weights_K, golden["dist"], atol=1e-9)
        np.testing.assert_allclose(state["average"], golden["p_avg"], atol=1e-9)
        checked += 1
    assert checked > 5


@pytest.mark.parametrize("start", [0, 300, 700])
def test_laws_hold_from_the_first_token_of_the_run_on_also_after_a_prior_part(start):
    strategy = Ado(prior_K=(0.5, 0.5), steps=1000, refit=200)
    state, decision = strategy.begin(start)
    floor_K, alpha_K = np.array([2.0, 1.0]), np.array([0.5, 0.25])
    drawn_K = np.full(2, 500.0 * start)
    while decision.until < 1000:
        tokens_K = 1000 * decision.weights_K
        drawn_K = drawn_K + tokens_K
        n = drawn_K.sum()
        observation = Observation(
            step=decision.until,
            loss_K=floor_K + 40 * n**-alpha_K,
            tokens_K=tokens_K,
            drawn_K=drawn_K,
            weights_K=decision.weights_K,
        )
        state, decision = strategy.update(state, observation)
    fitted_at = state["fit_at"] - 200
    n = 1000.0 * fitted_at
    true_K = alpha_K * 40 * n ** (-alpha_K - 1)
    np.testing.assert_allclose(_slope_K(state["laws"], n), true_K, rtol=0.25)


LAWS = np.array([[4.0, 0.5, 0.3], [3.0, 0.9, 0.2], [5.0, 0.2, 0.45]])


def _planted(n, rng, noise=0.0):
    a_K, eps_K, alpha_K = LAWS.T
    return np.exp(eps_K) + np.exp(a_K) * n**-alpha_K + noise * rng.standard_normal(3)


def _slope_K(laws_KP, n):
    a_K, _, alpha_K = np.array(laws_KP).T
    return alpha_K * np.exp(a_K) * n**-alpha_K / n


def test_planted_laws_are_found():
    rng = np.random.default_rng(0)
    points = [[n, 1, _planted(n, rng, 0.003).tolist()] for n in np.linspace(1e3, 3e6, 600)]
    found = np.array(fitted(points, None, 3))
    np.testing.assert_allclose(_slope_K(found, 2e6), _slope_K(LAWS, 2e6), rtol=0.1)


@pytest.mark.parametrize("step_tokens", [2e3, 4e6])
def test_steep_laws_are_found_whatever_the_tokens_of_a_step(step_tokens):
    """A floor of 2 or 1 nats, and 4 or 0.6 to learn from step 50 on: e^a is up to e^11 in tokens."""
    rng = np.random.default_rng(0)
    alpha_K, begun = np.array([0.5, 0.6]), 50 * step_tokens
    left_K = np.array([4.0, 0.6])
    points = [
        [n, 1, ([2.0, 1.0] + left_K * (n / begun) ** -alpha_K + 0.005 * rng.standard_normal(2)).tolist()]
        for n in step_tokens * np.arange(50, 1001)
    ]
    last = points[-1][0]
    true_K = alpha_K * left_K * (last / begun) ** -alpha_K / last
    np.testing.assert_allclose(_slope_K(fitted(points, None, 2), last), true_K, rtol=0.03)


def test_too_few_decisions_before_the_first_fit_leave_the_prior():
    strategy = Ado(prior_K=(0.5, 0.3, 0.2), steps=400, every=100, refit=100)
    state, decision = strategy.begin(0)
    for loss in (3.0, 2.9, 2.8):
        seen = Observation(
            step=decision.until,
            loss_K=np.full(3, loss),
            tokens_K=np.ones(3),
            drawn_K=np.ones(3) * decision.until,
            weights_K=np.ones(3) / 3,
        )
        state, decision = strategy.update(state, seen)
        assert state["laws"] == [None] * 3
        np.testing.assert_array_equal(decision.weights_K, strategy.prior_K)


def test_it_draws_by_the_prior_until_it_can_fit_and_then_where_the_loss_falls():
    strategy = Ado(prior_K=(0.4, 0.4, 0.2), steps=400, refit=100)
    state, decision = strategy.begin(0)
    rng = np.random.default_rng(1)
    drawn_K, n = np.zeros(3), 0.0
    while decision.until < 400:
        tokens_K = 1000 * decision.weights_K
        n += 1000
        drawn_K = drawn_K + tokens_K
        loss_K = _planted(n, rng, 0.01)
        if rng.random() < 0.2:
            loss_K[2] = np.nan
        observation = Observation(
            step=decision.until,
            loss_K=loss_K,
            tokens_K=tokens_K,
            drawn_K=drawn_K,
            weights_K=decision.weights_K,
        )
        state, decision = strategy.update(json.loads(json.dumps(state)), observation)
        assert decision.weights_K.sum() == pytest.approx(1) and (decision.weights_K > 0).all()
        if observation.step < 100:
            np.testing.assert_allclose(decision.weights_K, strategy.prior_K)
    slope_K = LAWS[:, 2] * np.exp(LAWS[:, 0]) * n ** -LAWS[:, 2]
    steeper = (slope_K / slope_K.sum()) > 1 / 3
    assert ((decision.weights_K > strategy.prior_K)[steeper]).all()


def test_the_history_is_bounded_and_keeps_its_means():
    state = {"n": 0.0, "points": [], "width": 1}
    for step in range(5000):
        state = recorded(state, state["n"] + 10.0, np.array([step, np.nan, 1.0]))
    points = state["points"]
    assert len(points) <= 1024 and state["n"] == 50_000
    sizes = np.array([size for _, size, _ in points])
    assert sizes.sum() == 5000
    assert (sizes * [loss[0] for _, _, loss in points]).sum() == pytest.approx(sum(range(5000)))
    assert all(loss[1] is None and loss[2] == pytest.approx(1) for _, _, loss in points)


def test_too_few_losses_leave_the_law_that_was_there():
    assert fitted([[10.0, 1, [3.0, None]]], None, 2) == [None, None]
    assert fitted([[10.0, 1, [3.0, None]]], [[1.0, 1.0, 0.5], None], 2) == [[1.0, 1.0, 0.5], None]
