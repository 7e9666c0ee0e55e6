"""What holds for every strategy but Aioli, whose tests plant a law: mixtures, states, and the order of domains."""

import json

import numpy as np
import pytest

from jaxprune.mix.online.ado import Ado
from jaxprune.mix.online.odm import Odm
from jaxprune.mix.online.skillit import SkillIt
from jaxprune.train.strategy import Observation

STEPS, FIRST = 60, 5
PRIOR_K = np.array([0.5, 0.3, 0.2])
GRAPH_KK = np.array([[0.6, 0.1, 0.3], [0.2, 0.5, 0.1], [0.0, 0.4, 0.7]])

MAKE = {
    "ado": lambda order: Ado(prior_K=tuple(PRIOR_K[order]), steps=STEPS, refit=30),
    "odm": lambda order: Odm(initial_K=tuple(PRIOR_K[order]), warmup=3),
    "odm released": lambda order: Odm(initial_K=tuple(PRIOR_K[order]), form="released"),
    "odm single": lambda order: Odm(initial_K=tuple(PRIOR_K[order]), form="released_single"),
    "skillit": lambda order: SkillIt(
        graph_KK=tuple(map(tuple, GRAPH_KK[np.ix_(order, order)])), steps=STEPS, rounds=5
    ),
}


def _weights(strategy, losses, order, through_json=False):
    """Weights of every decision of a run; `losses` by step, of domains in their first order."""
    state, decision = strategy.begin(FIRST)
    weights = [decision.weights_K]
    while decision.until < STEPS:
        loss_K = losses[decision.until][order]
        tokens_K = np.where(np.isnan(loss_K), 0.0, 100 * PRIOR_K[order])
        seen = Observation(
            step=decision.until,
            loss_K=loss_K,
            tokens_K=tokens_K,
            drawn_K=tokens_K,
            weights_K=decision.weights_K,
        )
        if through_json:
            state = json.loads(json.dumps(state, allow_nan=False))
        before = json.dumps(state)
        after, decision = strategy.update(state, seen)
        assert json.dumps(state) == before  # nothing is changed in place
        state = after
        weights.append(decision.weights_K)
    return np.array(weights)


def _falling(absent, signal):
    """Losses that fall at rates of their own; those of training are missing where a domain is not drawn."""
    rng = np.random.default_rng(0)
    rates_K, steps_S = np.array([0.3, 0.1, 0.5]), np.arange(STEPS + 1)
    losses_SK = 1 + 4 * (1.0 + steps_S[:, None]) ** -rates_K + 0.01 * rng.standard_normal((STEPS + 1, 3))
    if signal == "training":
        losses_SK[(rng.random(losses_SK.shape) < absent) & (np.arange(3) > 0)] = np.nan
    return losses_SK


@pytest.mark.parametrize("name", MAKE)
def test_decisions_are_mixtures_that_a_resumed_run_and_another_order_of_domains_share(name):
    order, other = np.arange(3), np.array([2, 0, 1])
    strategy = MAKE[name](order)
    losses = _falling(0.4, strategy.signal)
    weights = _weights(strategy, losses, order)
    np.testing.assert_allclose(weights.sum(1), 1)
    assert (weights > 0).all() and np.abs(weights[-1] - weights[0]).max() > 0.01
    np.testing.assert_array_equal(_weights(strategy, losses, order, through_json=True), weights)
    np.testing.assert_allclose(_weights(MAKE[name](other), losses, other), weights[:, other], atol=1e-6)


@pytest.mark.parametrize("name", MAKE)
@pytest.mark.parametrize("loss", [0.0, 2.0])
def test_losses_that_do_not_move_still_give_a_mixture(name, loss):
    order = np.arange(3)
    weights = _weights(MAKE[name](order), np.full((STEPS + 1, 3), loss), order)
    assert np.isfinite(weights).all() and (weights > 0).all()
    np.testing.assert_allclose(weights.sum(1), 1)


@pytest.mark.parametrize("name", [name for name in MAKE if name != "skillit"])
def test_a_domain_that_is_never_drawn_keeps_a_weight(name):
    order, losses = np.arange(3), _falling(0.0, "training")
    losses[:, 2] = np.nan
    weights = _weights(MAKE[name](order), losses, order)
    assert np.isfinite(weights).all() and (weights > 0).all()
