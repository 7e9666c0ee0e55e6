"""Translation: a document in the tokens of another model, and a packed sequence text by text."""

import itertools
import json

import numpy as np
import pytest

from jaxprune.config import Corpus, Zip
from jaxprune.data import tokenizer
from jaxprune.prune import texts
from jaxprune.prune.signals import compression, dsir, joint
from jaxprune.prune.translation import Translation
from tests.texts import text_store

DOCUMENTS = ["what it finds\n", ["of another", " text", ""], ["", "a text", "", "and one"], "the last"]


class Bytes:
    """A token for each byte, from 1 on; EOD is 300."""

    vocab_size, eod_id = 301, 300

    def encode(self, texts, special=False):
        return [np.frombuffer(text.encode(), np.uint8).astype(np.int32) + 1 for text in texts]

    def decode(self, tokens):
        return bytes((np.asarray(tokens) - 1).tolist()).decode()


@pytest.fixture
def store(tmp_path):
    return text_store(tmp_path, DOCUMENTS)


def test_every_end_of_a_document_becomes_the_models_own(store):
    tokens, offsets = Translation(encoder=Bytes(), vocab_size=301)(store, np.array([2, 0, 1]))
    expected = []
    for document in (DOCUMENTS[2], [DOCUMENTS[0]], DOCUMENTS[1]):
        expected.append(
            [token for text in document for token in (300, *(byte + 1 for byte in text.encode()))]
        )
    assert tokens.tolist() == list(itertools.chain.from_iterable(expected))
    assert np.diff(offsets).tolist() == [len(document) for document in expected]
    with pytest.raises(ValueError, match="makes token 300, and the model knows 300"):
        Translation(encoder=Bytes(), vocab_size=300)(store, np.array([0]))


def test_a_sequence_read_as_one_text_has_blank_lines_between(store, tmp_path):
    decoder = texts.decoder(tmp_path / "tokenizer")
    read = [texts.text(store.stored(number), decoder) for number in range(4)]
    assert read == ["what it finds\n", "of another\n\n text", "a text\n\nand one", "the last"]


def test_a_tokenizer_that_changes_texts_is_refused(store, tmp_path):
    folder = tmp_path / "tokenizer"
    meta = tokenizer.read_meta(folder)
    (folder / "meta.json").write_text(json.dumps({**meta, "lossless": False}))
    for read in (
        lambda: compression.load(folder),
        lambda: joint.load(Zip(), 1, folder, store, tmp_path),
        lambda: dsir.load(Corpus(), "embedded", folder, store),
        lambda: Translation(encoder=Bytes(), vocab_size=301)(store, np.array([0])),
    ):
        with pytest.raises(ValueError, match=r"tokenizer\.path"):
            read()
