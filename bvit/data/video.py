"""The frames of videos and streams, read by OpenCV."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import UInt8

from bvit.data.decode import Pixels, UnreadableImageError

EXTENSIONS = (".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".wmv")
DEVICE = "/dev/video"
# Frames per second of a video that does not state them.
DEFAULT_RATE = 25.0
# A format that OpenCV's own FFmpeg writes everywhere.
CODEC = "mp4v"


def is_video(name: str) -> bool:
    """Whether a name is that of a video file or of a stream."""
    return is_stream(name) or name.lower().endswith(EXTENSIONS)


def is_stream(name: str) -> bool:
    """Whether a name is that of a stream: an address, as rtsp://…, or a camera's device."""
    return "://" in name or name.startswith(DEVICE)


def read_frames(name: str) -> Iterator[Pixels]:
    """The frames of a video, uint8 RGB, as they are shown.

    Raises:
      UnreadableImageError: it can't be opened, or has no frame.
    """
    frame = None
    with _opened(name) as capture:
        while (found := capture.read())[0]:
            frame = cv2.cvtColor(found[1], cv2.COLOR_BGR2RGB)
            yield frame
    if frame is None:
        raise UnreadableImageError("a video without a frame that OpenCV can read")


def frame_rate(name: str) -> float:
    """Frames per second of a video."""
    with _opened(name) as capture:
        return capture.get(cv2.CAP_PROP_FPS) or DEFAULT_RATE


@contextlib.contextmanager
def _opened(name: str) -> Iterator[cv2.VideoCapture]:
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    capture = cv2.VideoCapture(name)
    try:
        if not capture.isOpened():
            raise UnreadableImageError("not a readable video")
        yield capture
    finally:
        capture.release()


class VideoFile:
    """A video file that is written frame by frame."""

    def __init__(self, path: Path, rate: float) -> None:
        """Names the file, which ends in .mp4; writes nothing yet.

        Args:
          path: of the file.
          rate: frames per second.
        """
        self._path, self._rate = path, rate
        self._writer: cv2.VideoWriter | None = None

    def write(self, frame: UInt8[np.ndarray, "h w 3"]) -> None:
        """Adds a frame, RGB. One larger than the first is cut, one smaller gets black edges."""
        if self._writer is None:
            self._shape = frame.shape
            height, width = frame.shape[:2]
            code = cv2.VideoWriter.fourcc(*CODEC)
            self._writer = cv2.VideoWriter(str(self._path), code, self._rate, (width, height))
            if not self._writer.isOpened():
                raise OSError(f"OpenCV can't write {self._path}: choose another place.")
        if frame.shape != self._shape:  # OpenCV would leave it out
            part = frame[: self._shape[0], : self._shape[1]]
            frame = np.zeros(self._shape, np.uint8)
            frame[: part.shape[0], : part.shape[1]] = part
        self._writer.write(cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))

    def close(self) -> None:
        """Ends the file."""
        if self._writer is not None:
            self._writer.release()
