"""ZIP: documents in the order in which they add the least redundancy to those already chosen.

Source: Yin et al., Entropy Law: The Story Behind Data Compression and LLM Performance (arXiv 2407.06645),
and the authors' program (USTC-StarTeam/ZIP). R(D) is the compression ratio (compression.py) of texts laid end
to end. Each document has a cached ratio, at first its own; then, until the budget is reached:

  1. `candidates` documents of the lowest cached ratios are compressed, each behind all that are chosen, and
     the joint ratio becomes their cached one;
  2. the `shortlist` of them with the lowest joint ratios goes on;
  3. `step` of these are chosen one by one: the one whose ratio, jointly with those chosen in this round, is
     the lowest.

Of equal ratios the first goes first, at the start that of the lowest number. Stored is the place in the
order; documents beyond the budget follow in the order of their own ratio. Keep the low end (select.criterion
"low").

zlib is a stream: what is chosen is compressed once, and a copy of the compressor goes on with a candidate.
That gives exactly the length of compressing both from the start, at the cost of the candidate alone. A round
compresses candidates + step (2 shortlist - step + 1) / 2 documents, 25,050 with the authors' settings: 250 for
each that is chosen. At 8 MB/s, a document of 2 kB costs 0.06 core seconds, and 100,000 of them 1.7 core hours:
this is for corpora of that size. The order is whole or not there: a killed run begins it anew.

Legend: N documents, C candidates of a round.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa

from jaxprune.config import Zip
from jaxprune.data import tokenizer
from jaxprune.data.store import TRAIN, TokenStore
from jaxprune.progress import Meter, meter
from jaxprune.prune.shards import Measure
from jaxprune.prune.signals.compression import LEVEL, ratio


def load(settings: Zip, share: float, folder: Path, store: TokenStore) -> Measure:
    """Orders the documents that may be pruned, and gives what looks a document's place up.

    Args:
      share: of these documents, that are put in greedy order.
      folder: holds the tokenizer.

    The table that it returns holds number and zip (place in the order from 0 on, int64).
    """
    encoder = tokenizer.load(folder)
    train_N = store.documents(TRAIN)
    place_N = np.empty(len(train_N), np.int64)
    place_N[
        order(
            lambda place: encoder.decode(store.stored(int(train_N[place]))[1:]).encode(),
            len(train_N),
            math.ceil(share * len(train_N)),
            settings,
        )
    ] = np.arange(len(train_N))

    def measure(store: TokenStore, numbers: np.ndarray, progress: Meter) -> pa.Table:
        progress.add(int((store.offsets_N1[numbers + 1] - store.offsets_N1[numbers] - 1).sum()))
        return pa.table({"number": numbers, "zip": place_N[np.searchsorted(train_N, numbers)]})

    return measure


def order(text: Callable[[int], bytes], n_texts: int, budget: int, settings: Zip) -> np.ndarray:
    """All of 0..n_texts-1, the first `budget` of them in greedy order: int64, [N].

    `text` gives a text by its number, and is called from several threads.
    """
    chosen: list[int] = []
    with ThreadPoolExecutor() as pool, meter("zip: ordering", budget, "documents") as progress:
        own_N = np.fromiter(pool.map(lambda number: ratio(text(number)), range(n_texts)), float, n_texts)
        cached_N = own_N.copy()
        everything = _Stream()
        texts: dict[int, bytes] = {}  # of the last round's candidates, most of which come back
        while len(chosen) < budget:
            candidate_C = _lowest(cached_N, min(settings.candidates, n_texts - len(chosen)))
            texts = _read(candidate_C.tolist(), texts, text, pool)
            cached_N[candidate_C] = everything.ratios(texts.values(), pool)
            shortlist = candidate_C[_lowest(cached_N[candidate_C], settings.shortlist)]
            picked = _greedy(
                shortlist.tolist(), texts, min(settings.step, budget - len(chosen), len(shortlist)), pool
            )
            for number in picked:
                everything.append(texts[number])
            cached_N[picked] = np.inf  # never a candidate again
            chosen += picked
            progress.add(len(picked))
    is_left_N = np.ones(n_texts, bool)
    is_left_N[chosen] = False
    left = np.flatnonzero(is_left_N)
    return np.concatenate([np.array(chosen, np.int64), left[_lowest(own_N[left], len(left))]])


class _Stream:
    """Texts laid end to end, compressed as far as they go."""

    def __init__(self) -> None:
        self._compressor = zlib.compressobj(LEVEL)
        self._n_bytes = self._n_compressed = 0

    def append(self, text: bytes) -> None:
        self._n_bytes += len(text)
        self._n_compressed += len(self._compressor.compress(text))

    def ratios(self, texts: Iterable[bytes], pool: Executor) -> list[float]:
        """The joint ratio of what is in the stream and each text."""
        return list(pool.map(self._ratio, texts))

    def _ratio(self, text: bytes) -> float:
        compressor = self._compressor.copy()
        n_compressed = self._n_compressed + len(compressor.compress(text)) + len(compressor.flush())
        return (self._n_bytes + len(text)) / n_compressed


def _read(
    numbers: Sequence[int], known: dict[int, bytes], text: Callable[[int], bytes], pool: Executor
) -> dict[int, bytes]:
    """The texts of `numbers`, of which some are known."""
    missing = [number for number in numbers if number not in known]
    found = known | dict(zip(missing, pool.map(text, missing), strict=True))
    return {number: found[number] for number in numbers}


def _greedy(numbers: Sequence[int], texts: dict[int, bytes], n: int, pool: Executor) -> list[int]:
    """`n` of the numbers, one by one that of the lowest joint ratio with those before it."""
    left, picked, stream = list(numbers), [], _Stream()
    while len(picked) < n:
        best = left.pop(int(np.argmin(stream.ratios((texts[number] for number in left), pool))))
        stream.append(texts[best])
        picked.append(best)
    return picked


def _lowest(value_N: np.ndarray, n: int) -> np.ndarray:
    """Places of the n lowest values, ascending; of equal ones the first."""
    return np.argsort(value_N, kind="stable")[:n]
