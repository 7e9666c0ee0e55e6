"""Models in Hugging Face format: the logits of `transformers`, or an error that says what is not supported."""

import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file

from jaxprune import config
from jaxprune.model import huggingface
from jaxprune.model.flops import n_params
from jaxprune.model.linear import product
from jaxprune.model.sharding import make_mesh

V, T = 70, 40
# Float32 carries 6e-8, sums of up to 96 products and 2 layers a few times that, on logits of about 3.
TOLERANCE = 2e-5

LLAMA = {"vocab_size": V, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
         "num_key_value_heads": 2, "max_position_embeddings": 64, "rms_norm_eps": 1e-3}  # fmt: skip
GPT2 = {
    "vocab_size": V,
    "n_embd": 32,
    "n_layer": 2,
    "n_head": 4,
    "n_positions": 64,
    "layer_norm_epsilon": 1e-3,
}
NEOX = {"vocab_size": V, "hidden_size": 32, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 2,
        "max_position_embeddings": 64, "layer_norm_eps": 1e-3}  # fmt: skip
LLAMA3 = {"rope_type": "llama3", "rope_theta": 100.0, "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 32}  # fmt: skip

MODELS = {
    "llama": ("Llama", LLAMA | {"rope_parameters": LLAMA3}),
    "llama, linear, tied, biases": (
        "Llama",
        LLAMA
        | {"rope_parameters": {"rope_type": "linear", "factor": 3.0, "rope_theta": 500.0}, "tie_word_embeddings": True}
        | {"attention_bias": True, "num_key_value_heads": 4, "head_dim": 8},
    ),
    "gpt2": ("GPT2", GPT2),
    "gpt2, untied": ("GPT2", GPT2 | {"tie_word_embeddings": False, "n_inner": 80, "activation_function": "gelu"}),
    "neox": ("GPTNeoX", NEOX),
    "neox, in sequence": (
        "GPTNeoX",
        NEOX | {"use_parallel_residual": False, "tie_word_embeddings": True, "hidden_act": "gelu_new"}
        | {"attention_bias": False, "rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5, "rope_theta": 300.0}},
    ),
}  # fmt: skip


@pytest.fixture(scope="session")
def original(tmp_path_factory):
    """Folder, tokens and logits of a model of `transformers`, whose weights are large enough to matter."""
    reason = "needs the extra `peers`: pip install 'jaxprune[peers]'"
    torch = pytest.importorskip("torch", reason=reason)
    transformers = pytest.importorskip("transformers", reason=reason)
    made = {}

    def original(name: str) -> tuple[Path, np.ndarray, np.ndarray]:
        if name not in made:
            family, settings = MODELS[name]
            settings = json.loads(json.dumps(settings))  # transformers writes into what it is given
            described = getattr(transformers, f"{family}Config")(**settings)
            cls = getattr(transformers, {"GPT2": "GPT2LMHeadModel"}.get(family, f"{family}ForCausalLM"))
            model = cls(described).eval()
            rng = np.random.default_rng(0)
            with torch.no_grad():
                for weight in model.parameters():
                    noise = rng.normal(size=weight.shape)
                    if weight.ndim == 1:  # scales and biases, about 1 and 0 as they are
                        value = weight.numpy() + 0.3 * noise
                    else:
                        value = 1.5 * noise / min(weight.shape) ** 0.5
                    weight.copy_(torch.from_numpy(value))
                tokens_BT = rng.integers(0, V, (8, T))
                logits_BTV = model(torch.from_numpy(tokens_BT)).logits.numpy()
            folder = tmp_path_factory.mktemp("model")
            model.save_pretrained(folder)
            made[name] = folder, tokens_BT.astype(np.int32), logits_BTV
        return made[name]

    return original


def logits(folder: Path, tokens_BT: np.ndarray, mesh: jax.sharding.Mesh | None = None) -> np.ndarray:
    mesh = mesh or mesh_of()
    graphdef, params, _, vocab_size = huggingface.load(folder, mesh)

    @jax.jit
    def forward(params, tokens_BT):
        model = nnx.merge(graphdef, params)
        return product(model(tokens_BT), model.unembedding(), jnp.float32)

    with jax.set_mesh(mesh):
        return np.asarray(forward(params, tokens_BT))[..., :vocab_size]


def mesh_of(**sizes: int) -> jax.sharding.Mesh:
    return make_mesh(config.Mesh(**sizes), jax.devices()[: int(np.prod([*sizes.values()]))])


def changed(folder: Path, to: Path, **settings) -> Path:
    """A copy of a model with another config.json."""
    shutil.copytree(folder, to)
    described = json.loads((to / "config.json").read_text())
    (to / "config.json").write_text(json.dumps(described | settings))
    return to


@pytest.mark.parametrize("name", MODELS)
def test_logits_are_those_of_transformers(original, name: str) -> None:
    folder, tokens_BT, wanted_BTV = original(name)
    assert np.std(wanted_BTV) > 0.5
    for sizes in ({}, {"fsdp": 4, "tensor": 2}):
        np.testing.assert_allclose(
            logits(folder, tokens_BT, mesh_of(**sizes)), wanted_BTV, rtol=TOLERANCE, atol=TOLERANCE
        )
    model, vocab_size = huggingface.read_config(folder)
    _, params, _, _ = huggingface.load(folder, mesh_of())
    assert sum(x.size for x in jax.tree.leaves(params)) == n_params(model, vocab_size)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("llama", {"rms_norm_eps": 1e-4}),
        ("llama", {"rope_parameters": LLAMA3 | {"rope_type": "default"}}),
        ("llama", {"rope_parameters": LLAMA3 | {"rope_type": "linear"}}),
        ("llama", {"rope_parameters": LLAMA3 | {"high_freq_factor": 8.0}}),
        ("llama", {"rope_parameters": LLAMA3 | {"low_freq_factor": 0.5}}),
        ("llama", {"rope_parameters": LLAMA3 | {"original_max_position_embeddings": 48}}),
        ("gpt2", {"activation_function": "gelu"}),
        ("gpt2", {"layer_norm_epsilon": 1e-4}),
        ("neox", {"use_parallel_residual": False}),
        ("neox", {"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}}),
        ("neox", {"rope_parameters": {"rope_type": "default", "rope_theta": 20_000.0}}),
    ],
)
def test_every_setting_matters(original, tmp_path, name: str, settings: dict) -> None:
    """With one of them wrong, the comparison with transformers fails by far."""
    folder, tokens_BT, wanted_BTV = original(name)
    found_BTV = logits(changed(folder, tmp_path / "model", **settings), tokens_BT)
    assert np.abs(found_BTV - wanted_BTV).max() > 10 * TOLERANCE * (1 + np.abs(wanted_BTV).max())


def test_older_configs_say_the_same(original, tmp_path) -> None:
    """As written before rope_parameters, with the names of GPT-2's and GPT-NeoX's published files."""
    for name, drop, settings in (
        ("llama", "rope_parameters", {"rope_theta": 100.0, "rope_scaling": LLAMA3}),
        ("neox", "rope_parameters", {"rotary_emb_base": 10_000, "rotary_pct": 0.25}),
        ("gpt2", "dtype", {"torch_dtype": "float32"}),
    ):
        folder, tokens_BT, wanted_BTV = original(name)
        older = changed(folder, tmp_path / name, **settings)
        described = json.loads((older / "config.json").read_text())
        del described[drop]
        (older / "config.json").write_text(json.dumps(described))
        tensors = load_file(older / "model.safetensors")
        tensors = {key.removeprefix("transformer."): tensor for key, tensor in tensors.items()}
        if name == "gpt2":
            tensors["h.0.attn.bias"] = np.tri(64, dtype=np.bool_)[None, None]
        if "lm_head.weight" in tensors and name == "neox":
            tensors["embed_out.weight"] = tensors.pop("lm_head.weight")
        save_file(tensors, older / "model.safetensors")
        np.testing.assert_allclose(logits(older, tokens_BT), wanted_BTV, rtol=TOLERANCE, atol=TOLERANCE)


# Without transformers: files written by hand.


def write(folder: Path, dtype: type = np.float32, **settings) -> Path:
    """A GPT-2 with random weights."""
    folder.mkdir(exist_ok=True)
    described = {"architectures": ["GPT2LMHeadModel"], **GPT2, **settings}
    (folder / "config.json").write_text(json.dumps(described))
    D = 32
    shapes = {"wte.weight": (V, D), "wpe.weight": (64, D), "ln_f.weight": (D,), "ln_f.bias": (D,)}
    for layer in range(2):
        for name, width_in, width_out in (
            ("attn.c_attn", D, 3 * D), ("attn.c_proj", D, D), ("mlp.c_fc", D, 4 * D), ("mlp.c_proj", 4 * D, D),
        ):  # fmt: skip
            shapes |= {
                f"h.{layer}.{name}.weight": (width_in, width_out),
                f"h.{layer}.{name}.bias": (width_out,),
            }
        for name in ("ln_1", "ln_2"):
            shapes |= {f"h.{layer}.{name}.weight": (D,), f"h.{layer}.{name}.bias": (D,)}
    rng = np.random.default_rng(0)
    tensors = {f"transformer.{name}": rng.normal(size=shape).astype(dtype) for name, shape in shapes.items()}
    save_file(tensors, folder / "model.safetensors")
    return folder


def test_weights_in_several_files_and_in_bfloat16(tmp_path) -> None:
    whole = write(tmp_path / "whole", ml_dtypes.bfloat16, torch_dtype="bfloat16")
    _, params, model, _ = huggingface.load(whole, mesh_of())
    assert model.dtype == "bfloat16"
    tensors = load_file(whole / "model.safetensors")
    assert np.array_equal(
        params["blocks"]["mlp"]["up"]["weight_LIO"][1],
        tensors["transformer.h.1.mlp.c_fc.weight"].astype(np.float32),
    )
    assert not np.any(params["table_VD"][V:])
    parts = tmp_path / "parts"
    parts.mkdir()
    shutil.copy(whole / "config.json", parts)
    weight_map = {name: f"model-{len(name) % 2}.safetensors" for name in tensors}
    for file in set(weight_map.values()):
        save_file({name: tensors[name] for name in tensors if weight_map[name] == file}, parts / file)
    (parts / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    _, again, _, _ = huggingface.load(parts, mesh_of(fsdp=4, tensor=2))
    jax.tree.map(np.testing.assert_array_equal, params, again)
    (parts / "model-1.safetensors").unlink()
    with pytest.raises(ValueError, match="model-1.safetensors is missing"):
        huggingface.load(parts, mesh_of())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"architectures": ["BertForMaskedLM"]},
            "architecture is BertForMaskedLM, and only LlamaForCausalLM, GPT2",
        ),
        ({"architectures": None}, "architecture is none"),
        ({"n_embd": None}, "d_model is None"),
        ({"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx is True"),
        ({"activation_function": "relu"}, "activation_function is relu, and only gelu, gelu_new"),
        ({"quantization_config": {"bits": 4}}, "weights are quantised"),
        ({"n_layer": 3}, r"lacks transformer\.h\.2\..* and 11 more tensors"),
        (
            {"n_layer": 1},
            r"has transformer\.h\.1\..* and 11 more tensors, which its config.json does not ask for",
        ),
        ({"n_positions": 32}, r"wpe\.weight .* has shape \(64, 32\), and its config.json says \(32, 32\)"),
        ({"tie_word_embeddings": False}, r"lacks lm_head\.weight"),
    ],
)
def test_what_cannot_be_loaded_is_named(tmp_path, settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        huggingface.load(write(tmp_path / "model", **settings), mesh_of())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"rope_parameters": {"rope_type": "yarn", "factor": 2.0}},
            "rope_type is yarn, and only default, linear",
        ),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "rope_type is dynamic"),
        ({"head_dim": 16}, "head_dim is 16, and only hidden_size / num_attention_heads, 8,"),
        ({"hidden_act": "gelu"}, "hidden_act is gelu, and only silu"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor is not 1"),
        ({"num_key_value_heads": 3}, "n_kv_heads is 3"),
    ],
)
def test_what_a_llama_cannot_be_is_named(tmp_path, settings: dict, message: str) -> None:
    described = {"architectures": ["LlamaForCausalLM"], **LLAMA, **settings}
    (tmp_path / "config.json").write_text(json.dumps(described))
    with pytest.raises(ValueError, match=message):
        huggingface.read_config(tmp_path)


def test_files_that_are_not_there_or_damaged_are_named(tmp_path) -> None:
    with pytest.raises(ValueError, match="has no config.json"):
        huggingface.load(tmp_path, mesh_of())
    for text, said in (('{"vocab_size": 3', "is not valid JSON"), ("[]", "holds no JSON object")):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(ValueError, match=r"config\.json " + said):
            huggingface.load(tmp_path, mesh_of())
    folder = write(tmp_path / "model")
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[:-5])
    with pytest.raises(ValueError, match=r"model\.safetensors is damaged"):
        huggingface.load(folder, mesh_of())
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"\.bin files are not read"):
        huggingface.load(folder, mesh_of())
