"""Videos and streams to overlay videos, shares of classes and label maps; or to label maps in Python, frame by frame.

Of `drive.mp4` come, in the folder of the outputs:
- `drive_overlay.mp4`, every frame under its label map, upright, with its largest classes and their shares below;
- `drive_classes.csv`: of every frame its number, its time in seconds, and the share of each class;
- `drive_labels/`, if wanted: the label map of every frame, named by its number, as of photos.

While they are written they are called `drive_overlay.partial.mp4` and so on, and can be played. A thread reads ahead
and others draw and encode behind while the network runs; only some frames are in memory. Of what is live, frames that
come while the network is busy are left out.
"""

import csv
import glob
import io
import math
import re
import shutil
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass, field, replace
from fractions import Fraction
from itertools import groupby, islice
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from PIL import Image
from transformers import BatchFeature

from offseg_hf.inference.files import Outcome, ahead, make_folder, unique_names
from offseg_hf.inference.segmenter import Segmenter
from offseg_hf.inference.windows import RunningScores
from offseg_hf.utils.extras import require
from offseg_hf.utils.texts import one_line
from offseg_hf.visualization import class_shares, draw_frame, label_image


VIDEO_EXTENSIONS = (
    *(".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ts", ".mts", ".m2ts"),
    *(".wmv", ".flv", ".3gp", ".ogv", ".y4m", ".mjpeg", ".mjpg", ".h264", ".hevc"),
)
URL = re.compile(r"(https?|rtsps?|rtmps?|rtp|udp|tcp|srt)://", flags=re.IGNORECASE)
CAMERA = re.compile(r"\d{1,3}|/dev/video\d+")
# What has no end of its own; of http that is asked.
LIVE = re.compile(r"(rtsps?|rtmps?|rtp|udp|tcp|srt)://", flags=re.IGNORECASE)
SECONDS_TO_ANSWER = 15.0  # of what is asked over a network
AHEAD = 4  # frames that wait
THREADS = 2  # of a decoder, and of an encoder
KEYFRAME_EVERY = 30  # frames: what is lost at most where the process is killed
BITS_PER_PIXEL = 0.15  # of MPEG-4, which has no constant quality
TIME_BASE = Fraction(1, 90000)
WITHOUT_CLOCK = ("mpjpeg", "mjpeg", "h264", "hevc")  # formats whose frames have no times: live, they have ours
MPEG4_TIME_BASE = Fraction(1, 60000)  # it takes no finer one than 1 / 65535
# Of its duration, as the file has it, from which on a video is called cut off where it ends before.
MISSING_SHARE, MISSING_SECONDS = 0.02, 0.5


class VideoInterrupted(KeyboardInterrupt):
    """Ctrl-C while a video was segmented: it says what there is of it.

    Args:
        message: that.
        is_live: whether it is of a source that nothing else ends.
    """

    def __init__(self, message: str, is_live: bool):
        super().__init__(message)
        self.exit_code = 0 if is_live else 130


@dataclass(frozen=True)
class VideoJob:
    """A video, and what its outputs are called.

    Args:
        source: a file, an address, or the number of a camera.
        name: that its outputs have, in the output folder.
    """

    source: str
    name: Path

    def outputs(self, label_maps: bool) -> list[Path]:
        """Return the paths of what is written."""
        return [
            self.name.with_name(self.name.name + suffix)
            for suffix in ("_overlay.mp4", "_classes.csv", *(["_labels"] if label_maps else []))
        ]


@dataclass
class Frame:
    """A frame of a video.

    Args:
        index: its number among all that were decoded, from 0.
        seconds: its time, from the first one's.
        image: upright RGB.
        label_map: class ids (height, width).
    """

    index: int
    seconds: float
    image: Image.Image
    label_map: np.ndarray = field(repr=False, default_factory=lambda: np.empty((0, 0), np.uint8))
    inputs: BatchFeature | None = field(repr=False, default=None)


@dataclass(frozen=True)
class Recording:
    """What `segment_video` wrote.

    Args:
        frames: how many.
        frames_per_second: that were segmented.
        files: the overlay, the shares, and the folder of label maps if there is one.
        notes: what was left out.
    """

    frames: int
    frames_per_second: float
    files: list[Path]
    notes: list[str]


