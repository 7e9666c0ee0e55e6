"""Does the memory of `prepare` grow with the corpus? And how fast does it tokenise?

python benchmarks/prepare_memory.py [MB ...]        (default: 10 100)

Real text of the embedded corpus is written as one file of JSON lines of each size; where it does not
suffice it comes again with a line in front, so that documents stay distinct. Each size is prepared in a
process of its own, whose peak resident memory the kernel reports. Beside it, on the same text: bare SentencePiece,
returning lists. Expected: the peak of 100 MB within some 10 % of that of 10 MB (what grows are indexes of some tens of
bytes a document, in files).
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

VOCAB_SIZE, TRAIN_BYTES, THREADS = 8_000, 2_000_000, 2
RATE_BYTES = 8_000_000  # of text, to measure the rate of tokenisation


def main(sizes: list[int]) -> None:
    # This process imports little: a child begins with the peak memory of the process that started it.
    print(
        f"bpe, {VOCAB_SIZE:,} pieces trained on {TRAIN_BYTES / 1e6:g} MB, {THREADS} threads, {os.cpu_count()} cores"
    )
    peaks = []
    with tempfile.TemporaryDirectory() as folder:
        for size in sizes:
            corpus = Path(folder) / f"{size}.jsonl"
            _child("generate", str(size), str(corpus))
            begin = time.monotonic()
            peaks.append(_child("prepare", str(corpus), f"{folder}/{size}"))
            print(f"{size:5d} MB: peak {peaks[-1]:.0f} MB, {time.monotonic() - begin:.1f} s", flush=True)
        _child("rate", f"{folder}/{sizes[-1]}")
    print(f"peak at {sizes[-1]} MB / peak at {sizes[0]} MB: {peaks[-1] / peaks[0]:.2f}")


def _child(*arguments: str) -> float:
    """Runs this file with arguments; returns the peak of its resident memory in MB."""
    process = subprocess.Popen([sys.executable, __file__, *arguments])
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        sys.exit(f"{' '.join(arguments)} failed")
    return usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e6


def generate(n_megabytes: int, path: Path) -> None:
    """Writes JSON lines with so much text, from all embedded domains in turn."""
    import itertools
    import json

    from jaxprune.data import embedded

    left = n_megabytes * 1_000_000
    with path.open("w") as file:
        for round_ in itertools.count():
            readers = {name: embedded.read(name) for name in embedded.domains()}
            while readers:
                for domain in list(readers):
                    document = next(readers[domain], None)
                    if document is None:
                        del readers[domain]
                        continue
                    name, text, *_ = document
                    text = f"copy {round_}\n{text}" if round_ else text
                    file.write(json.dumps({"id": f"{round_}/{name}", "text": text, "domain": domain}) + "\n")
                    left -= len(text.encode())
                    if left <= 0:
                        return


def prepare(corpus: Path, workdir: Path) -> None:
    """Prepares it and prints versions the first time."""
    from jaxprune import config
    from jaxprune.artifact import Workdir
    from jaxprune.data import prepare as stage

    settings = config.Config(
        name="prepare_memory",
        corpus=config.Corpus(sources=(str(corpus),)),
        tokenizer=config.Tokenizer(vocab_size=VOCAB_SIZE, train_bytes=TRAIN_BYTES, threads=THREADS),
    )
    stage.run(settings, Workdir(workdir))


def rate(workdir: Path) -> None:
    """Prints the rate of tokenisation beside that of bare SentencePiece, best of three."""
    import importlib.metadata

    import pyarrow.parquet as pq
    import sentencepiece

    from jaxprune.data import tokenizer

    texts: list[str] = []
    n_bytes = 0
    for path in sorted((workdir / "prepare" / "documents").iterdir()):
        for batch in pq.ParquetFile(path).iter_batches(256, columns=["text"]):
            for text in batch["text"].to_pylist() if n_bytes < RATE_BYTES else ():
                texts.append(text)
                n_bytes += len(text.encode())
    encoder = tokenizer.load(workdir / "prepare" / "tokenizer", THREADS)
    model = str(workdir / "prepare" / "tokenizer" / "tokenizer.model")
    bare = sentencepiece.SentencePieceProcessor(model_file=model)
    ours = _best(lambda: encoder.encode(texts))
    theirs = _best(lambda: bare.encode(texts, num_threads=THREADS))
    print(
        f"tokenising: {n_bytes / ours / 1e6:.1f} MB/s; bare SentencePiece: {n_bytes / theirs / 1e6:.1f} MB/s"
    )
    libraries = ("sentencepiece", "pyarrow", "duckdb", "ibis-framework", "numpy")
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in libraries)
    print(f"Python {sys.version.split()[0]}, {versions}")


def _best(work) -> float:
    seconds = []
    for _ in range(3):
        begin = time.monotonic()
        work()
        seconds.append(time.monotonic() - begin)
    return min(seconds)


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["generate", size, path]:
            generate(int(size), Path(path))
        case ["prepare", path, workdir]:
            prepare(Path(path), Path(workdir))
        case ["rate", workdir]:
            rate(Path(workdir))
        case sizes:
            main([int(size) for size in sizes] or [10, 100])
