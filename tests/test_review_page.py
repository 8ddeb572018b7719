"""The review page: its data, its scores, and in a browser, watching, correcting and exporting."""

import base64
import hashlib
import json
import re
import shutil
import subprocess
from pathlib import Path
from urllib.parse import unquote

import jsonschema
import numpy as np
import pandas as pd
import pytest
from browser import Browser, frame_of, open_browser
from conftest import ROOT, assert_refused
from numbered_videos import ffmpeg
from PIL import Image
from stages import command
from timed_videos import AAC, H264, make_timed_video, shown_time
from tiny_inputs import read_json, run_here, speakers_json, succeed, write_text

from core.detection.overlay import visible_rows
from core.detection.review import describe_video, write_page
from core.detection.segments import describe_tracks, read_persons, write_rttm, write_segments, write_vtt
from core.formats.annotations import LABELS, FaceTable, read_annotations
from core.media.container import plays_in_browsers
from core.media.reader import VideoReader
from core.metrics import smooth_tracks, speaking_score
from core.runtime.errors import InputError

SIZE = (320, 180)
PAGE = ROOT / "core" / "detection" / "page"
THRESHOLD, SMOOTHING = 0.5, 5
MARKUP = "</script><script>window.hacked=1</script>\"'<img src=x onerror=window.hacked=1>&amp;{data}"
slow = pytest.mark.slow


def make_rows(lengths: list[int], video: str = "talk", seed: int = 0, gaps: bool = True) -> FaceTable:
    """Random tracks at 25 rows per second, one per length, some with gaps; faces next to each other."""
    rng = np.random.default_rng(seed)
    steps = [rng.choice([1, 1, 1, 1, 2, 7 if gaps else 1], length) for length in lengths]
    times = np.concatenate([(np.cumsum(own) - own[0]) / 25 + 0.04 * number for number, own in enumerate(steps)])
    entity = np.repeat(np.arange(len(lengths), dtype=np.int32), lengths)
    left = 0.05 + 0.9 * entity / len(lengths) + rng.uniform(0, 0.02, len(entity))
    box = np.stack([left, np.full(len(left), 0.2), left + 0.5 / len(lengths), np.full(len(left), 0.6)], axis=1)
    zeros = np.zeros(len(entity), np.int32)
    names = [f"{video}:{number + 1}" for number in range(len(lengths))]
    return FaceTable([video], names, zeros, entity, times.round(2), zeros.astype(np.int8), box)


def make_logits(table: FaceTable, seed: int = 0) -> np.ndarray:
    """(N, 2) float32 noise that changes slowly."""
    noise = np.random.default_rng(seed).normal(0, 3, (len(table) + 8, 2))
    return np.stack([np.convolve(column, np.ones(9) / 3, "valid") for column in noise.T], axis=1).astype(np.float32)


def make_page(path: Path, video: Path, table: FaceTable, logits: np.ndarray | None, played=None, **options) -> Path:
    with VideoReader(video) as reader:
        span = 0.0, max((reader.frame_count or 0) / reader.fps, float(table.timestamp.max(initial=0)))
        fields = describe_video(path, video, reader, span, played)
    columns = [] if logits is None else list(logits.T.astype(float))
    options = {"thumbnail": lambda _: Image.new("RGB", (30, 40), (90, 120, 60)), **options}
    write_page(path, fields, table, columns, THRESHOLD, SMOOTHING, document=speakers_json(), **options)
    return path


def page_data(path: Path) -> dict:
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', path.read_text())[1])


def expected_tracks(table: FaceTable, logits: np.ndarray, threshold: float, smoothing: int) -> list[dict]:
    smooth = smooth_tracks(logits.astype(float), table, smoothing) if smoothing else logits
    return describe_tracks(table, speaking_score(smooth), threshold, SIZE)


@pytest.fixture(scope="module")
def video(tmp_path_factory) -> Path:
    """Four seconds that show their time."""
    return make_timed_video(tmp_path_factory.mktemp("video") / "talk.mp4")


# The file


