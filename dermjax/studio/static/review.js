// Review: one image at a time, one key a verdict, each saved before it counts; and how reviewers agree.

import { choice, download, dropZone, element, field, get, post, say, send, wait } from "./calls.js";

const COPY = 20; // bits that a copy may differ by
const AHEAD = 8; // pictures that are fetched before they are needed
const LATER = 1000; // milliseconds to what did not succeed
const REFUSALS = [400, 403, 404]; // of a verdict that no second try would save
// Verdicts reach the disk in the order of the keys, also after one has left for another part of the page.
const saving = { chain: Promise.resolve(), left: 0, tell: () => {} };
addEventListener("beforeunload", (event) => saving.left && event.preventDefault());

export async function show(place, signal, chosen) {
  place.append(element("h1", {}, "Review"));
  const names = (await get("/api/runs")).runs.filter((run) => run.manifest).map((run) => run.name);
  if (!names.length) {
    place.append(element("p", {}, "No run in this folder has a manifest yet."));
    return;
  }
  const manifest = choice("manifest", names, chosen);
  const by = element("input", { name: "by", required: true, maxlength: 60, autocomplete: "off" });
  by.value = localStorage.getItem("reviewer") || "";
  const [message, below] = [element("p", { role: "alert" }), element("div")];
  const start = async (event) => {
    event.preventDefault();
    say(message);
    by.value = by.value.trim();
    localStorage.setItem("reviewer", by.value);
    try {
      await review(below, signal, manifest.value, by.value);
    } catch (error) {
      say(message, error);
    }
  };
  const compare = () => agreement(below, manifest.value).catch((error) => say(message, error));
  const buttons = element(
    "div", { class: "buttons" }, element("button", { class: "main" }, "Start"),
    element("button", { type: "button", click: compare }, "Agreement of reviewers"),
  );
  const fields = element("div", { class: "pair" }, field("Run", manifest), field("Your name", by));
  place.append(element("form", { submit: start }, fields, buttons), elsewhere(manifest, message), message, below);
}

// The same review in other tools: files to take there, and the file that comes back.
function elsewhere(manifest, message) {
  const address = (path) => `${path}?${new URLSearchParams({ manifest: manifest.value })}`;
  const guarded = (run) => run().catch((error) => say(message, error));
  const button = (path, name, title) => element("button", { type: "button", click: () => guarded(() => download(address(path), name)) }, title);
  const steps = element("div");
  const read = (file) => file && guarded(async () => {
    const body = new Blob([file], { type: "application/octet-stream" });
    const { saved, left_out: out } = await send(address("/api/review/label_studio"), body);
    message.replaceChildren(`${saved} verdicts saved${out ? `; ${out} left out: skipped, without a verdict, or of other images` : ""}`);
  });
  const step = (...words) => element("li", {}, ...words);
  const text = (title, words) => element("pre", { tabindex: 0, "aria-label": title }, words);
  const tell = async () => {
    const { xml, storage, images } = await get(address("/api/review/labelling"));
    steps.replaceChildren(
      element("h2", {}, "Label Studio"),
      element("ol", {},
        step(`Start it so that it may show files. FOLDER stands for the folder that holds "${storage}":`, text("How to start Label Studio",
          "LABEL_STUDIO_LOCAL_FILES_SERVING_ENABLED=true LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT=FOLDER label-studio start")),
        step("Make a project. In its settings, under Labeling Interface, Code, paste this:", text("Labelling interface", xml)),
        step(`In its settings, under Cloud Storage, add a source storage of the kind Local Files with the path FOLDER/${storage}. Save it; do not sync it.`),
        step("Import these tasks into it. ", button("/api/review/label_studio", "label_studio_tasks.json", "Tasks for Label Studio")),
        step("When all are judged, export it as JSON or JSON-MIN. ", dropZone("Drop Label Studio's export here: its annotations become verdicts", ".json", read))),
      element("h2", {}, "FiftyOne"),
      element("ol", {},
        step("Download the labels. ", button("/api/review/fiftyone", "labels.json", "labels.json for FiftyOne")),
        step("In Python:", text("How to open them in FiftyOne", `import fiftyone as fo
data = fo.Dataset.from_dir(
    dataset_type=fo.types.FiftyOneImageClassificationDataset,
    data_path="FOLDER/${images}", labels_path="labels.json", dynamic=True)
fo.launch_app(data)`))),
    );
  };
  const whole = element("details", { toggle: () => whole.open && guarded(tell) }, element("summary", {}, "The same review in Label Studio or FiftyOne"), steps);
  manifest.addEventListener("change", () => whole.open && guarded(tell));
  return whole;
}

