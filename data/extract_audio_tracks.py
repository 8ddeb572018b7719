"""Stage 1: extract the audio of every video as a 16 kHz mono wav.

    python data/extract_audio_tracks.py
    torchrun --nproc-per-node=4 data/extract_audio_tracks.py

Reads <ava-video-dir>/<video_id>.<ext>, writes <target-audios>/<video_id>.wav. Existing wavs are skipped.
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from core.config import data_inputs
from core.formats.clips import wav_path
from core.media.audio import extract_audio
from core.media.container import list_videos
from core.runtime import cli
from core.runtime.errors import InputError
from core.runtime.files import list_files, require_directory
from core.runtime.jobs import Outcome, print_outcome, run_jobs
from core.runtime.resume import Manifest

SETTINGS_FILE = "extract_audio_tracks_cfg.json"


def get_args_parser() -> cli.Parser:
    parser = cli.Parser(__doc__)
    parser.add_argument("--ava-video-dir", default=data_inputs["ava_video_dir"], help="directory of <video_id>.<ext>")
    parser.add_argument("--target-audios", default=data_inputs["ava_audio_dir"], help="output directory")
    align_help = "start each wav at the first frame of its video; the released code does not shift the audio"
    parser.add_argument("--align", action="store_true", help=align_help)
    parser.add_argument("--workers", type=cli.positive_int, default=4, help="number of videos processed in parallel")
    parser.add_argument("--overwrite", action="store_true", help="recreate existing wavs")
    return parser


def main(args: argparse.Namespace) -> int:
    cli.print_settings(vars(args))
    videos = list_videos(require_directory(args.ava_video_dir, "the videos, <video_id>.<ext>"))
    if not videos:
        raise InputError(f"{args.ava_video_dir}: no videos found (subdirectories are not searched)")
    manifest = Manifest(Path(args.target_audios, SETTINGS_FILE), vars(args), ("align",), args.overwrite)
    manifest.require_same()
    existing = set() if args.overwrite else list_files(args.target_audios)

    def extract(video_id: str, outcome: Outcome, advance: Callable[[int], None]) -> None:
        wav = wav_path(args.target_audios, video_id)
        if wav.name in existing:
            outcome.skipped += 1
        else:
            wav.unlink(missing_ok=True)  # also if it cannot be extracted again
            extract_audio(videos[video_id], wav, args.align, outcome, lambda _: None)
        advance(1)

    with manifest.filling():
        outcome = run_jobs(extract, videos, str, lambda _: 1, "video", args.workers, args.target_audios)
    status = print_outcome(outcome, "wavs", args.target_audios)
    default = data_inputs["ava_audio_dir"]
    cli.print_next("data/slice_audio_tracks.py", "--split", "train", ava_audio_dir=(args.target_audios, default))
    return status


if __name__ == "__main__":
    cli.launch(main, get_args_parser(), all_ranks=True)
