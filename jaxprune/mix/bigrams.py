"""Counts of adjacent token pairs (bigrams) of a stream of any length.

The table of all pairs would have V x V cells, 10 GB for V = 50,000, most of them empty. Chunks of the stream are
sorted instead, and the counts of each chunk's different bigrams appended to a file as a run; in the end the runs
are merged, one range of bigrams after the other. In memory are one chunk or one range, under 0.2 GB; on
disk, in the folder for temporary files, 8 or 12 bytes for each different bigram of each chunk, some 3 GB for 10^9
tokens of text.

Legend: P tokens of a chunk, S sequences, T tokens of a sequence, U different bigrams of a run or a range.
"""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

CHUNK = 1 << 22  # tokens that are sorted together
_RANGE = 1 << 18  # rows of the runs that are merged together: they stay in the cache
_EVERY = 1 << 10  # every such bigram of a run is a sample, from which the ranges are cut


def counts(
    tokens: Iterable[np.ndarray], sequence: int, vocab_size: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Counts the bigrams of a stream that is cut into sequences: no bigram crosses a cut.

    Args:
      tokens: the stream, in pieces [P] of about `CHUNK` tokens; all but the last are whole sequences.
      sequence: T.
      vocab_size: V, above every token.

    Yields:
      Different bigrams, ascending, as head * V + tail (uint64, [U]), and how often each occurs (int64, [U]).
    """
    key_type = np.dtype(np.uint32 if vocab_size**2 <= 1 << 32 else np.uint64)
    ends = [0]
    with tempfile.TemporaryDirectory() as folder:
        key_path, count_path = Path(folder) / "keys", Path(folder) / "counts"
        with key_path.open("wb") as key_file, count_path.open("wb") as count_file:
            for piece in tokens:
                key_U, count_U = np.unique(_keys(piece, sequence, vocab_size, key_type), return_counts=True)
                key_U.tofile(key_file)
                count_U.astype(np.uint32).tofile(count_file)
                ends.append(ends[-1] + len(key_U))
        if ends[-1] == 0:
            return
        keys = np.asarray(np.memmap(key_path, key_type, "r"))
        run_counts = np.asarray(np.memmap(count_path, np.uint32, "r"))
        runs = [slice(begin, end) for begin, end in itertools.pairwise(ends)]
        yield from _merged([(keys[run], run_counts[run]) for run in runs], vocab_size)
        del keys, run_counts  # closes the files before they are deleted


def _keys(tokens_P: np.ndarray, sequence: int, vocab_size: int, key_type: np.dtype) -> np.ndarray:
    """head * V + tail of every bigram inside a sequence."""
    whole = len(tokens_P) // sequence * sequence
    tokens_ST, rest = tokens_P[:whole].reshape(-1, sequence), tokens_P[whole:]
    n_pairs = len(tokens_ST) * (sequence - 1)
    keys = np.empty(n_pairs + max(len(rest) - 1, 0), key_type)
    for heads, tails, out in (
        (tokens_ST[:, :-1], tokens_ST[:, 1:], keys[:n_pairs].reshape(len(tokens_ST), sequence - 1)),
        (rest[:-1], rest[1:], keys[n_pairs:]),
    ):
        np.multiply(heads, key_type.type(vocab_size), out=out, dtype=key_type)
        out += tails
    return keys


def _merged(
    runs: list[tuple[np.ndarray, np.ndarray]], vocab_size: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The runs as one, range by range.

    A bigram, counted from the least of its range, and its count in a run are one 64-bit number: these sort
    several times faster than pairs do.
    """
    edges = _edges(runs, vocab_size)
    places = [np.append(np.searchsorted(keys, edges[:-1].astype(keys.dtype)), len(keys)) for keys, _ in runs]
    for part, least in enumerate(edges[:-1]):
        cuts = [slice(place[part], place[part + 1]) for place in places]
        packed = np.concatenate(
            [
                (keys[cut].astype(np.uint64) - least) << np.uint64(32) | run_counts[cut]
                for (keys, run_counts), cut in zip(runs, cuts, strict=True)
            ]
        )
        if len(packed) == 0:
            continue
        packed.sort()
        key = packed >> np.uint64(32)
        start_U = np.flatnonzero(np.diff(key, prepend=key[0] + np.uint64(1)))
        count = (packed & np.uint64(0xFFFFFFFF)).astype(np.int64)
        yield key[start_U] + least, np.add.reduceat(count, start_U)


def _edges(runs: list[tuple[np.ndarray, np.ndarray]], vocab_size: int) -> np.ndarray:
    """Where ranges begin and end: uint64, ascending. None is wider than 2^32, or holds many more than `_RANGE` rows."""
    sample = np.sort(np.concatenate([keys[::_EVERY] for keys, _ in runs]).astype(np.uint64))
    step = max(_RANGE // _EVERY, 1)
    wide = np.arange(0, vocab_size**2, 1 << 32, dtype=np.uint64)
    last = np.array([vocab_size**2], np.uint64)
    return np.unique(np.concatenate([wide, sample[step::step], last]))
