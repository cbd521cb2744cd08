"""The frames of a video as pictures, by PyAV (the extra `video`).

A frame is known by its time stamp, so a piece of a video can be read without what lies before it:
from the last key frame on. Frames are named `<file>#000012`, turned upright as the video says, and
travel as JPEG of quality 95.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import pyarrow as pa

from hmr.crops import encode_jpeg
from hmr.errors import ConfigError, ImageError
from rayhmr.pictures import Pictures, open_filesystem, table_of

VIDEO_ENDINGS = (".mp4", ".mov", ".m4v", ".avi", ".mkv", ".webm")
JPEG_QUALITY = 95
DEFAULT_FPS = 30.0


class VideoFrames(Pictures):
    """One video of this machine or a URI. ConfigError when it cannot be opened as one."""

    block_rows = 240
    """About as far apart as key frames are: shorter pieces would decode the same frames again."""

    def __init__(self, location: str) -> None:
        self.location = location
        self.filesystem, self.path = open_filesystem(location)
        self.name = self.path.rpartition("/")[2]
        import av

        try:
            with self._opened() as container:
                stream = container.streams.video[0]
                self.fps = float(stream.average_rate or stream.guessed_rate or DEFAULT_FPS)
                self.times = _times(container.demux(stream))
        except (OSError, av.FFmpegError, IndexError) as error:
            raise ConfigError(f"input={location}: no readable video ({error})") from error
        if not self.times:
            raise ConfigError(f"input={location}: the video has no frames")

    @contextmanager
    def _opened(self) -> Iterator[Any]:
        import av

        with self.filesystem.open_input_file(self.path) as file, av.open(file) as container:
            yield container

    def listing(self) -> pa.Table:
        """Frame by frame."""
        info = self.filesystem.get_file_info(self.path)
        stamp = f"{info.size}-{info.mtime_ns}"
        return table_of(
            [
                {"path": f"{self.name}#{frame:06d}", "place": [time, begin], "sequence": self.name,
                 "frame": frame, "stamp": stamp}
                for frame, (time, begin) in enumerate(self.times)
            ]
        )  # fmt: skip

    def reader(self) -> VideoFrames:
        """Without the list."""
        reader = VideoFrames.__new__(VideoFrames)
        reader.location, reader.name = self.location, self.name
        reader.filesystem, reader.path = self.filesystem, self.path
        reader.times = []
        return reader

    def contents(self, rows: Sequence[dict[str, Any]]) -> Iterator[bytes | ImageError]:
        """What the decoder does not give is `truncated`. Rows in the order of time are fastest."""
        run: list[dict[str, Any]] = []
        for row in rows:
            if run and row["place"][0] <= run[-1]["place"][0]:
                yield from self._run(run)
                run = []
            run.append(row)
        yield from self._run(run)

    def _run(self, rows: Sequence[dict[str, Any]]) -> Iterator[bytes | ImageError]:
        """Rows in the order of time, at least one."""
        waiting = [row["place"][0] for row in rows]
        done = 0
        detail = "the decoder gives no such frame; the video is damaged there"
        try:
            first, begin = rows[0]["place"]
            for time, picture in self._decoded(first, begin, waiting[-1]):
                while done < len(waiting) and waiting[done] < time:
                    yield ImageError("truncated", detail)
                    done += 1
                if done < len(waiting) and waiting[done] == time:
                    yield encode_jpeg(picture, JPEG_QUALITY)
                    done += 1
        except Exception as error:  # FFmpeg's decoders raise all kinds of errors on hostile bytes
            detail = f"{detail} ({error})"
        for _ in waiting[done:]:
            yield ImageError("truncated", detail)

    def _decoded(self, first: int, begin: int, last: int) -> Iterator[tuple[int, np.ndarray]]:
        with self._opened() as container:
            stream = container.streams.video[0]
            container.seek(begin, stream=stream)
            for frame in container.decode(stream):
                if frame.pts is None or frame.pts < first:
                    continue
                if frame.pts > last:
                    return
                yield frame.pts, upright(frame.to_ndarray(format="rgb24"), frame.rotation)


def _times(packets: Iterator[Any]) -> list[tuple[int, int]]:
    """When each frame is shown, ascending, and where decoding must begin to get it.

    That is the decoding time, by which files are searched, of the last key frame shown no later: a
    frame that is stored behind a key frame but shown before it needs what comes before that one.
    """
    shown: set[int] = set()
    keys: list[tuple[int, int]] = []
    for packet in packets:
        if packet.pts is not None:
            shown.add(packet.pts)
            if packet.is_keyframe:
                keys.append((packet.pts, packet.pts if packet.dts is None else packet.dts))
    keys.sort(reverse=True)
    begin: int | None = None
    found = []
    for time in sorted(shown):
        while keys and (begin is None or keys[-1][0] <= time):
            begin = keys.pop()[1]
        found.append((time, time if begin is None else begin))
    return found


def upright(picture: np.ndarray, rotation: int) -> np.ndarray:
    """(H, W, 3) turned counter-clockwise by the degrees of the video's display matrix."""
    return np.ascontiguousarray(np.rot90(picture, round(rotation / 90) % 4))
