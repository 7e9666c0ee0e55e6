"""Packed sequences in place of documents: the unit of scoring and selection of Marion et al.

Source: Marion et al., When Less is More (arXiv 2309.04564), section 3: documents are laid end to end, separated
by the end-of-document token (EOD), and cut into sequences of one length, each of which is scored and kept or
removed as a whole. Here the documents of each domain that may be pruned are laid end to end in the store's
order; what is held out, or trains the reference, stays in documents. A sequence is stored as a document
is, with an EOD before it, so that its first token is predicted too; a final model that is trained on sequences
meets that EOD in front of each.

Legend: N documents of the new store, B of a batch.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa

from jaxprune.data.store import TRAIN, TokenStore, Writer
from jaxprune.data.tokenizer import Encoder
from jaxprune.progress import meter

_BATCH = 4_096  # documents that are written together


def pack(source: TokenStore, encoder: Encoder, folder: Path, sequence_tokens: int, digest: str) -> None:
    """Writes a store of documents and packed sequences to `folder`, which must be empty.

    Args:
      source: the store of documents.
      encoder: its tokenizer, which tells how many bytes a sequence is.
      folder: of the new store.
      sequence_tokens: tokens of a sequence; the last of a domain may have fewer.
      digest: of the tokenizer.
    """
    whole = np.flatnonzero(source.split_N != TRAIN)
    packed = {
        domain: np.flatnonzero((source.split_N == TRAIN) & (source.domain_N == position))
        for position, domain in enumerate(source.domains)
    }
    # The first document's own EOD stands before the first sequence.
    n_tokens = {
        domain: int((source.offsets_N1[numbers + 1] - source.offsets_N1[numbers]).sum()) - 1
        for domain, numbers in packed.items()
    }
    n_sequences = [max(-(-n_tokens[domain] // sequence_tokens), 0) for domain in packed]
    kind_K = np.arange(len(packed))
    np.save(folder / "domain.npy", np.concatenate([source.domain_N[whole], np.repeat(kind_K, n_sequences)]).astype(np.uint16))  # fmt: skip
    np.save(folder / "split.npy", np.concatenate([source.split_N[whole], np.full(sum(n_sequences), TRAIN)]).astype(np.uint8))  # fmt: skip
    journal = folder / "packing.json"
    writer = Writer(folder, journal, source.vocab_size, source.eod_id, eod_inside=True)
    with meter("prepare: packing", len(source.tokens), "tokens") as bar:
        for start in range(0, len(whole), _BATCH):
            numbers = whole[start : start + _BATCH]
            writer.append([source.stored(number)[1:] for number in numbers], source.n_bytes_N[numbers])
            bar.add(int((source.offsets_N1[numbers + 1] - source.offsets_N1[numbers]).sum()))
        for numbers in packed.values():
            for sequence in _sequences(source, numbers, sequence_tokens):
                writer.append([sequence], np.array([_text_bytes(sequence, encoder)]))
                bar.add(len(sequence))
    writer.finish(_ids(source, whole, dict(zip(packed, n_sequences, strict=True))), source.domains, digest)
    journal.unlink()


def _sequences(source: TokenStore, numbers: np.ndarray, n_tokens: int) -> Iterator[np.ndarray]:
    """The documents end to end, without the first EOD, in pieces of `n_tokens`."""
    waiting = np.zeros(0, source.tokens.dtype)
    for start in range(0, len(numbers), _BATCH):
        pieces = [source.stored(number) for number in numbers[start : start + _BATCH]]
        if start == 0:
            pieces[0] = pieces[0][1:]
        waiting = np.concatenate([waiting, *pieces])
        whole = len(waiting) - len(waiting) % n_tokens
        yield from waiting[:whole].reshape(-1, n_tokens)
        waiting = waiting[whole:]
    if len(waiting):
        yield waiting


def _text_bytes(sequence: np.ndarray, encoder: Encoder) -> int:
    """UTF-8 bytes of its text; a character that is cut in two counts as the three of its replacement."""
    texts = np.split(sequence, np.flatnonzero(sequence == encoder.eod_id))
    return sum(len(encoder.decode(text[text != encoder.eod_id]).encode()) for text in texts)


def _ids(source: TokenStore, whole: np.ndarray, n_sequences: dict[str, int]) -> Iterator[pa.ChunkedArray]:
    for start in range(0, len(whole), _BATCH):
        yield pa.chunked_array([pa.array(source.ids(whole[start : start + _BATCH]), pa.string())])
    for domain, number in n_sequences.items():
        for start in range(0, number, _BATCH):
            places = range(start, min(start + _BATCH, number))
            yield pa.chunked_array([pa.array([f"{domain}: sequence {place}" for place in places])])
