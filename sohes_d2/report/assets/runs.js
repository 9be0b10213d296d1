// COCO's compressed run lengths: decoded when an image is shown, with look-up of single pixels without a bitmap.

const STAND_INS = { 112: 60, 113: 92 }; // "p" and "q" stand for "<" and "\", see packing.py

// Ends of the runs of a mask, as positions in column-major order, alternating outside and inside.
function decodeRuns(text) {
  const ends = new Int32Array(text.length);
  let count = 0;
  let at = 0;
  let beforeLast = 0;
  let last = 0;
  let position = 0;
  while (at < text.length) {
    let value = 0;
    let shift = 0;
    let code;
    do {
      code = text.charCodeAt(at++);
      code = (STAND_INS[code] || code) - 48;
      value |= (code & 31) << shift;
      shift += 5;
    } while (code & 32);
    if (code & 16) value |= -1 << shift;
    if (count > 2) value += beforeLast;
    beforeLast = last;
    last = value;
    position += value;
    ends[count++] = position;
  }
  return ends.slice(0, count);
}

// Inverse of decodeRuns: encode ends to COCO's text.
function encodeRuns(ends) {
  const codes = [];
  let [last, beforeLast] = [0, 0];
  for (let k = 0; k < ends.length; k++) {
    const length = ends[k] - (k ? ends[k - 1] : 0);
    let value = k > 2 ? length - beforeLast : length;
    [beforeLast, last] = [last, length];
    let more = true;
    while (more) {
      const code = value & 31;
      value >>= 5;
      more = value !== (code & 16 ? -1 : 0);
      codes.push(String.fromCharCode((more ? code | 32 : code) + 48));
    }
  }
  return codes.join("");
}

class Mask {
  constructor(text, height) {
    this.height = height;
    this.ends = decodeRuns(text);
    this.outline = null;
    let [top, bottom] = [height, -1];
    const first = this.ends.length > 1 ? this.ends[0] : 0;
    let lastInside = first;
    for (let k = 1; k < this.ends.length; k += 2) {
      const start = this.ends[k - 1];
      const end = this.ends[k] - 1;
      if (end < start) continue;
      const y = start % height;
      const reach = y + end - start;
      if (reach >= height) [top, bottom] = [0, height - 1];
      if (y < top) top = y;
      if (reach > bottom && reach < height) bottom = reach;
      lastInside = end;
    }
    this.left = Math.floor(first / height);
    this.right = Math.floor(lastInside / height);
    this.top = top;
    this.bottom = bottom;
  }

  contains(x, y) {
    if (x < this.left || x > this.right || y < this.top || y > this.bottom) return false;
    const position = x * this.height + y;
    let low = 0;
    let high = this.ends.length; // the number of runs that end at or before the position lies between them
    while (low < high) {
      const middle = (low + high) >> 1;
      if (this.ends[middle] <= position) low = middle + 1;
      else high = middle;
    }
    return (low & 1) === 1;
  }

  // Ends of the runs at another size, by nearest-neighbour sampling at pixel centres.
  endsAt(width, newHeight, newWidth) {
    if (newHeight === this.height && newWidth === width) return [...this.ends];
    const columns = Array.from({ length: width }, () => []);
    const row = (y) => Math.ceil((y * newHeight) / this.height - 0.5);
    for (let k = 1; k < this.ends.length; k += 2) {
      for (let at = this.ends[k - 1]; at < this.ends[k]; ) {
        const x = Math.floor(at / this.height);
        const end = Math.min(this.ends[k], (x + 1) * this.height);
        columns[x].push([row(at - x * this.height), row(end - x * this.height)]);
        at = end;
      }
    }
    const ends = [];
    for (let x = 0; x < newWidth; x++) {
      for (const [top, bottom] of columns[Math.floor(((x + 0.5) * width) / newWidth)]) {
        const [start, end] = [x * newHeight + top, x * newHeight + bottom];
        if (start === end) continue;
        if (ends.length && ends[ends.length - 1] === start) ends[ends.length - 1] = end;
        else ends.push(start, end);
      }
    }
    const total = newHeight * newWidth;
    if (ends[ends.length - 1] !== total) ends.push(total);
    return ends;
  }

  // The mask's box with a margin of one empty pixel on each side, row by row.
  patch() {
    const width = this.right - this.left + 3;
    const height = this.bottom - this.top + 3;
    const pixels = new Uint8Array(width * height);
    for (let k = 1; k < this.ends.length; k += 2) {
      let x = Math.floor(this.ends[k - 1] / this.height);
      let y = this.ends[k - 1] - x * this.height;
      for (let left = this.ends[k] - this.ends[k - 1]; left > 0; left--) {
        pixels[(y - this.top + 1) * width + x - this.left + 1] = 1;
        if (++y === this.height) [x, y] = [x + 1, 0];
      }
    }
    return { pixels, width, height };
  }

  get path() {
    if (!this.outline) this.outline = tracePath(this.patch(), this.left - 1, this.top - 1);
    return this.outline;
  }
}
