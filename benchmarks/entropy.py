"""How fast are the entropies of a domain's bigrams counted, and in how much memory?

python benchmarks/entropy.py [TOKENS] [STORE]        (default: 64e6 made-up tokens)

Of uint16 tokens with a vocabulary of 50,000, in sequences of 1,024, in files that are in the page cache: the documents
of STORE, a token store, as one domain; or a made-up stream (lognormal documents; half of the tokens follow Zipf's
law, half are one of few successors of the token before, so that bigrams repeat as in text). Each way of counting has a
process of its own, which prints SE, JE and CE, and of which the tokens per second and per second of processor and
the peak memory are printed:

jaxprune    `entropies` without vectors: reads documents from the store, any length in bounded memory
unique      np.unique over all bigrams at once, as 32-bit numbers
arrow       pyarrow: group_by over them
duckdb      the same in SQL
counter     collections.Counter over them as Python integers

Figures are in docs/benchmarks.md.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

VOCABULARY, SEQUENCE = 50_000, 1024
WAYS = ("jaxprune", "unique", "arrow", "duckdb", "counter")


def main(n_tokens: int, store: str | None) -> None:
    with tempfile.TemporaryDirectory() as folder:
        if store is None:
            generate(n_tokens, Path(folder))
        else:
            as_one_domain(Path(store), Path(folder))
        n_tokens = int(np.load(Path(folder) / "offsets.npy", mmap_mode="r")[-1])
        print(f"{n_tokens:,} tokens; {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}", flush=True)
        base = _measured("nothing", folder)  # starting Python with these imports, opening the store
        for way in WAYS:
            wall, processor, peak, said = _measured(way, folder)
            wall, processor = wall - base[0], processor - base[1]
            print(
                f"{way:9s} {n_tokens / wall / 1e6:6.1f} M tokens/s  {n_tokens / processor / 1e6:6.1f} M per "
                f"processor s  {peak:5.2f} GiB  {said}",
                flush=True,
            )


def _measured(way: str, path: str) -> tuple[float, float, float, str]:
    """Wall seconds, processor seconds, GiB at the peak and output of a process that counts in one way."""
    begin = time.monotonic()
    process = subprocess.Popen([sys.executable, __file__, "count", way, path], stdout=subprocess.PIPE)
    assert process.stdout is not None
    said = process.stdout.read().decode().strip()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    wall = time.monotonic() - begin
    if process.returncode != 0:
        return wall, usage.ru_utime + usage.ru_stime, 0.0, f"ended with {process.returncode}"
    return wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024 / 2**30, said


def generate(n_tokens: int, folder: Path) -> None:
    """A token store of one domain."""
    rng = np.random.default_rng(0)
    share = 1 / np.arange(1, VOCABULARY) ** 1.05
    cumulative = np.cumsum(share) / share.sum()
    successor = rng.integers(1, VOCABULARY, (VOCABULARY, 8)).astype(np.uint16)
    lengths = np.maximum(rng.lognormal(np.log(400), 1.1, n_tokens // 300).astype(np.int64), 2)
    lengths = lengths[: np.searchsorted(np.cumsum(lengths), n_tokens)]
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    with (folder / "tokens").open("wb") as file:
        for begin in range(0, int(offsets[-1]), 1 << 22):
            size = min(1 << 22, int(offsets[-1]) - begin)
            tokens = (np.searchsorted(cumulative, rng.random(size)) + 1).astype(np.uint16)
            follows = rng.random(size - 1) < 0.5
            next_ = successor[tokens[:-1], rng.integers(0, 8, size - 1)]
            tokens[1:][follows] = next_[follows]
            inside = offsets[(offsets >= begin) & (offsets < begin + size)] - begin
            tokens[inside] = 0
            tokens.tofile(file)
    np.save(folder / "offsets.npy", offsets)
    np.save(folder / "domain.npy", np.zeros(len(lengths), np.uint16))
    np.save(folder / "split.npy", np.full(len(lengths), 2, np.uint8))
    np.save(folder / "n_bytes.npy", lengths)
    _write_meta(folder)


def as_one_domain(store: Path, folder: Path) -> None:
    """A token store of all documents of another one, whose tokens it shares."""
    for name in ("tokens", "offsets.npy", "split.npy", "n_bytes.npy"):
        (folder / name).symlink_to((store / name).resolve())
    np.save(folder / "domain.npy", np.zeros_like(np.load(store / "domain.npy")))
    _write_meta(folder)


def _write_meta(folder: Path) -> None:
    meta = {"vocab_size": VOCABULARY, "eod_id": 0, "domains": ["all"], "dtype": "uint16"}
    (folder / "meta.json").write_text(json.dumps(meta))


def count(way: str, path: Path) -> None:
    """Counts in one way and prints the three entropies."""
    import pyarrow as pa

    from jaxprune.data.store import TokenStore
    from jaxprune.mix import entropy

    store = TokenStore(path)
    match way:
        case "nothing":
            return
        case "jaxprune":
            vectors = np.ones((store.n_documents, 1))  # no time goes into hashing
            found = entropy.entropies(
                store, np.arange(store.n_documents), miller_madow=False, vectors=vectors
            )
            print(f"SE {found.shannon_K[0]:.6f} JE {found.joint_K[0]:.6f} CE {found.conditional_K[0]:.6f}")
            return
        case "unique":
            key, counts = np.unique(_keys(store.tokens), return_counts=True)
        case "arrow":
            table = pa.table({"key": _keys(store.tokens)}).group_by("key").aggregate([([], "count_all")])
            key, counts = table["key"].to_numpy(), table["count_all"].to_numpy()
        case "duckdb":
            import duckdb

            connection = duckdb.connect()
            connection.register("pairs", pa.table({"key": _keys(store.tokens)}))
            result = connection.execute("SELECT key, count(*) AS n FROM pairs GROUP BY key").fetchnumpy()
            key, counts = np.asarray(result["key"]), np.asarray(result["n"])
        case "counter":
            from collections import Counter

            counter: Counter[int] = Counter()
            keys = _keys(store.tokens)
            for begin in range(0, len(keys), 1 << 20):
                counter.update(keys[begin : begin + (1 << 20)].tolist())
            key, counts = np.array(list(counter)), np.array(list(counter.values()))
        case _:
            raise ValueError(way)
    joint = _entropy(counts)
    shannon = _entropy(np.bincount(key // VOCABULARY, counts))
    print(f"SE {shannon:.6f} JE {joint:.6f} CE {joint - shannon:.6f}")


def _keys(tokens: np.ndarray) -> np.ndarray:
    """head * V + tail of the bigrams inside sequences, and in what is left at the end."""
    key = tokens[:-1].astype(np.uint32) * np.uint32(VOCABULARY) + tokens[1:]
    return key[np.arange(1, len(tokens)) % SEQUENCE != 0]


def _entropy(counts: np.ndarray) -> float:
    counts = counts[counts > 0]
    return float(np.log(counts.sum()) - (counts * np.log(counts)).sum() / counts.sum())


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["count", way, path]:
            count(way, Path(path))
        case [n_tokens, *store]:
            main(int(float(n_tokens)), store[0] if store else None)
        case _:
            main(64_000_000, None)
