"use strict";
// The video, with boxes and scores drawn over it.

const SPEAKING_COLOUR = [0, 158, 115]; // as in core/detection/overlay.py: they differ in lightness too
const SILENT_COLOUR = [213, 60, 0];

function scoreColour(score) {
  const mixed = SILENT_COLOUR.map((silent, index) => Math.round(silent + score * (SPEAKING_COLOUR[index] - silent)));
  return `rgb(${mixed.join(",")})`;
}

/** Fit a canvas to its size on the page. Returns its context, in units of CSS pixels. */
function prepareCanvas(canvas, width, height) {
  const scale = window.devicePixelRatio;
  canvas.width = Math.round(width * scale);
  canvas.height = Math.round(height * scale);
  const context = canvas.getContext("2d");
  context.scale(scale, scale);
  return context;
}

/** Shorten a text to a width in pixels. The end is kept, where names of tracks differ. */
function fitText(context, text, width) {
  const characters = [...text];
  let shortened = text;
  for (let length = characters.length - 1; length > 0 && context.measureText(shortened).width > width; length--) {
    const end = Math.min(3, length >> 1);
    shortened = `${characters.slice(0, length - end).join("")}…${end ? characters.slice(-end).join("") : ""}`;
  }
  return shortened;
}

/** Times are those of the rows. `time` is the position of the playhead, `shown` the time of the visible frame. */
class Player {
  constructor(review, onMove) {
    this.review = review;
    this.info = review.data.video;
    this.video = document.getElementById("video");
    this.canvas = document.getElementById("boxes");
    this.onMove = onMove;
    this.time = this.shown = this.info.start;
    this.selected = null; // id of a track
    this.drawn = []; // boxes in pixels, for clicks
    this.video.addEventListener("error", () => this.reportUnplayable());
    for (const event of ["play", "pause", "seeked", "loadeddata", "ended"]) {
      this.video.addEventListener(event, () => this.onMove());
    }
    this.video.addEventListener("loadedmetadata", () => {
      if (!this.video.videoWidth) this.reportUnplayable(); // only the audio is played
      this.seek(this.time);
    });
    this.video.src = this.info.source;
    new ResizeObserver(() => this.draw()).observe(this.canvas);
    this.watchFrames();
  }

  watchFrames() {
    if (this.video.requestVideoFrameCallback) {
      const onFrame = (_, { mediaTime }) => {
        this.shown = mediaTime - this.info.offset;
        if (!this.video.paused) this.time = this.shown;
        this.onMove();
        this.video.requestVideoFrameCallback(onFrame);
      };
      this.video.requestVideoFrameCallback(onFrame);
    } else {
      this.video.addEventListener("timeupdate", () => {
        this.time = this.shown = this.video.currentTime - this.info.offset;
        this.onMove();
      });
    }
  }

  reportUnplayable() {
    const note = document.getElementById("unplayable");
    note.textContent = `This browser cannot play ${decodeURIComponent(this.info.source)}, or the file is missing.`;
    note.hidden = false;
  }

  seek(time) {
    this.time = this.shown = Math.min(Math.max(time, this.info.start), this.info.seconds);
    if (this.video.readyState) this.video.currentTime = this.time + this.info.offset;
    this.onMove();
  }

  /** Go to the middle of a frame, so that rounding cannot show another one. */
  step(frames) {
    const index = Math.floor(this.time * this.info.frame_rate + 1e-3);
    this.video.pause();
    this.seek((index + frames + 0.5) / this.info.frame_rate);
  }

  togglePlay() {
    if (this.video.paused) this.video.play().catch(() => this.reportUnplayable());
    else this.video.pause();
  }

  changeSpeed(direction) {
    const speeds = [0.25, 0.5, 1, 1.5, 2, 3];
    const index = speeds.indexOf(this.video.playbackRate) + direction;
    this.video.playbackRate = speeds[Math.min(Math.max(index, 0), speeds.length - 1)];
    return this.video.playbackRate;
  }

  /** Position and size of the frame within the canvas, in pixels. */
  frameRect() {
    const width = this.video.videoWidth || this.info.width;
    const height = this.video.videoHeight || this.info.height;
    const scale = Math.min(this.canvas.clientWidth / width, this.canvas.clientHeight / height);
    const left = (this.canvas.clientWidth - width * scale) / 2;
    const top = (this.canvas.clientHeight - height * scale) / 2;
    return { left, top, width: width * scale, height: height * scale };
  }

  draw() {
    const context = prepareCanvas(this.canvas, this.canvas.clientWidth, this.canvas.clientHeight);
    const frame = this.frameRect();
    this.drawn = [];
    for (const track of this.review.tracks) {
      const row = this.review.visibleRow(track, this.shown);
      if (row < 0) continue;
      const [x1, y1, x2, y2] = this.review.boxes.subarray(4 * row, 4 * row + 4);
      const left = frame.left + x1 * frame.width;
      const top = frame.top + y1 * frame.height;
      this.drawn.push({ track, row, left, top, width: (x2 - x1) * frame.width, height: (y2 - y1) * frame.height });
    }
    this.drawn.forEach((box) => this.drawBox(context, box));
    this.drawn.forEach((box) => this.drawLabel(context, box));
  }

  drawBox(context, { track, row, left, top, width, height }) {
    const { scores, labels } = this.review;
    const isSpeaking = labels[row] === SPEAKING;
    const thickness = scores ? 1.5 + 2.5 * scores[row] : 2;
    if (track.id === this.selected) {
      context.strokeStyle = "#ffffff";
      context.lineWidth = thickness + 4;
      context.strokeRect(left, top, width, height);
    }
    context.strokeStyle = this.colour(row);
    context.lineWidth = thickness + (isSpeaking ? 1 : 0);
    context.setLineDash(labels[row] > SPEAKING ? [6, 4] : []); // speaking but not audible
    context.strokeRect(left, top, width, height);
    context.setLineDash([]);
  }

  colour(row) {
    const { scores, labels } = this.review;
    return scoreColour(scores ? scores[row] : Number(labels[row] === SPEAKING));
  }

  /** Draw name and score above the face. With many faces, labels are no wider than their faces. */
  drawLabel(context, { track, row, left, top, width }) {
    const { scores } = this.review;
    const score = scores ? ` ${scores[row].toFixed(2)}` : "";
    const isSmall = width < 60;
    const space = Math.max(width, this.drawn.length > 6 ? 30 : 90);
    context.font = `${isSmall ? 11 : 13}px system-ui, sans-serif`;
    const name = fitText(context, this.review.name(track), Math.max(space - 8 - context.measureText(score).width, 16));
    const text = isSmall && this.drawn.length > 6 ? name : name + score;
    const height = isSmall ? 14 : 18;
    const labelWidth = context.measureText(text).width + 8;
    const x = Math.min(Math.max(left, 0), this.canvas.clientWidth - labelWidth);
    const y = Math.max(top - height, 0);
    context.fillStyle = this.colour(row);
    context.fillRect(x, y, labelWidth, height);
    context.fillStyle = "#ffffff";
    context.textBaseline = "middle";
    context.fillText(text, x + 4, y + height / 2 + 0.5);
  }

  /** The track of the smallest box at a point of the canvas. */
  trackAt(x, y) {
    const inside = this.drawn.filter(
      (box) => x >= box.left && x <= box.left + box.width && y >= box.top && y <= box.top + box.height,
    );
    inside.sort((a, b) => a.width * a.height - b.width * b.height);
    return inside.length ? inside[0].track : null;
  }
}
