"""Shards survive SIGKILL at any moment: nothing that is whole is made again, and the files come out the same."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
from stores import numbered_store

# Measures a document in a millisecond, and writes down which before it does.
PROGRAM = """
import sys, time
from pathlib import Path
import numpy as np, pyarrow as pa
from jaxprune.data.store import TRAIN, TokenStore
from jaxprune.prune import shards

folder, store, journal = Path(sys.argv[1]), TokenStore(Path(sys.argv[2])), open(sys.argv[3], "a")

def measure(store, numbers, progress):
    print(int(numbers[0]), file=journal, flush=True)
    values = []
    for number in numbers.tolist():
        time.sleep(0.001)
        values.append(float(np.sqrt(store.stored(number)).sum()))
        progress.add(1)
    return pa.table({"number": numbers, "value": values})

print("ready", flush=True)
shards.fill(folder, "test", store, store.documents(TRAIN), 20, lambda _: measure)
"""
DOCUMENTS = 600


def _contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.suffix != ".tmp"}


def test_twenty_kills_change_nothing(tmp_path):
    numbered_store(tmp_path / "store", [5] * DOCUMENTS, [0] * DOCUMENTS, 1)

    def start(name: str) -> subprocess.Popen[str]:
        (tmp_path / name).mkdir(exist_ok=True)
        journal = tmp_path / f"{name}.journal"
        command = [sys.executable, "-c", PROGRAM, tmp_path / name, tmp_path / "store", journal]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)

    def whole(name: str) -> set[int]:
        """First documents of the shards that stand under their names."""
        return {20 * int(path.stem[5:]) for path in (tmp_path / name).glob("part-*.parquet")}

    with start("undisturbed") as child:
        assert child.wait() == 0
    rng, kills, journal = random.Random(0), 0, tmp_path / "killed.journal"
    for _ in range(20):
        done = whole("killed")
        before = journal.read_text() if journal.is_file() else ""
        with start("killed") as child:
            assert child.stdout
            child.stdout.readline()
            time.sleep(rng.uniform(0, 0.05))  # about two shards
            os.kill(child.pid, signal.SIGKILL)
            kills += child.wait() == -signal.SIGKILL
        begun = [int(line) for line in journal.read_text().removeprefix(before).split()]
        assert not done & set(begun)  # what is whole is not measured again
    assert kills >= 15  # while it worked
    with start("killed") as child:
        assert child.wait() == 0
    assert _contents(tmp_path / "killed") == _contents(tmp_path / "undisturbed")
    numbers = [n for part in sorted((tmp_path / "killed").glob("*.parquet")) for n in pq.read_table(part)["number"].to_pylist()]  # fmt: skip
    assert numbers == list(range(DOCUMENTS))
