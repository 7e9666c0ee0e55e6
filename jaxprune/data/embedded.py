"""The embedded corpus: real text, in several domains, that every installation of jaxprune carries.

The files of the standard library and of the packages that jaxprune depends on are listed (not
walked: each package records what it installed), sorted into domains by what they are, and read one
at a time. No file is in two domains. The order within a domain is pseudo-random but fixed, so that
its beginning is a fair sample. What a domain holds depends on the installed versions, so
`fingerprint` belongs into the manifest of whatever is made from it.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib.metadata
import os
import platform
import re
import sysconfig
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from jaxprune.artifact import digest

_CUT_CHARS = 8_000  # a file is cut at the first blank line after this many: enough documents to prune
_MIN_CHARS = 200
_MAX_CHARS = 32_000  # so much without a blank line is a table
_MAX_BYTES = 1_000_000  # larger files are tables and bundles
_GENERATED = re.compile(r"auto-?generated|generated (by|from|using|with)|machine generated|do not edit", re.I)


@dataclass(frozen=True, kw_only=True, slots=True)
class File:
    """A file of a domain, not yet read."""

    id: str  # such as `code/json/decoder.py`: the same wherever Python is installed
    path: Path
    size: int  # bytes on disk


def domains() -> list[str]:
    """The domains that this installation has, in alphabetical order.

    Raises:
      ValueError: there are fewer than three, because Python came without its sources.
    """
    names = sorted(domain for domain, files in _files().items() if files)
    if len(names) < 3:
        raise ValueError(
            f"this Python installation carries text of {len(names)} domains ({', '.join(names)}) and the "
            "embedded corpus needs at least 3: set corpus.sources to files of your own"
        )
    return names


def size(domain: str) -> int:
    """Bytes on disk of the files of a domain."""
    return sum(file.size for file in _files()[domain])


def fingerprint(domain: str) -> str:
    """What a domain's text depends on: the Python version, and the files with their sizes."""
    files = [(file.id, file.size) for file in _files()[domain]]
    versions = {name: distribution.version for name, distribution in _distributions().items()}
    return f"Python {platform.python_version()}, {len(files)} files, {digest([files, versions])}"


def read(
    domain: str, consumed: Callable[[int], None] = lambda n_bytes: None
) -> Iterator[tuple[str, str, str, str]]:
    """Id, text, path and the file's id of each document of a domain; read lazily.

    A long file gives several documents, whose ids are the file's with `#1`, `#2`, ... behind it. Each has at
    least 200 characters. `consumed` is told the size of each file that was read.
    """
    extract = _EXTRACT.get(domain, _plain)
    for file in _files()[domain]:
        pieces = _pieces(extract(file.path))
        consumed(file.size)
        for number, text in enumerate(pieces, 1):
            yield file.id if len(pieces) == 1 else f"{file.id}#{number}", text, str(file.path), file.id


# Which files a domain has.


@functools.cache
def _files() -> dict[str, list[File]]:
    """The files of each domain, in the order in which they are read."""
    found: dict[str, list[File]] = {}
    for domain, name, path, n_bytes in (*_standard_library(), *_packages(), *_manuals()):
        if n_bytes <= _MAX_BYTES:
            file = File(id=f"{domain}/{name}", path=path, size=n_bytes)
            found.setdefault(domain, []).append(file)
    for files in found.values():
        files.sort(key=lambda file: _hash(file.id))
    return found


def _standard_library() -> Iterator[tuple[str, str, Path, int]]:
    """Modules of Python itself, and its C headers where they are installed."""
    skipped = {"test", "tests", "site-packages", "dist-packages", "encodings", "pydoc_data", "ensurepip"}
    root = Path(sysconfig.get_path("stdlib"))
    for folder, subfolders, names in os.walk(root):
        subfolders[:] = [name for name in subfolders if name not in skipped]
        for path in (Path(folder, name) for name in names):
            if path.suffix == ".py" and not path.name.startswith("_sysconfigdata"):
                yield "code", path.relative_to(root).as_posix(), path, path.stat().st_size
    include = Path(sysconfig.get_path("include"))
    for path in include.rglob("*.h"):
        yield "headers", f"python/{path.relative_to(include).as_posix()}", path, path.stat().st_size
    licence = root / "LICENSE.txt"
    if licence.is_file():
        yield "licences", "python/LICENSE.txt", licence, licence.stat().st_size


def _manuals() -> Iterator[tuple[str, str, Path, int]]:
    """Python's language reference, as `help()` shows it; it is one module, read topic by topic."""
    for topic, text in _topics().items():
        yield "manuals", topic, Path("pydoc_data.topics") / topic, len(text.encode())


