"""The Mosaic Streaming side of `loader.py`, run by it in an environment of its own.

Writes the rows as MDS shards, one stream a domain, then measures a turn for each line on standard input.
"""

import json
import resource
import sys
import time
from pathlib import Path

import numpy as np
from streaming import MDSWriter, Stream, StreamingDataset
from torch.utils.data import DataLoader


def main() -> None:
    folder, settings = Path(sys.argv[1]), json.loads(sys.argv[2])
    rows_RS, domain_R = np.load(folder / "rows.npy", mmap_mode="r"), np.load(folder / "domain.npy")
    for k in range(len(settings["weights"])):
        columns = {"tokens": f"ndarray:uint16:{rows_RS.shape[1]}"}
        with MDSWriter(out=str(folder / "mds" / str(k)), columns=columns) as writer:
            for r in np.flatnonzero(domain_R == k):
                writer.write({"tokens": np.asarray(rows_RS[r])})
    print("ready", flush=True)
    streams = [
        Stream(local=str(folder / "mds" / str(k)), proportion=weight)
        for k, weight in enumerate(settings["weights"])
    ]
    # An epoch of a million rows: its shuffle is made before a turn begins, and not counted.
    dataset = StreamingDataset(
        streams=streams,
        epoch_size=1_000_000,
        batch_size=settings["batch_rows"],
        shuffle=True,
        shuffle_seed=settings["seed"],
        num_canonical_nodes=1,
    )
    for line in sys.stdin:
        print(json.dumps(measure(dataset, settings, **json.loads(line))), flush=True)


def collate(samples: list) -> np.ndarray:
    return np.stack([sample["tokens"] for sample in samples]).astype(np.int32)


def measure(dataset: StreamingDataset, settings: dict, workers: int, seconds: float) -> dict:
    batches = iter(
        DataLoader(dataset, batch_size=settings["batch_rows"], num_workers=workers, collate_fn=collate)
    )
    for _ in range(settings["warm_up"]):
        next(batches)
    n_tokens, begin, cpu = 0, time.perf_counter(), cpu_seconds()
    while time.perf_counter() - begin < seconds:
        batch = next(batches)
        n_tokens += batch.shape[0] * (batch.shape[1] - 1)
    elapsed = time.perf_counter() - begin
    del batches  # ends the workers, whose time counts only then
    return {"tokens_per_s": n_tokens / elapsed, "tokens_per_cpu_s": n_tokens / (cpu_seconds() - cpu)}


def cpu_seconds() -> float:
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


if __name__ == "__main__":
    main()
