"use strict";

const PICTURES = ["image/png", "image/jpeg", "image/webp", "image/gif", "image/bmp"];
const EVERY = "*";
const find = (id) => document.getElementById(id);
let about = null;
let chosen = null; // {page: base64} or {record: …}
let turn = 0; // of the newest request: answers to older ones are dropped

function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children); // text stays text, whatever it says
  return made;
}

function fail(reason) {
  find("state").textContent = "Not read.";
  find("readings").replaceChildren();
  find("error").textContent = `${reason[0].toUpperCase()}${reason.slice(1)}`;
  find("error").hidden = false;
}

function say(text) {
  find("error").hidden = true;
  find("state").textContent = text;
}

async function start() {
  about = await (await fetch("/about")).json();
  const standing = (one) => (one.approval === "approved" ? "" : `, ${one.approval || "not approved"}`);
  find("served").textContent = about.adapters.map((one) => `${one.name}: ${one.version}${standing(one)}`).join(" · ");
  find("questions").replaceChildren(...about.questions.map((text) => element("option", { value: text })));
  const named = about.adapters.map((one) => element("option", { value: one.name }, `${one.name} (${one.version})`));
  if (named.length > 1) named.push(element("option", { value: EVERY }, "each of them"));
  find("adapter").replaceChildren(...named);
}

async function choose(file) {
  if (!file || !about) return;
  turn += 1;
  chosen = null;
  find("ask").disabled = true;
  find("readings").replaceChildren();
  find("name").textContent = file.name || "pasted picture";
  URL.revokeObjectURL(find("preview").src);
  const record = /\.json$/i.test(file.name);
  find("hint").textContent = record ? "A record: drawn as a page before it is read" : "No preview of this kind of file";
  find("preview").hidden = !PICTURES.includes(file.type);
  find("hint").hidden = !find("preview").hidden;
  if (!find("preview").hidden) find("preview").src = URL.createObjectURL(file);
  if (file.size > about.max_file_mb * 1e6) {
    fail(`The file has ${Math.round(file.size / 1e6)} MB; expected at most ${about.max_file_mb} MB.`);
    return;
  }
  try {
    if (record) {
      chosen = { record: JSON.parse(await file.text()) };
    } else {
      const url = await new Promise((done, broken) => {
        const reader = new FileReader();
        reader.onload = () => done(reader.result);
        reader.onerror = () => broken(reader.error);
        reader.readAsDataURL(file);
      });
      chosen = { page: url.slice(url.indexOf(",") + 1) };
    }
  } catch (error) {
    fail(`The file cannot be read (${error.message}).`);
    return;
  }
  say("Ready to be read.");
  find("ask").disabled = false;
}

async function read(adapter) {
  const row = { ...chosen, question: find("question").value.trim() };
  const answer = await fetch("/invocations", {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify({ dataframe_records: [row], params: { adapter } }),
  });
  const told = await answer.json();
  if (!answer.ok) {
    // MLflow puts what it was sent before the reason.
    const reason = String(told.message || answer.statusText).split("\nError: ").pop();
    throw new Error(reason.replace(/^(page|record|question) 0: (image: )?/, ""));
  }
  return { adapter, ...told.predictions[0] };
}

function reading(found) {
  const rows = Object.entries(about.findings).map(([name, meaning]) => {
    const label = `${meaning[0].toUpperCase()}${meaning.slice(1)}`;
    const meter = element("meter", { min: 0, max: 1, value: found[name], "aria-label": label });
    return element("div", { class: "finding" }, element("span", {}, label), meter,
      element("output", {}, `${Math.round(100 * found[name])} %`));
  });
  const flags = found.flags.map((flag) => element("li", {}, about.flags[flag] || flag));
  return element("article", { class: "reading" },
    element("h3", {}, `${found.adapter}: ${found.version}`),
    ...rows,
    element("p", { class: "asked" }, found.question),
    element("p", { class: "answer" }, found.answer || "(no answer)"),
    ...(flags.length ? [element("ul", { class: "flags" }, ...flags)] : []),
    element("p", { class: "small" }, about.notice));
}

async function ask(event) {
  event.preventDefault();
  if (!chosen) return;
  turn += 1;
  const mine = turn;
  find("ask").disabled = true;
  find("readings").replaceChildren();
  say("Reading …");
  const adapter = find("adapter").value;
  const names = adapter === EVERY ? about.adapters.map((one) => one.name) : [adapter];
  try {
    const found = [];
    for (const name of names) found.push(await read(name));
    if (mine !== turn) return;
    say(found.length > 1 ? "Probability of each finding, by each adapter" : "Probability of each finding");
    find("readings").replaceChildren(...found.map(reading));
  } catch (error) {
    if (mine === turn) fail(error.message);
  } finally {
    if (mine === turn) find("ask").disabled = false;
  }
}

for (const kind of ["dragover", "dragenter", "dragleave", "drop"]) {
  // Anywhere on the page: a file dropped beside the field must not replace the page.
  window.addEventListener(kind, (event) => {
    event.preventDefault();
    find("drop").classList.toggle("over", kind === "dragover" || kind === "dragenter");
  });
}
window.addEventListener("drop", (event) => choose(event.dataTransfer.files[0]));
window.addEventListener("paste", (event) => {
  if (event.clipboardData.files.length) choose(event.clipboardData.files[0]);
});
find("file").addEventListener("change", (event) => choose(event.target.files[0]));
find("drop").addEventListener("keydown", (event) => {
  if (event.key === "Enter" || event.key === " ") { event.preventDefault(); find("file").click(); }
});
find("form").addEventListener("submit", ask);
start().catch((error) => fail(`This server does not answer (${error.message}).`));
