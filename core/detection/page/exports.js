"use strict";
// Text of the files that the page exports. Formats are those of scripts/detect_speakers.py.

const LABELS = ["NOT_SPEAKING", "SPEAKING_AUDIBLE", "SPEAKING_NOT_AUDIBLE"];
const BOX_COLUMNS = ["entity_box_x1", "entity_box_y1", "entity_box_x2", "entity_box_y2"];

function csvText(rows) {
  const field = (value) => (/[",\r\n]/.test(value) ? `"${String(value).replaceAll('"', '""')}"` : String(value ?? ""));
  return rows.map((row) => `${row.map(field).join(",")}\n`).join("");
}

function tracksCsv(review) {
  const rows = [["video_id", "frame_timestamp", ...BOX_COLUMNS, "label", "entity_id"]];
  for (const { id, start, stop } of review.tracks) {
    for (let row = start; row < stop; row++) {
      const box = review.boxes.subarray(4 * row, 4 * row + 4);
      rows.push([review.data.video.id, review.times[row], ...box, LABELS[review.labels[row]], id]);
    }
  }
  return csvText(rows);
}

function personsCsv(review) {
  return csvText([["track", "person"], ...review.tracks.filter(({ person }) => person).map((t) => [t.id, t.person])]);
}

/** All segments in order of time, each with its track, person and name: the person, or else the track. */
function allSegments(review) {
  const segments = review.tracks.flatMap(({ id, person, speaking }) =>
    speaking.map((segment) => ({ track: id, person, name: person || id, ...segment })),
  );
  const compare = (a, b) => (a < b ? -1 : Number(a > b));
  return segments.sort((a, b) => a.start - b.start || a.end - b.end || compare(a.name, b.name));
}

function speakersCsv(review) {
  const columns = ["track", "person", "start", "end", "mean_score"];
  return csvText([columns, ...allSegments(review).map((segment) => columns.map((column) => segment[column]))]);
}

function speakersJson(review) {
  const { width, height } = review.data.video;
  const tracks = review.tracks.map((track) => {
    const side = (first, pixels) => {
      const rows = Float64Array.from(track.times, (_, row) => 4 * (track.start + row));
      return round(median(rows.map((box) => (review.boxes[box + first + 2] - review.boxes[box + first]) * pixels)), 1);
    };
    return {
      id: track.id,
      person: track.person || null,
      start: round(track.times[0], 3),
      end: round(review.end(track), 3),
      rows: track.times.length,
      box_width: side(0, width),
      box_height: side(1, height),
      mean_score: round(mean(review.scores.subarray(track.start, track.stop)), 6),
      speaking_seconds: round(track.seconds, 3),
      speaking: track.speaking,
    };
  });
  const { threshold, smoothing, data } = review;
  const settings = { ...data.document.settings, threshold, smoothing };
  return `${JSON.stringify({ ...data.document, settings, tracks }, null, 2)}\n`;
}

function speakersRttm(review) {
  const word = (text) => text.replace(/\s/g, "_");
  const line = ({ start, end, name }) => {
    const times = `${start.toFixed(3)} ${(end - start).toFixed(3)}`;
    return `SPEAKER ${word(review.data.video.id)} 1 ${times} <NA> <NA> ${word(name)} <NA> <NA>\n`;
  };
  return allSegments(review).map(line).join("");
}

function clockText(seconds, digits) {
  const units = Math.round(seconds * 10 ** digits);
  const whole = Math.floor(units / 10 ** digits);
  const two = (value) => String(value).padStart(2, "0");
  const fraction = digits ? `.${String(units % 10 ** digits).padStart(digits, "0")}` : "";
  return `${two(Math.floor(whole / 3600))}:${two(Math.floor(whole / 60) % 60)}:${two(whole % 60)}${fraction}`;
}

/** A time to be read by people: without hours if there are none. */
function displayTime(seconds, digits) {
  const text = clockText(seconds, digits);
  return text.startsWith("00:") ? text.slice(3) : text;
}

function speakersVtt(review) {
  const escape = (text) =>
    text.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;").replace(/\s/g, " ");
  const cue = ({ start, end, name }) =>
    `\n${clockText(start, 3)} --> ${clockText(end, 3)}\n<v ${escape(name)}>${escape(name)}\n`;
  return `WEBVTT\n${allSegments(review).map(cue).join("")}`;
}

function speakingTimeCsv(review) {
  const rows = review.speakingTimes().map(({ name, seconds, segments }) => [name, round(seconds, 3), segments]);
  return csvText([["person", "speaking_seconds", "segments"], ...rows]);
}
