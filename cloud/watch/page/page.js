"use strict";
const $ = (id) => document.getElementById(id);

// element("div", {className: "n"}, "text", child, ...): text is never parsed as HTML
function element(name, properties, ...children) {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children);
  return made;
}
function drawn(name, attributes, text = "") {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.textContent = text;
  return made;
}
const number = (value, digits = 0) => value === null || value === undefined ? "–" : value.toLocaleString("en", { minimumFractionDigits: digits, maximumFractionDigits: digits });
function bytes(value) {
  if (value < 10_000) return `${number(value)} B`;
  const power = value < 1e6 ? [1e3, "kB"] : value < 1e9 ? [1e6, "MB"] : [1e9, "GB"];
  return `${number(value / power[0], 1)} ${power[1]}`;
}
const clock = (at) => new Date(at * 1000).toLocaleString([], { dateStyle: "short", timeStyle: "medium" });

// ---------------------------------------------------------------- live figures

function tiles(live) {
  const shown = {
    "images/s": number(live.rate_per_s, 1),
    "p50 ms": number(live.latency_ms.p50, 1),
    "p90 ms": number(live.latency_ms.p90, 1),
    "p99 ms": number(live.latency_ms.p99, 1),
    "waiting": `${live.queue.items} / ${live.queue.limit}`,
    "answered": number(live.totals.answered),
    "failed": number(live.totals.failed + live.totals.expired),
    "refused": number(live.totals.rejected),
    "bytes each": live.totals.answered ? bytes(live.totals.bytes / live.totals.answered) : "–",
  };
  for (const [name, value] of Object.entries(shown)) {
    const key = name.replace(/\W+/g, "-");
    if (!$(`tile-${key}`)) $("tiles").append(element("div", {}, element("dt", {}, name), element("dd", { id: `tile-${key}` })));
    $(`tile-${key}`).textContent = value;
  }
}

function curve(svg, values) {
  const [width, height, foot] = [svg.clientWidth || 600, svg.clientHeight || 144, 16];
  const top = Math.max(1, ...values) * 1.1;
  const points = values.map((value, at) => `${(at / (values.length - 1)) * width},${(height - foot) * (1 - value / top)}`);
  svg.replaceChildren(
    drawn("line", { class: "axis", x1: 0, x2: width, y1: height - foot, y2: height - foot }),
    drawn("polygon", { class: "area", points: `0,${height - foot} ${points.join(" ")} ${width},${height - foot}` }),
    drawn("polyline", { class: "line", points: points.join(" ") }),
    drawn("text", { x: 0, y: 10 }, `${number(Math.max(...values))}/s at most`),
    drawn("text", { x: 0, y: height - 2 }, "-2 min"),
    drawn("text", { x: width, y: height - 2, "text-anchor": "end" }, "now"),
  );
}

function bars(svg, counts) {
  const [width, height, foot] = [svg.clientWidth || 300, svg.clientHeight || 144, 16];
  const entries = Object.entries(counts).sort((a, b) => a[0] - b[0]);
  const most = Math.max(1, ...entries.map((entry) => entry[1]));
  const step = width / Math.max(entries.length, 4);
  svg.replaceChildren(drawn("line", { class: "axis", x1: 0, x2: width, y1: height - foot, y2: height - foot }));
  entries.forEach(([size, count], at) => {
    const tall = Math.max(1, ((height - foot - 14) * count) / most);
    svg.append(
      drawn("rect", { x: at * step + 3, y: height - foot - tall, width: Math.max(1, step - 6), height: tall, rx: 2 }),
      drawn("text", { x: (at + 0.5) * step, y: height - 2, "text-anchor": "middle" }, size),
      drawn("text", { x: (at + 0.5) * step, y: height - foot - tall - 3, "text-anchor": "middle" }, number(count)),
    );
  });
}

function picture(url, has) {
  const blank = () => element("div", { className: "blank" }, "no picture");
  if (!has) return blank();
  const image = element("img", { alt: "", loading: "lazy" });
  image.addEventListener("error", () => image.replaceWith(blank()));
  image.src = url;
  return image;
}

function caption(lines) {
  return element("figcaption", {}, ...lines.map(([tag, text]) => element(tag, {}, text)));
}

const guess = (predictions) => predictions.length ? `${predictions[0][0]} ${number(100 * predictions[0][1])} %` : "(no labels)";

// Which packet of a frame decided, where several were offered
function decided(row) {
  if (row.went === "first") return [`${row.bundle} was enough`];
  if (row.went === "alone") return [`answered by ${row.bundle} alone`];
  return row.opinions.map((said) => {
    const agrees = row.predictions.length && said.label === row.predictions[0][0];
    return `${said.bundle} ${agrees ? "said so" : `said ${said.label}`} (${number(100 * said.share)} %)`;
  });
}