def test_page_has_the_rows_and_loads_nothing_but_the_video(tmp_path, video):
    table = make_rows([30, 20, 5])
    logits = make_logits(table)
    shuffled = table.keep(np.arange(len(table)))
    page = make_page(tmp_path / "out" / "review.html", video, shuffled, logits, persons={"talk:2": "Zo\u00eb"})
    data = page_data(page)
    assert data["times"] == table.timestamp.tolist()
    assert data["boxes"] == table.box.ravel().tolist()
    assert data["columns"] == logits.T.astype(float).tolist()
    assert [(track["id"], track["rows"], track["person"]) for track in data["tracks"]] == [
        *(("talk:1", 30, ""), ("talk:2", 20, "Zo\u00eb"), ("talk:3", 5, "")),
    ]
    assert (page.parent / unquote(data["video"]["source"])).resolve() == video.resolve()
    text = page.read_text()
    assert not re.search(r"(src|href)=|https?:|@import|url\(", re.sub(r"data:image\S+", "", text))
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', text)[1]
    for tag in ("style", "script"):
        content = re.search(rf"<{tag}>(.*?)</{tag}>", text, re.S)[1]
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy
    assert "default-src 'none'" in policy


def test_names_are_text(tmp_path, video):
    name = MARKUP.replace("/", "")
    shutil.copy(video, tmp_path / f"{name}.mp4")
    table = make_rows([5], video=name)
    page = make_page(tmp_path / "review.html", tmp_path / f"{name}.mp4", table, None, persons={f"{name}:1": MARKUP})
    data = page_data(page)
    assert (data["video"]["id"], data["tracks"][0]["person"]) == (name, MARKUP)
    assert page.read_text().count("<script") == 2
    assert "<img" not in page.read_text()
    assert unquote(data["video"]["source"]) == f"{name}.mp4"
    assert not set(data["video"]["source"]) & set("<>\"'{}# ?")


def node(script: str, data: object) -> object:
    """Run the scripts of the page that need no document, then a script, with `data`. Returns its `result`."""
    if not shutil.which("node"):
        pytest.skip("node is not installed")
    parts = [(PAGE / name).read_text() for name in ("scores.js", "review.js", "exports.js")]
    source = ["const data = JSON.parse(require('fs').readFileSync(0, 'utf8'));", *parts, script]
    source.append("process.stdout.write(JSON.stringify(result));")
    run = ["node", "-e", "\n".join(source)]
    return json.loads(subprocess.run(run, input=json.dumps(data), capture_output=True, text=True, check=True).stdout)


def test_segments_equal_those_of_the_script(tmp_path, video):
    """For tracks of all lengths, any threshold and any smoothing."""
    table = make_rows([1, 2, 3, 9, 60, 200])
    logits = make_logits(table)
    data = page_data(make_page(tmp_path / "review.html", video, table, logits))
    cases = [(threshold, smoothing) for threshold in (0, 0.2, 0.5, 0.77, 1) for smoothing in (0, 1, 3, 11, 51)]
    script = """
        const result = data.cases.map(([threshold, smoothing]) => {
          const review = new Review({ ...data.page, threshold, smoothing });
          return review.tracks.map(({ speaking }) => speaking);
        });"""
    for (threshold, smoothing), found in zip(cases, node(script, {"page": data, "cases": cases}), strict=True):
        expected = [track["speaking"] for track in expected_tracks(table, logits, threshold, smoothing)]
        for ours, theirs in zip(found, expected, strict=True):
            assert [(part["start"], part["end"]) for part in ours] == [(part["start"], part["end"]) for part in theirs]
            means = [part["mean_score"] for part in theirs]
            assert [part["mean_score"] for part in ours] == pytest.approx(means, abs=1.1e-6)


def test_numbers_are_rounded_as_in_python():
    values = [0.0625, 0.1875, 2.5, 0.0005, 1.0005, 12.3456789, 0.04, 3.1875, *np.random.default_rng(0).random(50)]
    found = node("const result = data.map((value) => [0, 1, 3, 6].map((digits) => round(value, digits)));", values)
    assert found == [[round(value, digits) for digits in (0, 1, 3, 6)] for value in values]


