"""Event files of TensorBoard (the package tensorboard).

    event_file.py                    prints event_file.json, the reference of tests/report
    event_file.py FOLDER METRICS     reads a run's --tensorboard with TensorBoard's own reader: it must have the numbers
                                     of the run's --metrics, rounded to float32

The environment: pip install tensorboard
"""
import json
import sys

from tensorboard.compat.proto import event_pb2, summary_pb2, tensor_pb2, tensor_shape_pb2, types_pb2
from tensorboard.summary.writer.record_writer import RecordWriter


def record(event):
    class File:
        bytes = b""

        def write(self, more):
            self.bytes += more

    file = File()
    RecordWriter(file).write(event.SerializeToString())
    return file.bytes.hex()


def reference():
    value = summary_pb2.Summary.Value
    scalars = [value(tag="loss", simple_value=2.3456789), value(tag="time/communication", simple_value=-1e-30)]
    text = value(
        tag="command",
        tensor=tensor_pb2.TensorProto(
            dtype=types_pb2.DT_STRING,
            tensor_shape=tensor_shape_pb2.TensorShapeProto(dim=[tensor_shape_pb2.TensorShapeProto.Dim(size=1)]),
            string_val=[("grün, " + "x" * 300).encode()],
        ),
        metadata=summary_pb2.SummaryMetadata(plugin_data=summary_pb2.SummaryMetadata.PluginData(plugin_name="text")),
    )
    summary = summary_pb2.Summary
    return {
        "version": record(event_pb2.Event(wall_time=1764398400.25, file_version="brain.Event:2")),
        "start": record(
            event_pb2.Event(
                wall_time=1764398400.5, step=301, session_log=event_pb2.SessionLog(status=event_pb2.SessionLog.START)
            )
        ),
        "scalars": record(
            event_pb2.Event(wall_time=1764398401.125, step=1 << 40, summary=summary(value=scalars))
        ),
        "text": record(event_pb2.Event(wall_time=1764398402.0, summary=summary(value=[text]))),
    }


def check(folder, metrics):
    import numpy
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    read = EventAccumulator(folder, size_guidance={"scalars": 0, "tensors": 0})
    read.Reload()
    want = {}

    def collect(line, prefix, step):
        for key, value in line.items():
            if isinstance(value, dict):
                collect(value, prefix + key + "/", step)
            elif isinstance(value, (int, float)) and not isinstance(value, bool) and prefix + key != "step":
                want.setdefault(prefix + key, []).append((step, float(numpy.float32(value))))

    for line in map(json.loads, open(metrics)):
        if line.get("kind") != "run":
            collect(line, "", line["step"])
    tags = read.Tags()
    assert sorted(tags["scalars"]) == sorted(want), (tags["scalars"], sorted(want))
    for tag, values in want.items():
        got = [(e.step, e.value) for e in read.Scalars(tag)]
        assert got == values, (tag, got, values)
    assert "command" in tags["tensors"], tags
    print(f"{folder}: {sum(map(len, want.values()))} numbers of {len(want)} curves are those of {metrics}")


if __name__ == "__main__":
    check(*sys.argv[1:]) if len(sys.argv) > 1 else print(json.dumps(reference(), indent=1))
