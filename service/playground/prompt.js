/** Marks, while one types, the characters that the model has never seen. */

const MOST_MARKS = 500;

/** `[character, offset]` of each unknown character; offsets count code points, as the API's do. */
export function findUnknown(text, vocabulary) {
  return [...text].map((character, offset) => [character, offset]).filter(([character]) => !vocabulary.has(character));
}

export class PromptBox {
  /** A copy of the text lies beneath the textarea, line for line; only its marks are visible. It also gives the box its height. */
  constructor(textarea, mirror, note) {
    Object.assign(this, { textarea, mirror, note, vocabulary: null, unknown: [] });
    textarea.addEventListener("input", () => this.show());
    this.show();
  }

  /** What the model knows; until then, and where it knows every character (null), nothing is marked. */
  setVocabulary(characters) {
    this.vocabulary = characters && new Set(characters);
    this.show();
  }

  /** Whether the model can read all of a text. */
  knows(text) {
    return !this.vocabulary || findUnknown(text, this.vocabulary).length === 0;
  }

  show() {
    const text = this.textarea.value;
    this.unknown = this.vocabulary ? findUnknown(text, this.vocabulary) : [];
    this.mirror.replaceChildren(...this.#marked(text), "\u200b"); // the last line is a line even while it is empty
    this.note.textContent = this.#sentence();
    this.note.classList.toggle("warning", this.unknown.length > 0);
  }

  #marked(text) {
    const characters = [...text];
    const nodes = [];
    let from = 0;
    for (const [character, offset] of this.unknown.slice(0, MOST_MARKS)) {
      const mark = document.createElement("mark");
      mark.textContent = character;
      nodes.push(characters.slice(from, offset).join(""), mark);
      from = offset + 1;
    }
    return [...nodes, characters.slice(from).join("")];
  }

  #sentence() {
    if (!this.unknown.length) return "";
    const distinct = [...new Set(this.unknown.map(([character]) => character))];
    const shown = distinct.slice(0, 8).map(nameOf).join(" ") + (distinct.length > 8 ? " …" : "");
    return `The model has never seen ${shown}`;
  }
}

/** How to speak of a character that may not be visible. */
export function nameOf(character) {
  const names = { "\n": "new line", " ": "space", "\t": "tab", "\r": "carriage return" };
  if (names[character]) return names[character];
  return /^[\p{C}\p{Z}]/u.test(character) ? `U+${character.codePointAt(0).toString(16).toUpperCase().padStart(4, "0")}` : character;
}
