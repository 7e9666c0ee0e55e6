"""What a source stands for: domains, folders, globs, and the errors of those that stand for nothing."""

import json
from pathlib import Path
from typing import Any

import pytest

from jaxprune import config
from jaxprune.data import corpus


def settings(*sources: Any, **changes: Any) -> config.Corpus:
    return config.Corpus(sources=tuple(map(str, sources)), **changes)


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(*paths: str) -> None:
    for path in paths:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_text(json.dumps({"id": path, "text": path, "domain": "of the record"}) + "\n")


def found(*sources: str, **changes: Any) -> list[tuple[str, str]]:
    """Domain and path of each document, in order."""
    chosen = settings(*sources, on_defect="error", **changes)
    items = [item for part in corpus.parts(chosen) for item in corpus.read(part, chosen)]
    return [(item.domain, item.id) for item in items]


def test_a_folder_is_read_by_path_without_what_is_hidden() -> None:
    write("data/b.jsonl", "data/a/z.jsonl", "data/.hidden.jsonl", "data/_temporary/x.jsonl", "data/README.md")
    expected = [("of the record", "data/a/z.jsonl"), ("of the record", "data/b.jsonl")]
    assert found("data") == found("data/") == found(f"{Path.cwd()}/data") == expected
    assert found(f"file://{Path.cwd()}/data") == expected


def test_text_beside_records_is_announced(capfd: pytest.CaptureFixture[str]) -> None:
    write("data/b.jsonl", "data/README.md")
    found("data")
    assert "(1 files, as data/README.md)" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("data/*.jsonl", ["data/a.jsonl", "data/b1.jsonl", "data/b2.jsonl"]),
        ("data/b?.jsonl", ["data/b1.jsonl", "data/b2.jsonl"]),
        ("data/b[!1].jsonl", ["data/b2.jsonl"]),
        ("data/*/c.jsonl", ["data/sub/c.jsonl"]),
        ("data/**/c.jsonl", ["data/sub/c.jsonl", "data/sub/deep/c.jsonl"]),
        ("**/[ac].jsonl", ["data/a.jsonl", "data/sub/c.jsonl", "data/sub/deep/c.jsonl"]),
    ],
)
def test_globs(pattern: str, expected: list[str]) -> None:
    write("data/a.jsonl", "data/b1.jsonl", "data/b2.jsonl", "data/sub/c.jsonl", "data/sub/deep/c.jsonl")
    assert [path for _, path in found(pattern)] == expected
    assert found(f"own={pattern}") == [("own", path) for path in expected]


def test_a_path_with_wildcards_in_its_name_is_itself() -> None:
    write("data[1]/a.jsonl", "data1/a.jsonl")
    assert [path for _, path in found("data[1]")] == ["data[1]/a.jsonl"]


def test_an_equals_sign_of_a_path_is_no_domain() -> None:
    write("dt=2024/x.jsonl", "data/dt=2024/x.jsonl", "2024/y.jsonl")
    assert found("dt=2024/x.jsonl") == found("dt=2024") == found("dt=2024/*.jsonl") == found("dt=*/x.jsonl")
    assert found("dt=2024") == [("of the record", "dt=2024/x.jsonl")]
    assert found("data/dt=2024") == [("of the record", "data/dt=2024/x.jsonl")]
    assert found("own=dt=2024/x.jsonl") == [("own", "dt=2024/x.jsonl")]
    assert found("d=2024") == [("d", "2024/y.jsonl")]


def test_a_text_file_takes_the_first_folder_below_its_source_as_domain() -> None:
    write("data/news/a.txt", "data/news/2024/b.txt", "data/web/c.md", "data/web/_d.py")
    expected = [
        ("news", "news/2024/b.txt"),
        ("news", "news/a.txt"),
        ("web", "web/_d.py"),
        ("web", "web/c.md"),
    ]
    assert found("data") == found("data/**/*") == expected
    assert found("own=data/web") == [("own", "own/_d.py"), ("own", "own/c.md")]
    assert found("own=data/web/c.md") == [("own", "own/c.md")]
    for source in ("data/web", "data/web/c.md"):
        with pytest.raises(ValueError, match=f"without a domain.*DOMAIN={source}"):
            found(source)


def test_parts_of_text_are_batches_of_one_domain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jaxprune.data.sources._FILES_PER_PART", 2)
    write(*(f"data/{domain}/{i}.txt" for domain in ("x", "y") for i in range(3)))
    parts = corpus.parts(settings("data"))
    assert [(part.domain, len(part.files)) for part in parts] == [("x", 2), ("x", 1), ("y", 2), ("y", 1)]
    assert len({part.name for part in parts}) == 4


def test_numbered_ids_differ_between_files() -> None:
    write("data/a/x.jsonl", "data/b/x.jsonl")
    assert [identity for _, identity in found("data", id_field="")] == ["a/x.jsonl:1", "b/x.jsonl:1"]
    assert found("a=data/a", "b=data/b", id_field="") == [("a", "a/x.jsonl:1"), ("b", "b/x.jsonl:1")]
    with pytest.raises(ValueError, match=r"data/a/x.jsonl and data/b/x.jsonl would give .* the same ids"):
        found("data/a", "data/b", id_field="")
    assert len(found("data/a", "data/b")) == 2


@pytest.mark.parametrize(
    ("sources", "message"),
    [
        (["daat"], "there is no 'daat'.*holds data"),
        (["own=daat"], "there is no 'daat'.*holds data"),
        (["data/a.jsonll"], "there is no .*data holds a.jsonl"),
        (["data/x.csv"], "x.csv has a suffix that is not read.*JSON lines"),
        (["only"], "no file that can be read is in 'only'; only holds x.csv"),
        (["data/*.parquet"], r"no file that can be read matches 'data/\*.parquet'"),
        (["own="], "write DOMAIN=PATH"),
        (["own=embedded"], "leave out `own=`"),
        (["nowhere://bucket/x"], "cannot be opened"),
        (["data", "data/a.jsonl"], "reads data/a.jsonl twice"),
        (["embedded", "embedded"], "twice"),
    ],
)
def test_a_source_that_stands_for_nothing_is_an_error_that_helps(sources: list[str], message: str) -> None:
    write("data/a.jsonl", "data/x.csv", "only/x.csv")
    with pytest.raises(ValueError, match=message):
        corpus.parts(settings(*sources))


def test_a_fingerprint_changes_with_the_file() -> None:
    write("data/a.jsonl", "text/d/a.txt", "text/d/b.txt")
    for source, path in (("data", "data/a.jsonl"), ("text", "text/d/b.txt")):
        [before] = map(corpus.fingerprint, corpus.parts(settings(source)))
        assert [before] == [corpus.fingerprint(part) for part in corpus.parts(settings(source))]
        Path(path).write_text("longer than it was before, and newer\n" * 9)
        assert [before] != [corpus.fingerprint(part) for part in corpus.parts(settings(source))]
