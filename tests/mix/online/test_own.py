"""Strategies of one's own: found by file and class, made like ours, and looked at before they are followed."""

import json

import numpy as np
import pytest

from jaxprune.config import Mix, Model, Own, Run
from jaxprune.mix.online.make import online, strategy, view
from jaxprune.train.strategy import Observation

RUN = Run(model=Model(d_model=32, n_layers=1, n_heads=2, context=16), tokens=100 * 8 * 16, batch_rows=8)
ROWS = {"books": 400, "code": 0, "web": 900}
WEIGHTS = {"books": 0.75, "code": 0.0, "web": 0.25}

GREEDY = '''
from dataclasses import dataclass

import numpy as np

from jaxprune.train.strategy import Decision, Strategy


@dataclass(frozen=True, kw_only=True)
class Greedy(Strategy):
    """More of the domain whose held-out loss is the highest."""

    domains: tuple[str, ...]
    prior_K: tuple[float, ...]
    steps: int
    seed: int
    more: float
    every: float = 10

    signal = "validation"

    def begin(self, step):
        return {"asked": 0}, Decision(weights_K=np.array(self.prior_K), until=step + int(self.every))

    def update(self, state, seen):
        weights_K = np.full(len(self.domains), (1 - self.more) / len(self.domains))
        weights_K[seen.loss_K.argmax()] += self.more
        return {"asked": state["asked"] + 1}, Decision(weights_K=weights_K, until=seen.step + int(self.every))
'''


def made(path, text=GREEDY, name="Greedy", **settings):
    path.write_text(text)
    mix = Mix(method="own", prior="natural", own=Own(strategy=f"{path}:{name}", settings=settings))
    mixture = {"rows": ROWS, "weights": WEIGHTS, "online": online(mix, RUN, None)}
    return strategy(mix, RUN, json.loads(json.dumps(mixture)), 3)


def seen(step, *loss):
    zero_K = np.zeros(len(loss))
    return Observation(
        step=step, loss_K=np.array(loss), tokens_K=zero_K, drawn_K=zero_K, weights_K=zero_K + 1 / len(loss)
    )


def test_it_is_told_the_domains_that_can_be_drawn_and_its_settings(tmp_path):
    found = made(tmp_path / "greedy.py", more=0.6)
    state, decision = found.begin(0)
    assert decision.weights_K.tolist() == [0.75, 0.0, 0.25] and decision.until == 10
    state, decision = found.update(state, seen(10, 2.0, 9.0, 3.0))
    assert decision.weights_K == pytest.approx([0.2, 0.0, 0.8]) and decision.until == 20
    assert state["inner"] == {"asked": 1}
    assert found.signal == "validation"


def test_what_was_decided_by_another_text_is_not_decided_by_this_one(tmp_path):
    path = tmp_path / "greedy.py"
    path.write_text(GREEDY)
    mix = Mix(method="own", own=Own(strategy=f"{path}:Greedy", settings={"more": 0.5}))
    before = online(mix, RUN, None)
    assert online(mix, RUN, None) == before
    path.write_text(GREEDY.replace("argmax", "argmin"))
    assert online(mix, RUN, None) != before
    assert view(mix) == "law: not said; A: not said; p: not said"


@pytest.mark.parametrize(
    ("change", "message"),
    {
        ("class Greedy(Strategy)", "class Greedy"): "no subclass of jaxprune.train.strategy.Strategy",
        ("def update", "def renew"): "it has no update",
        (
            'signal = "validation"',
            'signal = "gradients"',
        ): "its signal is gradients: set validation or training",
        ("    more: float\n", "    more: float\n    less: float\n"): "missing a required argument: 'less'",
        ("    seed: int\n", ""): "unexpected keyword argument 'seed'",
        ('{"asked": 0}', '{"asked": (0, 1)}'): "comes back from JSON as",
        ('{"asked": 0}', '{"asked": np.zeros(2)}'): r"its state .* is not plain JSON data",
        ('{"asked": 0}', '{"asked": float("nan")}'): r"its state .* is not plain JSON data",
        ("return {", "return [{"): "greedy.py, line 2[0-9]: ",
        (
            "import numpy as np",
            "import nump as np",
        ): "greedy.py, line 4: ModuleNotFoundError: No module named 'nump'",
        ('{"asked": 0}, ', ""): "begin gives Decision.*: let it give a state and a Decision",
        (
            "until=step + int(self.every)",
            "until=step + 0.5",
        ): "begin decides until step 0.5 at step 0: give a whole number",
        ("until=step + int(self.every)", "until=step - 1"): "begin decides until step -1 at step 0",
        ("until=step + int(self.every)", "until=np.nan"): "begin decides until step nan",
        ("np.array(self.prior_K)", "np.ones(2)"): "give 2, none negative, whose sum is 1",
        ("np.array(self.prior_K)", "np.array([np.nan, 1.0])"): "give 2, none negative, whose sum is 1",
        ("np.array(self.prior_K)", "np.ones(1)"): "give 2, none negative, whose sum is 1",
    }.items(),
)
def test_what_is_no_strategy_is_refused_before_anything_is_trained(tmp_path, change, message):
    assert change[0] in GREEDY
    with pytest.raises(ValueError, match=message):
        made(tmp_path / "greedy.py", GREEDY.replace(*change), more=0.5)


