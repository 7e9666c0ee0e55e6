"""The optimum: right, inside its bounds, and doubted by a second law."""

import numpy as np
import pytest
from planted import planted
from scipy.optimize import minimize

from jaxprune.mix.laws import BiMix, Exponential, GaussianProcess, LogLinear, Reciprocal
from jaxprune.mix.laws.law import FittedLaw
from jaxprune.mix.optimum import project
from jaxprune.mix.table import MixtureTable

DOMAINS = ("code", "books", "web")
ALPHA, GAIN = np.array([0.10, 0.05, 0.02]), np.array([2.0, 3.0, 3.2])


def own_proportion_table(noise: float = 0.0) -> MixtureTable:
    rng = np.random.default_rng(0)
    weights = rng.dirichlet(np.full(3, 0.6), 30) * 0.99 + 0.01 / 3
    loss = GAIN * weights**-ALPHA + noise * rng.standard_normal((30, 3))
    return MixtureTable.from_arrays(weights, loss, domains=DOMAINS, targets=DOMAINS)


def by_slsqp(fitted: FittedLaw, share: np.ndarray, low=0.0, high=1.0) -> np.ndarray:
    """An independent solution, by another derivative."""
    found = minimize(
        lambda w: float((fitted.predict(np.maximum(w, 1e-9)[None] / np.maximum(w, 1e-9).sum()) @ share)[0]),
        np.full(3, 1 / 3),
        bounds=[(max(low, 1e-6), high)] * 3,
        constraints={"type": "eq", "fun": lambda w: w.sum() - 1},
        options={"ftol": 1e-15, "maxiter": 1000},
    )
    return found.x


def weights_of(optimum) -> np.ndarray:
    return np.array([optimum.weights[name] for name in DOMAINS])


def test_bimix_has_its_closed_form():
    fitted = BiMix().fit(own_proportion_table())
    best = weights_of(fitted.optimum())
    assert best.sum() == pytest.approx(1, abs=1e-12)
    # Lagrange: alpha_i K_i r_i^(-alpha_i - 1) is the same for all domains.
    marginal = ALPHA * GAIN * best ** (-ALPHA - 1)
    np.testing.assert_allclose(marginal, marginal.mean(), rtol=1e-7)
    np.testing.assert_allclose(best, by_slsqp(fitted, np.full(3, 1 / 3)), atol=1e-4)


@pytest.mark.parametrize(
    "law", [Exponential(), Reciprocal(), GaussianProcess(), BiMix(floor=True)], ids=lambda law: law.name
)
def test_other_laws_agree_with_another_solver(law):
    fitted = law.fit(own_proportion_table())
    best = fitted.optimum(extrapolate=True)
    other = by_slsqp(fitted, np.full(3, 1 / 3))
    assert best.loss <= float(fitted.predict(other).mean()) + 1e-6


def test_evaluation_weights_and_tokens_move_the_optimum():
    fitted = BiMix().fit(own_proportion_table())
    only_code = fitted.optimum(evaluation={"code": 1.0, "books": 0.001, "web": 0.001})
    assert only_code.weights["code"] > fitted.optimum().weights["code"] + 0.2
    with pytest.raises(ValueError, match="evaluation names prose: the table has code, books, web"):
        fitted.optimum(evaluation={"prose": 1.0})
    table, _ = planted("bimix", 0.0)
    early, late = (BiMix().fit(table).optimum(tokens=t, extrapolate=True) for t in (0.3e9, 1e9))
    assert early.loss > late.loss


@pytest.mark.parametrize("law", [BiMix(), Reciprocal()], ids=lambda law: law.name)
def test_floors_and_caps_hold(law):
    fitted = law.fit(own_proportion_table())
    bound = fitted.optimum(
        floors={"web": 0.5}, available={"code": 0.1e9}, epochs=2, tokens=1e9, extrapolate=True
    )
    assert bound.weights["code"] == pytest.approx(0.2, abs=1e-6)  # two epochs of a tenth of the run
    assert bound.weights["web"] == pytest.approx(0.5, abs=1e-6)
    assert bound.bounded == {"code": "most, 0.2", "web": "least, 0.5"}
    assert sum(bound.weights.values()) == pytest.approx(1)
    assert bound.loss >= fitted.optimum(extrapolate=True).loss


