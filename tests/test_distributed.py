"""Several ranks do one stage together: what they make is what one process makes, and all end when one does.

Ranks are processes of their own that meet over gloo, as torchrun starts them; where torchrun itself matters, it does.
"""

import functools
import os
import re
import runpy
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, assert_refused
from processes import Fault, free_port, run, run_ranks, start_ranks
from stages import DATA, FORWARD, TRAINING, command, make_inputs, results
from tiny_inputs import Track, digests, files_under, read_csv, read_json, write_text

from core.loaders import DistributedBatchSampler, EpochSampler
from core.runtime import distributed

TRACKS = [
    Track("one:a", "0110", 0.4, "one"),
    Track("one:b", "2200011", 0.52, "one"),
    Track("two:a", "1" * 30, 0.0, "two"),
    Track("two:b", "011", 1.0, "two"),
    Track("three:a", "01" * 6, 0.2, "three"),
    Track("four:a", "00110", 0.2, "four"),
    Track("four:b", "10", 0.2, "four"),
]
ROWS = sum(len(track.labels) for track in TRACKS)


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """Inputs of every stage; the sound of the films was made by one process."""
    root = make_inputs(tmp_path_factory.mktemp("inputs"), TRACKS)
    assert run(root / "printed", *command(DATA[0], root, root / "sound")).returncode == 0
    return root


@pytest.fixture(scope="module")
def alone_of(root, tmp_path_factory):
    """What one process makes, of any script."""

    @functools.cache
    def make(script: str) -> Path:
        out = tmp_path_factory.mktemp("alone") / "out"
        result = run(out.parent / "printed", *command(script, root, out))
        assert result.returncode == 0, result.stderr
        return out

    return make


def succeed(ended: list[subprocess.CompletedProcess[str]]) -> str:
    """All ranks ended well and rank 0 alone spoke. Returns what it said."""
    for result in ended:
        assert result.returncode == 0, result.stdout + result.stderr
    first, *others = ended
    assert [(other.stdout, other.stderr) for other in others] == [("", "")] * len(others)
    return first.stdout


def errors(ended: Iterable[subprocess.CompletedProcess[str]]) -> list[str]:
    """The lines by which ranks say why they end."""
    for result in ended:
        assert "Traceback" not in result.stderr, result.stderr
    return [line for result in ended for line in result.stderr.splitlines() if line.startswith("error: ")]


# Who takes what


@pytest.mark.parametrize("hands", [1, 2, 3, 7, 30])
def test_films_are_dealt_out_whole_and_about_evenly(hands):
    lengths = np.random.default_rng(hands).integers(1, 1000, 25).tolist()
    dealt = distributed.partition(lengths, hands)
    assert sorted(chain(*dealt)) == list(range(25))
    loads = [sum(lengths[item] for item in hand) for hand in dealt]
    ideal = max(sum(lengths) / hands, max(lengths))
    assert max(loads) <= 4 / 3 * ideal  # Graham's bound for the longest first, against what no partition can beat


def test_the_longest_film_goes_out_first():
    assert sorted(map(sorted, distributed.partition([1, 1, 1, 1, 1, 5], 2))) == [[0, 1, 2, 3, 4], [5]]


def test_films_that_take_no_time_are_dealt_out_evenly_too():
    assert sorted(map(len, distributed.partition([0] * 10, 3))) == [3, 3, 4]


def parts(monkeypatch, size: int, batch_size: int, world_size: int) -> list[DistributedBatchSampler]:
    """The batches of every rank."""
    monkeypatch.setenv("WORLD_SIZE", str(world_size))
    result = []
    for rank in range(world_size):
        monkeypatch.setenv("RANK", str(rank))
        sampler = EpochSampler(size, seed=3)
        sampler.epoch = 2
        result.append(DistributedBatchSampler(sampler, batch_size))
    return result


