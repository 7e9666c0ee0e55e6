"""Several processes that run one command: who is there, what one does for all, and how they end together.

JAX joins the processes and runs its programs on the devices of all. Everything else is process 0's: decisions,
files, messages. The others learn of it through the key-value store of JAX's coordination service, which needs no
device and waits as long as a stage takes. A thread of every process shows that it lives; when one fails, or is
gone, all end, and process 0 names it. Files are on a file system that all hosts share.
"""

from __future__ import annotations

import base64
import json
import os
import pickle
import re
import secrets
import socket
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from jaxprune import progress
from jaxprune.progress import say

T = TypeVar("T")

_ROOT = "jaxprune/"  # of the keys
_REQUEST_S = 5.0  # that one request waits: in between, Python takes signals
_SEEN_S = 90.0  # until another host sees a file: network file systems cache for a minute
_GRACE_S = 2.0  # in which process 0 may say itself what all processes have met
_ANSWER_S = 10.0  # in which a process that lives answers
_AGAIN = "start all processes again, and the same command continues where it was"


@dataclass(kw_only=True)
class _Cluster:
    """The processes, as one of them sees them."""

    client: Any  # of JAX's coordination service, which is part of process 0
    index: int
    hosts: list[str]  # by process
    timeout: float  # seconds that a process may be silent
    calls: int = 0  # of `alone` so far, as many in every process
    works_alone: bool = False  # process 0, while it does something for all
    watcher: threading.Thread | None = None

    def name(self, index: int) -> str:
        return f"process {index} on {self.hosts[index]}"

    def set(self, key: str, value: str) -> None:
        self.client.key_value_set(_ROOT + key, value, allow_overwrite=True)

    def get(self, key: str, seconds: float) -> str | None:
        """The value as soon as there is one; None: there was none in time."""
        milliseconds = max(int(1000 * seconds), 1)
        return _unless(
            "DEADLINE_EXCEEDED", lambda: self.client.blocking_key_value_get(_ROOT + key, milliseconds)
        )

    def wait_for(self, key: str) -> str:
        """The value, however long it takes."""
        while (found := self.get(key, _REQUEST_S)) is None:
            pass
        return found

    def ask_to_end(self, message: str | None, status: int) -> None:
        """Of several processes that ask, the first is heard; without a message they part in peace."""
        end = json.dumps({"message": message, "status": status})
        _unless("ALREADY_EXISTS", lambda: self.client.key_value_set(_ROOT + "end", end))

    def watch(self) -> None:
        """Shows that this process lives, and ends it with the others; a thread until the processes part."""
        heard: dict[str, tuple[str, float]] = {}  # last sign of each process, and when it was new
        for sign in range(1 << 62):
            try:
                self.set(f"alive/{self.index}", str(sign))
                end = self.get("end", self.timeout / 20)
                if self.index == 0 and end is None and self._is_one_silent(heard):
                    self.ask_to_end("", 1)
            except Exception:  # whatever is made of a service that is not there
                progress.unmute()
                say(f"error: {self.name(0)} is gone (killed, or its host or network is down): {_AGAIN}")
                _end_now(1)
            if end is not None:
                self._end(**json.loads(end))
                return

    def _is_one_silent(self, heard: dict[str, tuple[str, float]]) -> bool:
        now = time.monotonic()
        for key, sign in self.client.key_value_dir_get(_ROOT + "alive/"):
            if key not in heard or heard[key][0] != sign:
                heard[key] = sign, now
        return any(now - since > self.timeout for _, since in heard.values())

    def _end(self, message: str | None, status: int) -> None:
        if message is None:
            return
        self.set(f"ended/{self.index}", "")
        if self.index == 0:
            until = time.monotonic() + _ANSWER_S
            gone = [
                self.name(index)
                for index in range(len(self.hosts))
                if self.get(f"ended/{index}", until - time.monotonic()) is None
            ]
            if gone:
                are = "is" if len(gone) == 1 else "are"
                say(f"error: {', '.join(gone)} {are} gone (killed, or the host or network is down): {_AGAIN}")
            else:
                say(message)
            time.sleep(0.5)  # the others leave before the service does
        _end_now(status)


_cluster: _Cluster | None = None


