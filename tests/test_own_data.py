"""Data, features, weights and predictions of users and of other projects, through the command lines of the scripts."""

import json
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, assert_refused, printed
from plain_metrics import plain_average_precision
from stages import TRAINING, command
from tiny_inputs import (
    LABELS,
    SmallEncoder,
    Track,
    digests,
    faces_of,
    official_line,
    read_csv,
    read_json,
    run_here,
    succeed,
    write_annotations,
    write_encoder_inputs,
    write_predictions,
    write_text,
    write_wav,
)

from core.formats.annotations import read_annotations
from core.models import active_speakers_context

Result = subprocess.CompletedProcess[str]
TRAIN = [Track("three:a", "0110210", 0.2, "three"), Track("four:a", "10011", 0.28, "four")]
VAL = [Track("one:a", "0110210", 0.2, "one"), Track("one:b", "10011", 0.28, "one"), Track("two:a", "1101", 0.0, "two")]
FACES = faces_of(VAL)
POSITIVE = [face.label == 1 for face in FACES]
WEIGHTS = Path("models", TRAINING["ASC_train.py"], "3.pth")  # trained on the features of STE.pth
FORWARD = {"STE_postprocessing.py": "--forward-dir", "ASC_prediction_postprocessing.py": "--predictions-dir"}


def notes(result: Result) -> list[str]:
    return [line for line in printed(result).splitlines() if line.startswith("note: ")]


def next_command(result: Result) -> list[str]:
    (line,) = [line for line in printed(result).splitlines() if line.startswith("next: python ")]
    return shlex.split(line)[2:]


def encode(root: Path, out: Path, *flags: object) -> Result:
    return run_here(*command("STE_forward.py", root, out), "--workers", 0, *flags)


def predict(store: Path, weights: Path, out: Path, *flags: object, stride: int = 2) -> Result:
    files = ("--features-val-full", store, "--weights", weights, "--output-dir", out)
    return run_here("ASC_forward.py", 3, stride, 2, "cpu", *files, *flags)


def postprocess(script: str, directory: Path, truth: Path, out: Path) -> Result:
    return run_here(*command(script, out, out), FORWARD[script], directory, "--ground-truth", truth)


def train(script: str, root: Path, out: Path, *flags: object) -> Result:
    features = ("--features-train-full", root / "train") if script == "ASC_train.py" else ()
    return run_here(*command(script, root, out), *features, *flags)


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """Own data in a directory whose name has a blank: clips, two encoders, their features, and a context network."""
    root = tmp_path_factory.mktemp("own") / "own data"
    write_encoder_inputs(root, "train", TRAIN)
    write_encoder_inputs(root, "val", VAL)
    for seed, name in enumerate(("STE", "other")):
        torch.manual_seed(seed)
        torch.save(SmallEncoder(1).state_dict(), root / f"{name}.pth")
    printed(encode(root, root / "train", "--split", "train", "--csv", root / "train.csv"))
    printed(encode(root, root / "features"))
    printed(encode(root, root / "other", "--weights", root / "other.pth"))
    printed(train("ASC_train.py", root, root / "models"))
    return root


# Features and weights


def test_features_of_another_encoder_are_refused(root, tmp_path):
    encoders = (root / "STE.pth", root / "other.pth", "--allow-mismatch")
    assert_refused(predict(root / "other", root / WEIGHTS, tmp_path / "out"), *encoders)
    assert not (tmp_path / "out").exists()
    printed(predict(root / "other", root / WEIGHTS, tmp_path / "out", "--allow-mismatch"))
    flags = ("--features-val-full", root / "other")
    assert_refused(train("ASC_train.py", root, tmp_path, *flags), *encoders)
    trained = train("ASC_train.py", root, tmp_path, *flags, "--allow-mismatch")
    succeed(*next_command(trained), "--output-dir", tmp_path / "next")


