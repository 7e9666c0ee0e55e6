"""Documents as Parquet shards, one for each part of the corpus, written and read in bounded memory.

Row groups are bounded in bytes and in documents, and are what later steps hold at once. The counts of a
shard are in its own metadata, so that a shard that stands under its name says all there is to know of it.

Legend: M documents that were read, N documents that are kept, B of a row group.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from jaxprune.config import Corpus
from jaxprune.data import corpus
from jaxprune.progress import Meter

COLUMNS = pa.schema([(name, pa.string()) for name in ("id", "domain", "text", "source", "group")])
REMOVED_COLUMNS = pa.schema([(name, pa.string()) for name in ("id", "domain", "source", "reason")])
_GROUP_BYTES = 4_000_000  # of text
_GROUP_ROWS = 16_384
_SHOW_BYTES = 1_000_000  # of a part, after which the bar moves
_COUNTS = b"jaxprune"  # key of the counts in a shard's metadata


def write(
    part: corpus.Part,
    settings: Corpus,
    path: Path,
    removed_path: Path,
    bytes_before: Counter[str],
    bar: Meter,
) -> None:
    """Writes the documents of a part to `path`, and before that its defects to `removed_path`.

    A domain is full when its documents have reached `settings.max_domain_bytes`; what comes after is left
    out and counted; a part that is all of one domain is left unread from there.

    Args:
      part: what to read.
      settings: of the corpus.
      path, removed_path: Parquet files, which appear when they are whole.
      bytes_before: bytes of each domain in the parts before this one.
      bar: is told the part's bytes on disk as they are read, its size in all.
    """
    documents = _Shard(path, COLUMNS)
    removed = _Shard(removed_path, REMOVED_COLUMNS)
    counts = {name: Counter() for name in ("documents", "bytes", "over_cap", "unread")}
    cap = settings.max_domain_bytes
    progress = _Progress(part, bar)
    for item in corpus.read(part, settings, progress.consumed):
        progress.show(counts["documents"])
        if isinstance(item, corpus.Defect):
            removed.add((item.id, item.domain, item.source, item.reason), 0)
            continue
        if cap is not None and bytes_before[item.domain] + counts["bytes"][item.domain] >= cap:
            if part.domain:
                counts["unread"][part.domain] = 1
                break
            counts["over_cap"][item.domain] += 1
            continue
        n_bytes = len(item.text.encode())
        counts["documents"][item.domain] += 1
        counts["bytes"][item.domain] += n_bytes
        documents.add((item.id, item.domain, item.text, item.source, item.group), n_bytes)
    removed.close({})
    documents.close(counts)
    progress.finish(counts["documents"])


def counts(path: Path) -> dict[str, Counter[str]]:
    """Of a shard, by domain: documents and bytes of text in it, documents over_cap that were left out,
    and 1 for a part that was left unread from where its domain was full."""
    metadata = pq.read_metadata(path).metadata
    assert metadata is not None, path
    return {name: Counter(count) for name, count in json.loads(metadata[_COUNTS]).items()}


def groups(
    shards: Sequence[Path], columns: Sequence[str], kept_M: np.ndarray, start: int = 0
) -> Iterator[pa.Table]:
    """Columns of the documents that are kept, in corpus order, one row group at a time.

    Args:
      shards: what `write` wrote, in order.
      columns: to read.
      kept_M: bool [M], for each of all their documents.
      start: row groups to pass over.

    Yields:
      The kept rows of every row group, of which there may be none.
    """
    begin = group = 0
    for shard in shards:
        with pq.ParquetFile(shard) as file:
            for number in range(file.num_row_groups):
                end = begin + file.metadata.row_group(number).num_rows
                if group >= start:
                    yield file.read_row_group(number, list(columns)).filter(pa.array(kept_M[begin:end]))
                begin, group = end, group + 1


def sample(
    shards: Sequence[Path],
    kept_M: np.ndarray,
    usable_N: np.ndarray,
    available: Mapping[str, int],
    n_bytes: int,
) -> Iterator[str]:
    """At most `n_bytes` of text, evenly from the domains and from all over each of them.

    Args:
      shards, kept_M: see `groups`.
      usable_N: bool [N], which of the kept documents may be taken.
      available: bytes of text of each domain, at least those of its usable documents.
      n_bytes: of UTF-8.

    Yields:
      Texts; the last of a domain may be cut to fit.
    """
    budgets = even_budgets(available, n_bytes)
    seen, taken = Counter(), Counter()
    begin = 0
    for group in groups(shards, ["domain", "text"], kept_M):
        names, sizes = group["domain"].to_pylist(), text_bytes(group["text"]).tolist()
        for row in np.flatnonzero(usable_N[begin : begin + len(group)]).tolist():
            name = names[row]
            seen[name] += sizes[row]
            # What was taken keeps pace with what was seen, as the budget does with what is available.
            if taken[name] * available[name] < budgets[name] * seen[name]:
                text = group["text"][row].as_py().encode()
                yield text[: budgets[name] - taken[name]].decode(errors="ignore")
                taken[name] += sizes[row]
        begin += len(group)


def even_budgets(available: Mapping[str, int], total: int) -> dict[str, int]:
    """Shares `total` evenly; what a domain does not have goes to the others."""
    budgets = {}
    for n_done, name in enumerate(sorted(available, key=available.__getitem__)):
        budgets[name] = min(available[name], total // (len(available) - n_done))
        total -= budgets[name]
    return budgets


def text_bytes(texts: pa.ChunkedArray) -> np.ndarray:
    """Length of each text in UTF-8: int [B]."""
    return pc.call_function("binary_length", [texts]).to_numpy()


class _Progress:
    """Moves a bar along a part as it is read, never beyond its size, which it reaches in the end."""

    def __init__(self, part: corpus.Part, bar: Meter) -> None:
        self._part, self._bar = part, bar
        self._read = self._shown = 0  # bytes on disk

    def consumed(self, n_bytes: int) -> None:
        self._read = min(self._read + n_bytes, self._part.n_bytes)

    def show(self, n_documents: Counter[str]) -> None:
        if self._read - self._shown >= _SHOW_BYTES:
            self._move(n_documents)

    def finish(self, n_documents: Counter[str]) -> None:
        self._read = self._part.n_bytes
        self._move(n_documents)

    def _move(self, n_documents: Counter[str]) -> None:
        note = f"{self._part.name}: {n_documents.total():,} documents"
        self._bar.add((self._read - self._shown) / 1e6, note)
        self._shown = self._read


class _Shard:
    """A Parquet file in the making, under a temporary name until it is whole."""

    def __init__(self, path: Path, columns: pa.Schema) -> None:
        self._path, self._columns = path, columns
        self._temporary = path.with_name(path.name + ".tmp")
        self._writer = pq.ParquetWriter(self._temporary, columns, compression="zstd", use_dictionary=False)
        self._rows: list[tuple[str, ...]] = []
        self._bytes = 0

    def add(self, row: tuple[str, ...], n_bytes: int) -> None:
        self._rows.append(row)
        self._bytes += n_bytes
        if self._bytes >= _GROUP_BYTES or len(self._rows) == _GROUP_ROWS:
            self._flush()

    def close(self, counts: dict[str, Any]) -> None:
        if self._rows:
            self._flush()
        self._writer.add_key_value_metadata({_COUNTS.decode(): json.dumps(counts, sort_keys=True)})
        self._writer.close()
        self._temporary.replace(self._path)

    def _flush(self) -> None:
        columns = [pa.array(column, pa.string()) for column in zip(*self._rows, strict=True)]
        self._writer.write_table(pa.table(columns, schema=self._columns))
        self._rows, self._bytes = [], 0
