"""Aioli: the authors' numbers, the optimum's direction where there is one, and no step on noise."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from jaxprune.data.schedule import Schedule, Stage
from jaxprune.mix.online.aioli import Aioli, explained, normalised, solved, told_apart, told_apart_by_own
from jaxprune.train.strategy import Observation

GOLDEN = Path(__file__).parents[2] / "golden" / "online_mixing"
CASES = json.loads((GOLDEN / "aioli.json").read_text())["cases"]


def _seen(step, loss_K, tokens_K) -> Observation:
    return Observation(step=step, loss_K=loss_K, tokens_K=tokens_K, drawn_K=tokens_K, weights_K=tokens_K)


def _of(case) -> Aioli:
    """The settings of a case; smoothing (paper) and one_hot_factor (code) say the same."""
    given = case["config"]
    return Aioli(
        n_domains=given["m"],
        steps=given["max_steps"],
        rounds=given["max_steps"] // given["update_steps"],
        sweeps=given["lp_rounds"],
        segment_steps=given["lp_steps"],
        smoothing=given["epsilon_paper"],
        eta=given["eta"],
        ema=given["ema"],
        interactions="diagonal" if given["aioli_diagonal"] else "full",
        normalise=given["aioli_normalize_A"],
        estimator="reference",
        confidence=None,
        drift=False,
        floor=0.0,
    )


def _array(values):
    return np.array(values, float)  # null is NaN


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_it_has_the_numbers_of_the_authors_code(case, monkeypatch):
    monkeypatch.setattr(Aioli, "order", lambda self, number: case["rounds"][number]["order"])
    strategy = _of(case)
    state, decision = strategy.begin(0)
    step = 0
    for number, golden in enumerate(case["rounds"]):
        tokens_K = np.ones(strategy.n_domains)
        state, decision = strategy.update(state, _seen(step, _array(golden["val_loss_start"]), tokens_K))
        for mixture, losses in zip(golden["segment_mixtures"], golden["val_loss_after_segment"], strict=True):
            np.testing.assert_allclose(decision.weights_K, mixture, atol=1e-9)
            assert decision.until == step + case["config"]["lp_steps"]
            step = decision.until
            state = json.loads(json.dumps(state))
            state, decision = strategy.update(state, _seen(step, _array(losses), _array(mixture)))
        np.testing.assert_allclose(_array(decision.record["A"]), _array(golden["A_solved"]), atol=1e-9)
        if np.isnan(_array(golden["p_next"])).any():
            # Theirs is not a number from here on; ours keeps what it had, and says so.
            assert np.isnan(normalised(_array(decision.record["A"]))).all()
            assert decision.record["kept"] == "no progress"
            np.testing.assert_allclose(decision.weights_K, 1 / strategy.n_domains)
            return
        np.testing.assert_allclose(decision.weights_K, _array(golden["p_next"]), atol=1e-9)
        if golden.get("A_ema") is not None:
            np.testing.assert_allclose(_array(state["ema"]), _array(golden["A_ema"]), atol=1e-9)
        elif golden.get("A_normalized") is not None:
            np.testing.assert_allclose(
                _array(decision.record["aims"]), _array(golden["A_normalized"]), atol=1e-9
            )
        step = decision.until
        assert step == case["config"]["update_steps"] * (number + 1)


class _Planted:
    """A model whose losses follow L_i -= sum_j A_ij p_j for each step, and are measured with noise."""

    def __init__(self, A_KK, noise=0.0, seed=0, batch_rows=64):
        self.A_KK, self.noise, self.batch_rows = np.array(A_KK, float), noise, batch_rows
        self.rng = np.random.default_rng(seed)
        self.loss_K = np.full(len(A_KK), 5.0)

    def train(self, strategy, steps):
        """All decisions of a run."""
        n_domains = len(self.A_KK)
        state, decision = strategy.begin(0)
        schedule, decisions, step = None, [], 0
        while True:
            if decision.until > step:
                stage = Stage(start=step, weights=tuple(decision.weights_K))
                schedule = (
                    Schedule([stage], n_domains=n_domains, batch_rows=self.batch_rows)
                    if schedule is None
                    else schedule.append(stage)
                )
                decisions.append(decision)
                until = min(decision.until, steps)
                rows_K = schedule.cursors(until) - schedule.cursors(step)
                self.loss_K -= self.A_KK @ rows_K / self.batch_rows
                step = until
            else:
                rows_K = np.ones(n_domains)
            if step >= steps:
                return decisions
            measured_K = self.loss_K + self.noise * self.rng.standard_normal(n_domains)
            state, decision = strategy.update(json.loads(json.dumps(state)), _seen(step, measured_K, rows_K))


THREE = 1e-3 * np.array([[3.0, 0.5, 0.2], [0.5, 1.0, 0.1], [0.1, 0.2, 0.5]])
SETTINGS = Aioli(n_domains=3, steps=1200, rounds=6, sweeps=4, segment_steps=5, eta=0.5)


def test_it_finds_a_planted_law_exactly_and_beats_the_stratified_mixture():
    model = _Planted(THREE)
    decisions = model.train(SETTINGS, 1200)
    learnt = [decision for decision in decisions if "A" in decision.record]
    assert len(learnt) == 6
    for decision in learnt:
        np.testing.assert_allclose(np.array(decision.record["A"]) / 5, THREE, atol=1e-12)
        assert decision.record["trust"] == pytest.approx(1)
    weights_K = learnt[-1].weights_K
    assert np.argsort(weights_K).tolist() == np.argsort(THREE.sum(0)).tolist()
    stratified_K = 5.0 - 1200 * THREE.mean(1)
    assert model.loss_K.mean() < stratified_K.mean() - 1e-3


def test_noise_of_the_losses_moves_the_weights_only_as_far_as_it_is_told_from():
    """With the law planted, the right domain still comes first; with none, weights stay near uniform."""
    found = [
        _Planted(THREE, noise=1e-3, seed=seed).train(SETTINGS, 1200)[-1].weights_K.argmax()
        for seed in range(20)
    ]
    assert sum(domain == 0 for domain in found) >= 18
    flat = np.zeros((3, 3))
    far = {}
    for confidence in (SETTINGS.confidence, None):
        runs = [
            _Planted(flat, noise=1e-3, seed=seed)
            .train(replace(SETTINGS, confidence=confidence), 1200)[-1]
            .weights_K
            for seed in range(20)
        ]
        far[confidence] = np.mean([np.abs(weights_K - 1 / 3).max() for weights_K in runs])
    assert far[SETTINGS.confidence] < 0.5 * far[None]
    assert far[SETTINGS.confidence] < 0.03


def test_no_progress_keeps_the_weights():
    decisions = _Planted(np.zeros((3, 3))).train(replace(SETTINGS, confidence=None), 1200)
    kept = [decision for decision in decisions if decision.record.get("kept")]
    assert len(kept) == 6
    for decision in kept:
        np.testing.assert_allclose(decision.weights_K, 1 / 3)


def test_balanced_segments_give_what_the_paper_solves_for():
    rng = np.random.default_rng(0)
    order = np.tile(np.arange(4), 3)
    strategy = replace(SETTINGS, n_domains=4, smoothing=0.4)
    shares_SK, drops_SK = strategy.mixtures_KK[order], rng.normal(size=(12, 4))
    beta_KK = np.stack([drops_SK[order == k].mean(0) for k in range(4)], axis=1)
    np.testing.assert_allclose(
        explained(drops_SK, shares_SK, interactions="full", drift=False),
        solved(beta_KK, strategy.mixtures_KK, "full"),
        atol=1e-12,
    )


def test_a_loss_that_falls_in_any_case_does_not_blame_the_segments_order():
    rng = np.random.default_rng(1)
    shares_SK = rng.dirichlet(np.ones(3), 12)
    falling_S = np.linspace(0.3, 0.1, 12)[:, None]
    drops_SK = shares_SK @ THREE.T + falling_S
    told = explained(drops_SK, shares_SK, interactions="full", drift=True)
    # What falls alike for all mixtures cannot be told from what every domain does alike.
    np.testing.assert_allclose(
        told - told.mean(1, keepdims=True), THREE - THREE.mean(1, keepdims=True), atol=1e-12
    )
    blamed = explained(drops_SK, shares_SK, interactions="full", drift=False)
    assert np.abs(blamed - blamed.mean(1, keepdims=True) - THREE + THREE.mean(1, keepdims=True)).max() > 1e-3


def test_trust_is_whole_without_noise_and_mostly_none_where_domains_do_the_same():
    rng = np.random.default_rng(2)
    shares_SK = replace(SETTINGS, smoothing=0.5).mixtures_KK[np.tile(np.arange(3), 4)]
    assert told_apart(shares_SK @ THREE.sum(0), shares_SK, drift=True, confidence=0.9) == pytest.approx(1)
    of_noise = [told_apart(rng.normal(size=12), shares_SK, drift=True, confidence=0.9) for _ in range(200)]
    assert 0.02 < np.mean(np.array(of_noise) > 0) < 0.2  # one in ten
    assert (
        told_apart(rng.normal(size=3), shares_SK[:3], drift=False, confidence=0.9) == 0.0
    )  # nothing is left to judge by


def test_domains_in_another_order_give_the_same_weights():
    shuffled = [2, 0, 1]
    last = _Planted(THREE).train(SETTINGS, 1200)[-1].weights_K
    permuted = _Planted(THREE[np.ix_(shuffled, shuffled)]).train(SETTINGS, 1200)[-1].weights_K
    np.testing.assert_allclose(permuted, last[shuffled], atol=1e-9)


def test_a_diagonal_law_sees_only_what_a_domain_does_for_itself():
    A_KK = explained(
        replace(SETTINGS, smoothing=0.6).mixtures_KK @ np.diag([1.0, 2.0, 3.0]).T,
        replace(SETTINGS, smoothing=0.6).mixtures_KK,
        interactions="diagonal",
        drift=False,
    )
    np.testing.assert_allclose(A_KK, np.diag([1.0, 2.0, 3.0]), atol=1e-12)


def test_a_diagonal_law_is_not_moved_by_what_domains_do_for_each_other():
    """All others do 0.8 for a domain: neither that nor a trend is taken for its own."""
    shares_SK = np.tile(replace(SETTINGS, smoothing=0.6).mixtures_KK, (4, 1))
    true_KK = np.full((3, 3), 0.8)
    np.fill_diagonal(true_KK, [3.0, 2.0, 1.0])
    trend_S = np.linspace(0.5, -0.5, len(shares_SK))
    A_KK = explained(shares_SK @ true_KK.T + trend_S[:, None], shares_SK, interactions="diagonal", drift=True)
    np.testing.assert_allclose(A_KK, np.diag([3.0, 2.0, 1.0]), atol=1e-9)


def test_the_diagonals_guard_asks_for_what_moves_it():
    """Columns that sum alike say nothing to the full law, and the diagonal's are far apart."""
    A_KK = np.array([[3.0, 1.35, 1.35], [0.0, 1.65, 0.0], [0.0, 0.0, 1.65]])
    shares_SK = np.tile(replace(SETTINGS, smoothing=0.6).mixtures_KK, (4, 1))
    drops_SK = shares_SK @ A_KK.T + 0.01 * np.random.default_rng(0).standard_normal((12, 3))
    assert told_apart_by_own(drops_SK, shares_SK, drift=True, confidence=0.75) > 0.95
    noise_SK = np.random.default_rng(1).standard_normal((200, 12, 3))
    passed = [told_apart_by_own(drops, shares_SK, drift=True, confidence=0.9) > 0 for drops in noise_SK]
    assert 0.03 < np.mean(passed) < 0.2  # 0.1 of independent noise