def test_bounds_that_leave_no_mixture_are_refused():
    fitted = BiMix().fit(own_proportion_table())
    with pytest.raises(ValueError, match="sums to 0.6, below one: allow more epochs"):
        fitted.optimum(available=dict.fromkeys(DOMAINS, 0.05e9), tokens=1e9)
    with pytest.raises(ValueError, match="sum to 1.2, above one"):
        fitted.optimum(floors=dict.fromkeys(DOMAINS, 0.4))
    with pytest.raises(ValueError, match="web: the floor is above"):
        fitted.optimum(floors={"web": 0.5}, available={"web": 0.01e9}, tokens=1e9)
    with pytest.raises(ValueError, match="kl is 0.1 but there is no natural mixture"):
        fitted.optimum(kl=0.1)


def test_stays_in_the_range_of_the_runs_unless_asked():
    rng = np.random.default_rng(1)
    weights = 0.3 + 0.1 * rng.dirichlet(np.ones(3), 20)
    table = MixtureTable.from_arrays(weights, GAIN * weights**-ALPHA, domains=DOMAINS, targets=DOMAINS)
    fitted = BiMix().fit(table)
    inside = weights_of(fitted.optimum())
    assert (inside <= weights.max(axis=0) + 1e-9).all() and (inside >= weights.min(axis=0) - 1e-9).all()
    outside = fitted.optimum(extrapolate=True)
    assert outside.weights["code"] > weights[:, 0].max() + 0.05
    assert any(
        "the optimum mixture is outside the range of the runs in code" in note for note in outside.notes
    )


def test_a_second_law_is_heard():
    table, _ = planted("reciprocal", 0.0)
    fitted, second = BiMix(floor=True).fit(table), Reciprocal(prior_sd=(1.0, 10.0)).fit(table)
    found = fitted.optimum(second=second, natural={"code": 0.2, "books": 0.3, "web": 0.5})
    assert set(found.compared) == {"optimum", "natural", "uniform", "best observed"}
    assert set(found.compared["optimum"]) == {"bimix_floor", "reciprocal"}
    assert "no second law was asked" in fitted.optimum().notes
    # A law that has it the wrong way round is contradicted.
    wrong = MixtureTable.from_arrays(table.weights_RK, table.loss_RE.max() + table.loss_RE.min() - table.loss_RE, domains=DOMAINS, targets=["code"])  # fmt: skip
    assert any("disagrees" in note for note in Exponential().fit(wrong).optimum(second=second).notes)


def test_the_divergence_draws_to_the_natural_mixture():
    table = own_proportion_table()
    natural = {"code": 0.1, "books": 0.2, "web": 0.7}
    fitted = LogLinear().fit(table)
    distance = [
        np.abs(weights_of(fitted.optimum(natural=natural, kl=kl)) - np.array(list(natural.values()))).sum()
        for kl in (0.0, 0.05, 1.0, 100.0)
    ]
    assert distance[0] > distance[1] > distance[2] > distance[3] and distance[3] < 0.01
    np.testing.assert_allclose(
        weights_of(fitted.optimum(natural=natural)), weights_of(fitted.optimum(natural=natural, kl=0.05))
    )


def test_more_of_a_domain_that_does_not_help_is_not_bought():
    table = own_proportion_table()
    loss = table.loss_RE.copy()
    loss[:, 2] = 3.0 * table.weights_RK[:, 2] ** 0.05
    harmful = MixtureTable.from_arrays(table.weights_RK, loss, domains=DOMAINS, targets=DOMAINS)
    best = BiMix().fit(harmful).optimum(floors={"web": 0.02})
    assert best.weights["web"] == pytest.approx(0.02, abs=1e-6)


