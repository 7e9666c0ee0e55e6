"""Rows and batches: every token once an epoch, the same batch however it is asked for."""

import pickle

import grain
import numpy as np
import pytest
from absl import flags
from stores import numbered_store

from jaxprune.data.mixture import MixtureSource
from jaxprune.data.rows import Rows, _shuffled
from jaxprune.data.schedule import Stage

CONTEXT = 8
WEIGHTS = (0.5, 0.3, 0.2)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    rng = np.random.default_rng(0)
    lengths = rng.integers(2, 40, 90)
    return numbered_store(tmp_path_factory.mktemp("store"), lengths, rng.integers(0, 3, 90), 3)


@pytest.fixture(scope="module")
def kept(store):
    return np.sort(np.random.default_rng(1).permutation(store.n_documents)[:60])


def make(store, documents, **changes):
    settings = {"context": CONTEXT, "batch_rows": 8, "stages": (Stage(start=0, weights=WEIGHTS),), "seed": 3}
    return MixtureSource(store, documents, **(settings | changes))


def stages(*pairs):
    return tuple(Stage(start=start, weights=weights) for start, weights in pairs)


def same(a, b):
    return a.keys() == b.keys() and all(np.array_equal(a[key], b[key]) for key in a)


def rows_by_domain(source, steps):
    """The rows that each domain gave, in order."""
    rows = [[], [], []]
    for step in range(steps):
        batch = source[step]
        for row, k in zip(batch["tokens_BS"], batch["domain_B"], strict=True):
            rows[k].append(row)
    return [np.array(each) for each in rows]


def test_a_batch_is_int32_rows_of_context_plus_one(store, kept):
    batch = make(store, kept)[0]
    assert batch["tokens_BS"].shape == (8, CONTEXT + 1) and batch["tokens_BS"].dtype == np.int32
    assert batch["domain_B"].shape == (8,) and batch["domain_B"].dtype == np.int32


def test_every_kept_token_is_a_target_once_an_epoch(store, kept):
    source = make(store, kept, stages=stages((0, (1, 1, 1))))
    drawn = rows_by_domain(source, 90)
    for k, rows in enumerate(drawn):
        n_rows = source.n_rows_K[k]
        documents = kept[store.domain_N[kept] == k]
        tokens = np.concatenate([store.stored(number) for number in documents])
        assert n_rows == (len(tokens) - 1) // CONTEXT
        assert len(rows) >= 3 * n_rows  # three epochs, or the test says little
        orders = []
        for epoch in range(3):
            targets = rows[epoch * n_rows : (epoch + 1) * n_rows, 1:].ravel()
            assert len(np.unique(targets)) == len(targets) == n_rows * CONTEXT
            assert np.isin(targets, tokens).all()
            orders.append(targets.tolist())
        assert sorted(orders[0]) == sorted(orders[1]) == sorted(orders[2])
        assert orders[0] != orders[1] != orders[2] != orders[0]


def test_rows_are_documents_end_to_end(store, kept):
    """A row goes on inside a document token by token, and from a document's end to a document's start."""
    starts, ends = store.offsets_N1[kept], store.offsets_N1[kept + 1] - 1
    for rows in rows_by_domain(make(store, kept), 20):
        before, after = rows[:, :-1].ravel(), rows[:, 1:].ravel()
        inside = after == before + 1
        at_end = np.isin(before, ends)
        assert (inside | at_end).all()
        assert np.isin(after[~inside], starts).all()


def test_consecutive_rows_share_one_token(store, kept):
    source = make(store, kept)
    for rows in rows_by_domain(source, 60):
        firsts, lasts = np.unique(rows[:, 0]), np.unique(rows[:, -1])
        assert len(np.intersect1d(firsts, lasts)) == len(firsts) - 1


def test_documents_and_their_order_do_not_hang_on_the_others(store, kept):
    """Domain 0 draws the same rows when documents of other domains go, and the given order means nothing."""
    without = kept[store.domain_N[kept] != 2]
    some = rows_by_domain(make(store, kept, stages=stages((0, (1, 1, 0)))), 5)
    less = rows_by_domain(make(store, without[::-1], stages=stages((0, (1, 1, 0)))), 5)
    for k in (0, 1):
        np.testing.assert_array_equal(some[k], less[k])


def test_another_seed_is_another_order(store, kept):
    assert not same(make(store, kept)[0], make(store, kept, seed=4)[0])


def test_access_in_any_order_gives_the_same(store, kept):
    varied = stages((0, WEIGHTS), (3, (0, 0, 1)), (4, (0.1, 0.8, 0.1)), (700, (1, 1, 1)))
    source = make(store, kept, stages=varied)
    steps = [*range(12), 511, 512, 699, 700, 701, 1300, 10**6]  # plans are 512 steps long here
    forward = {step: source[step] for step in steps}
    for step in np.random.default_rng(2).permutation(steps):
        assert same(source[int(step)], forward[int(step)])
        assert same(make(store, kept, stages=varied)[int(step)], forward[int(step)])