def test_missing_record_of_the_encoder_is_noted_once(root, tmp_path):
    store = shutil.copytree(root / "features", tmp_path / "store")
    (store / "STE_forward_cfg.json").unlink()
    other = shutil.copy(root / WEIGHTS, tmp_path / "ASC.pth")
    for features, network in ((store, root / WEIGHTS), (root / "features", other), (store, other)):
        (note,) = notes(predict(features, network, tmp_path / f"{features.name} {network.name}"))
        assert "no record of the encoder" in note


def test_other_stride_than_in_training_is_refused(root, tmp_path):
    arguments = (root / "features", root / WEIGHTS, tmp_path / "out")
    assert_refused(predict(*arguments, stride=1), root / WEIGHTS, "stride 2, not 1", "--allow-mismatch")
    printed(predict(*arguments, "--allow-mismatch", stride=1))


def test_moved_data_is_not_computed_again(root, tmp_path):
    after = shutil.copytree(root, tmp_path / "after")
    assert "2 videos already done" in printed(encode(after, after / "features"))
    assert "epoch   4" in printed(train("ASC_train.py", after, after / "models", "--epochs", 4, "--resume"))
    trained = after / "models" / TRAINING["ASC_train.py"] / "4.pth"
    printed(predict(root / "features", trained, after / "out"))
    assert "2 videos already done" in printed(predict(after / "features", trained, after / "out"))


def test_features_written_by_numpy_2_are_read(root, tmp_path):
    for name, number in (("plain", "{!r}"), ("numpy", "np.float32({!r})")):
        for file in (root / "features").glob("*.npy"):
            lists = (", ".join(number.format(value) for value in row) for row in np.load(file).tolist())
            rows = zip(read_csv(file.with_suffix(".csv"))[1:], lists, strict=True)
            text = "".join(f'{",".join(row)},"[{features}]"\n' for row, features in rows)
            write_text(tmp_path / f"{name}_store" / f"{file.stem}.csv", text)
        printed(predict(tmp_path / f"{name}_store", root / WEIGHTS, tmp_path / name))
    assert digests(tmp_path / "numpy", "*.csv") == digests(tmp_path / "plain", "*.csv")


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_arrays_of_other_floats_are_converted(dtype, root, tmp_path):
    for name, kind in (("float32", np.float32), ("other", dtype)):
        store = shutil.copytree(root / "features", tmp_path / f"{name}_store")
        for path in store.glob("*.npy"):
            np.save(path, np.load(path).astype(dtype).astype(kind))
        found = notes(predict(store, root / WEIGHTS, tmp_path / name))
        assert [dtype.__name__ in note for note in found] == [True] * (name == "other")
    assert digests(tmp_path / "other", "*.csv") == digests(tmp_path / "float32", "*.csv")


# Crops, videos and labels


