"""Which compilers are here, and why one is not."""

import pytest

from jaxprune.scale import compiler, topology


def test_gpus_are_compiled_for_where_the_plugin_is(monkeypatch):
    found = topology.find("h100-8")
    monkeypatch.setattr(compiler, "_version", lambda name: ["0"] if name == "jax-cuda12-plugin" else [])
    assert compiler.is_here(found)
    monkeypatch.setattr(compiler, "_version", lambda name: [])
    assert not compiler.is_here(found) and compiler.is_here(topology.find("v5e-8"))
    with pytest.raises(ValueError, match=r"plugin for NVIDIA GPUs: pip install 'jaxprune\[cuda\]'"):
        compiler.devices(found)


@pytest.mark.parametrize(
    ("raised", "says"),
    [
        (
            "JAX TPU support not installed; cannot generate TPU topology.",
            r"needs libtpu: pip install 'jaxprune\[tpu\]'",
        ),
        (
            "INVALID_ARGUMENT: no such shape\nmore",
            "libtpu refuses the topology v5e-8: INVALID_ARGUMENT: no such shape$",
        ),
    ],
)
def test_why_there_is_no_topology_is_said(monkeypatch, raised, says):
    from jax.experimental import topologies

    def refuse(*arguments, **options):
        raise RuntimeError(raised)

    monkeypatch.setattr(topologies, "get_topology_desc", refuse)
    with pytest.raises(ValueError, match=says):
        compiler.devices(topology.find("v5e-8"))
    monkeypatch.setattr(compiler, "_version", lambda name: ["0", "10", "2"])
    with pytest.raises(ValueError, match=rf"refuses the topology h100-8: {raised.splitlines()[0]}"):
        compiler.devices(topology.find("h100-8"))
