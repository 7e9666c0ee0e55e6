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

from jaxprune import config
from jaxprune.artifact import Manifest, Workdir, build
from jaxprune.data import corpus, dedup, documents, split, store, tokenizer
from jaxprune.progress import meter, say

_BATCH = 65_536  # rows without texts that are held at once
_MAX_DOMAINS = 1 << 16  # which uint16 counts


def run(settings: config.Config, workdir: Workdir) -> Manifest:
    """Makes the prepare artifact.

    Raises:
      ValueError: a source, a tokenizer or a setting does not work; the message says what to set.
    """
    parts = corpus.parts(settings.corpus)
    inputs = {part.name: corpus.fingerprint(part) for part in parts}
    if settings.tokenizer.path is not None:
        inputs["tokenizer"] = tokenizer.fingerprint(settings.tokenizer)
    identity = {
        "corpus": config.identity(settings.corpus),
        "tokenizer": config.identity(settings.tokenizer),
        "seed": settings.seed,
    }
    return build(workdir.prepare, "prepare", identity, inputs, partial(_make, parts, settings))


def _make(parts: Sequence[corpus.Part], settings: config.Config, folder: Path) -> dict[str, Any]:
    work = folder / "work"  # what is needed on the way only
    if not (folder / "tokens" / "meta.json").is_file():
        for name in ("documents", "tokens", "work/removed"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        shards = _read(parts, settings.corpus, folder / "documents", work / "removed")
        kept_M = _remove(shards, settings.corpus, folder / "removed.parquet", work)
        domains = _domains(shards)
        _split(shards, kept_M, domains, settings, folder / "tokens")
        _make_tokenizer(shards, kept_M, folder, settings.tokenizer)
        _tokenise(shards, kept_M, domains, folder, settings.tokenizer.threads)
    shutil.rmtree(work, ignore_errors=True)
    return _counts(folder)


def _read(parts: Sequence[corpus.Part], settings: config.Corpus, folder: Path, removed: Path) -> list[Path]:
    """Writes a shard of documents, and one of defects, for each part; returns the former."""
    shards = [folder / f"part-{number:05d}.parquet" for number in range(len(parts))]
    n_bytes: Counter[str] = Counter()
    with meter("prepare: reading", sum(part.n_bytes for part in parts) / 1e6, "MB") as bar:
        for part, shard in zip(parts, shards, strict=True):
            if shard.is_file():
                bar.skip(part.n_bytes / 1e6)
            else:
                documents.write(part, settings, shard, removed / shard.name, n_bytes, bar)
            n_bytes += documents.counts(shard)["bytes"]
    _check_sources(parts, shards, settings)
    return shards


def _check_sources(parts: Sequence[corpus.Part], shards: Sequence[Path], settings: config.Corpus) -> None:
    empty = {
        part.name
        for part, shard in zip(parts, shards, strict=True)
        if not any(documents.counts(shard).values())
    }
    for source in settings.sources if empty else ():
        of_source = corpus.parts(dataclasses.replace(settings, sources=(source,)))
        if all(part.name in empty for part in of_source):
            raise ValueError(
                f"corpus.sources: no document is left of {source!r}, all its records are defective: mend it or "
                "leave it out (corpus.on_defect=error shows the first defect)"
            )


def _remove(shards: Sequence[Path], settings: config.Corpus, path: Path, work: Path) -> np.ndarray:
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


def _domains(shards: Sequence[Path]) -> tuple[str, ...]:
    """The domains of the documents that were read, sorted."""
    found = sorted(set().union(*(documents.counts(shard)["documents"] for shard in shards)))
    if len(found) > _MAX_DOMAINS:
        raise ValueError(
            f"the corpus has {len(found):,} domains, more than {_MAX_DOMAINS:,}: set corpus.domain_field to a "
            "field that holds the kind of text, or name sources DOMAIN=PATH"
        )
    return tuple(found)


def _split(
    shards: Sequence[Path],
    kept_M: np.ndarray,
    domains: Sequence[str],
    settings: config.Config,
    folder: Path,
) -> None:
    """Writes domain and split of each document to the token store."""
    if (folder / "split.npy").is_file():
        return
    say("prepare: splitting")
    split.write(
        folder,
        (
            (group["id"].to_pylist(), _numbers(group["domain"], domains))
            for group in documents.groups(shards, ["id", "domain"], kept_M)
        ),
        int(np.count_nonzero(kept_M)),
        domains,
        seed=settings.seed,
        heldout=settings.corpus.heldout,
        reference=settings.corpus.reference,
    )


def _numbers(names: pa.ChunkedArray, domains: Sequence[str]) -> np.ndarray:
    """Position of each domain's name: [B]."""
    number = {name: position for position, name in enumerate(domains)}
    return np.array([number[name] for name in names.to_pylist()], np.int64)


def _n_bytes(texts: pa.ChunkedArray) -> np.ndarray:
    """Length of each text in UTF-8: [B]."""
    return pc.call_function("binary_length", [texts]).to_numpy()


def _make_tokenizer(
    shards: Sequence[Path], kept_M: np.ndarray, folder: Path, settings: config.Tokenizer
) -> None:
    """Trains or adopts the tokenizer."""
    if (folder / "tokenizer").is_dir():
        return
    unfinished = folder / "work" / "tokenizer"
    if settings.path is not None:
        tokenizer.adopt(settings, unfinished)
    else:
        say(f"prepare: training a tokenizer ({settings.kind}, {settings.vocab_size:,} pieces)")
        split_N = np.load(folder / "tokens" / "split.npy", mmap_mode="r")
        tokenizer.train(_sample(shards, kept_M, split_N, settings.train_bytes), settings, unfinished)
    unfinished.rename(folder / "tokenizer")


def _sample(shards: Sequence[Path], kept_M: np.ndarray, split_N: np.ndarray, n_bytes: int) -> Iterator[str]:
    """At most `n_bytes` of text outside the held-out split: evenly from the domains, and spread over
    each of them. The last text of a domain may be cut to fit."""
    available = sum((documents.counts(shard)["bytes"] for shard in shards), Counter())
    budgets = even_budgets(available, n_bytes)
    seen, taken = Counter(), Counter()
    begin = 0
    for group in documents.groups(shards, ["domain", "text"], kept_M):
        names, sizes = group["domain"].to_pylist(), _n_bytes(group["text"]).tolist()
        for row in np.flatnonzero(split_N[begin : begin + len(group)] != split.HELDOUT).tolist():
            name = names[row]
            seen[name] += sizes[row]
            # What was taken keeps pace with what was seen, as budget with what is available.
            if taken[name] * available[name] < budgets[name] * seen[name]:
                text = (
                    group["text"][row].as_py().encode()[: budgets[name] - taken[name]].decode(errors="ignore")
                )
                taken[name] += sizes[row]
                yield text
        begin += len(group)


def even_budgets(available: Mapping[str, int], total: int) -> dict[str, int]:
    """Shares `total` evenly; what a domain does not have goes to the others."""
    budgets = {}
    for n_left, name in zip(
        range(len(available), 0, -1), sorted(available, key=available.__getitem__), strict=True
    ):
        budgets[name] = min(available[name], total // n_left)
        total -= budgets[name]
    return budgets


def _tokenise(
    shards: Sequence[Path], kept_M: np.ndarray, domains: Sequence[str], folder: Path, threads: int
) -> None:
    """Writes the token store, one row group of documents after the other."""
    encoder = tokenizer.load(folder / "tokenizer", threads)
    writer = store.Writer(
        folder / "tokens", folder / "work" / "tokens.json", encoder.vocab_size, encoder.eod_id
    )
    n_bytes = sum(documents.counts(shard)["bytes"].total() for shard in shards)
    n_bytes *= np.count_nonzero(kept_M) / len(kept_M)  # about: removed documents are as long as others
    with meter("prepare: tokenising", n_bytes / 1e6, "MB") as bar:
        bar.skip(writer.done["bytes"] / 1e6)
        for group in documents.groups(shards, ["text"], kept_M, start=writer.done["batches"]):
            n_bytes_B = _n_bytes(group["text"])
            writer.append(encoder.encode(group["text"].to_pylist()), n_bytes_B)
            bar.add(n_bytes_B.sum() / 1e6)
    ids = (group["id"].to_pylist() for group in documents.groups(shards, ["id"], kept_M))
    writer.finish(ids, domains, tokenizer.read_meta(folder / "tokenizer")["digest"])


def _counts(folder: Path) -> dict[str, Any]:
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
    for title, counts in (("removed", removed), ("left out over corpus.max_domain_bytes", over_cap)):
        if counts:
            say(
                f"prepare: {title}: {', '.join(f'{count:,} {name}' for name, count in sorted(counts.items()))}"
            )
    if unread:
        say(f"prepare: not read beyond corpus.max_domain_bytes: {', '.join(sorted(unread))}")
    for domain, splits in totals["documents"].items():
        if splits["reference"] == 0:
            say(f"prepare: no document of {domain} is in the reference split")
    return {**totals, "removed": dict(removed), "over_cap": dict(over_cap), "unread_parts": dict(unread)}


def _batches(path: Path) -> Iterator[pa.Table]:
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(_BATCH):
            yield pa.Table.from_batches([batch])
