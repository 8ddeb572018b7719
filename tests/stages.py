"""Inputs and command line of every stage. The inputs are made without running the previous stages."""

import subprocess
from pathlib import Path

import numpy as np
import torch
from imageio_ffmpeg import get_ffmpeg_exe
from tiny_inputs import (
    RATE,
    SmallEncoder,
    Track,
    digests,
    faces_of,
    noise_features,
    official_line,
    write_encoder_inputs,
    write_predictions,
    write_store,
    write_text,
    write_wav,
)

from core.models import active_speakers_context

TRACKS = [
    Track("one:a", "0110", 0.4, "one"),
    Track("one:b", "2200011", 0.52, "one"),
    Track("two:a", "1" * 30, 0.0, "two"),
    Track("two:b", "011", 1.0, "two"),
    Track("three:a", "01" * 6, 0.2, "three"),
    Track("four:a", "00110", 0.2, "four"),
    Track("four:b", "10", 0.2, "four"),
]
TRAINING = {"STE_train.py": "ste_encoder", "ASC_train.py": "ASC_len_3_stride_2_speakers_2"}
DATA = ("data/extract_audio_tracks.py", "data/slice_audio_tracks.py", "data/extract_face_crops_time.py")
FORWARD = ("STE_forward.py", "ASC_forward.py")


def make_inputs(root: Path, tracks: list[Track] = TRACKS) -> Path:
    """Write the inputs of all stages, with weights of a SmallEncoder. Returns the root."""
    (root / "videos").mkdir()
    for number, video in enumerate(sorted({track.video for track in tracks})):
        seconds = max(track.faces[-1].time for track in tracks if track.video == video) + 0.24
        images = f"color=gray:size=160x120:rate=25:duration={seconds},noise=alls=100:allf=t:all_seed=1"
        audio = f"anoisesrc=duration={seconds}:sample_rate=44100:seed={number}"
        sources = ("-f", "lavfi", "-i", images, "-f", "lavfi", "-i", audio)
        codecs = ("-c:v", "libx264", "-preset", "ultrafast", "-pix_fmt", "yuv420p", "-c:a", "aac")
        command = [get_ffmpeg_exe(), "-loglevel", "error", *sources, *codecs, str(root / "videos" / f"{video}.mp4")]
        subprocess.run(command, check=True)
        samples = np.random.default_rng(number).normal(0, 1000, int(seconds * RATE))
        write_wav(root / "audio" / f"{video}.wav", samples)
    write_encoder_inputs(root, "val", tracks)
    write_encoder_inputs(root, "train", tracks)
    write_store(root / "features", faces_of(tracks), noise_features)
    write_predictions(root / "predictions", faces_of(tracks), lambda face: (0.0, float(face.label)))
    scored = (
        f"{official_line(face._replace(label=1)).rstrip()},{index % 7 / 7}\n"
        for index, face in enumerate(faces_of(tracks))
    )
    write_text(root / "predictions.csv", "".join(scored))
    torch.manual_seed(0)
    torch.save(SmallEncoder(1).state_dict(), root / "STE.pth")
    torch.save(active_speakers_context(3, 2).state_dict(), root / "ASC.pth")
    return root


def command(script: str, root: Path, out: Path) -> list[object]:
    """A script and its arguments, with inputs in `root` and all outputs in `out`."""
    annotations = ("--csv", root / "val.csv", "--split", "val")
    clips = ("--audio-dir", root / "wavs", "--video-dir", root / "crops")
    csvs = ("--csv-train-full", root / "train.csv", "--csv-val-full", root / "val.csv")
    features = ("--features-train-full", root / "features", "--features-val-full", root / "features")
    truth = ("--ground-truth", root / "val.csv")
    final = (*truth, "--predictions-csv", out / "p.csv", "--ground-truth-csv", out / "t.csv")
    encoder_training = ("--no-pretrained", "--epochs", 2, "--batch-size", 2, "--workers", 0)
    context_training = ("--epochs", 3, "--batch-size", 8, "--learning-rate", 1e-3)
    arguments = {
        "data/extract_audio_tracks.py": ("--ava-video-dir", root / "videos", "--target-audios", out),
        "data/slice_audio_tracks.py": ("--ava-audio-dir", root / "audio", "--output-dir", out, *annotations),
        "data/extract_face_crops_time.py": ("--ava-video-dir", root / "videos", "--output-dir", out, *annotations),
        "STE_train.py": (1, "cpu", *csvs, *clips, "--models-out", out, *encoder_training),
        "STE_forward.py": (1, "cpu", *annotations, *clips, "--weights", root / "STE.pth", "--output-dir", out),
        "STE_postprocessing.py": ("--forward-dir", root / "features", *final),
        "ASC_train.py": (3, 2, 2, "cpu", *features, "--models-out", out, *context_training),
        "ASC_forward.py": (3, 2, 2, "cpu", *features[2:], "--weights", root / "ASC.pth", "--output-dir", out),
        "ASC_prediction_postprocessing.py": ("--predictions-dir", root / "predictions", *final),
        "scripts/evaluate.py": (
            *("--predictions", root / "predictions.csv", *truth, "--plots", out, "--json", out / "numbers.json"),
        ),
        "scripts/ablation.py": ("cpu", *features, *csvs, "--output-dir", out),
    }
    return [script, *arguments[script]]


def results(out: Path) -> dict[str, str]:
    """SHA-256 of the results: all files but settings, which hold paths, checkpoints, locks and lists of failures."""
    no_results = (".json", "last.ckpt", ".lock", "failures.txt", "notes.txt")
    return {name: digest for name, digest in digests(out).items() if not name.endswith(no_results)}
