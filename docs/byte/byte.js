// The page: a number, a format and a code, shown as a line, as bits and in figures.

import { NoCode, ROUNDINGS, decode, encode, errorOf, fractionAbove, kindOf, neighbours, overflows, stepped } from "./codec.js";
import { showBlocks, showResults } from "./blockview.js";
import { NumberLine } from "./numberline.js";
import { showProof } from "./prove.js";
import { colourOf, readTables } from "./tables.js";
import { follow } from "./theme.js";

const $ = (id) => document.getElementById(id);

/** Steps of a key on the line; Infinity: to the end. */
const KEYS = {
  ArrowRight: 1, ArrowUp: 1, ArrowLeft: -1, ArrowDown: -1,
  PageUp: 8, PageDown: -8, End: Infinity, Home: -Infinity,
};

/** Which value a tie goes to. */
const TIES = {
  nearest: "the even code wins",
  nearest_away: "the value farther from zero wins",
  nearest_toward_zero: "the value nearer to zero wins",
};

function showByte(formats) {
  const state = { fmt: formats.get("E4M3FN"), x: 0.1, code: 0, refusal: "" };
  const line = new NumberLine($("line"), setNumber);

  for (const fmt of formats.values()) $("format").append(new Option(fmt.name, fmt.name));
  $("format").addEventListener("change", () => {
    state.fmt = formats.get($("format").value);
    const integer = state.fmt.kind === "integer";
    for (const option of $("rounding").options) option.disabled = integer && option.value === "stochastic";
    if (integer && $("rounding").value === "stochastic") $("rounding").value = "nearest";
    $("scale").value = integer || state.fmt.max <= 30 ? "linear" : "logarithmic";
    $("zoom").value = 0;
    encoded();
    look();
  });
  for (const id of ["rounding", "saturate"]) $(id).addEventListener("change", encoded);
  $("draw").addEventListener("click", encoded);
  $("number").addEventListener("change", () => {
    const text = $("number").value.trim();
    const typed = parsed(text);
    if (typed === undefined) {
      $("number").setAttribute("aria-invalid", true);
      $("verdict").textContent = `“${text}” is not a number. Write one like 0.1, −2e−3, ∞ or NaN.`;
      return;
    }
    setNumber(typed);
    look();
  });
  for (const button of $("specials").children) {
    button.addEventListener("click", () => setNumber(Number(button.dataset.number)));
  }
  for (const id of ["scale", "zoom"]) $(id).addEventListener("input", look);
  for (const id of ["line", "bits"]) {
    $(id).addEventListener("keydown", (event) => {
      const vertical = event.key === "ArrowUp" || event.key === "ArrowDown";
      const isShortcut = event.altKey || event.ctrlKey || event.metaKey; // the browser's own
      if (!(event.key in KEYS) || isShortcut || (id === "bits" && !vertical)) return;
      event.preventDefault();
      setCode(stepped(state.code ?? 0, KEYS[event.key], state.fmt));
      if (!line.shows(state.x)) look();
    });
  }
  $("rounding").value = ROUNDINGS[0];
  $("format").value = state.fmt.name;
  $("format").dispatchEvent(new Event("change"));

  function setNumber(x) {
    state.x = x;
    encoded();
  }

  function setCode(code) {
    Object.assign(state, { code, x: decode(code, state.fmt), refusal: "" });
    show();
  }

  function encoded() {
    state.refusal = "";
    try {
      const rounding = $("rounding").value;
      state.code = encode(state.x, state.fmt, { rounding, saturate: $("saturate").checked });
    } catch (error) {
      if (!(error instanceof NoCode)) throw error;
      state.code = null;
      state.refusal = error.message;
    }
    show();
  }

  function look() {
    line.look(state.fmt, $("scale").value, Number($("zoom").value), state.x);
    line.draw({ ...state });
  }

  function show() {
    const { fmt, x, code } = state;
    document.documentElement.style.setProperty("--format", colourOf(fmt));
    $("description").textContent = describe(fmt);
    $("number").removeAttribute("aria-invalid");
    if (document.activeElement !== $("number") || Number($("number").value) !== x) $("number").value = shown(x);
    $("draw").hidden = $("rounding").value !== "stochastic";
    showBits(fmt, code);
    $("formula").innerHTML = code === null ? "" : formula(fmt, code);
    const error = code === null ? {} : errorOf(x, code, fmt);
    const { below, above } = neighbours(code === null || !Number.isFinite(decode(code, fmt)) ? x : decode(code, fmt), fmt);
    const readout = {
      code: code === null ? "none" : `${hexadecimal(code)} = ${binary(code, fmt)}`,
      value: code === null ? "none" : shown(decode(code, fmt)),
      kind: code === null ? "none" : kindOf(code, fmt),
      absolute: Number.isFinite(error.absolute) ? shown(Number(error.absolute.toPrecision(6))) : "not defined",
      relative: Number.isFinite(error.relative) ? `${(100 * error.relative).toPrecision(3)} %` : "not defined",
      ulps: Number.isFinite(error.ulps) ? error.ulps.toPrecision(3) : "not defined",
      below: below === undefined ? "none" : `${shown(decode(below, fmt))} (${hexadecimal(below)})`,
      above: above === undefined ? "none" : `${shown(decode(above, fmt))} (${hexadecimal(above)})`,
    };
    for (const [id, text] of Object.entries(readout)) $(id).textContent = text;
    $("verdict").textContent = verdict(state, $("rounding").value, $("saturate").checked);
    const svg = $("line");
    const [least, most] = [fmt.distinct[0], fmt.distinct.at(-1)];
    svg.setAttribute("aria-valuemin", least);
    svg.setAttribute("aria-valuemax", most);
    svg.setAttribute("aria-valuenow", Number.isNaN(x) ? 0 : Math.min(Math.max(x, least), most));
    svg.setAttribute("aria-valuetext", `${shown(x)} becomes ${readout.value}, code ${readout.code}`);
    if (line.view) line.draw({ ...state });
  }

  function showBits(fmt, code) {
    const fields = fieldsOf(fmt);
    if ($("bits").children.length !== fields.length) {
      $("bits").replaceChildren(...fields.map((_, i) => bitButton(fields.length - 1 - i)));
    }
    fields.forEach((field, i) => {
      const bit = fields.length - 1 - i;
      const on = code !== null && (code >> bit) & 1;
      const button = $("bits").children[i];
      button.className = field;
      button.setAttribute("aria-pressed", Boolean(on));
      button.setAttribute("aria-label", `bit ${bit}, ${field}: ${on ? 1 : 0}`);
      button.innerHTML = `${code === null ? "·" : on ? 1 : 0}<small>${field === "integer" ? bit : field[0]}</small>`;
    });
  }

  function bitButton(bit) {
    const button = document.createElement("button");
    button.type = "button";
    button.addEventListener("click", () => setCode((state.code ?? 0) ^ (1 << bit)));
    return button;
  }
}

