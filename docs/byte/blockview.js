// The row with an outlier as bars, its errors in figures, and the results at base size.

import { quantizeBlocks, quantizeRow, sqnr, withOutlier } from "./block.js";
import { showBytes } from "./bytesview.js";
import { colourOf } from "./tables.js";

const $ = (id) => document.getElementById(id);
const HEIGHT = 130;

export function showBlocks({ row_formats: rowFormats, block_formats: blockFormats, rules, row, formats }) {
  const figures = [...rowFormats, blockFormats[0]].map(() => figure());
  $("blocks").replaceChildren(...figures.flatMap(({ name, svg }) => [name, svg]));
  for (const { name } of blockFormats) $("block-format").append(new Option(name, name));
  $("block-format").addEventListener("change", () => {
    const before = $("block-rule").value;
    const { rule, rules: names } = chosen();
    $("block-rule").replaceChildren(...names.map((name) => new Option(name, name)));
    $("block-rule").value = names.includes(before) ? before : rule;
    show();
  });
  $("block-format").value = "MXFP4";
  for (const id of ["outlier", "count", "place", "block-rule"]) $(id).addEventListener("input", show);
  for (const { svg } of figures) {
    let from = null; // where the outlier is held: the pointer's height, and the exponent there
    svg.addEventListener("pointerdown", (event) => {
      if (!event.target.closest(".outlier")) return;
      svg.setPointerCapture(event.pointerId);
      from = { y: event.clientY, exponent: Number($("outlier").value) };
    });
    svg.addEventListener("touchstart", (event) => { // else the page would scroll
      if (event.target.closest(".outlier")) event.preventDefault();
    }, { passive: false });
    svg.addEventListener("pointermove", (event) => {
      if (from === null) return;
      $("outlier").value = from.exponent + (from.y - event.clientY) / 12; // 12 pixels double it
      show();
    });
    svg.addEventListener("lostpointercapture", () => { from = null; });
    new ResizeObserver(() => show()).observe(svg);
  }
  $("block-format").dispatchEvent(new Event("change"));

  function chosen() {
    return blockFormats.find(({ name }) => name === $("block-format").value);
  }

  function show() {
    const count = Number($("count").value);
    $("place").max = count;
    const place = Math.min(Math.max(Math.round(Number($("place").value)) || 1, 1), count) - 1;
    const exponent = Number($("outlier").value);
    const numbers = withOutlier(row.slice(0, count), place, 2 ** exponent);
    const size = `2^${exponent} = ${Number((2 ** exponent).toPrecision(4))}`;
    $("outlier-value").textContent = size;
    $("outlier").setAttribute("aria-valuetext", size);
    const [blockFormat, rule] = [chosen(), $("block-rule").value];
    const inBlocks = quantizeBlocks(numbers, blockFormat, rule, formats);
    const shown = [...rowFormats, blockFormat];
    const found = [...rowFormats.map((one) => quantizeRow(numbers, one, formats)), inBlocks];
    found.forEach((result, i) => draw(figures[i], shown[i], numbers, place, result));
    showTable(shown, numbers, place, found);
    $("block-verdict").textContent = verdict(shown, numbers, place, found);
    showBytes($("block-bytes"), numbers, blockFormat, formats, inBlocks);
    $("rule-description").textContent = `Rule ${rule}: ${rules[blockFormat.scale_format][rule]}.`;
  }
}

function figure() {
  const name = document.createElement("p");
  name.className = "blocks-name";
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  svg.classList.add("bars");
  svg.setAttribute("role", "img");
  return { name, svg };
}

