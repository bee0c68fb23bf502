// Compare: a grid over two settings, all else equal, from the same noise.

import { choice, element, field, get, post, say } from "./calls.js";
import { controls, follow, jobs, keep, remember, values } from "./generate.js";

const AXES = ["sampler", "steps", "guidance", "seed", "lora_weight", "prompt word"];
const USUAL = {
  sampler: "DPM++ 2M, Euler a", steps: "5, 10, 20", guidance: "1, 3.5, 7", seed: "0, 1, 2", lora_weight: "0, 0.5, 1",
  "prompt word": "brown, black, red",
};
const TITLES = { lora_weight: "LoRA weight" };

export async function show(place, signal) {
  const inputs = controls(await get("/api/models"));
  delete inputs.count;
  const axes = { across: axis("across", "guidance", "Columns"), down: axis("down", "steps", "Rows") };
  const [message, stage, grid] = [element("p", { role: "alert" }), element("div"), element("div")];
  const status = element("p", { role: "status", class: "faint" });
  const view = { page: "compare", inputs: { ...inputs }, message, status, stage, signal };
  for (const [name, { what, text }] of Object.entries(axes)) Object.assign(view.inputs, { [name]: what, [`${name}_values`]: text });
  remember(view);
  const submit = async (event) => {
    event.preventDefault();
    say(message);
    try {
      const { job, across, down } = await post("/api/compare", values(view.inputs));
      const entry = keep(view.page, { job, across, down, titles: [axes.down.what.value, axes.across.what.value] });
      await follow({ ...view, add: table(grid, entry) }, entry);
    } catch (error) {
      say(message, error);
    }
  };
  const form = element(
    "form", { submit }, axes.across.whole, axes.down.whole,
    element("p", { class: "hint" }, "Put commas between values. For a prompt word, the first is the one that stands in the prompt."), field("Prompt", inputs.prompt), field("Negative prompt", inputs.negative_prompt),
    element("div", { class: "pair" }, field("Model", inputs.model), field("Sampler", inputs.sampler)),
    element("div", { class: "pair" }, field("Steps", inputs.steps), field("Guidance", inputs.guidance)),
    element("div", { class: "pair" }, field("LoRA", inputs.lora), field("Its weight", inputs.lora_weight)),
    element("div", { class: "pair" }, field("Seed", inputs.seed), field("Side in pixels", inputs.size, "0 is the model's own")),
    element("div", { class: "buttons" }, element("button", { class: "main" }, "Compare")), message,
  );
  const right = element(
    "section", { "aria-label": "Grid" },
    element("p", { class: "faint" }, "Every cell starts from the same noise, unless the seed differs. The first image with another sampler or number of steps takes longer."),
    status, stage, grid,
  );
  place.append(element("h1", {}, "Compare"), element("div", { class: "columns" }, form, right));
  for (const [n, entry] of jobs(view.page).entries()) {
    const last = n === jobs(view.page).length - 1; // there is room for one grid
    follow({ ...view, add: last ? table(grid, entry) : () => {} }, entry, true);
  }
}

function axis(name, chosen, title) {
  const text = element("input", { name: `${name}_values`, required: true, maxlength: 600, value: USUAL[chosen] });
  const what = choice(name, AXES, chosen);
  what.addEventListener("change", () => { text.value = USUAL[what.value]; });
  const whole = element("div", { class: "pair" }, field(title, what), field(`Values of ${title.toLowerCase()}`, text));
  return { what, text, whole };
}

// Draws the empty grid; the function that it returns puts the images of a state into their cells.
function table(grid, { across, down, titles: names }) {
  const heads = across.map((each) => element("th", { scope: "col" }, `${each}`));
  const cells = down.map(() => across.map(() => element("td")));
  const rows = down.map((each, n) => element("tr", {}, element("th", { scope: "row" }, `${each}`), ...cells[n]));
  const titles = names.map((each) => TITLES[each] || each);
  const whole = element(
    "table", { class: "grid" }, element("caption", {}, `${titles[0]} down, ${titles[1]} across`),
    element("thead", {}, element("tr", {}, element("td"), ...heads)), element("tbody", {}, ...rows),
  );
  grid.replaceChildren(element("div", { class: "wide", tabindex: 0, role: "region", "aria-label": "Grid of images" }, whole));
  return (state) => {
    for (const made of state.images) {
      const [row, column] = [Math.floor(made.place / across.length), made.place % across.length];
      const cell = cells[row][column];
      if (cell.childElementCount) continue;
      const url = `/api/images/${made.image}`;
      cell.append(element(
        "figure", {}, element("a", { href: url, download: `${made.name}.png` },
          element("img", { src: url, alt: `Synthetic: ${titles[0]} ${down[row]}, ${titles[1]} ${across[column]}` })),
        element("span", { class: "mark" }, "SYNTHETIC"),
      ));
    }
  };
}
