"""The corpus: every document of the configured sources, one at a time and in bounded memory.

A record that is no document (invalid UTF-8, a missing field, an empty text, a file cut off) becomes a
`Defect`, or an error where `corpus.on_defect` says so. Text is never changed: line ends, spaces and
code points are those of the source.
"""

from __future__ import annotations

import difflib
import io
import json
import numbers
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from jaxprune import config
from jaxprune.data import embedded
from jaxprune.data.sources import File, Part, codec, fingerprint, parts

__all__ = ["Defect", "Document", "Part", "fingerprint", "parts", "read"]

_BLOCK = 1 << 20  # bytes read at once
_COMPRESSED_BLOCK = 1 << 14  # smaller: what a damaged block would still have given is lost
_PARQUET_ROWS = 64  # converted at once
_Consumed = Callable[[int], None]  # is told how many bytes more of a part have been read


@dataclass(frozen=True, kw_only=True, slots=True)
class Document:
    """A document of the corpus."""

    id: str
    text: str
    domain: str
    source: str  # file and record, for people
    group: str = ""  # documents of a domain with the same group are in the same split; empty: the id


@dataclass(frozen=True, kw_only=True, slots=True)
class Defect:
    """A record that is no document."""

    id: str  # its own, or file and number where it is not known
    domain: str  # empty where it is not known
    source: str  # file and record, for people
    reason: str  # one of a few: `empty`, `missing text`, `invalid JSON`, ...


def read(
    part: Part, corpus: config.Corpus, consumed: _Consumed = lambda n_bytes: None
) -> Iterator[Document | Defect]:
    """The documents of a part in their order, with a `Defect` in place of each record that is none.

    Args:
      part: what to read.
      corpus: which fields to read, and what to do with defects.
      consumed: is told how many bytes more of the part, as it stands on disk, have been read. Of Parquet
        they are those of the columns that are read; of TFDS, an even share for each record.

    Raises:
      ValueError: a record is defective and `corpus.on_defect` is `error`; or, however that is set, all
        records lack a field that the settings name.
      OSError: the storage failed.
    """
    if part.format == "embedded":
        for identity, text, source, file in embedded.read(part.domain, consumed):
            yield Document(id=identity, text=text, domain=part.domain, source=source, group=file)
        return
    n_records = n_lacking = 0
    first: Mapping[str, Any] = {}
    for record in _READERS[part.format](part, corpus, consumed):
        n_records += 1
        fields, identity, domain = record.fields, record.label, part.domain
        try:
            if isinstance(fields, _Flaw):
                raise fields
            first = first or fields
            domain = domain or _string(fields, corpus.domain_field, "domain")
            if corpus.id_field:
                identity = _string(fields, corpus.id_field, "id")
            text = _string(fields, corpus.text_field, "text")
        except _Flaw as flaw:
            if corpus.on_defect == "error":
                detail = flaw.detail
                if isinstance(flaw, _Missing) and isinstance(fields, Mapping):
                    detail = _lacking(fields, part, corpus)
                advice = "corpus.on_defect=drop leaves such records out"
                raise ValueError(f"{record.source}: {flaw.reason}: {detail}; {advice}") from None
            n_lacking += isinstance(flaw, _Missing)
            yield Defect(id=identity, domain=domain, source=record.source, reason=flaw.reason)
        else:
            yield Document(id=identity, text=text, domain=domain, source=record.source)
    if 0 < n_records == n_lacking:
        raise ValueError(f"{part.name}: none of {n_records} records is a document: {_lacking(first, part, corpus)}")  # fmt: skip


# What a record must have.


