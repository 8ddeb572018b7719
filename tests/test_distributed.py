"""Stages with several ranks: the same results as one process, and the behavior when a rank dies.

Ranks are started with torchrun, which takes seconds, so most of these tests are slow.
"""

import json
import os
import re
import runpy
import shutil
import signal
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from conftest import ROOT, assert_refused, printed, wait_for
from processes import run
from stages import DATA, TRACKS, TRAINING, command, results
from tiny_inputs import files_under, read_log, run_here, succeed, write_text

from core import training
from core.loaders import DistributedBatchSampler, EpochSampler, context_loaders
from core.runtime import distributed
from core.runtime.errors import InputError

ROWS = sum(len(track.labels) for track in TRACKS)
EPOCHS = 12  # of the runs that are killed: long enough to be killed in epoch 2 or 3
LONG_RUN = ("--batch-size", 16, "--epochs", EPOCHS, "--resume")


@pytest.fixture
def set_rank(monkeypatch) -> Callable[[int, int], None]:
    """Make this process a rank."""

    def set_rank(rank: int, world_size: int) -> None:
        monkeypatch.setattr(distributed, "_connected", True)
        for name, value in (("RANK", rank), ("LOCAL_RANK", rank), ("WORLD_SIZE", world_size)):
            monkeypatch.setenv(name, str(value))

    return set_rank


# Division of work


@pytest.mark.parametrize("num_ranks", [1, 2, 3, 7, 30])
def test_partition_has_similar_totals(num_ranks):
    costs = np.random.default_rng(num_ranks).integers(1, 1000, 25).tolist()
    parts = distributed.partition(costs, num_ranks)
    assert sorted(chain(*parts)) == list(range(25))
    totals = [sum(costs[item] for item in part) for part in parts]
    best = max(sum(costs) / num_ranks, max(costs))
    assert max(totals) <= 4 / 3 * best  # Graham's bound


@pytest.fixture
def samplers(set_rank):
    """Build the batch samplers of all ranks."""

    def build(size: int, batch_size: int, world_size: int) -> list[DistributedBatchSampler]:
        result = []
        for rank in range(world_size):
            set_rank(rank, world_size)
            sampler = EpochSampler(size, seed=3)
            sampler.epoch = 2
            result.append(DistributedBatchSampler(sampler, batch_size))
        return result

    return build


@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
@pytest.mark.parametrize("local_size", [1, 2, 5])
def test_batches_hold_every_sample_once_in_the_order_of_one_process(samplers, world_size, local_size):
    batch_size = local_size * world_size
    min_size = min(2, local_size)  # batch norm needs two samples
    for size in range(world_size * min_size, 4 * batch_size + 2):
        ranks = [list(sampler) for sampler in samplers(size, batch_size, world_size)]
        assert len({len(batches) for batches in ranks}) == 1  # the same number of steps
        steps = [list(chain(*step)) for step in zip(*ranks, strict=True)]
        (single,) = samplers(size, batch_size, 1)
        assert list(chain(*steps)) == list(single.sampler)
        assert {len(batch) for batches in ranks for batch in batches[:-1]} <= {local_size}
        assert all(min_size <= len(batches[-1]) <= local_size + min_size for batches in ranks)


@pytest.mark.parametrize("world_size", [2, 3])
def test_loss_scale_gives_the_mean_over_all_samples(samplers, world_size):
    for size in range(2 * world_size, 40):
        values = np.random.default_rng(size).normal(size=size)
        ranks = samplers(size, 4 * world_size, world_size)
        for index, step in enumerate(zip(*ranks, strict=True)):
            means = [np.mean([values[key[1]] for key in batch]) for batch in step]
            scales = [sampler.loss_scale(index) for sampler in ranks]
            expected = np.mean([values[key[1]] for batch in step for key in batch])
            assert np.mean(np.multiply(means, scales)) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    ("num_ranks", "problem"),
    [
        (4, "7 training samples are too few for 4 ranks"),
        (3, "batch of 64 samples .* over 3 ranks; pass a --batch-size"),
    ],
)
def test_batches_that_cannot_be_split_are_refused(set_rank, num_ranks, problem):
    set_rank(0, num_ranks)
    args = runpy.run_path(str(ROOT / "ASC_train.py"))["get_args_parser"]().parse_args(["3", "2", "2", "cpu"])
    with pytest.raises(InputError, match=problem):
        context_loaders({"train": range(7), "val": range(7)}, args, torch.device("cpu"))


