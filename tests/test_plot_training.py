"""Pictures of training: which logs are read and refused, and what is drawn of them."""

import random
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import assert_refused
from PIL import Image
from tiny_inputs import digests, files_under, run_here, write_text

from core.reports import plots, training_plots
from core.runtime.checkpoint import TrainingRun

SCRIPT = "scripts/plot_training.py"
LOSSES = {"ste": ("av", "audio", "video"), "asc": ("av",)}


def log_of(kind: str, epochs: int, step: int = 2, learning_rate: float = 1e-3) -> list[dict]:
    """Rows of a log as training makes them: val AP rises to 0.9 in the last epoch but one, then falls."""
    rows = []
    for epoch in range(1, epochs + 1):
        row = {"epoch": epoch, "learning_rate": learning_rate * 0.1 ** ((epoch - 1) // step)}
        for split in ("train", "val"):
            row |= {f"{split}_loss_{name}": 1 / epoch + 0.1 * (split == "val") for name in LOSSES[kind]}
            row |= {f"{split}_auc": 0.5 + 0.1 * epoch / epochs, f"{split}_ap": 0.9 - 0.1 * abs(epochs - 1 - epoch)}
        rows.append(row)
    return rows


def write_log(directory: Path, rows: list[dict]) -> Path:
    """<directory>/<its name>_logs.csv"""
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / f"{directory.name}_logs.csv"
    pd.DataFrame(rows).to_csv(path, index=False)
    return path


@pytest.fixture
def figures(monkeypatch) -> list:
    """Every figure from here on, which is drawn but not written."""
    made = []

    def save(figure, path: Path) -> Path:
        figure.canvas.draw()
        made.append(figure)
        training_plots.plt.close(figure)
        return path

    monkeypatch.setattr(training_plots, "save", save)
    return made


def draw(figures: list, *logs: object):
    """The figure of some logs, and what was printed."""
    result = run_here(SCRIPT, *logs, "--output", Path(str(logs[0])).parent / "drawn.png")
    assert result.returncode == 0, result.stderr
    return figures[-1], result.stdout


def panels(figure) -> dict:
    """Title -> axes of the panels that are shown."""
    return {axes.get_title(loc="left"): axes for axes in figure.axes if axes.get_visible()}


def curves(axes, linestyle: str) -> list[tuple[list, list]]:
    """x and y of a panel's curves in this style; stars and the marks of the learning rate are none."""
    lines = [line for line in axes.lines if line.get_linestyle() == linestyle and line.get_marker() == "."]
    return [(list(line.get_xdata()), list(line.get_ydata())) for line in lines]


def stars(axes) -> list[tuple[float, float]]:
    lines = [line for line in axes.lines if line.get_marker() == "*"]
    return [(line.get_xdata()[0], line.get_ydata()[0]) for line in lines]


def legend(figure) -> list[str]:
    return [text.get_text().strip() for text in figure.legends[0].get_texts()]


class TestDrawn:
    def test_a_panel_for_each_loss_and_for_auc_and_ap(self, figures, tmp_path):
        rows = log_of("ste", 5)
        figure, output = draw(figures, write_log(tmp_path / "ste_encoder", rows))
        shown = panels(figure)
        assert [title.split(",")[0].split(" ")[0] for title in shown] == ["loss", "loss", "loss", "AUC", "AP"]
        columns = ["loss_av", "loss_audio", "loss_video", "auc", "ap"]
        for axes, column in zip(shown.values(), columns, strict=True):
            for split, style in (("val", "-"), ("train", "--")):
                ((x, y),) = curves(axes, style)
                assert x == [1, 2, 3, 4, 5]
                assert y == pytest.approx([row[f"{split}_{column}"] for row in rows])
            assert stars(axes) == [(4, pytest.approx(rows[3][f"val_{column}"]))]
        assert "ste_encoder: 5 epochs, val AP 0.9000 in epoch 4, learning rate 0.001 at first" in output
        assert legend(figure)[:3] == ["val", "train", "best val AP"]

    def test_where_the_learning_rate_changed(self, figures, tmp_path):
        """At the first epoch of each new value, with the value."""
        figure, _ = draw(figures, write_log(tmp_path / "run", log_of("asc", 5, step=2)))
        for axes in panels(figure).values():
            upright = [line for line in axes.lines if len(set(line.get_xdata())) == 1 and line.get_marker() == "None"]
            assert [line.get_xdata()[0] for line in upright] == [3, 5]
            assert [(text.get_text(), text.xy[0]) for text in axes.texts] == [("0.0001", 3), ("1e-05", 5)]
        assert "learning rate from here on" in legend(figure)

    def test_several_runs_of_different_length_and_kind(self, figures, tmp_path):
        """A colour for each, named by where they lie; a panel has those that have its metric."""
        logs = [log_of("ste", 6, step=3), log_of("ste", 2), log_of("asc", 4, step=3)]
        paths = [tmp_path / "a" / "run", tmp_path / "b" / "run", tmp_path / "c" / "other"]
        for path, rows in zip(paths, logs, strict=True):
            write_log(path, rows)
        figure, output = draw(figures, *paths)
        shown = list(panels(figure).values())
        assert [len(curves(axes, "-")) for axes in shown] == [3, 2, 2, 3, 3]
        assert [len(x) for x, _ in curves(shown[0], "-")] == [6, 2, 4]
        colours = {line.get_color() for line in shown[0].lines if line.get_linestyle() == "-"}
        assert colours == set(plots.COLOURS[:3])
        assert [(text.get_text(), text.xy[0], text.get_color()) for text in shown[0].texts] == [
            ("0.0001", 4, "black")
        ]  # which two of them share
        for text, path in zip(legend(figure)[4:], paths, strict=True):
            assert text.startswith(f"{path.parent.name}/{path.name}/{path.name}: ")
        assert output.count("epochs") == 3

    def test_values_that_are_missing(self, figures, tmp_path):
        """Left out; one between two of them is a dot; a metric without any says so; the best is one of the others."""
        rows = log_of("asc", 6, step=9)
        for epoch in (1, 3, 5):
            rows[epoch - 1]["val_ap"] = np.nan
        for row in rows:
            row["val_auc"] = row["train_auc"] = np.nan
        figure, output = draw(figures, write_log(tmp_path / "run", rows))
        loss, auc, ap = panels(figure).values()
        ((x, y),) = curves(ap, "-")
        assert [epoch for epoch, value in zip(x, y, strict=True) if np.isfinite(value)] == [2, 4, 6]
        (line,) = (line for line in ap.lines if line.get_linestyle() == "-" and line.get_marker() != "*")
        assert line.get_markevery() == [False, True, False, True, False, True]
        assert [text.get_text() for text in auc.texts] == ["no values"]
        assert len(curves(loss, "-")) == 1
        assert "val AP 0.8000 in epoch 4" in output
        assert "learning rate from here on" not in legend(figure)

    def test_without_any_val_ap(self, figures, tmp_path):
        rows = [{**row, "val_ap": np.nan} for row in log_of("asc", 3)]
        figure, output = draw(figures, write_log(tmp_path / "run", rows))
        assert all(not stars(axes) for axes in panels(figure).values())
        assert "no val AP" in output

    def test_one_epoch(self, figures, tmp_path):
        figure, _ = draw(figures, write_log(tmp_path / "run", log_of("asc", 1)))
        axes = next(iter(panels(figure).values()))
        (line,) = (line for line in axes.lines if line.get_linestyle() == "--")
        assert (line.get_marker(), line.get_markevery()) == (".", [True])
        assert axes.get_xlim() == (0, 2)

    def test_a_rate_that_changes_all_the_time_is_told_in_words(self, figures, tmp_path):
        figure, output = draw(figures, write_log(tmp_path / "run", log_of("asc", 30, step=1)))
        assert all(not axes.texts for axes in panels(figure).values())
        assert "learning rate 0.001 to 1e-32 (29 changes)" in output

    def test_nothing_overlaps(self, figures, tmp_path):
        """Values of learning rates above the panels, of runs that change it at different epochs, and long names."""
        paths = [tmp_path / f"{'long' * 15}{step}" for step in (3, 4, 5, 6)]
        for path, step in zip(paths, (3, 4, 5, 6), strict=True):
            write_log(path, log_of("ste", 20, step))
        figure, _ = draw(figures, *paths)
        box = figure.legends[0].get_window_extent()
        assert box.x0 >= 0
        assert box.x1 <= figure.bbox.x1
        for axes in panels(figure).values():
            assert axes.get_tightbbox().y0 >= box.y1
            texts = [text for text in axes.texts if text.get_text()]
            boxes = [text.get_window_extent() for text in (*texts, axes._left_title)]
            assert len(texts) > 5
            assert not any(one.overlaps(other) for i, one in enumerate(boxes) for other in boxes[:i])


class TestFiles:
    def test_as_training_writes_it(self, tmp_path):
        """A run's directory, with its weights and its checkpoint; the picture lies beside the log."""
        run = TrainingRun(tmp_path, "ste_encoder", {}, resume=False)
        run.restore({})
        for row in log_of("ste", 3):
            parts = dict.fromkeys(("model", "optimizer", "scheduler"), Nothing())
            run.save(parts, {**row, "val_ap": float("nan")})
        before = digests(run.directory)
        result = run_here(SCRIPT, run.directory)
        assert result.returncode == 0, result.stderr
        assert str(run.directory / "training.png") in result.stdout.splitlines()[-1]
        after = digests(run.directory)
        assert set(after) - set(before) == {"training.png", "plot_training_cfg.json"}
        assert before == {name: after[name] for name in before}
        with Image.open(run.directory / "training.png") as picture:
            assert min(picture.size) >= 200
            assert len(picture.convert("RGB").getcolors(1 << 24)) > 10
        TrainingRun(tmp_path, "ste_encoder", {}, resume=True)  # nor does the picture stand in its way

    def test_output_elsewhere(self, tmp_path):
        log = write_log(tmp_path / "run", log_of("asc", 2))
        result = run_here(SCRIPT, log, "--output", tmp_path / "made" / "here.png")
        assert result.returncode == 0, result.stderr
        assert files_under(tmp_path / "made") == ["here.png", "plot_training_cfg.json"]
        assert files_under(tmp_path / "run") == ["run_logs.csv"]

    @pytest.mark.parametrize(
        ("lines", "words"),
        [
            ([], "empty file"),
            (["epoch,learning_rate,val_ap"], "no rows"),
            (["learning_rate,val_ap", "0.1,0.5"], "line 1: no column epoch"),
            (["epoch,val_ap", "1,0.5"], "line 1: no column 'learning_rate'"),
            (["epoch,learning_rate,ap", "1,0.1,0.5"], "line 1: no column train_<metric> or val_<metric>"),
            (["epoch,learning_rate,val_ap,val_ap", "1,0.1,0.5,0.5"], "line 1: a column name stands twice"),
            (["epoch,learning_rate,val_ap", "1,0.1,0.5", "2,0.1,high"], "line 3: val_ap is 'high', not a number"),
            (["epoch,learning_rate,val_ap", "1,0.1,0.5", "2,0.1,inf"], "line 3: val_ap is 'inf', not a number"),
            (["epoch,learning_rate,val_ap", "1,,0.5"], "line 2: learning_rate is '', not a number"),
            (["epoch,learning_rate,val_ap", "1,-0.1,0.5"], "line 2: learning_rate is -0.1, expected at least 0"),
            (["epoch,learning_rate,val_ap", "0,0.1,0.5"], "line 2: epoch is 0, expected a whole number"),
            (["epoch,learning_rate,val_ap", "1,0.1,0.5", "1,0.1,0.5"], "line 3: epoch is 1, expected a whole number"),
            (["epoch,learning_rate,val_ap", "1.5,0.1,0.5"], "line 2: epoch is 1.5, expected a whole number"),
            (["epoch,learning_rate,val_ap", "1,0.1,0.5", "2,0.1"], "line 3: 2 columns, expected 3"),
            (["epoch,learning_rate,val_ap", "1,0.1,0.5", "2,0.1,0.5", "cut"], "line 4: 1 columns, expected 3"),
        ],
        ids=lambda value: value if isinstance(value, str) else "",
    )
    def test_broken_logs_are_refused_with_their_line(self, tmp_path, lines, words):
        path = write_text(tmp_path / "run_logs.csv", "".join(line + "\n" for line in lines))
        assert_refused(run_here(SCRIPT, path), f"{path}", words)
        assert files_under(tmp_path) == ["run_logs.csv"]

    def test_what_is_not_there_or_not_one(self, tmp_path):
        assert_refused(run_here(SCRIPT, tmp_path / "nowhere"), tmp_path / "nowhere", "No such file")
        assert_refused(run_here(SCRIPT, tmp_path), tmp_path, "0 logs in this directory")
        for name in ("a", "b"):
            write_text(tmp_path / f"{name}_logs.csv", "epoch\n")
        assert_refused(run_here(SCRIPT, tmp_path), tmp_path, "2 logs in this directory")
        assert_refused(run_here(SCRIPT), "LOG")

    def test_never_writes_over_a_log(self, tmp_path):
        log = write_log(tmp_path / "run", log_of("asc", 2))
        odd = Path(log.rename(tmp_path / "run" / "training.png"))
        before = digests(tmp_path)
        assert_refused(run_here(SCRIPT, odd), "both", "--output")
        assert_refused(run_here(SCRIPT, odd, "--output", odd), "both", "--output")
        assert_refused(run_here(SCRIPT, odd, odd), "both", "number 2")
        assert_refused(run_here(SCRIPT, odd, "--output", tmp_path / "picture.txt"), "picture.txt", ".png")
        assert digests(tmp_path) == before

    def test_damaged_logs_are_read_or_refused_in_one_line(self, tmp_path, figures):
        """A few hundred of them, a byte or a piece at a time."""
        whole = write_log(tmp_path / "run", log_of("asc", 4)).read_bytes()
        rng, statuses = random.Random(0), []
        for _ in range(150):
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


class Nothing:
    """Something with an empty state."""

    def state_dict(self) -> dict:
        return {}
