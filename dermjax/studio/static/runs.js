// Runs: the folders, newest first, with their state and report.

import { element, get } from "./calls.js";

export async function show(place) {
  place.append(element("h1", {}, "Runs"));
  const { runs } = await get("/api/runs");
  if (!runs.length) {
    place.append(element("p", {}, "There are no runs in this folder yet."));
    return;
  }
  const heads = ["Run", "Open", "Stage", "State", "Changed"].map((each) => element("th", { scope: "col" }, each));
  const rows = runs.map(row);
  const table = element("table", {}, element("thead", {}, element("tr", {}, ...heads)), element("tbody", {}, ...rows));
  place.append(element("div", { class: "wide", tabindex: 0, role: "region", "aria-label": "Runs" }, table));
}

function row(run) {
  const name = run.name || "(the folder itself)";
  const path = run.name.split("/").map(encodeURIComponent).join("/");
  const links = element("td");
  if (run.report) {
    const report = `/runs/${path ? `${path}/` : ""}report.html`;
    links.append(element("a", { href: report, "aria-label": `Report of ${name}` }, "report"), " ");
  }
  if (run.manifest) links.append(element("a", { href: `#review/${path}`, "aria-label": `Review ${name}` }, "review"));
  const changed = new Date(1000 * run.changed).toLocaleString();
  const cells = [run.stage || "–", run.state, changed].map((each) => element("td", {}, each));
  return element("tr", {}, element("th", { scope: "row" }, name), links, ...cells);
}
