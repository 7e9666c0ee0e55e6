"""Every law: finds what its tables were made from, says what they cannot tell, and differentiates right."""

import warnings

import numpy as np
import pytest
from planted import CASES, DOMAINS, END, law_of, planted, truth

from jaxprune.mix.laws import AutoScale, BiMix, Combined, Exponential, GaussianProcess, Power, Reciprocal
from jaxprune.mix.laws.autoscale import scaled
from jaxprune.mix.laws.corrected import Corrected
from jaxprune.mix.laws.nested import along_params, along_tokens
from jaxprune.mix.laws.parametric import points_of
from jaxprune.mix.table import MixtureTable

NOISE = 0.003  # nats, of real runs between seeds


def held_out(n: int = 50) -> np.ndarray:
    return np.random.default_rng(99).dirichlet(np.full(len(DOMAINS), 2.0), n)


@pytest.mark.parametrize("case", CASES)
def test_derivatives_are_those_of_the_curve(case):
    table, _ = planted(case, 0.0)
    law, theta, _, _ = CASES[case]
    [form] = law.forms(table)
    points, theta = points_of(table, table), np.array(theta, float)
    h = 1e-6
    numeric = np.stack(
        [
            (form.curve(theta + h * e, points).log_loss_N - form.curve(theta - h * e, points).log_loss_N)
            / (2 * h)
            for e in np.eye(len(theta))
        ],
        axis=1,
    )
    np.testing.assert_allclose(form.curve(theta, points).jacobian_NP, numeric, atol=1e-8)


@pytest.mark.parametrize("case", CASES)
def test_predicts_what_it_was_planted_with(case):
    exact, noisy = (
        law_of(case).fit(planted(case, noise)[0]).predict(held_out())[:, 0] for noise in (0.0, NOISE)
    )
    # Priors and scale-dependent bounds leave exact data nearly alone; noise comes back at no more than its own size.
    np.testing.assert_allclose(exact, truth(case, held_out()), atol=NOISE)
    assert np.abs(noisy - truth(case, held_out())).mean() < NOISE


@pytest.mark.parametrize("case", [case for case in CASES if "tokens" not in case and case != "joint"])
def test_intervals_cover_the_truth_at_about_their_rate(case):
    covered = []
    for seed in range(12):
        table, coefficients = planted(case, NOISE, seed)
        found = law_of(case).fit(table).coefficients(n_resamples=40)
        covered += [c.low <= coefficients[c.name] <= c.high for c in found if c.name != "A"]
    # 95 % is nominal; a law's coefficients err together, so that twelve tables are little more than twelve draws:
    # nine of twelve or more has probability 0.998.
    assert np.mean(covered) >= 0.75


def test_bimix_finds_its_coefficients_exactly_without_noise():
    table, coefficients = planted("bimix", 0.0)
    fitted = BiMix().fit(table)
    found = {c.name: c.value for c in fitted.coefficients(n_resamples=2)}
    assert found.keys() == {"A", "alpha", "B", "beta", "C"} and found["A"] == 1  # four that can be told
    for name, value in coefficients.items():
        assert found[name] == pytest.approx(value, abs=1e-4)


def test_bimix_depends_on_its_own_proportion_alone():
    table, _ = planted("bimix", NOISE)
    fitted = BiMix().fit(table)
    a, b = fitted.predict(np.array([[0.2, 0.8, 0.0], [0.2, 0.1, 0.7]]))
    assert a == b


def test_bimix_without_the_domain_needs_a_floor():
    weights = np.array([[0, 0.5, 0.5], [0.1, 0.4, 0.5], [0.3, 0.4, 0.3], [0.5, 0.2, 0.3], [0.7, 0.2, 0.1]])
    loss = 2.0 * (weights[:, :1] + 0.02) ** -0.1
    table = MixtureTable.from_arrays(weights, loss, domains=DOMAINS, targets=["code"])
    assert any("1 of 5 rows cannot be used" in note for note in BiMix().fit(table).notes)
    assert BiMix().fit(table).predict(weights)[0, 0] == 1e6  # the pole
    np.testing.assert_allclose(BiMix(floor=True).fit(table).predict(weights), loss, rtol=1e-4)


