"""Density: the sketch against the kernel that it estimates, and what ranks high."""

import os

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy.stats import norm

from jaxprune.artifact import Workdir
from jaxprune.config import Density
from jaxprune.prune.signals import density, hashed
from tests.texts import Silent, token_store


def densities(store, settings, numbers=None):
    numbers = np.arange(store.n_documents) if numbers is None else np.array(numbers)
    return density.load(settings, store)(store, numbers, Silent())["density"].to_numpy()


def given(folder, x_ND, **settings):
    """A store of as many documents as there are embeddings, and the settings that read them."""
    np.save(folder / "x.npy", x_ND)
    store = token_store(folder / "tokens", [[1, 2]] * len(x_ND))
    return store, Density(embeddings=str(folder / "x.npy"), **settings)


def kernel(distance, bandwidth, projections):
    """Probability that two points share the cells of all projections."""
    c, w = np.maximum(distance, 1e-12), bandwidth
    one = 1 - 2 * norm.cdf(-w / c) - 2 * c / (np.sqrt(2 * np.pi) * w) * (1 - np.exp(-((w / c) ** 2) / 2))
    return one**projections


@pytest.mark.parametrize(
    ("projections", "buckets", "w"), [(1, 2000, 0.8), (3, 1000, 0.8), (2, 5, 0.8), (2, 1000, 4.0)]
)
def test_it_estimates_the_kernel_density(tmp_path, projections, buckets, w):
    rng = np.random.default_rng(0)
    x = np.concatenate([rng.normal(size=(20, 16)), [1.0] + [0.0] * 15 + 0.1 * rng.normal(size=(20, 16))])
    rows = 1500
    store, settings = given(tmp_path, 7 * x, rows=rows, buckets=buckets, projections=projections, bandwidth=w)
    found = np.exp(densities(store, settings))
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    distance = np.linalg.norm(x[:, None] - x[None], axis=2)

    def expected(k):
        return k + (1 - k) / buckets

    p = expected(kernel(distance, w, projections))
    # The variance of a sum of indicators is at most the square of the sum of their deviations.
    tolerance = 4 * np.sqrt(p * (1 - p)).sum(axis=1) / np.sqrt(rows)
    assert (np.abs(found - p.sum(axis=1)) < tolerance).all()
    for wrong in (kernel(distance, 2 * w, projections), kernel(distance, w, projections + 1)):
        assert (np.abs(found - expected(wrong).sum(axis=1)) > tolerance).any()


def near_copies(rng, n, n_tokens=80):
    base = rng.integers(1, 2000, n_tokens)
    copies = np.repeat(base[None], n, axis=0)
    copies[np.arange(n), rng.integers(0, n_tokens, n)] = rng.integers(1, 2000, n)
    return list(copies)


@pytest.fixture(scope="module")
def documents():
    rng = np.random.default_rng(0)
    alone = [rng.integers(1, 2000, rng.integers(30, 150)) for _ in range(40)]
    return [*near_copies(rng, 12), *alone]


SMALL = Density(dimensions=128, rows=200, buckets=1000)


def test_copies_are_dense_and_texts_of_their_own_are_not(documents, tmp_path):
    store = token_store(tmp_path / "tokens", documents, vocab_size=2000)
    found = densities(store, SMALL)
    assert found[:12].min() > found[12:].max() + 0.5
    assert (found[:12] < np.log(12) + 1).all()  # it counts documents
    assert (found >= 0).all()  # and each counts itself
    kept = np.exp(-found)  # the inverse, by which documents are kept: copies together weigh about one
    assert kept[:12].sum() < 0.2 * 12
    assert kept[12:].min() > 2 * kept[:12].max()


def test_it_is_bitwise_the_same_in_any_order_and_for_a_document_alone(documents, tmp_path):
    store = token_store(tmp_path / "tokens", documents, vocab_size=2000)
    together = densities(store, SMALL)
    alone = [densities(store, SMALL, [number])[0] for number in (0, 7, 51)]
    assert alone == together[[0, 7, 51]].tolist()
    order = np.random.default_rng(1).permutation(len(documents))
    other = token_store(tmp_path / "other", [documents[number] for number in order], vocab_size=2000)
    assert densities(other, SMALL).tolist() == together[order].tolist()


def test_projections_add_up_exactly_in_any_order():
    rng = np.random.default_rng(4)
    x, a = rng.normal(size=(8, 300)), rng.normal(size=(300, 5))
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    other = rng.permutation(300)
    assert (x @ a != x[:, other] @ a[other]).any()
    x, a = density._on_grid(x), density._on_grid(a)
    assert (x @ a == x[:, other] @ a[other]).all()


def test_only_documents_that_may_be_pruned_are_counted(documents, tmp_path):
    store = token_store(tmp_path / "tokens", documents, heldout=range(1, 12), vocab_size=2000)
    found = densities(store, SMALL, [0, *range(12, 52)])
    assert found[0] < found[1:].max() + 0.2  # its copies are held out


