"""Traces of some steps of a run."""

import dataclasses
import gzip
import json

import jax
import pytest

from jaxprune import config
from jaxprune.train.loop import fit
from jaxprune.train.profile import Profile


def _step_events(folder) -> int:
    """How often the training step was called in the one trace that there is."""
    (trace,) = folder.glob("profile/plugins/profile/*/*.trace.json.gz")
    events = json.loads(gzip.decompress(trace.read_bytes()))["traceEvents"]
    return sum(event.get("name") == "PjitFunction(step)" for event in events)


def test_the_steps_that_are_named_are_traced_and_the_run_is_the_same(make_plan, tmp_path):
    plan = make_plan()
    for name in ("plain", "traced", "one"):
        (tmp_path / name).mkdir()
    fit(plan, tmp_path / "plain")
    fit(dataclasses.replace(plan, profile=(2, 4)), tmp_path / "traced")
    assert not (tmp_path / "plain" / "profile").exists()
    fit(dataclasses.replace(plan, profile=(3, 3)), tmp_path / "one")
    assert _step_events(tmp_path / "traced") == 3 * _step_events(tmp_path / "one") > 0
    losses = [
        [json.loads(line).get("loss") for line in (tmp_path / name / "metrics.jsonl").open()]
        for name in ("plain", "traced")
    ]
    assert losses[0] == losses[1]


def test_a_run_that_stops_inside_leaves_no_trace_running(tmp_path):
    profile = Profile(tmp_path, (1, 5))
    profile.before(1)
    profile.close()
    jax.profiler.start_trace(tmp_path / "another")  # raises if one is running
    jax.profiler.stop_trace()
    profile.close()


def test_steps_that_are_not_reached_or_gone_by_are_said(tmp_path, capsys):
    short, late = Profile(tmp_path, (5, 6)), Profile(tmp_path, (5, 6))
    for step in (1, 2):
        short.before(step)
    short.close()
    assert "no trace of steps 5 to 6: training has ended before" in capsys.readouterr().err
    late.before(8)
    late.before(9)
    late.close()
    assert capsys.readouterr().err.count("no trace of steps 5 to 6: training goes on with step 8") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("value", ["10", "15:10", "0:3", "a:b", "1:2:3", ""])
def test_what_names_no_steps_is_refused(value):
    with pytest.raises(ValueError, match=rf"profile is {value}: set FIRST:LAST"):
        config.Config(name="x", profile=value)
