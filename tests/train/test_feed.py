"""What processes read of a batch: together all of it, each the rows that its devices hold."""

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding

from jaxprune.config import Mesh
from jaxprune.model.sharding import make_mesh
from jaxprune.train.feed import Feed


@pytest.fixture
def on_devices(monkeypatch):
    """Lets only some of the devices be those of this process."""

    def only(*devices: int) -> None:
        def mine(sharding: NamedSharding, shape: tuple[int, ...]) -> dict:
            every = sharding.devices_indices_map(shape)
            return {device: every[device] for device in every if device.id in devices}

        monkeypatch.setattr(NamedSharding, "addressable_devices_indices_map", mine)

    return only


@pytest.mark.parametrize(
    ("sizes", "devices", "rows"),
    [
        ({"fsdp": 4}, (0, 1), [0, 1, 4, 5]),
        ({"fsdp": 4}, (2, 3), [2, 3, 6, 7]),
        ({"replica": 2, "fsdp": 2}, (2,), [2, 6]),
        ({"fsdp": 2, "tensor": 2}, (0, 1), [0, 1, 4, 5]),
        ({"fsdp": 1, "tensor": 4}, (0, 1), [0, 1, 2, 3, 4, 5, 6, 7]),  # all read the same rows
        ({"fsdp": 4}, (0, 3), [0, 3, 4, 7]),
    ],
)
def test_a_process_reads_the_rows_of_its_devices(on_devices, sizes, devices, rows):
    mesh = make_mesh(Mesh(**sizes), jax.devices()[:4])
    on_devices(*devices)
    assert Feed(mesh, batch_rows=8, microbatches=2).rows.tolist() == rows


@pytest.mark.parametrize("sizes", [{"fsdp": 4}, {"replica": 2, "fsdp": 1, "tensor": 2}])
def test_microbatches_are_the_batch_cut_in_its_order(sizes):
    mesh = make_mesh(Mesh(**sizes), jax.devices()[:4])
    batch = {"tokens_BS": np.arange(24).reshape(8, 3), "domain_B": np.arange(8)}
    tokens_MBS, domain_MB = Feed(mesh, batch_rows=8, microbatches=2)(batch)
    np.testing.assert_array_equal(tokens_MBS, np.arange(24).reshape(2, 4, 3))
    np.testing.assert_array_equal(domain_MB, np.arange(8).reshape(2, 4))
