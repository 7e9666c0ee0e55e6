"""Which documents are held out, train the reference model, or are scored, pruned and trained on.

A document's split hangs on the hash of its id and the seed alone: not on its place, on how the corpus
is cut into files, nor on other documents. One guarantee is the exception: the document of a domain with
the lowest hash is held out whatever its hash, so that every domain can be evaluated.

Legend: B documents of a batch, N documents.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

HELDOUT, REFERENCE, TRAIN = 0, 1, 2
SPLITS = ("heldout", "reference", "train")


def hashes(seed: int, ids: Sequence[str]) -> np.ndarray:
    """A 64-bit hash of each id, the same on every machine: uint64 [B]."""
    key = f"split {seed}".encode()
    digests = (hashlib.blake2b(name.encode(), digest_size=8, key=key).digest() for name in ids)
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
      batches: ids and domain numbers of the documents, in store order.
      n_documents: N.
      domains: names of the domains.
      seed, heldout, reference: see `hashes` and `of_hashes`.

    Raises:
      ValueError: a domain has no document left for training.
    """
    domain_tmp, split_tmp = folder / "domain.npy.tmp", folder / "split.npy.tmp"
    domain_N = np.lib.format.open_memmap(domain_tmp, "w+", np.uint16, (n_documents,))
    split_N = np.lib.format.open_memmap(split_tmp, "w+", np.uint8, (n_documents,))
    lowest: dict[int, tuple[int, str, int]] = {}  # domain -> hash, id, number
    n_training = np.zeros(len(domains), np.int64)
    begin = 0
    for ids, domain_B in batches:
        hash_B = hashes(seed, ids)
        split_B = of_hashes(hash_B, heldout, reference)
        end = begin + len(ids)
        domain_N[begin:end], split_N[begin:end] = domain_B, split_B
        n_training += np.bincount(domain_B[split_B == TRAIN], minlength=len(domains))
        order_B = np.argsort(hash_B, kind="stable")
        present, first = np.unique(domain_B[order_B], return_index=True)
        for domain, row in zip(map(int, present), map(int, order_B[first]), strict=True):
            # Equal hashes are all but impossible; the id settles them, so that order does not.
            found = (int(hash_B[row]), ids[row], begin + row)
            lowest[domain] = min(lowest.get(domain, found), found)
        begin = end
    assert begin == n_documents, (begin, n_documents)
    for domain, (_, _, number) in lowest.items():
        n_training[domain] -= split_N[number] == TRAIN
        split_N[number] = HELDOUT
    _check_training(n_training, domains)
    for array, temporary in ((domain_N, domain_tmp), (split_N, split_tmp)):
        array.flush()
        temporary.replace(temporary.with_suffix(""))


def _check_training(n_training: np.ndarray, domains: Sequence[str]) -> None:
    empty = [domain for domain, n in zip(domains, n_training.tolist(), strict=True) if n == 0]
    if empty:
        raise ValueError(
            f"no document of domain {', '.join(map(repr, empty[:5]))}{' and others' if len(empty) > 5 else ''} is "
            "left to train on, without duplicates, the held-out and the reference split: give it more documents, "
            "join it with another domain, or lower corpus.heldout and corpus.reference"
        )
