// Reads the digit that is drawn on the page. MODEL, from model.js, is written by study/export.py.
"use strict";

const SIDE = 28; // of MNIST's images
const PEN = 44; // of the board's 560 pixels: about 2 of 20 in a digit that nearly fills it
const INK = [29, 29, 32];
const HINT = "Use a mouse, a pen or a finger.";
const SMALL = "Too small to read. Please draw larger.";
const WASM = ["ort-wasm-simd-threaded.wasm", "sha384-vjBJ1z7qrhkTyYsNqKeF6c7N+nOJSU94czEo+tvZcu8G75JparGq9kB+kTnEUNVM"];

const element = (id) => document.getElementById(id);
const board = element("board").getContext("2d", { willReadFrequently: true });
const view = element("view").getContext("2d");
const sum = (values) => values.reduce((a, b) => a + b);
const swap = (rows) => Array.from(rows[0], (_, x) => rows.map((row) => row[x]));
const nextFrame = () => new Promise(requestAnimationFrame);
const bytes = (base64) => Uint8Array.from(atob(base64), (character) => character.charCodeAt(0));

let mistake = null; // the one of MODEL.hardest that is shown instead of a drawing
let last = null; // where the pen is while it draws
let logits = null; // the network, once it is loaded: images, uint8 (N * 28 * 28), to a promise of floats (N * 10)
let due = false; // whether an answer is already on its way that will see the board as it is now
let answered = load().then(begin, fail); // the latest answer

// The network

async function load() {
  const runtime = document.querySelector("script[integrity]").src;
  const [file, integrity] = WASM;
  const [ort, wasm] = await Promise.all([
    import(runtime), // the very module of the script element, which has checked its integrity
    fetch(new URL(file, runtime), { integrity }).then((response) => response.arrayBuffer()),
  ]);
  ort.env.wasm.numThreads = 1; // more need headers that a static host does not send
  ort.env.wasm.wasmBinary = wasm;
  const session = await ort.InferenceSession.create(bytes(MODEL.onnx));
  return async (images) => {
    const shape = [images.length / SIDE ** 2, 1, SIDE, SIDE];
    return (await session.run({ images: new ort.Tensor("uint8", images, shape) })).logits.data;
  };
}

function begin(loaded) {
  logits = loaded;
  say(HINT);
}

function fail(error) {
  console.error(error);
  element("status").classList.add("failed");
  element("status").textContent = "This page needs the internet: ONNX Runtime did not load from cdn.jsdelivr.net.";
}

function softmax(values) {
  const powers = Array.from(values, (value) => Math.exp((value - Math.max(...values)) / MODEL.temperature));
  return powers.map((power) => power / sum(powers));
}

// The drawing

/** The ink on the board, uint8 (560 * 560), 0 where there is none. */
function ink() {
  const { data } = board.getImageData(0, 0, board.canvas.width, board.canvas.height);
  const alpha = new Uint8Array(data.length / 4);
  for (let i = 0; i < alpha.length; i++) alpha[i] = data[4 * i + 3];
  return alpha;
}

/**
 * Ink, uint8 (side * side), as ink.py's center_digit prepares it: its box scaled to 20 pixels, its centre of mass
 * in the middle of an image, uint8 (28 * 28); null if it is smaller than predict.py's smallest digit.
 */
function centerDigit(ink, side) {
  let [top, bottom, left, right] = [side, -1, side, -1];
  for (let i = 0; i < ink.length; i++) {
    if (!ink[i]) continue;
    const [y, x] = [Math.floor(i / side), i % side];
    top = Math.min(top, y);
    bottom = y;
    left = Math.min(left, x);
    right = Math.max(right, x);
  }
  const path = Math.max(bottom - top, right - left) + 1 - PEN; // a tap leaves as much ink as the pen is wide
  if (path < MODEL.smallest * side) return null;
  const box = [];
  for (let y = top; y <= bottom; y++) box.push(ink.subarray(y * side + left, y * side + right + 1));
  const longer = Math.max(box.length, box[0].length);
  const [height, width] = [box, box[0]].map(({ length }) => Math.max(1, Math.floor((length * 20) / longer + 0.5)));
  const digit = resample(resample(box, height), width);

  const mass = sum(digit.map(sum));
  const centre = (lines) => sum(lines.map((line, i) => i * sum(line))) / mass;
  const start = (lines) => Math.min(Math.max(Math.floor(14.5 - centre(lines)), 0), SIDE - lines.length);
  const [y0, x0] = [start(digit), start(swap(digit))];
  const values = digit.flatMap((row) => [...row]);
  const inked = values.filter((value) => value > 0.2 * Math.max(...values)).sort((a, b) => a - b);
  const place = 0.9 * (inked.length - 1); // of the quantile of 90%, between two values
  const [below, above] = [inked[Math.floor(place)], inked[Math.ceil(place)]];
  const strongest = below + (above - below) * (place % 1);
  const image = new Uint8Array(SIDE ** 2);
  digit.forEach((row, y) => {
    row.forEach((value, x) => (image[(y0 + y) * SIDE + x0 + x] = Math.min(255, Math.floor((value * 255) / strongest + 0.5))));
  });
  return image;
}

