"""The Mosaic Streaming side of `loader.py`, run by it in an environment of its own.

Writes the rows as MDS shards, one stream a domain, then measures a turn for each line on standard input.
"""

import importlib.metadata
import json
import multiprocessing
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from streaming import MDSWriter, Stream, StreamingDataset  # pyright: ignore[reportMissingImports]
from torch.utils.data import DataLoader  # pyright: ignore[reportMissingImports]


def main() -> None:
    folder, settings = Path(sys.argv[1]), json.loads(sys.argv[2])
    rows_RS = np.fromfile(folder / "rows", np.uint16).reshape(-1, settings["length"])
    domain_R = np.load(folder / "domain.npy")
    for k in range(len(settings["weights"])):
        columns = {"tokens": f"ndarray:uint16:{settings['length']}"}
        with MDSWriter(out=str(folder / "mds" / str(k)), columns=columns) as writer:
            for r in np.flatnonzero(domain_R == k):
                writer.write({"tokens": rows_RS[r]})
    streams = [
        Stream(local=str(folder / "mds" / str(k)), proportion=weight)
        for k, weight in enumerate(settings["weights"])
    ]
    # An epoch of millions of rows, so that none ends (and the next is shuffled) within a turn.
    dataset = StreamingDataset(
        streams=streams,
        epoch_size=4_000_000,
        batch_size=settings["batch_rows"],
        shuffle=True,
        shuffle_seed=settings["seed"],
        num_canonical_nodes=1,
    )
    loader = DataLoader(
        dataset, batch_size=settings["batch_rows"], num_workers=settings["workers"], collate_fn=collate
    )
    batches = iter(loader)
    print(f"ready {importlib.metadata.version('mosaicml-streaming')}", flush=True)
    for line in sys.stdin:
        print(json.dumps(measure(batches, settings["warm_up"], float(line))), flush=True)


def collate(samples: list) -> np.ndarray:
    return np.stack([sample["tokens"] for sample in samples]).astype(np.int32)


def measure(batches: Iterator[np.ndarray], warm_up: int, seconds: float) -> dict:
    for _ in range(warm_up):
        next(batches)
    n_tokens, begin, cpu = 0, time.perf_counter(), cpu_seconds()
    while time.perf_counter() - begin < seconds:
        batch = next(batches)
        n_tokens += batch.shape[0] * (batch.shape[1] - 1)
    elapsed = time.perf_counter() - begin
    return {"tokens_per_s": n_tokens / elapsed, "tokens_per_cpu_s": n_tokens / (cpu_seconds() - cpu)}


def cpu_seconds() -> float:
    """Of this process and its running workers (Linux)."""
    total = time.process_time()
    for worker in multiprocessing.active_children():
        fields = Path(f"/proc/{worker.pid}/stat").read_text().rpartition(")")[2].split()
        total += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return total


if __name__ == "__main__":
    main()
