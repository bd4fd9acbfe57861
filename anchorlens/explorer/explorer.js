"use strict";
// Draws one prompt's edges: `start` reads the page's data and builds everything below `root`. No names are left behind.
(() => {
  const FULL = 18, LETTER = 12; // pixels: a row at most, and what a word needs

  const bytes = (text) => Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0)).buffer;

  /** Lists of edges by [measure][layer][head], where head 0 stands for all heads together. */
  function unpacked(data) {
    const cells = new (data.wide ? Uint32Array : Uint16Array)(bytes(data.cells));
    const counts = new Uint16Array(bytes(data.counts)), totals = new Float32Array(bytes(data.totals));
    const weights = new Float32Array(bytes(data.weights)), anchors = new Set(data.anchors);
    const target = data.tokens.length - 1;
    let at = 0, list = 0;
    const lists = data.measures.map(() => Array.from({ length: data.layers }, () =>
      Array.from({ length: data.heads + 1 }, () => {
        const edges = [], total = totals[list];
        let shown = 0;
        for (const end = at + counts[list++]; at < end; at++) {
          const cell = cells[at];
          let query = Math.floor((1 + Math.sqrt(1 + 8 * cell)) / 2);
          while (query * (query - 1) / 2 > cell) query--; // the root may be off by its rounding
          while (query * (query + 1) / 2 <= cell) query++;
          const key = cell - query * (query - 1) / 2;
          const flow = anchors.has(query) ? 0 : query === target && anchors.has(key) ? 1 : 2;
          edges.push({ query, key, weight: weights[at], flow });
          shown += weights[at];
        }
        return { edges, total, shown, largest: edges.length ? edges[0].weight : 0 };
      })));
    return { lists, means: new Float64Array(bytes(data.means)) };
  }

  /** A token as it can be seen: blanks alone, line ends and characters without a shape are spelled out. */
  function visible(text) {
    const seen = text.replaceAll("\n", "⏎").replaceAll("\t", "⇥")
      .replace(/\p{C}/gu, (letter) => "\\u" + letter.codePointAt(0).toString(16).padStart(4, "0"));
    return seen === "" ? "∅" : seen.trim() === "" ? "␣".repeat(seen.length) : seen.trim();
  }

  const number = (value) => value === 0 ? "0" : value >= 0.001 && value < 1000 ? value.toPrecision(3) : value.toExponential(2);
  const percent = (part, whole) => whole > 0 ? (100 * part / whole).toFixed(part / whole < 0.0995 ? 1 : 0) + " %" : "–";

  function make(tag, into, attributes = {}, text = "") {
    const node = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
    node.textContent = text;
    into.append(node);
    return node;
  }

  function svg(tag, into, attributes = {}) {
    const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
    into.append(node);
    return node;
  }

  function start(root, data) {
    const { lists, means } = unpacked(data);
    const n = data.tokens.length, words = data.tokens.map(visible), target = n - 1;
    const roleOf = (i) => data.roles[data.role[i]][0];
    const state = {
      layer: 0, head: 0, measure: 0, over: "layer", curves: "own", least: 0.02, long: false, playing: 0,
      roles: data.roles.map(() => true), flows: data.flows.map(() => true), focus: null, pinned: false,
    };
    const shares = Array.from({ length: data.layers }, (_, layer) => {
      const three = [0, 1, 2].map((flow) => means[3 * layer + flow]), sum = three[0] + three[1] + three[2];
      return three.map((value) => sum > 0 ? value / sum : 0);
    });
    // how much passes through a word in any layer: where there is no room for all, these are the words that are shown
    const worth = new Float64Array(n);
    for (const layer of lists[0]) for (const { query, key, weight } of layer[0].edges) {
      worth[query] += weight / (layer[0].total || 1);
      worth[key] += weight / (layer[0].total || 1);
    }
    for (let i = 0; i < n; i++) worth[i] += { ANCHOR: 1e6, TARGET: 2e6, LABEL: 1e5 }[roleOf(i)] || 0;

    // --- what is on the page ---
    const flowKeys = make("div", root, { class: "keys", role: "group", "aria-label": "flows" });
    data.flows.forEach((name, flow) => toggle(flowKeys, name, `--mark:var(--flow-${flow})`, state.flows, flow, ""));
    const time = make("div", root, { class: "time" });
    const film = make("div", time, { class: "film", role: "group", "aria-label": "layers in miniature" });
    const axis = make("div", time, { class: "axis" });
    const chart = svg("svg", time, { class: "chart", role: "img", preserveAspectRatio: "none" });
    const slider = make("input", time, {
      class: "layer", type: "range", min: 1, max: data.layers, step: 1, value: 1, "aria-label": "layer, 1 is the first",
    });
    const now = make("div", root, { class: "now" });
    const bar = make("div", root, { class: "bar" });
    const play = make("button", bar, { type: "button" }, "▶ shallow to deep");
    choice("shown", [...data.measures.entries()], (value) => { state.measure = +value; });
    const heads = Array.from({ length: data.heads + 1 }, (_, head) => [head, head ? `head ${head}` : "all heads"]);
    choice("of", heads, (value) => { state.head = +value; });
    choice("widest line", [["layer", "in each layer"], ["all", "over all layers"]], (value) => { state.over = value; });
    const least = make("input", make("label", bar, {}, "hide below"), {
      type: "range", min: 0, max: 50, step: 1, value: 2, "aria-label": "hide lines below, in percent of the widest",
    });
    const leastSaid = make("span", least.parentNode);
    choice("curves", [["own", "each of its own largest"], ["share", "share of the three"]], (value) => { state.curves = value; strip(); });
    const long = make("button", bar, { type: "button", "aria-pressed": "false" }, "every word");
    const roleKeys = make("div", root, { class: "keys", role: "group", "aria-label": "roles" });
    data.roles.forEach(([name, text], role) => toggle(roleKeys, text, `--mark:var(--${name.toLowerCase()})`, state.roles, role, "role"));
    const ends = make("div", root, { class: "ends" });
    make("span", ends, {}, "gives (key)");
    make("span", ends, {}, "takes in (query)");
    const stage = make("div", root, { class: "stage" });
    const sides = { from: column("from", "words that give"), lines: make("div", stage, { class: "lines" }), to: column("to", "words that take in") };
    const canvas = make("canvas", sides.lines, { "aria-hidden": "true" });
    const tip = make("div", stage, { class: "tip", hidden: "" });
    const said = make("div", root, { class: "said", "aria-live": "polite" });

    function toggle(into, text, mark, flags, at, kind) {
      const button = make("button", into, { type: "button", "aria-pressed": "true", class: kind, title: "show or hide" });
      make("i", button, { style: mark });
      button.append(text);
      button.onclick = () => {
        flags[at] = !flags[at];
        button.setAttribute("aria-pressed", flags[at]);
        render();
        miniatures();
      };
    }

    function choice(name, options, set) {
      const select = make("select", make("label", bar, {}, name));
      for (const [value, text] of options) make("option", select, { value }, text);
      select.onchange = () => { set(select.value); render(); miniatures(); };
      return select;
    }

    function column(side, name) {
      const box = make("div", stage, { class: `words ${side}`, role: "listbox", tabindex: 0, "aria-label": name });
      const spans = words.map((word, i) => make("span", box, {
        role: "option", id: `${side}-${i}`, class: roleOf(i), title: `${i}: ${JSON.stringify(data.tokens[i])}`,
        style: `background-color:var(--${roleOf(i).toLowerCase()})`,
      }, word));
      box.onpointermove = (event) => { if (!state.pinned) focusOn(side, rowAt(event)); };
      box.onpointerleave = () => { if (!state.pinned) focusOn(side, null); };
      box.onclick = (event) => {
        const row = rowAt(event), same = state.pinned && state.focus?.side === side && state.focus.row === row;
        state.pinned = !same;
        focusOn(side, same ? null : row);
      };
      box.onkeydown = (event) => {
        const here = state.focus?.side === side ? state.focus.row : null;
        const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
        if (step) {
          event.preventDefault();
          stop();
          go(state.layer + step);
          return;
        }
        const next = { ArrowDown: here === null ? 0 : here + 1, ArrowUp: here === null ? target : here - 1, Home: 0, End: target }[event.key];
        if (next === undefined && event.key !== "Escape") return;
        event.preventDefault();
        state.pinned = event.key !== "Escape";
        focusOn(side, state.pinned ? Math.min(target, Math.max(0, next)) : null);
        if (state.pinned) spans[state.focus.row].scrollIntoView({ block: "nearest" });
      };
      return { box, spans };
    }

    function focusOn(side, row) {
      state.focus = row === null ? null : { side, row };
      render();
    }

    // --- where things are ---
    const tops = new Float64Array(n), sizes = new Float64Array(n);
    let height = 0, colours = {}, pen = null;

    function place() {
      const most = Math.max(700, innerHeight * 0.72), room = Math.max(480, innerHeight - 500); // at most, and what looks well
      const least = LETTER * n > most && !state.long ? 1.2 : LETTER;
      const bold = words.map((_, i) => worth[i] >= 1e5), extra = bold.filter(Boolean).length;
      const thin = least < LETTER ? Math.max(least, (most - extra * FULL) / Math.max(1, n - extra)) : Math.min(FULL, Math.max(least, room / n));
      height = 0;
      for (let i = 0; i < n; i++) {
        sizes[i] = least < LETTER && bold[i] ? FULL : thin;
        tops[i] = height + sizes[i] / 2;
        height += sizes[i];
      }
      const shown = new Set(), order = [...words.keys()].sort((a, b) => worth[b] - worth[a]);
      for (const i of order) if (![...shown].some((other) => Math.abs(tops[other] - tops[i]) < LETTER - 0.01)) shown.add(i);
      for (const { spans } of [sides.from, sides.to]) spans.forEach((span, i) => {
        span.style.top = `${tops[i]}px`;
        span.classList.toggle("thin", !shown.has(i));
      });
      stage.style.height = `${height}px`;
      long.hidden = LETTER * n <= most;
      pen = fitted(canvas, sides.lines.clientWidth, height);
      const style = getComputedStyle(root);
      const read = (name) => style.getPropertyValue(`--${name}`).trim();
      colours = { flows: [0, 1, 2].map((flow) => read(`flow-${flow}`)), ink: read("ink"), page: read("page"), roles: data.roles.map(([name]) => read(name.toLowerCase())) };
    }

    function fitted(canvas, width, height) {
      const dense = Math.min(devicePixelRatio || 1, Math.sqrt(8e6 / Math.max(1, width * height))); // long prompts: less sharp, not slower
      canvas.width = Math.round(width * dense);
      canvas.height = Math.round(height * dense);
      const context = canvas.getContext("2d");
      context.scale(dense, dense);
      return { context, width, height };
    }

    function rowAt(event) {
      const y = event.clientY - stage.getBoundingClientRect().top;
      let row = 0;
      while (row < target && tops[row] + sizes[row] / 2 < y) row++;
      return row;
    }

    // --- lines ---
    const list = (layer = state.layer) => lists[state.measure][layer][state.head];
    const widest = (layer) => state.over === "layer" ? list(layer).largest : Math.max(...lists[state.measure].map((each) => each[state.head].largest));
    const within = (edge) => state.flows[edge.flow] && state.roles[data.role[edge.query]] && state.roles[data.role[edge.key]];
    const touches = (edge, focus) => !focus || edge[focus.side === "from" ? "key" : "query"] === focus.row;

    function draw({ context, width, height }, layer, focus, small) {
      const most = widest(layer), scale = height / (small ? stageHeight() : height), wide = small ? 3 : 9;
      context.clearRect(0, 0, width, height);
      const { edges } = list(layer);
      const drawn = [];
      for (let i = edges.length - 1; i >= 0; i--) { // the widest last, so that they lie on top
        const edge = edges[i], share = edge.weight / (most || 1);
        if (share < state.least || !within(edge)) continue;
        const mine = touches(edge, focus), y0 = tops[edge.key] * scale, y1 = tops[edge.query] * scale;
        context.globalAlpha = mine ? 0.12 + 0.83 * Math.sqrt(share) : 0.04;
        context.strokeStyle = colours.flows[edge.flow];
        context.lineWidth = Math.max(small ? 0.3 : 0.5, wide * share);
        context.beginPath();
        context.moveTo(0, y0);
        context.bezierCurveTo(width / 2, y0, width / 2, y1, width, y1);
        context.stroke();
        if (mine) drawn.push(edge);
      }
      context.globalAlpha = 1;
      for (let i = 0; i < n && !small; i++) { // which words are what, where words themselves have no room
        context.fillStyle = colours.roles[data.role[i]];
        context.fillRect(0, tops[i] - sizes[i] / 2, 4, sizes[i]);
        context.fillRect(width - 4, tops[i] - sizes[i] / 2, 4, sizes[i]);
      }
      return drawn.reverse();
    }

    const stageHeight = () => height || 1;

    function numbers({ context, width }, drawn, side) {
      const taken = [], other = side === "from" ? "query" : "key";
      context.font = "11px ui-monospace, monospace";
      context.textAlign = side === "from" ? "right" : "left";
      context.textBaseline = "middle";
      context.lineWidth = 4;
      context.strokeStyle = colours.page;
      context.fillStyle = colours.ink;
      for (const edge of drawn) {
        const y = tops[edge[other]], x = side === "from" ? width - 8 : 8;
        if (taken.some((each) => Math.abs(each - y) < LETTER)) continue;
        taken.push(y);
        context.strokeText(number(edge.weight), x, y);
        context.fillText(number(edge.weight), x, y);
      }
    }

    const line = (edge, total) => `${words[edge.key]} → ${words[edge.query]}  ${number(edge.weight)}  (${percent(edge.weight, total)})`;

    function render() {
      const { focus, layer } = state, { total, shown, edges } = list();
      const drawn = draw(pen, layer, focus, false);
      if (focus) numbers(pen, drawn, focus.side);
      const reached = new Set(drawn.map((edge) => focus?.side === "from" ? edge.query : edge.key));
      for (const side of ["from", "to"]) {
        sides[side].spans.forEach((span, i) => {
          const on = focus?.side === side && focus.row === i;
          span.classList.toggle("on", on);
          span.setAttribute("aria-selected", on);
          span.classList.toggle("far", !state.roles[data.role[i]] || Boolean(focus) && !on && (focus.side === side || !reached.has(i)));
        });
        if (focus?.side === side) sides[side].box.setAttribute("aria-activedescendant", `${side}-${focus.row}`);
        else sides[side].box.removeAttribute("aria-activedescendant");
      }
      const what = state.measure ? "attention" : "saliency";
      const top = drawn.slice(0, 4).map((edge) => line(edge, total)).join("\n");
      said.textContent = drawn.length ? `widest lines, and their share of all:\n${top}` : focus ? "no line of this word is shown" : edges.length ? "all lines are hidden" : `nothing flows here: no ${what} in this layer`;
      now.replaceChildren();
      const words3 = ["S_wp", "S_pq", "S_ww"].map((name, flow) => `${name} ${percent(shares[layer][flow], 1)} (mean ${number(means[3 * layer + flow])})`);
      make("b", now, {}, `layer ${layer + 1} of ${data.layers}`);
      for (const text of words3) make("span", now, {}, text);
      make("span", now, {}, `the ${edges.length} widest lines are kept: ${percent(shown, total)} of this ${state.head ? "head" : "layer"}'s ${what}`);
      slider.value = layer + 1;
      slider.setAttribute("aria-valuetext", `layer ${layer + 1} of ${data.layers}`);
      leastSaid.textContent = `${Math.round(100 * state.least)} %`;
      cursor?.setAttribute("x1", x(layer));
      cursor?.setAttribute("x2", x(layer));
      for (const { button, at } of frames) button.setAttribute("aria-current", at === nearest(layer));
    }

    // --- all layers at once ---
    let frames = [], cursor = null, chartWidth = 1;
    const x = (layer) => (layer + 0.5) / data.layers * chartWidth;
    const nearest = (layer) => frames.reduce((best, { at }) => Math.abs(at - layer) < Math.abs(best - layer) ? at : best, frames[0]?.at ?? 0);

    const curve = (flow) => shares.map((share, layer) => state.curves === "own" ? means[3 * layer + flow] : share[flow]);

    function strip() {
      const many = Math.min(data.layers, Math.max(3, Math.floor(time.clientWidth / 46)));
      film.replaceChildren();
      frames = Array.from({ length: many }, (_, i) => {
        const at = Math.round((i + 0.5) / many * data.layers - 0.5);
        const button = make("button", film, { type: "button", "aria-label": `layer ${at + 1}` });
        const small = make("canvas", button, { "aria-hidden": "true" });
        make("span", button, {}, String(at + 1));
        button.onclick = () => go(at);
        return { at, button, small };
      });
      for (const frame of frames) frame.pen = fitted(frame.small, frame.small.clientWidth, frame.small.clientHeight);
      chartWidth = time.clientWidth;
      chart.setAttribute("viewBox", `0 0 ${chartWidth} 84`);
      const own = state.curves === "own", top = own ? [0, 1, 2].map((flow) => Math.max(...curve(flow)) || 1) : [1, 1, 1];
      const what = own ? "mean saliency of each flow, all heads, of its own largest" : "share of each flow in the sum of the three means, all heads";
      chart.setAttribute("aria-label", `${what}, by layer: ${data.flows.join(", ")}`);
      chart.replaceChildren();
      for (const y of [4, 80]) svg("line", chart, { x1: 0, x2: chartWidth, y1: y, y2: y, stroke: "var(--rule)" });
      axis.textContent = `curves: ${what}`;
      for (const flow of [2, 0, 1]) {
        const points = curve(flow).map((value, layer) => `${x(layer)} ${80 - 76 * value / top[flow]}`);
        svg("path", chart, { d: `M${points.join("L")}h0.01`, stroke: `var(--flow-${flow})` });
      }
      cursor = svg("line", chart, { class: "cursor", y1: 0, y2: 84 });
      slider.style.width = `${chartWidth * (1 - 1 / data.layers) + 16}px`; // its ends below the first and the last layer
      slider.style.marginLeft = `${chartWidth / data.layers / 2 - 8}px`;
    }

    function miniatures() {
      for (const { pen, at } of frames) draw(pen, at, null, true);
    }

    function go(layer) {
      state.layer = Math.min(data.layers - 1, Math.max(0, layer));
      render();
    }

    function stop() {
      clearInterval(state.playing);
      state.playing = 0;
      play.textContent = "▶ shallow to deep";
    }

    // --- what is done ---
    slider.oninput = () => { stop(); go(+slider.value - 1); };
    least.oninput = () => { state.least = least.value / 100; render(); miniatures(); };
    long.onclick = () => {
      state.long = !state.long;
      long.setAttribute("aria-pressed", state.long);
      place();
      render();
    };
    play.onclick = () => {
      if (state.playing) {
        stop();
        return;
      }
      if (state.layer === data.layers - 1) go(0);
      play.textContent = "❚❚ stop";
      state.playing = setInterval(() => {
        if (state.layer === data.layers - 1) stop();
        else go(state.layer + 1);
      }, Math.max(250, Math.min(1000, 9000 / data.layers)));
    };
    const point = (event) => {
      stop();
      go(Math.floor((event.clientX - chart.getBoundingClientRect().left) / chartWidth * data.layers));
    };
    chart.onpointerdown = point;
    chart.onpointermove = (event) => { if (event.buttons) point(event); };
    canvas.onpointermove = (event) => {
      const box = canvas.getBoundingClientRect(), part = (event.clientX - box.left) / box.width, y = event.clientY - box.top;
      let low = 0, high = 1; // all lines are the same curve, stretched: one search tells how far each has come at x
      for (let i = 0; i < 20; i++) {
        const t = (low + high) / 2, come = 1.5 * t * (1 - t) ** 2 + 1.5 * t * t * (1 - t) + t ** 3;
        if (come < part) low = t;
        else high = t;
      }
      const come = 3 * low * low - 2 * low ** 3, most = widest(state.layer);
      let best = null, gap = 9;
      for (const edge of list().edges) {
        if (edge.weight < state.least * most || !within(edge) || !touches(edge, state.focus)) continue;
        const off = Math.abs(tops[edge.key] + (tops[edge.query] - tops[edge.key]) * come - y) - 4.5 * edge.weight / (most || 1);
        if (off < gap) [best, gap] = [edge, off];
      }
      tip.hidden = !best;
      if (!best) return;
      tip.textContent = line(best, list().total);
      const left = event.clientX - stage.getBoundingClientRect().left;
      tip.style.left = `${Math.max(0, Math.min(left + 12, stage.clientWidth - tip.offsetWidth))}px`;
      tip.style.top = `${y + 14}px`;
    };
    canvas.onpointerleave = () => { tip.hidden = true; };
    function all() {
      place();
      strip();
      render();
      miniatures();
    }
    all();
    let wide = innerWidth;
    addEventListener("resize", () => {
      if (innerWidth !== wide) all(); // on a phone, height changes with every scroll
      wide = innerWidth;
    });
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", all);
  }

  start(document.querySelector(".explorer"), JSON.parse(document.getElementById("flow").textContent));
})();