@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
@pytest.mark.parametrize("local", [1, 2, 5])
def test_every_sample_once_in_the_order_of_one_process(monkeypatch, world_size, local):
    batch_size = local * world_size
    for size in range(world_size * min(2, local), 4 * batch_size + 2):
        of_ranks = [list(batches) for batches in parts(monkeypatch, size, batch_size, world_size)]
        assert len({len(batches) for batches in of_ranks}) == 1  # all make the same number of steps
        together = [list(chain(*step)) for step in zip(*of_ranks, strict=True)]
        (whole,) = parts(monkeypatch, size, batch_size, 1)
        assert list(chain(*together)) == list(whole.sampler)
        assert {len(part) for batches in of_ranks for part in batches[:-1]} <= {local}
        least = min(2, local)  # company for batch norm
        assert all(least <= len(batches[-1]) <= local + least for batches in of_ranks)


@pytest.mark.parametrize("world_size", [2, 3])
def test_weights_make_the_mean_of_the_ranks_that_of_the_samples(monkeypatch, world_size):
    for size in range(2 * world_size, 40):
        values = np.random.default_rng(size).normal(size=size)
        of_ranks = parts(monkeypatch, size, 4 * world_size, world_size)
        steps = zip(*of_ranks, strict=True)
        for index, step in enumerate(steps):
            means = [np.mean([values[key[1]] for key in part]) for part in step]
            weights = [batches.loss_scale(index) for batches in of_ranks]
            all_values = [values[key[1]] for part in step for key in part]
            assert np.mean(np.multiply(means, weights)) == pytest.approx(np.mean(all_values), rel=1e-12)


# Films


class TestForwardAndData:
    @pytest.mark.parametrize("script", [*DATA, *FORWARD])
    @pytest.mark.parametrize("world_size", [2, 3])
    def test_union_is_what_one_process_makes(self, root, alone_of, tmp_path, script, world_size):
        alone, together = alone_of(script), tmp_path / "together"
        succeed(run_ranks(tmp_path / "ranks", world_size, *command(script, root, together)))
        assert results(together) == results(alone)
        assert files_under(together) == files_under(alone)
        for name in (name for name in files_under(alone) if name.endswith("_cfg.json")):
            assert (together / name).read_text().replace(str(together), str(alone)) == (alone / name).read_text()

    @pytest.mark.parametrize("script", [DATA[0], "STE_forward.py"])
    def test_every_rank_has_a_share(self, root, alone_of, tmp_path, script):
        """Rank 1 dies at its first file, so what is there is rank 0's: some films, not all and not none."""
        module = "clips" if script == DATA[0] else "features"
        fault = {1: Fault(kill_at=(f"core.formats.{module}.replacing", 1))}
        ended = run_ranks(tmp_path / "ranks", 2, *command(script, root, tmp_path / "out"), faults=fault)
        assert ended[1].returncode == -signal.SIGKILL
        made = {Path(name).stem for name in results(tmp_path / "out")} & {track.video for track in TRACKS}
        assert 0 < len(made) < 4
        succeed(run_ranks(tmp_path / "ranks", 3, *command(script, root, tmp_path / "out")))
        assert results(tmp_path / "out") == results(alone_of(script))

    def test_failures_of_all_ranks_are_one_list(self, root, tmp_path):
        """In the order of one process, and all ranks end with the status that it ends with."""
        broken = tmp_path / "films"
        shutil.copytree(root / "films", broken)
        for video in ("one", "two", "three"):
            (broken / f"{video}.mp4").write_bytes(b"no film")
        script, *arguments = command(DATA[2], root, tmp_path / "alone")
        films = ("--ava-video-dir", broken)
        alone = run(tmp_path / "printed", script, *arguments, *films)
        script, *arguments = command(DATA[2], root, tmp_path / "together")
        together = run_ranks(tmp_path / "ranks", 3, script, *arguments, *films)
        assert [result.returncode for result in together] == [alone.returncode] * 3 == [1] * 3
        listed = (tmp_path / "together" / "val" / "failures.txt").read_text()
        assert listed == (tmp_path / "alone" / "val" / "failures.txt").read_text()
        assert len(listed.splitlines()) == 3
        assert "3 failed" in together[0].stdout
        assert together[1].stdout == ""

    def test_an_error_of_one_rank_ends_all_and_is_said_once(self, root, tmp_path):
        wavs = tmp_path / "wavs"
        shutil.copytree(root / "wavs", wavs)
        cut = wavs / "val" / "three:a.wav"
        cut.write_bytes(cut.read_bytes()[:100])
        script, *arguments = command("STE_forward.py", root, tmp_path / "out")
        began = time.monotonic()
        ended = run_ranks(tmp_path / "ranks", 2, script, *arguments, "--audio-dir", wavs, "--workers", 0)
        assert time.monotonic() - began < 60
        assert all(result.returncode for result in ended)
        (line,) = errors(ended)
        assert "three:a.wav: cut off in the middle" in line


