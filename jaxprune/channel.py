"""Connections between process 0 and the others of a cluster: JSON lines over TCP, and signs of life.

They are opened at the coordinator's address before JAX opens its own service there, so that a process that is
missing can be named, and stay open: a process that is killed closes its end at once, and one whose host is gone
falls silent.
"""

from __future__ import annotations

import json
import queue
import select
import socket
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from jaxprune.progress import say

Message = dict[str, Any]

GONE = 75
"""Exit status where a process is missing or gone, which the same command again may mend (EX_TEMPFAIL of sysexits.h)."""
_SAY_EVERY_S = 10.0
_INTRODUCED_S = 5.0  # in which whoever connects says who it is


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a process stands among those of a command."""

    processes: int
    process: int  # from 0
    coordinator: str  # HOST:PORT, on the host of process 0
    timeout: float  # seconds to wait for a process that is silent
    start_timeout: float  # seconds to wait for processes that have not started
    devices: Sequence[int] | None = None  # of its host; None: all

    def __post_init__(self) -> None:
        for name in ("timeout", "start_timeout"):
            if getattr(self, name) < 1:
                option = name.replace("_", "-")
                raise ValueError(f"--{option} is {getattr(self, name):g}: give 1 second or more")
        if not 0 <= self.process < self.processes:
            raise ValueError(
                f"--process is {self.process} of {self.processes} --processes: number them from 0 on"
            )
        host, _, port = self.coordinator.rpartition(":")
        if not (host and port.isdecimal()):
            raise ValueError(
                f"--coordinator is {self.coordinator}: give HOST:PORT, a free port of the host of process 0"
            )

    @property
    def address(self) -> tuple[str, int]:
        host, _, port = self.coordinator.rpartition(":")
        return host.strip("[]"), int(port)


def from_launcher(timeout: float, start_timeout: float) -> Place:
    """The place that SLURM, Open MPI, Kubernetes or a TPU pod gives this process.

    Raises:
      ValueError: there is no launcher that JAX knows.
    """
    from jax._src.clusters import ClusterEnv  # `jax.distributed.initialize` asks it too, and tells nobody

    coordinator, processes, process, devices = ClusterEnv.auto_detect_unset_distributed_params(
        None, None, None, None, None, int(start_timeout)
    )
    if coordinator is None or processes is None or process is None:
        raise ValueError(
            "--distributed finds no launcher that JAX knows: give --processes, --process and --coordinator"
        )
    return Place(
        processes=processes,
        process=process,
        coordinator=coordinator,
        timeout=timeout,
        start_timeout=start_timeout,
        devices=devices,
    )


class Channel:
    """A connection to another process."""

    def __init__(self, connection: socket.socket, timeout: float) -> None:
        """Messages are waited for `timeout` seconds."""
        connection.settimeout(timeout)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._connection = connection
        self._lines = connection.makefile("r", encoding="utf-8")
        self._values: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._sending = threading.Lock()
        self._listener: threading.Thread | None = None

    def send(self, message: Message) -> None:
        """Sends a message; where the other end is gone, the listener finds out."""
        try:
            with self._sending:
                self._connection.sendall(json.dumps(message).encode() + b"\n")
        except OSError:
            pass

    def read(self) -> Message | None:
        """The next message; None: the other process is gone, or has been silent for too long."""
        try:
            message = json.loads(next(self._lines))
        except (StopIteration, OSError, ValueError):
            return None
        return message if isinstance(message, dict) else None

    def is_closed(self) -> bool:
        """Whether the other process, which has nothing to say yet, has closed its end."""
        poll = select.poll()
        poll.register(self._connection, select.POLLIN)
        return bool(poll.poll(0))

    def listen(self, hear: Callable[[Message | None], None], timeout: float) -> None:
        """From here on values are for `receive`, and `hear` is told the rest in a thread."""
        self._connection.settimeout(timeout)

        def listen() -> None:
            while (message := self.read()) is not None:
                if "value" in message:
                    self._values.put(message["value"])
                elif message:
                    hear(message)
            hear(None)

        def live() -> None:
            while True:
                self.send({})
                time.sleep(timeout / 4)

        self._listener = threading.Thread(target=listen, daemon=True)
        self._listener.start()
        threading.Thread(target=live, daemon=True).start()

    def receive(self) -> Any:
        """The next value that the other process sends."""
        return self._values.get()

    def join(self, seconds: float) -> None:
        """Waits until the other process has closed its end."""
        if self._listener is not None and self._listener is not threading.current_thread():
            self._listener.join(max(seconds, 0))

    def close(self) -> None:
        self._connection.close()


def roll_call(place: Place, settings: str) -> tuple[list[str], dict[int, Channel]]:
    """Waits until all processes are there.

    Args:
      place: of this process.
      settings: that all must have in common.

    Returns:
      The hosts by process, and the channels by process: of process 0 one to each other, of the others one to it.

    Raises:
      TimeoutError: processes are missing; it names them.
      ValueError: one has other settings, or the number of another.
      OSError: process 0 cannot open its port.
    """
    here = {"process": place.process, "processes": place.processes, "host": socket.gethostname()}
    here["settings"] = settings
    return _call(place, here) if place.process == 0 else _answer(place, here)


def _call(place: Place, here: Message) -> tuple[list[str], dict[int, Channel]]:
    hosts, channels = {0: here["host"]}, {}
    with _server(place) as server:
        refusal = _gather(server, place, here, hosts, channels)
    ordered = [hosts.get(index, "") for index in range(place.processes)]
    for channel in channels.values():
        refused = {"refused": str(refusal), "again": isinstance(refusal, TimeoutError)}
        channel.send({"hosts": ordered} if refusal is None else refused)
    if refusal is not None:
        raise refusal
    return ordered, channels


def _gather(
    server: socket.socket, place: Place, here: Message, hosts: dict[int, str], channels: dict[int, Channel]
) -> Exception | None:
    """Takes the other processes up into `hosts` and `channels`; returns why they cannot go on, if so."""
    server.settimeout(0.5)
    until, said = time.monotonic() + place.start_timeout, time.monotonic()
    while len(hosts) < place.processes or any(channel.is_closed() for channel in channels.values()):
        now = time.monotonic()
        missing = ", ".join(
            str(index)
            for index in range(1, place.processes)
            if index not in channels or channels[index].is_closed()
        )
        if now > until:
            return TimeoutError(
                f"of {place.processes} processes these are missing after {place.start_timeout:.0f} s: {missing}"
            )
        if now - said > _SAY_EVERY_S:
            said = now
            say(f"waiting at {place.coordinator} for these of {place.processes} processes: {missing}")
        try:
            connection, _ = server.accept()
        except TimeoutError:
            continue
        channel = Channel(connection, _INTRODUCED_S)
        there = channel.read()
        if there is None or there.keys() != here.keys():
            channel.close()  # a stranger
            continue
        index, name = there["process"], f"process {there['process']} on {there['host']}"
        if there["processes"] != place.processes or there["settings"] != here["settings"]:
            problem = "was given other settings than process 0: give all the same command and config"
        elif index == 0 or (index in hosts and not channels[index].is_closed()):
            problem = f"has the number of another on {hosts[index]}: give each its own --process"
        else:
            hosts[index], channels[index] = there["host"], channel
            continue
        channel.send({"refused": f"{name} {problem}", "again": False})
        return ValueError(f"{name} {problem}")
    return None


def _answer(place: Place, here: Message) -> tuple[list[str], dict[int, Channel]]:
    until = time.monotonic() + place.start_timeout
    while True:
        try:
            connection = socket.create_connection(place.address, timeout=1.0)
        except OSError as error:
            if time.monotonic() > until:
                raise TimeoutError(
                    f"process {place.process} does not reach process 0 at {place.coordinator} within "
                    f"{place.start_timeout:.0f} s ({error}): start process 0 there, or mend the address"
                ) from None
            time.sleep(0.2)
            continue
        channel = Channel(connection, place.start_timeout + 5)  # process 0 says who is missing
        channel.send(here)
        answer = channel.read()
        if answer is None:
            raise TimeoutError(
                f"process {place.process} has lost process 0 at {place.coordinator}: start all again"
            )
        if "refused" in answer:
            raise (TimeoutError if answer["again"] else ValueError)(answer["refused"])
        return answer["hosts"], {0: channel}


def _server(place: Place) -> socket.socket:
    _, port = place.address
    try:
        if socket.has_dualstack_ipv6():
            return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=4096)
        return socket.create_server(("", port), backlog=4096)
    except OSError as error:
        raise OSError(f"process 0 cannot open port {port} of {place.coordinator}: {error.strerror}") from None
