"""Settings files, output directories of forward stages, and sequences of steps."""

from collections.abc import Callable
from pathlib import Path

import pytest
from tiny_inputs import files_under, read_json, write_text

from core.runtime.errors import InputError
from core.runtime.resume import Manifest, OutputDirectory, StepCache

BROKEN = ["", "[]", '{"one": [', "[" * 100_000]


class Interrupted(Exception):
    """Raised in the middle of some work."""


def assert_not_settings(make: Callable[[], object], path: Path) -> None:
    with pytest.raises(InputError, match="not a settings file") as error:
        make()
    assert str(error.value).startswith(f"{path}: ")
    assert "\n" not in str(error.value)


IDENTITY = ("encoder", "rows")
SETTINGS = {"encoder": "abc", "rows": 3, "workers": 2}


class TestManifest:
    @pytest.fixture
    def path(self, tmp_path) -> Path:
        return tmp_path / "out" / "cfg.json"

    @pytest.fixture
    def saved(self, path) -> Path:
        Manifest(path, SETTINGS).save()
        return path

    @pytest.mark.parametrize("change", [{}, {"workers": 8}, {"new": 1}])
    def test_same_identity_is_accepted(self, saved, change):
        manifest = Manifest(saved, {**SETTINGS, **change}, IDENTITY)
        manifest.require_same()
        assert manifest.saved == SETTINGS

    def test_other_identity_is_refused_with_both_values(self, saved):
        manifest = Manifest(saved, {**SETTINGS, "encoder": "xyz"}, IDENTITY)
        with pytest.raises(InputError, match=r"made with encoder abc, now xyz; .*--overwrite"):
            manifest.require_same()
        with pytest.raises(InputError, match=r"encoder abc, now xyz; use a new name$"):
            manifest.require_same("use a new name")
        Manifest(saved, manifest.settings, IDENTITY, overwrite=True).require_same()

    def test_settings_of_an_earlier_version_are_accepted(self, path):
        """They lack settings that were added to the identity later."""
        write_text(path, '{"rows": 3}')
        Manifest(path, SETTINGS, IDENTITY).require_same()

    @pytest.mark.parametrize("content", BROKEN)
    def test_broken_file_is_refused(self, path, content):
        write_text(path, content)
        assert_not_settings(lambda: Manifest(path, SETTINGS), path)
        Manifest(path, SETTINGS, overwrite=True).save()
        assert read_json(path) == SETTINGS

    def test_interrupted_overwrite_must_be_repeated(self, saved):
        with pytest.raises(Interrupted), Manifest(saved, SETTINGS, overwrite=True).filling():
            raise Interrupted
        with (
            pytest.raises(InputError, match="interrupted; run it again with --overwrite"),
            Manifest(saved, SETTINGS).filling(),
        ):
            pass
        with Manifest(saved, SETTINGS, overwrite=True).filling():
            pass
        with Manifest(saved, SETTINGS).filling():
            pass


class TestOutputDirectory:
    @pytest.fixture
    def path(self, tmp_path) -> Path:
        """Settings file of a directory with the results of videos a and b."""
        path = tmp_path / "forward_cfg.json"
        self.open(path).begin(["a", "b"], [False, False])
        for name in ("a.csv", "a.npy", "b.csv", "b.npy"):
            write_text(tmp_path / name, "")
        return path

    @staticmethod
    def open(path: Path, weights: str = "abc", overwrite: bool = False) -> OutputDirectory:
        return OutputDirectory(path, {"weights": weights}, ("weights",), (".csv", ".npy"), overwrite)

    def test_complete_and_current_videos_are_done(self, path):
        (path.parent / "b.npy").unlink()
        results = self.open(path)
        assert results.done(["a", "b", "c"], lambda csv, video: True) == [True, False, False]
        calls = []
        assert results.done(["c", "a"], lambda *call: calls.append(call)) == [False, None]
        assert calls == [(path.parent / "a.csv", 1)]

    def test_other_settings_are_refused(self, path):
        with pytest.raises(InputError, match="made with weights abc, now xyz"):
            self.open(path, "xyz")

    def test_results_without_settings_are_refused(self, path):
        path.unlink()
        with pytest.raises(InputError, match="holds results but no forward_cfg"):
            self.open(path)
        self.open(path, overwrite=True)

    @pytest.mark.parametrize("overwrite", [False, True])
    def test_results_of_another_stage_are_refused(self, path, overwrite):
        with pytest.raises(InputError, match=r"results of another stage \(forward_cfg.json\)"):
            self.open(path.with_name("other_cfg.json"), overwrite=overwrite)

    def test_results_of_videos_that_are_not_done_are_deleted(self, path):
        self.open(path).begin(["a", "b", "c"], [True, False, False])
        assert files_under(path.parent) == [".lock", "a.csv", "a.npy", "forward_cfg.json"]
        self.open(path, "xyz", overwrite=True).begin(["a", "b"], [False, False])
        assert files_under(path.parent) == [".lock", "forward_cfg.json"]
        assert read_json(path) == {"weights": "xyz"}

    def test_overwriting_a_part_of_the_videos_is_refused(self, path):
        with pytest.raises(InputError, match="results of 1 other videos, such as b"):
            self.open(path, "xyz", overwrite=True).begin(["a"], [False])
        assert {"a.csv", "b.npy"} <= set(files_under(path.parent))
        assert read_json(path) == {"weights": "abc"}