def test_a_script_for_one_process_runs_once(root, tmp_path):
    """Its other ranks end at once and leave it to rank 0."""
    out = tmp_path / "out"
    output = succeed(run_ranks(tmp_path / "ranks", 3, *command("STE_postprocessing.py", root, out)))
    assert "official mAP" in output


def test_alone_nothing_of_this_is_loaded(root, tmp_path):
    """No process group, and a data stage does not spend seconds on torch."""
    out, check = tmp_path / "out", tmp_path / "check.py"
    script, *arguments = map(str, command(DATA[1], root, out))
    write_text(
        check,
        f"import atexit, runpy, sys\nsys.argv = {[str(ROOT / script), *arguments]}\n"
        "atexit.register(lambda: print('torch' in sys.modules))\nrunpy.run_path(sys.argv[0], run_name='__main__')\n",
    )
    result = subprocess.run([sys.executable, check], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.splitlines()[-1] == "False"


# Training


def spied(root: Path, out: Path, script: str, mode: str, *flags: object) -> list[object]:
    """A training script's command line by way of rank_spy.py, which leaves <out>/<rank>.pt."""
    out.mkdir(parents=True, exist_ok=True)
    return [ROOT / "tests" / "rank_spy.py", out, mode, *command(script, root, out / "models"), *flags]


def log_of(out: Path) -> list[dict[str, float]]:
    (path,) = out.rglob("*_logs.csv")
    header, *lines = read_csv(path)
    return [dict(zip(header, map(float, line), strict=True)) for line in lines]


def last_weights(out: Path) -> bytes:
    *_, last = sorted(out.rglob("*.pth"), key=lambda path: int(path.stem))
    return last.read_bytes()


class TestTraining:
    @pytest.mark.parametrize(
        ("script", "world_size", "batch", "size"),
        [("STE_train.py", 2, 4, len(TRACKS)), ("ASC_train.py", 2, 8, ROWS), ("ASC_train.py", 3, 9, ROWS)],
    )
    def test_same_weights_on_all_ranks_and_every_sample_once(self, root, tmp_path, script, world_size, batch, size):
        arguments = spied(root, tmp_path / "out", script, "as it is", "--batch-size", batch, "--epochs", 2)
        succeed(run_ranks(tmp_path / "printed", world_size, *arguments))
        kept = [torch.load(tmp_path / "out" / f"{rank}.pt", weights_only=True) for rank in range(world_size)]
        saved = torch.load(tmp_path / "out" / "models" / TRAINING[script] / "2.pth", weights_only=True)
        for rank in range(world_size):
            assert list(kept[rank]["weights"]) == list(saved)
            for name, value in saved.items():
                assert torch.equal(kept[rank]["weights"][name], value), (rank, name)
        samples = [tuple(sample) for rank in kept for sample in rank["samples"]]
        assert Counter(samples) == Counter((epoch, index) for epoch in (1, 2) for index in range(size))
        assert all(len(rank["samples"]) >= 2 * (size // world_size) for rank in kept)

    @pytest.mark.parametrize(("script", "batch"), [("STE_train.py", 8), ("ASC_train.py", 64)])
    @pytest.mark.parametrize(("mode", "bound"), [("still", 1e-5), ("still and double", 1e-10)])
    def test_first_step_is_that_of_one_process(self, root, tmp_path, script, batch, mode, bound):
        """One batch of all, of which one rank has a sample more: gradients, losses, and metrics afterwards."""
        for world_size in (1, 2):
            out = tmp_path / str(world_size)
            arguments = spied(root, out, script, mode, "--batch-size", batch, "--epochs", 1)
            succeed(run_ranks(out / "printed", world_size, *arguments))
        alone, *together = (torch.load(tmp_path / name, weights_only=True) for name in ("1/0.pt", "2/0.pt", "2/1.pt"))
        largest = max(gradient.abs().max() for gradient in alone["gradients"])
        for rank in together:
            for mine, other in zip(rank["gradients"], alone["gradients"], strict=True):
                assert (mine - other).abs().max() <= bound * largest
            if mode == "still and double":  # in fp32 Adam makes a whole step of a gradient that is but noise
                for name, value in alone["weights"].items():
                    torch.testing.assert_close(rank["weights"][name], value, rtol=0, atol=1e-8)
        (row,), (other,) = log_of(tmp_path / "1"), log_of(tmp_path / "2")
        for name, value in row.items():
            assert other[name] == pytest.approx(value, abs=1e-5), name

    @pytest.mark.parametrize(("before", "after"), [(1, 2), (2, 1), (2, 3), (2, 2)])
    def test_goes_on_with_another_number_of_ranks(self, root, tmp_path, before, after):
        script, *arguments = command("ASC_train.py", root, tmp_path / "out")
        arguments += ["--batch-size", 6, "--resume"]
        succeed(run_ranks(tmp_path / "printed", before, script, *arguments, "--epochs", 2))
        first = digests(tmp_path / "out", "**/[12].pth")
        output = succeed(run_ranks(tmp_path / "printed", after, script, *arguments, "--epochs", 4))
        assert "resuming after epoch 2" in output
        directory = tmp_path / "out" / TRAINING["ASC_train.py"]
        assert digests(tmp_path / "out", "**/[12].pth") == first
        assert [row["epoch"] for row in log_of(tmp_path / "out")] == [1, 2, 3, 4]
        assert read_json(directory / f"{directory.name}_cfg.json")["ranks"] == after
        if before == after:
            script, *arguments = command("ASC_train.py", root, tmp_path / "whole")
            succeed(run_ranks(tmp_path / "printed", 2, script, *arguments, "--batch-size", 6, "--epochs", 4))
            assert last_weights(tmp_path / "out") == last_weights(tmp_path / "whole")

    def test_a_remainder_is_refused_with_the_numbers(self, root, tmp_path):
        ended = run_ranks(tmp_path / "printed", 3, *command("ASC_train.py", root, tmp_path / "out"))
        assert_refused(ended[0], "batch of 8", "3 ranks", "remainder of 2", "6 or 9")
        assert len(errors(ended)) == 1
        assert [result.returncode for result in ended] == [2, 2, 2]
        assert not (tmp_path / "out").exists()

    def test_fewer_samples_than_ranks_are_refused(self, root, tmp_path):
        script, *arguments = command("STE_train.py", root, tmp_path / "out")
        ended = run_ranks(tmp_path / "printed", 4, script, *arguments, "--batch-size", 8)
        assert_refused(ended[0], "7 samples to train on are too few for 4 ranks")
        assert len(errors(ended)) == 1

    def test_ranks_that_see_other_data_are_refused(self, root, tmp_path):
        """As on machines whose paths are not of one disk."""
        faults = {}
        for rank in range(2):
            features = tmp_path / str(rank) / "ste_features"
            for split in ("train", "val"):
                shutil.copytree(root / "features", features / split)
            faults[rank] = Fault(environment=(("ASC_DATA_ROOT", str(tmp_path / str(rank))),))
        (tmp_path / "1" / "ste_features" / "train" / "four.csv").unlink()
        arguments = ("--models-out", tmp_path / "out", "--batch-size", 8)
        ended = run_ranks(tmp_path / "printed", 2, "ASC_train.py", 3, 2, 2, "cpu", *arguments, faults=faults)
        (line,) = errors(ended)
        assert "rank 1 sees other rows than rank 0" in line
        assert "a disk that all share" in line

    def test_a_run_that_lies_there_is_refused_once(self, root, tmp_path):
        arguments = command("ASC_train.py", root, tmp_path / "out")
        succeed(run_ranks(tmp_path / "printed", 2, *arguments))
        ended = run_ranks(tmp_path / "printed", 2, *arguments)
        assert_refused(ended[0], "a run lies here already", "--resume")
        assert len(errors(ended)) == 1


# Environments


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        ({"WORLD_SIZE": "2"}, ("WORLD_SIZE is 2, but RANK is not set", "torchrun")),
        ({"WORLD_SIZE": "many"}, ("WORLD_SIZE is 'many', not a number",)),
        ({"WORLD_SIZE": "2", "RANK": "2", "LOCAL_RANK": "0"}, ("RANK is 2, but WORLD_SIZE only 2",)),
        ({"WORLD_SIZE": "2", "RANK": "-1"}, ("RANK is '-1', not a number",)),
        ({"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0", "MASTER_PORT": "x"}, ("MASTER_ADDR and MASTER_PORT",)),
    ],
)
def test_half_an_environment_is_refused(root, tmp_path, environment, words):
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1", **environment}
    fault = Fault(environment=tuple(place.items()))
    result = run(tmp_path / "printed", *command("ASC_forward.py", root, tmp_path / "out"), fault=fault)
    assert_refused(result, *words)


def test_a_world_of_one_is_a_plain_process(root, tmp_path):
    fault = Fault(environment=(("WORLD_SIZE", "1"), ("RANK", "0"), ("LOCAL_RANK", "0")))
    result = run(tmp_path / "printed", *command("ASC_forward.py", root, tmp_path / "out"), fault=fault)
    assert result.returncode == 0, result.stderr
    assert "rank" not in result.stdout


def test_devices_are_counted_on_by_local_rank(monkeypatch):
    from core.runtime.device import get_device
    from core.runtime.errors import InputError

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    chosen: list[int] = []
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    monkeypatch.setenv("WORLD_SIZE", "6")
    monkeypatch.setenv("LOCAL_RANK", "2")
    assert get_device("1") == torch.device("cuda", 3)
    assert chosen == [3]
    with pytest.raises(InputError, match="cuda_device 2: for local rank 2 CUDA devices 0 to 3 are here; start fewer"):
        get_device("2")
    assert get_device("cpu") == torch.device("cpu")


def test_gradients_travel_on_the_device_of_the_network(monkeypatch):
    """NCCL would take the device of the local rank, which is another one where counting does not begin at 0."""
    made: dict[str, dict] = {}

    def new_group(backend=None, timeout=None, device_id=None):
        made["group"] = {"backend": backend, "device": device_id}
        return "group"

    def wrap(network, **options):
        made["parallel"] = options
        return network

    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(torch.distributed, "new_group", new_group)
    monkeypatch.setattr(torch.nn.parallel, "DistributedDataParallel", wrap)
    network = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2))
    before = {name: id(value) for name, value in network.named_parameters()}
    distributed.parallel(network, torch.device("cuda", 3))
    assert made["group"] == {"backend": "nccl", "device": torch.device("cuda", 3)}
    assert made["parallel"] == {"device_ids": [3], "process_group": "group"}
    assert isinstance(network[1], torch.nn.SyncBatchNorm)
    assert {name: id(value) for name, value in network.named_parameters()} == before  # the optimizer's


