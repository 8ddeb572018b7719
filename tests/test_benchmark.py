"""scripts/benchmark.py: its data, its measurements and its table."""

import json
import runpy

import pytest
from conftest import ROOT, run_script

from core.formats.annotations import read_annotations
from core.runtime.errors import RunError


@pytest.fixture(scope="module")
def benchmark() -> dict:
    return runpy.run_path(str(ROOT / "scripts" / "benchmark.py"))


def test_annotations_are_valid_and_complete(benchmark, tmp_path):
    table = read_annotations(benchmark["write_annotations"](tmp_path, ["a", "b"], 1234))
    assert len(table) == 2 * 1234
    assert table.video_ids == ["a", "b"]
    assert len(table.entity_ids) == 2 * 50


def test_fraction_is_that_of_the_lowest_ceiling(benchmark):
    ceilings = {"reading": 80.0, "decoding": 1e9}
    stage = benchmark["measure"]("stage", "rows", 160, ceilings, "scripts/evaluate.py", "--help")
    assert stage["bound"] == "reading"
    assert stage["fraction"] == pytest.approx(160 / stage["seconds"] / 80)


def test_table(benchmark):
    stage = {"stage": "stage", "unit": "rows", "size": 160, "seconds": 4.0, "rate": 40.0, "memory": 2 * 10**9}
    stage |= {"ceilings": {"reading": 80.0}, "bound": "reading", "fraction": 0.5}
    lines = benchmark["markdown"]([stage]).splitlines()
    assert lines[-1] == "| stage | 160 rows | 4.0 s | 40.0/s | 2.00 GB | 80/s: reading | 0.50 |"
    assert len({line.count("|") for line in lines}) == 1


def test_time_and_memory_of_a_script(benchmark):
    seconds, memory = benchmark["run_script"]("scripts/evaluate.py", "--help")
    assert seconds > 0.2
    assert 10**6 < memory < 10**9


def test_failing_stage_is_one_error(benchmark):
    with pytest.raises(RunError, match=r"STE_train.py: exit status 2: error: .*clip_length"):
        benchmark["run_script"]("STE_train.py", 4, "cpu")


@pytest.mark.slow
def test_all_stages_are_measured(tmp_path):
    arguments = ("--scale", 0.01, "--work", tmp_path)
    result = run_script("scripts/benchmark.py", *arguments, timeout=1800, OMP_NUM_THREADS="1")
    assert result.returncode == 0, result.stderr
    stages = json.loads((tmp_path / "benchmark.json").read_text())["stages"]
    assert len(stages) == 8
    assert all(stage["rate"] > 0 and stage["memory"] > 0 and 0 < stage["fraction"] < 2 for stage in stages)
    assert {path.name for path in tmp_path.iterdir()} == {"benchmark.json", "benchmark.md"}
    assert (tmp_path / "benchmark.md").read_text() in result.stdout