def test_bimix_of_a_target_that_is_no_domain_takes_the_one_that_explains_it():
    table, _ = planted("bimix", 0.0)
    other = MixtureTable.from_arrays(table.weights_RK, table.loss_RE, tokens_R=table.tokens_R, run_R=table.run_R, domains=DOMAINS, targets=["manuals"])  # fmt: skip
    np.testing.assert_allclose(
        BiMix().fit(other).predict(held_out()), BiMix().fit(table).predict(held_out()), rtol=1e-6
    )
    with pytest.raises(ValueError, match="shall depend on prose, but the domains are code, books, web"):
        BiMix(own={"manuals": "prose"}).fit(other)


def test_one_proportion_only_leaves_its_exponent_untold():
    weights = np.array([[0.5, 0.2, 0.3], [0.5, 0.3, 0.2], [0.5, 0.4, 0.1], [0.5, 0.1, 0.4]])
    table = MixtureTable.from_arrays(
        weights, np.array([[2.0], [2.001], [1.999], [2.0]]), domains=DOMAINS, targets=["code"]
    )
    assert any("cannot tell the coefficients apart" in note for note in BiMix().fit(table).notes)


def test_active_bounds_and_lack_of_runs_are_said():
    table, _ = planted("exponential", NOISE)
    few = table.rows(np.arange(3))
    assert any("3 rows for 4 coefficients" in note for note in Exponential().fit(few).notes)
    falling = MixtureTable.from_arrays(
        np.ones((8, 1)), 1 + np.linspace(0, 1, 8)[:, None], tokens_R=np.linspace(1, 8, 8) * 1e9
    )  # a loss that rises, which a falling power cannot follow
    assert any("at a bound" in note for note in Power().fit(falling).notes)


def test_predictions_do_not_depend_on_the_order_of_rows():
    table, _ = planted("reciprocal in tokens", NOISE)
    shuffled = table.rows(np.random.default_rng(0).permutation(len(table)))
    np.testing.assert_allclose(
        Reciprocal().fit(shuffled).predict(held_out()), Reciprocal().fit(table).predict(held_out()), rtol=1e-5
    )


def test_what_was_not_measured_does_not_count():
    table, _ = planted("linear", NOISE)
    loss = np.concatenate([table.loss_RE, table.loss_RE], axis=1)
    loss[::3, 1] = np.nan
    both = MixtureTable.from_arrays(table.weights_RK, loss, domains=DOMAINS, targets=["code", "web"])
    alone = MixtureTable.from_arrays(
        np.delete(table.weights_RK, np.s_[::3], 0),
        np.delete(loss[:, :1], np.s_[::3], 0),
        domains=DOMAINS,
        targets=["web"],
    )
    law = Exponential()
    np.testing.assert_allclose(
        law.fit(both).predict(held_out())[:, 1], law.fit(alone).predict(held_out())[:, 0], rtol=1e-6
    )


def test_the_process_takes_over_what_a_law_misses_and_leaves_noise_alone():
    table, _ = planted("reciprocal", NOISE)
    true = truth("reciprocal", held_out())[:, None]
    plain, corrected = BiMix(floor=True), Corrected(law=BiMix(floor=True))
    error, corrected_error = (
        np.abs(law.fit(table).predict(held_out()) - true).mean() for law in (plain, corrected)
    )
    assert corrected_error < error / 2
    exact = Corrected(law=Reciprocal()).fit(table).predict(held_out())
    np.testing.assert_allclose(exact, Reciprocal().fit(table).predict(held_out()), atol=2 * NOISE)


def test_the_combination_weighs_the_law_that_holds():
    table, _ = planted("reciprocal", NOISE)
    fitted = Combined(members=(BiMix(floor=True), Reciprocal())).fit(table)
    weights = {c.name: c.value for c in fitted.coefficients()}
    assert weights["weight[reciprocal]"] > 0.9 and sum(weights.values()) == pytest.approx(1)


def test_the_combination_is_no_worse_than_its_best_member_by_more_than_noise():
    table, _ = planted("joint", NOISE)
    true = truth("joint", held_out())[:, None]
    end = table.end().rows(np.arange(12))
    law = Combined()
    best = min(np.abs(member.fit(end).predict(held_out()) - true).mean() for member in law.members)
    assert np.abs(law.fit(end).predict(held_out()) - true).mean() < best + NOISE


