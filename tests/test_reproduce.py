"""scripts/reproduce.sh on a mini AVA that a server on this machine serves as AVA is served."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import ROOT, run_script
from server import Server, archive, running_server
from tiny_inputs import digests
from torchvision.models import ResNet18_Weights, resnet18

from core.models import active_speakers_context, short_term_encoder

SCRIPT = ROOT / "scripts" / "reproduce.sh"


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """Serves two films of six seconds, their annotations, and weights of both networks."""
    root = tmp_path_factory.mktemp("served")
    made = run_script("scripts/make_mini_ava.py", "--root", root, "--videos", 2, "--seconds", 6, "--seed", 5)
    assert made.returncode == 0, made.stderr
    films = sorted((root / "videos" / "trainval").iterdir())
    torch.manual_seed(0)
    torch.save(short_term_encoder(11).state_dict(), root / "STE.pth")
    torch.save(active_speakers_context(11, 3).state_dict(), root / "ASC.pth")
    with running_server() as server:
        for split in ("train", "val"):
            csvs = {f"{split}/{csv.name}": csv.read_bytes() for csv in (root / "csv" / split).iterdir()}
            server.files[f"/annotations/ava_activespeaker_{split}_v1.0.tar.bz2"] = archive(csvs)
        names = "".join(f"{film.name}\n" for film in films)
        server.files["/annotations/ava_speech_file_names_v1.txt"] = names.encode()
        server.files |= {f"/trainval/{film.name}": film.read_bytes() for film in films}
        server.files |= {f"/{name}": (root / name).read_bytes() for name in ("STE.pth", "ASC.pth")}
        yield server


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """Where torch finds ImageNet's weights: random ones, under their name."""
    home = tmp_path_factory.mktemp("home")
    (home / "hub" / "checkpoints").mkdir(parents=True)
    torch.manual_seed(0)
    name = ResNet18_Weights.IMAGENET1K_V1.url.rpartition("/")[2]
    torch.save(resnet18(weights=None).state_dict(), home / "hub" / "checkpoints" / name)
    return home


