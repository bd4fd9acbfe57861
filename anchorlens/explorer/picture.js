// Rows of words, and lines between them on a canvas.

const FULL = 18, LETTER = 12, MOST = 700; // pixels: a row at most, what a word needs, all rows

/**
 * Where the rows are, and which words have room: all, or, in long prompts, label words and the target at full height,
 * and as many of the rest as fit between them, those of most worth first. With `long`, all whatever the height.
 */
function laid(worth, tall, long) {
  const n = worth.length, roomy = LETTER * n <= MOST, tight = !roomy && !long;
  const bold = Array.from(worth, (value) => value >= 1e5), extra = bold.filter(Boolean).length;
  const airy = Math.min(FULL, Math.max(LETTER, Math.max(480, Math.min(MOST, tall - 500)) / n));
  const thin = tight ? Math.max(1.2, (MOST - extra * FULL) / Math.max(1, n - extra)) : airy;
  const sizes = Float64Array.from(worth, (_, i) => tight && bold[i] ? FULL : thin), tops = new Float64Array(n);
  let height = 0;
  for (let i = 0; i < n; i++) {
    tops[i] = height + sizes[i] / 2;
    height += sizes[i];
  }
  const shown = new Set(), order = Array.from(worth.keys()).sort((a, b) => worth[b] - worth[a]);
  for (const i of order) if (![...shown].some((other) => Math.abs(tops[other] - tops[i]) < LETTER - 0.01)) shown.add(i);
  return { tops, sizes, height, shown, roomy };
}

function fitted(canvas, width, height) {
  const most = Math.sqrt(8e6 / Math.max(1, width * height)); // pages of every word are less sharp, not slower
  const dense = Math.min(devicePixelRatio || 1, most);
  canvas.width = Math.round(width * dense);
  canvas.height = Math.round(height * dense);
  const context = canvas.getContext("2d");
  context.scale(dense, dense);
  return { context, width, height };
}

/** Lines from key (left) to query (right), as wide as their weight; the widest come last, so that they lie on top. */
function paint({ context, width }, edges, { tops, scale, colours, most, widest, least, faint }) {
  for (const edge of edges.toReversed()) {
    const share = edge.weight / most, y0 = tops[edge.key] * scale, y1 = tops[edge.query] * scale;
    context.globalAlpha = faint ? 0.04 : 0.12 + 0.83 * Math.sqrt(share);
    context.strokeStyle = colours[edge.flow];
    context.lineWidth = Math.max(least, widest * share);
    context.beginPath();
    context.moveTo(0, y0);
    context.bezierCurveTo(width / 2, y0, width / 2, y1, width, y1);
    context.stroke();
  }
  context.globalAlpha = 1;
}

/** The role of each row along both sides, also where words themselves have no room. */
function bands({ context, width }, { tops, sizes }, colours) {
  colours.forEach((colour, i) => {
    context.fillStyle = colour;
    context.fillRect(0, tops[i] - sizes[i] / 2, 4, sizes[i]);
    context.fillRect(width - 4, tops[i] - sizes[i] / 2, 4, sizes[i]);
  });
}

/** Weights at the far ends of the lines of one word on `side`, unless a larger one is there; the rows that have one. */
function label({ context, width }, tops, edges, side, colours) {
  const taken = [], said = new Set(), other = side === "from" ? "query" : "key", x = side === "from" ? width - 8 : 8;
  context.font = "11px ui-monospace, monospace";
  context.textAlign = side === "from" ? "right" : "left";
  context.textBaseline = "middle";
  context.lineWidth = 4;
  context.strokeStyle = colours.page;
  context.fillStyle = colours.ink;
  for (const edge of edges) {
    const y = tops[edge[other]];
    if (taken.some((each) => Math.abs(each - y) < LETTER)) continue;
    taken.push(y);
    said.add(edge[other]);
    context.strokeText(number(edge.weight), x, y);
    context.fillText(number(edge.weight), x, y);
  }
  return said;
}

/** The line at height `y` where `part` of the way from left to right is done; null if none comes within 9 pixels. */
function nearestLine(edges, tops, part, y, half) {
  let low = 0, high = 1; // all lines are one curve, stretched: a single search tells how far each has come there
  for (let i = 0; i < 20; i++) {
    const t = (low + high) / 2;
    if (1.5 * t * (1 - t) ** 2 + 1.5 * t * t * (1 - t) + t ** 3 < part) low = t;
    else high = t;
  }
  const come = 3 * low * low - 2 * low ** 3;
  let best = null, gap = 9;
  for (const edge of edges) {
    const off = Math.abs(tops[edge.key] + (tops[edge.query] - tops[edge.key]) * come - y) - half(edge);
    if (off < gap) [best, gap] = [edge, off];
  }
  return best;
}
