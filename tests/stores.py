"""Small token stores for tests, written from their file format."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from jaxprune.data.store import TokenStore


def numbered_store(folder: Path, lengths: Sequence[int], domain: Sequence[int], n_domains: int) -> TokenStore:
    """A store of documents of the given stored lengths, in which every stored token is its own place."""
    place = np.arange(sum(lengths), dtype=np.uint32)
    return stored_as(folder, np.split(place, np.cumsum(lengths)[:-1]), domain, n_domains, len(place))


def stored_as(
    folder: Path, documents: Sequence[np.ndarray], domain: Sequence[int], n_domains: int, vocab_size: int
) -> TokenStore:
    """A store of documents given with the token in front of each, of the type of the first one's tokens."""
    folder.mkdir(parents=True, exist_ok=True)
    lengths = [len(document) for document in documents]
    np.concatenate(documents).tofile(folder / "tokens")
    np.save(folder / "offsets.npy", np.cumsum([0, *lengths], dtype=np.int64))
    np.save(folder / "domain.npy", np.asarray(domain, np.uint16))
    np.save(folder / "split.npy", np.full(len(lengths), 2, np.uint8))
    np.save(folder / "n_bytes.npy", np.asarray(lengths, np.int64))
    meta = {
        "vocab_size": vocab_size,
        "eod_id": 0,
        "domains": [f"domain{k}" for k in range(n_domains)],
        "dtype": documents[0].dtype.name,
        "n_documents": len(lengths),
    }
    (folder / "meta.json").write_text(json.dumps(meta))
    return TokenStore(folder)
