"""Videos to videos: which frames, at which times, with which labels; and what is left when something breaks."""

import csv
import os
import time
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image
from transformers import SegformerImageProcessorPil

from offseg_hf.inference.files import plan
from offseg_hf.inference.segmenter import Segmenter
from offseg_hf.inference.video import (
    AHEAD,
    Reader,
    Source,
    VideoInterrupted,
    VideoOptions,
    is_video,
    label_video,
    plan_videos,
    record,
    segment_video,
)
from offseg_hf.visualization import class_shares, draw_frame
from tests import semantic_models
from tests.inference.videos import add_silence, camera_on_the_network, decoded, scenes, turned, write_video
from tests.small_model import save_small_model
from tests.tiny import tiny_model, tiny_processor


TIMES = [0, 33, 100, 140, 180, 400, 433, 466, 500, 700]  # as a phone writes them in the dark


@pytest.fixture(scope="module")
def segmenter(tmp_path_factory) -> Segmenter:
    return Segmenter(save_small_model(tmp_path_factory.mktemp("model"), "segformer"), device="cpu")


@pytest.fixture(scope="module")
def drive(tmp_path_factory) -> Path:
    return write_video(tmp_path_factory.mktemp("videos") / "drive.mp4", scenes(10), TIMES)


def rows_of(path: Path) -> tuple[list[str], np.ndarray]:
    with path.open(newline="") as file:
        head, *rows = csv.reader(file)
    return head, np.array(rows, dtype=float)


def test_overlay_shares_and_label_maps(segmenter, drive, tmp_path):
    """Every frame as a photo of it would be segmented, at its own time."""
    recording = segment_video(drive, tmp_path / "out", segmenter, VideoOptions(label_maps=True, opacity=0.5))
    assert sorted(os.listdir(tmp_path / "out")) == ["drive_classes.csv", "drive_labels", "drive_overlay.mp4"]
    assert recording.frames == 10 and recording.notes == []
    overlay, shares, labels = recording.files
    times, pictures = decoded(overlay)
    assert times == [milliseconds / 1000 for milliseconds in TIMES]
    head, rows = rows_of(shares)
    assert head == ["frame", "seconds", *segmenter.names]
    assert rows[:, 0].tolist() == list(range(10)) and rows[:, 1].tolist() == times
    assert sorted(os.listdir(labels)) == [f"{index:06}.png" for index in range(10)]
    for index, pixels in enumerate(decoded(drive)[1]):
        label_map = segmenter(Image.fromarray(pixels))
        assert (np.asarray(Image.open(labels / f"{index:06}.png")) == label_map).mean() > 0.999  # fused
        expected = np.zeros(len(segmenter.names))
        for name, _, share in class_shares(label_map, len(segmenter.names)):
            expected[name] = share
        assert np.abs(rows[index, 2:] - expected).max() < 0.002
        drawn = np.asarray(draw_frame(Image.fromarray(pixels), label_map, segmenter.names, segmenter.palette, 0.5))
        assert pictures[index].shape == drawn.shape
        assert np.abs(pictures[index].astype(int) - drawn).mean() < 12  # of the colors there are half as many


def test_frames_in_python_in_batches(segmenter, drive):
    alone = list(label_video(str(drive), segmenter))
    batches = list(label_video(drive, segmenter, VideoOptions(batch_size=4)))
    assert [frame.index for frame in alone] == [frame.index for frame in batches] == list(range(10))
    for one, other in zip(alone, batches):
        assert one.image.size == one.label_map.shape[::-1] == (64, 48)
        assert (one.label_map == other.label_map).mean() > 0.999


def test_which_frames(drive):
    def indices(**options):
        with Source(str(drive)) as source:
            return [frame.index for frame in source.frames(**options)]

    assert indices(every=4) == [0, 4, 8]
    assert indices(fps=10) == [0, 2, 5, 8, 9]  # 0, 100, 400, 500 and 700 ms
    assert indices(fps=1000) == list(range(10))
    with Source(str(drive)) as source:
        expected = [source.expected_frames(options) for options in (VideoOptions(), VideoOptions(every=4))]
    assert expected == [10, 3]


