"""StepCache of one piece of work: what is done stays done, until what it depends on changes."""

from pathlib import Path

import pytest
from tiny_inputs import files_under, read_json, write_text

from core.runtime.errors import InputError
from core.runtime.provenance import StepCache

RESULTS = ["one.txt", "two", "three.txt"]


class Stop(Exception):
    """What ends a step in the middle."""


class Work:
    """Three steps, each of which writes what it was told and what it found; `done` are those that ran."""

    def __init__(self, directory: Path):
        self.directory = directory
        self.one, self.two, self.three = directory / "one.txt", directory / "two", directory / "three.txt"
        self.done: list[str] = []

    def run(self, a: object = 1, b: object = 1, c: object = 1, stop: str = "", overwrite: bool = False) -> list[str]:
        """The names of the steps that this run did."""
        self.done = []
        steps = StepCache(self.directory, RESULTS, overwrite)
        steps.run("one", a, [self.one], lambda: self.step("one", stop, lambda: write_text(self.one, f"{a}")))
        steps.run("two", [b, "x"], [self.two], lambda: self.step("two", stop, lambda: self.fill(b, stop)))
        steps.run("three", c, [self.three], lambda: self.step("three", stop, lambda: write_text(self.three, f"{c}")))
        return self.done

    def step(self, name: str, stop: str, write) -> None:
        if stop == name:
            raise Stop
        write()
        if stop == f"after {name}":
            raise Stop
        self.done.append(name)

    def fill(self, what: object, stop: str) -> None:
        """Two files, of which those that are there are kept."""
        for name in ("first", "second"):
            if not (self.two / name).exists():
                write_text(self.two / name, f"{name} {what}")
            if stop == f"at {name}":
                raise Stop

    def content(self) -> dict[str, str]:
        return {name: (self.directory / name).read_text() for name in files_under(self.directory) if name[0] != "."}


@pytest.fixture
def work(tmp_path) -> Work:
    return Work(tmp_path / "work")


def test_each_step_is_done_once(work, capsys):
    assert work.run() == ["one", "two", "three"]
    assert capsys.readouterr().out == "one:\ntwo:\nthree:\n"
    before = {name: (work.directory / name).stat().st_mtime_ns for name in work.content()}
    assert sorted(before) == ["one.txt", "three.txt", "two/first", "two/second"]
    assert work.run() == []
    assert capsys.readouterr().out == "one: done already\ntwo: done already\nthree: done already\n"
    assert {name: (work.directory / name).stat().st_mtime_ns for name in work.content()} == before


@pytest.mark.parametrize(
    ("change", "again"),
    [({"a": 2}, ["one", "two", "three"]), ({"b": 2}, ["two", "three"]), ({"c": 2}, ["three"])],
)
def test_a_change_redoes_the_step_and_all_after_it(work, change, again):
    work.run()
    assert work.run(**change) == again
    assert work.run(**change) == []
    fresh = Work(work.directory.with_name("fresh"))
    fresh.run(**change)
    assert work.content() == fresh.content()


def test_what_a_step_depends_on_is_plain_data_in_any_order(work):
    work.run(a={"x": 1, "y": [2.5, None, "z"]})
    assert work.run(a={"y": [2.5, None, "z"], "x": 1}) == []
    assert work.run(a={"x": 1, "y": [2.5, None, "Z"]}) == ["one", "two", "three"]


def test_back_to_what_was_before_is_a_change_too(work):
    work.run()
    work.run(b=2)
    assert work.run() == ["two", "three"]
    assert work.content()["two/second"] == "second 1"


def test_a_step_that_is_left_out_counts_as_another_way(work):
    """What follows depends on all that was done before it."""
    work.run()
    steps = StepCache(work.directory, RESULTS)
    done = []
    steps.run("one", 1, [work.one], lambda: done.append("one"))
    steps.run("three", 1, [work.three], lambda: done.append("three"))
    assert done == ["three"]


def test_an_interrupted_step_keeps_its_files(work):
    with pytest.raises(Stop):
        work.run(stop="at first")
    assert work.content()["two/first"] == "first 1"
    write_text(work.two / "first", "kept")
    assert work.run() == ["two", "three"]
    assert work.content()["two/first"] == "kept"
    assert work.content()["two/second"] == "second 1"
    assert work.run() == []


@pytest.mark.parametrize(
    "stop", ["one", "after one", "two", "at first", "at second", "after two", "three", "after three"]
)
def test_stopped_anywhere_the_same_work_goes_on(work, stop):
    with pytest.raises(Stop):
        work.run(stop=stop)
    work.run()
    fresh = Work(work.directory.with_name("fresh"))
    fresh.run()
    assert work.content() == fresh.content()
    assert work.run() == []


def test_what_an_interrupted_step_of_another_work_left_is_removed(work):
    with pytest.raises(Stop):
        work.run(stop="at first")
    assert work.run(b=2) == ["two", "three"]
    assert work.content()["two/first"] == "first 2"


