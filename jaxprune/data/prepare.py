"""The prepare stage: from a corpus to documents, a tokenizer and the token store.

Its steps follow each other in a partial folder, each leaves a file that says it is done, and the two long
ones (reading, tokenising) also remember how far they are: a killed call is continued by the next and
ends in the same files, byte for byte. Everything is streamed, so that memory does not grow with the corpus:
what is held at once is a row group of documents, the sample that the tokenizer is trained on, and what
DuckDB is allowed.

Legend: M documents that were read, N documents that are kept, B of a row group.
"""

from __future__ import annotations

import dataclasses
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from jaxprune.artifact import Manifest, Workdir, build
from jaxprune.config import Config, Corpus, Tokenizer, identity
from jaxprune.data import corpus, dedup, documents, packing, split, store, tokenizer
from jaxprune.progress import meter, say

_BATCH = 65_536  # rows without texts that are held at once
_MAX_DOMAINS = 1 << 16  # which uint16 counts
_LOSSLESS_BYTES = 1_000_000  # of text, on which an existing tokenizer is tried


def run(config: Config, workdir: Workdir) -> Manifest:
    """Makes the prepare artifact.

    Raises:
      ValueError: a source, a tokenizer or a setting does not work; the message says what to set.
    """
    parts = corpus.parts(config.corpus)
    inputs = {part.name: corpus.fingerprint(part) for part in parts}
    if config.tokenizer.path is not None:
        inputs["tokenizer"] = tokenizer.fingerprint(config.tokenizer)
    settings = {
        "corpus": identity(config.corpus),
        "tokenizer": identity(config.tokenizer),
        "seed": config.seed,
    }
    return build(workdir.prepare, "prepare", settings, inputs, partial(_make, parts, config))


def _make(parts: Sequence[corpus.Part], config: Config, folder: Path) -> dict[str, Any]:
    work = folder / "work"  # what is needed on the way only
    if not (folder / "tokens" / "meta.json").is_file():
        # The store of documents; packed sequences are made of it in the end.
        length = config.corpus.sequence_tokens
        tokens = folder / "tokens" if length is None else work / "unpacked"
        for path in (folder / "documents", tokens, work / "removed"):
            path.mkdir(parents=True, exist_ok=True)
        shards = [folder / "documents" / f"part-{number:05d}.parquet" for number in range(len(parts))]
        n_bytes = _read(parts, shards, config.corpus, work / "removed")
        domains = _domains(n_bytes)
        kept_M = _remove(shards, config.corpus, folder / "removed.parquet", work)
        _split(shards, kept_M, domains, config, tokens)
        _make_tokenizer(shards, kept_M, n_bytes, folder, tokens, config.tokenizer)
        if not (tokens / "meta.json").is_file():
            _tokenise(shards, kept_M, n_bytes, domains, folder, tokens, config.tokenizer.threads)
        if length is not None:
            _pack(tokens, folder, length)
    if work.exists():
        shutil.rmtree(work)
    return _counts(folder, config.corpus)


def _read(
    parts: Sequence[corpus.Part], shards: Sequence[Path], settings: Corpus, removed: Path
) -> Counter[str]:
    """Writes a shard of documents, and one of defects, for each part; returns bytes of text by domain."""
    n_bytes: Counter[str] = Counter()
    empty: dict[str, Path] = {}  # part without a document -> its defects
    with meter("prepare: reading", sum(part.n_bytes for part in parts) / 1e6, "MB") as bar:
        for part, shard in zip(parts, shards, strict=True):
            if shard.is_file():
                bar.skip(part.n_bytes / 1e6)
            else:
                documents.write(part, settings, shard, removed / shard.name, n_bytes, bar)
            counts = documents.counts(shard)
            n_bytes += counts["bytes"]
            if not any(counts.values()):
                empty[part.name] = removed / shard.name
    for source in settings.sources if empty else ():
        named = [part.name for part in corpus.parts(dataclasses.replace(settings, sources=(source,)))]
        if empty.keys() >= set(named):
            raise ValueError(
                f"corpus.sources: no document is left of {source!r}{_first_defect([empty[name] for name in named])}: "
                "mend it or leave it out"
            )
    return n_bytes


def _first_defect(shards: Sequence[Path]) -> str:
    rows = (batch.slice(0, 1).to_pylist() for shard in shards for batch in _batches(shard))
    first = next((row for [row] in rows), None)
    return (
        f", all its records are defective, the first ({first['source']}): {first['reason']}" if first else ""
    )