def test_edits_are_undone_and_restored(tmp_path, video):
    data = page_data(make_page(tmp_path / "review.html", video, make_rows([20, 10], gaps=False), None))
    script = """
        const review = new Review(data);
        const states = [];
        const facts = ({ id, start, stop, person }) => [id, start, stop, person];
        const keep = () => states.push([review.tracks.map(facts), [...review.labels]]);
        keep();
        review.addEdit({ kind: "label", start: 2, stop: 5, label: 1 });
        keep();
        review.addEdit({ kind: "split", track: "talk:1", row: 4, newTrack: review.newTrack("talk:1") });
        keep();
        review.addEdit({ kind: "person", tracks: ["talk:1-2", "talk:2"], person: "Anna" });
        keep();
        review.addEdit({ kind: "delete", track: "talk:1" });
        keep();
        for (let done = 4; done >= 0; done--) {
          review.setDone(done);
          keep();
        }
        review.setDone(4);
        const draft = JSON.parse(JSON.stringify(review.draft()));
        const other = new Review(data);
        other.restore(draft);
        const result = { states, tracks: other.tracks.map(({ id }) => id), text: tracksCsv(other) };"""
    result = node(script, data)
    states = result["states"]
    assert states[5:] == states[4::-1]
    assert states[3][0] == [["talk:1", 0, 4, ""], ["talk:1-2", 4, 20, "Anna"], ["talk:2", 20, 30, "Anna"]]
    assert result["tracks"] == ["talk:1-2", "talk:2"]
    table = read_annotations(write_text(tmp_path / "tracks.csv", result["text"]))
    assert (table.entity_ids, len(table)) == (["talk:1-2", "talk:2"], 26)
    assert table.label.tolist() == [1] + [-1] * 25


def test_labels_of_the_page_are_those_of_the_project():
    assert node("const result = LABELS;", None) == list(LABELS)


def test_persons_file_of_the_page_is_read(tmp_path):
    names = {"talk:1": 'Anna "A", \u4e2d', "talk:2": "O'Neil"}
    data = [{"id": track, "person": person} for track, person in names.items()]
    text = node("const result = personsCsv({ tracks: data });", data)
    assert read_persons(write_text(tmp_path / "persons.csv", text)) == names
    with pytest.raises(InputError, match="line 3: track a has two names"):
        read_persons(write_text(tmp_path / "two.csv", "track,person\na,x\na,y\n"))


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        ("a.mp4", (*H264, *AAC), True),
        ("a.mkv", (*H264, *AAC), False),
        ("a.webm", ("-c:v", "libvpx-vp9", "-deadline", "realtime", "-pix_fmt", "yuv420p", "-c:a", "libopus"), True),
        ("a.mp4", ("-c:v", "mpeg4", *AAC), False),
        ("a.mp4", (*H264[:-1], "yuv444p", *AAC), False),
    ],
)
def test_videos_that_browsers_play(tmp_path, name, options, expected):
    assert plays_in_browsers(make_timed_video(tmp_path / name, 0.2, options=options)) is expected


# scripts/review.py and scripts/evaluate.py


def test_pages_of_annotated_videos(inputs, tmp_path):
    videos = ("--ava-video-dir", inputs / "videos")
    succeed("scripts/review.py", "--csv", inputs / "val.csv", *videos, "--output-dir", tmp_path)
    table = read_annotations(inputs / "val.csv")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(f"review_{name}.html" for name in table.video_ids)
    data = page_data(tmp_path / "review_one.html")
    assert data["labels"] == table.label[table.rows_of_video(0)].tolist()
    assert data["columns"] == []
    assert all(track["thumbnail"].startswith("data:image/jpeg;base64,") for track in data["tracks"])


