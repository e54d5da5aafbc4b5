/**
 * The text as it is written: plain, or character by character with its probability.
 *
 * Events may come thousands of times a second. They are gathered, and shown once for each picture that the screen shows.
 */
import { nameOf } from "./prompt.js";

/** Surprise in bits, -log₂ p, from which on a character gets the next colour: p under 1/2, 1/4, 1/16, 1/64. */
const LEVELS = [1, 2, 4, 6];

const bitsOf = (logprob) => -logprob / Math.LN2;
const levelOf = (bits) => LEVELS.filter((level) => bits > level).length;

export class Manuscript {
  constructor(element, inspector) {
    this.element = element;
    this.inspector = new Inspector(element, inspector, (span) => this.tokens[Number(span.dataset.n)]);
    this.clear();
  }

  clear() {
    this.element.replaceChildren();
    this.inspector.hide();
    this.tokens = []; // of each character shown with its probability
    this.bits = 0;
    this.string = "";
    this.waiting = [];
  }

  /**
   * Begin. `prompt` stands before the text in a lighter ink. `before` is the text of an earlier run: it stays, faint, until the new
   * one has come to the same place, so that nothing moves.
   */
  begin(prompt, before = "") {
    this.clear();
    this.ghost = before;
    this.body = document.createElement("span");
    this.caret = Object.assign(document.createElement("span"), { className: "caret" });
    this.rest = Object.assign(document.createElement("span"), { className: "ghost", textContent: before });
    const given = Object.assign(document.createElement("span"), { className: "given", textContent: prompt });
    this.element.append(given, this.body, this.caret, this.rest);
    this.element.setAttribute("aria-busy", "true");
  }

  /** Go on where `end()` was called. */
  resume() {
    this.body.after(this.caret);
    this.element.setAttribute("aria-busy", "true");
  }

  append(text, logprobs) {
    this.string += text;
    this.waiting.push({ text, logprobs });
    if (this.waiting.length === 1) afterNextFrame(() => this.show());
  }

  show() {
    for (const { text, logprobs } of this.waiting.splice(0)) {
      let rest = text;
      for (const entry of logprobs ?? []) {
        const at = rest.indexOf(entry.token); // a token that is no text by itself is not found: what several make stays plain
        if (at < 0) continue;
        if (at) this.#appendPlain(rest.slice(0, at));
        rest = rest.slice(at + entry.token.length);
        this.#appendToken(entry);
      }
      if (rest) this.#appendPlain(rest);
    }
    if (this.ghost) this.rest.textContent = this.ghost.slice(this.string.length);
  }

  #appendPlain(text) {
    const last = this.body.lastChild;
    if (last instanceof Text) last.appendData(text);
    else this.body.append(text);
  }

  #appendToken(entry) {
    const bits = bitsOf(entry.logprob);
    const span = document.createElement("span");
    span.className = `c s${levelOf(bits)}`;
    span.dataset.n = this.tokens.length;
    span.textContent = entry.token;
    this.tokens.push(entry);
    this.bits += bits;
    this.body.append(span);
  }

  /** No more will come. */
  end() {
    this.show();
    this.ghost = "";
    this.rest?.replaceChildren();
    this.caret?.remove();
    this.element.setAttribute("aria-busy", "false");
  }

  /** Mean surprise of the characters that have a probability. */
  get meanBits() {
    return this.tokens.length ? this.bits / this.tokens.length : null;
  }
}

/** Shows what the model thought of at the character under the pointer, or at the one that the arrow keys have come to. */
class Inspector {
  constructor(text, element, entryOf) {
    Object.assign(this, { text, element, entryOf, current: null });
    text.addEventListener("pointerover", (event) => event.target.matches(".c") && this.show(event.target));
    text.addEventListener("pointerleave", (event) => event.pointerType === "mouse" && this.hide()); // a finger leaves at once
    text.addEventListener("keydown", (event) => this.#walk(event));
    text.addEventListener("blur", () => this.hide());
  }

  #walk(event) {
    const all = this.text.querySelectorAll(".c");
    if (event.key === "Escape") this.hide();
    if (!all.length || !["ArrowLeft", "ArrowRight", "Home", "End"].includes(event.key)) return;
    event.preventDefault();
    const at = this.current ? Number(this.current.dataset.n) : event.key === "ArrowLeft" ? all.length : -1;
    const next = { ArrowLeft: at - 1, ArrowRight: at + 1, Home: 0, End: all.length - 1 }[event.key];
    this.element.setAttribute("role", "status"); // spoken only when one walks by keys
    this.show(all[Math.max(0, Math.min(all.length - 1, next))]);
    this.current.scrollIntoView({ block: "nearest" });
  }

  show(span) {
    this.hide();
    this.current = span;
    span.classList.add("current");
    this.element.replaceChildren(...this.#lines(this.entryOf(span)));
    this.element.hidden = false;
    this.#place(span);
  }

  hide() {
    this.current?.classList.remove("current");
    this.current = null;
    this.element.hidden = true;
  }

  /** Below the character, or above it where the window ends; always within the leaf. */
  #place(span) {
    const leaf = this.element.offsetParent.getBoundingClientRect();
    const box = span.getClientRects()[0] ?? span.getBoundingClientRect();
    const { offsetWidth: width, offsetHeight: height } = this.element;
    const top = box.bottom + 8 + height > innerHeight && box.top - 8 - height > 0 ? box.top - 8 - height : box.bottom + 8;
    const left = Math.min(box.left - leaf.left - 16, leaf.width - width - 4);
    this.element.style.left = `${Math.max(4, left)}px`;
    this.element.style.top = `${top - leaf.top}px`;
  }

  #lines(entry) {
    const head = document.createElement("p");
    const own = document.createElement("strong");
    own.textContent = nameOf(entry.token);
    head.append(own, ` ${percent(entry.logprob)}, ${bitsOf(entry.logprob).toFixed(1)} bits of surprise`);
    const list = document.createElement("ol");
    list.append(...entry.top.map((each) => this.#bar(each, each.id === entry.id)));
    return entry.top.length ? [head, list] : [head];
  }

  #bar(entry, chosen) {
    const item = document.createElement("li");
    item.classList.toggle("chosen", chosen);
    const name = Object.assign(document.createElement("span"), { className: "token", textContent: nameOf(entry.token) });
    const bar = Object.assign(document.createElement("span"), { className: "bar" });
    bar.style.width = `${Math.exp(entry.logprob) * 5}rem`;
    const share = Object.assign(document.createElement("span"), { className: "share", textContent: percent(entry.logprob) });
    item.append(name, bar, share);
    return item;
  }
}

/** -0.69 → "50 %"; small ones keep two digits. */
function percent(logprob) {
  const share = 100 * Math.exp(logprob);
  if (share < 0.001) return "under 0.001 %";
  return `${share >= 9.95 ? share.toFixed(0) : share.toPrecision(2)} %`;
}

/** A page in a hidden tab gets no frames. */
function afterNextFrame(work) {
  if (document.hidden) setTimeout(work, 100);
  else requestAnimationFrame(work);
}