def _domains(n_bytes: Mapping[str, int]) -> tuple[str, ...]:
    """The domains of the documents that were read, sorted."""
    if len(n_bytes) > _MAX_DOMAINS:
        raise ValueError(
            f"the corpus has {len(n_bytes):,} domains, more than {_MAX_DOMAINS:,}: set corpus.domain_field to a "
            "field that holds the kind of text, or name sources DOMAIN=PATH"
        )
    for name in {"all", "mean"} & n_bytes.keys():
        raise ValueError(
            f"a domain is called {name}, which stands for all domains in results: rename it, or set "
            "corpus.domain_field to another field"
        )
    return tuple(sorted(n_bytes))


def _remove(shards: Sequence[Path], settings: Corpus, path: Path, work: Path) -> np.ndarray:
    """Finds duplicates and lists all removed documents in `path`; returns which stay: bool [M]."""
    done = work / "kept.npy"
    if not done.is_file():
        say("prepare: looking for duplicates")
        dedup.write_duplicates(shards, work / "duplicates.parquet", work, texts=settings.dedup == "exact")
        rows = [pq.read_metadata(shard).num_rows for shard in shards]
        begins = np.cumsum([0, *rows])
        temporary = done.with_name(done.name + ".tmp")
        kept_M = np.lib.format.open_memmap(temporary, "w+", bool, (int(begins[-1]),))
        kept_M[:] = True
        columns = documents.REMOVED_COLUMNS
        with pq.ParquetWriter(path, columns, compression="zstd") as removed:
            for shard in shards:
                for batch in _batches(work / "removed" / shard.name):
                    removed.write_table(batch)
            for batch in _batches(work / "duplicates.parquet"):
                if settings.on_defect == "error":
                    _check_ids(batch)
                kept_M[begins[batch["shard"].to_numpy()] + batch["row"].to_numpy()] = False
                removed.write_table(batch.select(columns.names).cast(columns))
        kept_M.flush()
        temporary.replace(done)
    return np.asarray(np.load(done, mmap_mode="r"))


def _check_ids(duplicates: pa.Table) -> None:
    again = duplicates.filter(pc.field("reason") == dedup.DUPLICATE_ID)
    if len(again) > 0:
        [first] = again.slice(0, 1).to_pylist()
        raise ValueError(
            f"document id {first['id']!r} occurs again in {first['source']}: give each document an id of its "
            "own, or set corpus.on_defect to drop, which keeps the first"
        )


def _split(
    shards: Sequence[Path],
    kept_M: np.ndarray,
    domains: Sequence[str],
    config: Config,
    folder: Path,
) -> None:
    """Writes domain and split of each document to the token store."""
    if (folder / "split.npy").is_file():
        return
    say("prepare: splitting")
    split.write(
        folder,
        (
            (_split_keys(rows), _numbers(rows["domain"], domains))
            for rows in documents.groups(shards, ["id", "domain", "group"], kept_M)
        ),
        int(np.count_nonzero(kept_M)),
        domains,
        seed=config.seed,
        heldout=config.corpus.heldout,
        reference=config.corpus.reference,
    )


def _split_keys(rows: pa.Table) -> list[str]:
    """The group of each document, or its id where it has none."""
    return [
        group or name for group, name in zip(rows["group"].to_pylist(), rows["id"].to_pylist(), strict=True)
    ]


def _numbers(names: pa.ChunkedArray, domains: Sequence[str]) -> np.ndarray:
    """Position of each domain's name: [B]."""
    number = {name: position for position, name in enumerate(domains)}
    return np.array([number[name] for name in names.to_pylist()], np.int64)


