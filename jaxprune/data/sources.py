"""Sources: what each string of `corpus.sources` stands for, cut into parts that are read one by one.

A source is `embedded`, `tfds:NAME[:SPLIT]`, or files: a path, a folder (with its sub-folders) or a
glob (`*`, `?`, `[...]`, and `**` for any folders), on this machine or in a cloud (`gs://`, `s3://`).
In a folder, what begins with a dot is not read, nor are Parquet and JSON lines that begin, or whose
folder begins, with an underscore (`_temporary`); beside them, text files such as a read-me are no
documents.

`DOMAIN=` in front of a source is its domain. An equals sign may also belong to a path
(`dt=2024/x.jsonl`): it ends a domain only where a bare word stands before it and the path as a whole
begins with nothing that exists. A text file without it has the first folder below the source as domain.
"""

from __future__ import annotations

import difflib
import glob
import os
import posixpath
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import pyarrow as pa
from pyarrow import fs

from jaxprune import config
from jaxprune.artifact import digest
from jaxprune.data import embedded
from jaxprune.progress import say

Format = Literal["jsonl", "parquet", "text", "tfds", "embedded"]

_CODECS = {".gz": "gzip", ".zst": "zstd"}
_TEXT_SUFFIXES = (
    ".txt", ".text", ".md", ".markdown", ".rst", ".org", ".adoc", ".tex", ".bib", ".srt", ".log",
    ".html", ".htm", ".xml", ".css", ".yaml", ".yml", ".toml", ".ini", ".sql", ".proto", ".ipynb",
    ".py", ".pyi", ".pyx", ".c", ".h", ".cc", ".cpp", ".cxx", ".hpp", ".cu", ".f90", ".jl", ".r", ".m",
    ".java", ".kt", ".scala", ".go", ".rs", ".swift", ".js", ".jsx", ".ts", ".tsx", ".cs", ".fs",
    ".rb", ".php", ".pl", ".lua", ".hs", ".ml", ".clj", ".ex", ".erl", ".sh",
)  # fmt: skip
_READABLE = (
    "JSON lines (.jsonl, .ndjson), Parquet (.parquet) and text (.txt, .md, .py and the like), "
    "all but Parquet also compressed (.gz, .zst)"
)
_FILES_PER_PART = 1_000  # text files, which are small


@dataclass(frozen=True, kw_only=True, slots=True)
class File:
    """A file of a part."""

    path: str  # in the part's filesystem
    shown: str  # as people know it
    name: str  # below its source, with `DOMAIN/` in front if given: what ids are made of
    size: int  # bytes on disk
    modified_ns: int  # nanoseconds since 1970; 0 where the storage does not say


@dataclass(frozen=True, kw_only=True)
class Part:
    """What is read, and resumed, as one: a file, a batch of text files, a TFDS split, an embedded domain."""

    name: str  # unique among the parts of a corpus
    format: Format
    domain: str  # empty where each record names its own
    n_bytes: int  # on disk
    filesystem: fs.FileSystem = field(default_factory=fs.LocalFileSystem)
    files: tuple[File, ...] = ()
    dataset: str = ""  # TFDS name
    split: str = ""
    version: str = ""  # of the TFDS dataset


def parts(corpus: config.Corpus, *, needs_domain: bool = True) -> list[Part]:
    """The parts of all sources: in the order of the sources, and by path within each.

    Args:
      corpus: its sources, and how they are read.
      needs_domain: whether text files that have no domain are refused.

    Raises:
      ValueError: a source stands for nothing that can be read, or two of them for the same.
    """
    found = [part for source in corpus.sources for part in _parts(source, corpus, needs_domain)]
    _check_distinct(found, corpus)
    return found


def fingerprint(part: Part) -> str:
    """What identifies a part's content: path, size and time of files; version of what is installed."""
    if part.format == "embedded":
        return embedded.fingerprint(part.domain)
    if part.format == "tfds":
        return part.version
    if len(part.files) == 1:
        [file] = part.files
        return f"{file.shown}, {file.size} bytes, modified {file.modified_ns}"
    files = [(file.shown, file.size, file.modified_ns) for file in part.files]
    return f"{len(files)} files, {part.n_bytes} bytes, {digest(files)}"


def codec(path: str) -> str | None:
    """Name of a file's compression, by its suffix; None where it has none."""
    return _CODECS.get(posixpath.splitext(path.lower())[1])


def _format(path: str) -> Format | None:
    """Format of a file, by its suffix."""
    stem = path.lower()
    if compressed := codec(path) is not None:
        stem = posixpath.splitext(stem)[0]
    suffix = posixpath.splitext(stem)[1]
    # A bare .json is usually one object; compressed, as in C4, it is JSON lines.
    if suffix in (".jsonl", ".ndjson") or (suffix == ".json" and compressed):
        return "jsonl"
    if suffix == ".parquet" and not compressed:
        return "parquet"
    return "text" if suffix in _TEXT_SUFFIXES else None


