"""Every format gives the same documents, unchanged; every defect is counted or raised; nothing is read whole."""

import dataclasses
import gzip
import itertools
import json
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jaxprune import config
from jaxprune.data import corpus

TEXTS = (
    "plain",
    "line\r\nends\rof\nthree kinds\r\n",
    "  kept: spaces, a tab\t, a form feed\f and no newline at the end  ",
    "é e\u0301 ﬁ 漢字 🙂 \u2028 \ufeff \u200b \U0010ffff",
    "x" * 8_000_000 + "é" * 1_000_000,
)
RECORDS = [{"id": f"doc-{i}", "domain": "ab"[i % 2], "text": text} for i, text in enumerate(TEXTS)]
DOCUMENTS = [(record["id"], record["domain"], record["text"]) for record in RECORDS]


def settings(*sources: Any, **changes: Any) -> config.Corpus:
    return config.Corpus(sources=tuple(map(str, sources)), **changes)


def read_all(corpus_settings: config.Corpus) -> list[corpus.Document | corpus.Defect]:
    return [item for part in corpus.parts(corpus_settings) for item in corpus.read(part, corpus_settings)]


def documents(*sources: Any, **changes: Any) -> list[tuple[str, str, str]]:
    """Id, domain and text of all documents; a defect fails the test."""
    items = read_all(settings(*sources, on_defect="error", **changes))
    return [(item.id, item.domain, item.text) for item in items if isinstance(item, corpus.Document)]


def json_lines(records: list[dict[str, Any]]) -> bytes:
    return b"".join(json.dumps(record, ensure_ascii=False).encode() + b"\n" for record in records)


