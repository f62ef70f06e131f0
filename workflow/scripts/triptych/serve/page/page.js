"use strict";
const byId = (id) => document.getElementById(id);
const results = byId("results"), question = byId("question"), ask = byId("ask"), chosen = byId("file");
let limits = null, busy = false;

function make(tag, text, kind) {
  const made = document.createElement(tag);
  if (text !== undefined) made.textContent = text;
  if (kind) made.className = kind;
  return made;
}

function say(status, error = "") {
  byId("status").textContent = status;
  byId("error").textContent = error;
}

// Without a body it is read, with one it is asked; what fails is an Error with a sentence.
async function send(path, body) {
  const how = body && { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) };
  let reply, found;
  try {
    reply = await fetch(path + location.search, how);
    found = await reply.json();
  } catch {
    throw new Error("Triptych does not answer; start it again, and open the address that it prints.");
  }
  if (!reply.ok) throw new Error(found.error);
  return found;
}

function readBase64(file) {
  return new Promise((done, fail) => {
    const reader = new FileReader();
    reader.onload = () => done(reader.result.split(",")[1] || "");
    reader.onerror = () => fail(new Error("The file cannot be read; choose an image file."));
    reader.readAsDataURL(file);
  });
}

function show(address) {
  const preview = byId("preview");
  if (preview.src.startsWith("blob:")) URL.revokeObjectURL(preview.src);
  preview.hidden = false;
  preview.src = address;
}

function showChosen() {
  say("");
  if (chosen.files.length) show(URL.createObjectURL(chosen.files[0]));
  else byId("preview").hidden = true;
}

// One long computation at a time; the button keeps the focus.
async function work(button, doing, task) {
  if (busy) return;
  busy = true;
  button.setAttribute("aria-disabled", "true");
  say(doing);
  try {
    await task();
    say("");
  } catch (error) {
    say("", error.message);
  }
  button.removeAttribute("aria-disabled");
  busy = false;
}

async function asked() {
  const [file] = chosen.files;
  if (!file) throw new Error("There is no image yet: drop one, or choose a file.");
  if (!question.value.trim()) throw new Error("There is no question yet.");
  if (limits && file.size > limits.bytes) throw new Error(`The image file is larger than ${limits.bytes / 2 ** 20} MiB.`);
  if (limits && [...question.value].length > limits.characters) throw new Error(`The question has more than ${limits.characters} characters.`);
  const sent = { image: await readBase64(file), question: question.value };
  const found = await send("answers", sent);
  if (chosen.files[0] === file) show(found.image);
  byId("asked").textContent = sent.question;
  byId("answers").replaceChildren(...found.answers.map((answer, number) => card(answer, number, sent)));
  results.hidden = false;
}

function card(found, number, sent) {
  const made = make("article", undefined, "card");
  const percent = (100 * found.probability).toFixed(1);
  const probability = make("meter");
  probability.value = found.probability;
  probability.setAttribute("aria-label", "Probability of the answer");
  made.append(
    make("h3", found.schedule),
    make("p", `${found.split}, seed ${found.seed}${found.chosen ? ` (${found.chosen})` : ""}`, "soft"),
    make("p", found.answer || "(no word)", "short"),
    make("p", `probability ${percent} %${found.whole ? "" : ", cut off at evaluation.max_new_tokens"}`),
    probability,
    make("p", found.trained_on_image ? "Seen in training" : "Not seen in training", found.trained_on_image ? "wrong" : "right"),
    facts(found),
  );
  if (!found.sees_image) {
    made.append(make("p", "A blind schedule, which is shown no image.", "soft"));
    return made;
  }
  const button = make("button", "What does the answer depend on?");
  button.type = "button";
  button.setAttribute("aria-label", `What does the answer of ${found.schedule} depend on?`);
  button.addEventListener("click", () => work(button, "Hiding one square after the other…", async () => {
    const looked = await send("where", { ...sent, checkpoint: number });
    const figure = make("figure"), image = make("img");
    image.src = looked.picture;
    image.alt = `What the answer of ${found.schedule} depends on: ${looked.words}`;
    figure.append(image, make("p", looked.words, "soft"));
    figure.append(make("p", "Without a red square the answer is less probable, without a blue one more probable; the strongest colour is the largest change.", "soft"));
    made.querySelector("figure")?.remove();
    made.append(figure);
  }));
  made.append(button);
  return made;
}

function facts(found) {
  const list = make("dl");
  const shown = [...Object.entries(found.lookups), ["image", found.image_known], ["question", found.question_known]];
  if (found.gold) shown.push(["right, in the data", found.gold]);
  for (const [name, value] of shown) list.append(make("dt", name), make("dd", value));
  return list;
}

byId("form").addEventListener("submit", (event) => {
  event.preventDefault();
  work(ask, "Asking…", asked);
});
chosen.addEventListener("change", showChosen);
byId("preview").addEventListener("error", (event) => { event.target.hidden = true; });  // a format that browsers cannot show
// Anywhere in the window: a browser would leave the page for an image that misses the frame.
for (const kind of ["dragover", "dragleave", "drop"]) {
  document.addEventListener(kind, (event) => {
    event.preventDefault();
    byId("drop").classList.toggle("over", kind === "dragover");
    if (kind !== "drop") return;
    if (event.dataTransfer.files.length !== 1) return say("", "Drop one image file.");
    chosen.files = event.dataTransfer.files;
    showChosen();
  });
}
send("study").then((study) => {
  limits = study.limits;
  byId("checkpoints").append(...study.checkpoints.map((one) => {
    const item = make("li", `${one.schedule}, ${one.split}, seed ${one.seed}`);
    item.append(make("span", one.folder, "soft"));
    return item;
  }));
}).catch((error) => say("", error.message));
