"""Direct data optimisation: the authors' curves, what made-up curves were made from, and a least that is one."""

import json
from pathlib import Path

import numpy as np
import pytest
from scipy.optimize import minimize

from jaxprune.mix.ddo import DataCurves, data_curves

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "autoscale_ddo.json").read_text())


def published() -> DataCurves:
    base = np.full(len(GOLDEN["domains"]), GOLDEN["base"])
    perplexity_KX = np.stack([GOLDEN["reduced"], base, GOLDEN["tripled"]], axis=1)
    return data_curves(np.array(GOLDEN["multiples"]), perplexity_KX, GOLDEN["domains"])


def test_curves_are_those_of_the_authors():
    found = published()
    np.testing.assert_allclose(
        np.stack([found.a_K, found.b_K, found.c_K], axis=1), GOLDEN["fitted_abc"], atol=1e-9
    )
    assert found.error_K.max() < 1e-12


def test_the_optimum_is_no_worse_than_the_published_one_and_near_it():
    found = published()
    multiples_K, published_K = found.optimum(), np.array(GOLDEN["n2_tokens_B"]) / 1.2 * 7
    assert multiples_K.sum() == pytest.approx(7) and multiples_K.min() == 0.2
    assert (
        found.predict(multiples_K).sum() < found.predict(published_K).sum() < found.predict(np.ones(7)).sum()
    )
    np.testing.assert_allclose(multiples_K, published_K, atol=0.04)


def test_the_optimum_is_that_of_a_general_solver():
    found = published()
    for total, least in ((7.0, 0.2), (3.0, 0.3), (20.0, 0.0)):
        peer = minimize(
            lambda x_K: found.predict(x_K).sum(), np.full(7, total / 7), bounds=[(least, None)] * 7,
            constraints={"type": "eq", "fun": lambda x_K, total=total: x_K.sum() - total}, method="SLSQP",
            options={"ftol": 1e-14, "maxiter": 500},
        )  # fmt: skip
        np.testing.assert_allclose(found.optimum(total, least), peer.x, atol=1e-4)
    np.testing.assert_allclose(found.optimum(1.4, 0.2), 0.2)


def test_planted_curves_are_recovered_from_noise():
    rng = np.random.default_rng(0)
    a_K, b_K, x_X = (
        np.array([0.5, 1.0, 2.0]),
        np.array([0.3, 0.8, 1.2]),
        np.array([0.1, 0.2, 0.5, 1, 2, 3, 6]),
    )
    relative_KX = (x_X + a_K[:, None]) ** -b_K[:, None]
    relative_KX += 1 - (1 + a_K[:, None]) ** -b_K[:, None]
    exact = data_curves(x_X, 30 * relative_KX)
    np.testing.assert_allclose([exact.a_K, exact.b_K], [a_K, b_K], rtol=1e-6)
    noisy = data_curves(x_X, 30 * relative_KX * np.exp(1e-3 * rng.standard_normal(relative_KX.shape)))
    assert 1e-5 < noisy.error_K.max() < 5e-3
    np.testing.assert_allclose(noisy.optimum(), exact.optimum(), atol=0.1)


@pytest.mark.parametrize(
    ("multiples", "perplexities", "message"),
    [
        ([0.2, 1, 3], [[30.0, 29.0]], "give \\[X\\] and \\[K, X\\]"),
        ([0.2, 2, 3], [[30.0, 29.0, 28.0]], "and 1 among them"),
        ([0.2, 1, 1], [[30.0, 29.0, 28.0]], "3 or more that differ"),
        ([0.2, 1, 3], [[30.0, 29.0, np.nan]], "finite numbers above 0"),
        ([0.2, 1, 3], [[28.0, 29.0, 30.0]], "domain0: the mean perplexity does not fall"),
    ],
)
def test_what_is_no_experiment_is_refused(multiples, perplexities, message):
    with pytest.raises(ValueError, match=message):
        data_curves(np.array(multiples), np.array(perplexities))


def test_a_total_below_the_least_is_refused():
    with pytest.raises(ValueError, match="total is 1"):
        published().optimum(1.0)
