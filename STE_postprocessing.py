"""Stage 6: final predictions and evaluation of the short-term encoder.

    python STE_postprocessing.py
    python STE_postprocessing.py --plots ava/results/ste --json ava/results/ste.json

Joins the logits to the ground truth by (video, timestamp, entity). Writes a csv with the official columns and a score
per row, and next to it the ground truth in the same row order. Then prints the report of scripts/evaluate.py, which
ends with the official mAP.
"""

from core.config import ASC_inputs, postprocessing_params
from core.reports.postprocessing import make_parser, postprocess
from core.runtime import cli


def get_args_parser() -> cli.Parser:
    directory, content = ASC_inputs["features_val_full"], "output directory of STE_forward.py for the split"
    return make_parser(__doc__, "--forward-dir", directory, content, postprocessing_params["ste_predictions_csv"])


if __name__ == "__main__":
    cli.launch(lambda args: postprocess(args, args.forward_dir), get_args_parser())