def _parts(source: str, corpus: config.Corpus, needs_domain: bool) -> list[Part]:
    domain, path = _split_domain(source)
    if path == "embedded":
        if domain:
            raise ValueError(f"corpus.sources: {source!r} gives `embedded` a domain, but it has its own: leave out `{domain}=`")  # fmt: skip
        return [
            Part(name=f"embedded:{name}", format="embedded", domain=name, n_bytes=embedded.size(name))
            for name in embedded.domains()
        ]
    if path.startswith("tfds:"):
        return _tfds_parts(domain, path.removeprefix("tfds:"), corpus)
    return _file_parts(source, domain, path, needs_domain)


def _split_domain(source: str) -> tuple[str, str]:
    """Domain (or empty) and path of a source."""
    domain, equals, path = source.partition("=")
    if not equals or not re.fullmatch(r"[\w.-]+", domain):
        return "", source
    if next(glob.iglob(source.partition("/")[0]), None) is not None:  # such as a folder `dt=2024`
        return "", source
    if not path:
        raise ValueError(f"corpus.sources: {source!r} names a domain but no path: write DOMAIN=PATH")
    return domain, path


def _check_distinct(found: Sequence[Part], corpus: config.Corpus) -> None:
    """Nothing is read twice, and ids that are made of file names differ."""
    paths: set[str] = set()
    names: dict[str, str] = {}  # -> path
    for part in found:
        for path, name in [(file.shown, file.name) for file in part.files] or [(part.name, part.name)]:
            if path in paths:
                raise ValueError(f"corpus.sources reads {path} twice: name it once")
            paths.add(path)
            if part.format != "text" and corpus.id_field:
                continue
            if name in names:
                raise ValueError(
                    f"corpus.sources: {names[name]} and {path} would give their documents the same ids: "
                    "name the folder above both, or give each source a domain of its own, DOMAIN=PATH"
                )
            names[name] = path


# TensorFlow Datasets.


def _tfds_parts(domain: str, name: str, corpus: config.Corpus) -> list[Part]:
    """One part for each split, or the one that is named (`train[:10%]` works too)."""
    import tensorflow_datasets as tfds  # a second, which only those who read TFDS pay

    match = re.fullmatch(r"([^:]+(?::\d+\.\d+\.\d+)?)(?::(.+))?", name)
    if match is None:
        raise ValueError(f"corpus.sources: `tfds:{name}` is not of the form tfds:NAME or tfds:NAME:SPLIT")
    dataset, named = match.groups()
    try:
        builder: Any = tfds.builder(dataset, data_dir=corpus.data_dir)
    except (ValueError, AssertionError) as error:
        prepared = os.listdir(corpus.data_dir) if os.path.isdir(corpus.data_dir or "") else []
        known = {*prepared, *tfds.list_builders(with_community_datasets=False)}
        near = difflib.get_close_matches(dataset, sorted(known), n=3)
        hint = f"; did you mean {', '.join(near)}?" if near else "; set corpus.data_dir to where it is"
        raise ValueError(
            f"corpus.sources: `tfds:{name}`: {str(error).splitlines()[0].rstrip('.')}{hint}"
        ) from error
    if not builder.is_prepared():
        raise ValueError(
            f"corpus.sources: `tfds:{name}` is not prepared in {builder.data_path}: set corpus.data_dir, or "
            f"prepare it with tfds.builder({dataset!r}, file_format='array_record').download_and_prepare()"
        )
    found = []
    for split in [named] if named else list(builder.info.splits):
        try:
            builder.as_data_source(split=split)  # finds out now, not hours later, whether it can be read
            n_examples = builder.info.splits[split].num_examples
            n_bytes = int(builder.info.splits[split].num_bytes)
        except (ValueError, KeyError, NotImplementedError) as error:
            message = str(error).splitlines()[0]
            raise ValueError(f"corpus.sources: `tfds:{name}` cannot be read: {message}") from error
        version = f"{builder.info.full_name} {split}, {n_examples} examples, {n_bytes} bytes"
        found.append(
            Part(
                name=f"tfds:{dataset}:{split}",
                format="tfds",
                domain=domain,
                n_bytes=n_bytes,
                dataset=dataset,
                split=split,
                version=version,
            )
        )
    return found


# Files.


