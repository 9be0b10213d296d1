// The forest as a tree of rows, synchronised with the picture. Branches are filled when they are opened.

class Tree {
  constructor(list, handlers) {
    this.list = list;
    this.handlers = handlers;
    this.open = new Set();
    this.rows = new Map();
    this.marked = undefined;
    this.thumbnails = new Thumbnails();
    list.addEventListener("keydown", (event) => this.key(event));
    list.addEventListener("click", (event) => {
      const row = this.rowOf(event);
      if (row === null) return;
      if (event.target.closest(".twist")) this.toggle(row);
      else this.handlers.select(row);
    });
    list.addEventListener("pointerover", (event) => this.handlers.hover(this.rowOf(event)));
    list.addEventListener("pointerleave", () => this.handlers.hover(null));
  }

  rowOf(event) {
    const row = event.target.closest("[role=treeitem]");
    return row ? Number(row.dataset.mask) : null;
  }

  // Reset the open branches for another image or file.
  reset() {
    this.open.clear();
  }

  show(forest, selected, photo, size) {
    this.thumbnails.reset(forest.labels, photo, size);
    this.forest = forest;
    this.selected = selected;
    for (const k of selected === NONE ? [] : forest.chain(selected)) this.open.add(k);
    this.render();
    const row = this.rows.get(selected);
    if (row) reveal(this.list, row);
  }

  toggle(k, wanted = !this.open.has(k)) {
    if (wanted) this.open.add(k);
    else this.open.delete(k);
    const focused = this.list.contains(document.activeElement);
    this.render();
    if (focused) this.focus(k);
  }

  render() {
    this.rows.clear();
    const fragment = document.createDocumentFragment();
    const add = (k) => {
      fragment.append(this.row(k));
      if (this.open.has(k)) this.forest.children[k].forEach(add);
    };
    this.forest.roots.forEach(add);
    this.list.replaceChildren(fragment);
    const stop = this.rows.get(this.selected) || this.list.firstElementChild;
    if (stop) stop.tabIndex = 0;
  }

  row(k) {
    const { forest } = this;
    const { labels } = forest;
    const children = forest.children[k].length;
    const partner = labels.partner.get(k);
    const row = make("li", "row");
    row.dataset.mask = k;
    row.tabIndex = -1;
    row.setAttribute("role", "treeitem");
    row.setAttribute("aria-level", forest.depths[k] + 1);
    row.setAttribute("aria-posinset", forest.rank[k]);
    row.setAttribute("aria-setsize", forest.siblings(k).length);
    row.setAttribute("aria-selected", k === this.selected);
    if (children) row.setAttribute("aria-expanded", this.open.has(k));
    const inside = children ? `, ${children} inside` : "";
    const other = partner && this.handlers.partnerName(partner.mask);
    const match = this.handlers.compares() ? (partner ? `, matched by ${other}, IoU ${partner.iou.toFixed(2)}` : ", no match") : "";
    row.setAttribute("aria-label", `${forest.name(k)}, ${forest.facts(k)}${inside}${match}`);
    row.style.setProperty("--indent", Math.min(forest.depths[k], 10));
    const name = make("span", "name", forest.shortName(k));
    row.append(make("span", children ? "twist" : "twist leaf"), this.thumbnails.of(k), name);
    if (children) row.append(make("span", "badge", children));
    if (this.handlers.compares()) row.append(make("span", partner ? "match yes" : "match no", partner ? (other === "hidden" ? "✓" : other) : "–"));
    row.append(make("span", "number", labels.scores[k].toFixed(2)), make("span", "number", share(labels.areas[k])));
    this.rows.set(k, row);
    return row;
  }

  mark(k, scrolls) {
    if (this.marked) this.marked.classList.remove("hovered");
    this.marked = this.rows.get(k);
    if (!this.marked) return;
    this.marked.classList.add("hovered");
    if (scrolls) reveal(this.list, this.marked);
  }

  focus(k) {
    const row = this.rows.get(k);
    if (!row) return;
    for (const other of this.list.querySelectorAll("[tabindex='0']")) other.tabIndex = -1;
    row.tabIndex = 0;
    row.focus({ preventScroll: true });
    reveal(this.list, row);
  }

  // Keys of a tree view in the ARIA authoring practices; Escape selects the parent as in the picture.
  key(event) {
    const k = this.rowOf(event);
    if (k === null || event.ctrlKey || event.metaKey || event.altKey) return;
    const { forest } = this;
    const order = [...this.rows.keys()];
    const at = order.indexOf(k);
    const parent = forest.parents[k];
    const actions = {
      ArrowDown: () => this.focus(order[at + 1]),
      ArrowUp: () => this.focus(order[at - 1]),
      Home: () => this.focus(order[0]),
      End: () => this.focus(order[order.length - 1]),
      ArrowRight: () => {
        if (!forest.children[k].length) return;
        if (this.open.has(k)) this.focus(forest.children[k][0]);
        else this.toggle(k, true);
      },
      ArrowLeft: () => (this.open.has(k) && forest.children[k].length ? this.toggle(k, false) : this.focus(parent)),
      Enter: () => this.choose(k),
      " ": () => this.choose(k),
      Escape: () => {
        this.handlers.select(parent);
        this.focus(parent === NONE ? k : parent);
      },
    };
    if (!actions[event.key]) return;
    actions[event.key]();
    event.preventDefault();
    event.stopPropagation();
  }

  choose(k) {
    this.handlers.select(k);
    this.focus(k);
  }
}
