"""A pinhole camera above a plain, and what paints through it: the lower half of `scenes`."""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw


SUPERSAMPLING = 3
FOCAL_LENGTH = 0.95  # in heights of the picture

Color = Sequence[float] | np.ndarray  # red, green, blue in 0..255; beyond 255 outshines the light of the day
Point = tuple[float, float, float]  # meters: x to the right of the camera, y above the plain, z away from the camera
Box = tuple[int, int, int, int]  # pixels: left, top, right, bottom


class Canvas:
    """Picture and label map under construction, three times as large as they are to be.

    Painting covers what was there before, so paint from far to near. `haze` is the color that distance fades to.
    """

    def __init__(self, rng: np.random.Generator, width: int, height: int, haze: Color):
        self.rng = rng
        self.width, self.height = width * SUPERSAMPLING, height * SUPERSAMPLING
        self.horizon = self.height * rng.uniform(0.4, 0.52)
        self.center = self.width * rng.uniform(0.42, 0.58)
        self.focal = FOCAL_LENGTH * self.height
        self.camera_height = rng.uniform(2.2, 3.6)
        self.haze_color = np.asarray(haze, np.float32)
        self.image = np.zeros((self.height, self.width, 3), np.float32)
        self.labels = np.zeros((self.height, self.width), np.uint8)
        self.grain = self.noise(self.height, self.width, cell=self.height / 40, octaves=5)
        self.ground_tile = self.noise(512, 512, cell=8, octaves=3)

    def finish(self, tint: Color) -> tuple[Image.Image, np.ndarray]:
        """Average the picture to its size, with a little sensor noise; the labels are those at its pixels' centers."""
        n = SUPERSAMPLING
        labels = self.labels[n // 2 :: n, n // 2 :: n].copy()
        image = self.image.reshape(self.height // n, n, self.width // n, n, 3).mean(axis=(1, 3)) * tint
        image += self.rng.normal(0, 1.5, image.shape)
        return Image.fromarray(image.clip(0, 255).round().astype(np.uint8)), labels

    def project(self, point: Point) -> tuple[float, float]:
        """Return where a point of the world is in the picture: (column, row)."""
        x, y, z = point
        return self.center + self.focal * x / z, self.horizon + self.focal * (self.camera_height - y) / z

    def faces_camera(self, quad: list[Point], middle: Point) -> bool:
        """Return whether the outer side of a solid's face is turned to the camera; `middle` lies inside the solid."""
        a, b, _, d = (np.asarray(corner) for corner in quad)
        normal = np.cross(b - a, d - a)
        if normal @ (np.mean(quad, axis=0) - middle) < 0:
            normal = -normal
        return normal @ (np.asarray((0, self.camera_height, 0)) - a) > 0

    def box(self, points: list[tuple[float, float]]) -> Box | None:
        """Return the pixels around `points`, None outside the picture."""
        xs, ys = zip(*points, strict=True)
        left, top = max(int(min(xs)), 0), max(int(min(ys)), 0)
        right, bottom = min(int(max(xs)) + 2, self.width), min(int(max(ys)) + 2, self.height)
        return (left, top, right, bottom) if left < right and top < bottom else None

    def polygon(self, box: Box, points: list[tuple[float, float]]) -> np.ndarray:
        """Which pixels of `box` are inside."""
        left, top, right, bottom = box
        mask = Image.new("1", (right - left, bottom - top))
        ImageDraw.Draw(mask).polygon([(column - left, row - top) for column, row in points], fill=1)
        return np.asarray(mask)

    def paint(self, box: Box, mask: np.ndarray, texture: np.ndarray, label: int) -> None:
        """Paint `texture` and `label` where `mask`, all of the box's size."""
        left, top, right, bottom = box
        self.image[top:bottom, left:right][mask] = texture[mask]
        self.labels[top:bottom, left:right][mask] = label

    def face(self, corners: list[Point], color: Color, label: int, grain: float = 0.35) -> None:
        """Draw a flat polygon in the world, grainy by `grain`, hazy by its distance, unless it reaches the camera."""
        if min(z for _, _, z in corners) < 0.5:
            return
        points = [self.project(corner) for corner in corners]
        box = self.box(points)
        if box is None:
            return
        left, top, right, bottom = box
        texture = np.asarray(color, np.float32) * (1 + 0.3 * grain * self.grain[top:bottom, left:right, None])
        distance = sum(z for _, _, z in corners) / len(corners)
        self.paint(box, self.polygon(box, points), self.haze(texture, distance), label)

    def darken(self, outline: list[tuple[float, float]], brightness: float, labels: tuple[int, ...]) -> None:
        """Draw a shadow on the plain, with an outline in (x, z), on pixels of these labels."""
        points = [self.project((x, 0, max(z, 1.0))) for x, z in outline]
        box = self.box(points)
        if box is not None:
            left, top, right, bottom = box
            dark = self.polygon(box, points) & np.isin(self.labels[top:bottom, left:right], labels)
            self.image[top:bottom, left:right][dark] *= brightness

    def haze(self, color: np.ndarray, z) -> np.ndarray:
        """Return the color as seen from `z` meters."""
        return color + 0.75 * (1 - np.exp(-z / 260)) * (0.92 * self.haze_color - color)

    def noise(self, height: int, width: int, cell: float, octaves: int, stretch: float = 1.0) -> np.ndarray:
        """(height, width) of smooth noise, mostly in -1..1, of blots `cell` pixels high, `stretch` times as wide."""
        total, amplitude = np.zeros((height, width), np.float32), 0.6
        for octave in range(octaves):
            size = max(cell / 2**octave, 1)
            rows, columns = height / size, width / (size * stretch)
            coarse = self.rng.uniform(-1.7, 1.7, (int(rows) + 3, int(columns) + 3)).astype(np.float32)
            region = (1, 1, 1 + columns, 1 + rows)
            smooth = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC, box=region)
            total += amplitude * np.asarray(smooth)
            amplitude /= 2
        return total

    def ground_noise(self, x: np.ndarray, z: np.ndarray, scale: float, offset: int = 0) -> np.ndarray:
        """Noise at positions on the plain, of blots `scale` meters wide; `offset` chooses another piece of it."""
        u = (x * (8 / scale)).astype(np.int64) + offset
        v = (z * (8 / scale)).astype(np.int64) + offset
        return self.ground_tile[v % 512, u % 512]
