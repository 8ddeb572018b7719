"""The paper's ablation: context networks with other refinements, numbers of speakers, context lengths and strides.

Also computes the reference results: the short-term encoder alone and single-cue baselines.
"""

import argparse
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits

from core.datasets import context_datasets
from core.encoders import has_halves
from core.formats.annotations import FaceTable
from core.formats.features import FeatureStore, encoder_of, store_digests
from core.formats.predictions import join, join_logits
from core.loaders import context_loaders
from core.metrics import average_precision, smooth_tracks, speaking_score
from core.models import active_speakers_context
from core.runtime.checkpoint import TRAINING_IDENTITY, TrainingRun
from core.runtime.errors import InputError
from core.training import asc_losses, context_run_name, fit

STE = "short-term encoder"
SMOOTHING = 11  # median filter width in rows: the simplest temporal baseline
BASELINE_ROWS = 200_000  # single-cue baselines use a random subset of this size of larger splits


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
        datasets = context_datasets(stores, variant.shape, seed, device)
        loaders = context_loaders(datasets, argparse.Namespace(**settings), device)
        model = active_speakers_context(
            variant.context_length,
            variant.num_speakers,
            pairwise=variant.pairwise,
            temporal=variant.temporal,
            feature_size=stores["train"].feature_size,
        ).to(device)
        fit(run, model, asc_losses, loaders["train"], loaders["val"], params, device)
    return run.log[params["epochs"] - 1]["val_ap"]


def references(
    annotations: dict[str, FaceTable], stores: dict[str, FeatureStore], seeds: list[int]
) -> list[tuple[str, list[float]]]:
    """Reference results on `val`: (name, mAPs as fractions), one mAP per seed for the single-cue baselines.

    Raises InputError if the features have other rows or labels than the annotations.
    """
    rng = np.random.default_rng(0)
    cues: dict[str, dict[str, np.ndarray]] = {}
    speaking = {}
    for split, store in stores.items():
        table = annotations[split]
        stored = store.table.keys().assign(speaking=store.table.is_speaking, row=np.arange(len(store.table)))
        joined = join(stored, table, str(store.directory))
        if differing := int((table.is_speaking != joined["speaking"]).sum()):
            raise InputError(f"{store.directory}: {differing} labels differ from the annotations")
        rows = subsample(len(table), rng)
        speaking[split] = table.is_speaking[rows]
        top_left, bottom_right = table.box[rows, :2], table.box[rows, 2:]
        cues[split] = {
            "position of the face": (top_left + bottom_right) / 2,
            "size of the face": bottom_right - top_left,
        }
        if has_halves(encoder_of(store.directory)["encoder"]):
            audio = store.gather(joined["row"].to_numpy()[rows])[:, : store.feature_size // 2]
            cues[split]["audio"] = audio
    table = stores["val"].table
    positive = table.is_speaking
    logits = join_logits(stores["val"].directory, table)
    smooth = smooth_tracks(logits, table, SMOOTHING)
    results = [("chance: fraction of speaking rows", [float(positive.mean())])]
    for name in cues["val"]:
        cue = {split: values[name] for split, values in cues.items()}
        results.append((f"{name} alone", [single_cue_ap(cue, speaking, seed) for seed in seeds]))
    for name, values in ((STE, logits), (f"{STE}, median over {SMOOTHING} rows", smooth)):
        results.append((name, [average_precision(speaking_score(values), positive)]))
    return results


def subsample(count: int, rng: np.random.Generator) -> np.ndarray:
    """Return the indices of all rows, or a sorted random subset of BASELINE_ROWS if there are more."""
    return np.sort(rng.choice(count, BASELINE_ROWS, replace=False)) if count > BASELINE_ROWS else np.arange(count)


def tabulate(
    reference_results: list[tuple[str, list[float]]], results: dict[tuple[Variant, int], float], seeds: list[int]
) -> pd.DataFrame:
    """Table of all results with columns axis, setting, mAP (list over seeds), mean, deviation, above_ste.

    `reference_results` is the result of `references`; `results` maps (variant, seed) to mAP. mAPs are fractions; the
    deviation of a single value is NaN.
    """
    lines = [("", name, values) for name, values in reference_results]
    for axis, settings in AXES.items():
        for setting, variant in settings.items():
            lines.append((axis, setting, [results[variant, seed] for seed in seeds]))
    table = pd.DataFrame(lines, columns=["axis", "setting", "mAP"])
    table["mean"] = table["mAP"].map(np.mean)
    table["deviation"] = [pd.Series(values).std() for values in table["mAP"]]
    table["above_ste"] = table["mean"] - dict(reference_results)[STE][0]
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


# Single-cue baselines. If one of them comes close to the networks, the annotations give the answer away.

_HIDDEN, _EPOCHS, _BATCH, _RATE, _DECAY = 64, 20, 256, 1e-3, 1e-2


def single_cue_ap(cue: dict[str, np.ndarray], speaking: dict[str, np.ndarray], seed: int) -> float:
    """AP on `val` of a small perceptron trained on `train` to predict speaking (N,) from one cue (N, C).

    One hidden layer of 64 units, AdamW, 20 epochs; inputs are scaled to zero mean and unit variance.
    """
    mean, deviation = cue["train"].mean(axis=0), cue["train"].std(axis=0) + 1e-6
    inputs = {split: torch.from_numpy((values - mean) / deviation).float() for split, values in cue.items()}
    label = torch.from_numpy(speaking["train"]).float()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = nn.Sequential(nn.Linear(len(mean), _HIDDEN), nn.ReLU(), nn.Linear(_HIDDEN, 1), nn.Flatten(0))
        optimizer = torch.optim.AdamW(network.parameters(), lr=_RATE, weight_decay=_DECAY)
        for _ in range(_EPOCHS):
            for rows in torch.randperm(len(label)).split(_BATCH):
                optimizer.zero_grad()
                binary_cross_entropy_with_logits(network(inputs["train"][rows]), label[rows]).backward()
                optimizer.step()
    with torch.inference_mode():
        scores = network(inputs["val"]).numpy()
    return average_precision(scores, speaking["val"])
