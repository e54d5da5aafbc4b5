/** The server: the key that it may want, whether its model is there, and what that model is. */
import { RequestError } from "./generation.js";
import { $ } from "./page.js";

const RETRY_MS = 1000;

export class Server {
  /** `onModel(info)` is called with GET /info's answer, now and whenever another checkpoint is served. */
  constructor(onModel) {
    this.onModel = onModel;
    this.model = null; // GET /info's
    this.key = ""; // of the API; lives here and nowhere else
    $("key-form").addEventListener("submit", (event) => {
      event.preventDefault();
      this.key = $("key").value.trim();
      $("key").value = "";
      this.meet();
    });
  }

  get headers() {
    return this.key ? { Authorization: `Bearer ${this.key}` } : {};
  }

  /** The answer to a GET, whatever its type. Throws RequestError. */
  async fetch(path, options = {}) {
    const response = await fetch(path, { headers: this.headers, cache: "no-store", ...options });
    if (!response.ok) throw await RequestError.from(response);
    return response;
  }

  /** The JSON that a GET gives. Throws RequestError. */
  async get(path) {
    return (await this.fetch(path)).json();
  }

  /** Ask until the model is there. */
  async meet() {
    try {
      const info = await this.get("info");
      $("key-form").hidden = true;
      if (!info.model) return this.#again(info.engine.message || "the model is being loaded");
      this.model = info.model;
      await this.onModel(info);
    } catch (error) {
      if (error.status === 401) this.askForKey();
      else this.#again("the server does not answer");
    }
  }

  #again(why) {
    showState("loading", why);
    setTimeout(() => this.meet(), RETRY_MS);
  }

  askForKey() {
    showState("locked", this.key ? "this key is not valid here" : "needs a key");
    $("key-form").hidden = false;
    $("key").focus();
  }
}

/** The line in the masthead. */
export function showState(state, text) {
  $("state").dataset.state = state;
  $("state-text").textContent = text;
}
