"""scripts/reproduce.sh on a mini AVA, downloaded from a local server."""

import json
import os
import re
import signal
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import ROOT, printed, run_script, wait_for
from server import Server, archive, running_server
from torchvision.models import ResNet18_Weights, resnet18

from core.models import active_speakers_context, short_term_encoder

pytestmark = pytest.mark.slow
SCRIPT = ROOT / "scripts" / "reproduce.sh"
IMAGENET = Path("hub", "checkpoints", ResNet18_Weights.IMAGENET1K_V1.url.rpartition("/")[2])


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """Serves two videos of two seconds, their annotations, and weights of both networks."""
    root = tmp_path_factory.mktemp("served")
    printed(run_script("scripts/make_mini_ava.py", "--root", root, "--videos", 2, "--seconds", 2, "--seed", 5))
    videos = sorted((root / "videos" / "trainval").iterdir())
    torch.manual_seed(0)
    torch.save(short_term_encoder(11).state_dict(), root / "STE.pth")
    torch.save(active_speakers_context(11, 3).state_dict(), root / "ASC.pth")
    with running_server() as server:
        for split in ("train", "val"):
            csvs = {f"{split}/{csv.name}": csv.read_bytes() for csv in (root / "csv" / split).iterdir()}
            server.files[f"/annotations/ava_activespeaker_{split}_v1.0.tar.bz2"] = archive(csvs)
        names = "".join(f"{video.name}\n" for video in videos)
        server.files["/annotations/ava_speech_file_names_v1.txt"] = names.encode()
        server.files |= {f"/trainval/{video.name}": video.read_bytes() for video in videos}
        server.files |= {f"/{name}": (root / name).read_bytes() for name in ("STE.pth", "ASC.pth")}
        yield server


@pytest.fixture(scope="module")
def torch_home(tmp_path_factory) -> Path:
    """A TORCH_HOME with random weights in place of ImageNet's."""
    home = tmp_path_factory.mktemp("torch_home")
    (home / IMAGENET).parent.mkdir(parents=True)
    torch.manual_seed(0)
    torch.save(resnet18(weights=None).state_dict(), home / IMAGENET)
    return home


