// Review: one image at a time, one key a verdict, each saved before it counts; and how reviewers agree.

import { choice, download, dropZone, element, field, get, post, say, send } from "./calls.js";

const COPY = 20; // bits that a copy may differ by
const AHEAD = 8; // pictures that are fetched before they are needed
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
  const state = { at: Math.max(images.findIndex((each) => each.verdict === "none"), 0), past: [], drawn: -1, seen: -1 };
  const pictures = new Map(); // number -> promise of its address, those near the one on the screen
  const names = (await get("/api/runs")).runs.filter((run) => run.manifest).map((run) => run.name);
  const beside = choice("training", ["none", ...names], training);
  const view = parts(beside);
  beside.addEventListener("change", () => near(images[state.at]));
  review.ended?.abort();
  review.ended = new AbortController();
  const until = AbortSignal.any([signal, review.ended.signal]);
  let asking = new AbortController(); // of the nearest image, for one image at a time
  const url = (each) => `/api/review/picture?${new URLSearchParams({ manifest, sha256: each.sha256 })}`;

  function fetched(number) {
    if (!pictures.has(number)) {
      const picture = fetch(url(images[number])).then((answer) => {
        if (!answer.ok) throw new Error("this image cannot be shown");
        return answer.blob();
      });
      pictures.set(number, picture.then(URL.createObjectURL));
      pictures.get(number).catch(() => pictures.delete(number));
    }
    return pictures.get(number);
  }

  // No verdict counts before its image is on the screen, see judge().
  async function look() {
    const number = state.at;
    asking.abort();
    state.seen = -1;
    delete view.picture.dataset.ready;
    for (const [n, picture] of pictures) {
      if (n >= number - 2 && n <= number + AHEAD) continue;
      pictures.delete(n);
      picture.then(URL.revokeObjectURL, () => {});
    }
    for (let n = number + 1; n <= number + AHEAD && n < images.length; n++) fetched(n).catch(() => {});
    try {
      const found = await fetched(number);
      if (state.at !== number) return;
      view.picture.src = found;
      await view.picture.decode();
      if (state.at !== number) return;
      state.seen = number;
      view.picture.dataset.ready = "";
      near(images[number]);
    } catch (error) {
      if (state.at !== number || until.aborted) return;
      say(view.message, error);
      setTimeout(() => state.at === number && state.seen !== number && !until.aborted && look(), 1000);
    }
  }

  // The nearest training image, side by side, once the image has stayed on the screen for a moment; asked again while
  // the studio still reads the training images.
  async function near(each) {
    asking.abort();
    asking = new AbortController();
    const ended = AbortSignal.any([until, asking.signal]);
    const of = beside.value;
    view.near.hidden = of === "none";
    if (of === "none") return;
    await new Promise((done) => setTimeout(done, 150));
    if (ended.aborted) return;
    view.nearest.textContent = "Looking for the nearest training image …";
    try {
      const found = await get("/api/review/nearest", { manifest, sha256: each.sha256, training: of }, ended);
      view.other.src = `/api/review/picture?${new URLSearchParams({ manifest: of, sha256: found.sha256 })}`;
      view.other.alt = `The nearest training image, ${found.label}`;
      view.nearest.textContent = `The nearest of ${of}: ${found.bits} of 256 bits differ${found.bits <= COPY ? "; a copy" : ""}`;
    } catch (error) {
      if (ended.aborted) return;
      view.nearest.textContent = error.message;
      if (error.status === 503) setTimeout(() => ended.aborted || near(each), 1000);
    }
  }

  function draw() {
    const each = images[state.at];
    if (state.drawn !== state.at) look();
    state.drawn = state.at;
    view.picture.alt = `${each.synthetic ? "Synthetic" : "Real"} ${each.label}, ${each.image}`;
    view.name.textContent = each.image;
    view.kind.textContent = `${each.synthetic ? "SYNTHETIC" : "real"} · ${each.label}`;
    view.why.textContent = each.rejected.length ? `Rules speak against it: ${each.rejected.join(", ")}` : "No rule speaks against it.";
    const scores = Object.entries(each.scores).map(([name, score]) => element("li", {}, `${name} ${score}`));
    view.scores.replaceChildren(...scores);
    view.verdict.textContent = each.verdict === "none" ? "no verdict yet" : [each.verdict, each.why].filter(Boolean).join(": ");
    view.verdict.className = `verdict ${each.verdict}`;
    const judged = images.filter((one) => one.verdict !== "none").length;
    view.count.textContent = `Image ${state.at + 1} of ${images.length}; ${judged} judged, ${saving.left ? `${saving.left} being saved` : "all saved"}`;
    view.bar.max = images.length;
    view.bar.value = judged;
  }

  function save(number, verdict, why = "") {
    Object.assign(images[number], { verdict, why });
    saving.left += 1;
    saving.chain = saving.chain.then(async () => {
      for (;;) {
        try {
          await post("/api/review/verdicts", { manifest, by, sha256: images[number].sha256, verdict, why });
          break;
        } catch (error) {
          saving.tell(new Error(`not saved yet, trying again: ${error.message}`));
          await new Promise((done) => setTimeout(done, 1000));
        }
      }
      saving.left -= 1;
      saving.tell();
    });
  }

  function judge(verdict, why) {
    if (state.seen !== state.at) return;
    const { verdict: before, why: reason } = images[state.at];
    state.past.push([state.at, before, reason.replace(/^unsure(: )?/, "")]);
    save(state.at, verdict, why);
    move(1);
  }

  function move(by) {
    state.at = Math.min(Math.max(state.at + by, 0), images.length - 1);
    view.picture.classList.remove("zoomed");
    draw();
  }

  function undo() {
    const last = state.past.pop();
    if (!last) return;
    state.at = last[0];
    save(...last);
    draw();
  }

  const actions = {
    k: () => judge("keep"), x: () => judge("reject"), u: () => judge("unsure"), z: undo,
    ArrowLeft: () => move(-1), ArrowRight: () => move(1), " ": () => view.picture.classList.toggle("zoomed"),
  };
  for (const [n, reason] of reasons.entries()) actions[n + 1] = () => judge("reject", reason);
  document.addEventListener("keydown", (event) => {
    const typing = event.target.closest("input, select, textarea");
    const pressing = event.key === " " && event.target.closest("button, a, summary");
    if (!actions[event.key] || typing || pressing || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    if (!event.repeat || event.key.startsWith("Arrow")) actions[event.key](); // a held key judges one image
  }, { signal: until });
  saving.tell = (error) => {
    say(view.message, error);
    draw();
  };
  const labels = [["k", "Keep"], ["x", "Reject"], ["u", "Unsure"], ["z", "Undo"], ["ArrowLeft", "Back", "←"],
    ["ArrowRight", "Next", "→"], [" ", "Zoom", "space"]];
  const buttons = labels.map(([key, title, shown]) =>
    element("button", { type: "button", click: () => actions[key]() }, `${title} `, element("kbd", {}, shown || key)));
  view.buttons.replaceChildren(...buttons);
  view.reasons.replaceChildren(...reasons.map((reason, n) =>
    element("button", { type: "button", click: () => actions[n + 1]() }, `${reason.replace("_", " ")} `, element("kbd", {}, `${n + 1}`))));
  place.replaceChildren(view.whole);
  document.activeElement?.blur();
  draw();
}

function parts(beside) {
  const view = {
    picture: element("img", { alt: "" }), name: element("p", { class: "faint" }), kind: element("p"), why: element("p"),
    scores: element("ul", { class: "faint" }), verdict: element("span", {}), count: element("p", { class: "faint" }),
    bar: element("progress", { "aria-label": "judged" }), message: element("p", { role: "alert" }),
    buttons: element("div", { class: "buttons" }), reasons: element("div", { class: "buttons tight" }),
    other: element("img", { alt: "" }), nearest: element("p", { class: "faint", role: "status" }),
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
