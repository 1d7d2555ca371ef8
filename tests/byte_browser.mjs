// Uses the page of docs/byte in Chromium as a person does, for test_byte_page.py.
//     node byte_browser.mjs PLAYWRIGHT CHROMIUM URL FILE [SCREENSHOTS]
// prints one JSON object: what was read at each step.

import { pathToFileURL } from "node:url";

const [playwright, executablePath, url, file, screenshots] = process.argv.slice(2);
const { chromium } = (await import(pathToFileURL(`${playwright}/index.mjs`).href)).default;
const browser = await chromium.launch({ executablePath, args: ["--no-sandbox"] });
const seen = { errors: [], requests: [], typed: [], overflow: {} };

/** How long anything may take, in milliseconds: the machine may have much else to do. */
const PATIENCE = 240_000;

async function opened(width, colorScheme) {
  const phone = width < 500 ? { hasTouch: true, isMobile: true } : {};
  const context = await browser.newContext({ viewport: { width, height: 900 }, colorScheme, ...phone });
  context.setDefaultTimeout(PATIENCE);
  const page = await context.newPage();
  page.on("pageerror", (error) => seen.errors.push(String(error)));
  page.on("request", (request) => seen.requests.push(request.url()));
  await page.goto(url);
  await page.waitForSelector("#bits button");
  return page;
}

const page = await opened(1280, "light");
const text = (id) => page.textContent(`#${id}`);
const reading = () => page.evaluate(() => ({
  format: document.getElementById("format").value,
  number: document.getElementById("number").value,
  ...Object.fromEntries(["code", "value", "verdict"].map((id) => [id, document.getElementById(id).textContent])),
}));

/** Type a number, all of it at once. */
async function type(number) {
  await page.fill("#number", number);
  await page.press("#number", "Enter");
}

// Every format and saturation, and every rounding of one format, with numbers typed. (What the
// codec behind the page makes of all numbers is byte_codec.mjs's.)
const formats = await page.$$eval("#format option", (options) => options.map((one) => one.value));
for (const format of formats) {
  await page.selectOption("#format", format);
  const others = ["nearest_away", "nearest_toward_zero", "toward_zero"];
  for (const rounding of format === "E4M3FN" ? [...others, "nearest"] : ["nearest"]) {
    await page.selectOption("#rounding", rounding);
    for (const saturate of [true, false]) {
      await page.setChecked("#saturate", saturate);
      for (const typed of saturate ? ["-3.3", "2.5", "1e9", "NaN"] : ["0.1", "−2e−3", "-0", "-1e9"]) {
        await type(typed);
        seen.typed.push({ rounding, saturate, typed, ...(await reading()) });
      }
    }
  }
}

// What is no number changes nothing, and is said.
await page.selectOption("#format", "E4M3FN");
await page.selectOption("#rounding", "nearest");
await page.setChecked("#saturate", true);
await type("0.75");
seen.mistyped = [];
for (const typed of ["1,5", "abc", ""]) {
  await type(typed);
  seen.mistyped.push({ ...(await reading()), invalid: await page.getAttribute("#number", "aria-invalid") });
}
await type("-inf");
seen.mistyped.push({ ...(await reading()), invalid: await page.getAttribute("#number", "aria-invalid") });

// The sentence beside the code, where saturation and rounding meet.
seen.verdicts = [];
for (const [format, rounding, typed] of [
  ["E4M3FN", "nearest", "450"],
  ["E4M3FN", "nearest", "465"],
  ["E4M3FN", "toward_zero", "1000"],
  ["INT8", "nearest", "-264"],
  ["UINT8", "nearest", "-5"],
  ["E8M0FNU", "stochastic", "0"],
]) {
  await page.selectOption("#format", format);
  await page.selectOption("#rounding", rounding);
  await type(typed);
  seen.verdicts.push((await reading()).verdict);
}

