// State of the page (shown image, selection) and the updates that follow from its changes.

const HINT = "Point at the picture; click to go down, Esc to go up, ← → for siblings";
const HINT_FOR_FINGERS = "Tap a mask to go down, Up to go back; two fingers zoom";
const COARSE = window.matchMedia("(pointer: coarse)");
const LONG_CHAIN = 4; // longer chains are shortened in the middle in the line below the picture

function byId(id) {
  return document.getElementById(id);
}

// Texts from files are only ever set as text, never as markup.
function make(tag, className = "", text = "") {
  const element = document.createElement(tag);
  if (className) element.className = className;
  if (text !== "") element.textContent = text;
  return element;
}

// Scrolls only the container. (scrollIntoView may scroll the page and change the tab position.)
function reveal(container, element) {
  const [frame, box] = [container.getBoundingClientRect(), element.getBoundingClientRect()];
  container.scrollTop += Math.min(0, box.top - frame.top) + Math.max(0, box.bottom - frame.bottom);
  container.scrollLeft += Math.min(0, box.left - frame.left) + Math.max(0, box.right - frame.right);
}

function plural(count, word) {
  return `${count.toLocaleString("en")} ${word}${count === 1 ? "" : "s"}`;
}

class App {
  constructor() {
    this.index = JSON.parse(byId("index").textContent);
    this.compares = this.index.files.length > 1;
    this.view = new View();
    this.active = 0; // the side that the keys, the tree and the crumbs refer to
    this.masksShown = true;
    this.number = NONE;
    document.body.classList.toggle("compares", this.compares);
    this.filters = new Filters(this.index, () => this.filtered());
    const handlers = {
      hover: (stage, x, y) => this.hoverPoint(stage.number, x, y),
      click: (stage, x, y) => this.clickPoint(stage.number, x, y),
      moved: () => this.stages.forEach((stage) => stage.draw()),
      focus: (stage) => this.activate(stage.number),
    };
    this.stages = this.index.files.map((file, number) => new Stage(number, file, this.view, handlers));
    byId("stages").append(...this.stages.map((stage) => stage.element));
    this.tree = new Tree(byId("tree"), {
      select: (k) => this.select(this.active, k),
      hover: (k) => this.hoverMask(k),
      compares: () => this.compares,
      partnerName: (mask) => this.forests[1 - this.active].shortName(mask),
    });
    this.gallery = new Gallery(this.index.images, (number) => this.show(number));
    this.opacity = byId("opacity");
    this.opacity.addEventListener("input", () => this.redraw());
    this.buildTabs();
    this.buildHeader();
    openable("help");
    openable("save", () => this.describeSaved());
    byId("save-json").addEventListener("click", () => this.saveJson());
    byId("save-png").addEventListener("click", () => this.savePng());
    byId("up").addEventListener("click", () => this.climb());
    openable("metrics");
    fillMetrics(this.index.metrics);
    themeButton();
    byId("zoom-selection").addEventListener("click", () => this.zoomToSelection());
    byId("zoom-all").addEventListener("click", () => this.zoomToAll());
    byId("toggle-masks").addEventListener("click", () => this.toggleMasks());
    byId("previous").addEventListener("click", () => this.show(this.gallery.neighbour(this.number, -1)));
    byId("next").addEventListener("click", () => this.show(this.gallery.neighbour(this.number, 1)));
    document.addEventListener("keydown", (event) => this.key(event));
    if (this.index.images.length) this.show(0);
    document.documentElement.dataset.ready = "true";
  }

  buildHeader() {
    const { images, files, left, maxMasks, scoreThreshold } = this.index;
    const masks = files.map((_, side) => images.reduce((sum, image) => sum + (image.masks[side] || 0), 0));
    const parts = [plural(images.length, "image") + (left ? ` of ${(images.length + left).toLocaleString("en")}` : "")];
    parts.push(`${masks.map((n) => n.toLocaleString("en")).join(" | ")} masks`);
    if (this.compares) parts.push(`${images.reduce((sum, image) => sum + image.matched, 0).toLocaleString("en")} matched`);
    if (maxMasks) parts.push(`the ${maxMasks} best of an image`);
    if (scoreThreshold !== null) parts.push(`score ≥ ${scoreThreshold}`);
    const missing = images.filter((image) => image.missing).length;
    if (missing) parts.push(`${plural(missing, "photo")} missing`);
    byId("subtitle").textContent = parts.join(" · ");
  }

