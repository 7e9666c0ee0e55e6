"""Names of accelerators."""

import pytest

from jaxprune.scale import topology
from jaxprune.train.hardware import peak_flops


@pytest.mark.parametrize(
    ("name", "grid", "slices", "chips"),
    [
        ("v5e-256", (16, 16), 1, 256),
        ("v5litepod-16", (4, 4), 1, 16),
        ("v5p-128", (4, 4, 4), 1, 64),  # counted in cores
        ("4xv6e-256", (16, 16), 4, 1024),
        ("h200-1", (1,), 1, 1),
        ("2xH100-8", (8,), 2, 16),
    ],
)
def test_names_are_those_of_the_clouds(name, grid, slices, chips):
    found = topology.find(name)
    assert (found.grid, found.slices, found.n_chips) == (grid, slices, chips)


@pytest.mark.parametrize("name", ["v5e", "v7-8", "v5e-257", "0xv5e-8", "h100-16", "l40s-8", "", "x"])
def test_other_names_say_what_there_is(name):
    with pytest.raises(ValueError, match=r"there is no topology .*(KIND-SIZE|sizes of)"):
        topology.find(name)


def test_cores_of_v5p_are_two_a_chip():
    for size in (8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 12288):
        assert topology.find(f"v5p-{size}").n_chips == size // 2


@pytest.mark.parametrize(
    ("kind", "device"),
    [
        ("v5e", "TPU v5 lite"),
        ("v5p", "TPU v5p"),
        ("v6e", "TPU v6 lite"),
        ("a100", "NVIDIA A100-SXM4-80GB"),
        ("h100", "NVIDIA H100 80GB HBM3"),
        ("h200", "NVIDIA H200"),
        ("b200", "NVIDIA B200"),
    ],
)
def test_peaks_are_those_that_utilisation_is_measured_by(kind, device):
    assert topology.CHIPS[kind].peak_flops == peak_flops(device)
