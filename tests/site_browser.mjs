// Opens every page of the built site in Chromium, for test_docs.py.
//     node site_browser.mjs PLAYWRIGHT CHROMIUM SITE PAGE...
// prints one JSON object: errors, and by width what does not fit.

import { pathToFileURL } from "node:url";

const [playwright, executablePath, site, ...names] = process.argv.slice(2);
const { chromium } = (await import(pathToFileURL(`${playwright}/index.mjs`).href)).default;
const browser = await chromium.launch({ executablePath, args: ["--no-sandbox"] });
const seen = { errors: [], wide: {}, themes: [] };

/** How long anything may take, in milliseconds: the machine may have much else to do. */
const PATIENCE = 240_000;

/** By how many pixels the page, its text and (with all details open) its tables are too wide. */
function tooWide() {
  for (const details of document.querySelectorAll("details")) details.open = true;
  const excess = (element) => element.scrollWidth - element.clientWidth;
  const boxes = [...document.querySelectorAll(".pst-scrollable-table-container")];
  return {
    page: excess(document.scrollingElement),
    text: excess(document.querySelector(".bd-article-container")),
    tables: Math.max(0, ...boxes.map(excess)),
    images: [...document.images].filter((image) => image.complete && !image.naturalWidth).length,
  };
}

for (const width of [1280, 390]) {
  const phone = width < 500 ? { hasTouch: true, isMobile: true } : {};
  const page = await browser.newPage({ viewport: { width, height: 900 }, ...phone });
  page.setDefaultTimeout(PATIENCE);
  page.on("pageerror", (error) => seen.errors.push(String(error)));
  page.on("console", (message) => message.type() === "error" && seen.errors.push(message.text()));
  seen.wide[width] = {};
  for (const name of names) {
    await page.goto(`${pathToFileURL(site).href}/${name}`);
    seen.wide[width][name] = await page.evaluate(tooWide);
  }
}

// The theme: the system's and its changes, until the reader chooses; kept on other pages.
const page = await browser.newPage({ colorScheme: "light" });
page.setDefaultTimeout(PATIENCE);
const theme = () => page.evaluate(() => new Promise((resolve) => {
  requestAnimationFrame(() => requestAnimationFrame(() => resolve(document.documentElement.dataset.theme)));
}));
const choose = async (name) => {
  await page.click(".theme-switch-button >> visible=true");
  await page.click(`button.dropdown-item:has-text("${name}") >> visible=true`);
};
await page.goto(`${pathToFileURL(site).href}/index.html`);
seen.themes.push(await theme());
await page.emulateMedia({ colorScheme: "dark" });
seen.themes.push(await theme());
await choose("Light");
await page.goto(`${pathToFileURL(site).href}/faq.html`);
seen.themes.push(await theme());
await choose("System");
seen.themes.push(await theme());
await page.emulateMedia({ colorScheme: "light" });
seen.themes.push(await theme());
await browser.close();
console.log(JSON.stringify(seen));
