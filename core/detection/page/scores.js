"use strict";
// Scores and segments of one track, computed as in core/metrics.py, core/contexts.py and core/detection/segments.py.

const ROW_SECONDS = 0.04; // row interval of AVA
const NO_LABEL = -1;
const NOT_SPEAKING = 0;
const SPEAKING = 1;

function median(values) {
  const sorted = Float64Array.from(values).sort();
  const middle = sorted.length >> 1;
  return sorted.length % 2 ? sorted[middle] : (sorted[middle - 1] + sorted[middle]) / 2;
}

/** Median seconds between rows at these timestamps; AVA's interval if there is only one row. */
function rowInterval(times) {
  return times.length > 1 ? median(times.subarray(1).map((time, row) => time - times[row])) : ROW_SECONDS;
}

/** Index of the first value of a sorted array that is not below `value`. */
function lowerBound(sorted, value) {
  let low = 0;
  let high = sorted.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (sorted[middle] < value) low = middle + 1;
    else high = middle;
  }
  return low;
}

/** Median filter of odd width. The first and the last value are repeated at the ends. */
function medianFilter(values, width) {
  const half = width >> 1;
  const valueAt = (index) => values[Math.min(Math.max(index, 0), values.length - 1)];
  const sorted = Float64Array.from({ length: width }, (_, index) => valueAt(index - half)).sort();
  const result = new Float64Array(values.length);
  for (let index = 0; index < values.length; index++) {
    result[index] = sorted[half];
    const removed = lowerBound(sorted, valueAt(index - half));
    sorted.copyWithin(removed, removed + 1);
    const added = valueAt(index + half + 1);
    const place = lowerBound(sorted.subarray(0, width - 1), added);
    sorted.copyWithin(place + 1, place, width - 1);
    sorted[place] = added;
  }
  return result;
}

/** Softmax of two logits: the probability of speaking. */
function speakingScore(silent, speaking) {
  const margin = speaking - silent;
  return Math.exp(-(Math.max(0, -margin) + Math.log1p(Math.exp(-Math.abs(margin)))));
}

/** Scores of a track. `columns` are two arrays of logits, or one of scores. */
function trackScores(columns, smoothing) {
  const smooth = smoothing > 1 ? columns.map((values) => medianFilter(values, smoothing)) : columns;
  return smooth.length === 1 ? smooth[0] : smooth[0].map((silent, row) => speakingScore(silent, smooth[1][row]));
}

/** Runs of consecutive rows with one label. A gap in the track ends a run. `last` is included. */
function labelRuns(times, labels) {
  const interval = rowInterval(times);
  const runs = [];
  let first = 0;
  for (let row = 0; row < times.length; row++) {
    const next = row + 1 < times.length ? times[row + 1] : Infinity;
    if (next - times[row] > 2 * interval || labels[row + 1] !== labels[row]) {
      const end = Math.min(times[row] + interval, next);
      runs.push({ label: labels[row], first, last: row, start: times[first], end });
      first = row + 1;
    }
  }
  return runs;
}

function mean(values) {
  return values.reduce((sum, value) => sum + value, 0) / values.length;
}

/** Round as Python does: halves to even. */
function round(value, digits) {
  const rounded = Number(value.toFixed(digits));
  const isHalf = /^50+$/.test(value.toFixed(digits + 25).slice(-25));
  const isOdd = Math.round(rounded * 10 ** digits) % 2 !== 0;
  return isHalf && isOdd ? Number((rounded - 10 ** -digits).toFixed(digits)) : rounded;
}
