"""From one film without annotations to who speaks when: the numbered stages' own functions, step by step."""

import json
from collections.abc import Callable
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn

from core.annotations import OFFICIAL_SUFFIX, FaceTable, read_annotations
from core.config import SAMPLE_RATE, tracking_params
from core.crops import cut_film, rows_to_cut
from core.dataset import ASCDataset, ClipReader, drop_missing
from core.errors import InputError
from core.evaluation import join, smooth_tracks, speaking_score
from core.faces import FaceDetector, Timeline, face_table, find_shots, find_tracks
from core.files import existing_files, write_bytes, write_csv, write_json
from core.inference import encode_films, predict_films
from core.io import FeatureStore, crop_path, official_frame, read_crop, read_logits, wav_path
from core.jobs import FAILURES, Outcome
from core.overlay import marked_frames
from core.progress import progress
from core.sound import extract_sound, slice_sound
from core.speakers import SCHEMA_VERSION, describe_tracks, write_rttm, write_tracks
from core.steps import Steps
from core.tables import check_name
from core.util import sha256
from core.video import Film, has_sound, sound_with_picture, write_film

SHOWN = 10  # tracks, on the screen
SPLIT = "val"  # what the film's rows are filed under, so that the numbered stages find them too


class OwnVideo:
    """A film, and the directory of what is found in it.

    `<output_dir>/work` is laid out as ASC_DATA_ROOT is, and keeps what each step made: see `core.steps.Steps`. The
    methods are called in the order they stand in. Raises InputError where the film cannot be opened or has no sound,
    and where the directory holds what must not be written over.
    """

    def __init__(self, path: Path, output_dir: Path, overwrite: bool):
        self.path, self.output_dir, self.work = path, output_dir, output_dir / "work"
        self.video_id = check_name(path.stem, str(path))
        try:
            with Film(path) as film:
                self.size = film.size
            sound = has_sound(path)
        except ValueError as error:
            raise InputError(f"{path}: {error}") from None
        if not sound:
            raise InputError(f"{path}: it has no sound, and who speaks is a question of what is heard")
        self._steps = Steps(self.work, overwrite)
        self.shots = self.work / "shots.json"
        self.csv = self.work / "csv" / SPLIT / f"{self.video_id}{OFFICIAL_SUFFIX}"
        self.wav = wav_path(self.work / "audio_tracks", self.video_id)
        places = ("instance_wavs_time", "instance_crops_time", "ste_features")
        self.slices, self.crops, self.features = (self.work / name / SPLIT for name in places)
        self.predictions = self.work / "asc_predictions"
        self.film, self.speakers_json = output_dir / f"{self.video_id}_speakers.mp4", output_dir / "speakers.json"
        self.tracks_csv, self._written = output_dir / "tracks.csv", self.work / "tracks.sha256"
        if self.tracks_csv.exists() and (not self._written.exists() or sha256(self.tracks_csv) != self._sum()):
            advice = "move it elsewhere, from where --tracks takes it, or choose another --output-dir"
            raise InputError(f"{self.tracks_csv}: not as it was written here, so it is not written over; {advice}")

    def _do(self, name: str, depends: object, makes: list[Path], work: Callable[[], None]) -> None:
        """A step in which a film that breaks is the user's."""
        try:
            self._steps.do(name, depends, makes, work)
        except ValueError as error:
            raise InputError(f"{self.path}: {error}") from None

    # Rows

    def find_shots(self) -> None:
        """Where the film is cut, and how long it is."""
        found = self.path.stat()
        identity = [self.path.name, found.st_size, found.st_mtime_ns]
        self._do("shots", identity, [self.shots], lambda: write_json(self.shots, find_shots(self.path).facts()))

    @cached_property
    def timeline(self) -> Timeline:
        return Timeline(**json.loads(self.shots.read_text()))

    def find_faces(self, detector: FaceDetector) -> None:
        """Tracks of faces, by detection."""

        def work() -> None:
            with Film(self.path) as film:
                table = face_table(self.video_id, find_tracks(film, self.timeline, detector))
            write_csv(self.csv, official_frame(table), header=False)

        self._do("tracks", [detector.digest, tracking_params], [self.csv], work)

    def take_tracks(self, source: str) -> None:
        """Tracks of faces out of annotations. Raises InputError where these have none of this film."""
        table = read_annotations(source)
        if self.video_id not in table.video_ids:
            named = ", ".join(table.video_ids[:3])
            raise InputError(f"{source}: rows of {named}, but none of {self.video_id}, as the film is called")
        rows = table.rows_of_video(table.video_ids.index(self.video_id))
        frame = official_frame(table, rows)
        given = ["given", table.keep(rows).digest()]
        self._do("tracks", given, [self.csv], lambda: write_csv(self.csv, frame, header=False))

    @cached_property
    def found(self) -> FaceTable:
        """All rows of the film, which may be none."""
        return read_annotations(self.csv) if self.csv.stat().st_size else face_table(self.video_id, [])

    # Scores

    def extract_sound(self) -> None:
        """The sound of the whole film, from its first frame to its last."""

        def work() -> None:
            seconds = self.timeline.seconds
            samples = round(seconds * SAMPLE_RATE)
            with progress(total=samples, desc="sound", unit=" samples", unit_scale=True) as bar:
                extract_sound(self.path, self.wav, True, Outcome(), bar.update, seconds)

        self._do("sound", None, [self.wav], work)

    def cut_tracks(self) -> None:
        """The sound and the crops of every track; what cannot be cut is listed."""

        def work() -> None:
            table, rows, outcome = self.found, np.arange(len(self.found)), Outcome()
            with progress(total=len(table.entity_ids), desc="slices", unit="track") as bar:
                slice_sound(table, 0, self.wav, self.slices, existing_files(self.slices), outcome, bar.update)
            todo = rows_to_cut(table, rows, self.crops)
            bar = progress(total=len(rows), initial=len(rows) - len(todo), desc="crops", unit="row")
            with bar, Film(self.path) as film:
                cut_film(table, todo, film, self.crops, outcome, bar.update)
            listed = self.output_dir / FAILURES
            listed.unlink(missing_ok=True)
            if outcome.failures:
                write_bytes(listed, "".join(f"{line}\n" for line in outcome.failures).encode())

        self._do("crops", None, [self.slices, self.crops], work)

    @cached_property
    def table(self) -> FaceTable:
        """The rows that could be cut."""
        return drop_missing(self.found, self.slices, self.crops, skip_missing=True)

    def encode(self, encoder: nn.Module, digest: str, clip_length: int, device: torch.device, **options) -> None:
        """Features by the short-term encoder, whose weights have this digest; options of `encode_films`."""

        def work() -> None:
            reader = ClipReader(self.table, self.slices, self.crops, clip_length)
            encode_films(encoder, reader, self.features, device, **options)

        self._steps.do("encoder", [digest, clip_length, options["precision"]], [self.features], work)

    def predict(
        self, network: nn.Module, digest: str, shape: tuple[int, int, int], seed: int, device: torch.device, **options
    ) -> None:
        """Logits by the context network; shape is clips, stride and speakers, options are those of `predict_films`."""

        def work() -> None:
            dataset = ASCDataset(FeatureStore(self.features), *shape, seed)
            predict_films(network, dataset, [0], self.predictions, device, **options)

        self._steps.do("context", [digest, *shape, seed], [self.predictions], work)

    def scores(self, smoothing: int) -> np.ndarray:
        """(N,) of the rows of the table: logits through a median filter along tracks, then softmax."""
        if not len(self.table):
            return np.empty(0)
        logits = join(read_logits(self.predictions), self.table, str(self.predictions))
        logits = logits[["logit_0", "logit_1"]].to_numpy()
        return speaking_score(smooth_tracks(logits, self.table, smoothing) if smoothing else logits)

    # What is written for people

    def write_film(self, scores: np.ndarray, smoothing: int) -> None:
        """The film with boxes and scores, at the rate of the rows."""

        def work() -> None:
            times = self.timeline.times
            source, shift = sound_with_picture(self.path)
            with Film(self.path) as film:
                images = progress(film.frames(times, float("inf")), total=len(times), desc="film", unit="frame")
                marked = marked_frames(images, self.size, times, self.table, scores)
                write_film(self.film, marked, self.size, self.timeline.rate, source, *shift, "-movflags", "+faststart")

        self._do("film", smoothing, [self.film], work)

    def write_results(self, scores: np.ndarray, threshold: float, settings: dict) -> None:
        """tracks.csv, speakers.json, speakers.rttm and timeline.png; settings are what all that depends on."""
        rttm, timeline = self.output_dir / "speakers.rttm", self.output_dir / "timeline.png"

        def work() -> None:
            tracks = describe_tracks(self.table, scores, threshold, self.size)
            coming = self.work / self.tracks_csv.name
            write_tracks(coming, self.table, scores, threshold)
            write_bytes(self._written, sha256(coming).encode())  # known before it is there, whenever this is killed
            coming.replace(self.tracks_csv)
            facts = self.timeline.facts()
            video = {
                "id": self.video_id,
                "file": self.path.name,
                "seconds": round(facts["seconds"], 3),
                "frame_rate": round(facts["fps"], 3),
                "width": self.size[0],
                "height": self.size[1],
                "rows_per_second": round(facts["rate"], 3),
                "cuts": [round(cut, 3) for cut in facts["cuts"]],
            }
            content = {"schema_version": SCHEMA_VERSION, "video": video, "settings": settings, "tracks": tracks}
            write_json(self.speakers_json, content)
            write_rttm(rttm, self.video_id, tracks)
            from core.timeline import plot_timeline  # matplotlib takes a second, and a second run may not need it

            plot_timeline(timeline, self.table, scores, threshold, self.timeline.seconds, self.thumbnail)

        self._steps.do("results", settings, [self.tracks_csv, self.speakers_json, rttm, timeline], work)

    def thumbnail(self, track: int) -> Image.Image:
        """The largest crop of a track."""
        rows = self.table.rows_of_track(track)
        sides = self.table.box[rows, 2:] - self.table.box[rows, :2]
        row = rows[sides.prod(axis=1).argmax()]
        return read_crop(crop_path(self.crops, self.table.entity_ids[track], self.table.timestamp[row]))

    def report(self) -> int:
        """Say who speaks, and where it all lies. Returns the exit status: 1 where some rows could not be cut."""
        tracks = json.loads(self.speakers_json.read_text())["tracks"]
        speaking = sorted((t for t in tracks if t["speaking"]), key=lambda t: -t["speaking_seconds"])
        if not tracks:
            print(f"no faces were found in {self.timeline.seconds:.1f} s of film")
            return 0
        print(f"{len(tracks)} tracks in {self.timeline.seconds:.1f} s of film, {len(speaking)} of them speak")
        for track in speaking[:SHOWN]:
            spoken = f"speaks {track['speaking_seconds']:.1f} s of {track['end'] - track['start']:.1f} s"
            print(f"  {track['id']}: {spoken}, first at {track['speaking'][0]['start']:.2f} s")
        if len(speaking) > SHOWN:
            print(f"  and {len(speaking) - SHOWN} more: {self.speakers_json}")
        print(f"look at {self.film} and {self.output_dir / 'timeline.png'}")
        if lost := len(self.found) - len(self.table):
            print(f"{lost} of {len(self.found)} rows could not be cut: {self.output_dir / FAILURES}")
            return 1
        print(f"next: correct {self.tracks_csv} where it is wrong, as a copy, and give it to --tracks or to training")
        return 0

    def _sum(self) -> str:
        return self._written.read_text()
