// A picture with its masks: one canvas for the selection, and one above it for the pointer.

const PAD = 14; // pixels left free around the picture
const MAX_ZOOM = 24;
const MAX_ZOOM_TO_MASK = 8; // a higher zoom would hide the surroundings of small parts
const CASING = "rgba(10, 12, 16, 0.8)";
const MAX_BETWEEN = 3;
const SAVED_SIDE = 900; // longer side of a picture for which saved outlines have the same width as on the screen
const MANY = 150; // with more masks, outlines are drawn thin and without a dark casing

// The visible part of the picture, shared by two stages.
class View {
  constructor() {
    this.reset(1, 1);
  }

  reset(width, height) {
    [this.width, this.height, this.zoom] = [width, height, 1];
    [this.x, this.y] = [width / 2, height / 2];
  }

  clamp() {
    this.zoom = Math.min(MAX_ZOOM, Math.max(1, this.zoom));
    const slackX = (this.width / 2) * (1 - 1 / this.zoom);
    const slackY = (this.height / 2) * (1 - 1 / this.zoom);
    this.x = Math.min(this.width / 2 + slackX, Math.max(this.width / 2 - slackX, this.x));
    this.y = Math.min(this.height / 2 + slackY, Math.max(this.height / 2 - slackY, this.y));
  }

  // Keeps the given picture point at its position on the screen.
  zoomAt(x, y, factor) {
    const zoom = Math.min(MAX_ZOOM, Math.max(1, this.zoom * factor));
    const change = this.zoom / zoom;
    [this.x, this.y, this.zoom] = [x + (this.x - x) * change, y + (this.y - y) * change, zoom];
    this.clamp();
  }

  showBox(left, top, right, bottom) {
    const margin = 1.35;
    this.zoom = Math.min(MAX_ZOOM_TO_MASK, this.width / ((right - left) * margin), this.height / ((bottom - top) * margin));
    [this.x, this.y] = [(left + right) / 2, (top + bottom) / 2];
    this.clamp();
  }
}

class Stage {
  constructor(number, file, view, handlers) {
    this.number = number;
    this.view = view;
    const copy = byId("stage-template").content.firstElementChild.cloneNode(true);
    this.element = copy;
    this.surface = copy.querySelector(".surface");
    this.base = copy.querySelector(".base");
    this.over = copy.querySelector(".over");
    this.note = copy.querySelector(".note");
    this.chip = copy.querySelector(".chip");
    this.counter = copy.querySelector(".counter");
    copy.querySelector(".file").textContent = file.name;
    this.surface.setAttribute("aria-label", `Picture with the masks of ${file.name}`);
    this.photo = null;
    this.forest = null;
    this.hovered = null;
    this.listen(handlers);
    new ResizeObserver(() => this.resize()).observe(this.surface);
  }

  show(photo, width, height, note) {
    Object.assign(this, { photo, width, height, hovered: null });
    this.note.textContent = note;
    this.note.hidden = !note;
  }

  resize() {
    const ratio = window.devicePixelRatio || 1;
    const { clientWidth, clientHeight } = this.surface;
    for (const canvas of [this.base, this.over]) {
      canvas.width = Math.max(1, Math.round(clientWidth * ratio));
      canvas.height = Math.max(1, Math.round(clientHeight * ratio));
    }
    this.draw();
  }

  // Screen pixels per picture pixel, and where the picture's corner lies on the canvas.
  placement() {
    const ratio = window.devicePixelRatio || 1;
    const { width, height } = this.base;
    const fit = Math.min((width - 2 * PAD * ratio) / this.width, (height - 2 * PAD * ratio) / this.height);
    const scale = Math.max(1e-3, fit) * this.view.zoom;
    return { scale, left: width / 2 - this.view.x * scale, top: height / 2 - this.view.y * scale, ratio };
  }

  toPicture(event) {
    const box = this.surface.getBoundingClientRect();
    const { scale, left, top, ratio } = this.placement();
    return [((event.clientX - box.left) * ratio - left) / scale, ((event.clientY - box.top) * ratio - top) / scale];
  }

