"""Several processes that run one command: who is there, what one does for all, and how they end together.

JAX joins the processes and runs its programs on the devices of all. Everything else is process 0's: decisions,
files, messages. The others hold a connection to it (channel.py), through which they learn what it decided, and
that it lives. When one fails, or is gone, all end, and process 0 names it. Files are on a file system that all hosts
share.
"""

from __future__ import annotations

import os
import secrets
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn, TypeVar

from jaxprune import progress
from jaxprune.channel import GONE, Channel, Message, Place, roll_call
from jaxprune.progress import say

T = TypeVar("T")

_SEEN_S = 90.0  # until another host sees a file: network file systems cache for a minute
_GRACE_S = 2.0  # in which process 0 says itself what all processes have met, or that one is gone
_AGAIN = "start all processes again, and the same command continues where it was"


class _Cluster:
    """The processes, as one of them sees them."""

    def __init__(self, place: Place, hosts: list[str], channels: dict[int, Channel]) -> None:
        self.place, self.hosts = place, hosts
        self.channels = channels  # by process; process 0 has one to each other, the others have one to it
        self.works_alone = False  # process 0, while it does something for all
        self.parts = False  # all have come to the end
        self._ending = threading.Lock()
        for index, channel in channels.items():
            channel.listen(lambda message, index=index: self._hear(index, message), place.timeout)

    def name(self, index: int) -> str:
        return f"process {index} on {self.hosts[index]}"

    def _hear(self, index: int, message: Message | None) -> None:
        """In a thread of the channel: what another process says beside values; None: it is gone."""
        if self.parts or self._ending.locked():
            return
        if message is None:
            progress.unmute()  # where it is process 0, each says so
            self.end_all(
                f"error: {self.name(index)} is gone (killed, or its host or network is down): {_AGAIN}", GONE
            )
        elif "failed" in message:
            self.end_all(f"{self.name(index)}: {message['failed']}", message["status"])
        else:
            _end_now(message["status"])

    def end_all(self, message: str, status: int) -> NoReturn:
        self._ending.acquire()  # for good: the first message is the one
        say(message)
        if self.place.process == 0:
            for channel in self.channels.values():
                channel.send({"status": status})
            until = time.monotonic() + _GRACE_S
            for channel in self.channels.values():  # JAX's service, which is part of this process, ends last
                channel.join(until - time.monotonic())
        _end_now(status)


_cluster: _Cluster | None = None


def join(place: Place, settings: str) -> None:
    """Joins the processes of one command, and prints who is there; call it before anything else uses JAX.

    Args:
      place: of this process among them.
      settings: what all must have been given, as a digest.

    Raises:
      OSError, ValueError: as `channel.roll_call`.
    """
    global _cluster
    hosts, channels = roll_call(place, settings)
    if place.process > 0:
        progress.mute()
    _cluster = _Cluster(place, hosts, channels)
    import jax

    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.config.update("jax_enable_preemption_service", False)  # it would swallow SIGTERM
    jax.distributed.initialize(
        place.coordinator,
        place.processes,
        place.process,
        local_device_ids=place.devices,
        cluster_detection_method="deactivate",
        initialization_timeout=int(place.start_timeout),
        heartbeat_timeout_seconds=int(2 * place.timeout),  # ours comes first, and says who
        shutdown_timeout_seconds=int(place.timeout),
    )
    devices = jax.devices()
    say(f"{place.processes} processes, {len(devices)} devices")
    for index in range(place.processes):
        own = [device for device in devices if device.process_index == index]
        say(f"  {_cluster.name(index)}: {len(own)} x {own[0].device_kind}")


def size() -> int:
    """How many processes run the command."""
    return 1 if _cluster is None else _cluster.place.processes


def is_first() -> bool:
    """Whether this process writes the files: of several, process 0 does."""
    return _cluster is None or _cluster.place.process == 0


def alone(do: Callable[[], T]) -> T:
    """What `do` returns in process 0, given to every process; the others wait for it however long it takes.

    While it runs, process 0 is as if there were no others. What it returns is plain JSON data. When it raises, so
    does process 0, and all end.
    """
    if _cluster is None or _cluster.works_alone:
        return do()
    if _cluster.place.process > 0:
        return _cluster.channels[0].receive()
    _cluster.works_alone = True
    try:
        value = do()
    finally:
        _cluster.works_alone = False
    for channel in _cluster.channels.values():
        channel.send({"value": value})
    return value


def holds_everywhere(holds: bool) -> bool:
    """Whether something holds in every process."""
    if _cluster is None or _cluster.works_alone:
        return holds
    if _cluster.place.process > 0:
        _cluster.channels[0].send({"value": holds})
        return alone(lambda: holds)
    answers = [channel.receive() for channel in _cluster.channels.values()]
    return alone(lambda: all([holds, *answers]))


def until_seen(path: Path, is_there: Callable[[], bool]) -> None:
    """Waits until this process sees what process 0 has done to `path`, since network file systems cache.

    Raises:
      FileNotFoundError: it does not come to see it.
    """
    until = time.monotonic() + _SEEN_S
    while not (is_first() or is_there()):
        if time.monotonic() > until:
            raise FileNotFoundError(
                f"{path} is not here as process 0 left it: give a --workdir on a file system that all hosts share"
            )
        time.sleep(0.2)


def check_shared(folder: Path) -> None:
    """Raises FileNotFoundError unless every process sees the files that process 0 writes into `folder`."""
    if size() == 1:
        return
    path, word = folder / ".shared", secrets.token_hex(8)

    def write() -> str:
        path.write_text(word)
        return word

    written = alone(write)
    until_seen(path, lambda: path.is_file() and path.read_text() == written)
    holds_everywhere(True)  # before anything is made


def fail(message: str, status: int) -> None:
    """Ends all processes with `status`, and with `message` from process 0; returns only without a cluster."""
    if _cluster is None:
        return
    time.sleep(
        _GRACE_S / 4 if is_first() else _GRACE_S
    )  # what lies behind it may be known, and said, by then
    if not is_first():
        _cluster.channels[0].send({"failed": message, "status": status})
        time.sleep(_cluster.place.timeout)  # process 0 ends this one
    _cluster.end_all(message, status)


def leave() -> None:
    """Parts from the other processes, when all have come to the end."""
    global _cluster
    if _cluster is None:
        return
    import jax

    holds_everywhere(True)
    _cluster.parts = True
    jax.distributed.shutdown()
    _cluster = None


def _end_now(status: int) -> NoReturn:
    """Without the interpreter's taking down, which would wait for programs that never end."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
