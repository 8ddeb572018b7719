"""scripts/downloads.sh against a server on this machine that breaks off, refuses, and sends other things than asked."""

import fcntl
import os
import shutil
import subprocess
from pathlib import Path

import pytest
from server import WEB_PAGE, Server, archive, running_server

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = ROOT / "scripts" / "downloads.sh"
DETECTOR = "face_detection_yunet_2023mar.onnx"
WEIGHTS = bytes(range(256)) * 1000  # so that a piece at the wrong place shows
LFS_POINTER = (
    b"version https://git-lfs.github.com/spec/v1\noid sha256:8f2383e4dd3cfbb4553ea8718107fc0423210dc964f9f4280604\n"
)


@pytest.fixture
def server():
    with running_server() as server:
        yield server


@pytest.fixture
def download(server, tmp_path):
    """Runs the script for `what` with everything pointing at the server and at tmp_path/ava, and no pauses."""
    programs = tmp_path / "programs"
    programs.mkdir()
    (programs / "sleep").symlink_to(shutil.which("true"))

    def run(*what: str, script: Path = SCRIPT, **changes: str) -> subprocess.CompletedProcess[str]:
        environment = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
        environment |= {"HOME": str(tmp_path), "ASC_DATA_ROOT": str(tmp_path / "ava")}
        environment["PATH"] = f"{programs}:{environment['PATH']}"
        environment |= {f"ASC_{name}_URL": server.url + "/" for name in ("AVA", "UTILITY", "DETECTOR")} | changes
        return subprocess.run(
            ["bash", str(script), *what], env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=60
        )

    return run


