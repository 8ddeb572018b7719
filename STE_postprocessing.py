"""Stage 6: final predictions and official mAP of the short-term encoder.

    python STE_postprocessing.py

Joins the logits to the ground truth by (video, timestamp, entity), writes one csv in the official form with a score
per row, the ground truth in the same order beside it, and prints the mAP.
"""

from core.command_line import Parser, odd_window, run
from core.config import ASC_inputs, postprocessing_params
from core.evaluation import postprocess


def get_args_parser() -> Parser:
    defaults = postprocessing_params
    parser = Parser(__doc__)
    parser.add_argument("--forward-dir", default=ASC_inputs["features_val_full"], help="what STE_forward.py wrote")
    parser.add_argument("--ground-truth", default=defaults["ground_truth"], help="annotations of the same split")
    parser.add_argument("--predictions-csv", default=defaults["ste_predictions_csv"], help="file to write")
    parser.add_argument("--ground-truth-csv", default=defaults["ground_truth_csv"], help="file to write")
    parser.add_argument("--smoothing", type=odd_window, default=0, help="rows of a median filter along tracks; 0: none")
    return parser


if __name__ == "__main__":
    run(lambda args: postprocess(args, args.forward_dir), get_args_parser())
