// Generate: a prompt or menus, settings, a preview while it is made, and the gallery.

import { choice, download, dropZone, element, field, get, post, say, send, wait } from "./calls.js";

const OFTEN = 250; // milliseconds between two looks at a job
const LATER = 1000; // and after one that was not answered
const KEPT = 128;

export async function show(place, signal) {
  const known = await get("/api/models");
  const inputs = controls(known);
  const gallery = element("ul", { class: "gallery", "aria-label": "Gallery" });
  const [message, stage] = [element("p", { role: "alert" }), element("div", { class: "stage" })];
  const status = element("p", { role: "status", class: "faint" });
  const view = { page: "generate", inputs, gallery, message, status, stage, signal, shown: new Set(), add: (state) => add(view, state) };
  remember(view);
  const submit = (event) => {
    event.preventDefault();
    request(view).catch((error) => say(message, error));
  };
  const form = element(
    "form", { submit }, menus(known.menus, inputs.prompt, message), field("Prompt", inputs.prompt),
    field("Negative prompt", inputs.negative_prompt),
    element("div", { class: "pair" }, field("Model", inputs.model), field("Sampler", inputs.sampler)),
    element("div", { class: "pair" }, field("Steps", inputs.steps), field("Guidance", inputs.guidance)),
    element("div", { class: "pair" }, field("Seed", inputs.seed), field("Images", inputs.count)),
    element("div", { class: "pair" }, field("LoRA", inputs.lora), field("Its weight", inputs.lora_weight, "1 is as trained")),
    field("Side in pixels", inputs.size, "0 is the model's own"),
    element("div", { class: "buttons" }, element("button", { class: "main" }, "Generate")), message, restoring(view),
  );
  const zip = () => take(view).catch((error) => say(message, error));
  const right = element(
    "section", { "aria-label": "Images" }, status, stage, element("h2", {}, "Gallery"),
    element("p", { class: "faint" }, "Every image is synthetic, and its file says so. The studio keeps the last ones until it is closed: download what you want to keep."),
    element("div", { class: "buttons" }, element("button", { type: "button", click: zip }, "Download all as a zip with provenance")), gallery,
  );
  place.append(element("h1", {}, "Generate"), element("div", { class: "columns" }, form, right));
  for (const entry of jobs(view.page)) follow(view, entry, true);
}

export function controls({ models, loras, samplers, defaults }) {
  const number = (name, least, most, step = 1) =>
    element("input", { name, type: "number", min: least, max: most, step, required: true, value: defaults[name] });
  const prompt = element("textarea", { name: "prompt", required: true, maxlength: 2000 });
  prompt.value = defaults.prompt;
  return {
    prompt, negative_prompt: element("input", { name: "negative_prompt", maxlength: 2000 }),
    model: choice("model", models, defaults.model), sampler: choice("sampler", samplers, defaults.sampler),
    lora: choice("lora", ["", ...loras], "", "(none)"), lora_weight: number("lora_weight", -2, 2, "any"),
    steps: number("steps", 1, 150), guidance: number("guidance", 1, 30, "any"), seed: number("seed", 0, 4294967295),
    count: number("count", 1, 16), size: number("size", 0, 1024, 8),
  };
}

export function values(inputs) {
  return Object.fromEntries(Object.entries(inputs).map(([name, input]) => [name, input.type === "number" ? Number(input.value) : input.value]));
}

function menus(offered, prompt, message) {
  const start = { number: "one", size: "medium", colour: "brown", borders: "irregular", tone: "light" };
  const chosen = Object.entries(offered).map(([name, options]) => [name, choice(`menu_${name}`, options, start[name] || options[0])]);
  const photograph = element("input", { type: "checkbox", name: "photograph", checked: true });
  const write = async () => {
    const words = Object.fromEntries(chosen.map(([name, menu]) => [name, menu.value]));
    try {
      prompt.value = (await post("/api/prompt", { ...words, photograph: photograph.checked })).prompt;
    } catch (error) {
      say(message, error);
    }
  };
  const fields = chosen.map(([name, menu]) => field(name[0].toUpperCase() + name.slice(1).replace("_", " "), menu));
  return element(
    "details", { change: write }, element("summary", {}, "Write the prompt with menus"),
    element("div", { class: "pair" }, ...fields), element("label", { class: "check" }, photograph, "like a photograph"),
  );
}

async function request(view) {
  say(view.message);
  const { job } = await post("/api/generate", values(view.inputs));
  await follow(view, keep(view.page, { job }));
}

// The jobs that a page has asked for, the oldest first: {job, and what the page needs besides to show its images}. They
// outlive a reload and a look at another page, else one could neither be seen nor stopped any more.
export function jobs(page) {
  return JSON.parse(sessionStorage.getItem(`jobs of ${page}`) || "[]");
}

export function keep(page, entry) {
  sessionStorage.setItem(`jobs of ${page}`, JSON.stringify([...jobs(page), entry].slice(-KEPT)));
  return entry;
}

function forget(page, job) {
  sessionStorage.setItem(`jobs of ${page}`, JSON.stringify(jobs(page).filter((each) => each.job !== job)));
}

// What stands in the fields of a page outlives the same.
export function remember({ page, inputs, signal }) {
  const key = `fields of ${page}`;
  const written = () => Object.fromEntries(Object.entries(inputs).map(([name, input]) => [name, input.value]));
  const save = () => sessionStorage.setItem(key, JSON.stringify(written()));
  fill(inputs, JSON.parse(sessionStorage.getItem(key) || "{}"));
  signal.addEventListener("abort", save);
  addEventListener("pagehide", save, { signal });
}