def files_under(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def serve_annotations(server: Server) -> dict[str, bytes]:
    """Puts both archives on the server; returns the files they should become."""
    expected = {}
    for split, names in {"train": ("-5KQ66BBWC4", "abc_def"), "val": ("xyz",)}.items():
        members = {f"{split}/{name}-activespeaker.csv": f"{split} {name}\n".encode() for name in names}
        server.files[f"/annotations/ava_activespeaker_{split}_v1.0.tar.bz2"] = archive(members)
        expected |= {f"csv/{name}": body for name, body in members.items()}
    return expected


def test_annotations_are_unpacked_and_a_second_run_fetches_nothing(server, download, tmp_path):
    expected = serve_annotations(server)
    first = download("annotations")
    assert first.returncode == 0, first.stderr
    assert files_under(tmp_path / "ava") == expected  # so neither archives nor parts stay
    server.requests.clear()
    second = download("annotations")
    assert second.returncode == 0
    assert server.requests == []
    assert "csv/train (2 files)" in second.stderr
    assert files_under(tmp_path / "ava") == expected


def test_hostile_archive_members_are_left_out(server, download, tmp_path):
    serve_annotations(server)
    evil, good = b"evil", b"good"
    server.files["/annotations/ava_activespeaker_train_v1.0.tar.bz2"] = archive(
        {
            "train/good-activespeaker.csv": good,
            "../x-activespeaker.csv": evil,
            "train/../../../y-activespeaker.csv": evil,
            f"{tmp_path}/z-activespeaker.csv": evil,
            "train/.bashrc": evil,
            "train/a b-activespeaker.csv": evil,
            "link-activespeaker.csv/through-activespeaker.csv": good,
        },
        links={"link-activespeaker.csv": str(tmp_path)},
    )
    result = download("annotations")
    assert result.returncode == 0, result.stderr
    assert files_under(tmp_path / "ava/csv/train") == {
        "good-activespeaker.csv": good,
        "through-activespeaker.csv": good,
    }
    assert not any(path.is_symlink() for path in (tmp_path / "ava").rglob("*"))
    assert not any(list(tmp_path.rglob(f"{name}-activespeaker.csv")) for name in "xyz")
    assert evil not in files_under(tmp_path).values()
    assert result.stderr.count("left out of") == 6


@pytest.mark.parametrize("broken", [b"not an archive" * 50, archive({"train/README": b"nothing here"})])
def test_an_archive_without_annotations_leaves_no_folder(server, download, tmp_path, broken):
    expected = serve_annotations(server)
    path = "/annotations/ava_activespeaker_train_v1.0.tar.bz2"
    mended, server.files[path] = server.files[path], broken
    result = download("annotations")
    assert result.returncode == 1
    assert "csv/train: cannot be unpacked" in result.stderr
    assert list(files_under(tmp_path / "ava")) == ["csv/val/xyz-activespeaker.csv"]
    assert "Traceback" not in result.stderr
    server.files[path] = mended
    assert download("annotations").returncode == 0
    assert files_under(tmp_path / "ava") == expected


def test_a_transfer_that_breaks_off_goes_on_where_it_stopped(server, download, tmp_path):
    server.files |= {"/STE.pth": WEIGHTS, "/ASC.pth": WEIGHTS[::-1]}
    server.cut["/STE.pth"] = 1
    result = download("weights")
    assert result.returncode == 0, result.stderr
    assert files_under(tmp_path / "ava") == {"models/STE.pth": WEIGHTS, "models/ASC.pth": WEIGHTS[::-1]}
    assert [wanted for path, wanted in server.requests if path == "/STE.pth"] == [None, f"bytes={len(WEIGHTS) // 2}-"]


def test_a_server_without_ranges_is_asked_from_the_start_again(server, download, tmp_path):
    server.files |= {"/STE.pth": WEIGHTS, "/ASC.pth": WEIGHTS[::-1]}
    server.cut["/STE.pth"] = 1
    server.knows_ranges = False
    result = download("weights")
    assert result.returncode == 0, result.stderr
    assert files_under(tmp_path / "ava") == {"models/STE.pth": WEIGHTS, "models/ASC.pth": WEIGHTS[::-1]}


@pytest.mark.parametrize("left", [WEIGHTS[:7], WEIGHTS, WEIGHTS + b"of another file"])
def test_what_an_earlier_run_left_is_completed(server, download, tmp_path, left):
    server.files |= {"/" + DETECTOR: WEIGHTS}
    part = tmp_path / "ava/models" / f"{DETECTOR}.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(left)
    result = download("detector")
    assert result.returncode == 0, result.stderr
    assert files_under(tmp_path / "ava") == {f"models/{DETECTOR}": WEIGHTS}
    assert server.requests[0] == ("/" + DETECTOR, f"bytes={len(left)}-")


def test_a_server_that_always_breaks_off_leaves_a_part_only(server, download, tmp_path):
    server.files["/" + DETECTOR] = WEIGHTS
    server.cut["/" + DETECTOR] = 1000
    result = download("detector")
    assert result.returncode == 1
    assert "broke off" in result.stderr
    assert 2 <= len(server.requests) <= 10
    (name, left), *others = files_under(tmp_path / "ava").items()
    assert (name, others) == (f"models/{DETECTOR}.part", [])
    assert left == WEIGHTS[: len(left)] and len(WEIGHTS) // 2 < len(left) < len(WEIGHTS)


def test_a_missing_file_is_listed_and_the_others_are_fetched(server, download, tmp_path):
    for split in ("train", "test"):
        server.files[f"/ava_activespeaker_{split}_augmented.csv"] = f"{split}\n".encode()
    result = download("utility")
    assert result.returncode == 1
    assert files_under(tmp_path / "ava") == {
        "csv/ava_activespeaker_train_augmented.csv": b"train\n",
        "csv/ava_activespeaker_test_augmented.csv": b"test\n",
    }
    summary = result.stderr[result.stderr.index("error: 1 failed") :]
    assert "ava_activespeaker_val_augmented.csv: the server answered 404" in summary
    assert len(server.requests) == 3  # a 404 is not asked for again


def test_a_server_that_is_busy_is_asked_again(server, download, tmp_path):
    server.files["/" + DETECTOR] = WEIGHTS
    server.refusals["/" + DETECTOR] = [503]
    result = download("detector")
    assert result.returncode == 0, result.stderr
    assert files_under(tmp_path / "ava") == {f"models/{DETECTOR}": WEIGHTS}


@pytest.mark.parametrize(("wrong", "word"), [(WEB_PAGE, "web page"), (LFS_POINTER, "LFS pointer"), (b"", "empty file")])
def test_something_else_than_the_detector_is_refused(server, download, tmp_path, wrong, word):
    server.files["/" + DETECTOR] = wrong
    result = download("detector")
    assert result.returncode == 1
    assert word in result.stderr
    assert files_under(tmp_path / "ava") == {}
    server.files["/" + DETECTOR] = WEIGHTS
    assert download("detector").returncode == 0
    assert files_under(tmp_path / "ava") == {f"models/{DETECTOR}": WEIGHTS}


def test_films_are_fetched_and_hostile_names_are_not(server, download, tmp_path):
    films = {f"{name}": name.encode() * 1000 for name in ("-IELREHX_js.mp4", "abc.mkv", "a_b-c.webm", "last.mp4")}
    server.files |= {f"/trainval/{name}": body for name, body in films.items()}
    hostile = ["../evil.mp4", "sub/evil.mp4", "a b.mp4", "$(touch evil).mp4", ".mp4", "evil", "..", "évil.mp4"]
    names = ["missing.mp4", *films, *hostile]
    server.files["/annotations/ava_speech_file_names_v1.txt"] = "\r\n".join(names).encode()
    server.files |= {f"/trainval/{name}": b"evil" for name in hostile} | {"/evil.mp4": b"evil"}

    first = download("videos", ASC_DOWNLOAD_JOBS="3")
    assert first.returncode == 1
    assert files_under(tmp_path / "ava") == {
        "videos/ava_speech_file_names_v1.txt": server.files["/annotations/ava_speech_file_names_v1.txt"],
        **{f"videos/trainval/{name}": body for name, body in films.items()},
    }
    assert f"error: {len(hostile) + 1} failed" in first.stderr
    assert first.stderr.count("left out") == 2 * len(hostile)  # when it is met, and at the end
    assert "missing.mp4: the server answered 404" in first.stderr
    assert not list(tmp_path.rglob("*evil*"))

    server.requests.clear()
    server.files["/trainval/missing.mp4"] = b"found"
    second = download("videos")
    assert server.requests == [("/trainval/missing.mp4", None)]
    assert (tmp_path / "ava/videos/trainval/missing.mp4").read_bytes() == b"found"
    assert f"error: {len(hostile)} failed" in second.stderr


def test_films_of_val_are_those_that_it_has_annotations_of(server, download, tmp_path):
    serve_annotations(server)
    films = {name: name.encode() for name in ("-5KQ66BBWC4.mp4", "xyz.mkv", "other.mp4")}
    server.files |= {f"/trainval/{name}": body for name, body in films.items()}
    server.files["/annotations/ava_speech_file_names_v1.txt"] = "".join(f"{name}\n" for name in films).encode()
    early = download("videos-val")
    assert early.returncode == 1
    assert "annotations of no listed film: fetch them first" in early.stderr
    result = download("annotations", "videos-val")
    assert result.returncode == 0, result.stderr
    assert [path.name for path in (tmp_path / "ava/videos/trainval").iterdir()] == ["xyz.mkv"]


@pytest.mark.skipif(shutil.which("flock") is None, reason="without flock the script cannot tell")
def test_a_file_that_another_run_is_fetching_is_left_to_it(server, download, tmp_path):
    server.files["/" + DETECTOR] = WEIGHTS
    part = tmp_path / "ava/models" / f"{DETECTOR}.part"
    part.parent.mkdir(parents=True)
    with part.open("wb") as other:
        other.write(b"its bytes")
        other.flush()
        fcntl.flock(other, fcntl.LOCK_EX)
        result = download("detector")
    assert result.returncode == 1
    assert "another run" in result.stderr
    assert part.read_bytes() == b"its bytes"
    assert server.requests == []


def test_the_default_root_lies_in_the_project_wherever_it_is_called_from(server, download, tmp_path):
    project = tmp_path / "a project"
    for name in ("scripts/downloads.sh", "core/__init__.py", "core/config.py"):
        (project / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, project / name)
    server.files["/" + DETECTOR] = WEIGHTS
    result = download("detector", script=project / "scripts/downloads.sh", ASC_DATA_ROOT="ava")
    assert result.returncode == 0, result.stderr
    assert (project / "ava/models" / DETECTOR).read_bytes() == WEIGHTS
    assert not (tmp_path / "ava").exists()  # the working directory


def test_wrong_calls_are_refused_before_anything_is_fetched(server, download, tmp_path):
    nothing = download()
    assert nothing.returncode == 2 and nothing.stderr.startswith("usage:")
    unknown = download("detector", "films")
    assert unknown.returncode == 2 and "error: not known: films" in unknown.stderr
    jobs = download("videos", ASC_DOWNLOAD_JOBS="many")
    assert jobs.returncode == 2 and "ASC_DOWNLOAD_JOBS" in jobs.stderr
    (tmp_path / "bin").mkdir()
    for program in ("bash", "dirname", "cat"):
        (tmp_path / "bin" / program).symlink_to(shutil.which(program))
    bare = download("detector", PATH=str(tmp_path / "bin"))
    assert bare.returncode == 2 and "curl is missing" in bare.stderr
    assert server.requests == []
    asked = download("--help")
    assert asked.returncode == 0 and "ASC_DETECTOR_URL" in asked.stdout
