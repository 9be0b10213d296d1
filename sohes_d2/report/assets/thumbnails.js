// Cut-outs of masks for the rows of the tree, each drawn when its row first comes into view.

const THUMBNAIL = 64; // pixels of a side; shown at about half the size, for high-density screens
const THUMBNAIL_MARGIN = 0.15; // around the mask, as a share of its longer side

class Thumbnails {
  constructor() {
    this.canvases = new Map();
    this.seen = new IntersectionObserver((entries) => {
      for (const { target, isIntersecting } of entries) {
        if (!isIntersecting) continue;
        this.seen.unobserve(target);
        drawThumbnail(target, this.labels, Number(target.dataset.thumbnail), this.photo, this.size);
      }
    });
  }

  // Thumbnails of the masks of one file on one photo; null before the photo is loaded, or if it is missing.
  reset(labels, photo, size) {
    if (this.labels === labels && this.photo === photo) return;
    this.seen.disconnect();
    this.canvases.clear();
    Object.assign(this, { labels, photo, size });
  }

  of(k) {
    let canvas = this.canvases.get(k);
    if (!canvas) {
      canvas = make("canvas", "thumbnail");
      [canvas.width, canvas.height] = [THUMBNAIL, THUMBNAIL];
      canvas.setAttribute("aria-hidden", "true");
      canvas.dataset.thumbnail = k;
      canvas.style.borderColor = this.labels.color(k);
      this.canvases.set(k, canvas);
      this.seen.observe(canvas);
    }
    return canvas;
  }
}

function drawThumbnail(canvas, labels, k, photo, [width, height]) {
  const mask = labels.masks[k];
  const context = canvas.getContext("2d");
  const [w, h] = [mask.right - mask.left + 1, mask.bottom - mask.top + 1];
  const side = Math.max(w, h, 4) * (1 + 2 * THUMBNAIL_MARGIN);
  const scale = THUMBNAIL / side;
  context.setTransform(scale, 0, 0, scale, (side / 2 - mask.left - w / 2) * scale, (side / 2 - mask.top - h / 2) * scale);
  if (photo) {
    context.globalAlpha = 0.25;
    context.drawImage(photo, 0, 0, width, height);
    context.globalAlpha = 1;
    context.save();
    context.clip(mask.path, "evenodd");
    context.drawImage(photo, 0, 0, width, height);
    context.restore();
  } else {
    context.fillStyle = labels.color(k);
    context.fill(mask.path, "evenodd");
  }
  context.strokeStyle = lighter(labels.color(k), 0.35);
  context.lineWidth = 2 / scale;
  context.stroke(mask.path);
  canvas.dataset.drawn = photo ? "photo" : "shape";
}
