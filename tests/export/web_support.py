"""What tests of the page need: npm's packages, a server that says what it was asked for, and the scores of labels."""

import shutil
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from offseg_hf.export.web.onnxruntime_web import VERSION
from offseg_hf.inference.segmenter import Segmenter
from offseg_hf.inference.windows import averaged_windows
from offseg_hf.models.image_operations import upsampled


TRANSFORMERS_JS = "4.3.2"


def node_modules() -> Path:
    """Return the folder of the packages, which npm downloads once; skip the test where it cannot."""
    folder = Path(__file__).parents[2] / ".cache" / f"npm-{VERSION}-{TRANSFORMERS_JS}"
    if not (folder / "installed").exists():
        npm = shutil.which("npm")
        if npm is None:
            pytest.skip("needs npm, to download onnxruntime-web and @huggingface/transformers")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "package.json").write_text('{"private": true}')
        packages = [f"onnxruntime-web@{VERSION}", f"@huggingface/transformers@{TRANSFORMERS_JS}"]
        command = [npm, "install", "--ignore-scripts", "--no-audit", "--no-fund", *packages]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"npm cannot download {' and '.join(packages)}: {done.stderr[-300:]}")
        (folder / "installed").touch()
    return folder / "node_modules"


@contextmanager
def serving(folder: Path) -> Iterator[tuple[str, list[str]]]:
    """Serve a folder as `python -m http.server` does; gives its address, and the list of what is asked for."""
    asked: list[str] = []

    class Handler(SimpleHTTPRequestHandler):
        def log_request(self, code: object = "-", size: object = "-") -> None:
            asked.append(self.path)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/", asked
    finally:
        server.shutdown()
        server.server_close()


def margins(segmenter: Segmenter, photo: Image.Image) -> np.ndarray:
    """Return by how much the best class of every pixel is better than the next."""
    inputs = segmenter.prepare(photo)
    with torch.inference_mode():
        scores = averaged_windows(lambda crops: segmenter.network(crops).logits, **inputs)[0]
        all_scores = upsampled(scores.rows(0, scores.size[0]), (photo.height, photo.width))
    best, second = all_scores.topk(2, dim=0).values
    return (best - second).numpy()
