"""Tables made from a law whose coefficients are known."""

import numpy as np

from jaxprune.mix.laws import AutoScale, BiMix, Exponential, Law, Linear, LogLinear, Power, Reciprocal
from jaxprune.mix.laws.parametric import ParametricLaw, Points, points_of
from jaxprune.mix.table import MixtureTable

CHECKPOINTS = np.array([0.25, 0.5, 0.75, 1.0]) * 1e9
END = np.array([1e9])
DOMAINS = ("code", "books", "web")

# law, coefficients of its form, runs, tokens of their checkpoints
CASES: dict[str, tuple[ParametricLaw, list[float], int, np.ndarray]] = {
    "bimix": (BiMix(), [0.08, np.log(2.2), np.log(0.6), 0.5], 20, CHECKPOINTS),
    "bimix at the end": (BiMix(), [0.08, np.log(2.2)], 20, END),
    "bimix with a floor": (BiMix(floor=True), [0.08, np.log(2.2), np.log(0.02)], 24, END),
    "exponential": (Exponential(), [np.log(2.0), 0.3, 0.0, -0.3], 24, END),
    "exponential in tokens": (Exponential(), [np.log(2.0), 0.3, 0.0, -0.3, -1.0, -0.8, -1.2, 0.5], 24, CHECKPOINTS),
    "loglinear": (LogLinear(), [np.log(2.0), 0.3, 0.0, -0.3], 24, END),
    # The prior would draw exponents together, and intervals are those of the estimate that it gives.
    "reciprocal": (Reciprocal(prior_sd=(1.0, 10.0)), [np.log(1.5), *np.log([0.5, 0.2, 0.15]), 0.4, 0.3, 0.35], 40, END),
    "reciprocal in tokens": (
        Reciprocal(), [np.log(1.5), *np.log([0.5, 0.2, 0.15]), 0.4, 0.3, 0.35, np.log(0.3), 0.5], 40, CHECKPOINTS,
    ),
    "joint": (
        Reciprocal(form="joint"),
        [np.log(1.5), *np.log([0.5, 0.2, 0.15]), 0.4, 0.3, 0.35, *np.log([0.4, 0.3, 0.2]), 1.0, 0.5], 40, CHECKPOINTS,
    ),
    "autoscale": (AutoScale(), [np.log(1.0), *np.log([0.1, 0.5, 1.0]), 0.3, 0.3, 0.2], 40, END),
    "power": (Power(), [np.log(2.0), np.log(0.5), 0.5], 20, CHECKPOINTS),
    "linear": (Linear(), [2.0, 3.0, 3.2], 20, END),
}  # fmt: skip


def planted(case: str, noise: float, seed: int = 0) -> tuple[MixtureTable, dict[str, float]]:
    """Losses of the target `code` on random mixtures of three domains, and the coefficients behind them."""
    law, theta, n_runs, tokens = CASES[case]
    rng = np.random.default_rng(seed)
    weights = np.repeat(rng.dirichlet(np.ones(len(DOMAINS)), n_runs), len(tokens), axis=0)
    about = {
        "tokens_R": np.tile(tokens, n_runs), "run_R": np.repeat(np.arange(n_runs), len(tokens)),
        "domains": DOMAINS, "targets": ["code"],
    }  # fmt: skip
    table = MixtureTable.from_arrays(weights, np.ones((len(weights), 1)), **about)
    [form] = law.forms(table)
    loss = np.exp(form.curve(np.array(theta), points_of(table, table)).log_loss_N)
    loss = loss + noise * rng.standard_normal(len(loss))
    return MixtureTable.from_arrays(weights, loss[:, None], **about), form.shown(np.array(theta, float))


def truth(case: str, weights: np.ndarray) -> np.ndarray:
    """The losses [N] behind a case, of other mixtures, at the most tokens."""
    law, theta, _, _ = CASES[case]
    table, _ = planted(case, 0.0)
    [form] = law.forms(table)
    zeros = np.zeros(len(weights))
    return np.exp(form.curve(np.array(theta), Points(weights, zeros, zeros)).log_loss_N)


def law_of(case: str) -> Law:
    return CASES[case][0]
