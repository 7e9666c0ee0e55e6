"""Sizes and costs of a model: what is counted, and how."""

from __future__ import annotations

from jaxprune.config import Model
from jaxprune.model.transformer import padded_vocab


def n_params(model: Model, vocab_size: int) -> int:
    """Parameters of the model, the rows that pad the vocabulary to a multiple of 128 included."""
    D, F, L = model.d_model, model.mlp_width, model.n_layers
    kv = model.kv_heads * (D // model.n_heads)
    inward = (D, kv, kv) + (F,) * (2 if model.mlp == "swiglu" else 1)
    block = D * sum(inward) + (D + F) * D
    norm = D * (2 if model.norm == "layer" and model.bias else 1)
    attention_biases = 2 * D + 2 * kv if model.has_attention_bias else 0
    mlp_biases = sum(inward[3:]) + D if model.bias else 0
    biases = attention_biases + mlp_biases
    return (
        _lookups(model, vocab_size) + _unembedding(model, vocab_size) + L * (block + biases + 2 * norm) + norm
    )


def n_non_embedding(model: Model, vocab_size: int) -> int:
    """Parameters without the tables of tokens and positions and the output projection."""
    return n_params(model, vocab_size) - _lookups(model, vocab_size) - _unembedding(model, vocab_size)


def train_flops_per_token(model: Model, vocab_size: int, context: int) -> float:
    """FLOPs of the forward and backward pass for a token in rows of `context`: 6 N + 12 L D T.

    N counts every parameter that is multiplied: all but the tables that are only looked up (positions,
    and the embedding where it is not also the output projection). Attention is counted whole, not
    halved for causality, and recomputation is not counted (PaLM, appendix B).
    """
    multiplied = n_params(model, vocab_size) - _lookups(model, vocab_size)
    return 6.0 * multiplied + 12.0 * model.n_layers * model.d_model * context


def executed_flops_per_token(model: Model, vocab_size: int, context: int, *, train: bool) -> float:
    """FLOPs of the products that a step cannot do without, for a token: less than it executes, never more.

    Unlike `train_flops_per_token` it counts what is made again for the backward pass (`remat`, chunks of logits), and
    attention only where it is causal. A fused kernel's own recomputation and all elementwise work are left out.
    """
    head = 2.0 * _unembedding(model, vocab_size)
    attention = 2.0 * model.n_layers * model.d_model * context
    body = 2.0 * n_non_embedding(model, vocab_size) + attention
    if not train:
        return body + head
    again = {"none": 0.0, "dots": attention, "full": body}[model.remat]
    if 0 < model.loss_chunk < context:
        again += head
    return 3.0 * (body + head) + again


def _lookups(model: Model, vocab_size: int) -> int:
    rows = 0 if model.tie_embeddings else padded_vocab(vocab_size)
    return model.d_model * (rows + (model.context if model.position == "learned" else 0))


def _unembedding(model: Model, vocab_size: int) -> int:
    return model.d_model * padded_vocab(vocab_size)