def test_missing_videos_are_left_out_on_request(root, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    truth = write_annotations(tmp_path / "all.csv", [*FACES, *Track("gone:a", "0101", 0.2, "gone").faces])
    encoded = encode(root, tmp_path / "store", "--csv", truth, "--skip-missing")
    assert "features of 2 of 3 videos" in printed(encoded)
    reason = ("4 rows", "gone:a at 0.2 s", "--only-predicted")
    assert_refused(postprocess("STE_postprocessing.py", tmp_path / "store", truth, tmp_path), *reason)
    for stage in (encoded, predict(tmp_path / "store", root / WEIGHTS, tmp_path / "logits")):
        outputs = ("--predictions-csv", "p.csv", "--ground-truth-csv", "t.csv", "--json", "n.json")
        result = run_here(*next_command(stage), *outputs)
        assert any("16 of 20 rows have a prediction" in note for note in notes(result))
        scores = [float(line[-1]) for line in read_csv(tmp_path / "p.csv")]
        assert read_json(tmp_path / "n.json")["mAP"] == pytest.approx(plain_average_precision(scores, POSITIVE))
        succeed(*next_command(result))
    flags = ("--predictions", "p.csv", "--ground-truth", truth)
    assert_refused(run_here("scripts/evaluate.py", *flags), *reason)
    succeed("scripts/evaluate.py", *flags, "--only-predicted")


def test_crops_with_two_decimals_are_found(root, tmp_path):
    crops = shutil.copytree(root / "crops", tmp_path / "crops")
    for path in (crops / "val").rglob("*.jpg"):
        path.rename(path.with_name(f"{float(path.stem):.2f}.jpg"))
    assert (crops / "val" / "one:a" / "0.20.jpg").exists()
    printed(encode(root, tmp_path / "store", "--video-dir", crops))
    assert digests(tmp_path / "store", "*.npy") == digests(root / "features", "*.npy")
    inputs = ("--split", "val", "--csv", root / "val.csv", "--ava-video-dir", tmp_path)
    result = run_here("data/extract_face_crops_time.py", *inputs, "--output-dir", crops)
    assert "0 crops written, 16 skipped" in printed(result)


def test_clips_with_holes_are_counted(root, tmp_path):
    """A clip has 3 crops, so a missing crop makes a hole in the clips of its two neighbours."""
    torch.save(SmallEncoder(3).state_dict(), tmp_path / "STE.pth")
    shutil.copytree(root / "wavs", tmp_path / "wavs")
    crops = shutil.copytree(root / "crops", tmp_path / "crops")
    for name in ("one:a/0.2.jpg", "one:a/0.32.jpg", "two:a/0.12.jpg"):  # first, inner and last crop of a track
        (crops / "val" / name).unlink()
    script, _, *arguments = command("STE_forward.py", tmp_path, tmp_path / "store")
    result = run_here(script, 3, *arguments, "--csv", root / "val.csv", "--workers", 0, "--skip-missing")
    assert "3 rows skipped; 2 clips of the other 13 rows have holes" in printed(result)


def test_crops_that_were_missing_are_used_later(root, tmp_path):
    crops = shutil.copytree(root / "crops", tmp_path / "crops")
    name, flags = Path("val", "one:b", "0.4.jpg"), ("--video-dir", crops, "--skip-missing")
    (crops / name).unlink()
    assert "1 rows skipped" in printed(encode(root, tmp_path / "store", *flags))
    shutil.copy(root / "crops" / name, crops / name)
    assert "1 videos already done" in printed(encode(root, tmp_path / "store", *flags))
    assert digests(tmp_path / "store", "*.npy") == digests(root / "features", "*.npy")
    (crops / name).unlink()  # no longer needed
    assert "2 videos already done" in printed(encode(root, tmp_path / "store", *flags))


def test_failures_leave_no_old_output_with_overwrite(root, tmp_path):
    for video in ("one", "two"):
        write_wav(tmp_path / "audio" / f"{video}.wav", np.ones(16000))
    script, *arguments = command("data/slice_audio_tracks.py", tmp_path, tmp_path / "slices")
    arguments += ["--csv", root / "val.csv"]
    succeed(script, *arguments)
    (tmp_path / "audio" / "one.wav").unlink()
    result = run_here(script, *arguments, "--overwrite")
    assert result.returncode == 1
    assert {path.name for path in (tmp_path / "slices" / "val").glob("*.wav")} == {"two:a.wav"}
    assert "--skip-missing" in result.stdout
    assert f"next: python data/extract_face_crops_time.py --split val --csv '{root / 'val.csv'}'" in result.stdout


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda face: face._replace(time=5 * face.time), "rows are 0.2 s apart"),
        (lambda face: face._replace(entity=f"{face.entity} {face.time}"), "single row"),
    ],
)
def test_unusual_tracks_are_noted(change, problem, tmp_path):
    write_annotations(tmp_path / "val.csv", map(change, FACES))
    (tmp_path / "audio").mkdir()
    result = run_here(*command("data/slice_audio_tracks.py", tmp_path, tmp_path / "slices"))
    assert f"note: {tmp_path / 'val.csv'}: " in result.stdout
    assert problem in result.stdout


