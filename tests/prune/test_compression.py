"""Compression ratio: of the document's own bytes, larger where it repeats itself."""

import random
import zlib

import numpy as np
import pytest

from jaxprune.prune.signals import compression
from tests.texts import Silent, text_store

PROSE = (
    "The committee met on Tuesday to discuss the bridge, whose northern pier had moved by almost two inches "
    "since the spring. Nobody could say why; the engineer suspected the river, the mayor the engineer."
)
TEXTS = {
    "repeated": "buy now! " * 40,
    "prose": PROSE,
    "noise": "".join(random.Random(0).choices("abcdefghijklmnopqrstuvwxyz0123456789", k=200)),
    "non-ascii": "Größe, naïve café — 漢字かな ▁ \t\n" * 3,
    "one": "x",
    "long": " ".join(random.Random(1).choices(PROSE.split(), k=4000)),
}


@pytest.fixture(scope="module")
def prepare(tmp_path_factory):
    return tmp_path_factory.mktemp("compression")


@pytest.fixture(scope="module")
def store(prepare):
    return text_store(prepare, list(TEXTS.values()))


def test_it_is_the_bytes_of_the_text_over_those_of_its_compressed_form(prepare, store):
    progress = Silent()
    table = compression.load(prepare / "tokenizer")(store, np.arange(len(TEXTS)), progress)
    assert progress.done == len(store.tokens) - len(TEXTS)
    found = dict(zip(TEXTS, table["compression"].to_pylist(), strict=True))
    for name, text in TEXTS.items():
        assert found[name] == len(text.encode()) / len(zlib.compress(text.encode(), 9)), name
    assert found["repeated"] > 10 > found["prose"] > found["noise"] > 1 > found["one"]
    lengths = {level: len(zlib.compress(TEXTS["long"].encode(), level)) for level in (1, 6, 9)}
    assert len(set(lengths.values())) == 3  # the level is seen
    text = TEXTS["non-ascii"]  # its characters are not its bytes
    assert found["non-ascii"] > 1.2 * len(text) / len(zlib.compress(text.encode(), 9))


def test_the_texts_of_a_sequence_are_compressed_with_a_blank_line_between(tmp_path):
    store = text_store(tmp_path, [[PROSE, "", PROSE[:50]]])
    [found] = compression.load(tmp_path / "tokenizer")(store, np.arange(1), Silent())[
        "compression"
    ].to_pylist()
    assert found == compression.ratio(f"{PROSE}\n\n{PROSE[:50]}".encode())


def test_the_order_of_documents_does_not_matter(prepare, store):
    measure = compression.load(prepare / "tokenizer")
    together = measure(store, np.arange(len(TEXTS)), Silent()).to_pylist()
    assert measure(store, np.array([3, 0]), Silent()).to_pylist() == [together[3], together[0]]
