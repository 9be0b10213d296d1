// Masks of one file on one image, and the forest of those that pass the filters.

const NONE = -1;
const LONG_PATH = 4; // longer paths are shortened in the tree

class Labels {
  constructor(side, height, matches) {
    Object.assign(this, side);
    this.masks = side.counts ? side.counts.split(" ").map((text) => new Mask(text, height)) : [];
    this.size = this.masks.length;
    this.partner = new Map(); // mask -> { mask of the other file, iou }
    for (const [mine, theirs, iou] of matches) this.partner.set(mine, { mask: theirs, iou });
  }

  // The masks to show for a number of entities: these, and the masks inside them in the collapsed forest.
  selection(step) {
    const keep = new Uint8Array(this.size);
    const selected = new Set(this.selections[step]);
    for (const k of selected) keep[k] = 1;
    for (const k of this.collapsed) {
      let above = this.parents[k];
      while (above !== NONE && !selected.has(above)) above = this.parents[above];
      if (above !== NONE && this.areas[k] <= this.maxChildArea * this.areas[above]) keep[k] = 1;
    }
    return keep;
  }

  color(k) {
    return `#${this.colors.slice(6 * k, 6 * k + 6)}`;
  }
}

class ShownForest {
  constructor(labels, filters) {
    this.labels = labels;
    const size = labels.size;
    const keep = new Uint8Array(size);
    const chosen = filters.entityStep === null ? null : labels.selection(filters.entityStep);
    for (let k = 0; k < size; k++) {
      const matched = labels.partner.has(k);
      keep[k] =
        (!chosen || chosen[k]) &&
        labels.scores[k] >= filters.minScore &&
        labels.areas[k] >= filters.minShare &&
        labels.areas[k] <= filters.maxShare &&
        (filters.match === "all" || matched === (filters.match === "matched"))
          ? 1
          : 0;
    }
    // Kept masks are linked to their nearest kept ancestor; depths count kept masks, as in Forest.subset.
    this.parents = new Int32Array(size).fill(NONE);
    for (let k = 0; k < size; k++) {
      let parent = labels.parents[k];
      while (parent !== NONE && !keep[parent]) parent = labels.parents[parent];
      this.parents[k] = parent;
    }
    this.depths = new Int32Array(size);
    for (let k = 0; k < size; k++) {
      for (let above = this.parents[k]; above !== NONE; above = this.parents[above]) this.depths[k]++;
    }
    this.children = Array.from({ length: size }, () => []);
    this.roots = [];
    this.rank = new Int32Array(size);
    this.shown = [];
    this.visible = keep;
    for (let k = 0; k < size; k++) {
      if (!keep[k]) continue;
      if (this.depths[k] > filters.maxDepth) {
        keep[k] = 0;
        continue;
      }
      this.shown.push(k);
      this.rank[k] = this.siblingsBelow(this.parents[k]).push(k);
    }
  }

  siblingsBelow(parent) {
    return parent === NONE ? this.roots : this.children[parent];
  }

  siblings(k) {
    return this.siblingsBelow(this.parents[k]);
  }

  // From the whole down to the mask itself.
  chain(k) {
    const chain = [];
    for (; k !== NONE; k = this.parents[k]) chain.unshift(k);
    return chain;
  }

  nearestShown(k) {
    while (k !== NONE && !this.visible[k]) k = this.labels.parents[k];
    return k;
  }

  // Masks hidden by the filters have no number among the others, and no name.
  name(k) {
    if (!this.visible[k]) return "hidden";
    const label = this.labels.labels && this.labels.labels[k];
    const path = this.chain(k)
      .map((step) => this.rank[step])
      .join(".");
    return label ? `${label} ${path}` : path;
  }

  // For the tree, whose rows show the parent by their position.
  shortName(k) {
    return this.depths[k] < LONG_PATH ? this.name(k) : this.name(k).replace(/\d[\d.]*\.(\d+\.\d+)$/, "…$1");
  }

  facts(k) {
    const { scores, areas } = this.labels;
    return `score ${scores[k].toFixed(2)}, ${share(areas[k])} of the picture`;
  }

  // Masks under a pixel, relative to the selected mask: the chain to the smallest mask there that is inside the
  // selected one, or inside its nearest ancestor that has any; and the mask of the chain that a click would select.
  at(x, y, selected) {
    const here = this.shown.filter((k) => this.labels.masks[k].contains(x, y));
    if (!here.length) return null;
    const smallest = (masks) => masks.reduce((a, b) => (this.labels.areas[b] <= this.labels.areas[a] ? b : a));
    for (let top = selected; top !== NONE; top = this.parents[top]) {
      if (!here.includes(top)) continue;
      const chains = here.map((k) => this.chain(k)).filter((chain) => chain.includes(top));
      const chain = this.chain(smallest(chains.map((c) => c[c.length - 1])));
      return { chain, target: chain[Math.min(chain.indexOf(top) + 1, chain.length - 1)] };
    }
    const chain = this.chain(smallest(here));
    return { chain, target: chain[0] };
  }
}

function share(area) {
  const percent = 100 * area;
  return `${percent >= 10 ? percent.toFixed(0) : percent >= 0.1 ? percent.toFixed(1) : percent.toPrecision(1)} %`;
}
