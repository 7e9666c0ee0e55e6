"""A token store with documents of many lengths and a tiny model that scores them, for tests."""

import json
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from flax import nnx

from jaxprune.config import Mesh, Model
from jaxprune.data.store import HELDOUT, REFERENCE, SPLITS, TRAIN, TokenStore
from jaxprune.model.sharding import make_mesh
from jaxprune.model.transformer import abstract
from jaxprune.progress import meter
from jaxprune.prune.score import Scorer
from jaxprune.prune.shards import Measure

VOCAB, EOD = 97, 0
CONTEXT = 100  # rows of 64 and of 100 tokens
MODEL = Model(d_model=32, n_layers=2, n_heads=4, context=CONTEXT, dtype="float32")
DOMAINS = ("a", "b", "c")


def write_store(folder: Path, documents: Sequence[np.ndarray]) -> TokenStore:
    """A store of these stored documents; every fifth is held out, every fourth of the rest is the reference's."""
    folder.mkdir(parents=True, exist_ok=True)
    number_N = np.arange(len(documents))
    length_N = np.array([len(document) for document in documents])
    split_N = np.where(number_N % 5 == 0, HELDOUT, np.where(number_N % 4 == 0, REFERENCE, TRAIN))
    np.concatenate(documents).astype(np.uint16).tofile(folder / "tokens")
    np.save(folder / "offsets.npy", np.concatenate([[0], np.cumsum(length_N)]).astype(np.int64))
    np.save(folder / "domain.npy", (number_N % 3).astype(np.uint16))
    np.save(folder / "split.npy", split_N.astype(np.uint8))
    np.save(folder / "n_bytes.npy", (3 * length_N).astype(np.int64))
    index = {
        "number": pa.array(number_N, pa.int64()),
        "id": [f"document {number}" for number in number_N],
        "domain": [DOMAINS[number % 3] for number in number_N],
        "split": [SPLITS[split] for split in split_N],
        "n_tokens": pa.array(length_N - 1, pa.int64()),
        "n_bytes": pa.array(3 * length_N, pa.int64()),
    }
    pq.write_table(pa.table(index), folder / "index.parquet")
    meta = {"vocab_size": VOCAB, "eod_id": EOD, "domains": DOMAINS, "dtype": "uint16"}
    (folder / "meta.json").write_text(json.dumps(meta))
    return TokenStore(folder)


def random_documents(n: int = 60, longest: int = 350) -> list[np.ndarray]:
    """EOD and 1 to `longest` tokens; the edges of windows and rows are among the lengths."""
    rng = np.random.default_rng(0)
    lengths = [1, 63, 64, 65, 99, 100, 101, 200, longest, *rng.integers(1, longest, n)][:n]
    return [np.concatenate([[EOD], rng.integers(1, VOCAB, length)]) for length in lengths]


def mesh_of(devices: int, **sizes: int) -> jax.sharding.Mesh:
    return make_mesh(Mesh(**sizes), jax.devices()[:devices])


def model_on(mesh: jax.sharding.Mesh) -> tuple[nnx.GraphDef, nnx.State]:
    """The same parameters on any mesh, large enough for scores to differ by much."""
    graphdef, shapes = abstract(MODEL, VOCAB, mesh)
    rng = np.random.default_rng(0)

    def value(path: tuple, leaf: jax.ShapeDtypeStruct) -> jax.Array:
        noise = 0.15 * rng.normal(size=leaf.shape)
        is_scale = "scale" in jax.tree_util.keystr(path)
        return jax.device_put((noise + is_scale).astype(leaf.dtype), leaf.sharding)

    return graphdef, jax.tree_util.tree_map_with_path(value, shapes)


def scorer_on(mesh: jax.sharding.Mesh, batch_tokens: int = 800) -> Scorer:
    return Scorer(*model_on(mesh), mesh, context=CONTEXT, batch_tokens=batch_tokens)


def measured_by(measure: Measure, store: TokenStore, numbers: np.ndarray | None = None) -> pa.Table:
    """The table of these documents, or of all; the meter is told of every token."""
    numbers = np.arange(store.n_documents) if numbers is None else numbers
    with meter("measure", None, "tokens") as progress:
        table = measure(store, numbers, progress)
    assert progress.done == (store.offsets_N1[numbers + 1] - store.offsets_N1[numbers] - 1).sum()
    return table
