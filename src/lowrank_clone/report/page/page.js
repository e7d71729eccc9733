"use strict";
(() => {
  const specs = JSON.parse(document.getElementById("specs").textContent);
  const dark = matchMedia("(prefers-color-scheme: dark)");
  // A finger on a figure scrolls the page: figures are moved and zoomed with a mouse alone.
  const fingers = matchMedia("(pointer: coarse)");

  const config = () => {
    const [ink, soft, line] = dark.matches ? ["#e4e8ee", "#9aa4b2", "#2e343d"] : ["#1d2330", "#5b6474", "#dfe3e8"];
    const font = getComputedStyle(document.body).fontFamily;
    return {
      background: "transparent",
      font,
      axis: { labelColor: soft, titleColor: soft, gridColor: line, domainColor: line, tickColor: line, labelFontSize: 11, titleFontSize: 11, titleFontWeight: "normal" },
      legend: { labelColor: ink, titleColor: soft, labelFontSize: 11, titleFontWeight: "normal", labelLimit: 220 },
      title: { color: soft },
      text: { color: soft },
      view: { stroke: "transparent" },
    };
  };

  const prepared = (spec, width) => {
    const copy = structuredClone(spec);
    const { scale, legend } = copy.encoding.color;
    if (legend && scale.domain && scale.type !== "log") { // as many columns as there is room for
      const longest = Math.max(...scale.domain.map((name) => Math.min(String(name).length, 34)));
      legend.columns = Math.max(1, Math.floor((width - 50) / (longest * 7 + 32)));
    }
    for (const layer of copy.layer || []) {
      if (fingers.matches && layer.params) layer.params = layer.params.filter((param) => param.name !== "zoom");
    }
    return copy;
  };

  const playable = (place, view, last) => {
    const button = document.createElement("button");
    let timer = null;
    const stop = () => { clearInterval(timer); timer = null; button.textContent = "play"; };
    button.type = "button";
    button.className = "play";
    button.textContent = "play";
    button.onclick = () => {
      if (timer !== null) return stop();
      if (view.signal("frame") >= last) view.signal("frame", 0).run();
      button.textContent = "stop";
      timer = setInterval(() => {
        if (view.signal("frame") >= last) return stop();
        view.signal("frame", Number(view.signal("frame")) + 1).run();
      }, 450);
    };
    place.querySelector(".vega-bind").append(button);
    return stop;
  };

  let drawn = [];
  const draw = async () => {
    for (const { result, stop } of drawn) { stop(); result.finalize(); }
    drawn = [];
    const options = { renderer: "canvas", mode: "vega-lite", config: config(), tooltip: { theme: dark.matches ? "dark" : "light" } };
    for (const [name, spec] of Object.entries(specs)) {
      const place = document.getElementById("chart-" + name);
      try {
        const actions = { export: true, source: false, compiled: false, editor: false };
        const result = await vegaEmbed(place, prepared(spec, place.clientWidth), { ...options, actions, downloadFileName: name });
        const frame = (spec.params || []).find((param) => param.name === "frame" && param.bind);
        drawn.push({ result, stop: frame ? playable(place, result.view, frame.bind.max) : () => {} });
      } catch (error) {
        place.textContent = "This figure could not be drawn: " + error;
        console.error(name, error);
      }
    }
    window.views = Object.fromEntries(Object.keys(specs).map((name, index) => [name, drawn[index]?.result.view]));
    document.documentElement.dataset.drawn = String(drawn.length);
  };

  dark.addEventListener("change", draw);
  draw();
  const live = Number(document.documentElement.dataset.live || 0);
  if (live) setInterval(() => { if (!document.hidden) location.reload(); }, live * 1000);
})();
