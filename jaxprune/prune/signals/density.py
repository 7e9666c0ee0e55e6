"""Density: how many documents are near a document in a space of embeddings.

Source: Sachdeva et al., How to Train Data-Efficient LLMs (arXiv 2402.09668), DENSITY,
algorithm 2; its sketch is that of Coleman & Shrivastava (arXiv 1912.02283), its hashes those of Datar et al.
(2004). With R hash functions h_r into B buckets, a first pass over all documents x counts S[r, h_r(x)] += 1
and a second gives each the score mean_r S[r, h_r(x)], which estimates the kernel density sum_y k(|x - y|).
Stored is its natural logarithm: that of a number of documents, at least 0, for a document counts itself.

A hash function maps x to the cells floor(a x / w + b) of `projections` random directions a (standard normal)
at once, w the bandwidth and b uniform in [0, 1), and these to a bucket. So k(c) = p(c)^projections with
p(c) = 1 - 2 Phi(-w / c) - 2 c / (sqrt(2 pi) w) (1 - exp(-w^2 / (2 c^2))), plus (1 - k) / B where different
cells share a bucket.

Algorithm 2 prints the probability of keeping a document as its share of the scores; the theorem and the text
say the inverse, for a sample that covers the space evenly. The inverse it is: select.criterion "proportional"
with select.temperature -1.

Embeddings have length 1: given ones, or hashed features of the tokens (`hashed`).

A score is bitwise the same whatever it is computed with: coordinates are rounded to a grid on which the
products of a projection add up exactly in float64, in any order.

Legend: N documents, B documents of a block, D dimensions, R hash functions, C buckets.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from jaxprune.artifact import Workdir
from jaxprune.config import Density
from jaxprune.data.store import TRAIN, TokenStore
from jaxprune.progress import Meter, meter
from jaxprune.prune import contents
from jaxprune.prune.shards import Measure
from jaxprune.prune.signals import hashed

_SEED = 0  # of the random directions
_COUNTED = 4_096  # documents that are counted at once, about
_GRID = 2.0**16  # steps of a coordinate; a product of two has 35 bits, so a sum of 2^18 of them has 53


def load(settings: Density, store: TokenStore) -> Measure:
    """Counts the documents that may be pruned, and gives what measures the density around documents.

    The table that it returns holds number and density (log of a number of documents, float64).

    Raises:
      ValueError: settings.embeddings do not fit the documents.
    """
    train_N = store.documents(TRAIN)
    if settings.embeddings is None:
        embed, n_dimensions = hashed.embedder(store, settings.dimensions), settings.dimensions
    else:
        embed, n_dimensions = _given(Path(settings.embeddings), store)
    hashes = _Hashes(settings, n_dimensions)
    counter_RC = np.zeros((settings.rows, settings.buckets), np.int32)
    with meter("density: counting", len(train_N), "documents") as progress:
        for bucket_BR in _together(embed(train_N), hashes):
            for counter_C, bucket_B in zip(counter_RC, bucket_BR.T, strict=True):
                counter_C += np.bincount(bucket_B, minlength=settings.buckets)
            progress.add(len(bucket_BR))
    row_R = np.arange(settings.rows)

    def measure(store: TokenStore, numbers: np.ndarray, progress: Meter) -> pa.Table:
        score_N = []
        for number_B, x_BD in embed(numbers):
            score_N.append(counter_RC[row_R, hashes(x_BD)].sum(axis=1, dtype=np.int64) / settings.rows)
            progress.add(int((store.offsets_N1[number_B + 1] - store.offsets_N1[number_B] - 1).sum()))
        return pa.table({"number": numbers, "density": np.log(np.concatenate([*score_N, np.zeros(0)]))})

    return measure


def inputs(settings: Density, workdir: Workdir) -> dict[str, str]:
    """A hash of the embeddings that are given.

    Raises:
      ValueError: as `check_file`.
    """
    check_file(settings)
    if settings.embeddings is None:
        return {}
    path = Path(settings.embeddings)
    return {"embeddings": contents.hashes([path], f"reading {path.name}", workdir)[path.name]}


def check_file(settings: Density) -> None:
    """Raises ValueError unless embeddings, if they are given, are in a file of a kind that can be read."""
    if settings.embeddings is None:
        return
    path = Path(settings.embeddings)
    if not path.is_file() or path.suffix not in (".npy", ".parquet"):
        raise ValueError(
            f"score.density.embeddings is {path}, which is no .npy or .parquet file: name one, or leave it "
            "out to hash the tokens"
        )


class _Hashes:
    """R hash functions that map near points to the same counter more often than distant ones."""

    def __init__(self, settings: Density, n_dimensions: int) -> None:
        random = np.random.default_rng(_SEED)
        shape = (settings.projections, n_dimensions, settings.rows)
        self._direction_KDR = _on_grid(random.standard_normal(shape))
        self._shift_KR = random.random((settings.projections, settings.rows))
        self._factor_KR = random.integers(2**63, size=self._shift_KR.shape, dtype=np.uint64) * 2 + 1
        self._buckets, self._bandwidth = np.uint64(settings.buckets), settings.bandwidth

    def __call__(self, x_BD: np.ndarray) -> np.ndarray:
        """The bucket of each point under each function: int64, [B, R]."""
        x_BD = _on_grid(x_BD)
        hash_BR = np.zeros((len(x_BD), self._shift_KR.shape[1]), np.uint64)
        for direction_DR, shift_R, factor_R in zip(
            self._direction_KDR, self._shift_KR, self._factor_KR, strict=True
        ):
            cell_BR = np.floor((x_BD @ direction_DR) / self._bandwidth + shift_R)
            hash_BR += cell_BR.astype(np.int64).view(np.uint64) * factor_R
        return ((hash_BR >> np.uint64(32)) % self._buckets).astype(np.int64)


def _together(embedded: Iterable[tuple[np.ndarray, np.ndarray]], hashes: _Hashes) -> Iterator[np.ndarray]:
    """Buckets [B, R] of embedded documents, of many at once: counting costs a pass over all counters."""
    waiting: list[np.ndarray] = []
    for _, x_BD in embedded:
        waiting.append(hashes(x_BD))
        if sum(map(len, waiting)) >= _COUNTED:
            yield np.concatenate(waiting)
            waiting = []
    if waiting:
        yield np.concatenate(waiting)


def _on_grid(value: np.ndarray) -> np.ndarray:
    return np.round(value * _GRID) / _GRID


def _given(path: Path, store: TokenStore) -> tuple[hashed.Embed, int]:
    """Embeddings that were made elsewhere, and their width."""
    train_N = store.documents(TRAIN)
    if path.suffix == ".npy":
        x_ND, row_N = np.load(path, mmap_mode="r"), np.arange(len(train_N))
        if x_ND.ndim != 2 or len(x_ND) != len(train_N):
            raise ValueError(
                f"{path} holds an array of shape {x_ND.shape}: give one embedding for each of the "
                f"{len(train_N)} documents that may be pruned, in the order of the store"
            )
    else:
        x_ND, row_N = _read_parquet(path, store.ids(train_N))

    def embed(numbers: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for begin in range(0, len(numbers), hashed.DOCUMENTS):
            number_B = numbers[begin : begin + hashed.DOCUMENTS]
            x_BD = np.asarray(x_ND[row_N[np.searchsorted(train_N, number_B)]], np.float64, order="C")
            length_B = np.sqrt(np.square(x_BD).sum(axis=1, keepdims=True))
            if not np.isfinite(length_B).all():
                raise ValueError(f"{path} holds an embedding that is not finite: leave out what makes it so")
            yield number_B, x_BD / np.where(length_B > 0, length_B, 1.0)

    return embed, x_ND.shape[1]


def _read_parquet(path: Path, ids: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """The vectors of a file, [N, D], and the row of each id."""
    columns = pq.read_schema(path).names
    if not {"id", "vector"} <= {*columns}:
        raise ValueError(f"{path} has the columns {', '.join(columns)}: give it the columns id and vector")
    table = pq.read_table(path, columns=["id", "vector"])
    row_of = {name: row for row, name in enumerate(table["id"].to_pylist())}
    if len(row_of) < len(table):
        name, count = Counter(table["id"].to_pylist()).most_common(1)[0]
        raise ValueError(f"{path} holds {count} embeddings of document {name}: give one for each")
    missing = [name for name in ids if name not in row_of]
    if missing:
        raise ValueError(
            f"{path} lacks the embeddings of {len(missing)} of {len(ids)} documents, such as {missing[0]}: "
            "give one for each document that may be pruned"
        )
    vectors = table["vector"].combine_chunks()
    x = np.asarray(vectors.flatten())
    n_dimensions = len(x) // len(vectors)
    if {n_dimensions} != set(vectors.value_lengths().to_pylist()):
        raise ValueError(f"{path} holds vectors of different lengths: give all of them the same")
    return x.reshape(-1, n_dimensions), np.array([row_of[name] for name in ids])
