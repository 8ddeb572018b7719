"""Stage 1: the sound of every film as a 16 kHz mono wav.

    python data/extract_audio_tracks.py

Reads <ava-video-dir>/<video_id>.<ext>, writes <target-audios>/<video_id>.wav. Wavs that are there are kept.
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from core.command_line import Parser, describe, positive_int, require_directory, run
from core.config import data_inputs
from core.errors import InputError
from core.io import existing_files, replacing, wav_path, write_json
from core.jobs import Outcome, report, run_jobs
from core.video import extract_audio, find_films


def get_args_parser() -> Parser:
    parser = Parser(__doc__)
    parser.add_argument("--ava-video-dir", default=data_inputs["ava_video_dir"], help="films, <video_id>.<ext>")
    parser.add_argument("--target-audios", default=data_inputs["ava_audio_dir"], help="where the wavs go")
    parser.add_argument("--workers", type=positive_int, default=4, help="films at a time")
    parser.add_argument("--overwrite", action="store_true", help="make wavs that are there again")
    return parser


def main(args: argparse.Namespace) -> int:
    describe(vars(args))
    films = find_films(require_directory(args.ava_video_dir, "the films, <video_id>.<ext>"))
    if not films:
        raise InputError(f"{args.ava_video_dir}: no films here")
    existing = set() if args.overwrite else existing_files(args.target_audios)

    def extract(video_id: str, advance: Callable[[int], None]) -> Outcome:
        wav = wav_path(args.target_audios, video_id)
        found = wav.name in existing
        if not found:
            with replacing(wav) as temporary:
                extract_audio(films[video_id], temporary)
        advance(1)
        return Outcome(done=not found, skipped=found)

    outcome = run_jobs(extract, films, str, len(films), "film", args.workers)
    write_json(Path(args.target_audios, "extract_audio_tracks_cfg.json"), vars(args))
    return report(outcome, "wavs", args.target_audios, "python data/slice_audio_tracks.py --split train")


if __name__ == "__main__":
    run(main, get_args_parser())
