"""`stream`: what a network says of a live input, printed, as lines of JSON and on its frames."""

from __future__ import annotations

import os
import sys
import time
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np

from tsm_jax.deploy.annotated import AnnotatedVideo, Display, Window, annotate, check_suffix
from tsm_jax.deploy.inputs import refuse_inputs
from tsm_jax.deploy.json_lines import Results
from tsm_jax.deploy.live_input import Frame, Gap, Input
from tsm_jax.deploy.stream import Shown, Smoother, Stream
from tsm_jax.errors import UserError
from tsm_jax.terminal import printable

WINDOW = "window"

# The share of the network's frame rate that an input should have.
_ENOUGH = 0.8
# Frames after which it is said whether it has.
_JUDGED_AFTER = 20


def follow(
    stream: Stream,
    source: str,
    *,
    frame_rate: float | None = None,
    patience: int = 2,
    output: str | None = None,
    visualize: str | None = None,
    overwrite: bool = False,
) -> None:
    """Answers for an input until it ends, the window is closed, or Ctrl-C.

    Args:
        stream: the network.
        source: the number of a camera, an address, or the path of a video file.
        frame_rate: frames per second that the network is to see; None for that of its training.
        patience: of the `Smoother`; 1 for none.
        output: a new file for a line of JSON per frame that the network saw; `-` is the standard
            output, which otherwise gets a line for people whenever the answer changes.
        visualize: `window`, or the path of a video to write.
        overwrite: replace results and a video that exist.

    Raises:
        UserError: the frame rate is not known, the input cannot be opened, an output cannot be
            written or exists.
    """
    rate = _frame_rate(stream, frame_rate)
    if visualize not in (None, WINDOW):
        _check_video(visualize, source, overwrite)
    request = {"stream": source, "process": os.getpid(), "started": time.time()}
    given = [source] if os.path.exists(source) else []
    stream.push(np.zeros((32, 32, 3), np.uint8))  # what compiles does it now: no camera waits
    stream.reset()
    results = Results(output, request, inputs=given, overwrite=overwrite)
    frames = Input(source, rate, every_frame=visualize is not None)
    with ExitStack() as opened:
        opened.enter_context(results)
        display = opened.enter_context(_display(visualize, frames.name))
        run = _Run(stream, stream.smoother(patience=patience), frames, rate, results, display)
        run.prints = output != "-"
        _note(
            f"{frames.name} at {rate:g} frames a second, in {stream.engine.name} on"
            f" {stream.engine.device}" + ("; Ctrl-C ends it" if frames.is_live else "")
        )
        try:
            run.follow()
        except KeyboardInterrupt:
            print(file=sys.stderr)  # behind ^C
        finally:
            _note(run.summary())


def _frame_rate(stream: Stream, given: float | None) -> float:
    if given is None and not stream.frame_rate:
        raise UserError(
            f"{stream.source} does not say at how many frames a second it was trained: give --fps,"
            " the frames of a clip over its seconds (docs/live.md)"
        )
    return stream.frame_rate if given is None else given


def _check_video(path: str, source: str, overwrite: bool) -> None:
    check_suffix(path)
    if os.path.lexists(path) and not overwrite:
        raise UserError(f"{path} exists already: choose another file, or --overwrite replaces it")
    refuse_inputs([path], [source])


def _display(visualize: str | None, name: str) -> Any:
    if visualize is None:
        return nullcontext()
    return Window(f"tsm stream: {name}") if visualize == WINDOW else AnnotatedVideo(visualize)


def _note(text: str) -> None:
    print(printable(text), file=sys.stderr, flush=True)


@dataclass
class _Run:
    stream: Stream
    smoother: Smoother
    frames: Input
    rate: float
    results: Results
    display: Display | None
    prints: bool = True
    answered: int = 0
    busy: float = 0.0  # seconds
    last: float = 0.0  # time of the last picked frame
    first: float = 0.0  # and of the first one since the start or a gap
    shown: Shown | None = None
    _since_gap: int = 0
    _judged: bool = False
    _said_dropped: bool = False

    def follow(self) -> None:
        start = time.monotonic()
        for moment in self.frames:
            if isinstance(moment, Gap):
                _note(moment.text)
                self._forget()
                continue
            if moment.picked:
                self._answer(moment)
            if self.display is not None and not self._draw(moment, start):
                return

    def _forget(self) -> None:
        self.stream.reset()
        self.smoother.reset()
        self.shown, self._since_gap = None, 0

    def _answer(self, frame: Frame) -> None:
        start = time.perf_counter()
        logits = self.stream.push(frame.pixels)
        self.busy += time.perf_counter() - start
        self.answered += 1
        self._since_gap += 1
        self.shown = shown = self.smoother.update(logits)
        if self._since_gap == 1:
            self.first = frame.time
        self.last = frame.time
        self.results.write(shown.values(frame.time, self.frames.dropped))
        if shown.changed and self.prints:
            answer = shown.answer
            print(f"{frame.time:9.2f} s  {printable(answer.label)}  {answer.score:.3f}", flush=True)
        self._judge()

    def _judge(self) -> None:
        """Says once what makes the network see time pass otherwise than in training."""
        if self.frames.dropped and not self._said_dropped:
            self._said_dropped = True
            _note(
                f"dropping frames: one takes {1000 * self.busy / self.answered:.0f} ms, they come"
                f" every {1000 / self.rate:.0f} ms; the end says how many"
            )
        if self._judged or self.frames.dropped or self._since_gap < _JUDGED_AFTER:
            return
        self._judged = True
        found = (self._since_gap - 1) / max(self.last - self.first, 1e-9)
        if found < _ENOUGH * self.rate:
            _note(
                f"{self.frames.name} gives {found:.3g} frames a second, the network was trained"
                f" with {self.rate:g}: all that moves will look faster to it"
            )

    def _draw(self, frame: Frame, start: float) -> bool:
        assert self.display is not None
        if isinstance(self.display, Window) and not self.frames.is_live:
            time.sleep(max(0.0, start + frame.time - time.monotonic()))
        picture = frame.pixels
        if self.shown is not None:
            picture = annotate(picture, self.shown.answer, self.shown.scores)
            return self.display.show(picture, frame.time)
        return True

    def summary(self) -> str:
        text = f"{self.frames.name}: {self.answered} frames answered"
        if self.answered:
            text += f", {1000 * self.busy / self.answered:.1f} ms each"
        if self.frames.is_live:
            text += f"; {self.frames.dropped} dropped, because they came faster than that"
        return text
