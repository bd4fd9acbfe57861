// Figures that are drawn when they come into view, the theme, the table of runs. Loads nothing from elsewhere.
"use strict";
(() => {
  const own = document.currentScript, root = document.documentElement;
  const told = {}, loading = {};
  const wantsDark = matchMedia("(prefers-color-scheme: dark)");
  const dark = () => (root.dataset.theme || (wantsDark.matches ? "dark" : "light")) === "dark";
  window.anchorlens = { figure: (id, figure) => { told[id] = figure; } };

  const load = (src) => (loading[src] ||= new Promise((done, failed) => {
    const script = document.createElement("script");
    script.src = src;
    script.onload = done;
    script.onerror = () => failed(new Error("cannot be read: " + src));
    document.head.append(script);
  }));

  // What figures are drawn with on white, and what takes its place on dark.
  const NIGHT = {
    "#111111": "#f0f0f0", "#111": "#f0f0f0", "black": "#f0f0f0", "white": "#1c1f25", "#ffffff": "#1c1f25", "#fff": "#1c1f25",
    "rgb(36,36,36)": "#cfd3da", "rgba(255,255,255,0.75)": "rgba(28,31,37,0.75)", "#737373": "#9aa1ac", "#555555": "#a2a9b5",
    "#999999": "#808793", "#cccccc": "#333842", "#0072b2": "#3f9fdb", "#cc79a7": "#d893b9", "rgba(17,17,17,0.18)": "rgba(240,240,240,0.18)",
  };
  const night = (value) => {
    if (typeof value === "string") return NIGHT[value.toLowerCase().replace(/, /g, ",")] || value;
    if (Array.isArray(value)) return value.map(night);
    if (value && typeof value === "object") return Object.fromEntries(Object.entries(value).map(([k, v]) => [k, SAID.has(k) ? v : k === "ticktext" && Array.isArray(v) ? v.map((t) => String(t).replaceAll("#0072B2", NIGHT["#0072b2"])) : night(v)]));
    return value;
  };
  const SAID = new Set(["text", "name", "hovertemplate", "customdata", "labels", "x", "y", "z"]);

  const wrapped = (text, wide) => {
    const lines = [""];
    for (const word of text.split(" ")) if (lines.at(-1) && (lines.at(-1) + word).length > wide) lines.push(word); else lines[lines.length - 1] += (lines.at(-1) && " ") + word;
    return lines;
  };

  // Panels side by side, one below the other: a phone is too narrow for two.
  const stack = (figure, width) => {
    const layout = figure.layout, names = Object.keys(layout).filter((k) => /^xaxis\d*$/.test(k));
    const panels = names.map((name) => {
      const x = layout[name], y = layout["yaxis" + (x.anchor && x.anchor !== "y" ? x.anchor.slice(1) : "")];
      return { x, y, left: (x.domain || [0, 1]).slice(), low: ((y && y.domain) || [0, 1]).slice() };
    });
    const n = panels.length;
    if (n < 2 || panels.some((p) => !p.y || p.y.overlaying || Object.values(layout).some((v) => v && v.overlaying))) return false;
    panels.sort((a, b) => b.low[1] - a.low[1] || a.left[0] - b.left[0]);
    const leaning = panels.some((p) => Array.isArray(p.x.ticktext) && p.x.ticktext.some((said) => String(said).replace(/<[^>]*>/g, "").length > 3)); // words below a panel take more room
    const rows = new Set(panels.map((p) => p.low[1].toFixed(2))).size;
    const one = Math.min(340, Math.max(210, ((layout.height || 430) - 180) / rows)), gap = leaning ? 140 : 100, all = n * one + (n - 1) * gap; // pixels
    const titles = (layout.annotations || []).filter((a) => a.xref === "paper" && a.yref === "paper" && !a.showarrow);
    const at = panels.map((p, i) => titles.find((a) => a.x >= p.left[0] - 0.01 && a.x <= p.left[1] + 0.01 && Math.abs(a.y - p.low[1]) < 0.05));
    panels.forEach((p, i) => {
      const top = 1 - i * (one + gap) / all, range = [Math.max(0, top - one / all), top];
      p.x.domain = [0, 1];
      p.y.domain = range;
      p.x.showticklabels = p.y.showticklabels = true;
      if (at[i]) Object.assign(at[i], { x: 0.5, xanchor: "center", y: top });
    });
    const axes = Object.keys(layout).filter((k) => k.startsWith("coloraxis")).map((k) => layout[k]);
    const scales = [...figure.data, ...axes].filter((each) => each.showscale !== false && each.colorbar).map((each) => each.colorbar);
    const below = leaning ? 110 : 70;
    for (const bar of scales) {
      const few = (list) => list.filter((_, i) => i === 0 || i === list.length - 1 || 2 * i === list.length - 1);
      if (Array.isArray(bar.tickvals) && Array.isArray(bar.ticktext)) Object.assign(bar, { tickvals: few(bar.tickvals), ticktext: few(bar.ticktext) });
      Object.assign(bar, { orientation: "h", x: 0.5, xanchor: "center", len: 0.8, thickness: 12, y: -below / all, yanchor: "top", tickangle: 0, tickfont: { ...(bar.tickfont || {}), size: 10 } });
    }
    const margin = { ...layout.margin, l: 62, r: leaning ? 44 : 14 };
    margin.b = Math.max(margin.b || 80, scales.length ? below + 60 : 0);
    layout.height = all + (margin.t || 60) + margin.b;
    layout.margin = margin;
    if (layout.legend) layout.legend = { ...layout.legend, orientation: "h", x: 0, y: -70 / all };
    return true;
  };

  const shaped = (id, width) => {
    let figure = JSON.parse(JSON.stringify(told[id]));
    figure.layout ||= {};
    if (dark()) {
      figure = night(figure);
      figure.layout.paper_bgcolor = "#1c1f25";
      figure.layout.plot_bgcolor ||= "#1c1f25";
      figure.layout.font = { ...(figure.layout.font || {}), color: "#e8e9ec" };
      figure.layout.hoverlabel = { bgcolor: "#2b3038", font: { color: "#e8e9ec" }, ...(figure.layout.hoverlabel || {}) };
    }
    const natural = Number(figure.layout.width) || 800;
    const narrow = width < natural * 0.75;
    const stacked = narrow && stack(figure, width);
    const alone = !Object.keys(figure.layout).some((k) => /^xaxis\d+$/.test(k));
    if (narrow) {
      for (const each of figure.layout.annotations || []) if (each.xref === "paper") each.font = { ...(each.font || {}), size: 13 };
      for (const trace of figure.data) if (trace.name) trace.name = wrapped(trace.name, 40).join("<br>");
    }
    if (narrow && alone) {
      figure.layout.margin = { ...figure.layout.margin, l: 62, r: 14 };
      const x = figure.layout.xaxis;
      if (x && Array.isArray(x.ticktext) && !figure.layout.yaxis?.ticktext) { // words below bars: one below the other, and what is below them further down
        Object.assign(x, { ticktext: x.ticktext.map((said) => wrapped(String(said), 12).join("<br>")), tickangle: 0, tickfont: { ...(x.tickfont || {}), size: 10.5 } });
        figure.layout.margin.b = (figure.layout.margin.b || 80) + 50;
        figure.layout.height = (figure.layout.height || 430) + 50;
        if (figure.layout.legend) figure.layout.legend.y = -0.3;
      }
    }
    if (stacked) for (const [name, axis] of Object.entries(figure.layout)) {
      if (!/^yaxis/.test(name) || !Array.isArray(axis.ticktext)) continue;
      axis.ticktext = axis.ticktext.map((said) => said.includes("<span") ? said : wrapped(said.replaceAll("<br>", " "), 19).join("<br>"));
      axis.tickfont = { ...(axis.tickfont || {}), size: 10.5 };
    }
    figure.layout.width = stacked || alone || !narrow ? Math.min(natural, width) : Math.max(width, Math.min(natural, 560));
    if (figure.layout.title && width < natural && figure.layout.title.text) {
      const before = String(figure.layout.title.text).split("<br>").length;
      const lines = wrapped(String(figure.layout.title.text).replaceAll("<br>", " "), Math.max(30, Math.floor(figure.layout.width / 7.2)));
      const more = 18 * Math.max(0, lines.length - before);
      figure.layout.title = { ...figure.layout.title, text: lines.join("<br>") };
      figure.layout.margin = { ...figure.layout.margin, t: ((figure.layout.margin || {}).t || 60) + more };
      figure.layout.height = (figure.layout.height || 450) + more;
    }
    return figure;
  };

  const plots = [...document.querySelectorAll(".plot")];
  const draw = async (plot) => {
    const canvas = plot.querySelector(".canvas");
    plot.dataset.wanted = "yes";
    try {
      await load(own.dataset.plotly);
      await load(plot.dataset.src);
      const width = canvas.clientWidth;
      if (!width) { delete plot.dataset.wanted; return; }
      const figure = shaped(plot.dataset.figure, width);
      plot.dataset.width = width;
      canvas.querySelector(".waiting")?.remove();
      let target = canvas.firstElementChild;
      if (!target) canvas.append(target = document.createElement("div"));
      await Plotly.react(target, figure.data, figure.layout, { displaylogo: false, responsive: false, displayModeBar: width > 600 ? "hover" : false });
      plot.dataset.drawn = dark() ? "dark" : "light";
    } catch (error) {
      canvas.textContent = "The figure cannot be drawn: " + error.message;
    }
  };
  const seen = new IntersectionObserver((entries) => {
    for (const { target, isIntersecting } of entries) if (isIntersecting && !target.dataset.wanted) draw(target);
  }, { rootMargin: "300px" });
  plots.forEach((plot) => seen.observe(plot));
  const again = () => plots.filter((plot) => plot.dataset.wanted).forEach(draw);
  let timer;
  addEventListener("resize", () => {
    clearTimeout(timer);
    timer = setTimeout(() => plots.filter((p) => p.dataset.width && Number(p.dataset.width) !== p.querySelector(".canvas").clientWidth).forEach(draw), 150);
  });
  addEventListener("beforeprint", () => plots.filter((plot) => !plot.dataset.wanted).forEach(draw));

  const button = document.getElementById("theme");
  const name = () => { button.textContent = dark() ? "Light" : "Dark"; button.setAttribute("aria-label", "Switch to " + (dark() ? "light" : "dark") + " colours"); };
  button.hidden = false;
  name();
  button.addEventListener("click", () => {
    root.dataset.theme = dark() ? "light" : "dark";
    try { localStorage.setItem("anchorlens-theme", root.dataset.theme); } catch { /* not kept from page to page */ }
    name();
    again();
  });
  wantsDark.addEventListener("change", () => { name(); again(); });

  for (const tools of document.querySelectorAll(".tools")) tools.hidden = false;
  for (const table of document.querySelectorAll("table.sortable")) {
    const heads = [...table.tHead.rows[0].cells], body = table.tBodies[0];
    const names = heads.map((head) => head.textContent);
    for (const row of body.rows) [...row.cells].forEach((cell, i) => { cell.dataset.name = names[i]; });
    heads.forEach((head, i) => {
      const sort = document.createElement("button");
      sort.type = "button";
      sort.textContent = names[i];
      head.replaceChildren(sort);
      sort.addEventListener("click", () => {
        const down = head.getAttribute("aria-sort") === "ascending";
        heads.forEach((each) => each.removeAttribute("aria-sort"));
        head.setAttribute("aria-sort", down ? "descending" : "ascending");
        const key = (row) => row.cells[i].textContent.trim();
        const rows = [...body.rows].sort((a, b) => key(a).localeCompare(key(b), "en", { numeric: true }));
        body.append(...(down ? rows.reverse() : rows));
      });
    });
  }
  const search = document.getElementById("search");
  if (search) {
    const rows = [...document.getElementById("table").tBodies[0].rows], count = document.getElementById("count");
    const filter = () => {
      const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
      let shown = 0;
      for (const row of rows) {
        const whole = [...row.querySelectorAll("[title]")].map((each) => each.title); // of what is shown shortened
        const text = [row.textContent, ...whole].join(" ").toLowerCase();
        row.hidden = !words.every((word) => text.includes(word));
        shown += !row.hidden;
      }
      count.textContent = words.length ? shown + " of " + rows.length + " runs" : rows.length + (rows.length === 1 ? " run" : " runs");
    };
    search.addEventListener("input", filter);
    filter();
  }
  const choose = document.getElementById("choose");
  if (choose) {
    const pick = () => {
      for (const each of document.querySelectorAll(".choice")) each.hidden = each.id !== choose.value;
      document.querySelectorAll(".choice:not([hidden]) .plot").forEach((plot) => { if (!plot.dataset.wanted) seen.unobserve(plot), seen.observe(plot); });
    };
    choose.addEventListener("change", pick);
    pick();
  }
})();
