"""Active speaker detection in one video without annotations: detection and tracking, then the paper's stages."""

import json
import math
import os
from collections.abc import Callable
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn

from core.config import SAMPLE_RATE, tracking_params
from core.datasets import ASCDataset, ClipReader
from core.detection.overlay import marked_frames
from core.detection.review import describe_video, write_page
from core.detection.segments import (
    SCHEMA_VERSION,
    describe_tracks,
    write_rttm,
    write_segments,
    write_tracks,
    write_vtt,
)
from core.detection.shots import TIME_EPS, Shots, detect_shots
from core.detection.timeline import plot_timeline
from core.detection.tracks import FaceDetector, detect_tracks, face_table
from core.encoders import Encoder
from core.formats.annotations import OFFICIAL_SUFFIX, FaceTable, read_annotations, unusual_rows
from core.formats.clips import crop_path, drop_missing, read_crop, wav_path
from core.formats.csv_table import check_name, write_csv
from core.formats.features import FeatureStore
from core.formats.predictions import join_logits
from core.inference import encode_videos, predict_videos
from core.media.audio import extract_audio, iter_audio, slice_track_audio
from core.media.container import choose_stream, open_container, plays_in_browsers
from core.media.crops import extract_crops, rows_without_crop
from core.media.reader import WHOLE, VideoReader
from core.media.writer import encode_video
from core.metrics import smooth_tracks, speaking_score
from core.runtime.errors import InputError, RunError, one_line
from core.runtime.files import read_setting, write_bytes, write_json
from core.runtime.jobs import FAILURES, NOTES, Outcome, write_list
from core.runtime.progress import progress
from core.runtime.resume import StepCache
from core.runtime.weights import sha256

SPLIT = "val"  # name of the split in the layout of `work/`, so that the numbered stages can read it
SETTINGS_FILE = "detect_speakers_cfg.json"
MARKED_AUDIO_RATE = 48_000  # Hz
_LISTED_TRACKS = 10


