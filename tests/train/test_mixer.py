"""Weights that change while a run trains: at an exact step, and the same whatever disturbs the run."""

import itertools
from dataclasses import dataclass, replace

import jax
import numpy as np
import pytest
from conftest import DOMAINS

from jaxprune import config
from jaxprune.data.mixture import Stage
from jaxprune.mix.online.ado import Ado
from jaxprune.mix.online.aioli import Aioli
from jaxprune.mix.online.odm import Odm
from jaxprune.mix.online.skillit import SkillIt
from jaxprune.model.sharding import make_mesh
from jaxprune.train.checkpoint import load_params
from jaxprune.train.log import Log
from jaxprune.train.loop import fit
from jaxprune.train.metrics import read
from jaxprune.train.mixer import Mixer
from jaxprune.train.strategy import Decision, Strategy

AIOLI = Aioli(
    n_domains=3,
    steps=24,
    rounds=2,
    sweeps=2,
    segment_steps=1,
    eta=2.0,
    confidence=None,
    smoothing=0.4,
    seed=3,
)


@dataclass(frozen=True, kw_only=True)
class Worst(Strategy):
    """Draws most from the domain of the largest training loss, and asks again after `every` steps."""

    every: int = 2
    signal = "training"
    law, estimate, solve = "none", "none", "none"

    def begin(self, step):
        return {"seen": []}, Decision(weights_K=np.full(3, 1 / 3), until=step + self.every)

    def update(self, state, seen):
        told = [seen.step, seen.tokens_K.tolist(), seen.loss_K.tolist(), seen.weights_K.tolist()]
        state = {"seen": [*state["seen"], told]}
        weights_K = np.full(3, 0.1)
        weights_K[np.nanargmax(seen.loss_K)] = 0.8
        return state, Decision(
            weights_K=weights_K,
            until=seen.step + self.every,
            record={"n": len(state["seen"]), "told": told[-1]},
        )


def _plan(make_plan, strategy, start=0, **settings):
    plan = make_plan(tokens=24 * 8 * 16, checkpoint_every=7, validate_every=10, **settings)
    stages = plan.stages if start else ()
    return replace(plan, strategy=strategy, mixing_start=start, mixing_rows=2, stages=stages)


def _left(folder, mesh):
    """All that a run leaves, but for times."""
    with jax.set_mesh(mesh):
        params = [np.asarray(leaf) for leaf in jax.tree.leaves(load_params(folder, mesh)[1])]
    lines = [
        {name: value for name, value in line.items() if name not in ("goodput", "tokens_per_s")}
        for line in read(folder / "metrics.jsonl")
    ]
    history = [{**line, "seconds": None} for line in read(folder / "mixing.jsonl")]
    return params, lines, history


