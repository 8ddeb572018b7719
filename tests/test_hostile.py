"""Malicious files do no harm, and unusual names work in every stage."""

import os
import time
import zlib
from pathlib import Path

import pytest
import torch
from conftest import Payload, assert_refused, printed, run_script
from processes import Fault, run, samples
from tiny_inputs import (
    Face,
    SmallEncoder,
    Track,
    faces_of,
    files_under,
    noise_features,
    read_csv,
    read_json,
    run_here,
    succeed,
    write_crops,
    write_encoder_inputs,
    write_store,
    write_text,
)

from core.formats.clips import read_crop
from core.formats.predictions import read_logits
from core.models import active_speakers_context
from core.runtime.errors import InputError

MEGABYTE = 1 << 20


def png(width: int, height: int, data: bytes) -> bytes:
    """A PNG with one channel and any compressed data."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        length, check = len(content).to_bytes(4, "big"), zlib.crc32(kind + content).to_bytes(4, "big")
        return length + kind + content + check

    head = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([8, 0, 0, 0, 0])
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def jpeg_head(width: int, height: int) -> bytes:
    """Header of a JPEG with one component."""
    frame = bytes([8]) + height.to_bytes(2, "big") + width.to_bytes(2, "big") + bytes([1, 1, 0x11, 0])
    table = b"\xff\xdb\x00\x43\x00" + bytes([1] * 64)
    return b"\xff\xd8" + table + b"\xff\xc0" + (len(frame) + 2).to_bytes(2, "big") + frame


@pytest.mark.parametrize("kind", ["png of 100,000 x 100,000", "png of 10,001 x 10,001", "jpeg of 65,000 x 65,000"])
def test_large_images_are_refused_before_decoding(tmp_path, kind):
    path = tmp_path / "10.0.jpg"
    contents = {
        "png of 100,000 x 100,000": lambda: png(100_000, 100_000, zlib.compress(bytes(100 * MEGABYTE))),
        "png of 10,001 x 10,001": lambda: png(10_001, 10_001, zlib.compress(bytes(10_002 * 10_001))),
        "jpeg of 65,000 x 65,000": lambda: jpeg_head(65_000, 65_000) + bytes(1000),
    }
    path.write_bytes(contents[kind]())
    with pytest.raises(InputError, match=r"10\.0\.jpg: cannot be read as an image: .*pixels\) exceeds limit"):
        read_crop(path)
    path.write_bytes(png(2_000, 1_000, zlib.compress(bytes(2_001 * 1_000))))
    assert read_crop(path).size == (2_000, 1_000)  # the same kind of file within the limit


@pytest.mark.parametrize("kind", ["EPS", "PPM", "GIF", "SVG"])
def test_only_jpeg_and_png_are_images(tmp_path, kind):
    """Pillow runs another program for PostScript."""
    texts = {
        "EPS": "%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 2 2\n(%pipe%touch touched) (w) file\n%%EOF\n",
        "PPM": "P3 1 1 255 0 0 0\n",
        "GIF": "GIF89a\x01\x00\x01\x00",
        "SVG": "<svg xmlns='http://www.w3.org/2000/svg'/>",
    }
    path = write_text(tmp_path / "10.0.jpg", texts[kind])
    with pytest.raises(InputError, match="cannot be read as an image"):
        read_crop(path)


@pytest.mark.slow
@pytest.mark.parametrize("form", ["plain", "quoted", "quoted lines", "header", "number"])
def test_a_field_of_100_megabytes_is_refused_within_seconds(tmp_path, form):
    line = "talk,1,0.1,0.2,0.3,0.6,NOT_SPEAKING,{}\n"
    big = "x" * (100 * MEGABYTE)
    texts = {
        "plain": line.format(big),
        "quoted": line.format(f'"{big}"'),
        "quoted lines": line.format('"' + "x" * 1000 + "\n" + "y\n" * (50 * MEGABYTE) + '"'),
        "header": f"video_id,{big}\n" + line.format("a"),
        "number": line.format("a").replace(",1,", f",{'1' * (100 * MEGABYTE)},"),
    }
    path = write_text(tmp_path / "talk-activespeaker.csv", texts[form])
    run(tmp_path / "printed", "STE_postprocessing.py", "--help")  # starts the server of processes, which takes seconds
    start = time.monotonic()
    fault = Fault(sample_at="core.runtime.cli._fail")
    result = run(tmp_path / "printed", "STE_postprocessing.py", "--ground-truth", path, fault=fault)
    assert_refused(result, path)
    assert len(result.stderr) < 1000
    assert time.monotonic() - start < 5
    ((_, peak_memory, _),) = samples(result)
    assert peak_memory < 1 << 30
    with pytest.raises(InputError):
        read_logits(tmp_path)


@pytest.mark.parametrize(
    "name", ["concat:a.mp4|b.mp4", "http:--127.0.0.1:9-x.mp4", "pipe:0.mp4", "subfile,,start,0.mp4"]
)
def test_file_names_are_never_protocols(tmp_path, name):
    (tmp_path / "videos").mkdir()
    write_text(tmp_path / "videos" / name, "not a video\n")
    result = run_here(
        "data/extract_audio_tracks.py", "--ava-video-dir", tmp_path / "videos", "--target-audios", tmp_path
    )
    assert result.returncode == 1
    (line,) = (tmp_path / "failures.txt").read_text().splitlines()
    assert line.startswith(f"{name.removesuffix('.mp4')}: cannot be opened as a video")
    assert not list(tmp_path.glob("*.wav"))


def test_crops_must_be_regular_files_of_limited_size(tmp_path):
    for name, make in {
        "pipe.jpg": os.mkfifo,
        "zero.jpg": lambda path: path.symlink_to("/dev/zero"),
        "huge.jpg": lambda path: os.truncate(path.open("w").name, 1 << 40),
        "folder.jpg": Path.mkdir,
    }.items():
        make(tmp_path / name)
        with pytest.raises(InputError, match=name):
            read_crop(tmp_path / name)


def test_a_truncated_jpeg_is_refused(tmp_path):
    write_crops(tmp_path, [Face("talk", "a", 1.0, 0)])
    path = tmp_path / "a" / "1.0.jpg"
    whole = path.read_bytes()
    assert read_crop(path).mode == "RGB"
    for size in (0, 1, 10, len(whole) // 2, len(whole) - 20):
        path.write_bytes(whole[:size])
        with pytest.raises(InputError, match=r"1\.0\.jpg: cannot be read as an image"):
            read_crop(path)


@pytest.mark.parametrize("key", ["model", "log", "rng"])
def test_code_in_a_checkpoint_is_not_executed(tmp_path, key):
    """And values of a wrong type are no traceback."""
    store = write_store(tmp_path / "features", faces_of([Track("a", "0110")]), noise_features)
    arguments = ("ASC_train.py", 3, 2, 2, "cpu", "--features-train-full", store, "--features-val-full", store)
    arguments = (*arguments, "--models-out", tmp_path / "out", "--epochs", 1, "--batch-size", 2)
    succeed(*arguments)
    path = tmp_path / "out" / "ASC_len_3_stride_2_speakers_2" / "last.ckpt"
    state, executed = torch.load(path, weights_only=True), tmp_path / "executed"
    torch.save({**state, key: Payload(executed)}, path)
    assert_refused(run_here(*arguments, "--resume"), path)
    assert not executed.exists()
    for other in ("text", 5, {}, []):
        torch.save({**state, key: other}, path)
        result = run_here(*arguments, "--resume")
        assert result.returncode in (0, 2), result
        assert "Traceback" not in result.stderr


def test_a_lock_is_not_written_through_a_link(weights, tmp_path):
    store = write_store(tmp_path / "features", faces_of([Track("a", "0110")]), noise_features)
    target = write_text(tmp_path / "target", "content\n")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / ".lock").symlink_to(target)
    arguments = ("ASC_forward.py", 3, 2, 2, "cpu", "--features-val-full", store, "--weights", weights / "ASC.pth")
    assert_refused(run_here(*arguments, "--output-dir", tmp_path / "out"), ".lock")
    assert target.read_text() == "content\n"


NAMES = ["-rf", " spaces in it ", "it's [a] *?", "%d%s%(x)s {0} $HOME `id`", "日本語 é", "C:con:1", "a" * 235]


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("weights")
    torch.save(SmallEncoder(1).state_dict(), root / "STE.pth")
    torch.save(active_speakers_context(3, 2).state_dict(), root / "ASC.pth")
    return root


def test_unusual_names_work_in_every_stage(weights, tmp_path):
    """Names of videos, entities and directories, from crops to plots."""
    tracks = [Track(f"{name}:1"[:235], "0110", 1.0, name) for name in NAMES]
    root = write_encoder_inputs(tmp_path, "val", tracks)
    features, out = tmp_path / "-odd %s dir", tmp_path / "results"
    crops = ("--audio-dir", root / "wavs", "--video-dir", root / "crops", "--csv", root / "val.csv")
    outputs = ("--predictions-csv", out / "p.csv", "--ground-truth-csv", out / "t.csv")
    truth = (*outputs, "--ground-truth", root / "val.csv")
    plots = ("--predictions", out / "p.csv", "--ground-truth", out / "t.csv", "--plots", out, "--json", out / "r.json")
    for command in (
        ("STE_forward.py", 1, "cpu", *crops, "--weights", weights / "STE.pth", "--output-dir", features),
        ("ASC_forward.py", 3, 2, 2, "cpu", "--features-val-full", features, "--weights", weights / "ASC.pth",
         "--output-dir", tmp_path / "asc"),
        ("ASC_prediction_postprocessing.py", "--predictions-dir", tmp_path / "asc", *truth),
        ("scripts/evaluate.py", *plots),
    ):  # fmt: skip
        succeed(*command)
    assert {path.stem for path in features.glob("*.npy")} == set(NAMES)
    assert {row[0] for row in read_csv(out / "p.csv")} == set(NAMES)
    assert read_json(out / "r.json")["rows"] == len(faces_of(tracks))
    assert [path for path in files_under(out) if path.startswith("scores_")]


def test_percent_signs_in_the_data_root_do_not_break_help():
    result = run_script("data/extract_audio_tracks.py", "--help", ASC_DATA_ROOT="50%s (x)", COLUMNS="300")
    assert "50%s (x)" in printed(result)


def test_control_characters_of_paths_are_escaped_in_messages(tmp_path):
    result = run_here("STE_postprocessing.py", "--ground-truth", tmp_path / "a\nb\x1b[31m")
    assert_refused(result, "a\\nb\\x1b[31m: no such file")
    assert "\x1b" not in result.stderr
    assert_refused(run_here("STE_postprocessing.py", "--nonsense\n"), "unrecognized arguments: --nonsense\\n")
