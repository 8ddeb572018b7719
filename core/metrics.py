"""Scores of predictions and their metrics: softmax, median filter, average precision, ROC AUC."""

import numpy as np
import pandas as pd
from scipy.ndimage import median_filter

from core.formats.annotations import FaceTable
from core.runtime.errors import InputError


def precision_recall(scores: np.ndarray, positive: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return recall and precision, (thresholds,) each, at every threshold from the highest score down.

    scores (N,), positive (N,) bool. Tied scores share one threshold, so the result does not depend on row order.
    Raises InputError if no row is positive.
    """
    if not positive.any():
        raise InputError("no row is labelled SPEAKING_AUDIBLE, so average precision is undefined")
    order = np.argsort(-scores, kind="stable")
    last_of_tie = np.append(np.diff(scores[order]) != 0, True)
    true = np.cumsum(positive[order])[last_of_tie]
    return true / true[-1], true / (np.flatnonzero(last_of_tie) + 1)


def average_precision(scores: np.ndarray, positive: np.ndarray) -> float:
    """Official AP of AVA-ActiveSpeaker as a fraction, equal to that of ActivityNet's evaluation tool.

    Precision is made monotone from the right and summed over the steps of recall. Arguments and errors are those of
    `precision_recall`.
    """
    recall, precision = precision_recall(scores, positive)
    monotone = np.maximum.accumulate(precision[::-1])[::-1]
    return float(np.sum(np.diff(recall, prepend=0) * monotone))


def tied_range(scores: np.ndarray, positive: np.ndarray) -> tuple[float, float]:
    """Lowest and highest AP that the official tool can give, since its order of tied rows is arbitrary.

    Arguments and errors are those of `precision_recall`.
    """
    orders = (np.lexsort((second, -scores)) for second in (positive, ~positive))  # ties: negative or positive first
    ranks = -np.arange(len(scores))
    lowest, highest = (average_precision(ranks, positive[order]) for order in orders)
    return lowest, highest


def roc_auc(scores: np.ndarray, positive: np.ndarray) -> float:
    """Area under the ROC curve; ties count half. NaN if all rows are of one class."""
    count = int(positive.sum())
    if count in (0, len(positive)):
        return float("nan")
    rank_sum = pd.Series(scores).rank().to_numpy()[positive].sum()
    return float((rank_sum - count * (count + 1) / 2) / (count * (len(positive) - count)))


def speaking_score(logits: np.ndarray) -> np.ndarray:
    """Probability of speaking (N,) float64: the softmax of logits (N, 2)."""
    margin = logits[:, 1].astype(np.float64) - logits[:, 0]
    return np.exp(-np.logaddexp(0, -margin))


def smooth_tracks(values: np.ndarray, table: FaceTable, width: int) -> np.ndarray:
    """Apply a median filter of odd width, in rows, along each track and never across tracks.

    values (N, ...) in the row order of the table. The first and last rows of a track are repeated at its ends.
    """
    smooth = np.empty_like(values)
    size = (width, *[1] * (values.ndim - 1))
    for entity in np.unique(table.entity):
        rows = table.rows_of_track(entity)
        smooth[rows] = median_filter(values[rows], size, mode="nearest")
    return smooth
