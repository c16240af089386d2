"""How fast time passes for a network: frames per second that it sees in training.

T frames are taken from a video of any length, so the rate differs from video to video: that of a
data set is T over the duration of the video in the middle when they are sorted by it. Whoever
feeds the network from a live stream picks frames at this rate.
"""

from __future__ import annotations

import statistics

import av
from av.container import InputContainer

from tsm_jax.data.decode import open_video
from tsm_jax.data.protocols import MAX_FRAME_RATE
from tsm_jax.data.sampling import spread_frames
from tsm_jax.data.sources import Source, VideoSource
from tsm_jax.errors import UnreadableClipError

_LOOKED_AT = 32  # videos; only what stands before their frames is read


def measure_frame_rate(source: Source, num_segments: int) -> float:
    """Frames per second, three digits; 0 where the source does not know times, as images in
    folders do not."""
    if not isinstance(source, VideoSource) or not len(source):
        return 0.0
    chosen = spread_frames(len(source), min(_LOOKED_AT, len(source)))
    seconds = [known for i in chosen if (known := duration(source.name(int(i))))]
    if not seconds:
        return 0.0
    return min(float(f"{num_segments / statistics.median(seconds):.3g}"), MAX_FRAME_RATE)


def duration(path: str) -> float:
    """Seconds of a video by what its container says; 0 if that is nothing, or it cannot be read."""
    try:
        with open_video(path) as stream:
            if stream.duration and stream.time_base:
                return float(stream.duration * stream.time_base)
            assert isinstance(stream.container, InputContainer)
            return (stream.container.duration or 0) / av.time_base
    except UnreadableClipError:  # training or evaluation will say so
        return 0.0