@pytest.mark.parametrize("labelled", [True, False])
def test_pages_of_predictions(inputs, tmp_path, labelled):
    flags = ("--csv", inputs / "val.csv") if labelled else ()
    files = ("--predictions", inputs / "predictions.csv", "--ava-video-dir", inputs / "videos")
    succeed("scripts/review.py", *flags, *files, "--videos", "two", "--output-dir", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["review_two.html"]
    data = page_data(tmp_path / "review_two.html")
    assert (data["labels"] is not None) == labelled
    lines = [line.split(",") for line in (inputs / "predictions.csv").read_text().splitlines()]
    assert data["columns"] == [[float(line[8]) for line in lines if line[0] == "two"]]


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ((), ["--csv", "--predictions"]),
        (("--csv", "{inputs}/val.csv", "--videos", "five"), ["--videos", "no rows of five"]),
        (("--csv", "{inputs}/val.csv", "--ava-video-dir", "{inputs}/crops"), ["no video one"]),
    ],
)
def test_unusable_arguments_are_one_line(inputs, tmp_path, flags, words):
    flags = [flag.format(inputs=inputs) for flag in flags]
    result = run_here(
        "scripts/review.py", "--ava-video-dir", inputs / "videos", *flags, "--output-dir", tmp_path / "out"
    )
    assert_refused(result, *words)
    assert not (tmp_path / "out").exists()


def test_evaluation_has_pages_of_the_worst_videos(inputs, tmp_path):
    output = succeed(*command("scripts/evaluate.py", inputs, tmp_path), "--ava-video-dir", inputs / "videos")
    worst = next(iter(read_json(tmp_path / "numbers.json")["predictions"].values()))["worst"]
    assert worst
    for video_id in worst:
        assert str(tmp_path / f"review_{video_id}.html") in output
        assert page_data(tmp_path / f"review_{video_id}.html")["labels"]


# In a browser


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with open_browser(tmp_path_factory.mktemp("downloads")) as browser:
        yield browser


TABLE = make_rows([90, 60, 40], gaps=False)
LOGITS = make_logits(TABLE)


@pytest.fixture(scope="module")
def page(video, tmp_path_factory) -> Path:
    """Three tracks in the video, with scores."""
    return make_page(tmp_path_factory.mktemp("page") / "review.html", video, TABLE, LOGITS)


def open_page(browser: Browser, page: Path, *args) -> None:
    browser.open(page, *args)
    browser.errors()  # of earlier pages


def shown_frame(browser: Browser) -> np.ndarray:
    browser.wait_for("!player.video.seeking")
    rect = browser.value("player.frameRect()")
    rect["top"] += browser.value("player.canvas.getBoundingClientRect().top")
    return frame_of(browser.screenshot(), rect)


def corrected_table(browser: Browser) -> FaceTable:
    return read_annotations(browser.download("tracks.csv"))


@slow
@pytest.mark.parametrize("late", [0.0, 0.52])
def test_boxes_are_on_time_and_in_place(browser, video, tmp_path, late):
    """Also in a video that starts later than its audio."""
    file = tmp_path / "late.mp4"
    ffmpeg("-itsoffset", late, "-i", video, "-i", video, "-map", "0:v", "-map", "1:a", "-c", "copy", file)
    open_page(browser, make_page(tmp_path / "review.html", file, TABLE, LOGITS))
    visible = visible_rows(TABLE, np.arange(100) / 25)
    for time in (0.4, 1.48, 2.04):
        browser.run(f"player.seek({time} + 0.02)")
        browser.wait_for(f"Math.abs(player.shown - {time}) < 0.001")
        frame = shown_frame(browser)
        assert shown_time(frame) == pytest.approx(time, abs=0.001)
        drawn = browser.value("player.drawn.map(({ row }) => row)")
        assert drawn == visible[round(25 * time)]
        is_coloured = np.ptp(frame, axis=2) > 60  # the video is grey
        height, width = is_coloured.shape
        for x1, y1, x2, y2 in TABLE.box[drawn]:
            y = round((y1 + y2) / 2 * height)
            for x in (round(x1 * width), round(x2 * width)):
                assert is_coloured[y, x]
                assert not is_coloured[y, [x - 8, x + 8]].any()
    assert browser.errors() == []


@slow
def test_marked_video_of_a_part_is_on_time(browser, video, tmp_path):
    """Here it begins at 1.2 s."""
    open_page(browser, make_page(tmp_path / "review.html", video, TABLE, LOGITS, played=(video, 1.2)))
    browser.run("player.seek(2.02)")
    browser.wait_for("Math.abs(player.shown - 2) < 0.001")
    assert shown_time(shown_frame(browser)) == pytest.approx(0.8, abs=0.001)


