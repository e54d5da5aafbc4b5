/**
 * The playground: one form, one text, one server.
 *
 *     form.js         what is asked, as controls, as a body, as a link
 *     prompt.js       marks the characters that the model does not know
 *     server.js       the key, and whether the model is there
 *     generation.js   asks, reads the stream, resumes it after a cut
 *     sse.js          bytes → events
 *     sheet.js        the text and how it ended, with manuscript.js (the text itself) and meter.js (its speed)
 *     problems.js     what may go wrong, in plain words
 *     card.js         shows what the model is
 *     check.js        derives a text once more, here (exact-text.js, exact-worker.js, exact.js)
 */
import { count, renderCard, unitOf } from "./card.js";
import { Check } from "./check.js";
import { RequestForm, choose, drawSeed } from "./form.js";
import { Generation } from "./generation.js";
import { Meter } from "./meter.js";
import { $ } from "./page.js";
import { explain } from "./problems.js";
import { PromptBox } from "./prompt.js";
import { Server, showState } from "./server.js";
import { Sheet } from "./sheet.js";

const SAMPLES = ["ROMEO:", "First Citizen:\n", "To be, or not to be", "Once upon a time"];
const SHOWN_SAMPLES = 3;

const form = new RequestForm($("request"));
const prompt = new PromptBox($("prompt"), $("mirror"), $("prompt-note"));
const server = new Server(showModel);
const sheet = new Sheet(server);
const check = new Check(server);

let generation = null; // the one that runs, or ran last
let running = false;
let finished = null; // { body, reply } of the last text that came to its end

// ---- the model -----------------------------------------------------------------------------------------------------------

async function showModel({ model, limits, version }) {
  const data = model.manifest.data?.name;
  showState("ready", [data, `${count(model.num_parameters)} parameters`, model.device].filter(Boolean).join(" · "));
  prompt.setVocabulary(model.vocabulary);
  for (const each of document.querySelectorAll("[data-unit]")) each.textContent = unitOf(model);
  renderCard($("card"), model, version);
  for (const length of [$("max_new_tokens"), document.querySelector("[data-for=max_new_tokens]")]) length.max = limits.max_new_tokens;
  $("top_logprobs").max = Math.min(limits.max_top_logprobs, model.vocab_size);
  showSamples();
  await listCheckpoints();
}

async function listCheckpoints() {
  const { data } = await server.get("v1/models");
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

// ---- writing -------------------------------------------------------------------------------------------------------------

/** A new text, from the form. */
function write() {
  if (running) return;
  form.clearProblems();
  const body = { seed: drawSeed(), ...form.body() };
  history.replaceState(null, "", form.fragment(body.seed));
  follow(new Generation(body, server.headers));
}

/** The same request once more: the text has to come out the same. */
function writeAgain({ cut = false } = {}) {
  if (running || !finished) return;
  const { body, reply } = finished;
  const cutAfter = cut ? Math.ceil(reply.usage.completion_tokens / 2) : Infinity;
  follow(new Generation(body, server.headers, { cutAfter }), reply);
}

/** After a stop: the text stays, and the server goes on with its next character. */
function goOn() {
  if (!running && generation) follow(generation);
}

/** Read a generation to its end. `before`: the reply that it has to equal. */
async function follow(next, before = null) {
  const meter = new Meter(next.index, () => sheet.showMean());
  const goesOn = next === generation;
  generation = next;
  setRunning(true);
  sheet.waiting();
  try {
    for await (const step of generation.run()) {
      if (step.kind === "open") goesOn ? sheet.manuscript.resume() : begin(before);
      else if (step.kind === "text") {
        sheet.manuscript.append(step.text, step.logprobs);
        meter.show(step.index);
      } else if (step.kind === "end") finish(step.reply, before);
      else sheet.tell(step);
    }
  } catch (error) {
    if (error.name === "AbortError") sheet.stopped(generation.index);
    else fail(error);
  }
  meter.end();
  sheet.manuscript.end();
  sheet.showMean();
  setRunning(false);
}

function begin(before) {
  finished = null;
  sheet.begin(generation.body, before);
}

function finish(reply, before) {
  sheet.finish(reply, before);
  finished = { body: { ...generation.body, seed: reply.seed }, reply };
  $("check").hidden = !check.isPossible(reply);
  const { model } = server;
  if (model && reply.checkpoint !== model.checkpoint && !generation.body.checkpoint) server.meet(); // another one was promoted
}

/** Derive the last text in this browser. */
async function checkHere() {
  if (running || !finished) return;
  const { body, reply } = finished;
  setRunning(true);
  const verdict = await check.run(body, reply, (words) => sheet.judge(words));
  setRunning(false);
  sheet.judge(verdict.words, verdict.differs);
}

function fail(error) {
  if (error.status === 401) server.askForKey();
  const control = form.controlOf(error.param);
  const explained = explain(error, control);
  sheet.failed(generation.index, explained);
  if (control) form.showProblem(control, explained.hint);
}

function setRunning(value) {
  running = value;
  document.body.classList.toggle("running", value);
  $("generate").setAttribute("aria-disabled", value);
  for (const id of ["stop", "cut"]) $(id).setAttribute("aria-disabled", !value);
  for (const id of ["again", "again-cut", "resume", "check"]) $(id).setAttribute("aria-disabled", value);
}

// ---- buttons, keys, links -----------------------------------------------------------------------------------------------

$("request").addEventListener("submit", (event) => {
  event.preventDefault();
  write();
});
$("stop").addEventListener("click", () => running && generation.stop());
$("cut").addEventListener("click", () => running && generation.cut());
$("again").addEventListener("click", () => writeAgain());
$("again-cut").addEventListener("click", () => writeAgain({ cut: true }));
$("resume").addEventListener("click", goOn);
$("check").addEventListener("click", checkHere);

document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && running) generation.stop();
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) write();
});

$("copy-link").addEventListener("click", (event) => copy(event.target, location.href));
$("copy-text").addEventListener("click", (event) => copy(event.target, sheet.manuscript.string));

async function copy(button, text) {
  const label = button.textContent;
  const done = await navigator.clipboard?.writeText(text).then(() => "Copied", () => "Could not copy");
  button.textContent = done ?? "Could not copy";
  setTimeout(() => (button.textContent = label), 1500);
}

addEventListener("hashchange", () => form.fill(location.hash));
if (location.hash) form.fill(location.hash);
server.meet();
