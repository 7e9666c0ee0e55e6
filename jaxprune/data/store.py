"""The token store: every document's tokens in one memory map, found by number.

A stored document is the end-of-document token (EOD) followed by its text tokens, so that `stored[:-1]`
are inputs and `stored[1:]` targets, the first token of the text is predicted, and documents laid end to
end are separated.

Legend: B documents of a batch, K domains, N documents.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from jaxprune.artifact import write_json
from jaxprune.data.split import HELDOUT, REFERENCE, SPLITS, TRAIN

__all__ = ["HELDOUT", "REFERENCE", "SPLITS", "TRAIN", "TokenStore", "Writer"]

_CHUNK = 1 << 20  # documents of an array that are looked at together
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
        index = pq.ParquetFile(self.folder / "index.parquet")
        rows = [index.metadata.row_group(group).num_rows for group in range(index.num_row_groups)]
        ends = np.cumsum(rows)
        group_B = np.searchsorted(ends, numbers, side="right")
        ids = np.empty(len(numbers), object)
        for group in np.unique(group_B):
            wanted_B = np.flatnonzero(group_B == group)
            column = index.read_row_group(int(group), ["id"])["id"]
            ids[wanted_B] = column.take(
                np.asarray(numbers)[wanted_B] - (ends[group] - rows[group])
            ).to_pylist()
        return ids.tolist()


class Writer:
    """Writes a store batch by batch; what `append` has returned from survives a kill.

    `domain.npy` and `split.npy` stand in the folder already (`split.write`) and say how many
    documents there will be. The journal says how far the other files are good.
    """

    def __init__(self, folder: Path, journal: Path, vocab_size: int, eod_id: int) -> None:
        self.folder = folder
        self.vocab_size, self.eod_id = vocab_size, eod_id
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
        self._tokens.truncate(self.done["tokens"] * self.dtype.itemsize)
        self._tokens.seek(0, os.SEEK_END)
        assert self._tokens.tell() == self.done["tokens"] * self.dtype.itemsize, "the journal runs ahead"

    def append(self, tokens: Sequence[np.ndarray], n_bytes_B: np.ndarray) -> None:
        """Adds the next documents and commits them.

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
        if np.count_nonzero(stored == self.eod_id) != len(tokens):
            raise ValueError(
                f"the tokenizer turns text into token {self.eod_id}, which separates documents: "
                "set tokenizer.eod_token to a token that no text becomes"
            )
        self._tokens.write(stored.tobytes())
        self._tokens.flush()
        os.fsync(self._tokens.fileno())
        self._offsets_N1[begin + 1 : end + 1] = self.done["tokens"] + ends_B
        self._n_bytes_N[begin:end] = n_bytes_B
        self._offsets_N1.flush()
        self._n_bytes_N.flush()
        self.done = {
            "batches": self.done["batches"] + 1,
            "documents": end,
            "tokens": self.done["tokens"] + size,
            "bytes": self.done["bytes"] + int(n_bytes_B.sum()),
        }
        write_json(self._journal, self.done)

    def finish(self, ids: Iterable[Sequence[str]], domains: Sequence[str], tokenizer_digest: str) -> None:
        """Writes `index.parquet` and, last, `meta.json`. `ids`: of all documents, batch by batch."""
        self._tokens.close()
        assert self.done["documents"] == len(self._split_N), self.done
        temporary = self.folder / "index.parquet.tmp"
        begin = 0
        with pq.ParquetWriter(temporary, _INDEX, compression="zstd") as writer:
            for ids_B in ids:
                end = begin + len(ids_B)
                columns = [
                    np.arange(begin, end),
                    ids_B,
                    [domains[domain] for domain in self._domain_N[begin:end].tolist()],
                    [SPLITS[split] for split in self._split_N[begin:end].tolist()],
                    np.diff(self._offsets_N1[begin : end + 1]) - 1,
                    self._n_bytes_N[begin:end],
                ]
                writer.write_table(pa.table(columns, schema=_INDEX))
                begin = end
        temporary.replace(self.folder / "index.parquet")
        write_json(
            self.folder / "meta.json",
            {
                "vocab_size": self.vocab_size,
                "eod_id": self.eod_id,
                "domains": list(domains),
                "dtype": self.dtype.name,
                "n_documents": begin,
                "n_tokens": totals(self.folder, domains)["tokens"],
                "tokenizer": tokenizer_digest,
            },
        )


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