@slow
def test_keys_and_clicks_move_the_playhead(browser, page):
    open_page(browser, page)
    browser.mouse(browser.lane_point(1, 1.5))
    assert browser.value("player.time") == pytest.approx(1.5, abs=0.02)
    assert browser.value("timeline.selected") == "talk:2"
    browser.wait_for("Math.abs(player.shown - 1.48) < 0.03")
    before = browser.value("player.shown")
    browser.press("right", "right", "left")
    browser.wait_for(f"Math.abs(player.shown - {before} - 0.04) < 0.001")
    browser.press("escape")
    starts = sorted(part["start"] for track in expected_tracks(TABLE, LOGITS, 0.5, 5) for part in track["speaking"])
    found = []
    browser.run("player.seek(0)")
    for _ in range(3):
        browser.press("]")
        found.append(browser.value("player.time"))
    later = [start for start in dict.fromkeys(starts) if start > 0.02]
    assert found == pytest.approx([start + 0.02 for start in later[:3]], abs=0.021)
    browser.press("[")
    assert browser.value("player.time") < found[-1]
    browser.press("+")
    assert browser.value("player.video.playbackRate") == 1.5
    browser.run("player.seek(0)")
    browser.press(" ")
    browser.wait_for("player.time > 0.2")
    browser.press(" ")
    assert browser.value("player.video.paused")
    browser.press("z")
    x, _ = browser.lane_point(0, 1.0)
    top = browser.value("timeline.scroller.getBoundingClientRect().top") + 5
    browser.mouse((x, top), (x + 100, top), (x + 200, top))
    assert browser.value("timeline.isZoomed()")
    assert browser.errors() == []


@slow
def test_threshold_and_smoothing_change_the_exports_as_the_script_does(browser, page, tmp_path):
    open_page(browser, page)
    schema = read_json(ROOT / "docs" / "speakers.schema.json")
    for threshold, smoothing in ((0.5, 5), (0.31, 5), (0.8, 11)):
        for name, value in (("threshold", threshold), ("smoothing", smoothing)):
            browser.run(f"element('{name}').value = {value}; element('{name}').dispatchEvent(new Event('input'))")
        tracks = expected_tracks(TABLE, LOGITS, threshold, smoothing)
        exported = read_json(browser.download("speakers.json"))
        jsonschema.validate(exported, schema)
        assert (exported["settings"]["threshold"], exported["settings"]["smoothing"]) == (threshold, smoothing)
        for ours, theirs in zip(exported["tracks"], tracks, strict=True):
            parts = ours.pop("speaking"), theirs["speaking"]
            assert ours == pytest.approx({name: ours[name] and theirs[name] for name in ours}, abs=1.1e-6)
            assert parts[0] == [pytest.approx(part, abs=1.1e-6) for part in parts[1]]
        write_rttm(tmp_path / "speakers.rttm", "talk", tracks)
        write_vtt(tmp_path / "speakers.vtt", tracks)
        write_segments(tmp_path / "speakers.csv", tracks)
        for name in ("speakers.rttm", "speakers.vtt"):
            assert browser.download(name).read_text() == (tmp_path / name).read_text()
        paths = browser.download("speakers.csv"), tmp_path / "speakers.csv"
        pd.testing.assert_frame_equal(*map(pd.read_csv, paths), check_dtype=False, rtol=0, atol=1.1e-6)


