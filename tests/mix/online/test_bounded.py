"""What the corpus allows: no domain without a row, none beyond its epochs."""

import json
from dataclasses import dataclass, replace

import numpy as np
import pytest

from jaxprune import config
from jaxprune.artifact import StageError
from jaxprune.data.schedule import Schedule, Stage
from jaxprune.mix.online.bounded import Bounded
from jaxprune.mix.online.make import online, strategy
from jaxprune.train.strategy import Decision, Observation, Strategy


@dataclass(frozen=True, kw_only=True)
class Fond(Strategy):
    """Always draws nine tenths from the first domain."""

    signal: str = "validation"  # pyright: ignore[reportIncompatibleVariableOverride]
    law, estimate, solve = "none", "none", "none"

    def begin(self, step):
        return {}, Decision(weights_K=np.array([0.9, 0.06, 0.04]), until=step + 5)

    def update(self, state, seen):
        assert len(seen.loss_K) == len(seen.tokens_K) == len(seen.drawn_K) == 3
        return {}, Decision(weights_K=np.array([0.9, 0.06, 0.04]), until=seen.step + 5)


BOUNDED = Bounded(
    inner=Fond(),
    mixed_K=(True, False, True, True),
    limit_K=None,
    before_K=(0.0,) * 4,
    steps=100,
    step_tokens=64,
)


def _drawn(bounded, lag):
    """Tokens of each domain by the end of a run of batches of 64 rows of one token."""
    state, decision = bounded.begin(0)
    schedule = Schedule([Stage(start=0, weights=tuple(decision.weights_K))], n_domains=4, batch_rows=64)
    records = []
    while decision.until + lag < 100:
        step = decision.until
        seen = Observation(
            step=step,
            loss_K=np.ones(4),
            tokens_K=(schedule.cursors(step) - schedule.cursors(step - 5)).astype(float),
            drawn_K=schedule.cursors(step).astype(float),
            weights_K=np.array(schedule.weights(step - 1)),
        )
        state, decision = bounded.update(json.loads(json.dumps(state)), seen)
        schedule = schedule.append(Stage(start=step + lag, weights=tuple(decision.weights_K)))
        records.append(decision.record)
    return schedule.cursors(100), records


def test_a_domain_without_a_row_gets_nothing_and_the_others_what_the_strategy_says():
    drawn_K, records = _drawn(BOUNDED, 0)
    assert drawn_K[1] == 0
    assert drawn_K[[0, 2, 3]] / 6400 == pytest.approx([0.9, 0.06, 0.04], abs=0.002)
    assert records == [{}] * 19


@pytest.mark.parametrize(("signal", "lag"), [("validation", 0), ("training", 1)])
def test_no_domain_is_drawn_beyond_its_limit(signal, lag):
    limit_K = (3000.0, 0.0, 1000.0, 4000.0)
    drawn_K, records = _drawn(replace(BOUNDED, inner=Fond(signal=signal), limit_K=limit_K), lag)
    assert (drawn_K <= np.array(limit_K) + 3).all()  # of which rows are whole numbers
    assert drawn_K.sum() == 6400
    assert drawn_K[0] >= 2990 and any("cut" in record for record in records)


@pytest.mark.parametrize(("signal", "lag"), [("validation", 0), ("training", 1)])
def test_a_limit_that_the_first_decision_would_pass_is_kept(signal, lag):
    limit_K = (160.0, 0.0, 9000.0, 9000.0)  # half of what five steps would draw
    drawn_K, _ = _drawn(replace(BOUNDED, inner=Fond(signal=signal), limit_K=limit_K), lag)
    assert drawn_K[0] <= 160 + 3 and drawn_K.sum() == 6400


def test_tokens_that_were_drawn_before_count():
    limit_K, before_K = (3000.0, 0.0, 3000.0, 9000.0), (3000.0, 0.0, 0.0, 0.0)
    _, decision = replace(BOUNDED, limit_K=limit_K, before_K=before_K).begin(0)
    assert decision.weights_K[0] == 0 and decision.weights_K.sum() == pytest.approx(1)


def _strategy(mix, **rows):
    mixture = {"rows": rows, "weights": dict.fromkeys(rows, 0.5), "online": online(mix, RUN, None)}
    return strategy(mix, RUN, mixture, 0)


RUN = config.Run(
    model=config.Model(d_model=32, n_layers=1, n_heads=2, context=16), tokens=400 * 8 * 16, batch_rows=8
)


def test_what_does_not_fit_is_refused_before_anything_is_trained():
    mix = config.Mix(method="aioli", aioli=config.Aioli(rounds=10))
    made = _strategy(mix, a=5, b=0, c=7)
    assert isinstance(made, Bounded) and made.inner.n_domains == 2  # pyright: ignore
    with pytest.raises(ValueError, match="1 domain has as much as a row"):
        _strategy(mix, a=5, b=0)
    with pytest.raises(ValueError, match="mix.max_epochs is 2, in which all domains together give 1% of"):
        _strategy(replace(mix, max_epochs=2.0), a=5, b=5)
    with pytest.raises(ValueError, match="mix.aioli.targets names B, .*these are a, b"):
        _strategy(replace(mix, aioli=config.Aioli(targets={"B": 1.0})), a=5, b=5)
    with pytest.raises(ValueError, match="lower mix.aioli.sweeps"):
        _strategy(replace(mix, aioli=config.Aioli(rounds=200)), a=5, b=5)


def test_a_mixture_of_other_settings_is_refused():
    mix = config.Mix(method="odm")
    mixture = {"rows": {"a": 5, "b": 5}, "weights": {"a": 0.5, "b": 0.5}, "online": online(mix, RUN, None)}
    assert strategy(mix, RUN, mixture, 0).signal == "training"
    for other in (config.Mix(method="aioli"), config.Mix(method="odm", odm=config.Odm(alpha=0.5))):
        with pytest.raises(StageError, match="run with other settings.*of odm.*run `jaxprune mix CONFIG`"):
            strategy(other, RUN, mixture, 0)
