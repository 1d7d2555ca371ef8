// The number line: every value of a format, the number as a handle, and where it is rounded to.

import { decode } from "./codec.js";

const HEIGHT = 150;
const AXIS = 84; // the height of the line
const LABELS = 118;
const MARGIN = 18;

/** How numbers become places on a line, and back. */
const SCALES = {
  linear: () => ({ place: (x) => x, number: (u) => u }),
  /** Linear up to the smallest value, logarithmic from there on, of both signs. */
  logarithmic(fmt) {
    const unit = Math.min(...fmt.distinct.map(Math.abs).filter((x) => x > 0));
    const magnitude = (x) => (x < unit ? x / unit : 1 + Math.log2(x / unit));
    const inverse = (u) => (u < 1 ? u * unit : unit * 2 ** (u - 1));
    return {
      place: (x) => Math.sign(x) * magnitude(Math.abs(x)),
      number: (u) => Math.sign(u) * inverse(Math.abs(u)),
    };
  },
};

/**
 * Draw a format's values into an SVG element, and report the numbers that are pointed at.
 *
 * @param {SVGSVGElement} svg
 * @param {(x: number) => void} onNumber called while the handle is dragged
 */
export class NumberLine {
  constructor(svg, onNumber) {
    this.svg = svg;
    this.onNumber = onNumber;
    this.state = null;
    this.view = null;
    svg.addEventListener("pointerdown", (event) => {
      svg.setPointerCapture(event.pointerId);
      this.report(event);
    });
    svg.addEventListener("pointermove", (event) => {
      if (svg.hasPointerCapture(event.pointerId)) this.report(event);
    });
    new ResizeObserver(() => this.draw()).observe(svg);
  }

  /** The number under a pointer, to as many digits as a pixel has. */
  report(event) {
    const { left, width } = this.svg.getBoundingClientRect();
    const share = (event.clientX - left - MARGIN) / (width - 2 * MARGIN);
    const [low, high] = this.view;
    const u = low + Math.min(Math.max(share, 0), 1) * (high - low);
    this.onNumber(Number(this.scale.number(u).toPrecision(5)));
  }

  /** Choose what part of the line is shown: all of it, or 2^-zoom of it around a number. */
  look(fmt, kind, zoom, centre) {
    this.scale = SCALES[kind](fmt);
    const beyond = kind === "linear" ? 1.06 : 2;
    const [least, most] = [fmt.distinct[0], fmt.distinct.at(-1)].map((x) => this.scale.place(x * beyond));
    const low = Math.min(least, 0);
    const half = (most - low) / 2 ** (zoom + 1);
    const middle = Number.isFinite(centre) ? this.scale.place(centre) : 0;
    const held = Math.min(Math.max(middle, low + half), most - half);
    this.view = [held - half, held + half];
  }

  /** Whether a number is in the part that is shown. */
  shows(x) {
    const u = this.scale.place(x);
    return u >= this.view[0] && u <= this.view[1];
  }

  /** Draw the state: the format, the number and the code. */
  draw(state = this.state) {
    this.state = state;
    const width = this.svg.clientWidth;
    if (!state || !width) return;
    const { fmt, x, code } = state;
    const [low, high] = this.view;
    const across = (number) => {
      const share = (this.scale.place(number) - low) / (high - low);
      return MARGIN + Math.min(Math.max(share, -1), 2) * (width - 2 * MARGIN);
    };
    const shown = fmt.distinct.filter((value) => this.shows(value));
    const parts = [line("axis", 0, AXIS, width, AXIS)];
    for (const value of shown) parts.push(tick(fmt, value, across(value)));
    if (shown.length < width / 24) parts.push(...boundaries(fmt, shown, across));
    parts.push(...labels(fmt, shown, across, width));
    const value = code === null ? NaN : decode(code, fmt);
    if (Number.isFinite(value)) {
      if (Number.isFinite(x)) parts.push(line("error", across(x), AXIS, across(value), AXIS));
      parts.push(`<path class="rounded" d="M${across(value)} ${AXIS - 4} l-7 -15 h14 z"/>`);
    }
    if (Number.isFinite(x)) {
      parts.push(line("stem", across(x), 22, across(x), AXIS));
      parts.push(`<circle class="handle" cx="${across(x)}" cy="22" r="11"/>`);
    }
    this.svg.setAttribute("viewBox", `0 0 ${width} ${HEIGHT}`);
    this.svg.innerHTML = parts.join("");
  }
}

function line(name, x1, y1, x2, y2) {
  return `<line class="${name}" x1="${x1}" y1="${y1}" x2="${x2}" y2="${y2}"/>`;
}

/** A value's tick: taller at powers of two. */
function tick(fmt, value, place) {
  const height = value === 0 ? 20 : isPowerOfTwo(value) ? 14 : 8;
  return line("tick", place, AXIS, place, AXIS + height);
}

/** The midpoints at which rounding to nearest changes. */
function boundaries(fmt, shown, across) {
  const midpoints = shown.slice(1).map((value, i) => (value + shown[i]) / 2);
  return midpoints.map((x) => `<circle class="boundary" cx="${across(x)}" cy="${AXIS}" r="2"/>`);
}

/** The values in figures, as many as there is room for: zero, powers of two, then others. */
function labels(fmt, shown, across, width) {
  const ranked = [...shown].sort((a, b) => rank(a) - rank(b));
  const taken = [];
  const parts = [];
  for (const value of ranked) {
    const text = shortened(value);
    const half = 3.6 * text.length + 5;
    const place = Math.min(Math.max(across(value), half), width - half);
    if (taken.some(([from, to]) => place + half > from && place - half < to)) continue;
    taken.push([place - half, place + half]);
    parts.push(`<text x="${place}" y="${LABELS}">${text}</text>`);
  }
  return parts;

  function rank(value) {
    if (value === 0) return 0;
    if (value === shown[0] || value === shown.at(-1)) return 1;
    return isPowerOfTwo(value) ? 2 + Math.abs(Math.log2(Math.abs(value))) / 1e3 : 3;
  }
}

function isPowerOfTwo(value) {
  return value !== 0 && Number.isInteger(Math.log2(Math.abs(value)));
}

/** A number in at most seven characters or so. */
export function shortened(value) {
  const text = String(value);
  return (text.length <= 7 ? text : value.toExponential(1)).replace("e+", "e").replaceAll("-", "−");
}