def join(processes: int | None, process: int | None, coordinator: str | None, timeout: float) -> None:
    """Joins the processes of one command, and prints who is there; call it before anything else uses JAX.

    Args:
      processes, process, coordinator: how many there are, which of them this is, and a HOST:PORT of the host of
        process 0; None, all three: what the launcher says (SLURM, Open MPI, Kubernetes, TPU pods).
      timeout: seconds to wait for a process that is missing, now or later.

    Raises:
      TimeoutError: processes are missing; it names them.
      ValueError: the numbers do not fit, or there is no launcher that JAX knows.
    """
    if timeout < 1:
        raise ValueError(f"--timeout is {timeout:g}: give 1 second or more")
    if processes is not None and process is not None and not 0 <= process < processes:
        raise ValueError(
            f"--process is {process} of {processes} --processes: number them from 0 to {processes - 1}"
        )
    if coordinator is not None and not re.fullmatch(r".+:\d+", coordinator):
        raise ValueError(
            f"--coordinator is {coordinator}: give HOST:PORT, with a port of process 0's host that is free"
        )
    import jax
    from jax._src import distributed  # the store is in no public module; orbax takes it from here too

    global _cluster
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.config.update("jax_enable_preemption_service", False)  # it would swallow SIGTERM
    if process is not None:
        say(
            f"process {process} of {processes}: waiting for the others at {coordinator}, {timeout:.0f} s at most"
        )
    try:
        jax.distributed.initialize(
            coordinator,
            processes,
            process,
            cluster_detection_method=None if coordinator is None else "deactivate",
            initialization_timeout=int(timeout),
            heartbeat_timeout_seconds=int(2 * timeout),  # ours comes first, and says who
            shutdown_timeout_seconds=int(timeout),
        )
    except ValueError as error:
        raise ValueError(
            f"--distributed finds no launcher that JAX knows ({_first_line(error)}): give --processes, --process "
            "and --coordinator"
        ) from error
    except Exception as error:
        raise TimeoutError(_who_is_missing(error, processes, process, coordinator, timeout)) from error
    state = distributed.global_state
    assert state.client is not None
    _cluster = _Cluster(client=state.client, index=state.process_id, hosts=[], timeout=timeout)
    _cluster.set(f"host/{_cluster.index}", socket.gethostname())
    for index in range(state.num_processes):
        _cluster.hosts.append(_cluster.get(f"host/{index}", timeout) or "a host unknown")
    if _cluster.index > 0:
        progress.mute()
    _cluster.watcher = threading.Thread(target=_cluster.watch, daemon=True)
    _cluster.watcher.start()
    devices = jax.devices()
    say(f"{len(_cluster.hosts)} processes, {len(devices)} devices")
    for index in range(len(_cluster.hosts)):
        own = [device for device in devices if device.process_index == index]
        say(f"  {_cluster.name(index)}: {len(own)} x {own[0].device_kind}")


def size() -> int:
    """How many processes run the command."""
    return 1 if _cluster is None else len(_cluster.hosts)


def is_first() -> bool:
    """Whether this process writes the files: of several, process 0 does."""
    return _cluster is None or _cluster.index == 0


def alone(do: Callable[[], T]) -> T:
    """What `do` returns in process 0, given to every process; the others wait for it however long it takes.

    While it runs, process 0 is as if there were no others. What it returns is small, and can be pickled. When it
    raises, so does process 0, and all end.
    """
    if _cluster is None or _cluster.works_alone:
        return do()
    key = f"done/{_cluster.calls}"
    _cluster.calls += 1
    if _cluster.index == 0:
        _cluster.works_alone = True
        try:
            value = do()
        finally:
            _cluster.works_alone = False
        _cluster.set(key, base64.b64encode(pickle.dumps(value)).decode())
        return value
    return pickle.loads(base64.b64decode(_cluster.wait_for(key)))


def holds_everywhere(holds: bool) -> bool:
    """Whether something holds in every process."""
    if _cluster is None or _cluster.works_alone:
        return holds
    of = f"holds/{_cluster.calls}/"
    _cluster.set(of + str(_cluster.index), str(int(holds)))
    answers = (of + str(index) for index in range(size()))
    return alone(lambda: all([_cluster.wait_for(key) == "1" for key in answers]))


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


def fail(message: str, status: int) -> None:
    """Ends all processes with `status`, and with `message` from process 0; returns only without a cluster."""
    if _cluster is None or _cluster.watcher is None:
        return
    if _cluster.index > 0 and _cluster.get("end", _GRACE_S) is None:
        message = f"{_cluster.name(_cluster.index)}: {message}"
    _cluster.ask_to_end(message, status)
    _cluster.watcher.join()  # which ends this process
    _end_now(status)


def leave() -> None:
    """Parts from the other processes, when all have come to the end."""
    global _cluster
    if _cluster is None:
        return
    import jax

    _cluster.client.wait_at_barrier(_ROOT + "leave", 1 << 30)
    _cluster.ask_to_end(None, 0)
    assert _cluster.watcher is not None
    _cluster.watcher.join()
    jax.distributed.shutdown()
    _cluster = None


def _who_is_missing(
    error: Exception, processes: int | None, process: int | None, coordinator: str | None, timeout: float
) -> str:
    missing = sorted(set(map(int, re.findall(r"task:(\d+)", str(error)))) - {0})
    if missing:
        are = "is" if len(missing) == 1 else "are"
        return (
            f"of {processes} processes, {', '.join(map(str, missing))} {are} missing after {timeout:.0f} s: start all, "
            "or give a longer --timeout"
        )
    if process:
        return (
            f"process {process} does not reach process 0 at {coordinator} within {timeout:.0f} s: start process 0 there, "
            "or mend the address"
        )
    return f"the processes cannot join: {_first_line(error)}"


def _unless(code: str, request: Callable[[], T]) -> T | None:
    """What a request to the service gives; None: it was refused with this code."""
    try:
        return request()
    except Exception as error:  # jaxlib's, which differ between versions
        if code in str(error):
            return None
        raise


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def _end_now(status: int) -> NoReturn:
    """Without the interpreter's taking down, which would wait for programs that never end."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