@pytest.mark.parametrize("interactions", ["full", "diagonal"])
@pytest.mark.parametrize("confidence", [0.75, None])
@pytest.mark.parametrize("change", [-0.1, 0.1, 0.0])
def test_what_all_segments_do_alike_is_no_reason_to_move(interactions, confidence, change):
    """Up to rounding, which must not be taken for a difference."""
    strategy = replace(SETTINGS, n_domains=2, interactions=interactions, confidence=confidence, eta=1.0)
    state, decision = strategy.begin(0)
    loss_K = np.array([3.0, 2.0])
    while decision.until < strategy.steps:
        state, decision = strategy.update(state, _seen(decision.until, loss_K, decision.weights_K))
        loss_K = loss_K + change
    mixed = decision.record.get("kept")
    assert mixed in ("no progress", "all domains do the same") or interactions == "diagonal"
    np.testing.assert_allclose(decision.weights_K, 0.5, atol=1e-6)


def test_a_loss_that_is_not_finite_keeps_the_weights_and_says_why():
    state, decision = SETTINGS.begin(0)
    while "aims" not in decision.record and "kept" not in decision.record:
        loss_K = np.array([3.0, np.nan, 2.0])
        state, decision = SETTINGS.update(state, _seen(decision.until, loss_K, decision.weights_K))
    assert decision.record["kept"] == "a held-out loss is not finite"


