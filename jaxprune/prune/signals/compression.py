"""Compression ratio: how much of a document repeats itself.

Source: Yin et al., Entropy Law: The Story Behind Data Compression and LLM Performance (arXiv 2407.06645),
R(D) = Bits(D) / Bits(C(D)), bytes per byte, with C = zlib at level 9, here of each document alone: of its
text in UTF-8, as the tokenizer decodes it. A low ratio is text of little redundancy; short texts have the
lowest, since the compressed form of any text begins with the same few bytes and knows nothing yet.

Legend: N documents.
"""

from __future__ import annotations

import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa

from jaxprune.data.store import TokenStore
from jaxprune.progress import Meter
from jaxprune.prune import texts
from jaxprune.prune.shards import Measure

LEVEL = 9
VERSION = zlib.ZLIB_RUNTIME_VERSION
"""Decides the result: another version may find other matches."""


def ratio(text: bytes) -> float:
    """Bytes of a text per byte of its compressed form."""
    return len(text) / len(zlib.compress(text, LEVEL))


def load(folder: Path) -> Measure:
    """What measures documents by the compression ratio of their text; `folder` holds the tokenizer.

    The table that it returns holds number and compression (bytes per byte, float64).

    Raises:
      ValueError: the tokenizer changes texts.
    """
    decoder = texts.decoder(folder)

    def measure(store: TokenStore, numbers: np.ndarray, progress: Meter) -> pa.Table:
        def compress(number: int) -> float:
            return ratio(texts.text(store.stored(number), decoder).encode())

        n_tokens_N = store.offsets_N1[numbers + 1] - store.offsets_N1[numbers] - 1
        ratio_N = np.empty(len(numbers))
        with ThreadPoolExecutor() as pool:  # zlib works outside of the interpreter's lock
            for place, found in enumerate(pool.map(compress, numbers.tolist())):
                ratio_N[place] = found
                progress.add(int(n_tokens_N[place]))
        return pa.table({"number": numbers, "compression": ratio_N})

    return measure