@pytest.mark.parametrize(
    ("change", "message"),
    {
        ('{"asked": state["asked"] + 1}', "{1: 2}"): r"its state \{1: 2\} comes back from JSON as \{'1': 2\}",
        ('state["asked"] + 1', "seen.loss_K.argmax()"): "its state .* is not plain JSON data: .*int64",
        ("seen.step + int(self.every)", "seen.step + 0.5"): "update decides until step 10.5 at step 10",
        ("seen.step + int(self.every))", "20, record={'most': seen.loss_K.max()})"): None,
        (
            "seen.step + int(self.every))",
            "20, record={'most': seen.loss_K.argmax()})",
        ): "its record .* is not plain",
        (
            "seen.step + int(self.every))",
            "20, record={'of': (1, 2)})",
        ): "its record .* comes back from JSON as",
    }.items(),
)
def test_what_a_checkpoint_or_history_could_not_keep_is_refused_when_it_is_decided(tmp_path, change, message):
    assert change[0] in GREEDY
    found = made(tmp_path / "greedy.py", GREEDY.replace(*change), more=0.5)
    state, _ = found.begin(0)
    if message is None:
        assert found.update(state, seen(10, 1.0, 2.0, 3.0))[1].record == {"own": {"most": 3.0}}
        return
    with pytest.raises(ValueError, match=message):
        found.update(state, seen(10, 1.0, 2.0, 3.0))


def test_what_it_records_leaves_the_fields_of_the_history_alone(tmp_path):
    record = 'seen.step + int(self.every), record={"step": 7, "loss": 1.5, "A": [[1.0]], "next": 3})'
    found = made(tmp_path / "greedy.py", GREEDY.replace("seen.step + int(self.every))", record), more=0.5)
    _, decision = found.update(found.begin(0)[0], seen(10, 1.0, 2.0, 3.0))
    assert decision.record == {"own": {"step": 7, "loss": 1.5, "A": [[1.0]], "next": 3}}


def test_a_text_is_read_again_however_soon_it_changes(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.dont_write_bytecode", False)
    path = tmp_path / "greedy.py"
    weights = []
    for text in (GREEDY, GREEDY.replace("argmax", "argmin")):  # as long, and of the same second
        found = made(path, text, more=0.6)
        weights.append(found.update(found.begin(0)[0], seen(10, 2.0, 9.0, 3.0))[1].weights_K.tolist())
    assert weights == [pytest.approx([0.2, 0.0, 0.8]), pytest.approx([0.8, 0.0, 0.2])]
    assert [file.name for file in tmp_path.iterdir()] == ["greedy.py"]


def test_settings_do_not_take_the_place_of_what_the_run_says(tmp_path):
    with pytest.raises(ValueError, match="mix.own.settings gives seed, steps, which the run says"):
        made(tmp_path / "greedy.py", more=0.5, steps=7.0, seed=1.0)


def test_never_is_the_end_of_the_run(tmp_path):
    found = made(
        tmp_path / "greedy.py", GREEDY.replace("step + int(self.every)", 'float("inf")', 1), more=0.5
    )
    assert found.begin(0)[1].until == RUN.steps


def test_a_decision_that_ends_before_it_begins_is_refused(tmp_path):
    found = made(tmp_path / "greedy.py", more=0.5, every=0)
    with pytest.raises(ValueError, match=r"greedy.py:Greedy: decides until step 10 after step 10"):
        found.update(found.begin(10)[0], seen(10, 1.0, 2.0, 3.0))


def test_a_file_or_class_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ValueError, match="as FILE.py:CLASS"):
        online(Mix(method="own", own=Own(strategy="greedy")), RUN, None)
    with pytest.raises(ValueError, match="there is no file .*absent.py"):
        online(Mix(method="own", own=Own(strategy=f"{tmp_path}/absent.py:Greedy")), RUN, None)
    with pytest.raises(ValueError, match="Greed is no subclass"):
        made(tmp_path / "greedy.py", name="Greed")