@dataclass(frozen=True)
class VideoOptions:
    """How a video is segmented, and what is written of it.

    Args:
        every: Of so many frames one is segmented.
        fps: At most so many frames a second are; not beside `every`.
        smooth: Weight of a frame's own scores, between 0 and 1, in an exponential average with those of the frames
            before: the less, the smoother, and the later. By default every frame stands for itself.
        batch_size: How many frames the network looks at together.
        compile: Compile the network.
        opacity: Of the colors over the frames, in 0..1.
        label_maps: Write the label map of every frame, too.

    Raises:
        ValueError: For values that make no sense.
    """

    every: int = 1
    fps: float | None = None
    smooth: float | None = None
    batch_size: int = 1
    compile: bool = False
    opacity: float = 0.6
    label_maps: bool = False

    def __post_init__(self):
        if self.every < 1:
            raise ValueError(f"every: expected 1 or more, got {self.every}")
        if self.fps is not None and not self.fps > 0:
            raise ValueError(f"fps: expected more than 0 frames a second, got {self.fps}")
        if self.every > 1 and self.fps is not None:
            raise ValueError("every and fps both say which frames are segmented: pass one of them")
        if self.smooth is not None and not 0 < self.smooth < 1:
            raise ValueError(
                f"smooth: expected the weight of a frame's own scores, between 0 and 1, got {self.smooth}; without "
                "it every frame stands for itself"
            )


# -- finding them -----------------------------------------------------------------------------------------------------


def is_video(text: str) -> bool:
    """Return whether an input is a video: by its ending, as an address, or as a camera (a number that is no file)."""
    if URL.match(text) or Path(text).suffix.lower() in VIDEO_EXTENSIONS:
        return not Path(text).is_dir()
    return bool(CAMERA.fullmatch(text)) and not Path(text).is_file() and not Path(text).is_dir()


def plan_videos(
    inputs: Iterable[str], output: Path, overwrite: bool = False, share: tuple[int, int] = (0, 1)
) -> tuple[list[VideoJob], list[Outcome]]:
    """Return the videos that `inputs` name and that are to be segmented, and the outcomes that are certain before.

    Args:
        inputs: Videos, by `is_video`; patterns too.
        output: The folder of the outputs.
        overwrite: Videos with an existing output are otherwise kept as they are.
        share: Which of how many processes this one is: each takes every n-th video.
    """
    index, count = share
    names: dict[Path, Path] = {}
    sources: dict[Path, str] = {}
    outcomes = []
    for text in inputs:
        is_file = not URL.match(text) and not CAMERA.fullmatch(text)
        found = [text]
        if is_file and not Path(text).exists():
            found = sorted(glob.glob(text, recursive=True))
            if not found and index == 0:
                reason = "no video matches this pattern" if glob.has_magic(text) else "no such file"
                outcomes.append(Outcome(text, "failed", reason))
        for source in found:
            key = Path(source).resolve() if is_file else Path("/", re.sub(r"[^\w.-]+", "_", source))
            names.setdefault(key, Path(key.name if is_file else _name_of(source)))
            sources.setdefault(key, source)

    jobs = []
    for path, name in islice(unique_names(names).items(), index, None, count):
        job = VideoJob(sources[path], output / name)
        existing = [file for file in job.outputs(label_maps=True) if file.exists()]
        if existing and not overwrite:
            outcomes.append(Outcome(job.source, "kept", f"{existing[0]} exists"))
        else:
            jobs.append(job)
    return jobs, outcomes


def _name_of(source: str) -> str:
    """Return the name of what is no file: camera0 for 0, host_path of an address, without who asks for it."""
    if CAMERA.fullmatch(source):
        return f"camera{re.sub(r'[^0-9]', '', source)}"
    address = re.sub(r"^[^/]*@", "", URL.sub("", source).partition("?")[0])
    stem = address.rpartition(".")[0] if Path(address).suffix.lower() in VIDEO_EXTENSIONS else address
    return re.sub(r"[^\w-]+", "_", stem).strip("_") + ".stream"


# -- reading them -----------------------------------------------------------------------------------------------------


