"""The token store: what goes in comes out, however often the writer is killed."""

import pickle

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jaxprune.data import split, store
from jaxprune.data.store import HELDOUT, REFERENCE, TRAIN, TokenStore, Writer

DOMAINS = ("code", "prose")
EOD = 1


def documents(n, vocab_size, seed=0):
    """Ids, domains, tokens and bytes of n documents; some have no tokens."""
    rng = np.random.default_rng(seed)
    tokens = [rng.integers(2, vocab_size, rng.integers(0, 9)).astype(np.int32) for _ in range(n)]
    return [f"id-{i}" for i in range(n)], np.arange(n) % 2, tokens, rng.integers(1, 99, n)


def start(folder, n, vocab_size=500):
    ids, domain_N, tokens, n_bytes_N = documents(n, vocab_size)
    folder.mkdir()
    shares = {"heldout": 0.2, "reference": 0.3}
    split.write(folder, [(ids, domain_N)], n, DOMAINS, seed=0, **shares)
    return ids, tokens, n_bytes_N


def write(folder, ids, tokens, n_bytes_N, *, batch=4, vocab_size=500, stop_after=None):
    """Appends in batches from where the journal is; stops as if killed after some batches."""
    writer = Writer(folder, folder.parent / "journal.json", vocab_size, EOD)
    n_batches = -(-len(ids) // batch)
    for number in range(writer.done["batches"], n_batches):
        if number == stop_after:
            return
        rows = slice(number * batch, (number + 1) * batch)
        writer.append(tokens[rows], n_bytes_N[rows])
    batches = [ids[i : i + 5] for i in range(0, len(ids), 5)]
    writer.finish([pa.chunked_array([batch], pa.string()) for batch in [*batches, []]], DOMAINS, "digest")


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize(("vocab_size", "dtype"), [(500, "uint16"), (65_536, "uint16"), (65_537, "uint32")])
def test_documents_come_back(tmp_path, vocab_size, dtype):
    ids, tokens, n_bytes_N = start(tmp_path / "s", 23, vocab_size)
    tokens[3] = np.array([vocab_size - 1] * 3, np.int32)
    write(tmp_path / "s", ids, tokens, n_bytes_N, vocab_size=vocab_size)
    found = TokenStore(tmp_path / "s")
    assert (found.n_documents, found.vocab_size, found.eod_id, found.domains) == (
        23,
        vocab_size,
        EOD,
        DOMAINS,
    )
    assert found.tokens.dtype == dtype
    assert len(found.offsets_N1) == 24
    for number in range(23):
        assert found.stored(number).tolist() == [EOD, *tokens[number].tolist()]
    assert np.array_equal(found.n_bytes_N, n_bytes_N)
    assert np.count_nonzero(found.tokens == EOD) == 23


def test_splits_and_index_agree_with_the_arrays(tmp_path):
    ids, tokens, n_bytes_N = start(tmp_path / "s", 23)
    write(tmp_path / "s", ids, tokens, n_bytes_N)
    found = TokenStore(tmp_path / "s")
    parts = [found.documents(number) for number in (HELDOUT, REFERENCE, TRAIN)]
    assert all(part.dtype == np.int64 and np.all(np.diff(part) > 0) for part in parts)
    assert sorted(np.concatenate(parts).tolist()) == list(range(23))
    index = pq.read_table(tmp_path / "s" / "index.parquet").to_pydict()
    assert index["number"] == list(range(23))
    assert index["id"] == ids
    assert index["domain"] == [DOMAINS[i % 2] for i in range(23)]
    assert index["split"] == [store.SPLITS[number] for number in found.split_N]
    assert index["n_tokens"] == [len(document) for document in tokens]
    assert index["n_bytes"] == n_bytes_N.tolist()
    assert found.ids(np.array([22, 0, 7, 7, 5, 4])) == [ids[i] for i in (22, 0, 7, 7, 5, 4)]
    assert found.ids(np.zeros(0, np.int64)) == []


def test_the_index_has_few_row_groups_and_its_footer_is_read_once(tmp_path, monkeypatch):
    monkeypatch.setattr(store, "_INDEX_ROWS", 10)
    ids, tokens, n_bytes_N = start(tmp_path / "s", 23)
    write(tmp_path / "s", ids, tokens, n_bytes_N)
    path = tmp_path / "s" / "index.parquet"
    footer = pq.read_metadata(path)
    assert [footer.row_group(i).num_rows for i in range(footer.num_row_groups)] == [10, 10, 3]
    found = TokenStore(tmp_path / "s")
    assert found.ids(np.array([9, 10])) == [ids[9], ids[10]]
    with path.open("r+b") as file:  # the length of the footer, and the mark that ends the file
        file.seek(-8, 2)
        file.write(bytes(8))
    assert found.ids(np.arange(23)[::-1]) == ids[::-1]


def test_totals_are_sums_over_the_index(tmp_path, monkeypatch):
    monkeypatch.setattr(store, "_CHUNK", 5)
    ids, tokens, n_bytes_N = start(tmp_path / "s", 23)
    write(tmp_path / "s", ids, tokens, n_bytes_N)
    totals = store.totals(tmp_path / "s", DOMAINS)
    rows = pq.read_table(tmp_path / "s" / "index.parquet").to_pylist()
    for domain in DOMAINS:
        for name in store.SPLITS:
            of_cell = [row for row in rows if (row["domain"], row["split"]) == (domain, name)]
            assert totals["documents"][domain][name] == len(of_cell)
            assert totals["tokens"][domain][name] == sum(row["n_tokens"] for row in of_cell)
            assert totals["bytes"][domain][name] == sum(row["n_bytes"] for row in of_cell)


def test_pickles_as_its_folder(tmp_path):
    ids, tokens, n_bytes_N = start(tmp_path / "s", 23)
    write(tmp_path / "s", ids, tokens, n_bytes_N)
    pickled = pickle.dumps(TokenStore(tmp_path / "s"))
    assert len(pickled) < 1000
    assert pickle.loads(pickled).stored(5).tolist() == [EOD, *tokens[5].tolist()]


@pytest.mark.parametrize("commit_bytes", [1, 80, 10**9])
@pytest.mark.parametrize("stop_after", range(6))
def test_a_killed_writer_continues_to_the_same_files(tmp_path, monkeypatch, stop_after, commit_bytes):
    monkeypatch.setattr(store, "_COMMIT_BYTES", commit_bytes)
    made = start(tmp_path / "whole", 23)
    write(tmp_path / "whole", *made)
    (tmp_path / "journal.json").unlink()
    start(tmp_path / "killed", 23)
    write(tmp_path / "killed", *made, stop_after=stop_after)
    # What a kill in the middle of a batch leaves: tokens and offsets that the journal does not know.
    with (tmp_path / "killed" / "tokens").open("ab") as file:
        file.write(b"\xff" * 7)
    offsets_N1 = np.load(tmp_path / "killed" / "offsets.npy", mmap_mode="r+")
    offsets_N1[stop_after * 4 + 1 :] = -1
    write(tmp_path / "killed", *made)
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")


@pytest.mark.parametrize("commit_bytes", [1, 80, 10**9])
def test_a_killed_writer_does_at_most_so_much_again_and_syncs_seldom(tmp_path, monkeypatch, commit_bytes):
    monkeypatch.setattr(store, "_COMMIT_BYTES", commit_bytes)
    synced = []
    monkeypatch.setattr(store.os, "fsync", synced.append)
    ids, tokens, n_bytes_N = start(tmp_path / "s", 23)
    write(tmp_path / "s", ids, tokens, n_bytes_N, stop_after=5)
    n_bytes = sum(2 * (len(document) + 1) for document in tokens[:20])
    # A commit syncs the tokens and the journal; a new writer, the journal.
    assert len(synced) <= 1 + 2 * (n_bytes // commit_bytes)
    reopened = Writer(tmp_path / "s", tmp_path / "journal.json", 500, EOD)
    assert n_bytes - 2 * reopened.done["tokens"] < commit_bytes
    assert reopened.done["documents"] == 4 * reopened.done["batches"]


@pytest.mark.parametrize("missing", [1, 1000])
def test_a_tokens_file_that_is_shorter_than_the_journal_says_is_an_error(tmp_path, monkeypatch, missing):
    """Lengthened, it would hold zeros, which are tokens like others."""
    monkeypatch.setattr(store, "_COMMIT_BYTES", 1)
    made = start(tmp_path / "s", 23)
    write(tmp_path / "s", *made, stop_after=3)
    path = tmp_path / "s" / "tokens"
    short = path.read_bytes()[:-missing]
    path.write_bytes(short)
    with pytest.raises(ValueError, match=r"damaged, delete .*journal.json and run `jaxprune prepare`"):
        write(tmp_path / "s", *made)
    assert path.read_bytes() == short


def test_text_that_holds_the_eod_token_is_an_error(tmp_path):
    ids, tokens, n_bytes_N = start(tmp_path / "s", 23)
    tokens[9] = np.array([5, EOD], np.int32)
    with pytest.raises(ValueError, match=r"set tokenizer.eod_token"):
        write(tmp_path / "s", ids, tokens, n_bytes_N)


def test_missing_and_damaged_stores_say_so(tmp_path):
    with pytest.raises(ValueError, match="run `jaxprune prepare`"):
        TokenStore(tmp_path / "absent")
    ids, tokens, n_bytes_N = start(tmp_path / "s", 23)
    write(tmp_path / "s", ids, tokens, n_bytes_N)
    with (tmp_path / "s" / "tokens").open("r+b") as file:
        file.truncate(20)
    with pytest.raises(ValueError, match="damaged"):
        TokenStore(tmp_path / "s")
