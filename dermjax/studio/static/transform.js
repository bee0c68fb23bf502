// Transform: choose an image, accept or paint the mask of its lesions, change them, and see before and after measured.

import { choice, dropZone, element, field, get, post, say, send } from "./calls.js";
import { controls, follow, jobs, keep, remember, values } from "./generate.js";

const SIDE = 512; // pixels of the mask that is painted
const CHANGES = ["larger", "smaller", "more", "pale skin", "light skin", "intermediate skin", "tan skin", "dark skin"];

export async function show(place, signal, chosen) {
  const inputs = controls(await get("/api/models"));
  for (const name of ["prompt", "count"]) delete inputs[name];
  inputs.transformation = choice("transformation", CHANGES, "larger");
  inputs.factor = number("factor", 1.05, 4, 0.05, 1.5);
  inputs.strength = number("strength", 0.05, 1, 0.05, 0.5);
  inputs.count = number("count", 1, 4, 1, 1);
  const [message, stage] = [element("p", { role: "alert" }), element("div")];
  const status = element("p", { role: "status", class: "faint" });
  const gallery = element("ul", { class: "gallery", "aria-label": "Before and after" });
  const view = { page: "transform", inputs, message, stage, status, gallery, signal, source: null, shown: new Set() };
  view.add = (state, entry) => add(view, state, entry);
  view.mask = painter(view);
  remember(view);
  const guarded = (run) => run().catch((error) => say(message, error));
  const drop = dropZone("Drop a PNG or a JPEG here; it is never saved", "image/png,image/jpeg",
    (file) => file && guarded(() => take(view, () => send("/api/sources", file))));
  const submit = (event) => {
    event.preventDefault();
    guarded(() => request(view));
  };
  const form = element(
    "form", { submit }, field("Change", inputs.transformation, "more adds one lesion; the rest of the image keeps its pixels"),
    element("div", { class: "pair" }, field("Times as wide, or as narrow", inputs.factor), field("How far from the sketch", inputs.strength, "0.2 changes details, 1 paints nearly all anew")),
    element("div", { class: "pair" }, field("Model", inputs.model), field("Sampler", inputs.sampler)),
    element("div", { class: "pair" }, field("Steps", inputs.steps), field("Guidance", inputs.guidance)),
    element("div", { class: "pair" }, field("LoRA", inputs.lora), field("Its weight", inputs.lora_weight)),
    element("div", { class: "pair" }, field("Seed", inputs.seed), field("Images", inputs.count)),
    field("Negative prompt", inputs.negative_prompt), field("Side in pixels", inputs.size, "0 is the model's own"),
    element("div", { class: "buttons" }, element("button", { class: "main" }, "Transform")),
  );
  const left = element("div", {}, drop, await picking(view, guarded), message, view.mask.whole);
  const right = element("section", { "aria-label": "Change" }, form, status, stage, element("h2", {}, "Before and after"),
    element("p", { class: "faint" }, "What comes out is synthetic, and its file says so. Area, number and tone are measured by a network, which can be wrong; research use only, not a diagnosis."), gallery);
  place.append(element("h1", {}, "Transform"), element("div", { class: "columns" }, left, right));
  for (const entry of jobs(view.page)) follow(view, entry, true);
  if (chosen) await guarded(() => take(view, () => post("/api/sources/made", { image: chosen })));
}

function number(name, least, most, step, value) {
  return element("input", { name, type: "number", min: least, max: most, step, required: true, value });
}

// Images of a run, to choose one from.
async function picking(view, guarded) {
  const names = (await get("/api/runs")).runs.filter((run) => run.manifest).map((run) => run.name);
  if (!names.length) return "";
  const manifest = choice("manifest", names, names[0]);
  const shown = element("ul", { class: "gallery small", "aria-label": "Images of the run" });
  const list = async () => {
    const { images } = await get("/api/review/images", { manifest: manifest.value, by: "transform" });
    const training = images.filter((each) => each.split === "train"); // others would carry answers into training
    shown.replaceChildren(...training.slice(0, 24).map(({ sha256, label, synthetic }, n) => {
      const src = `/api/review/picture?${new URLSearchParams({ manifest: manifest.value, sha256 })}`;
      const pick = () => guarded(() => take(view, () => post("/api/sources/listed", { manifest: manifest.value, sha256 })));
      const alt = `${synthetic ? "Synthetic" : "Real"} ${label}, image ${n + 1}`;
      return element("li", {}, element("button", { type: "button", class: "picture", click: pick }, element("img", { src, alt, loading: "lazy" })));
    }));
  };
  const opened = (event) => event.target.open && guarded(list);
  manifest.addEventListener("change", () => guarded(list));
  return element("details", { toggle: opened }, element("summary", {}, "Or choose an image of a run"), field("Run", manifest), shown);
}