def test_broken_crops_are_named(root, tmp_path):
    crops = shutil.copytree(root / "crops", tmp_path / "crops")
    broken = crops / "val" / "one:b" / "0.4.jpg"
    broken.write_bytes(b"<html>not found</html>")
    result = encode(root, tmp_path / "store", "--video-dir", crops)
    assert_refused(result, broken)
    assert "BytesIO" not in result.stderr


ROWS = "".join(map(official_line, FACES))
OFFICIAL = "video_id,frame_timestamp,entity_box_x1,entity_box_y1,entity_box_x2,entity_box_y2,label,entity_id"


def relabelled(*names: str) -> str:
    """ROWS with other names of the three labels."""
    lines = zip(ROWS.splitlines(keepends=True), FACES, strict=True)
    return "".join(line.replace(f",{LABELS[face.label]},", f",{names[face.label]},") for line, face in lines)


UNLABELLED = {
    "no label column": f"{OFFICIAL.replace(',label', '')}\n{relabelled('', '', '').replace(',,', ',')}",
    "empty labels": relabelled("", "", ""),
    "all NOT_SPEAKING": relabelled(*LABELS[:1] * 3),
}


@pytest.mark.parametrize("text", UNLABELLED.values(), ids=UNLABELLED)
def test_predictions_of_videos_without_labels(text, root, tmp_path):
    truth = write_text(tmp_path / "unlabelled.csv", text)
    for name, flags in (("labelled", ()), ("other", ("--csv", truth))):
        printed(encode(root, tmp_path / f"{name}_store", *flags))
        printed(predict(tmp_path / f"{name}_store", root / WEIGHTS, tmp_path / f"{name}_logits"))
    for script, kind in zip(FORWARD, ("store", "logits"), strict=True):
        result = postprocess(script, tmp_path / f"other_{kind}", truth, tmp_path / "out")
        assert printed(result).count("\nno evaluation: ") == 1
        printed(postprocess(script, tmp_path / f"labelled_{kind}", root / "val.csv", tmp_path / "expected"))
        assert digests(tmp_path / "out", "p.csv") == digests(tmp_path / "expected", "p.csv")


def test_only_speaking_rows_are_noted(root, tmp_path):
    truth = write_annotations(tmp_path / "val.csv", [face._replace(label=1) for face in FACES])
    (note,) = notes(postprocess("STE_postprocessing.py", root / "features", truth, tmp_path))
    assert "all rows are SPEAKING_AUDIBLE" in note


# Annotations and predictions

BOX = "0.25,0.125,0.5,0.75"
SCORES = np.random.default_rng(0).random(len(FACES)).tolist()


def scored(scores: Iterable[float], rows: str = relabelled(*[LABELS[1]] * 3)) -> str:
    """Final predictions of the rows."""
    return "".join(f"{line},{score!r}\n" for line, score in zip(rows.splitlines(), scores, strict=True))


def evaluate(directory: Path, *flags: object, truth: str = ROWS, predictions: str = scored(SCORES)) -> Result:
    """Run scripts/evaluate.py on the texts of two files."""
    inputs = ("--ground-truth", write_text(directory / "truth.csv", truth))
    files = ("--predictions", write_text(directory / "predictions.csv", predictions), "--json", directory / "n.json")
    return run_here("scripts/evaluate.py", *inputs, *files, *flags)


def assert_usual_map(directory: Path, *flags: object, **texts: str) -> None:
    printed(evaluate(directory, *flags, **texts))
    assert read_json(directory / "n.json")["mAP"] == pytest.approx(plain_average_precision(SCORES, POSITIVE))


