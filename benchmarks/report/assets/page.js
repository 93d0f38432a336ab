"use strict";
const REPORT = JSON.parse(document.getElementById("data").textContent);

// plotly.js lies in the page compressed; browsers have unpacked gzip themselves since 2023
async function loadPlotly() {
  const packed = Uint8Array.from(atob(document.getElementById("plotly").textContent), (c) => c.charCodeAt(0));
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
  const script = document.createElement("script");
  script.textContent = await new Response(stream).text();
  document.head.append(script);
}
const plotly = loadPlotly();

// element("td", {className: "n"}, "text", child, ...)
function element(name, properties, ...children) {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children);
  return made;
}

function choice(name, options, chosen, changed) {
  const select = element("select", { id: `choose-${name}` });
  for (const [value, text] of options) select.append(element("option", { value }, text));
  select.value = chosen;
  select.addEventListener("change", changed);
  return select;
}
