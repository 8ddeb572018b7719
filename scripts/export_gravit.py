"""Write features as the pickles that GraVi-T reads, the code of SPELL (Min et al., ECCV 2022).

    python scripts/export_gravit.py --name RESNET18-TSM-AUG --output-dir GraVi-T/data

Reads the features that STE_forward.py wrote for train and val, and the annotations of the same rows. Writes
<output-dir>/features/<name>/{train,val}/<video_id>.pkl. docs/encoders.md has GraVi-T's commands that come next.
"""

import argparse
import pickle
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from core.config import ASC_inputs, STE_inputs
from core.encoders import has_halves
from core.formats.annotations import FaceTable, read_annotations
from core.formats.features import FeatureStore, encoder_of
from core.formats.predictions import join
from core.runtime import cli
from core.runtime.errors import InputError
from core.runtime.files import write_bytes
from core.runtime.progress import progress

SPLITS = ("train", "val")


def get_args_parser() -> cli.Parser:
    parser = cli.Parser(__doc__)
    parser.add_argument("--name", required=True, help="name of the features in GraVi-T")
    parser.add_argument("--output-dir", required=True, help="GraVi-T's directory of data")
    for split in SPLITS:
        features = ASC_inputs[f"features_{split}_full"]
        parser.add_argument(f"--features-{split}-full", default=features, help=f"output of STE_forward.py, {split}")
        csv = STE_inputs[f"csv_{split}_full"]
        parser.add_argument(f"--csv-{split}-full", default=csv, help=f"annotations of the same rows, {split}")
    cli.add_clip_boxes_argument(parser)
    return parser


def describe_faces(table: FaceTable, rows: np.ndarray, features: np.ndarray, first_id: int) -> dict[str, list[dict]]:
    """Return GraVi-T's description of rows (n,) of a table with features (n, D): timestamp -> a dictionary per face.

    Ids count from `first_id`. Raises InputError for a timestamp that GraVi-T's six digits cannot express.
    """
    faces: dict[str, list[dict]] = {}
    for index, row in enumerate(rows.tolist()):
        timestamp = float(table.timestamp[row])
        key = f"{timestamp:g}"
        if abs(float(key) - timestamp) > 0.001:
            raise InputError(f"{table.row_name(row)}: GraVi-T's timestamps have six digits, so this would be {key} s")
        face = {
            "feature": features[index],
            "person_box": ",".join(map(repr, table.box[row].tolist())),
            "label": [int(table.is_speaking[row])],
            "person_id": table.entity_ids[table.entity[row]],
            "global_id": first_id + index,
        }
        faces.setdefault(key, []).append(face)
    return faces


def main(args: argparse.Namespace) -> None:
    cli.print_settings(vars(args))
    first_id = 0
    for split in SPLITS:
        source, csv = getattr(args, f"features_{split}_full"), getattr(args, f"csv_{split}_full")
        store, table = FeatureStore(source), read_annotations(csv, args.clip_boxes)
        table.require_labels(csv)
        stored = store.table.keys().assign(row=np.arange(len(store.table)))
        store_row = join(stored, table, source)["row"].to_numpy()
        # GraVi-T expects video before audio.
        shift = store.feature_size // 2 if has_halves(encoder_of(source)["encoder"]) else 0
        directory = Path(args.output_dir, "features", args.name, split)
        for video, video_id in enumerate(progress(table.video_ids, desc=split, unit="video")):
            rows = table.rows_of_video(video)
            features = np.roll(store.gather(store_row[rows]), shift, axis=1)
            faces = describe_faces(table, rows, features, first_id)
            write_bytes(directory / f"{video_id}.pkl", pickle.dumps(faces))
            first_id += len(rows)
        print(f"{len(table)} rows of {len(table.video_ids)} videos: {directory}")


if __name__ == "__main__":
    cli.launch(main, get_args_parser())
