/** The sheet: the text, what is said of it while it comes, and how it ended. */
import { count, unitOf } from "./card.js";
import { Manuscript } from "./manuscript.js";
import { milliseconds, speed } from "./meter.js";
import { $, say } from "./page.js";

const REASONS = { length: "as long as asked", stop: "a stop string came", timeout: "the time was up" };

export class Sheet {
  /** `server`: its model is the one whose units are counted. */
  constructor(server) {
    this.server = server;
    this.manuscript = new Manuscript($("text"), $("inspector"));
    this.hasProbabilities = false;
  }

  get #unit() {
    return unitOf(this.server.model);
  }

  waiting() {
    $("problem").hidden = true;
    say(`Waiting for the first ${this.#unit}…`);
  }

  /** A clean sheet. `before`: the reply that the text has to equal. */
  begin(body, before) {
    this.hasProbabilities = Boolean(body.logprobs);
    this.manuscript.begin(body.echo ? "" : body.prompt, before?.text);
    $("events").replaceChildren();
    for (const id of ["count", "rate", "first"]) $(id).textContent = "–";
    $("seed-shown").textContent = body.seed;
    $("finis").textContent = "\u00a0"; // an empty line, so that nothing moves
    this.judge("");
    say("Writing…");
    if ($("sheet").getBoundingClientRect().top > innerHeight * 0.5) $("sheet").scrollIntoView();
  }

  showMean() {
    const mean = this.manuscript.meanBits;
    $("legend").hidden = mean === null && !this.hasProbabilities;
    $("mean").textContent = mean === null ? "" : `${mean.toFixed(2)} bits a ${this.#unit}`;
  }

  finish(reply, before) {
    const { usage, timings } = reply;
    const seconds = Math.max(timings.total_ms - timings.ttft_ms, 0.001) / 1000;
    const intact = reply.text === this.manuscript.string;
    $("count").textContent = count(usage.completion_tokens);
    if (usage.completion_tokens > 1) $("rate").textContent = speed((usage.completion_tokens - 1) / seconds);
    $("seed-shown").textContent = reply.seed;
    $("finis").textContent = `Finis: ${REASONS[reply.finish_reason]}. SHA-256 ${reply.text_sha256.slice(0, 16)}…`;
    say(intact ? `Written: ${count(usage.completion_tokens)} ${this.#unit}s.` : "The text that came differs from the server's.");
    if (before) this.judge(this.#verdict(before, reply), before.text_sha256 !== reply.text_sha256);
    this.#end({ resumable: false });
  }

  #verdict(before, after) {
    if (before.text_sha256 === after.text_sha256) return `Identical: all ${count(after.usage.completion_tokens)} ${this.#unit}s, same SHA-256.`;
    const earlier = [...before.text];
    const where = [...after.text].findIndex((character, n) => character !== earlier[n]);
    const why = before.fingerprint === after.fingerprint ? "" : " Another model has written it: the fingerprints differ.";
    return `Not the same, from character ${count(where + 1)} on.${why}`;
  }

  /** What was found out about the text. */
  judge(text, differs = false) {
    $("verdict").textContent = text;
    $("verdict").classList.toggle("differs", differs);
  }

  stopped(index) {
    say(`Stopped after ${count(index)} ${this.#unit}s.`);
    $("finis").textContent = "Stopped. The server has let go of it, and can take it up again at any time.";
    this.#end({ resumable: true });
  }

  /** It broke off after `index` characters, or nothing came at all; `words` and `details` say why. */
  failed(index, { words, details }) {
    $("problem").replaceChildren(Object.assign(document.createElement("strong"), { textContent: words }), ` ${details}`);
    $("problem").hidden = false;
    if (!index) return say(this.manuscript.string ? "Nothing new was written." : "Nothing was written.");
    say(`Broken off after ${count(index)} ${this.#unit}s.`);
    $("finis").textContent = "Broken off.";
    this.#end({ resumable: true });
  }

  #end({ resumable }) {
    $("colophon").hidden = false;
    for (const id of ["again", "again-cut", "check"]) $(id).hidden = resumable;
    $("resume").hidden = !resumable;
  }

  /** The connection broke, or is back: a line that stays. */
  tell(step) {
    const item = document.createElement("li");
    item.textContent =
      step.kind === "lost"
        ? `Connection lost after ${this.#unit} ${count(step.at)}. Trying again in ${milliseconds(step.wait)}…`
        : `Connection lost, resumed at ${this.#unit} ${count(step.at)}.`;
    if ($("events").lastElementChild?.dataset.kind === "lost") $("events").lastElementChild.remove();
    item.dataset.kind = step.kind;
    $("events").append(item);
    say(item.textContent);
  }
}