  // Two fingers: the point between them stays fixed, and the zoom follows their distance.
  pinch(before, now) {
    this.view.zoomAt(...this.toPicture(before), now.distance / Math.max(before.distance, 1));
    const { scale, ratio } = this.placement();
    this.view.x -= ((now.clientX - before.clientX) * ratio) / scale;
    this.view.y -= ((now.clientY - before.clientY) * ratio) / scale;
    this.view.clamp();
  }

  listen(handlers) {
    const fingers = new Map(); // pointers that are down
    let down = null;
    let pinched = null;
    let pending = null;
    const press = (event, moved) => {
      down = { x: event.clientX, y: event.clientY, viewX: this.view.x, viewY: this.view.y, moved };
    };
    // Otherwise the browser would use two fingers for its zoom, or the first one for scrolling.
    const claim = (event) => event.touches.length > 1 && event.preventDefault();
    this.surface.addEventListener("touchstart", claim, { passive: false });
    this.surface.addEventListener("touchmove", claim, { passive: false });
    this.surface.addEventListener("pointermove", (event) => {
      if (fingers.has(event.pointerId)) fingers.set(event.pointerId, event);
      if (pinched) {
        const now = between(fingers);
        this.pinch(pinched, now);
        pinched = now;
        handlers.moved();
        return;
      }
      if (down) {
        const [dx, dy] = [event.clientX - down.x, event.clientY - down.y];
        if (!down.moved && Math.hypot(dx, dy) < 5) return;
        down.moved = true;
        const { scale, ratio } = this.placement();
        this.view.x = down.viewX - (dx * ratio) / scale;
        this.view.y = down.viewY - (dy * ratio) / scale;
        this.view.clamp();
        handlers.moved();
        return;
      }
      const first = !pending; // there may be several moves between two frames; the last one is used
      pending = event;
      if (!first) return;
      requestAnimationFrame(() => {
        const latest = pending;
        pending = null;
        if (latest !== "left") handlers.hover(this, ...this.toPicture(latest));
      });
    });
    this.surface.addEventListener("pointerleave", () => {
      if (pending) pending = "left";
      handlers.hover(this, -1, -1);
    });
    this.surface.addEventListener("pointerdown", (event) => {
      if (event.button || fingers.size === 2) return;
      fingers.set(event.pointerId, event);
      this.surface.setPointerCapture(event.pointerId);
      if (fingers.size === 2) [pinched, down] = [between(fingers), null];
      else press(event, false);
    });
    this.surface.addEventListener("pointerup", (event) => {
      if (!fingers.delete(event.pointerId)) return;
      if (pinched) {
        pinched = null;
        for (const rest of fingers.values()) press(rest, true); // continue moving the picture
        return;
      }
      if (down && !down.moved) handlers.click(this, ...this.toPicture(event));
      down = null;
    });
    this.surface.addEventListener("pointercancel", (event) => {
      fingers.delete(event.pointerId);
      [down, pinched] = [null, null];
    });
    this.surface.addEventListener(
      "wheel",
      (event) => {
        event.preventDefault();
        this.view.zoomAt(...this.toPicture(event), Math.exp(-event.deltaY * (event.deltaMode ? 0.05 : 0.0016)));
        handlers.moved();
      },
      { passive: false },
    );
    this.surface.addEventListener("focus", () => handlers.focus(this));
  }

  begin(canvas) {
    const context = canvas.getContext("2d");
    const { scale, left, top, ratio } = this.placement();
    context.setTransform(1, 0, 0, 1, 0, 0);
    context.clearRect(0, 0, canvas.width, canvas.height);
    context.setTransform(scale, 0, 0, scale, left, top);
    context.miterLimit = 2; // far cheaper than round corners, and not pointed
    this.pen = ratio / scale; // one pixel of the page
    return context;
  }

  draw() {
    if (!this.width) return;
    this.surface.classList.toggle("zoomed", this.view.zoom > 1);
    this.paint(this.begin(this.base));
    this.drawHover();
  }