/** The field of each bit of a code, from high to low. */
function fieldsOf(fmt) {
  if (fmt.kind === "integer") return Array(fmt.bits).fill("integer");
  return [
    ...Array(fmt.signed ? 1 : 0).fill("sign"),
    ...Array(fmt.exponent_bits).fill("exponent"),
    ...Array(fmt.mantissa_bits).fill("mantissa"),
  ];
}

function describe(fmt) {
  if (fmt.kind === "integer") {
    const divided = fmt.fraction_bits ? `, divided by ${2 ** fmt.fraction_bits}` : "";
    return `${fmt.name}: integers from ${shown(fmt.min_code)} to ${fmt.max_code}${divided}. A scale gives them their range.`;
  }
  const parts = [
    `${fmt.bits} bits: ${fmt.signed ? "1 of sign, " : ""}${fmt.exponent_bits} of exponent (bias ${fmt.bias}), ${fmt.mantissa_bits} of mantissa`,
    `largest value ${shown(fmt.max)}`,
    `smallest ${shown(fmt.distinct.find((x) => x > 0))}`,
    fmt.has_infinity ? "infinities" : "no infinity",
    fmt.nan_codes.length ? `${fmt.nan_codes.length} NaN code${fmt.nan_codes.length > 1 ? "s" : ""}` : "no NaN",
  ];
  if (!fmt.has_zero) parts.push("no zero");
  else if (fmt.signed && fmt.nan_codes.includes(fmt.sign_bit)) parts.push("no negative zero: its code is the NaN");
  return `${fmt.name}: ${parts.join("; ")}.`;
}

