// Classify images with a folder for transformers.js, in Node, and print {"case": [{label: score} of each image]}.
//
//     node node.mjs FOLDER HUB REPOSITORY < images.json
//
// HUB is the address of a Hub that has the folder as REPOSITORY.

import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { pathToFileURL } from "node:url";

import { env, pipeline } from "@huggingface/transformers";

const [folder, hub, repository] = process.argv.slice(2);
const images = JSON.parse(readFileSync(0, "utf8"));
const { resizeLikePython } = await import(pathToFileURL(`${folder}/resize.mjs`));

async function classify(classifier) {
  const results = [];
  for (const image of images) {
    const classes = await classifier(image, { top_k: null });
    results.push(Object.fromEntries(classes.map(({ label, score }) => [label, score])));
  }
  return results;
}

const results = {};
for (const dtype of ["fp32", "q8"]) {
  const classifier = await pipeline("image-classification", folder, { dtype });
  results[`Node, ${dtype}, resized by transformers.js`] = await classify(classifier);
  results[`Node, ${dtype}`] = await classify(resizeLikePython(classifier));
}
env.remoteHost = hub;
env.cacheDir = mkdtempSync(join(tmpdir(), "web-")); // not the files of an earlier run
const classifier = await pipeline("image-classification", repository, { dtype: "q8" });
results["Node, q8, of a repository"] = await classify(resizeLikePython(classifier));
rmSync(env.cacheDir, { recursive: true });
console.log(JSON.stringify(results));
