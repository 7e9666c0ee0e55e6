"""Presets: the paper's shapes, and sizes as their docstrings say."""

import pytest

from jaxprune.model import presets
from jaxprune.model.flops import n_params, train_flops_per_token

PAPER = {  # Ankner et al. with llm-foundry's shapes: width, layers, heads; billions with 100,352 rows
    "125m": (768, 12, 12, 0.16),
    "1b": (2048, 24, 16, 1.42),
    "3b": (2560, 32, 20, 2.78),
    "7b": (4096, 32, 32, 6.86),
}


@pytest.mark.parametrize("size", PAPER)
def test_mpt_has_the_papers_shape(size: str) -> None:
    model = getattr(presets, f"mpt_{size}")()
    width, layers, heads, billions = PAPER[size]
    assert (model.d_model, model.n_layers, model.n_heads, model.mlp_width) == (
        width,
        layers,
        heads,
        4 * width,
    )
    assert (model.context, model.position, model.norm, model.mlp) == (2048, "learned", "layer", "gelu")
    assert model.bias and model.tie_embeddings
    assert n_params(model, 100_277) / 1e9 == pytest.approx(billions, abs=0.006)


@pytest.mark.parametrize("size", PAPER)
def test_modern_is_as_large(size: str) -> None:
    paper, modern = (getattr(presets, f"{family}_{size}")() for family in ("mpt", "modern"))
    assert (modern.position, modern.norm, modern.mlp, modern.bias) == ("rope", "rms", "swiglu", False)
    assert modern.kv_heads < modern.n_heads

    def body(model) -> float:
        return train_flops_per_token(model, 1, 0) / 6 - 128 * model.d_model

    assert body(modern) == pytest.approx(body(paper), rel=0.025)


def test_flops_of_a_token() -> None:
    """By hand: 12 D^2 a layer in the blocks' matrices of MPT, D V in the logits, 12 L D T in attention."""
    flops = train_flops_per_token(presets.mpt_1b(), 100_352, 2048)
    matrices = 24 * 12 * 2048**2 + 2048 * 100_352
    assert flops == pytest.approx(6 * matrices + 12 * 24 * 2048 * 2048, rel=1e-3)
    untied = train_flops_per_token(presets.modern_7b(), 100_352, 0)
    assert untied / 6 == n_params(presets.modern_7b(), 100_352) - 4096 * 100_352
