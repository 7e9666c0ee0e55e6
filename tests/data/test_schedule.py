"""The order of domains: exact against a heap, in proportion, under any cut into stages."""

import heapq
import json
import math
import pickle

import numpy as np
import pytest

from jaxprune.data.schedule import Schedule, Stage

NATURAL = (0.35, 0.3, 0.15, 0.1, 0.05, 0.04, 0.01)
RANDOM = tuple(np.random.default_rng(0).pareto(1.0, 200) + 1e-3)
ONE_BIG = (0.5,) + (0.5 / 199,) * 199


def schedule(weights, batch_rows=8, *later):
    stages = [Stage(start=start, weights=w) for start, w in ((0, weights), *later)]
    return Schedule(stages, n_domains=len(weights), batch_rows=batch_rows)


def heap_merge(weights_K, phase_K, n):
    """The first n draws, taken one at a time from a heap of (time, domain, number)."""
    heap = [
        (phase / weight, k, 0)
        for k, (weight, phase) in enumerate(zip(weights_K, phase_K, strict=True))
        if weight
    ]
    heapq.heapify(heap)
    for _ in range(n):
        _, k, number = heap[0]
        yield k, number
        heapq.heapreplace(heap, ((number + 1 + phase_K[k]) / weights_K[k], k, number + 1))


@pytest.mark.parametrize(
    "weights",
    [
        NATURAL,
        (0.4, 0.3, 0.3),
        (1.0,),
        (0.0, 1.0, 0.0),
        (0.5, 0.5, 0.0),
        (1 - 9.7e-5 - 1e-9, 9.7e-5, 1e-9),
        (0.75, 0.25, 5e-324),
        (1,) * 16,
        ONE_BIG,
        RANDOM,
    ],
    ids=["natural", "433", "one", "one-hot", "half", "tiny", "smallest float", "uniform", "one big", "200"],
)
def test_draws_are_the_merge_of_a_heap(weights):
    plan = schedule(weights)
    weights_K = np.array(plan.stages[0].weights)
    phase_K = (np.arange(1, len(weights) + 1) * 0.6180339887498949) % 1.0
    with np.errstate(over="ignore"):
        merged = list(heap_merge(weights_K, phase_K, 20_000))
    domain, number = (np.array(column) for column in zip(*merged, strict=True))
    for step, n_steps in ((0, 2500), (0, 1), (1, 1), (7, 3), (1234, 1), (2400, 100)):
        places = slice(step * 8, (step + n_steps) * 8)
        drawn_domain, drawn_number = plan.draws(step, n_steps)
        np.testing.assert_array_equal(drawn_domain, domain[places])
        np.testing.assert_array_equal(drawn_number, number[places])
    for step in (0, 1, 7, 1234, 2500):
        np.testing.assert_array_equal(
            plan.cursors(step), np.bincount(domain[: step * 8], minlength=len(weights))
        )


@pytest.mark.parametrize("step", [10**6, 10**9, 2**31 - 2])
@pytest.mark.parametrize("weights", [NATURAL, RANDOM, (1 - 1e-9, 1e-9)], ids=["natural", "200", "tiny"])
def test_far_steps_continue_their_cursors(weights, step):
    plan = schedule(weights, 1024)
    before, after = plan.cursors(step), plan.cursors(step + 1)
    domain, number = plan.draws(step, 1)
    np.testing.assert_array_equal(after - before, np.bincount(domain, minlength=len(weights)))
    for k in np.unique(domain):
        np.testing.assert_array_equal(number[domain == k], np.arange(before[k], after[k]))
    assert before.sum() == step * 1024


@pytest.mark.parametrize(
    "weights", [NATURAL, (0.4, 0.3, 0.3), ONE_BIG, RANDOM], ids=["natural", "433", "one big", "200"]
)
def test_every_prefix_is_in_proportion(weights):
    plan = schedule(weights)
    weights_K = np.array(plan.stages[0].weights)
    domain, _ = plan.draws(0, 2500)
    count_NK = np.cumsum(domain[:, None] == np.arange(len(weights)), axis=0)
    error_NK = np.abs(count_NK - np.arange(1, len(domain) + 1)[:, None] * weights_K)
    # One row, and the share of the domain in how far virtual time and places can be apart. Domains of
    # equal weight, spread by the golden ratio, are apart by less than 3 rows; K rows is the general bound.
    apart = 3 if weights is ONE_BIG else len(weights)
    assert (error_NK <= 1 + apart * weights_K).all()


