"""`jaxprune doctor`: versions, devices, and what is missing."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import sys

from rich.console import Console
from rich.markup import escape
from rich.table import Table

_REQUIRED = (
    "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "sentencepiece", "tensorflow-datasets",
    "numpy", "pyarrow", "ibis-framework", "duckdb", "tyro", "rich", "jinja2", "matplotlib", "tensorboardX",
)  # fmt: skip
_OPTIONAL = {
    "tokenizers": "Hugging Face tokenizer.json: pip install 'jaxprune[huggingface]'",
    "safetensors": "models in Hugging Face format: pip install 'jaxprune[huggingface]'",
    "libtpu": "TPUs: pip install 'jaxprune[tpu]'",
    "jax-cuda13-plugin": "NVIDIA GPUs: pip install 'jaxprune[cuda]'",
    "jupyterlab": "notebooks: pip install 'jaxprune[notebooks]'",
    "tensorboard": "a viewer of the metrics: pip install tensorboard",
}


def run() -> int:
    """Prints what is there; returns 1 when something that is needed is missing or does not work."""
    console = Console()
    problems: list[str] = []
    table = Table("what", "version", "note", title="jaxprune doctor", title_justify="left")
    table.add_row("python", platform.python_version(), sys.platform)
    for library in ("jaxprune", *_REQUIRED):
        version = _version(library)
        table.add_row(library, version or "missing")
        if version is None:
            problems.append(f"{library} is missing: pip install {library}")
    for library, purpose in _OPTIONAL.items():
        table.add_row(library, _version(library) or "-", escape(purpose), style="dim")
    console.print(table)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    free = shutil.disk_usage(".").free / 2**30
    console.print(f"{os.cpu_count()} CPU cores, {memory:.0f} GiB of memory, {free:.0f} GiB free on this disk")
    problems += _devices(console)
    for problem in problems:
        console.print(f"problem: {problem}", markup=False, style="red")
    if not problems:
        console.print("nothing that is needed is missing", style="green")
    return 1 if problems else 0


def _devices(console: Console) -> list[str]:
    """Lists the devices and computes on one; returns what is wrong."""
    try:
        import jax
        import jax.numpy as jnp

        devices = jax.devices()
        works = float(jnp.ones((128, 128)).sum()) == 128 * 128
    except Exception as error:  # whatever the platform's plugin raises is what the user must read
        return [f"jax cannot use its devices: {error}"]
    for device in devices:
        console.print(f"{device.id}: {device.device_kind} ({device.platform})")
    problems = [] if works else ["the first device computes a wrong sum"]
    if shutil.which("nvidia-smi") and devices[0].platform != "gpu":
        problems.append("there is an NVIDIA GPU that jax does not use: pip install 'jaxprune[cuda]'")
    return problems


def _version(library: str) -> str | None:
    try:
        return importlib.metadata.version(library)
    except importlib.metadata.PackageNotFoundError:
        return None