def test_gaussian_process_passes_through_what_it_was_given_without_noise():
    table, _ = planted("exponential", 0.0)
    np.testing.assert_allclose(
        GaussianProcess().fit(table).predict(table.weights_RK), table.loss_RE, rtol=1e-3
    )


def test_a_law_of_one_number_of_tokens_refuses_another():
    table, _ = planted("exponential", NOISE)
    fitted = Exponential().fit(table)
    fitted.predict(held_out(), END[0])
    with pytest.raises(ValueError, match="fitted at 1e\\+09 alone"):
        fitted.predict(held_out(), 2e9)
    with pytest.raises(ValueError, match=r"give \[N, 3\]"):
        fitted.predict(np.ones((1, 2)) / 2)
    with pytest.raises(ValueError, match="weights sum to 0.9"):
        fitted.predict(np.full((1, 3), 0.3))


def test_power_laws_extrapolate_each_run():
    tokens = np.linspace(0.2, 1, 9)
    weights = np.repeat(np.array([[0.2, 0.8], [0.6, 0.4]]), 9, axis=0)
    floor = np.repeat([2.0, 2.5], 9)
    loss = floor + 0.5 * np.tile(tokens, 2) ** -0.5
    table = MixtureTable.from_arrays(
        weights, loss[:, None], tokens_R=np.tile(tokens, 2), run_R=np.repeat([0, 1], 9)
    )
    ends = along_tokens(table, 4.0)
    np.testing.assert_allclose(ends.loss_RE[:, 0], [2.25, 2.75], atol=1e-4)
    with pytest.raises(ValueError, match="no run has 4 checkpoints"):
        along_tokens(table.rows(np.array([0, 1, 9])), 4.0)


def test_power_laws_extrapolate_sizes_of_common_mixtures():
    weights = np.array([[0.2, 0.8], [0.6, 0.4]])
    tables = [
        MixtureTable.from_arrays(
            weights, np.array([[2.0], [2.5]]) + 0.5 * size**-0.3, params_R=np.full(2, size)
        )
        for size in (0.25, 0.5, 1.0)
    ]
    larger = along_params(tables, 4.0)
    # Three points and a prior on the exponent: near the truth, and nearer than the largest size.
    np.testing.assert_allclose(larger.loss_RE[:, 0], np.array([2.0, 2.5]) + 0.5 * 4**-0.3, atol=0.05)
    with pytest.raises(ValueError, match="three"):
        along_params(tables[:2], 4.0)


def test_autoscale_scales_by_the_growth_of_each_domain():
    np.testing.assert_allclose(scaled(np.array([1.0, 2.0]), np.array([2.0, 3.0])), [4.0, 4.5])
    with pytest.raises(ValueError, match="above 0"):
        scaled(np.array([0.0, 1.0]), np.array([1.0, 1.0]))


def test_trees_find_a_step_and_stop_on_their_own_part():
    pytest.importorskip("lightgbm")
    from jaxprune.mix.laws import Trees

    rng = np.random.default_rng(0)
    weights = rng.dirichlet(np.ones(3), 300)
    loss = 2.0 + (weights[:, :1] < 0.3) + NOISE * rng.standard_normal((300, 1))
    fitted = Trees(rounds=300, learning_rate=0.1).fit(MixtureTable.from_arrays(weights, loss))
    away = np.abs(held_out()[:, 0] - 0.3) > 0.02
    assert np.abs(fitted.predict(held_out())[away, 0] - 2.0 - (held_out()[away, 0] < 0.3)).mean() < 0.05
    noise = MixtureTable.from_arrays(weights, 2 + 0.1 * rng.standard_normal((300, 1)))
    assert Trees().fit(noise).boosters[0].num_trees() < 200  # nothing to learn


@pytest.mark.parametrize(
    ("law", "message"),
    [(Combined(), "give 4 or more"), (GaussianProcess(), "two or more"), (Power(), "several checkpoints")],
)
def test_one_mixture_is_refused_where_it_says_nothing(law, message):
    with pytest.raises(ValueError, match=message):
        law.fit(MixtureTable.from_arrays(np.array([[0.4, 0.6]]), np.array([[2.0]])))


def test_fits_are_quiet():
    table, _ = planted("reciprocal", NOISE)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for law in (BiMix(floor=True), Exponential(), Reciprocal(), AutoScale(), GaussianProcess()):
            law.fit(table).predict(np.array([[1.0, 0.0, 0.0]]))