class _Flaw(Exception):
    """Why a record is no document."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(reason, detail)
        self.reason, self.detail = reason, detail


class _Missing(_Flaw):
    """A field that the settings name is not in the record."""


class _Record(NamedTuple):
    """What a reader finds: the fields of a record, or why it has none."""

    label: str  # file and number
    source: str
    fields: Mapping[str, Any] | _Flaw


def _string(fields: Mapping[str, Any], name: str, role: str) -> str:
    """The text, id or domain of a record; raises `_Flaw` where it is none."""
    if name not in fields:
        raise _Missing(f"missing {role}", "")
    value = fields[name]
    if value is None:
        raise _Flaw(f"{role} is null", f"its field `{name}` has no value")
    if isinstance(value, bytes):
        try:
            value = value.decode()
        except UnicodeDecodeError as error:
            raise _Flaw("invalid UTF-8", f"field `{name}`: {error}") from None
    if role == "id" and isinstance(value, numbers.Real) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str):
        raise _Flaw(f"{role} is not a string", f"field `{name}` holds a {type(value).__name__}")
    if not value or value.isspace():
        raise _Flaw("empty" if role == "text" else f"empty {role}", f"field `{name}` is empty or all space")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError as error:  # JSON can write half of a surrogate pair
            raise _Flaw("invalid Unicode", f"field `{name}`: {error}") from None
    return value


def _lacking(fields: Collection[str], part: Part, corpus: config.Corpus) -> str:
    """Which fields that the settings name are not there, and what to set; empty where all are."""
    wanted = [(corpus.text_field, "corpus.text_field", "")]
    if corpus.id_field:
        wanted += [(corpus.id_field, "corpus.id_field", ', or --corpus.id_field "" to number the records')]
    if not part.domain:
        wanted += [(corpus.domain_field, "corpus.domain_field", ", or name the source DOMAIN=PATH")]
    advice = []
    for name, setting, otherwise in wanted:
        if name not in fields:
            near = difflib.get_close_matches(name, fields, n=1, cutoff=0.5)
            hint = f" (`{near[0]}`?)" if near else ""
            advice.append(f"there is no field `{name}`: set {setting}{hint}{otherwise}")
    present = ", ".join(f"`{name}`" for name in fields) or "none"
    return "; ".join([*advice, f"the fields are {present}"]) if advice else ""


def _require(fields: Collection[str], part: Part, corpus: config.Corpus) -> None:
    """For formats whose records all have the same fields: what one lacks, all lack."""
    if advice := _lacking(fields, part, corpus):
        raise ValueError(f"{part.name}: {advice}")


# Bytes.


class _Storage(io.RawIOBase):
    """An opened file that tells what is read from it, and remembers whether the storage failed, which is
    no defect of what it stores."""

    def __init__(self, file: pa.NativeFile, consumed: _Consumed) -> None:
        self._file, self._consumed = file, consumed
        self.failed = False

    def read(self, size: int = -1) -> bytes:
        try:
            data = self._file.read(size)
        except OSError:
            self.failed = True
            raise
        self._consumed(len(data))
        return data

    def readable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()


def _blocks(part: Part, file: File, consumed: _Consumed) -> Iterator[bytes]:
    """A file's content, decompressed; raises `_Flaw` where a compressed file is damaged or cut off."""
    compression = codec(file.path)
    if compression and file.size == 0:
        raise _Flaw("truncated or damaged file", f"an empty file is no {compression}")
    with part.filesystem.open_input_stream(file.path, compression=None) as raw:
        storage = _Storage(raw, consumed)
        if compression is None:
            while block := storage.read(_BLOCK):
                yield block
            return
        with pa.CompressedInputStream(pa.PythonFile(storage, mode="r"), compression) as stream:
            while block := _decompress(stream, storage, compression):
                yield block


def _decompress(stream: pa.CompressedInputStream, storage: _Storage, compression: str) -> bytes:
    try:
        return stream.read(_COMPRESSED_BLOCK)
    except OSError as error:
        if storage.failed:
            raise
        raise _Flaw("truncated or damaged file", f"{compression}: {error}") from None


def _lines(blocks: Iterator[bytes]) -> Iterator[bytes]:
    """Lines with their ends, which the last may lack, however long."""
    pieces: list[bytes] = []
    for block in blocks:
        *whole, rest = block.split(b"\n")
        for piece in whole:
            yield b"".join((*pieces, piece, b"\n"))
            pieces.clear()
        pieces.append(rest)
    if any(pieces):
        yield b"".join(pieces)


# Formats.


