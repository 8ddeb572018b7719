"use strict";
// The rows of a video, their labels, and corrections, which can be undone. No access to the document.

/**
 * Rows are stored track by track. A correction is an edit, plain data; the state follows from the first `done` edits:
 *
 *   {kind: "label", start, stop, label}    label the rows from start to stop (excluded)
 *   {kind: "delete", track}                delete a track
 *   {kind: "split", track, row, newTrack}  end a track before this row; the other rows become a new track
 *   {kind: "person", tracks, person}       name the person of these tracks; "" removes the name
 *
 * Labels are the corrected ones, else those of the data, else scores that reach the threshold are SPEAKING.
 */
class Review {
  constructor(data) {
    this.data = data;
    this.times = Float64Array.from(data.times);
    this.boxes = Float64Array.from(data.boxes);
    this.columns = data.columns.map((column) => Float64Array.from(column));
    this.given = data.labels && Int8Array.from(data.labels);
    this.corrected = new Int8Array(this.times.length);
    this.labels = new Int8Array(this.times.length);
    this.scores = this.columns.length ? new Float64Array(this.times.length) : null;
    this.threshold = data.threshold;
    this.smoothing = data.smoothing;
    this.edits = [];
    this.done = 0;
    this.rebuild();
  }

  addEdit(edit) {
    this.edits.length = this.done;
    this.edits.push(edit);
    this.setDone(this.done + 1);
  }

  /** Undo or redo edits, so that this many are in effect. */
  setDone(count) {
    this.done = Math.min(Math.max(count, 0), this.edits.length);
    this.rebuild();
  }

  setThreshold(threshold) {
    this.threshold = threshold;
    this.updateLabels();
  }

  setSmoothing(smoothing) {
    this.smoothing = smoothing;
    this.updateScores();
  }

  /** Plain data from which the corrections can be restored. */
  draft() {
    return { edits: this.edits.slice(0, this.done), threshold: this.threshold, smoothing: this.smoothing };
  }

  restore(draft) {
    this.edits = draft.edits;
    this.done = draft.edits.length;
    this.threshold = draft.threshold;
    this.smoothing = draft.smoothing;
    this.rebuild();
  }

  rebuild() {
    let start = 0;
    this.tracks = this.data.tracks.map(({ id, rows, person, thumbnail }) => {
      const track = { id, start, stop: start + rows, person, thumbnail };
      start += rows;
      return track;
    });
    this.corrected.fill(NO_LABEL);
    this.edits.slice(0, this.done).forEach((edit) => this.apply(edit));
    for (const track of this.tracks) {
      track.times = this.times.subarray(track.start, track.stop);
      track.interval = rowInterval(track.times);
    }
    this.updateScores();
  }

  apply(edit) {
    if (edit.kind === "label") {
      this.corrected.fill(edit.label, edit.start, edit.stop);
    } else if (edit.kind === "delete") {
      this.tracks = this.tracks.filter((track) => track.id !== edit.track);
    } else if (edit.kind === "person") {
      this.tracks.filter((track) => edit.tracks.includes(track.id)).forEach((track) => (track.person = edit.person));
    } else if (edit.kind === "split") {
      const index = this.tracks.findIndex((track) => track.id === edit.track);
      const first = this.tracks[index];
      this.tracks.splice(index + 1, 0, { ...first, id: edit.newTrack, start: edit.row });
      first.stop = edit.row;
    }
  }

  updateScores() {
    for (const { start, stop } of this.scores ? this.tracks : []) {
      const columns = this.columns.map((values) => values.subarray(start, stop));
      this.scores.set(trackScores(columns, this.smoothing), start);
    }
    this.updateLabels();
  }

  updateLabels() {
    for (let row = 0; row < this.labels.length; row++) {
      this.labels[row] = this.corrected[row] !== NO_LABEL ? this.corrected[row] : this.labelBefore(row);
    }
    for (const track of this.tracks) {
      track.runs = labelRuns(track.times, this.labels.subarray(track.start, track.stop));
      track.speaking = track.runs.filter((run) => run.label === SPEAKING).map((run) => this.segment(track, run));
      track.seconds = track.speaking.reduce((sum, { start, end }) => sum + end - start, 0);
    }
  }

  /** Label of a row without corrections. */
  labelBefore(row) {
    if (this.given && this.given[row] !== NO_LABEL) return this.given[row];
    return this.scores ? Number(this.scores[row] >= this.threshold) : NO_LABEL;
  }

  segment(track, { start, end, first, last }) {
    const scores = this.scores && this.scores.subarray(track.start + first, track.start + last + 1);
    return { start: round(start, 3), end: round(end, 3), mean_score: scores && round(mean(scores), 6) };
  }

  /** True if the label of a row contradicts its score. */
  differs(row) {
    const isSpeaking = this.labels[row] === SPEAKING;
    return Boolean(this.given && this.scores) && isSpeaking !== this.scores[row] >= this.threshold;
  }

  track(id) {
    return this.tracks.find((track) => track.id === id);
  }

  /** The row of a track that is visible at a timestamp, as in core/detection/overlay.py; -1 if there is none. */
  visibleRow(track, time) {
    const { times, interval } = track;
    const reach = Math.max(interval, 1 / this.data.video.frame_rate) / 2 + 1e-6;
    if (time < times[0] - reach || time > times[times.length - 1] + reach) return -1;
    const row = this.nearestRow(track, time);
    return Math.abs(this.times[row] - time) <= 2 * reach ? row : -1;
  }

  nearestRow({ times, start }, time) {
    const next = Math.min(lowerBound(times, time), times.length - 1);
    return start + (next > 0 && time - times[next - 1] <= times[next] - time ? next - 1 : next);
  }

  /** Name of a track: its id, without the video id that most of them begin with. */
  shortName({ id }) {
    const videoId = this.data.video.id;
    return (id.startsWith(videoId) ? id.slice(videoId.length) : id).replace(/^[_:]+/, "") || id;
  }

  name(track) {
    return track.person || this.shortName(track);
  }

  end(track) {
    return track.times[track.times.length - 1] + track.interval;
  }

  /** Id of the second part of a track that is split. */
  newTrack(id) {
    const ids = new Set([...this.tracks, ...this.data.tracks].map((track) => track.id));
    let number = 2;
    while (ids.has(`${id}-${number}`)) number++;
    return `${id}-${number}`;
  }

  /** Names in use, in the order of their first tracks. */
  persons() {
    return [...new Set(this.tracks.map((track) => track.person).filter(Boolean))];
  }

  /** Speaking time per person, and after these per track without a name, the longest first. */
  speakingTimes() {
    const totals = new Map();
    for (const track of this.tracks) {
      const key = track.person ? `person ${track.person}` : `track ${track.id}`;
      const total = totals.get(key) ?? { name: track.person || track.id, seconds: 0, segments: 0, tracks: [] };
      total.seconds += track.seconds;
      total.segments += track.speaking.length;
      total.tracks.push(track);
      totals.set(key, total);
    }
    const isNamed = ({ tracks }) => Number(Boolean(tracks[0].person));
    return [...totals.values()].sort((a, b) => isNamed(b) - isNamed(a) || b.seconds - a.seconds);
  }
}