/** `rows` resampled to `size` of them, as by ink.py's resample; then rows and columns are swapped. */
function resample(rows, size) {
  const scale = rows.length / size;
  const columns = Array.from(rows[0], () => new Float64Array(size));
  for (let i = 0; i < size; i++) {
    const weights = rows.map((_, j) => Math.max(0, 1 - Math.abs((i + 0.5) * scale - j - 0.5) / Math.max(scale, 1)));
    const total = sum(weights);
    weights.forEach((weight, j) => {
      if (weight) rows[j].forEach((value, x) => (columns[x][i] += (weight / total) * value));
    });
  }
  return columns;
}

/** Paints an image, uint8 (28 * 28), in one colour over the background. */
function paint(context, image, color = [255, 255, 255]) {
  const pixels = context.createImageData(SIDE, SIDE);
  image.forEach((value, i) => pixels.data.set([...color, value], 4 * i));
  context.putImageData(pixels, 0, 0);
}

function clear() {
  mistake = null;
  board.clearRect(0, 0, board.canvas.width, board.canvas.height);
  answer();
}

function draw(event) {
  const { left, top, width } = board.canvas.getBoundingClientRect();
  const scale = board.canvas.width / width;
  const [x, y] = [(event.clientX - left) * scale, (event.clientY - top) * scale];
  board.beginPath();
  board.moveTo(...(last ?? [x, y + 0.1])); // a line without length would leave no dot
  board.lineTo(x, y);
  board.stroke();
  last = [x, y];
  answer();
}

// The answer

/** Answers what is on the board in the next frame, once the answer before is given. */
function answer() {
  if (due) return;
  due = true;
  answered = answered.then(nextFrame).then(async () => {
    due = false;
    const drawn = ink();
    const image = mistake ? bytes(mistake.pixels) : centerDigit(drawn, board.canvas.width);
    if (image) say(mistake ? `A test image, labelled ${mistake.label}.` : "");
    else if (!last) say(drawn.some(Boolean) ? SMALL : HINT); // while the pen draws, it may yet become a digit
    show(image, image && logits && softmax(await logits(image)));
  });
}

function show(image, probabilities) {
  paint(view, image ?? new Uint8Array(SIDE ** 2));
  const best = probabilities ? probabilities.indexOf(Math.max(...probabilities)) : null;
  const percent = (digit) => (probabilities ? `${Math.round(100 * probabilities[digit])}%` : "");
  [...element("bars").children].forEach((bar, digit) => {
    bar.style.setProperty("--p", probabilities ? probabilities[digit] : 0);
    bar.classList.toggle("best", digit === best);
    bar.querySelector("small").textContent = percent(digit);
  });
  const [guess, certainty] = element("verdict").children;
  const unsure = best !== null && probabilities[best] < MODEL.unsure;
  element("answer").classList.toggle("unsure", unsure);
  guess.textContent = best ?? "";
  certainty.textContent = percent(best) + (unsure ? "\nunsure" : "");
}

function say(text) {
  if (logits) element("status").textContent = text;
}

// The page

function showMistake(chosen) {
  clear();
  mistake = chosen;
  const small = document.createElement("canvas").getContext("2d");
  paint(small, bytes(chosen.pixels), INK);
  board.drawImage(small.canvas, 0, 0, SIDE, SIDE, 0, 0, board.canvas.width, board.canvas.height);
}

function build() {
  for (let digit = 0; digit < 10; digit++) {
    element("bars").insertAdjacentHTML("beforeend", `<li><small></small><i></i><b>${digit}</b></li>`);
  }
  const counts = { parameters: MODEL.parameters, images: MODEL.images, right: MODEL.images - MODEL.wrong };
  for (const id in counts) element(id).textContent = counts[id].toLocaleString("en");
  for (const chosen of MODEL.hardest) {
    const button = document.createElement("button");
    button.type = "button";
    button.innerHTML = `<canvas width="28" height="28"></canvas>label ${chosen.label}<br>answer ${chosen.answer}`;
    paint(button.firstChild.getContext("2d"), bytes(chosen.pixels));
    button.addEventListener("click", () => showMistake(chosen));
    element("hardest").append(button);
  }
  const [, owner] = location.hostname.match(/^(.+)\.github\.io$/) ?? [];
  if (owner) element("source").href = `https://github.com/${owner}/${location.pathname.split("/")[1]}`;
  show(null, null);
}

Object.assign(board, { lineWidth: PEN, lineCap: "round", lineJoin: "round", imageSmoothingEnabled: false });
board.strokeStyle = `rgb(${INK})`;
board.canvas.addEventListener("pointerdown", (event) => {
  if (!event.isPrimary || event.button) return;
  if (mistake) clear();
  board.canvas.setPointerCapture(event.pointerId);
  last = null;
  draw(event);
});
board.canvas.addEventListener("pointermove", (event) => event.isPrimary && last && draw(event));
board.canvas.addEventListener("lostpointercapture", () => (last = null));
board.canvas.addEventListener("lostpointercapture", answer);
element("clear").addEventListener("click", clear);
build();
