"""Stage 6: final predictions and evaluation of the short-term encoder.

    python STE_postprocessing.py
    python STE_postprocessing.py --plots ava/results/ste --json ava/results/ste.json

Joins the logits to the ground truth by (video, timestamp, entity), writes one csv in the official form with a score
per row and the ground truth in the same order beside it, and reports on them as scripts/evaluate.py does; the official
mAP comes last.
"""

from core.config import ASC_inputs, postprocessing_params
from core.reports.postprocessing import make_parser, postprocess
from core.runtime.cli import Parser, launch


def get_args_parser() -> Parser:
    directory, content = ASC_inputs["features_val_full"], "what STE_forward.py wrote"
    return make_parser(__doc__, "--forward-dir", directory, content, postprocessing_params["ste_predictions_csv"])


if __name__ == "__main__":
    launch(lambda args: postprocess(args, args.forward_dir), get_args_parser())
