/** The model's card: what it was trained on, how well it did, and what it runs on. All of it comes from GET /info. */

const SVG = "http://www.w3.org/2000/svg";
const WIDTH = 320;
const HEIGHT = 132;
const BOX = { left: 30, right: WIDTH - 6, top: 8, bottom: HEIGHT - 20 };

export function renderCard(element, model, version) {
  const { manifest, config } = model;
  const parts = [];
  if (manifest.curve?.length > 1) parts.push(lossFigure(manifest.curve));
  parts.push(facts(summary(model, manifest, config)));
  const provenance = make("details", {}, make("summary", {}, "Provenance"), facts(origins(model, manifest, version)));
  element.replaceChildren(...parts, provenance);
}

/** What the model writes one after another. */
export const unitOf = (model) => ({ byte: "byte", bpe: "token" })[model?.tokenizer] ?? "character";

function summary(model, manifest, config) {
  const { data, steps, train_loss: train, val_loss: held, val_loss_per_character: perCharacter = held } = manifest;
  const unit = unitOf(model) + "s";
  return [
    ["learned from", data?.name],
    ["its length", data?.characters && `${count(data.characters)} characters`],
    ["size", `${count(model.num_parameters)} parameters`],
    ["shape", `${config.n_layer} layers × ${config.n_head} heads, ${config.n_embd} wide`],
    [unit === "characters" ? "alphabet" : "vocabulary", `${count(model.vocab_size)} ${unit}`],
    ["looks back", `${count(model.block_size)} ${unit}`],
    ["trained", steps && `${count(steps)} steps${manifest.wall_time_s ? ` in ${duration(manifest.wall_time_s)}` : ""}`],
    ["loss, held out", held && `${held.toFixed(3)} (${(perCharacter / Math.LN2).toFixed(2)} bits a character)`],
    ["loss, training", train && train.toFixed(3)],
    ["runs on", model.device],
  ];
}

function origins(model, manifest, version) {
  const { data, versions } = manifest;
  return [
    ["checkpoint", model.checkpoint],
    ["fingerprint", model.fingerprint],
    ["data, sha256", data?.sha256],
    ["training seed", manifest.seed],
    ["trained on", manifest.device && `${manifest.device}, ${manifest.dtype ?? ""}`.replace(/, $/, "")],
    ["how the held-out loss is taken", manifest.val_loss_protocol],
    ["torch", versions?.torch],
    ["commit", manifest.git_commit],
    ["kernels", model.kernels],
    ["Folio", version],
  ];
}

/** A description list; facts that this checkpoint does not tell are left out. */
function facts(rows) {
  const known = rows.filter(([, value]) => value !== undefined && value !== null && value !== false);
  return make("dl", { class: "facts" }, ...known.map(([name, value]) => make("div", {}, make("dt", {}, name), make("dd", {}, String(value)))));
}

/** Two lines, loss over steps. `curve`: [{step, train_loss, val_loss}] */
function lossFigure(curve) {
  const losses = curve.flatMap((point) => [point.train_loss, point.val_loss]).filter(Number.isFinite);
  const ticks = niceTicks(Math.min(...losses), Math.max(...losses));
  const [low, high] = [ticks[0], ticks.at(-1)];
  const lastStep = curve.at(-1).step;
  const x = (step) => BOX.left + (step / lastStep) * (BOX.right - BOX.left);
  const y = (loss) => BOX.bottom - ((loss - low) / (high - low)) * (BOX.bottom - BOX.top);
  const line = (key) => curve.filter((point) => Number.isFinite(point[key])).map((point) => `${x(point.step).toFixed(1)},${y(point[key]).toFixed(1)}`).join(" ");
  const label = `Loss by training step: held-out from ${curve[0].val_loss?.toFixed(2)} to ${curve.at(-1).val_loss?.toFixed(2)}`;
  const picture = draw("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": label, class: "curve" });
  for (const tick of ticks) {
    picture.append(draw("line", { class: "grid", x1: BOX.left, x2: BOX.right, y1: y(tick), y2: y(tick) }));
    picture.append(draw("text", { x: BOX.left - 6, y: y(tick) + 4, "text-anchor": "end" }, tick.toFixed(high - low < 1 ? 2 : 1)));
  }
  picture.append(
    draw("text", { x: BOX.left, y: HEIGHT - 4 }, "0"),
    draw("text", { x: BOX.right, y: HEIGHT - 4, "text-anchor": "end" }, `${count(lastStep)} steps`),
    draw("polyline", { class: "train", points: line("train_loss") }),
    draw("polyline", { class: "held", points: line("val_loss") }),
  );
  const key = (name, text) => make("span", { class: `key ${name}` }, text);
  return make("figure", {}, picture, make("figcaption", {}, "Loss: ", key("held", "held out"), " ", key("train", "training")));
}

/** Three to six round numbers that enclose a range: 1.42 … 2.87 → 1, 1.5, 2, 2.5, 3 */
export function niceTicks(low, high) {
  const rough = Math.max(high - low, 1e-3) / 3;
  const unit = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((factor) => factor * unit).find((size) => size >= rough);
  const first = Math.floor(low / step);
  const last = Math.max(Math.ceil(high / step), first + 1);
  return Array.from({ length: last - first + 1 }, (_, n) => (first + n) * step);
}

export const count = (number) => Number(number).toLocaleString("en");

function duration(seconds) {
  if (seconds < 120) return `${Math.round(seconds)} s`;
  return seconds < 7200 ? `${Math.round(seconds / 60)} min` : `${(seconds / 3600).toFixed(1)} h`;
}

function make(name, attributes, ...children) {
  return fill(document.createElement(name), attributes, children);
}

function draw(name, attributes, ...children) {
  return fill(document.createElementNS(SVG, name), attributes, children);
}

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}