  buildTabs() {
    byId("tabs").hidden = !this.compares;
    this.tabs = this.index.files.map((file, side) => {
      const tab = make("button", "tab", file.name);
      tab.type = "button";
      tab.addEventListener("click", () => this.activate(side));
      byId("tabs").append(tab);
      return tab;
    });
  }

  // Images

  show(number) {
    if (number === this.number) return;
    this.number = number;
    const image = this.index.images[number];
    const data = JSON.parse(byId(`image-${number}`).textContent);
    const turned = data.matches.map(([a, b, iou]) => [b, a, iou]);
    this.sides = data.sides.map((side, k) => side && new Labels(side, data.height, k ? turned : data.matches));
    this.selected = this.sides.map(() => NONE);
    this.hovered = this.sides.map(() => null);
    this.view.reset(data.width, data.height);
    byId("stages").style.setProperty("--aspect", (data.width / data.height).toFixed(4));
    const present = (photo) => {
      this.photo = photo;
      this.stages.forEach((stage, k) => stage.show(photo, data.width, data.height, this.note(image, k)));
    };
    present(null);
    if (data.photo) {
      const photo = new Image();
      photo.onload = () => {
        if (this.number !== number) return;
        present(photo);
        this.redraw();
        this.showTree();
      };
      photo.src = data.photo;
    }
    if (!this.sides[this.active]) this.active = 0;
    this.tree.reset();
    this.gallery.mark(number);
    byId("image-name").textContent = image.name;
    byId("image-place").textContent = `${number + 1} / ${this.index.images.length}`;
    const problems = byId("problems");
    problems.hidden = !image.problems.length;
    byId("problems-count").textContent = plural(image.problems.length, "problem");
    byId("problems-list").replaceChildren(...image.problems.map((text) => make("li", "", text)));
    this.refilter();
    this.announce(`Image ${number + 1} of ${this.index.images.length}, ${image.name}. ${image.missing}`);
  }

  note(image, side) {
    if (image.missing) return image.missing;
    return this.sides[side] ? "" : `No labels in ${this.index.files[side].name}`;
  }

  // Filters

  filtered() {
    this.refilter();
    this.announce(byId("shown").textContent);
  }

  refilter() {
    this.forests = this.sides.map((labels) => labels && new ShownForest(labels, this.filters));
    this.hovered = this.sides.map(() => null);
    this.selected = this.selected.map((k, side) => (this.forests[side] ? this.forests[side].nearestShown(k) : NONE));
    this.pairSelection();
    this.refresh();
  }

  // Select the match in the other file, even if the filters hide it.
  pairSelection() {
    const other = 1 - this.active;
    if (!this.compares || !this.forests[other] || !this.forest) return;
    const partner = this.sides[this.active].partner.get(this.selected[this.active]);
    this.selected[other] = partner ? partner.mask : NONE;
  }

  get forest() {
    return this.forests[this.active];
  }

  // Selection

  activate(side) {
    if (!this.forests[side] || side === this.active) return;
    this.active = side;
    this.tree.reset();
    this.refresh();
  }

  select(side, k) {
    if (this.active !== side) this.tree.reset();
    this.active = side;
    this.selected[side] = k;
    this.pairSelection();
    this.hovered = this.sides.map(() => null);
    this.refresh();
    this.announce(this.describe(side, k));
  }

  describe(side, k) {
    const forest = this.forests[side];
    if (k === NONE) return `Whole picture, ${plural(forest.roots.length, "whole")}`;
    const siblings = forest.siblings(k).length;
    const children = forest.children[k].length;
    const partner = this.sides[side].partner.get(k);
    const other = partner && this.forests[1 - side].name(partner.mask);
    const match = this.compares ? (partner ? `, matched by ${other}, IoU ${partner.iou.toFixed(2)}` : ", no match") : "";
    return `${forest.name(k)} of ${siblings}, depth ${forest.depths[k]}, ${forest.facts(k)}, ${children} inside${match}`;
  }

