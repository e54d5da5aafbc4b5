/** Counts and speed of a text that is coming, at most once for each picture of the screen. */
import { count } from "./card.js";
import { $ } from "./page.js";

export class Meter {
  /** `index`: the characters that are there already. `onPrint` is called whenever the figures are shown. */
  constructor(index, onPrint) {
    Object.assign(this, { start: performance.now(), from: index, first: null, index, due: false, ended: false, onPrint });
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

  /** From here on the speed is the server's to tell. */
  end() {
    this.ended = true;
  }

  #print() {
    $("count").textContent = count(this.index);
    const seconds = (performance.now() - this.first) / 1000;
    if (this.first !== null && !this.ended && seconds > 0.05) $("rate").textContent = speed((this.index - this.from) / seconds);
    this.onPrint();
  }
}

export const speed = (rate) => count(Number(rate.toPrecision(3)));
export const milliseconds = (ms) => (ms < 9.95 ? `${ms.toFixed(1)} ms` : ms < 1000 ? `${ms.toFixed(0)} ms` : `${(ms / 1000).toFixed(1)} s`);
