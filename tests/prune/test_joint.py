"""ZIP: greedy order of the joint compression ratio, compared with compressing everything from the start."""

import random
import zlib

import numpy as np
import pytest

from jaxprune.config import Zip
from jaxprune.prune.signals import joint
from jaxprune.prune.signals.compression import ratio
from tests.texts import Silent, text_store

SMALL = Zip(candidates=9, shortlist=5, step=3)


def sentence(seed: int, n_words: int = 60) -> bytes:
    """Text of its own words, so that texts of different seeds have little in common."""
    rng = random.Random(seed)
    words = ["".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=rng.randint(2, 9))) for _ in range(30)]
    return " ".join(rng.choices(words, k=n_words)).encode()


def from_the_start(texts: list[bytes], budget: int, settings: Zip) -> list[int]:
    """The algorithm as the paper has it, everything compressed anew each time."""
    chosen: list[int] = []
    cached = {number: ratio(text) for number, text in enumerate(texts)}
    own = dict(cached)
    while len(chosen) < budget:
        candidates = sorted(cached, key=lambda n: (cached[n], n))[: settings.candidates]
        for n in candidates:
            cached[n] = ratio(b"".join(texts[m] for m in chosen) + texts[n])
        shortlist = sorted(candidates, key=lambda n: cached[n])[: settings.shortlist]
        picked: list[int] = []
        while len(picked) < min(settings.step, budget - len(chosen)) and shortlist:
            so_far = b"".join(texts[m] for m in picked)
            best = min(shortlist, key=lambda n: ratio(so_far + texts[n]))
            shortlist.remove(best)
            picked.append(best)
        chosen += picked
        for n in picked:
            del cached[n]
    left = sorted(set(range(len(texts))) - set(chosen), key=lambda n: (own[n], n))
    return chosen + left


@pytest.fixture(scope="module")
def texts():
    rng = random.Random(1)
    mixed = [sentence(seed % 7, rng.randint(20, 200)) for seed in range(24)]
    return [*mixed, mixed[0], mixed[3]]  # with exact copies, whose ratios are equal


@pytest.mark.parametrize("budget", [1, 7, 26])
def test_the_order_is_that_of_compressing_everything_anew(texts, budget):
    found = joint.order(texts.__getitem__, len(texts), budget, SMALL).tolist()
    assert sorted(found) == list(range(len(texts)))
    assert found == from_the_start(texts, budget, SMALL)


def test_a_copy_waits_until_other_texts_are_chosen():
    a, b, c = sentence(1), sentence(2, 70), sentence(3, 80)
    texts = [a, a, b, c]
    assert ratio(a) < ratio(b) < ratio(c)  # alone, both copies would come first
    everything = Zip(candidates=4, shortlist=4, step=4)
    assert joint.order(texts.__getitem__, 4, 4, everything).tolist() == [0, 2, 3, 1]
    # Across rounds, too: what is chosen already is what the candidates are compressed behind.
    one_by_one = Zip(candidates=4, shortlist=1, step=1)
    assert joint.order(texts.__getitem__, 4, 4, one_by_one).tolist()[-1] == 1


def test_a_copied_compressor_gives_the_exact_length_far_beyond_its_window():
    texts = [sentence(seed, 3000) for seed in range(12)]
    stream = joint._Stream()
    joined = b""
    with joint.ThreadPoolExecutor(2) as pool:
        for text in texts:
            candidates = [texts[0], text, b"", b"x"]
            exact = [len(joined + new) / len(zlib.compress(joined + new, 9)) for new in candidates]
            assert stream.ratios(candidates, pool) == exact
            stream.append(text)
            joined += text
    assert len(joined) > 5 * 32768


def test_a_documents_place_is_looked_up_by_its_number(tmp_path, texts):
    decoded = [text.decode() for text in texts]
    store = text_store(tmp_path, decoded, heldout=[0, 5])
    train = [number for number in range(len(texts)) if number not in (0, 5)]
    measure = joint.load(SMALL, 0.25, tmp_path / "tokenizer", store)
    order = joint.order(lambda place: texts[train[place]], len(train), 6, SMALL)
    table = measure(store, np.array(train)[[3, 1, 20]], Silent())
    assert table["number"].to_pylist() == [train[3], train[1], train[20]]
    assert [order[place] for place in table["zip"].to_pylist()] == [3, 1, 20]
