"""What the devices can do, for model FLOP utilisation (MFU)."""

from __future__ import annotations

import jax

# Dense bfloat16 peak of one device in FLOP/s, from the vendors' data sheets. First match wins.
_PEAK_BF16: tuple[tuple[str, float], ...] = (
    ("h200", 989e12),
    ("h100", 989e12),
    ("b200", 2250e12),
    ("a100", 312e12),
    ("l40s", 362e12),
    ("tpu v6", 918e12),  # Trillium, "TPU v6 lite"
    ("tpu v5p", 459e12),
    ("tpu v5 lite", 197e12),
    ("tpu v5e", 197e12),
    ("tpu v5", 459e12),
    ("tpu v4", 275e12),
)


def peak_flops(device_kind: str) -> float | None:
    """Dense bfloat16 peak of a kind of device in FLOP/s; None where it is not known (CPUs)."""
    kind = device_kind.lower()
    return next((peak for name, peak in _PEAK_BF16 if name in kind), None)


def describe(mesh: jax.sharding.Mesh) -> str:
    """One line on the devices of a mesh."""
    devices = mesh.devices.flatten()
    shape = " x ".join(f"{axis} {size}" for axis, size in mesh.shape.items())
    return f"{len(devices)} x {devices[0].device_kind} ({shape}), {jax.process_count()} process(es)"
