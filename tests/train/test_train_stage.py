"""What decides a training run, and which of its checkpoints the signal vog asks for."""

import pytest
from scoring import random_documents, write_store

from jaxprune import config
from jaxprune.artifact import Workdir, write_json
from jaxprune.train import stage


@pytest.fixture
def workdir(tmp_path):
    workdir = Workdir(tmp_path)
    write_store(workdir.prepare / "tokens", random_documents(40))
    write_json(workdir.prepare / "manifest.json", {"stage": "prepare", "settings": {}})
    return workdir


def _no_strategy(mixture, seed):
    raise AssertionError("the reference's weights are decided before it is trained")


def settings(*signals: config.Signal, **score) -> config.Config:
    run = config.Run(
        model=config.Model(d_model=32, n_layers=1, n_heads=2, context=16), tokens=16 * 8 * 13, batch_rows=8
    )
    select = config.Select(signals=("perplexity", *signals))
    return config.Config(
        name="x", reference=run, score=config.Score(**score), select=select, mesh=config.Mesh(fsdp=8)
    )


def test_the_steps_are_spread_over_the_run_and_end_with_it():
    assert settings("vog").vog_steps == (2, 5, 7, 10, 13)
    assert settings("vog", vog_checkpoints=13).vog_steps == tuple(range(1, 14))
    assert settings().vog_steps == ()
    with pytest.raises(ValueError, match="vog_checkpoints is 14 and the reference takes 13 steps"):
        settings("vog", vog_checkpoints=14)
    with pytest.raises(ValueError, match="vog_checkpoints is 1: set 2 or more"):
        settings(vog_checkpoints=1)


def test_the_reference_is_trained_again_only_for_checkpoints_that_it_does_not_keep(
    workdir, monkeypatch, capsys
):
    trained = []
    monkeypatch.setattr(stage, "fit", lambda plan, folder: trained.append(plan.keep_steps) or {})

    def runs(*signals: config.Signal, **score) -> list:
        trained.clear()
        stage.run(settings(*signals, **score), workdir, "reference", _no_strategy)
        return list(trained)

    assert runs() == [()]
    assert runs("vog") == [(2, 5, 7, 10, 13)]
    assert "keep_steps" in capsys.readouterr().err
    assert runs("vog") == runs() == runs("vog") == []  # not asked for, they do not disturb
    assert runs("vog", vog_checkpoints=2) == [(6, 13)]
