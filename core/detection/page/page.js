"use strict";
// The page: connects review, player and timeline with keys, buttons and dialogs.

const element = (id) => document.getElementById(id);
const review = new Review(JSON.parse(element("data").textContent));
const player = new Player(review, showTime);
const seek = (time) => player.seek(time);
const timeline = new Timeline(review, player, { select, goTo, seek, selectRows, selectRun, merge });
const draftKey = `review ${review.data.digest}`;
let anchor = null; // row at which a selection by keys began

// Selection

function selectedTrack() {
  return review.track(timeline.selected) ?? null;
}

function select(track) {
  timeline.selected = player.selected = track?.id ?? null;
  timeline.rows = null;
  if (track) timeline.scrollTo(track.id);
  show();
}

/** Select a track and, unless it is visible, go to its start. */
function goTo(track) {
  select(track);
  if (review.visibleRow(track, player.shown) < 0) seekRow(track, track.start);
}

/** Select the rows of a track from start to stop (excluded). */
function selectRows(track, start, stop) {
  if (timeline.selected !== track.id) select(track);
  const first = Math.max(start, track.start);
  const end = Math.min(stop, track.stop);
  timeline.rows = first < end ? { start: first, stop: end } : null;
  show();
}

/** Select the segment or pause of a track at a timestamp. */
function selectRun(track, time) {
  const row = review.nearestRow(track, time) - track.start;
  const { first, last } = track.runs.find((run) => row >= run.first && row <= run.last);
  selectRows(track, track.start + first, track.start + last + 1);
}

/** Move by a frame and extend the selection to the playhead. */
function extendSelection(frames) {
  const track = selectedTrack();
  if (!track) return showMessage("Select a track first.");
  const before = review.nearestRow(track, player.time);
  const first = timeline.rows && anchor !== null ? anchor : before;
  player.step(frames);
  const row = review.nearestRow(track, player.time);
  selectRows(track, Math.min(first, row), Math.max(first, row) + 1);
  anchor = first;
}

function selectNeighbour(direction) {
  const lanes = timeline.lanes();
  const index = lanes.findIndex(({ track }) => track.id === timeline.selected);
  const next = index < 0 ? 0 : Math.min(Math.max(index + direction, 0), lanes.length - 1);
  if (lanes.length) goTo(lanes[next].track);
}

/** Go to the previous or next segment of the selected track, or of all tracks. */
function seekSegment(direction) {
  const own = selectedTrack();
  const found = (own ? [own] : review.tracks).flatMap((track) => track.speaking.map(({ start }) => ({ track, start })));
  const distance = ({ start }) => (start - player.time) * direction;
  const next = found.filter((segment) => distance(segment) > 0.75 / review.data.video.frame_rate);
  next.sort((a, b) => distance(a) - distance(b));
  if (next.length) seekRow(next[0].track, review.nearestRow(next[0].track, next[0].start));
  else showMessage(direction > 0 ? "No later segment." : "No earlier segment.");
}

/** Go to the next rows whose label contradicts their score, and select them. */
function seekDifference() {
  let next = null;
  for (const track of review.tracks) {
    for (let row = track.start; row < track.stop; row++) {
      const isFirst = review.differs(row) && (row === track.start || !review.differs(row - 1));
      const isLater = review.times[row] > player.time + 1 / review.data.video.frame_rate;
      if (isFirst && isLater && (!next || review.times[row] < review.times[next.row])) next = { track, row };
    }
  }
  if (!next) return showMessage("No later difference between labels and scores.");
  let stop = next.row;
  while (stop < next.track.stop && review.differs(stop)) stop++;
  seekRow(next.track, next.row);
  selectRows(next.track, next.row, stop);
}

/** Go to the middle of the frame of a row. */
function seekRow(track, row) {
  player.seek(review.times[row] + 0.5 / review.data.video.frame_rate);
  if (!selectedTrack()) timeline.scrollTo(track.id);
}

// Corrections