def test_a_target_that_counts_alone_is_followed_alone():
    """Domain 1 helps the loss of domain 2 most, domain 0 all others."""
    A_KK = 1e-3 * np.array([[5.0, 0.0, 0.0], [5.0, 0.0, 0.0], [0.0, 2.0, 1.0]])
    of_all = _Planted(A_KK).train(SETTINGS, 1200)[-1].weights_K
    of_one = _Planted(A_KK).train(replace(SETTINGS, targets_K=(0.0, 0.0, 1.0)), 1200)[-1].weights_K
    assert of_all.argmax() == 0 and of_one.argmax() == 1


def test_seven_domains_and_eight_rows_still_draw_what_segments_ask_for():
    """The authors' loader gave one domain in seven nothing at a batch of 8, and a target .25 instead of .75."""
    strategy = replace(
        SETTINGS, n_domains=7, sweeps=2, segment_steps=10, smoothing=0.25 * 7 / 6, steps=140, rounds=1
    )
    schedule, intended_SK, drawn_SK = None, [], []
    for number, domain in enumerate(strategy.order(0)):
        stage = Stage(start=10 * number, weights=tuple(strategy.mixtures_KK[domain]))
        schedule = (
            Schedule([stage], n_domains=7, batch_rows=8) if schedule is None else schedule.append(stage)
        )
        drawn_SK.append(schedule.cursors(10 * number + 10) - schedule.cursors(10 * number))
        intended_SK.append(80 * strategy.mixtures_KK[domain])
    assert strategy.mixtures_KK[0, 0] == pytest.approx(0.75)
    assert np.sum(drawn_SK, axis=1).tolist() == [80] * 14
    assert np.abs(np.array(drawn_SK) - intended_SK).max() < 2
    assert np.abs(np.sum(drawn_SK, axis=0) - np.sum(intended_SK, axis=0)).max() < 2


