import itertools

import numpy as np
import pytest
import scipy.optimize

from jaxprune.mix import caps, design

NATURAL = np.array([0.52, 0.27, 0.05, 0.05, 0.04, 0.04, 0.03])  # about as SlimPajama
CAPS = np.array([1.0, 0.5, 0.2, 0.2, 0.15, 0.15, 0.1])


def designs(cap_K, n_runs, seed=0):
    """One design of each kind."""
    return {
        "dirichlet": design.dirichlet(NATURAL, n_runs, rng=np.random.default_rng(seed), cap_K=cap_K),
        "grid": design.exponential_grid(cap_K, n_runs, rng=np.random.default_rng(seed)),
        "maximin": design.maximin(
            NATURAL, n_runs, rng=np.random.default_rng(seed), cap_K=cap_K, candidates=1000
        ),
    }


@pytest.mark.parametrize("cap_K", [np.ones(7), CAPS, CAPS / CAPS.sum() * 1.3])
def test_mixtures_add_up_to_one_under_their_caps_and_differ(cap_K):
    for name, weights_RK in designs(cap_K, 24).items():
        assert weights_RK.shape == (24, 7), name
        np.testing.assert_allclose(weights_RK.sum(axis=1), 1, atol=1e-12, err_msg=name)
        assert (weights_RK >= 0).all() and (weights_RK <= cap_K + 1e-12).all(), name
        assert len(np.unique(weights_RK.round(9), axis=0)) == 24, name


def test_the_generator_decides_everything():
    first, same, other = designs(CAPS, 8), designs(CAPS, 8), designs(CAPS, 8, seed=1)
    for name in first:
        np.testing.assert_array_equal(first[name], same[name])
        assert not np.array_equal(first[name], other[name]), name


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0])
def test_the_mean_of_dirichlet_is_the_prior(power):
    prior = NATURAL**power / (NATURAL**power).sum()
    n_runs, strength = 4000, 5.0
    weights_RK = design.dirichlet(
        NATURAL,
        n_runs,
        rng=np.random.default_rng(0),
        strengths=(strength, strength),
        power=power,
        minimum=0,
    )
    deviation = np.sqrt(prior * (1 - prior) / (strength + 1))  # of one Dirichlet draw
    assert (np.abs(weights_RK.mean(axis=0) - prior) < 4 * deviation / np.sqrt(n_runs)).all()


def test_dirichlet_is_cut_off_at_the_caps_and_not_piled_up_there():
    weights_RK = design.dirichlet(NATURAL, 300, rng=np.random.default_rng(0), cap_K=CAPS)
    assert not np.isclose(weights_RK, CAPS)[:, 1:].any()  # the first alone may be all
    tight_K = CAPS / CAPS.sum() * 1.02  # hardly any draw fits
    weights_RK = design.dirichlet(NATURAL, 5, rng=np.random.default_rng(0), cap_K=tight_K)
    assert np.isclose(weights_RK, tight_K).any(axis=1).all()


def test_dirichlet_has_no_tiny_proportions():
    weights_RK = design.dirichlet(NATURAL, 200, rng=np.random.default_rng(0), minimum=0.01)
    assert (weights_RK == 0).any()
    assert (weights_RK[weights_RK > 0] >= 0.01).all()


def test_a_capped_mixture_is_the_nearest_in_divergence():
    rng = np.random.default_rng(0)
    x_MK = rng.dirichlet(NATURAL * 5, 5) + 1e-6
    x_MK /= x_MK.sum(axis=1, keepdims=True)
    for x_K, weights_K in zip(x_MK, caps.nearest(x_MK, CAPS), strict=True):
        found = scipy.optimize.minimize(
            lambda w, x=x_K: np.sum(w * np.log(np.maximum(w, 1e-300) / x)),
            CAPS / CAPS.sum(),
            bounds=[(0, cap) for cap in CAPS],
            constraints={"type": "eq", "fun": lambda w: w.sum() - 1},
            options={"ftol": 1e-12, "maxiter": 500},
        )
        np.testing.assert_allclose(weights_K, found.x, atol=1e-4)


def test_under_caps_that_add_up_to_one_there_is_one_mixture():
    cap_K = np.array([0.7, 0.2, 0.1])
    for lacking in (0, 5e-10, -5e-10):
        exact_K = cap_K - [0, 0, lacking]
        found_MK = caps.nearest(np.array([[1e-12, 1, 1], [1, 1, 1]]), caps.checked(exact_K, 3))
        np.testing.assert_allclose(found_MK, [cap_K] * 2, rtol=1e-8)
        assert (found_MK <= exact_K).all()
    np.testing.assert_allclose(caps.nearest(np.array([[0.0, 2, 1]]), np.ones(3)), [[0, 2 / 3, 1 / 3]])
    np.testing.assert_allclose(
        caps.nearest(np.array([[4.0, 3, 1]]), np.array([0.4, 1, 1])), [[0.4, 0.45, 0.15]]
    )


def test_the_grid_is_all_products_of_halved_caps():
    cap_K = np.array([0.875, 0.5, 0.25])
    levels = [[*(cap * 2.0**-k for k in range(3)), 0.0] for cap in cap_K[1:]]
    points = [(1 - sum(point), *point) for point in itertools.product(*levels) if 1 - sum(point) <= 0.875]
    found = design.exponential_grid(cap_K, len(points), rng=np.random.default_rng(0), halvings=2)
    assert {tuple(point) for point in found.tolist()} == set(points)
    with pytest.raises(ValueError, match=rf"n_runs is {len(points) + 1}.* has {len(points)} points"):
        design.exponential_grid(cap_K, len(points) + 1, rng=np.random.default_rng(0), halvings=2)


