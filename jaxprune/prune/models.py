"""The models that documents are scored by: trained here, a finished run elsewhere, or in Hugging Face format.

A setting such as `score.model` names one: `reference`, `second`, or a folder. A model from elsewhere brings
its tokenizer: that of a Hugging Face model is the tokenizer.json beside its weights, that of a run is in
the working directory that the run is part of.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import jax
from flax import nnx

from jaxprune.artifact import Workdir, digest, read_manifest, require
from jaxprune.config import Config, Model
from jaxprune.data import tokenizer
from jaxprune.data.store import TokenStore
from jaxprune.data.tokenizer import Encoder
from jaxprune.model import huggingface
from jaxprune.model.sharding import make_mesh
from jaxprune.prune import contents
from jaxprune.train.checkpoint import load_params

TRAINED = ("reference", "second")


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """A model on a mesh."""

    graphdef: nnx.GraphDef
    params: nnx.State
    mesh: jax.sharding.Mesh
    context: int
    vocab_size: int
    encoder: Encoder | None  # the model's own tokenizer; None: it reads the tokens of the store


def check(name: str) -> None:
    """Asked before anything is made: can a model of this name be loaded, as far as its folder tells?

    Raises:
      ValueError: it is not trained here, and no folder of a model of a kind that can be loaded.
    """
    if name in TRAINED:
        return
    folder = _folder(name)
    if _is_run(folder):
        _tokenizer_of_run(folder)
    else:
        huggingface.check_folder(folder)
        tokenizer.meta_of_model(folder)


def fault(name: str) -> str:
    """What to do where numbers that the model gives are not finite."""
    if name in TRAINED:
        return f"the training of {name} has diverged, lower {name}.optimizer.peak_lr and train it again"
    return f"the model {name} computes what is no number, compare its files with their source"


def fingerprint(name: str, config: Config, workdir: Workdir) -> str:
    """Stands for the model in what is made with it.

    Of a Hugging Face folder, for the content of its config, tokenizer and weights wherever they lie, and the type
    that it computes in.

    Raises:
      ArtifactMissing: it is not trained yet.
      ValueError: as `check`.
    """
    if name in TRAINED:
        return require(workdir.run(name), f"jaxprune train CONFIG --only {name}").fingerprint
    folder = _folder(name)
    if _is_run(folder):
        return require(folder, "jaxprune train CONFIG").fingerprint
    huggingface.check_folder(folder)
    described = [folder / "config.json", folder / "tokenizer.json", folder / "tokenizer_config.json"]
    described += sorted(folder.glob("*.index.json"))
    parts = {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in described if p.is_file()}
    model, _ = huggingface.read_config(folder, config.score.dtype)
    parts |= contents.hashes(huggingface.weights(folder), f"reading the weights of {folder.name}", workdir)
    return digest(parts | {"dtype": model.dtype})


def tokenizer_digest(name: str, workdir: Workdir) -> str:
    """Stands for the content of the tokenizer whose tokens the model reads."""
    if name in TRAINED:
        return tokenizer.read_meta(workdir.prepare / "tokenizer")["digest"]
    folder = _folder(name)
    if _is_run(folder):
        return tokenizer.read_meta(_tokenizer_of_run(folder))["digest"]
    return hashlib.sha256((folder / "tokenizer.json").read_bytes()).hexdigest()[:16]


def load(name: str, config: Config, workdir: Workdir) -> Loaded:
    """The model, on the mesh of `config`.

    Raises:
      ValueError: as `check`, or the model does not divide over the mesh.
      StageError: a checkpoint is damaged.
    """
    mesh = make_mesh(config.mesh)
    if name in TRAINED or _is_run(_folder(name)):
        run = workdir.run(name) if name in TRAINED else _folder(name)
        graphdef, params, model, vocab_size = load_params(run, mesh)
        encoder = None if name in TRAINED else _unless_same(_tokenizer_of_run(run), workdir, config)
    else:
        graphdef, params, model, vocab_size = huggingface.load(_folder(name), mesh, config.score.dtype)
        encoder = tokenizer.of_model(_folder(name), config.tokenizer.threads)
    return Loaded(
        graphdef=graphdef,
        params=params,
        mesh=mesh,
        context=model.context,
        vocab_size=vocab_size,
        encoder=encoder,
    )


def settings(name: str, config: Config) -> Model:
    """The settings of the model, which may not be trained yet.

    Raises:
      ValueError: as `check`.
    """
    return getattr(config, name).model if name in TRAINED else _described(name, config)[0]


def shape(name: str, config: Config, store: TokenStore) -> tuple[Model, int]:
    """The settings of the model, and the size of its vocabulary.

    Raises:
      ValueError: as `check`.
    """
    return (settings(name, config), store.vocab_size) if name in TRAINED else _described(name, config)


def _described(name: str, config: Config) -> tuple[Model, int]:
    folder = _folder(name)
    if _is_run(folder):
        made = json.loads((folder / "model.json").read_text())
        return Model(**made["model"]), made["vocab_size"]
    return huggingface.read_config(folder, config.score.dtype)


def _folder(name: str) -> Path:
    folder = Path(name).expanduser()
    if not folder.is_dir():
        raise ValueError(
            f"there is no model {name}: name {' or '.join(TRAINED)}, or a folder that holds a finished training "
            "run or a model in Hugging Face format"
        )
    if (folder / "train").is_dir():
        raise ValueError(
            f"{name} holds the runs of a config: name one of them, such as {folder / 'train' / 'reference'}"
        )
    return folder


def _is_run(folder: Path) -> bool:
    if read_manifest(folder) is None:
        return False
    if not (folder / "model.json").is_file():
        raise ValueError(
            f"{folder} holds no training run, but another stage of jaxprune: name a folder inside its `train`"
        )
    return True


def _tokenizer_of_run(run: Path) -> Path:
    folder = run.resolve().parent.parent / "prepare" / "tokenizer"
    if not (folder / "meta.json").is_file():
        raise ValueError(
            f"the model {run} has no tokenizer at {folder}: name a run inside the working directory that it was "
            "trained in"
        )
    return folder


def _unless_same(folder: Path, workdir: Workdir, config: Config) -> Encoder | None:
    here = workdir.prepare / "tokenizer"
    if tokenizer.read_meta(folder)["digest"] == tokenizer.read_meta(here)["digest"]:
        return None
    return tokenizer.load(folder, config.tokenizer.threads)
