"""The command `stream`: answers for a live input, printed, as JSON lines, and on its frames."""

from __future__ import annotations

import os
import sys
import time
from collections import deque
from contextlib import ExitStack

import numpy as np

from tsm_jax.deploy.annotated import Show, annotate, annotated_video, check_suffix, window
from tsm_jax.deploy.json_lines import Results, check_new
from tsm_jax.deploy.live_input import Frame, Gap, Input
from tsm_jax.deploy.stream import JUDGED_BY, Shown, Stream, too_slow
from tsm_jax.errors import UserError
from tsm_jax.terminal import printable

WINDOW = "window"


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
    """Answers an input until it ends, the window is closed, or Ctrl-C is pressed.

    Args:
        source: a camera number, an address, or the path of a video file.
        frame_rate: frames per second for the network; None for the rate of its training.
        patience: of the `Smoother`.
        output: a new file for one JSON line per frame that the network saw; `-` for standard
            output, which otherwise gets a line of text whenever the answer changes.
        visualize: `window`, or the path of a video to write.
        overwrite: replace existing results and video.

    Raises:
        UserError: the frame rate is not known, the input cannot be opened, or an output exists or
            cannot be written.
    """
    if frame_rate is None and not stream.frame_rate:
        raise UserError(
            f"{stream.source} does not store the frame rate of its training: set --fps to the"
            " frames of a training clip over its seconds (docs/live.md)"
        )
    rate = stream.frame_rate if frame_rate is None else frame_rate
    if visualize not in (None, WINDOW):
        check_suffix(visualize)
        check_new(visualize, [source], overwrite=overwrite)
    request = {"stream": source, "process": os.getpid(), "started": time.time()}
    given = [source] if os.path.exists(source) else []
    stream.push(np.zeros((32, 32, 3), np.uint8))  # compile now, because a camera does not wait
    stream.reset()
    results = Results(output, request, inputs=given, overwrite=overwrite)
    frames = Input(source, rate, every_frame=visualize is not None)
    with ExitStack() as opened:
        opened.enter_context(results)
        show: Show | None = None
        if visualize == WINDOW:
            show = opened.enter_context(window(f"tsm stream: {frames.name}"))
        elif visualize is not None:
            show = opened.enter_context(annotated_video(visualize))
        run = _Run(stream, patience, frames, rate, results, show, prints=output != "-")
        run.waits = visualize == WINDOW and not frames.is_live
        _note(
            f"{frames.name} at {rate:g} frames a second, {stream.engine.name} on"
            f" {stream.engine.device}" + ("; stop with Ctrl-C" if frames.is_live else "")
        )
        try:
            run.follow()
        except KeyboardInterrupt:
            print(file=sys.stderr)  # ends the line with ^C
        finally:
            _note(run.summary())


def _note(text: str) -> None:
    print(printable(text), file=sys.stderr, flush=True)


class _Run:
    def __init__(
        self,
        stream: Stream,
        patience: int,
        frames: Input,
        rate: float,
        results: Results,
        show: Show | None,
        *,
        prints: bool,
    ):
        self._stream, self._smoother = stream, stream.smoother(patience=patience)
        self._frames, self._rate = frames, rate
        self._results, self._show, self._prints = results, show, prints
        self.waits = False  # whether to show each frame at its own time
        self._answered, self._busy = 0, 0.0  # frames; seconds
        self._shown: Shown | None = None
        self._times: deque[float] = deque(maxlen=JUDGED_BY)  # since the start or a gap
        self._judged = self._reported_dropped = False

    def follow(self) -> None:
        start = time.monotonic()
        for moment in self._frames:
            if isinstance(moment, Gap):
                _note(moment.text)
                self._stream.reset()
                self._smoother.reset()
                self._times.clear()
                self._shown = None
                continue
            if moment.picked:
                self._answer(moment)
            if self.waits:
                time.sleep(max(0.0, start + moment.time - time.monotonic()))
            if self._show is not None and (shown := self._shown) is not None:
                picture = annotate(moment.pixels, shown.answer, shown.scores)
                if not self._show(picture, moment.time):
                    return

    def _answer(self, frame: Frame) -> None:
        start = time.perf_counter()
        logits = self._stream.push(frame.pixels)
        self._busy += time.perf_counter() - start
        self._answered += 1
        self._times.append(frame.time)
        self._shown = shown = self._smoother.update(logits)
        self._results.write(shown.values(frame.time, self._frames.dropped))
        if shown.changed and self._prints:
            answer = shown.answer
            print(f"{frame.time:9.2f} s  {printable(answer.label)}  {answer.score:.3f}", flush=True)
        self._judge()

    def _judge(self) -> None:
        """Reports, once, if the network sees time pass differently than in training."""
        if self._frames.dropped:
            if not self._reported_dropped:
                _note(
                    f"dropping frames: each takes {1000 * self._busy / self._answered:.0f} ms but"
                    f" they arrive every {1000 / self._rate:.0f} ms; the total is printed at the"
                    " end"
                )
            self._reported_dropped = True
        elif not self._judged and len(self._times) == JUDGED_BY:
            self._judged = True
            if (found := too_slow(self._times, self._rate)) is not None:
                _note(
                    f"{self._frames.name} delivers {found:.3g} frames a second but the network was"
                    f" trained with {self._rate:g}: motion will look too fast to it"
                )

    def summary(self) -> str:
        text = f"{self._frames.name}: {self._answered} frames answered"
        if self._answered:
            text += f", {1000 * self._busy / self._answered:.1f} ms each"
        if self._frames.is_live:
            text += f"; {self._frames.dropped} dropped because they arrived faster"
        return text
