// Show where the last block of each stage samples around a point of the image that the user clicks.

const FIRST_STRIDE = 4; // pixels of the image from one pixel of stage 1's feature map to the next; twice as many a stage
const ZOOM = 8; // least pixels of the screen for a pixel of a small image
const SIDE = 512; // pixels of the screen

// Return the number of stages whose points a model's outputs have.
function countStages(outputs) {
  return Object.keys(outputs).filter((name) => /^stage\d+_offset$/.test(name)).length;
}

// Return the points {x, y, weight, group} that the feature pixel nearest to (x, y) samples, in pixels of the image.
export function samplingPoints(outputs, stage, at, { offset_scale, remove_center }) {
  const offset = outputs[`stage${stage}_offset`];
  const mask = outputs[`stage${stage}_mask`];
  const [, rows, columns, groups, taps] = mask.dims;
  const stride = FIRST_STRIDE * 2 ** (stage - 1);
  const column = Math.min(Math.round(at.x / stride), columns - 1);
  const row = Math.min(Math.round(at.y / stride), rows - 1);
  const grid = [-1, 0, 1].flatMap((i) => [-1, 0, 1].map((j) => [i, j])).filter(([i, j]) => !remove_center || i || j);
  const points = [];
  for (let group = 0; group < groups; group++) {
    for (let tap = 0; tap < taps; tap++) {
      const index = ((row * columns + column) * groups + group) * taps + tap;
      const [i, j] = grid[tap];
      points.push({
        x: stride * (column + offset_scale * (i + offset.data[2 * index])),
        y: stride * (row + offset_scale * (j + offset.data[2 * index + 1])),
        weight: mask.data[index],
        group,
      });
    }
  }
  return { centre: { x: column * stride, y: row * stride }, points };
}

// Return a canvas with what the model sees: pixel values (1, 3, H, W), without their normalisation.
function drawPixels({ dims, data }, { do_normalize, image_mean, image_std }) {
  const [, , height, width] = dims;
  const pixels = new ImageData(width, height);
  for (let index = 0; index < width * height; index++) {
    for (let channel = 0; channel < 3; channel++) {
      const value = data[channel * width * height + index];
      pixels.data[4 * index + channel] = 255 * (do_normalize ? value * image_std[channel] + image_mean[channel] : value);
    }
    pixels.data[4 * index + 3] = 255;
  }
  const canvas = new OffscreenCanvas(width, height);
  canvas.getContext("2d").putImageData(pixels, 0, 0);
  return canvas;
}

// Fill `details` with the image, a choice of stage and group, and the points of where the user clicks.
export async function showPoints(details, classifier, image, settings) {
  const processor = classifier.processor.image_processor ?? classifier.processor;
  const { pixel_values } = await processor(image);
  const outputs = await classifier.model.forward({ pixel_values });
  const picture = drawPixels(pixel_values, processor.config);
  const zoom = Math.max(1, Math.min(ZOOM, Math.floor(SIDE / Math.max(picture.width, picture.height))));

  const viewer = document.createElement("div");
  viewer.innerHTML =
    '<p><label>Stage <select class="stage"></select></label> <label>Group <select class="group"></select></label></p>' +
    "<canvas></canvas><output></output>";
  const [stage, group, canvas, text] = ["select.stage", "select.group", "canvas", "output"].map((selector) =>
    viewer.querySelector(selector),
  );
  canvas.width = picture.width * zoom;
  canvas.height = picture.height * zoom;
  let at = { x: (picture.width - 1) / 2, y: (picture.height - 1) / 2 };

  const option = (value, label = value) => new Option(label, value);
  const stages = countStages(outputs);
  stage.append(...Array.from({ length: stages }, (_, index) => option(index + 1)));
  stage.value = Math.min(3, stages);

  function listGroups() {
    const count = outputs[`stage${stage.value}_mask`].dims[3];
    group.replaceChildren(option("all"), ...Array.from({ length: count }, (_, index) => option(index, index + 1)));
  }

  function draw() {
    const { centre, points } = samplingPoints(outputs, Number(stage.value), at, settings);
    const shown = points.filter((point) => group.value === "all" || point.group === Number(group.value));
    const groups = group.length - 1;
    const screen = (position) => (position + 0.5) * zoom; // a pixel's centre is whole
    const context = canvas.getContext("2d");
    context.imageSmoothingEnabled = false;
    context.clearRect(0, 0, canvas.width, canvas.height);
    context.drawImage(picture, 0, 0, canvas.width, canvas.height);
    const line = canvas.width / 200;
    for (const point of shown) {
      context.beginPath();
      context.arc(screen(point.x), screen(point.y), line * 8 * Math.sqrt(point.weight), 0, 2 * Math.PI);
      context.fillStyle = `hsl(${(360 * point.group) / groups} 90% 60% / 75%)`;
      context.fill();
    }
    context.lineWidth = line;
    context.strokeStyle = "red";
    context.strokeRect(screen(centre.x) - 3 * line, screen(centre.y) - 3 * line, 6 * line, 6 * line);
    const weights = shown.map(({ weight }) => weight);
    const outside = shown.filter(({ x, y }) => x < 0 || y < 0 || x > picture.width - 1 || y > picture.height - 1).length;
    text.value =
      `${shown.length} points of the pixel (${centre.x}, ${centre.y}), ${outside} outside the image; ` +
      `weights ${Math.min(...weights).toFixed(3)} to ${Math.max(...weights).toFixed(3)}, which are the areas of the discs`;
    viewer.points = { centre, points: shown };
  }

  stage.addEventListener("change", () => {
    listGroups();
    draw();
  });
  group.addEventListener("change", draw);
  canvas.addEventListener("click", (event) => {
    const { left, top, width, height } = canvas.getBoundingClientRect();
    const clamp = (value, side) => Math.max(0, Math.min(side - 1, value));
    at = {
      x: clamp(((event.clientX - left) / width) * picture.width - 0.5, picture.width),
      y: clamp(((event.clientY - top) / height) * picture.height - 0.5, picture.height),
    };
    draw();
  });
  listGroups();
  draw();
  details.append(viewer);
}
