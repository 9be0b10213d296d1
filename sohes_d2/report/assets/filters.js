// Sliders for the number of entities, score, depth and size. They keep their position from image to image.

const SIZE_DECADES = 5; // range of the size sliders: from 1e-5 of the picture to all of it, logarithmic

class Filters {
  constructor(index, changed) {
    const scores = index.images.flatMap((image) => image.scores);
    const low = Math.floor(100 * Math.min(...scores, 1)) / 100;
    const high = Math.max(...scores, 0);
    const deepest = Math.max(...index.images.flatMap((image) => image.depths), 0);
    this.entityCounts = index.entityCounts;
    this.controls = {
      entities: byId("filter-entities"),
      score: byId("filter-score"),
      depth: byId("filter-depth"),
      smallest: byId("filter-smallest"),
      largest: byId("filter-largest"),
    };
    const { entities, score, depth } = this.controls;
    // the last step is all masks
    [entities.max, entities.value] = [
      this.entityCounts.length,
      index.entities ? this.entityCounts.indexOf(index.entities) : this.entityCounts.length,
    ];
    [score.min, score.max, score.value] = [low, Math.max(high, low + 0.01), low];
    score.disabled = low >= high;
    [depth.max, depth.value] = [deepest, deepest];
    depth.disabled = !deepest;
    this.defaults = Object.fromEntries(Object.entries(this.controls).map(([name, input]) => [name, input.value]));
    this.matchInputs = [...document.querySelectorAll("input[name=match]")];
    for (const input of Object.values(this.controls)) input.addEventListener("input", () => this.apply(changed));
    for (const input of this.matchInputs) input.addEventListener("change", () => this.apply(changed));
    byId("filter-reset").addEventListener("click", () => {
      for (const [name, input] of Object.entries(this.controls)) input.value = this.defaults[name];
      this.matchInputs[0].checked = true;
      this.apply(changed);
    });
    this.read();
  }

  apply(changed) {
    this.read();
    changed();
  }

  read() {
    const { entities, score, depth, smallest, largest } = this.controls;
    const step = Number(entities.value);
    this.entityStep = step < this.entityCounts.length ? step : null;
    this.describe(entities, this.entityStep === null ? "all masks" : `best ${this.entityCounts[step]}`);
    this.minScore = score.value === this.defaults.score ? -Infinity : Number(score.value);
    this.maxDepth = Number(depth.value);
    this.minShare = smallest.value === "0" ? 0 : sizeShare(smallest.value);
    this.maxShare = largest.value === "100" ? Infinity : sizeShare(largest.value);
    this.match = this.matchInputs.find((input) => input.checked).value;
    this.describe(score, this.minScore === -Infinity ? "any" : `≥ ${this.minScore.toFixed(2)}`);
    const names = ["wholes only", "to parts"];
    this.describe(depth, depth.value === this.defaults.depth ? "all levels" : names[this.maxDepth] || `≤ ${this.maxDepth}`);
    this.describe(smallest, this.minShare ? `≥ ${share(this.minShare)}` : "any");
    this.describe(largest, this.maxShare === Infinity ? "any" : `≤ ${share(this.maxShare)}`);
    const same = Object.entries(this.controls).every(([name, input]) => input.value === this.defaults[name]);
    byId("filter-reset").hidden = same && this.match === "all";
  }

  describe(input, text) {
    input.setAttribute("aria-valuetext", text);
    byId(`${input.id}-value`).textContent = text;
  }
}

function sizeShare(value) {
  return 10 ** (SIZE_DECADES * (value / 100 - 1));
}