// Shows a job until it ends: a preview, the time left, a stop. view: page, message, status, stage, signal, and
// add(state, entry), which shows the images that are there. Of one that was asked for before the page was shown, and has
// ended since, images are all that is shown.
export async function follow(view, entry, before = false) {
  const { job } = entry;
  const row = { preview: element("img", { alt: "Preview, synthetic" }), bar: element("progress", { "aria-label": "progress" }),
    told: element("p", { class: "faint" }) };
  const end = () => {
    stop.disabled = true;
    stop.textContent = "Stopping";
    post(`/api/jobs/${job}/stop`, {}).catch((error) => {
      [stop.disabled, stop.textContent] = [false, "Stop"];
      say(view.message, error);
    });
  };
  const stop = element("button", { type: "button", click: end }, "Stop");
  const figure = element("figure", { class: "working", hidden: true }, row.preview, element("span", { class: "mark" }, "SYNTHETIC"));
  const whole = element("div", {}, figure, row.bar, row.told, stop);
  let step = -1;
  while (!view.signal.aborted) {
    const state = await get(`/api/jobs/${job}`).catch((error) => error);
    if (state.status === 404) {
      forget(view.page, job);
      if (whole.isConnected) say(view.message, new Error("the studio was started anew and has lost this job; ask for it again"));
      return whole.remove();
    }
    if (state instanceof Error) {
      row.told.textContent = state.message;
      await wait(LATER);
      continue;
    }
    view.add(state, entry);
    if (ended(state)) {
      if (before && !whole.isConnected) return;
      whole.remove();
      view.status.textContent = `${state.state}: ${state.images.length} images`;
      if (state.error) say(view.message, new Error(state.error));
      return;
    }
    if (!whole.isConnected) {
      view.stage.append(whole);
      whole.scrollIntoView({ block: "nearest" });
    }
    if (state.step > step && state.step) {
      row.preview.src = `/api/jobs/${job}/preview?step=${state.step}`;
      figure.hidden = false;
    }
    step = state.step;
    row.bar.max = state.steps;
    if (step) row.bar.value = step;
    row.told.textContent = words(state);
    await wait(OFTEN);
  }
}

function words(state) {
  if (state.state === "waiting") return `In the queue: ${state.before_it} before it.`;
  if (!state.step) return "The model is being made ready; the first time takes some seconds.";
  const left = state.seconds_left === null ? "" : `, about ${Math.ceil(state.seconds_left)} s left`;
  return `Step ${state.step} of ${state.steps}${left}`;
}

function ended(state) {
  return !["waiting", "working"].includes(state.state);
}

function add(view, state) {
  for (const made of state.images.filter((each) => !view.shown.has(each.image))) {
    view.shown.add(made.image);
    const again = () => {
      fill(view.inputs, { ...made, count: 1 });
      view.inputs.prompt.focus();
    };
    const url = `/api/images/${made.image}`;
    const told = `${made.prompt}${made.negative_prompt ? ` · not: ${made.negative_prompt}` : ""} · ${made.model}${made.lora ? ` with ${made.lora} at ${made.lora_weight}` : ""}, ${made.sampler}, ${made.steps} steps, guidance ${made.guidance}, seed ${made.seed}, ${made.size} px`;
    view.gallery.prepend(element("li", {}, element(
      "figure", {}, element("img", { src: url, alt: `Synthetic: ${made.prompt}`, loading: "lazy" }), element("span", { class: "mark" }, "SYNTHETIC"),
      element("figcaption", {}, element("details", {}, element("summary", {}, `Seed ${made.seed}`), told),
        element("div", { class: "buttons" }, element("button", { type: "button", click: again, "aria-label": `Same again, seed ${made.seed}` }, "Same again"),
          element("a", { href: `#transform/${made.image}`, "aria-label": `Transform, seed ${made.seed}` }, "Transform"),
          element("a", { href: url, download: `${made.name}.png` }, "PNG"))),
    )));
  }
}

// Puts settings into the fields; what is missing there, or is no longer offered, stays as it is, and no LoRA none.
function fill(inputs, settings) {
  for (const [name, input] of Object.entries(inputs)) {
    const value = settings[name];
    if (value === undefined || (name === "lora_weight" && !settings.lora)) continue;
    const offers = (word) => [...input.options].some((each) => each.value === word);
    if (name === "sampler" && !offers(value)) input.append(element("option", { value }, value));
    if (!input.options || offers(value)) input.value = value;
    else if (offers("")) input.value = "";
  }
}

function restoring(view) {
  const read = async (file) => {
    try {
      if (!file) return;
      if (!["image/png", "image/jpeg"].includes(file.type)) throw new Error("only a PNG has settings in it");
      const settings = await send("/api/settings", file);
      fill(view.inputs, settings);
      view.inputs.prompt.focus();
      say(view.message, settings.notes ? new Error(`settings restored, but: ${settings.notes}`) : undefined);
    } catch (error) {
      say(view.message, error);
    }
  };
  return dropZone("Drop a PNG made by dermjax or AUTOMATIC1111 here to restore its settings", "image/png", read);
}

async function take(view) {
  if (!view.shown.size) throw new Error("there are no images yet");
  const keys = [...view.shown].slice(-KEPT).join(",");
  await download(`/api/zip?images=${keys}`, "dermjax_synthetic.zip");
}
