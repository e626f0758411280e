# SPDX-License-Identifier: MIT
"""Run a folder for transformers.js in Node and in Chromium, and the application; compare the results with Python's.

The model is the demo's, the images are its held-out digits and two photos. Everything is written to build/web.
"""

import contextlib
import functools
import http.server
import json
import re
import shutil
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_sample_images
from support.golden_data import load_module
from support.loopback_hub import LoopbackHub
from support.paths import ROOT
from transformers import AutoImageProcessor, AutoModelForImageClassification, pipeline

import hf_internimage
from hf_internimage import app
from hf_internimage.app.viewer import Viewer
from hf_internimage.visualize import sampling_points

BUILD, HERE = ROOT / "build" / "web", Path(__file__).parent
PUPPETEER = "puppeteer-core@24.43.1"
CHROMIUM = ("chromium", "chromium-browser", "google-chrome")
FLOAT_TOLERANCE, INT8_TOLERANCE = 1e-3, 0.05  # of scores
FEWEST_SAME_INT8 = 0.99
POINT_TOLERANCE = 1e-5  # pixels


def main():
    tools = {name: shutil.which(name) for name in ("node", "npm", *CHROMIUM)}
    chromium = next((tools[name] for name in CHROMIUM if tools[name]), None)
    if not (tools["node"] and tools["npm"] and chromium):
        return "make check-web needs node, npm and Chromium: apt-get install nodejs npm chromium"
    BUILD.mkdir(parents=True, exist_ok=True)
    demo = load_module(ROOT / "scripts" / "demo.py")
    if not (BUILD / "demo" / "model").exists():
        demo.main(["--output-dir", str(BUILD / "demo")])
    folder = BUILD / "page"
    shutil.rmtree(folder, ignore_errors=True)
    print(hf_internimage.export(str(BUILD / "demo" / "model"), folder, target="web", with_sampling_points=True))
    install(folder)
    digits = demo.load_data(0)["test"]
    images = save_images(digits["image"])
    expected = python_scores(images)
    doubtful = sorted(range(len(digits)), key=lambda index: max(expected[index].values()))[:2]
    check_readme(folder, images[0], best(expected[0]))
    results = node_results(folder, images)
    results |= chromium_results(folder, chromium, images, [images[index] for index in doubtful])
    fine = []
    for case, got in results.items():
        python = [expected[index] for index in doubtful] if "dropped" in case else expected
        fine.append(report(case, got, python))
        if len(got) >= len(digits):
            right = sum(best(scores) == str(label) for scores, label in zip(got, digits["label"], strict=False))
            print(f"    {right} of {len(digits)} held-out digits are right")
    print(f"picture of the page: {BUILD / 'page.png'}")
    fine.append(check_points(folder, chromium, images[0]))
    fine.append(check_app(chromium, images[0], best(expected[0])))
    return 0 if all(fine) else "Some results differ from Python's."


def install(folder):
    """Install transformers.js in the version of the page, and put it beside the page as README.md says."""
    page = folder / "index.html"
    html = page.read_text("utf-8")
    address, package = re.search(r'"(https://[^"]+/npm/(@huggingface/transformers@[\d.]+)/[^"]+)"', html).groups()
    if not (BUILD / "node_modules").exists():
        command = ["npm", "install", "--prefix", str(BUILD), "--ignore-scripts", "--no-audit", "--no-fund"]
        subprocess.run([*command, package, PUPPETEER], check=True)
    (folder / "vendor").mkdir()
    modules = BUILD / "node_modules"
    runtime = (modules / "onnxruntime-web" / "dist").glob("ort-wasm-simd-threaded.asyncify.*")
    for file in (modules / "@huggingface" / "transformers" / "dist" / "transformers.min.js", *runtime):
        shutil.copy(file, folder / "vendor")
    page.write_text(html.replace(address, "./vendor/transformers.min.js"), "utf-8")


def save_images(digits):
    """Write the digits, and two photos as PNG and JPEG; return the names of the files."""
    images = {f"digit_{number:03}.png": image for number, image in enumerate(digits)}
    for number, photo in enumerate(load_sample_images().images):
        images[f"photo_{number}.png"] = images[f"photo_{number}.jpg"] = Image.fromarray(np.ascontiguousarray(photo))
    (BUILD / "images").mkdir(exist_ok=True)
    for name, image in images.items():
        image.save(BUILD / "images" / name)
    return [str(BUILD / "images" / name) for name in images]


def python_scores(images):
    """Return {label: score} of each image."""
    model = BUILD / "demo" / "model"
    classify = pipeline(
        "image-classification",
        model=AutoModelForImageClassification.from_pretrained(model),
        image_processor=AutoImageProcessor.from_pretrained(model, backend="pil"),
        device="cpu",
    )
    results = classify(images, top_k=classify.model.config.num_labels)
    return [{entry["label"]: entry["score"] for entry in result} for result in results]


def node(script, *arguments, input):
    """Run a script beside the installed packages, where Node looks for them; return the JSON that it prints."""
    copy = shutil.copy(HERE / script, BUILD)
    done = subprocess.run(
        ["node", copy, *arguments], input=json.dumps(input), text=True, stdout=subprocess.PIPE, check=True
    )
    return json.loads(done.stdout.splitlines()[-1])


