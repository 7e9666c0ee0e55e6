"""What GPT-2, Llama and GPT-NeoX are called in Hugging Face format: settings, tensors, and how ours lie in them.

Names and defaults are those of transformers' LlamaForCausalLM, GPT2LMHeadModel and GPTNeoXForCausalLM, in
the spelling of its older and newer versions.

I width in, O width out, D model width, F MLP width, H heads, C width of a head, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxprune.config import Model, check

Described = Mapping[str, Any]  # config.json
Part = tuple[slice, ...]  # of a parameter, without the layers

_GELUS = {"gelu": "gelu", "gelu_new": "gelu_tanh", "gelu_fast": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh"}


@dataclass(frozen=True)
class Source:
    """The tensor that holds a parameter, or with {layer} in its name those that hold its layers."""

    name: str
    shape: tuple[int, ...]  # in the file
    read: Callable[[Any, Part], np.ndarray]  # (the tensor, read where it is sliced; part) -> the part


@dataclass(frozen=True, kw_only=True)
class Family:
    """An architecture: how its settings and its tensors are called."""

    prefix: str  # of all tensors but the output projection; some files leave it out
    settings: Callable[[Described], dict[str, Any]]  # fields of config.Model
    sources: Callable[[Model, int], dict[str, Source]]  # by the path of our parameter


# How a parameter of ours, [I, O] or [O], lies in a tensor.


def _same(tensor: Any, part: Part) -> np.ndarray:
    inside = tuple(slice(p.start, min(p.stop, n)) for p, n in zip(part, tensor.get_shape(), strict=True))
    if any(p.start >= p.stop for p in inside):  # all of it pads the vocabulary
        return np.zeros([max(p.stop - p.start, 0) for p in inside], np.float32)
    return tensor[inside]


def _transposed(tensor: Any, part: Part) -> np.ndarray:
    return _same(tensor, part[::-1]).T


def _third(which: int, width: int) -> Callable[[Any, Part], np.ndarray]:
    """GPT-2's c_attn: query, key and value, each `width` wide, beside each other in [I, 3 O]."""

    def read(tensor: Any, part: Part) -> np.ndarray:
        *inward, out = part
        return tensor[(*inward, slice(which * width + out.start, which * width + out.stop))]

    return read


def _third_of_heads(which: int, width: int) -> Callable[[Any, Part], np.ndarray]:
    """GPT-NeoX's query_key_value: those of each head, each `width` wide, below each other in [H 3 C, I]."""

    def read(tensor: Any, part: Part) -> np.ndarray:
        *inward, out = part
        found = tensor[(slice(3 * out.start, 3 * out.stop), *inward)]
        headed = found.reshape(-1, 3, width, *found.shape[1:])[:, which]
        return headed.reshape(-1, *found.shape[1:]).T

    return read


def _linear(path: str, name: str, shape: tuple[int, int], bias: bool) -> dict[str, Source]:
    """A torch Linear of width in and out `shape`."""
    weight = {f"{path}.weight_LIO": Source(f"{name}.weight", shape[::-1], _transposed)}
    return weight | ({f"{path}.bias_LO": Source(f"{name}.bias", shape[1:], _same)} if bias else {})


def _conv1d(path: str, name: str, shape: tuple[int, int]) -> dict[str, Source]:
    return {
        f"{path}.weight_LIO": Source(f"{name}.weight", shape, _same),
        f"{path}.bias_LO": Source(f"{name}.bias", shape[1:], _same),
    }


def _norm(path: str, name: str, width: int, bias: bool) -> dict[str, Source]:
    scale = {f"{path}.scale_D": Source(f"{name}.weight", (width,), _same)}
    return scale | ({f"{path}.bias_D": Source(f"{name}.bias", (width,), _same)} if bias else {})


def _ends(model: Model, vocab_size: int, table: str) -> dict[str, Source]:
    shape = (vocab_size, model.d_model)
    head = {} if model.tie_embeddings else {"weight_DV": Source("lm_head.weight", shape, _transposed)}
    return {"table_VD": Source(table, shape, _same), **head}


# Llama: Touvron et al., 2023; Llama 3's rotary wavelengths: Dubey et al., 2024.


