"""Any model can be the scorer: its own tokens, its own windows, and what it stands for in a manifest."""

import json
import os
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx
from jax.sharding import NamedSharding
from safetensors.numpy import save_file
from scoring import mesh_of, model_on, write_store
from tokenizers import Tokenizer, decoders, pre_tokenizers, trainers
from tokenizers import models as bpe

from jaxprune import config
from jaxprune.artifact import Workdir, write_json
from jaxprune.data import tokenizer
from jaxprune.data.store import TokenStore
from jaxprune.model import huggingface
from jaxprune.model.sharding import ACT_BT, make_mesh
from jaxprune.progress import meter
from jaxprune.prune import models
from jaxprune.prune.score import Scorer

WORDS = [
    "the",
    "data",
    "model",
    "scores",
    "every",
    "document",
    "once",
    "and",
    "keeps",
    "what",
    "it",
    "finds",
    "surprising",
    "ünïcode\n\t",
]
CONTEXT = 24
MESH = config.Mesh(fsdp=8)


def texts(n: int) -> list[str]:
    rng = np.random.default_rng(0)
    return [" ".join(rng.choice(WORDS, rng.integers(1, 60))) for _ in range(n)] + [
        "<|endoftext|> spelt out",
        " ",
    ]


@pytest.fixture(scope="module")
def workdir(tmp_path_factory) -> Workdir:
    """A prepared corpus, whose tokenizer is trained on it."""
    workdir = Workdir(tmp_path_factory.mktemp("workdir"))
    tokenizer.train(texts(40), config.Tokenizer(vocab_size=330), workdir.prepare / "tokenizer")
    encoder = tokenizer.load(workdir.prepare / "tokenizer")
    write_store(
        workdir.prepare / "tokens",
        [np.concatenate([[encoder.eod_id], tokens]) for tokens in encoder.encode(texts(40))],
    )
    return workdir


def write_model(folder: Path, vocab_size: int = 400, seed: int = 0, **settings) -> Path:
    """A Llama in Hugging Face format with random weights and a byte-level BPE tokenizer of its own."""
    folder.mkdir()
    described = {"architectures": ["LlamaForCausalLM"], "vocab_size": vocab_size, "hidden_size": 32, "intermediate_size": 40,
                 "num_hidden_layers": 1, "num_attention_heads": 4, "max_position_embeddings": CONTEXT,
                 "tie_word_embeddings": True, **settings}  # fmt: skip
    write_json(folder / "config.json", described)
    D, F, layer = 32, 40, "model.layers.0"
    shapes = {f"{layer}.self_attn.{name}_proj.weight": (D, D) for name in "qkvo"}
    shapes |= {f"{layer}.mlp.{name}_proj.weight": (F, D) for name in ("gate", "up")}
    shapes |= {f"{layer}.mlp.down_proj.weight": (D, F), "model.embed_tokens.weight": (vocab_size, D)}
    rng = np.random.default_rng(seed)
    tensors = {name: (0.4 * rng.normal(size=shape)).astype(np.float32) for name, shape in shapes.items()}
    for name in ("model.norm", f"{layer}.input_layernorm", f"{layer}.post_attention_layernorm"):
        tensors[f"{name}.weight"] = rng.uniform(0.5, 1.5, D).astype(np.float32)
    save_file(tensors, folder / "model.safetensors")
    own = Tokenizer(bpe.BPE())
    own.pre_tokenizer, own.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<s>", "<|endoftext|>"],
        initial_alphabet=alphabet,
        show_progress=False,
    )
    own.train_from_iterator(texts(40), trainer)
    own.save(str(folder / "tokenizer.json"))
    write_json(
        folder / "tokenizer_config.json", {"bos_token": {"content": "<s>"}, "eos_token": "<|endoftext|>"}
    )
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return write_model(tmp_path_factory.mktemp("models") / "llama")


def settings(folder: Path | str, **score) -> config.Config:
    score = {"batch_tokens": 500, **score}
    return config.Config(name="x", mesh=MESH, score=config.Score(model=str(folder), **score))


def scores(settings: config.Config, workdir: Workdir, numbers=None):
    store = TokenStore(workdir.prepare / "tokens")
    numbers = np.arange(store.n_documents) if numbers is None else numbers
    with meter("score", None, "tokens") as progress:
        return Scorer.named(settings.score.model, settings, workdir)(store, numbers, progress), progress.done


