/**
 * The playground: one form, one text, one server.
 *
 *     form.js         what is asked, as controls, as a body, as a link
 *     prompt.js       marks the characters that the model does not know
 *     generation.js   asks, reads the stream, resumes it after a cut
 *     sse.js          bytes → events
 *     manuscript.js   shows the text, and what the model thought of
 *     card.js         shows what the model is
 */
import { count, renderCard, unitOf } from "./card.js";
import { RequestForm, choose, drawSeed } from "./form.js";
import { Generation, RequestError } from "./generation.js";
import { Manuscript } from "./manuscript.js";
import { PromptBox } from "./prompt.js";

const $ = (id) => document.getElementById(id);
const SAMPLES = ["ROMEO:", "First Citizen:\n", "To be, or not to be", "Once upon a time"];
const SHOWN_SAMPLES = 3;

const form = new RequestForm($("request"));
const prompt = new PromptBox($("prompt"), $("mirror"), $("prompt-note"));
const manuscript = new Manuscript($("text"), $("inspector"));

let key = ""; // of the API; lives here and nowhere else
let model = null; // GET /info's
let generation = null; // the one that runs, or ran last
let running = false;
let finished = null; // { body, reply } of the last text that came to its end

// ---- the server: what it is, and whether it is there ----------------------------------------------------------------

const headers = () => (key ? { Authorization: `Bearer ${key}` } : {});

async function get(path) {
  const response = await fetch(path, { headers: headers(), cache: "no-store" });
  if (!response.ok) throw await RequestError.from(response);
  return response.json();
}

/** Ask until the model is there. */
async function meetModel() {
  try {
    const info = await get("info");
    $("key-form").hidden = true;
    if (!info.model) return again(info.engine.message || "the model is being loaded");
    showModel(info);
    await listCheckpoints();
  } catch (error) {
    if (error.status === 401) askForKey();
    else again("the server does not answer");
  }
}

function again(why) {
  setState("loading", why);
  setTimeout(meetModel, 1000);
}

function setState(state, text) {
  $("state").dataset.state = state;
  $("state-text").textContent = text;
}

function showModel(info) {
  model = info.model;
  const data = model.manifest.data?.name;
  setState("ready", [data, `${count(model.num_parameters)} parameters`, model.device].filter(Boolean).join(" · "));
  prompt.setVocabulary(model.vocabulary);
  for (const each of document.querySelectorAll("[data-unit]")) each.textContent = unitOf(model);
  renderCard($("card"), model, info.version);
  const most = info.limits.max_new_tokens;
  for (const length of [$("max_new_tokens"), document.querySelector("[data-for=max_new_tokens]")]) length.max = most;
  $("top_logprobs").max = Math.min(info.limits.max_top_logprobs, model.vocab_size);
  showSamples();
}

async function listCheckpoints() {
  const { data } = await get("v1/models");
  const chosen = $("checkpoint").value;
  const options = data.map(({ id }) => new Option(id.slice(0, 19) + "…", id));
  $("checkpoint").replaceChildren(new Option("the current one", "", true), ...options);
  choose($("checkpoint"), chosen);
}

/** Openings that this model can read. */
function showSamples() {
  const known = SAMPLES.filter((sample) => prompt.knows(sample));
  const buttons = known.slice(0, SHOWN_SAMPLES).map((sample) => {
    const button = Object.assign(document.createElement("button"), { type: "button", className: "quiet", textContent: sample.trim() });
    button.addEventListener("click", () => setPrompt(sample));
    return button;
  });
  $("samples").replaceChildren(...(buttons.length ? ["Try ", ...buttons] : []));
}

function setPrompt(text) {
  $("prompt").value = text;
  $("prompt").dispatchEvent(new Event("input"));
  $("prompt").focus();
}

function askForKey() {
  setState("locked", key ? "this key is not valid here" : "needs a key");
  $("key-form").hidden = false;
  $("key").focus();
}

$("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  key = $("key").value.trim();
  $("key").value = "";
  meetModel();
});

// ---- writing ------------------------------------------------------------------------------------------------------------

/** A new text, from the form. */
function write() {
  if (running) return;
  form.clearProblems();
  const body = { seed: drawSeed(), ...form.body() };
  history.replaceState(null, "", form.fragment(body.seed));
  follow(new Generation(body, headers()));
}

/** The same request once more: the text has to come out the same. */
function writeAgain({ cut = false } = {}) {
  if (running || !finished) return;
  const { body, reply } = finished;
  const cutAfter = cut ? Math.ceil(reply.usage.completion_tokens / 2) : Infinity;
  follow(new Generation(body, headers(), { cutAfter }), reply);
}

