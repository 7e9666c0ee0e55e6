"""The token store: every document's tokens in one memory map, found by number.

A stored document is the end-of-document token (EOD) followed by its text tokens, so that `stored[:-1]`
are inputs and `stored[1:]` targets, the first token of the text is predicted, and documents laid end to
end are separated.

Legend: B documents of a batch, K domains, N documents.
"""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from jaxprune.artifact import write_json
from jaxprune.data.split import HELDOUT, REFERENCE, SPLITS, TRAIN

__all__ = ["HELDOUT", "REFERENCE", "SPLITS", "TRAIN", "TokenStore", "Writer"]

_CHUNK = 1 << 20  # documents of an array that are looked at together
_COMMIT_BYTES = 64_000_000  # of tokens, which a killed writer does again at most
_INDEX_ROWS = 1 << 17  # of a row group of the index, about
_INDEX = pa.schema(
    [
        ("number", pa.int64()),
        ("id", pa.string()),
        ("domain", pa.string()),
        ("split", pa.string()),
        ("n_tokens", pa.int64()),
        ("n_bytes", pa.int64()),
    ]
)


class TokenStore:
    """Documents 0..N-1 of a finished store, memory mapped; pickles as its folder.

    Attributes:
      folder: where it stands.
      vocab_size, eod_id: of its tokenizer.
      domains: names of the domains, sorted.
      tokens: uint16 or uint32, the stored documents end to end.
      offsets_N1: int64 [N+1], where each document begins in `tokens`.
      domain_N: uint16 [N], position in `domains`.
      split_N: uint8 [N], HELDOUT, REFERENCE or TRAIN.
      n_bytes_N: int64 [N], UTF-8 bytes of the text.
    """

    def __init__(self, folder: Path) -> None:
        """Opens the store in `folder`.

        Raises:
          ValueError: there is none, or it is damaged.
        """
        self.folder = Path(folder)
        if not (self.folder / "meta.json").is_file():
            raise ValueError(f"{folder} holds no token store: run `jaxprune prepare` first")
        meta = json.loads((self.folder / "meta.json").read_text())
        self.vocab_size: int = meta["vocab_size"]
        self.eod_id: int = meta["eod_id"]
        self.domains: tuple[str, ...] = tuple(meta["domains"])
        self.offsets_N1 = _map(self.folder / "offsets.npy")
        self.domain_N = _map(self.folder / "domain.npy")
        self.split_N = _map(self.folder / "split.npy")
        self.n_bytes_N = _map(self.folder / "n_bytes.npy")
        # A plain array over the map: slices of np.memmap itself cost several times more.
        self.tokens = np.asarray(np.memmap(self.folder / "tokens", dtype=meta["dtype"], mode="r"))
        if len(self.tokens) != self.offsets_N1[-1]:
            raise ValueError(
                f"{self.folder / 'tokens'} holds {len(self.tokens):,} tokens where offsets.npy says "
                f"{self.offsets_N1[-1]:,}: the copy is damaged, delete the folder and run `jaxprune prepare`"
            )

    def __reduce__(self) -> tuple[type[TokenStore], tuple[Path]]:
        return TokenStore, (self.folder,)

    @property
    def n_documents(self) -> int:
        """N."""
        return len(self.split_N)

    def documents(self, split: int) -> np.ndarray:
        """The numbers of a split's documents, ascending: int64."""
        return np.flatnonzero(self.split_N == split)

    def stored(self, number: int) -> np.ndarray:
        """EOD and text tokens of a document: a view of n_tokens + 1 entries."""
        return self.tokens[self.offsets_N1[number] : self.offsets_N1[number + 1]]

    def ids(self, numbers: np.ndarray) -> list[str]:
        """The ids of documents, in the order of `numbers`."""
        footer, begins = self._index
        group_B = np.searchsorted(begins, numbers, side="right") - 1
        ids = np.empty(len(numbers), object)
        with pq.ParquetFile(self.folder / "index.parquet", metadata=footer) as index:
            for group in np.unique(group_B).tolist():
                wanted_B = np.flatnonzero(group_B == group)
                column = index.read_row_group(group, ["id"])["id"]
                ids[wanted_B] = column.take(np.asarray(numbers)[wanted_B] - begins[group]).to_pylist()
        return ids.tolist()

    @functools.cached_property
    def _index(self) -> tuple[pq.FileMetaData, np.ndarray]:
        """The footer of `index.parquet`, and the first number of each of its row groups."""
        footer = pq.read_metadata(self.folder / "index.parquet")
        rows = [footer.row_group(group).num_rows for group in range(footer.num_row_groups)]
        return footer, np.cumsum([0, *rows[:-1]])


