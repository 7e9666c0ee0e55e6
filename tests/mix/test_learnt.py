"""Proxies that learn weights or a graph: one way of running them, resumed bitwise, with a history."""

import dataclasses
import json

import numpy as np
import pytest
from scoring import mesh_of
from test_swarm import DOMAINS, STEPS, on_one_device, prepare, settings, when

from jaxprune import config
from jaxprune.data.store import TokenStore
from jaxprune.mix import learnt
from jaxprune.train.metrics import read


@pytest.fixture(autouse=True)
def one_device(monkeypatch):
    on_one_device(monkeypatch)
    monkeypatch.setattr(learnt, "make_mesh", lambda _: mesh_of(1, fsdp=1))


def _of(method, **fields):
    made = settings(seeds=(0, 1))
    return dataclasses.replace(made, mix=config.Mix(method=method, **fields))


METHODS = {
    "doremi": {"doremi": config.DoReMi(eta=0.5)},
    "doge": {"doge": config.DoGE(mu=0.001)},
    "heldout": {"doge": config.DoGE(mu=0.001, against="heldout")},
}


@pytest.mark.parametrize("name", METHODS)
def test_weights_are_the_average_of_their_history_and_survive_a_kill(name, tmp_path, monkeypatch, capsys):
    method = "doremi" if name == "doremi" else "doge"
    made = _of(method, **METHODS[name])
    made = dataclasses.replace(
        made, swarm=dataclasses.replace(made.swarm, proxy=dataclasses.replace(made.swarm.proxy, log_every=1))
    )
    workdir = prepare(tmp_path / "undisturbed")
    learnt.train(made, workdir)
    weights, found = learnt.weights(made, workdir, DOMAINS)
    assert list(weights) == list(DOMAINS) and sum(weights.values()) == pytest.approx(1)
    assert max(weights.values()) - min(weights.values()) > 1e-4  # it learns something
    averages = []
    for history in found["history"].values():
        assert history["step"] == [*range(1, STEPS + 1)]
        by_step = np.array([history["weights"][domain] for domain in DOMAINS])
        np.testing.assert_allclose(by_step.sum(0), 1, atol=1e-5)
        first = (
            [[1 / 3]] * 3 if name == "doremi" else np.zeros((3, 0))
        )  # the paper's average begins with uniform
        averages.append(np.concatenate([first, by_step], axis=1).mean(1))
    np.testing.assert_allclose(list(weights.values()), np.mean(averages, axis=0), atol=1e-5)

    killed = prepare(tmp_path / "killed")
    with monkeypatch.context() as patch:

        def die():
            raise MemoryError("killed")

        when(patch, f"proxy {method}-0", 8, die)
        with pytest.raises(MemoryError):
            learnt.train(made, killed)
    learnt.train(made, killed)
    assert learnt.weights(made, killed, DOMAINS) == (weights, found)
    capsys.readouterr()
    learnt.train(made, killed)
    assert "compiling" not in capsys.readouterr().err  # nothing is trained again


def test_another_setting_learns_again_and_keeps_the_reference(tmp_path, capsys):
    workdir = prepare(tmp_path)
    learnt.train(_of("doremi"), workdir)
    before = learnt.fingerprint(_of("doremi"), workdir)
    capsys.readouterr()
    other = _of("doremi", doremi=config.DoReMi(eta=0.1))
    learnt.train(other, workdir)
    said = capsys.readouterr().err
    assert "proxy doremi-0: compiling" in said and "proxy doremi-reference-0: compiling" not in said
    assert learnt.fingerprint(other, workdir) != before


def test_the_graph_is_what_runs_on_single_domains_took_away(tmp_path):
    workdir = prepare(tmp_path)
    made = _of("skillit")
    learnt.train(made, workdir)
    graph = learnt.graph(made, workdir, TokenStore(workdir.prepare / "tokens"))
    lines = {seed: [line for line in read(workdir.proxy(f"skillit-1-{seed}") / "metrics.jsonl") if "heldout" in line]
             for seed in (0, 1)}  # fmt: skip
    by_hand = [1 - of[-1]["heldout/c"] / of[0]["heldout/c"] for of in lines.values()]
    assert graph["b"]["c"] == pytest.approx(np.mean(by_hand))
    for domain in DOMAINS:  # each has its own third of the vocabulary, and teaches itself most
        assert max(DOMAINS, key=lambda other, domain=domain: graph[domain][other]) == domain
    shares = json.loads((workdir.proxy("skillit-1-0") / "manifest.json").read_text())["settings"]["weights"]
    assert shares == [0.0, 1.0, 0.0]


def test_batches_in_parts_are_refused():
    made = _of("doge")
    proxy = dataclasses.replace(made.swarm.proxy, microbatches=2)
    with pytest.raises(
        ValueError, match="swarm.proxy.microbatches is 2, and doge needs a batch in one piece"
    ):
        learnt.check(dataclasses.replace(made, swarm=dataclasses.replace(made.swarm, proxy=proxy)))