async function take(view, ask) {
  say(view.message);
  view.chosen = ask;
  const source = await ask();
  if (view.chosen === ask) await view.mask.load(source); // else another one was chosen meanwhile
}

// The image with its mask, which is painted by pointer, or by arrows and the space bar.
function painter(view) {
  const canvas = element("canvas", { width: SIDE, height: SIDE, tabindex: 0, role: "application",
    "aria-label": "The image with its mask; arrows move the brush, space paints, e erases" });
  const brush = element("input", { name: "brush", type: "range", min: 4, max: 80, value: 24 });
  const erase = element("input", { name: "erase", type: "checkbox" });
  const told = element("p", { role: "status" });
  const mark = element("span", { class: "mark", hidden: true }, "SYNTHETIC");
  let [picture, loads] = [new Image(), 0];
  let saved = Promise.resolve(); // that the studio has the mask as it is painted
  const mask = element("canvas", { width: SIDE, height: SIDE });
  const [shown, masked] = [canvas.getContext("2d"), mask.getContext("2d", { willReadFrequently: true })];
  const at = { x: SIDE / 2, y: SIDE / 2, down: false, cursor: false };

  function draw() {
    shown.globalAlpha = 1;
    shown.drawImage(picture, 0, 0, SIDE, SIDE);
    shown.globalAlpha = 0.45;
    shown.drawImage(mask, 0, 0);
    if (!at.cursor) return;
    shown.globalAlpha = 1;
    shown.strokeStyle = "#fff";
    shown.lineWidth = 3;
    shown.beginPath();
    shown.arc(at.x, at.y, Number(brush.value), 0, 7);
    shown.stroke();
  }

  function dab() {
    masked.globalCompositeOperation = erase.checked ? "destination-out" : "source-over";
    masked.fillStyle = "#35c5ff";
    masked.beginPath();
    masked.arc(at.x, at.y, Number(brush.value), 0, 7);
    masked.fill();
    draw();
  }

  // Shows an image and its mask; until both are there, the one before stays and is what is painted on.
  async function load(source) {
    const path = `/api/sources/${source.source}`;
    const [number, found, proposed] = [++loads, new Image(), new Image()];
    [found.src, proposed.src] = [`${path}/picture`, `${path}/mask?${Date.now()}`];
    await Promise.all([found.decode(), proposed.decode()]);
    if (number !== loads) return;
    [view.source, picture, saved] = [source, found, Promise.resolve()];
    masked.globalCompositeOperation = "copy";
    masked.drawImage(proposed, 0, 0, SIDE, SIDE);
    const pixels = masked.getImageData(0, 0, SIDE, SIDE);
    for (let n = 0; n < pixels.data.length; n += 4) pixels.data.set([53, 197, 255, pixels.data[n] > 127 ? 255 : 0], n);
    masked.putImageData(pixels, 0, 0);
    [whole.hidden, mark.hidden] = [false, !view.source.synthetic];
    tell(view.source, `proposed, expected overlap with an expert's ${view.source.certainty}`);
    draw();
  }

  function tell(measured, how) {
    const kind = measured.synthetic ? "synthetic image" : "image";
    told.textContent = `${kind}: ${words(measured)}; the mask is ${how}.`;
  }

  // Strokes reach the studio in their order; a change that is asked for waits for the last.
  function save() {
    const { source } = view.source;
    const whites = element("canvas", { width: SIDE, height: SIDE });
    const context = whites.getContext("2d");
    context.drawImage(mask, 0, 0);
    const pixels = context.getImageData(0, 0, SIDE, SIDE);
    for (let n = 0; n < pixels.data.length; n += 4) pixels.data.fill(pixels.data[n + 3] > 127 ? 255 : 0, n, n + 3).fill(255, n + 3, n + 4);
    context.putImageData(pixels, 0, 0);
    saved = saved.catch(() => {}).then(async () => {
      const blob = await new Promise((done) => whites.toBlob(done, "image/png"));
      const measured = await send(`/api/sources/${source}/mask`, blob);
      if (view.source.source === source) tell(measured, "painted");
    });
    saved.catch((error) => say(view.message, error));
  }

  const move = (event) => {
    const box = canvas.getBoundingClientRect();
    [at.x, at.y] = [(event.clientX - box.left) * SIDE / box.width, (event.clientY - box.top) * SIDE / box.height];
    if (at.down) dab();
  };
  const lift = () => {
    if (at.down) save();
    at.down = false;
  };
  canvas.addEventListener("pointerdown", (event) => {
    canvas.setPointerCapture(event.pointerId);
    at.down = true;
    move(event);
  });
  canvas.addEventListener("pointermove", move);
  canvas.addEventListener("pointerup", lift);
  canvas.addEventListener("pointercancel", lift);
  canvas.addEventListener("keydown", (event) => {
    const way = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
    if (!way && ![" ", "e"].includes(event.key)) return;
    event.preventDefault();
    if (way) for (const [n, axis] of ["x", "y"].entries()) at[axis] = Math.min(Math.max(at[axis] + 12 * way[n], 0), SIDE);
    if (event.key === "e") erase.checked = !erase.checked;
    if (event.key !== " ") return draw();
    dab();
    save();
  });
  canvas.addEventListener("focus", () => { at.cursor = canvas.matches(":focus-visible"); draw(); });
  canvas.addEventListener("blur", () => { at.cursor = false; draw(); });
  const clear = () => {
    masked.clearRect(0, 0, SIDE, SIDE);
    told.textContent = "Paint where the lesions are. Until you do, the last mask is used.";
    draw();
  };
  const again = () => load(view.source).catch((error) => say(view.message, error));
  const buttons = element("div", { class: "buttons" }, element("button", { type: "button", click: clear }, "Clear the mask"),
    element("button", { type: "button", click: again }, "Back to the last mask"));
  const whole = element("div", { hidden: true, class: "painter" }, element("h2", {}, "Mask"),
    element("figure", {}, canvas, mark), told,
    element("div", { class: "pair" }, field("Brush", brush), element("label", { class: "check" }, erase, "erase")), buttons);
  // Resolves once the studio has what is painted; what was not saved is sent once more.
  const settled = () => saved.catch(() => {
    save();
    return saved;
  });
  return { whole, load, settled };
}