@pytest.mark.parametrize(
    ("said", "told"),
    [
        (
            "[x.cc:1] Connection closed by peer [::1]:9. See gloo/transport/tcp",
            "another rank has died or cannot be reached",
        ),
        ("NCCL error in: x.cpp:1, remote process exited or there was a network error", "another rank has died"),
        (
            "NCCL error in: x.cpp:1, unhandled system error\nLast error:\nno space on /dev/shm",
            "NCCL failed: no space on /dev",
        ),
        (
            "NCCL error: CUDA driver version is insufficient for CUDA runtime version",
            "NCCL failed: NCCL error: CUDA dri",
        ),
        ("shapes do not match", None),
    ],
)
def test_what_torch_says_of_other_ranks_is_told_apart(monkeypatch, said, told):
    monkeypatch.setenv("WORLD_SIZE", "2")
    line = distributed.lost_rank(RuntimeError(said))
    assert line is None if told is None else line.startswith(told)
    monkeypatch.delenv("WORLD_SIZE")
    assert distributed.lost_rank(RuntimeError(said)) is None


# Death


class TestDeath:
    @pytest.mark.parametrize(
        ("victim", "script", "moment"),
        [
            (0, "ASC_train.py", ("torch.optim.Adam.step", 5)),
            (1, "ASC_train.py", ("core.training.evaluate", 2)),
            (1, "ASC_forward.py", ("core.formats.predictions.write_csv", 1)),
        ],
    )
    def test_of_one_ends_all_and_the_rest_is_done_by_fewer(self, root, alone_of, tmp_path, victim, script, moment):
        arguments = command(script, root, tmp_path / "out")
        began = time.monotonic()
        ended = run_ranks(tmp_path / "printed", 2, *arguments, faults={victim: Fault(kill_at=moment)})
        assert time.monotonic() - began < 60
        assert ended[victim].returncode == -signal.SIGKILL
        assert ended[1 - victim].returncode == 1
        (line,) = errors(ended)
        assert "another rank has died or cannot be reached" in line
        if script in TRAINING:
            arguments.append("--resume")
        assert run(tmp_path / "printed", *arguments).returncode == 0
        if script in FORWARD:
            assert results(tmp_path / "out") == results(alone_of(script))

    def test_by_ctrl_c_is_said_once(self, root, tmp_path):
        script, *arguments = command("ASC_train.py", root, tmp_path / "out")
        together = start_ranks(tmp_path / "printed", 2, script, *arguments, "--epochs", 10_000)
        together[0].until(lambda: bool(list((tmp_path / "out").rglob("1.pth"))))
        for running in together:
            running.signal(signal.SIGINT)
        ended = [running.wait() for running in together]
        assert {result.returncode for result in ended} <= {130, 1}
        assert sum(result.stderr.count("interrupted; what was finished is kept") for result in ended) == 1
        assert errors(ended) == []

    def test_is_noticed_by_those_who_are_busy_with_films_of_their_own(self, tmp_path):
        """Long before they meet again: rank 1 dies, and the other two would be at it for two minutes."""
        script = write_text(
            tmp_path / "stage.py",
            "import os, signal, time\nfrom core.runtime.cli import Parser, run\n\n"
            "def main(args):\n"
            "    if os.environ['RANK'] == '1':\n"
            "        os.kill(os.getpid(), signal.SIGKILL)\n"
            "    time.sleep(120)\n\n"
            "run(main, Parser('a stage'), distributed=True)\n",
        )
        began = time.monotonic()
        ended = run_ranks(tmp_path / "printed", 3, script)
        assert time.monotonic() - began < 60
        assert [result.returncode for result in ended] == [1, -signal.SIGKILL, 1]
        (line,) = errors(ended)
        assert "another rank has died or cannot be reached" in line

    def test_what_rank_0_finds_is_said_once_and_ends_all_alike(self, root, tmp_path):
        """A crop that is missing: the others know of it from rank 0 alone."""
        crops = tmp_path / "crops"
        shutil.copytree(root / "crops", crops)
        next((crops / "val" / "two:a").iterdir()).unlink()
        script, *arguments = command("STE_forward.py", root, tmp_path / "out")
        ended = run_ranks(tmp_path / "printed", 3, script, *arguments, "--video-dir", crops)
        (line,) = errors(ended)
        assert "1 of 63 crops" in line
        assert [result.returncode for result in ended] == [2, 2, 2]

    def test_a_full_disk_under_rank_0_is_said_once(self, root, tmp_path):
        arguments = command("ASC_train.py", root, tmp_path / "out")
        arguments += ["--batch-size", 6]
        ended = run_ranks(tmp_path / "printed", 3, *arguments, faults={0: Fault(file_size=1 << 20)})
        (line,) = errors(ended)
        assert "1.pth: File too large" in line
        assert [result.returncode for result in ended] == [1, 1, 1]

    def test_a_bug_in_one_rank_ends_all_with_its_traceback(self, tmp_path):
        script = write_text(
            tmp_path / "stage.py",
            "import os, time\nfrom core.runtime.cli import Parser, run\n\n"
            "def main(args):\n"
            "    if os.environ['RANK'] == '1':\n"
            "        raise KeyError('what nobody thought of')\n"
            "    time.sleep(120)\n\n"
            "run(main, Parser('a stage'), distributed=True)\n",
        )
        ended = run_ranks(tmp_path / "printed", 2, script)
        assert [result.returncode for result in ended] == [1, 1]
        assert "Traceback" in ended[1].stderr
        assert "error: rank 1: KeyError: 'what nobody thought of'" in ended[1].stderr
        assert "error: " not in ended[0].stderr


