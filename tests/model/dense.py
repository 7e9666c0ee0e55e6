"""The whole network in numpy and float64, written from the papers and not from our code.

GPT-2 and MPT: Radford et al. 2019 and the pruning paper's settings; RoPE: Su et al. 2021 in the
half-split form of Llama; SwiGLU: Shazeer 2020; RMSNorm: Zhang and Sennrich 2019.
"""

import math

import numpy as np

from jaxprune.config import Model


def next_token_nll(model: Model, vocab_size: int, params, tokens_BS: np.ndarray) -> np.ndarray:
    """[B, T] nats."""
    return np.stack([_row(model, vocab_size, params, tokens) for tokens in tokens_BS])


def _row(model: Model, vocab_size: int, params, tokens: np.ndarray) -> np.ndarray:
    p = _as_float64(params)
    table = p["table_VD"]
    x = table[tokens[:-1]]
    if model.position == "learned":
        x = x + p["position_TD"][: len(x)]
    for layer in range(model.n_layers):
        block = _layer(p["blocks"], layer)
        x = x + _attention(model, block["attention"], _norm(model, block["attention_norm"], x))
        x = x + _mlp(model, block["mlp"], _norm(model, block["mlp_norm"], x))
    x = _norm(model, p["norm"], x)
    logits = x @ (table.T if model.tie_embeddings else p["weight_DV"])
    logits = logits[:, :vocab_size]
    top = logits.max(axis=1)
    normaliser = top + np.log(np.exp(logits - top[:, None]).sum(axis=1))
    return normaliser - logits[np.arange(len(x)), tokens[1:]]


def _attention(model: Model, p: dict, x: np.ndarray) -> np.ndarray:
    width = model.d_model // model.n_heads
    shared = model.n_heads // (model.n_kv_heads or model.n_heads)
    q, k, v = (_linear(p[name], x) for name in ("query", "key", "value"))
    heads = []
    for head in range(model.n_heads):
        queries = q[:, head * width : (head + 1) * width]
        keys, values = (y[:, head // shared * width : (head // shared + 1) * width] for y in (k, v))
        if model.position == "rope":
            queries, keys = _rope(model, queries), _rope(model, keys)
        score = queries @ keys.T / math.sqrt(width)
        score[np.triu_indices(len(x), 1)] = -np.inf
        share = np.exp(score - score.max(axis=1, keepdims=True))
        heads.append(share / share.sum(axis=1, keepdims=True) @ values)
    return _linear(p["output"], np.concatenate(heads, axis=1))


def _rope(model: Model, x: np.ndarray) -> np.ndarray:
    half = x.shape[1] // 2
    y = np.empty_like(x)
    for position in range(len(x)):
        for channel in range(half):
            angle = position * model.rope_theta ** (-channel / half)
            pair = complex(x[position, channel], x[position, channel + half]) * np.exp(1j * angle)
            y[position, channel], y[position, channel + half] = pair.real, pair.imag
    return y


def _mlp(model: Model, p: dict, x: np.ndarray) -> np.ndarray:
    up = _linear(p["up"], x)
    if model.mlp == "swiglu":
        gate = _linear(p["gate"], x)
        return _linear(p["down"], gate / (1 + np.exp(-gate)) * up)
    return _linear(p["down"], up * 0.5 * (1 + np.vectorize(math.erf)(up / math.sqrt(2))))


def _norm(model: Model, p: dict, x: np.ndarray) -> np.ndarray:
    if model.norm == "layer":
        x = x - x.mean(axis=1, keepdims=True)
    x = x / np.sqrt((x**2).mean(axis=1, keepdims=True) + 1e-5) * p["scale_D"]
    return x + p["bias_D"] if "bias_D" in p else x


def _linear(p: dict, x: np.ndarray) -> np.ndarray:
    y = x @ p["weight_LIO"]
    return y + p["bias_LO"] if "bias_LO" in p else y


def _as_float64(tree) -> dict:
    return {k: np.asarray(v, np.float64) if hasattr(v, "shape") else _as_float64(v) for k, v in tree.items()}


def _layer(tree: dict, layer: int) -> dict:
    return {k: _layer(v, layer) if isinstance(v, dict) else v[layer] for k, v in tree.items()}
