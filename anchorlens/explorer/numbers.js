// What the page's data say, and how numbers and words are written.

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

const plain = (value) => value >= 0.001 && value < 1000;
const number = (value) => value === 0 ? "0" : plain(value) ? value.toPrecision(3) : value.toExponential(2);

function percent(part, whole) {
  const share = 100 * part / whole;
  if (!(whole > 0)) return "–";
  return share > 0 && share < 0.05 ? "<0.1 %" : `${share.toFixed(share < 9.95 ? 1 : 0)} %`;
}

/** Of each layer, the share of each flow in the sum of the three means. */
function sharesOf(data, means) {
  return Array.from({ length: data.layers }, (_, layer) => {
    const three = [0, 1, 2].map((flow) => means[3 * layer + flow]), sum = three[0] + three[1] + three[2];
    return three.map((value) => sum > 0 ? value / sum : 0);
  });
}

/** How much passes through each word in all layers: where there is no room for all, the first are shown. */
function worthOf(data, layers) {
  const always = { ANCHOR: 1e6, TARGET: 2e6, LABEL: 1e5 };
  const worth = Float64Array.from(data.role, (role) => always[data.roles[role][0]] || 0);
  for (const [{ edges, total }] of layers) for (const { query, key, weight } of edges) {
    worth[query] += weight / (total || 1);
    worth[key] += weight / (total || 1);
  }
  return worth;
}