def dense_nll(folder: Path, tokens: np.ndarray, context: int = CONTEXT) -> float:
    """Each window by itself, unpadded, with the softmax in float64."""
    mesh = make_mesh(config.Mesh(), jax.devices()[:1])
    graphdef, params, _, vocab_size = huggingface.load(folder, mesh)
    model = nnx.merge(graphdef, params)
    weight_DV = np.asarray(model.unembedding(), np.float64)[:, :vocab_size]
    total = 0.0
    for start in range(0, len(tokens) - 1, context):
        window = tokens[start : start + context + 1]
        with jax.set_mesh(mesh):
            tokens_BT = jax.device_put(window[None, :-1], NamedSharding(mesh, ACT_BT))
            logits_TV = np.asarray(model(tokens_BT), np.float64)[0] @ weight_DV
        total += (
            np.log(np.exp(logits_TV).sum(axis=1)) - logits_TV[np.arange(len(window) - 1), window[1:]]
        ).sum()
    return total


def test_a_model_scores_the_text_in_its_own_tokens(workdir, folder) -> None:
    table, done = scores(settings(folder), workdir)
    own = Tokenizer.from_file(str(folder / "tokenizer.json"))
    for number in (0, 3, 7):
        text = texts(40)[number]
        tokens = np.array([own.token_to_id("<s>"), *own.encode(text).ids], np.int32)
        row = table.slice(number, 1).to_pylist()[0]
        assert row["n_scored"] == len(tokens) - 1 != row["n_tokens"]
        assert len(row["nll_windows"]) == -(-row["n_scored"] // CONTEXT)
        assert row["nll_sum"] == pytest.approx(dense_nll(folder, tokens), rel=1e-5)
    assert done == sum(table["n_tokens"].to_pylist())  # the meter counts the store's


def test_the_literal_end_of_text_is_scored_as_text(workdir, folder) -> None:
    own = Tokenizer.from_file(str(folder / "tokenizer.json"))
    number = texts(40).index("<|endoftext|> spelt out")
    table, _ = scores(settings(folder), workdir, np.array([number]))
    special = len(own.encode("<|endoftext|> spelt out").ids)
    assert table["n_scored"][0].as_py() > special


def test_batch_mates_change_no_bit_of_a_translated_score(workdir, folder) -> None:
    together, _ = scores(settings(folder), workdir)
    order = np.random.default_rng(1).permutation(len(together))
    for part in np.array_split(order, 3):
        assert scores(settings(folder), workdir, part)[0].equals(together.take(part))


def test_shorter_windows(workdir, folder) -> None:
    table, _ = scores(settings(folder, context=10), workdir, np.array([3]))
    own = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokens = np.array([own.token_to_id("<s>"), *own.encode(texts(40)[3]).ids], np.int32)
    assert table["nll_sum"][0].as_py() == pytest.approx(dense_nll(folder, tokens, context=10), rel=1e-5)
    with pytest.raises(ValueError, match=f"score.context is 25: set {CONTEXT}, the context of the model"):
        scores(settings(folder, context=25), workdir)


def test_what_begins_a_text(folder, tmp_path) -> None:
    """bos by name, else eos by name, else the numbers of config.json."""
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    assert tokenizer.of_model(copy).eod_id == 0
    write_json(copy / "tokenizer_config.json", {"bos_token": None, "eos_token": "<|endoftext|>"})
    assert tokenizer.of_model(copy).eod_id == 1
    (copy / "tokenizer_config.json").unlink()
    with pytest.raises(ValueError, match="does not say which token begins or ends a text"):
        tokenizer.of_model(copy)
    described = json.loads((copy / "config.json").read_text())
    write_json(copy / "config.json", described | {"bos_token_id": None, "eos_token_id": [1, 5]})
    assert tokenizer.of_model(copy).eod_id == 1
    (copy / "tokenizer.json").unlink()
    with pytest.raises(ValueError, match=r"has no tokenizer\.json"):
        models.check(str(copy))


def test_a_tokenizer_of_another_model_is_an_error(workdir, tmp_path) -> None:
    folder = write_model(tmp_path / "small", vocab_size=100)
    with pytest.raises(ValueError, match="makes token .*, and the model knows 100"):
        scores(settings(folder), workdir)


def test_a_fingerprint_is_of_the_content(workdir, folder, tmp_path) -> None:
    def of(folder: Path, **score) -> str:
        return models.fingerprint(str(folder), settings(folder, **score), workdir)

    before = of(folder)
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    os.utime(copy / "model.safetensors", (1, 1))
    write_json(copy / "generation_config.json", {"temperature": 1})
    assert of(copy) == of(copy, dtype="float32") == before
    assert of(copy, dtype="bfloat16") != before
    weights = bytearray((copy / "model.safetensors").read_bytes())
    for place in (len(weights) // 3, len(weights) - 1):
        weights[place] ^= 1
        (copy / "model.safetensors").write_bytes(weights)
        assert of(copy) != before
        weights[place] ^= 1
    (copy / "model.safetensors").write_bytes(weights)
    assert of(copy) == before
    write_json(copy / "tokenizer_config.json", {"eos_token": "<|endoftext|>"})
    assert of(copy) != before
    assert of(write_model(tmp_path / "other", seed=1)) != before


def test_weights_are_read_once(folder, tmp_path, capsys) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    for count in (1, 0):
        models.fingerprint(str(copy), settings(copy), Workdir(tmp_path))
        assert capsys.readouterr().err.count("reading the weights of copy") == count
    os.utime(copy / "model.safetensors", (1, 1))
    models.fingerprint(str(copy), settings(copy), Workdir(tmp_path))
    assert "reading the weights of copy" in capsys.readouterr().err


def test_a_model_computes_in_the_type_of_its_weights_or_as_asked(folder, tmp_path) -> None:
    for stored, wanted in (("bfloat16", "bfloat16"), ("float16", "float32"), ("float32", "float32")):
        model = write_model(tmp_path / stored, torch_dtype=stored)
        assert models.settings(str(model), settings(model)).dtype == wanted
        for asked in ("float32", "bfloat16"):
            assert models.settings(str(model), settings(model, dtype=asked)).dtype == asked
    given = models.load(str(folder), settings(folder, dtype="bfloat16"), Workdir(tmp_path))
    assert nnx.merge(given.graphdef, given.params).model.dtype == "bfloat16"


def test_checking_a_model_leaves_the_threads_to_who_encodes(folder, monkeypatch) -> None:
    monkeypatch.delenv("RAYON_NUM_THREADS", raising=False)
    models.check(str(folder))
    tokenizer.of_model(folder).decode(np.array([5]))
    assert "RAYON_NUM_THREADS" not in os.environ
    tokenizer.of_model(folder, 3).encode(["text"])
    assert os.environ["RAYON_NUM_THREADS"] == "3"


def test_a_folder_of_another_stage_is_no_model(tmp_path) -> None:
    write_json(tmp_path / "manifest.json", {"stage": "prepare", "settings": {}})
    with pytest.raises(ValueError, match="holds no training run, but another stage"):
        models.check(str(tmp_path))


def test_a_model_that_is_not_there_is_an_error(tmp_path) -> None:
    models.check("reference")
    with pytest.raises(ValueError, match="there is no model gpt2: name reference or second, or a folder"):
        models.check("gpt2")
    with pytest.raises(ValueError, match=r"has no config\.json"):
        models.check(str(tmp_path))


def test_a_run_from_elsewhere_brings_its_tokenizer(workdir, tmp_path, monkeypatch) -> None:
    """With the store's tokenizer it reads the store's tokens; with another the texts are translated."""
    there = Workdir(tmp_path / "there")
    run = there.run("final-0")
    run.mkdir(parents=True)
    write_json(run / "manifest.json", {"stage": "train final-0", "settings": {"seed": 0}})
    model = dict(d_model=32, n_heads=4, n_layers=2, context=100)
    write_json(run / "model.json", {"model": model, "vocab_size": 400})
    with pytest.raises(ValueError, match="has no tokenizer at"):
        models.check(str(run))
    shutil.copytree(workdir.prepare / "tokenizer", there.prepare / "tokenizer")
    mesh = mesh_of(8)
    loaded = (*model_on(mesh), config.Model(**model), 400)
    monkeypatch.setattr(models, "load_params", lambda folder, mesh: loaded)
    assert models.load(str(run), settings(run), workdir).encoder is None
    shutil.rmtree(there.prepare)
    tokenizer.train(texts(40), config.Tokenizer(vocab_size=320), there.prepare / "tokenizer")
    encoder = models.load(str(run), settings(run), workdir).encoder
    assert encoder is not None and encoder.vocab_size == 320