function addEdit(change) {
  if (!element("draft").hidden) return showMessage("Restore or discard the earlier corrections first.");
  review.addEdit(change);
  afterEdit();
}

function afterEdit() {
  const track = selectedTrack();
  if (!track) timeline.selected = player.selected = timeline.rows = null;
  else if (timeline.rows) selectRows(track, timeline.rows.start, timeline.rows.stop);
  try {
    localStorage.setItem(draftKey, JSON.stringify({ ...review.draft(), saved: Date.now() }));
  } catch {
    showMessage("This browser does not keep drafts of this page: export before you close it.");
  }
  element("draft").hidden = true;
  showAll();
  if (track) timeline.scrollTo(track.id); // naming a person moves its lane
}

function mark(label) {
  if (!timeline.rows) return showMessage("Select rows first: drag along a lane, double click a segment, or press S.");
  addEdit({ kind: "label", ...timeline.rows, label });
}

function splitTrack() {
  const track = selectedTrack();
  const row = track && review.nearestRow(track, player.shown);
  if (!track || row <= track.start) return showMessage("Select a track, and go to the first frame of its second part.");
  addEdit({ kind: "split", track: track.id, row, newTrack: review.newTrack(track.id) });
}

function deleteTrack() {
  if (!selectedTrack()) return showMessage("Select a track first.");
  addEdit({ kind: "delete", track: timeline.selected });
}

function namePerson(name) {
  const track = selectedTrack();
  const person = name.replace(/\s+/g, " ").trim();
  if (track && person !== track.person) addEdit({ kind: "person", tracks: [track.id], person });
}

/** Two tracks are the same person: that of the second one, or a new one. */
function merge(track, other) {
  const used = review.persons();
  let number = 1;
  while (used.includes(`Person ${number}`)) number++;
  const person = other.person || track.person || `Person ${number}`;
  addEdit({ kind: "person", tracks: [track.id, other.id], person });
}

// Display

function showMessage(text) {
  element("status").textContent = text;
}

function showTime() {
  timeline.follow(player.time);
  timeline.queueDraw();
  player.draw();
  element("clock").textContent = displayTime(player.time, 2);
  element("play").textContent = player.video.paused ? "Play" : "Pause";
}

/** Update all that depends on the selection. */
function show() {
  const track = selectedTrack();
  anchor = null;
  element("track").hidden = !track;
  element("hint").hidden = Boolean(track);
  if (track) {
    element("track-name").textContent = `Track ${review.shortName(track)}`;
    const span = `${displayTime(track.times[0], 1)} to ${displayTime(review.end(track), 1)}`;
    element("track-facts").textContent = `${span}, speaks ${track.seconds.toFixed(1)} s`;
    if (document.activeElement !== element("person")) element("person").value = track.person;
    element("selection").textContent = selectionText(track);
  }
  for (const id of ["speaking", "silent", "inaudible"]) element(id).disabled = !timeline.rows;
  player.draw();
  timeline.queueDraw();
}

function selectionText(track) {
  if (!timeline.rows) return "No rows selected.";
  const { start, stop } = timeline.rows;
  const seconds = review.times[stop - 1] + track.interval - review.times[start];
  return `Selected rows: ${stop - start}, from ${displayTime(review.times[start], 2)}, ${seconds.toFixed(2)} s`;
}

/** Update all that depends on labels and tracks. */
function showAll() {
  element("undo").disabled = !review.done;
  element("redo").disabled = review.done === review.edits.length;
  element("threshold").value = review.threshold;
  element("threshold").nextElementSibling.textContent = Number(review.threshold.toFixed(4));
  element("smoothing").value = Math.max(review.smoothing, 1);
  element("smoothing").nextElementSibling.textContent = review.smoothing > 1 ? `${review.smoothing} rows` : "none";
  element("times").replaceChildren(...review.speakingTimes().slice(0, 200).map(speakingTimeRow));
  element("persons").replaceChildren(...review.persons().map((person) => new Option(person)));
  timeline.layOut();
  show();
}