def test_interrupted_while_it_is_redone(work):
    """The old result is gone by then, and is not taken for the new one, nor the new one's for the old."""
    work.run()
    with pytest.raises(Stop):
        work.run(b=2, stop="at first")
    assert work.content()["two/first"] == "first 2"
    assert "two/second" not in work.content()
    assert work.run(b=1) == ["two"]  # what comes after it is of this work still
    assert work.content()["two/first"] == "first 1"
    assert work.content()["two/second"] == "second 1"


def test_a_result_that_is_missing_is_made_again(work):
    work.run()
    work.one.unlink()
    assert work.run() == ["one"]
    work.three.unlink()
    assert work.run() == ["three"]
    assert work.run() == []


def test_links_are_removed_and_not_what_they_point_to(work, tmp_path):
    write_text(tmp_path / "elsewhere" / "first", "of another")
    work.directory.mkdir()
    work.run()
    for path in (work.two / "first", work.two / "second"):
        path.unlink()
    work.two.rmdir()
    work.two.symlink_to(tmp_path / "elsewhere")
    assert work.run(b=2) == ["two", "three"]
    assert (tmp_path / "elsewhere" / "first").read_text() == "of another"
    assert work.content()["two/first"] == "first 2"


def test_on_demand_all_is_done_again(work):
    work.run()
    write_text(work.two / "more", "left over")
    assert work.run(overwrite=True) == ["one", "two", "three"]
    assert "two/more" not in work.content()
    assert work.run() == []


def test_an_overwriting_run_cut_short_is_repeated(work):
    work.run()
    with pytest.raises(Stop):
        work.run(overwrite=True, stop="two")
    assert work.run() == ["two", "three"]


@pytest.mark.parametrize(
    "content",
    [
        "",
        "not json",
        "[]",
        "[1]",
        "1",
        "null",
        '{"one": 1}',
        '{"one": {"key": "x"}}',
        '{"one": {"done": true}}',
        '{"one": [',
        "[" * 100_000,
    ],
)
def test_a_broken_list_of_steps_is_refused(work, content):
    work.run()
    noted = write_text(work.directory / ".steps.json", content)
    before = work.content()
    with pytest.raises(InputError, match="--overwrite") as refusal:
        work.run()
    assert str(refusal.value).startswith(str(noted))
    assert "\n" not in str(refusal.value)
    assert work.content() == before
    assert work.run(overwrite=True) == ["one", "two", "three"]


def test_binary_and_a_directory_for_a_list_of_steps(work):
    work.run()
    (work.directory / ".steps.json").write_bytes(b"\xff\xfe\0")
    with pytest.raises(InputError, match="steps"):
        work.run()


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("name", ["one.txt", "two/holiday.txt", "three.txt"])
def test_what_was_not_made_here_is_not_written_over(work, name, overwrite):
    """And once it has been moved away there is nothing in the way."""
    mine = write_text(work.directory / name, "mine")
    with pytest.raises(InputError, match="not made here") as refusal:
        work.run(overwrite=overwrite)
    assert str(work.directory / name.partition("/")[0]) in str(refusal.value)
    assert work.content() == {name: "mine"}
    mine.rename(work.directory.with_name("elsewhere"))
    if name.startswith("two"):
        work.two.rmdir()
    assert work.run(overwrite=overwrite) == ["one", "two", "three"]


def test_what_is_in_nobodys_way_may_lie_there(work):
    write_text(work.directory / "notes.txt", "mine")
    assert work.run() == ["one", "two", "three"]
    assert work.content()["notes.txt"] == "mine"


def test_a_step_that_leads_nowhere(tmp_path):
    """What comes after it stays done when it is done again."""

    def run(result: int, picture: int) -> list[str]:
        done = []
        steps = StepCache(tmp_path, ["result.txt", "picture.txt"])

        def do(name: str, value: int) -> None:
            def work() -> None:
                done.append(name)
                write_text(tmp_path / f"{name}.txt", str(value))

            steps.run(name, value, [tmp_path / f"{name}.txt"], work, invalidates_later=False)

        steps.run("first", 1, [], lambda: None)
        do("result", result)
        do("picture", picture)
        return done

    assert run(1, 1) == ["result", "picture"]
    assert run(2, 1) == ["result"]
    assert run(2, 2) == ["picture"]
    assert run(2, 2) == []


def test_an_empty_directory_is_as_good_as_none(work):
    work.directory.mkdir()
    assert work.run() == ["one", "two", "three"]


def test_a_run_that_ended_before_its_first_step_is_no_stranger(work):
    """It leaves its lock."""
    StepCache(work.directory, RESULTS)
    assert work.run() == ["one", "two", "three"]


def test_a_file_where_the_directory_should_be(work):
    write_text(work.directory, "a file")
    with pytest.raises((InputError, NotADirectoryError, FileExistsError)):
        work.run()


def test_steps_are_told_in_the_directory(work):
    with pytest.raises(Stop):
        work.run(stop="two")
    noted = read_json(work.directory / ".steps.json")
    assert {name: step["done"] for name, step in noted.items()} == {"one": True, "two": False}
    assert len({step["key"] for step in noted.values()}) == 2
