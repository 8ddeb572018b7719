"""Files between the stages: features in both formats, predictions, and that none is ever half there."""

import ast
import os
import pickle
import subprocess
import sys
import textwrap
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT
from tiny_inputs import (
    LABELS,
    WIDTH,
    Face,
    Track,
    counting_features,
    faces_of,
    files_under,
    read_csv,
    write_annotations,
    write_store,
    write_text,
)

from core.formats import annotations
from core.formats.annotations import FaceTable, read_annotations
from core.formats.features import FeatureStore, feature_writer
from core.formats.predictions import read_logits, write_predictions
from core.runtime.errors import InputError
from core.runtime.files import list_files, replacing, write_bytes, write_json

HEADER = ["video_id", "frame_timestamp", "entity_id", "label_id", "logit_0", "logit_1"]
FACES = faces_of([Track("film:1", "0121", 1080.0), Track("film:2", "100", 1080.04)])


def any_float32(*shape: int, seed: int = 0) -> np.ndarray:
    """Finite float32 of every size: tiny, denormal, huge, negative zero."""
    bits = np.random.default_rng(seed).integers(0, 1 << 32, shape, dtype=np.uint64).astype(np.uint32)
    values = bits.view(np.float32)
    values[~np.isfinite(values)] = -0.0
    return values


@pytest.fixture
def table(tmp_path) -> FaceTable:
    return read_annotations(write_annotations(tmp_path / "film.csv", FACES))


