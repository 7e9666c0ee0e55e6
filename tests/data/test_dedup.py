"""Duplicates: planted ones are found wherever they are, and nothing else."""

import random

import ibis
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jaxprune.data import dedup

TEXT, ID = dedup.DUPLICATE_TEXT, dedup.DUPLICATE_ID


def removed(tmp_path, documents, shard_sizes, texts=True):
    """(id, text, reason) of what is removed, in order; documents are (id, text)."""
    begin, shards = 0, []
    for number, size in enumerate(shard_sizes):
        rows = documents[begin : begin + size]
        columns = {"id": [name for name, _ in rows], "text": [text for _, text in rows]}
        columns |= {"domain": ["d"] * len(rows), "source": [f"line {begin + i}" for i in range(len(rows))]}
        shards.append(tmp_path / f"part-{number:05d}.parquet")
        schema = pa.schema([(name, pa.string()) for name in columns])
        pq.write_table(pa.table(columns, schema=schema), shards[-1], row_group_size=3)
        begin += size
    assert begin == len(documents)
    dedup.write_duplicates(shards, tmp_path / "duplicates.parquet", tmp_path, texts=texts)
    found = pq.read_table(tmp_path / "duplicates.parquet").to_pylist()
    starts = [sum(shard_sizes[:number]) for number in range(len(shard_sizes))]
    places = [starts[row["shard"]] + row["row"] for row in found]
    assert [row["source"] for row in found] == [f"line {place}" for place in places]
    return [(*documents[place], row["reason"]) for place, row in zip(places, found, strict=True)]


@pytest.mark.parametrize("shard_sizes", [[6], [1, 1, 1, 1, 1, 1], [2, 0, 4]])
def test_first_in_corpus_order_stays(tmp_path, shard_sizes):
    documents = [("a", "x"), ("b", "y"), ("c", "x"), ("b", "z"), ("d", "z"), ("a", "x")]
    # d stays: the only earlier document with its text is removed itself.
    expected = [("c", "x", TEXT), ("b", "z", ID), ("a", "x", ID)]
    assert removed(tmp_path, documents, shard_sizes) == expected


def test_without_text_deduplication_ids_are_still_unique(tmp_path):
    documents = [("a", "x"), ("b", "x"), ("a", "y")]
    assert removed(tmp_path, documents, [3], texts=False) == [("a", "y", ID)]


def test_nearly_equal_texts_stay(tmp_path):
    texts = ["x", "x ", "x\n", "X", "é", "e\u0301", "x\0", "'; --", "\u2581"]
    assert removed(tmp_path, [(str(i), text) for i, text in enumerate(texts)], [4, 5]) == []


def test_agrees_with_a_dictionary_on_random_documents(tmp_path):
    rng = random.Random(0)
    documents = [(str(rng.randrange(300)), str(rng.randrange(200))) for _ in range(400)]
    expected, ids, texts = [], set(), set()
    for name, text in documents:
        if name in ids:
            expected.append((name, text, ID))
        elif text in texts:
            expected.append((name, text, TEXT))
        else:
            texts.add(text)
        ids.add(name)
    assert removed(tmp_path, documents, [150, 1, 249]) == expected


def test_shards_beyond_99999_keep_their_order(tmp_path):
    shards = [tmp_path / "part-99999.parquet", tmp_path / "part-100000.parquet"]
    for shard in shards:
        row = {"id": [shard.name], "domain": ["d"], "text": ["same"], "source": [shard.name]}
        pq.write_table(pa.table(row), shard)
    dedup.write_duplicates(shards, tmp_path / "duplicates.parquet", tmp_path, texts=True)
    assert pq.read_table(tmp_path / "duplicates.parquet")["id"].to_pylist() == ["part-100000.parquet"]


def test_the_expression_is_plain_ibis():
    columns = {"shard": "int64", "row": "int64"} | dict.fromkeys(("id", "domain", "source", "text"), "string")
    expression = dedup.duplicates(ibis.table(columns, name="documents"), texts=True)
    assert "ROW_NUMBER" in ibis.to_sql(expression, dialect="pyspark")
