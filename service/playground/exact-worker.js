/** Derives a text in a thread of its own, so that the page stays alive: { weights?, config, question } in, { tokens, ended } out. */
import { ExactModel, generate } from "./exact.js";
import { readTensors } from "./safetensors.js";

const EVERY = 16; // tokens between two reports

let model = null; // stays for the next text, which then comes without weights

onmessage = ({ data: { weights, config, question } }) => {
  if (weights) model = new ExactModel(config, readTensors(weights));
  const { prompt, params, start, stride, count } = question;
  const derived = generate(model, prompt, params, { start, stride });
  for (let tokens = [], done = 0; ; tokens = []) {
    while (tokens.length < EVERY && done < count) {
      tokens.push(derived.next().value.token);
      done++;
    }
    postMessage({ tokens, ended: done === count });
    if (done === count) return;
  }
};
