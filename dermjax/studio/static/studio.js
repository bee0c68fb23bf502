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
  const page = Object.hasOwn(PAGES, name) ? name : "generate";
  for (const link of document.querySelectorAll("nav a")) {
    if (link.hash !== `#${page}`) link.removeAttribute("aria-current");
    else {
      link.setAttribute("aria-current", "page");
      document.title = `${link.textContent} – dermjax studio`;
    }
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

// Its #main is no page: following it would leave the one that is open.
document.querySelector(".skip").addEventListener("click", (event) => {
  event.preventDefault();
  main.focus();
});
// A file that misses its place would be opened by the browser in place of the studio.
for (const name of ["dragover", "drop"]) addEventListener(name, (event) => event.preventDefault());
addEventListener("hashchange", async () => {
  await show();
  main.focus();
});
show();
