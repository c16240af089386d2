"""What a request may cost, and what it is answered when it costs more."""

from __future__ import annotations

from dataclasses import dataclass

# Seconds after which a client may try again what was answered with 503.
RETRY_AFTER = 2

# Codes of errors, with their HTTP status and what they mean.
REFUSALS = {
    "bad_request": (400, "The body is not what its Content-Type says."),
    "unauthorized": (401, "The bearer token is missing or wrong."),
    "forbidden": (403, "A page of another origin may not use the service."),
    "not_found": (404, "There is nothing at this address."),
    "method_not_allowed": (405, "The address does not take this method."),
    "upload_too_slow": (408, "The body came too slowly."),
    "idle": (408, "No frame came for too long."),
    "wrong_kind": (409, "The model was exported for clips, or for streams, and this is the other."),
    "upload_too_large": (413, "The body has too many bytes."),
    "unsupported_encoding": (415, "The body is compressed."),
    "upgrade_required": (426, "The address takes WebSockets alone."),
    "bad_option": (422, "An option is unknown, or its value is not allowed."),
    "unreadable_video": (422, "The body is not a video that can be decoded."),
    "unreadable_frame": (422, "A frame is not a JPEG picture that can be decoded."),
    "video_too_long": (422, "The video takes too much time, or has too many windows."),
    "resolution_too_high": (422, "The pictures have too many pixels."),
    "decoding_too_expensive": (422, "Decoding takes too much time or memory, or crashes."),
    "internal": (500, "A defect of the service; its log has the rest."),
    "busy": (503, "Too many requests, uploads or streams at once."),
    "not_ready": (503, "The network is being loaded."),
    "interrupted": (503, "A process of the service ended while it worked on the request."),
    "stopping": (503, "The service was told to stop."),
}


class Refused(Exception):
    """A request that is answered with an error.

    Args:
        code: one of `REFUSALS`.
        message: one line for whoever sent it.
    """

    def __init__(self, code: str, message: str):
        super().__init__(code, message)  # so that it can be pickled
        self.code, self.message = code, message

    @property
    def status(self) -> int:
        """Of HTTP."""
        return REFUSALS[self.code][0]

    def values(self, request: str) -> dict[str, str]:
        """For JSON, as the answer to the request of this id."""
        return {"id": request, "code": self.code, "error": self.message}


@dataclass(frozen=True)
class Limits:
    """What requests may cost."""

    upload_bytes: int = 256 << 20  # of one body
    storage_bytes: int = 2 << 30  # of all bodies that are on disk at once
    upload_rate: int = 16 << 10  # bytes a second that a body has to come with, on average
    # That a client may take for a request's headers, before its body has to come at `upload_rate`,
    # and for each frame of a stream.
    idle_seconds: float = 10
    video_seconds: float = 600
    video_pixels: int = 4096 * 2304  # of a frame, width x height
    windows: int = 1000  # of a timeline
    decode_seconds: float = 60  # of waiting for a decoder, and of its processor time, per video
    decode_bytes: int = 1 << 30  # memory of a decoding process, besides its program
    decoders: int = 2  # processes that decode
    requests: int = 64  # whose video has come and that have no answer yet
    streams: int = 8  # that are followed at once
    frame_bytes: int = 2 << 20  # of a frame of a stream
    connections: int = 512  # that are open at once
    drain_seconds: float = 30  # for what is running when the service is told to stop
