"""scripts/downloads.sh with a local server that is interrupted, or serves wrong content."""

import hashlib
import os
import re
import shutil
import signal
import subprocess
from pathlib import Path

import pytest
from conftest import ROOT, wait_for
from server import Server, archive, running_server

SCRIPT = ROOT / "scripts" / "downloads.sh"
DETECTOR = "face_detection_yunet_2023mar.onnx"
WEIGHTS = {"models/STE.pth": bytes(range(256)) * 1000, "models/ASC.pth": bytes(range(255, -1, -1)) * 1000}


@pytest.fixture
def server():
    with running_server() as server:
        server.files |= {f"/{Path(name).name}": body for name, body in WEIGHTS.items()}
        yield server


class Downloads:
    """Runs the script with all its servers replaced by `server`. curl retries only once, to save time."""

    def __init__(self, server: Server, folder: Path):
        self.folder = folder
        programs = folder / "programs"
        programs.mkdir()
        curl = programs / "curl"
        curl.write_text(f'#!/bin/sh\nexec "{shutil.which("curl")}" "$@" --retry 1 --retry-delay 1\n')
        curl.chmod(0o755)
        self.environment = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
        self.environment |= {"ASC_DATA_ROOT": str(self.root), "PATH": f"{programs}:{os.environ['PATH']}"}
        self.environment |= {f"ASC_{name}_URL": server.url + "/" for name in ("AVA", "UTILITY", "DETECTOR", "LR_ASD")}

    @property
    def root(self) -> Path:
        return self.folder / "ava"

    def start(self, *items: str, script: Path = SCRIPT, **changes: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            ["bash", str(script), *items],
            env=self.environment | changes,
            cwd=self.folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def run(self, *items: str, status: int = 0, **changes) -> list[str]:
        """Returns the lines printed to stderr."""
        process = self.start(*items, **changes)
        _, stderr = process.communicate(timeout=60)
        assert process.returncode == status, stderr
        return stderr.splitlines()

    def files(self) -> dict[str, bytes]:
        return {str(path.relative_to(self.root)): path.read_bytes() for path in self.root.rglob("*") if path.is_file()}


@pytest.fixture
def downloads(server, tmp_path):
    return Downloads(server, tmp_path)


def serve_annotations(server: Server) -> dict[str, bytes]:
    """Serve both archives. Returns the files that they contain."""
    expected = {}
    for split, names in {"train": ("-5KQ66BBWC4", "abc_def"), "val": ("xyz",)}.items():
        members = {f"{split}/{name}-activespeaker.csv": f"{split} {name}\n".encode() for name in names}
        server.files[f"/annotations/ava_activespeaker_{split}_v1.0.tar.bz2"] = archive(members)
        expected |= {f"csv/{name}": body for name, body in members.items()}
    return expected


def serve_videos(server: Server, names: list[str]) -> dict[str, bytes]:
    """Serve a list of names, and a file for each. Returns the files to be downloaded."""
    names_list = "\r\n".join(names).encode()
    server.files["/annotations/ava_speech_file_names_v1.txt"] = names_list
    server.files |= {f"/trainval/{name}": name.encode() * 1000 for name in names}
    expected = {f"videos/trainval/{name}": name.encode() * 1000 for name in names}
    return {"videos/ava_speech_file_names_v1.txt": names_list, **expected}


class TestAnnotations:
    def test_archives_are_unpacked_once(self, server, downloads):
        expected = serve_annotations(server)
        downloads.run("annotations")
        assert downloads.files() == expected
        server.requests.clear()
        downloads.run("annotations")
        assert server.requests == []
        assert downloads.files() == expected

    def test_links_and_other_files_are_not_extracted(self, server, downloads):
        serve_annotations(server)
        names = ("train/good-activespeaker.csv", "train/.bashrc", "a b-activespeaker.csv")
        members = dict.fromkeys(names, b"")
        links = {"train/link-activespeaker.csv": str(downloads.folder)}
        server.files["/annotations/ava_activespeaker_train_v1.0.tar.bz2"] = archive(members, links)
        downloads.run("annotations")
        assert [path.name for path in (downloads.root / "csv" / "train").iterdir()] == ["good-activespeaker.csv"]

    @pytest.mark.parametrize(
        "content",
        [
            b"not an archive" * 50,
            archive({}, {"train/link-activespeaker.csv": "/etc/passwd"}),
            archive({"train/../../../evil-activespeaker.csv": b"evil"}),
            archive({"link-activespeaker.csv/evil-activespeaker.csv": b"evil"}, {"link-activespeaker.csv": "../../.."}),
        ],
    )
    def test_unusable_archives_are_deleted(self, server, downloads, content):
        expected = serve_annotations(server)
        path = "/annotations/ava_activespeaker_train_v1.0.tar.bz2"
        usable, server.files[path] = server.files[path], content
        lines = downloads.run("annotations", status=1)
        assert any(line.startswith("failed: csv/train: cannot be unpacked") for line in lines)
        assert list(downloads.files()) == ["csv/val/xyz-activespeaker.csv"]
        assert not list(downloads.folder.rglob("evil*"))
        server.files[path] = usable
        downloads.run("annotations")
        assert downloads.files() == expected


class TestInterruptions:
    def test_a_broken_connection_is_retried(self, server, downloads):
        server.cut["/STE.pth"] = 1
        downloads.run("weights")
        assert downloads.files() == WEIGHTS

    def test_the_next_run_resumes(self, server, downloads):
        server.cut["/STE.pth"] = 2
        lines = downloads.run("weights", status=1)
        assert [line.startswith("failed: models/STE.pth: ") for line in lines] == [True, False]
        half = len(WEIGHTS["models/STE.pth"]) // 2
        part = {"models/STE.pth.part": WEIGHTS["models/STE.pth"][:half]}
        assert downloads.files() == {"models/ASC.pth": WEIGHTS["models/ASC.pth"], **part}
        server.requests.clear()
        downloads.run("weights")
        assert server.requests == [("/STE.pth", f"bytes={half}-")]
        assert downloads.files() == WEIGHTS

    @pytest.mark.parametrize(("size", "ranges"), [(7, False), (256_000, True)])
    def test_a_file_that_cannot_be_resumed_starts_again_in_the_next_run(self, server, downloads, size, ranges):
        server.supports_ranges = ranges
        part = downloads.root / "models" / "STE.pth.part"
        part.parent.mkdir(parents=True)
        part.write_bytes(b"x" * size)
        downloads.run("weights", status=1)
        downloads.run("weights")
        assert downloads.files() == WEIGHTS

    def test_a_killed_run_leaves_whole_files_and_parts(self, server, downloads):
        expected = serve_videos(server, ["whole.mp4", "stalled.mp4"])
        server.stalled.add("/trainval/stalled.mp4")
        process = downloads.start("videos")
        whole, part = (downloads.root / "videos" / "trainval" / name for name in ("whole.mp4", "stalled.mp4.part"))
        wait_for(lambda: whole.exists() and part.exists() and part.stat().st_size, 20)
        lines = downloads.run("weights", status=2)
        assert lines == [f"error: another download to {downloads.root} is running"]
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        assert whole.read_bytes() == expected["videos/trainval/whole.mp4"]
        server.stalled.clear()
        server.requests.clear()
        size = part.stat().st_size
        downloads.run("videos")
        assert server.requests == [("/trainval/stalled.mp4", f"bytes={size}-")]
        assert downloads.files() == expected


def test_missing_files_are_listed(server, downloads):
    for split in ("train", "test"):
        server.files[f"/ava_activespeaker_{split}_augmented.csv"] = b"rows"
    lines = downloads.run("utility", status=1)
    assert sorted(downloads.files()) == [f"csv/ava_activespeaker_{split}_augmented.csv" for split in ("test", "train")]
    assert lines[0].startswith("failed: csv/ava_activespeaker_val_augmented.csv: ")
    assert "404" in lines[0]
    assert lines[1:] == ["error: some downloads failed; run the same command again to retry"]


@pytest.mark.parametrize("content", [b"<!DOCTYPE html>", b""])
def test_files_with_another_checksum_are_deleted(server, downloads, content):
    server.files |= dict.fromkeys((f"/{DETECTOR}", "/pretrain_AVA.model", "/finetuning_TalkSet.model"), content)
    lines = downloads.run("detector", "lr-asd", status=1)
    assert sum("wrong SHA-256" in line for line in lines) == 3
    assert not any(downloads.files().values())


def test_weights_of_lr_asd(server, downloads, test_data):
    expected = {}
    for name in ("pretrain_AVA.model", "finetuning_TalkSet.model"):
        content = (test_data / "models" / f"lr_asd_{name}").read_bytes()
        server.files[f"/{name}"] = expected[f"models/lr_asd/{name}"] = content
    downloads.run("lr-asd")
    assert downloads.files() == expected


class TestVideos:
    def test_invalid_names_are_skipped(self, server, downloads):
        names = ["-IELREHX_js.mp4", "abc.mkv", "a_b-c.webm"]
        invalid = ["../evil.mp4", "sub/evil.mp4", "a b.mp4", "$(touch evil).mp4", ".mp4", "evil", "..", "évil.mp4"]
        expected = serve_videos(server, [*names, *invalid])
        downloads.run("videos")
        kept = ["videos/ava_speech_file_names_v1.txt", *(f"videos/trainval/{name}" for name in names)]
        assert downloads.files() == {name: expected[name] for name in kept}

    def test_validation_videos_are_those_with_annotations(self, server, downloads):
        serve_annotations(server)
        serve_videos(server, ["-5KQ66BBWC4.mp4", "xyz.mkv", "other.mp4"])
        lines = downloads.run("videos-val", status=1)
        assert "download the annotations first" in lines[0]
        downloads.run("annotations", "videos-val")
        assert [path.name for path in (downloads.root / "videos" / "trainval").iterdir()] == ["xyz.mkv"]


def test_the_default_directory_is_in_the_project(server, downloads):
    """With a copy of the script that expects the checksum of the served detector."""
    server.files["/" + DETECTOR] = b"detector"
    script = downloads.folder / "a project" / "scripts" / "downloads.sh"
    script.parent.mkdir(parents=True)
    checksum = hashlib.sha256(b"detector").hexdigest()
    script.write_text(re.sub(r"[0-9a-f]{64}", checksum, SCRIPT.read_text()))
    downloads.run("detector", script=script, ASC_DATA_ROOT="")
    assert (script.parent.parent / "ava" / "models" / DETECTOR).read_bytes() == b"detector"
    assert not downloads.root.exists()


def test_invalid_arguments_are_errors(server, downloads):
    assert downloads.run(status=2)[0].startswith("usage: ")
    assert "videos2" in downloads.run("weights", "videos2", status=2)[0]
    assert downloads.run("--help") == []
    assert server.requests == []
