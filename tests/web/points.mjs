// Open the page of a folder for transformers.js in Chromium, give it an image, click into the picture of where the model
// samples, and print the points: [{stage, group, share: [x, y] of the sides, centre, points}].
//
//     node points.mjs ADDRESS CHROMIUM PICTURE < images.json

import { readFileSync } from "node:fs";

import puppeteer from "puppeteer-core";

const [address, executablePath, picture] = process.argv.slice(2);
const image = JSON.parse(readFileSync(0, "utf8"));
const timeout = 300_000;

const browser = await puppeteer.launch({ executablePath, args: ["--no-sandbox"], protocolTimeout: timeout });
const page = await browser.newPage();
await page.setViewport({ width: 760, height: 1000 });
page.on("pageerror", (error) => console.error(`error in the page: ${error}`));
await page.goto(address);
const isSettled = () => document.body.dataset.state !== "loading";
await page.waitForFunction(isSettled, { timeout });
await page.select("#precision", "fp32");
await page.waitForFunction(() => document.body.dataset.state === "loading", { timeout });
await page.waitForFunction(isSettled, { timeout });
const input = await page.$("#drop input");
await input.uploadFile(image);
await (await page.waitForSelector("article summary", { timeout })).click();
const canvas = await page.waitForSelector("article canvas", { timeout });

const results = [];
const CLICKS = [["1", "all", [0.3, 0.7]], ["3", "1", [0.9, 0.1]], ["2", "all", [0.62, 0.47]]]; // shares of the sides
for (const [stage, group, share] of CLICKS) {
  await page.select("select.stage", stage);
  await page.select("select.group", group);
  await canvas.scrollIntoView();
  const { x, y, width, height } = await canvas.boundingBox();
  await page.mouse.click(x + share[0] * width, y + share[1] * height);
  const shown = await page.$eval("article details div", (viewer) => viewer.points);
  results.push({ stage: Number(stage), group, share, ...shown });
  await page.screenshot({ path: picture });
}
await browser.close();
console.log(JSON.stringify(results));