def zstd(data: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(data)
    return sink.getvalue().to_pybytes()


# Formats.


@pytest.mark.parametrize(
    ("name", "compress"),
    [
        ("a.jsonl", bytes),
        ("a.ndjson", bytes),
        ("a.jsonl.gz", gzip.compress),
        ("a.json.gz", gzip.compress),
        ("a.jsonl.zst", zstd),
    ],
)
def test_json_lines_give_the_documents_unchanged(tmp_path: Path, name: str, compress: Any) -> None:
    (tmp_path / name).write_bytes(compress(json_lines(RECORDS)))
    assert documents(tmp_path / name) == DOCUMENTS


def test_json_lines_tolerate_crlf_blank_lines_a_mark_and_no_last_newline(tmp_path: Path) -> None:
    lines = b"\xef\xbb\xbf" + json_lines(RECORDS).replace(b"\n", b"\r\n\r\n")
    (tmp_path / "a.jsonl").write_bytes(lines.rstrip())
    assert documents(tmp_path / "a.jsonl") == DOCUMENTS


def test_concatenated_gzip_members_are_one_file(tmp_path: Path) -> None:
    members = gzip.compress(json_lines(RECORDS[:2])) + gzip.compress(json_lines(RECORDS[2:]))
    (tmp_path / "a.jsonl.gz").write_bytes(members)
    assert documents(tmp_path / "a.jsonl.gz") == DOCUMENTS


@pytest.mark.parametrize(
    "kind", [pa.string(), pa.large_string(), pa.binary(), pa.dictionary(pa.int32(), pa.string())]
)
def test_parquet_gives_the_documents_unchanged(tmp_path: Path, kind: pa.DataType) -> None:
    table = pa.table({name: [record[name] for record in RECORDS] for name in ("id", "domain", "text")})
    texts = table["text"].dictionary_encode() if pa.types.is_dictionary(kind) else table["text"].cast(kind)
    table = table.set_column(2, "text", texts)
    pq.write_table(table.append_column("other", pa.array([[1]] * len(RECORDS))), tmp_path / "a.parquet")
    assert documents(tmp_path / "a.parquet") == DOCUMENTS


def test_text_folders_give_the_documents_unchanged(tmp_path: Path) -> None:
    for record in RECORDS:
        path = tmp_path / record["domain"] / "deeper" / f"{record['id']}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(record["text"].encode())
    (tmp_path / "a" / "zipped.md.gz").write_bytes(gzip.compress(b"squeezed"))
    expected = [(f"{domain}/deeper/{name}.txt", domain, text) for name, domain, text in DOCUMENTS]
    assert documents(tmp_path) == sorted([*expected, ("a/zipped.md.gz", "a", "squeezed")])
    assert {domain for _, domain, _ in documents(f"own={tmp_path}")} == {"own"}


def test_other_field_names_and_numbered_ids(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(
        json_lines([{"body": "one", "kind": "k"}, {"body": "two", "kind": "k"}])
    )
    found = documents(tmp_path / "a.jsonl", text_field="body", domain_field="kind", id_field="")
    assert found == [("a.jsonl:1", "k", "one"), ("a.jsonl:2", "k", "two")]


def test_numeric_ids_become_strings(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(json_lines([{"id": 7, "text": "one", "domain": "d"}]))
    pq.write_table(pa.table({"id": [8], "text": ["two"], "domain": ["d"]}), tmp_path / "b.parquet")
    assert [identity for identity, _, _ in documents(tmp_path)] == ["7", "8"]


# TensorFlow Datasets.


@pytest.fixture(scope="module")
def tfds_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset of our own, prepared without TensorFlow."""
    tfds = pytest.importorskip("tensorflow_datasets")

    class JaxpruneTiny(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self) -> Any:
            features = {
                "id": tfds.features.Scalar(np.int64),
                "text": tfds.features.Text(),
                "domain": tfds.features.Text(),
                "label": tfds.features.ClassLabel(names=["x", "y"]),
            }
            return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

        def _split_generators(self, dl_manager: Any) -> Any:
            return {"train": self._examples(0, 4), "test": self._examples(4, 5)}

        def _generate_examples(self) -> Any:
            raise NotImplementedError

        def _examples(self, begin: int, end: int) -> Any:
            for i in range(begin, end):
                yield i, {"id": i, "text": TEXTS[i], "domain": "ab"[i % 2], "label": i % 2}

    folder = tmp_path_factory.mktemp("tfds")
    JaxpruneTiny(data_dir=folder, file_format="array_record").download_and_prepare()
    return folder


def test_tfds_gives_the_documents_unchanged(tfds_folder: Path) -> None:
    expected = {(str(i), "ab"[i % 2], text) for i, text in enumerate(TEXTS)}
    found = documents("tfds:jaxprune_tiny", data_dir=str(tfds_folder))
    assert len(found) == len(TEXTS) and set(found) == expected


@pytest.mark.parametrize(("source", "count"), [("train", 4), ("test", 1), ("train[:50%]", 2)])
def test_tfds_splits_and_versions(tfds_folder: Path, source: str, count: int) -> None:
    where = {"data_dir": str(tfds_folder), "id_field": ""}
    assert len(documents(f"tfds:jaxprune_tiny:{source}", **where)) == count
    assert len(documents(f"own=tfds:jaxprune_tiny:1.0.0:{source}", domain_field="none", **where)) == count


def test_tfds_class_labels_are_domains_by_their_names(tfds_folder: Path) -> None:
    found = documents("tfds:jaxprune_tiny", data_dir=str(tfds_folder), domain_field="label")
    assert {(int(identity) % 2, domain) for identity, domain, _ in found} == {(0, "x"), (1, "y")}


def test_tfds_needs_neither_tensorflow_nor_the_code_of_the_dataset(tfds_folder: Path) -> None:
    program = f"""
import sys
from jaxprune import config
from jaxprune.data import corpus
settings = config.Corpus(sources=("tfds:jaxprune_tiny:train",), data_dir={str(tfds_folder)!r})
[part] = corpus.parts(settings)
assert all(isinstance(item, corpus.Document) for item in corpus.read(part, settings))
assert "4 examples" in corpus.fingerprint(part)
assert "tensorflow" not in sys.modules and "jax" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", program], check=True)


@pytest.mark.parametrize(
    ("source", "changes", "message"),
    [
        ("tfds:jaxprune_tin", {}, "jaxprune_tiny"),
        ("tfds:jaxprune_tiny:nope", {}, "nope"),
        ("tfds:mnist", {}, "download_and_prepare"),
        ("tfds:", {}, "tfds:NAME"),
        ("tfds:jaxprune_tiny", {"text_field": "txt"}, "set corpus.text_field .`text`"),
    ],
)
def test_tfds_errors_help(tfds_folder: Path, source: str, changes: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        documents(source, data_dir=str(tfds_folder), **changes)


# Defects.


DEFECTS = {
    "invalid UTF-8": b'{"id": "x", "domain": "d", "text": "\xff"}\n',
    "invalid JSON": b'{"id": "x", "domain": "d", text}\n',
    "line cut off": b'{"id": "x", "domain": "d", "te',
    "null": b'{"id": "x", "domain": "d", "text": null}\n',
    "text is not a string": b'{"id": "x", "domain": "d", "text": ["a"]}\n',
    "id is not a string": b'{"id": true, "domain": "d", "text": "a"}\n',
    "empty": b'{"id": "x", "domain": "d", "text": " \\n\\t"}\n',
    "empty domain": b'{"id": "x", "domain": "", "text": "a"}\n',
    "invalid Unicode": b'{"id": "x", "domain": "d", "text": "\\ud800"}\n',
    "missing text": b'{"id": "x", "domain": "d"}\n',
    "missing id": b'{"domain": "d", "text": "a"}\n',
    "missing domain": b'{"id": "x", "text": "a"}\n',
}


@pytest.mark.parametrize("reason", DEFECTS)
def test_a_defective_line_is_dropped_with_its_reason_or_raised(tmp_path: Path, reason: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(json_lines(RECORDS[:2]) + DEFECTS[reason])
    *good, defect = read_all(settings(path))
    assert [item.id for item in good] == ["doc-0", "doc-1"]
    assert isinstance(defect, corpus.Defect)
    assert reason in defect.reason and defect.source == f"{path}, line 3"
    advice = rf"set corpus.{reason.split()[1]}_field" if reason.startswith("missing") else "."
    with pytest.raises(ValueError, match=rf"line 3: .*{reason}.*: .*{advice}.*; corpus.on_defect=drop"):
        read_all(settings(path, on_defect="error"))


def test_a_defect_does_not_end_the_file(tmp_path: Path) -> None:
    bad = b"".join(line for reason, line in DEFECTS.items() if reason != "line cut off")
    (tmp_path / "a.jsonl").write_bytes(bad + b"[" * 100_000 + b"\n" + b'"text"\n' + json_lines(RECORDS))
    items = read_all(settings(tmp_path / "a.jsonl"))
    assert sum(isinstance(item, corpus.Defect) for item in items) == len(DEFECTS) + 1
    assert [item.id for item in items[-len(RECORDS) :]] == [record["id"] for record in RECORDS]


def test_a_defect_says_what_is_known_of_the_record(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(DEFECTS["empty"] + DEFECTS["invalid JSON"] + json_lines(RECORDS[:1]))
    first, second, _ = read_all(settings(f"own={tmp_path / 'a.jsonl'}"))
    assert (first.id, first.domain) == ("x", "own")
    assert (second.id, second.domain) == ("own/a.jsonl:2", "own")


@pytest.mark.parametrize(("suffix", "compress"), [("gz", gzip.compress), ("zst", zstd)])
@pytest.mark.parametrize("keep", [0.0, 0.001, 0.6, 0.99])
def test_documents_before_a_cut_stand(tmp_path: Path, suffix: str, compress: Any, keep: float) -> None:
    noise = np.random.default_rng(0).integers(33, 120, (500, 1000), dtype=np.uint8)
    records = [{"id": str(i), "domain": "d", "text": row.tobytes().decode()} for i, row in enumerate(noise)]
    data = compress(json_lines(records))
    path = tmp_path / f"a.jsonl.{suffix}"
    path.write_bytes(data[: int(keep * len(data))])
    *good, defect = read_all(settings(path))
    assert isinstance(defect, corpus.Defect) and defect.reason == "truncated or damaged file"
    assert [(item.id, item.text) for item in good] == [(r["id"], r["text"]) for r in records[: len(good)]]
    assert len(good) >= (keep * len(records) - 200 if suffix == "zst" else keep * len(records) - 40)
    reading = corpus.read(corpus.parts(settings(path))[0], settings(path, on_defect="error"))
    assert all(isinstance(next(reading), corpus.Document) for _ in good)
    with pytest.raises(ValueError, match=r"truncated or damaged file.*corpus.on_defect=drop"):
        next(reading)


def test_a_cut_parquet_file_is_a_defect(tmp_path: Path) -> None:
    pq.write_table(pa.Table.from_pylist(RECORDS[:3]), tmp_path / "whole.parquet")
    for name, end in (("cut", -30), ("empty", 0)):
        path = tmp_path / f"{name}.parquet"
        path.write_bytes((tmp_path / "whole.parquet").read_bytes()[:end])
        assert [item.reason for item in read_all(settings(path))] == ["truncated or damaged file"]
        with pytest.raises(ValueError, match=f"{name}.parquet.*Parquet"):
            read_all(settings(path, on_defect="error"))


def test_one_bad_row_of_parquet_leaves_the_others(tmp_path: Path) -> None:
    texts = pa.array([b"good", b"\xff", None, b" ", b"fine"], pa.binary()).view(pa.string())
    table = pa.table({"id": [1, 2, 3, 4, None], "domain": ["d"] * 5, "text": texts})
    pq.write_table(table, tmp_path / "a.parquet")
    good, *defects = read_all(settings(tmp_path))
    assert good == corpus.Document(id="1", text="good", domain="d", source=f"{tmp_path}/a.parquet, row 1")
    assert [defect.reason for defect in defects] == ["invalid UTF-8", "text is null", "empty", "id is null"]


def test_bad_text_files(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "top.txt").write_text("of no domain")
    for name, data in (("a.txt", b"\xff"), ("b.txt", b" \n"), ("c.txt.gz", gzip.compress(b"cut" * 99)[:-9]), ("d.txt", b"good")):  # fmt: skip
        (tmp_path / "d" / name).write_bytes(data)
    *defects, good, top = sorted(read_all(settings(tmp_path)), key=lambda item: item.id)
    assert [item.reason for item in defects] == ["invalid UTF-8", "empty", "truncated or damaged file"]
    assert isinstance(good, corpus.Document) and top.reason == "missing domain"
    (tmp_path / "d" / "a.txt").unlink()
    with pytest.raises(ValueError, match=re.escape("b.txt: empty")):
        documents(f"own={tmp_path}/d")


@pytest.mark.parametrize("on_defect", ["drop", "error"])
@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet"])
def test_a_field_that_no_record_has_is_an_error_that_names_the_nearest(
    tmp_path: Path, name: str, on_defect: Any
) -> None:
    records = [{"ids": "1", "texts": "a", "kind": "d"}] * 2
    if name.endswith("parquet"):
        pq.write_table(pa.Table.from_pylist(records), tmp_path / name)
    else:
        (tmp_path / name).write_bytes(json_lines(records))
    with pytest.raises(ValueError) as caught:
        read_all(settings(tmp_path / name, on_defect=on_defect))
    for expected in (
        "no field `text`: set corpus.text_field (`texts`?)",
        'no field `id`: set corpus.id_field (`ids`?), or --corpus.id_field "" to number the records',
        "no field `domain`: set corpus.domain_field, or name the source DOMAIN=PATH",
        "the fields are `ids`, `texts`, `kind`",
    ):
        assert expected in str(caught.value)


def test_a_failure_of_the_storage_is_no_defect(tmp_path: Path) -> None:
    """A network that breaks must not look like a file that ends: the rest would be dropped."""

    class Broken:
        def read(self, n_bytes: int) -> bytes:
            raise OSError("the network broke")

        def seek(self, offset: int, whence: int = 0) -> int:
            return 0

        def tell(self) -> int:
            return 1000

        def __enter__(self) -> "Broken":
            return self

        def __exit__(self, *_: object) -> None: ...

    broken: Any = SimpleNamespace(
        open_input_stream=lambda path, compression: Broken(), open_input_file=lambda path: Broken()
    )
    for name in ("a.jsonl", "a.jsonl.gz", "a.parquet"):
        (tmp_path / name).write_bytes(gzip.compress(b"{}"))
        [part] = corpus.parts(settings(tmp_path / name))
        with pytest.raises(OSError, match="the network broke"):
            list(corpus.read(dataclasses.replace(part, filesystem=broken), settings(tmp_path / name)))


def test_no_id_is_taken_for_a_piece_of_another(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(
        json_lines([{"id": f"file#{i}", "text": "a", "domain": "d"} for i in (1, 2)])
    )
    assert [(item.id, item.group) for item in read_all(settings(tmp_path)) if isinstance(item, corpus.Document)] == [("file#1", ""), ("file#2", "")]  # fmt: skip


# Streaming.


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.jsonl.zst", "a.parquet", "d"])
def test_bytes_are_told_as_they_are_read(tmp_path: Path, name: str) -> None:
    """Those on disk, not those of the text: a compressed part is not done when it is half read."""
    noise = np.random.default_rng(0).integers(33, 120, (3000, 1000), dtype=np.uint8)
    records = [{"id": str(i), "domain": "d", "text": row.tobytes().decode()} for i, row in enumerate(noise)]
    if name == "d":
        (tmp_path / "d").mkdir()
        for record in records[:100]:
            (tmp_path / "d" / f"{record['id']}.txt").write_text(record["text"])
    elif name == "a.parquet":
        table = pa.Table.from_pylist(records)
        pq.write_table(
            table, tmp_path / name, use_dictionary=False, data_page_size=1 << 14, write_batch_size=16
        )
    else:
        compress = {".gz": gzip.compress, ".zst": zstd}.get((tmp_path / name).suffix, bytes)
        (tmp_path / name).write_bytes(compress(json_lines(records)))
    [part] = corpus.parts(settings(tmp_path))
    told, positions = [], []
    for _ in corpus.read(part, settings(tmp_path), told.append):
        positions.append(sum(told))
    assert positions[0] <= part.n_bytes / 2
    assert part.n_bytes / 4 <= positions[len(positions) // 2] <= part.n_bytes * 3 / 4 + (1 << 20)
    assert 0.98 * part.n_bytes <= sum(told) <= 1.05 * part.n_bytes + 65_536  # Parquet reads its footer again


class Counted:
    """A file that counts the bytes read from it, and may go on for ever."""

    def __init__(self, file: Any) -> None:
        self.file, self.n_bytes = file, 0

    def read(self, n_bytes: int) -> bytes:
        data = self.file.read(n_bytes)
        self.n_bytes += len(data)
        return data

    def seek(self, offset: int, whence: int = 0) -> int:
        return self.file.seek(offset, whence)

    def tell(self) -> int:
        return self.file.tell()

    def __enter__(self) -> "Counted":
        return self

    def __exit__(self, *_: object) -> None: ...


def test_an_endless_file_gives_its_first_documents(tmp_path: Path) -> None:
    line = json_lines([{"id": "1", "domain": "d", "text": "t" * 1000}])
    endless: Any = SimpleNamespace(read=lambda n_bytes: (line * (n_bytes // len(line) + 1))[:n_bytes])
    counted = Counted(endless)
    (tmp_path / "a.jsonl").write_bytes(line)
    [part] = corpus.parts(settings(tmp_path))
    stream: Any = SimpleNamespace(open_input_stream=lambda path, compression: counted)
    reading = corpus.read(dataclasses.replace(part, filesystem=stream), settings(tmp_path))
    assert all(isinstance(item, corpus.Document) for item in itertools.islice(reading, 3))
    assert counted.n_bytes <= 2 << 20


def test_a_row_group_is_not_read_whole(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(33, 120, (4000, 4000), dtype=np.uint8)
    texts = [row.tobytes().decode() for row in noise]
    table = pa.table({"id": list(map(str, range(4000))), "domain": ["d"] * 4000, "text": texts})
    pq.write_table(
        table, tmp_path / "a.parquet", row_group_size=4000, use_dictionary=False, write_batch_size=16
    )
    [part] = corpus.parts(settings(tmp_path))
    with pa.OSFile(str(tmp_path / "a.parquet")) as file:
        counted = Counted(file)
        stream: Any = SimpleNamespace(open_input_file=lambda path: counted)
        reading = corpus.read(dataclasses.replace(part, filesystem=stream), settings(tmp_path))
        assert next(reading).id == "0"
        assert counted.n_bytes < part.n_bytes / 3
        reading.close()  # type: ignore[attr-defined]
