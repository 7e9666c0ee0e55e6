"""How long does it take to select among 100 million scored documents, and in how much memory?

python benchmarks/select_100m.py [DOCUMENTS] [RULE ...]        (default: 1e8, all rules)

Scores are made up: ids of file and line, seven domains, lognormal lengths (median 400 tokens), in Parquet
shards as the stage `score` writes them. For each rule a process of its own makes one selection (all that the
stage does for it: kept and removed ids with reason, kept numbers, summary), and prints its seconds, those of
the processor, and the peak of its resident memory. Beside it, on the same shards, with the same columns written:

numpy    the score column in memory, sorted for the edges of the band; pyarrow reads and writes the rest
window   what one would write in SQL: DuckDB, row_number() over (order by score), 50 % in the middle

Figures are in docs/benchmarks.md. Leave out `product`, which sorts
whole rows on disk, at this size. Needs some 20 GB of disk.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SHARD = 16_384  # documents, as in the default of score.shard_documents
DOMAINS = ("books", "code", "dialogue", "legal", "news", "science", "web")
RULES = {
    "medium": {},
    "within domain": {"scope": "domain"},
    "tokens": {"weight": "tokens"},
    "random": {"criterion": "random"},
    "intersection": {"signals": ("perplexity", "bits_per_byte")},
    "two artifacts": {"signals": ("perplexity", "information")},
    "product": {"signals": ("perplexity", "bits_per_byte"), "combine": "product"},
}
PEERS = ("numpy", "window")


def main(n_documents: int, names: list[str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        begin = time.monotonic()
        subprocess.run([sys.executable, __file__, "generate", str(n_documents), folder], check=True)
        size = sum(path.stat().st_size for path in Path(folder).rglob("*.parquet"))
        print(
            f"{n_documents:,} documents in {-(-n_documents // SHARD)} shards, {size / 1e9:.1f} GB, made in "
            f"{time.monotonic() - begin:.0f} s; {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}",
            flush=True,
        )
        for name in names or [*RULES, *PEERS]:
            _measure(name, folder)


def _measure(name: str, folder: str) -> None:
    """Runs one rule in a process of its own, whose peak of memory the kernel reports."""
    out = Path(folder) / "out"
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    begin = time.monotonic()
    process = subprocess.Popen([sys.executable, __file__, "select", name, folder], stdout=subprocess.PIPE)
    assert process.stdout is not None
    said = process.stdout.read().decode().strip()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        print(
            f"{name:14s} ended with {process.returncode} after {time.monotonic() - begin:.1f} s", flush=True
        )
        return
    peak = usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 2**30
    print(
        f"{name:14s} {time.monotonic() - begin:6.1f} s  ({usage.ru_utime + usage.ru_stime:6.1f} s of processor)  "
        f"{peak:5.2f} GiB  keeps {said}",
        flush=True,
    )


def generate(n_documents: int, folder: Path) -> None:
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    rng = np.random.default_rng(0)
    for part, start in enumerate(range(0, n_documents, SHARD)):
        number = np.arange(start, min(start + SHARD, n_documents))
        size = len(number)
        domain = np.minimum(rng.geometric(0.3, size) - 1, len(DOMAINS) - 1)
        n_tokens = np.maximum(rng.lognormal(np.log(400), 1.1, size).astype(np.int64), 1)
        nll_sum = rng.normal(3 + 0.2 * domain, 0.6) * n_tokens
        of_domain = pa.DictionaryArray.from_arrays(domain.astype(np.int8), list(DOMAINS)).cast(pa.string())
        file = pc.utf8_lpad(pa.array(number % 128).cast(pa.string()), 5, "0")  # pyright: ignore[reportAttributeAccessIssue]
        line = pa.array(number).cast(pa.string())
        columns = {
            "number": number,
            "id": pc.binary_join_element_wise(  # pyright: ignore[reportAttributeAccessIssue]
                of_domain, "-", file, "-of-00128.jsonl.zst/", line, ""
            ),
            "hash": rng.integers(0, 1 << 62, size),
            "domain": of_domain,
            "n_tokens": n_tokens,
            "n_bytes": (n_tokens * rng.uniform(3.5, 4.5, size)).astype(np.int64),
            "n_scored": n_tokens,
            "nll_sum": nll_sum,
            "nll_windows": pa.ListArray.from_arrays(np.arange(size + 1, dtype=np.int32), nll_sum),
        }
        unigram_nll_sum = rng.normal(8, 0.5, size) * n_tokens
        signal = {"number": number, "unigram_nll_sum": unigram_nll_sum, "unigram_tokens": n_tokens}
        for name, table in (("score", columns), ("unigram", signal)):
            (folder / name).mkdir(exist_ok=True)
            pq.write_table(pa.table(table), folder / name / f"part-{part:05d}.parquet")


def select(name: str, folder: Path) -> None:
    """Makes a selection and prints how many documents it keeps."""
    import ibis

    from jaxprune.config import Select
    from jaxprune.prune import select as stage

    connection = ibis.duckdb.connect(memory_limit=stage.MEMORY, temp_directory=str(folder / "spill"))
    folders = [folder / "score"] + ([folder / "unigram"] if name == "two artifacts" else [])
    scores = stage.read(connection, folders)
    summary = stage.write(folder / "out", "pruned", scores, Select(**RULES[name]), seed=0)
    print(f"{summary['all']['after']['documents']:,}", json.dumps(summary["thresholds"])[:80])


def numpy_peer(folder: Path) -> None:
    """The middle half by numpy: the edges in the whole column, then shard by shard."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    files = sorted((folder / "score").glob("part-*.parquet"))
    score_N = np.concatenate([_score(pq.read_table(path, columns=["nll_sum", "n_scored"])) for path in files])
    n_tokens_N = np.concatenate(
        [pq.read_table(path, columns=["n_tokens"])["n_tokens"].to_numpy() for path in files]
    )
    ranked = np.sort(score_N[n_tokens_N >= 8])
    low, high = ranked[len(ranked) // 4], ranked[len(ranked) * 3 // 4]
    del ranked
    reasons = pa.array(["", "under 8 tokens", "below the band", "above the band"])
    writer, numbers = None, []
    for path in files:
        table = pq.read_table(path, columns=["number", "id", "domain", "n_tokens", "n_bytes", "nll_sum", "n_scored"],
                              read_dictionary=["domain"])  # fmt: skip
        score_B = _score(table)
        short = table["n_tokens"].to_numpy() < 8
        code_B = np.where(short, 1, np.where(score_B < low, 2, np.where(score_B >= high, 3, 0))).astype(
            np.int8
        )
        numbers.append(table["number"].to_numpy()[code_B == 0])
        table = table.select(["number", "id", "domain", "n_tokens", "n_bytes"])
        table = table.append_column("score", pa.array(score_B)).append_column("kept", pa.array(code_B == 0))
        table = table.append_column("reason", pa.DictionaryArray.from_arrays(code_B, reasons))
        writer = writer or pq.ParquetWriter(
            folder / "out" / "pruned.parquet",
            table.schema,
            compression="lz4",
            use_dictionary=["domain", "reason"],  # pyright: ignore[reportArgumentType],
        )
        writer.write_table(table)
    assert writer is not None
    writer.close()
    kept = np.concatenate(numbers)
    np.save(folder / "out" / "pruned.npy", kept)
    print(f"{len(kept):,} (no ties, no summary)")


def _score(table):
    return table["nll_sum"].to_numpy() / table["n_scored"].to_numpy()


def window_peer(folder: Path) -> None:
    """The middle half by a window function."""
    import duckdb
    import numpy as np

    connection = duckdb.connect(config={"memory_limit": "4GB", "temp_directory": str(folder / "spill")})
    shards, out = f"'{folder}/score/part-*.parquet'", f"'{folder}/out/pruned.parquet'"
    connection.execute(
        f"COPY (SELECT *, rank >= 0.25 * n AND rank < 0.75 * n AS kept FROM (SELECT number, id, domain, n_tokens, "
        "n_bytes, nll_sum / n_scored AS score, count(*) OVER () AS n, row_number() OVER (ORDER BY nll_sum / n_scored, "
        f"hash) - 1 AS rank FROM {shards} WHERE n_tokens >= 8) ORDER BY number) TO {out} (FORMAT parquet, COMPRESSION lz4_raw)"
    )
    kept = connection.execute(f"SELECT number FROM {out} WHERE kept").fetchnumpy()["number"]
    np.save(folder / "out" / "pruned.npy", kept)
    print(f"{len(kept):,} (no removed documents under 8 tokens, no summary)")


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["generate", n_documents, folder]:
            generate(int(n_documents), Path(folder))
        case ["select", "numpy", folder]:
            numpy_peer(Path(folder))
        case ["select", "window", folder]:
            window_peer(Path(folder))
        case ["select", name, folder]:
            select(name, Path(folder))
        case [n_documents, *names]:
            main(int(float(n_documents)), names)
        case _:
            main(100_000_000, [])
