"""The paper's ablation on given features: what each refinement, more speakers, more moments and their stride are worth.

It also has what the results are to be held against: the short-term encoder alone, and baselines that see one cue.
"""

import argparse
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits

from core.config import STE_FEATURES
from core.datasets import context_datasets
from core.formats.annotations import SPEAKING_AUDIBLE, FaceTable
from core.formats.features import FeatureStore
from core.formats.predictions import join, read_logits
from core.loaders import split_loaders
from core.metrics import average_precision, smooth_tracks, speaking_score
from core.models import active_speakers_context
from core.runtime.checkpoint import TrainingRun
from core.runtime.device import seed_torch
from core.runtime.errors import InputError
from core.training import asc_losses, context_run_name, fit

STE = "short-term encoder"
SMOOTHING = 11  # rows of the median filter that stands for the plainest use of time
BASELINE_ROWS = 200_000  # of a split, drawn if there are more: enough to find a cue that tells


@dataclass(frozen=True)
class Variant:
    """A context network and its contexts: the paper's, but for what is said."""

    clips: int = 11
    stride: int = 4
    speakers: int = 3
    pairwise: bool = True
    temporal: bool = True

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of its contexts: clips, stride and speakers."""
        return self.clips, self.stride, self.speakers

    @property
    def name(self) -> str:
        """Of its directory of weights; with both refinements it is what ASC_train.py calls it."""
        off = [refinement for refinement in ("pairwise", "temporal") if not getattr(self, refinement)]
        return "_no_".join([context_run_name(*self.shape), *off])


AXES: dict[str, dict[str, Variant]] = {
    "refinement": {
        "none": Variant(pairwise=False, temporal=False),
        "pairwise": Variant(temporal=False),
        "temporal": Variant(pairwise=False),
        "both": Variant(),
    },
    "speakers S": {str(speakers): Variant(speakers=speakers) for speakers in (1, 2, 3)},
    "moments L": {str(clips): Variant(clips=clips) for clips in (1, 5, 11)},
    "stride": {str(stride): Variant(stride=stride) for stride in (1, 2, 4, 8)},
    "no context": {"S = 1, L = 1": Variant(clips=1, speakers=1)},
}
VARIANTS = list(dict.fromkeys(variant for axis in AXES.values() for variant in axis.values()))


def train_variant(
    variant: Variant, stores: dict[str, FeatureStore], models_out: Path, params: dict, seed: int, device: torch.device
) -> float:
    """Train a variant on the store `train`, from where an earlier run stands, and return its mAP on `val`, a fraction.

    That of the last epoch, whichever was best: nothing is chosen on `val`. The parameters are those of
    `ASC_optimization_params`. Raises InputError where the run was begun with others.
    """
    settings = {**params, **asdict(variant), "seed": seed}
    run = TrainingRun(models_out / f"seed_{seed}", variant.name, settings, resume=True)
    run.set_data({split: store.table.digest() for split, store in stores.items()})
    if run.epoch < params["epochs"]:
        seed_torch(seed)
        datasets = context_datasets(stores, variant.shape, seed, params["workers"], device)
        loaders = split_loaders(datasets, argparse.Namespace(**settings), device)
        model = active_speakers_context(variant.clips, variant.speakers, variant.pairwise, variant.temporal).to(device)
        fit(run, model, asc_losses, loaders["train"], loaders["val"], params, device)
    return run.log[params["epochs"] - 1]["val_ap"]


def references(
    annotations: dict[str, FaceTable], stores: dict[str, FeatureStore], seeds: list[int]
) -> list[tuple[str, list[float]]]:
    """mAP on `val`, fractions, of what the context is held against: the encoder's as they are, the others' by seed.

    Raises InputError where the annotations are not those of the features.
    """
    speaking = {split: _speaking_as_annotated(stores[split], annotations[split]) for split in stores}
    table = stores["val"].table
    positive = table.is_speaking
    source = str(stores["val"].directory)
    logits = join(read_logits(source), table, source)[["logit_0", "logit_1"]].to_numpy()
    smooth = smooth_tracks(logits, table, SMOOTHING)
    stored = {split: store.table.is_speaking for split, store in stores.items()}
    cues = {
        "position of the face": (positions, annotations, speaking),
        "size of the face": (sizes, annotations, speaking),
        "sound": (sound, stores, stored),
    }
    drawn = np.random.default_rng(0)
    rows = {split: subsample(len(values), drawn) for split, values in stored.items()}
    found = [("chance: share of rows that speak", [float(positive.mean())])]
    for name, (cue_of, sources, labels) in cues.items():
        seen = {split: cue_of(sources[split], rows[split]) for split in stores}
        known = {split: labels[split][rows[split]] for split in stores}
        found.append((f"{name} alone", [single_cue_ap(seen, known, seed) for seed in seeds]))
    for name, values in ((STE, logits), (f"{STE}, median over {SMOOTHING} rows", smooth)):
        found.append((name, [average_precision(speaking_score(values), positive)]))
    return found


def subsample(count: int, rng: np.random.Generator) -> np.ndarray:
    """All rows, or as many of them as baselines need, in order."""
    return np.sort(rng.choice(count, BASELINE_ROWS, replace=False)) if count > BASELINE_ROWS else np.arange(count)


def _speaking_as_annotated(store: FeatureStore, annotations: FaceTable) -> np.ndarray:
    """(N,) which rows of the annotations speak. Raises InputError where the features' rows or labels are others."""
    stored = store.table.keys().assign(label=store.table.label)
    speaking = annotations.is_speaking
    differing = speaking != (join(stored, annotations, str(store.directory))["label"] == SPEAKING_AUDIBLE)
    if differing.any():
        raise InputError(f"{store.directory}: {int(differing.sum())} labels are not those of the annotations")
    return speaking