class Torchrun:
    """One agent of torchrun, a leader of its own session."""

    def __init__(self, log: Path, flags: Iterable[object], script: object, *args: object):
        self.log = log
        words = [sys.executable, "-m", "torch.distributed.run", *flags, script, *args]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
        with open(log, "w") as file:
            self.process = subprocess.Popen(
                [*map(str, words)], cwd=ROOT, env=environment, stdout=file, stderr=file, start_new_session=True
            )

    def ranks(self) -> dict[int, int]:
        """Process numbers of its workers, by rank."""
        found = {}
        for task in Path(f"/proc/{self.process.pid}/task").glob("*/children"):
            for child in map(int, task.read_text().split()):
                variables = Path(f"/proc/{child}/environ").read_bytes().split(b"\0")
                found.update({int(v[5:]): child for v in variables if v.startswith(b"RANK=")})
        return found

    def wait(self, timeout: float = 120) -> int:
        return self.process.wait(timeout)


def is_alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_for(condition: Callable[[], object], timeout: float = 60) -> None:
    end = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < end, "it does not come"
        time.sleep(0.02)


class TestTorchrun:
    def test_restarts_go_on_from_the_last_epoch(self, root, tmp_path):
        """A rank is killed; torchrun starts all of them again, and they end with the weights of an undisturbed run."""
        script, *arguments = command("ASC_train.py", root, tmp_path / "out")
        arguments += ["--epochs", 16, "--resume"]
        flags = ("--nproc-per-node", 2, "--max-restarts", 1, "--rdzv-endpoint", f"127.0.0.1:{free_port()}")
        agent = Torchrun(tmp_path / "log", flags, script, *arguments)
        wait_for(lambda: list((tmp_path / "out").rglob("3.pth")))
        os.kill(agent.ranks()[1], signal.SIGKILL)
        assert agent.wait() == 0, (tmp_path / "log").read_text()
        resumed = re.findall(r"resuming after epoch (\d+)", (tmp_path / "log").read_text())
        assert len(resumed) == 1
        assert 2 <= int(resumed[0]) < 16  # the third epoch may have been killed between its weights and last.ckpt
        script, *arguments = command("ASC_train.py", root, tmp_path / "whole")
        succeed(run_ranks(tmp_path / "printed", 2, script, *arguments, "--epochs", 16))
        assert last_weights(tmp_path / "out") == last_weights(tmp_path / "whole")

    def test_a_killed_rank_ends_two_nodes_and_is_named(self, root, tmp_path):
        """Two agents that meet at a c10d rendezvous, on two addresses of this machine; then the same goes well."""

        def start(name: str, *flags: object) -> list[Torchrun]:
            script, *arguments = command("ASC_train.py", root, tmp_path / "out")
            place = ("--rdzv-backend", "c10d", "--rdzv-id", name, "--rdzv-endpoint", f"127.0.0.1:{free_port()}")
            agents = []
            for node in (1, 2):
                own = ("--nnodes", 2, "--nproc-per-node", 1, "--local-addr", f"127.0.0.{node}", *place)
                own += ("--rdzv-conf", f"is_host={int(node == 1)}")
                agents.append(Torchrun(tmp_path / f"{name}{node}", own, script, *arguments, *flags))
            return agents

        agents = start("killed", "--epochs", 10_000)
        wait_for(lambda: list((tmp_path / "out").rglob("2.pth")))
        ((rank, process),) = agents[1].ranks().items()
        began = time.monotonic()
        os.kill(process, signal.SIGKILL)
        assert all(agent.wait(60) for agent in agents)
        assert time.monotonic() - began < 60
        assert "Signal 9 (SIGKILL)" in (tmp_path / "killed2").read_text()
        assert f"rank      : {rank} " in (tmp_path / "killed2").read_text()
        assert "another rank has died or cannot be reached" in (tmp_path / "killed1").read_text()
        done = len(list((tmp_path / "out").rglob("*.pth")))
        agents = start("again", "--epochs", done + 2, "--resume")
        assert [agent.wait() for agent in agents] == [0, 0], (tmp_path / "again1").read_text()
        assert f"resuming after epoch {done}" in (tmp_path / "again1").read_text() + (tmp_path / "again2").read_text()

    def test_that_is_killed_takes_its_ranks_with_it(self, root, tmp_path):
        script, *arguments = command("ASC_train.py", root, tmp_path / "out")
        flags = ("--nproc-per-node", 2, "--rdzv-endpoint", f"127.0.0.1:{free_port()}")
        agent = Torchrun(tmp_path / "log", flags, script, *arguments, "--epochs", 10_000)
        wait_for(lambda: list((tmp_path / "out").rglob("1.pth")))
        processes = agent.ranks().values()
        assert len(processes) == 2
        os.kill(agent.process.pid, signal.SIGKILL)
        agent.wait()
        wait_for(lambda: not any(map(is_alive, processes)), 20)


