"""Which documents are held out, train the reference model, or are scored, pruned and trained on.

A document's split hangs on the hash of its key and the seed alone: not on its place, on how the corpus
is cut into files, nor on other documents. The key is the id, or the group of documents that must stay
together, such as the pieces of one file.

One guarantee is the exception, so that every domain can be evaluated, with an interval: of each domain, the
8 documents with the lowest hashes (a quarter of the domain where it has fewer than 32, at least 1)
are held out whatever their hashes, and with them those that share the last one's.

Legend: B documents of a batch, G guaranteed documents of a domain, K domains, N documents.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

HELDOUT, REFERENCE, TRAIN = 0, 1, 2
SPLITS = ("heldout", "reference", "train")
_GUARANTEED = 8  # held-out documents of a domain (G); intervals need more than one
_CHUNK = 1 << 20  # documents that are looked at together


def hashes(seed: int, keys: Sequence[str]) -> np.ndarray:
    """A 64-bit hash of each key, the same on every machine: uint64 [B]."""
    secret = f"split {seed}".encode()
    digests = (hashlib.blake2b(key.encode(), digest_size=8, key=secret).digest() for key in keys)
    return np.frombuffer(b"".join(digests), ">u8").astype(np.uint64)


def of_hashes(hash_B: np.ndarray, heldout: float, reference: float) -> np.ndarray:
    """The split of each hash, before the guarantee: uint8 [B].

    With u = hash / 2^64: held out below `heldout`, reference in the next `reference` share of the rest.
    """
    u_B = hash_B.astype(np.float64) / 2.0**64
    limits = (heldout, heldout + (1 - heldout) * reference)
    return np.searchsorted(limits, u_B, side="right").astype(np.uint8)


def write(
    folder: Path,
    batches: Iterable[tuple[Sequence[str], np.ndarray]],
    n_documents: int,
    domains: Sequence[str],
    *,
    seed: int,
    heldout: float,
    reference: float,
) -> None:
    """Writes `domain.npy` (uint16 [N]) and, last, `split.npy` (uint8 [N]) of a token store.

    Args:
      folder: of the token store.
      batches: keys and domain numbers of the documents, in store order.
      n_documents: N.
      domains: names of the domains.
      seed, heldout, reference: see `hashes` and `of_hashes`.

    Raises:
      ValueError: a domain has no document left for training.
    """
    temporary = {name: folder / f"{name}.npy.tmp" for name in ("hash", "domain", "split")}
    hash_N, domain_N, split_N = (
        np.lib.format.open_memmap(path, "w+", dtype, (n_documents,))
        for path, dtype in zip(temporary.values(), (np.uint64, np.uint16, np.uint8), strict=True)
    )
    lowest_KG = np.full((len(domains), _GUARANTEED), np.iinfo(np.uint64).max)
    n_documents_K, n_training_K = np.zeros((2, len(domains)), np.int64)
    begin = 0
    for keys, domain_B in batches:
        end = begin + len(keys)
        hash_B = hashes(seed, keys)
        hash_N[begin:end], domain_N[begin:end] = hash_B, domain_B
        n_documents_K += np.bincount(domain_B, minlength=len(domains))
        _keep_lowest(lowest_KG, hash_B, domain_B)
        begin = end
    assert begin == n_documents, (begin, n_documents)
    n_guaranteed_K = np.clip(n_documents_K // 4, 1, _GUARANTEED)
    limit_K = lowest_KG[np.arange(len(domains)), n_guaranteed_K - 1]
    for begin in range(0, n_documents, _CHUNK):
        hash_B, domain_B = hash_N[begin : begin + _CHUNK], domain_N[begin : begin + _CHUNK]
        split_B = of_hashes(hash_B, heldout, reference)
        split_B[hash_B <= limit_K[domain_B]] = HELDOUT
        n_training_K += np.bincount(domain_B[split_B == TRAIN], minlength=len(domains))
        split_N[begin : begin + _CHUNK] = split_B
    _check_training(n_training_K, domains)
    temporary["hash"].unlink()
    for array, name in ((domain_N, "domain"), (split_N, "split")):
        array.flush()
        temporary[name].replace(folder / f"{name}.npy")


def _keep_lowest(lowest_KG: np.ndarray, hash_B: np.ndarray, domain_B: np.ndarray) -> None:
    """Takes hashes of more documents into the lowest of each domain, which are ascending."""
    order_B = np.lexsort((hash_B, domain_B))
    present, first = np.unique(domain_B[order_B], return_index=True)
    for domain, of_domain in zip(present, np.split(hash_B[order_B], first)[1:], strict=True):
        candidates = np.concatenate([lowest_KG[domain], of_domain[:_GUARANTEED]])
        lowest_KG[domain] = np.sort(candidates)[:_GUARANTEED]


def _check_training(n_training_K: np.ndarray, domains: Sequence[str]) -> None:
    empty = [domain for domain, n in zip(domains, n_training_K.tolist(), strict=True) if n == 0]
    if empty:
        raise ValueError(
            f"no document of domain {', '.join(map(repr, empty[:5]))}{' and others' if len(empty) > 5 else ''} is "
            "left to train on, without duplicates, the held-out and the reference split: give it more documents, "
            "join it with another domain, or lower corpus.heldout and corpus.reference"
        )
