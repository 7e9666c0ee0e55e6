"""The loader: one integer of state, whatever is made ahead, wherever it is stopped, whenever weights change."""

import threading

import grain
import numpy as np
import pytest
from absl import flags
from stores import numbered_store

from jaxprune.data.loader import Loader
from jaxprune.data.mixture import MixtureSource
from jaxprune.data.schedule import Stage

FIRST = Stage(start=0, weights=(0.5, 0.3, 0.2))
LATER = (
    Stage(start=4, weights=(0, 0.1, 0.9)),
    Stage(start=5, weights=(1, 1, 1)),
    Stage(start=11, weights=(1, 0, 1)),
)
STEPS = 16


@pytest.fixture(scope="module")
def make_source(tmp_path_factory):
    rng = np.random.default_rng(0)
    store = numbered_store(
        tmp_path_factory.mktemp("store"), rng.integers(2, 40, 60), rng.integers(0, 3, 60), 3
    )

    def make(*stages):
        return MixtureSource(
            store, np.arange(0, 60, 2), context=8, batch_rows=8, stages=stages or (FIRST,), seed=1
        )

    return make


@pytest.fixture
def open_loader():
    loaders = []

    def open_(*args, **kwargs):
        loaders.append(Loader(*args, **kwargs))
        return loaders[-1]

    yield open_
    for loader in loaders:
        loader.close()


def assert_same(batch, expected):
    np.testing.assert_array_equal(batch["tokens_BS"], expected["tokens_BS"])
    np.testing.assert_array_equal(batch["domain_B"], expected["domain_B"])


@pytest.mark.parametrize("prefetch", [0, 1, 4])
def test_batches_come_in_the_order_of_steps(make_source, open_loader, prefetch):
    source = make_source(FIRST, *LATER)
    loader = open_loader(source, prefetch=prefetch)
    for step in range(STEPS):
        assert loader.step == step
        assert_same(next(loader), source[step])


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_worker_processes_of_grain_make_the_same_batches(make_source, workers):
    """Ours has none, since a memory map needs none; a pipeline of one's own may have any number."""
    flags.FLAGS.mark_as_parsed()  # which Grain's workers read
    source = make_source(FIRST, *LATER)
    steps = grain.MapDataset.source(source)[:STEPS].to_iter_dataset()
    batches = list(steps.mp_prefetch(grain.MultiprocessingOptions(num_workers=workers)))
    assert len(batches) == STEPS
    for step, batch in enumerate(batches):
        assert_same(batch, source[step])


@pytest.mark.parametrize("prefetch", [1, 4])
@pytest.mark.parametrize("lead", [0, 1, 3])
def test_stages_appended_during_the_run_are_those_known_in_advance(make_source, open_loader, prefetch, lead):
    """Appended `lead` steps before they start, with batches of the old weights already made."""
    known = make_source(FIRST, *LATER)
    loader = open_loader(make_source(), prefetch=prefetch)
    for step in range(STEPS):
        for stage in LATER:
            if step == max(stage.start - lead, 0):
                loader.append(stage)
        assert_same(next(loader), known[step])


def test_a_run_stopped_at_any_step_goes_on_bitwise(make_source, open_loader):
    known = make_source(FIRST, *LATER)
    for stop in range(STEPS):
        first = open_loader(make_source(), prefetch=4)
        for step in range(stop):
            for stage in LATER:
                if step == stage.start:
                    first.append(stage)
            next(first)
        first.close()
        # All that is carried over: the step, and the stages as plain data.
        state = first.step, [(stage.start, list(stage.weights)) for stage in first.source.schedule.stages]
        stages = [Stage(start=start, weights=tuple(weights)) for start, weights in state[1]]
        second = open_loader(make_source(*stages), step=state[0], prefetch=1)
        for step in range(stop, STEPS):
            for stage in LATER[len(stages) - 1 :]:
                if step == stage.start:
                    second.append(stage)
            assert_same(next(second), known[step])


def test_a_stage_that_does_not_fit_is_refused_and_changes_nothing(make_source, open_loader):
    source = make_source()
    loader = open_loader(source)
    for _ in range(3):
        next(loader)
    for stage, message in (
        (Stage(start=2, weights=(1, 1, 1)), "start it there or later"),
        (Stage(start=3, weights=(1, 1)), "2 weights"),
    ):
        with pytest.raises(ValueError, match=message):
            loader.append(stage)
    for step in range(3, 8):
        assert_same(next(loader), source[step])
    loader.append(Stage(start=8, weights=(0, 0, 1)))
    assert (next(loader)["domain_B"] == 2).all()


def test_closing_and_appending_leave_no_thread(make_source):
    before = set(threading.enumerate())
    loader = Loader(make_source())
    next(loader)
    assert set(threading.enumerate()) > before
    loader.append(LATER[0])
    next(loader)
    assert len(set(threading.enumerate()) - before) == 1
    loader.close()
    loader.close()
    assert set(threading.enumerate()) == before
    with pytest.raises(ValueError, match="closed"):
        next(loader)


def test_an_error_in_the_thread_reaches_the_consumer(make_source, open_loader, monkeypatch):
    source = make_source()
    make_batch = MixtureSource.__getitem__

    def fail_at_two(self, index):
        if index == 2:
            raise OSError("the disk is gone")
        return make_batch(self, index)

    monkeypatch.setattr(MixtureSource, "__getitem__", fail_at_two)
    loader = open_loader(source)
    next(loader), next(loader)
    with pytest.raises(OSError, match="the disk is gone"):
        next(loader)
    assert loader.step == 2