def test_what_is_wrong_with_options(segmenter, drive):
    for options, message in (
        ({"every": 0}, "every: expected 1 or more"),
        ({"fps": 0.0}, "fps: expected more than 0"),
        ({"every": 2, "fps": 5.0}, "pass one of them"),
        ({"smooth": 1.0}, "between 0 and 1, got 1.0"),
        ({"smooth": 0.0}, "between 0 and 1, got 0.0"),
    ):
        with pytest.raises(ValueError, match=message):
            VideoOptions(**options)


@torch.no_grad()
def test_smooth_averages_scores(segmenter, tmp_path):
    """Of models that look through windows and of those that do not."""
    flicker = [frame for pair in zip(scenes(4), scenes(8)[4:]) for frame in pair]
    video = write_video(tmp_path / "a.mp4", flicker)
    images = [Image.fromarray(pixels) for pixels in decoded(video)[1]]
    folder = tmp_path / "whole"
    semantic_models.small_model("segformer").save_pretrained(folder)
    SegformerImageProcessorPil(size={"height": 64, "width": 64}).save_pretrained(folder)
    for each in (segmenter, Segmenter(folder, device="cpu")):
        network, processor = each.model, each.processor
        average, changed = None, 0
        for frame, image in zip(label_video(video, each, VideoOptions(smooth=0.3)), images, strict=True):
            scores = network(**processor(images=image, return_tensors="pt")).logits
            average = scores if average is None else 0.7 * average + 0.3 * scores
            size = (image.height, image.width)
            upsampled = torch.nn.functional.interpolate(average, size=size, mode="bilinear")
            assert (upsampled[0].argmax(dim=0).numpy() == frame.label_map).mean() > 0.995
            changed += (each(image) != frame.label_map).sum()
        assert changed > 0
        list(label_video(video, each, VideoOptions(smooth=0.3)))


def test_smooth_needs_scores(drive, tmp_path):
    tiny_model("mask2former").save_pretrained(tmp_path)
    tiny_processor("mask2former").save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="has no scores of classes to average"):
        next(label_video(drive, Segmenter(tmp_path, device="cpu"), VideoOptions(smooth=0.5)))


def test_turned_as_the_file_says(segmenter, tmp_path):
    """What is at the left of the pixels is at the top of the picture."""
    picture = Image.new("RGB", (64, 48), (20, 20, 20))
    picture.paste((230, 230, 230), (0, 0, 8, 48))
    video = turned(write_video(tmp_path / "phone.mp4", [picture] * 2))
    for frame in label_video(video, segmenter):
        assert frame.image.size == (48, 64) and frame.label_map.shape == (64, 48)
        pixels = np.asarray(frame.image)
        assert pixels[:6].mean() > 200 and pixels[10:].mean() < 50
    recording = segment_video(video, tmp_path, segmenter)
    assert decoded(recording.files[0])[1][0].shape[1] == 48


def test_without_h264(segmenter, drive, tmp_path, monkeypatch):
    monkeypatch.setattr(av, "codecs_available", av.codecs_available - {"libx264"})
    recording = segment_video(drive, tmp_path, segmenter)
    with av.open(str(recording.files[0])) as container:
        assert container.streams.video[0].codec_context.name == "mpeg4"
    assert decoded(recording.files[0])[0] == [milliseconds / 1000 for milliseconds in TIMES]


def test_sound_is_left_out_and_said(segmenter, tmp_path):
    video = write_video(tmp_path / "loud.mp4", scenes(3), sound=True)
    recording = segment_video(video, tmp_path / "out", segmenter)
    assert recording.notes == ["its sound is left out"]
    with av.open(str(recording.files[0])) as container:
        assert len(container.streams) == 1