function speakingTimeRow({ name, seconds, tracks }) {
  const row = document.createElement("tr");
  const count = tracks[0].person && tracks.length > 1 ? ` (${tracks.length} tracks)` : "";
  row.insertCell().textContent = (tracks[0].person ? name : review.shortName(tracks[0])) + count;
  row.insertCell().textContent = `${seconds.toFixed(1)} s`;
  row.addEventListener("click", () => {
    select(tracks[0]);
    seekRow(tracks[0], review.nearestRow(tracks[0], tracks[0].speaking[0]?.start ?? tracks[0].times[0]));
  });
  return row;
}

function toggleZoom() {
  const track = selectedTrack();
  if (timeline.isZoomed() || !track) timeline.showAll();
  else timeline.setView(track.times[0] - 1, review.end(track) + 1);
  if (track) timeline.scrollTo(track.id);
}

// Export

function exportedFiles() {
  const files = [
    ["tracks.csv", "rows with corrected labels: for training, and for --tracks", tracksCsv],
    ["persons.csv", "names of the persons: for --persons", personsCsv],
    ["speakers.csv", "speech segments as a table", speakersCsv],
    ["speakers.json", "tracks and speech segments", speakersJson],
    ["speakers.rttm", "speech segments for diarisation tools", speakersRttm],
    ["speakers.vtt", "speech segments as subtitles", speakersVtt],
    ["speaking_time.csv", "speaking time of every person", speakingTimeCsv],
  ];
  return review.data.document ? files : files.filter(([name]) => name !== "speakers.json");
}

function download(name, text) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], { type: "text/plain" }));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}

function fileItem([name, description, text]) {
  const item = document.createElement("li");
  const button = document.createElement("button");
  button.textContent = name;
  button.addEventListener("click", () => download(name, text(review)));
  item.append(button, description);
  return item;
}

function shellWord(text) {
  return /^[\w./~:@-]+$/.test(text) ? text : `'${text.replaceAll("'", "'\\''")}'`;
}

function commandText() {
  const { id, file } = review.data.video;
  const path = decodeURIComponent(new URL(file, location.href).pathname);
  const video = shellWord(path);
  return [
    "# Train on the corrected rows, together with other videos in mine/csv/train",
    "# and at least one more in mine/csv/val",
    "mkdir -p mine/csv/train mine/csv/val mine/videos/trainval",
    `cp ~/Downloads/tracks.csv mine/csv/train/${shellWord(`${id}-activespeaker.csv`)}`,
    `cp ${video} mine/videos/trainval/`,
    "export ASC_DATA_ROOT=mine",
    "python data/extract_audio_tracks.py --align",
    "python scripts/run_stages.py 0 --stages 2-9",
    "",
    "# Score the corrected tracks again, with the names of the persons (labels are then those of the new scores)",
    `python scripts/detect_speakers.py ${video} 0 \\`,
    "    --output-dir corrected --tracks ~/Downloads/tracks.csv --persons ~/Downloads/persons.csv",
  ].join("\n");
}

function openExport() {
  element("files").replaceChildren(...exportedFiles().map(fileItem));
  element("commands").textContent = commandText();
  element("export-dialog").showModal();
}

// Drafts

function offerDraft() {
  let draft = null;
  try {
    draft = JSON.parse(localStorage.getItem(draftKey));
  } catch {
    return;
  }
  if (!draft?.edits.length) return;
  const changes = draft.edits.length === 1 ? "1 correction" : `${draft.edits.length} corrections`;
  element("draft").hidden = false;
  element("draft").firstElementChild.textContent =
    `${changes} of ${new Date(draft.saved).toLocaleString()} are kept in this browser.`;
  element("restore").addEventListener("click", () => {
    review.restore(draft);
    afterEdit();
  });
  element("discard").addEventListener("click", () => {
    localStorage.removeItem(draftKey);
    element("draft").hidden = true;
  });
}

