"""A model in a local Hugging Face folder, as our transformer: Llama, GPT-2 and GPT-NeoX.

The folder holds `config.json` and the weights as safetensors, in one file or in several with an index. What
would not give the logits of the original is refused, in one line that names the setting or the tensor. Each
device's part of a parameter is read by itself and put where it belongs, so that the host holds one of our
(stacked) parameters at most beside the model.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
from flax import nnx

from jaxprune.config import Model, check
from jaxprune.model import transformer
from jaxprune.model.families import FAMILIES, Described, Family, Source

_BUFFERS = (
    ".attn.bias",
    ".attn.masked_bias",
    ".attention.bias",
    ".attention.masked_bias",
    ".rotary_emb.inv_freq",
)
_HEADS = {"lm_head.weight": "lm_head.weight", "embed_out.weight": "lm_head.weight"}  # the output projection
DType = Literal["auto", "float32", "bfloat16"]
_FLOATS = ("BF16", "F16", "F32", "F64")


class Checkpoint:
    """The tensors of a folder, by name."""

    def __init__(self, folder: Path, prefix: str) -> None:
        """Opens the files of the folder, without reading the tensors.

        Raises:
          ValueError: there are no safetensors, or a file is missing or damaged.
        """
        safe_open, damaged = _safetensors()
        self.folder = folder
        tensors: dict[str, tuple[Any, str]] = {}
        for path in weights(folder):
            try:
                file = safe_open(path, framework="numpy")
            except FileNotFoundError:
                raise ValueError(f"{path} is missing, which the index names: copy the model again") from None
            except damaged as error:
                raise ValueError(f"{path} is damaged ({error}): copy the model again") from None
            names = file.keys()  # it has no iterator
            tensors.update({name: (file, name) for name in names})
        if not any(name.startswith(prefix) for name in tensors):
            tensors = {name if name in _HEADS else prefix + name: place for name, place in tensors.items()}
        self._tensors = {_HEADS.get(name, name): place for name, place in tensors.items()}

    def __contains__(self, name: str) -> bool:
        return name in self._tensors

    def __getitem__(self, name: str) -> Any:
        """A tensor, which is read where it is sliced."""
        file, name = self._tensors[name]
        return file.get_slice(name)

    def check(self, wanted: Mapping[str, tuple[int, ...]]) -> None:
        """Raises ValueError unless these are the tensors and shapes that are there, but for buffers."""
        missing = [name for name in wanted if name not in self._tensors]
        check(
            not missing,
            f"{self.folder} lacks {_some(missing)}, which its config.json asks for: copy the model again",
        )
        further = [name for name in self._tensors if name not in wanted and not name.endswith(_BUFFERS)]
        check(
            not further,
            f"{self.folder} has {_some(further)}, which its config.json does not ask for: give the model as its "
            "architecture saves it, without adapters or quantisation",
        )
        for name, shape in wanted.items():
            tensor = self[name]
            found, dtype = tuple(tensor.get_shape()), tensor.get_dtype()
            check(
                found == shape,
                f"{name} in {self.folder} has shape {found}, and its config.json says {shape}: copy the model again",
            )
            check(
                dtype in _FLOATS,
                f"{name} in {self.folder} is stored as {dtype}: give weights in one of {', '.join(_FLOATS)}",
            )


def read_config(folder: Path, dtype: DType = "auto") -> tuple[Model, int]:
    """The model that `config.json` describes, and its vocabulary size.

    Args:
      folder: of the model.
      dtype: of the computation; auto: bfloat16 where config.json says that the weights are stored so, else
        float32, which holds what the other types do.

    Raises:
      ValueError: there is none, or it asks for something that our transformer does not do.
    """
    described, family = _described(folder)
    stored = described.get("dtype") or described.get("torch_dtype")
    if dtype == "auto":
        dtype = "bfloat16" if stored == "bfloat16" else "float32"
    try:
        check(
            not described.get("quantization_config"),
            "the weights are quantised: give the folder of the model before that",
        )
        return Model(dtype=dtype, **family.settings(described)), described["vocab_size"]
    except KeyError as error:
        raise ValueError(f"{folder / 'config.json'} does not say {error}: copy the model again") from None
    except ValueError as error:
        raise ValueError(f"{folder / 'config.json'}: {error}") from None


def check_folder(folder: Path) -> None:
    """Raises ValueError unless `load` can read the folder; reads no tensor."""
    _open(folder, *read_config(folder))


def load(
    folder: Path, mesh: jax.sharding.Mesh, dtype: DType = "auto"
) -> tuple[nnx.GraphDef, nnx.State, Model, int]:
    """The model of a folder on a mesh; its parameters are float32, whatever they are stored as.

    Returns:
      (graphdef, params, model config, vocabulary size).

    Raises:
      ValueError: as `read_config`; the tensors cannot be read or are not those that config.json describes;
        the model does not divide over the mesh.
    """
    model, vocab_size = read_config(folder, dtype)
    sources, checkpoint = _open(folder, model, vocab_size)
    graphdef, shapes = transformer.abstract(model, vocab_size, mesh)

    def read(path: tuple[Any, ...], leaf: jax.ShapeDtypeStruct) -> jax.Array:
        source = sources.pop(jax.tree_util.keystr(path, simple=True, separator="."))

        def part(index: tuple[slice, ...] | None) -> np.ndarray:
            assert index is not None
            bounds = [slice(*cut.indices(size)) for cut, size in zip(index, leaf.shape, strict=True)]
            return _part(checkpoint, source, tuple(bounds))

        return jax.make_array_from_callback(leaf.shape, leaf.sharding, part)

    params = jax.tree_util.tree_map_with_path(read, shapes)
    assert not sources, sources
    return graphdef, params, model, vocab_size


def _open(folder: Path, model: Model, vocab_size: int) -> tuple[dict[str, Source], Checkpoint]:
    _, family = _described(folder)
    sources, checkpoint = family.sources(model, vocab_size), Checkpoint(folder, family.prefix)
    wanted = {
        source.name.format(layer=layer): source.shape
        for source in sources.values()
        for layer in range(model.n_layers)
    }
    if model.tie_embeddings and "lm_head.weight" in checkpoint:
        wanted["lm_head.weight"] = (vocab_size, model.d_model)  # a copy, which tying passes over
    checkpoint.check(wanted)
    return sources, checkpoint


def _described(folder: Path) -> tuple[Described, Family]:
    path = folder / "config.json"
    check(path.is_file(), f"{folder} has no config.json: name the folder of a model in Hugging Face format")
    described = _json(path)
    names = described.get("architectures") or ["none"]
    check(
        names[0] in FAMILIES,
        f"{path}: the architecture is {names[0]}, and only {', '.join(FAMILIES)} can be loaded",
    )
    return described, FAMILIES[names[0]]


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text())
    except ValueError as error:  # of the text's encoding too
        raise ValueError(f"{path} is not valid JSON ({error}): copy the model again") from None
    check(isinstance(found, dict), f"{path} holds no JSON object: copy the model again")
    return found


def weights(folder: Path) -> list[Path]:
    """The weight files of a folder, which need not all be there.

    Raises:
      ValueError: there are no safetensors.
    """
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        return [folder / name for name in sorted(set(_json(index)["weight_map"].values()))]
    if (folder / "model.safetensors").is_file():
        return [folder / "model.safetensors"]
    pickled = any(folder.glob("*.bin"))
    raise ValueError(
        f"{folder} has no model.safetensors"
        + (", and .bin files are not read, because they can run any code" if pickled else "")
        + ": save the model again with safetensors"
    )


def _safetensors() -> tuple[Callable[..., Any], type[Exception]]:
    try:
        from safetensors import SafetensorError, safe_open
    except ModuleNotFoundError:
        raise ValueError(
            "a Hugging Face model needs the safetensors library: pip install 'jaxprune[huggingface]'"
        ) from None
    return safe_open, SafetensorError


def _some(names: list[str]) -> str:
    return "".join(names[:1]) + (f" and {len(names) - 1} more tensors" if len(names) > 1 else "")


def _part(checkpoint: Checkpoint, source: Source, bounds: tuple[slice, ...]) -> np.ndarray:
    """One device's part of a parameter, float32."""
    part = np.zeros([bound.stop - bound.start for bound in bounds], np.float32)
    if "{layer}" in source.name:
        for place, layer in enumerate(range(bounds[0].start, bounds[0].stop)):
            part[place] = source.read(checkpoint[source.name.format(layer=layer)], bounds[1:])
    else:
        found = source.read(checkpoint[source.name], bounds)
        part[tuple(slice(size) for size in found.shape)] = found  # the rest pads the vocabulary
    return part
