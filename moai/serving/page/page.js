"use strict";
// The page asks /v1/chat/completions as every client does. All text that comes back is put in as text, never as HTML.
const at = (id) => document.getElementById(id);
const state = { settings: null, dataUrl: null, turns: [], scene: null, asking: null, overlayUrl: null, drawing: 0 };

const headers = () => {
  const key = at("key").value;
  return { "Content-Type": "application/json", ...(key ? { Authorization: `Bearer ${key}` } : {}) };
};
const tell = (message) => { at("problem").textContent = message; };
const chosenKinds = () => [...at("kinds").querySelectorAll("input:checked")].map((box) => box.value);

async function readError(reply) {
  try { return (await reply.json()).error.message; } catch { return `The server answered ${reply.status}.`; }
}

function show(url) {
  at("image").src = url;
  at("image").hidden = false;
  at("hint").hidden = true;
}

function clearTurns() {
  if (state.asking) state.asking.abort();
  state.turns = [];
  state.scene = null;
  at("turns").replaceChildren();
  at("verbalization").textContent = "Nothing yet.";
  at("shares").textContent = "Nothing yet.";
  at("again").disabled = true;
  tell("");
  if (state.dataUrl) show(state.dataUrl);
}

async function takeImage(blob) {
  if (!blob.type.startsWith("image/")) return tell("Expected an image, got another file.");
  if (blob.size > state.settings.max_image_bytes) return tell(`Expected at most ${state.settings.max_image_bytes} bytes, got ${blob.size}.`);
  state.dataUrl = await new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(reader.error);
    reader.readAsDataURL(blob);
  });
  clearTurns();
}

function addTurn(role, text) {
  const turn = document.createElement("p");
  turn.className = role;
  turn.textContent = text;
  at("turns").append(turn);
  return turn;
}

// An answer with images is told whole at its end: the text that was streamed gives way to its parts.
function showParts(turn, parts) {
  turn.replaceChildren(...parts.map((part) => {
    if (part.type === "text") return document.createTextNode(part.text);
    const image = document.createElement("img");
    Object.assign(image, { src: part.image_url.url, alt: "An image that the model drew" });
    return image;
  }));
}

// The image goes with the first question; later turns are about it.
function buildMessages(turns) {
  return turns.map(({ role, text }, index) => ({
    role,
    content: index === 0 && state.dataUrl
      ? [{ type: "image_url", image_url: { url: state.dataUrl } }, { type: "text", text }]
      : text,
  }));
}

async function ask(question) {
  if (state.asking) return;
  if (!state.dataUrl) return tell("Choose an image first.");
  tell("");
  state.asking = new AbortController();
  for (const id of ["ask", "again"]) at(id).disabled = true;
  at("stop").disabled = false;
  const turns = [...state.turns, { role: "user", text: question }];
  addTurn("user", question);
  const shown = addTurn("assistant", "");
  let answer = "", extras = null;
  try {
    const kinds = chosenKinds(), routing = at("routing").value, drawn = Number(at("drawn").value);
    const reply = await fetch("/v1/chat/completions", {
      method: "POST", headers: headers(), signal: state.asking.signal,
      body: JSON.stringify({
        model: state.settings.model, stream: true, messages: buildMessages(turns),
        moai: {
          explain: true, options: { ...(routing ? { routing } : {}), ...(drawn ? { images: drawn } : {}) },
          ...(kinds.length < state.settings.kinds.length ? { verbalizers: kinds } : {}),
        },
      }),
    });
    if (!reply.ok) throw new Error(await readError(reply));
    for await (const event of readEvents(reply.body)) {
      if (event.error) throw new Error(event.error.message);
      answer += event.choices[0]?.delta.content ?? "";
      shown.textContent = answer;
      extras = event.moai ?? extras;
    }
    if (extras?.parts) showParts(shown, extras.parts);
    state.turns = [...turns, { role: "assistant", text: answer }];
  } catch (error) {
    if (error.name !== "AbortError") tell(error.message);
    if (answer) state.turns = [...turns, { role: "assistant", text: answer }];
    else { shown.previousSibling?.remove(); shown.remove(); at("question").value ||= question; }
  } finally {
    state.asking = null;
    at("ask").disabled = false;
    at("stop").disabled = true;
    at("again").disabled = !state.turns.length;
  }
  if (!extras) return;
  if (extras.is_unsure) {
    const note = document.createElement("small");
    note.className = "unsure";
    note.textContent = `may be a guess: confidence ${extras.confidence.toFixed(2)}`;
    shown.append(" ", note);
  }
  await explain(extras);
}