def test_a_tiny_weight_gets_its_rows():
    count = schedule((1 - 9.7e-5, 9.7e-5), 32).cursors(2_041_237 // 32)
    assert count[1] in (197, 198)


def test_many_short_stages_realise_their_weights():
    """Stages of 40 rows whose weights change each time: no domain is lost, none is drawn at weight 0."""
    rng = np.random.default_rng(1)
    stages, share = [], np.zeros(7)
    for segment in range(400):
        weights = rng.dirichlet(np.full(7, 0.5))
        weights[6] = 0.004  # 0.16 rows a stage: the nearest integer is 0
        weights[segment % 6] = 0.0
        stages.append(Stage(start=5 * segment, weights=tuple(weights)))
        share += np.array(stages[-1].weights) * 40
    plan = Schedule(stages, n_domains=7, batch_rows=8)
    for segment, stage in enumerate(stages[:-1]):
        weights_K = np.array(stage.weights)
        count_K = plan.cursors(5 * segment + 5) - plan.cursors(5 * segment)
        assert count_K.sum() == 40
        assert (count_K[weights_K == 0] == 0).all()
        # At most a row, and its share of how far time can drift in a stage: all domains a row each.
        assert (np.abs(count_K - 40 * weights_K) <= 1 + 7 * weights_K).all()
    total = plan.cursors(2000)
    assert abs(total[6] - share[6]) <= 2
    assert np.abs(total - share).max() < 0.01 * share.sum()


def test_a_stage_cut_in_two_draws_the_same():
    whole = schedule(NATURAL)
    cut = schedule(NATURAL, 8, (3, NATURAL), (4, NATURAL), (50, NATURAL), (51, NATURAL))
    for step in range(200):
        np.testing.assert_array_equal(whole.draws(step, 1), cut.draws(step, 1))


def test_numbers_go_on_across_stages():
    plan = schedule((0.5, 0.3, 0.2), 8, (2, (0, 0.5, 0.5)), (3, (1, 0, 0)), (9, (0.1, 0.1, 0.8)))
    seen = [[], [], []]
    for step in range(40):
        np.testing.assert_array_equal(plan.cursors(step), [len(numbers) for numbers in seen])
        for k, number in zip(*plan.draws(step, 1), strict=True):
            seen[k].append(number)
    assert all(numbers == list(range(len(numbers))) for numbers in seen)


def test_appending_is_the_schedule_known_in_advance():
    known = schedule(NATURAL, 8, (5, (1,) * 7), (6, NATURAL[::-1]))
    grown = schedule(NATURAL)
    short = grown
    for stage in known.stages[1:]:
        grown = grown.append(stage)
    assert grown.stages == known.stages and len(short.stages) == 1
    for step in range(20):
        np.testing.assert_array_equal(grown.draws(step, 1), known.draws(step, 1))
        np.testing.assert_array_equal(pickle.loads(pickle.dumps(grown)).cursors(step), known.cursors(step))


def test_weights_are_divided_by_their_sum_once():
    rng = np.random.default_rng(2)
    for scale in (1e-300, 1e-9, 1.0, 1e300):
        for size in (1, 2, 7, 200):
            stage = Stage(start=0, weights=tuple(rng.pareto(0.5, size) * scale))
            assert math.fsum(stage.weights) == 1.0
            assert Stage(**json.loads(json.dumps({"start": 0, "weights": stage.weights}))) == stage
    assert Stage(start=0, weights=(2, 1, 1)).weights == (0.5, 0.25, 0.25)


@pytest.mark.parametrize("weights", [(), (0.0, 0.0), (0.5, -0.1), (math.nan, 1.0), (math.inf, 1.0)])
def test_useless_weights_are_refused(weights):
    with pytest.raises(ValueError, match="weights from step 3"):
        Stage(start=3, weights=weights)


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ([], "start the first at 0"),
        ([(1, (1, 1))], "start the first at 0"),
        ([(0, (1, 1)), (0, (1, 1))], "must increase"),
        ([(0, (1, 1)), (5, (1, 1)), (4, (1, 1))], "must increase"),
        ([(0, (1, 1)), (5, (1, 1, 1))], "3 weights"),
        ([(0, (1,))], "1 weights"),
    ],
)
def test_wrong_schedules_are_refused(stages, message):
    with pytest.raises(ValueError, match=message):
        Schedule([Stage(start=s, weights=w) for s, w in stages], n_domains=2, batch_rows=4)