ACCEPTED = {
    "short header": f"Video,Time,X1,Y1,X2,Y2,Label,Track_ID\n{ROWS}",
    "blank before the label": relabelled(*(f" {label}" for label in LABELS)),
    "lower case": relabelled(*map(str.lower, LABELS)),
    "numbers": relabelled("0", "1", "2"),
    "names on AVA's web site": relabelled("NOT_SPEAKING", "SPEAKING_AND_AUDIBLE", "SPEAKING_BUT_NOT_AUDIBLE"),
    "no last line end": ROWS.rstrip("\n"),
}
REFUSED = {
    "pixels": (ROWS.replace(BOX, "160,60,320,360"), ("line 1", "160, 60, 320, 360", "pixels")),
    "outside": (ROWS.replace(BOX, "-0.02,0.1,0.5,0.75"), ("line 1", "-0.02, 0.1, 0.5, 0.75", "--clip-boxes")),
    "semicolons": (ROWS.replace(",", ";"), ("line 1", "semicolons")),
    "tabs": (f"{OFFICIAL}\n{ROWS}".replace(",", "\t"), ("tabs",)),
    "index": ("".join(f"{i},{line}" for i, line in enumerate(ROWS.splitlines(True))), ("9 columns", "index")),
    "Excel": (ROWS.replace("one:b", "#NAME?"), ("line 8", "#NAME?", "spreadsheet")),
    "other label": (relabelled("NOT_SPEAKING", "TALKING", "NOT_SPEAKING"), ("line 2", "'TALKING'")),
}


@pytest.mark.parametrize("text", ACCEPTED.values(), ids=ACCEPTED)
def test_other_spellings_of_annotations(text, tmp_path):
    assert_usual_map(tmp_path, truth=text)


def test_columns_in_the_readme_are_a_header(tmp_path):
    readme = " ".join((ROOT / "README.md").read_text().split())
    columns = re.search(r"The columns are (.+?) \(no header\)", readme)[1]
    assert_usual_map(tmp_path, truth=f"{columns}\n{ROWS}")


def test_annotations_in_the_docs_are_read(tmp_path):
    page = (ROOT / "docs" / "own_data.md").read_text()
    lines = re.findall(r"^    (video_id,.*|talk,.*)\n", page, re.MULTILINE)
    table = read_annotations(write_text(tmp_path / "talk.csv", "".join(f"{line}\n" for line in lines)))
    assert (len(table), table.entity_ids) == (3, ["talk_0001", "talk_0002"])


@pytest.mark.parametrize(("text", "words"), REFUSED.values(), ids=REFUSED)
def test_messages_have_the_value_and_the_likely_cause(text, words, tmp_path):
    assert_refused(evaluate(tmp_path, truth=text), tmp_path / "truth.csv", *words)