async function review(place, signal, manifest, by) {
  const { images, reasons, training } = await get("/api/review/images", { manifest, by });
  if (!images.length) throw new Error("this manifest has no images");
  const names = (await get("/api/runs")).runs.filter((run) => run.manifest).map((run) => run.name);
  review.ended?.abort();
  review.ended = new AbortController();
  const view = parts(choice("training", ["none", ...names], training));
  const session = new Session(view, manifest, by, images, AbortSignal.any([signal, review.ended.signal]));
  session.listen(reasons);
  place.replaceChildren(view.whole);
  document.activeElement?.blur();
  session.draw();
}

function address(manifest, sha256) {
  return `/api/review/picture?${new URLSearchParams({ manifest, sha256 })}`;
}

// Sends a verdict on an image after all that were given before it, and again until it is kept; one that is refused, as
// where the image has left its manifest, is none, and holds up no other.
function save(image, verdict) {
  saving.left += 1;
  saving.chain = saving.chain.then(async () => {
    const sent = () => post("/api/review/verdicts", verdict).catch((error) => error);
    let answer = await sent();
    while (answer instanceof Error && !REFUSALS.includes(answer.status)) {
      saving.tell(new Error(`not saved yet, trying again: ${answer.message}`));
      await wait(LATER);
      answer = await sent();
    }
    saving.left -= 1;
    if (!(answer instanceof Error)) return saving.tell();
    Object.assign(image, { verdict: "none", why: "" });
    saving.tell(new Error(`not saved: ${answer.message}`));
  });
}

// The pictures of a manifest; those after the one on the screen are fetched before they are needed.
class Pictures {
  constructor(manifest, images) {
    [this.manifest, this.images, this.kept] = [manifest, images, new Map()]; // kept: number -> promise of its address
  }

  get(number) {
    if (!this.kept.has(number)) {
      const picture = fetch(address(this.manifest, this.images[number].sha256)).then((answer) => {
        if (!answer.ok) throw new Error("this image cannot be shown");
        return answer.blob();
      }).then(URL.createObjectURL);
      picture.catch(() => this.kept.delete(number));
      this.kept.set(number, picture);
    }
    return this.kept.get(number);
  }

  keepAround(number) {
    for (const [n, picture] of this.kept) {
      if (n >= number - 2 && n <= number + AHEAD) continue;
      this.kept.delete(n);
      picture.then(URL.revokeObjectURL, () => {});
    }
    for (let n = number + 1; n <= number + AHEAD && n < this.images.length; n++) this.get(n).catch(() => {});
  }
}

// The nearest training image, beside the image under review once that has stayed on the screen for a moment; asked for
// again while the studio still reads the training images.
class Nearest {
  constructor(view, manifest, ended) {
    [this.view, this.manifest, this.ended, this.asking] = [view, manifest, ended, new AbortController()];
  }

  stop() {
    this.asking.abort();
  }

  async show(sha256) {
    this.stop();
    this.asking = new AbortController(); // for one image at a time
    const { view, manifest } = this;
    const [training, ended] = [view.beside.value, AbortSignal.any([this.ended, this.asking.signal])];
    view.near.hidden = training === "none";
    if (view.near.hidden) return;
    await wait(150);
    if (ended.aborted) return;
    view.nearest.textContent = "Looking for the nearest training image …";
    try {
      const found = await get("/api/review/nearest", { manifest, sha256, training }, ended);
      view.other.src = address(training, found.sha256);
      view.other.alt = `The nearest training image, ${found.label}`;
      view.nearest.textContent = `The nearest of ${training}: ${found.bits} of 256 bits differ${found.bits <= COPY ? "; a copy" : ""}`;
    } catch (error) {
      if (ended.aborted) return;
      view.nearest.textContent = error.message;
      if (error.status === 503) setTimeout(() => ended.aborted || this.show(sha256), LATER);
    }
  }
}

