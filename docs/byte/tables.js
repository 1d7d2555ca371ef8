// tables.json, read once: the formats by name, and all else that scripts/make_byte_page.py wrote.

import { prepared } from "./codec.js";

/** Complete the content of tables.json: its formats become a Map by name. */
export function completed(tables) {
  return { ...tables, formats: new Map(tables.formats.map((one) => [one.name, prepared(one)])) };
}

export async function readTables() {
  const response = await fetch("tables.json");
  if (!response.ok) throw new Error(`tables.json: the server answers ${response.status}`);
  return completed(await response.json());
}

/** A format's colour as CSS has it; black is the colour of the text, so that dark pages show it. */
export function colourOf(entry) {
  return entry.colour === "#000000" ? "var(--text)" : entry.colour;
}