def test_projection_is_the_nearest_mixture_within_bounds():
    low, high = np.array([0.1, 0.0, 0.2]), np.array([0.5, 0.3, 1.0])
    inside = np.array([0.3, 0.2, 0.5])
    np.testing.assert_allclose(project(inside, low, high), inside, atol=1e-12)
    moved = project(np.array([2.0, -1.0, 0.3]), low, high)
    assert moved.sum() == pytest.approx(1) and (moved >= low - 1e-12).all() and (moved <= high + 1e-12).all()


def test_two_laws_are_two():
    table, _ = planted("reciprocal in tokens", 0.003)
    first, second = Reciprocal().fit(table), Reciprocal(form="joint").fit(table)
    found = first.optimum(second=second)
    assert set(found.compared["uniform"]) == {"reciprocal", "joint"}
    assert found.loss == pytest.approx(float(first.predict([list(found.weights.values())]).mean()))
    with pytest.raises(ValueError, match="the second law is reciprocal too"):
        first.optimum(second=Reciprocal().fit(table))
    other = MixtureTable.from_arrays(table.weights_RK[:, ::-1], table.loss_RE, tokens_R=table.tokens_R, run_R=table.run_R, domains=DOMAINS[::-1], targets=["code"])  # fmt: skip
    with pytest.raises(ValueError, match="fitted to other domains"):
        first.optimum(second=Reciprocal(form="joint").fit(other))


def test_runs_that_end_apart_have_an_optimum_too():
    table = own_proportion_table()
    apart = MixtureTable.from_arrays(table.weights_RK, table.loss_RE, tokens_R=np.linspace(1, 2, 30) * 1e9, domains=DOMAINS, targets=DOMAINS)  # fmt: skip
    assert "best observed" in Reciprocal().fit(apart).optimum().compared


def test_caps_need_tokens():
    with pytest.raises(ValueError, match="give the tokens of the planned run"):
        BiMix().fit(own_proportion_table()).optimum(available={"code": 10.0}, epochs=1)
    with pytest.raises(ValueError, match="tokens is 0"):
        BiMix().fit(own_proportion_table()).optimum(tokens=0.0)
    with pytest.raises(ValueError, match="the floor of web is nan"):
        BiMix().fit(own_proportion_table()).optimum(floors={"web": float("nan")})


def test_bounds_that_leave_one_mixture_give_it():
    cap = 1e9 / 3
    only = (
        Exponential()
        .fit(own_proportion_table())
        .optimum(available=dict.fromkeys(DOMAINS, cap), epochs=1, tokens=1e9, extrapolate=True)
    )
    np.testing.assert_allclose(weights_of(only), 1 / 3, rtol=1e-6)
    closed = BiMix().fit(own_proportion_table()).optimum(floors=dict.fromkeys(DOMAINS, 1 / 3))
    np.testing.assert_allclose(weights_of(closed), 1 / 3, rtol=1e-6)


def test_trees_are_searched_by_samples():
    pytest.importorskip("lightgbm")
    from jaxprune.mix.laws import Trees

    rng = np.random.default_rng(0)
    weights = rng.dirichlet(np.ones(3), 200)
    loss = 2 + (weights[:, :1] - 0.5) ** 2
    fitted = Trees(learning_rate=0.1, rounds=200).fit(
        MixtureTable.from_arrays(weights, loss, domains=DOMAINS)
    )
    assert fitted.optimum().weights["code"] == pytest.approx(0.5, abs=0.05)


def test_arguments_of_other_types_get_one_line():
    fitted = BiMix().fit(own_proportion_table())
    for given, message in (
        ({"floors": [0.1, 0.2]}, "floors is .*: give a dictionary"),
        ({"available": {"code": "many"}}, "available has 'many' for code: give a number"),
        ({"tokens": "2B"}, "tokens is '2B': give a number"),
    ):
        with pytest.raises(ValueError, match=message):
            fitted.optimum(**given)