@slow
def test_corrections_are_exported_exactly(browser, page):
    open_page(browser, page)
    before = corrected_table(browser)
    assert (before.box == TABLE.box).all()
    assert before.timestamp.tolist() == TABLE.timestamp.tolist()
    tracks = expected_tracks(TABLE, LOGITS, THRESHOLD, SMOOTHING)
    smooth = speaking_score(smooth_tracks(LOGITS.astype(float), TABLE, SMOOTHING))
    expected = (smooth >= THRESHOLD).astype(int)
    assert before.label.tolist() == expected.tolist()
    assert any(track["speaking"] for track in tracks)

    first, last = TABLE.rows_of_track(1)[[10, 25]]
    browser.mouse(browser.lane_point(1, TABLE.timestamp[first]), browser.lane_point(1, TABLE.timestamp[last]))
    browser.press("2")
    expected[first : last + 1] = 2
    row = TABLE.rows_of_track(0)[40]
    browser.mouse(browser.lane_point(0, TABLE.timestamp[row]), double=True)
    start = stop = row
    while start > 0 and expected[start - 1] == expected[row]:
        start -= 1
    while stop + 1 < 90 and expected[stop + 1] == expected[row]:
        stop += 1
    browser.press(str(1 - expected[row]))
    expected[start : stop + 1] = 1 - expected[row]
    assert corrected_table(browser).label.tolist() == expected.tolist()

    browser.press("ctrl z", "ctrl z")
    assert corrected_table(browser).label.tolist() == before.label.tolist()
    browser.press("ctrl y", "ctrl y")
    assert corrected_table(browser).label.tolist() == expected.tolist()

    browser.load(page)
    assert corrected_table(browser).label.tolist() == before.label.tolist()
    assert "2 corrections" in browser.value("element('draft').textContent")
    browser.press("down", "s", "2", "ctrl z")
    assert corrected_table(browser).label.tolist() == before.label.tolist()  # the draft would be lost
    browser.click("#restore")
    assert corrected_table(browser).label.tolist() == expected.tolist()
    assert browser.errors() == []


@slow
def test_keyboard_only_correction(browser, page):
    open_page(browser, page)
    browser.press("down", "down")
    assert browser.value("timeline.selected") == "talk:2"
    row = int(TABLE.rows_of_track(1)[20])
    browser.run(f"player.seek({TABLE.timestamp[row]} + 0.02)")
    browser.press("shift right", "shift right", "2")
    table = corrected_table(browser)
    assert np.flatnonzero(table.label == 2).tolist() == [row, row + 1, row + 2]
    browser.press("x")
    assert corrected_table(browser).entity_ids == ["talk:1", "talk:2", "talk:2-2", "talk:3"]
    browser.press("down", "down", "delete")
    table = corrected_table(browser)
    assert table.entity_ids == ["talk:1", "talk:2", "talk:3"]
    assert int((table.entity == 1).sum()) == 22


@slow
def test_persons_are_named_and_merged(browser, page, tmp_path):
    open_page(browser, page)
    browser.press("down", "n", *"Anna", "enter")
    assert browser.value("review.persons()") == ["Anna"]
    source, target = browser.lane_point(2, 0), browser.lane_point(0, 0)
    browser.mouse((60, source[1]), (70, (source[1] + target[1]) / 2), (60, target[1]))
    assert browser.value("review.tracks.map(({ person }) => person)") == ["Anna", "", "Anna"]
    assert browser.download("persons.csv").read_text() == "track,person\ntalk:1,Anna\ntalk:3,Anna\n"
    tracks = expected_tracks(TABLE, LOGITS, THRESHOLD, SMOOTHING)
    seconds = tracks[0]["speaking_seconds"] + tracks[2]["speaking_seconds"]
    lines = [line.split(",") for line in browser.download("speaking_time.csv").read_text().splitlines()]
    assert {line[0]: float(line[1]) for line in lines[1:]} == pytest.approx(
        {"Anna": seconds, "talk:2": tracks[1]["speaking_seconds"]}, abs=0.002
    )
    assert "<v Anna>Anna" in browser.download("speakers.vtt").read_text()
    assert browser.value("timeline.items.filter((item) => !item.track).map(({ person }) => person)") == ["Anna", ""]


