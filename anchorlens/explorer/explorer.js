// The page: everything is built below `root` from its data.

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
  const shares = sharesOf(data, means), worth = worthOf(data, lists[0]);

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
  choice("curves", [["own", "each of its own largest"], ["share", "share of the three"]], (value) => {
    state.curves = value;
    strip();
  });
  const long = make("button", bar, { type: "button", "aria-pressed": "false" }, "every word");
  const roleKeys = make("div", root, { class: "keys", role: "group", "aria-label": "roles" });
  const colourOf = (name) => `var(--${name.toLowerCase()})`;
  data.roles.forEach(([name, text], at) => toggle(roleKeys, text, `--mark:${colourOf(name)}`, state.roles, at, "role"));
  const ends = make("div", root, { class: "ends" });
  make("span", ends, {}, "gives (key)");
  make("span", ends, {}, "takes in (query)");
  const stage = make("div", root, { class: "stage" });
  const sides = { from: column("from", "words that give") };
  const middle = make("div", stage, { class: "lines" }), canvas = make("canvas", middle, { "aria-hidden": "true" });
  sides.to = column("to", "words that take in");
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
      style: `background-color:${colourOf(roleOf(i))}`,
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
      const [up, down] = here === null ? [target, 0] : [here - 1, here + 1];
      const next = { ArrowDown: down, ArrowUp: up, Home: 0, End: target }[event.key];
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
  let rows = null, pen = null, colours = null;

  function place() {
    rows = laid(worth, innerHeight, state.long);
    for (const { spans } of [sides.from, sides.to]) spans.forEach((span, i) => {
      span.style.top = `${rows.tops[i]}px`;
      span.classList.toggle("thin", !rows.shown.has(i));
    });
    stage.style.height = `${rows.height}px`;
    long.hidden = rows.roomy && !state.long;
    pen = fitted(canvas, middle.clientWidth, rows.height);
    const style = getComputedStyle(root);
    const read = (name) => style.getPropertyValue(`--${name}`).trim();
    colours = {
      flows: [0, 1, 2].map((flow) => read(`flow-${flow}`)),
      roles: data.roles.map(([name]) => read(name.toLowerCase())),
      ink: read("ink"),
      page: read("page"),
    };
  }

  function rowAt(event) {
    const y = event.clientY - stage.getBoundingClientRect().top;
    let row = 0;
    while (row < target && rows.tops[row] + rows.sizes[row] / 2 < y) row++;
    return row;
  }

  // --- lines ---
  const list = (layer = state.layer) => lists[state.measure][layer][state.head];
  const largest = (layer) => list(layer).largest;
  const among = (layer) => state.over === "layer" ? [layer] : [...shares.keys()];
  const widest = (layer) => Math.max(...among(layer).map(largest)) || 1;
  const on = (i) => state.roles[data.role[i]];
  const within = (edge) => state.flows[edge.flow] && on(edge.query) && on(edge.key);
  const touches = (edge, focus) => !focus || edge[focus.side === "from" ? "key" : "query"] === focus.row;

  function draw(pen, layer, focus, sizes) {
    const most = widest(layer);
    const seen = list(layer).edges.filter((edge) => edge.weight >= state.least * most && within(edge));
    const drawn = seen.filter((edge) => touches(edge, focus));
    const style = { ...sizes, tops: rows.tops, scale: pen.height / rows.height, colours: colours.flows, most };
    pen.context.clearRect(0, 0, pen.width, pen.height);
    if (focus) paint(pen, seen.filter((edge) => !touches(edge, focus)), { ...style, faint: true });
    paint(pen, drawn, style);
    return drawn;
  }


  const line = ({ key, query, weight }, total) =>
    `${words[key]} → ${words[query]}  ${number(weight)}  (${percent(weight, total)})`;

  function render() {
    const { focus, layer } = state, { total, shown, edges } = list();
    const drawn = draw(pen, layer, focus, { widest: 9, least: 0.5 });
    bands(pen, rows, data.role.map((role) => colours.roles[role]));
    const labelled = focus ? label(pen, rows.tops, drawn, focus.side, colours) : new Set();
    for (const side of ["from", "to"]) {
      sides[side].spans.forEach((span, i) => {
        const mine = focus?.side === side && focus.row === i, other = Boolean(focus) && focus.side !== side;
        span.classList.toggle("on", mine);
        span.setAttribute("aria-selected", mine);
        span.classList.toggle("near", other && labelled.has(i));
        span.classList.toggle("far", !on(i) || Boolean(focus) && !mine && !(other && labelled.has(i)));
      });
      if (focus?.side === side) sides[side].box.setAttribute("aria-activedescendant", `${side}-${focus.row}`);
      else sides[side].box.removeAttribute("aria-activedescendant");
    }
    const what = state.measure ? "attention" : "saliency";
    const top = drawn.slice(0, 4).map((edge) => line(edge, total)).join("\n");
    const none = focus ? "no line of this word is shown" : edges.length ? "all lines are hidden" : `no ${what} here`;
    said.textContent = drawn.length ? `widest lines, and their share of the sum of all pairs:\n${top}` : none;
    now.replaceChildren();
    make("b", now, {}, `layer ${layer + 1} of ${data.layers}`);
    ["S_wp", "S_pq", "S_ww"].forEach((name, flow) => {
      const mean = number(means[3 * layer + flow]), among = percent(shares[layer][flow], 1);
      make("span", now, {}, `${name}, ${data.flows[flow]}: mean of its pairs ${mean}, ${among} of the three means`);
    });
    const kept = `${percent(shown, total)} of this ${state.head ? "head" : "layer"}'s ${what}`;
    make("span", now, {}, `the ${edges.length} widest lines are kept: ${kept}`);
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
  const nearest = (layer) => frames.map(({ at }) => at).sort((a, b) => Math.abs(a - layer) - Math.abs(b - layer))[0];

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
    const what = `mean saliency of each flow, all heads, over ${own ? "its own largest" : "the sum of the three"}`;
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
    for (const { pen, at } of frames) draw(pen, at, null, { widest: 3, least: 0.3 });
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
    const box = canvas.getBoundingClientRect(), y = event.clientY - box.top, most = widest(state.layer);
    const part = (event.clientX - box.left) / box.width, half = (edge) => 4.5 * edge.weight / most;
    const seen = list().edges.filter((edge) => edge.weight >= state.least * most && within(edge));
    const best = nearestLine(seen.filter((edge) => touches(edge, state.focus)), rows.tops, part, y, half);
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