def _packages() -> Iterator[tuple[str, str, Path, int]]:
    """What the packages that jaxprune depends on have installed."""
    for package, distribution in sorted(_distributions().items()):
        for record in distribution.files or ():
            name = PurePosixPath(str(record))
            domain = _domain(name)
            if domain and record.size:  # compiled and generated files are recorded without a size
                where = (
                    "/".join((package, *name.parts[1:]))
                    if name.parts[0].endswith(".dist-info")
                    else str(name)
                )
                yield domain, where, Path(str(record.locate())), record.size


def _domain(name: PurePosixPath) -> str:
    """The domain of an installed file; empty where it is of none."""
    suffix = name.suffix.lower()
    folders = {part.lower() for part in name.parts[:-1]}
    if ".." in folders or folders & {"_vendor", "vendored", "third_party", "__pycache__"}:
        return ""
    if re.match(r"(licen[cs]e|copying|notice)", name.name, re.I) and suffix not in (".py", ".json"):
        return "licences"
    if name.name == "METADATA" or suffix in (".md", ".rst"):
        return "descriptions"
    if suffix in (".h", ".hpp"):
        return "headers"
    if suffix != ".py" or name.name.endswith("_pb2.py"):
        return ""
    if folders & {"test", "tests"} or name.name.startswith("test_") or name.stem.endswith("_test"):
        return "tests"
    # A module gives its code or its docstrings, never both: the domains share no text.
    return "docstrings" if int(_hash(str(name)), 16) % 2 else "package_code"


@functools.cache
def _distributions() -> dict[str, importlib.metadata.Distribution]:
    """jaxprune's dependencies, and theirs: the same packages whatever else is installed."""
    installed = {_canonical(d.metadata["Name"]): d for d in importlib.metadata.distributions()}
    found: dict[str, importlib.metadata.Distribution] = {}
    wanted = _requirements(installed["jaxprune"]) if "jaxprune" in installed else []
    while wanted:
        package = wanted.pop()
        if package in installed and package not in found:
            found[package] = installed[package]
            wanted += _requirements(installed[package])
    return found


def _requirements(distribution: importlib.metadata.Distribution) -> list[str]:
    """Names of what a package requires, without its extras."""
    lines = [line for line in distribution.requires or () if "extra ==" not in line]
    return [_canonical(name.group()) for line in lines if (name := re.match(r"[\w.-]+", line))]


def _canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _hash(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()


# What a file says.


def _plain(path: Path) -> str:
    """Text of a file as it is; empty where it is not UTF-8, generated, or a table of numbers."""
    try:
        data = path.read_bytes()
        text = data.decode()
    except (OSError, UnicodeDecodeError):  # recorded but removed since, or in an old encoding
        return ""
    digits = len(data) - len(data.translate(None, b"0123456789"))
    long_lines = len(data) > 200 * (data.count(b"\n") + 1)
    is_table = digits > 0.2 * len(data) or long_lines or "\0" in text
    return "" if is_table or _GENERATED.search(text[:1000]) else text


def _docstrings(path: Path) -> str:
    """The docstrings of a module, its classes and functions: prose about code."""
    text = _plain(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # escapes in string literals of other people's code
            tree = ast.parse(text)
    except (SyntaxError, ValueError):
        return ""
    found = (ast.get_docstring(node) for node in _definitions(tree))
    return "\n\n".join(docstring for docstring in found if docstring and _is_unicode(docstring))


_Definition = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def _definitions(node: _Definition) -> Iterator[_Definition]:
    """A module, and its classes and functions at any depth; walking every expression would be slow."""
    yield node
    for child in node.body:
        if isinstance(child, _Definition):
            yield from _definitions(child)


def _is_unicode(text: str) -> bool:
    """Whether a string literal is free of lone surrogates, which no file could hold."""
    return not re.search("[\ud800-\udfff]", text)


def _description(path: Path) -> str:
    """A read-me; a package's METADATA holds one behind its headers."""
    text = _plain(path)
    return text.partition("\n\n")[2] if path.name == "METADATA" else text


@functools.cache
def _topics() -> dict[str, str]:
    try:
        from pydoc_data import topics
    except ImportError:  # stripped from some small images
        return {}
    return topics.topics


def _topic(path: Path) -> str:
    return _topics()[path.name]


_EXTRACT: dict[str, Callable[[Path], str]] = {
    "docstrings": _docstrings,
    "descriptions": _description,
    "manuals": _topic,
}


def _pieces(text: str) -> list[str]:
    """A long text cut at blank lines, without the pieces that are too short or too long."""
    cuts = [0]
    for blank in re.finditer(r"\n(?:[ \t]*\n)+", text):
        if blank.end() - cuts[-1] >= _CUT_CHARS and len(text) - blank.end() >= _MIN_CHARS:
            cuts.append(blank.end())
    pieces = [text[begin:end] for begin, end in zip(cuts, [*cuts[1:], len(text)], strict=True)]
    return [piece for piece in pieces if _MIN_CHARS <= len(piece) <= _MAX_CHARS]