  descend() {
    const selected = this.selected[this.active];
    const below = this.forest.siblingsBelow(selected);
    if (below.length) this.select(this.active, below[0]);
  }

  climb() {
    const selected = this.selected[this.active];
    if (selected !== NONE) this.select(this.active, this.forest.parents[selected]);
  }

  walk(step) {
    const selected = this.selected[this.active];
    if (selected === NONE) return this.descend();
    const siblings = this.forest.siblings(selected);
    const next = (siblings.indexOf(selected) + step + siblings.length) % siblings.length;
    return this.select(this.active, siblings[next]);
  }

  // Pointer

  pointed(side, x, y) {
    const forest = this.forests[side];
    const { width, height } = this.stages[side];
    if (!forest || x < 0 || y < 0 || x >= width || y >= height) return null;
    return forest.at(Math.floor(x), Math.floor(y), this.selected[side]);
  }

  hoverPoint(side, x, y) {
    this.hover(side, this.masksShown ? this.pointed(side, x, y) : null, true);
  }

  hoverMask(k) {
    this.hover(this.active, k === null ? null : { chain: this.forest.chain(k), target: k });
  }

  hover(side, found, fromPicture = false) {
    const before = this.hovered[side];
    const same = (a, b) => a === b || (a && b && a.target === b.target && a.chain[a.chain.length - 1] === b.chain[b.chain.length - 1]);
    if (same(before, found)) return;
    this.hovered = this.sides.map(() => null);
    this.hovered[side] = found;
    const other = 1 - side;
    const partner = this.compares && found && this.sides[side].partner.get(found.target);
    if (partner) this.hovered[other] = { chain: [partner.mask], target: partner.mask, isMatch: true };
    this.drawHovers(fromPicture);
  }

  clickPoint(side, x, y) {
    if (!this.forests[side]) return;
    const found = this.masksShown ? this.pointed(side, x, y) : null;
    this.select(side, found ? found.target : NONE);
    this.hoverPoint(side, x, y);
  }

  // Drawing

  refresh() {
    this.redraw();
    this.showTree();
    this.tabs.forEach((tab, side) => {
      tab.setAttribute("aria-pressed", side === this.active);
      tab.disabled = !this.forests[side];
    });
    this.showCrumbs();
    this.showDetails();
    const total = this.sides[this.active] ? this.sides[this.active].size : 0;
    const shown = this.forest ? this.forest.shown.length : 0;
    byId("shown").textContent = shown === total ? plural(total, "mask") : `${shown} of ${plural(total, "mask")}`;
    byId("empty").hidden = shown > 0;
    byId("empty").textContent = total ? "The filters hide every mask." : "No masks here.";
    byId("by-coverage").hidden = !(this.sides[this.active] && this.sides[this.active].byCoverage);
    byId("zoom-selection").disabled = this.selected[this.active] === NONE;
    byId("up").disabled = this.selected[this.active] === NONE;
  }

  showTree() {
    const { width, height } = this.stages[this.active];
    if (this.forest) this.tree.show(this.forest, this.selected[this.active], this.photo, [width, height]);
  }

  redraw() {
    this.stages.forEach((stage, side) => {
      stage.forest = this.forests ? this.forests[side] : null;
      stage.selected = this.selected[side];
      stage.masksShown = this.masksShown;
      stage.opacity = Number(this.opacity.value) / 100;
      stage.hovered = this.hovered[side];
      stage.element.classList.toggle("active", this.compares && side === this.active);
      stage.draw();
    });
    this.showChips();
    this.showCaption();
  }

  drawHovers(fromPicture) {
    this.stages.forEach((stage, side) => {
      stage.hovered = this.hovered[side];
      stage.drawHover();
    });
    this.tree.mark(this.hovered[this.active] ? this.hovered[this.active].target : NONE, fromPicture);
    this.showChips();
    this.showCaption();
  }

