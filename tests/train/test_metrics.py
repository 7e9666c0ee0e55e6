"""Lines of metrics survive kills and resumption."""

import json

from jaxprune.train.metrics import Metrics, read


def test_lines_after_the_checkpoint_are_taken_back(tmp_path):
    metrics = Metrics(tmp_path, 0)
    for step in (5, 10, 15):
        metrics.write(step, step * 100, {"loss": 1.0 / step})
    metrics.close()
    Metrics(tmp_path, 10).close()
    assert [line["step"] for line in read(tmp_path / "metrics.jsonl")] == [5, 10]


def test_a_line_that_a_kill_cut_short_is_left_out(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text(json.dumps({"step": 1, "loss": 2.0}) + '\n{"step": 2, "lo')
    assert [line["step"] for line in read(path)] == [1]
    metrics = Metrics(tmp_path, 1)
    metrics.write(2, 20, {"loss": 1.5})
    metrics.close()
    assert [line["step"] for line in read(path)] == [1, 2]


def test_tensorboard_reads_what_is_written(tmp_path):
    metrics = Metrics(tmp_path, 0, ("tensorboard",))
    metrics.write(1, 10, {"loss": 2.5})
    metrics.close()
    from tensorboardX.proto.event_pb2 import Event

    (file,) = (tmp_path / "tensorboard").iterdir()
    data, values = file.read_bytes(), {}
    while data:  # TFRecord: length (8 bytes), its checksum (4), record, its checksum (4)
        length = int.from_bytes(data[:8], "little")
        event = Event.FromString(data[12 : 12 + length])
        values |= {value.tag: value.simple_value for value in event.summary.value}
        data = data[16 + length :]
    assert values == {"loss": 2.5}
