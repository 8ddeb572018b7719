"""Find out who speaks when in your own videos: detect and track faces, then run the networks on the tracks.

    python scripts/detect_speakers.py talk.mp4 0
    python scripts/detect_speakers.py talk.mp4 0 --encoder lr-asd-wild
    python scripts/detect_speakers.py talk.mp4 cpu --output-dir talk --start 60 --duration 30
    python scripts/detect_speakers.py talk.mp4 0 --output-dir corrected --tracks corrected.csv --persons persons.csv
    python scripts/detect_speakers.py monday.mp4 tuesday.mp4 videos/ 0 --output-dir results

Each video gets a directory for its output, <video>_speakers by default. Finished steps are skipped, so the same command
resumes an interrupted run. Output:

    tracks.csv             official columns and a score per row; can be passed to --tracks and any --csv
    speakers.json          tracks and their speech segments: docs/speakers.schema.json
    speakers.csv           the speech segments as a table; speakers.rttm: for diarisation tools; speakers.vtt: subtitles
    review.html            page to watch the video with boxes and scores, and to correct and name the tracks
    <video>_speakers.mp4   the video with boxes and scores, with --marked-video
    timeline.png           scores and segments of each track over time
    work/                  intermediate files in the layout of ASC_DATA_ROOT
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from core.config import ASC_forward_params, ASC_inputs_forward, STE_forward_params, own_video_params, tracking_params
from core.detection.pipeline import SpeakerDetection
from core.detection.segments import read_persons
from core.detection.tracks import FaceDetector
from core.encoders import ENCODERS, add_encoder_argument, find_encoder
from core.formats.features import require_trained_on
from core.media.container import list_videos
from core.models import active_speakers_context
from core.runtime import cli
from core.runtime.device import device_label, get_device, memory_format, move_to, set_precision
from core.runtime.errors import InputError, one_line
from core.runtime.files import require_distinct, require_file
from core.runtime.jobs import run_in_process
from core.runtime.weights import load_weights

NAMES = tuple(ENCODERS)
RESULT_SETTINGS = (
    *("threshold", "smoothing", "encoder", "clip_length", "clips", "time_stride", "speakers", "precision", "seed"),
    *("video_stream", "audio_stream", "start", "duration"),
)


def get_args_parser() -> cli.Parser:
    defaults, encoder, context = own_video_params, STE_forward_params, ASC_inputs_forward
    parser = cli.Parser(__doc__)
    parser.add_argument("video", nargs="+", help="video file with an audio stream, or directory of such files")
    parser.add_argument("cuda_device", type=cli.device_name, help="number of the CUDA device, or cpu")
    output_help = "directory for all output (default: <video>_speakers next to the video); parent of these directories"
    parser.add_argument("--output-dir", help=f"{output_help} if there are several videos")
    add_encoder_argument(parser, NAMES)
    weights_help = "state_dict of the encoder; other encoders have their own default"
    parser.add_argument("--ste-weights", "--encoder-weights", default=encoder["weights"], help=weights_help)
    asc_default = f"(default for resnet18: {context['weights']}; for others: the scores are the encoder's own)"
    parser.add_argument("--asc-weights", help=f"state_dict of the context network {asc_default}")
    parser.add_argument("--face-detector", default=defaults["face_detector"], help="onnx file of YuNet")
    parser.add_argument("--tracks", help="read face tracks from these annotations instead of detecting faces")
    cli.add_clip_boxes_argument(parser)
    parser.add_argument("--persons", help="csv with the columns track and person: names to use in the results")
    marked_help = "write the video with boxes and scores too; always done if browsers cannot play the video itself"
    parser.add_argument("--marked-video", action="store_true", help=marked_help)
    stream_help = "number of the {} stream, from 0 (default: the one that players choose)"
    for kind in ("video", "audio"):
        parser.add_argument(f"--{kind}-stream", type=cli.integer(0), help=stream_help.format(kind))
    start_help = "start of the part to analyse, in seconds; times in all output remain those of the whole video"
    parser.add_argument("--start", type=cli.seconds, default=0.0, help=start_help)
    duration_help = "length of the part to analyse, in seconds (default: up to the end)"
    parser.add_argument("--duration", type=cli.positive_float, help=duration_help)
    min_track, min_face = tracking_params["min_track"], tracking_params["min_face"]
    parser.add_argument("--min-track", type=cli.seconds, default=min_track, help="minimum seconds of a track")
    face_help = "minimum shorter side of the final boxes in pixels (median of the track)"
    parser.add_argument("--min-face", type=cli.integer(0), default=min_face, help=face_help)
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


def output_dirs(args: argparse.Namespace) -> list[tuple[Path, Path]]:
    """Return each video and its output directory. Raises InputError if two videos share a directory."""
    videos = []
    for path in map(Path, args.video):
        found = list(list_videos(path).values()) if path.is_dir() else [path]
        if not found:
            raise InputError(f"{path}: this directory holds no videos")
        videos += found
    if args.output_dir and len(args.video) == 1 and not Path(args.video[0]).is_dir():
        return [(videos[0], Path(args.output_dir))]
    jobs: dict[Path, Path] = {}
    for video in videos:
        output_dir = Path(args.output_dir or video.parent) / f"{video.stem}_speakers"
        if (other := jobs.setdefault(output_dir, video)) != video:
            raise InputError(f"{output_dir}: would hold the results of {other} and of {video}; rename one of them")
    return [(video, output_dir) for output_dir, video in jobs.items()]


def require_files(args: argparse.Namespace) -> None:
    """Raise InputError that names all missing files of weights and the command that downloads them."""
    flags = {"ste_weights": find_encoder(args.encoder, NAMES).item}
    if args.asc_weights:
        flags["asc_weights"] = "weights"
    if not args.tracks:
        flags["face_detector"] = "detector"
    missing = [name for name in flags if not Path(getattr(args, name)).is_file()]
    if missing:
        files = ", ".join(f"--{name.replace('_', '-')} {getattr(args, name)}" for name in missing)
        downloads = " ".join(dict.fromkeys(filter(None, map(flags.get, missing))))
        advice = f"; to download: bash scripts/downloads.sh {downloads}" if downloads else ""
        advice += " (--tracks needs no detector)" if "detector" in downloads else ""
        raise InputError(f"no such file: {files}{advice}")


def load_models(args: argparse.Namespace):
    """Return device, encoder, context network (None without --asc-weights), hashes of both weights, face detector.

    The face detector is None with --tracks.
    """
    device = get_device(args.cuda_device)
    args.precision = set_precision(args.precision, device)
    encoder = find_encoder(args.encoder, NAMES)
    network, context, asc_sha256 = encoder.build(args.clip_length), None, None
    hint = f"were they trained with --clip-length {args.clip_length} and --encoder {args.encoder}?"
    ste_sha256 = load_weights(network, args.ste_weights, hint, encoder.advice)
    if args.asc_weights:
        record = {"encoder": args.encoder, "encoder_sha256": ste_sha256, "encoder_weights": args.ste_weights}
        require_trained_on(args.asc_weights, record, args.time_stride, args.allow_mismatch)
        context = active_speakers_context(args.clips, args.speakers, feature_size=network.feature_size)
        shape = f"--clips {args.clips} --speakers {args.speakers} and {network.feature_size} features per row"
        asc_sha256 = load_weights(context, args.asc_weights, f"were they trained with {shape}?")
    detector = None if args.tracks else FaceDetector(Path(args.face_detector))
    return device, network, context, ste_sha256, asc_sha256, detector


def check_models(args: argparse.Namespace) -> None:
    """Raise InputError if the device or a file of weights cannot be used."""
    load_models(args)


@torch.inference_mode()
def detect(args: argparse.Namespace, video: Path, output_dir: Path) -> int:
    """Write all output of one video. Returns the exit status."""
    device, network, context, ste_sha256, asc_sha256, detector = load_models(args)
    encoder = find_encoder(args.encoder, NAMES)
    require_file(video, "a video")
    persons = read_persons(args.persons) if args.persons else {}
    require_distinct([args.tracks], {"tracks.csv in --output-dir": output_dir / "tracks.csv"})
    detection = SpeakerDetection(video, output_dir, vars(args) | {"video": str(video), "output_dir": str(output_dir)})
    print(device_label(device))
    detection.detect_shots()
    if detector is None:
        detection.load_tracks(args.tracks, args.clip_boxes)
    else:
        detection.detect_faces(detector, min_track=args.min_track, min_face=args.min_face)
    if len(detection.rows):
        detection.extract_crops(encoder)
        detection.extract_audio()
        move_to(device, network, memory_format(device, args.precision)).eval()
        options = {"batch_size": args.batch_size, "workers": args.workers, "precision": args.precision}
        detection.encode(encoder, network, [args.encoder, ste_sha256], args.clip_length, device, **options)
        if context is None:
            print(f"scores: the encoder's own ({args.encoder}), without a context network")
        else:
            shape = (args.clips, args.time_stride, args.speakers)
            batch_size = ASC_forward_params["batch_size"]
            detection.predict(context.to(device).eval(), asc_sha256, shape, args.seed, device, batch_size)
    scores = detection.scores(args.smoothing)
    settings = {name: getattr(args, name) for name in RESULT_SETTINGS}
    settings |= {"ste_weights_sha256": ste_sha256, "asc_weights_sha256": asc_sha256}
    settings["face_detector_sha256"] = detector and detector.sha256
    detection.write_results(scores, args.threshold, settings, persons)
    detection.write_page(args.smoothing, args.threshold, persons)
    if args.marked_video or not detection.plays_in_browsers:
        detection.write_marked_video(scores, args.smoothing, args.threshold)
    return detection.print_summary()


def main(args: argparse.Namespace) -> int:
    args.ste_weights = find_encoder(args.encoder, NAMES).find_weights(args.ste_weights, "--encoder-weights")
    if args.encoder == "resnet18":
        args.asc_weights = args.asc_weights or ASC_inputs_forward["weights"]
    cli.print_settings(vars(args))
    jobs = output_dirs(args)
    require_files(args)
    if len(jobs) == 1:
        return detect(args, *jobs[0])
    run_in_process(check_models, args)  # before the first video, which may take hours
    failures = []
    for number, (video, output_dir) in enumerate(jobs, 1):
        print(one_line(f"video {number} of {len(jobs)}: {video}"))
        try:
            if run_in_process(detect, args, video, output_dir):
                failures.append(f"{video}: some rows could not be extracted")
        except Exception as error:
            message, _ = cli.describe_failure(error)
            failures.append(message if message.startswith(str(video)) else f"{video}: {message}")
            print(one_line(f"failed: {failures[-1]}"))
    print(f"{len(jobs) - len(failures)} of {len(jobs)} videos are done")
    for failure in failures:
        print(one_line(f"failed: {failure}"), file=sys.stderr)
    return 1 if failures else 0


if __name__ == "__main__":
    cli.launch(main, get_args_parser())