def node_results(folder, images):
    """Return what the folder gives in Node, and what it gives as a repository of a Hub."""
    files = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with tempfile.TemporaryDirectory() as blobs, LoopbackHub(blobs) as hub:
        hub.add("tester/digits", files)
        return node("node.mjs", str(folder), hub.url, "tester/digits", input=images)


def check_readme(folder, image, label):
    """Run the lines for Node of README.md, on an image of that label."""
    (code,) = re.findall(r"```js\n(.*?)```", (folder / "README.md").read_text("utf-8"), re.DOTALL)
    script = folder / "readme.mjs"
    script.write_text(code.replace("image.jpg", image), "utf-8")
    done = subprocess.run(["node", script.name], cwd=folder, stdout=subprocess.PIPE, text=True, check=True)
    script.unlink()
    first = re.search(r"label: '(.*?)'", done.stdout)
    if not first or first[1] != label:
        raise SystemExit(f"the lines for Node of README.md print {done.stdout!r}, expected the label {label} first")


def check_points(folder, chromium, image):
    """Click into the page's picture of where the model samples; compare the points with Python's."""
    with served(folder) as address:
        results = node("points.mjs", address, chromium, str(BUILD / "points.png"), input=image)
    source = BUILD / "demo" / "model"
    model = AutoModelForImageClassification.from_pretrained(source).eval()
    processor = AutoImageProcessor.from_pretrained(source, backend="pil")
    pixels = processor(Image.open(image).convert("RGB"), return_tensors="pt").pixel_values
    height, width = pixels.shape[2:]
    greatest = 0.0
    for result in results:
        at = tuple(
            min(max(part * side - 0.5, 0), side - 1)
            for part, side in zip(result["share"], (width, height), strict=True)
        )
        expected = sampling_points(model, pixels, stage=result["stage"], at=at)
        groups = slice(None) if result["group"] == "all" else slice(int(result["group"]), int(result["group"]) + 1)
        positions = np.array([(point["x"], point["y"]) for point in result["points"]])
        weights = np.array([point["weight"] for point in result["points"]])
        expected_positions = expected.positions[groups].reshape(-1, 2)
        if positions.shape != expected_positions.shape:
            raise SystemExit(f"the page shows {len(positions)} points, Python has {len(expected_positions)}")
        greatest = max(greatest, abs(positions - expected_positions).max())
        greatest = max(greatest, abs(weights - expected.weights[groups].ravel()).max())
    print(f"points in Chromium: at most {greatest:.1e} pixels from Python's; picture: {BUILD / 'points.png'}")
    return greatest <= POINT_TOLERANCE


@contextlib.contextmanager
def served(folder):
    """Serve a folder; yield its address."""
    handler = functools.partial(QuietHandler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


def chromium_results(folder, chromium, images, dropped):
    """Serve the folder, and return what its page shows."""
    with served(folder) as address:
        picture = str(BUILD / "page.png")
        return node("chromium.mjs", address, chromium, picture, input={"images": images, "dropped": dropped})


def check_app(chromium, image, label):
    """Run the application in Chromium; return whether it shows what it should."""
    broken = BUILD / "broken.jpg"
    broken.write_bytes(b"no image")
    huge = BUILD / "huge.png"
    Image.new("1", (10_000, 6_000)).save(huge)
    pages = app.build([Viewer(str(BUILD / "demo" / "model"))])
    _, address, _ = pages.queue().launch(server_name="127.0.0.1", prevent_thread_lock=True, quiet=True)
    try:
        files = {"image": image, "wrong": [str(broken), str(huge)]}
        shown = node("app.mjs", address, chromium, str(BUILD / "app.png"), input=files)
    finally:
        pages.close()
    print(f"the application: {shown}; its picture: {BUILD / 'app.png'}")
    return (
        shown["first"] == shown["second"] == shown["afterwards"] == shown["next"] == label
        and shown["x"] > 0
        and shown["movedIsAnother"]
        and shown["downloaded"] > 1000
        and shown["messages"][0].count("broken.jpg: cannot be decoded") == 1
        and "huge.png: is too large (10000x6000 pixels" in shown["messages"][1]
    )


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    """A server of files that prints nothing."""

    def log_message(self, *args):
        pass


def best(scores):
    """Return the label with the highest score."""
    return max(scores, key=scores.get)


def report(case, got, expected):
    """Print how the results differ from Python's; return whether that is little enough."""
    pairs = list(zip(got, expected, strict=False))
    same = sum(best(scores) == best(python) for scores, python in pairs)
    worst = max(abs(scores[label] - python[label]) for scores, python in pairs for label in scores)
    print(f"{case}: same label for {same} of {len(pairs)}, scores differ by {worst:.1e} at most")
    if "resized by transformers.js" in case:
        return True  # the page and README.md do better
    if "q8" in case:
        return same >= FEWEST_SAME_INT8 * len(pairs) and worst < INT8_TOLERANCE
    return same == len(pairs) and worst < FLOAT_TOLERANCE


if __name__ == "__main__":
    sys.exit(main())