// One person's way through the images of a manifest.
class Session {
  constructor(view, manifest, by, images, ended) {
    Object.assign(this, { view, manifest, by, images, ended });
    this.at = Math.max(images.findIndex((each) => each.verdict === "none"), 0); // the image that it is at
    [this.drawn, this.seen, this.past] = [-1, -1, []]; // the one that is drawn, is on the screen; verdicts to undo
    this.pictures = new Pictures(manifest, images);
    this.nearest = new Nearest(view, manifest, ended);
  }

  get image() {
    return this.images[this.at];
  }

  // Its buttons and keys, and what it tells of saving, until it has ended.
  listen(reasons) {
    const { view, ended } = this;
    const actions = {
      k: () => this.judge("keep"), x: () => this.judge("reject"), u: () => this.judge("unsure"), z: () => this.undo(),
      ArrowLeft: () => this.move(-1), ArrowRight: () => this.move(1), " ": () => view.picture.classList.toggle("zoomed"),
    };
    for (const [n, reason] of reasons.entries()) actions[n + 1] = () => this.judge("reject", reason);
    document.addEventListener("keydown", (event) => {
      const typing = event.target.closest("input, select, textarea");
      const pressing = event.key === " " && event.target.closest("button, a, summary");
      if (!actions[event.key] || typing || pressing || event.ctrlKey || event.metaKey || event.altKey) return;
      event.preventDefault();
      if (!event.repeat || event.key.startsWith("Arrow")) actions[event.key](); // a held key judges one image
    }, { signal: ended });
    const button = (key, title, shown = key) =>
      element("button", { type: "button", click: () => actions[key]() }, `${title} `, element("kbd", {}, shown));
    view.buttons.replaceChildren(
      button("k", "Keep"), button("x", "Reject"), button("u", "Unsure"), button("z", "Undo"), button("ArrowLeft", "Back", "←"),
      button("ArrowRight", "Next", "→"), button(" ", "Zoom", "space"));
    view.reasons.replaceChildren(...reasons.map((reason, n) => button(`${n + 1}`, reason.replace("_", " "))));
    view.beside.addEventListener("change", () => this.nearest.show(this.image.sha256));
    saving.tell = (error) => {
      say(view.message, error);
      this.draw();
    };
  }

  draw() {
    const { view, image } = this;
    if (this.drawn !== this.at) this.look();
    this.drawn = this.at;
    view.picture.alt = `${image.synthetic ? "Synthetic" : "Real"} ${image.label}, ${image.image}`;
    view.name.textContent = image.image;
    view.kind.textContent = `${image.synthetic ? "SYNTHETIC" : "real"} · ${image.label}`;
    view.why.textContent = image.rejected.length ? `Rules speak against it: ${image.rejected.join(", ")}` : "No rule speaks against it.";
    view.scores.replaceChildren(...Object.entries(image.scores).map(([name, score]) => element("li", {}, `${name} ${score}`)));
    view.verdict.textContent = image.verdict === "none" ? "no verdict yet" : [image.verdict, image.why].filter(Boolean).join(": ");
    view.verdict.className = `verdict ${image.verdict}`;
    const judged = this.images.filter((each) => each.verdict !== "none").length;
    view.count.textContent = `Image ${this.at + 1} of ${this.images.length}; ${judged} judged, ${saving.left ? `${saving.left} being saved` : "all saved"}`;
    [view.bar.max, view.bar.value] = [this.images.length, judged];
  }