/** How a code's fields make its value. */
function formula(fmt, code) {
  const value = decode(code, fmt);
  if (fmt.kind === "integer") {
    const steps = 2 ** fmt.fraction_bits;
    return `${hexadecimal(code)} as an integer = ${fmt.fraction_bits ? `${shown(value * steps)}; ${shown(value * steps)} / ${steps} = ` : ""}${shown(value)}`;
  }
  const mark = (field, text) => `<span class="${field}">${text}</span>`;
  if (!Number.isFinite(value)) return `${hexadecimal(code)} is ${Number.isNaN(value) ? "a NaN" : shown(value)}`;
  const exponent = (code >> fmt.mantissa_bits) & ((1 << fmt.exponent_bits) - 1);
  const mantissa = code & ((1 << fmt.mantissa_bits) - 1);
  const subnormal = fmt.has_zero && exponent === 0;
  const power = subnormal
    ? `2<sup>1 − ${fmt.bias}</sup>`
    : `2<sup>${mark("exponent", exponent)} − ${fmt.bias}</sup>`;
  const significand = `(${subnormal ? 0 : 1} + ${mark("mantissa", mantissa)}/${1 << fmt.mantissa_bits})`;
  const signed = fmt.signed ? `(−1)<sup>${mark("sign", code & fmt.sign_bit ? 1 : 0)}</sup> × ` : "";
  return `${signed}${power}${fmt.mantissa_bits ? ` × ${significand}` : ""} = ${shown(value)}`;
}

/** One sentence on what has become of the number. */
function verdict({ fmt, x, code, refusal }, rounding, saturate) {
  if (refusal) return `No code: ${refusal}.`;
  const value = decode(code, fmt);
  if (Number.isNaN(x) || Number.isNaN(value)) {
    return Number.isNaN(x) ? `NaN becomes code ${hexadecimal(code)}.` : `${shown(x)} has no value here: it becomes NaN.`;
  }
  if (Object.is(x, value)) return `${shown(x)} is a value of ${fmt.name}: nothing is lost.`;
  const lowest = fmt.kind === "integer" ? fmt.min : -fmt.max; // without sign, NaN came before
  if (x > fmt.max || x < lowest) {
    const end = x > 0 ? "largest" : "lowest";
    const how = saturate && overflows(x, fmt, rounding) ? " (saturation)" : "";
    return `${shown(x)} is beyond the ${end} value: it becomes ${shown(value)}${how}.`;
  }
  if (value === 0 && x === 0) return `${shown(x)} becomes ${shown(value)}.`;
  if (value === 0) return `${shown(x)} is too small: it becomes zero (underflow).`;
  const low = fmt.grid?.findLastIndex((y) => y <= Math.abs(x)); // -1: below the smallest, without zero
  if (rounding === "stochastic" && low >= 0) {
    const up = fractionAbove(Math.abs(x), low, fmt);
    return `Away from zero with probability ${(100 * up).toPrecision(3)} %; this draw gave ${shown(value)}.`;
  }
  const { below, above } = neighbours(x, fmt);
  const tie = below !== undefined && above !== undefined
    && x - decode(below, fmt) === decode(above, fmt) - x && rounding in TIES;
  return tie
    ? `A tie: ${shown(x)} is as near to ${shown(decode(below, fmt))} as to ${shown(decode(above, fmt))}; ${TIES[rounding]}.`
    : `${shown(x)} becomes ${shown(value)}.`;
}

/** The number that a text is, as `shown` or a keyboard writes it; undefined if it is none. */
export function parsed(text) {
  const plain = text.replaceAll("−", "-").replace(/(∞|inf(inity)?)$/i, "Infinity");
  const number = Number(plain || NaN);
  return Number.isNaN(number) && !/^[+-]?nan$/i.test(plain) ? undefined : number;
}

/** A number in figures: all its digits, with a real minus sign and the sign of zero. */
export function shown(x) {
  if (x === undefined || Number.isNaN(x)) return x === undefined ? "none" : "NaN";
  if (Object.is(x, -0)) return "−0";
  return String(x).replace("Infinity", "∞").replace("e+", "e").replaceAll("-", "−");
}

function hexadecimal(code) {
  return `0x${code.toString(16).toUpperCase().padStart(2, "0")}`;
}

function binary(code, fmt) {
  return fieldsOf(fmt).map((field, i, all) => {
    const gap = i > 0 && all[i - 1] !== field ? " " : "";
    return gap + ((code >> (all.length - 1 - i)) & 1);
  }).join("");
}

async function start() {
  follow($("theme"));
  try {
    const tables = await readTables();
    showByte(tables.formats);
    showBlocks(tables);
    showResults(tables.results, $("results"));
    showProof(tables);
  } catch (error) {
    $("failure").hidden = false;
    $("failure").textContent = `The page could not start: ${error.message}. Open it through a web server: python -m http.server`;
    throw error;
  }
}

start();
