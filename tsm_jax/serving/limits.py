"""Limits of requests, and the errors sent when they are exceeded."""

from __future__ import annotations

from dataclasses import dataclass

# Seconds after which a client may repeat a request that was answered with 503.
RETRY_AFTER = 2

# Error codes, with their HTTP status and meaning.
REFUSALS = {
    "bad_request": (400, "The body does not match its Content-Type."),
    "unauthorized": (401, "The bearer token is missing or wrong."),
    "forbidden": (403, "Pages from other origins may not use the service."),
    "not_found": (404, "There is nothing at this address."),
    "method_not_allowed": (405, "The address does not accept this method."),
    "upload_too_slow": (408, "The body arrived too slowly."),
    "idle": (408, "No frame arrived for too long."),
    "wrong_kind": (409, "A video for a model exported for streams, or the other way round."),
    "upload_too_large": (413, "The body has too many bytes."),
    "unsupported_encoding": (415, "The body is compressed."),
    "upgrade_required": (426, "The address accepts only WebSockets."),
    "bad_option": (422, "An option is unknown, or its value is not allowed."),
    "unreadable_video": (422, "The body is not a video that can be decoded."),
    "unreadable_frame": (422, "A frame is not a JPEG image that can be decoded."),
    "video_too_long": (422, "The video is too long, or its timeline has too many windows."),
    "resolution_too_high": (422, "The frames have too many pixels."),
    "decoding_too_expensive": (422, "Decoding takes too much time or memory, or crashes."),
    "internal": (500, "An internal error; the service's log has the details."),
    "busy": (503, "Too many requests, uploads or streams at once."),
    "not_ready": (503, "The network is being loaded."),
    "interrupted": (503, "A process of the service ended while working on the request."),
    "stopping": (503, "The service is shutting down."),
}


class Refused(Exception):
    """A request that is answered with an error.

    Args:
        code: one of `REFUSALS`.
        message: one line for the client.
    """

    def __init__(self, code: str, message: str):
        super().__init__(code, message)  # so that it can be pickled
        self.code, self.message = code, message

    @property
    def status(self) -> int:
        """HTTP status."""
        return REFUSALS[self.code][0]

    def values(self, request: str) -> dict[str, str]:
        """Returns the JSON answer to the request with this id."""
        return {"id": request, "code": self.code, "error": self.message}


@dataclass(frozen=True)
class Limits:
    """Resource limits of requests."""

    upload_bytes: int = 256 << 20  # per body
    storage_bytes: int = 2 << 30  # of all bodies on disk together
    upload_rate: int = 16 << 10  # minimum bytes per second of a body, on average
    # For the headers of a request, before `upload_rate` applies to its body, and for each frame of
    # a stream.
    idle_seconds: float = 10
    video_seconds: float = 600
    video_pixels: int = 4096 * 2304  # width x height of a frame
    windows: int = 1000  # per timeline
    decode_seconds: float = 60  # waiting for a decoder, and its processor time, per video
    decode_bytes: int = 1 << 30  # memory of a decoding process, in addition to its program
    decoders: int = 2  # decoding processes
    requests: int = 64  # uploaded videos waiting for an answer
    streams: int = 8  # followed at once
    frame_bytes: int = 2 << 20  # per frame of a stream
    connections: int = 512  # open at once
    drain_seconds: float = 30  # to finish accepted requests when the service is told to stop
