// What every page of the studio uses: calls to the server, and elements whose text is never HTML.

export async function get(path, query = {}, signal = undefined) {
  const words = new URLSearchParams(query).toString();
  return answer(await reached(path + (words ? `?${words}` : ""), { signal }));
}

export async function post(path, body) {
  const headers = { "content-type": "application/json" };
  return answer(await reached(path, { method: "POST", headers, body: JSON.stringify(body) }));
}

export async function send(path, file, signal = undefined) {
  return answer(await reached(path, { method: "POST", headers: { "content-type": file.type }, body: file, signal }));
}

// Saves what is at an address as a file, as a link would; a refusal is an error.
export async function download(address, name) {
  const response = await reached(address);
  if (!response.ok) await answer(response);
  const url = URL.createObjectURL(await response.blob());
  element("a", { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 10000);
}

async function reached(...request) {
  try {
    return await fetch(...request);
  } catch {
    throw new Error("the studio does not answer; is it still running?");
  }
}

async function answer(response) {
  const value = await response.json().catch(() => ({ error: "the studio is busy; try again in a moment" }));
  if (!response.ok) throw Object.assign(new Error(value.error), { status: response.status });
  return value;
}

// element("p", {class: "hint"}, "text", another element …): attributes, listeners (functions) and children.
export function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") made.addEventListener(name, value);
    else if (value === true) made.setAttribute(name, "");
    else if (value !== false && value !== undefined) made.setAttribute(name, value);
  }
  made.append(...children.filter((each) => each !== undefined && each !== ""));
  return made;
}

export function field(title, control, hint) {
  return element("label", {}, title, control, hint ? element("span", { class: "hint" }, hint) : "");
}

// A place to drop a file on, or to choose one in; read(file) gets it, also when the same one is chosen again.
export function dropZone(title, accept, read) {
  const forget = (event) => { event.target.value = ""; };
  const pick = element("input", { type: "file", accept, click: forget, change: (event) => read(event.target.files[0]) });
  const over = (event) => {
    event.preventDefault();
    zone.classList.toggle("over", event.type === "dragover");
    if (event.type === "drop") read(event.dataTransfer.files[0]);
  };
  const zone = element("div", { class: "drop", dragover: over, dragleave: over, drop: over }, field(title, pick));
  return zone;
}

export function choice(name, options, chosen, empty = "(the folder itself)") {
  const made = options.map((each) => element("option", { value: each, selected: each === chosen }, each || empty));
  return element("select", { name }, ...made);
}

export function wait(milliseconds) {
  return new Promise((done) => setTimeout(done, milliseconds));
}

export function say(place, error) {
  place.replaceChildren(error ? element("span", { class: "error" }, error.message) : "");
}

export function percent(share) {
  const words = (value) => `${(100 * value).toFixed(1)} %`;
  return `${words(share.value)} (95 % interval ${words(share.low)} to ${words(share.high)}, n = ${share.n})`;
}