class Source:
    """A video that is open; a context that closes it.

    Args:
        text: A file, an address, or the number of a camera.

    Raises:
        ValueError: That says what is wrong and what to do.
    """

    def __init__(self, text: str):
        self.av = require("av", "video")
        self.text = text
        self.container = self._open()
        if not self.container.streams.video:
            kinds = ", ".join(sorted({stream.type for stream in self.container.streams})) or "nothing"
            self.container.close()
            raise ValueError(f"expected a video, got a file with no video stream ({kinds}): name another file")
        self.stream = self.container.streams.video[0]
        self.stream.thread_type = "AUTO"
        self.stream.codec_context.thread_count = THREADS
        self.time_base: Fraction = self.stream.time_base or TIME_BASE
        if self.is_live and self.container.format.name in WITHOUT_CLOCK:
            self.time_base = TIME_BASE
        self.rate = Fraction(self.stream.average_rate or self.stream.guessed_rate or 25)
        self.has_sound = bool(self.container.streams.audio)
        self.broken = 0  # packets that could not be decoded
        self.end = ""  # why a live one ended by itself

    def _open(self) -> Any:
        camera = CAMERA.fullmatch(self.text)
        options: dict[str, Any] = {}
        file = self.text
        if camera:
            file, options = _camera(self.text)
        elif URL.match(self.text):
            options["timeout"] = SECONDS_TO_ANSWER
            if self.text.lower().startswith("rtsp"):
                options["options"] = {"rtsp_transport": "tcp"}  # whole frames, where UDP loses parts of them
        try:
            return self.av.open(file, **options)
        except (self.av.error.FFmpegError, OSError) as error:
            reason = getattr(error, "strerror", None) or one_line(error)
            if camera:
                known = ", ".join(sorted(glob.glob("/dev/video*"))) or "none"
                raise ValueError(
                    f"cannot open the camera {file}: {reason}; cameras here: {known}. Connect it, end what else uses "
                    "it, and see that you may read it (on Linux: the group video)"
                ) from error
            if URL.match(self.text):
                raise ValueError(f"cannot open this address: {reason}; see whether a player opens it") from error
            raise ValueError(
                f"cannot be read as a video: {reason}; if a player does not open it either, it is cut off (an MP4 "
                "without its end cannot be read) or broken: copy or record it again"
            ) from error

    @property
    def is_live(self) -> bool:
        """Whether it goes on until somebody ends it."""
        if CAMERA.fullmatch(self.text) or LIVE.match(self.text):
            return True
        return bool(URL.match(self.text)) and self.seconds is None

    @property
    def seconds(self) -> float | None:
        """Return how long it is, if the file says so."""
        if self.stream.duration:
            return float(self.stream.duration * self.time_base)
        if self.container.duration and not self.has_sound:  # which may be longer
            return self.container.duration / self.av.time_base
        return None

    def expected_frames(self, options: VideoOptions) -> int | None:
        """Return how many frames will be segmented, about, if the file says how long it is."""
        if self.is_live or self.seconds is None:
            return None
        number = self.stream.frames or round(self.seconds * self.rate)
        if options.fps is not None:
            return min(number, max(1, round(self.seconds * options.fps)))
        return max(1, -(-number // options.every))

    def frames(self, every: int = 1, fps: float | None = None) -> Iterator[Frame]:
        """Yield the frames, upright.

        Args:
            every: As of `VideoOptions`.
            fps: The same.

        Raises:
            ValueError: If there are none, or if they end before the video should.
        """
        first = end = None
        last, due = -1.0, 0
        for index, frame in enumerate(self._decoded()):
            pts = self._pts(frame, index)
            if first is None:
                first = pts
            end = float((pts - first) * self.time_base)
            if index % every or end <= last:
                continue
            if fps is not None:  # the first frame in each of the times between which there are so many a second
                number = math.floor(end * fps + 1e-6)
                if number < due:
                    continue
                due = number + 1
            last = end
            yield Frame(index, end, _upright(frame))
        if end is None:
            why = f": {self.broken} of its packets are broken" if self.broken else ""
            raise ValueError(f"expected a video with frames, got one without any{why}; record or copy it again")
        missing = (self.seconds or 0) - end - 2 / self.rate
        if missing > max(MISSING_SECONDS, MISSING_SHARE * (self.seconds or 0)):
            raise ValueError(
                f"ends after {end:.1f} of {self.seconds:.1f} seconds: it is cut off; copy or record it again, if you "
                "need the rest"
            )

    def _pts(self, frame: Any, index: int) -> int:
        """Return the time of a frame in units of `time_base`."""
        if self.is_live and self.container.format.name in WITHOUT_CLOCK:
            return round(time.monotonic() / self.time_base)
        return frame.pts if frame.pts is not None else round(index / self.rate / self.time_base)

    def _decoded(self) -> Iterator[Any]:
        """Yield what can be decoded: players leave out broken packets, and streams have some."""
        packets = self.container.demux(self.stream)
        while True:
            try:
                packet = next(packets)
            except (StopIteration, self.av.error.EOFError):
                return
            except self.av.error.FFmpegError as error:
                if not self.is_live:
                    raise ValueError(f"cannot be read on: {error.strerror}") from error
                self.end = error.strerror
                return
            try:
                yield from packet.decode()
            except self.av.error.InvalidDataError:
                self.broken += 1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.container.close()


def _camera(text: str) -> tuple[str, dict[str, Any]]:
    """Return what FFmpeg calls a camera, and how it opens it."""
    number = re.sub(r"[^0-9]", "", text)
    if sys.platform == "darwin":
        return number, {"format": "avfoundation", "options": {"framerate": "30"}}
    if sys.platform == "win32":
        raise ValueError("cameras cannot be opened by number on Windows: stream it (rtsp://...), and name the address")
    return f"/dev/video{number}", {"format": "v4l2"}


def _upright(frame: Any) -> Image.Image:
    """Return a frame in RGB, turned as its file says."""
    image = frame.to_ndarray(format="rgb24")
    return Image.fromarray(np.ascontiguousarray(np.rot90(image, round(frame.rotation / 90))))


class Reader:
    """A thread that reads frames ahead.

    Args:
        frames: What it reads.
        drops: Whether the oldest makes room where `AHEAD` frames wait; otherwise it waits.
    """

    def __init__(self, frames: Iterator[Frame], drops: bool):
        self.dropped = 0
        self._drops = drops
        self._waiting: deque[Frame] = deque()
        self._changed = threading.Condition()
        self._is_closed = self._is_at_end = False
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._read, args=(frames,), daemon=True)
        self._thread.start()

    def _read(self, frames: Iterator[Frame]) -> None:
        try:
            for frame in frames:
                with self._changed:
                    while len(self._waiting) >= AHEAD and not self._drops and not self._is_closed:
                        self._changed.wait()
                    if self._is_closed:
                        return
                    if len(self._waiting) >= AHEAD:
                        self._waiting.popleft()
                        self.dropped += 1
                    self._waiting.append(frame)
                    self._changed.notify_all()
        except Exception as error:
            self._error = error
        finally:
            with self._changed:
                self._is_at_end = True
                self._changed.notify_all()

    def __iter__(self) -> Iterator[Frame]:
        while True:
            with self._changed:
                while not self._waiting and not self._is_at_end:
                    self._changed.wait(timeout=1)  # Ctrl-C does not end a wait without one everywhere
                if not self._waiting:
                    if self._error is not None:
                        raise self._error
                    return
                frame = self._waiting.popleft()
                self._changed.notify_all()
            yield frame

    def close(self) -> None:
        """End the thread, which may still wait for a frame that does not come."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
        self._thread.join(timeout=SECONDS_TO_ANSWER)


# -- segmenting them --------------------------------------------------------------------------------------------------


def label_video(source: str | Path, segmenter: Segmenter, options: VideoOptions = VideoOptions()) -> Generator[Frame]:
    """Segment the frames of a video; write nothing.

    Args:
        source: A file, an address (http, rtsp, rtmp, udp, ...), or the number of a camera as text.
        segmenter: The model. It is fused, if that leaves the label map of the first frame as it is.
        options: Which frames, and how.

    Yields:
        Frames in order, with image, time and label map.

    Raises:
        ValueError: For what cannot be opened or has no frames, and after the last frame of what is cut off.
    """
    with Source(str(source)) as opened, closing(_reader(opened, options)) as reader:
        yield from _labeled(reader, segmenter, options)


def segment_video(
    source: str | Path,
    output: str | Path,
    segmenter: Segmenter,
    options: VideoOptions = VideoOptions(),
    overwrite: bool = False,
) -> Recording:
    """Segment a video; write an overlay video, the shares of classes and, if wanted, label maps.

    Args:
        source: A file, an address (http, rtsp, rtmp, udp, ...), or the number of a camera as text.
        output: The folder of `NAME_overlay.mp4`, `NAME_classes.csv` and `NAME_labels/`.
        segmenter: The model. It is fused, if that leaves the label map of the first frame as it is.
        options: Which frames, and how.
        overwrite: Replace what exists.

    Returns:
        What was written.

    Raises:
        ValueError: For what cannot be opened, has no frames or is cut off: the frames that there are stay in
            `NAME_overlay.partial.mp4`.
        FileExistsError: For outputs that exist, unless `overwrite`.
        VideoInterrupted: After Ctrl-C. The frames up to there can be played: of a file in `NAME_overlay.partial.mp4`,
            of what is live in `NAME_overlay.mp4`.
    """
    jobs, outcomes = plan_videos([str(source)], Path(output), overwrite)
    for outcome in outcomes:
        kind = FileExistsError if outcome.status == "kept" else ValueError
        raise kind(f"{outcome.source}: {outcome.message}")
    return record(jobs[0], segmenter, options)


def record(
    job: VideoJob,
    segmenter: Segmenter,
    options: VideoOptions,
    progress: Callable[[int, int | None], Any] = lambda frames, expected: None,
) -> Recording:
    """Segment a video that `plan_videos` found.

    Args:
        job: The video.
        segmenter: The model.
        options: Which frames, and how.
        progress: Called after each frame with how many are written, and how many there will be if the file says so.

    Returns:
        What was written; errors are those of `segment_video`.
    """
    with Source(job.source) as source:
        make_folder(job.name.parent)
        outputs = _Outputs(job, source, segmenter, options)
        expected = source.expected_frames(options)
        started = time.monotonic()
        try:
            with (
                closing(_reader(source, options)) as reader,
                closing(_labeled(reader, segmenter, options)) as labeled,
                closing(ahead(outputs.draw, labeled, 2)) as drawn,
                closing(ahead(outputs.add, drawn, 2, threads=1)) as added,
            ):
                for _ in added:
                    progress(outputs.frames, expected)
        except KeyboardInterrupt:
            there_is = outputs.end(is_whole=source.is_live) or "nothing is written"
            raise VideoInterrupted(f"interrupted: {there_is}", source.is_live and outputs.frames > 0) from None
        except Exception as error:
            there_is = outputs.end(is_whole=False)
            raise ValueError("; ".join(filter(None, [one_line(error), there_is]))) from error
        outputs.end(is_whole=True)
        notes = ["its sound is left out"] if source.has_sound else []
        if source.broken:
            notes.append(f"{source.broken} broken packets are left out")
        if source.end:
            notes.append(f"it ended: {source.end}")
        if reader.dropped:
            notes.append(f"{reader.dropped} frames came while the network was busy and are left out")
        return Recording(outputs.frames, outputs.frames / (time.monotonic() - started), outputs.targets, notes)


def _reader(source: Source, options: VideoOptions) -> Reader:
    return Reader(source.frames(options.every, options.fps), drops=source.is_live)


def _labeled(reader: Reader, segmenter: Segmenter, options: VideoOptions) -> Generator[Frame]:
    """Yield the frames of a reader with their label maps."""
    average = None if options.smooth is None else RunningScores(options.smooth)
    is_first = True
    with closing(ahead(lambda frame: _prepared(frame, segmenter), reader, options.batch_size)) as frames:
        while batch := list(islice(frames, 1 if is_first else options.batch_size)):
            if is_first:
                segmenter.speed_up(batch[0].inputs, _size(batch[0]), compile=options.compile)
                is_first = False
            for size, group in groupby(batch, key=_size):
                alike = list(group)
                maps = segmenter.label_maps([frame.inputs for frame in alike], [size] * len(alike), average)
                for frame, label_map in zip(alike, maps, strict=True):
                    yield replace(frame, label_map=label_map, inputs=None)


def _prepared(frame: Frame, segmenter: Segmenter) -> Frame:
    return replace(frame, inputs=segmenter.prepare(frame.image))


def _size(frame: Frame) -> tuple[int, int]:
    return frame.image.height, frame.image.width


@dataclass(frozen=True)
class _Drawn:
    """What is written of a frame: a frame of PyAV, the share of each class, and a PNG if it is wanted."""

    frame: Frame
    overlay: Any
    shares: np.ndarray
    label_map: bytes | None


class _Outputs:
    """The files of a video while they are written, which begins with its first frame."""

    def __init__(self, job: VideoJob, source: Source, segmenter: Segmenter, options: VideoOptions):
        self.av = source.av
        self.source, self.segmenter, self.options = source, segmenter, options
        self.targets = job.outputs(options.label_maps)
        self.partial = [file.with_name(f"{file.stem}.partial{file.suffix}") for file in self.targets]
        for file in self.partial:
            _remove(file)
        self.frames = 0
        self.seconds = 0.0
        self.size = (0, 0)  # width, height of the overlay
        self._files = ExitStack()

    def draw(self, frame: Frame) -> _Drawn:
        """Draw a frame; in any thread."""
        names, palette = self.segmenter.names, self.segmenter.palette
        picture = draw_frame(frame.image, frame.label_map, names, palette, self.options.opacity)
        overlay = self.av.VideoFrame.from_image(picture).reformat(format="yuv420p", dst_colorspace="ITU709")
        shares = np.zeros(len(names))
        for index, _, share in class_shares(frame.label_map, len(names)):
            shares[index] = share
        if not self.options.label_maps:
            return _Drawn(frame, overlay, shares, None)
        png = io.BytesIO()
        label_image(frame.label_map, palette).save(png, "PNG")
        return _Drawn(frame, overlay, shares, png.getvalue())

    def add(self, drawn: _Drawn) -> None:
        """Write a frame; one after the other."""
        frame, overlay = drawn.frame, drawn.overlay
        if not self.frames:
            self._begin(overlay)
        if (overlay.width, overlay.height) != self.size:  # of a stream that changed its own
            overlay = overlay.reformat(*self.size)
        overlay.time_base = self.time_base
        overlay.pts = round(frame.seconds / self.time_base)
        self._container.mux(self._stream.encode(overlay))
        seconds = round(frame.seconds, 6)
        self._rows.writerow([frame.index, seconds, *(round(share, 6) for share in drawn.shares.tolist())])
        if drawn.label_map is not None:
            (self.partial[2] / f"{frame.index:06}.png").write_bytes(drawn.label_map)
        self.frames, self.seconds = self.frames + 1, frame.seconds

    def _begin(self, overlay: Any) -> None:
        """Open the files, for frames like this one."""
        codec = next(name for name in ("libx264", "mpeg4") if name in self.av.codecs_available)
        # What is there can be played even if nobody ends it; ended, it is an MP4 like any other.
        flags = {"movflags": "hybrid_fragmented", "flush_packets": "1"}
        self._container = self._files.enter_context(self.av.open(str(self.partial[0]), "w", options=flags))
        self._stream = self._container.add_stream(codec, rate=self.source.rate)
        self._stream.width, self._stream.height = self.size = overlay.width, overlay.height
        self._stream.pix_fmt = "yuv420p"
        context = self._stream.codec_context
        self.time_base = context.time_base = self.source.time_base if codec == "libx264" else MPEG4_TIME_BASE
        context.thread_count = THREADS
        context.gop_size = KEYFRAME_EVERY
        context.max_b_frames = 0  # they would delay the first timestamp
        context.colorspace = context.color_primaries = context.color_trc = 1  # BT.709
        context.color_range = 1  # 16..235
        if codec == "libx264":
            self._stream.options = {"preset": "veryfast", "crf": "20"}
        else:
            context.bit_rate = round(self.source.rate * overlay.width * overlay.height * BITS_PER_PIXEL)
        self._rows_file = self._files.enter_context(self.partial[1].open("w", newline="", encoding="utf-8"))
        self._rows = csv.writer(self._rows_file)
        self._rows.writerow(["frame", "seconds", *self.segmenter.names])
        if self.options.label_maps:
            self.partial[2].mkdir(parents=True)

    def end(self, is_whole: bool) -> str:
        """Close the files, which are called as they are to be if they are whole; say, after a break, what there is."""
        if not self.frames:
            return ""
        try:
            self._container.mux(self._stream.encode(None))
        finally:
            self._files.close()
        if is_whole:
            for partial, target in zip(self.partial, self.targets, strict=True):
                _remove(target)
                partial.rename(target)
        files = self.targets if is_whole else self.partial
        return f"{self.frames} frames, {self.seconds:.1f} seconds, can be played: {files[0]}"


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
