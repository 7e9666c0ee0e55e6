"""Documents of a token store in the tokens of another model.

Texts come back from the store's tokens and are encoded anew; a translated document is the model's
end-of-document token followed by its text tokens, as in a store, so that its first token is predicted.

Legend: N documents.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from jaxprune.data import tokenizer
from jaxprune.data.store import TokenStore
from jaxprune.data.tokenizer import Encoder


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
          ValueError: the tokenizer knows tokens that the model does not.
        """
        decoder = tokenizer.load(store.folder.parent / "tokenizer")
        texts = [decoder.decode(store.stored(number)[1:]) for number in numbers.tolist()]
        eod = np.array([self.encoder.eod_id], np.int32)
        documents = [np.concatenate([eod, tokens]) for tokens in self.encoder.encode(texts)]
        tokens = np.concatenate([*documents, np.zeros(0, np.int32)])
        if len(tokens) and tokens.max() >= self.vocab_size:
            raise ValueError(
                f"the tokenizer of the model that scores makes token {tokens.max()}, and the model knows "
                f"{self.vocab_size}: give it the tokenizer that it was trained with"
            )
        return tokens, np.cumsum([0, *map(len, documents)])
