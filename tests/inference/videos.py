"""Videos that tests make: of frames that are told apart by their color, with times of their own."""

import io
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import av
import numpy as np
from PIL import Image

from offseg_hf.data.scenes.street import render_scene


TICK = Fraction(1, 1000)
SIZE = (64, 48)


def scenes(number: int, size: tuple[int, int] = SIZE) -> list[Image.Image]:
    """A street that is moved on, frame by frame."""
    pixels = np.asarray(render_scene(0, size)[0])
    return [Image.fromarray(np.roll(pixels, 2 * index, axis=1)) for index in range(number)]


def write_video(
    path: Path, frames: list[Image.Image], times: list[int] | None = None, sound: bool = False, **options: str
) -> Path:
    """A video whose frames come at `times`, in milliseconds; by default every 40."""
    with av.open(str(path), "w", options=options) as container:
        stream = container.add_stream("libx264", rate=25, options={"crf": "10", "bf": "0", "g": "5"})
        stream.width, stream.height, stream.pix_fmt = *frames[0].size, "yuv420p"
        stream.codec_context.time_base = TICK
        silence = add_silence(container) if sound else []
        for frame, milliseconds in zip(frames, times or range(0, 40 * len(frames), 40)):
            picture = av.VideoFrame.from_image(frame)
            picture.time_base, picture.pts = TICK, milliseconds
            container.mux(stream.encode(picture))
        container.mux([*stream.encode(None), *silence])
    return path


def add_silence(container: av.container.OutputContainer) -> list[av.Packet]:
    """A second of a sound track, to be written."""
    track = container.add_stream("aac", rate=16000)
    silence = av.AudioFrame.from_ndarray(np.zeros((1, 16000), np.float32), format="fltp", layout="mono")
    silence.sample_rate = 16000
    return [*track.encode(silence), *track.encode(None)]


def turned(path: Path) -> Path:
    """The video as a phone held upright writes it: to be turned by 90 degrees clockwise when it is shown."""
    content = path.read_bytes()
    matrix = content.index(b"tkhd") + 4 + 40
    clockwise = b"".join(
        value.to_bytes(4, "big", signed=True) for value in (0, 1 << 16, 0, -(1 << 16), 0, 0, 0, 0, 1 << 30)
    )
    path.write_bytes(content[:matrix] + clockwise + content[matrix + 36 :])
    return path


def decoded(path: Path) -> tuple[list[float], list[np.ndarray]]:
    """The times and the RGB pixels of what can be played."""
    with av.open(str(path)) as container:
        frames = list(container.decode(video=0))
    return [round(frame.time, 4) for frame in frames], [frame.to_ndarray(format="rgb24") for frame in frames]


@contextmanager
def camera_on_the_network(frames: list[Image.Image], seconds_between: float = 0.01) -> Iterator[str]:
    """The address of a stream of JPEGs, as network cameras have it, which ends after the frames."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
            self.end_headers()
            try:
                for frame in frames:
                    jpeg = io.BytesIO()
                    frame.save(jpeg, "JPEG", quality=95)
                    head = f"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: {jpeg.tell()}\r\n\r\n"
                    self.wfile.write(head.encode() + jpeg.getvalue() + b"\r\n")
                    time.sleep(seconds_between)
            except OSError:  # nobody looks any more
                pass

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/camera"
        server.shutdown()
        thread.join()