def test_what_cannot_be_read(segmenter, drive, tmp_path):
    (tmp_path / "text.mp4").write_text("no video")
    (tmp_path / "half.mp4").write_bytes(drive.read_bytes()[: drive.stat().st_size // 2])  # its index is at its end
    with av.open(str(tmp_path / "sound.mp4"), "w") as container:
        container.mux(add_silence(container))
    (tmp_path / "empty.y4m").write_text("YUV4MPEG2 W64 H48 F25:1\n")
    for name, messages in {
        "text.mp4": ("cannot be read as a video", "copy or record it again"),
        "half.mp4": ("cannot be read as a video", "cut off"),
        "sound.mp4": ("no video stream", "name another file"),
        "empty.y4m": ("one without any", "record or copy it again"),
        "/dev/video99": ("cannot open the camera /dev/video99: No such file", "cameras here: "),
        "http://127.0.0.1:9/a.mp4": ("cannot open this address: Connection refused", "player"),
        "rtsp://127.0.0.1:9/a": ("cannot open this address: Connection refused", "player"),
    }.items():
        source = tmp_path / name if (tmp_path / name).is_file() else name
        with pytest.raises(ValueError) as raised:
            segment_video(source, tmp_path / "out", segmenter)
        assert all(message in str(raised.value) for message in messages), raised.value
    assert not (tmp_path / "out").exists() or os.listdir(tmp_path / "out") == []


def test_what_is_cut_off(segmenter, tmp_path):
    """The frames that there are stay."""
    whole = write_video(tmp_path / "whole.mp4", scenes(75), movflags="faststart")
    cut = tmp_path / "cut.mp4"
    cut.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    with pytest.raises(ValueError, match=r"cut_overlay\.partial\.mp4") as raised:
        segment_video(cut, tmp_path / "out", segmenter, VideoOptions(every=5))
    assert "cut off" in str(raised.value) or "cannot be read on" in str(raised.value)
    assert sorted(os.listdir(tmp_path / "out")) == ["cut_classes.partial.csv", "cut_overlay.partial.mp4"]
    frames = len(decoded(tmp_path / "out" / "cut_overlay.partial.mp4")[1])
    assert 3 <= frames == len(rows_of(tmp_path / "out" / "cut_classes.partial.csv")[1]) < 14


def test_broken_packets_are_left_out_and_said(segmenter, tmp_path):
    video = write_video(tmp_path / "a.mp4", scenes(30))
    content = bytearray(video.read_bytes())
    place = content.index(b"mdat") + 4 + (content.index(b"moov") - content.index(b"mdat")) // 2
    content[place : place + 60] = os.urandom(60)
    video.write_bytes(content)
    recording = segment_video(video, tmp_path / "out", segmenter)
    assert 20 <= recording.frames <= 30
    assert recording.frames == 30 or "broken packets are left out" in recording.notes[0]


# -- while it runs ----------------------------------------------------------------------------------------------------


def test_playable_while_it_is_written(segmenter, tmp_path):
    """And so after a kill: what is in the file is copied at frame 50."""
    video, (job,) = write_video(tmp_path / "a.mp4", scenes(60)), plan_videos([str(tmp_path / "a.mp4")], tmp_path)[0]

    def copy(done: int, expected: int | None) -> None:
        assert expected == 60
        if done == 50:
            (tmp_path / "copy.mp4").write_bytes((tmp_path / "a_overlay.partial.mp4").read_bytes())

    record(job, segmenter, VideoOptions(), copy)
    assert len(decoded(tmp_path / "copy.mp4")[1]) >= 20  # the encoder is behind, and writes a second at a time
    assert len(decoded(tmp_path / "a_overlay.mp4")[1]) == 60
    assert video.is_file() and not list(tmp_path.glob("*partial*"))


def test_interrupted(segmenter, drive, tmp_path):
    (job,), _ = plan_videos([str(drive)], tmp_path)

    def interrupt(done: int, expected: int | None) -> None:
        if done == 4:
            raise KeyboardInterrupt

    with pytest.raises(VideoInterrupted, match=r"interrupted: \d frames, 0.\d seconds, can be played: ") as raised:
        record(job, segmenter, VideoOptions(label_maps=True), interrupt)
    assert raised.value.exit_code == 130
    partial = [f"drive_{name}" for name in ("classes.partial.csv", "labels.partial", "overlay.partial.mp4")]
    assert sorted(os.listdir(tmp_path)) == partial
    number = len(os.listdir(tmp_path / "drive_labels.partial"))
    assert 4 <= number == len(decoded(tmp_path / "drive_overlay.partial.mp4")[1])
    assert number == len(rows_of(tmp_path / "drive_classes.partial.csv")[1])
    segment_video(drive, tmp_path, segmenter)  # nothing is taken for finished, and the rest is put away
    assert sorted(os.listdir(tmp_path)) == ["drive_classes.csv", "drive_labels.partial", "drive_overlay.mp4"]


def test_only_some_frames_are_read_ahead():
    read = []

    def frames():
        for index in range(100):
            read.append(index)
            yield index

    reader = Reader(frames(), drops=False)
    taken = iter(reader)
    assert next(taken) == 0
    time.sleep(0.1)
    assert len(read) <= AHEAD + 2
    assert [*taken] == list(range(1, 100))
    reader.close()


def test_live_frames_that_nobody_takes_are_left_out():
    reader = Reader(iter(range(100)), drops=True)
    reader._thread.join()
    assert list(reader) == [96, 97, 98, 99] and reader.dropped == 96


def test_errors_of_the_reader_come_after_its_frames():
    def frames():
        yield from range(3)
        raise ValueError("broken")

    taken = iter(Reader(frames(), drops=False))
    assert [next(taken) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(ValueError, match="broken"):
        next(taken)


def test_a_stream_that_ends(segmenter, tmp_path):
    """Its frames have the times at which they came."""
    with camera_on_the_network(scenes(12), seconds_between=0.03) as address:
        recording = segment_video(address, tmp_path, segmenter)
    number = recording.frames + sum(int(note.split()[0]) for note in recording.notes if "busy" in note)
    assert recording.frames >= 3 and number >= 10
    host = address.split("/")[2].replace(".", "_").replace(":", "_")
    assert recording.files[0].name == f"{host}_camera_overlay.mp4"
    _, rows = rows_of(recording.files[1])
    assert 0.1 < rows[-1, 1] < 30 and (np.diff(rows[:, 1]) > 0).all()
    assert len(decoded(recording.files[0])[1]) == len(rows) == recording.frames


# -- finding them -----------------------------------------------------------------------------------------------------


def test_what_is_a_video(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "frames.mp4").mkdir()
    (tmp_path / "7").write_bytes(b"a photo without ending")
    videos = ("a.mp4", "B.MOV", "0", "/dev/video1", "rtsp://host/a", "https://host/a.jpg", "clips/*.mkv")
    assert all(map(is_video, videos))
    assert not any(map(is_video, ("a.jpg", "photos", "frames.mp4", "7", "*.png", "a.gif", "1234")))


def test_names_of_outputs(tmp_path):
    for name in ("a/drive.mp4", "b/drive.mp4", "b/walk.mov"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"whatever")
    inputs = [f"{tmp_path}/*/*.mp4", str(tmp_path / "b" / "walk.mov"), "0", "rtsp://me:secret@cam.local:8554/a.b?c=d"]
    jobs, outcomes = plan_videos(inputs, tmp_path / "out")
    assert not outcomes
    names = [job.name.relative_to(tmp_path / "out").as_posix() for job in jobs]
    assert names == ["a/drive.mp4", "b/drive.mp4", "walk", "camera0", "cam_local_8554_a_b"]
    (job,), outcomes = plan_videos([f"{tmp_path}/*.avi", "no.mp4", str(tmp_path / "b" / "walk.mov")], tmp_path)
    assert [outcome.message for outcome in outcomes] == ["no video matches this pattern", "no such file"]
    (tmp_path / "walk_classes.csv").write_text("mine")
    assert [each.status for each in plan_videos([job.source], tmp_path)[1]] == ["kept"]
    assert [each.source for each in plan_videos([job.source], tmp_path, overwrite=True)[0]] == [job.source]
    with pytest.raises(FileExistsError, match=r"walk_classes\.csv exists"):
        segment_video(job.source, tmp_path, None)
    assert [job.name.name for job in plan_videos(inputs, tmp_path / "out", share=(1, 2))[0]] == [
        "drive.mp4",
        "camera0",
    ]


def test_label_maps_of_frames_are_no_photos(segmenter, drive, tmp_path):
    segment_video(drive, tmp_path, segmenter, VideoOptions(label_maps=True))
    jobs, outcomes = plan([tmp_path], tmp_path)
    assert not jobs and "no images in this folder" in outcomes[0].message
