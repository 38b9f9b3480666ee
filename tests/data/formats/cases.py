"""The same two photos and shapes, written in every format by the formats' own definitions, without the package."""

import base64
import json
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image


SIZE = (24, 16)  # width, height
NAMES = ["car", "road"]
# Corners on the pixels' edges. Road, and a car on it that must win; the second ring of the road is a part of its own.
ROAD = [(0, 8), (24, 8), (24, 16), (0, 16)]
CAR = [(4, 6), (12, 6), (12, 12), (4, 12)]
COLORS = {"car": (64, 0, 128), "road": (128, 64, 128)}


def expected(uncovered: int, car: int, road: int) -> np.ndarray:
    ids = np.full(SIZE[::-1], uncovered)
    ids[8:16] = road
    ids[6:12, 4:12] = car
    return ids


def photo(path: Path, size: tuple[int, int] = SIZE) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.random.default_rng([*path.name.encode()]).integers(0, 256, (size[1], size[0], 3), np.uint8)
    Image.fromarray(values).save(path)
    return path


STEMS = ("park_01", "street_01")


def coco(root: Path) -> Path:
    """Polygons; the file is what is given."""
    content: dict = {
        "images": [],
        "annotations": [],
        "categories": [{"id": 7, "name": "road"}, {"id": 3, "name": "car"}],
    }
    for number, stem in enumerate(STEMS):
        photo(root / "images" / f"{stem}.png")
        content["images"].append({"id": number, "file_name": f"{stem}.png", "width": SIZE[0], "height": SIZE[1]})
        for category, ring in ((3, CAR), (7, ROAD)):
            flat = [value for corner in ring for value in corner]
            content["annotations"].append({"id": 10 * number + category, "image_id": number, "category_id": category})
            content["annotations"][-1] |= {"segmentation": [flat], "iscrowd": 0}
    return write(root / "annotations" / "all.json", content)


def panoptic(root: Path) -> Path:
    path = coco(root)
    content = json.loads(path.read_text())
    content["annotations"] = []
    for number, stem in enumerate(STEMS):
        ids = expected(0, 70000 + number, 300)
        rgb = np.stack([ids % 256, ids // 256 % 256, ids // 65536], axis=-1).astype(np.uint8)
        (root / "annotations" / "all").mkdir(exist_ok=True)
        Image.fromarray(rgb).save(root / "annotations" / "all" / f"{stem}.png")
        segments = [{"id": 70000 + number, "category_id": 3}, {"id": 300, "category_id": 7}]
        content["annotations"].append({"image_id": number, "file_name": f"{stem}.png", "segments_info": segments})
    return write(path, content)


def yolo(root: Path) -> Path:
    for stem in STEMS:
        photo(root / "images" / f"{stem}.png")
        lines = [
            " ".join([str(number), *(f"{x / SIZE[0]:.6f} {y / SIZE[1]:.6f}" for x, y in ring)])
            for number, ring in ((0, CAR), (1, ROAD))
        ]
        path = root / "labels" / f"{stem}.txt"
        path.parent.mkdir(exist_ok=True)
        path.write_text("\n".join(lines) + "\n")
    (root / "data.yaml").write_text("path: .\ntrain: images\nnames:\n  0: car\n  1: road\n")
    return root


def label_studio(root: Path) -> Path:
    tasks = []
    for number, stem in enumerate(STEMS):
        photo(root / "photos" / f"{stem}.png")
        size = {"original_width": SIZE[0], "original_height": SIZE[1]}
        percent = [[100 * x / SIZE[0], 100 * y / SIZE[1]] for x, y in ROAD]
        brush = {"format": "rle", "rle": brush_rle(expected(0, 255, 0)), "brushlabels": ["car"]}
        result = [
            {"id": "a", "type": "brushlabels", "value": brush, **size},
            {"id": "b", "type": "polygonlabels", "value": {"points": percent, "polygonlabels": ["road"]}, **size},
        ]
        data = {"image": f"/data/upload/1/1f2e3d4c-{stem}.png"}
        tasks.append({"id": number, "data": data, "annotations": [{"result": result, "was_cancelled": False}]})
    write(root / "export.json", tasks)
    return root


def brush_rle(mask: np.ndarray) -> list[int]:
    """Label Studio's run lengths of RGBA in which every channel has the mask's value."""
    flat = np.repeat(mask.ravel(), 4).tolist()
    bits = f"{len(flat):032b}{8 - 1:05b}" + "".join(f"{size - 1:04b}" for size in (3, 4, 8, 16))
    start = 0
    while start < len(flat):
        end = start
        while end < len(flat) and flat[end] == flat[start] and end - start < 1 << 16:
            end += 1
        which, size = next((i, size) for i, size in enumerate((3, 4, 8, 16)) if end - start <= 1 << size)
        if end - start > 1:
            bits += f"1{which:02b}{end - start - 1:0{size}b}{flat[start]:08b}"
        else:
            bits += f"0{which:02b}{0:0{size}b}{flat[start]:08b}"
        start = end
    bits += "0" * (-len(bits) % 8)
    return [int(bits[i : i + 8], 2) for i in range(0, len(bits), 8)]


def labelme(root: Path) -> Path:
    box = np.ones((6, 8), np.uint8) * 255
    buffer = BytesIO()
    Image.fromarray(box).save(buffer, format="PNG")
    for stem in STEMS:
        photo(root / f"{stem}.png")
        mask = base64.b64encode(buffer.getvalue()).decode()
        shapes = [
            {"label": "car", "shape_type": "mask", "points": [[4, 6], [11, 11]], "mask": mask},
            {"label": "road", "shape_type": "polygon", "points": ROAD},
        ]
        content = {"imagePath": f"{stem}.png", "imageWidth": SIZE[0], "imageHeight": SIZE[1], "shapes": shapes}
        write(root / f"{stem}.json", content)
    return root


def _colored(path: Path, palette: bool = False) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    ids = expected(0, 1, 2).astype(np.uint8)
    colors = np.asarray([(0, 0, 0), *COLORS.values()], np.uint8)
    picture = Image.fromarray(ids if palette else colors[ids])
    if palette:
        picture.putpalette(colors.ravel().tolist())
    picture.save(path)


def cvat(root: Path) -> Path:
    """Segmentation mask 1.1, as VOC has its folders."""
    for stem in STEMS:
        photo(root / "JPEGImages" / f"{stem}.png")
        _colored(root / "SegmentationClass" / f"{stem}.png", palette=True)
        _colored(root / "SegmentationObject" / f"{stem}.png", palette=True)
    lines = ["# label:color_rgb:parts:actions", "background:0,0,0::"]
    lines += [f"{name}:{','.join(map(str, color))}::" for name, color in COLORS.items()]
    (root / "labelmap.txt").write_text("\n".join(lines))
    return root


def camvid(root: Path) -> Path:
    for stem in STEMS:
        photo(root / "train" / f"{stem}.png")
        _colored(root / "train_labels" / f"{stem}_L.png")
    lines = ["name,r,g,b", *(f"{name}, {r}, {g}, {b}" for name, (r, g, b) in COLORS.items()), "Void, 0, 0, 0"]
    (root / "class_dict.csv").write_text("\n".join(lines))
    return root


def write(path: Path, content: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path


FORMATS: dict[str, Callable[[Path], Path]] = {
    "coco": coco,
    "panoptic": panoptic,
    "yolo": yolo,
    "label_studio": label_studio,
    "labelme": labelme,
    "cvat": cvat,
    "camvid": camvid,
}
