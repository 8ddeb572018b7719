"""From logits to the official average precision."""

import numpy as np
import pandas as pd

from core.contexts import window
from core.formats.annotations import FaceTable
from core.runtime.errors import InputError

_VALUES_PER_STEP = 1 << 20  # of a median filter; bounds its memory


def precision_recall(scores: np.ndarray, positive: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Recall and precision at every threshold, (thresholds,) each, highest score first.

    scores (N,), positive (N,) bool. Tied scores share one threshold, so that the order of the rows does not matter.
    Raises InputError without positives.
    """
    if not positive.any():
        raise InputError("no row is SPEAKING_AUDIBLE, so there is no average precision")
    order = np.argsort(-scores, kind="stable")
    last_of_tie = np.append(np.diff(scores[order]) != 0, True)
    true = np.cumsum(positive[order])[last_of_tie]
    return true / true[-1], true / (np.flatnonzero(last_of_tie) + 1)


def average_precision(scores: np.ndarray, positive: np.ndarray) -> float:
    """The official AP of AVA-ActiveSpeaker (ActivityNet's tool), a fraction: precision made monotone from the right,
    summed over the steps of recall. Arguments and errors as `precision_recall`.
    """
    recall, precision = precision_recall(scores, positive)
    monotone = np.maximum.accumulate(precision[::-1])[::-1]
    return float(np.sum(np.diff(recall, prepend=0) * monotone))


def roc_auc(scores: np.ndarray, positive: np.ndarray) -> float:
    """Area under the ROC curve, ties counted half; NaN where one class is missing."""
    count = int(positive.sum())
    if count in (0, len(positive)):
        return float("nan")
    ranks = pd.Series(scores).rank().to_numpy()[positive].sum()
    return float((ranks - count * (count + 1) / 2) / (count * (len(positive) - count)))


def speaking_score(logits: np.ndarray) -> np.ndarray:
    """(N, 2) logits to (N,) probability of speaking, float64."""
    margin = logits[:, 1].astype(np.float64) - logits[:, 0]
    return np.exp(-np.logaddexp(0, -margin))


def smooth_tracks(values: np.ndarray, table: FaceTable, width: int) -> np.ndarray:
    """Median filter of odd width over the rows of each track, never across tracks; values (N, ...) as the table."""
    length = np.diff(table.track_offsets)
    smooth = np.empty_like(values)
    step = max(1, _VALUES_PER_STEP // width)
    for start in range(0, len(table), step):
        part = slice(start, start + step)
        entity = table.entity[part]
        positions = window(table.position[part], length[entity], width)
        rows = table.track_rows[table.track_offsets[entity][:, None] + positions]  # (n, width)
        smooth[part] = np.partition(values[rows], width // 2, axis=1)[:, width // 2]
    return smooth


def ranking_errors(scores: np.ndarray, positive: np.ndarray) -> np.ndarray:
    """(N,) share of the rows of the other label that each row is on the wrong side of, ties counted half.

    scores (N,) of any scale, positive (N,) bool. The mean over the positives, and over the others, is 1 - AUC; 0 where
    one class is missing.
    """

    def share_below(others: np.ndarray, values: np.ndarray) -> np.ndarray:
        others = np.sort(others)
        return (np.searchsorted(others, values) + np.searchsorted(others, values, side="right")) / (2 * len(others))

    errors = np.zeros(len(scores))
    if positive.any() and not positive.all():
        errors[positive] = 1 - share_below(scores[~positive], scores[positive])
        errors[~positive] = share_below(scores[positive], scores[~positive])
    return errors