# Environment


def test_different_values_on_two_ranks_are_refused(set_rank, monkeypatch):
    set_rank(1, 3)
    monkeypatch.setattr(distributed, "all_gather", lambda value: ["rows", "rows", value])
    distributed.require_same("annotations", lambda: "rows")
    with pytest.raises(InputError, match=r"annotations differ between rank 0 and rank 2; .* shared disk"):
        distributed.require_same("annotations", lambda: "other rows")


def test_incomplete_environment_is_refused(inputs, tmp_path, monkeypatch):
    monkeypatch.setattr(distributed, "end_with_parent", lambda: None)
    monkeypatch.setenv("WORLD_SIZE", "2")
    result = run_here(*command("ASC_forward.py", inputs, tmp_path / "out"))
    assert_refused(result, "environment", "RANK", "torchrun")


def test_scripts_for_one_process_ignore_the_environment(inputs, tmp_path, monkeypatch):
    for name, value in (("WORLD_SIZE", "2"), ("RANK", "1"), ("LOCAL_RANK", "1")):
        monkeypatch.setenv(name, value)
    assert "official mAP" in succeed(*command("STE_postprocessing.py", inputs, tmp_path / "out"))
    assert files_under(tmp_path / "out")


def test_data_stage_does_not_import_torch(inputs, tmp_path):
    script, *arguments = map(str, command(DATA[1], inputs, tmp_path / "out"))
    check = write_text(
        tmp_path / "check.py",
        f"import atexit, runpy, sys\nsys.argv = {[str(ROOT / script), *arguments]}\n"
        "atexit.register(lambda: print('torch' in sys.modules))\nrunpy.run_path(sys.argv[0], run_name='__main__')\n",
    )
    result = subprocess.run([sys.executable, check], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.splitlines()[-1] == "False"


def test_gpus_share_gradients_and_batch_norm(set_rank, monkeypatch):
    groups, options = [], {}

    def wrap(network, **arguments):
        options.update(arguments)
        network.broadcast_buffers = True
        return network

    monkeypatch.setattr(torch.distributed, "new_group", lambda backend, timeout: groups.append(backend) or "group")
    monkeypatch.setattr(training, "DistributedDataParallel", wrap)
    set_rank(0, 2)
    network = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2))
    before = {name: id(value) for name, value in network.named_parameters()}
    training.parallel(network, torch.device("cuda", 3))
    assert groups == ["nccl"]
    assert options == {"device_ids": [3], "process_group": "group", "gradient_as_bucket_view": True}
    assert not network.broadcast_buffers
    assert isinstance(network[1], torch.nn.SyncBatchNorm)
    assert {name: id(value) for name, value in network.named_parameters()} == before  # those of the optimizer


# Started by torchrun


class Torchrun:
    """A torchrun process and its ranks."""

    started: ClassVar[list["Torchrun"]] = []

    def __init__(self, log: Path, flags: tuple, script: object, *args: object):
        self.log = log
        words = [sys.executable, "-m", "torch.distributed.run", *flags, script, *args]
        path = os.pathsep.join((str(ROOT), str(ROOT / "tests")))
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "PYTHONPATH": path}
        with open(log, "w") as file:
            self.process = subprocess.Popen(
                [*map(str, words)], cwd=ROOT, env=environment, stdout=file, stderr=file, start_new_session=True
            )
        self.started.append(self)

    def ranks(self) -> dict[int, int]:
        """Process id of each rank."""
        found = {}
        for task in Path(f"/proc/{self.process.pid}/task").glob("*/children"):
            for child in map(int, task.read_text().split()):
                variables = Path(f"/proc/{child}/environ").read_bytes().split(b"\0")
                found.update({int(v[5:]): child for v in variables if v.startswith(b"RANK=")})
        return found

    def wait(self, timeout: float = 300) -> int:
        """Wait for its end and return the exit status."""
        return self.process.wait(timeout)

    @property
    def text(self) -> str:
        return self.log.read_text()


@pytest.fixture(autouse=True)
def end_torchrun():
    """Kill what a failed test leaves; ranks end with torchrun."""
    yield
    for agent in Torchrun.started:
        agent.process.kill()


