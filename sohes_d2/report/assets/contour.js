// The border of a mask as a path in image coordinates, sharp at any zoom.

const STEP_X = [1, 0, -1, 0]; // east, south, west, north
const STEP_Y = [0, 1, 0, -1];
// Pixels ahead of a lattice point, left and right of the heading.
const LEFT_X = [0, 0, -1, -1];
const LEFT_Y = [-1, 0, 0, -1];
const RIGHT_X = [0, -1, -1, 0];
const RIGHT_Y = [0, 0, -1, -1];

// Allowed deviation of the path from the middles of the cracks. Pixel centres are sqrt(1/8) = 0.354 away from them, so
// each stays on its side; and only a fraction of the points has to be drawn.
const TOLERANCE = 0.33;
const MAX_SPAN = 48; // largest number of points replaced by one straight piece

// Follows the cracks between pixels with the mask on the right. The path joins the middles of the cracks, which smooths
// the steps of pixels.
function tracePath({ pixels, width, height }, offsetX, offsetY) {
  const path = new Path2D();
  const seen = new Uint8Array(pixels.length);
  for (let startY = 1; startY < height; startY++) {
    for (let startX = 1; startX < width; startX++) {
      const start = startY * width + startX;
      if (!pixels[start] || pixels[start - width] || seen[start]) continue;
      let [x, y, heading, before] = [startX, startY, 0, -1];
      const points = [];
      do {
        if (heading === 0) seen[y * width + x] = 1;
        const middleX = x + STEP_X[heading] / 2;
        const middleY = y + STEP_Y[heading] / 2;
        x += STEP_X[heading];
        y += STEP_Y[heading];
        const left = pixels[(y + LEFT_Y[heading]) * width + x + LEFT_X[heading]];
        const right = pixels[(y + RIGHT_Y[heading]) * width + x + RIGHT_X[heading]];
        const next = !right ? (heading + 1) & 3 : left ? (heading + 3) & 3 : heading;
        if (before !== heading || next !== heading) {
          points.push(offsetX + middleX, offsetY + middleY);
        }
        before = heading;
        heading = next;
      } while (x !== startX || y !== startY || heading !== 0);
      addSimplified(path, points);
    }
  }
  return path;
}

// Adds a closed loop, given as x, y, x, y, ...; points within the tolerance of a straight piece are dropped.
function addSimplified(path, points) {
  const count = points.length / 2;
  path.moveTo(points[0], points[1]);
  let anchor = 0;
  while (anchor < count) {
    let end = anchor + 1;
    while (end < count && end + 1 - anchor <= MAX_SPAN && isStraight(points, anchor, end + 1, count)) end++;
    if (end < count) path.lineTo(points[2 * end], points[2 * end + 1]);
    anchor = end;
  }
  path.closePath();
}

function isStraight(points, from, to, count) {
  const [x, y] = [points[2 * from], points[2 * from + 1]];
  const last = to % count; // the loop ends where it began
  const [dx, dy] = [points[2 * last] - x, points[2 * last + 1] - y];
  const length = Math.hypot(dx, dy);
  if (!length) return false;
  for (let k = from + 1; k < to; k++) {
    const [px, py] = [points[2 * k] - x, points[2 * k + 1] - y];
    const along = (px * dx + py * dy) / length;
    if (Math.abs(px * dy - py * dx) > TOLERANCE * length || along < 0 || along > length) return false;
  }
  return true;
}