def test_words_in_another_order_are_another_document_but_a_near_one(tmp_path):
    rng = np.random.default_rng(2)
    words = rng.permutation(np.arange(1, 200))
    store = token_store(
        tmp_path / "tokens", [words, words, rng.permutation(words), words + 300], vocab_size=600
    )
    [[_, x]] = hashed.embedder(store, 256)(np.arange(4))
    np.testing.assert_allclose(np.linalg.norm(x, axis=1), 1, rtol=1e-12)
    assert (x[0] == x[1]).all()
    assert x[0] @ x[1] > x[0] @ x[2] + 0.2 > x[0] @ x[3] + 0.4
    assert abs(x[0] @ x[3]) < 0.3


def test_the_ends_of_documents_inside_a_sequence_are_no_words(tmp_path):
    """Nor are the tokens on both sides of one a pair: neither is in the sums, which are exact."""
    packed, apart, whole = (
        token_store(tmp_path / name, [document]) for name, document in
        (("packed", [1, 2, 0, 3, 4]), ("apart", [1, 2, 0, 0, 3, 4, 0]), ("whole", [1, 2, 3, 4]))
    )  # fmt: skip
    x, same, other = (
        next(hashed.embedder(store, 4096)(np.arange(1)))[1][0] for store in (packed, apart, whole)
    )
    assert np.count_nonzero(x) == 4 + 2  # in so many dimensions all are apart
    assert np.count_nonzero(other) == 4 + 3
    assert (x == same).all()


@pytest.mark.parametrize("counted", [1, 7, 10_000])
def test_the_counters_hold_every_document_once(documents, tmp_path, monkeypatch, counted):
    store = token_store(tmp_path / "tokens", documents, vocab_size=2000)
    together = densities(store, SMALL)
    monkeypatch.setattr(density, "_COUNTED", counted)
    assert densities(store, SMALL).tolist() == together.tolist()
    [[_, x_BD]] = hashed.embedder(store, SMALL.dimensions)(np.arange(store.n_documents))
    bucket_BR = density._Hashes(SMALL, SMALL.dimensions)(x_BD)
    same_BBR = bucket_BR[:, None] == bucket_BR[None]
    assert together.tolist() == np.log(same_BBR.sum(axis=1).sum(axis=1) / SMALL.rows).tolist()


def test_given_embeddings_are_found_by_their_id(tmp_path):
    x = np.random.default_rng(3).normal(size=(10, 4)).astype(np.float32)
    store, settings = given(tmp_path, x, rows=50, buckets=100)
    order = np.array([3, 1, 4, 0, 5, 9, 2, 6, 8, 7])
    table = {"id": [f"document {number}" for number in order], "vector": x[order].tolist()}
    path = str(tmp_path / "x.parquet")
    pq.write_table(pa.table(table), path)
    by_id = Density(embeddings=path, rows=50, buckets=100)
    assert densities(store, by_id).tolist() == densities(store, settings).tolist()
    pq.write_table(pa.table(table).slice(1), path)
    with pytest.raises(ValueError, match="lacks the embeddings of 1 of 10 documents, such as document 3"):
        densities(store, by_id)


def test_embeddings_that_do_not_fit_say_so(tmp_path):
    store, settings = given(tmp_path, np.ones((5, 3)))
    np.save(tmp_path / "x.npy", np.ones((4, 3)))
    with pytest.raises(ValueError, match="each of the 5 documents"):
        densities(store, settings)
    np.save(tmp_path / "x.npy", np.full((5, 3), np.nan))
    with pytest.raises(ValueError, match="not finite"):
        densities(store, settings)
    with pytest.raises(ValueError, match="no .npy or .parquet file"):
        density.inputs(Density(embeddings=str(tmp_path / "nowhere.npy")), Workdir(tmp_path))
    path = tmp_path / "x.parquet"
    pq.write_table(pa.table({"id": ["a"], "vectors": [[1.0]]}), path)
    with pytest.raises(ValueError, match="has the columns id, vectors: give it the columns id and vector"):
        densities(store, Density(embeddings=str(path)))
    pq.write_table(pa.table({"id": ["a", "b", "b"], "vector": [[1.0]] * 3}), path)
    with pytest.raises(ValueError, match="holds 2 embeddings of document b"):
        densities(store, Density(embeddings=str(path)))


def test_given_embeddings_are_told_apart_by_their_content(tmp_path):
    def inputs(name: str, x) -> dict[str, str]:
        np.save(tmp_path / name, x)
        os.utime(tmp_path / name, (1, 1))
        return density.inputs(Density(embeddings=str(tmp_path / name)), Workdir(tmp_path))

    assert density.inputs(Density(), Workdir(tmp_path)) == {}
    assert inputs("x.npy", np.ones(4)) == inputs("y.npy", np.ones(4)) != inputs("z.npy", np.zeros(4))
