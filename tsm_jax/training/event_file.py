"""TensorBoard's event files, written at once: a full disk is told where the number is written.

tensorboardX's own writer works in a thread of its own that drops errors; only its record format
and messages are used here.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping
from contextlib import suppress

from tensorboardX.proto.event_pb2 import Event, SessionLog  # pyright: ignore[reportAttributeAccessIssue]
from tensorboardX.proto.summary_pb2 import Summary  # pyright: ignore[reportAttributeAccessIssue]
from tensorboardX.record_writer import RecordWriter


class EventFile:
    """A new event file.

    Args:
        directory: for TensorBoard's --logdir.
        first_step: TensorBoard forgets what earlier files of the directory say of later steps.

    Raises:
        OSError: it cannot be written, here and in all methods.
    """

    def __init__(self, directory: str, first_step: int):
        os.makedirs(directory, exist_ok=True)
        now = time.time()
        name = f"events.out.tfevents.{now:.6f}.{socket.gethostname()}.{os.getpid()}"
        self._writer = RecordWriter(os.path.join(directory, name))
        self._write(Event(wall_time=now, file_version="brain.Event:2"))
        restart = SessionLog(status=SessionLog.START)
        self._write(Event(wall_time=now, step=first_step + 1, session_log=restart))
        self._writer.flush()

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """One point for each name, on disk when this returns."""
        points = [Summary.Value(tag=name, simple_value=value) for name, value in values.items()]
        self._write(Event(wall_time=time.time(), step=step, summary=Summary(value=points)))
        self._writer.flush()

    def close(self) -> None:
        with suppress(OSError):  # all is on disk already, or the failure has been told
            self._writer.close()

    def _write(self, event: Event) -> None:
        self._writer.write(event.SerializeToString())
