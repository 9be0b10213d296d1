// Downloads of the shown content: the masks as a COCO json, the picture as a png.

// The COCO data set of the shown masks of a forest, at the photo's original size.
function cocoOf(forest, image, pageWidth) {
  const { labels } = forest;
  const { shown } = forest;
  const { height, width } = image;
  const own = shown.map((k) => labels.ids[k]); // ids of the file are kept if possible
  const kept = new Set(own).size === own.length && own.every((id) => /^[1-9]\d{0,14}$/.test(id));
  const ids = new Map(shown.map((k, at) => [k, kept ? Number(own[at]) : at + 1]));
  const names = [...new Set(shown.map((k) => (labels.labels && labels.labels[k]) || "entity"))];
  const annotations = shown.map((k) => {
    const ends = labels.masks[k].endsAt(pageWidth, height, width);
    const counts = encodeRuns(ends);
    const { left, top, right, bottom } = new Mask(counts, height);
    let area = 0;
    for (let run = 1; run < ends.length; run += 2) area += ends[run] - ends[run - 1];
    return {
      id: ids.get(k),
      image_id: 1,
      category_id: names.indexOf((labels.labels && labels.labels[k]) || "entity") + 1,
      iscrowd: 0,
      area,
      bbox: [left, top, right - left + 1, bottom - top + 1],
      score: labels.scores[k],
      parent_id: forest.parents[k] === NONE ? 0 : ids.get(forest.parents[k]),
      depth: forest.depths[k],
      source: (labels.sources && labels.sources[k]) || "",
      segmentation: { size: [height, width], counts },
    };
  });
  return {
    images: [{ id: 1, file_name: image.name, height, width }],
    annotations,
    categories: names.map((name, at) => ({ id: at + 1, name })),
  };
}

function saveFile(blob, name) {
  const link = make("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60000);
}

function fileStem(name) {
  return name.split(/[\\/]/).pop().replace(/\.\w{1,5}$/, "") || "image";
}
