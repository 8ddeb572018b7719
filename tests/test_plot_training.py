"""Plots of training logs."""

import random
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import assert_refused
from PIL import Image
from tiny_inputs import digests, files_under, run_here, succeed, write_text

from core.reports import training_plots

SCRIPT = "scripts/plot_training.py"
LOSSES = {"ste": ("av", "audio", "video"), "asc": ("av",)}


def log_of(kind: str, epochs: int, step: int = 2, learning_rate: float = 1e-3) -> list[dict]:
    """Rows of a training log whose val AP rises to 0.9 in the last epoch but one, then falls."""
    rows = []
    for epoch in range(1, epochs + 1):
        row = {"epoch": epoch, "learning_rate": learning_rate * 0.1 ** ((epoch - 1) // step)}
        for split in ("train", "val"):
            row |= {f"{split}_loss_{name}": 1 / epoch + 0.1 * (split == "val") for name in LOSSES[kind]}
            row |= {f"{split}_auc": 0.5 + 0.1 * epoch / epochs, f"{split}_ap": 0.9 - 0.1 * abs(epochs - 1 - epoch)}
        rows.append(row)
    return rows


def write_log(directory: Path, rows: list[dict]) -> Path:
    """Write <directory>/<its name>_logs.csv."""
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / f"{directory.name}_logs.csv"
    pd.DataFrame(rows).to_csv(path, index=False)
    return path


@pytest.fixture
def plotted(monkeypatch) -> list[dict[str, pd.DataFrame]]:
    """Arguments of all calls of `plot_training` from here on; nothing is drawn."""
    calls = []
    monkeypatch.setattr(training_plots, "plot_training", lambda path, runs: calls.append(runs))
    return calls


class TestRuns:
    def test_several_runs_of_different_length_and_kind(self, tmp_path, plotted):
        logs = [log_of("ste", 6, step=3), log_of("ste", 2), log_of("asc", 4, step=3)]
        paths = [tmp_path / "a" / "run", tmp_path / "b" / "run", tmp_path / "c" / "other"]
        for path, rows in zip(paths, logs, strict=True):
            write_log(path, rows)
        output = succeed(SCRIPT, *paths)
        assert list(plotted[0]) == ["a/run/run", "b/run/run", "c/other/other"]
        for log, rows in zip(plotted[0].values(), logs, strict=True):
            assert log.to_dict("records") == [pytest.approx(row) for row in rows]
        assert "a/run/run: 6 epochs, best val AP 0.9000 in epoch 5" in output

    def test_missing_values_are_left_out(self, tmp_path):
        """The best epoch is one with a value."""
        rows = log_of("asc", 6, step=9)
        for epoch in (1, 3, 5):
            rows[epoch - 1]["val_ap"] = np.nan
        for row in rows:
            row["val_auc"] = row["train_auc"] = np.nan
        result = run_here(SCRIPT, write_log(tmp_path / "run", rows))
        assert "val AP 0.8000 in epoch 4" in result.stdout


class TestFiles:
    def test_directory_of_a_training_run(self, tmp_path):
        """The plot is written next to the log, which stays as it is."""
        log = write_log(tmp_path / "run", [{**row, "val_ap": np.nan} for row in log_of("ste", 3)])
        before = log.read_bytes()
        assert str(log.parent / "training.png") in succeed(SCRIPT, log.parent).splitlines()[-1]
        assert files_under(log.parent) == ["plot_training_cfg.json", "run_logs.csv", "training.png"]
        assert log.read_bytes() == before
        with Image.open(log.parent / "training.png") as image:
            assert min(image.size) >= 200
            assert len(image.convert("RGB").getcolors(1 << 24)) > 10

    @pytest.mark.parametrize(
        ("lines", "words"),
        [
            ([], "empty file"),
            (["learning_rate,val_ap", "0.1,0.5"], "line 1: expected columns epoch"),
            (["epoch,val_ap", "1,0.5"], "line 1: no column 'learning_rate'"),
            (["epoch,learning_rate,val_ap", "1,0.1,0.5", "2,0.1,high"], "line 3: val_ap is 'high', not a number"),
            (["epoch,learning_rate,val_ap", "1,0.1,0.5", "1,0.1,0.5"], "line 3: epoch is 1, expected a whole number"),
            (["epoch,learning_rate,val_ap", "1,0.1,0.5", "2,0.1,0.5", "cut"], "line 4: 1 columns, expected 3"),
        ],
        ids=lambda value: value if isinstance(value, str) else "",
    )
    def test_broken_logs_are_an_error(self, tmp_path, lines, words):
        path = write_text(tmp_path / "run_logs.csv", "".join(line + "\n" for line in lines))
        assert_refused(run_here(SCRIPT, path), f"{path}", words)
        assert files_under(tmp_path) == ["run_logs.csv"]

    def test_missing_or_ambiguous_logs_are_an_error(self, tmp_path):
        assert_refused(run_here(SCRIPT, tmp_path / "nowhere"), tmp_path / "nowhere", "No such file")
        assert_refused(run_here(SCRIPT, tmp_path), tmp_path, "0 logs in this directory")
        for name in ("a", "b"):
            write_text(tmp_path / f"{name}_logs.csv", "epoch\n")
        assert_refused(run_here(SCRIPT, tmp_path), tmp_path, "2 logs in this directory")
        assert_refused(run_here(SCRIPT), "LOG")

    def test_logs_are_never_overwritten(self, tmp_path):
        log = write_log(tmp_path / "run", log_of("asc", 2))
        log = log.rename(tmp_path / "run" / "training.png")
        before = digests(tmp_path)
        assert_refused(run_here(SCRIPT, log), log, "--output would overwrite")
        assert_refused(run_here(SCRIPT, log, "--output", log), log, "--output would overwrite")
        assert_refused(run_here(SCRIPT, log, log, "--output", tmp_path / "plot.png"), log, "given twice")
        assert_refused(run_here(SCRIPT, log, "--output", tmp_path / "plot.txt"), "plot.txt", ".png")
        assert digests(tmp_path) == before

    def test_damaged_logs_are_read_or_refused(self, tmp_path, plotted):
        """With a few bytes of a log replaced at random."""
        whole = write_log(tmp_path / "run", log_of("asc", 4)).read_bytes()
        rng, statuses = random.Random(0), []
        for _ in range(100):
            data = bytearray(whole)
            for _ in range(rng.randint(1, 3)):
                at = rng.randrange(len(data))
                data[at : at + rng.choice((0, 1, 1, 30))] = rng.choice(
                    (b"", b",", b"\n", b"-", b"e9", b"nan", b'"', b"\0")
                )
            path = tmp_path / "run" / "run_logs.csv"
            path.write_bytes(data)
            result = run_here(SCRIPT, path)
            statuses.append(result.returncode)
            if result.returncode:
                assert_refused(result, path)
        assert set(statuses) == {0, 2}