  // Brings the image to the screen; no verdict counts before it is there, see judge().
  async look() {
    const { at: number, view } = this;
    const left = () => this.at !== number || this.ended.aborted;
    this.nearest.stop();
    this.seen = -1;
    delete view.picture.dataset.ready;
    this.pictures.keepAround(number);
    try {
      const found = await this.pictures.get(number);
      if (left()) return;
      view.picture.src = found;
      await view.picture.decode();
      if (left()) return;
      this.seen = number;
      view.picture.dataset.ready = "";
      this.nearest.show(this.image.sha256);
    } catch (error) {
      if (left()) return;
      say(view.message, error);
      setTimeout(() => left() || this.seen === number || this.look(), LATER);
    }
  }

  judge(verdict, why) {
    if (this.seen !== this.at) return;
    const { verdict: before, why: reason } = this.image;
    this.past.push([this.at, before, reason.replace(/^unsure(: )?/, "")]);
    this.say(verdict, why);
    this.move(1);
  }

  undo() {
    if (!this.past.length) return;
    const [number, before, reason] = this.past.pop();
    this.at = number;
    this.say(before, reason);
    this.draw();
  }

  say(verdict, why = "") {
    Object.assign(this.image, { verdict, why });
    save(this.image, { manifest: this.manifest, by: this.by, sha256: this.image.sha256, verdict, why });
  }

  move(by) {
    this.at = Math.min(Math.max(this.at + by, 0), this.images.length - 1);
    this.view.picture.classList.remove("zoomed");
    this.draw();
  }
}

function parts(beside) {
  const view = {
    picture: element("img", { alt: "" }), name: element("p", { class: "faint" }), kind: element("p"), why: element("p"),
    scores: element("ul", { class: "faint" }), verdict: element("span", {}), count: element("p", { class: "faint" }),
    bar: element("progress", { "aria-label": "judged" }), message: element("p", { role: "alert" }),
    buttons: element("div", { class: "buttons" }), reasons: element("div", { class: "buttons tight" }),
    beside, other: element("img", { alt: "" }), nearest: element("p", { class: "faint", role: "status" }),
  };
  view.near = element("div", { hidden: true }, view.other, view.nearest);
  const scores = element("details", {}, element("summary", {}, "Scores"), view.scores);
  const said = element("p", { "aria-live": "polite" }, "Your verdict: ", view.verdict);
  view.whole = element(
    "section", { class: "judge", "aria-label": "Image under review" }, element("div", {}, element("div", { class: "picture" }, view.picture), view.near),
    element("div", {}, view.count, view.bar, view.kind, said, view.buttons, element("h2", {}, "Reject because of"), view.reasons, field("Beside it, the nearest training image of", beside), view.why, scores, view.name, view.message),
  );
  return view;
}

async function agreement(place, manifest) {
  const { reviewers, pairs, file } = await get("/api/review/agreement", { manifest });
  review.ended?.abort();
  const people = Object.entries(reviewers).map(([by, n]) => element("li", {}, `${by}: ${n} images`));
  const section = element("section", {}, element("h2", {}, "Agreement"), element("ul", {}, ...people));
  for (const { reviewers: [one, other], kappa, disagreements } of pairs) {
    const interval = kappa.low === null ? "no interval: images drawn again do not differ"
      : `95 % interval ${kappa.low?.toFixed(2)} to ${kappa.high?.toFixed(2)}`;
    const value = kappa.value === null ? "cannot be told: they use one word only, or share no image"
      : `${kappa.value.toFixed(2)} (${interval}, n = ${kappa.n})`;
    const rows = disagreements.map(({ image, verdicts }) => element("li", {}, `${image}: ${verdicts.join(" / ")}`));
    section.append(
      element("h2", {}, `${one} and ${other}`), element("p", {}, `Cohen's kappa ${value}`),
      element("details", {}, element("summary", {}, `${rows.length} disagreements`), element("ul", {}, ...rows)),
    );
  }
  if (!pairs.length) section.append(element("p", {}, "It takes two reviewers to agree."));
  section.append(element("p", { class: "faint" }, `Verdicts are kept in ${file}, which curate takes as config.verdicts.`));
  place.replaceChildren(section);
}