/** Bars of the numbers, on a scale that the outlier may leave, and a stroke at each value. */
function draw({ name, svg }, blockFormat, numbers, place, { values, errors, scales }) {
  for (const part of [name, svg]) part.style.setProperty("--format", colourOf(blockFormat));
  const width = svg.clientWidth;
  if (!width) return;
  const others = numbers.filter((_, i) => i !== place);
  const most = 1.25 * Math.max(...others.map(Math.abs));
  const step = width / numbers.length;
  const across = (i) => i * step + step / 2;
  const up = (x) => HEIGHT / 2 - Math.min(Math.max(x / most, -1), 1) * (HEIGHT / 2 - 4);
  const bars = numbers.map((x, i) => {
    const [top, bottom] = [Math.min(up(x), up(0)), Math.max(up(x), up(0))];
    const bar = `<rect class="given" x="${across(i) - 0.36 * step}" width="${0.72 * step}" y="${top}" height="${Math.max(bottom - top, 1)}"/>`;
    const value = `<line class="value" x1="${across(i) - 0.42 * step}" x2="${across(i) + 0.42 * step}" y1="${up(values[i])}" y2="${up(values[i])}"/>`;
    const title = `<title>${x} becomes ${values[i]}, error ${errors[i]}</title>`;
    if (i !== place) return `<g>${title}${bar}${value}</g>`;
    const beyond = Math.abs(x) > most ? beyondMark(across(i), x > 0) : "";
    const grip = `<rect class="grip" x="${across(i) - 16}" y="0" width="32" height="${HEIGHT}"/>`; // for fingers
    return `<g class="outlier">${title}${bar}${value}${beyond}${grip}</g>`;
  });
  svg.setAttribute("viewBox", `0 0 ${width} ${HEIGHT}`);
  bars.push(...bars.splice(place, 1)); // the outlier's grip is above its neighbours
  const edges = scales.map((_, i) => i * (blockFormat.block ?? 0) * step).slice(1);
  const lines = edges.map((x) => `<line class="edge" x1="${x}" x2="${x}" y1="0" y2="${HEIGHT}"/>`);
  lines.push(`<line class="zero" x1="0" x2="${width}" y1="${HEIGHT / 2}" y2="${HEIGHT / 2}"/>`);
  svg.innerHTML = `<g aria-hidden="true">${lines.join("")}${bars.join("")}</g>`; // the label says it in a sentence
  const ratio = decibels(numbers, errors, place);
  svg.setAttribute("aria-label", `${blockFormat.name}: ${numbers.length} numbers; SQNR of the others ${ratio.others}`);
  name.innerHTML = `<b>${blockFormat.name}</b> <span>scale${scales.length > 1 ? "s" : ""} ${scales.map((scale) => Number(scale.toPrecision(4))).join(", ")}</span>
    <span>SQNR ${ratio.all}</span> <span>SQNR of the others ${ratio.others}</span>
    <span>${lost(numbers, values, place)} of ${numbers.length - 1} others become 0</span>`;
}

/** An arrow head at the end of a bar that is longer than the picture. */
function beyondMark(x, upwards) {
  const [tip, base] = upwards ? [6, 15] : [HEIGHT - 6, HEIGHT - 15];
  return `<path class="beyond" d="M${x} ${tip} L${x - 6} ${base} H${x + 6} Z"/>`;
}

function decibels(numbers, errors, place) {
  const others = (list) => list.filter((_, i) => i !== place);
  const text = (value) => (value === Infinity ? "∞" : `${value.toFixed(1)} dB`);
  return { all: text(sqnr(numbers, errors)), others: text(sqnr(others(numbers), others(errors))) };
}

function lost(numbers, values, place) {
  return values.filter((value, i) => i !== place && value === 0 && numbers[i] !== 0).length;
}

function verdict(blockFormats, numbers, place, found) {
  const parts = blockFormats.map(({ name }, i) => `${name} keeps the other numbers at ${decibels(numbers, found[i].errors, place).others}`);
  return `${parts.join("; ")}.`;
}

/** Each number, and its value and relative error by each format. */
function showTable(blockFormats, numbers, place, found) {
  const head = blockFormats.map(({ name }) => `<th scope="col">${name}</th><th scope="col">error</th>`).join("");
  const rows = numbers.map((x, i) => {
    const cells = found.map(({ values, errors }) => `<td>${Number(values[i].toPrecision(4))}</td><td>${percent(errors[i], x)}</td>`);
    const name = i === place ? `<b>${i + 1}, the outlier</b>` : i + 1;
    return `<tr><td>${name}</td><td>${Number(x.toPrecision(5))}</td>${cells.join("")}</tr>`;
  });
  $("block-table").innerHTML = `<thead><tr><th scope="col">place</th><th scope="col">number</th>${head}</tr></thead><tbody>${rows.join("")}</tbody>`;
}

function percent(error, x) {
  return x === 0 ? "" : `${((100 * Math.abs(error)) / Math.abs(x)).toFixed(1)} %`;
}

/** A row per task, a column per recipe: the score in percent, and the flips. */
export function showResults(results, table) {
  const recipes = [...new Set(results.flatMap((result) => Object.keys(result.recipes)))];
  const head = recipes.map((name) => `<th scope="col">${name}</th>`).join("");
  const rows = results.map(({ task, metric, examples, recipes: scores }) => {
    const cells = recipes.map((name) => {
      const found = scores[name];
      if (!found) return "<td>not run</td>";
      return `<td>${(100 * found.score).toFixed(1)}<small>${name === "FP32" ? "" : found.flips}</small></td>`;
    });
    return `<tr><td>${task}<small>${metric.replaceAll("_", " ")}, ${examples}</small></td>${cells.join("")}</tr>`;
  });
  table.innerHTML = `<thead><tr><th scope="col">task</th>${head}</tr></thead><tbody>${rows.join("")}</tbody>`;
}