def _file_parts(source: str, domain: str, path: str, needs_domain: bool) -> list[Part]:
    filesystem, root, pattern = _locate(path)
    scheme = path[: path.find("://") + 3] if "://" in path else ""
    target = filesystem.get_file_info(root)
    listed = _list_files(filesystem, target, pattern)
    base = root if target.type == fs.FileType.Directory else posixpath.dirname(root)
    records: list[tuple[Format, File]] = []
    texts: dict[str, list[File]] = {}  # by domain
    for info in sorted(listed, key=lambda info: info.path):
        relative = posixpath.relpath(info.path, base or ".")
        format = _format(info.path)
        if format is None or (info.path != root and _is_hidden(relative, format)):
            continue
        file = File(
            path=info.path,
            shown=scheme + info.path,
            name=f"{domain}/{relative}" if domain else relative,
            size=info.size,
            modified_ns=info.mtime_ns or 0,
        )
        if format == "text":
            folder = relative.split("/")[0] if "/" in relative else ""
            texts.setdefault(domain or folder, []).append(file)
        else:
            records.append((format, file))
    if records:
        if texts:
            names = [file.shown for files in texts.values() for file in files]
            say(
                f"{source}: text beside JSON lines or Parquet is not read ({len(names)} files, as {names[0]})"
            )
        return [
            Part(name=file.shown, format=format, domain=domain, n_bytes=file.size, filesystem=filesystem, files=(file,))
            for format, file in records
        ]  # fmt: skip
    if not texts:
        raise ValueError(_nothing(source, path, filesystem, target, pattern))
    if needs_domain and list(texts) == [""]:
        raise ValueError(
            f"corpus.sources: {source!r} holds text files without a domain: put them into a folder for "
            f"each domain, or write DOMAIN={path}"
        )
    return [
        Part(
            name=files[0].shown if len(files) == 1 else f"{files[0].shown} and {len(files) - 1} more",
            format="text",
            domain=name,
            n_bytes=sum(file.size for file in files),
            filesystem=filesystem,
            files=tuple(files),
        )
        for name, of_domain in texts.items()
        for files in _batches(of_domain)
    ]


def _batches(files: list[File]) -> Iterator[list[File]]:
    for begin in range(0, len(files), _FILES_PER_PART):
        yield files[begin : begin + _FILES_PER_PART]


def _is_hidden(relative: str, format: Format) -> bool:
    """Whether a file below a folder is none of its data; a Python module may begin with an underscore."""
    marks = (".",) if format == "text" else (".", "_")
    return any(name.startswith(marks) for name in relative.split("/"))


def _locate(path: str) -> tuple[fs.FileSystem, str, str]:
    """Filesystem, the path in it as far as it has no wildcard, and the pattern that follows (or empty)."""
    if "://" not in path:
        path = os.path.expanduser(path)
        fixed, pattern = (path, "") if os.path.exists(path) else _split_glob(path, "*?[")
        return fs.LocalFileSystem(), fixed.rstrip("/") or fixed or ".", pattern
    location, mark, options = path.partition("?")
    fixed, pattern = _split_glob(location, "*[")
    try:
        filesystem, root = fs.FileSystem.from_uri(fixed + mark + options)
    except (pa.ArrowException, ImportError) as error:
        raise ValueError(f"corpus.sources: {path!r} cannot be opened: {error}") from error
    return filesystem, root.rstrip("/"), pattern


def _split_glob(path: str, wildcards: str) -> tuple[str, str]:
    names = path.split("/")
    wild = next((i for i, name in enumerate(names) if set(name) & set(wildcards)), len(names))
    fixed = "/".join(names[:wild])
    return fixed or "/" * path.startswith("/"), "/".join(names[wild:])


def _list_files(filesystem: fs.FileSystem, target: fs.FileInfo, pattern: str) -> list[fs.FileInfo]:
    if target.type == fs.FileType.File:
        return [] if pattern else [target]
    if target.type == fs.FileType.NotFound:
        return []
    deep = not pattern or "/" in pattern or "**" in pattern
    listed = filesystem.get_file_info(fs.FileSelector(target.path, recursive=deep))
    matches = re.compile(_glob_to_regex(pattern) if pattern else ".*", re.S)
    return [
        info
        for info in listed
        if info.type == fs.FileType.File and matches.fullmatch(posixpath.relpath(info.path, target.path))
    ]


def _glob_to_regex(pattern: str) -> str:
    meaning = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    regex = ""
    for token in re.findall(r"\*\*/|\*\*|\*|\?|\[[^\]]+\]|.", pattern, re.S):
        if len(token) > 1 and token.startswith("["):
            regex += "[" + re.sub("^!", "^", token[1:].replace("\\", r"\\"))
        else:
            regex += meaning.get(token) or re.escape(token)
    return regex


def _nothing(source: str, path: str, filesystem: fs.FileSystem, target: fs.FileInfo, pattern: str) -> str:
    """Why a source stands for no file, with what there is instead."""
    folder = target.path if target.type == fs.FileType.Directory else posixpath.dirname(target.path) or "."
    wanted = pattern or posixpath.basename(target.path)
    entries = filesystem.get_file_info(fs.FileSelector(folder, allow_not_found=True))
    names = sorted(info.base_name for info in entries)
    near = difflib.get_close_matches(wanted, names, n=3, cutoff=0.4) or names[:5]
    if target.type == fs.FileType.NotFound:
        what = f"there is no {path!r}"
    elif target.type == fs.FileType.File:
        what = f"{posixpath.basename(target.path)} has a suffix that is not read"
    else:
        what = f"no file that can be read {'matches' if pattern else 'is in'} {path!r}"
    here = "the current folder" if folder == "." else folder
    there = filesystem.get_file_info(folder).type == fs.FileType.Directory
    holds = f"{here} holds {', '.join(near)}" if near else f"{here} is {'empty' if there else 'missing too'}"
    return f"corpus.sources: {source!r}: {what}; {holds}. What is read: {_READABLE}"
