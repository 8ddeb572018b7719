"""Feature stores in both formats, predictions, and atomic writing of both."""

import ast
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
from conftest import Payload
from tiny_inputs import (
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

from core.formats.annotations import FaceTable, read_annotations
from core.formats.features import FeatureStore, feature_writer
from core.formats.predictions import join_logits, read_logits, write_predictions
from core.runtime.errors import InputError
from core.runtime.files import replacing, write_bytes

HEADER = ["video_id", "frame_timestamp", "entity_id", "label_id", "logit_0", "logit_1"]
FACES = faces_of([Track("talk:1", "0121", 1080.0, "talk"), Track("talk:2", "100", 1080.04, "talk")])


def any_float32(*shape: int, seed: int = 0) -> np.ndarray:
    """Finite float32 of every size, including denormal numbers and negative zero."""
    bits = np.random.default_rng(seed).integers(0, 1 << 32, shape, dtype=np.uint64).astype(np.uint32)
    values = bits.view(np.float32)
    values[~np.isfinite(values)] = -0.0
    return values


@pytest.fixture
def table(tmp_path) -> FaceTable:
    return read_annotations(write_annotations(tmp_path / "talk.csv", FACES))


def write(directory: Path, table: FaceTable, text: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Write random logits and features in batches, and return them."""
    logits, features = any_float32(len(table), 2, seed=1), any_float32(len(table), WIDTH, seed=2)
    with feature_writer(directory, table, np.arange(len(table)), text) as (logits_out, features_out):
        for rows in (slice(4, 7), slice(1, 4), slice(0, 1)):
            logits_out[rows], features_out[rows] = logits[rows], features[rows]
    return logits, features


def bits(array: np.ndarray) -> bytes:
    return np.asarray(array, np.float32).tobytes()


def refusal(directory: Path) -> str:
    """Return the error message of a store: one line."""
    with pytest.raises(InputError) as caught:
        FeatureStore(directory)
    message = str(caught.value)
    assert "\n" not in message
    return message


class TestBinaryFormat:
    def test_values_are_read_bit_for_bit(self, tmp_path, table):
        _, features = write(tmp_path / "out", table)
        store = FeatureStore(tmp_path / "out")
        rows = np.array([[3, 0], [6, 3]])
        assert bits(store.gather(np.arange(7))) == bits(features)
        assert bits(store.gather(rows)) == bits(features[rows])
        assert store.gather(rows).shape == (2, 2, WIDTH)
        assert store.table.keys().equals(table.keys())
        assert (store.table.label == table.is_speaking).all()

    def test_format_of_the_files(self, tmp_path, table):
        """SPEAKING_NOT_AUDIBLE is label 0. Timestamps have the spelling of paths."""
        logits, features = write(tmp_path / "out", table)
        assert files_under(tmp_path / "out") == ["talk.csv", "talk.npy"]
        header, *lines = read_csv(tmp_path / "out" / "talk.csv")
        assert header == HEADER
        assert [line[:3] for line in lines] == [[face.video, str(face.time), face.entity] for face in FACES]
        assert lines[0][1] == "1080.0"
        assert [line[3] for line in lines] == ["0", "1", "0", "1", "1", "0", "0"]
        assert bits([line[4:] for line in lines]) == bits(logits)

        array = np.load(tmp_path / "out" / "talk.npy", mmap_mode="r")
        assert (array.dtype, array.shape, array.flags.c_contiguous) == (np.float32, (7, WIDTH), True)
        assert bits(array) == bits(features)

    def test_rows_of_several_videos(self, tmp_path):
        """Rows are numbered video by video, in the order of each file."""
        faces = faces_of([Track("b:1", "01", video="b"), Track("a:1", "110", video="a"), Track("b:2", "2", video="b")])
        store = FeatureStore(write_store(tmp_path, faces))
        expected = [face for video in store.table.video_ids for face in faces if face.video == video]
        assert [store.table.entity_ids[entity] for entity in store.table.entity] == [face.entity for face in expected]
        rows = np.arange(len(faces))
        values = counting_features(faces)[[faces.index(face) for face in expected]]
        assert (store.gather(rows) == values).all()
        assert (store.gather(rows[::-1]) == values[::-1]).all()

    def test_logits_that_are_not_finite_are_an_error(self, tmp_path, table):
        with (
            pytest.raises(InputError, match=r"out, talk:1 at 1080.08 s of talk: prediction is not finite"),
            feature_writer(tmp_path / "out", table, np.arange(7)) as (logits, _),
        ):
            logits[:] = 0
            logits[2, 1] = np.nan
        assert files_under(tmp_path / "out") == []


class TestReleasedFormat:
    @staticmethod
    def write_released(directory: Path, faces: list[Face], values: np.ndarray) -> Path:
        """Write the format of the released code: no header, labels as floats, features as a list."""
        lines = []
        for face, row in zip(faces, values, strict=True):
            features = ", ".join(str(float(value)) for value in row)
            label = float(face.label == 1)
            lines.append(f'{face.video},{face.time},{face.entity},{label},0.5,-0.25,"[{features}]"\r\n')
        return write_text(directory / f"{faces[0].video}.csv", "".join(lines)).parent

    def test_values_are_read_bit_for_bit(self, tmp_path, table):
        values = any_float32(len(FACES), WIDTH)
        store = FeatureStore(self.write_released(tmp_path / "out", FACES, values))
        assert bits(store.gather(np.arange(len(FACES)))) == bits(values)
        assert store.table.keys().equals(table.keys())
        assert (store.table.label == table.is_speaking).all()
        assert join_logits(tmp_path / "out", table).tolist() == [[0.5, -0.25]] * len(FACES)

    def test_format_of_the_file(self, tmp_path, table):
        logits, features = write(tmp_path / "out", table, text=True)
        lines = read_csv(tmp_path / "out" / "talk.csv")
        assert [len(line) for line in lines] == [7] * len(FACES)
        assert [line[:3] for line in lines] == [[face.video, str(face.time), face.entity] for face in FACES]
        assert [line[3] for line in lines] == ["0.0", "1.0", "0.0", "1.0", "1.0", "0.0", "0.0"]
        assert bits([line[4:6] for line in lines]) == bits(logits)
        lists = [ast.literal_eval(line[6]) for line in lines]
        assert [len(values) for values in lists] == [WIDTH] * len(FACES)
        assert bits(lists) == bits(features)


class TestBrokenStores:
    @pytest.fixture
    def store(self, tmp_path) -> Path:
        """A valid store of one video, 7 rows."""
        directory = write_store(tmp_path / "store", FACES)
        FeatureStore(directory)
        return directory

    @pytest.mark.parametrize(
        "array",
        [
            pytest.param(np.zeros((8, WIDTH), np.float32), id="8 rows"),
            pytest.param(np.zeros((7, WIDTH), np.int32), id="int32"),
            pytest.param(np.zeros((7, 0), np.float32), id="no columns"),
            pytest.param(np.zeros(7, np.float32), id="one axis"),
            pytest.param(np.zeros((7, WIDTH), np.float32, "F"), id="column order"),
        ],
    )
    def test_other_arrays_are_refused(self, store, array):
        np.save(store / "talk.npy", array)
        message = refusal(store)
        assert f"talk.npy: {array.dtype} {array.shape}" in message
        assert "expected float32 (7, features) in row order, one row for each of talk.csv" in message

    def test_pickled_objects_are_refused_and_not_executed(self, store, tmp_path):
        payload = np.array([Payload(tmp_path / "executed")], dtype=object)
        np.save(store / "talk.npy", payload, allow_pickle=True)
        assert "talk.npy" in refusal(store)
        (store / "talk.npy").write_bytes(pickle.dumps(Payload(tmp_path / "executed")))
        assert "talk.npy" in refusal(store)
        assert not (tmp_path / "executed").exists()

    def test_truncated_missing_and_other_files_are_refused(self, store):
        path = store / "talk.npy"
        whole = path.read_bytes()
        for content in [whole[:size] for size in (0, 5, 60, 128, len(whole) - 1)] + [whole + b"\0", b"PK\x03\x04 zip"]:
            path.write_bytes(content)
            assert str(path) in refusal(store)
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("a.npy", b"")
        assert f"{path}: not a single array" in refusal(store)
        path.unlink()
        assert f"{path}: cannot be read as an array: No such file" in refusal(store)

    def test_missing_or_empty_directory_is_refused(self, tmp_path):
        (tmp_path / "empty").mkdir()
        for directory in (tmp_path / "nowhere", tmp_path / "empty"):
            assert str(directory) in refusal(directory)
            with pytest.raises(InputError, match=directory.name):
                read_logits(directory)

    def test_features_of_too_few_videos_are_refused(self, store):
        write_text(store / "STE_forward_cfg.json", '{"videos": 2}\n')
        assert refusal(store) == f"{store}: 1 of 2 videos; finish STE_forward.py first"
        write_text(store / "STE_forward_cfg.json", '{"videos": 0}\n')
        assert "1 videos, but STE_forward.py last ran for 0; run it for all" in refusal(store)


class Interruption(Exception):
    pass


class TestAtomicWriting:
    @pytest.mark.parametrize("text", [False, True])
    def test_a_failed_block_writes_nothing(self, tmp_path, table, text):
        with pytest.raises(Interruption), feature_writer(tmp_path / "out", table, np.arange(7), text) as (_, out):
            out[:3] = 1
            raise Interruption
        assert files_under(tmp_path / "out") == []

    def test_a_failed_block_leaves_no_csv_of_an_earlier_run(self, tmp_path, table):
        """A csv next to the array of another run would count as complete."""
        write(tmp_path / "out", table)
        with pytest.raises(Interruption), feature_writer(tmp_path / "out", table, np.arange(7)):
            raise Interruption
        assert files_under(tmp_path / "out") == ["talk.npy"]

    def test_a_file_is_kept_until_the_new_one_is_complete(self, tmp_path):
        path = tmp_path / "made" / "here" / "file.txt"
        write_bytes(path, b"old")
        with pytest.raises(Interruption), replacing(path) as temporary:
            temporary.write_bytes(b"half of the n")
            raise Interruption
        assert files_under(tmp_path) == ["made/here/file.txt"]
        assert path.read_bytes() == b"old"
        with replacing(path) as temporary:
            assert temporary.parent == path.parent  # on the same file system: renamed, not copied
            temporary.write_bytes(b"new")
            assert path.read_bytes() == b"old"
        assert files_under(tmp_path) == ["made/here/file.txt"]
        assert path.read_bytes() == b"new"


class TestPredictions:
    def test_format_of_the_file(self, tmp_path, table):
        logits = any_float32(len(table), 2)
        write_predictions(tmp_path / "out", table, np.arange(len(table)), logits)
        assert files_under(tmp_path / "out") == ["talk.csv"]
        lines = read_csv(tmp_path / "out" / "talk.csv")
        assert [line[:2] for line in lines] == [[face.entity, str(face.time)] for face in FACES]
        assert [len(line) for line in lines] == [4] * len(FACES)
        assert bits([line[2:] for line in lines]) == bits(logits)

    def test_values_are_read_bit_for_bit(self, tmp_path, table):
        """From predictions and from a feature store."""
        logits, _ = write(tmp_path / "features", table)
        write_predictions(tmp_path / "predictions", table, np.arange(len(table)), logits)
        frame = read_logits(tmp_path / "predictions")
        assert list(frame.columns) == ["video_id", "frame_timestamp", "entity_id", "logit_0", "logit_1"]
        assert frame.iloc[:, :3].to_dict() == table.keys().to_dict()
        assert bits(frame[["logit_0", "logit_1"]].to_numpy()) == bits(logits)
        assert frame.equals(read_logits(tmp_path / "features"))

    def test_logits_are_joined_in_the_order_of_the_table(self, tmp_path, table):
        logits, order = any_float32(len(table), 2), np.array([6, 0, 3, 1, 5, 2, 4])
        write_predictions(tmp_path / "out", table, order, logits[order])
        assert bits(join_logits(tmp_path / "out", table)) == bits(logits)