// Keys and buttons

const KEYS = {
  " ": () => player.togglePlay(),
  ArrowLeft: () => player.step(-1),
  ArrowRight: () => player.step(1),
  "shift ArrowLeft": () => extendSelection(-1),
  "shift ArrowRight": () => extendSelection(1),
  ArrowUp: () => selectNeighbour(-1),
  ArrowDown: () => selectNeighbour(1),
  "[": () => seekSegment(-1),
  "]": () => seekSegment(1),
  "+": () => changeSpeed(1),
  "=": () => changeSpeed(1),
  "-": () => changeSpeed(-1),
  0: () => mark(0),
  1: () => mark(1),
  2: () => mark(2),
  s: () => (selectedTrack() ? selectRun(selectedTrack(), player.shown) : showMessage("Select a track first.")),
  x: splitTrack,
  n: () => (selectedTrack() ? element("person").focus() : showMessage("Select a track first.")),
  z: toggleZoom,
  d: seekDifference,
  e: openExport,
  Delete: deleteTrack,
  "?": () => element("help-dialog").showModal(),
  Escape: () => select(null),
  "ctrl z": () => changeDone(-1),
  "ctrl shift z": () => changeDone(1),
  "ctrl y": () => changeDone(1),
};

function changeDone(change) {
  const before = review.done;
  review.setDone(before + change);
  if (review.done !== before) afterEdit();
}

function changeSpeed(direction) {
  element("speed").textContent = `${player.changeSpeed(direction)}×`;
}

function onKey(event) {
  const { target, key } = event;
  if (document.querySelector("dialog[open]") || target.matches("input:not([type=range])")) return;
  if (target.matches("button") && [" ", "Enter"].includes(key)) return;
  if (target.matches("[type=range]") && key.startsWith("Arrow")) return;
  const control = event.ctrlKey || event.metaKey ? "ctrl " : "";
  const name = key.length === 1 ? key.toLowerCase() : key;
  const shift = event.shiftKey && (control || key.startsWith("Arrow")) ? "shift " : "";
  const action = KEYS[control + shift + name];
  if (!action) return;
  event.preventDefault();
  showMessage("");
  action();
}

function connect() {
  const actions = {
    undo: () => changeDone(-1),
    redo: () => changeDone(1),
    export: openExport,
    help: KEYS["?"],
    play: () => player.togglePlay(),
    zoom: toggleZoom,
    speaking: () => mark(1),
    silent: () => mark(0),
    inaudible: () => mark(2),
    split: splitTrack,
    delete: deleteTrack,
  };
  for (const [id, action] of Object.entries(actions)) element(id).addEventListener("click", action);
  document.addEventListener("keydown", onKey);
  // After a click, keys are for the video again.
  document.addEventListener(
    "click",
    ({ target, detail }) => detail && target.matches("button, [type=range]") && target.blur(),
  );
  element("person").addEventListener(
    "keydown",
    ({ key }) => ["Enter", "Escape"].includes(key) && element("person").blur(),
  );
  element("person").addEventListener("change", () => namePerson(element("person").value));
  element("threshold").addEventListener("input", ({ target }) => {
    review.setThreshold(Number(Number(target.value).toFixed(2)));
    showAll();
  });
  element("smoothing").addEventListener("input", ({ target }) => {
    review.setSmoothing(target.value === "1" ? 0 : Number(target.value));
    showAll();
  });
  player.canvas.addEventListener("click", ({ offsetX, offsetY }) => {
    const track = player.trackAt(offsetX, offsetY);
    if (track) select(track);
    else player.togglePlay();
  });
}

document.title = element("title").textContent = `${review.data.video.id}: who speaks when`;
element("smoothing").max = Math.max(51, review.smoothing);
for (const scored of document.querySelectorAll(".scored")) scored.hidden = !review.scores;
for (const both of document.querySelectorAll(".both")) both.hidden = !(review.scores && review.given);
connect();
offerDraft();
showAll();
showTime();