async function* readEvents(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const lines = (rest + value).split("\n\n");
    rest = lines.pop();
    for (const line of lines) {
      if (line.startsWith("data: ") && line !== "data: [DONE]") yield JSON.parse(line.slice(6));
    }
  }
}

async function explain(extras) {
  const missing = Object.entries(extras.missing).map(([kind, why]) => `without ${kind}: ${why}`);
  at("verbalization").textContent = [extras.verbalization || "Nothing was told.", ...missing].join("\n");
  const shares = (extras.routing ?? []).flatMap((layer) => ["image", "language"]
    .filter((stream) => layer[stream]).map((stream) => [layer.layer, stream, layer[stream]]));
  at("shares").replaceChildren(shares.length ? buildTable(shares) : "This model does not tell.");
  state.scene = extras.scenes[0] ?? null;
  await draw();
}

function buildTable(shares) {
  const table = document.createElement("table");
  for (const [layer, stream, experts] of shares) {
    const row = table.insertRow();
    for (const text of [`layer ${layer}`, stream, ...Object.entries(experts).map(([name, share]) => `${name} ${Math.round(100 * share)} %`)]) {
      row.insertCell().textContent = text;
    }
  }
  const wide = document.createElement("div");
  wide.className = "wide";
  wide.append(table);
  return wide;
}

async function draw() {
  const number = ++state.drawing;
  if (!state.dataUrl || !state.scene) return;
  const reply = await fetch("/page/overlay", {
    method: "POST", headers: headers(),
    body: JSON.stringify({ image: state.dataUrl, scene: state.scene, kinds: chosenKinds() }),
  });
  if (!reply.ok) return tell(await readError(reply));
  const url = URL.createObjectURL(await reply.blob());
  if (number !== state.drawing) return URL.revokeObjectURL(url); // a later one is on its way
  if (state.overlayUrl) URL.revokeObjectURL(state.overlayUrl);
  state.overlayUrl = url;
  show(url);
  at("image").dataset.drawn = chosenKinds().join(",");
}

async function start() {
  state.settings = await (await fetch("/page/settings")).json();
  at("model").textContent = document.title = state.settings.model;
  at("drawn-field").hidden = !state.settings.max_drawn_images;
  at("drawn").max = state.settings.max_drawn_images;
  at("key-field").hidden = !state.settings.needs_key;
  for (const kind of state.settings.kinds) {
    const label = document.createElement("label"), box = document.createElement("input");
    Object.assign(box, { type: "checkbox", value: kind, checked: true });
    box.addEventListener("change", draw);
    label.append(box, kind.replace("_", " "));
    at("kinds").append(label);
  }
  at("kinds").hidden = !state.settings.kinds.length;
  for (const { image, question } of state.settings.examples) {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = question;
    button.addEventListener("click", async () => {
      await takeImage(await (await fetch(image)).blob());
      at("question").value = question;
      at("question").focus();
    });
    at("examples").append(button);
  }
}

at("file").addEventListener("change", () => { if (at("file").files[0]) takeImage(at("file").files[0]); });
for (const name of ["dragover", "dragleave", "drop"]) {
  at("drop").addEventListener(name, (event) => {
    event.preventDefault();
    at("drop").classList.toggle("over", name === "dragover");
    if (name === "drop" && event.dataTransfer.files[0]) takeImage(event.dataTransfer.files[0]);
  });
}
at("form").addEventListener("submit", (event) => {
  event.preventDefault();
  const question = at("question").value.trim();
  if (question && !state.asking) { at("question").value = ""; ask(question); }
});
at("again").addEventListener("click", () => {
  const last = state.turns.findLastIndex((turn) => turn.role === "user");
  const question = state.turns[last].text;
  state.turns = state.turns.slice(0, last);
  ask(question);
});
at("stop").addEventListener("click", () => state.asking?.abort());
at("clear").addEventListener("click", clearTurns);
start().catch((error) => tell(`The server does not answer: ${error.message}`));