def tabulate(
    found: list[tuple[str, list[float]]], results: dict[tuple[Variant, int], float], seeds: list[int]
) -> pd.DataFrame:
    """Lines of the one table: axis, setting, mAP of each seed (or one), mean, deviation (NaN of one), above_ste.

    `found` is that of `references`, `results` (variant, seed) -> mAP; mAPs are fractions.
    """
    lines = [("", name, values) for name, values in found]
    for axis, settings in AXES.items():
        for setting, variant in settings.items():
            lines.append((axis, setting, [results[variant, seed] for seed in seeds]))
    encoder = dict(found)[STE][0]
    rows = [
        {
            "axis": axis,
            "setting": setting,
            "mAP": values,
            "mean": float(np.mean(values)),
            "deviation": float(np.std(values, ddof=1)) if len(values) > 1 else float("nan"),
            "above_ste": float(np.mean(values)) - encoder,
        }
        for axis, setting, values in lines
    ]
    return pd.DataFrame(rows)


def markdown(table: pd.DataFrame) -> str:
    """The table of `tabulate` in per cent, as a page shows it."""
    lines = ["| | | mAP (%) | above the STE | single runs |", "|---|---|---|---|---|"]
    axis = ""
    for row in table.itertuples():
        mean = f"{100 * row.mean:.1f}" + ("" if np.isnan(row.deviation) else f" ± {100 * row.deviation:.1f}")
        single = ", ".join(f"{100 * value:.1f}" for value in row.mAP) if len(row.mAP) > 1 else ""
        cells = ("" if row.axis == axis else row.axis, row.setting, mean, f"{100 * row.above_ste:+.1f}", single)
        lines.append(f"| {' | '.join(cells)} |")
        axis = row.axis
    return "\n".join(lines) + "\n"


# Baselines

_HIDDEN, _EPOCHS, _BATCH, _RATE, _DECAY = 64, 20, 256, 1e-3, 1e-2
_ROWS_AT_ONCE = 1 << 14


def positions(table: FaceTable, rows: np.ndarray) -> np.ndarray:
    """(n, 2): centres of the boxes of some rows, as shares of the frame."""
    return (table.box[rows, :2] + table.box[rows, 2:]) / 2


def sizes(table: FaceTable, rows: np.ndarray) -> np.ndarray:
    """(n, 2): width and height of the boxes of some rows, as shares of the frame."""
    return table.box[rows, 2:] - table.box[rows, :2]


def sound(store: FeatureStore, rows: np.ndarray) -> np.ndarray:
    """(n, 512): the audio half of the short-term encoder's features of some rows."""
    cue = np.empty((len(rows), STE_FEATURES // 2), np.float32)
    for start in range(0, len(rows), _ROWS_AT_ONCE):
        part = slice(start, start + _ROWS_AT_ONCE)
        cue[part] = store.gather(rows[part])[:, : STE_FEATURES // 2]
    return cue


def single_cue_ap(cues: dict[str, np.ndarray], speaking: dict[str, np.ndarray], seed: int) -> float:
    """AP on `val` of a perceptron that learned on `train` which rows speak (N,) from their cues (N, C) alone.

    One hidden layer of 64, Adam with weight decay, 20 epochs; inputs are scaled to mean 0 and deviation 1.
    """
    mean, deviation = cues["train"].mean(axis=0), cues["train"].std(axis=0) + 1e-6
    inputs = {split: torch.from_numpy((cue - mean) / deviation).float() for split, cue in cues.items()}
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
