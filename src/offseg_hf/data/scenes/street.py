"""Generated street scenes with exact label maps: something to train, test and demonstrate on without any download.

A camera stands on a plain. Its ground (grass, road, water) is textured in world coordinates, objects are solids of a
few meters projected in perspective and painted from far to near, one light casts shadows, haze grows with distance.
The same colors occur in several classes (gray: road, buildings, cars; green: grass, trees, cars; blue: sky, water,
clothes), so that a class shows in texture, shape and place. The picture is rendered at three times its size and
averaged; a pixel's label is that of the object at its center.
"""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from PIL import Image

from offseg_hf.data.label_sets import LABEL_SETS, LabelSet
from offseg_hf.data.scenes.canvas import Canvas, Color, Point


_NAMES = ("sky", "mountain", "water", "grass", "road", "building", "tree", "car", "person", "streetlight")
_ADE = LABEL_SETS["ade"]

SCENE_LABELS = LabelSet(
    name="scenes",
    title="generated scenes",
    names=_NAMES,
    palette=tuple(_ADE.palette[_ADE.names.index(name)] for name in _NAMES),
    raw_ids=tuple(range(len(_NAMES))),
    void_ids=(),
    reduce_zero_label=False,
)
SKY, MOUNTAIN, WATER, GRASS, ROAD, BUILDING, TREE, CAR, PERSON, STREETLIGHT = range(len(_NAMES))


@dataclass(frozen=True)
class Light:
    """A time of day; `tint` multiplies every color, `shadow` is the brightness left in shadows."""

    zenith: Color
    horizon: Color
    tint: Color
    shadow: float
    clouds: float
    sun: bool = True
    lamps: bool = False


LIGHTS = (
    Light((62, 118, 190), (188, 214, 234), tint=(1.04, 1.02, 0.98), shadow=0.55, clouds=0.45),
    Light((84, 112, 170), (250, 206, 150), tint=(1.12, 0.98, 0.82), shadow=0.5, clouds=0.5),
    Light((140, 150, 162), (208, 212, 216), tint=(0.92, 0.95, 0.98), shadow=0.82, clouds=0.85, sun=False),
    Light((44, 62, 112), (246, 158, 112), tint=(0.8, 0.7, 0.76), shadow=0.75, clouds=0.4, lamps=True),
)

ROCKS = ((104, 98, 92), (96, 104, 84), (118, 104, 90))
GRASSES = ((86, 124, 52), (108, 128, 60), (70, 112, 58), (142, 132, 74))
FLOWERS = ((226, 210, 96), (230, 226, 218), (196, 96, 140))
WALLS = ((176, 160, 140), (168, 98, 80), (204, 196, 182), (140, 142, 146), (190, 170, 120), (120, 128, 140))
ROOFS = ((120, 66, 52), (74, 74, 80), (98, 84, 72))
LEAVES = ((62, 98, 44), (78, 110, 50), (48, 84, 52), (150, 112, 44))
PAINTS = ((186, 32, 36), (34, 70, 130), (200, 202, 206), (48, 50, 54), (226, 226, 222), (52, 98, 66), (140, 142, 148))
SKINS = ((224, 180, 150), (186, 132, 98), (122, 82, 58))
HAIRS = ((48, 36, 28), (120, 86, 48), (30, 28, 28), (150, 146, 142))
SHIRTS = ((170, 48, 48), (52, 84, 140), (214, 208, 196), (60, 104, 72), (210, 160, 60), (66, 66, 72))
TROUSERS = ((48, 56, 80), (70, 66, 62), (120, 108, 88))

GLASS = np.asarray((54, 64, 76), np.float32)
LAMPLIGHT = np.asarray((255, 216, 150), np.float32) * 1.4
ROAD_HALF_WIDTH = 3.4  # meters, like every length below
STOREY = 2.9