// The handle is dragged.
await page.selectOption("#format", "E4M3FN");
await page.selectOption("#rounding", "nearest");
await page.setChecked("#saturate", true);
await type("1");
seen.dragged = [];
const line = await (await page.$("#line")).boundingBox();
const handle = await (await page.$("#line .handle")).boundingBox();
await page.mouse.move(handle.x + handle.width / 2, handle.y + handle.height / 2);
await page.mouse.down();
for (const share of [0.55, 0.7, 0.83, 0.2]) {
  await page.mouse.move(line.x + share * line.width, handle.y + 5, { steps: 4 });
  seen.dragged.push(await reading());
}
await page.mouse.up();
await page.mouse.move(line.x + 0.5 * line.width, handle.y);
seen.released = await reading();

// Every bit is clicked, from code 0.
await type("0");
seen.clicked = [];
for (let i = 0; i < 8; i += 1) {
  await page.click(`#bits button:nth-child(${i + 1})`);
  seen.clicked.push(await reading());
}

// Keys on the line and on the bits; the tab order.
await type("1");
await page.focus("#line");
seen.keyed = [];
for (const key of ["ArrowRight", "ArrowUp", "ArrowLeft", "PageUp", "End", "ArrowRight", "Home", "PageDown"]) {
  await page.keyboard.press(key);
  seen.keyed.push({ key, ...(await reading()), aria: await page.getAttribute("#line", "aria-valuetext") });
}
seen.shortcut = [await reading()];
await page.keyboard.press("Control+Home");
seen.shortcut.push(await reading());
await page.focus("#bits button");
await page.keyboard.press("ArrowUp");
seen.keyed.push({ key: "bits ArrowUp", ...(await reading()) });
await page.keyboard.press("Space");
seen.keyed.push({ key: "bits Space", ...(await reading()) });
await page.focus("#theme");
seen.tabbed = [];
for (let i = 0; i < 24; i += 1) {
  seen.tabbed.push(await page.evaluate(() => document.activeElement.id || document.activeElement.className));
  await page.keyboard.press("Tab");
}

// The outlier: by keys, then by dragging its bar.
const block = async () => ({
  outlier: Number(await page.inputValue("#outlier")),
  place: Number(await page.inputValue("#place")),
  count: Number(await page.inputValue("#count")),
  names: await page.$$eval(".blocks-name", (names) => names.map((name) => name.textContent)),
  format: await page.inputValue("#block-format"),
  rule: await page.inputValue("#block-rule"),
});
await page.focus("#outlier");
await page.keyboard.press("End");
seen.blocks = [await block()];
await page.keyboard.press("Home");
await page.keyboard.press("PageUp");
seen.blocks.push(await block());
await page.selectOption("#count", "16");
await page.fill("#place", "3");
seen.blocks.push(await block());
await page.$eval(".bars", (element) => element.scrollIntoView());
const bar = await (await page.$(".bars .outlier .given")).boundingBox();
await page.mouse.move(bar.x + bar.width / 2, bar.y + bar.height / 2);
await page.mouse.down();
await page.mouse.move(bar.x + bar.width / 2, bar.y + bar.height / 2 - 60, { steps: 5 });
await page.mouse.up();
seen.blocks.push(await block());

// Every block format by every rule, and the bytes that are shown.
const texts = (selector) => page.$$eval(selector, (found) => found.map((one) => one.textContent));
seen.bytes = [];
await page.$eval("#outlier", (range) => { range.value = 3.75; });
for (const count of ["64", "16"]) {
  await page.selectOption("#count", count);
  for (const format of await page.$$eval("#block-format option", (all) => all.map((one) => one.value))) {
    await page.selectOption("#block-format", format);
    const rules = await page.$$eval("#block-rule option", (all) => all.map((one) => one.value));
    for (const rule of count === "64" ? rules : rules.slice(0, 1)) {
      await page.selectOption("#block-rule", rule);
      seen.bytes.push({
        ...(await block()),
        codes: await page.$$eval(".code", (cells) => cells.map((cell) => Number(cell.dataset.code))),
        bits: await page.$$eval(".code", (cells) => cells.map((cell) => {
          return [...cell.childNodes].slice(0, -1).map((node) => node.textContent).join("");
        })),
        scaleBytes: await texts(".scale-byte"),
        packed: await texts(".packed"),
        tensor: await page.$$eval(".tensor-scale", (found) => found.map((one) => one.dataset.value)),
      });
    }
  }
}