def test_boxes_are_clipped_on_request(root, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = ROWS.replace(BOX, "-0.02,0.125,0.5,1.05")
    truth = write_text(tmp_path / "wide.csv", text)
    result = encode(root, tmp_path / "store", "--csv", truth, "--clip-boxes")
    succeed(*next_command(result), "--predictions-csv", "p.csv", "--ground-truth-csv", "t.csv")
    assert {tuple(map(float, line[2:6])) for line in read_csv(tmp_path / "t.csv")} == {(0, 0.125, 0.5, 1)}
    clipped = scored(SCORES).replace(BOX, "0,0.125,0.5,1")
    assert_usual_map(tmp_path, "--clip-boxes", truth=text, predictions=clipped)
    assert_refused(evaluate(tmp_path, "--clip-boxes", truth=REFUSED["pixels"][0]), "line 1", "pixels")


def test_timestamps_are_joined_at_one_millisecond(root, tmp_path):
    rounded = [face._replace(time=float(np.float32(face.time))) for face in FACES]
    lines = zip(scored(SCORES).splitlines(), FACES, rounded, strict=True)
    text = "".join(f"{line}\n".replace(f",{face.time:g},", f",{other.time!r},") for line, face, other in lines)
    assert "0.20000000298" in text
    assert_usual_map(tmp_path, predictions=text)
    half = (ROWS.replace("one,0.2,", "one,0.2025,"), text.replace("one,0.20000000298", "one,0.20250000060"))
    assert_usual_map(tmp_path, truth=half[0], predictions=half[1])  # between two milliseconds
    write_predictions(tmp_path / "logits", rounded, lambda face: (0.0, float(face.label)))
    printed(postprocess("ASC_prediction_postprocessing.py", tmp_path / "logits", root / "val.csv", tmp_path))
    late = evaluate(tmp_path, predictions=scored(SCORES).replace("one,0.2,", "one,0.202,"))
    assert_refused(late, "one:a at 0.2 s of one", "one:a at 0.202 s of one")


def test_range_of_tied_scores_is_printed(tmp_path):
    rounded = [round(score, 1) for score in SCORES]
    (note,) = notes(evaluate(tmp_path, predictions=scored(rounded)))
    expected = []
    for sign in (1, -1):  # of equal scores, negative rows first, then positive rows first
        order = sorted(range(16), key=lambda row: (-rounded[row], sign * POSITIVE[row]))
        precision = plain_average_precision([-rank for rank in range(16)], [POSITIVE[row] for row in order])
        expected.append(f"{100 * precision:.2f}")
    assert re.findall(r"\d+\.\d\d", note) == expected
    assert f" {sum(rounded.count(score) > 1 for score in rounded)} rows share scores" in note
    assert notes(evaluate(tmp_path)) == []


@pytest.mark.parametrize("names", [LABELS[:2], ("not_speaking", "speaking_audible"), ("0", "1")])
def test_decisions_with_their_confidence_are_refused(names, tmp_path):
    """Labels may be decisions, but all scores must be those of SPEAKING_AUDIBLE."""
    lines = zip(relabelled("", "", "").splitlines(), SCORES, strict=True)
    decided = "\n".join(line.replace(",,", f",{names[score > 0.5]},") for line, score in lines)
    assert_usual_map(tmp_path, predictions=scored(SCORES, decided))
    confidence = evaluate(tmp_path, predictions=scored((max(score, 1 - score) for score in SCORES), decided))
    assert_refused(confidence, tmp_path / "predictions.csv, line", f"label {names[0]}", "those of SPEAKING_AUDIBLE")


def test_other_boxes_than_in_the_ground_truth_are_refused(tmp_path):
    moved = evaluate(tmp_path, predictions=scored(SCORES).replace(BOX, "0.26,0.125,0.5,0.75", 3))
    assert_refused(moved, "3 boxes differ", "one:a at 0.2 s of one")
    assert_usual_map(tmp_path, predictions=scored(SCORES).replace(BOX, "0.2501,0.125,0.5,0.75"))


# Training


@pytest.mark.parametrize("script", TRAINING)
def test_training_starts_from_given_weights(script, root, tmp_path):
    """With a learning rate that changes nothing, only the statistics of batch norm differ afterwards."""
    is_encoder = script == "STE_train.py"
    start = root / ("other.pth" if is_encoder else WEIGHTS)
    other = SmallEncoder(3) if is_encoder else active_speakers_context(3, 3)
    flags = ("--learning-rate", 1e-30, "--epochs", 2)
    printed(train(script, root, tmp_path, "--init-weights", start, *flags))
    printed(train(script, root, tmp_path, "--resume", *flags))  # its record of the first weights is kept
    (settings,) = (tmp_path / TRAINING[script]).glob("*_cfg.json")
    assert read_json(settings)["init_weights"] == str(start)
    before, after = torch.load(start), torch.load(tmp_path / TRAINING[script] / "2.pth")
    assert all(torch.allclose(before[name], after[name], 0, 1e-20) for name, _ in other.named_parameters())
    torch.save(other.state_dict(), tmp_path / "other.pth")
    refused = train(script, root, tmp_path / "refused", "--init-weights", tmp_path / "other.pth")
    assert_refused(refused, tmp_path / "other.pth", "were they trained with clip_length")


def test_next_command_without_annotations_that_have_been_moved(root, tmp_path):
    store = shutil.copytree(root / "features", tmp_path / "features")
    torch.save(active_speakers_context(3, 2).state_dict(), tmp_path / "ASC.pth")
    for csv, expected in ((root / "val.csv", True), (tmp_path / "moved.csv", False)):
        write_text(store / "STE_forward_cfg.json", json.dumps({"csv": str(csv)}))
        out = ("--weights", tmp_path / "ASC.pth", "--output-dir", tmp_path / csv.stem)
        result = run_here("ASC_forward.py", 3, 2, 2, "cpu", "--features-val-full", store, *out)
        assert ("--ground-truth" in printed(result)) == expected


def test_next_commands_run_as_printed(root, tmp_path, monkeypatch):
    """From training to the evaluation, with all inputs in other places than the default ones."""
    monkeypatch.chdir(tmp_path)
    result, commands = train("STE_train.py", root, tmp_path / "own models"), []
    while "next: " in printed(result):
        commands.append(next_command(result))
        result = run_here(*commands[-1], *(["--epochs", 1] if "ASC_train.py" in commands[-1] else []))
    stages = [*["STE_forward.py"] * 2, "STE_postprocessing.py", "ASC_train.py", "ASC_forward.py"]
    assert [words[0] for words in commands] == [*stages, "ASC_prediction_postprocessing.py", "scripts/evaluate.py"]
    assert all(str(tmp_path / "own models" / "ste_encoder" / "best.pth") in words for words in commands[:2])


def test_best_weights(root, tmp_path):
    """The validation labels are those of training, inverted, so that validation AP falls while training AP rises."""
    store = shutil.copytree(root / "train", tmp_path / "inverted")
    for path in store.glob("*.csv"):
        write_text(path, re.sub(r",([01]),", lambda label: f",{1 - int(label[1])},", path.read_text()))
    flags = ("--features-val-full", store, "--epochs", 4, "--batch-size", 4, "--learning-rate", 3e-3)
    result = train("ASC_train.py", root, tmp_path, *flags)
    run = tmp_path / TRAINING["ASC_train.py"]
    header, *rows = read_csv(run / f"{run.name}_logs.csv")
    values = [float(row[header.index("val_ap")]) for row in rows]
    epoch = values.index(max(values)) + 1
    assert epoch < 4
    assert (run / "best.pth").read_bytes() == (run / f"{epoch}.pth").read_bytes()
    assert f"best.pth is epoch {epoch}, with the highest validation AP: {max(values):.4f}" in printed(result)
    assert str(run / "best.pth") in next_command(result)
    (note,) = notes(result)
    assert "2 videos are in train and in val, such as four" in note


def test_labels_are_checked_before_training(root, tmp_path):
    """Missing ones and training without speaking rows are refused, validation without speaking rows is noted."""
    unlabelled = write_text(tmp_path / "unlabelled.csv", UNLABELLED["empty labels"])
    printed(encode(root, tmp_path / "store", "--csv", unlabelled))
    for script, flag, source in (
        ("STE_train.py", "--csv-val-full", unlabelled),
        ("ASC_train.py", "--features-val-full", tmp_path / "store"),
    ):
        assert_refused(train(script, root, tmp_path, flag, source), source, "16 of 16 rows have no label")
    silent = write_annotations(tmp_path / "train.csv", [face._replace(label=0) for face in faces_of(TRAIN)])
    refused = train("STE_train.py", root, tmp_path, "--csv-train-full", silent)
    assert_refused(refused, silent, "no row is labelled SPEAKING_AUDIBLE")
    silent = write_text(tmp_path / "val.csv", UNLABELLED["all NOT_SPEAKING"])
    (note,) = notes(result := train("STE_train.py", root, tmp_path, "--csv-val-full", silent))
    assert f"{silent}: no row is labelled SPEAKING_AUDIBLE" in note
    assert "best.pth is epoch 2, the last one" in result.stdout
