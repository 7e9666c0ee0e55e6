"""What would stop the scoring is said before anything is trained."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scoring import mesh_of
from test_models import CONTEXT, write_model

from jaxprune import config
from jaxprune.prune import preflight


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return write_model(tmp_path_factory.mktemp("models") / "llama")


def check(*signals: config.Signal, devices: int = 1, **score: Any) -> None:
    sizes = {"fsdp": 1, "tensor": devices}
    settings = config.Config(
        name="x",
        reference=config.Run(model=config.Model(context=128)),
        score=config.Score(signals=signals, **score),
    )
    preflight.check(settings, mesh_of(devices, **sizes))


def test_a_context_that_does_not_fit_the_models(folder):
    check(context=128, overlap=127)
    with pytest.raises(ValueError, match="score.overlap is 128: set less than 128"):
        check(overlap=128)
    with pytest.raises(ValueError, match="score.context is 129: set 128"):
        check(context=129)
    with pytest.raises(ValueError, match=f"score.overlap is 100: set less than {CONTEXT}"):
        check("ratio", second=str(folder), overlap=100)
    check(second=str(folder), overlap=100)  # which no signal reads
    check("memorization")
    with pytest.raises(
        ValueError, match=f"memorization reads 64 tokens, more than the model's context of {CONTEXT}"
    ):
        check("memorization", model=str(folder))


def test_a_model_that_does_not_divide_over_the_devices(folder):
    check(model=str(folder), devices=4)
    with pytest.raises(ValueError, match="the model .*llama: model.n_heads is 4, which mesh.tensor=8"):
        check(model=str(folder), devices=8)


def test_files_that_are_not_there(tmp_path):
    nowhere = str(tmp_path / "nowhere")
    cases: tuple[tuple[config.Signal, str, dict[str, Any]], ...] = (
        ("dsir", "score.target", {"target": nowhere}),
        ("density", "score.density.embeddings", {"density": config.Density(embeddings=nowhere + ".npy")}),
        ("ask_llm", "there is no model", {"ask": config.Ask(model=nowhere)}),
        ("excess", "there is no model", {"second": nowhere}),
    )
    for signal, setting, score in cases:
        with pytest.raises(ValueError, match=setting):
            check(signal, **score)
        check(**score)  # which no signal reads
    np.save(tmp_path / "x.npy", np.ones((2, 3)))
    check("density", density=config.Density(embeddings=str(tmp_path / "x.npy")))
