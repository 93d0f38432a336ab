// The rate-accuracy plot, its filters, and the table that follows them.
(() => {
  const { columns, groups, titles, colours } = REPORT["rate-accuracy"];
  const X = [
    ["bytes_mean", "packet bytes"],
    ["message_bytes_mean", "protobuf message bytes"],
    ["wire_bytes_mean", "bytes on the wire"],
    ["bits_per_pixel", "bits per pixel of the view"],
  ];
  const Y = [
    ["top1_relative", "relative top-1"],
    ["top1", "top-1"],
    ["top5", "top-5"],
    ["mean_per_class_recall", "mean per-class recall"],
    ["margin", "zero-shot margin"],
    ["pooled_cosine", "CLIP cosine, pooled"],
    ["patch_cosine", "CLIP cosine, patches"],
    ["psnr_db", "PSNR, dB"],
    ["ms_ssim", "MS-SSIM"],
    ["perceptual", "LPIPS-like distance"],
  ];
  const BYTES = [10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000, 20000, 50000, 100000];
  const TABLE = [
    ["codec", "codec"],
    ["rate", "rate"],
    ["bytes_mean", "bytes", 0],
    ["message_bytes_mean", "message", 0],
    ["wire_bytes_mean", "wire", 0],
    ["top1", "top-1", 3],
    ["top5", "top-5", 3],
    ["top1_relative", "relative", 3],
    ["mcnemar_p", "McNemar p", "p"],
    ["mean_per_class_recall", "recall", 3],
    ["margin", "margin", 4],
    ["pooled_cosine", "pooled cos", 3],
    ["patch_cosine", "patch cos", 3],
    ["psnr_db", "PSNR dB", 1],
    ["ms_ssim", "MS-SSIM", 3],
    ["perceptual", "LPIPS-like", 3],
    ["encode_ms_p50", "encode ms", 1],
  ];
  const off = new Set();
  const order = Object.keys(titles);
  let sortBy = null;
  let descending = false;

  const chosen = (name) => document.getElementById(`choose-${name}`).value;
  const title = (codec) => titles[codec] ?? codec;
  const group = () => groups[Number(chosen("data"))];

  function rows() {
    const all = group().sets[chosen("prompts")] ?? [];
    const everything = document.getElementById("choose-all").checked;
    return all
      .map((row) => Object.fromEntries(columns.map((column, place) => [column, row[place]])))
      .filter((row) => !off.has(row.codec) && (row.kind !== "peer" || row.hull || everything));
  }

  function trace(codec, own, x, y) {
    const family = own[0].kind === "family";
    const drawn = own.filter((row) => row[x] !== null && row[y] !== null).sort((a, b) => a[x] - b[x]);
    const line = drawn.filter((row) => family || row.hull);
    const ends = (side) => line.map((row) => Math.abs(row.top1_relative_ci95[side] - row.top1_relative));
    const bars = family && y === "top1_relative" && line.every((row) => row.top1_relative_ci95);
    const say = (row) =>
      `<b>${title(codec)} ${row.rate}</b><br>${row.bytes_mean.toFixed(0)} B packet, ${row.wire_bytes_mean?.toFixed(0) ?? "–"} B on the wire` +
      `<br>top-1 ${(100 * row.top1).toFixed(1)} %, relative ${row.top1_relative?.toFixed(3) ?? "–"}` +
      (row.top1_relative_ci95 ? ` (${row.top1_relative_ci95.map((end) => end.toFixed(3)).join(" to ")})` : "");
    const common = { name: title(codec), legendgroup: codec, hovertemplate: "%{text}<extra></extra>" };
    const made = [
      {
        ...common,
        x: line.map((row) => row[x]),
        y: line.map((row) => row[y]),
        text: line.map(say),
        mode: "lines+markers",
        line: { color: colours[codec], width: family ? 3 : 1.5, dash: family ? "solid" : "dash" },
        marker: { size: family ? 9 : 6, symbol: family ? "circle" : order.indexOf(codec) % 20 },
        error_y: bars
          ? { type: "data", array: ends(1), arrayminus: ends(0), thickness: 1, width: 2, color: colours[codec] + "88" }
          : undefined,
      },
    ];
    const rest = drawn.filter((row) => !line.includes(row));
    if (rest.length)
      made.push({
        ...common,
        showlegend: false,
        x: rest.map((row) => row[x]),
        y: rest.map((row) => row[y]),
        text: rest.map(say),
        mode: "markers",
        marker: { color: colours[codec], size: 4, opacity: 0.35 },
      });
    return made;
  }

  function draw() {
    const x = chosen("x");
    const y = chosen("y");
    const shown = rows();
    const codecs = order.filter((codec) => shown.some((row) => row.codec === codec));
    const traces = codecs.flatMap((codec) => trace(codec, shown.filter((row) => row.codec === codec), x, y));
    const plain = shown.find((row) => row.kind === "reference");
    const level = plain && ["top1", "top5", "top1_relative", "mean_per_class_recall", "margin"].includes(y) ? plain[y] : null;
    const name = (list, key) => list.find(([value]) => value === key)[1];
    Plotly.react(
      "curve",
      traces,
      {
        margin: { l: 60, r: 15, t: 10, b: 50 },
        xaxis: { type: "log", title: { text: `${name(X, x)}, mean of an image (log scale)` }, gridcolor: "#eef0f3", ...(x === "bits_per_pixel" ? {} : { tickvals: BYTES, ticktext: BYTES.map((n) => n.toLocaleString("en")) }) },
        yaxis: { title: { text: name(Y, y) }, gridcolor: "#eef0f3", rangemode: y === "margin" ? "normal" : "tozero" },
        legend: { x: 1, y: 0, xanchor: "right", yanchor: "bottom", bgcolor: "#ffffffcc" },
        hoverlabel: { align: "left" },
        paper_bgcolor: "#fff",
        plot_bgcolor: "#fff",
        shapes: level === null ? [] : [{ type: "line", xref: "paper", x0: 0, x1: 1, y0: level, y1: level, line: { color: "#888", width: 1, dash: "dot" } }],
        annotations: level === null ? [] : [{ xref: "paper", x: 0, y: level, text: "uncompressed", showarrow: false, xanchor: "left", yanchor: "bottom", font: { color: "#888", size: 11 } }],
      },
      { responsive: true, displaylogo: false, toImageButtonOptions: { format: "svg", filename: "rate-accuracy" } },
    );
    table(shown);
  }

  function table(shown) {
    const cell = (row, [key, , digits]) => {
      const value = row[key];
      if (key === "codec") return title(value);
      if (value === null) return "–";
      if (digits === "p") return value < 0.001 ? value.toExponential(0) : value.toFixed(3);
      return digits === undefined ? value : value.toLocaleString("en", { minimumFractionDigits: digits, maximumFractionDigits: digits });
    };
    if (sortBy)
      shown.sort((a, b) => {
        const [left, right] = [a[sortBy], b[sortBy]];
        if (left === null || right === null) return (left === null) - (right === null);
        return (left < right ? -1 : left > right ? 1 : 0) * (descending ? -1 : 1);
      });
    const head = element("tr", {});
    for (const [key, text, digits] of TABLE) {
      const mark = key === sortBy ? (descending ? " ↓" : " ↑") : "";
      const th = element("th", { className: digits === undefined ? "sorts" : "n sorts" }, text + mark);
      th.addEventListener("click", () => {
        descending = key === sortBy && !descending;
        sortBy = key;
        draw();
      });
      head.append(th);
    }
    const body = element("tbody", {});
    for (const row of shown)
      body.append(element("tr", {}, ...TABLE.map((column) => element("td", { className: column[2] === undefined ? "" : "n" }, cell(row, column)))));
    document.getElementById("points-table").replaceChildren(element("div", { className: "wide" }, element("table", {}, element("thead", {}, head), body)));
  }

  function prompts() {
    const select = document.getElementById("choose-prompts");
    const before = select.value;
    const names = group().prompt_sets;
    select.replaceChildren(...names.map((name) => element("option", { value: name }, name)));
    select.value = names.includes(before) ? before : names[0];
  }

  const filters = document.getElementById("filters");
  const add = (text, control) => filters.append(element("label", {}, text, control));
  add("data", choice("data", groups.map((each, place) => [place, each.title]), 0, () => { prompts(); draw(); }));
  add("prompts", choice("prompts", [], "", draw));
  add("across", choice("x", X, "bytes_mean", draw));
  add("up", choice("y", Y, "top1_relative", draw));
  const all = element("input", { type: "checkbox", id: "choose-all" });
  all.addEventListener("change", draw);
  filters.append(element("label", {}, all, "also peers’ points off their fronts"));
  const codecs = element("div", { className: "codecs" });
  for (const codec of order) {
    const box = element("input", { type: "checkbox", checked: true, value: codec });
    box.addEventListener("change", () => { box.checked ? off.delete(codec) : off.add(codec); draw(); });
    const dot = element("span", { className: "dot" });
    dot.style.background = colours[codec];
    codecs.append(element("label", {}, box, dot, title(codec)));
  }
  filters.append(codecs);
  prompts();
  plotly.then(draw);
})();
