"""How fast are documents scored, beside the bare forward pass and Hugging Face transformers?

    python benchmarks/score_documents.py [--torch-python PATH]

Documents have lognormal lengths (median 400 tokens, sigma 1.1, at most 100,000); the model is mpt_125m
with random weights. All sides score the same documents and are shown to give the same NLL of
each: ours as `jaxprune score` does; transformers with a GPT-2 of the same weights and shape, on a CPU a window at a
time without padding, on a GPU in our type and in batches of our size of windows of like length, in a process of its own (with `--torch-python`, of another environment, which has
torch, transformers and numpy). The bare forward pass scores as many tokens in full rows, which have no
padding and no documents. They take turns; medians are printed. Padding is counted for 16,384 documents too,
a shard of the usual size.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import jax
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from flax import nnx

from jaxprune import config
from jaxprune.allocator import keep_freed_memory
from jaxprune.data.store import TRAIN, TokenStore
from jaxprune.model import presets, transformer
from jaxprune.model.sharding import make_mesh
from jaxprune.progress import meter
from jaxprune.prune.score import Scorer
from jaxprune.prune.windows import batches, cut
from jaxprune.train.step import make_score_step

VOCAB, EOD = 50_304, 0
MEDIAN, SIGMA, LONGEST = 400, 1.1, 100_000


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument(
        "--torch-python", default=sys.executable, help="a Python that has torch and transformers"
    )
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="of PyTorch")
    parser.add_argument("--documents", type=int, default=64)
    parser.add_argument(
        "--batch-tokens",
        type=int,
        default=1024,
        help="of our batches, padding included; few documents in large batches are padded more than a usual shard",
    )
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="of our model")
    parser.add_argument("--unroll", type=int, default=12, help="layers; on a GPU 1 compiles sooner")
    parser.add_argument("--turns", type=int, default=3)
    arguments = parser.parse_args()
    keep_freed_memory()  # as the command line does
    model = dataclasses.replace(presets.mpt_125m(), dtype=arguments.dtype, unroll=arguments.unroll)
    mesh = make_mesh(config.Mesh(), jax.devices()[:1])
    graphdef, params = transformer.create(model, VOCAB, 0, mesh)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        usual = write_store(folder / "usual", 16_384)
        store = write_store(folder / "store", arguments.documents)
        numbers = store.documents(TRAIN)
        n_tokens = int(store.offsets_N1[-1]) - len(numbers)
        print(
            f"mpt_125m, {arguments.dtype}, {len(numbers)} documents of {n_tokens:,} tokens, windows of {model.context}, batches of "
            f"{arguments.batch_tokens:,}, {arguments.turns} turns, {jax.devices()[0].device_kind}, {os.cpu_count()} cores, jax {jax.__version__}"
        )
        for shard, batch_tokens in ((store, arguments.batch_tokens), (usual, config.Score().batch_tokens)):
            share = padding(shard, model.context, batch_tokens)
            print(
                f"padding of {shard.n_documents:,} documents in batches of {batch_tokens:,}: {share:.1%} of computed tokens"
            )
        scorer = Scorer(graphdef, params, mesh, context=model.context, batch_tokens=arguments.batch_tokens)
        rows_a_batch = max(arguments.batch_tokens // model.context, 1)
        n_batches = -(-n_tokens // (rows_a_batch * model.context))
        shape = (n_batches, rows_a_batch, model.context + 1)
        rows = np.random.default_rng(1).integers(1, VOCAB, shape, np.int32)
        save(params, store, folder)
        seconds: dict[str, list[float]] = {"ours": [], "bare": [], "transformers": []}
        with their_side(folder, model, arguments) as theirs:
            for turn in range(arguments.turns + 1):  # the first compiles and warms up
                taken = {}
                taken["ours"], nll_N = our_turn(scorer, store, numbers)
                taken["bare"] = (
                    bare_turn(graphdef, params, mesh, rows)
                    * n_tokens
                    / (len(rows) * rows_a_batch * model.context)
                )
                taken["transformers"], their_nll_N = theirs()
                np.testing.assert_allclose(
                    nll_N, their_nll_N, rtol=1e-5 if arguments.dtype == "float32" else 1e-2
                )
                for side in seconds if turn else ():
                    seconds[side].append(taken[side])
                if not turn:
                    print(", ".join(f"{side} {taken[side]:.1f} s" for side in seconds) + " in the first pass")
    medians = {side: statistics.median(of) for side, of in seconds.items()}
    for side, median in medians.items():
        print(f"{side}: {n_tokens / median:,.0f} tokens/s ({median:.1f} s)")
    print(
        f"ours: {medians['bare'] / medians['ours']:.2f} of the bare forward pass (aim 0.85), "
        f"{medians['transformers'] / medians['ours']:.2f} of transformers"
    )


def write_store(folder: Path, n_documents: int) -> TokenStore:
    """Random tokens in documents of realistic lengths, all of the train split."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    length_N = (
        np.clip(MEDIAN * np.exp(SIGMA * rng.standard_normal(n_documents)), 1, LONGEST).astype(np.int64) + 1
    )
    offsets_N1 = np.concatenate([[0], np.cumsum(length_N)])
    tokens = rng.integers(1, VOCAB, offsets_N1[-1], np.uint16)
    tokens[offsets_N1[:-1]] = EOD
    tokens.tofile(folder / "tokens")
    np.save(folder / "offsets.npy", offsets_N1)
    np.save(folder / "domain.npy", np.zeros(n_documents, np.uint16))
    np.save(folder / "split.npy", np.full(n_documents, TRAIN, np.uint8))
    np.save(folder / "n_bytes.npy", 4 * length_N)
    index = {"number": np.arange(n_documents), "id": [f"document {n}" for n in range(n_documents)]}
    pq.write_table(pa.table(index), folder / "index.parquet")
    meta = {"vocab_size": VOCAB, "eod_id": EOD, "domains": ["all_text"], "dtype": "uint16"}
    (folder / "meta.json").write_text(json.dumps(meta))
    return TokenStore(folder)


