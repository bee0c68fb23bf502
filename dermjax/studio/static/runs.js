// Runs: the folders, newest first, with their state and report; a run at work with its curve; configs to start.

import { element, get, post, say } from "./calls.js";

const OFTEN = 2000; // milliseconds between two looks at a run

export async function show(place, signal, chosen) {
  place.append(element("h1", {}, "Runs"));
  if (chosen !== "") return watch(place, signal, chosen);
  const { runs } = await get("/api/runs");
  if (runs.length) {
    const heads = ["Run", "Open", "Stage", "State", "Changed"].map((each) => element("th", { scope: "col" }, each));
    place.append(wide("Runs", element("table", {}, element("thead", {}, element("tr", {}, ...heads)), element("tbody", {}, ...runs.map(row)))));
  } else place.append(element("p", {}, "There are no runs in this folder yet."));
  const configs = element("section", { "aria-label": "Prepared configs" });
  place.append(configs);
  while (!signal.aborted) {
    await prepared(configs);
    await wait();
  }
}

function wide(title, table) {
  return element("div", { class: "wide", tabindex: 0, role: "region", "aria-label": title }, table);
}

function wait() {
  return new Promise((done) => setTimeout(done, OFTEN));
}

function row(run) {
  const name = run.name || "(the folder itself)";
  const path = run.name.split("/").map(encodeURIComponent).join("/");
  const links = element("td");
  if (run.report) {
    const report = `/runs/${path ? `${path}/` : ""}report.html`;
    links.append(element("a", { href: report, "aria-label": `Report of ${name}` }, "report"), " ");
  }
  if (run.manifest) links.append(element("a", { href: `#review/${path}`, "aria-label": `Review ${name}` }, "review"), " ");
  if (run.metrics) links.append(element("a", { href: `#runs/${path || "."}`, "aria-label": `Curve of ${name}` }, "curve"));
  const changed = new Date(1000 * run.changed).toLocaleString();
  const cells = [run.stage || "–", run.state, changed].map((each) => element("td", {}, each));
  return element("tr", {}, element("th", { scope: "row" }, name), links, ...cells);
}

// Rows are kept from one look to the next, so that the focus stays on a button.
async function prepared(section) {
  const { configs } = await get("/api/prepared");
  const now = JSON.stringify(configs);
  if (section.dataset.drawn === now) return;
  const focused = document.activeElement?.getAttribute?.("aria-label");
  section.dataset.drawn = now;
  const message = element("p", { role: "alert" });
  const rows = configs.map((each) => {
    const action = each.ours ? "stop" : "start";
    const click = (event) => {
      event.target.disabled = true;
      post(`/api/prepared/${action}`, { config: each.config }).catch((error) => say(message, error)).finally(() => { event.target.disabled = false; });
    };
    const title = each.ours ? "Stop" : "Start";
    const button = each.state === "running" && !each.ours ? "started elsewhere" : element("button", { type: "button", click, "aria-label": `${title} ${each.config}` }, title);
    const run = each.state ? element("a", { href: `#runs/${each.run}` }, each.run) : each.run;
    return element("tr", {}, element("th", { scope: "row" }, each.config), element("td", {}, button), element("td", {}, run),
      element("td", {}, each.state || "not started"), element("td", { class: "faint" }, each.said));
  });
  const heads = ["Config", "", "Run", "State", "Its last line"].map((each) => element(each ? "th" : "td", each ? { scope: "col" } : {}, each));
  section.replaceChildren(element("h2", {}, "Prepared configs"));
  if (rows.length) section.append(wide("Prepared configs", element("table", {}, element("thead", {}, element("tr", {}, ...heads)), element("tbody", {}, ...rows))), message);
  else section.append(element("p", { class: "faint" }, "None. A file of this folder named after its stage, such as tune.py or tune_few.py, can be started here; nothing else can."));
  if (focused) [...section.querySelectorAll("button")].find((each) => each.getAttribute("aria-label").slice(5).trim() === focused.slice(5).trim())?.focus();
}

async function watch(place, signal, chosen) {
  const run = chosen === "." ? "" : chosen;
  const told = element("p", { role: "status" });
  const [curve, message] = [element("div"), element("p", { role: "alert" })];
  const picture = element("img", { alt: "Synthetic samples, a row a prompt" });
  const samples = element("figure", { class: "samples", hidden: true }, picture, element("span", { class: "mark" }, "SYNTHETIC"));
  place.append(element("h2", {}, run || "(the folder itself)"), told, message, curve, samples, element("p", {}, element("a", { href: "#runs" }, "All runs")));
  let newest = null;
  while (!signal.aborted) {
    try {
      const state = await get("/api/runs/progress", { run });
      told.textContent = words(state);
      curve.replaceChildren(drawn(state.curves));
      if (state.samples !== null && state.samples !== newest) {
        newest = state.samples;
        picture.src = `/api/runs/samples?${new URLSearchParams({ run })}&step=${newest}`;
        picture.alt = `Synthetic samples of step ${newest}, a row a prompt`;
        samples.hidden = false;
      }
      say(message);
      if (state.state !== "running") return;
    } catch (error) {
      say(message, error);
    }
    await wait();
  }
}

function words({ state, step, steps, seconds_left: left, curves }) {
  const minutes = left === null ? "" : `, about ${left > 90 ? `${Math.round(left / 60)} min` : `${Math.ceil(left)} s`} left`;
  const values = Object.entries(curves).filter(([, points]) => points.length).map(([name, points]) => `${title(name)} ${points.at(-1)[1].toPrecision(3)}`);
  return `${state}: step ${step}${steps ? ` of ${steps}` : ""}${minutes}. ${values.join(", ")}`;
}

function title(name) {
  return { loss: "loss", validation_loss: "held-out loss" }[name];
}

function drawn(curves) {
  const [width, height, left, low] = [640, 260, 56, 28];
  const svg = (tag, attributes, ...children) => {
    const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
    made.append(...children);
    return made;
  };
  const points = Object.values(curves).flat();
  if (!points.length) return element("p", { class: "faint" }, "No loss is written yet.");
  const [steps, values] = [points.map(([step]) => step), points.map(([, value]) => value)];
  const [last, least, most] = [Math.max(...steps, 1), Math.min(...values), Math.max(...values)];
  const x = (step) => left + (step / last) * (width - left - 12);
  const y = (value) => height - low - ((value - least) / (most - least || 1)) * (height - low - 16);
  const lines = Object.entries(curves).filter(([, each]) => each.length).flatMap(([name, each]) => [
    svg("polyline", { class: name, points: each.map(([step, value]) => `${x(step).toFixed(1)},${y(value).toFixed(1)}`).join(" ") }),
    ...(name === "validation_loss" ? each.map(([step, value]) => svg("circle", { class: name, cx: x(step), cy: y(value), r: 4 })) : []),
  ]);
  const labels = [[most, y(most) + 4], [least, y(least) + 4]].map(([value, at]) => svg("text", { x: left - 8, y: at, "text-anchor": "end" }, value.toPrecision(3)));
  const ends = svg("text", { x: width - 12, y: height - 6, "text-anchor": "end" }, `step ${last}`);
  const legend = element("p", { class: "faint" }, element("span", { class: "key loss" }), "loss ", element("span", { class: "key validation_loss" }), "held-out loss (points)");
  return element("div", {}, svg("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": "Loss by step" },
    svg("rect", { x: left, y: 12, width: width - left - 12, height: height - low - 12 }), ...lines, ...labels, ends), legend);
}