const cards = new Map();  // by number: kept, so that pictures are asked for once
function latest(rows) {
  if (!rows.length) return;
  const here = new Set(rows.map((row) => row.number));
  for (const [key, card] of cards) if (!here.has(key)) { card.remove(); cards.delete(key); }
  $("latest").querySelector(".none")?.remove();
  for (const row of [...rows].reverse()) {
    if (cards.has(row.number)) continue;
    const card = element("figure", {}, picture(`api/latest/${row.number}`, row.picture), caption([
      ["b", guess(row.predictions)],
      ["span", `${bytes(row.bytes)} · ${row.bundle}${row.layers ? ` · ${row.layers} layer${row.layers > 1 ? "s" : ""}` : ""}`],
      ["span", `${row.device} · ${number(row.total_ms, 1)} ms`],
      ...decided(row).map((text) => ["span", text]),
    ]));
    cards.set(row.number, card);
    $("latest").prepend(card);
  }
}

async function refresh() {
  try {
    const reply = await fetch("api/live");
    if (!reply.ok) throw new Error(`status ${reply.status}`);
    const live = await reply.json();
    tiles(live);
    curve($("rate"), live.rates);
    bars($("batches"), live.batches);
    latest(live.latest);
    offer(live.search);
    $("state").textContent = live.clips.join(", ");
    $("state").className = "";
  } catch (error) {
    $("state").textContent = `no answer from the service (${error.message}); trying again`;
    $("state").className = "lost";
  }
  setTimeout(refresh, document.hidden ? 5000 : 1000);
}

// ---------------------------------------------------------------- search

function offer(store) {
  $("search").hidden = !store;
  if (!store) return;
  $("stored").textContent = `${number(store.frames)} frames, ${bytes(store.bytes)}`;
  const known = store.devices.join("\n");
  if ($("devices").dataset.known !== known) {
    $("devices").dataset.known = known;
    $("devices").replaceChildren(...store.devices.map((value) => element("option", { value })));
  }
}

// [from, to] in seconds since 1970, by the clock of the one who asks; night: 20:00 to 06:00. Days are the calendar's:
// they last 23 or 25 hours when the clock changes.
function span(name) {
  const now = new Date(), second = now / 1000;
  const at = (days, hours) => new Date(now.getFullYear(), now.getMonth(), now.getDate() + days, hours) / 1000;
  if (name === "hour") return [second - 3600, second];
  if (name === "today") return [at(0, 0), second];
  if (name === "yesterday") return [at(-1, 0), at(0, 0)];
  if (name === "week") return [second - 7 * 86400, second];
  if (name === "night") return [at(-1, 20), Math.min(second, at(0, 6))];
  return [null, null];
}

function filters() {
  const query = new URLSearchParams();
  const [after, before] = span($("when").value);
  if (after !== null) { query.set("after", after); query.set("before", before); }
  for (const name of ["device", "label"]) if ($(name).value.trim()) query.set(name, $(name).value.trim());
  return query;
}

async function search(query, body = null) {
  $("outcome").className = "";
  $("outcome").textContent = "searching …";
  const start = performance.now();
  try {
    const reply = await fetch(`api/search?${query}`, body ? { method: "POST", body } : {});
    const told = await reply.json();
    if (!reply.ok) throw new Error(told.message || `status ${reply.status}`);
    $("outcome").textContent = `${told.found.length || "no"} frames in ${number(performance.now() - start)} ms`;
    $("found").replaceChildren(...told.found.map(card));
  } catch (error) {
    $("outcome").className = "wrong";
    $("outcome").textContent = error.message;
    $("found").replaceChildren();
  }
}

function card(frame) {
  const similar = element("button", { type: "button" }, "more like this");
  similar.addEventListener("click", () => { const query = filters(); query.set("like", frame.id); search(query); });
  const told = caption([
    ["b", guess(frame.predictions)],
    ["span", `${frame.device} · ${clock(frame.at)}`],
    ["span", `cosine ${number(frame.similarity, 3)} · ${bytes(frame.bytes)}`],
  ]);
  told.append(similar);
  const made = element("figure", {}, picture(`api/frames/${frame.id}`, frame.picture), told);
  made.dataset.id = frame.id;
  return made;
}

$("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  const query = filters();
  query.set("text", $("text").value);
  search(query);
});
$("file").addEventListener("change", () => {
  if ($("file").files.length) search(filters(), $("file").files[0]);
});

refresh();