def _make_tokenizer(
    shards: Sequence[Path],
    kept_M: np.ndarray,
    n_bytes: Mapping[str, int],
    folder: Path,
    tokens: Path,
    settings: Tokenizer,
) -> None:
    """Trains the tokenizer, or adopts one and looks whether texts come back from its tokens."""
    if (folder / "tokenizer").is_dir():
        return
    unfinished = folder / "work" / "tokenizer"
    usable_N = np.load(tokens / "split.npy", mmap_mode="r") != split.HELDOUT
    if settings.path is not None:
        tokenizer.adopt(settings, unfinished)
        texts = documents.sample(shards, kept_M, usable_N, n_bytes, _LOSSLESS_BYTES)
        if not tokenizer.check_lossless(texts, unfinished):
            say(
                f"prepare: the tokenizer {settings.path} changes texts, so that signals which read them refuse to: it "
                "normalises, or leaves out what is not in its vocabulary"
            )
    else:
        say(f"prepare: training a tokenizer ({settings.kind}, {settings.vocab_size:,} pieces)")
        texts = documents.sample(shards, kept_M, usable_N, n_bytes, settings.train_bytes)
        tokenizer.train(texts, settings, unfinished)
    unfinished.rename(folder / "tokenizer")


def _tokenise(
    shards: Sequence[Path],
    kept_M: np.ndarray,
    n_bytes: Mapping[str, int],
    domains: Sequence[str],
    folder: Path,
    tokens: Path,
    threads: int,
) -> None:
    """Writes the token store, one row group of documents after the other."""
    encoder = tokenizer.load(folder / "tokenizer", threads)
    writer = store.Writer(tokens, folder / "work" / "tokens.json", encoder.vocab_size, encoder.eod_id)
    # About: as if removed documents were as long as others.
    total = sum(n_bytes.values()) * np.count_nonzero(kept_M) / len(kept_M)
    with meter("prepare: tokenising", total / 1e6, "MB") as bar:
        bar.skip(writer.done["bytes"] / 1e6)
        for group in documents.groups(shards, ["text"], kept_M, start=writer.done["batches"]):
            n_bytes_B = documents.text_bytes(group["text"])
            writer.append(encoder.encode(group["text"].to_pylist()), n_bytes_B)
            bar.add(n_bytes_B.sum() / 1e6)
    ids = (group["id"] for group in documents.groups(shards, ["id"], kept_M))
    writer.finish(ids, domains, tokenizer.read_meta(folder / "tokenizer")["digest"])


def _pack(documents: Path, folder: Path, sequence_tokens: int) -> None:
    """Makes the token store of packed sequences; a killed call begins it again."""
    unfinished = folder / "work" / "packed"
    if unfinished.exists():
        shutil.rmtree(unfinished)
    unfinished.mkdir()
    encoder = tokenizer.load(folder / "tokenizer")
    digest = tokenizer.read_meta(folder / "tokenizer")["digest"]
    packing.pack(store.TokenStore(documents), encoder, unfinished, sequence_tokens, digest)
    unfinished.rename(folder / "tokens")


def _counts(folder: Path, settings: Corpus) -> dict[str, Any]:
    """What came out, for the manifest and for the person who waits."""
    over_cap, unread, removed = Counter(), Counter(), Counter()
    for shard in sorted((folder / "documents").iterdir()):
        shard_counts = documents.counts(shard)
        over_cap += shard_counts["over_cap"]
        unread += shard_counts["unread"]
    for batch in _batches(folder / "removed.parquet"):
        removed.update(batch["reason"].to_pylist())
    domains = store.TokenStore(folder / "tokens").domains
    totals = store.totals(folder / "tokens", domains)
    n_documents, n_tokens = (
        sum(sum(splits.values()) for splits in totals[name].values()) for name in ("documents", "tokens")
    )
    say(
        f"prepare: {n_documents:,} documents, {n_tokens:,} tokens, {len(domains)} domains ({', '.join(domains)})"
    )
    cap = f"corpus.max_domain_bytes, {settings.max_domain_bytes or 0:,}"
    for title, counts in (("removed", removed), (f"left out over {cap}", over_cap)):
        if counts:
            say(
                f"prepare: {title}: {', '.join(f'{count:,} {name}' for name, count in sorted(counts.items()))}"
            )
    if unread:
        say(f"prepare: not read beyond {cap}: {', '.join(sorted(unread))}")
    unknown = [domain for domain, splits in totals["documents"].items() if splits["reference"] == 0]
    if unknown:
        say(
            f"prepare: no document of {', '.join(unknown)} is in the reference split, so the reference will not know "
            f"{'it' if len(unknown) == 1 else 'them'}: raise corpus.reference, or give more documents"
        )
    return {**totals, "removed": dict(removed), "over_cap": dict(over_cap), "unread_parts": dict(unread)}


def _batches(path: Path) -> Iterator[pa.Table]:
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(_BATCH):
            yield pa.Table.from_batches([batch])
