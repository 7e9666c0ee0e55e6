"""Laws against what the authors' own code made of the same numbers."""

import json
from pathlib import Path

import numpy as np
import pytest

from jaxprune.mix.laws import LAWS
from jaxprune.mix.laws.autoscale import scaled
from jaxprune.mix.table import MixtureTable

FOLDER = Path(__file__).parents[1] / "golden" / "online_mixing"


def _read(name):
    return json.loads((FOLDER / f"{name}.json").read_text())


def test_autoscale_scales_weights_as_its_notebook_does():
    golden = _read("autoscale")
    before_K, now_K = np.array(golden["n1_tokens_B"]), np.array(golden["n2_tokens_B"])
    for prediction in golden["predictions"]:
        before_K, now_K = now_K, scaled(before_K, now_K)
        np.testing.assert_allclose(now_K, prediction["tokens_B"], atol=1e-9)
        np.testing.assert_allclose(now_K / now_K.sum(), prediction["weights"], atol=1e-9)


def _table(weights_RK, loss_RE):
    return MixtureTable.from_arrays(np.array(weights_RK), np.array(loss_RE))


@pytest.mark.parametrize(("name", "tolerance"), [("noiseless", 2e-4), ("noise_1e-3", 0.02)])
def test_the_exponential_law_has_the_optimum_of_the_authors_fit(name, tolerance):
    """Their coefficients are not ours, since proportions sum to one and leave one of each row free; losses and optima are.
    Noise moves the optimum of nine runs by about a hundredth, under either loss of the fit."""
    golden = _read("dml")
    (case,) = [case for case in golden["cases"] if case["name"] == name]
    fitted = LAWS["exponential"].fit(_table(case["mixtures"], case["losses"]))
    best = fitted.optimum(extrapolate=True)
    np.testing.assert_allclose(list(best.weights.values()), case["optimum_mixture"], atol=tolerance)
    a_K, b_K, m_KK = (np.array(golden["true_params"][part]) for part in ("a", "b", "m"))
    optimum_K = np.array(case["optimum_mixture"])
    planted_K = a_K * np.exp(optimum_K @ m_KK) + b_K
    predicted_K = fitted.predict(optimum_K[None], np.ones(1))[0]
    np.testing.assert_allclose(predicted_K, planted_K, atol=1e-5 if name == "noiseless" else 3e-3)


@pytest.mark.parametrize("case", _read("static_law_m2_closed_form")["cases"], ids=lambda case: case["seed"])
def test_two_domains_have_the_optimum_of_the_closed_form(case):
    share_R = np.linspace(0.1, 0.9, 9)
    weights_RK = np.stack([share_R, 1 - share_R], axis=1)
    loss_RE = np.stack(
        [
            of["c"] + np.exp(of["k"] * weights_RK[:, k] + of["b"])
            for k, of in enumerate((case["arxiv"], case["stackexchange"]))
        ],
        axis=1,
    )
    best = LAWS["exponential"].fit(_table(weights_RK, loss_RE)).optimum()
    assert next(iter(best.weights.values())) == pytest.approx(case["p_arxiv_opt"], abs=2e-3)