@pytest.mark.parametrize(
    "case",
    json.loads((GOLDEN / "lp_batch_composition.json").read_text())["cases"],
    ids=lambda case: f"m{case['m']}-{case['target']}",
)
def test_segments_are_drawn_as_meant_where_the_authors_loader_does_and_where_it_does_not(case):
    nominal_K, batch, steps = np.array(case["nominal_mixture"]), case["batch_size"], case["lp_steps"]
    schedule = Schedule([Stage(start=0, weights=tuple(nominal_K))], n_domains=case["m"], batch_rows=batch)
    drawn_K = schedule.cursors(steps)
    assert drawn_K.sum() == batch * steps
    assert np.abs(drawn_K - nominal_K * batch * steps).max() < 1
    if case["m"] <= 3:
        assert drawn_K.tolist() == case["samples_delivered"]
    else:
        theirs_K = np.array(case["samples_delivered"])
        assert np.abs(theirs_K / theirs_K.sum() - nominal_K).max() > 0.1


def test_segments_that_fill_the_round_go_over_into_the_next():
    strategy = replace(SETTINGS, steps=120, rounds=2, sweeps=4, segment_steps=5)
    decisions = _Planted(THREE).train(strategy, 120)
    assert len(decisions) == 24
    assert [("A" in decision.record) for decision in decisions].count(True) == 1  # the last ends the run
    assert decisions[12].until == 65


def test_segments_that_do_not_fit_are_refused_before_training():
    with pytest.raises(ValueError, match="sweeps x 3 domains x 20 steps are 240, more than the 200 steps"):
        replace(SETTINGS, segment_steps=20).begin(0)


def test_normalised_entries_are_shares():
    A_KK = normalised(np.array([[0.2, -0.1], [0.0, 0.3]]))
    assert A_KK.min() == 0 and A_KK.sum() == pytest.approx(1)
    assert np.isnan(normalised(np.zeros((2, 2)))).all()