@pytest.mark.parametrize("rows", [[[0, 1, 2, 3], [4, 5, 6, 7]], [[0, 4], [1, 5], [2, 3, 6, 7]], [[5]]])
def test_hosts_share_one_global_batch(store, kept, rows):
    varied = stages((0, WEIGHTS), (5, (0.1, 0.8, 0.1)))
    whole = make(store, kept, stages=varied)
    parts = [make(store, kept, stages=varied, rows=np.array(own)) for own in rows]
    for step in (0, 1, 4, 5, 6, 700):
        for own, part in zip(rows, parts, strict=True):
            assert same(part[step], {key: values[own] for key, values in whole[step].items()})
        assert all((part.cursors(step) == whole.cursors(step)).all() for part in parts)


def test_nothing_repeats_before_it_is_used_up_whatever_the_stages(store, kept):
    source = make(
        store, kept, stages=stages((0, WEIGHTS), (1, (0, 0, 1)), (2, (1, 1, 1)), (4, (0, 0.7, 0.3)))
    )
    steps = 30
    for k, rows in enumerate(rows_by_domain(source, steps)):
        assert len(rows) == source.cursors(steps)[k]
        assert source.epochs(steps)[k] == len(rows) / source.n_rows_K[k]
        for begin in range(0, len(rows), source.n_rows_K[k]):
            epoch = rows[begin : begin + source.n_rows_K[k]]
            assert len(np.unique(epoch[:, 0])) == len(epoch)


def test_appending_leaves_the_source_and_its_past_alone(store, kept):
    source = make(store, kept)
    before = [source[step] for step in range(12)]  # a plan far beyond step 6 is held
    changed = source.append(Stage(start=6, weights=(0, 0, 1)))
    known = make(store, kept, stages=(*source.schedule.stages, Stage(start=6, weights=(0, 0, 1))))
    for step in range(12):
        assert same(source[step], before[step])
        assert same(changed[step], known[step])
        assert same(changed[step], before[step]) == (step < 6)


def test_a_stage_that_starts_where_a_held_plan_does_takes_effect(store, kept):
    source = make(store, kept)
    assert not (source[512]["domain_B"] == 2).all()  # holds the plan of steps 512 to 1023
    assert (source.append(Stage(start=512, weights=(0, 0, 1)))[512]["domain_B"] == 2).all()


def test_a_pickled_source_gives_the_same(store, kept):
    source = make(store, kept, stages=stages((0, WEIGHTS), (2, (1, 1, 1))))
    copy = pickle.loads(pickle.dumps(source))
    assert all(same(copy[step], source[step]) for step in range(5))


def test_worker_processes_give_the_same(store, kept):
    source = make(store, kept, stages=stages((0, WEIGHTS), (2, (1, 1, 1))))
    flags.FLAGS.mark_as_parsed()  # Grain's workers read flags
    options = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
    batches = iter(
        grain.MapDataset.source(source)[1:]
        .to_iter_dataset(options)
        .mp_prefetch(grain.multiprocessing.MultiprocessingOptions(num_workers=2))
    )
    try:
        assert all(same(next(batches), source[step]) for step in range(1, 6))
    finally:
        batches.close()


def test_a_domain_without_a_row_needs_weight_zero(store, kept):
    few = kept[(store.domain_N[kept] != 1) | (kept == kept[store.domain_N[kept] == 1][0])]
    tokens = len(store.stored(kept[store.domain_N[kept] == 1][0]))
    context = tokens  # a row needs one token more
    with pytest.raises(ValueError, match=f"domain1 has weight 0.3 but only {tokens} tokens.*weight to 0"):
        make(store, few, context=context)
    source = make(store, few, context=context, stages=stages((0, (0.5, 0, 0.5))))
    assert source[0]["tokens_BS"].shape == (8, context + 1)
    assert source.epochs(3)[1] == 0
    with pytest.raises(ValueError, match="domain1"):
        source.append(Stage(start=4, weights=WEIGHTS))
    assert make(store, few, context=context - 1).n_rows_K[1] == 1


@pytest.mark.parametrize(
    ("documents", "message"),
    [([0, 1, 90], "holds 90"), ([-1, 3], "holds 90"), ([5, 7, 5], "document 5 is there twice")],
)
def test_wrong_documents_are_refused(store, documents, message):
    with pytest.raises(ValueError, match=message):
        Rows(store, np.array(documents), context=CONTEXT, seed=0)


def test_steps_outside_are_refused(store, kept):
    source = make(store, kept)
    for step in (-1, len(source)):
        with pytest.raises(IndexError):
            source[step]


@pytest.mark.parametrize("size", [1, 2, 3, 5, 6, 100, 1023, 1024, 1025, 20_000])
def test_shuffling_is_a_permutation_of_its_own_for_each_key(size):
    index = np.arange(size, dtype=np.uint64)
    images = [
        _shuffled(index, np.full(size, size, np.uint64), np.full(size, key, np.uint64)) for key in range(20)
    ]
    for image in images:
        np.testing.assert_array_equal(np.sort(image), index)
    # Of n! orders, 20 random ones have n fixed points in 20 on average, at every n: here within 5 sigma.
    if size > 5:
        fixed = sum(int((image == index).sum()) for image in images)
        assert abs(fixed - 20) <= 5 * np.sqrt(20)
    if size >= 1000:
        # Neighbours land anywhere: the step between their images is uniform modulo size.
        step = np.diff(images[0].astype(np.int64)) % size
        count, _ = np.histogram(step, 10, (0, size))
        expected = (size - 1) / 10
        assert (np.abs(count - expected) <= 5 * np.sqrt(expected)).all()
