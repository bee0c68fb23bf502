// Classify: drop an image, and every saved classifier says what it takes it for and where it looked.

import { dropZone, element, get, say, send } from "./calls.js";

export async function show(place) {
  place.append(element("h1", {}, "Classify"));
  const { classifiers, use } = await get("/api/classifiers");
  place.append(element("p", {}, element("strong", {}, use)));
  if (!classifiers.length) {
    place.append(element("p", {}, "No run in this folder has left a classifier yet; dermjax classify trains one."));
    return;
  }
  const message = element("p", { role: "alert" });
  const answers = element("section", { "aria-label": "Answers", "aria-live": "polite" });
  const read = (file) => ask(file, classifiers, answers, message).catch((error) => say(message, error));
  const drop = dropZone("Drop a PNG or a JPEG here; it is not kept", "image/png,image/jpeg", read);
  place.append(drop, message, answers);
}

async function ask(file, classifiers, answers, message) {
  if (!file) return;
  say(message);
  if (!["image/png", "image/jpeg"].includes(file.type)) throw new Error("this is neither a PNG nor a JPEG");
  const shown = element("img", { class: "dropped", alt: "The image that was dropped", src: URL.createObjectURL(file) });
  answers.replaceChildren(shown);
  for (const classifier of classifiers) {
    const query = new URLSearchParams({ classifier });
    const { probabilities, heat, called, outside, told, synthetic, use } = await send(`/api/classify?${query}`, file);
    if (synthetic && !answers.querySelector(".error")) answers.append(element("p", { class: "error" }, "This image says that it is synthetic: a model made it."));
    const rows = Object.entries(probabilities).map(([label, p]) => element(
      "tr", {}, element("th", { scope: "row" }, label), element("td", {}, `${(100 * p).toFixed(1)} %`),
      element("td", {}, element("progress", { max: 1, value: p, "aria-label": label })),
    ));
    const looked = element("figure", { class: "heat" }, element("img", { src: heat, alt: `Heat map: where it looked for ${called}` }),
      element("figcaption", {}, `Lit where it looked for ${called}; that says where, not why.`));
    answers.append(
      element("h2", {}, classifier || "(the folder itself)"), element("p", { class: outside ? "error" : "faint" }, told),
      element("div", { class: "answer" }, looked, element("div", {}, element("table", {}, ...rows), element("p", { class: "faint" }, use))),
    );
  }
}