  // The whole picture with the masks as they are drawn now, at its own size.
  toCanvas() {
    const canvas = make("canvas");
    [canvas.width, canvas.height] = [this.width, this.height];
    this.pen = Math.max(this.width, this.height) / SAVED_SIDE;
    const context = canvas.getContext("2d");
    context.miterLimit = 2;
    this.paint(context);
    return canvas;
  }

  paint(context) {
    if (this.photo) {
      context.imageSmoothingQuality = "high";
      context.drawImage(this.photo, 0, 0, this.width, this.height);
    } else {
      context.fillStyle = "#7a8290";
      context.fillRect(0, 0, this.width, this.height);
    }
    const { forest } = this;
    if (forest && this.masksShown) this.drawLevel(context, forest);
  }

  drawLevel(context, forest) {
    const { labels } = forest;
    const { selected } = this;
    const level = selected === NONE ? forest.roots : forest.children[selected];
    if (selected !== NONE) {
      const outside = new Path2D();
      outside.rect(0, 0, this.width, this.height);
      outside.addPath(labels.masks[selected].path);
      context.fillStyle = "rgba(8, 10, 14, 0.66)";
      context.fill(outside, "evenodd");
    }
    const thin = level.length > MANY;
    for (const k of level) {
      this.tint(context, k, this.opacity * (1 - 0.5 * labels.areas[k])); // large masks must not hide the picture
      this.line(context, labels.masks[k].path, lighter(labels.color(k), thin ? 0.15 : 0.35), thin ? 1 : 1.75, !thin);
    }
    if (selected !== NONE) this.line(context, labels.masks[selected].path, lighter(labels.color(selected), 0.5), 2.5, true);
  }

  drawHover() {
    const context = this.begin(this.over);
    const { forest, hovered } = this;
    if (!forest || !hovered) return;
    const { labels } = forest;
    const { chain, target } = hovered;
    const step = chain.indexOf(target);
    const smallest = chain[chain.length - 1];
    context.setLineDash([7 * this.pen, 5 * this.pen]);
    for (const k of chain.slice(0, step)) {
      this.line(context, labels.masks[k].path, lighter(labels.color(k), 0.75), 2, true);
    }
    context.setLineDash([]);
    this.tint(context, target, 0.4);
    // Chains may be long: masks between the click's target and the smallest mask are shown as a few thin lines.
    for (const k of chain.slice(step + 1, -1).slice(0, MAX_BETWEEN)) {
      this.line(context, labels.masks[k].path, lighter(labels.color(k), 0.4), 0.75, false);
    }
    if (smallest !== target) {
      this.tint(context, smallest, 0.55);
      this.line(context, labels.masks[smallest].path, lighter(labels.color(smallest), 0.5), 1.5, true);
    }
    this.line(context, labels.masks[target].path, "#ffffff", 2.75, true);
  }

  tint(context, k, strength) {
    const { labels } = this.forest;
    context.globalAlpha = strength;
    context.fillStyle = labels.color(k);
    context.fill(labels.masks[k].path, "evenodd");
    context.globalAlpha = 1;
  }

  line(context, path, color, width, cased) {
    if (cased) {
      context.strokeStyle = CASING;
      context.lineWidth = (width + 2) * this.pen;
      context.stroke(path);
    }
    context.strokeStyle = color;
    context.lineWidth = width * this.pen;
    context.stroke(path);
  }
}

// The middle of two pointers and their distance, in pixels of the page.
function between(pointers) {
  const [a, b] = [...pointers.values()];
  return {
    clientX: (a.clientX + b.clientX) / 2,
    clientY: (a.clientY + b.clientY) / 2,
    distance: Math.hypot(a.clientX - b.clientX, a.clientY - b.clientY),
  };
}

function lighter(color, white) {
  const part = (start) => Math.round(parseInt(color.slice(start, start + 2), 16) * (1 - white) + 255 * white);
  return `rgb(${part(1)}, ${part(3)}, ${part(5)})`;
}