def test_a_target_that_is_no_domain_is_not_given_to_one_that_is_hardly_ever_there():
    rng = np.random.default_rng(0)
    weights = rng.dirichlet(np.ones(2), 30)
    weights = np.concatenate([weights, np.zeros((30, 1))], axis=1)
    weights[:2] = [[0.3, 0.2, 0.5], [0.2, 0.2, 0.6]]  # two rows fit two coefficients exactly
    loss = 2.0 * weights[:, :1] ** -0.08 + NOISE * rng.standard_normal((30, 1))
    table = MixtureTable.from_arrays(weights, loss, domains=DOMAINS, targets=["manuals"])
    assert BiMix().fit(table).fits[0].form.domain == 0


def test_missing_losses_are_not_taken_for_the_mean():
    rng = np.random.default_rng(0)
    weights = rng.dirichlet(np.ones(3), 60)
    loss = np.stack([2 + weights @ [0.5, 1.0, 0.0], 3 + weights @ [0.0, 1.0, 0.4]], axis=1)
    holes = loss.copy()
    holes[8:, 1] = np.nan
    for law in (GaussianProcess(), Corrected(law=BiMix(floor=True))):
        both = law.fit(MixtureTable.from_arrays(weights, holes)).predict(held_out())[:, 1]
        alone = law.fit(MixtureTable.from_arrays(weights[:8], loss[:8, 1:], targets=["target1"])).predict(
            held_out()
        )[:, 0]
        np.testing.assert_allclose(both, alone, rtol=1e-6)


def test_doubts_are_said_by_members_and_passed_on():
    table, _ = planted("exponential", NOISE)
    few = table.rows(np.arange(4))
    combined = Combined(folds=2).fit(few)
    counted = [
        law.name
        for law, weight in zip(combined.law.members, combined.weights_EM[0], strict=True)
        if weight > 0.1
    ]
    assert any(note.startswith(f"{name}: ") for name in counted for note in combined.notes)
    two = planted("exponential in tokens", NOISE)[0].rows(np.arange(8))  # two mixtures, four checkpoints each
    assert any("2 mixtures cannot tell 3 domains apart" in note for note in Exponential().fit(two).notes)
    rising = MixtureTable.from_arrays(
        table.weights_RK, 2.0 * (table.weights_RK[:, :1] + 0.01) ** 0.1, domains=DOMAINS, targets=["code"]
    )
    assert any("more of its domain does not help" in note for note in BiMix().fit(rising).notes)


def test_model_sizes_that_a_law_does_not_know_are_said():
    table, _ = planted("exponential", NOISE)
    sizes = np.where(np.arange(len(table)) % 2, 1e6, 1e8)
    mixed = MixtureTable.from_arrays(
        table.weights_RK, table.loss_RE, params_R=sizes, domains=DOMAINS, targets=["code"]
    )
    assert any("does not know model sizes" in note for note in Exponential().fit(mixed).notes)
    assert not any("does not know model sizes" in note for note in Reciprocal().fit(mixed).notes)


def test_sizes_are_extrapolated_from_the_mean_of_seeds():
    weights = np.array([[0.5, 0.5], [0.2, 0.8], [0.5, 0.5]])
    tables = []
    for size in (1e6, 2e6, 4e6, 8e6):
        loss = 2 + 0.5 * (size / 1e6) ** -0.5
        off = np.array([[0.1], [0.0], [-0.1]])  # of the first seed, the other mixture, the second seed
        tables.append(MixtureTable.from_arrays(weights, loss + off, params_R=np.full(3, size)))
    found = along_params(tables, 64e6)
    assert len(found) == 2
    np.testing.assert_allclose(found.loss_RE, 2 + 0.5 / 8, atol=2e-3)


def test_fits_to_a_part_that_start_from_the_whole_find_what_a_fresh_fit_finds():
    for case in ("reciprocal", "exponential", "autoscale"):
        table, _ = planted(case, NOISE)
        part, weights = table.rows(np.arange(len(table)) % 5 != 0), held_out()
        law = law_of(case)
        again = law.fit(table).refitted(part).predict(weights)
        np.testing.assert_allclose(again, law.fit(part).predict(weights), rtol=2e-3)
        assert not np.allclose(again, law.fit(table).predict(weights), rtol=1e-7)
