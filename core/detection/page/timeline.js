"use strict";
// Lanes over time: a lane per track, grouped by person. Only visible lanes are drawn, on one canvas.

const AXIS = 24; // heights and widths in pixels
const LANE = 46;
const GROUP = 22;
const GUTTER = 150;
const FIRST_SECONDS = 60; // visible at first
const DRAG = 4; // smaller movements of the pointer are clicks
const TICK_SECONDS = [0.04, 0.2, 1, 2, 5, 10, 30, 60, 120, 300, 600, 1800, 3600];

class Timeline {
  /** `actions` are functions: select, goTo, seek, selectRows, selectRun, merge. */
  constructor(review, player, actions) {
    this.review = review;
    this.player = player;
    this.actions = actions;
    this.scroller = document.getElementById("timeline");
    this.canvas = document.getElementById("lanes");
    this.spacer = document.getElementById("spacer");
    this.selected = null; // id of a track
    this.rows = null; // selected rows: {start, stop}
    this.drag = null;
    this.thumbnails = new Map();
    this.isQueued = false;
    this.setView(player.info.start, player.info.start + FIRST_SECONDS);
    this.scroller.addEventListener("scroll", () => this.queueDraw());
    new ResizeObserver(() => this.layOut()).observe(this.scroller);
    this.canvas.addEventListener("pointerdown", (event) => this.startDrag(event));
    this.canvas.addEventListener("pointermove", (event) => this.moveDrag(event));
    this.canvas.addEventListener("pointerup", (event) => this.endDrag(event));
    this.canvas.addEventListener("dblclick", (event) => this.doubleClick(event));
    this.canvas.addEventListener("wheel", (event) => this.wheel(event), { passive: false });
    window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.queueDraw());
  }

  // Time axis

  showAll() {
    this.setView(this.player.info.start, this.player.info.seconds);
  }

  setView(from, to) {
    const { start, seconds } = this.player.info;
    const length = Math.min(Math.max(to - from, 0.4), Math.max(seconds - start, 0.4));
    this.from = Math.min(Math.max(from, start), Math.max(seconds - length, start));
    this.to = this.from + length;
    this.layOut();
  }

  isZoomed() {
    const { start, seconds } = this.player.info;
    return this.to - this.from < seconds - start - 1e-6;
  }

  /** Move the view so that the playhead is visible. */
  follow(time) {
    const length = this.to - this.from;
    if (time < this.from || time > this.to) this.setView(time - 0.1 * length, time + 0.9 * length);
  }

  x(time) {
    return GUTTER + ((time - this.from) / (this.to - this.from)) * (this.width - GUTTER);
  }

  timeAt(x) {
    return this.from + ((x - GUTTER) / (this.width - GUTTER)) * (this.to - this.from);
  }

  // Layout

  /** Compute the positions of the lanes that have rows in the visible time. */
  layOut() {
    const visible = this.review.tracks.filter(
      (track) => track.times[0] <= this.to && this.review.end(track) >= this.from,
    );
    const persons = this.review.persons();
    const groups = persons.map((person) => visible.filter((track) => track.person === person));
    const unnamed = visible.filter((track) => !track.person);
    this.items = [];
    let top = 0;
    const add = (item, height) => {
      this.items.push({ ...item, top, height });
      top += height;
    };
    [...groups, unnamed].forEach((tracks, index) => {
      if (persons.length && tracks.length) add({ person: persons[index] ?? "" }, GROUP);
      tracks.sort((a, b) => a.times[0] - b.times[0]).forEach((track) => add({ track }, LANE));
    });
    this.width = this.scroller.clientWidth;
    this.height = this.scroller.clientHeight;
    this.spacer.style.height = `${Math.max(top + AXIS - this.height, 0)}px`;
    this.queueDraw();
  }

  lanes() {
    return this.items.filter((item) => item.track);
  }

  scrollTo(id) {
    const item = this.lanes().find(({ track }) => track.id === id);
    if (!item) return;
    const { scrollTop } = this.scroller;
    if (item.top < scrollTop) this.scroller.scrollTop = item.top;
    else if (item.top + item.height + AXIS > scrollTop + this.height) {
      this.scroller.scrollTop = item.top + item.height + AXIS - this.height;
    }
  }

  itemAt(y) {
    const position = y - AXIS + this.scroller.scrollTop;
    return y < AXIS ? null : this.items.find(({ top, height }) => position >= top && position < top + height);
  }

  // Mouse

  startDrag(event) {
    const { offsetX: x, offsetY: y } = event;
    if (event.button !== 0) return;
    this.canvas.setPointerCapture(event.pointerId);
    const item = this.itemAt(y);
    const kind = y < AXIS ? "zoom" : x < GUTTER ? "merge" : "select";
    if (kind === "zoom" || item?.track) this.drag = { kind, track: item?.track, x, y, toX: x, toY: y, moved: false };
  }

  moveDrag({ offsetX, offsetY }) {
    if (!this.drag) return;
    const { drag } = this;
    drag.toX = offsetX;
    drag.toY = offsetY;
    drag.moved ||= Math.hypot(offsetX - drag.x, offsetY - drag.y) > DRAG;
    if (drag.moved && drag.kind === "select") this.selectRows(drag);
    this.queueDraw();
  }

  endDrag() {
    const { drag } = this;
    this.drag = null;
    if (!drag) return;
    const time = this.timeAt(Math.max(drag.x, GUTTER));
    if (drag.kind === "zoom" && drag.moved) {
      this.setView(Math.min(time, this.timeAt(drag.toX)), Math.max(time, this.timeAt(drag.toX)));
    } else if (drag.kind === "zoom") {
      this.actions.seek(time);
    } else if (drag.kind === "merge") {
      const target = drag.moved && this.itemAt(drag.toY)?.track;
      if (target && target.id !== drag.track.id) this.actions.merge(drag.track, target);
      else this.actions.goTo(drag.track);
    } else if (!drag.moved) {
      this.actions.select(drag.track);
      this.actions.seek(time);
    }
    this.queueDraw();
  }

  selectRows({ track, x, toX }) {
    const [from, to] = [this.timeAt(x), this.timeAt(toX)].sort((a, b) => a - b);
    const start = track.start + lowerBound(track.times, from - track.interval / 2);
    const stop = track.start + lowerBound(track.times, to + track.interval / 2);
    this.actions.selectRows(track, Math.min(start, stop - 1), stop);
  }

  doubleClick({ offsetX: x, offsetY: y }) {
    const track = this.itemAt(y)?.track;
    if (y < AXIS) this.showAll();
    else if (track && x > GUTTER) this.actions.selectRun(track, this.timeAt(x));
  }

  wheel(event) {
    const length = this.to - this.from;
    if (event.ctrlKey) {
      event.preventDefault();
      const time = this.timeAt(Math.max(event.offsetX, GUTTER));
      const factor = Math.exp(Math.sign(event.deltaY) * 0.25);
      this.setView(time - (time - this.from) * factor, time + (this.to - time) * factor);
    } else if (event.shiftKey || Math.abs(event.deltaX) > Math.abs(event.deltaY)) {
      event.preventDefault();
      const shift = (Math.sign(event.deltaX || event.deltaY) * length) / 10;
      this.setView(this.from + shift, this.to + shift);
    }
  }

  // Drawing

  /** Draw before the next frame, once, however often this is called. */
  queueDraw() {
    if (this.isQueued) return;
    this.isQueued = true;
    requestAnimationFrame(() => {
      this.isQueued = false;
      this.draw();
    });
  }

  draw() {
    const style = getComputedStyle(document.documentElement);
    const colour = (name) => style.getPropertyValue(`--${name}`);
    const context = prepareCanvas(this.canvas, this.width, this.height);
    this.canvas.style.width = `${this.width}px`;
    this.canvas.style.height = `${this.height}px`;
    context.fillStyle = colour("background");
    context.fillRect(0, 0, this.width, this.height);
    context.textBaseline = "middle";
    const { scrollTop } = this.scroller;
    for (const item of this.items) {
      const top = AXIS + item.top - scrollTop;
      if (top > this.height || top + item.height < AXIS) continue;
      if (item.track) this.drawLane(context, colour, item.track, top);
      else this.drawGroup(context, colour, item.person, top);
    }
    this.drawAxis(context, colour);
    this.drawDrag(context, colour);
  }

  drawGroup(context, colour, person, top) {
    context.fillStyle = colour("panel");
    context.fillRect(0, top, this.width, GROUP);
    context.fillStyle = colour("text");
    context.font = "600 13px system-ui, sans-serif";
    context.fillText(person || "without a name", 8, top + GROUP / 2);
  }

  drawLane(context, colour, track, top) {
    const isSelected = track.id === this.selected;
    context.fillStyle = colour(isSelected ? "selected" : "background");
    context.fillRect(0, top, this.width, LANE);
    context.save();
    context.beginPath();
    context.rect(GUTTER, top, this.width - GUTTER, LANE);
    context.clip();
    this.drawRuns(context, colour, track, top);
    this.drawScores(context, colour, track, top);
    if (isSelected && this.rows) {
      const { start, stop } = this.rows;
      context.strokeStyle = colour("accent");
      context.lineWidth = 2;
      const left = this.x(this.review.times[start]);
      const right = this.x(this.review.times[stop - 1] + track.interval);
      context.strokeRect(left, top + 3, right - left, LANE - 6);
      context.globalAlpha = 0.15;
      context.fillStyle = colour("accent");
      context.fillRect(left, top + 3, right - left, LANE - 6);
    }
    context.restore();
    this.drawName(context, colour, track, top);
    context.fillStyle = colour("line");
    context.fillRect(0, top + LANE - 1, this.width, 1);
  }

  drawName(context, colour, track, top) {
    const image = this.thumbnail(track);
    if (image?.complete && image.naturalWidth) {
      const scale = (LANE - 8) / Math.max(image.naturalWidth, image.naturalHeight);
      const [width, height] = [image.naturalWidth * scale, image.naturalHeight * scale];
      context.drawImage(image, 4 + (LANE - 8 - width) / 2, top + 4 + (LANE - 8 - height) / 2, width, height);
    }
    context.fillStyle = colour("text");
    context.font = "13px system-ui, sans-serif";
    const name = fitText(context, this.review.name(track), GUTTER - LANE - 8);
    context.fillText(name, LANE, top + LANE / 2 - 8);
    context.fillStyle = colour("muted");
    context.font = "12px system-ui, sans-serif";
    context.fillText(
      `${track.seconds.toFixed(1)} s of ${(this.review.end(track) - track.times[0]).toFixed(1)} s`,
      LANE,
      top + LANE / 2 + 9,
    );
  }

  thumbnail(track) {
    if (!track.thumbnail) return null;
    if (!this.thumbnails.has(track.thumbnail)) {
      const image = new Image();
      image.onload = () => this.queueDraw();
      image.src = track.thumbnail;
      this.thumbnails.set(track.thumbnail, image);
    }
    return this.thumbnails.get(track.thumbnail);
  }

  /** Shade the runs by label, with a line above corrected rows and one below rows that contradict their score. */
  drawRuns(context, colour, track, top) {
    const colours = [colour("silent"), colour("speaking"), colour("inaudible")];
    for (const { label, start, end } of track.runs) {
      if (start > this.to || end < this.from) continue;
      context.fillStyle = colours[label] ?? colours[NOT_SPEAKING];
      context.fillRect(this.x(start), top + 3, Math.max(this.x(end) - this.x(start), 1), LANE - 7);
    }
    const { corrected } = this.review;
    this.drawMarks(context, colour("accent"), track, top + 1, (row) => corrected[row] !== NO_LABEL);
    this.drawMarks(context, colour("warning"), track, top + LANE - 5, (row) => this.review.differs(row));
  }

  /** Draw a line at the rows for which `isMarked` is true. */
  drawMarks(context, colour, track, y, isMarked) {
    context.fillStyle = colour;
    const [first, stop] = this.visibleRows(track);
    for (let row = first; row < stop; row++) {
      if (!isMarked(row)) continue;
      let end = row;
      while (end + 1 < stop && isMarked(end + 1)) end++;
      const left = this.x(this.review.times[row]);
      context.fillRect(left, y, Math.max(this.x(this.review.times[end] + track.interval) - left, 1), 3);
      row = end;
    }
  }

  visibleRows({ times, start }) {
    const first = Math.max(lowerBound(times, this.from) - 1, 0);
    const stop = Math.min(lowerBound(times, this.to) + 1, times.length);
    return [start + first, start + stop];
  }

  /** Draw the curve of the scores and the threshold. If there are more rows than pixels, means are drawn. */
  drawScores(context, colour, track, top) {
    const { scores, times, threshold } = this.review;
    if (!scores) return;
    const y = (score) => top + LANE - 6 - score * (LANE - 12);
    const [first, stop] = this.visibleRows(track);
    context.strokeStyle = colour("muted");
    context.lineWidth = 1;
    context.setLineDash([2, 3]);
    context.beginPath();
    context.moveTo(this.x(track.times[0]), y(threshold));
    context.lineTo(this.x(this.review.end(track)), y(threshold));
    context.stroke();
    context.setLineDash([]);
    const pixels = Math.max(this.x(times[stop - 1]) - this.x(times[first]), 1);
    const step = Math.max(1, Math.floor((stop - first) / pixels));
    context.strokeStyle = colour("text");
    context.lineWidth = 1.3;
    context.beginPath();
    for (let row = first; row < stop; row += step) {
      const isGap = row > first && times[row] - times[row - step] > 2 * step * track.interval;
      const value = y(mean(scores.subarray(row, Math.min(row + step, stop))));
      if (row === first || isGap) context.moveTo(this.x(times[row]), value);
      else context.lineTo(this.x(times[row]), value);
    }
    context.stroke();
  }

  drawAxis(context, colour) {
    context.fillStyle = colour("panel");
    context.fillRect(0, 0, this.width, AXIS);
    const shortest = ((this.to - this.from) / (this.width - GUTTER)) * 80;
    const step = TICK_SECONDS.find((seconds) => seconds >= shortest) ?? 7200;
    context.font = "12px system-ui, sans-serif";
    context.fillStyle = colour("muted");
    for (let tick = Math.ceil(this.from / step); tick * step <= this.to; tick++) {
      context.fillRect(this.x(tick * step), AXIS - 6, 1, 6);
      context.fillText(displayTime(tick * step, step < 1 ? 2 : 0), this.x(tick * step) + 4, AXIS / 2);
    }
    const x = this.x(this.player.time);
    if (x < GUTTER) return;
    context.fillStyle = colour("accent");
    context.fillRect(x - 0.75, 0, 1.5, this.height);
    context.beginPath();
    context.moveTo(x - 6, 0);
    context.lineTo(x + 6, 0);
    context.lineTo(x, 9);
    context.fill();
  }

  drawDrag(context, colour) {
    const { drag } = this;
    if (!drag?.moved) return;
    context.fillStyle = colour("accent");
    if (drag.kind === "zoom") {
      context.globalAlpha = 0.3;
      context.fillRect(Math.min(drag.x, drag.toX), 0, Math.abs(drag.toX - drag.x), this.height);
      context.globalAlpha = 1;
    } else if (drag.kind === "merge") {
      context.font = "600 13px system-ui, sans-serif";
      context.fillText(`${this.review.name(drag.track)} is the same person as …`, drag.toX + 12, drag.toY);
    }
  }
}
