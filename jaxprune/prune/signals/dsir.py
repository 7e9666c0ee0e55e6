"""DSIR: how much more likely a document is under a target's words than under those of the corpus.

Source: Xie et al., Data Selection for Language Models via Importance Resampling (arXiv 2302.03169). The words
of a text are the runs of word characters and the runs of other non-spaces of its lower case (wordpunct); its
features are how often each of 10,000 buckets is hit by its words and pairs of adjacent words (joined by a
space), the bucket being their SHA-256 modulo 10,000. With p the buckets' shares of all hits in the target and
in the documents that may be pruned (raw), the log importance weight of a document is
sum_b count_b (ln(p_target,b + 1e-8) - ln(p_raw,b + 1e-8)), in nats. It grows with length: the authors do not
divide by it. They leave out texts of fewer than 100 words, which is select.min_tokens, and resample:
select.criterion "proportional".

Legend: N documents, W words and pairs of a document, F buckets.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa

from jaxprune.config import Corpus
from jaxprune.data import corpus
from jaxprune.data.store import TRAIN, TokenStore
from jaxprune.progress import Meter, meter
from jaxprune.prune import texts
from jaxprune.prune.shards import Measure

_BUCKETS = 10_000
_FLOOR = 1e-8
_WORDS = re.compile(r"\w+|[^\w\s]+")
_REMEMBERED = 2_000_000  # words and pairs whose bucket is kept: some 300 MB


def load(settings: Corpus, target: str, folder: Path, store: TokenStore) -> Measure:
    """Counts the words of the target and of the documents, and gives what measures documents by them.

    Args:
      settings: how the target is read, but for its source.
      target: a source, as in corpus.sources.
      folder: holds the tokenizer of the store.

    The table that it returns holds number and dsir (nats, float64).

    Raises:
      ValueError: the target cannot be read, or holds no documents; the tokenizer changes texts.
    """
    decoder = texts.decoder(folder)
    buckets = _Buckets()

    def features(number: int) -> np.ndarray:
        return buckets.of(texts.text(store.stored(number), decoder))

    numbers = store.documents(TRAIN)
    target_F, raw_F = np.zeros((2, _BUCKETS), np.int64)
    for text in _texts(settings, target):
        np.add.at(target_F, buckets.of(text), 1)
    n_tokens_N = np.diff(store.offsets_N1) - 1
    with meter("dsir: counting", int(n_tokens_N[numbers].sum()), "tokens") as progress:
        for number in numbers.tolist():
            np.add.at(raw_F, features(number), 1)
            progress.add(int(n_tokens_N[number]))
    if not target_F.any():
        raise ValueError(f"score.target is {target}, which holds no words: name text that documents should be like")  # fmt: skip
    weight_F = _log_share(target_F) - _log_share(raw_F)

    def measure(store: TokenStore, numbers: np.ndarray, progress: Meter) -> pa.Table:
        weight_N = np.empty(len(numbers))
        for place, number in enumerate(numbers.tolist()):
            weight_N[place] = weight_F[features(number)].sum()
            progress.add(int(n_tokens_N[number]))
        return pa.table({"number": numbers, "dsir": weight_N})

    return measure


def inputs(settings: Corpus, target: str) -> dict[str, str]:
    """The fingerprint of each part of the target."""
    return {f"target {part.name}": corpus.fingerprint(part) for part in parts(settings, target)}


def parts(settings: Corpus, target: str) -> list[corpus.Part]:
    """The parts of the target, which needs no domain.

    Raises:
      ValueError: the target stands for nothing that can be read.
    """
    try:
        return corpus.parts(dataclasses.replace(settings, sources=(target,)), needs_domain=False)
    except ValueError as error:
        raise ValueError(f"score.target: {error}") from None


def _texts(settings: Corpus, target: str) -> Iterator[str]:
    """The texts of the target, whose records need no id and no domain."""
    settings = dataclasses.replace(settings, id_field="")
    found = parts(settings, target)
    with meter("dsir: target", sum(part.n_bytes for part in found), "bytes") as progress:
        for part in found:
            part = dataclasses.replace(part, domain=part.domain or "target")
            for document in corpus.read(part, settings, progress.add):
                if isinstance(document, corpus.Document):
                    yield document.text


def _log_share(count_F: np.ndarray) -> np.ndarray:
    return np.log(count_F / count_F.sum() + _FLOOR)


class _Buckets(dict[str, int]):
    """The bucket of each word and pair that was met."""

    def __missing__(self, words: str) -> int:
        bucket = int.from_bytes(hashlib.sha256(words.encode()).digest()) % _BUCKETS
        if len(self) < _REMEMBERED:
            self[words] = bucket
        return bucket

    def of(self, text: str) -> np.ndarray:
        """The buckets of a text's words, then of its pairs: int64, [W]."""
        words = _WORDS.findall(text.lower())
        pairs = map(" ".join, itertools.pairwise(words))
        return np.fromiter(map(self.__getitem__, itertools.chain(words, pairs)), np.int64)
