// Classify: drop an image, and every saved classifier says what it takes it for and where it looked.

import { dropZone, element, get, say, send } from "./calls.js";

const OF_THE_IMAGE = [413, 415]; // refusals that every classifier would repeat

export async function show(place, signal) {
  place.append(element("h1", {}, "Classify"));
  const { classifiers, use } = await get("/api/classifiers");
  place.append(element("p", {}, element("strong", {}, use), " A percentage says how sure a classifier is among the classes that it knows, as if all were equally frequent: it is not the risk of a patient."));
  if (!classifiers.length) {
    place.append(element("p", {}, "No run in this folder has left a classifier yet; dermjax classify trains one."));
    return;
  }
  const message = element("p", { role: "alert" });
  const answers = element("section", { "aria-label": "Answers", "aria-live": "polite" });
  let asked = new AbortController();
  const read = (file) => {
    if (!file) return;
    asked.abort(); // no answer about another image may come to stand below this one
    asked = new AbortController();
    const ended = AbortSignal.any([signal, asked.signal]);
    ask(file, classifiers, answers, message, ended).catch((error) => ended.aborted || say(message, error));
  };
  place.append(dropZone("Drop a PNG or a JPEG here; it is not kept", "image/png,image/jpeg", read), message, answers);
}

async function ask(file, classifiers, answers, message, ended) {
  say(message);
  answers.replaceChildren();
  if (!["image/png", "image/jpeg"].includes(file.type)) throw new Error("this is neither a PNG nor a JPEG");
  const shown = element("img", { class: "dropped", alt: "The image that was dropped", src: URL.createObjectURL(file) });
  ended.addEventListener("abort", () => URL.revokeObjectURL(shown.src));
  const waiting = element("p", { class: "faint" });
  answers.append(shown, waiting);
  for (const [n, classifier] of classifiers.entries()) {
    const name = classifier || "(the folder itself)";
    waiting.textContent = `Asking ${name}, ${n + 1} of ${classifiers.length}; the first time takes longer.`;
    const answer = await send(`/api/classify?${new URLSearchParams({ classifier })}`, file, ended).catch((error) => error);
    if (ended.aborted) return;
    if (OF_THE_IMAGE.includes(answer.status)) {
      answers.replaceChildren();
      throw answer;
    }
    if (answer.synthetic && !answers.querySelector(".made")) shown.after(element("p", { class: "error made" }, "This image says that it is synthetic: a model made it."));
    waiting.before(element("h2", {}, name), ...(answer instanceof Error ? [element("p", { class: "error" }, answer.message)] : said(answer)));
  }
  waiting.remove();
}

// What a classifier answered, as elements.
function said({ probabilities, heat, called, outside, told, use }) {
  const rows = Object.entries(probabilities).map(([label, p]) => element(
    "tr", {}, element("th", { scope: "row" }, label), element("td", {}, `${(100 * p).toFixed(1)} %`),
    element("td", {}, element("progress", { max: 1, value: p, "aria-label": label })),
  ));
  const looked = element("figure", { class: "heat" }, element("img", { src: heat, alt: `Heat map: where it looked for ${called}` }),
    element("figcaption", {}, `Lit where it looked for ${called}; that says where, not why.`));
  return [element("p", { class: outside ? "error" : "faint" }, told),
    element("div", { class: "answer" }, looked, element("div", {}, element("table", {}, ...rows), element("p", { class: "faint" }, use)))];
}
