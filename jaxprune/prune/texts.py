"""The texts of stored documents, for signals and models that read text in place of the store's tokens.

A document has one text. A packed sequence (data/packing.py) has those that its end-of-document tokens (EOD)
separate, of which the first and the last may be cut anywhere.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from jaxprune.data import tokenizer
from jaxprune.data.tokenizer import Encoder

_BETWEEN = "\n\n"  # the texts of a sequence, read as one


def decoder(folder: Path, threads: int = 1) -> Encoder:
    """The tokenizer of a store, which gives texts back.

    Raises:
      ValueError: what it gives back is another text.
    """
    if not tokenizer.read_meta(folder).get("lossless", True):
        raise ValueError(
            "the tokenizer of tokenizer.path changes texts, so that what needs the documents' texts (dsir, "
            "compression, zip, ask_llm, a model with its own tokenizer) would read others: set tokenizer.path to one "
            "that gives them back, or leave it out to train one"
        )
    return tokenizer.load(folder, threads)


def pieces(stored: np.ndarray, decoder: Encoder) -> list[str]:
    """The text behind each EOD of a stored document or sequence; empty where two are adjacent."""
    parts = np.split(stored, np.flatnonzero(stored == decoder.eod_id))[1:]  # before the first is nothing
    return [decoder.decode(part[1:]) for part in parts]


def text(stored: np.ndarray, decoder: Encoder) -> str:
    """Of a sequence, its texts with a blank line between."""
    return _BETWEEN.join(filter(None, pieces(stored, decoder)))
