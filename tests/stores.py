"""Small token stores for tests, written from their file format."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from jaxprune.data.store import TokenStore


def numbered_store(folder: Path, lengths: Sequence[int], domain: Sequence[int], n_domains: int) -> TokenStore:
    """A store of documents of the given stored lengths, in which every stored token is its own place."""
    folder.mkdir(parents=True, exist_ok=True)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    np.arange(offsets[-1], dtype=np.uint32).tofile(folder / "tokens")
    np.save(folder / "offsets.npy", offsets)
    np.save(folder / "domain.npy", np.asarray(domain, np.uint16))
    np.save(folder / "split.npy", np.full(len(lengths), 2, np.uint8))
    np.save(folder / "n_bytes.npy", np.asarray(lengths, np.int64))
    meta = {
        "vocab_size": int(offsets[-1]),
        "eod_id": 0,
        "domains": [f"domain{k}" for k in range(n_domains)],
        "dtype": "uint32",
        "n_documents": len(lengths),
    }
    (folder / "meta.json").write_text(json.dumps(meta))
    return TokenStore(folder)
