"""Documents of a token store in the tokens of another model.

Texts come back from the store's tokens and are encoded anew; a translated document is the model's
end-of-document token (EOD) followed by its text tokens, as in a store, so that its first token is predicted.
In a packed sequence every EOD becomes the model's, and every text between is encoded by itself.

Legend: N documents.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np

from jaxprune.data.store import TokenStore
from jaxprune.data.tokenizer import Encoder
from jaxprune.prune import texts


@dataclass(frozen=True, kw_only=True)
class Translation:
    """From a store's tokens into those of `encoder`, for a model of `vocab_size` tokens."""

    encoder: Encoder
    vocab_size: int

    def __call__(self, store: TokenStore, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Translates documents.

        Args:
          store: what `jaxprune prepare` left, its tokenizer beside it.
          numbers: of the documents, int64 [N].

        Returns:
          (tokens, offsets_N1) as in a store: the documents end to end, and where each begins.

        Raises:
          ValueError: the tokenizer knows tokens that the model does not, or the store's does not give texts back.
        """
        decoder = texts.decoder(store.folder.parent / "tokenizer")
        pieces_N = [texts.pieces(store.stored(number), decoder) for number in numbers.tolist()]
        eod = np.array([self.encoder.eod_id], np.int32)
        encoded = [
            np.concatenate([eod, tokens])
            for tokens in self.encoder.encode(list(itertools.chain.from_iterable(pieces_N)))
        ]
        tokens = np.concatenate([*encoded, np.zeros(0, np.int32)])
        check_known(tokens, self.vocab_size)
        ends = np.cumsum([0, *map(len, encoded)])
        return tokens, ends[np.cumsum([0, *map(len, pieces_N)])]


def check_known(tokens: np.ndarray, vocab_size: int) -> None:
    """Raises ValueError: a model of `vocab_size` tokens does not know one of these, which its tokenizer made."""
    if len(tokens) and tokens.max() >= vocab_size:
        raise ValueError(
            f"the tokenizer of the model that scores makes token {tokens.max()}, and the model knows "
            f"{vocab_size}: give it the tokenizer that it was trained with"
        )
