"""Who speaks when in a film of your own: faces are found and followed, then the numbered stages are run on them.

    python scripts/detect_speakers.py talk.mp4 0 --output-dir talk
    python scripts/detect_speakers.py talk.mp4 cpu --output-dir talk --precision bf16 --ste-weights STE.pth \\
        --asc-weights ASC.pth --face-detector yunet.onnx
    python scripts/detect_speakers.py talk.mp4 0 --output-dir again --tracks corrected.csv

writes, and what is done already is kept,

    <output-dir>/tracks.csv            the official columns and a score per row; --tracks and every --csv take it
    <output-dir>/speakers.json         tracks and when each of them speaks: docs/speakers.schema.json
    <output-dir>/speakers.rttm         the same for tools of diarisation
    <output-dir>/<film>_speakers.mp4   the film with boxes and scores
    <output-dir>/timeline.png          a lane per track
    <output-dir>/work/                 what the steps made, laid out as ASC_DATA_ROOT is
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from core.config import ASC_forward_params, ASC_inputs_forward, STE_forward_params, own_video_params
from core.detection.pipeline import SpeakerDetection
from core.detection.tracks import FaceDetector
from core.models import active_speakers_context, short_term_encoder
from core.runtime.cli import (
    Parser,
    device_name,
    fraction,
    launch,
    odd_positive,
    odd_window,
    positive_int,
    print_settings,
    seed,
    worker_count,
)
from core.runtime.device import device_label, get_device, load_weights, tune_malloc
from core.runtime.files import require_different, require_file

RESULT_SETTINGS = ("threshold", "smoothing", "clip_length", "clips", "time_stride", "speakers", "precision", "seed")


def get_args_parser() -> Parser:
    defaults, encoder = own_video_params, STE_forward_params
    parser = Parser(__doc__)
    parser.add_argument("video", help="film with picture and sound")
    parser.add_argument("cuda_device", type=device_name, help="number of the CUDA device, or cpu")
    parser.add_argument("--output-dir", required=True, help="everything goes here; one directory for each film")
    parser.add_argument("--ste-weights", default=encoder["weights"], help="state_dict of the short-term encoder")
    parser.add_argument(
        "--asc-weights", default=ASC_inputs_forward["weights"], help="state_dict of the context network"
    )
    parser.add_argument("--face-detector", default=defaults["face_detector"], help="YuNet's onnx file")
    parser.add_argument("--tracks", help="face tracks, in any form of annotations, instead of looking for faces")
    parser.add_argument(
        "--clip-length", type=odd_positive, default=defaults["clip_length"], help="crops in a clip of the encoder"
    )
    parser.add_argument("--clips", type=odd_positive, default=defaults["clips"], help="moments in a context")
    parser.add_argument(
        "--time-stride", type=positive_int, default=defaults["time_stride"], help="rows between two moments"
    )
    parser.add_argument("--speakers", type=positive_int, default=defaults["speakers"], help="faces in a context")
    parser.add_argument(
        "--threshold", type=fraction, default=defaults["threshold"], help="faces that score as much or more speak"
    )
    parser.add_argument(
        "--smoothing",
        type=odd_window,
        default=defaults["smoothing"],
        help="rows of a median filter along tracks; 0: none",
    )
    parser.add_argument("--batch-size", type=positive_int, default=encoder["batch_size"], help="clips at a time")
    parser.add_argument("--workers", type=worker_count, default=encoder["workers"], help="processes that read crops")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default=encoder["precision"], help="of the encoder")
    parser.add_argument(
        "--seed", type=seed, default=ASC_forward_params["seed"], help="of the faces drawn into a context"
    )
    parser.add_argument("--overwrite", action="store_true", help="do every step again")
    return parser


@torch.inference_mode()
def main(args: argparse.Namespace) -> int:
    print_settings(vars(args))
    device = get_device(args.cuda_device)
    film, output_dir = require_file(args.video, "a film"), Path(args.output_dir)
    require_different({"--tracks": args.tracks, "what is written to --output-dir": output_dir / "tracks.csv"})

    # All that is given is looked at before anything that takes time.
    encoder, network = short_term_encoder(args.clip_length), active_speakers_context(args.clips, args.speakers)
    ste_digest = load_weights(encoder, args.ste_weights, f"is --clip-length {args.clip_length} theirs?")
    hint = f"are --clips {args.clips} and --speakers {args.speakers} theirs?"
    asc_digest = load_weights(network, args.asc_weights, hint)
    detector = None
    if not args.tracks:
        fetch = "YuNet's onnx file, which bash scripts/downloads.sh detector fetches; or pass --tracks"
        detector = FaceDetector(require_file(args.face_detector, fetch))
    video = SpeakerDetection(film, output_dir, vars(args))
    print(device_label(device))

    video.detect_shots()
    if detector is None:
        video.load_tracks(args.tracks)
    else:
        video.detect_faces(detector)
    if len(video.rows):
        video.extract_audio()
        video.extract_clips()
        tune_malloc()
        encoder = encoder.to(device, memory_format=torch.channels_last).eval()
        options = {name: getattr(args, name) for name in ("batch_size", "workers", "precision")}
        video.encode(encoder, ste_digest, args.clip_length, device, **options)
        network, shape = network.to(device).eval(), (args.clips, args.time_stride, args.speakers)
        video.predict(network, asc_digest, shape, args.seed, device, batch_size=ASC_forward_params["batch_size"])
    scores = video.scores(args.smoothing)
    settings = {name: getattr(args, name) for name in RESULT_SETTINGS}
    settings |= {"ste_weights_sha256": ste_digest, "asc_weights_sha256": asc_digest}
    settings["face_detector_sha256"] = detector and detector.sha256
    video.write_results(scores, args.threshold, settings)
    video.write_marked_video(scores, args.smoothing)
    return video.report()


if __name__ == "__main__":
    launch(main, get_args_parser())
