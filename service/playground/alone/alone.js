/** A playground without a server: the model's files lie beside this page, and the text is computed here. */
import { count, renderCard, unitOf } from "./card.js";
import { Derivation } from "./exact-text.js";
import { drawSeed } from "./form.js";
import { $, say } from "./page.js";

const NUMBERS = ["max_new_tokens", "temperature", "top_k", "top_p", "seed"];

let derivation = null;
let running = false;

async function begin() {
  const model = await (await fetch("model.json")).json();
  derivation = new Derivation(model, async () => (await fetch("model.safetensors")).arrayBuffer());
  $("state").dataset.state = "ready";
  $("state-text").textContent = `${count(model.num_parameters)} parameters · this browser`;
  renderCard($("card"), model);
}

function body() {
  const given = Object.fromEntries(NUMBERS.filter((name) => $(name).value !== "").map((name) => [name, Number($(name).value)]));
  return { seed: drawSeed(), ...given, prompt: $("prompt").value };
}

async function write() {
  const request = body();
  const unit = unitOf(derivation.model);
  const began = performance.now();
  setRunning(true);
  $("text").textContent = "";
  say(`Writing with the seed ${request.seed}…`);
  try {
    for await (const { done, text, ended } of derivation.run(request, request.max_new_tokens)) {
      if (!running) return;
      $("text").textContent = request.prompt + text;
      const seconds = (performance.now() - began) / 1000;
      if (ended) say(`Written: ${count(done)} ${unit}s in ${seconds.toFixed(1)} s, with the seed ${request.seed}.`);
    }
  } catch (error) {
    say(`It cannot be computed here: ${error.message}`);
  }
  setRunning(false);
}

/** The worker is ended in the midst of its work; the next text loads the model again, out of the browser's cache. */
function stop() {
  derivation.end();
  setRunning(false);
  say("Stopped.");
}

function setRunning(value) {
  running = value;
  document.body.classList.toggle("running", value);
  $("generate").setAttribute("aria-disabled", value);
  $("stop").setAttribute("aria-disabled", !value);
}

$("request").addEventListener("submit", (event) => {
  event.preventDefault();
  if (derivation && !running) write();
});
$("stop").addEventListener("click", () => running && stop());
begin().catch((error) => say(`The model cannot be loaded: ${error.message}`));
