"""Find out who speaks when in a video of your own: detect and track faces, then run the two networks on the tracks.

    python scripts/detect_speakers.py talk.mp4 0 --output-dir talk
    python scripts/detect_speakers.py talk.mp4 cpu --output-dir talk --precision bf16 --ste-weights STE.pth \\
        --asc-weights ASC.pth --face-detector yunet.onnx
    python scripts/detect_speakers.py talk.mp4 0 --output-dir corrected --tracks corrected.csv

Finished steps are skipped, so the same command resumes an interrupted run. Output:

    <output-dir>/tracks.csv             official columns and a score per row; can be passed to --tracks and any --csv
    <output-dir>/speakers.json          tracks and their speech segments: docs/speakers.schema.json
    <output-dir>/speakers.rttm          the same segments for diarisation tools
    <output-dir>/<video>_speakers.mp4   the video with boxes and scores
    <output-dir>/timeline.png           scores and segments of each track over time
    <output-dir>/work/                  intermediate files in the layout of ASC_DATA_ROOT
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from core.config import ASC_forward_params, ASC_inputs_forward, STE_forward_params, own_video_params
from core.detection.pipeline import SpeakerDetection
from core.detection.tracks import FaceDetector
from core.formats.features import require_trained_on
from core.models import active_speakers_context, short_term_encoder
from core.runtime import cli
from core.runtime.device import device_label, get_device
from core.runtime.files import require_distinct, require_file
from core.runtime.weights import load_weights

RESULT_SETTINGS = ("threshold", "smoothing", "clip_length", "clips", "time_stride", "speakers", "precision", "seed")


def get_args_parser() -> cli.Parser:
    defaults, encoder, context = own_video_params, STE_forward_params, ASC_inputs_forward
    parser = cli.Parser(__doc__)
    parser.add_argument("video", help="video file with an audio stream")
    parser.add_argument("cuda_device", type=cli.device_name, help="number of the CUDA device, or cpu")
    parser.add_argument("--output-dir", required=True, help="directory for all output; use one per video")
    parser.add_argument("--ste-weights", default=encoder["weights"], help="state_dict of the short-term encoder")
    parser.add_argument("--asc-weights", default=context["weights"], help="state_dict of the context network")
    parser.add_argument("--face-detector", default=defaults["face_detector"], help="onnx file of YuNet")
    parser.add_argument("--tracks", help="read face tracks from these annotations instead of detecting faces")
    cli.add_clip_boxes_argument(parser)
    parser.add_argument("--clip-length", type=cli.odd_positive, default=defaults["clip_length"], help="crops in a clip")
    parser.add_argument("--clips", type=cli.odd_positive, default=defaults["clips"], help="steps in a context")
    stride = defaults["time_stride"]
    parser.add_argument("--time-stride", type=cli.positive_int, default=stride, help="rows between two steps")
    parser.add_argument("--speakers", type=cli.positive_int, default=defaults["speakers"], help="speakers in a context")
    threshold = defaults["threshold"]
    parser.add_argument("--threshold", type=cli.fraction, default=threshold, help="minimum score of a speaking face")
    smoothing_help = "width in rows of a median filter along tracks; 0: no filter"
    parser.add_argument("--smoothing", type=cli.odd_window, default=defaults["smoothing"], help=smoothing_help)
    parser.add_argument("--batch-size", type=cli.positive_int, default=encoder["batch_size"], help="clips per batch")
    cli.add_workers_argument(parser, encoder["workers"])
    cli.add_precision_argument(parser, encoder["precision"])
    default_seed = ASC_forward_params["seed"]
    parser.add_argument("--seed", type=cli.seed, default=default_seed, help="seed of the choice of speakers")
    cli.add_mismatch_argument(parser)
    parser.add_argument("--overwrite", action="store_true", help="run every step again")
    return parser


@torch.inference_mode()
def main(args: argparse.Namespace) -> int:
    cli.print_settings(vars(args))
    device = get_device(args.cuda_device)
    video, output_dir = require_file(args.video, "a video"), Path(args.output_dir)
    require_distinct([args.tracks], {"tracks.csv in --output-dir": output_dir / "tracks.csv"})

    # Check all input before the first step, which may take minutes.
    encoder, network = short_term_encoder(args.clip_length), active_speakers_context(args.clips, args.speakers)
    hint = f"were they trained with --clip-length {args.clip_length}?"
    ste_sha256 = load_weights(encoder, args.ste_weights, hint)
    hint = f"were they trained with --clips {args.clips} --speakers {args.speakers}?"
    asc_sha256 = load_weights(network, args.asc_weights, hint)
    record = {"encoder_sha256": ste_sha256, "encoder_weights": args.ste_weights}
    require_trained_on(args.asc_weights, record, args.time_stride, args.allow_mismatch)
    detector = None
    if not args.tracks:
        advice = "YuNet's onnx file; run bash scripts/downloads.sh detector, or pass --tracks"
        detector = FaceDetector(require_file(args.face_detector, advice))
    detection = SpeakerDetection(video, output_dir, vars(args))
    print(device_label(device))

    detection.detect_shots()
    if detector is None:
        detection.load_tracks(args.tracks, args.clip_boxes)
    else:
        detection.detect_faces(detector)
    if len(detection.rows):
        detection.extract_audio()
        detection.extract_clips()
        encoder = encoder.to(device, memory_format=torch.channels_last).eval()
        options = {"batch_size": args.batch_size, "workers": args.workers, "precision": args.precision}
        detection.encode(encoder, ste_sha256, args.clip_length, device, **options)
        network, shape = network.to(device).eval(), (args.clips, args.time_stride, args.speakers)
        detection.predict(network, asc_sha256, shape, args.seed, device, ASC_forward_params["batch_size"])
    scores = detection.scores(args.smoothing)
    settings = {name: getattr(args, name) for name in RESULT_SETTINGS}
    settings |= {"ste_weights_sha256": ste_sha256, "asc_weights_sha256": asc_sha256}
    settings["face_detector_sha256"] = detector and detector.sha256
    detection.write_results(scores, args.threshold, settings)
    detection.write_marked_video(scores, args.smoothing)
    return detection.print_summary()


if __name__ == "__main__":
    cli.launch(main, get_args_parser())