  // On each of two pictures: the match of its hovered or selected mask in the other file.
  showChips() {
    this.stages.forEach((stage, side) => {
      const k = this.hovered[side] ? this.hovered[side].target : this.selected[side];
      const labels = this.sides[side];
      const shown = labels ? this.forests[side].shown : [];
      const matched = labels ? shown.filter((mask) => labels.partner.has(mask)).length : 0;
      stage.counter.textContent = labels ? `${shown.length} of ${plural(labels.size, "mask")}, ${matched} matched` : "no labels";
      stage.chip.hidden = !this.compares || k === NONE || !labels;
      if (stage.chip.hidden) return;
      const partner = labels.partner.get(k);
      const match = partner ? `IoU ${partner.iou.toFixed(2)}` : "no match";
      stage.chip.textContent = `${this.forests[side].name(k)}, ${match}`;
      stage.chip.classList.toggle("yes", Boolean(partner));
    });
  }

  showCaption() {
    const side = this.hovered.findIndex((found) => found && !found.isMatch);
    const caption = byId("caption");
    if (side < 0) {
      caption.replaceChildren(make("span", "hint", COARSE.matches ? HINT_FOR_FINGERS : HINT));
      return;
    }
    const { chain, target } = this.hovered[side];
    const forest = this.forests[side];
    const steps = make("span", "steps");
    const at = chain.indexOf(target);
    let skipped = false;
    chain.forEach((k, position) => {
      const near = position === 0 || Math.abs(position - at) < 2 || position === chain.length - 1;
      if (chain.length > LONG_CHAIN && !near) {
        if (!skipped) steps.append(make("span", "arrow", "› …"));
        skipped = true;
        return;
      }
      skipped = false;
      if (position) steps.append(make("span", "arrow", "›"));
      const item = make("span", k === target ? "step target" : "step");
      const swatch = make("span", "swatch");
      swatch.style.background = this.sides[side].color(k);
      item.append(swatch, make("span", "", forest.name(k)));
      steps.append(item);
    });
    const partner = this.compares && this.sides[side].partner.get(target);
    const other = 1 - side;
    const match = partner ? `${this.forests[other].name(partner.mask)} in ${this.index.files[other].name}, IoU ${partner.iou.toFixed(2)}` : "no match";
    caption.replaceChildren(steps, make("span", "facts", this.compares ? match : forest.facts(target)));
  }

  showCrumbs() {
    const selected = this.selected[this.active];
    const chain = this.forest && selected !== NONE ? this.forest.chain(selected) : [];
    const crumbs = [NONE, ...chain].map((k, position) => {
      const button = make("button", "crumb", k === NONE ? "Picture" : this.forest.name(k));
      button.type = "button";
      if (k !== NONE) {
        const swatch = make("span", "swatch");
        swatch.style.background = this.sides[this.active].color(k);
        button.prepend(swatch);
      }
      if (position === chain.length) button.setAttribute("aria-current", "true");
      button.addEventListener("click", () => this.select(this.active, k));
      const item = make("li");
      item.append(button);
      return item;
    });
    byId("crumbs").replaceChildren(...crumbs);
    byId("crumbs").scrollLeft = 1e6;
  }

  showDetails() {
    const k = this.selected[this.active];
    byId("details").hidden = k === NONE || this.compares;
    byId("subject").hidden = k === NONE || !this.compares;
    if (k === NONE) return;
    if (this.compares) {
      this.showSubject();
      return;
    }
    byId("details").replaceChildren(
      ...this.facts(this.active, k).map(([name, value]) => {
        const pair = make("div");
        pair.append(make("dt", "", name), make("dd", "", value));
        return pair;
      }),
    );
  }

  facts(side, k) {
    const [labels, forest] = [this.sides[side], this.forests[side]];
    const facts = [["Score", labels.scores[k].toFixed(3)], ["Size", share(labels.areas[k])]];
    facts.push(["Depth", forest.depths[k]], ["Inside", plural(forest.children[k].length, "mask")]);
    if (labels.labels && labels.labels[k]) facts.push(["Class", labels.labels[k]]);
    if (labels.sources && labels.sources[k]) facts.push(["Source", labels.sources[k]]);
    if (labels.ids[k]) facts.push(["Id", labels.ids[k]]);
    return facts;
  }

