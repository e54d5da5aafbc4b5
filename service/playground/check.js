/** "Check in this browser": the text is derived once more, here, from the weights; nothing that the server says of it is believed. */
import { count, unitOf } from "./card.js";
import { Derivation } from "./exact-text.js";

export class Check {
  constructor(server) {
    this.server = server;
    this.derivation = null;
    this.checkpoint = "";
  }

  /** Whether a finished text can be checked: the model is the one at hand, and its tokens are characters or bytes. */
  isPossible(reply) {
    const { model } = this.server;
    if (!model || reply.checkpoint !== model.checkpoint) return false;
    if (this.checkpoint !== model.checkpoint) {
      this.derivation?.end();
      this.checkpoint = model.checkpoint;
      this.derivation = new Derivation(model, () => this.#loadWeights(model.checkpoint));
    }
    return this.derivation.isPossible;
  }

  /** The verdict: { words, differs }. `onProgress(words)` is called meanwhile. */
  async run(body, reply, onProgress) {
    const unit = unitOf(this.server.model);
    const total = reply.usage.completion_tokens;
    let derived = "";
    onProgress("Fetching the weights…");
    try {
      for await (const { done, text } of this.derivation.run(body, total)) {
        derived = text;
        onProgress(`Deriving it again: ${count(done)} of ${count(total)} ${unit}s.`);
      }
    } catch (error) {
      this.derivation.end();
      const why = error.status === 403 ? "this server keeps its weights to itself." : error.message;
      return { words: `It cannot be checked here: ${why}`, differs: true };
    }
    const at = firstDifference(derived, reply.text, body.stop);
    if (at < 0) return { words: `Checked in this browser: every one of the ${count(total)} ${unit}s is the one that the arithmetic gives.`, differs: false };
    return { words: `Not what the arithmetic gives, from character ${count(at + 1)} on.`, differs: true };
  }

  async #loadWeights(checkpoint) {
    const response = await this.server.fetch(`v1/models/${encodeURIComponent(checkpoint)}/weights`, { cache: "default" });
    return response.arrayBuffer();
  }
}

/** Where a text differs from the derived one, in code points; -1 if it does not. A stop string that ended it is no part of the text. */
function firstDifference(derived, text, stops) {
  const [mine, theirs] = [[...derived], [...text]];
  const rest = mine.slice(theirs.length).join("");
  const at = theirs.findIndex((character, n) => character !== mine[n]);
  if (at >= 0 || rest === "" || [stops ?? []].flat().includes(rest)) return at;
  return theirs.length;
}
