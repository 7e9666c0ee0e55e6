"""Token stores made of given texts or tokens, for tests."""

import itertools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from jaxprune.config import Tokenizer
from jaxprune.data import tokenizer
from jaxprune.data.store import HELDOUT, TRAIN, TokenStore, Writer
from jaxprune.progress import Meter


class Silent(Meter):
    """A meter that shows nothing."""

    def __init__(self) -> None:
        self.done = 0.0

    def tell(self, note: str) -> None: ...

    def add(self, amount: float, note: str = "") -> None:
        self.done += amount


def token_store(
    folder: Path,
    documents: Sequence[Sequence[int] | np.ndarray],
    heldout: Sequence[int] = (),
    vocab_size: int = 100,
) -> TokenStore:
    """A store of documents given by their tokens, from 1 on; all may be pruned, except those held out.

    A 0 inside is an end-of-document token: the document is a packed sequence.
    """
    tokens = [np.array(document, np.int32) for document in documents]
    return _write(folder, tokens, [len(document) for document in documents], heldout, vocab_size, eod_id=0)


def text_store(
    prepare: Path, texts: Sequence[str | Sequence[str]], heldout: Sequence[int] = ()
) -> TokenStore:
    """A store of texts in `prepare`/tokens, and the tokenizer trained on them in `prepare`/tokenizer.

    Several texts in place of one are a packed sequence.
    """
    pieces = [[text] if isinstance(text, str) else list(text) for text in texts]
    letters = "".join(map(chr, range(32, 127)))
    corpus = [*itertools.chain.from_iterable(pieces), letters]
    tokenizer.train(corpus, Tokenizer(vocab_size=380), prepare / "tokenizer")
    encoder = tokenizer.load(prepare / "tokenizer")
    eod = [encoder.eod_id]
    tokens = [
        np.concatenate([part for piece in encoder.encode(document) for part in (eod, piece)])[1:]
        for document in pieces
    ]
    n_bytes = [len("".join(document).encode()) for document in pieces]
    return _write(prepare / "tokens", tokens, n_bytes, heldout, encoder.vocab_size, encoder.eod_id)


def _write(
    folder: Path,
    tokens: Sequence[np.ndarray],
    n_bytes: Sequence[int],
    heldout: Sequence[int],
    vocab_size: int,
    eod_id: int,
) -> TokenStore:
    folder.mkdir(parents=True)
    is_out_N = np.isin(np.arange(len(tokens)), heldout)
    np.save(folder / "domain.npy", np.zeros(len(tokens), np.uint16))
    np.save(folder / "split.npy", np.where(is_out_N, HELDOUT, TRAIN).astype(np.uint8))
    writer = Writer(folder, folder.parent / f"{folder.name}.json", vocab_size, eod_id, eod_inside=True)
    writer.append(tokens, np.array(n_bytes))
    writer.finish([pa.chunked_array([[f"document {n}" for n in range(len(tokens))]])], ["all"], "")
    return TokenStore(folder)
