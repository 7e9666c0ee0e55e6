"""One row a document, in Parquet files of so many documents each, made one after the other.

A file stands beside its checksum (in the format of `sha256sum`), so that a killed run goes on behind the
last file that is whole, and a damaged one is found and made again.

Legend: N documents of the store.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from jaxprune import artifact, cluster
from jaxprune.artifact import Manifest, StageError, write_json
from jaxprune.data.store import TokenStore
from jaxprune.progress import Meter, meter, say

Measure = Callable[[TokenStore, np.ndarray, Meter], pa.Table]
"""Measures documents (numbers, int64) of a store: a row each, in their order, with `number` among its
columns; tells the meter of the tokens that are done."""


def build(
    folder: Path,
    stage: str,
    settings: Mapping[str, Any],
    inputs: Mapping[str, str],
    *,
    store: TokenStore,
    numbers: np.ndarray,
    shard_documents: int,
    load: Callable[[Path], Measure],
    counts: Callable[[Path], dict[str, Any]],
    fault: str = "",
) -> Manifest:
    """Makes an artifact of shards, unless it is there already; then what was damaged since is repaired.

    Args:
      folder, stage, settings, inputs: as `artifact.build`.
      store, numbers, shard_documents, load, fault: as `fill`.
      counts: of a whole folder, for the manifest.
    """
    checked: list[Path] = []

    def make(folder: Path) -> dict[str, Any]:
        fill(folder, stage, store, numbers, shard_documents, load, fault)
        checked.append(folder)
        return cluster.alone(lambda: counts(folder))

    manifest = artifact.build(folder, stage, settings, inputs, make)
    if not checked:
        fill(folder, stage, store, numbers, shard_documents, load, fault)
    return manifest


def fill(
    folder: Path,
    title: str,
    store: TokenStore,
    numbers: np.ndarray,
    shard_documents: int,
    load: Callable[[Path], Measure],
    fault: str = "",
) -> None:
    """Fills `folder` with the shards that it misses, or whose checksum does not hold.

    Every process measures, and process 0 writes.

    Args:
      folder: `part-00000.parquet` in it holds the first `shard_documents` documents, and so on.
      title: of the stage, for messages.
      store, numbers: the documents to measure.
      shard_documents: of the call that begins; one that continues keeps to it.
      load: gives what measures them, and may keep in `folder` what took long to gather; called when there is
        something to measure.
      fault: what to do about a number that is not finite.

    Raises:
      ValueError: a document's number is not finite; nulls may be.
    """
    size, missing = cluster.alone(lambda: _missing(folder, title, len(numbers), shard_documents))
    if not missing:
        return
    shards = {_path(folder, part): numbers[part * size : (part + 1) * size] for part in missing}
    measure = load(folder)
    n_tokens_N = np.diff(store.offsets_N1) - 1
    total = int(n_tokens_N[numbers].sum())
    with meter(title, total, "tokens") as progress:
        progress.skip(total - sum(int(n_tokens_N[shard].sum()) for shard in shards.values()))
        for path, shard in shards.items():
            table = measure(store, shard, progress)
            check_finite(table, title, store, fault)
            if cluster.is_first():
                _write(path, table)


def check_present(folder: Path, command: str) -> None:
    """Whether a finished artifact still holds every document: by the footers of its files, which is quick.

    Raises:
      StageError: a shard was deleted or cut off; the message names `command`, which makes it again.
    """
    wanted = _manifest(folder).counts["documents"]
    found = 0
    for path in folder.glob("part-*.parquet"):
        try:
            found += pq.read_metadata(path).num_rows
        except pa.ArrowInvalid:
            raise _damaged(path, command) from None
    if found != wanted:
        raise StageError(
            f"{folder} holds {found:,} of its {wanted:,} documents: run `{command}`, which makes again what is missing"
        )


def check_whole(folder: Path, command: str) -> None:
    """Whether every byte of an artifact is as it was written.

    Raises:
      StageError: a shard is damaged; the message names `command`, which makes it again.
    """
    for path in sorted(folder.glob("part-*.parquet")):
        if not _is_whole(path):
            raise _damaged(path, command)


def check_finite(table: pa.Table, title: str, store: TokenStore, fault: str = "") -> None:
    """Raises ValueError: a number of a document is not finite; it names the document, and ends with `fault`."""
    for field in table.schema:
        if not pa.types.is_floating(field.type):
            continue
        is_wrong = pc.call_function("invert", [pc.call_function("is_finite", [table[field.name]])])
        wrong = table.filter(is_wrong)
        if len(wrong):
            [name] = store.ids(wrong["number"].to_numpy()[:1])
            raise ValueError(
                f"{title}: {field.name} of document {name} is {wrong[field.name][0]} (and of {len(wrong) - 1} others "
                f"not finite){fault and ': '}{fault}"
            )


def _manifest(folder: Path) -> Manifest:
    manifest = artifact.read_manifest(folder)
    assert manifest is not None, folder
    return manifest


def _damaged(path: Path, command: str) -> StageError:
    return StageError(f"{path} is damaged: run `{command}`, which makes it again")


def _missing(folder: Path, title: str, n_documents: int, shard_documents: int) -> tuple[int, list[int]]:
    """Documents of a shard, and the numbers of the shards that are missing or damaged."""
    plan = folder / "shards.json"
    if not plan.is_file():
        write_json(plan, {"shard_documents": shard_documents})
    size = json.loads(plan.read_text())["shard_documents"]
    missing = []
    for part in range(-(-n_documents // size)):
        path = _path(folder, part)
        if path.is_file() and _is_whole(path):
            continue
        if path.is_file():
            say(f"{title}: {path.name} is damaged and is made again")
        missing.append(part)
    return size, missing


def _path(folder: Path, part: int) -> Path:
    return folder / f"part-{part:05d}.parquet"


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
