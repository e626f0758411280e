// Use the application in Chromium as a person does; print what it shows as JSON.
//
//     node app.mjs ADDRESS CHROMIUM PICTURE < {"image": path, "wrong": [paths]}

import { readFileSync } from "node:fs";

import puppeteer from "puppeteer-core";

const [address, executablePath, picture] = process.argv.slice(2);
const { image, wrong } = JSON.parse(readFileSync(0, "utf8"));
const timeout = 120_000;
const often = { polling: 200 }; // milliseconds; a page in the background draws no frames to wait for

const browser = await puppeteer.launch({ executablePath, args: ["--no-sandbox"], protocolTimeout: timeout });

async function open() {
  const page = await browser.newPage();
  page.setDefaultTimeout(timeout);
  await page.setViewport({ width: 1280, height: 860 });
  page.on("pageerror", (error) => console.error(`error in the page: ${error}`));
  await page.goto(address);
  await page.waitForSelector("input[type=file]");
  return page;
}

async function upload(page, path) {
  const clear = await page.$('button[aria-label="Clear"], button[title="Clear"]');
  if (clear) {
    await clear.evaluate((button) => button.click()); // a message may lie over it
  }
  await (await page.waitForSelector("input[type=file]")).uploadFile(path);
}

// The address of the picture in the block with a label, once it is there and not `before`.
async function pictureOf(page, label, before = "") {
  const found = await page.waitForFunction(
    (label, before) => {
      const blocks = [...document.querySelectorAll(".block")].filter((block) =>
        [...block.querySelectorAll("label")].some((text) => text.textContent.trim() === label),
      );
      const source = blocks.map((block) => block.querySelector("img")?.src).find(Boolean);
      return source && source !== before ? source : false;
    },
    often,
    label,
    before,
  );
  return found.jsonValue();
}

async function classOf(page, before = "") {
  const found = await page.waitForFunction(
    (before) => {
      const text = document.querySelector('[data-testid="label-output-value"]')?.textContent.trim();
      return text && text !== before ? text : false;
    },
    often,
    before,
  );
  return found.jsonValue();
}

const results = {};
const [first, second] = [await open(), await open()]; // two users at once
await Promise.all([upload(first, image), upload(second, image)]);
[results.first, results.second] = await Promise.all([classOf(first), classOf(second)]);
await second.close(); // a connection that ends

await first.evaluate(() => [...document.querySelectorAll('[role="tab"]')].find((tab) => tab.textContent.includes("Sampling")).click());
const view = await pictureOf(first, "What the model sees");
const box = await (await first.waitForSelector(`img[src="${view}"]`, { visible: true })).boundingBox();
await first.mouse.click(box.x + 0.25 * box.width, box.y + 0.5 * box.height);
const points = await pictureOf(first, "Sampling points");
results.x = await first.$$eval("label", (labels) => {
  const label = labels.find((label) => label.textContent.trim() === "x");
  return Number(label.querySelector("input").value);
});
const slider = await first.$('input[type="range"][aria-label*="Stage"]');
await slider.focus();
await first.keyboard.press("ArrowLeft");
const moved = await pictureOf(first, "Sampling points", points);
results.movedIsAnother = moved !== points;
results.downloaded = await first.evaluate(async (source) => (await (await fetch(source)).arrayBuffer()).byteLength, moved);
await first.screenshot({ path: picture });

results.messages = [];
for (const path of wrong) {
  await upload(first, path);
  const message = await first.waitForFunction(
    (known) => {
      const texts = [...document.querySelectorAll('[data-testid="toast-body"], .toast-body')].map((toast) => toast.textContent);
      return texts.find((text) => !known.includes(text)) || false;
    },
    often,
    results.messages,
  );
  results.messages.push(await message.jsonValue());
}
await upload(first, image); // and it still works
results.afterwards = await classOf(first);

const gone = await open(); // a connection that closes while its image is uploaded and computed
await upload(gone, image);
await gone.close();
const next = await open();
await upload(next, image);
results.next = await classOf(next);
await browser.close();
console.log(JSON.stringify(results));
