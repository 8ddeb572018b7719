"""Stage 9: final predictions and evaluation of the context network.

    python ASC_prediction_postprocessing.py
    python ASC_prediction_postprocessing.py --plots ava/results/asc --json ava/results/asc.json

Joins the logits to the ground truth by (video, timestamp, entity). Writes a csv with the official columns and a score
per row, and next to it the ground truth in the same row order. Then prints the report of scripts/evaluate.py, which
ends with the official mAP.
"""

from core.config import ASC_forward_params, postprocessing_params
from core.reports.postprocessing import make_parser, postprocess
from core.runtime import cli


def get_args_parser() -> cli.Parser:
    directory, content = ASC_forward_params["output_dir"], "output directory of ASC_forward.py"
    return make_parser(__doc__, "--predictions-dir", directory, content, postprocessing_params["asc_predictions_csv"])


if __name__ == "__main__":
    cli.launch(lambda args: postprocess(args, args.predictions_dir), get_args_parser())