def test_points_of_the_grid_are_equally_likely():
    cap_K, n_draws = np.array([1.0, 0.5, 0.5, 0.5]), 2000
    n_points = sum(sum(point) <= 1 for point in itertools.product([0.5, 0.25, 0], repeat=3))
    rng = np.random.default_rng(0)
    drawn = [tuple(design.exponential_grid(cap_K, 1, rng=rng, halvings=1)[0]) for _ in range(n_draws)]
    counts = np.array([drawn.count(point) for point in set(drawn)])
    assert len(counts) == n_points
    expected = n_draws / n_points
    assert (np.abs(counts - expected) < 5 * np.sqrt(expected)).all()


def test_a_grid_of_many_domains_is_not_listed():
    weights_RK = design.exponential_grid(np.linspace(1, 0.01, 40), 5, rng=np.random.default_rng(0))
    np.testing.assert_array_equal(weights_RK.sum(axis=1), 1)


def test_maximin_begins_with_the_natural_and_the_uniform_mixture():
    weights_RK = design.maximin(NATURAL * 1e9, 10, rng=np.random.default_rng(0), candidates=500)
    np.testing.assert_allclose(weights_RK[0], NATURAL / NATURAL.sum(), atol=1e-9)
    np.testing.assert_allclose(weights_RK[1], 1 / 7, atol=1e-9)
    fewer_RK = design.maximin(NATURAL * 1e9, 4, rng=np.random.default_rng(0), candidates=500)
    np.testing.assert_array_equal(fewer_RK, weights_RK[:4])
    even_RK = design.maximin(np.ones(3), 3, rng=np.random.default_rng(0), candidates=500)
    assert len(np.unique(even_RK.round(9), axis=0)) == 3  # natural and uniform are one


def test_maximin_covers_better_than_random():
    """No point of the simplex is as far from its nearest run, and no two runs are as near, as in random designs."""
    rng = np.random.default_rng(0)
    places = np.sqrt(rng.dirichlet(np.ones(4), 2000))
    spread = np.sqrt(design.maximin(np.ones(4), 30, rng=rng, candidates=3000))
    random = np.sqrt(rng.dirichlet(np.ones(4), (20, 30)))

    def farthest(runs):
        return np.linalg.norm(places[:, None] - runs, axis=2).min(axis=1).max()

    def nearest(runs):
        return np.linalg.norm(runs[:, None] - runs, axis=2)[np.triu_indices(len(runs), 1)].min()

    assert farthest(spread) < min(farthest(runs) for runs in random)
    assert nearest(spread) > max(nearest(runs) for runs in random)


def test_maximin_keeps_the_floor_and_the_caps():
    weights_RK = design.maximin(
        NATURAL, 20, rng=np.random.default_rng(0), cap_K=CAPS, floor=0.02, candidates=500
    )
    assert weights_RK.min() >= 0.02 - 1e-12 and (weights_RK <= CAPS + 1e-12).all()
    np.testing.assert_allclose(weights_RK.sum(axis=1), 1, atol=1e-12)


def test_recommended_runs():
    assert design.recommended_runs(7, "reciprocal") == design.recommended_runs(7, "combined") == 24
    assert design.recommended_runs(17, "bimix") < design.recommended_runs(17, "exponential") == 54
    assert design.recommended_runs(7, "trees") > 100
    with pytest.raises(ValueError, match=r"law is forest.*trees"):
        design.recommended_runs(7, "forest")
    with pytest.raises(ValueError, match="n_domains is 1"):
        design.recommended_runs(1, "bimix")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda rng: design.dirichlet(NATURAL, 0, rng=rng), "n_runs is 0"),
        (lambda rng: design.exponential_grid(CAPS, 0, rng=rng), "n_runs is 0"),
        (lambda rng: design.maximin(NATURAL, 0, rng=rng), "n_runs is 0"),
        (
            lambda rng: design.dirichlet(NATURAL, 2, rng=rng, cap_K=CAPS / 3),
            r"add up to 0\.7\d*, less than 1",
        ),
        (lambda rng: design.exponential_grid(CAPS / 3, 2, rng=rng), r"add up to 0\.7\d*, less than 1"),
        (lambda rng: design.maximin(NATURAL, 2, rng=rng, cap_K=CAPS / 3), r"add up to 0\.7\d*, less than 1"),
        (lambda rng: design.dirichlet(NATURAL, 2, rng=rng, cap_K=CAPS[1:]), r"shape \(6,\) for 7 domains"),
        (lambda rng: design.dirichlet(NATURAL - 0.03, 2, rng=rng), "above 0, leave out"),
        (lambda rng: design.dirichlet(np.ones(2), 2, rng=rng, cap_K=np.full(2, 0.5)), "1 different mixtures"),
        (lambda rng: design.maximin(np.ones(2), 2, rng=rng, cap_K=np.full(2, 0.5)), "1 different mixtures"),
        (lambda rng: design.maximin(NATURAL, 2, rng=rng, floor=0.2), r"floor is 0\.2"),
        (lambda rng: design.maximin(NATURAL, 9, rng=rng, candidates=8), "candidates is 8"),
        (lambda rng: design.dirichlet(NATURAL, 2, rng=rng, strengths=(0, 5)), "strengths is"),
    ],
)
def test_what_cannot_be_designed_is_refused_in_one_line(call, message):
    with pytest.raises(ValueError, match=message) as error:
        call(np.random.default_rng(0))
    assert "\n" not in str(error.value)