class Writer:
    """Writes a store batch by batch; what is committed, every 64 MB of tokens, survives a kill.

    `domain.npy` and `split.npy` stand in the folder already (`split.write`) and say how many
    documents there will be. The journal says how far the other files are good.

    Attributes:
      done: how much is written; of a new writer, how much was committed.
    """

    def __init__(
        self, folder: Path, journal: Path, vocab_size: int, eod_id: int, *, eod_inside: bool = False
    ) -> None:
        """Begins a store, or continues what an earlier writer has committed.

        With `eod_inside` a document's tokens may hold EOD: packed sequences do.

        Raises:
          ValueError: the tokens are fewer than were committed.
        """
        self.folder = folder
        self.vocab_size, self.eod_id, self._eod_inside = vocab_size, eod_id, eod_inside
        self.dtype = np.dtype(np.uint16 if vocab_size <= 1 << 16 else np.uint32)
        self._domain_N, self._split_N = _map(folder / "domain.npy"), _map(folder / "split.npy")
        n_documents = len(self._split_N)
        self._journal = journal
        if not journal.is_file():
            for name, length in (("offsets.npy", n_documents + 1), ("n_bytes.npy", n_documents)):
                np.lib.format.open_memmap(folder / name, "w+", np.int64, (length,)).flush()
            (folder / "tokens").touch()
            write_json(journal, {"batches": 0, "documents": 0, "tokens": 0, "bytes": 0})
        self.done: dict[str, int] = json.loads(journal.read_text())
        self._offsets_N1 = np.load(folder / "offsets.npy", mmap_mode="r+")
        self._n_bytes_N = np.load(folder / "n_bytes.npy", mmap_mode="r+")
        self._tokens = (folder / "tokens").open("r+b")
        self._committed_bytes = self.done["tokens"] * self.dtype.itemsize
        found = self._tokens.seek(0, os.SEEK_END)
        if found < self._committed_bytes:
            raise ValueError(
                f"{folder / 'tokens'} holds {found:,} bytes where {journal} says {self._committed_bytes:,}: it "
                f"is damaged, delete {folder} and {journal} and run `jaxprune prepare`"
            )
        self._tokens.truncate(self._committed_bytes)
        self._tokens.seek(self._committed_bytes)

    def append(self, tokens: Sequence[np.ndarray], n_bytes_B: np.ndarray) -> None:
        """Adds the next documents, and commits where there is enough to commit.

        Args:
          tokens: text tokens of each document, without EOD.
          n_bytes_B: UTF-8 bytes of each text.

        Raises:
          ValueError: a text holds the EOD token.
        """
        begin, end = self.done["documents"], self.done["documents"] + len(tokens)
        ends_B = np.cumsum([len(document) + 1 for document in tokens], dtype=np.int64)
        size = int(ends_B[-1]) if len(tokens) else 0
        starts_B = np.concatenate([[0], ends_B[:-1]]) if len(tokens) else ends_B
        stored = np.full(size, self.eod_id, self.dtype)
        is_text = np.ones(size, bool)
        is_text[starts_B] = False
        stored[is_text] = np.concatenate([*tokens, np.zeros(0, np.int32)])
        if not self._eod_inside and np.count_nonzero(stored == self.eod_id) != len(tokens):
            raise ValueError(
                f"the tokenizer turns text into token {self.eod_id}, which separates documents: "
                "set tokenizer.eod_token to a token that no text becomes"
            )
        self._tokens.write(stored.tobytes())
        self._offsets_N1[begin + 1 : end + 1] = self.done["tokens"] + ends_B
        self._n_bytes_N[begin:end] = n_bytes_B
        self.done = {
            "batches": self.done["batches"] + 1,
            "documents": end,
            "tokens": self.done["tokens"] + size,
            "bytes": self.done["bytes"] + int(n_bytes_B.sum()),
        }
        if self._tokens.tell() - self._committed_bytes >= _COMMIT_BYTES:
            self._commit()

    def _commit(self) -> None:
        self._tokens.flush()
        os.fsync(self._tokens.fileno())
        self._offsets_N1.flush()
        self._n_bytes_N.flush()
        write_json(self._journal, self.done)
        self._committed_bytes = self._tokens.tell()

    def finish(self, ids: Iterable[pa.ChunkedArray], domains: Sequence[str], tokenizer_digest: str) -> None:
        """Writes `index.parquet` and, last, `meta.json`. `ids`: of all documents, batch by batch."""
        self._commit()
        self._tokens.close()
        assert self.done["documents"] == len(self._split_N), self.done
        self._write_index(ids, domains)
        write_json(
            self.folder / "meta.json",
            {
                "vocab_size": self.vocab_size,
                "eod_id": self.eod_id,
                "domains": list(domains),
                "dtype": self.dtype.name,
                "n_documents": self.done["documents"],
                "n_tokens": totals(self.folder, domains)["tokens"],
                "tokenizer": tokenizer_digest,
            },
        )

    def _write_index(self, ids: Iterable[pa.ChunkedArray], domains: Sequence[str]) -> None:
        temporary = self.folder / "index.parquet.tmp"
        domain_names, split_names = pa.array(domains, pa.string()), pa.array(SPLITS)
        begin = 0
        with pq.ParquetWriter(temporary, _INDEX, compression="zstd") as writer:
            for ids_B in _joined(ids):
                end = begin + len(ids_B)
                columns = [
                    np.arange(begin, end),
                    ids_B,
                    domain_names.take(pa.array(self._domain_N[begin:end])),
                    split_names.take(pa.array(self._split_N[begin:end])),
                    np.diff(self._offsets_N1[begin : end + 1]) - 1,
                    self._n_bytes_N[begin:end],
                ]
                writer.write_table(pa.table(columns, schema=_INDEX), row_group_size=len(ids_B))
                begin = end
        assert begin == self.done["documents"], (begin, self.done)
        temporary.replace(self.folder / "index.parquet")


