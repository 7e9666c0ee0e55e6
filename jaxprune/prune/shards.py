"""One row a document, in Parquet files of so many documents each, made one after the other.

A file stands beside its checksum (in the format of `sha256sum`), so that a killed run goes on behind the
last file that is whole, and a damaged one is found and made again.

Legend: N documents of the store.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from jaxprune.artifact import write_json
from jaxprune.data.store import TokenStore
from jaxprune.progress import Meter, meter, say

Measure = Callable[[TokenStore, np.ndarray, Meter], pa.Table]
"""Measures documents (numbers, int64) of a store: a row each, in their order, with `number` among its
columns; tells the meter of the tokens that are done."""


def fill(
    folder: Path,
    title: str,
    store: TokenStore,
    numbers: np.ndarray,
    shard_documents: int,
    load: Callable[[], Measure],
) -> None:
    """Fills `folder` with the shards that it misses, or whose checksum does not hold.

    Args:
      folder: `part-00000.parquet` in it holds the first `shard_documents` documents, and so on.
      title: of the stage, for messages.
      store, numbers: the documents to measure.
      shard_documents: of the call that begins; one that continues keeps to it.
      load: gives what measures them; called when there is something to measure.
    """
    plan = folder / "shards.json"
    if not plan.is_file():
        write_json(plan, {"shard_documents": shard_documents})
    size = json.loads(plan.read_text())["shard_documents"]
    missing = {}
    for start in range(0, len(numbers), size):
        path = folder / f"part-{start // size:05d}.parquet"
        if path.is_file() and _is_whole(path):
            continue
        if path.is_file():
            say(f"{title}: {path.name} is damaged and is made again")
        missing[path] = numbers[start : start + size]
    if not missing:
        return
    measure = load()
    n_tokens_N = np.diff(store.offsets_N1) - 1
    total = int(n_tokens_N[numbers].sum())
    with meter(title, total, "tokens") as progress:
        progress.skip(total - sum(int(n_tokens_N[shard].sum()) for shard in missing.values()))
        for path, shard in missing.items():
            _write(path, measure(store, shard, progress))


def _write(path: Path, table: pa.Table) -> None:
    """The checksum is there before the file has its name: a file with its name is whole."""
    temporary = path.with_name(path.name + ".tmp")
    pq.write_table(table, temporary)
    with temporary.open("rb") as file:
        os.fsync(file.fileno())
    _sidecar(path).write_text(_checksum(temporary, path.name))
    temporary.replace(path)


def _is_whole(path: Path) -> bool:
    sidecar = _sidecar(path)
    return sidecar.is_file() and sidecar.read_text() == _checksum(path, path.name)


def _sidecar(path: Path) -> Path:
    return path.with_name(path.name + ".sha256")


def _checksum(path: Path, name: str) -> str:
    with path.open("rb") as file:
        return f"{hashlib.file_digest(file, 'sha256').hexdigest()}  {name}\n"
