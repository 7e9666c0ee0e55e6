"""How fast does the loader hand out batches, beside a bare memory map, Grain's `mix` and Mosaic Streaming?

    python benchmarks/loader.py [--streaming-python PATH]

All read the same rows of T + 1 tokens in the same proportions: documents of lognormal length (median 400
tokens), seven domains, half of the documents kept. Ours cuts the rows from the token store as it goes;
the others are given the rows already cut (a flat file, ArrayRecord, MDS), without the documents that were
removed. Every reader makes int32 batches; files are in the page cache. They take turns; printed are medians
over turns, and of the ratios to the two bare readers within a turn.

Mosaic Streaming has needs of its own: `python -m venv DIR; DIR/bin/pip install mosaicml-streaming`,
then `--streaming-python DIR/bin/python`.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import grain
import numpy as np
from array_record.python.array_record_module import ArrayRecordWriter
from rich.console import Console
from rich.progress import track
from rich.table import Table

from jaxprune.data.loader import Loader
from jaxprune.data.mixture import MixtureSource
from jaxprune.data.rows import Rows
from jaxprune.data.schedule import Schedule, Stage
from jaxprune.data.store import TRAIN, TokenStore

VOCAB = 50_304
SHARES = {"web": 0.35, "code": 0.25, "wiki": 0.15, "books": 0.1, "papers": 0.08, "forum": 0.05, "law": 0.02}
BARE, TUNED, OURS = "bare memory map", "bare, tuned", "jaxprune Loader"
GOAL = 0.3  # of the bare reader
WARM_UP = 48  # batches of a turn that are not counted: what was made ahead between turns
SEED = 0

Turn = dict[str, float]  # tokens_per_s, tokens_per_cpu_s


@dataclass(frozen=True)
class Data:
    """The rows of the benchmark in every format."""

    folder: Path
    store: TokenStore
    documents: np.ndarray
    weights: tuple[float, ...]
    rows_RS: np.ndarray  # uint16, all rows, in a random order
    place_BN: np.ndarray  # rows of `rows_RS` that our loader draws, batch by batch


def main() -> None:
    parser = argparse.ArgumentParser(description="Loader throughput beside its peers.")
    parser.add_argument("--streaming-python", help="a Python that has mosaicml-streaming")
    parser.add_argument("--tokens", type=float, default=100e6, help="stored tokens, half of which are kept")
    parser.add_argument("--context", type=int, default=2048, help="T")
    parser.add_argument("--batch-rows", type=int, default=32, help="B")
    parser.add_argument("--seconds", type=float, default=2.0, help="of a turn")
    parser.add_argument("--turns", type=int, default=5)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        data = make(Path(folder), int(arguments.tokens), arguments.context, arguments.batch_rows)
        source = MixtureSource(
            data.store,
            data.documents,
            context=arguments.context,
            batch_rows=arguments.batch_rows,
            stages=(Stage(start=0, weights=data.weights),),
            seed=SEED,
        )
        check_same(source, data)
        loader = Loader(source)
        grain_mix = iter(mix_of_array_records(data, arguments.batch_rows))
        readers: dict[str, Callable[[float], Turn]] = {
            BARE: partial(measure, bare(data)),
            TUNED: partial(measure, tuned(data)),
            OURS: partial(measure, (batch["tokens_BS"] for batch in loader)),
            "ours without Grain": partial(measure, (batch["tokens_BS"] for batch in source)),
            "Grain mix, ArrayRecord": partial(measure, grain_mix),
        }
        mosaic, version = None, "not measured"
        if arguments.streaming_python:
            mosaic, version = start_mosaic(arguments.streaming_python, data, arguments.batch_rows)
            readers["Mosaic Streaming"] = partial(measure_mosaic, mosaic)
        try:
            turns = [
                {name: reader(arguments.seconds) for name, reader in readers.items()}
                for _ in track(range(arguments.turns), "Taking turns", transient=True)
            ]
        finally:
            loader.close()
            grain_mix.close()
            if mosaic:
                mosaic.communicate()
        report(turns, data, arguments, version)


def make(folder: Path, n_tokens: int, context: int, batch_rows: int) -> Data:
    """Writes the token store, cuts the rows, and writes them for the others."""
    rng = np.random.default_rng(SEED)
    store = write_store(folder / "tokens", n_tokens, rng)
    documents = np.sort(rng.permutation(store.n_documents)[: store.n_documents // 2])
    rows = Rows(store, documents, context=context, seed=SEED)
    weights = tuple((rows.n_tokens_K / rows.n_tokens_K.sum()).tolist())

    place_R = rng.permutation(int(rows.n_rows_K.sum()))
    first_K = np.cumsum(rows.n_rows_K) - rows.n_rows_K
    rows_RS = np.empty((len(place_R), context + 1), np.uint16)
    for k, n_rows in enumerate(rows.n_rows_K.tolist()):
        drawn = rows.read(rows.plan(np.full(n_rows, k), np.arange(n_rows)), slice(0, n_rows)).astype(
            np.uint16
        )
        rows_RS[place_R[first_K[k] : first_K[k] + n_rows]] = drawn
        write_array_record(folder / f"{k}.array_record", drawn)
    rows_RS.tofile(folder / "rows")
    np.save(folder / "domain.npy", np.repeat(np.arange(len(SHARES)), rows.n_rows_K)[np.argsort(place_R)])

    schedule = Schedule([Stage(start=0, weights=weights)], n_domains=len(SHARES), batch_rows=batch_rows)
    domain_N, draw_N = schedule.draws(0, 4096)
    place_N = place_R[first_K[domain_N] + draw_N % rows.n_rows_K[domain_N]]
    return Data(
        folder=folder,
        store=store,
        documents=documents,
        weights=weights,
        rows_RS=np.asarray(np.memmap(folder / "rows", np.uint16, "r")).reshape(rows_RS.shape),
        place_BN=place_N.reshape(-1, batch_rows),
    )


def write_store(folder: Path, n_tokens: int, rng: np.random.Generator) -> TokenStore:
    """A token store of random documents: token 0 at the start of each, others after it."""
    folder.mkdir()
    mean = 400 * np.exp(0.5)
    lengths = rng.lognormal(np.log(400), 1.0, int(n_tokens / mean)).astype(np.int64) + 1
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    tokens = rng.integers(1, VOCAB, offsets[-1], dtype=np.uint16)
    tokens[offsets[:-1]] = 0
    tokens.tofile(folder / "tokens")
    np.save(folder / "offsets.npy", offsets)
    np.save(
        folder / "domain.npy",
        rng.choice(len(SHARES), len(lengths), p=list(SHARES.values())).astype(np.uint16),
    )
    np.save(folder / "split.npy", np.full(len(lengths), TRAIN, np.uint8))
    np.save(folder / "n_bytes.npy", lengths * 4)
    meta = {"vocab_size": VOCAB, "eod_id": 0, "domains": sorted(SHARES), "dtype": "uint16"}
    (folder / "meta.json").write_text(json.dumps(meta))
    return TokenStore(folder)


def write_array_record(file: Path, rows_RS: np.ndarray) -> None:
    # One record a group is what random access wants.
    writer = ArrayRecordWriter(str(file), "group_size:1,uncompressed")
    for row in rows_RS:
        writer.write(row.tobytes())
    writer.close()


def check_same(source: MixtureSource, data: Data) -> None:
    """The bare reader reads just what our loader does, while the smallest domain's first epoch lasts."""
    steps = [step for step in range(len(data.place_BN)) if (source.epochs(step + 1) <= 1).all()]
    for step in steps[:: max(1, len(steps) // 50)]:
        assert (source[step]["tokens_BS"] == data.rows_RS[data.place_BN[step]]).all(), f"step {step} differs"


def bare(data: Data) -> Iterator[np.ndarray]:
    """A memory map, its slices, and a stack of them: as most training scripts read rows."""
    tokens = np.memmap(data.folder / "rows", np.uint16, "r")
    length = data.rows_RS.shape[1]
    while True:
        for place_B in data.place_BN:
            yield np.stack([tokens[r * length : (r + 1) * length] for r in place_B.tolist()]).astype(np.int32)


def tuned(data: Data) -> Iterator[np.ndarray]:
    """The least that numpy can do: one call takes all the rows, of an array that is no np.memmap."""
    while True:
        for place_B in data.place_BN:
            yield data.rows_RS[place_B].astype(np.int32)


def mix_of_array_records(data: Data, batch_rows: int) -> grain.IterDataset[np.ndarray]:
    """Grain's own way, batched before threads read: their work is then a batch, not a row."""
    sources: list[Any] = [
        grain.sources.ArrayRecordDataSource(str(data.folder / f"{k}.array_record"))
        for k in range(len(data.weights))
    ]
    domains = [
        grain.MapDataset.source(source)
        .shuffle(seed=SEED)
        .repeat()
        .map(lambda record: np.frombuffer(record, np.uint16).astype(np.int32))
        for source in sources
    ]
    mixed = grain.MapDataset.mix(domains, data.weights).batch(batch_rows)
    return mixed.to_iter_dataset(grain.ReadOptions(num_threads=16, prefetch_buffer_size=32))


def measure(batches: Iterator[np.ndarray], seconds: float) -> Turn:
    for _ in range(WARM_UP):
        next(batches)
    n_tokens, begin, cpu = 0, time.perf_counter(), time.process_time()
    while time.perf_counter() - begin < seconds:
        batch = next(batches)
        n_tokens += batch.shape[0] * (batch.shape[1] - 1)
    return {
        "tokens_per_s": n_tokens / (time.perf_counter() - begin),
        "tokens_per_cpu_s": n_tokens / (time.process_time() - cpu),
    }


def start_mosaic(python: str, data: Data, batch_rows: int) -> tuple[subprocess.Popen[str], str]:
    """The process that measures it, and its version."""
    settings = {
        "batch_rows": batch_rows,
        "length": data.rows_RS.shape[1],
        "weights": data.weights,
        "seed": SEED,
        "warm_up": WARM_UP,
        "workers": 2,
    }
    process = subprocess.Popen(
        [python, str(Path(__file__).with_name("loader_mosaic.py")), str(data.folder), json.dumps(settings)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout
    word, _, version = process.stdout.readline().strip().partition(" ")
    if word != "ready":
        raise SystemExit(
            f"{python} cannot run Mosaic Streaming (see above): install mosaicml-streaming there"
        )
    return process, version


def measure_mosaic(process: subprocess.Popen[str], seconds: float) -> Turn:
    assert process.stdin and process.stdout
    print(seconds, file=process.stdin, flush=True)
    return json.loads(process.stdout.readline())


def report(turns: list[dict[str, Turn]], data: Data, arguments: argparse.Namespace, mosaic: str) -> None:
    def median(name: str, figure: str, beside: str | None = None) -> float:
        return statistics.median(
            turn[name][figure] / (turn[beside][figure] if beside else 1) for turn in turns
        )

    table = Table(title="Batches of token rows")
    table.add_column("reader")
    for column in ("M tokens/s", "of bare", "of tuned", "M tokens/CPU-s", "of bare", "of tuned"):
        table.add_column(column, justify="right")
    for name in turns[0]:
        cells = []
        for figure in ("tokens_per_s", "tokens_per_cpu_s"):
            cells.append(f"{median(name, figure) / 1e6:.1f}")
            cells += [f"{median(name, figure, beside):.2f}" for beside in (BARE, TUNED)]
        table.add_row(name, *cells)
    console = Console(highlight=False)
    console.print(table)
    versions = [f"{name} {importlib.metadata.version(name)}" for name in ("grain", "array_record", "numpy")]
    console.print(
        f"B={arguments.batch_rows}, T={arguments.context}, {arguments.turns} turns of {arguments.seconds:g} s, "
        f"{len(data.store.tokens) / 1e6:.0f} M stored tokens (uint16), {len(data.rows_RS):,} rows kept in "
        f"{len(SHARES)} domains, {os.cpu_count()} cores, Python {platform.python_version()}, "
        f"{', '.join(versions)}, mosaicml-streaming {mosaic}. Ours: 1 thread, 4 batches ahead. Grain mix: "
        "16 threads, 32 batches ahead, groups of 1 uncompressed. Mosaic: 2 workers, uncompressed."
    )
    if not arguments.streaming_python:
        console.print(
            "Mosaic Streaming is missing: give --streaming-python a Python that has mosaicml-streaming"
        )
    console.print(
        f"Goal: 20 M tokens/s and {GOAL} of bare; here {median(OURS, 'tokens_per_s') / 1e6:.0f} M and "
        f"{median(OURS, 'tokens_per_s', BARE):.2f} ({median(OURS, 'tokens_per_s', TUNED):.2f} of tuned)"
    )


if __name__ == "__main__":
    main()
