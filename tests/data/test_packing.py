"""Packed sequences: the documents of a domain end to end, cut, and nothing else changed."""

import numpy as np
import pytest
from corpora import write_corpus

from jaxprune import config
from jaxprune.artifact import Workdir, read_manifest
from jaxprune.data import packing, prepare, tokenizer
from jaxprune.data.store import TRAIN, TokenStore

LENGTH = 50


def prepared(workdir, source, **packing):
    prepare.run(
        config.Config(
            name="x",
            corpus=config.Corpus(sources=(str(source),), **packing),
            tokenizer=config.Tokenizer(vocab_size=400, train_bytes=40_000),
        ),
        workdir,
    )
    return TokenStore(workdir.prepare / "tokens")


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("corpus"), documents=60)


@pytest.fixture(scope="module")
def unpacked(source, tmp_path_factory):
    return prepared(Workdir(tmp_path_factory.mktemp("unpacked")), source)


@pytest.fixture(scope="module")
def packed(source, tmp_path_factory):
    root = tmp_path_factory.mktemp("packed")
    return prepared(Workdir(root), source, sequence_tokens=LENGTH)


def test_the_sequences_of_a_domain_are_its_documents_end_to_end(unpacked, packed):
    for domain in range(len(unpacked.domains)):
        before, after = (
            [s.stored(n) for n in np.flatnonzero((s.split_N == TRAIN) & (s.domain_N == domain))]
            for s in (unpacked, packed)
        )
        assert len(after) > 3
        assert {len(sequence) - 1 for sequence in after[:-1]} == {LENGTH}
        assert 0 < len(after[-1]) - 1 <= LENGTH
        assert {int(sequence[0]) for sequence in after} == {packed.eod_id}
        np.testing.assert_array_equal(
            np.concatenate([sequence[1:] for sequence in after]), np.concatenate(before)[1:]
        )


def test_documents_that_are_not_pruned_stay_as_they_are(unpacked, packed):
    before, after = (np.flatnonzero(s.split_N != TRAIN) for s in (unpacked, packed))
    assert len(before) > 10 and packed.ids(after) == unpacked.ids(before)
    for old, new in zip(before, after, strict=True):
        np.testing.assert_array_equal(packed.stored(new), unpacked.stored(old))
        assert packed.n_bytes_N[new] == unpacked.n_bytes_N[old]
        assert packed.split_N[new] == unpacked.split_N[old]


def test_ids_are_unique_and_bytes_are_those_of_the_text(unpacked, packed):
    ids = packed.ids(np.arange(packed.n_documents))
    assert len(set(ids)) == packed.n_documents
    # The text is ASCII: no character is cut in two.
    assert packed.n_bytes_N.sum() == unpacked.n_bytes_N.sum()


def test_a_killed_packing_is_done_again(source, packed, tmp_path, monkeypatch):
    class Killed(BaseException):
        pass

    def killed(sequence, encoder):
        raise Killed

    workdir = Workdir(tmp_path)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(packing, "_text_bytes", killed)
        prepared(workdir, source, sequence_tokens=LENGTH)
    trained = []
    monkeypatch.setattr(tokenizer, "train", lambda *arguments: trained.append(arguments))
    again = prepared(workdir, source, sequence_tokens=LENGTH)
    assert not trained
    np.testing.assert_array_equal(again.tokens, packed.tokens)
    np.testing.assert_array_equal(again.offsets_N1, packed.offsets_N1)
    manifest = read_manifest(workdir.prepare)
    assert manifest and manifest.counts["documents"]


def test_a_length_is_all_it_takes():
    """No length is left over in what stands for a corpus of documents."""
    assert config.identity(config.Corpus())["sequence_tokens"] is None
    with pytest.raises(ValueError, match="sequence_tokens is 0: set a number above 0, .* or None"):
        config.Corpus(sequence_tokens=0)
