"""DSIR: importance weights of hashed words and pairs, compared with their definition."""

import hashlib
import itertools
import json
import re

import numpy as np
import pytest

from jaxprune.config import Config, Corpus, Score, Select
from jaxprune.prune.signals import dsir
from tests.texts import Silent, text_store

TARGET = [
    "The court held that the appeal was allowed. The judge dismissed the appeal, with costs.",
    "The judge held that the appeal was dismissed.",
]
LIKE, LONGER, UNLIKE, LONG_UNLIKE, OUT = range(5)
TEXTS = [
    "the judge held that THE APPEAL was dismissed",
    "the court held that the appeal was dismissed. the judge dismissed the appeal, with costs.",
    "def f(x): return x + 1",
    "import os\nprint(os.getcwd())\n" * 3,
    "The court held that the appeal was dismissed. " * 50,
]


@pytest.fixture(scope="module")
def prepare(tmp_path_factory):
    return tmp_path_factory.mktemp("dsir")


@pytest.fixture(scope="module")
def store(prepare):
    return text_store(prepare, TEXTS, heldout=[OUT])


@pytest.fixture(scope="module")
def target(prepare):
    path = prepare / "target.jsonl"  # neither ids nor domains
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in TARGET))
    return str(path)


def weights(store, prepare, target, numbers=(0, 1, 2, 3)):
    measure = dsir.load(Corpus(), target, prepare / "tokenizer", store)
    return measure(store, np.array(numbers), Silent())["dsir"].to_numpy()


def counts(text):
    words = re.findall(r"\w+|[^\w\s]+", text.lower())
    count = np.zeros(10_000)
    for gram in [*words, *(f"{a} {b}" for a, b in itertools.pairwise(words))]:
        count[int(hashlib.sha256(gram.encode()).hexdigest(), 16) % 10_000] += 1
    return count


def by_definition(raw_texts):
    target, raw = (np.sum([counts(text) for text in texts], axis=0) for texts in (TARGET, raw_texts))
    difference = np.log(target / target.sum() + 1e-8) - np.log(raw / raw.sum() + 1e-8)
    return np.array([counts(text) @ difference for text in TEXTS[:4]])


def test_it_is_the_log_importance_weight_of_hashed_words_and_pairs(store, prepare, target):
    found = weights(store, prepare, target)
    np.testing.assert_allclose(found, by_definition(TEXTS[:4]), rtol=1e-10)
    assert not np.allclose(found, by_definition(TEXTS), rtol=0.01)  # raw is not what is held out


def test_texts_like_the_target_rank_first_and_the_weight_grows_with_length(store, prepare, target):
    found = weights(store, prepare, target)
    assert found[LONGER] > found[LIKE] > 0 > found[UNLIKE] > found[LONG_UNLIKE]


def test_a_document_measured_alone_is_bitwise_the_same(store, prepare, target):
    together = weights(store, prepare, target)
    assert [weights(store, prepare, target, [n])[0] for n in (3, 0)] == [together[3], together[0]]


def test_a_word_is_hashed_once_more_where_no_more_are_remembered(store, prepare, target, monkeypatch):
    remembered = weights(store, prepare, target)
    monkeypatch.setattr(dsir, "_REMEMBERED", 3)
    assert weights(store, prepare, target).tolist() == remembered.tolist()


def test_a_sequence_is_read_as_its_texts_with_a_space_between(tmp_path, target):
    """Words on both sides of the end of a document are not one word, and its spelling is none."""
    pieces = ["the judge held", "that the appeal", "was dismissed"]
    packed = text_store(tmp_path / "packed", [pieces, *TEXTS[2:4]])
    plain = text_store(tmp_path / "plain", [" ".join(pieces), *TEXTS[2:4]])
    found = weights(packed, tmp_path / "packed", target, range(3))
    assert found.tolist() == weights(plain, tmp_path / "plain", target, range(3)).tolist()


def test_a_changed_target_is_another_input(target):
    before = dsir.inputs(Corpus(), target)
    with open(target, "a") as file:
        file.write("\n")
    assert dsir.inputs(Corpus(), target) != before


def test_a_target_of_plain_text_needs_no_domain(store, prepare, target, tmp_path):
    (tmp_path / "wanted").mkdir()
    for number, text in enumerate(TARGET):
        (tmp_path / "wanted" / f"{number}.txt").write_text(text)
    assert (
        weights(store, prepare, str(tmp_path / "wanted")).tolist() == weights(store, prepare, target).tolist()
    )


def test_a_target_that_is_missing_says_so():
    with pytest.raises(ValueError, match="score.target"):
        Config(name="x", select=Select(signals=("dsir",)))
    with pytest.raises(ValueError, match="score.target"):
        dsir.inputs(Corpus(), "nowhere.jsonl")
    Config(name="x", select=Select(signals=("dsir",)), score=Score(target="embedded"))


def test_a_target_without_text_says_so(store, prepare, tmp_path):
    (tmp_path / "empty.jsonl").write_text('{"text": ""}\n')
    with pytest.raises(ValueError, match="score.target"):
        dsir.load(Corpus(), str(tmp_path / "empty.jsonl"), prepare / "tokenizer", store)
