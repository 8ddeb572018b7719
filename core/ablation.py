"""The paper's ablation: context networks with other refinements, numbers of speakers, context lengths and strides.

Also computes the reference results: chance, and the short-term encoder with and without smoothing.
"""

import argparse
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from core.datasets import context_datasets
from core.formats.features import FeatureStore, store_digests
from core.formats.predictions import join_logits
from core.loaders import split_loaders
from core.metrics import average_precision, smooth_tracks, speaking_score
from core.models import active_speakers_context
from core.runtime.checkpoint import TRAINING_IDENTITY, TrainingRun
from core.training import asc_losses, context_run_name, fit

STE = "short-term encoder"
SMOOTHING = 11  # median filter width in rows: the simplest temporal baseline


@dataclass(frozen=True)
class Variant:
    """A context network and the shape of its contexts. The defaults are the paper's."""

    context_length: int = 11
    context_stride: int = 4
    num_speakers: int = 3
    pairwise: bool = True
    temporal: bool = True

    @property
    def shape(self) -> tuple[int, int, int]:
        """Context length, context stride and number of speakers."""
        return self.context_length, self.context_stride, self.num_speakers

    @property
    def name(self) -> str:
        """Name of the run: that of ASC_train.py, followed by the refinements that are left out."""
        off = [refinement for refinement in ("pairwise", "temporal") if not getattr(self, refinement)]
        return "_no_".join([context_run_name(*self.shape), *off])


AXES: dict[str, dict[str, Variant]] = {
    "refinement": {
        "none": Variant(pairwise=False, temporal=False),
        "pairwise": Variant(temporal=False),
        "temporal": Variant(pairwise=False),
        "both": Variant(),
    },
    "speakers S": {str(value): Variant(num_speakers=value) for value in (1, 2, 3)},
    "steps L": {str(value): Variant(context_length=value) for value in (1, 5, 11)},
    "stride": {str(value): Variant(context_stride=value) for value in (1, 2, 4, 8)},
    "no context": {"S = 1, L = 1": Variant(context_length=1, num_speakers=1)},
}
VARIANTS = list(dict.fromkeys(variant for axis in AXES.values() for variant in axis.values()))


def train_variant(
    variant: Variant, stores: dict[str, FeatureStore], models_out: Path, params: dict, seed: int, device: torch.device
) -> float:
    """Train a variant on the store `train`, or resume its run, and return its mAP on `val` as a fraction.

    This is the mAP after the last epoch; nothing is selected on `val`. `params` has the keys of
    `ASC_optimization_params`. Raises InputError if the run was started with other parameters.
    """
    settings = {**params, **asdict(variant), "seed": seed}
    identity = (*TRAINING_IDENTITY, *asdict(variant), "encoder_sha256")
    run = TrainingRun(models_out / f"seed_{seed}", variant.name, settings, resume=True, identity=identity)
    run.set_data(store_digests(stores))
    if run.epoch < params["epochs"]:
        torch.manual_seed(seed)
        datasets = context_datasets(stores, variant.shape, seed, params["workers"], device)
        loaders = split_loaders(datasets, argparse.Namespace(**settings), device)
        model = active_speakers_context(
            variant.context_length, variant.num_speakers, variant.pairwise, variant.temporal
        ).to(device)
        fit(run, model, asc_losses, loaders["train"], loaders["val"], params, device)
    return run.log[params["epochs"] - 1]["val_ap"]


def references(store: FeatureStore) -> list[tuple[str, float]]:
    """Return the reference results on a store: (name, mAP as a fraction)."""
    table, positive = store.table, store.table.is_speaking
    logits = join_logits(store.directory, table)
    smooth = smooth_tracks(logits, table, SMOOTHING)
    return [
        ("chance: fraction of speaking rows", float(positive.mean())),
        (STE, average_precision(speaking_score(logits), positive)),
        (f"{STE}, median over {SMOOTHING} rows", average_precision(speaking_score(smooth), positive)),
    ]


def tabulate(
    reference_results: list[tuple[str, float]], results: dict[tuple[Variant, int], float], seeds: list[int]
) -> pd.DataFrame:
    """Return a table of all results with columns axis, setting, mAP (list over seeds), mean, deviation, above_ste.

    `reference_results` is the result of `references`; `results` maps (variant, seed) to mAP. mAPs are fractions; the
    deviation of a single value is NaN.
    """
    lines = [("", name, [value]) for name, value in reference_results]
    for axis, settings in AXES.items():
        for setting, variant in settings.items():
            lines.append((axis, setting, [results[variant, seed] for seed in seeds]))
    table = pd.DataFrame(lines, columns=["axis", "setting", "mAP"])
    table["mean"] = table["mAP"].map(np.mean)
    table["deviation"] = [pd.Series(values).std() for values in table["mAP"]]
    table["above_ste"] = table["mean"] - dict(reference_results)[STE]
    return table


def markdown(table: pd.DataFrame) -> str:
    """Return the table of `tabulate` as Markdown, in per cent."""
    lines = ["| | | mAP (%) | above the STE | single runs |", "|---|---|---|---|---|"]
    axis = ""
    for row in table.itertuples():
        mean = f"{100 * row.mean:.1f}" + ("" if np.isnan(row.deviation) else f" ± {100 * row.deviation:.1f}")
        single = ", ".join(f"{100 * value:.1f}" for value in row.mAP) if len(row.mAP) > 1 else ""
        cells = ("" if row.axis == axis else row.axis, row.setting, mean, f"{100 * row.above_ste:+.1f}", single)
        lines.append(f"| {' | '.join(cells)} |")
        axis = row.axis
    return "\n".join(lines) + "\n"