  // The selected mask and its match, file by file.
  showSubject() {
    const cells = (kind, values) => {
      const row = make("tr");
      row.append(...values.map((value, at) => make(at ? kind : "th", "", value)));
      return row;
    };
    const columns = this.selected.map((k, side) => (k === NONE ? null : new Map(this.facts(side, k))));
    const names = this.selected.map((k, side) => (k === NONE ? "no match" : this.forests[side].name(k)));
    const keys = [...new Set(columns.flatMap((facts) => (facts ? [...facts.keys()] : [])))];
    const partner = this.sides[this.active].partner.get(this.selected[this.active]);
    const table = byId("subject");
    table.tHead.replaceChildren(cells("th", ["", ...this.index.files.map((file) => file.name)]));
    table.tBodies[0].replaceChildren(
      cells("td", ["Mask", ...names]),
      ...keys.map((key) => cells("td", [key, ...columns.map((facts) => (facts && facts.has(key) ? String(facts.get(key)) : "–"))])),
      cells("td", ["IoU", ...names.map(() => (partner ? partner.iou.toFixed(2) : "–"))]),
    );
  }

  // Files

  describeSaved() {
    const image = this.index.images[this.number];
    const file = this.compares ? ` of ${this.index.files[this.active].name}` : "";
    byId("save-what").textContent =
      `The ${plural(this.forest.shown.length, "mask")}${file} that the filters show, at ${image.width} × ${image.height} pixels, ` +
      "or the picture as it is drawn now.";
  }

  saveJson() {
    const image = this.index.images[this.number];
    const content = cocoOf(this.forest, image, this.stages[this.active].width);
    saveFile(new Blob([JSON.stringify(content)], { type: "application/json" }), `${fileStem(image.name)}_masks.json`);
    byId("save").close();
  }

  savePng() {
    const name = `${fileStem(this.index.images[this.number].name)}_masks.png`;
    this.stages[this.active].toCanvas().toBlob((blob) => saveFile(blob, name), "image/png");
    byId("save").close();
  }

  announce(text) {
    byId("announcer").textContent = text;
  }

  // Tools

  zoomToSelection() {
    const k = this.selected[this.active];
    if (k === NONE) return;
    const { left, top, right, bottom } = this.sides[this.active].masks[k];
    this.view.showBox(left, top, right + 1, bottom + 1);
    this.redraw();
  }

  zoomToAll() {
    this.view.reset(this.view.width, this.view.height);
    this.redraw();
  }

  toggleMasks() {
    this.masksShown = !this.masksShown;
    byId("toggle-masks").setAttribute("aria-pressed", this.masksShown);
    this.hovered = this.sides.map(() => null);
    this.redraw();
  }

  key(event) {
    const inDialog = document.querySelector("dialog[open]");
    const typing = event.target.closest("input, select, textarea");
    if (inDialog || event.ctrlKey || event.metaKey || event.altKey || !this.forest) return;
    if (typing && event.key !== "Escape") return;
    const onControl = event.target.closest("button, a, summary");
    const actions = {
      Escape: () => this.climb(),
      ArrowUp: () => this.climb(),
      ArrowDown: () => this.descend(),
      ArrowLeft: () => this.walk(-1),
      ArrowRight: () => this.walk(1),
      z: () => this.zoomToSelection(),
      0: () => this.zoomToAll(),
      m: () => this.toggleMasks(),
      j: () => this.show(this.gallery.neighbour(this.number, 1)),
      k: () => this.show(this.gallery.neighbour(this.number, -1)),
      "/": () => byId("search").focus(),
      "?": () => byId("help").showModal(),
      s: () => byId("save-open").click(),
    };
    if (!onControl) actions.Enter = () => this.descend();
    if (this.compares && event.key === "x") this.activate(1 - this.active);
    const action = actions[event.key];
    if (!action) return;
    event.preventDefault();
    action();
  }
}

new App();
