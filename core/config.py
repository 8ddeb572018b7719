"""Constants with their units, and dictionaries with every default. Edit values here or pass flags.

With the directory layout of the README, DATA_ROOT is the only path to edit (or set ASC_DATA_ROOT). Most flags are
named after the key that they override; --help shows every default.
"""

import os

DATA_ROOT = os.environ.get("ASC_DATA_ROOT", "ava")

# Audio
SAMPLE_RATE = 16000  # Hz, mono, 16 bit
AUDIO_FRAMES_PER_SECOND = 27  # T crops have T/27 s of audio; not 25: the released weights were trained with 27
SILENCE_FRAMES_PER_SECOND = 25  # a clip without audio is T/25 s of zeros, then fitted like any other
MIN_AUDIO_SECONDS = 0.08  # audio shorter than this counts as none
MAX_MISSING_SECONDS = 0.5  # audio may end this much before its video; a track that lacks more gets no wav
MAX_START_OFFSET_SECONDS = 0.06  # a larger offset between video and audio is noted; B-frames can cost a frame
MFCC_COEFFICIENTS = 13

# Faces
CROP_SIZE = 144  # pixels, width and height of the network's input
CROP_MEAN = (0.2324, 0.2721, 0.3448)  # RGB in [0, 1]
CROP_STD = (0.1987, 0.2172, 0.2403)
JPEG_QUALITY = 95
SEEK_GAP_SECONDS = 20.0  # videos are decoded forward; longer parts without faces are skipped by seeking

# Networks
STE_FEATURES = 1024  # 512 audio + 512 video, of the paper's encoder
TRACK_FRAME_SIZE = 112  # pixels, width and height of LR-ASD's input
TRACK_MFCCS_PER_FRAME = 4
TRACK_FRAMES_PER_SECOND = 25  # at this rate, LR-ASD's MFCCs have the usual window of 25 ms and step of 10 ms
ASC_HIDDEN = 128

_WORKERS = min(16, len(os.sched_getaffinity(0)))  # data-loading processes; at most the cores of this process
_csv = os.path.join(DATA_ROOT, "csv")
_models = os.path.join(DATA_ROOT, "models")
_csv_val = os.path.join(_csv, "ava_activespeaker_val_augmented.csv")

# Annotations: an augmented file, an official file, or a directory of official files. If an augmented file named here
# does not exist, the directory of official files next to it (<root>/csv/train, <root>/csv/val) is read instead.
annotation_csvs = {
    "train": os.path.join(_csv, "ava_activespeaker_train_augmented.csv"),
    "val": _csv_val,
    "test": os.path.join(_csv, "ava_activespeaker_test_augmented.csv"),
}

data_inputs = {
    "ava_video_dir": os.path.join(DATA_ROOT, "videos", "trainval"),  # <video_id>.<ext>
    "ava_audio_dir": os.path.join(DATA_ROOT, "audio_tracks"),  # <video_id>.wav
}

STE_inputs = {
    "csv_train_full": annotation_csvs["train"],
    "csv_val_full": annotation_csvs["val"],
    "audio_dir": os.path.join(DATA_ROOT, "instance_wavs_time"),  # <split>/<entity_id>.wav
    "video_dir": os.path.join(DATA_ROOT, "instance_crops_time"),  # <split>/<entity_id>/<timestamp>.jpg
    "models_out": _models,
}

STE_optimization_params = {
    "learning_rate": 3e-4,
    "step_size": 40,  # epochs between learning rate decays
    "gamma": 0.1,  # factor of each decay
    "epochs": 100,
    "batch_size": 128,  # clips
    "workers": _WORKERS,
    "precision": None,  # fp32, tf32 or bf16; None: tf32 on GPUs that have it, else fp32
    "seed": 0,
}

STE_forward_params = {
    "weights": os.path.join(_models, "STE.pth"),
    "output_dir": os.path.join(DATA_ROOT, "ste_features"),  # <split>/<video_id>.csv and .npy
    "batch_size": 128,  # clips
    "workers": _WORKERS,
    "precision": None,  # also fp16
}

lr_asd_weights = {
    "lr-asd": os.path.join(_models, "lr_asd", "pretrain_AVA.model"),
    "lr-asd-wild": os.path.join(_models, "lr_asd", "finetuning_TalkSet.model"),
}

ASC_inputs = {
    "features_train_full": os.path.join(DATA_ROOT, "ste_features", "train"),
    "features_val_full": os.path.join(DATA_ROOT, "ste_features", "val"),
    "models_out": _models,
}

ASC_optimization_params = {
    "learning_rate": 3e-6,
    "step_size": 10,  # epochs
    "gamma": 0.1,
    "epochs": 15,
    "batch_size": 64,  # contexts
    "workers": 1,  # threads that gather features ahead; a slow disk may need more
    "precision": None,
    "seed": 0,
}

ASC_inputs_forward = {
    "features_val_full": ASC_inputs["features_val_full"],
    "weights": os.path.join(_models, "ASC.pth"),
}

ASC_forward_params = {
    "output_dir": os.path.join(DATA_ROOT, "asc_predictions"),
    "batch_size": 256,  # contexts
    "precision": None,
    "seed": 0,
}

# Videos without annotations (scripts/detect_speakers.py)
tracking_params = {
    "cut_score": 0.15,  # minimum of FFmpeg's scene score, 0 to 1, for a cut
    "detector_max_side": 640,  # pixels; frames are downscaled to this longer side before face detection
    "detect_every": 3,  # rows; boxes in between are interpolated
    "min_detection_score": 0.5,  # 0 to 1; weaker detections are ignored
    "min_track_score": 0.7,  # 0 to 1; every track needs one detection with at least this score
    "min_iou": 0.25,  # intersection over union of the expected and the detected box
    "max_gap": 0.8,  # seconds without a detection after which a track ends
    "min_track": 1.0,  # seconds; shorter tracks are dropped
    "min_face": 0,  # pixels; tracks of faces whose boxes have a shorter side are dropped
    # Width of a box by its height in pixels: that of AVA's boxes, in every video. The networks were trained on these,
    # scaled to squares. YuNet's boxes have 0.68 to 0.76.
    "box_aspect": 0.86,
}

own_video_params = {
    "face_detector": os.path.join(_models, "face_detection_yunet_2023mar.onnx"),
    "clip_length": 11,
    "clips": 11,
    "time_stride": 4,
    "speakers": 3,
    "threshold": 0.5,  # minimum score of a speaking face
    "smoothing": 11,  # width in rows of the median filter along tracks; 0: none
}

postprocessing_params = {
    "ground_truth": _csv_val,
    "ste_predictions_csv": os.path.join(DATA_ROOT, "results", "ste_predictions_val.csv"),
    "asc_predictions_csv": os.path.join(DATA_ROOT, "results", "asc_predictions_val.csv"),
    "ground_truth_csv": os.path.join(DATA_ROOT, "results", "ground_truth_val.csv"),
}


def result_options(split: str, predictions_csv: str) -> dict[str, tuple[str, str]]:
    """Options of a post-processing stage that name its files after the split, for `core.runtime.cli.print_next`."""
    paths = {"predictions_csv": predictions_csv, "ground_truth_csv": postprocessing_params["ground_truth_csv"]}
    return {name: (f"{path.removesuffix('_val.csv')}_{split}.csv", path) for name, path in paths.items()}
