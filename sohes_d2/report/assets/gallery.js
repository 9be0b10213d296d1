// The list of images with thumbnails, and a search by name.

class Gallery {
  constructor(images, select) {
    this.buttons = images.map((image, number) => {
      const button = make("button", "photo");
      button.type = "button";
      const frame = make("span", "frame");
      if (image.thumbnail) {
        const picture = make("img");
        Object.assign(picture, { alt: "", loading: "lazy", decoding: "async", src: image.thumbnail });
        frame.append(picture);
      } else {
        frame.classList.add("missing");
        frame.append(make("span", "", "no photo"));
      }
      const text = make("span", "text");
      const name = make("span", "name", image.name.split(/[\\/]/).pop());
      const counts = image.masks.map((n) => (n === null ? "–" : n)).join(" | ");
      const matched = image.masks.length > 1 ? `, ${image.matched} matched` : "";
      text.append(name, make("span", "count", `${counts} masks${matched}`));
      if (image.problems.length) text.append(make("span", "warning", plural(image.problems.length, "problem")));
      button.title = image.name;
      button.append(frame, text);
      button.addEventListener("click", () => select(number));
      const item = make("li");
      item.append(button);
      byId("gallery").append(item);
      return button;
    });
    const search = byId("search");
    search.addEventListener("input", () => {
      const wanted = search.value.trim().toLowerCase();
      let found = 0;
      images.forEach((image, number) => {
        const hidden = !image.name.toLowerCase().includes(wanted);
        this.buttons[number].parentElement.hidden = hidden;
        found += hidden ? 0 : 1;
      });
      byId("found").textContent = wanted ? `${found} of ${images.length}` : plural(images.length, "image");
    });
    byId("found").textContent = plural(images.length, "image");
  }

  mark(number) {
    for (const button of this.buttons) button.removeAttribute("aria-current");
    this.buttons[number].setAttribute("aria-current", "true");
    reveal(byId("gallery"), this.buttons[number]);
  }

  // The next listed image in a direction, or the same one at the end.
  neighbour(number, step) {
    let next = number + step;
    while (this.buttons[next] && this.buttons[next].parentElement.hidden) next += step;
    return this.buttons[next] ? next : number;
  }
}
