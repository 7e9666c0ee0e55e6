"""Requests to stop: a signal lets a run end its step and save, in all processes after the same step."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import jax
import numpy as np
from jax.sharding import PartitionSpec as P

from jaxprune import cluster
from jaxprune.model.sharding import AXES, put
from jaxprune.progress import say


@contextmanager
def requests(mesh: jax.sharding.Mesh) -> Iterator[Callable[[], int]]:
    """Collects SIGTERM and SIGINT instead of dying of them; a second one does kill.

    Gives a function that returns the signal that was received, or 0. Where there are several processes all call
    it at the same places and are told the same, a call later: the devices compare notes meanwhile.
    """
    received: list[int] = []
    compared: list[jax.Array] = []

    def asked() -> int:
        mine = next(iter(received), 0)
        if cluster.size() == 1:
            return mine
        compared.append(_highest(put(np.full(mesh.size, mine, np.int32), mesh, P(AXES))))
        return int(compared.pop(0)) if len(compared) > 1 else 0

    def on_signal(number: int, frame: Any) -> None:
        if received:
            signal.signal(number, signal.SIG_IGN)  # while it ends
            raise KeyboardInterrupt
        received.append(number)
        say("stopping after this step (the first includes compilation), and saving; again: stop at once")

    previous = {number: signal.signal(number, on_signal) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield asked
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


@jax.jit
def _highest(signal_D: jax.Array) -> jax.Array:
    return signal_D.max()