class SpeakerDetection:
    """One video, or a part of it, and the output directory of its results. Call the steps in order of definition.

    `<output_dir>/work` has the layout of ASC_DATA_ROOT and keeps the output of each step, see
    `core.runtime.resume.StepCache`. Raises InputError if the video cannot be opened or has no audio, and if the
    output directory has files that must not be overwritten.
    """

    def __init__(self, video: Path, output_dir: Path, settings: dict):
        self.video, self.output_dir, self.work = video, output_dir, output_dir / "work"
        self.video_id, self._clip_length = video.stem, settings["clip_length"]
        self._video_stream, self._audio_stream = settings["video_stream"], settings["audio_stream"]
        start, duration = settings["start"], settings["duration"]
        self._part = start, math.inf if duration is None else start + duration
        check_name(f"{self.video_id}{OFFICIAL_SUFFIX}", str(video))
        try:
            with VideoReader(video, self._video_stream, enhance=True) as reader:
                for note in reader.notes:
                    print(one_line(f"note: {note}"))
                self.size, self._pixel_aspect = reader.size, reader.pixel_aspect
            default_streams = self._video_stream is None and self._audio_stream is None
            self.plays_in_browsers = default_streams and plays_in_browsers(video)
            with open_container(video) as container:
                choose_stream(container, "audio", self._audio_stream, [])
        except ValueError as error:
            raise InputError(f"{video}: {error}") from None
        names = ("tracks.csv", "speakers.json", "speakers.rttm", "speakers.csv", "speakers.vtt", "timeline.png")
        self._results = [output_dir / name for name in names]
        self.tracks_csv, self.speakers_json, self.rttm, self.segments, self.subtitles, self.timeline = self._results
        self.page = output_dir / "review.html"
        self.marked_video = output_dir / f"{self.video_id}_speakers.mp4"
        self.failures = output_dir / FAILURES
        self._tracks_sha256 = output_dir / ".tracks.sha256"
        self._steps = StepCache(
            output_dir, [*names, self.page.name, self.marked_video.name, "work"], settings["overwrite"]
        )
        self._require_own_results()
        write_json(output_dir / SETTINGS_FILE, settings)
        self._shots_json = self.work / "shots.json"
        self._track_notes = self.work / NOTES
        self._crop_failures, self._audio_failures = (self.work / f"{name}_{FAILURES}" for name in ("crops", "audio"))
        self.csv = self.work / "csv" / SPLIT / f"{self.video_id}{OFFICIAL_SUFFIX}"
        self.wav = wav_path(self.work / "audio_tracks", self.video_id)
        directories = ("instance_wavs_time", "instance_crops_time", "ste_features")
        self.track_wavs, self.crops, self.features = (self.work / name / SPLIT for name in directories)
        self.regions = self.work / "crops_of_encoder"
        self.predictions = self.work / "asc_predictions"
        self._logits_directory = self.features

    def _require_own_results(self) -> None:
        """Raise InputError if the directory holds results of another video, or a tracks.csv that was edited."""
        previous = read_setting(self.output_dir, SETTINGS_FILE, "video")
        if previous is not None and Path(str(previous)).stem != self.video_id:
            raise InputError(f"{self.output_dir}: holds results of {previous}; choose another --output-dir")
        written = self._tracks_sha256.read_text() if self._tracks_sha256.exists() else ""
        if self.tracks_csv.exists() and sha256(self.tracks_csv) != written:
            raise InputError(
                f"{self.tracks_csv}: edited since it was written; move it elsewhere so that it is not overwritten "
                "(--tracks can read it there)"
            )

    def _open(self) -> VideoReader:
        return VideoReader(self.video, self._video_stream, True, self._part)

    def _run_step(self, name: str, inputs: object, outputs: list[Path], work: Callable[[], None], **options) -> None:
        """Run a step that decodes the video. Raises InputError if the video is broken."""
        try:
            self._steps.run(name, inputs, outputs, work, **options)
        except ValueError as error:
            raise InputError(f"{self.video}: {error}") from None

    # Rows

    def detect_shots(self) -> None:
        """Find cuts and length of the video."""
        # The last item stands for the algorithm, so that shots of an older one are not used.
        inputs = [self.video_id, sha256(self.video), tracking_params["cut_score"], "dissolves"]
        if self._part != WHOLE or self._video_stream is not None:
            inputs += [*self._part, self._video_stream]

        def work() -> None:
            write_json(self._shots_json, detect_shots(self.video, self._video_stream, self._part).to_dict())

        self._run_step("shots", inputs, [self._shots_json], work)

    @cached_property
    def shots(self) -> Shots:
        return Shots(**json.loads(self._shots_json.read_text()))

    def detect_faces(self, detector: FaceDetector, **options) -> None:
        """Detect faces and link them into tracks. Takes the options of `detect_tracks`."""

        def work() -> None:
            notes: list[str] = []
            with self._open() as reader:
                table = face_table(self.video_id, detect_tracks(reader, self.shots, detector, notes=notes, **options))
            write_list(notes, self._track_notes)
            write_csv(self.csv, table.official_columns(), header=False)

        self._run_step("tracks", [detector.sha256, tracking_params, options], [self.csv], work)

    def load_tracks(self, source: str, clip_boxes: bool = False) -> None:
        """Read the tracks from annotations instead. Raises InputError if they have no rows of this video."""
        table = read_annotations(source, clip_boxes)
        if self.video_id not in table.video_ids:
            raise InputError(f"{source}: no rows of {self.video_id} (the name of the video file)")
        rows = table.rows_of_video(table.video_ids.index(self.video_id))
        times, (start, stop) = table.timestamp[rows], self._part
        table = table.keep(rows[(times > start - TIME_EPS) & (times < stop - TIME_EPS)])
        if len(table) and (problem := unusual_rows(table)):
            print(f"note: {source}: {problem}")

        def work() -> None:
            write_list([], self._track_notes)
            write_csv(self.csv, table.official_columns(), header=False)

        self._run_step("tracks", ["given", table.digest()], [self.csv], work)

    @cached_property
    def rows(self) -> FaceTable:
        """All rows of the video, possibly none."""
        return read_annotations(self.csv) if self.csv.stat().st_size else face_table(self.video_id, [])

    # Scores

    def extract_crops(self, encoder: Encoder) -> None:
        """Extract the crops of every track, and the regions of the frame that the encoder needs."""

        def work() -> None:
            rows, outcome = np.arange(len(self.rows)), Outcome()
            todo = rows_without_crop(self.rows, rows, self.crops)
            bar = progress(total=len(rows), initial=len(rows) - len(todo), desc="crops", unit="row")
            with bar, self._open() as reader:
                extract_crops(self.rows, todo, reader, self.crops, outcome, bar.update, *region)
            write_list(outcome.failures, self._crop_failures)

        region = (encoder.region, self.regions) if encoder.region else ()
        outputs = [self.crops, *([self.regions] if region else [])]
        self._run_step("crops", encoder.region and encoder.region.__name__, outputs, work)

    def extract_audio(self) -> None:
        """Extract the audio from the first frame to the last, silent before the analysed part, and that of every track.

        Rows and tracks whose crops or audio could not be extracted are listed in `failures.txt`.
        """

        def work() -> None:
            outcome, seconds, tracks = Outcome(), self.shots.seconds, len(self.rows.entity_ids)
            samples = round((seconds - self.shots.start) * SAMPLE_RATE)
            streams = self._audio_stream, self._video_stream
            with progress(total=samples, desc="audio", unit=" samples", unit_scale=True) as bar:
                extract_audio(self.video, self.wav, True, outcome, bar.update, seconds, *streams, self._part)
            with progress(total=tracks, desc="track audio", unit="track") as bar:
                slice_track_audio(self.rows, 0, self.wav, self.track_wavs, [], outcome, bar.update)
            for note in outcome.notes:
                print(one_line(f"note: {note}"))
            write_list(outcome.failures, self._audio_failures)

        self._run_step("audio", self._audio_stream, [self.wav, self.track_wavs], work)
        files = [file for file in (self._crop_failures, self._audio_failures) if file.exists()]
        write_list([line for file in files for line in file.read_text().splitlines()], self.failures)

    @cached_property
    def usable_rows(self) -> FaceTable:
        """Rows whose audio and crop were extracted."""
        if not len(self.rows):
            return self.rows
        try:
            return drop_missing(self.rows, self.track_wavs, self.crops, True, self._clip_length)
        except InputError:
            raise InputError(f"{self.video}: no row could be extracted; {self.failures} lists the reasons") from None

    def encode(
        self, encoder: Encoder, network: nn.Module, key: list, clip_length: int, device: torch.device, **options
    ) -> None:
        """Compute the logits and features of an encoder. Takes the options of `encode_videos`.

        `key` identifies the encoder and its weights.
        """

        def work() -> None:
            crops = self.regions if encoder.region else self.crops
            reader = ClipReader(self.usable_rows, self.track_wavs, crops, clip_length)
            encode_videos(network, reader, self.features, device, whole_tracks=encoder.input == "track", **options)

        self._steps.run("encoder", [*key, clip_length, options["precision"]], [self.features], work)

    def predict(
        self,
        network: nn.Module,
        weights_sha256: str,
        shape: tuple[int, int, int],
        seed: int,
        device: torch.device,
        batch_size: int,
    ) -> None:
        """Compute the logits of the context network; `shape` is context_length, context_stride, num_speakers."""

        def work() -> None:
            dataset = ASCDataset(FeatureStore(self.features), *shape, seed)
            options = {"batch_size": batch_size, "precision": "fp32"}
            predict_videos(network, dataset, [0], self.predictions, device, **options)

        self._steps.run("context", [weights_sha256, *shape, seed], [self.predictions], work)
        self._logits_directory = self.predictions

    @cached_property
    def logits(self) -> np.ndarray:
        """Logits (N, 2) of the usable rows: of the context network after `predict`, else the encoder's own."""
        table = self.usable_rows
        return join_logits(self._logits_directory, table) if len(table) else np.empty((0, 2))

    def scores(self, smoothing: int) -> np.ndarray:
        """Score (N,) of each usable row: logits, median-filtered along tracks if `smoothing`, then softmax."""
        if not len(self.usable_rows):
            return np.empty(0)
        logits = smooth_tracks(self.logits, self.usable_rows, smoothing) if smoothing else self.logits
        return speaking_score(logits)

    # Results

    def write_results(self, scores: np.ndarray, threshold: float, settings: dict, persons: dict[str, str]) -> None:
        """Write all results but the page and the marked video. They depend on `settings` and `persons`."""

        def work() -> None:
            tracks = describe_tracks(self.usable_rows, scores, threshold, self.size, persons)
            new = self.work / self.tracks_csv.name
            write_tracks(new, self.usable_rows, scores, threshold)
            # The hash is saved first: if the run is killed in between, the file must not count as edited.
            write_bytes(self._tracks_sha256, sha256(new).encode())
            new.replace(self.tracks_csv)
            video = {
                "id": self.video_id,
                "file": self.video.name,
                "seconds": round(self.shots.seconds, 3),
                "frame_rate": round(self.shots.fps, 3),
                "width": self.size[0],
                "height": self.size[1],
                "rows_per_second": round(self.shots.rate, 3),
                "cuts": [round(cut, 3) for cut in self.shots.cuts],
            }
            content = {"schema_version": SCHEMA_VERSION, "video": video, "settings": settings, "tracks": tracks}
            write_json(self.speakers_json, content)
            write_rttm(self.rttm, self.video_id, tracks)
            write_segments(self.segments, tracks)
            write_vtt(self.subtitles, tracks)
            for page in self.output_dir.glob(f"{self.timeline.stem}_*.png"):  # from a run with more tracks
                page.unlink()
            span = self.shots.start, self.shots.seconds
            plot_timeline(self.timeline, self.usable_rows, scores, threshold, span, self.thumbnail)

        self._steps.run("results", [settings, persons], self._results, work, invalidates_later=False)

    def write_page(self, smoothing: int, threshold: float, persons: dict[str, str]) -> None:
        """Write the review page. It plays the marked video if browsers cannot play the video itself."""
        file = os.path.relpath(self.video, self.output_dir)

        def work() -> None:
            played = None if self.plays_in_browsers else (self.marked_video, self._part[0])
            document = json.loads(self.speakers_json.read_text())
            del document["tracks"]
            span = self.shots.start, self.shots.seconds
            with self._open() as reader:
                video = describe_video(self.page, self.video, reader, span, played)
            options = {"thumbnail": self.thumbnail, "document": document}
            write_page(self.page, video, self.usable_rows, self.logits.T, threshold, smoothing, persons, **options)

        self._run_step("review page", [file, smoothing, threshold, persons], [self.page], work, invalidates_later=False)

    def write_marked_video(self, scores: np.ndarray, smoothing: int, threshold: float) -> None:
        """Write the analysed part with boxes and scores, at the row rate. Raises RunError if it cannot be encoded."""

        def work() -> None:
            times, start = self.shots.times, self._part[0]
            form = {"layout": "stereo", "rate": MARKED_AUDIO_RATE}
            with self._open() as reader:
                frames = reader.frames(times, float("inf"))
                images = progress(frames, total=len(times), desc="marked video", unit="frame")
                marked = marked_frames(images, self.size, times, self.usable_rows, scores, threshold)
                audio = iter_audio(self.video, None, reader.start_offset + start, self._audio_stream, **form)
                options = (audio, MARKED_AUDIO_RATE, "stereo", self._pixel_aspect)
                encode_video(self.marked_video, marked, self.size, self.shots.rate, *options)
                seconds = images.n / self.shots.rate
            if seconds < self.shots.seconds - start - 1:
                print(f"note: only {seconds:.1f} of {self.shots.seconds - start:.1f} s of the video can be decoded")

        try:
            self._steps.run("marked video", [smoothing, threshold], [self.marked_video], work, invalidates_later=False)
        except ValueError as error:
            raise RunError(f"{self.marked_video}: encoding failed ({error}); all other results are complete") from None

    def thumbnail(self, track: int) -> Image.Image:
        """Return the largest crop of a track."""
        rows = self.usable_rows.rows_of_track(track)
        sides = self.usable_rows.box[rows, 2:] - self.usable_rows.box[rows, :2]
        row = rows[sides.prod(axis=1).argmax()]
        return read_crop(crop_path(self.crops, self.usable_rows.entity_ids[track], self.usable_rows.timestamp[row]))

    def print_summary(self) -> int:
        """Print the tracks that speak most, and the main files. Returns the exit status: 1 if rows are not usable."""
        tracks = json.loads(self.speakers_json.read_text())["tracks"]
        speaking = [track for track in tracks if track["speaking"]]
        seconds = self.shots.seconds - self.shots.start
        found = f"{len(tracks)} tracks in" if tracks else "no faces were found in"
        print(f"{found} {seconds:.1f} s of video, {len(speaking)} with speech")
        if self._track_notes.exists():
            print(f"note: {'; '.join(self._track_notes.read_text().splitlines())}")
        speaking.sort(key=lambda track: -track["speaking_seconds"])
        for track in speaking[:_LISTED_TRACKS]:
            print(one_line(f"  {track['id']}: {track['speaking_seconds']:.1f} s of speech"))
        if len(speaking) > _LISTED_TRACKS:
            print(f"  {len(speaking) - _LISTED_TRACKS} more in {self.speakers_json}")
        print(f"results: {self.output_dir}; to watch and correct them, open {self.page} in a browser")
        if lost := len(self.rows) - len(self.usable_rows):
            print(f"{lost} of {len(self.rows)} rows could not be extracted; {self.failures} lists the reasons")
            return 1
        self.failures.unlink(missing_ok=True)  # of other tracks
        return 0