def _read_json_lines(part: Part, corpus: config.Corpus, consumed: _Consumed) -> Iterator[_Record]:
    [file] = part.files
    number = 0
    try:
        for number, line in enumerate(_lines(_blocks(part, file, consumed)), 1):
            if not line.isspace():
                fields = _parse(line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line)
                yield _Record(f"{file.name}:{number}", f"{file.shown}, line {number}", fields)
    except _Flaw as flaw:
        yield _Record(f"{file.name}:{number + 1}", f"{file.shown}, line {number + 1}", flaw)


def _parse(line: bytes) -> Mapping[str, Any] | _Flaw:
    try:
        fields = json.loads(line.decode())
    except UnicodeDecodeError as error:
        return _Flaw("invalid UTF-8", str(error))
    except (ValueError, RecursionError) as error:
        if not line.endswith(b"\n"):
            return _Flaw("line cut off", f"the last line is not whole JSON: {error}")
        return _Flaw("invalid JSON", str(error))
    if not isinstance(fields, dict):
        return _Flaw("invalid JSON", f"the line holds a {type(fields).__name__}, not an object of fields")
    return fields


def _read_parquet(part: Part, corpus: config.Corpus, consumed: _Consumed) -> Iterator[_Record]:
    [file] = part.files
    number = 0
    with part.filesystem.open_input_file(file.path) as raw:
        storage = _Storage(raw, consumed)
        try:
            # One buffered column chunk at a time: row groups may be larger than memory.
            table = pq.ParquetFile(pa.PythonFile(storage, mode="r"), pre_buffer=False, buffer_size=_BLOCK)
            names = table.schema_arrow.names
            _require(names, part, corpus)
            wanted = {corpus.text_field, corpus.id_field, corpus.domain_field}.intersection(names)
            for batch in table.iter_batches(_PARQUET_ROWS, columns=sorted(wanted)):
                columns = [_undecoded(column).to_pylist() for column in batch.columns]
                for row in zip(*columns, strict=True):
                    number += 1
                    fields = dict(zip(batch.schema.names, row, strict=True))
                    yield _Record(f"{file.name}:{number}", f"{file.shown}, row {number}", fields)
        except (OSError, pa.ArrowException) as error:
            if storage.failed:
                raise
            flaw = _Flaw("truncated or damaged file", f"Parquet: {error}")
            yield _Record(f"{file.name}:{number + 1}", f"{file.shown}, row {number + 1}", flaw)


def _undecoded(column: pa.Array) -> pa.Array:
    """A column of strings as bytes, so that one row of invalid UTF-8 is a defect of that row alone."""
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        return column.cast(pa.large_binary())
    return column.cast(pa.binary_view()) if pa.types.is_string_view(column.type) else column


def _read_text(part: Part, corpus: config.Corpus, consumed: _Consumed) -> Iterator[_Record]:
    for file in part.files:
        try:
            text = b"".join(_blocks(part, file, consumed))
            fields = {corpus.id_field: file.name, corpus.text_field: text}
        except _Flaw as flaw:
            fields = flaw
        if not part.domain:
            fields = _Flaw("missing domain", "the file is in none of the folders, which name the domains")
        yield _Record(file.name, file.shown, fields)


def _read_tfds(part: Part, corpus: config.Corpus, consumed: _Consumed) -> Iterator[_Record]:
    import tensorflow_datasets as tfds

    source: Any = tfds.data_source(part.dataset, split=part.split, data_dir=corpus.data_dir, download=False)
    features = dict(source.dataset_info.features)
    _require(features, part, corpus)
    domain = features.get(corpus.domain_field)
    for index in range(len(source)):
        fields = source[index]
        consumed(part.n_bytes // len(source))
        if isinstance(domain, tfds.features.ClassLabel):
            label = int(fields[corpus.domain_field])
            fields[corpus.domain_field] = domain.int2str(label) if label >= 0 else None  # -1: no label
        yield _Record(f"{part.name}:{index + 1}", f"{part.name}, record {index + 1}", fields)


_READERS = {
    "jsonl": _read_json_lines,
    "parquet": _read_parquet,
    "text": _read_text,
    "tfds": _read_tfds,
}
