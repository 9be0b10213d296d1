// Keys, metrics and the colours of the page itself.

function openable(name, prepare = () => {}) {
  const dialog = byId(name);
  byId(`${name}-open`).addEventListener("click", () => {
    prepare();
    dialog.showModal();
  });
  dialog.addEventListener("click", (event) => {
    if (event.target === dialog || event.target.closest(".close")) dialog.close();
  });
  return dialog;
}

function fillMetrics(groups) {
  byId("metrics-open").hidden = !groups;
  const body = byId("metrics-body");
  for (const group of groups || []) {
    const section = make("section");
    if (group.title) section.append(make("h3", "", group.title));
    const list = make("dl");
    for (const [name, value] of group.rows) {
      const pair = make("div");
      pair.append(make("dt", "", name), make("dd", "", value === null ? "–" : metric(value)));
      list.append(pair);
    }
    if (group.rows.length) section.append(list);
    for (const [name, rows] of group.matrices) {
      const matrix = make("table", "matrix");
      matrix.append(make("caption", "", name));
      for (const values of rows) {
        const row = make("tr");
        row.append(...values.map((value) => make("td", "", metric(value))));
        matrix.append(row);
      }
      section.append(matrix);
    }
    body.append(section);
  }
}

function metric(value) {
  return Number.isInteger(value) ? String(value) : value.toFixed(2);
}

const THEMES = ["auto", "light", "dark"];

function themeButton() {
  const button = byId("theme");
  const apply = (theme) => {
    if (theme === "auto") document.documentElement.removeAttribute("data-theme");
    else document.documentElement.setAttribute("data-theme", theme);
    button.dataset.theme = theme;
    byId("theme-name").textContent = { auto: "Auto", light: "Light", dark: "Dark" }[theme];
    button.setAttribute("aria-label", `Colours of the page: ${theme}`);
  };
  apply(remembered("theme", "auto"));
  button.addEventListener("click", () => {
    const next = THEMES[(THEMES.indexOf(button.dataset.theme) + 1) % THEMES.length];
    apply(next);
    remember("theme", next);
  });
}

// A page opened from a file may not be allowed to store data.
function remember(name, value) {
  try {
    localStorage.setItem(`sohes-report-${name}`, value);
  } catch (error) {
    if (!(error instanceof DOMException)) throw error;
  }
}

function remembered(name, otherwise) {
  try {
    const value = localStorage.getItem(`sohes-report-${name}`);
    return THEMES.includes(value) ? value : otherwise;
  } catch (error) {
    if (!(error instanceof DOMException)) throw error;
    return otherwise;
  }
}