def torchrun(log: Path, num_ranks: int, script: object, *args: object) -> Torchrun:
    return Torchrun(log, ("--standalone", "--nproc-per-node", num_ranks), script, *args)


def spied(options: dict, script: str, *args: object) -> list[object]:
    """A command with the options of rank_spy.py."""
    return [ROOT / "tests" / "rank_spy.py", json.dumps(options), script, *args]


def is_alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def last_weights(out: Path) -> bytes:
    return max(out.rglob("[0-9]*.pth"), key=lambda path: int(path.stem)).read_bytes()


@pytest.fixture(scope="module")
def expected(inputs, tmp_path_factory):
    """Run a script as one process; returns its output directory."""

    def make(script: str, *flags: object) -> Path:
        out = tmp_path_factory.mktemp("expected") / "out"
        run(out.parent / "printed", *command(script, inputs, out), *flags)
        return out

    return make


@pytest.fixture(scope="module")
def two_ranks(inputs, tmp_path_factory) -> Path:
    """An undisturbed training run with two ranks."""
    out = tmp_path_factory.mktemp("two_ranks")
    agent = torchrun(out / "log", 2, *spied({}, *command("ASC_train.py", inputs, out), *LONG_RUN))
    assert agent.wait() == 0, agent.text
    return out


def check_records(out: Path, script: str, world_size: int, epochs: int, size: int) -> None:
    """Assert that all ranks have the saved weights, and used every sample once per epoch."""
    records = [torch.load(out / f"{rank}.pt", weights_only=True) for rank in range(world_size)]
    saved = torch.load(out / TRAINING[script] / f"{epochs}.pth", weights_only=True)
    for record in records:
        assert list(record["weights"]) == list(saved)
        assert all(torch.equal(record["weights"][name], value) for name, value in saved.items())
        assert len(record["samples"]) >= epochs * (size // world_size)
    samples = Counter(tuple(sample) for record in records for sample in record["samples"])
    assert samples == Counter((epoch, index) for epoch in range(1, epochs + 1) for index in range(size))


def test_ranks_have_the_same_weights_and_use_every_sample_once(inputs, tmp_path):
    arguments = spied({"record": str(tmp_path)}, *command("ASC_train.py", inputs, tmp_path), "--epochs", 2)
    agent = torchrun(tmp_path / "log", 2, *arguments)
    assert agent.wait() == 0, agent.text
    check_records(tmp_path, "ASC_train.py", 2, 2, ROWS)


@pytest.mark.slow
class TestResults:
    @pytest.mark.parametrize("script", [DATA[0], "STE_forward.py", "ASC_forward.py"])
    def test_ranks_write_the_files_of_one_process(self, script, inputs, expected, tmp_path):
        """One video is broken, so failures of all ranks are one list."""
        flags, status, single = (), 0, expected(script)
        if script == DATA[0]:
            shutil.copytree(inputs / "videos", tmp_path / "videos")
            write_text(tmp_path / "videos" / "two.mp4", "not a video")
            flags, status = ("--ava-video-dir", tmp_path / "videos"), 1
            single = expected(script, *flags)
        out = tmp_path / "out"
        agent = torchrun(tmp_path / "log", 3, *spied({}, *command(script, inputs, out), *flags))
        assert agent.wait() == status, agent.text
        assert results(out) == results(single)
        assert files_under(out) == files_under(single)
        if status:
            assert (out / "failures.txt").read_text() == (single / "failures.txt").read_text()

    @pytest.mark.parametrize(("script", "batch_size"), [("STE_train.py", 8), ("ASC_train.py", 64)])
    def test_first_step_equals_that_of_one_process(self, script, batch_size, inputs, tmp_path):
        """All samples are one batch, of which one rank has one sample more. Compares gradients, weights and metrics."""
        for world_size in (1, 2):
            out = tmp_path / str(world_size)
            arguments = command(script, inputs, out / "models")
            options = {"record": str(out), "exact": True}
            arguments = spied(options, *arguments, "--batch-size", batch_size, "--epochs", 1)
            agent = torchrun(tmp_path / f"log{world_size}", world_size, *arguments)
            assert agent.wait() == 0, agent.text
        single, *ranks = (torch.load(tmp_path / name, weights_only=True) for name in ("1/0.pt", "2/0.pt", "2/1.pt"))
        largest = max(gradient.abs().max() for gradient in single["gradients"])
        for rank in ranks:
            for gradient, other in zip(rank["gradients"], single["gradients"], strict=True):
                assert (gradient - other).abs().max() <= 1e-10 * largest
            for name, value in single["weights"].items():
                torch.testing.assert_close(rank["weights"][name], value, rtol=0, atol=1e-8)
        (row,), (other,) = read_log(tmp_path / "1"), read_log(tmp_path / "2")
        for name, value in row.items():
            assert other[name] == pytest.approx(value, abs=1e-5), name


@pytest.mark.slow
class TestFailures:
    @pytest.mark.parametrize(
        ("script", "call"), [("ASC_train.py", ("step", 5)), ("STE_forward.py", ("write features csv", 1))]
    )
    def test_killed_rank_ends_all_and_one_process_can_finish(self, script, call, inputs, expected, tmp_path):
        out, arguments = tmp_path / "out", command(script, inputs, tmp_path / "out")
        agent = torchrun(tmp_path / "log", 2, *spied({"kill": {"1": call}}, *arguments))
        assert agent.wait(120) != 0
        assert "Signal 9 (SIGKILL)" in agent.text
        assert re.search(r"rank +: 1 ", agent.text)
        if script in TRAINING:
            arguments.append("--resume")
        printed(run(tmp_path / "printed", *arguments))
        if script not in TRAINING:
            assert results(out) == results(expected(script))

    def test_error_of_one_rank_ends_all_and_is_printed(self, inputs, tmp_path):
        shutil.copytree(inputs / "wavs", tmp_path / "wavs")
        broken = tmp_path / "wavs" / "val" / "three:a.wav"
        broken.write_bytes(broken.read_bytes()[:100])
        arguments = command("STE_forward.py", inputs, tmp_path / "out")
        flags = ("--audio-dir", tmp_path / "wavs", "--workers", 0)
        agent = torchrun(tmp_path / "log", 2, *spied({}, *arguments, *flags))
        assert agent.wait(120) != 0
        lines = [line for line in agent.text.splitlines() if line.startswith("error: ")]
        assert any("three:a.wav" in line for line in lines), agent.text

    def test_restart_continues_from_the_last_epoch(self, inputs, two_ranks, tmp_path):
        out = tmp_path / "out"
        flags = ("--standalone", "--nproc-per-node", 2, "--max-restarts", 1)
        agent = Torchrun(tmp_path / "log", flags, *command("ASC_train.py", inputs, out), *LONG_RUN)
        wait_for(lambda: list(out.rglob("2.pth")))
        os.kill(agent.ranks()[1], signal.SIGKILL)
        assert agent.wait() == 0, agent.text
        (epoch,) = re.findall(r"resuming after epoch (\d+)", agent.text)
        assert 1 <= int(epoch) < EPOCHS
        assert last_weights(out) == last_weights(two_ranks)

    def test_killed_torchrun_ends_its_ranks(self, inputs, tmp_path):
        arguments = command("ASC_train.py", inputs, tmp_path / "out")
        agent = torchrun(tmp_path / "log", 2, *arguments, "--epochs", 10_000)
        wait_for(lambda: list((tmp_path / "out").rglob("1.pth")))
        processes = agent.ranks().values()
        assert len(processes) == 2
        agent.process.kill()
        agent.wait()
        wait_for(lambda: not any(map(is_alive, processes)), 20)

    def test_ctrl_c_ends_all_ranks(self, inputs, tmp_path):
        arguments = command("ASC_train.py", inputs, tmp_path / "out")
        agent = torchrun(tmp_path / "log", 2, *arguments, "--epochs", 10_000)
        wait_for(lambda: list((tmp_path / "out").rglob("1.pth")))
        processes = agent.ranks().values()
        os.killpg(agent.process.pid, signal.SIGINT)
        assert agent.wait(120) != 0
        wait_for(lambda: not any(map(is_alive, processes)), 20)
        assert agent.text.count("interrupted; finished work is kept") == 1


@pytest.mark.slow
class TestTwoNodes:
    @pytest.fixture
    def start(self, inputs, tmp_path):
        """Start training on two nodes: two torchrun processes with different addresses of this machine."""

        def start(out: Path, restarts: int, *flags: object) -> list[Torchrun]:
            with socket.socket() as free:
                free.bind(("127.0.0.1", 0))
                endpoint = f"127.0.0.1:{free.getsockname()[1]}"
            common = ("--nnodes", 2, "--nproc-per-node", 1, "--max-restarts", restarts)
            common += ("--rdzv-backend", "c10d", "--rdzv-endpoint", endpoint)
            agents = []
            for node in (1, 2):
                address = ("--local-addr", f"127.0.0.{node}", "--rdzv-conf", f"is_host={int(node == 1)}")
                arguments = command("ASC_train.py", inputs, out)
                agents.append(Torchrun(tmp_path / f"node{node}", (*common, *address), *arguments, *LONG_RUN, *flags))
            return agents

        return start

    def test_restart_ends_with_the_weights_of_an_undisturbed_run(self, start, two_ranks, tmp_path):
        """A rank of the second node is killed in epoch 2 or 3."""
        agents = start(tmp_path / "out", 1)
        wait_for(lambda: list((tmp_path / "out").rglob("2.pth")))
        os.kill(agents[1].ranks().popitem()[1], signal.SIGKILL)
        statuses = [agent.wait() for agent in agents]
        text = "".join(agent.text for agent in agents)
        assert statuses == [0, 0], text
        (epoch,) = re.findall(r"resuming after epoch (\d+)", text)
        assert 1 <= int(epoch) < EPOCHS
        assert last_weights(tmp_path / "out") == last_weights(two_ranks)

    def test_killed_rank_ends_both_nodes(self, start, tmp_path):
        agents = start(tmp_path / "out", 0, "--epochs", 10_000)
        wait_for(lambda: list((tmp_path / "out").rglob("2.pth")))
        os.kill(agents[1].ranks().popitem()[1], signal.SIGKILL)
        assert all(agent.wait(120) for agent in agents)
        assert "Signal 9 (SIGKILL)" in agents[1].text
        assert "lost another rank" in agents[0].text


# Slurm

SRUN = """#!/bin/bash
# Start the command once per task, as srun does; fail if a task fails.
[[ $1 == --* ]] && shift
status=0 jobs=()
for ((task = 0; task < SLURM_NTASKS; task++)); do
    SLURM_PROCID=$task SLURM_LOCALID=$((task % SLURM_NTASKS_PER_NODE)) "$@" & jobs+=($!)
done
for job in "${jobs[@]}"; do wait "$job" || status=$?; done
exit $status
"""
PYTHON = """#!/bin/bash
# Write the rank's variables and command to $NOTES.
echo "$RANK $LOCAL_RANK $WORLD_SIZE $MASTER_ADDR:$MASTER_PORT|$*" >> "$NOTES"
"""


class TestSlurm:
    @pytest.fixture
    def submit(self, tmp_path):
        """Run a job file as sbatch would. Returns the variables and the command of each rank."""

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
            return [(rank, command.split()) for rank, command in (line.split("|") for line in lines)]

        return submit

    @pytest.mark.parametrize(
        ("name", "nodes", "tasks", "scripts"),
        [
            ("train.sbatch", 2, 2, ["STE_train.py"]),
            ("forward.sbatch", 1, 2, ["STE_forward.py"] * 2),
            ("crops.sbatch", 2, 1, [DATA[0], DATA[1], DATA[2], DATA[1], DATA[2]]),
        ],
    )
    def test_every_rank_gets_its_variables(self, submit, name, nodes, tasks, scripts):
        num_ranks = nodes * tasks
        lines = submit(name, nodes, tasks, WEIGHTS="ava/100.pth")
        expected = sorted(f"{rank} {rank % tasks} {num_ranks} first:20123" for rank in range(num_ranks))
        starts = range(0, len(lines), num_ranks)
        assert [lines[start][1][0] for start in starts] == scripts
        for start in starts:
            variables, commands = zip(*lines[start : start + num_ranks], strict=True)
            assert sorted(variables) == expected
            assert all(command == commands[0] for command in commands)
            script, *arguments = commands[0]
            runpy.run_path(str(ROOT / script))["get_args_parser"]().parse_args(arguments)