def _joined(batches: Iterable[pa.ChunkedArray]) -> Iterator[pa.ChunkedArray]:
    """Batches joined into row groups of the index: small ones would make its footer large."""
    waiting: list[pa.Array] = []
    n_waiting = 0
    for batch in batches:
        waiting += batch.chunks
        n_waiting += len(batch)
        if n_waiting >= _INDEX_ROWS:
            yield pa.chunked_array(waiting)
            waiting, n_waiting = [], 0
    if n_waiting:
        yield pa.chunked_array(waiting)


def totals(folder: Path, domains: Sequence[str]) -> dict[str, dict[str, dict[str, int]]]:
    """Documents, text tokens and bytes of a store as {quantity: {domain: {split: count}}}."""
    offsets_N1, n_bytes_N = _map(folder / "offsets.npy"), _map(folder / "n_bytes.npy")
    domain_N, split_N = _map(folder / "domain.npy"), _map(folder / "split.npy")
    counts = {
        name: np.zeros(len(domains) * len(SPLITS), np.int64) for name in ("documents", "tokens", "bytes")
    }
    for begin in range(0, len(split_N), _CHUNK):
        chunk = slice(begin, begin + _CHUNK)
        cell_B = domain_N[chunk].astype(np.int64) * len(SPLITS) + split_N[chunk]
        n_tokens_B = np.diff(offsets_N1[begin : begin + _CHUNK + 1]) - 1
        for name, value_B in (("documents", 1), ("tokens", n_tokens_B), ("bytes", n_bytes_N[chunk])):
            np.add.at(counts[name], cell_B, value_B)
    return {
        name: {
            domain: dict(zip(SPLITS, row, strict=True))
            for domain, row in zip(domains, count.reshape(-1, len(SPLITS)).tolist(), strict=True)
        }
        for name, count in counts.items()
    }


def _map(path: Path) -> np.ndarray:
    return np.asarray(np.load(path, mmap_mode="r"))
