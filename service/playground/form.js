/**
 * The form, in its three shapes: what a person sees, the request's body, and the link that brings both back.
 *
 * HTML is the one list of parameters: a control's `name` is the API's, its default is the API's, and what stands at its default
 * is not sent (for the API, that is the same). tests/browser holds both to the server's OpenAPI document.
 */

/** Text of a control → value of the body. `undefined`: leave it out. */
const READ = {
  text: (text) => text,
  number: (text) => (text.trim() === "" ? undefined : asNumber(text)),
  lines: (text) => text.split("\n").filter(Boolean).map(unescapeLine),
  bias: (text) => Object.fromEntries(text.split("\n").filter((line) => line.trim()).map(readBias)),
};

/** "7" → 7. What is no number goes as it is, so that the server's answer says what is wrong with it. */
function asNumber(text) {
  const number = Number(text);
  return Number.isFinite(number) ? number : text;
}

/** `\n` → a new line, `\t` → a tab, `\s` → a space, `\\` → a backslash. */
function unescapeLine(text) {
  const meanings = { n: "\n", t: "\t", s: " ", "\\": "\\" };
  return text.replace(/\\([nts\\])/g, (_, letter) => meanings[letter]);
}

/** `e -2.5` → ["e", -2.5] */
function readBias(line) {
  const [, token, number] = /^\s*(.*?)\s+(\S+)\s*$/s.exec(line) ?? [null, line.trim(), ""];
  return [unescapeLine(token), number === "" ? null : asNumber(number)];
}

const kindOf = (control) => control.dataset.kind ?? (control.type === "number" ? "number" : "text");
const defaultOf = (control) =>
  control instanceof HTMLSelectElement ? [...control.options].find((option) => option.defaultSelected)?.value ?? "" : control.defaultValue;

export class RequestForm {
  constructor(form) {
    this.form = form;
    this.controls = [...form.elements].filter((control) => control.name);
    for (const slider of document.querySelectorAll("input[data-for]")) this.#pair(slider, form.elements[slider.dataset.for]);
    for (const control of this.controls) control.addEventListener("input", () => this.clearProblem(control));
    form.addEventListener("reset", () => setTimeout(() => this.#changed()));
  }

  /** A slider and its number show the same; the number may leave the slider's range. */
  #pair(slider, number) {
    slider.addEventListener("input", () => {
      number.value = slider.value;
      this.clearProblem(number);
    });
    number.addEventListener("input", () => (slider.value = number.value));
  }

  /** The body of POST /generate. */
  body() {
    const body = { prompt: this.form.elements.prompt.value };
    for (const control of this.controls) {
      const needs = control.dataset.needs;
      if (needs ? !this.form.elements[needs].checked : this.#isDefault(control)) continue;
      const value = control.type === "checkbox" ? control.checked : READ[kindOf(control)](control.value);
      if (value !== undefined) body[control.name] = value;
    }
    return body;
  }

  /** The fragment of a link to a request: `#prompt=ROMEO%3A&temperature=0.8&seed=7`. */
  fragment(seed) {
    const parts = new URLSearchParams();
    for (const control of this.controls) {
      if (control.name === "seed") continue;
      if (!this.#isDefault(control)) parts.set(control.name, control.type === "checkbox" ? "1" : control.value);
    }
    parts.set("seed", seed);
    return `#${parts}`;
  }

  /** Fill the form from a fragment. What it does not name goes back to its default. */
  fill(fragment) {
    const parts = new URLSearchParams(fragment.replace(/^#/, ""));
    for (const control of this.controls) {
      const text = parts.get(control.name);
      if (control.type === "checkbox") control.checked = text === "1";
      else if (control instanceof HTMLSelectElement) choose(control, text ?? defaultOf(control));
      else control.value = text ?? control.defaultValue;
    }
    this.#changed();
  }

  #isDefault(control) {
    return control.type === "checkbox" ? control.checked === control.defaultChecked : control.value === defaultOf(control);
  }

  /** After a change that no key made: sliders follow, and whoever listens to the controls is told. */
  #changed() {
    for (const control of this.controls) control.dispatchEvent(new Event("input"));
    const folded = document.getElementById("advanced");
    if (this.controls.some((control) => folded.contains(control) && !this.#isDefault(control))) folded.open = true;
  }

  /** The control that an error's `param` names (`stop.0`, `logit_bias.a`), if there is one. */
  controlOf(param) {
    const name = (param ?? "").split(".")[0];
    return this.controls.find((control) => control.name === name);
  }

  /** Say at a control what is wrong with it, and lead there. */
  showProblem(control, message) {
    control.closest("details")?.setAttribute("open", "");
    const note = document.createElement("p");
    note.className = "problem";
    note.id = `${control.id}-problem`;
    note.textContent = message;
    (control.closest(".field") ?? control.closest(".desk")).append(note);
    control.setAttribute("aria-invalid", "true");
    control.setAttribute("aria-describedby", [note.id, hintOf(control)].join(" ").trim());
    control.focus();
  }

  clearProblem(control) {
    document.getElementById(`${control.id}-problem`)?.remove();
    control.removeAttribute("aria-invalid");
    if (hintOf(control)) control.setAttribute("aria-describedby", hintOf(control));
  }

  clearProblems() {
    for (const control of this.controls) this.clearProblem(control);
  }
}

/** The id of what explains a control. */
function hintOf(control) {
  return [`${control.name}-hint`, `${control.name}-note`].find((id) => document.getElementById(id)) ?? "";
}

/** Select a value, also one that the list does not have (a checkpoint that is not loaded any more). */
export function choose(select, value) {
  if (![...select.options].some((option) => option.value === value)) select.add(new Option(value, value));
  select.value = value;
}

/** A seed as the server would draw it: 53 random bits, which a number in JavaScript holds exactly. */
export function drawSeed() {
  const [high, low] = crypto.getRandomValues(new Uint32Array(2));
  return (high >>> 11) * 2 ** 32 + low;
}