class Run:
    """One run of the script in a session of its own, as far as it has come."""

    def __init__(self, server: Server, home: Path, printed: Path, *args: object, **changes: str):
        inherited = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
        places = {"ASC_AVA_URL": server.url, "ASC_UTILITY_URL": server.url, "TORCH_HOME": str(home)}
        sizes = {"REPRODUCE_STE_EPOCHS": "2", "REPRODUCE_ASC_EPOCHS": "1", "OMP_NUM_THREADS": "2"}
        self.printed = printed
        with open(printed, "w") as out:
            self.process = subprocess.Popen(
                ["bash", str(SCRIPT), "--device", "cpu", *map(str, args)],
                env={**inherited, **places, **sizes, **changes},
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def text(self) -> str:
        return self.printed.read_text(errors="replace")

    def end(self) -> int:
        """Wait for it. Returns its exit status."""
        return self.process.wait(timeout=400)

    def signal_once(self, number: int, come: Callable[[], bool]) -> int:
        """Send a signal to all of it, as a terminal does, as soon as something has come. Returns its exit status."""
        end = time.monotonic() + 200
        while not come():
            assert self.process.poll() is None and time.monotonic() < end, self.text
            time.sleep(0.01)
        os.killpg(self.process.pid, number)
        return self.process.wait(timeout=60)


def expectations(text: str) -> dict[str, str]:
    """Name of a stage -> the line of what it should say, which stands right after what it says."""
    return dict(re.findall(r"^== (.*)\n(?:(?!== ).*\n)*?on AVA: (.*)\n", text, re.M))


def maps(text: str) -> list[str]:
    return re.findall(r"^official mAP: (\d+\.\d+) ", text, re.M)


@pytest.fixture(scope="module")
def reproduced(server, home, tmp_path_factory) -> tuple[Path, str]:
    """The root, and what the second run printed: the first was killed after the encoder's first epoch.

    The second has no ImageNet weights, which it does not need, and a decimal comma where this machine can make one.
    """
    folder = tmp_path_factory.mktemp("reproduced")
    root = folder / "ava"
    first = Run(server, home, folder / "first", "--root", root)
    first.signal_once(signal.SIGKILL, (root / "models" / "ste_encoder" / "last.ckpt").exists)
    comma = {}
    if shutil.which("localedef"):
        made = subprocess.run(["localedef", "-i", "de_DE", "-f", "UTF-8", str(folder / "de_DE.UTF-8")], check=False)
        comma = {"LOCPATH": str(folder), "LC_ALL": "de_DE.UTF-8"} if made.returncode == 0 else {}
    nothing = {"TORCH_HOME": str(folder / "nothing"), "https_proxy": "http://127.0.0.1:9"}
    second = Run(server, home, folder / "second", "--root", root, **nothing, **comma)
    assert second.end() == 0, second.text[-3000:]
    return root, second.text


class TestWhole:
    def test_every_stage_is_followed_by_what_it_should_say(self, reproduced):
        found = expectations(reproduced[1])
        for start, expected in {
            "1 ": "153 wavs",
            "2 Audio slices, train": "29723 slices",
            "2 Audio slices, val": "8015 slices",
            "3 Face crops, train": "2676314 crops",
            "3 Face crops, val": "768307 crops",
            "4 ": "100 epochs done",
            "5 Features, train": "features of 120 videos",
            "5 Features, val": "features of 33 videos",
            "6 ": "official mAP: 79.5",
            "7 ": "15 epochs done",
            "8 ": "predictions of 33 videos",
            "9 ": "official mAP: 87.1 in the paper, 83.6 as others (WASD) retrained it",
        }.items():
            (line,) = (line for name, line in found.items() if name.startswith(start))
            assert line.startswith(expected)

    def test_what_a_stage_should_say_is_how_stages_speak(self, reproduced):
        """Else nobody could compare: each expected line but for its figures is one that was printed."""
        said = re.sub(r"\d+(\.\d+)?", "N", reproduced[1])
        for phrase in ("N epochs done", "features of N videos", "predictions of N videos", "official mAP: N"):
            assert len(re.findall(rf"^{phrase}", said, re.M)) >= 1
        assert len(re.findall(r"^N (wavs|slices|crops) written, N skipped, N failed", said, re.M)) == 5
        users, here = re.search(r"^ {8}(train .*)\nhere:   (train .*)$", reproduced[1], re.M).groups()
        shape = [re.sub(r"\d\.\d{4}", "N", line) for line in (users, here)]
        assert shape[0] == shape[1]

    def test_first_epoch_is_that_of_the_log(self, reproduced):
        root, printed = reproduced
        first = (root / "models" / "ste_encoder" / "ste_encoder_logs.csv").read_text().splitlines()[1].split(",")
        here = re.search(r"^here: .*$", printed, re.M)[0]
        assert re.findall(r"\d\.\d{4}", here) == [f"{float(value or 0):.4f}" for value in first[2:]]

    def test_goes_on_where_it_was_killed(self, reproduced):
        root, printed = reproduced
        assert "resuming after epoch 1" in printed
        assert re.findall(r"^(\d+) (?:wavs|slices|crops) written", printed, re.M) == ["0"] * 5
        assert sorted(path.name for path in (root / "models" / "ste_encoder").glob("*.pth")) == ["1.pth", "2.pth"]

    def test_starts_from_imagenet_and_has_the_paper_s_settings(self, reproduced):
        settings = json.loads((reproduced[0] / "models" / "ste_encoder" / "ste_encoder_cfg.json").read_text())
        assert settings["no_pretrained"] is False
        assert (settings["batch_size"], settings["learning_rate"], settings["step_size"]) == (128, 3e-4, 40)
        (run,) = (reproduced[0] / "models").glob("ASC_*")
        assert run.name == "ASC_len_11_stride_4_speakers_3"
        settings = json.loads((run / f"{run.name}_cfg.json").read_text())
        assert (settings["batch_size"], settings["learning_rate"], settings["step_size"]) == (64, 3e-6, 10)

    def test_ends_with_both_map(self, reproduced):
        root, printed = reproduced
        saved = json.loads((root / "results" / "asc_predictions_val_report.json").read_text())["predictions"]
        ste, asc = (f"{100 * saved[f'{name}_predictions_val']['mAP']:.2f}" for name in ("ste", "asc"))
        assert maps(printed) == [ste, asc]


def test_published_weights_train_nothing_and_need_val_alone(server, home, tmp_path):
    root = tmp_path / "ava"
    first = Run(server, home, tmp_path / "first", "--root", root, "--published-weights")
    assert first.end() == 0, first.text[-3000:]
    assert not re.search(r"^\$ .*(train\.py|--split train)", first.text, re.M)
    assert len(list((root / "videos" / "trainval").iterdir())) == 1
    assert sorted(path.name for path in (root / "models").iterdir()) == ["ASC.pth", "STE.pth"]
    assert not (root / "instance_crops_time" / "train").exists()
    settings = json.loads((root / "ste_features_published" / "val" / "STE_forward_cfg.json").read_text())
    assert settings["weights"].endswith("models/STE.pth")
    found = expectations(first.text)
    assert [line for name, line in found.items() if name[0] in "69"] == [
        "official mAP: 79.5, as a user of the released code measured it",
        "official mAP: 87.1 in the paper",
    ]
    assert len(maps(first.text)) == 2
    made = ("models", "ste_features_published", "asc_predictions_published", "instance_*", "audio_tracks")
    before = {name: digests(root, f"{name}/**/*") for name in made}
    times = {path: path.stat().st_mtime_ns for path in root.rglob("*.npy")}
    asked = len(server.requests)
    again = Run(server, home, tmp_path / "again", "--root", root, "--published-weights")
    assert again.end() == 0, again.text[-3000:]
    assert maps(again.text) == maps(first.text)
    assert {name: digests(root, f"{name}/**/*") for name in made} == before
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*.npy")} == times
    assert len(server.requests) == asked


class TestFailures:
    def test_bad_options_end_it_before_anything_is_fetched(self, server, home, tmp_path):
        asked = len(server.requests)
        for args, status, words in (
            (("--epochs", 3), 2, "usage:"),
            (("--device",), 2, "error: --device needs a value"),
            (("--device", "gpu"), 2, "error: must be the number of a CUDA device or cpu"),
            (("--device", 99), 2, "error: cuda_device 99"),
        ):
            run = Run(server, home, tmp_path / "printed", "--root", tmp_path / "ava", *args)
            assert run.end() == status
            assert words in run.text
        assert len(server.requests) == asked
        assert not (tmp_path / "ava").exists()

    def test_ctrl_c_ends_it_in_one_line_that_says_how_to_go_on(self, server, home, tmp_path):
        with socket.create_server(("127.0.0.1", 0)) as silent:
            url = f"http://127.0.0.1:{silent.getsockname()[1]}"
            run = Run(server, home, tmp_path / "printed", "--root", tmp_path / "ava", ASC_AVA_URL=url)
            assert run.signal_once(signal.SIGINT, lambda: "downloads.sh" in run.text) == 130
        assert run.text.splitlines()[-1] == "interrupted: the same command goes on"

    def test_damaged_imagenet_weights_end_it_before_anything_is_fetched(self, server, tmp_path):
        asked = len(server.requests)
        checkpoints = tmp_path / "home" / "hub" / "checkpoints"
        checkpoints.mkdir(parents=True)
        name = ResNet18_Weights.IMAGENET1K_V1.url.rpartition("/")[2]
        (checkpoints / name).write_bytes(b"cut off")
        run = Run(server, tmp_path / "home", tmp_path / "printed", "--root", tmp_path / "ava")
        assert run.end() == 2
        assert re.match(f"error: .*{name}", run.text.splitlines()[-1])
        assert len(server.requests) == asked

    def test_films_that_cannot_be_fetched_or_read_end_it(self, server, home, tmp_path):
        """With the exit status of the stage that failed, and before anything is trained."""
        films = {name: server.files.pop(name) for name in list(server.files) if name.startswith("/trainval/")}
        try:
            run = Run(server, home, tmp_path / "printed", "--root", tmp_path / "ava")
            assert run.end() == 1
            assert 'error: "Annotations and films" ended with exit status 1' in run.text.splitlines()[-1]
            server.files |= films | {sorted(films)[0]: b"no film at all"}
            run = Run(server, home, tmp_path / "printed", "--root", tmp_path / "ava")
            assert run.end() == 1
            assert "1 wavs written, 0 skipped, 1 failed" in run.text
            assert 'error: "1 Audio tracks" ended with exit status 1' in run.text.splitlines()[-1]
            assert not (tmp_path / "ava" / "models").exists()
        finally:
            server.files |= films

    def test_damaged_weights_are_found_before_films_are_fetched(self, server, home, tmp_path):
        whole = server.files["/ASC.pth"]
        server.files["/ASC.pth"] = whole[:1000]
        try:
            run = Run(server, home, tmp_path / "printed", "--root", tmp_path / "ava", "--published-weights")
            assert run.end() == 2
            assert re.match(r"error: .*ASC\.pth: .*remove it", run.text.splitlines()[-1])
            assert not (tmp_path / "ava" / "videos").exists()
        finally:
            server.files["/ASC.pth"] = whole
