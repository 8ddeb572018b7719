"""Stage 1: the sound of every film as a 16 kHz mono wav.

    python data/extract_audio_tracks.py
    torchrun --nproc-per-node=4 data/extract_audio_tracks.py

Reads <ava-video-dir>/<video_id>.<ext>, writes <target-audios>/<video_id>.wav. Wavs that are there are kept.
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from core.config import data_inputs
from core.formats.clips import wav_path
from core.media.audio import extract_audio
from core.media.ffmpeg import list_videos
from core.runtime.cli import Parser, launch, positive_int, print_settings
from core.runtime.errors import InputError
from core.runtime.files import list_files, read_setting, require_directory
from core.runtime.jobs import Outcome, print_outcome, run_jobs
from core.runtime.provenance import saved_settings


def get_args_parser() -> Parser:
    parser = Parser(__doc__)
    parser.add_argument("--ava-video-dir", default=data_inputs["ava_video_dir"], help="films, <video_id>.<ext>")
    parser.add_argument("--target-audios", default=data_inputs["ava_audio_dir"], help="where the wavs go")
    parser.add_argument(
        "--align",
        action="store_true",
        help="begin each wav with its film's first frame; without it a film whose picture and sound do not begin "
        "together is noted and left as it is, as the released code does",
    )
    parser.add_argument("--workers", type=positive_int, default=4, help="films at a time")
    parser.add_argument("--overwrite", action="store_true", help="make wavs that are there again")
    return parser


def main(args: argparse.Namespace) -> int:
    print_settings(vars(args))
    films = list_videos(require_directory(args.ava_video_dir, "the films, <video_id>.<ext>"))
    if not films:
        raise InputError(f"{args.ava_video_dir}: no films here (sub-directories are not searched)")
    found = list_files(args.target_audios)
    existing = set() if args.overwrite else found
    aligned = read_setting(args.target_audios, "extract_audio_tracks_cfg.json", "align")
    if not args.overwrite and aligned not in (None, args.align):
        raise InputError(f"{args.target_audios}: made {'with' if aligned else 'without'} --align; pass --overwrite")

    def extract(video_id: str, outcome: Outcome, advance: Callable[[int], None]) -> None:
        film, wav = films[video_id], wav_path(args.target_audios, video_id)
        if wav.name in existing:
            outcome.skipped += 1
        else:
            # Between pieces of sound the bar stands still, but a run that is stopped ends here.
            extract_audio(film, wav, args.align, outcome, lambda _: advance(0))
        advance(1)

    def size(video_id: str) -> int:
        try:
            return films[video_id].stat().st_size
        except OSError:  # it is listed with what failed
            return 0

    with saved_settings(Path(args.target_audios, "extract_audio_tracks_cfg.json"), vars(args)):
        outcome = run_jobs(extract, films, str, lambda _: 1, "film", args.workers, args.target_audios, size)
    return print_outcome(outcome, "wavs", args.target_audios, "python data/slice_audio_tracks.py --split train")


if __name__ == "__main__":
    launch(main, get_args_parser(), all_ranks=True)