def require_size(size: tuple[int, int]) -> None:
    """Raise ValueError for a (width, height) that is too small for a scene."""
    width, height = size
    if width < 16 or height < 16:
        raise ValueError(f"a scene needs at least 16x16 pixels, got {width}x{height}")


def render_scene(seed: int, size: tuple[int, int] = (512, 384)) -> tuple[Image.Image, np.ndarray]:
    """Render a scene, always the same for the same seed and size.

    Args:
        seed: number of the scene.
        size: width and height in pixels, 16x16 and up.

    Returns:
        An RGB image and its label map, (height, width) uint8, with ids as in `SCENE_LABELS`.
    """
    require_size(size)
    width, height = size
    rng = np.random.default_rng(seed)
    return _Scene(rng, width, height, LIGHTS[rng.integers(len(LIGHTS))]).render()


class _Scene(Canvas):
    def __init__(self, rng: np.random.Generator, width: int, height: int, light: Light):
        super().__init__(rng, width, height, haze=light.horizon)
        self.light = light
        self.sun_side = rng.choice((-1, 1))
        self.road_start, self.road_bend = rng.uniform(-2.5, 2.5), rng.uniform(-0.004, 0.004)
        self.water_side = rng.choice((-1, 1, 0), p=(0.35, 0.35, 0.3))  # 0: no water
        self.shore = rng.uniform(11, 18)

    def render(self) -> tuple[Image.Image, np.ndarray]:
        self._paint_sky()
        self._paint_mountains()
        self._paint_ground()
        objects = sorted(self._place_objects(), key=lambda placed: -placed[0])
        for _, _, footprint in objects:
            self._cast_shadow(*footprint)
        for _, draw, _ in objects:
            draw()
        return self.finish(self.light.tint)

    def _pick(self, colors: tuple[Color, ...], low: float = 1.0, high: float = 1.0) -> np.ndarray:
        return np.asarray(colors[self.rng.integers(len(colors))], np.float32) * self.rng.uniform(low, high)

    # -- the backdrop ------------------------------------------------------------------------------------------------

    def _paint_sky(self) -> None:
        rows = int(self.horizon) + 1
        down = np.linspace(0, 1, rows, dtype=np.float32)[:, None, None]
        zenith, horizon = np.asarray(self.light.zenith), np.asarray(self.light.horizon)
        sky = zenith + down**1.3 * (horizon - zenith)
        if self.light.sun:
            column = self.center + self.sun_side * self.height * self.rng.uniform(0.15, 0.5)
            row = self.height * self.rng.uniform(0.05, 0.25)
            columns, lines = np.arange(self.width)[None, :, None], np.arange(rows)[:, None, None]
            distance = np.hypot(columns - column, lines - row) / self.height
            sky = sky + (70 * np.exp(-5 * distance) + 300 * (distance < 0.035)) * np.asarray((1, 0.93, 0.75))
        clouds = self.noise(rows, self.width, cell=self.height / 5, octaves=5, stretch=2.6)[..., None]
        cover = (1.6 * (clouds - 1 + 1.6 * self.light.clouds)).clip(0, 1) * (1 - 0.5 * down)
        white = 0.35 * horizon + 0.65 * np.asarray((250, 248, 245)) - 30 * cover
        self.image[:rows] = sky + 0.85 * cover * (white - sky)
        self.labels[:rows] = SKY

    def _paint_mountains(self) -> None:
        """Up to three ridges, the farther the hazier."""
        rows = np.arange(int(self.horizon) + 1, dtype=np.float32)[:, None]
        haze = 0.6 * np.asarray(self.light.horizon) + 0.4 * np.asarray(self.light.zenith)
        snow_line = self.height * self.rng.uniform(0.16, 0.4)
        ridges = int(self.rng.integers(0, 4))
        for nearness in np.arange(1, ridges + 1) / max(ridges, 1):
            crest = self.noise(1, self.width, cell=self.height * self.rng.uniform(0.3, 0.7), octaves=6)[0]
            scale = 0.05 + 0.28 * self.rng.uniform(0.5, 1) * (1.2 - nearness)
            rise = self.height * scale * (0.4 + 0.75 * crest).clip(0)
            folds = self.noise(len(rows), self.width, cell=self.height / 9, octaves=6, stretch=0.9)
            lit = np.gradient(folds, axis=1) * -self.sun_side * self.height / 20
            shade = (1 + 0.1 * folds + 0.3 * np.tanh(lit))[..., None]
            color = self._pick(ROCKS) * shade
            snow = self.horizon - rows > snow_line + 0.05 * self.height * folds
            color[snow] = 225 * (0.25 + 0.75 * shade[snow])
            color += (0.72 - 0.42 * nearness) * (haze - color)
            self.paint((0, 0, self.width, len(rows)), rows >= self.horizon - rise, color, MOUNTAIN)

    def _paint_ground(self) -> None:
        """Grass, water and road by where the ray of each pixel meets the plain."""
        first = int(self.horizon) + 1
        rows = np.arange(first, self.height, dtype=np.float32)[:, None]
        columns = np.arange(self.width, dtype=np.float32)[None, :]
        z = self.focal * self.camera_height / (rows + 0.5 - self.horizon).clip(0.5)
        x = (columns - self.center) * z / self.focal
        z = np.broadcast_to(z, x.shape)
        patches = self.ground_noise(x, z, scale=9)

        ground, labels = self._grass(x, z, patches), np.full(x.shape, GRASS, np.uint8)
        if self.water_side:
            depth = x * self.water_side - self.shore - 3.5 * patches  # meters from the shore
            bank, water = (depth > -0.7) & (depth <= 0), depth > 0
            ground[bank] = 0.5 * ground[bank] + 0.5 * np.asarray((150, 132, 100))
            ground[water], labels[water] = self._water(x, z, rows)[water], WATER
        across = x - self._road_center(z)
        road = np.abs(across) < ROAD_HALF_WIDTH
        ground[road], labels[road] = self._asphalt(x, z, across, patches)[road], ROAD
        self.image[first:], self.labels[first:] = self.haze(ground, z[..., None]), labels

    def _grass(self, x: np.ndarray, z: np.ndarray, patches: np.ndarray) -> np.ndarray:
        blades = self.ground_noise(x, z, scale=0.1) + 0.6 * self.ground_noise(x, z, scale=0.5, offset=77)
        shade = 1 + 0.2 * blades * (0.15 + np.exp(-z / 60)) + 0.16 * patches
        color = self._pick(GRASSES) * shade[..., None]
        flowers = (self.ground_noise(x, z, scale=0.22, offset=31) > 1.05) & (patches > 0.2) & (z < 30)
        color[flowers] = self._pick(FLOWERS)
        return color

    def _water(self, x: np.ndarray, z: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """Draw the backdrop upside down, stirred by ripples, over a dark ground."""
        ripples = self.ground_noise(x * 0.25, z, scale=0.5)
        near = np.exp(-z / 60)
        mirrored = 2 * self.horizon - rows + 0.012 * self.height * ripples * near
        reflection = self.image[mirrored.clip(0, int(self.horizon)).astype(int), np.arange(self.width)[None, :]]
        return 0.68 * reflection + 0.32 * np.asarray((38, 72, 88)) + (14 * ripples * (0.3 + near))[..., None]

    def _asphalt(self, x: np.ndarray, z: np.ndarray, across: np.ndarray, patches: np.ndarray) -> np.ndarray:
        tar = self.rng.uniform(78, 118) * np.asarray((1, 1, 1.03), np.float32)
        wheel_tracks = np.exp(-(((np.abs(across) - 1.7) / 0.45) ** 2))
        stones = self.ground_noise(x, z, scale=0.12) * np.exp(-z / 60)
        color = tar * (1 + 0.14 * stones + 0.06 * patches - 0.06 * wheel_tracks)[..., None]
        edges = np.abs(np.abs(across) - (ROAD_HALF_WIDTH - 0.3)) < 0.08
        dashes = (np.abs(across) < 0.08) & ((z + 1.5) % 6 < 3)
        color[edges | dashes] = (214, 212, 204)
        return color

    def _road_center(self, z):
        return self.road_start + self.road_bend * z**2 / (1 + z / 120)

    # -- what stands on it -------------------------------------------------------------------------------------------

    def _place_objects(self) -> list[tuple]:
        """Return distance, drawing function and (x, z, half width, height) of what casts a shadow, of each object."""
        rng, placed = self.rng, []

        def add(draw, x, z, half_width, height, *arguments):
            placed.append((z, lambda: draw(x, z, *arguments), (x, z, half_width, height)))

        def beside_road(side, z, distance):
            return self._road_center(z) + side * (ROAD_HALF_WIDTH + distance)

        for side in (-1, 1):
            if side == self.water_side:
                continue
            kind = rng.choice(("town", "village", "country"))
            z = rng.uniform(14, 26)
            while z < 130 and kind != "country":
                width, depth = rng.uniform(7, 14), rng.uniform(7, 16)
                height = rng.uniform(7, 22) if kind == "town" else rng.uniform(4, 7)
                x = beside_road(side, z, rng.uniform(2.8, 5) + width / 2)
                add(self._draw_building, x, z, width / 2, height * 0.6, width, height, depth, kind == "village")
                z += depth + (rng.uniform(0.3, 3) if kind == "town" else rng.uniform(4, 14))
            for _ in range(rng.integers(6, 14) if kind == "country" else rng.integers(2, 6)):
                z, height = rng.uniform(9, 90), rng.uniform(3.5, 9)
                x = beside_road(side, z, rng.uniform(2.5, 4 + 0.5 * z) if kind == "country" else rng.uniform(1.6, 2.4))
                add(self._draw_tree, x, z, height * 0.25, height, height)
        if rng.random() < 0.65:
            side = rng.choice((-1, 1))
            for z in np.arange(rng.uniform(8, 14), 90, 17):
                add(self._draw_streetlight, beside_road(side, z, 0.6), z, 0.08, 6.0, -side)
        for _ in range(rng.integers(1, 6)):
            z, lane = rng.uniform(8, 55), rng.choice((-1, 1))
            x = self._road_center(z) + lane * 1.7
            if all(abs(z - other) > 6 or abs(x - footprint[0]) > 2.4 for other, _, footprint in placed):
                add(self._draw_car, x, z, 1.6, 1.3, rng.normal(0, 0.06) + (np.pi if lane < 0 else 0))
        for _ in range(rng.integers(1, 8)):
            z = rng.uniform(6.5, 32)
            add(self._draw_person, beside_road(rng.choice((-1, 1)), z, rng.uniform(-0.6, 2.2)), z, 0.25, 1.7)
        return placed

    def _cast_shadow(self, x: float, z: float, half_width: float, height: float) -> None:
        """Darkens grass and road where the object keeps the light off: away from the sun, and more under it."""
        left, right, far = x - half_width, x + half_width, z - 0.25 * height
        reach = -self.sun_side * 0.9 * height
        cast = [(left, z), (right, z), (right + reach, far), (left + reach, far)]
        angles = np.linspace(0, 2 * np.pi, 24)
        under = [(x + 1.15 * half_width * np.cos(t), z + half_width * np.sin(t)) for t in angles]
        self.darken(cast, self.light.shadow, (GRASS, ROAD))
        self.darken(under, 0.65, (GRASS, ROAD))

    def _draw_building(self, x, z, width, height, depth, gabled) -> None:
        """Draw a box with its front to the camera, windows, a door, and a gable roof or a cornice."""
        wall, roof = self._pick(WALLS, 0.85, 1.1), self._pick(ROOFS)
        left, right, back = x - width / 2, x + width / 2, z + depth
        inner = left if x > 0 else right  # the side wall that the camera sees
        front, side = (0.82, 1.08) if (inner == left) == (self.sun_side < 0) else (1.02, 0.74)  # brightness
        peak = height + (width * self.rng.uniform(0.3, 0.45) if gabled else 0)

        corners = [(inner, 0, z), (inner, height, z), (inner, height, back), (inner, 0, back)]
        self.face(corners, wall * side, BUILDING)
        self._draw_windows(lambda u, v: (inner, v, z + u), depth, height, side)
        if gabled:
            slope = [(inner, height, z), (x, peak, z), (x, peak, back), (inner, height, back)]
            self.face(slope, roof * side, BUILDING, grain=0.5)
        outline = [(left, 0, z), (left, height, z), (x, peak, z), (right, height, z), (right, 0, z)]
        self.face(outline, wall * front, BUILDING)
        self._draw_windows(lambda u, v: (left + u, v, z), width, height, front)
        self.face(_rectangle(x - 0.6, 0, x + 0.6, 2.2, z), np.asarray((84, 62, 48)) * front, BUILDING)
        if not gabled:
            self.face(_rectangle(left, height - 0.45, right, height, z), roof * front, BUILDING)

    def _draw_windows(self, wall, length, height, brightness) -> None:
        """Rows of windows on a wall, which maps (meters along it, meters up) to a point in the world."""
        columns = max(1, int((length - 1) / 2.1))
        frame = np.asarray((222, 218, 208)) * brightness
        for floor in range(max(1, int((height - 0.8) / STOREY))):
            for column in range(columns):
                u, v = length / columns * (column + 0.5), STOREY * floor + 1.2
                if v + 1.5 > height:
                    continue
                lit = self.light.lamps and self.rng.random() < 0.45
                for margin, color in ((0.12, frame), (0, LAMPLIGHT if lit else GLASS * brightness)):
                    a, b, c, d = u - 0.5 - margin, u + 0.5 + margin, v - margin, v + 1.4 + margin
                    self.face([wall(a, c), wall(a, d), wall(b, d), wall(b, c)], color, BUILDING, grain=0.1)

    def _draw_tree(self, x, z, height) -> None:
        rng, trunk = self.rng, height * 0.035
        stem = [(-trunk, 0), (-0.6 * trunk, 0.6 * height), (0.6 * trunk, 0.6 * height), (trunk, 0)]
        bark = self._pick(((92, 74, 58),), 0.8, 1.15)
        self.face([(x + along, up, z) for along, up in stem], bark, TREE, grain=0.6)
        if rng.random() < 0.35:  # a conifer
            blobs = [
                (x + height * rng.normal(0, 0.02), height * (0.16 + 0.84 * t), height * 0.21 * (1.02 - t))
                for t in np.linspace(0, 1, 12)
            ]
        else:
            radius = height * rng.uniform(0.24, 0.34)
            angles, reach = rng.uniform(0, 2 * np.pi, 16), radius * rng.uniform(0.2, 0.8, 16)
            blobs = [
                (x + r * np.cos(t), height - 1.15 * radius + 0.8 * r * np.sin(t), radius * rng.uniform(0.35, 0.6))
                for t, r in zip(angles, reach, strict=True)
            ]
        self._draw_foliage(blobs, z, self._pick(LEAVES))

    def _draw_foliage(self, blobs: list[Point], z: float, color: Color) -> None:
        """Draw a crown of round blobs (x, y, radius) with a ragged rim, brighter above and toward the sun."""
        scale = self.focal / z
        circles = [(*self.project((x, y, z)), max(radius * scale, 0.8)) for x, y, radius in blobs]
        box = self.box([(column + s * r, row + s * r) for column, row, r in circles for s in (-1.2, 1.2)])
        if box is None:
            return
        left, top, right, bottom = box
        rows, columns = np.mgrid[top:bottom, left:right].astype(np.float32)
        leaves = self.noise(bottom - top, right - left, cell=max(scale * 0.45, 1.5), octaves=3)
        inside, facing = np.full(rows.shape, -np.inf, np.float32), np.zeros(rows.shape, np.float32)
        for column, row, r in circles:
            depth = 1 - np.hypot(columns - column, rows - row) / r
            light = (self.sun_side * (columns - column) - 1.2 * (rows - row)) / r
            facing = np.where(depth > inside, light, facing)
            inside = np.maximum(inside, depth)
        highest, lowest = min(row for _, row, _ in circles), max(row for _, row, _ in circles)
        height = (lowest - rows) / max(lowest - highest, 1)
        shade = 0.74 + 0.16 * facing.clip(-1.5, 1.5) + 0.3 * leaves + 0.36 * height
        texture = self.haze(color * shade.clip(0.3, 1.7)[..., None], z)
        self.paint(box, inside + 0.28 * leaves > 0.02, texture, TREE)

    def _draw_car(self, x, z, heading) -> None:
        """Draw a side view (meters along, meters up) swept across, turned by `heading` around the vertical."""
        paint, rubber = self._pick(PAINTS), np.full(3, 30, np.float32)
        top = self.rng.uniform(1.35, 1.75)
        body = [(-2.1, 0.3), (-2.15, 0.75), (-2.0, 0.95), (-1.6, top - 0.05), (-1.2, top)]
        body += [(0.1, top), (0.9, 0.98), (1.9, 0.85), (2.1, 0.6), (2.1, 0.3)]
        panes = [(-1.7, 1.0), (-1.42, top - 0.12), (0.02, top - 0.12), (0.6, 1.0)]
        pillar = [(-0.6, 1.0), (-0.6, top - 0.1), (-0.5, top - 0.1), (-0.5, 1.0)]
        cos, sin = np.cos(heading), np.sin(heading)

        def world(along, up, across) -> Point:
            return (x + across * cos + along * sin, up, z + along * cos - across * sin)

        def panel(color, corners):
            self.face([world(*corner) for corner in corners], color, CAR, grain=0.1)

        seen = min((-0.9, 0.9), key=lambda across: np.hypot(*world(0, 0, across)[::2]))  # the nearer side
        brightness = 1.05 if (world(0, 0, seen)[0] > x) == (self.sun_side > 0) else 0.72
        for along in (-1.35, 1.3):  # the wheels as seen from the ends, under the body
            for across in (-0.78, 0.78):
                left, right = across - 0.12, across + 0.12
                panel(rubber, [(along, 0, left), (along, 0.5, left), (along, 0.5, right), (along, 0, right)])
        for outline, color in ((body, paint), (panes, GLASS), (pillar, paint)):
            panel(color * brightness, [(along, up, seen) for along, up in outline])
        edges = sorted(pairwise(body), key=lambda edge: -world(edge[0][0] + edge[1][0], 0, 0)[2])  # far to near
        for (a, low), (b, high) in edges:
            quad = [(a, low, -0.9), (b, high, -0.9), (b, high, 0.9), (a, low, 0.9)]
            if not self.faces_camera([world(*corner) for corner in quad], world(0.25 * (a + b), 0.7, 0)):
                continue
            panel(paint * (0.88 if abs(b - a) < abs(high - low) else 1.12), quad)
            if (a, b) in ((-2.0, -1.6), (0.1, 0.9)):  # rear window and windscreen
                corners = ((0.1, -0.75), (0.9, -0.7), (0.9, 0.7), (0.1, 0.75))
                panel(GLASS * 1.1, [(a + t * (b - a), low + t * (high - low), across) for t, across in corners])
            if 0.3 in (low, high):
                self._draw_car_end(panel, front=a > 0)
        for along in (-1.35, 1.3):
            for radius, color in ((0.34, rubber), (0.19, rubber + 110)):
                angles = np.linspace(0, 2 * np.pi, 20, endpoint=False)
                panel(color, [(along + radius * np.cos(t), 0.34 + radius * np.sin(t), 1.01 * seen) for t in angles])

    def _draw_car_end(self, panel, front: bool) -> None:
        """Two lights and a number plate."""
        lamp = np.asarray((250, 246, 220) if front else (200, 26, 24)) * (1.5 if self.light.lamps else 1)
        along = 2.11 if front else -2.14
        plate = (-0.26, 0.26, 0.4, 0.52, (224, 224, 214))
        for left, right, low, high, color in ((-0.85, -0.5, 0.58, 0.74, lamp), (0.5, 0.85, 0.58, 0.74, lamp), plate):
            panel(color, [(along, low, left), (along, high, left), (along, high, right), (along, low, right)])

    def _draw_person(self, x, z) -> None:
        rng = self.rng
        size, stride = rng.uniform(0.86, 1.08), rng.uniform(0.05, 0.24) * rng.choice((-1, 1))
        skin, hair, shirt, trousers = (self._pick(colors) for colors in (SKINS, HAIRS, SHIRTS, TROUSERS))
        swing = 0.16 * np.sign(stride) * rng.uniform(0.3, 1)

        def part(points, color):
            self.face([(x + size * along, size * up, z) for along, up in points], color, PERSON, grain=0.3)

        def limb(x0, y0, x1, y1, half, color):
            part([(x0 - half, y0), (x0 + half, y0), (x1 + 0.7 * half, y1), (x1 - 0.7 * half, y1)], color)

        def ball(px, py, rx, ry, color):
            part([(px + rx * np.cos(t), py + ry * np.sin(t)) for t in np.linspace(0, 2 * np.pi, 18)], color)

        for foot, brightness in ((-stride, 0.8), (stride, 1.0)):
            limb(0.3 * foot, 0.86, foot, 0.06, 0.085, trousers * brightness)
            part([(foot - 0.08, 0), (foot - 0.07, 0.08), (foot + 0.07, 0.08), (foot + 0.11, 0)], (44, 40, 38))
        limb(-0.19, 1.42, -0.24 - swing, 0.82, 0.055, shirt * 0.75)
        part([(-0.16, 0.8), (-0.22, 1.42), (-0.12, 1.5), (0.12, 1.5), (0.22, 1.42), (0.16, 0.8)], shirt)
        limb(0.19, 1.42, 0.24 + swing, 0.82, 0.055, shirt * 0.88)
        for hand in (-0.24 - swing, 0.24 + swing):
            ball(hand, 0.79, 0.045, 0.055, skin * 0.95)
        part([(-0.05, 1.46), (-0.05, 1.58), (0.05, 1.58), (0.05, 1.46)], skin * 0.85)
        ball(0, 1.68, 0.115, 0.14, hair)
        ball(0.015 * np.sign(stride), 1.65, 0.09, 0.11, skin)

    def _draw_streetlight(self, x, z, arm) -> None:
        metal = np.asarray((72, 76, 80), np.float32)
        tip = x + 1.5 * arm
        self.face([(x - 0.09, 0, z), (x - 0.06, 5.9, z), (x + 0.06, 5.9, z), (x + 0.09, 0, z)], metal, STREETLIGHT)
        self.face([(x, 5.8, z), (x, 5.92, z), (tip, 6.16, z), (tip, 6.04, z)], metal * 0.9, STREETLIGHT)
        lamp = LAMPLIGHT if self.light.lamps else metal * 1.5
        self.face(_rectangle(tip - 0.38, 5.94, tip + 0.38, 6.16, z), lamp, STREETLIGHT)


def _rectangle(left: float, low: float, right: float, high: float, z: float) -> list[Point]:
    return [(left, low, z), (left, high, z), (right, high, z), (right, low, z)]