class Run:
    """The script, running as the leader of a session."""

    def __init__(self, server: Server, torch_home: Path, log: Path, *args: object, **changes: str):
        inherited = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
        paths = {"ASC_AVA_URL": server.url, "ASC_UTILITY_URL": server.url, "TORCH_HOME": str(torch_home)}
        sizes = {"REPRODUCE_STE_EPOCHS": "2", "REPRODUCE_ASC_EPOCHS": "1", "OMP_NUM_THREADS": "2"}
        self.log = log
        with open(log, "w") as out:
            self.process = subprocess.Popen(
                ["bash", str(SCRIPT), "--device", "cpu", *map(str, args)],
                env={**inherited, **paths, **sizes, **changes},
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def text(self) -> str:
        return self.log.read_text(errors="replace")

    @property
    def last_line(self) -> str:
        return self.text.splitlines()[-1]

    def wait(self) -> int:
        """Wait for the script to end and return its exit status."""
        return self.process.wait(timeout=900)

    def send_signal(self, number: int, condition: Callable[[], bool]) -> int:
        """Send a signal to the whole session when a condition is true. Returns the exit status."""
        wait_for(condition, 200, lambda: self.process.poll() is None, lambda: self.text)
        os.killpg(self.process.pid, number)
        return self.process.wait(timeout=60)


def official_maps(text: str) -> list[str]:
    return re.findall(r"^official mAP: (\d+\.\d+) ", text, re.M)


@pytest.fixture(scope="module")
def reproduced(server, torch_home, tmp_path_factory) -> tuple[Path, str]:
    """Returns the data directory and the text printed by a run that resumes a killed one.

    The first run is killed after the first epoch of the encoder. The second has no ImageNet weights, which it does not
    need.
    """
    directory = tmp_path_factory.mktemp("reproduced")
    root = directory / "ava"
    first = Run(server, torch_home, directory / "first", "--root", root)
    first.send_signal(signal.SIGKILL, (root / "models" / "ste_encoder" / "last.ckpt").exists)
    second = Run(server, directory / "empty", directory / "second", "--root", root, https_proxy="http://[::1]:9")
    assert second.wait() == 0, second.text[-3000:]
    return root, second.text


class TestTraining:
    def test_expected_output_has_the_form_of_real_output(self, reproduced):
        output, expected = reproduced[1].split("== Expected on AVA")
        for form in (
            r"\d+ wavs",
            r"\d+ slices",
            r"\d+ crops",
            r"features of \d+ of \d+ videos",
            r"predictions of \d+ videos",
        ):
            assert re.search(form, output)
            assert re.search(form, expected)
        assert expected.count("official mAP") == 2
        log = (reproduced[0] / "models" / "ste_encoder" / "ste_encoder_logs.csv").read_text()
        assert re.findall(r"(\w+) 0\.\d{4}", expected) == log.splitlines()[0].split(",")[2:]

    def test_a_killed_run_is_resumed(self, reproduced):
        root, text = reproduced
        assert "resuming after epoch 1" in text
        assert re.findall(r"^(\d+) (?:wavs|slices|crops) written", text, re.M) == ["0"] * 5
        assert sorted(path.name for path in (root / "models" / "ste_encoder").glob("[0-9]*.pth")) == ["1.pth", "2.pth"]

    def test_both_maps_are_printed_and_saved(self, reproduced):
        root, text = reproduced
        saved = json.loads((root / "results" / "asc_predictions_val_report.json").read_text())["predictions"]
        assert official_maps(text) == [
            f"{100 * saved[f'{name}_predictions_val']['mAP']:.2f}" for name in ("ste", "asc")
        ]


def test_published_weights_need_no_training_and_only_validation_data(server, torch_home, tmp_path):
    root = tmp_path / "ava"
    run = Run(server, torch_home, tmp_path / "log", "--root", root, "--published-weights")
    assert run.wait() == 0, run.text[-3000:]
    assert not re.search(r"^\$ .*(train\.py|--split train)", run.text, re.M)
    assert len(list((root / "videos" / "trainval").iterdir())) == 1
    assert sorted(path.name for path in (root / "models").iterdir()) == ["ASC.pth", "STE.pth"]
    assert not (root / "instance_crops_time" / "train").exists()
    settings = json.loads((root / "ste_features_published" / "val" / "STE_forward_cfg.json").read_text())
    assert settings["weights"].endswith("models/STE.pth")
    assert len(official_maps(run.text)) == 2


class TestErrors:
    @pytest.mark.parametrize(
        ("args", "message"),
        [
            (("--epochs", 3), "usage:"),
            (("--device",), "usage:"),
            (("--device", "gpu"), "must be the number of a CUDA device or cpu"),
            (("--device", 99), "error: cuda_device 99"),
        ],
    )
    def test_invalid_options_before_any_download(self, server, torch_home, tmp_path, args, message):
        server.requests.clear()
        run = Run(server, torch_home, tmp_path / "log", "--root", tmp_path / "ava", *args)
        assert run.wait() == 2
        assert message in run.text
        assert server.requests == []
        assert not (tmp_path / "ava").exists()

    def test_damaged_imagenet_weights_before_any_download(self, server, tmp_path):
        server.requests.clear()
        (tmp_path / "home" / IMAGENET).parent.mkdir(parents=True)
        (tmp_path / "home" / IMAGENET).write_bytes(b"damaged")
        run = Run(server, tmp_path / "home", tmp_path / "log", "--root", tmp_path / "ava")
        assert run.wait() == 2
        assert re.match(f"error: .*{IMAGENET.name}", run.last_line)
        assert server.requests == []

    def test_missing_and_unreadable_videos(self, server, torch_home, tmp_path):
        """Each ends the script with the exit status of the failed step, before training."""
        videos = {name: server.files.pop(name) for name in list(server.files) if name.startswith("/trainval/")}
        try:
            missing = Run(server, torch_home, tmp_path / "log", "--root", tmp_path / "ava")
            assert missing.wait() == 1
            assert missing.last_line.startswith("error: some downloads failed")
            server.files |= videos | {sorted(videos)[0]: b"not a video"}
            unreadable = Run(server, torch_home, tmp_path / "log", "--root", tmp_path / "ava")
            assert unreadable.wait() == 1
            assert "1 wavs written, 0 skipped, 1 failed" in unreadable.text
            assert unreadable.last_line.startswith("error: stage 1 (Audio tracks) ended with exit status 1")
            assert not (tmp_path / "ava" / "models").exists()
        finally:
            server.files |= videos

    def test_ctrl_c(self, server, torch_home, tmp_path):
        with socket.create_server(("127.0.0.1", 0)) as silent:
            silent.settimeout(200)
            url = f"http://127.0.0.1:{silent.getsockname()[1]}"
            run = Run(server, torch_home, tmp_path / "log", "--root", tmp_path / "ava", ASC_AVA_URL=url)
            with silent.accept()[0]:  # curl is running
                assert run.send_signal(signal.SIGINT, lambda: True) == 130
        assert run.last_line == "interrupted; run the same command again to resume"
