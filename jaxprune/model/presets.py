"""Models by name: the pruning paper's family, a modern one at its sizes, and small ones for a CPU.

Sizes are of the blocks and the last norm ("body"), and of all with a vocabulary of 100,352 (the
paper's cl100k_base, padded) unless said otherwise.
"""

from __future__ import annotations

from typing import Any

from jaxprune.config import Model


def mpt_125m() -> Model:
    """The paper's reference model: body 85 M, 0.16 B with embeddings (Ankner et al., section 3.1; llm-foundry)."""
    return Model(d_model=768, n_layers=12, n_heads=12)


def mpt_1b() -> Model:
    """The paper's smaller final model: body 1.21 B, 1.42 B with embeddings."""
    return Model(d_model=2048, n_layers=24, n_heads=16)


def mpt_3b() -> Model:
    """The paper's larger final model: body 2.52 B, 2.78 B with embeddings."""
    return Model(d_model=2560, n_layers=32, n_heads=20)


def mpt_7b() -> Model:
    """MPT's shape at 7B: body 6.44 B, 6.86 B with embeddings."""
    return Model(d_model=4096, n_layers=32, n_heads=32)


def modern_125m() -> Model:
    """As mpt_125m: body 86 M (+1.3 %), 0.16 B with embeddings."""
    return _modern(d_model=768, n_layers=12, n_heads=12, n_kv_heads=4, d_ff=2432)


def modern_1b() -> Model:
    """As mpt_1b: body 1.21 B, 1.41 B with embeddings."""
    return _modern(d_model=2048, n_layers=24, n_heads=16, n_kv_heads=8, d_ff=6144)


def modern_3b() -> Model:
    """As mpt_3b: body 2.52 B, 2.77 B with embeddings."""
    return _modern(d_model=2560, n_layers=32, n_heads=20, n_kv_heads=4, d_ff=8192)


def modern_7b() -> Model:
    """As mpt_7b: body 6.58 B (+2 %), 7.40 B with embeddings, which are not tied at this size."""
    return _modern(d_model=4096, n_layers=32, n_heads=32, n_kv_heads=8, d_ff=13_312, tie_embeddings=False)


def tiny() -> Model:
    """For tests: body 26 k; MPT's family."""
    return Model(d_model=32, n_layers=2, n_heads=4, context=64, dtype="float32")


def tiny_modern() -> Model:
    """For tests: body 24 k; the modern family."""
    return _modern(d_model=32, n_layers=2, n_heads=4, n_kv_heads=2, d_ff=96, context=64, dtype="float32")


def mini() -> Model:
    """For a quickstart on a CPU: 1.31 M with a vocabulary of 4,096.

    Two heads: attention's softmax costs by the head. On two cores busy with other work a training step
    of 16 rows ran at 3,700 tokens/s (1.1 CPU-seconds); 3,500 with four heads, no faster unrolled or with
    smaller chunks of the loss.
    """
    return _modern(d_model=128, n_layers=4, n_heads=2, n_kv_heads=1, context=256, dtype="float32")


def _modern(**sizes: Any) -> Model:
    return Model(position="rope", norm="rms", mlp="swiglu", bias=False, **sizes)