def padding(store: TokenStore, context: int, batch_tokens: int) -> float:
    """Share of the computed tokens that are padding."""
    windows = cut(store.offsets_N1, store.documents(TRAIN), context)
    computed = counted = 0
    for batch in batches(store.tokens, windows, context=context, batch_tokens=batch_tokens, parts=1):
        computed += batch.tokens_BS.size - len(batch.tokens_BS)
        counted += int(batch.length_B.sum())
    return 1 - counted / computed


def our_turn(scorer: Scorer, store: TokenStore, numbers: np.ndarray) -> tuple[float, np.ndarray]:
    begin = time.perf_counter()
    with meter("ours", None, "tokens") as progress:
        table = scorer(store, numbers, progress)
    return time.perf_counter() - begin, table["nll_sum"].to_numpy()


def bare_turn(
    graphdef: nnx.GraphDef, params: nnx.State, mesh: jax.sharding.Mesh, rows_NBS: np.ndarray
) -> float:
    """Seconds of the scoring step on batches of full rows that are on the device already."""
    step = make_score_step(graphdef)
    full_B = np.full(rows_NBS.shape[1], rows_NBS.shape[2] - 1, np.int32)
    with jax.set_mesh(mesh):
        batches_BS = jax.block_until_ready([jax.device_put(rows_BS) for rows_BS in rows_NBS])
        begin = time.perf_counter()
        jax.block_until_ready([step(params, tokens_BS, full_B) for tokens_BS in batches_BS])
    return time.perf_counter() - begin


def save(params: nnx.State, store: TokenStore, folder: Path) -> None:
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        np.save(folder / (".".join(key.key for key in path) + ".npy"), leaf)


@contextmanager
def their_side(folder: Path, model: config.Model, arguments: argparse.Namespace) -> Iterator:
    """Starts transformers with the weights and documents of `folder`."""
    settings = {
        "heads": model.n_heads,
        "context": model.context,
        "threads": arguments.threads,
        "dtype": arguments.dtype if jax.default_backend() == "gpu" else "float32",
        "batch_tokens": arguments.batch_tokens,
    }
    peer = Path(__file__).with_name("score_documents_peer.py")
    command = [arguments.torch_python, str(peer), str(folder), json.dumps(settings)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdin and child.stdout

        def answer() -> str:
            line = child.stdout.readline() if child.stdout else ""
            if not line:
                raise SystemExit(
                    f"the peer stopped: does {arguments.torch_python} have torch and transformers?"
                )
            return line

        def turn() -> tuple[float, np.ndarray]:
            print("turn", file=child.stdin, flush=True)
            told = json.loads(answer())
            return told["seconds"], np.array(told["nll_N"])

        print(f"theirs: {answer().strip()}")
        yield turn
        child.stdin.close()


if __name__ == "__main__":
    main()
