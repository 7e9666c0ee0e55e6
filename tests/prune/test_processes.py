"""Two processes with two devices each score as one process with four does."""

import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
from scoring import mesh_of, random_documents, scorer_on, write_store

from jaxprune.data.store import TRAIN, TokenStore
from jaxprune.progress import meter

PROGRAM = """
import os, sys
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=2"
import jax, numpy as np
address, rank, store, out = sys.argv[1:]
jax.config.update("jax_cpu_collectives_implementation", "gloo")
jax.distributed.initialize(address, num_processes=2, process_id=int(rank))
from scoring import mesh_of, scorer_on
from jaxprune.data.store import TRAIN, TokenStore
from jaxprune.progress import meter
assert jax.device_count() == 4 and jax.local_device_count() == 2
store = TokenStore(store)
with meter("score", None, "tokens") as bar:
    table = scorer_on(mesh_of(4, replica=2, fsdp=2))(store, store.documents(TRAIN), bar)
np.save(out, table["nll_sum"].to_numpy())
"""


def test_every_process_gets_the_scores_of_one(tmp_path):
    store = write_store(tmp_path / "store", random_documents(30))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    outputs = [tmp_path / f"{rank}.npy" for rank in (0, 1)]
    children = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM, address, str(rank), store.folder, output],
            env={"PYTHONPATH": str(Path(__file__).parents[1]), "PATH": "", "JAX_PLATFORMS": "cpu"},
        )
        for rank, output in enumerate(outputs)
    ]
    try:
        assert [child.wait(timeout=240) for child in children] == [0, 0]
    finally:
        for child in children:
            child.kill()
    with meter("score", None, "tokens") as bar:
        alone = scorer_on(mesh_of(4, replica=2, fsdp=2))(
            TokenStore(store.folder), store.documents(TRAIN), bar
        )["nll_sum"].to_numpy()
    for output in outputs:
        np.testing.assert_array_equal(np.load(output), alone)