def write(directory: Path, table: FaceTable, text: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Write features as a forward run does. Returns what was written: logits and features."""
    logits, features = any_float32(len(table), 2, seed=1), any_float32(len(table), WIDTH, seed=2)
    with feature_writer(directory, table, np.arange(len(table)), text) as (logits_out, features_out):
        for start in range(0, len(table), 3):  # in batches, the last ones first
            rows = slice(len(table) - start - 3 if start + 3 < len(table) else 0, len(table) - start)
            logits_out[rows], features_out[rows] = logits[rows], features[rows]
    return logits, features


def bits(array: np.ndarray) -> bytes:
    return np.asarray(array, np.float32).tobytes()


def refusal(directory: Path) -> str:
    """The message with which a store is refused: one line."""
    with pytest.raises(InputError) as caught:
        FeatureStore(directory)
    message = str(caught.value)
    assert "\n" not in message
    return message


def has_features(directory: Path, video_id: str) -> bool:
    return (directory / f"{video_id}.csv").exists() and (directory / f"{video_id}.npy").exists()


class TestBinaryFormat:
    def test_comes_back_bit_for_bit(self, tmp_path, table):
        _, features = write(tmp_path / "out", table)
        store = FeatureStore(tmp_path / "out")
        rows = np.array([[3, 0], [6, 3]])
        assert bits(store.gather(np.arange(7))) == bits(features)
        assert bits(store.gather(rows)) == bits(features[rows])
        assert store.gather(rows).shape == (2, 2, WIDTH)

    def test_rows_come_back(self, tmp_path, table):
        write(tmp_path / "out", table)
        read = FeatureStore(tmp_path / "out").table
        names = [(read.video_ids[v], read.entity_ids[e]) for v, e in zip(read.video, read.entity, strict=True)]
        assert names == [(face.video, face.entity) for face in FACES]
        assert read.timestamp.tolist() == [face.time for face in FACES]
        assert (read.label == 1).tolist() == [face.label == 1 for face in FACES]

    def test_files_are_as_specified(self, tmp_path, table):
        """Label 2, who speaks and is not heard, is a 0; timestamps are spelt as in paths."""
        logits, features = write(tmp_path / "out", table)
        assert files_under(tmp_path / "out") == ["film.csv", "film.npy"]
        header, *lines = read_csv(tmp_path / "out" / "film.csv")
        assert header == HEADER
        assert [line[:3] for line in lines] == [[face.video, str(face.time), face.entity] for face in FACES]
        assert lines[0][1] == "1080.0"
        assert [float(line[3]) for line in lines] == [0, 1, 0, 1, 1, 0, 0]
        assert bits([line[4:] for line in lines]) == bits(logits)

        array = np.load(tmp_path / "out" / "film.npy", mmap_mode="r")
        assert isinstance(array, np.memmap)
        assert (array.dtype, array.shape, array.flags.c_contiguous) == (np.float32, (7, WIDTH), True)
        assert bits(array) == bits(features)

    def test_several_films(self, tmp_path):
        """Rows of a store are numbered through its films, each of which keeps its file's order."""
        faces = faces_of([Track("b:1", "01", video="b"), Track("a:1", "110", video="a"), Track("b:2", "2", video="b")])
        store = FeatureStore(write_store(tmp_path, faces))
        expected = [face for video in store.table.video_ids for face in faces if face.video == video]
        assert [store.table.entity_ids[entity] for entity in store.table.entity] == [face.entity for face in expected]
        rows = np.arange(len(faces))
        values = counting_features(faces)[[faces.index(face) for face in expected]]
        assert (store.gather(rows) == values).all()
        assert (store.gather(rows[::-1]) == values[::-1]).all()

    def test_half_of_the_rows_may_be_another_film(self, tmp_path):
        """Only the rows asked for are written, under their film's name."""
        faces = faces_of([Track("a:1", "01", video="a"), Track("b:1", "110", video="b")])
        table = read_annotations(write_annotations(tmp_path / "both.csv", faces))
        with feature_writer(tmp_path / "out", table, np.array([2, 3, 4])) as (logits, features):
            logits[:], features[:] = 1, 2
        assert files_under(tmp_path / "out") == ["b.csv", "b.npy"]
        assert [line[2] for line in read_csv(tmp_path / "out" / "b.csv")[1:]] == ["b:1"] * 3


class TestReleasedFormat:
    @staticmethod
    def write_released(directory: Path, faces: list[Face], values: np.ndarray) -> Path:
        """As the released code writes: no header, labels as float text, the features as the text of a list."""
        lines = []
        for face, row in zip(faces, values, strict=True):
            features = ", ".join(str(float(value)) for value in row)
            label = float(face.label == 1)
            lines.append(f'{face.video},{face.time},{face.entity},{label},0.5,-0.25,"[{features}]"\r\n')
        return write_text(directory / f"{faces[0].video}.csv", "".join(lines)).parent

    def test_is_read(self, tmp_path):
        values = any_float32(len(FACES), WIDTH)
        store = FeatureStore(self.write_released(tmp_path, FACES, values))
        assert bits(store.gather(np.arange(len(FACES)))) == bits(values)
        assert store.table.timestamp.tolist() == [face.time for face in FACES]
        assert (store.table.label == 1).tolist() == [face.label == 1 for face in FACES]

    def test_logits_are_read(self, tmp_path):
        frame = read_logits(self.write_released(tmp_path, FACES, np.zeros((len(FACES), WIDTH))))
        assert frame["entity_id"].tolist() == [face.entity for face in FACES]
        assert frame[["logit_0", "logit_1"]].to_numpy().tolist() == [[0.5, -0.25]] * len(FACES)

    def test_is_written(self, tmp_path, table):
        logits, features = write(tmp_path / "out", table, text=True)
        lines = read_csv(tmp_path / "out" / "film.csv")
        assert [len(line) for line in lines] == [7] * len(FACES)
        assert [line[:3] for line in lines] == [[face.video, str(face.time), face.entity] for face in FACES]
        assert [line[3] for line in lines] == ["0.0", "1.0", "0.0", "1.0", "1.0", "0.0", "0.0"]
        assert bits([line[4:6] for line in lines]) == bits(logits)
        lists = [ast.literal_eval(line[6]) for line in lines]
        assert [len(values) for values in lists] == [WIDTH] * len(FACES)
        assert bits(lists) == bits(features)

    @pytest.mark.parametrize("alone", [False, True], ids=["with npy", "csv alone"])
    def test_equals_the_binary_one(self, tmp_path, table, alone):
        write(tmp_path / "binary", table)
        write(tmp_path / "text", table, text=True)
        if alone:
            (tmp_path / "text" / "film.npy").unlink()
        binary, text = FeatureStore(tmp_path / "binary"), FeatureStore(tmp_path / "text")
        rows = np.arange(len(FACES))
        assert bits(text.gather(rows)) == bits(binary.gather(rows))
        for name in ("video", "entity", "timestamp", "label"):
            assert (getattr(text.table, name) == getattr(binary.table, name)).all()
        assert (text.table.video_ids, text.table.entity_ids) == (binary.table.video_ids, binary.table.entity_ids)
        assert read_logits(tmp_path / "text").equals(read_logits(tmp_path / "binary"))

    @pytest.mark.parametrize(
        "features",
        [
            pytest.param(str([1.0] * (WIDTH - 1)), id="too few"),
            pytest.param(str([1.0] * (WIDTH + 1)), id="too many"),
            pytest.param("[1.0]", id="one"),
            pytest.param("1.0", id="a number"),
            pytest.param("[]", id="none"),
            pytest.param("null", id="null"),
            pytest.param("{}", id="a dictionary"),
            pytest.param(str([{}] * WIDTH).replace("'", '""'), id="dictionaries"),
            pytest.param(str([[1.0]] * WIDTH), id="nested"),
            pytest.param(str([None] * WIDTH).replace("None", "null"), id="nulls"),
            pytest.param("[" * 100_000, id="very nested"),
            pytest.param(str([10**400, *[1] * (WIDTH - 1)]), id="a huge number"),
            pytest.param("[1.0, 2.0", id="cut off"),
            pytest.param("__import__('os').mkdir('run')", id="code"),
        ],
    )
    def test_other_than_1024_numbers_is_refused(self, tmp_path, features):
        good = str([0.5] * WIDTH)
        write_text(tmp_path / "film.csv", f'film,1.0,a,0.0,0.1,0.2,"{good}"\nfilm,1.04,a,0.0,0.1,0.2,"{features}"\n')
        message = refusal(tmp_path)
        assert "film.csv, line 2" in message
        assert "1024" in message


class Payload:
    """An object whose unpickling makes a directory."""

    def __init__(self, trace: Path):
        self.trace = trace

    def __reduce__(self):
        return os.mkdir, (str(self.trace),)


class TestBrokenStores:
    @pytest.fixture
    def store(self, tmp_path) -> Path:
        """A whole store of one film, 7 rows."""
        directory = write_store(tmp_path / "store", FACES)
        FeatureStore(directory)
        return directory

    @pytest.mark.parametrize("rows", [6, 8, 0])
    def test_other_number_of_rows(self, store, rows):
        np.save(store / "film.npy", np.zeros((rows, WIDTH), np.float32))
        message = refusal(store)
        assert "film.npy" in message
        assert f"{rows} rows" in message
        assert "7" in message

    @pytest.mark.parametrize(
        "array",
        [
            pytest.param(np.zeros((7, WIDTH)), id="float64"),
            pytest.param(np.zeros((7, WIDTH), np.float16), id="float16"),
            pytest.param(np.zeros((7, WIDTH), np.int32), id="int32"),
            pytest.param(np.zeros((7, WIDTH), ">f4"), id="big-endian"),
            pytest.param(np.zeros((7, 512), np.float32), id="too narrow"),
            pytest.param(np.zeros(7 * WIDTH, np.float32), id="flat"),
            pytest.param(np.zeros((7, WIDTH, 1), np.float32), id="three axes"),
            pytest.param(np.float32(1), id="a number"),
        ],
    )
    def test_other_kind_of_array(self, store, array):
        np.save(store / "film.npy", array)
        message = refusal(store)
        assert "film.npy" in message
        assert "1024" in message

    def test_pickled_objects_are_refused_and_not_run(self, store, tmp_path):
        payload = np.array([Payload(tmp_path / "ran")], dtype=object)
        np.save(store / "film.npy", payload, allow_pickle=True)
        assert "film.npy" in refusal(store)
        (store / "film.npy").write_bytes(pickle.dumps(Payload(tmp_path / "ran")))
        assert "film.npy" in refusal(store)
        assert not (tmp_path / "ran").exists()

    def test_cut_off_array(self, store):
        whole = (store / "film.npy").read_bytes()
        for size in (0, 5, 60, 128, len(whole) - 1):
            (store / "film.npy").write_bytes(whole[:size])
            assert "film.npy" in refusal(store)

    def test_archive_under_the_name_of_an_array(self, store):
        with zipfile.ZipFile(store / "film.npy", "w") as archive:
            archive.writestr("a.npy", b"")
        assert "film.npy" in refusal(store)
        (store / "film.npy").write_bytes(b"PK\x03\x04 and nothing more")
        assert "film.npy" in refusal(store)

    def test_missing_array(self, store):
        (store / "film.npy").unlink()
        assert "film.npy" in refusal(store)

    def test_row_of_another_film(self, store):
        text = (store / "film.csv").read_text().splitlines(keepends=True)
        text[3] = text[3].replace("film,", "movie,", 1)
        write_text(store / "film.csv", "".join(text))
        message = refusal(store)
        assert "film.csv, line 4" in message
        assert "movie" in message

    @pytest.mark.parametrize(
        ("old", "new", "place"),
        [
            ("film,1080.08,film:1,0,0.5,-0.25", "film,1080.08,film:1,0,0.5", "line 4"),
            ("film,1080.08,film:1,0,0.5,-0.25", "film,1080.08,film:1,0,0.5,-0.25,1", "line 4"),
            ("film,1080.08,film:1,0,0.5,-0.25", "film,1080.08,film:1,0,0.5,nan", "line 4"),
            ("film,1080.08,film:1,0,0.5,-0.25", "film,1080.08,film:1,0,0.5,-inf", "line 4"),
            ("film,1080.08,film:1,0,0.5,-0.25", "film,noon,film:1,0,0.5,-0.25", "line 4"),
            ("film,1080.08,film:1,0,0.5,-0.25", "film,1080.04,film:1,0,0.5,-0.25", "line 4"),  # stands twice
            ("film,1080.08,film:1,0,0.5,-0.25", "film,1080.0,film:1,0,0.5,-0.25", "line 4"),  # goes back in time
            ("film,1080.08,film:1,0,0.5,-0.25", "film,1080.08,../film:1,0,0.5,-0.25", "line 4"),
            ("label_id", "label", "label_id"),
        ],
    )
    def test_broken_line(self, store, old, new, place):
        text = (store / "film.csv").read_text()
        assert old in text
        write_text(store / "film.csv", text.replace(old, new, 1))
        message = refusal(store)
        assert "film.csv" in message
        assert place in message

    @pytest.mark.parametrize("label", ["-1", "0.5", "7"])
    def test_label_other_than_0_and_1(self, store, label):
        """Features know only who is heard (1) and who is not (0): another number is not silently one of them."""
        text = (store / "film.csv").read_text()
        write_text(store / "film.csv", text.replace("film:1,0,", f"film:1,{label},", 1))
        assert "film.csv, line 2" in refusal(store)

    def test_cut_off_line(self, store):
        text = (store / "film.csv").read_text()
        write_text(store / "film.csv", text[:-4])
        assert "film.csv, line 8" in refusal(store)

    def test_missing_or_empty_directory(self, tmp_path):
        (tmp_path / "empty").mkdir()
        for directory in (tmp_path / "nowhere", tmp_path / "empty"):
            assert str(directory) in refusal(directory)
            with pytest.raises(InputError, match=directory.name):
                read_logits(directory)

    def test_other_files_beside_the_features_do_no_harm(self, store):
        write_text(store / "STE_forward_cfg.json", "{}\n")
        write_text(store / ".partial-somewhere-1-0.csv", "half")
        assert len(FeatureStore(store).table) == 7


class Interruption(Exception):
    pass


class TestWholeOrNotAtAll:
    @pytest.mark.parametrize("text", [False, True])
    def test_features_of_a_block_that_fails(self, tmp_path, table, text):
        with pytest.raises(Interruption), feature_writer(tmp_path / "out", table, np.arange(7), text) as (_, out):
            out[:3] = 1
            raise Interruption
        assert files_under(tmp_path / "out") == []
        assert not has_features(tmp_path / "out", "film")

    def test_features_again_over_old_ones(self, tmp_path, table):
        """A film made anew and broken off counts as not there: never the csv of one run and the array of another."""
        write(tmp_path / "out", table)
        assert has_features(tmp_path / "out", "film")
        with pytest.raises(Interruption), feature_writer(tmp_path / "out", table, np.arange(7)):
            raise Interruption
        assert not has_features(tmp_path / "out", "film")

    def test_nothing_has_its_name_while_it_is_written(self, tmp_path, table):
        with feature_writer(tmp_path / "out", table, np.arange(7)) as (logits, _):
            logits[:] = 0
            assert [name for name in files_under(tmp_path / "out") if not name.startswith(".")] == []
            assert not has_features(tmp_path / "out", "film")
        assert has_features(tmp_path / "out", "film")

    def test_replacing_keeps_the_old_file_until_the_new_one_is_whole(self, tmp_path):
        path = tmp_path / "made" / "here" / "file.txt"
        write_bytes(path, b"old")
        with pytest.raises(Interruption), replacing(path) as temporary:
            temporary.write_bytes(b"half of the n")
            raise Interruption
        assert files_under(tmp_path) == ["made/here/file.txt"]
        assert path.read_bytes() == b"old"
        with replacing(path) as temporary:
            assert temporary.parent == path.parent  # on one file system, so that it is renamed and not copied
            temporary.write_bytes(b"the new one")
            assert path.read_bytes() == b"old"
        assert files_under(tmp_path) == ["made/here/file.txt"]
        assert path.read_bytes() == b"the new one"

    def test_replacing_the_same_file_twice_at_once(self, tmp_path):
        with replacing(tmp_path / "file") as one, replacing(tmp_path / "file") as two:
            assert one != two
            one.write_bytes(b"1")
            two.write_bytes(b"2")
        assert files_under(tmp_path) == ["file"]

    def test_value_that_json_cannot_hold(self, tmp_path):
        with pytest.raises(TypeError):
            write_json(tmp_path / "cfg.json", {"path": tmp_path, "object": object()})
        assert files_under(tmp_path) == []


class TestLeftovers:
    def test_of_a_killed_process_are_removed_and_of_a_running_one_kept(self, tmp_path):
        script = """
            import os, signal, sys
            from core.runtime.files import replacing
            with replacing(sys.argv[1] + "/film.npy") as temporary:
                temporary.write_bytes(b"half")
                os.kill(os.getpid(), signal.SIGKILL)
        """
        command = [sys.executable, "-c", textwrap.dedent(script), str(tmp_path)]
        assert subprocess.run(command, cwd=ROOT, check=False).returncode == -9
        write_bytes(tmp_path / "whole.txt", b"")
        (left,) = (name for name in files_under(tmp_path) if name != "whole.txt")
        assert left.startswith(".")
        with replacing(tmp_path / "mine.txt") as temporary:
            temporary.write_bytes(b"not yet")
            assert list_files(tmp_path) == {"whole.txt"}
            assert files_under(tmp_path) == sorted([temporary.name, "whole.txt"])
        assert list_files(tmp_path) == {"whole.txt", "mine.txt"}

    def test_of_another_machine_are_kept(self, tmp_path):
        """On a shared disk another machine's process may be alive; its host's name may begin with this one's."""
        with replacing(tmp_path / "x.npy") as temporary:
            name = temporary.name
            temporary.touch()
        process = f"-{os.getpid()}-"
        assert process in name
        for other in ("-2", "-b", "-1-"):
            (tmp_path / name.replace(process, f"{other}{process}")).touch()
        before = files_under(tmp_path)
        list_files(tmp_path)
        assert files_under(tmp_path) == before

    def test_of_another_machine_go_after_a_day(self, tmp_path):
        with replacing(tmp_path / "x.npy") as temporary:
            name = temporary.name
            temporary.touch()
        (tmp_path / "x.npy").unlink()
        old, new = (name.replace(f"-{os.getpid()}-", f"-{host}-{os.getpid()}-") for host in ("there", "elsewhere"))
        for other, hours in ((old, 25), (new, 23)):
            (tmp_path / other).touch()
            os.utime(tmp_path / other, (time.time() - hours * 3600,) * 2)
        assert list_files(tmp_path) == set()
        assert files_under(tmp_path) == [new]

    def test_of_a_process_whose_number_is_another_ones_now(self, tmp_path):
        """As after a restart of a container, where numbers begin at 1 again."""
        with replacing(tmp_path / "x.npy") as temporary:
            process, birth = temporary.name.split("-")[-3:-1]
            name = temporary.name.replace(f"-{process}-{birth}-", f"-{process}-{int(birth) - 1}-")
            (tmp_path / name).touch()
            assert list_files(tmp_path) == set()
            assert not (tmp_path / name).exists()
            temporary.write_bytes(b"")
        assert list_files(tmp_path) == {"x.npy"}

    def test_of_no_directory(self, tmp_path):
        assert list_files(tmp_path / "nowhere") == set()


class TestPredictions:
    def test_are_written_as_specified(self, tmp_path, table):
        logits = any_float32(len(table), 2)
        write_predictions(tmp_path / "out", table, np.arange(len(table)), logits)
        assert files_under(tmp_path / "out") == ["film.csv"]
        lines = read_csv(tmp_path / "out" / "film.csv")
        assert [line[:2] for line in lines] == [[face.entity, str(face.time)] for face in FACES]
        assert [len(line) for line in lines] == [4] * len(FACES)
        assert bits([line[2:] for line in lines]) == bits(logits)

    def test_come_back_bit_for_bit(self, tmp_path, table):
        logits = any_float32(len(table), 2)
        write_predictions(tmp_path / "out", table, np.arange(len(table)), logits)
        frame = read_logits(tmp_path / "out")
        assert list(frame.columns) == ["video_id", "frame_timestamp", "entity_id", "logit_0", "logit_1"]
        assert frame["video_id"].tolist() == ["film"] * len(FACES)
        assert frame["entity_id"].tolist() == [face.entity for face in FACES]
        assert frame["frame_timestamp"].tolist() == [face.time for face in FACES]
        assert bits(frame[["logit_0", "logit_1"]].to_numpy()) == bits(logits)

    def test_come_back_alike_from_a_feature_store(self, tmp_path, table):
        logits, _ = write(tmp_path / "features", table)
        write_predictions(tmp_path / "predictions", table, np.arange(len(table)), logits)
        assert read_logits(tmp_path / "features").equals(read_logits(tmp_path / "predictions"))

    def test_names_that_look_like_numbers_stay_names(self, tmp_path):
        faces = faces_of([Track("007", "0", video="1e5"), Track("nan", "1", video="1e5")])
        table = read_annotations(write_annotations(tmp_path / "film.csv", faces))
        write_predictions(tmp_path / "out", table, np.arange(2), np.zeros((2, 2), np.float32))
        frame = read_logits(tmp_path / "out")
        assert frame["video_id"].tolist() == ["1e5", "1e5"]
        assert frame["entity_id"].tolist() == ["007", "nan"]


def test_labels_of_the_helpers_are_the_projects():
    assert annotations.LABELS == LABELS
