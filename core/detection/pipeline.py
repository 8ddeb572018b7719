"""From one film without annotations to who speaks when: the numbered stages' own functions, step by step."""

import json
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
from core.detection.segments import SCHEMA_VERSION, describe_tracks, row_interval, write_rttm, write_tracks
from core.detection.shots import MAX_ROWS_PER_SECOND, MIN_ROWS_PER_SECOND, Shots, detect_shots
from core.detection.tracks import FaceDetector, detect_tracks, face_table
from core.formats.annotations import OFFICIAL_SUFFIX, FaceTable, read_annotations
from core.formats.clips import crop_path, drop_missing, read_crop, wav_path
from core.formats.csv_table import check_name
from core.formats.features import FeatureStore
from core.formats.predictions import join, read_logits
from core.inference import encode_videos, predict_videos
from core.media.audio import extract_audio, slice_track_audio
from core.media.crops import extract_crops, rows_without_crop
from core.media.ffmpeg import aligned_audio_args, encode_video, has_audio
from core.media.reader import VideoReader
from core.metrics import smooth_tracks, speaking_score
from core.runtime.device import sha256
from core.runtime.errors import InputError, RunError, one_line
from core.runtime.files import list_files, read_setting, write_bytes, write_csv, write_json
from core.runtime.jobs import FAILURES, Outcome, write_list
from core.runtime.progress import progress
from core.runtime.steps import StepCache

SPLIT = "val"  # what the film's rows are filed under, so that the numbered stages find them too
SETTINGS_FILE = "detect_speakers_cfg.json"
MAX_PRINTED_TRACKS = 10  # tracks, on the screen
# Plays everywhere: the index comes first, and the colours are said to be what OpenCV makes of them (BT.601).
FAST_START = ("-movflags", "+faststart", "-bsf:v")
BT601_TAGS = "h264_metadata=matrix_coefficients=6:colour_primaries=6:transfer_characteristics=6:video_full_range_flag=0"


