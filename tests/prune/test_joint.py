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


def from_the_start(texts: list[bytes], settings: Zip) -> list[int]:
    """The algorithm as the paper has it, everything compressed anew each time."""
    chosen: list[int] = []
    cached = {number: ratio(text) for number, text in enumerate(texts)}
    while cached:
        candidates = sorted(cached, key=lambda n: (cached[n], n))[: settings.candidates]
        for n in candidates:
            cached[n] = ratio(b"".join(texts[m] for m in chosen) + texts[n])
        shortlist = sorted(candidates, key=lambda n: cached[n])[: settings.shortlist]
        picked: list[int] = []
        while len(picked) < settings.step and shortlist:
            so_far = b"".join(texts[m] for m in picked)
            best = min(shortlist, key=lambda n: ratio(so_far + texts[n]))
            shortlist.remove(best)
            picked.append(best)
        chosen += picked
        for n in picked:
            del cached[n]
    return chosen


@pytest.fixture(scope="module")
def texts():
    rng = random.Random(1)
    mixed = [sentence(seed % 7, rng.randint(20, 200)) for seed in range(24)]
    return [*mixed, mixed[0], mixed[3]]  # with exact copies, whose ratios are equal


def test_the_order_is_that_of_compressing_everything_anew(texts, tmp_path):
    found = joint.order(texts.__getitem__, len(texts), SMALL, tmp_path / "order").tolist()
    assert sorted(found) == list(range(len(texts)))
    assert found == from_the_start(texts, SMALL)


def test_a_killed_ordering_goes_on_behind_its_last_round(texts, tmp_path):
    whole, path = joint.order(texts.__getitem__, len(texts), SMALL, tmp_path / "whole"), tmp_path / "order"
    for rounds in (1, 4):
        with pytest.MonkeyPatch.context() as patch:
            saves = []

            def save(*arguments, rounds=rounds, saves=saves, save=joint._save):
                save(*arguments)
                saves.append(1)
                if len(saves) == rounds:
                    raise KeyboardInterrupt

            patch.setattr(joint, "_save", save)
            with pytest.raises(KeyboardInterrupt):
                joint.order(texts.__getitem__, len(texts), SMALL, path)
    chosen, _ = joint._saved(path)
    assert chosen == whole[: 5 * SMALL.step].tolist()
    assert joint.order(texts.__getitem__, len(texts), SMALL, path).tolist() == whole.tolist()
    # What is whole is not ordered again, and a damaged file is not believed.
    patched = path.read_bytes()
    path.write_bytes(patched[:200] + bytes([patched[200] ^ 1]) + patched[201:])
    assert joint._saved(path) is None
    assert joint.order(texts.__getitem__, len(texts), SMALL, path).tolist() == whole.tolist()


def test_a_copy_waits_until_other_texts_are_chosen(tmp_path):
    a, b, c = sentence(1), sentence(2, 70), sentence(3, 80)
    texts = [a, a, b, c]
    assert ratio(a) < ratio(b) < ratio(c)  # alone, both copies would come first
    everything = Zip(candidates=4, shortlist=4, step=4)
    assert joint.order(texts.__getitem__, 4, everything, tmp_path / "1").tolist() == [0, 2, 3, 1]
    # Across rounds, too: what is chosen already is what the candidates are compressed behind.
    one_by_one = Zip(candidates=4, shortlist=1, step=1)
    assert joint.order(texts.__getitem__, 4, one_by_one, tmp_path / "2").tolist()[-1] == 1


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
    n_tokens = np.diff(store.offsets_N1)[train] - 1
    least = int(np.sort(n_tokens)[3]) + 1  # four or more have no place, and no text comes after them
    measure = joint.load(SMALL, least, tmp_path / "tokenizer", store, tmp_path)
    ordered = [number for number, n in zip(train, n_tokens, strict=True) if n >= least]
    assert 10 < len(ordered) <= len(train) - 4
    order = joint.order(lambda place: texts[ordered[place]], len(ordered), SMALL, tmp_path / "again")
    asked = [ordered[3], *(set(train) - set(ordered)), ordered[1], ordered[9]]
    table = measure(store, np.array(asked), Silent())
    assert table["number"].to_pylist() == asked
    places = [None if place is None else ordered[order[place]] for place in table["zip"].to_pylist()]
    assert places == [number if number in ordered else None for number in asked]