@slow
def test_names_with_markup_do_nothing(browser, video, tmp_path):
    name = MARKUP.replace("/", "")
    shutil.copy(video, tmp_path / f"{name}.mp4")
    table = make_rows([60, 40], video=name)
    persons = {f"{name}:1": MARKUP}
    page = make_page(tmp_path / f"{name}.html", tmp_path / f"{name}.mp4", table, make_logits(table), persons=persons)
    open_page(browser, page)
    assert browser.value("player.video.error") is None
    browser.press("down", "down", "n", *MARKUP, "enter")
    browser.run("openExport()")
    assert browser.value("review.tracks.map(({ person }) => person)") == [MARKUP, MARKUP]
    assert browser.value("[window.hacked ?? null, document.images.length, document.scripts.length]") == [None, 0, 2]
    assert browser.value("element('title').textContent") == f"{name}: who speaks when"
    browser.run("document.getElementById('export-dialog').close()")
    assert read_annotations(browser.download("tracks.csv")).entity_ids == table.entity_ids
    assert browser.errors() == []


@slow
def test_labels_that_contradict_scores_are_found(browser, video, tmp_path):
    table = make_rows([60], gaps=False)
    logits = np.stack([np.zeros(60), np.full(60, -3.0)], axis=1)
    table.label[20:30] = 1
    page = make_page(tmp_path / "review.html", video, table, logits, labelled=True)
    open_page(browser, page)
    browser.press("d")
    assert browser.value("timeline.rows") == {"start": 20, "stop": 30}
    browser.press("0")
    assert corrected_table(browser).label.tolist() == [0] * 60


@slow
def test_ninety_thousand_rows_open_within_three_seconds(browser, video, tmp_path):
    table = make_rows([300] * 300, gaps=False)
    table.timestamp += 12 * table.entity
    open_page(browser, make_page(tmp_path / "review.html", video, table, make_logits(table)))
    assert browser.value("performance.getEntriesByType('navigation')[0].loadEventEnd") < 3000
    browser.run("timeline.showAll()")
    scroll = "const start = performance.now(); timeline.scroller.scrollTop = {}; timeline.draw();"
    times = [browser.run(f"{scroll.format(5000 * n)} return performance.now() - start") for n in range(1, 4)]
    assert max(times) < 50  # ms
    browser.run("review.addEdit({ kind: 'label', start: 10, stop: 20, label: 2 }); showAll()")
    table = corrected_table(browser)
    assert (len(table), np.flatnonzero(table.label == 2).tolist()) == (90_000, list(range(10, 20)))


@slow
@pytest.mark.parametrize("size", [(1280, 800), (800, 600)])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_everything_fits_into_the_window(browser, page, size, scheme):
    open_page(browser, page, size, scheme)
    browser.press("down", "s")
    width, height = browser.value("[document.documentElement.scrollWidth, document.documentElement.scrollHeight]")
    assert (width, height) <= size
    outside = """[...document.querySelectorAll("button, input, #player, #timeline")].filter((node) => {
        const { left, right, top, bottom, width } = node.getBoundingClientRect();
        return width && !node.closest("aside") && (left < 0 || top < 0 || right > innerWidth || bottom > innerHeight);
    }).map(({ id }) => id)"""
    assert browser.value(outside) == []
    assert browser.value("element('player').clientHeight") > 0.3 * size[1]
    assert browser.value("element('timeline').clientHeight") > 0.25 * size[1]
    background = browser.screenshot()[5, 5].mean()
    assert background > 200 if scheme == "light" else background < 60


@slow
def test_page_without_tracks(browser, video, tmp_path):
    page = make_page(tmp_path / "review.html", video, make_rows([5]).keep(np.zeros(5, bool)), np.empty((0, 2)))
    open_page(browser, page)
    browser.press("down", "]", "s", "1", "x", "delete", "z", "d")
    assert browser.download("tracks.csv").read_text().count("\n") == 1
    assert browser.errors() == []


@slow
def test_video_that_cannot_be_played_is_named(browser, tmp_path):
    file = make_timed_video(tmp_path / "talk.mkv", 1, options=("-c:v", "ffv1", "-c:a", "pcm_s16le"))
    open_page(browser, make_page(tmp_path / "review.html", file, TABLE, LOGITS))
    browser.wait_for("!element('unplayable').hidden")
    assert "talk.mkv" in browser.value("element('unplayable').textContent")
    browser.mouse(browser.lane_point(0, 0.5))
    assert browser.value("player.drawn.length") == 3  # boxes and lanes remain