class SpeakerDetection:
    """A film, and the directory of what is found in it.

    `<output_dir>/work` is laid out as ASC_DATA_ROOT is, and keeps what each step made: see `core.runtime.steps.StepCache`.
    The steps are called in the order they stand in. Raises InputError where the film cannot be opened or has no sound,
    and where the directory holds what must not be written over.
    """

    def __init__(self, film: Path, output_dir: Path, settings: dict):
        self.film, self.output_dir, self.work = film, output_dir, output_dir / "work"
        self.video_id = film.stem
        check_name(f"{self.video_id}{OFFICIAL_SUFFIX}", str(film))
        try:
            with VideoReader(film) as opened:
                self.size, self._pixel_aspect = opened.size, opened.pixel_aspect
            sound = has_audio(film)
        except ValueError as error:
            raise InputError(f"{film}: {error}") from None
        if not sound:
            raise InputError(f"{film}: it has no sound, and who speaks is a question of what is heard")
        names = ("tracks.csv", "speakers.json", "speakers.rttm", "timeline.png", f"{self.video_id}_speakers.mp4")
        self.tracks_csv, self.speakers_json, self.rttm, self.timeline, self.marked_video = (
            output_dir / name for name in names
        )
        self.failures = output_dir / FAILURES
        self._digest_of_tracks = output_dir / ".tracks.sha256"
        self._steps = StepCache(output_dir, [*names, "work"], settings["overwrite"])
        self._require_own_results()
        write_json(output_dir / SETTINGS_FILE, settings)
        self._shots_json = self.work / "shots.json"
        self.csv = self.work / "csv" / SPLIT / f"{self.video_id}{OFFICIAL_SUFFIX}"
        self.wav = wav_path(self.work / "audio_tracks", self.video_id)
        places = ("instance_wavs_time", "instance_crops_time", "ste_features")
        self.slices, self.crops, self.features = (self.work / name / SPLIT for name in places)
        self.predictions = self.work / "asc_predictions"

    def _require_own_results(self) -> None:
        """Raise InputError where the results of another film, or tracks that somebody has corrected, would be lost."""
        before = read_setting(self.output_dir, SETTINGS_FILE, "video")
        if before is not None and Path(str(before)).stem != self.video_id:
            raise InputError(f"{self.output_dir}: holds what was found in {before}; choose another --output-dir")
        made = self._digest_of_tracks.read_text() if self._digest_of_tracks.exists() else ""
        if self.tracks_csv.exists() and sha256(self.tracks_csv) != made:
            raise InputError(
                f"{self.tracks_csv}: changed since it was written; move it elsewhere, so that it is not written over "
                "(--tracks can read it there)"
            )

    def _do(self, name: str, depends: object, makes: list[Path], work: Callable[[], None]) -> None:
        """A step that reads the film, whose faults are the user's."""
        try:
            self._steps.do(name, depends, makes, work)
        except ValueError as error:
            raise InputError(f"{self.film}: {error}") from None

    # Rows

    def detect_shots(self) -> None:
        """Where the film is cut, and how long it is."""
        found = self.film.stat()
        depends = [self.film.name, found.st_size, found.st_mtime_ns, tracking_params["cut_score"]]
        self._do(
            "shots",
            depends,
            [self._shots_json],
            lambda: write_json(self._shots_json, detect_shots(self.film).to_dict()),
        )

    @cached_property
    def shots(self) -> Shots:
        return Shots(**json.loads(self._shots_json.read_text()))

    def detect_faces(self, detector: FaceDetector) -> None:
        """Tracks of faces, by detection."""

        def work() -> None:
            with VideoReader(self.film) as film:
                table = face_table(self.video_id, detect_tracks(film, self.shots, detector))
            write_csv(self.csv, table.official_columns(), header=False)

        self._do("tracks", [detector.sha256, tracking_params], [self.csv], work)

    def load_tracks(self, source: str) -> None:
        """Tracks of faces out of annotations. Raises InputError where these have none of this film."""
        table = read_annotations(source)
        if self.video_id not in table.video_ids:
            named = ", ".join(table.video_ids[:3])
            raise InputError(f"{source}: rows of {named}, but none of {self.video_id}, as the film is called")
        table = table.keep(table.rows_of_video(table.video_ids.index(self.video_id)))
        frame = table.official_columns()
        self._do("tracks", ["given", table.digest()], [self.csv], lambda: write_csv(self.csv, frame, header=False))
        steps = [row_interval(times) for _, times in frame.groupby("entity_id")["frame_timestamp"] if len(times) > 1]
        rate = 1 / float(np.median(steps)) if steps else MIN_ROWS_PER_SECOND
        if not MIN_ROWS_PER_SECOND * 0.99 <= rate <= MAX_ROWS_PER_SECOND * 1.01:
            usual = f"the networks were trained on {MIN_ROWS_PER_SECOND:.0f} to {MAX_ROWS_PER_SECOND:.0f}"
            print(f"note: {source} has {rate:.0f} rows a second; {usual}")

    @cached_property
    def rows(self) -> FaceTable:
        """All rows of the film, which may be none."""
        return read_annotations(self.csv) if self.csv.stat().st_size else face_table(self.video_id, [])

    # Scores

    def extract_audio(self) -> None:
        """The sound of the whole film, from its first frame to its last."""

        def work() -> None:
            outcome, samples = Outcome(), round(self.shots.seconds * SAMPLE_RATE)
            with progress(total=samples, desc="sound", unit=" samples", unit_scale=True) as bar:
                extract_audio(self.film, self.wav, True, outcome, bar.update, self.shots.seconds)
            for note in outcome.notes:
                print(one_line(f"note: {note}"))

        self._do("sound", None, [self.wav], work)

    def extract_clips(self) -> None:
        """The sound and the crops of every track; what cannot be cut is listed."""

        def work() -> None:
            table, rows, outcome = self.rows, np.arange(len(self.rows)), Outcome()
            with progress(total=len(table.entity_ids), desc="slices", unit="track") as bar:
                slice_track_audio(table, 0, self.wav, self.slices, list_files(self.slices), outcome, bar.update)
            todo = rows_without_crop(table, rows, self.crops)
            bar = progress(total=len(rows), initial=len(rows) - len(todo), desc="crops", unit="row")
            with bar, VideoReader(self.film) as film:
                extract_crops(table, todo, film, self.crops, outcome, bar.update)
            write_list(outcome.failures, self.failures)

        self._do("crops", None, [self.slices, self.crops], work)

    @cached_property
    def usable_rows(self) -> FaceTable:
        """The rows that could be cut."""
        if not len(self.rows):
            return self.rows
        try:
            return drop_missing(self.rows, self.slices, self.crops, skip_missing=True)
        except InputError:
            raise InputError(f"{self.film}: none of the rows can be cut out of it; {self.failures} says why") from None

    def encode(self, encoder: nn.Module, digest: str, clip_length: int, device: torch.device, **options) -> None:
        """Features by the short-term encoder, whose weights have this digest; options of `encode_videos`."""

        def work() -> None:
            reader = ClipReader(self.usable_rows, self.slices, self.crops, clip_length)
            encode_videos(encoder, reader, self.features, device, **options)

        self._steps.do("encoder", [digest, clip_length, options["precision"]], [self.features], work)

    def predict(
        self, network: nn.Module, digest: str, shape: tuple[int, int, int], seed: int, device: torch.device, **options
    ) -> None:
        """Logits by the context network; shape is clips, stride and speakers, options are those of `predict_videos`."""

        def work() -> None:
            dataset = ASCDataset(FeatureStore(self.features), *shape, seed)
            predict_videos(network, dataset, [0], self.predictions, device, **options)

        self._steps.do("context", [digest, *shape, seed], [self.predictions], work)

    def scores(self, smoothing: int) -> np.ndarray:
        """(N,) of the rows that were cut: logits through a median filter along tracks, then softmax."""
        table = self.usable_rows
        if not len(table):
            return np.empty(0)
        try:
            logits = join(read_logits(self.predictions), table, str(self.predictions))
        except InputError as error:
            raise InputError(f"{error}: {self.work} has changed since; pass --overwrite") from None
        logits = logits[["logit_0", "logit_1"]].to_numpy()
        return speaking_score(smooth_tracks(logits, table, smoothing) if smoothing else logits)

    # What is written for people

    def write_results(self, scores: np.ndarray, threshold: float, settings: dict) -> None:
        """tracks.csv, speakers.json, speakers.rttm and timeline.png; settings are what all that depends on."""

        def work() -> None:
            tracks = describe_tracks(self.usable_rows, scores, threshold, self.size)
            coming = self.work / self.tracks_csv.name
            write_tracks(coming, self.usable_rows, scores, threshold)
            write_bytes(self._digest_of_tracks, sha256(coming).encode())  # known before it is there, whatever happens
            coming.replace(self.tracks_csv)
            video = {
                "id": self.video_id,
                "file": self.film.name,
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
            from core.detection.timeline import (
                plot_timeline,  # matplotlib takes a second, and a second run may not need it
            )

            for page in self.output_dir.glob(f"{self.timeline.stem}_*.png"):  # of more tracks than there are now
                page.unlink()
            plot_timeline(self.timeline, self.usable_rows, scores, threshold, self.shots.seconds, self.thumbnail)

        makes = [self.tracks_csv, self.speakers_json, self.rttm, self.timeline]
        self._steps.do("results", settings, makes, work, invalidates_later=False)

    def write_marked_video(self, scores: np.ndarray, smoothing: int) -> None:
        """The film with boxes and scores, at the rate of the rows. Raises RunError where it cannot be encoded."""

        def work() -> None:
            times = self.shots.times
            source, shift = aligned_audio_args(self.film)
            wide, high = self._pixel_aspect
            options = (*shift, *FAST_START, f"{BT601_TAGS}:sample_aspect_ratio={wide}/{high}")
            with VideoReader(self.film) as film:
                images = progress(film.frames(times, float("inf")), total=len(times), desc="film", unit="frame")
                marked = marked_frames(images, self.size, times, self.usable_rows, scores)
                encode_video(self.marked_video, marked, self.size, self.shots.rate, source, *options)
                read = images.n / self.shots.rate
            if read < self.shots.seconds - 1:
                print(f"note: only {read:.1f} of {self.shots.seconds:.1f} s of the picture can be read")

        try:
            self._steps.do("film", smoothing, [self.marked_video], work, invalidates_later=False)
        except ValueError as error:
            raise RunError(f"{self.marked_video}: cannot be made ({error}); all other results are there") from None

    def thumbnail(self, track: int) -> Image.Image:
        """The largest crop of a track."""
        rows = self.usable_rows.rows_of_track(track)
        sides = self.usable_rows.box[rows, 2:] - self.usable_rows.box[rows, :2]
        row = rows[sides.prod(axis=1).argmax()]
        return read_crop(crop_path(self.crops, self.usable_rows.entity_ids[track], self.usable_rows.timestamp[row]))

    def report(self) -> int:
        """Say who speaks, and where it all lies. Returns the exit status: 1 where some rows could not be cut."""
        tracks = json.loads(self.speakers_json.read_text())["tracks"]
        speaking = sorted((t for t in tracks if t["speaking"]), key=lambda t: -t["speaking_seconds"])
        if not tracks:
            self.failures.unlink(missing_ok=True)
            print(f"no faces were found in {self.shots.seconds:.1f} s of film")
            return 0
        print(f"{len(tracks)} tracks in {self.shots.seconds:.1f} s of film, {len(speaking)} of them speak")
        for track in speaking[:MAX_PRINTED_TRACKS]:
            spoken = f"speaks {track['speaking_seconds']:.1f} s of {track['end'] - track['start']:.1f} s"
            print(f"  {track['id']}: {spoken}, first at {track['speaking'][0]['start']:.2f} s")
        if len(speaking) > MAX_PRINTED_TRACKS:
            print(f"  and {len(speaking) - MAX_PRINTED_TRACKS} more: {self.speakers_json}")
        print(f"look at {self.marked_video} and {self.timeline}")
        if lost := len(self.rows) - len(self.usable_rows):
            print(f"{lost} of {len(self.rows)} rows could not be cut: {self.failures} says why")
            return 1
        print(f"next: where {self.tracks_csv} is wrong, correct a copy of it and give it to --tracks, or to training")
        return 0
