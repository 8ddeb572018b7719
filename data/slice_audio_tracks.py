"""Stage 2: cut the audio of every face track from the wavs of the videos.

    python data/slice_audio_tracks.py --split train
    python data/slice_audio_tracks.py --split val

Reads <ava-audio-dir>/<video_id>.wav, writes <output-dir>/<split>/<entity_id>.wav, from the first timestamp of the track
to the last. Existing slices are skipped.
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

from core.config import STE_inputs, annotation_csvs, data_inputs
from core.formats.annotations import annotations_of, read_annotations, unusual_rows
from core.formats.clips import wav_path
from core.media.audio import slice_track_audio
from core.runtime import cli
from core.runtime.files import list_files, read_setting, require_directory
from core.runtime.jobs import Outcome, print_outcome, run_jobs
from core.runtime.resume import Manifest

SETTINGS_FILE = "slice_audio_tracks_cfg.json"
AUDIO_SETTINGS = "extract_audio_tracks_cfg.json"  # of stage 1


def get_args_parser() -> cli.Parser:
    parser = cli.Parser(__doc__)
    cli.add_split_arguments(parser)
    parser.add_argument("--ava-audio-dir", default=data_inputs["ava_audio_dir"], help="directory of <video_id>.wav")
    parser.add_argument("--output-dir", default=STE_inputs["audio_dir"], help="output directory of all splits")
    parser.add_argument("--workers", type=cli.positive_int, default=4, help="number of videos processed in parallel")
    parser.add_argument("--overwrite", action="store_true", help="recreate existing slices")
    return parser


def main(args: argparse.Namespace) -> int:
    args.csv = args.csv or annotation_csvs[args.split]
    cli.print_settings(vars(args))
    audio_dir = require_directory(args.ava_audio_dir, "the wavs of stage 1: run data/extract_audio_tracks.py first")
    table = read_annotations(args.csv, args.clip_boxes)
    if problem := unusual_rows(table):
        print(f"note: {args.csv}: {problem}")
    output_dir = Path(args.output_dir, args.split)
    align = read_setting(audio_dir, AUDIO_SETTINGS, "align")
    manifest = Manifest(output_dir / SETTINGS_FILE, {**vars(args), "align": align}, ("align",), args.overwrite)
    manifest.require_same()
    existing = set() if args.overwrite else list_files(output_dir)

    def slice_video(video: int, outcome: Outcome, advance: Callable[[int], None]) -> None:
        wav = wav_path(audio_dir, table.video_ids[video])
        slice_track_audio(table, video, wav, output_dir, existing, outcome, advance)

    videos = range(len(table.video_ids))
    with manifest.filling():
        name, tracks = table.video_ids.__getitem__, np.bincount(table.track_video(), minlength=len(videos))
        outcome = run_jobs(slice_video, videos, name, tracks.__getitem__, "track", args.workers, output_dir)
    status = print_outcome(outcome, "slices", output_dir)
    if args.split == "train":
        cli.print_next(
            *("data/slice_audio_tracks.py", "--split", "val"),
            csv=(annotations_of("val", args.csv, args.split), annotation_csvs["val"]),
            ava_audio_dir=(args.ava_audio_dir, data_inputs["ava_audio_dir"]),
            output_dir=(args.output_dir, STE_inputs["audio_dir"]),
            clip_boxes=(args.clip_boxes, False),
        )
        return status
    split = "train" if args.split == "val" and Path(args.output_dir, "train").is_dir() else args.split
    video_dir = data_inputs["ava_video_dir"]
    cli.print_next(
        *("data/extract_face_crops_time.py", "--split", split),
        csv=(annotations_of(split, args.csv, args.split), annotation_csvs[split]),
        ava_video_dir=(read_setting(audio_dir, AUDIO_SETTINGS, "ava_video_dir") or video_dir, video_dir),
        clip_boxes=(args.clip_boxes, False),
    )
    return status


if __name__ == "__main__":
    cli.launch(main, get_args_parser(), all_ranks=True)
