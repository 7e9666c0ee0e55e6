"""The roll call of processes, and what they hear of each other: here as threads of one process."""

import json
import queue
import socket
import threading
import time

import pytest

from jaxprune.channel import Channel, Place, from_launcher, roll_call


@pytest.fixture
def place():
    """A process of three, at a port that is free."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    def place(process: int, timeout: float = 20.0, processes: int = 3) -> Place:
        return Place(
            processes=processes,
            process=process,
            coordinator=f"127.0.0.1:{port}",
            timeout=timeout,
            start_timeout=timeout,
        )

    return place


class Call:
    """A roll call in a thread."""

    def __init__(self, place: Place, settings: str = "same") -> None:
        self._outcome: queue.Queue = queue.Queue()
        threading.Thread(target=self._run, args=(place, settings), daemon=True).start()

    def _run(self, place: Place, settings: str) -> None:
        try:
            self._outcome.put(roll_call(place, settings))
        except Exception as error:
            self._outcome.put(error)

    def outcome(self):
        return self._outcome.get(timeout=30)


def _connect(place: Place) -> socket.socket:
    until = time.monotonic() + 20
    while True:
        try:
            return socket.create_connection(place.address)
        except OSError:
            assert time.monotonic() < until
            time.sleep(0.01)


def test_all_know_all_and_values_arrive_in_order(place):
    calls = [Call(place(process)) for process in (2, 1, 0)]
    (hosts, two), (_, one), (_, zero) = (call.outcome() for call in calls)
    assert hosts == [socket.gethostname()] * 3
    assert (sorted(zero), sorted(one), sorted(two)) == ([1, 2], [0], [0])
    for channel in (*zero.values(), one[0], two[0]):
        channel.listen(lambda message: None, timeout=20)
    for value in ({"a": [1, "ü\n"]}, None, 3):
        zero[2].send({"value": value})
    assert [two[0].receive() for _ in range(3)] == [{"a": [1, "ü\n"]}, None, 3]
    one[0].send({"value": 1})
    assert zero[1].receive() == 1


def test_missing_processes_are_named_to_those_that_are_there(place):
    calls = [Call(place(process, timeout=1.5, processes=4)) for process in (0, 2)]
    for outcome in (call.outcome() for call in calls):
        assert "of 4 processes these are missing after 2 s: 1, 3" in str(outcome)


def test_without_process_0_the_others_say_where_they_looked(place):
    outcome = Call(place(1, timeout=1)).outcome()
    assert isinstance(outcome, TimeoutError)
    assert f"process 1 does not reach process 0 at {place(1).coordinator}" in str(outcome)


def test_a_second_of_the_same_number_is_refused(place):
    first = Call(place(0))
    with _connect(place(1)) as holder:
        holder.sendall(_introduction(1))
        second = Call(place(1))
        for outcome in (first.outcome(), second.outcome()):
            assert "has the number of another" in str(outcome)


def test_other_settings_are_refused(place):
    calls = Call(place(0)), Call(place(1), settings="other")
    for outcome in (call.outcome() for call in calls):
        assert "process 1 on" in str(outcome) and "other settings than process 0" in str(outcome)


def test_one_that_was_started_again_and_strangers_do_not_disturb(place):
    first = Call(place(0))
    killed = _connect(place(1))
    killed.sendall(_introduction(1))
    _connect(place(1)).sendall(b"GET / HTTP/1.1\r\n\r\n")
    _connect(place(1)).sendall(b"[]\n")
    killed.close()
    calls = [Call(place(process)) for process in (1, 2)]
    assert sorted(first.outcome()[1]) == [1, 2]
    for call in calls:
        assert sorted(call.outcome()[1]) == [0]


def _introduction(process: int) -> bytes:
    said = {"process": process, "processes": 3, "host": "here", "settings": "same"}
    return json.dumps(said).encode() + b"\n"


@pytest.mark.parametrize("how", ["closed", "silent"])
def test_one_that_is_gone_is_noticed(how):
    with socket.create_server(("127.0.0.1", 0)) as server:
        theirs = socket.create_connection(server.getsockname())
        ours, _ = server.accept()
    heard: queue.Queue = queue.Queue()
    channel = Channel(ours, timeout=20)
    channel.listen(heard.put, timeout=0.5)
    theirs.sendall(b'{}\n{"status": 3}\n{}\n')
    assert heard.get(timeout=20) == {"status": 3}
    if how == "closed":
        theirs.close()
    assert heard.get(timeout=20) is None


def test_a_launcher_says_where_this_process_stands(monkeypatch):
    of_slurm = {
        "SLURM_JOB_ID": "7",
        "SLURM_STEP_NODELIST": "node[001-004]",
        "SLURM_NTASKS": "8",
        "SLURM_STEP_NUM_NODES": "4",
        "SLURM_PROCID": "5",
        "SLURM_LOCALID": "1",
    }
    with pytest.raises(ValueError, match="finds no launcher that JAX knows"):
        from_launcher(1, 1)
    for name, value in of_slurm.items():
        monkeypatch.setenv(name, value)
    place = from_launcher(1, 1)
    assert (place.processes, place.process, place.devices) == (8, 5, [1])
    assert place.address[0] == "node001"
