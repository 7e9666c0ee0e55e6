"""The split: its shares, that it hangs on the id and the seed alone, and what each domain is guaranteed."""

import numpy as np
import pytest

from jaxprune.data import split
from jaxprune.data.split import HELDOUT, REFERENCE, TRAIN

NAMES = [f"document {i}" for i in range(20_000)]
HASHES_OF_SEED_0 = [9291544276505575656, 10697156937979104154]  # of "a" and "é"


def splits(folder, ids, domain_N, *, seed=0, heldout=0.05, reference=0.3, batch=1000):
    """{id: split}, written in batches."""
    folder.mkdir(exist_ok=True)
    batches = ((ids[i : i + batch], domain_N[i : i + batch]) for i in range(0, len(ids), batch))
    domains = [f"domain {number}" for number in range(max(domain_N) + 1)]
    shares = {"heldout": heldout, "reference": reference}
    split.write(folder, batches, len(ids), domains, seed=seed, **shares)
    assert np.array_equal(np.load(folder / "domain.npy"), domain_N)
    return dict(zip(ids, np.load(folder / "split.npy").tolist(), strict=True))


def test_shares_are_those_of_the_settings():
    found = split.of_hashes(split.hashes(0, NAMES), 0.05, 0.3)
    share = np.bincount(found, minlength=3) / len(NAMES)
    expected = np.array([0.05, 0.95 * 0.3, 0.95 * 0.7])
    # Four standard deviations of a binomial share.
    assert np.all(abs(share - expected) < 4 * np.sqrt(expected * (1 - expected) / len(NAMES)))


def test_limits():
    quarter = np.array([0, 2**62 - 2**20, 2**62, 2**63 - 2**20, 2**63, 2**64 - 1], np.uint64)
    expected = [HELDOUT, HELDOUT, REFERENCE, REFERENCE, TRAIN, TRAIN]
    assert split.of_hashes(quarter, 0.25, 1 / 3).tolist() == expected


def test_hashes_are_fixed_for_ever():
    # A split that changed between versions would train on what was held out.
    assert split.hashes(0, ["a", "é"]).tolist() == HASHES_OF_SEED_0
    assert split.hashes(1, ["a", "é"]).tolist() != HASHES_OF_SEED_0


def test_seeds_are_independent():
    zero, one = (split.of_hashes(split.hashes(seed, NAMES), 0.05, 0.3) == TRAIN for seed in (0, 1))
    assert abs(np.corrcoef(zero, one)[0, 1]) < 4 / np.sqrt(len(NAMES))


@pytest.mark.parametrize("batch", [1, 7, 1000])
def test_order_and_batches_change_nothing(tmp_path, batch):
    ids, domain_N = NAMES[:200], np.arange(200) % 3
    expected = splits(tmp_path / "a", ids, domain_N)
    order = np.random.default_rng(0).permutation(200)
    shuffled = splits(tmp_path / "b", [ids[i] for i in order], domain_N[order], batch=batch)
    assert shuffled == expected


def test_adding_documents_moves_no_document_but_those_of_the_guarantee(tmp_path):
    few = splits(tmp_path / "a", NAMES[:300], np.arange(300) % 5)
    many = splits(tmp_path / "b", NAMES[:3000], np.arange(3000) % 5)
    moved = [name for name in few if few[name] != many[name]]
    assert len(moved) <= 5 * 8 and all(few[name] == HELDOUT for name in moved)


@pytest.mark.parametrize("batch", [1, 7, 1000])
def test_the_lowest_hashes_of_each_domain_are_held_out(tmp_path, monkeypatch, batch):
    monkeypatch.setattr(split, "_CHUNK", 10)
    guaranteed = {2: 1, 7: 1, 8: 2, 31: 7, 32: 8, 200: 8}  # of how many documents
    domain_N = np.random.default_rng(0).permutation(np.repeat(np.arange(6), list(guaranteed)))
    ids = NAMES[: len(domain_N)]
    found = splits(tmp_path, ids, domain_N, heldout=1e-9, reference=1e-9, batch=batch)
    hash_N = split.hashes(0, ids)
    for domain, count in enumerate(guaranteed.values()):
        members = np.flatnonzero(domain_N == domain)
        lowest = members[np.argsort(hash_N[members])[:count]]
        assert {name for number, name in enumerate(ids) if domain_N[number] == domain and found[name] == HELDOUT} == {ids[number] for number in lowest}  # fmt: skip
    assert not (tmp_path / "hash.npy.tmp").exists()


def test_the_guarantee_adds_nothing_where_the_share_suffices(tmp_path):
    found = splits(tmp_path, NAMES[:600], np.arange(600) % 3, heldout=0.2)
    assert list(found.values()) == split.of_hashes(split.hashes(0, NAMES[:600]), 0.2, 0.3).tolist()


def test_documents_of_one_key_stay_together_where_the_guarantee_ends_too(tmp_path):
    keys = [NAMES[number // 3] for number in range(39)]
    split.write(tmp_path, [(keys, np.zeros(39, int))], 39, ["a"], seed=0, heldout=1e-9, reference=0.3)
    of_piece = np.load(tmp_path / "split.npy").reshape(13, 3)
    assert np.all(of_piece == of_piece[:, :1])
    assert np.count_nonzero(of_piece == HELDOUT) == 9  # 8, and the last piece of the third file


def test_domain_without_training_documents_is_named(tmp_path):
    ids, domain_N = NAMES[:41], np.array([0] * 40 + [1])
    with pytest.raises(ValueError, match=r"'domain 1'.* give it more documents") as raised:
        splits(tmp_path, ids, domain_N)
    assert "domain 0" not in str(raised.value)
    assert not (tmp_path / "split.npy").exists()
