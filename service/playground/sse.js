/**
 * Server-sent events out of the body of a fetch(). (The browser's own EventSource can only GET, and cannot choose what to resume.)
 *
 *     id: 8dfa.118
 *     data: {"index": 118, "text": "O, sp"}
 *                                                ← a blank line ends an event
 *     : keep-alive                               ← a comment
 *
 *     for await (const { type, id, data } of readEvents(response.body)) …
 *
 * Whatever way the network cuts the bytes into pieces, the events are the same. An event that the end of the stream leaves
 * unfinished is thrown away, as the standard says, so what has been yielded has arrived whole. `onBytes` is called whenever
 * something comes, comments too.
 */
export async function* readEvents(body, onBytes = () => {}) {
  let event = { type: "message", id: null, data: [] };
  for await (const line of readLines(body, onBytes)) {
    if (line === "") {
      if (event.data.length) yield { ...event, data: event.data.join("\n") };
      event = { type: "message", id: null, data: [] };
    } else {
      const [, field, value] = /^([^:]*):? ?(.*)$/.exec(line);
      if (field === "event") event.type = value;
      if (field === "id") event.id = value;
      if (field === "data") event.data.push(value);
    }
  }
}

/** The whole lines of a byte stream. Leaving the loop early closes the stream. */
async function* readLines(body, onBytes) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      onBytes();
      const lines = (rest + value).split("\n");
      rest = lines.pop();
      for (const line of lines) yield line.replace(/\r$/, "");
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}