/** After a stop: the text stays, and the server goes on with its next character. */
function goOn() {
  if (!running && generation) follow(generation);
}

/** Read a generation to its end. `before`: the reply that it has to equal. */
async function follow(next, before = null) {
  const meter = new Meter(performance.now(), next.index);
  const goesOn = next === generation;
  generation = next;
  setRunning(true);
  say(`Waiting for the first ${unitOf(model)}…`);
  $("problem").hidden = true;
  try {
    for await (const step of generation.run()) {
      if (step.kind === "open") goesOn ? manuscript.resume() : begin(next.body, before);
      else if (step.kind === "text") {
        manuscript.append(step.text, step.logprobs);
        meter.show(step.index);
      } else if (step.kind === "end") finish(step.reply, before);
      else tell(step);
    }
  } catch (error) {
    if (error.name === "AbortError") stopped();
    else fail(error);
  }
  manuscript.end();
  showMean();
  setRunning(false);
}

/** A clean sheet. */
function begin(body, before) {
  manuscript.begin(body.echo ? "" : body.prompt, before?.text);
  $("events").replaceChildren();
  for (const id of ["count", "rate", "first"]) $(id).textContent = "–";
  $("seed-shown").textContent = body.seed;
  $("finis").textContent = "\u00a0"; // an empty line, so that nothing moves
  $("verdict").textContent = "";
  finished = null;
  say("Writing…");
  if ($("sheet").getBoundingClientRect().top > innerHeight * 0.5) $("sheet").scrollIntoView();
}

/** Counts and speed, at most once for each picture of the screen. */
class Meter {
  constructor(start, index) {
    Object.assign(this, { start, from: index, first: null, index, due: false });
  }

  show(index) {
    this.index = index;
    if (this.first === null && index > this.from) {
      this.first = performance.now();
      if (this.from === 0) $("first").textContent = milliseconds(this.first - this.start);
    }
    if (this.due) return;
    this.due = true;
    requestAnimationFrame(() => {
      this.due = false;
      this.#print();
    });
  }

  #print() {
    $("count").textContent = count(this.index);
    const seconds = (performance.now() - this.first) / 1000;
    if (this.first !== null && running && seconds > 0.05) $("rate").textContent = speed((this.index - this.from) / seconds);
    showMean();
  }
}

const speed = (rate) => count(Number(rate.toPrecision(3)));
const milliseconds = (ms) => (ms < 9.95 ? `${ms.toFixed(1)} ms` : ms < 1000 ? `${ms.toFixed(0)} ms` : `${(ms / 1000).toFixed(1)} s`);

function showMean() {
  const mean = manuscript.meanBits;
  $("legend").hidden = mean === null && !generation?.body.logprobs;
  $("mean").textContent = mean === null ? "" : `${mean.toFixed(2)} bits a ${unitOf(model)}`;
}

function finish(reply, before) {
  const { usage, timings } = reply;
  const seconds = Math.max(timings.total_ms - timings.ttft_ms, 0.001) / 1000;
  const because = { length: "as long as asked", stop: "a stop string came", timeout: "the time was up" }[reply.finish_reason];
  const intact = reply.text === manuscript.string;
  $("count").textContent = count(usage.completion_tokens);
  if (usage.completion_tokens > 1) $("rate").textContent = speed((usage.completion_tokens - 1) / seconds);
  $("seed-shown").textContent = reply.seed;
  $("finis").textContent = `Finis: ${because}. SHA-256 ${reply.text_sha256.slice(0, 16)}…`;
  say(intact ? `Written: ${count(usage.completion_tokens)} ${unitOf(model)}s.` : "The text that came differs from the server's.");
  $("verdict").textContent = before ? verdict(before, reply) : "";
  $("verdict").classList.toggle("differs", Boolean(before) && before.text_sha256 !== reply.text_sha256);
  finished = { body: { ...generation.body, seed: reply.seed }, reply };
  showEnding({ resumable: false });
  if (model && reply.checkpoint !== model.checkpoint && !generation.body.checkpoint) meetModel(); // another one was promoted
}

function verdict(before, after) {
  if (before.text_sha256 === after.text_sha256) return `Identical: all ${count(after.usage.completion_tokens)} ${unitOf(model)}s, same SHA-256.`;
  const earlier = [...before.text];
  const where = [...after.text].findIndex((character, n) => character !== earlier[n]);
  const why = before.fingerprint === after.fingerprint ? "" : " Another model or machine has written it: the fingerprints differ.";
  return `Not the same, from character ${count(where + 1)} on.${why}`;
}

