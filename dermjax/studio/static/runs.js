// Runs: the folders, newest first, with their state and report; a run at work with its curve; configs to start.

import { element, get, post, say, wait } from "./calls.js";

const OFTEN = 2000; // milliseconds between two looks at a run

export async function show(place, signal, chosen) {
  place.append(element("h1", {}, "Runs"));
  if (chosen !== "") return watch(place, signal, chosen);
  const [refused, lost] = [element("p", { role: "alert" }), element("p", { role: "alert" })];
  const [list, configs] = [element("section", { "aria-label": "Runs" }), element("section", { "aria-label": "Prepared configs" })];
  place.append(lost, list, configs, refused);
  while (!signal.aborted) {
    try {
      redraw(list, (await get("/api/runs")).runs, listed);
      redraw(configs, (await get("/api/prepared")).configs, (each) => prepared(each, refused));
      say(lost);
    } catch (error) {
      say(lost, error);
    }
    await wait(OFTEN);
  }
}

// Draws what has changed since the last look; the focus stays where it was.
function redraw(section, value, draw) {
  const now = JSON.stringify(value);
  if (section.dataset.drawn === now) return;
  const focused = section.contains(document.activeElement) ? document.activeElement.dataset.of : undefined;
  section.dataset.drawn = now;
  section.replaceChildren(...draw(value));
  if (focused) [...section.querySelectorAll("[data-of]")].find((each) => each.dataset.of === focused)?.focus();
}

function table(title, heads, rows) {
  const head = element("tr", {}, ...heads.map((each) => element(each ? "th" : "td", each ? { scope: "col" } : {}, each)));
  return element("div", { class: "wide", tabindex: 0, role: "region", "aria-label": title, "data-of": title },
    element("table", {}, element("thead", {}, head), element("tbody", {}, ...rows)));
}

function listed(runs) {
  if (!runs.length) return [element("p", {}, "There are no runs in this folder yet.")];
  return [table("Runs", ["Run", "Open", "Stage", "State", "Changed"], runs.map(row))];
}

function row(run) {
  const name = run.name || "(the folder itself)";
  const path = run.name.split("/").map(encodeURIComponent).join("/");
  const links = element("td");
  const link = (href, title, text) => links.append(element("a", { href, "aria-label": `${title} ${name}`, "data-of": `${title} ${name}` }, text), " ");
  if (run.report) link(`/runs/${path ? `${path}/` : ""}report.html`, "Report of", "report");
  if (run.manifest) link(`#review/${path}`, "Review", "review");
  if (run.metrics) link(`#runs/${path || "."}`, "Curve of", "curve");
  const changed = new Date(1000 * run.changed).toLocaleString();
  const cells = [run.stage || "–", run.state, changed].map((each) => element("td", {}, each));
  return element("tr", {}, element("th", { scope: "row" }, name), links, ...cells);
}

function prepared(configs, refused) {
  const heading = element("h2", {}, "Prepared configs");
  if (!configs.length) {
    return [heading, element("p", { class: "faint" }, "None. A file of this folder named after its stage, such as tune.py or tune_few.py, can be started here; nothing else can.")];
  }
  const rows = configs.map((each) => {
    const title = each.ours ? "Stop" : each.state === "stopped" ? "Continue" : "Start";
    const click = (event) => {
      event.target.disabled = true;
      const asked = post(`/api/prepared/${each.ours ? "stop" : "start"}`, { config: each.config });
      asked.then(() => say(refused), (error) => say(refused, error)).finally(() => { event.target.disabled = false; });
    };
    const button = each.state === "running" && !each.ours ? "started elsewhere"
      : element("button", { type: "button", click, "aria-label": `${title} ${each.config}`, "data-of": each.config }, title);
    const made = !["", "starting"].includes(each.state);
    const run = made ? element("a", { href: `#runs/${each.run}`, "data-of": `run ${each.run}` }, each.run) : each.run;
    return element("tr", {}, element("th", { scope: "row" }, each.config), element("td", {}, button), element("td", {}, run),
      element("td", {}, each.state || "not started"), element("td", { class: "faint" }, each.said));
  });
  return [heading, table("Prepared configs", ["Config", "", "Run", "State", "Its last line"], rows)];
}

async function watch(place, signal, chosen) {
  const run = chosen === "." ? "" : chosen;
  const [told, said] = [element("p", { role: "status" }), element("p", { class: "faint" })];
  const [curve, message] = [element("div"), element("p", { role: "alert" })];
  const picture = element("img", { alt: "Synthetic samples, a row a prompt" });
  const samples = element("figure", { class: "samples", hidden: true }, picture, element("span", { class: "mark" }, "SYNTHETIC"));
  place.append(element("h2", {}, run || "(the folder itself)"), told, said, message, curve, samples, element("p", {}, element("a", { href: "#runs" }, "All runs")));
  let newest = null;
  while (!signal.aborted) {
    try {
      const state = await get("/api/runs/progress", { run });
      if (told.textContent !== words(state)) told.textContent = words(state);
      said.textContent = state.said;
      curve.replaceChildren(drawn(state.curves));
      if (state.samples !== null && state.samples !== newest) {
        newest = state.samples;
        picture.src = `/api/runs/samples?${new URLSearchParams({ run })}&step=${newest}`;
        picture.alt = `Synthetic samples of step ${newest}, a row a prompt`;
        samples.hidden = false;
      }
      say(message);
    } catch (error) {
      say(message, error);
    }
    await wait(OFTEN);
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