async function request(view) {
  say(view.message);
  if (!view.source) throw new Error("choose an image first");
  const { source, synthetic } = view.source;
  await view.mask.settled();
  const { job } = await post("/api/transform", { ...values(view.inputs), source });
  await follow(view, keep(view.page, { job, source, synthetic }));
}

function words({ count, area, ita }) {
  const tone = ita === null ? "no skin is seen" : `skin ITA ${ita.toFixed(0)}°`;
  return `${count} ${count === 1 ? "lesion" : "lesions"}, ${(100 * area).toFixed(1)} % of the field, ${tone}`;
}

function add(view, state, from) {
  for (const made of state.images.filter((each) => !view.shown.has(each.image))) {
    view.shown.add(made.image);
    const { asked, before, after, met } = made.transformation;
    const url = `/api/images/${made.image}`;
    const rows = [["before", before], ["after", after]].map(([title, each]) => element("li", {}, `${title}: ${words(each)}`));
    view.gallery.prepend(element("li", { class: "twice" }, element(
      "figure", {}, element("div", { class: "pair" }, element("img", { src: `/api/sources/${from.source}/picture`, alt: from.synthetic ? "Before, synthetic" : "Before" }),
        element("img", { src: url, alt: `Synthetic, ${asked}` })),
      from.synthetic ? element("span", { class: "mark" }, "SYNTHETIC") : "", element("span", { class: "mark right" }, "SYNTHETIC"),
      element("figcaption", {}, element("strong", {}, `${asked}: ${met ? "reached" : "not reached; try another seed or stay closer to the sketch"}`),
        element("ul", {}, ...rows), element("a", { href: url, download: `${made.name}.png` }, "PNG")),
    )));
  }
}