def _is_same(left, right):
    for ours, theirs in zip(left[0], right[0], strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert left[1:] == right[1:]


GRAPH_KK = ((0.5, 0.1, 0.2), (0.1, 0.4, 0.0), (0.3, 0.0, 0.6))
MEMBERS = [
    Odm(initial_K=(0.2, 0.3, 0.5)),
    Ado(prior_K=(0.2, 0.3, 0.5), steps=24, refit=4),
    SkillIt(graph_KK=GRAPH_KK, steps=24, rounds=3),
]


@pytest.mark.parametrize(
    ("strategy", "start"),
    [(AIOLI, 0), (AIOLI, 5), (Worst(), 0), (Worst(every=1), 3), *[(member, 10) for member in MEMBERS]],
    ids=lambda value: type(value).__name__ if isinstance(value, Strategy) else str(value),
)
def test_a_run_that_is_killed_anywhere_ends_as_one_that_was_not(
    make_plan, tmp_path, monkeypatch, strategy, start
):
    if isinstance(strategy, Aioli):
        strategy = replace(strategy, rounds=1 if start else 2)
    plan = _plan(make_plan, strategy, start)
    fit(plan, tmp_path)
    undisturbed = _left(tmp_path, plan.mesh)
    original = Log.step
    for at in (1, 4, 8, 15, 20):
        folder = tmp_path / str(at)
        folder.mkdir()

        def die(self, step, metrics, at=at):
            original(self, step, metrics)
            if step == at:
                raise MemoryError("killed")

        with monkeypatch.context() as patch:
            patch.setattr(Log, "step", die)
            with pytest.raises(MemoryError):
                fit(plan, folder)
        fit(plan, folder)
        _is_same(_left(folder, plan.mesh), undisturbed)
    note = Mixer._note
    for number in (1, 2, 4):  # in a decision: its line is in the history, and it is in no checkpoint
        folder = tmp_path / f"decision-{number}"
        folder.mkdir()
        left = iter(range(number - 1, -1, -1))

        def cut(self, *decided, left=left):
            stage = note(self, *decided)
            if next(left) == 0:
                raise MemoryError("killed")
            return stage

        with monkeypatch.context() as patch:
            patch.setattr(Mixer, "_note", cut)
            with pytest.raises(MemoryError):
                fit(plan, folder)
        fit(plan, folder)
        _is_same(_left(folder, plan.mesh), undisturbed)


def test_decisions_hold_from_their_step_and_rows_are_counted(make_plan, tmp_path):
    """The batches of the run are those of a source that knew all the stages in advance."""
    for strategy, lag in ((AIOLI, 0), (Worst(), 1)):
        folder = tmp_path / str(lag)
        folder.mkdir()
        plan = _plan(make_plan, strategy, log_every=1)
        fit(plan, folder)
        history = read(folder / "mixing.jsonl")
        stages = tuple(
            Stage(start=line["start"], weights=tuple(line["weights"].values())) for line in history
        )
        assert [line["start"] - line["step"] for line in history] == [0] + [lag] * (len(history) - 1)
        source = plan.source(stages)
        lines = [line for line in read(folder / "metrics.jsonl") if "loss" in line]
        for line in lines:
            drawn_K = source.cursors(line["step"]) - source.cursors(line["step"] - 1)
            shares = {name: count / 8 for name, count in zip(DOMAINS, drawn_K.tolist(), strict=True) if count}
            assert {name[6:]: value for name, value in line.items() if name.startswith("share/")} == shares
            weights = source.schedule.weights(line["step"] - 1)
            for name, weight in zip(DOMAINS, weights, strict=True):
                assert line[f"weight/{name}"] == pytest.approx(weight)
        for before, line in itertools.pairwise(history):
            drawn_K = source.cursors(line["step"]) - source.cursors(before["step"])
            assert list(line["shares"].values()) == pytest.approx((drawn_K / drawn_K.sum()).tolist())
            if "told" in line:
                steps = range(before["step"], line["step"])
                drew_K = np.mean([source.schedule.weights(step) for step in steps], axis=0)
                assert line["told"] == pytest.approx(drew_K.tolist())


def test_a_strategy_is_told_the_losses_of_the_run(make_plan, tmp_path):
    """Training losses: those of the metrics. Held-out losses: those of the validation."""
    plan = _plan(make_plan, Worst(every=3), log_every=3)
    fit(plan, tmp_path)
    told = {line["step"]: line["loss"] for line in read(tmp_path / "mixing.jsonl") if "loss" in line}
    logged = {line["step"]: line for line in read(tmp_path / "metrics.jsonl") if "loss" in line}
    assert set(told) == {3, 6, 9, 12, 15, 18, 21}
    for step, losses in told.items():
        assert {f"loss/{name}": loss for name, loss in losses.items() if loss is not None} == pytest.approx(
            {name: value for name, value in logged[step].items() if name.startswith("loss/")}
        )
    folder = tmp_path / "aioli"
    folder.mkdir()
    plan = _plan(make_plan, replace(AIOLI, rounds=1, segment_steps=4))
    fit(replace(plan, run=replace(plan.run, validate_every=4)), folder)
    heldout = {line["step"]: line for line in read(folder / "metrics.jsonl") if "heldout" in line}
    told = {line["step"]: line["loss"] for line in read(folder / "mixing.jsonl")}
    assert set(told) == {0, 4, 8, 12, 16, 20}
    for step, losses in told.items():
        assert losses == {name: heldout[step][f"heldout/{name}"] for name in DOMAINS}


def test_the_mesh_and_the_devices_do_not_matter(make_plan, tmp_path):
    """The same decisions to rounding on eight devices as on one."""
    histories = []
    for number, (mesh, n) in enumerate([(config.Mesh(fsdp=1), 1), (config.Mesh(fsdp=4, tensor=2), 8)]):
        folder = tmp_path / str(number)
        folder.mkdir()
        plan = _plan(make_plan, AIOLI, mesh=make_mesh(mesh, jax.devices()[:n]))
        fit(plan, folder)
        histories.append(read(folder / "mixing.jsonl"))
    for one, eight in zip(*histories, strict=True):
        assert (one["step"], one["until"], one.get("domain")) == (
            eight["step"],
            eight["until"],
            eight.get("domain"),
        )
        assert list(one["weights"].values()) == pytest.approx(list(eight["weights"].values()), abs=2e-3)


def test_domains_keep_their_cursors_over_rounds(make_plan, tmp_path):
    """No row comes again before its domain is used up, however often the weights change."""
    plan = _plan(make_plan, AIOLI)
    fit(plan, tmp_path)
    stages = tuple(
        Stage(start=line["start"], weights=tuple(line["weights"].values()))
        for line in read(tmp_path / "mixing.jsonl")
    )
    source = plan.source(stages)
    seen = {name: [] for name in range(3)}
    for step in range(24):
        batch = source[step]
        for domain, row in zip(batch["domain_B"].tolist(), batch["tokens_BS"], strict=True):
            seen[domain].append(row.tobytes())
    for domain, rows in seen.items():
        epoch = int(source.n_rows_K[domain])
        for begin in range(0, len(rows), epoch):
            assert len({*rows[begin : begin + epoch]}) == len(rows[begin : begin + epoch])


def test_a_run_says_what_the_mixing_cost(make_plan, tmp_path):
    counts = fit(_plan(make_plan, AIOLI), tmp_path)
    assert 0 < counts["mixing"]["share"] < 1
    assert counts["mixing"]["seconds"] == pytest.approx(
        sum(line["seconds"] for line in read(tmp_path / "mixing.jsonl")), rel=1e-3
    )
    assert set(counts["epochs"]) == set(DOMAINS)