class Work:
    """Three steps, each of which writes its input to files."""

    RESULTS = ("one.txt", "two", "three.txt")

    def __init__(self, directory: Path):
        self.directory = directory
        self.one, self.two, self.three = (directory / name for name in self.RESULTS)

    def run(self, a: object = 1, b: object = 1, c: object = 1, stop: str = "", overwrite: bool = False) -> list[str]:
        """Run all steps, or stop before, in or after one of them. Returns the names of the steps that were done."""
        done = []

        def step(name: str, value: object, output: Path, write: Callable[[], None]) -> None:
            def work() -> None:
                if stop == name:
                    raise Interrupted
                write()
                if stop == f"after {name}":
                    raise Interrupted
                done.append(name)

            steps.run(name, value, [output], work)

        steps = StepCache(self.directory, [*self.RESULTS], overwrite)
        step("one", a, self.one, lambda: write_text(self.one, f"{a}"))
        step("two", [b, "x"], self.two, lambda: self.fill(b, stop))
        step("three", c, self.three, lambda: write_text(self.three, f"{c}"))
        return done

    def fill(self, value: object, stop: str) -> None:
        """Write two files of a directory and keep existing ones."""
        for name in ("first", "second"):
            if not (self.two / name).exists():
                write_text(self.two / name, f"{name} {value}")
            if stop == f"at {name}":
                raise Interrupted

    def content(self) -> dict[str, str]:
        return {name: (self.directory / name).read_text() for name in files_under(self.directory) if name[0] != "."}


@pytest.fixture
def work(tmp_path) -> Work:
    return Work(tmp_path / "work")


def fresh_content(work: Work, **inputs) -> dict[str, str]:
    """Content of a new directory."""
    fresh = Work(work.directory.with_name("fresh"))
    fresh.run(**inputs)
    return fresh.content()


class TestStepCache:
    def test_finished_steps_are_not_repeated(self, work):
        assert work.run() == ["one", "two", "three"]
        before = {name: (work.directory / name).stat().st_mtime_ns for name in work.content()}
        assert sorted(before) == ["one.txt", "three.txt", "two/first", "two/second"]
        assert work.run() == []
        assert {name: (work.directory / name).stat().st_mtime_ns for name in work.content()} == before

    @pytest.mark.parametrize(
        ("change", "repeated"),
        [({"a": 2}, ["one", "two", "three"]), ({"b": 2}, ["two", "three"]), ({"c": 2}, ["three"])],
    )
    def test_a_change_repeats_its_step_and_all_later_ones(self, work, change, repeated):
        work.run()
        assert work.run(**change) == repeated
        assert work.run(**change) == []
        assert work.content() == fresh_content(work, **change)
        assert work.run() == repeated
        assert work.content() == fresh_content(work)

    @pytest.mark.parametrize(
        "stop", ["one", "after one", "two", "at first", "at second", "after two", "three", "after three"]
    )
    def test_interrupted_work_resumes(self, work, stop):
        with pytest.raises(Interrupted):
            work.run(stop=stop)
        work.run()
        assert work.content() == fresh_content(work)
        assert work.run() == []

    def test_old_and_new_results_are_not_mixed(self, work):
        work.run()
        with pytest.raises(Interrupted):
            work.run(b=2, stop="at first")
        assert work.content()["two/first"] == "first 2"
        assert "two/second" not in work.content()
        assert work.run(b=1) == ["two"]  # step three was never changed
        assert work.content() == fresh_content(work)

    def test_targets_of_links_are_not_deleted(self, work, tmp_path):
        write_text(tmp_path / "elsewhere" / "first", "mine")
        work.run()
        for path in (work.two / "first", work.two / "second"):
            path.unlink()
        work.two.rmdir()
        work.two.symlink_to(tmp_path / "elsewhere")
        assert work.run(b=2) == ["two", "three"]
        assert (tmp_path / "elsewhere" / "first").read_text() == "mine"
        assert work.content()["two/first"] == "first 2"

    def test_overwrite_repeats_every_step(self, work):
        work.run()
        write_text(work.two / "more", "left over")
        assert work.run(overwrite=True) == ["one", "two", "three"]
        assert "two/more" not in work.content()
        with pytest.raises(Interrupted):
            work.run(overwrite=True, stop="two")
        assert work.run() == ["two", "three"]
        assert work.run() == []

    @pytest.mark.parametrize("content", BROKEN)
    def test_broken_state_file_is_refused(self, work, content):
        work.run()
        path = write_text(work.directory / ".steps.json", content)
        before = work.content()
        assert_not_settings(work.run, path)
        assert work.content() == before
        assert work.run(overwrite=True) == ["one", "two", "three"]

    @pytest.mark.parametrize("overwrite", [False, True])
    @pytest.mark.parametrize("name", ["one.txt", "two/holiday.txt"])
    def test_files_made_elsewhere_are_not_overwritten(self, work, name, overwrite):
        mine = write_text(work.directory / name, "mine")
        with pytest.raises(InputError, match="not made by this script") as error:
            work.run(overwrite=overwrite)
        assert str(work.directory / Path(name).parts[0]) in str(error.value)
        assert work.content() == {name: "mine"}
        mine.rename(work.directory.with_name("moved"))
        if name.startswith("two"):
            work.two.rmdir()
        assert work.run(overwrite=overwrite) == ["one", "two", "three"]

    def test_other_files_may_be_in_the_directory(self, work):
        write_text(work.directory / "notes.txt", "mine")
        StepCache(work.directory, [*Work.RESULTS])  # a run that ended before its first step leaves a lock
        assert work.run() == ["one", "two", "three"]
        assert work.content()["notes.txt"] == "mine"
