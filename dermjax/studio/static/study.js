// The reader study: real or synthetic? Nothing here knows the truth before the last answer.

import { choice, element, field, get, percent, post, say } from "./calls.js";

const KEPT = 20; // studies that this browser remembers, since their answers are under a key that nobody else tells

export async function show(place, signal, study) {
  place.append(element("h1", {}, "Reader study"));
  if (study) return ask(place, signal, study);
  place.append(element("p", {}, "Half of the images are photographs, half were made by a model. Say which is which."));
  const runs = (await get("/api/runs")).runs.filter((run) => run.manifest);
  if (!runs.length) {
    place.append(element("p", {}, "No run in this folder has a manifest yet."));
    return;
  }
  const names = runs.map((run) => run.name);
  const first = (...stages) => (runs.find((run) => stages.includes(run.stage)) || runs[0]).name;
  const inputs = {
    real: choice("real", names, first("prepare")), synthetic: choice("synthetic", names, first("curate", "generate", "transform")),
    reader: element("input", { name: "reader", required: true, maxlength: 60, autocomplete: "off" }),
    count: element("input", { name: "count", type: "number", min: 2, max: 400, step: 2, value: 40 }),
    seed: element("input", { name: "seed", type: "number", min: 0, max: 4294967295, value: 0 }),
  };
  const message = element("p", { role: "alert" });
  const start = async (event) => {
    event.preventDefault();
    try {
      const asked = Object.fromEntries(Object.entries(inputs).map(([name, input]) => [name, input.value]));
      const begun = await post("/api/studies", { ...asked, count: Number(asked.count), seed: Number(asked.seed) });
      localStorage.setItem("studies", JSON.stringify([begun, ...begunHere()].slice(0, KEPT)));
      location.hash = `study/${begun.study}`;
    } catch (error) {
      say(message, error);
    }
  };
  place.append(element(
    "form", { submit: start },
    element("div", { class: "pair" }, field("Real images from", inputs.real), field("Synthetic images from", inputs.synthetic)),
    field("Reader", inputs.reader),
    element("div", { class: "pair" }, field("Images", inputs.count, "half of each kind"), field("Seed for the order", inputs.seed)),
    element("div", { class: "buttons" }, element("button", { class: "main" }, "Start")), message,
  ));
  const links = begunHere().map(({ study, reader, count }) =>
    element("li", {}, element("a", { href: `#study/${study}` }, `${reader}, ${count} images, ${study}`)));
  if (links.length) place.append(element("h2", {}, "Begun in this browser"), element("ul", {}, ...links));
}

function begunHere() {
  return JSON.parse(localStorage.getItem("studies") || "[]");
}

async function ask(place, signal, study) {
  let { count, next, reader } = await get(`/api/studies/${encodeURIComponent(study)}`);
  const path = `/api/studies/${encodeURIComponent(study)}`;
  const lost = () => get(`${path}/pictures/${next}`).then(draw, (error) => say(message, error));
  const picture = element("img", { alt: "", load: () => { shown = performance.now(); }, error: lost });
  const told = element("p", { class: "faint", "aria-live": "polite" });
  const message = element("p", { role: "alert" });
  let shown = 0;
  let busy = false;
  const section = element("section", { class: "judge", "aria-label": "Image of the study" }, element("div", { class: "picture" }, picture));

  function draw() {
    picture.src = `${path}/pictures/${next}`;
    picture.alt = `Image ${next + 1} of ${count}`;
    told.textContent = `Image ${next + 1} of ${count}, for ${reader}`;
    shown = 0; // nothing is answered before it is on the screen
  }

  async function answer(word) {
    if (busy || !shown) return;
    busy = true;
    try {
      const seconds = (performance.now() - shown) / 1000;
      ({ next } = await post(`${path}/answers`, { place: next, answer: word, seconds }).catch(caughtUp));
      say(message);
      if (next < count) draw();
      else await result(place, path);
    } catch (error) {
      say(message, error);
    }
    busy = false;
  }

  // An answer may have been kept though no word of it came back, or have been given in another window.
  async function caughtUp(error) {
    const state = await get(path).catch(() => ({ next }));
    if (state.next === next) throw error;
    return state;
  }

  if (next >= count) return result(place, path);
  const actions = { r: () => answer("real"), s: () => answer("synthetic") };
  document.addEventListener("keydown", (event) => {
    if (actions[event.key] && !event.repeat && !event.ctrlKey && !event.metaKey && !event.altKey && next < count) actions[event.key]();
  }, { signal });
  const button = (key, title) => element("button", { type: "button", click: actions[key] }, `${title} `, element("kbd", {}, key));
  section.append(element("div", {}, told, element("div", { class: "buttons" }, button("r", "Real"), button("s", "Synthetic")), message));
  place.append(section);
  draw();
}

async function result(place, path) {
  const { accuracy, real, synthetic, reader } = await get(`${path}/result`);
  place.replaceChildren(
    element("h1", {}, "Reader study"), element("p", {}, `${reader} answered all of it.`),
    element("p", {}, "Right answers: ", element("strong", {}, percent(accuracy))),
    element("p", {}, `Of the real images: ${percent(real)}`), element("p", {}, `Of the synthetic images: ${percent(synthetic)}`),
    element("p", { class: "faint" }, "Half right is what guessing gives. The intervals are exact (Clopper and Pearson)."),
    element("p", {}, element("a", { href: `${path}/table`, download: true }, "Answers as CSV")),
  );
}