def _llama(described: Described) -> dict[str, Any]:
    width, heads = described["hidden_size"], described["num_attention_heads"]
    head_dim = described.get("head_dim") or width // heads
    check(
        head_dim * heads == width,
        f"head_dim is {head_dim}, and only hidden_size / num_attention_heads, {width / heads:g}, can be loaded",
    )
    activation = described.get("hidden_act", "silu")
    check(activation == "silu", f"hidden_act is {activation}, and only silu can be loaded")
    rotary = _rotary(described, share=1.0)
    check(rotary["rope_share"] == 1, "partial_rotary_factor is not 1, and Llama turns whole heads")
    return {
        "d_model": width,
        "n_layers": described["num_hidden_layers"],
        "n_heads": heads,
        "n_kv_heads": described.get("num_key_value_heads"),
        "d_ff": described["intermediate_size"],
        "context": described.get("max_position_embeddings", 2048),
        "norm": "rms",
        "norm_eps": described.get("rms_norm_eps", 1e-6),
        "mlp": "swiglu",
        "bias": described.get("mlp_bias", False),
        "attention_bias": described.get("attention_bias", False),
        "tie_embeddings": described.get("tie_word_embeddings", False),
        **rotary,
    }


def _llama_sources(model: Model, vocab_size: int) -> dict[str, Source]:
    D, F, layer = model.d_model, model.mlp_width, "model.layers.{layer}"
    kv = model.kv_heads * (D // model.n_heads)
    sources = _ends(model, vocab_size, "model.embed_tokens.weight") | _norm("norm", "model.norm", D, False)
    for ours, theirs, out in (("query", "q", D), ("key", "k", kv), ("value", "v", kv), ("output", "o", D)):
        name = f"{layer}.self_attn.{theirs}_proj"
        sources |= _linear(f"blocks.attention.{ours}", name, (D, out), model.has_attention_bias)
    for ours, shape in (("gate", (D, F)), ("up", (D, F)), ("down", (F, D))):
        sources |= _linear(f"blocks.mlp.{ours}", f"{layer}.mlp.{ours}_proj", shape, model.bias)
    sources |= _norm("blocks.attention_norm", f"{layer}.input_layernorm", D, False)
    return sources | _norm("blocks.mlp_norm", f"{layer}.post_attention_layernorm", D, False)


# GPT-2: Radford et al., 2019.


def _gpt2(described: Described) -> dict[str, Any]:
    for name, usual in (("scale_attn_weights", True), ("scale_attn_by_inverse_layer_idx", False), ("add_cross_attention", False)):  # fmt: skip
        value = described.get(name, usual)
        check(value == usual, f"{name} is {value}, and only {usual} can be loaded")
    return {
        "d_model": described["n_embd"],
        "n_layers": described["n_layer"],
        "n_heads": described["n_head"],
        "d_ff": described.get("n_inner"),
        "context": described.get("n_positions", 1024),
        "position": "learned",
        "norm": "layer",
        "norm_eps": described.get("layer_norm_epsilon", 1e-5),
        "mlp": _gelu("activation_function", described.get("activation_function", "gelu_new")),
        "tie_embeddings": described.get("tie_word_embeddings", True),
    }


def _gpt2_sources(model: Model, vocab_size: int) -> dict[str, Source]:
    D, F, layer = model.d_model, model.mlp_width, "transformer.h.{layer}"
    sources = _ends(model, vocab_size, "transformer.wte.weight") | _norm("norm", "transformer.ln_f", D, True)
    sources["position_TD"] = Source("transformer.wpe.weight", (model.context, D), _same)
    for which, ours in enumerate(("query", "key", "value")):
        name, read = f"{layer}.attn.c_attn", _third(which, D)
        sources[f"blocks.attention.{ours}.weight_LIO"] = Source(f"{name}.weight", (D, 3 * D), read)
        sources[f"blocks.attention.{ours}.bias_LO"] = Source(f"{name}.bias", (3 * D,), read)
    sources |= _conv1d("blocks.attention.output", f"{layer}.attn.c_proj", (D, D))
    sources |= _conv1d("blocks.mlp.up", f"{layer}.mlp.c_fc", (D, F))
    sources |= _conv1d("blocks.mlp.down", f"{layer}.mlp.c_proj", (F, D))
    sources |= _norm("blocks.attention_norm", f"{layer}.ln_1", D, True)
    return sources | _norm("blocks.mlp_norm", f"{layer}.ln_2", D, True)


# GPT-NeoX: Black et al., 2022.


def _neox(described: Described) -> dict[str, Any]:
    return {
        "d_model": described["hidden_size"],
        "n_layers": described["num_hidden_layers"],
        "n_heads": described["num_attention_heads"],
        "d_ff": described["intermediate_size"],
        "context": described.get("max_position_embeddings", 2048),
        "norm": "layer",
        "norm_eps": described.get("layer_norm_eps", 1e-5),
        "mlp": _gelu("hidden_act", described.get("hidden_act", "gelu")),
        "parallel_residual": described.get("use_parallel_residual", True),
        "attention_bias": described.get("attention_bias", True),
        "tie_embeddings": described.get("tie_word_embeddings", False),
        **_rotary(described, share=0.25),
    }


def _neox_sources(model: Model, vocab_size: int) -> dict[str, Source]:
    D, F, layer = model.d_model, model.mlp_width, "gpt_neox.layers.{layer}"
    sources = _ends(model, vocab_size, "gpt_neox.embed_in.weight")
    sources |= _norm("norm", "gpt_neox.final_layer_norm", D, True)
    for which, ours in enumerate(("query", "key", "value")):
        name, read = f"{layer}.attention.query_key_value", _third_of_heads(which, D // model.n_heads)
        sources[f"blocks.attention.{ours}.weight_LIO"] = Source(f"{name}.weight", (3 * D, D), read)
        if model.has_attention_bias:
            sources[f"blocks.attention.{ours}.bias_LO"] = Source(f"{name}.bias", (3 * D,), read)
    dense = f"{layer}.attention.dense"
    sources |= _linear("blocks.attention.output", dense, (D, D), model.has_attention_bias)
    sources |= _linear("blocks.mlp.up", f"{layer}.mlp.dense_h_to_4h", (D, F), True)
    sources |= _linear("blocks.mlp.down", f"{layer}.mlp.dense_4h_to_h", (F, D), True)
    sources |= _norm("blocks.attention_norm", f"{layer}.input_layernorm", D, True)
    return sources | _norm("blocks.mlp_norm", f"{layer}.post_attention_layernorm", D, True)


def _gelu(name: str, activation: str) -> str:
    check(activation in _GELUS, f"{name} is {activation}, and only {', '.join(_GELUS)} can be loaded")
    return _GELUS[activation]


def _rotary(described: Described, share: float) -> dict[str, Any]:
    """Rotary positions, as older configs (rope_theta, rope_scaling, rotary_pct) or newer (rope_parameters) say it."""
    rope = {**(described.get("rope_scaling") or {}), **(described.get("rope_parameters") or {})}
    usual = described.get("partial_rotary_factor", described.get("rotary_pct", share))
    theta = described.get("rope_theta", described.get("rotary_emb_base", 10_000))
    fields = {
        "position": "rope",
        "rope_theta": float(rope.get("rope_theta", theta)),
        "rope_share": float(rope.get("partial_rotary_factor", usual)),
    }
    kind = rope.get("rope_type", rope.get("type", "default"))
    match kind:
        case "default":
            return fields
        case "linear":
            return fields | {"rope_factor": float(rope["factor"])}
        case "llama3":
            context = described.get(
                "original_max_position_embeddings", rope.get("original_max_position_embeddings")
            )
            context = described["max_position_embeddings"] if context is None else context
            short, long = context / rope["high_freq_factor"], context / rope["low_freq_factor"]
            return fields | {"rope_factor": float(rope["factor"]), "rope_short": short, "rope_long": long}
        case _:
            raise ValueError(f"rope_type is {kind}, and only default, linear and llama3 can be loaded")


FAMILIES = {
    "LlamaForCausalLM": Family(prefix="model.", settings=_llama, sources=_llama_sources),
    "GPT2LMHeadModel": Family(prefix="transformer.", settings=_gpt2, sources=_gpt2_sources),
    "GPTNeoXForCausalLM": Family(prefix="gpt_neox.", settings=_neox, sources=_neox_sources),
}