function stopped() {
  say(`Stopped after ${count(generation.index)} ${unitOf(model)}s.`);
  $("finis").textContent = "Stopped. The server has let go of it, and can take it up again at any time.";
  showEnding({ resumable: true });
}

function showEnding({ resumable }) {
  $("colophon").hidden = false;
  for (const id of ["again", "again-cut"]) $(id).hidden = resumable;
  $("resume").hidden = !resumable;
}

/** The connection broke, or is back: a line that stays. */
function tell(step) {
  const item = document.createElement("li");
  item.textContent =
    step.kind === "lost"
      ? `Connection lost after ${unitOf(model)} ${count(step.at)}. Trying again in ${milliseconds(step.wait)}…`
      : `Connection lost, resumed at ${unitOf(model)} ${count(step.at)}.`;
  if ($("events").lastElementChild?.dataset.kind === "lost") $("events").lastElementChild.remove();
  item.dataset.kind = step.kind;
  $("events").append(item);
  say(item.textContent);
}

const say = (text) => ($("status").textContent = text);

function setRunning(value) {
  running = value;
  document.body.classList.toggle("running", value);
  $("generate").setAttribute("aria-disabled", value);
  for (const id of ["stop", "cut"]) $(id).setAttribute("aria-disabled", !value);
  for (const id of ["again", "again-cut", "resume"]) $(id).setAttribute("aria-disabled", value);
}

// ---- what may go wrong, in plain words -------------------------------------------------------------------------------

const PLAIN = {
  unauthorized: "This server asks for a key.",
  forbidden: "This key may not do that.",
  queue_full: "The server is busy: every place is taken.",
  rate_limited: "Too many requests in a short time.",
  loading: "The model is still being loaded.",
  shutting_down: "The server is shutting down.",
  engine_failed: "The server's engine has failed, and a person has to look at it.",
  queue_timeout: "The request waited too long for its turn.",
  checkpoint_gone: "The weights that wrote this text are not loaded any more, so it cannot go on.",
  resume_mismatch: "The request has changed since, so this text cannot go on.",
  body_too_large: "That is more than the server takes.",
  unknown_characters: "The model has never seen some of these characters.",
};

const HINTS = { unknown_characters: "Take the marked ones out, or let them be dropped: see “Unknown characters” among the parameters." };

function fail(error) {
  if (!(error instanceof RequestError)) return report("The server cannot be reached. Is it running?", "");
  if (error.status === 401) askForKey();
  const control = form.controlOf(error.param);
  const wait = error.retryAfter ? ` Try again in ${error.retryAfter} s.` : "";
  report(PLAIN[error.code] ?? (control ? "One of the settings cannot be used." : "The server did not take this request."), `${error.message}.${wait}`);
  if (control) form.showProblem(control, HINTS[error.code] ?? error.message.replace(/^[\w.]+: /, ""));
}

function report(words, details) {
  $("problem").replaceChildren(Object.assign(document.createElement("strong"), { textContent: words }), ` ${details}`);
  $("problem").hidden = false;
  const nothing = manuscript.string ? "Nothing new was written." : "Nothing was written.";
  say(generation.index ? `Broken off after ${count(generation.index)} ${unitOf(model)}s.` : nothing);
  if (generation.index) $("finis").textContent = "Broken off.";
  if (generation.index) showEnding({ resumable: true });
}

// ---- buttons, keys, links -------------------------------------------------------------------------------------------------

$("request").addEventListener("submit", (event) => {
  event.preventDefault();
  write();
});
$("stop").addEventListener("click", () => running && generation.stop());
$("cut").addEventListener("click", () => running && generation.cut());
$("again").addEventListener("click", () => writeAgain());
$("again-cut").addEventListener("click", () => writeAgain({ cut: true }));
$("resume").addEventListener("click", goOn);

document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && running) generation.stop();
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) write();
});

$("copy-link").addEventListener("click", (event) => copy(event.target, location.href));
$("copy-text").addEventListener("click", (event) => copy(event.target, manuscript.string));

async function copy(button, text) {
  const label = button.textContent;
  const done = await navigator.clipboard?.writeText(text).then(() => "Copied", () => "Could not copy");
  button.textContent = done ?? "Could not copy";
  setTimeout(() => (button.textContent = label), 1500);
}

addEventListener("hashchange", () => form.fill(location.hash));
if (location.hash) form.fill(location.hash);
meetModel();