# Slurm

SRUN = """#!/bin/bash
# Start the command once for every task, as srun does, and end with the worst status.
[[ $1 == --* ]] && shift
status=0 jobs=()
for ((task = 0; task < SLURM_NTASKS; task++)); do
    SLURM_PROCID=$task SLURM_LOCALID=$((task % SLURM_NTASKS_PER_NODE)) "$@" & jobs+=($!)
done
for job in "${jobs[@]}"; do wait "$job" || status=$?; done
exit $status
"""
PYTHON = """#!/bin/bash
# Note who is to run what.
echo "$RANK $LOCAL_RANK $WORLD_SIZE $MASTER_ADDR:$MASTER_PORT|$*" >> "$NOTES"
"""


class TestSlurm:
    @pytest.fixture
    def submit(self, tmp_path):
        """Run a job file as sbatch would, on machines of two tasks each; what each rank would have run."""

        def submit(name: str, nodes: int, tasks: int, **variables: str) -> list[tuple[str, list[str]]]:
            programs = {"srun": SRUN, "scontrol": "#!/bin/bash\necho first\necho second\n", "python": PYTHON}
            for program, text in programs.items():
                write_text(tmp_path / "bin" / program, text).chmod(0o755)
            write_text(tmp_path / ".venv" / "bin" / "activate", "")
            environment = {
                **os.environ,
                "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}",
                "NOTES": str(tmp_path / "notes"),
                "SLURM_JOB_ID": "40123",
                "SLURM_JOB_NODELIST": "first,second",
                "SLURM_NTASKS": str(nodes * tasks),
                "SLURM_NTASKS_PER_NODE": str(tasks),
                "SLURM_CPUS_PER_TASK": "4",
                **variables,
            }
            path = ROOT / "docs" / "slurm" / name
            subprocess.run(["bash", path], cwd=tmp_path, env=environment, check=True)
            lines = (tmp_path / "notes").read_text().splitlines()
            return [(who, command.split()) for who, command in (line.split("|") for line in lines)]

        return submit

    @pytest.mark.parametrize(
        ("name", "nodes", "tasks", "scripts"),
        [
            ("train.sbatch", 2, 2, ["STE_train.py"]),
            ("forward.sbatch", 1, 2, ["STE_forward.py"] * 2),
            ("crops.sbatch", 2, 1, [DATA[0], DATA[1], DATA[2], DATA[1], DATA[2]]),
        ],
    )
    def test_every_rank_is_told_who_it_is(self, submit, name, nodes, tasks, scripts):
        ranks = nodes * tasks
        noted = submit(name, nodes, tasks, WEIGHTS="ava/100.pth")
        expected = sorted(f"{rank} {rank % tasks} {ranks} first:20123" for rank in range(ranks))
        assert [noted[place][1][0] for place in range(0, len(noted), ranks)] == scripts
        for place in range(0, len(noted), ranks):
            who, commands = zip(*noted[place : place + ranks], strict=True)
            assert sorted(who) == expected
            assert all(command == commands[0] for command in commands)
            script, *arguments = commands[0]
            module = runpy.run_path(str(ROOT / script))
            module["get_args_parser"]().parse_args(arguments)  # refuses by ending the process
