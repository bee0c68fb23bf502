// The page: which part of it is shown follows from the address behind the #.

import * as classify from "./classify.js";
import * as compare from "./compare.js";
import * as generate from "./generate.js";
import * as review from "./review.js";
import * as runs from "./runs.js";
import * as study from "./study.js";
import * as transform from "./transform.js";
import { element } from "./calls.js";

const PAGES = { generate, compare, transform, classify, review, study, runs };
const main = document.getElementById("main");
let leave = () => {};

async function show() {
  leave();
  const [name, ...rest] = location.hash.slice(1).split("/");
  const page = PAGES[name] ? name : "generate";
  for (const link of document.querySelectorAll("nav a")) {
    if (link.hash === `#${page}`) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  const place = element("div");
  const ended = new AbortController();
  leave = () => ended.abort();
  main.replaceChildren(place);
  try {
    await PAGES[page].show(place, ended.signal, rest.map(decodeURIComponent).join("/"));
  } catch (error) {
    place.append(element("p", { class: "error", role: "alert" }, error.message));
  }
}

addEventListener("hashchange", async () => {
  await show();
  main.focus();
});
show();
