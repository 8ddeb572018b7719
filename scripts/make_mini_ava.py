"""Generate a small synthetic version of AVA-ActiveSpeaker: drawn faces, synthetic voices, official annotations.

The videos of AVA cannot be redistributed. Every stage runs unchanged on these videos instead, and the task is the same:
find the face whose mouth moves with the voice. A short clip is not always enough, because hands and microphones hide
mouths, heads turn away, people chew or speak inaudibly, and some voices are off screen.

    python scripts/make_mini_ava.py --root mini_ava --videos 12 --seconds 12 --seed 0

writes the following files, with about two thirds of the videos for training and the others for validation:

    <root>/videos/trainval/<video_id>.mp4                       640 x 360 H.264 at 25 frames per second, AAC
    <root>/csv/{train,val}/<video_id>-activespeaker.csv         official annotations
    <root>/mini_ava_cfg.json                                    settings of this script

With --hard, mouths are hidden for seconds, so the label must be inferred from other speakers and from earlier frames.
The same arguments give the same files. If interrupted, rerun the same command: finished videos are kept.
"""

import argparse
import json
import shlex
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from core.formats.annotations import OFFICIAL_SUFFIX
from core.runtime import cli
from core.runtime.errors import InputError
from core.runtime.files import list_files
from core.runtime.progress import progress
from core.runtime.resume import Manifest
from core.synthetic.plan import FPS, HARD, Scenario, plan_video
from core.synthetic.video import draw_video_id, write_video


def claim_root(root: Path, settings: dict) -> None:
    """Save the settings in a new root. Raises InputError if an existing one was not made with the same settings."""
    settings = json.loads(json.dumps(settings))  # as they are saved
    manifest = Manifest(root / "mini_ava_cfg.json", settings, identity=settings)
    if not manifest.path.exists() and any((root / name).exists() for name in ("videos", "csv")):
        raise InputError(f"{root}: not made by this script; choose another --root")
    manifest.require_same("choose another --root")
    manifest.save()


def get_args_parser() -> cli.Parser:
    parser = cli.Parser(__doc__)
    parser.add_argument("--root", required=True, help="output directory, to be used as ASC_DATA_ROOT")
    parser.add_argument("--videos", type=cli.integer(2), default=12, help="number of videos, at least 2")
    parser.add_argument("--seconds", type=cli.number(2, 3600), default=12.0, help="length of each video, 2 to 3600")
    parser.add_argument("--seed", type=cli.seed, default=0, help="random seed")
    parser.add_argument("--hard", action="store_true", help="hide mouths for seconds, so that context is needed")
    return parser


def main(args: argparse.Namespace) -> None:
    root, scenario = Path(args.root), HARD if args.hard else Scenario()
    settings = {name: value for name, value in vars(args).items() if name != "root"}
    claim_root(root, settings | {"scenario": asdict(scenario)})
    video_dir, num_train = root / "videos" / "trainval", args.videos - max(1, round(args.videos / 3))
    existing = list_files(video_dir)
    for index in progress(range(args.videos), desc="videos", unit="video"):
        rng = np.random.default_rng([args.seed, index])
        path = video_dir / f"{draw_video_id(rng, index)}.mp4"
        csv = root / "csv" / ("train" if index < num_train else "val") / f"{path.stem}{OFFICIAL_SUFFIX}"
        if path.name not in existing or not csv.exists():
            write_video(path, csv, plan_video(rng, scenario, round(args.seconds * FPS)))
    print(f"{root}: {args.videos} videos")
    print(f"next: export ASC_DATA_ROOT={shlex.quote(str(root))}; python data/extract_audio_tracks.py")


if __name__ == "__main__":
    cli.launch(main, get_args_parser())
