// Open the page of a folder for transformers.js in Chromium, give it images, and print what it shows: {"case": [{label:
// score} of the best five classes of each image]}. Some of the images are dropped, for a picture of the page.
//
//     node chromium.mjs ADDRESS CHROMIUM PICTURE < images.json

import { readFileSync } from "node:fs";

import puppeteer from "puppeteer-core";

const [address, executablePath, picture] = process.argv.slice(2);
const { images, dropped } = JSON.parse(readFileSync(0, "utf8"));
// Chromium's own WebGPU device, which needs no GPU and is slow.
const SOFTWARE_GPU = ["--enable-unsafe-webgpu", "--use-webgpu-adapter=swiftshader", "--enable-features=Vulkan"];
const FEW = 10;
const timeout = 300_000;

async function open(...args) {
  const browser = await puppeteer.launch({ executablePath, args: ["--no-sandbox", ...args], protocolTimeout: timeout });
  const page = await browser.newPage();
  await page.setViewport({ width: 760, height: 865 });
  page.on("pageerror", (error) => console.error(`error in the page: ${error}`));
  await page.goto(address);
  return { browser, page };
}

// Choose a file of the model; return what the page says when it is ready.
async function choose(page, dtype) {
  await page.waitForFunction(() => document.body.dataset.state !== "loading", { timeout });
  if ((await page.$eval("#precision", (select) => select.value)) !== dtype) {
    await page.select("#precision", dtype);
    await page.waitForFunction(() => document.body.dataset.state === "loading", { timeout });
    await page.waitForFunction(() => document.body.dataset.state !== "loading", { timeout });
  }
  return page.$eval("#status", (status) => status.textContent);
}

// Return what the page shows for each file, in the order of the files.
async function readResults(page, count) {
  const isDone = (count) => document.querySelectorAll("article ol:not(:empty), article .wrong").length === count;
  await page.waitForFunction(isDone, { timeout }, count);
  const results = await page.$$eval("article", (cards) =>
    cards.map((card) => {
      const rows = [...card.querySelectorAll("li")];
      return Object.fromEntries(rows.map((row) => [row.querySelector("span").textContent, Number(row.dataset.score)]));
    }),
  );
  await page.$eval("#results", (section) => section.replaceChildren());
  return results.reverse(); // the newest is above
}

async function classify(page, files) {
  const input = await page.$("#drop input");
  await input.uploadFile(...files);
  return readResults(page, files.length);
}

async function drop(page, files) {
  const session = await page.createCDPSession();
  const { x, y, width, height } = await (await page.$("#drop")).boundingBox();
  for (const type of ["dragEnter", "dragOver", "drop"]) {
    const data = { items: [], files, dragOperationsMask: 1 };
    await session.send("Input.dispatchDragEvent", { type, x: x + width / 2, y: y + height / 2, data });
  }
  const isDone = (count) => document.querySelectorAll("article ol:not(:empty)").length === count;
  await page.waitForFunction(isDone, { timeout }, files.length);
  await page.mouse.move(0, 0);
  await page.screenshot({ path: picture });
  return readResults(page, files.length);
}

const results = {};
{
  const { browser, page } = await open();
  for (const dtype of ["q8", "fp32"]) {
    const ready = await choose(page, dtype);
    results[`Chromium, ${dtype} (${ready})`] = await classify(page, images);
  }
  results["Chromium, fp32, dropped"] = await drop(page, dropped);
  await browser.close();
}
{
  const { browser, page } = await open(...SOFTWARE_GPU);
  for (const dtype of ["fp32", "q8"]) {
    const ready = await choose(page, dtype);
    results[`Chromium, ${dtype} (${ready}), the first ${FEW}`] = await classify(page, images.slice(0, FEW));
  }
  await browser.close();
}
console.log(JSON.stringify(results));