// The theme: the system's, until one is chosen, and the system's again.
const theme = () => page.evaluate(() => new Promise((resolve) => {
  // The media query's event comes with a frame.
  requestAnimationFrame(() => requestAnimationFrame(() => resolve(document.documentElement.dataset.theme)));
}));
seen.themes = [await theme()];
await page.emulateMedia({ colorScheme: "dark" });
seen.themes.push(await theme());
await page.selectOption("#theme", "light");
seen.themes.push(await theme());
await page.selectOption("#theme", "auto");
seen.themes.push(await theme());
await page.emulateMedia({ colorScheme: "light" });
seen.themes.push(await theme());

// The proof.
await page.click("#prove");
await page.waitForSelector("#status.equal-text, #status.different-text", { timeout: PATIENCE });
seen.proof = {
  status: await text("status"),
  equal: await page.$$eval(".squares .equal", (squares) => squares.length),
  all: await page.$$eval(".squares span", (squares) => squares.length),
  sentences: await page.$$eval("#sentences tbody tr", (rows) => rows.map((row) => [...row.cells].map((cell) => cell.textContent))),
};
await page.fill("#sentence", "a dull and endless film");
await page.click("#classify");
await page.waitForSelector("#classify:not(:disabled)");
seen.other = await page.$$eval("#sentences tbody tr", (rows) => rows.map((row) => [...row.cells].map((cell) => cell.textContent)));

await page.fill("#sentence", "   ");
await page.click("#classify");
seen.blank = await page.$eval("#sentence", (box) => box.validationMessage);

// Without a connection, and without a server.
{
  const context = await browser.newContext();
  context.setDefaultTimeout(PATIENCE);
  const alone = await context.newPage();
  await context.route((to) => to.pathname.includes("/pyodide/"), (route) => {
    return route.request().url().startsWith(new URL(url).origin) ? route.fulfill({ status: 404 }) : route.abort();
  });
  // The tables come late, and the click waits for them.
  await context.route("**/tables.json", (route) => setTimeout(() => route.continue(), 1_000));
  await alone.goto(url);
  seen.early = await alone.isDisabled("#prove");
  await alone.click("#prove");
  await alone.waitForSelector("#status.different-text");
  seen.unconnected = await alone.textContent("#status");
  await alone.goto(file);
  await alone.waitForSelector("#failure:not([hidden])");
  seen.opened = await alone.textContent("#failure");
  await context.close();
}

/** Drag the outlier's bar, then the page beside it, by a finger. */
async function touched(phone) {
  const session = await phone.context().newCDPSession(phone);
  const send = (type, x, y) => session.send("Input.dispatchTouchEvent", { type, touchPoints: type === "touchEnd" ? [] : [{ x, y }] });
  const outcomes = [];
  await phone.$eval(".bars", (element) => element.scrollIntoView({ block: "center" }));
  for (const selector of [".bars .outlier .given", ".bars .zero + g .given"]) {
    const { x, y } = await (await phone.$(selector)).boundingBox();
    const before = await phone.evaluate(() => scrollY);
    await send("touchStart", x, y);
    for (let i = 1; i <= 6; i += 1) {
      await send("touchMove", x, y - 12 * i);
      await phone.waitForTimeout(20);
    }
    await send("touchEnd");
    const scrolled = (await phone.evaluate(() => scrollY)) - before;
    outcomes.push({ outlier: Number(await phone.inputValue("#outlier")), scrolled });
  }
  return outcomes;
}

// Widths and grounds.
for (const width of [1280, 390]) {
  for (const scheme of ["light", "dark"]) {
    const other = width === 1280 && scheme === "light" ? page : await opened(width, scheme);
    await other.setViewportSize({ width, height: 900 });
    seen.overflow[`${width} ${scheme}`] = await other.evaluate(() => document.documentElement.scrollWidth - innerWidth);
    if (width < 500) (seen.touched ??= []).push(await touched(other));
    if (screenshots) await other.screenshot({ path: `${screenshots}/${width}-${scheme}.png`, fullPage: true });
  }
}
await browser.close();
console.log(JSON.stringify(seen));
