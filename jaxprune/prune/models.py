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
from jaxprune.train.checkpoint import load_params

TRAINED = ("reference", "second")
_BLOCKS, _BLOCK_BYTES = 64, 4096  # of a weight file, read for its fingerprint


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
        tokenizer.of_model(folder)


def fingerprint(name: str, workdir: Workdir) -> str:
    """Stands for the model in what is made with it.

    Of a Hugging Face folder, for its content wherever it lies: config and tokenizer whole, and of each weight
    file its name, its size and 64 blocks of 4 kB all over it, as other training moves every weight.

    Raises:
      ArtifactMissing: it is not trained yet.
      ValueError: as `check`.
    """
    if name in TRAINED:
        return require(workdir.run(name), f"jaxprune train CONFIG --only {name}").fingerprint
    folder = _folder(name)
    manifest = read_manifest(folder)
    if manifest is not None:
        return manifest.fingerprint
    huggingface.check_folder(folder)
    parts = {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.glob("*.json"))
    }
    return digest(parts | {path.name: _sampled(path) for path in huggingface.weights(folder)})


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
        graphdef, params, model, vocab_size = huggingface.load(_folder(name), mesh)
        encoder = tokenizer.of_model(_folder(name), config.tokenizer.threads)
    return Loaded(
        graphdef=graphdef,
        params=params,
        mesh=mesh,
        context=model.context,
        vocab_size=vocab_size,
        encoder=encoder,
    )


def shape(name: str, config: Config, store: TokenStore) -> tuple[Model, int]:
    """The settings of the model, and the size of its vocabulary.

    Raises:
      ValueError: as `check`.
    """
    if name in TRAINED:
        return getattr(config, name).model, store.vocab_size
    folder = _folder(name)
    if _is_run(folder):
        made = json.loads((folder / "model.json").read_text())
        return Model(**made["model"]), made["vocab_size"]
    return huggingface.read_config(folder)


def _folder(name: str) -> Path:
    folder = Path(name).expanduser()
    if not folder.is_dir():
        raise ValueError(
            f"there is no model {name}: name {' or '.join(TRAINED)}, or a folder that holds a finished training "
            "run or a model in Hugging Face format"
        )
    return folder


def _is_run(folder: Path) -> bool:
    return read_manifest(folder) is not None


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


def _sampled(path: Path) -> str:
    size = path.stat().st_size
    sampled = hashlib.sha256(str(size).encode())
    with path.open("rb") as file:
        for block in range(_BLOCKS):
            file.seek(max(size - _BLOCK_BYTES, 0) * block // (_BLOCKS - 1))
            sampled.update(file.read(_BLOCK_BYTES))
    return sampled.hexdigest()
