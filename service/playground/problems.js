/** What may go wrong, in plain words. */
import { RequestError } from "./generation.js";

const PLAIN = {
  unauthorized: "This server asks for a key.",
  forbidden: "This key may not do that.",
  queue_full: "The server is busy: every place is taken.",
  rate_limited: "Too many requests in a short time.",
  loading: "The model is still being loaded.",
  shutting_down: "The server is shutting down.",
  engine_failed: "The server's engine has failed, and a person has to look at it.",
  queue_timeout: "The request waited too long for its turn.",
  checkpoint_gone: "The weights that wrote this text are not loaded any more, so it cannot go on.",
  resume_mismatch: "The request has changed since, so this text cannot go on.",
  body_too_large: "That is more than the server takes.",
  unknown_characters: "The model has never seen some of these characters.",
};
const HINTS = { unknown_characters: "Take the marked ones out, or let them be dropped: see “Unknown characters” among the parameters." };

/** What to say of an error: in `words`, the server's own `details`, and a `hint` for the control that it names, if it names one. */
export function explain(error, control) {
  if (!(error instanceof RequestError)) return { words: "The server cannot be reached. Is it running?", details: "", hint: "" };
  const wait = error.retryAfter ? ` Try again in ${error.retryAfter} s.` : "";
  return {
    words: PLAIN[error.code] ?? (control ? "One of the settings cannot be used." : "The server did not take this request."),
    details: `${error.message}.${wait}`,
    hint: HINTS[error.code] ?? error.message.replace(/^[\w.]+: /, ""),
  };
}
