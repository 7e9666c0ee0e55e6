"""ZIP: documents in the order in which they add the least redundancy to those already chosen.

Source: Yin et al., Entropy Law: The Story Behind Data Compression and LLM Performance (arXiv 2407.06645),
and the authors' program (USTC-StarTeam/ZIP). R(D) is the compression ratio (compression.py) of texts laid end
to end. Each document has a cached ratio, at first its own; then, until all are chosen:

  1. `candidates` documents of the lowest cached ratios are compressed, each behind all that are chosen, and
     the joint ratio becomes their cached one;
  2. the `shortlist` of them with the lowest joint ratios goes on;
  3. `step` of these are chosen one by one: the one whose ratio, jointly with those chosen in this round, is
     the lowest.

Of equal ratios the first goes first, at the start that of the lowest number. Stored is the place in the
order, which the program's budget would end early. Documents of fewer than select.min_tokens are not kept whatever
the ratio, and have none. Keep the low end (select.criterion "low").

zlib is a stream: what is chosen is compressed once, and a copy of the compressor goes on with a candidate.
That gives exactly the length of compressing both from the start, at the cost of the candidate alone. A round
compresses candidates + step (2 shortlist - step + 1) / 2 documents, 25,050 with the authors' settings: 250 for
each that is chosen. At 8 MB/s, a document of 2 kB costs 0.06 core seconds, and 100,000 of them 1.7 core hours:
this is for corpora of up to that size. A killed run goes on behind the last round that is whole.

Legend: N documents, C candidates of a round.
"""

from __future__ import annotations

import os
import zipfile
import zlib
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa

from jaxprune.config import Zip
from jaxprune.data.store import TRAIN, TokenStore
from jaxprune.progress import Meter, meter, say
from jaxprune.prune import texts
from jaxprune.prune.shards import Measure
from jaxprune.prune.signals.compression import LEVEL, ratio


def load(settings: Zip, min_tokens: int, tokenizer: Path, store: TokenStore, folder: Path) -> Measure:
    """Orders the documents that may be pruned, and gives what looks a document's place up.

    Args:
      min_tokens: documents of fewer are left out.
      tokenizer: the folder of the store's.
      folder: where the order is kept while it grows, and then, so that a damaged table is cheap to mend.

    The table that it returns holds number and zip (place in the order from 0 on, int64; null where left out).

    Raises:
      ValueError: the tokenizer changes texts.
    """
    decoder = texts.decoder(tokenizer)
    train_N = store.documents(TRAIN)
    n_tokens_N = store.offsets_N1[train_N + 1] - store.offsets_N1[train_N] - 1
    long = np.flatnonzero(n_tokens_N >= min_tokens)

    def text(place: int) -> bytes:
        return texts.text(store.stored(int(train_N[long[place]])), decoder).encode()

    place_N = np.full(len(train_N), -1)
    place_N[long[order(text, len(long), settings, folder / "order.npz")]] = np.arange(len(long))

    def measure(store: TokenStore, numbers: np.ndarray, progress: Meter) -> pa.Table:
        progress.add(int((store.offsets_N1[numbers + 1] - store.offsets_N1[numbers] - 1).sum()))
        found_N = place_N[np.searchsorted(train_N, numbers)]
        return pa.table({"number": numbers, "zip": pa.array(found_N, pa.int64(), mask=found_N < 0)})

    return measure


def order(text: Callable[[int], bytes], n_texts: int, settings: Zip, path: Path) -> np.ndarray:
    """0..n_texts-1 in greedy order: int64, [N].

    Args:
      text: gives a text by its number; is called from several threads.
      n_texts: N.
      settings: of the algorithm.
      path: of a file that says after each round what is chosen, with which a later call goes on.
    """
    with ThreadPoolExecutor() as pool, meter("zip: ordering", n_texts, "documents") as progress:
        saved = _saved(path)
        if saved is None:
            own = pool.map(lambda number: ratio(text(number)), range(n_texts))
            saved = [], np.fromiter(own, float, n_texts)
        chosen, cached_N = saved
        progress.skip(len(chosen))
        everything = _Stream()
        for number in chosen:
            everything.append(text(number))
        known: dict[int, bytes] = {}  # texts of the last round's candidates, most of which come back
        while len(chosen) < n_texts:
            candidate_C = _lowest(cached_N, min(settings.candidates, n_texts - len(chosen)))
            known = _read(candidate_C.tolist(), known, text, pool)
            cached_N[candidate_C] = everything.ratios(known.values(), pool)
            shortlist = candidate_C[_lowest(cached_N[candidate_C], settings.shortlist)]
            picked = _greedy(shortlist.tolist(), known, min(settings.step, len(shortlist)), pool)
            for number in picked:
                everything.append(known[number])
            cached_N[picked] = np.inf  # never a candidate again
            chosen += picked
            _save(path, chosen, cached_N)
            progress.add(len(picked))
    return np.array(chosen, np.int64)


def _saved(path: Path) -> tuple[list[int], np.ndarray] | None:
    """What is chosen, and all cached ratios [N], after the last round of an earlier call; None: there was none."""
    if not path.is_file():
        return None
    try:
        is_whole = zipfile.ZipFile(path).testzip() is None  # it holds checksums
    except zipfile.BadZipFile:
        is_whole = False
    if not is_whole:
        say(f"zip: {path.name} is damaged, and the documents are ordered again")
        return None
    with np.load(path) as arrays:
        return arrays["chosen"].tolist(), arrays["cached_N"]


def _save(path: Path, chosen: Sequence[int], cached_N: np.ndarray) -> None:
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("wb") as file:
        np.savez(file, chosen=np.array(chosen, np.int64), cached_N=cached_N)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


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
