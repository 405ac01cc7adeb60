"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const tests = new Map(data.tests.map((t) => [t.i, t]));
  const $ = (id) => document.getElementById(id);
  const key = "keras-influence-" + document.body.dataset.key;

  // An element; texts become text nodes, so nothing of the user's is ever read as HTML.
  function make(tag, options, ...children) {
    const element = document.createElement(tag);
    for (const [name, value] of Object.entries(options || {})) {
      if (name in element && name !== "href") element[name] = value;
      else element.setAttribute(name, value);
    }
    element.append(...children.filter((child) => child !== null && child !== undefined));
    return element;
  }

  const signed = (v) => (v < 0 ? "−" : "+") + plain(Math.abs(v));
  const plain = (v) => {
    if (v === 0) return "0";
    if (v < 1e-4 || v >= 1e6) return v.toExponential(1).replace("+", "");
    return v >= 1000 ? String(Math.round(v)) : v.toPrecision(3);
  };

  function picture(source, alt) {
    const image = make("img", { src: source, alt: alt || "" });
    image.addEventListener("load", () => {
      image.classList.toggle("small-picture", Math.max(image.naturalWidth, image.naturalHeight) <= 40);
    });
    return image;
  }

  // ---- one example

  function facts(pairs) {
    const list = make("dl", { className: "facts" });
    for (const [name, value, kind] of pairs) {
      if (value !== undefined) {
        list.append(make("div", null, make("dt", null, name), make("dd", { className: kind || "" }, value)));
      }
    }
    return list;
  }

  function guess(example) {
    if (example.predicted === undefined) return undefined;
    if (example.sure === undefined) return example.predicted;
    const percent = Math.round(100 * example.sure);
    return `${example.predicted} (${percent > 99 ? "> 99" : percent} % sure)`;
  }

  function head(title, example, pairs) {
    const images = (example.images || []).map((source) => picture(source, title));
    const text = make("div", null, make("h2", { tabIndex: -1 }, title), facts(pairs));
    if (example.text) text.append(make("p", { className: "reading" }, example.text));
    return make("div", { className: "head" }, ...images, text);
  }

  function table(example) {
    if (!example.table) return null;
    const rows = example.table.map(([name, value]) =>
      make("tr", null, make("th", { scope: "row" }, name), make("td", { className: "number" }, value)));
    const whole = make("table", null, make("caption", { className: "hidden" }, "All values"), make("tbody", null, ...rows));
    return make("details", null, make("summary", null, `All values (${rows.length})`), whole);
  }

  function differences(rows) {
    const cells = ([name, here, there]) =>
      make("tr", null, make("th", { scope: "row" }, name), make("td", { className: "number" }, here), make("td", { className: "number" }, there));
    const names = ["differs most in", "test", "training"].map((name, at) => make("th", { scope: "col", className: at ? "number" : "" }, name));
    return make("table", { className: "differences" }, make("thead", null, make("tr", null, ...names)), make("tbody", null, ...rows.map(cells)));
  }

  function card([position, value, different], largest) {
    const example = data.trains[position];
    const bar = make("i");
    bar.style.width = `${(100 * Math.abs(value)) / largest}%`;
    const kind = value > 0 ? "up" : "down";
    return make("li", null, make("a", { href: `#train-${position}` },
      ...(example.images || []).slice(0, 1).map((source) => picture(source)),
      make("span", { className: `value ${kind}` }, signed(value)),
      make("span", { className: `bar ${kind}`, "aria-hidden": "true" }, bar),
      make("span", { className: "who" }, example.label === undefined ? "" : example.label + " ", make("span", { className: "quiet" }, `no. ${position}`)),
      example.text ? make("span", { className: "clip" }, example.text) : null,
      different ? differences(different) : null));
  }

  function side(title, note, pairs, largest) {
    const wide = pairs.some(([position, , different]) => different || data.trains[position].text);
    const list = make("ol", { className: wide ? "cards wide" : "cards" }, ...pairs.map((pair) => card(pair, largest)));
    return [make("h3", null, title), make("p", { className: "note" }, note), pairs.length ? list : make("p", null, "None.")];
  }

  function showTest(test) {
    const largest = Math.max(...[...test.top, ...test.bottom].map(([, value]) => Math.abs(value)));
    $("detail").replaceChildren(
      head(`Test example ${test.i}`, test, [
        ["Label", test.label], ["Predicted", guess(test), test.wrong ? "wrong" : ""],
        ["Loss", test.loss === undefined ? undefined : plain(test.loss)]]),
      ...[table(test)].filter(Boolean),
      ...side("Proponents", data.proponents, test.top, largest),
      ...side("Opponents", data.opponents, test.bottom, largest));
  }

  const first = 12; // of a list, before the rest has to be asked for
  function testsOf(title, pairs, count, kind) {
    const entries = pairs.map(([position, value]) => {
      const test = tests.get(position);
      return make("li", null, make("a", { href: `#test-${position}` },
        ...(test.images || []).slice(0, 1).map((source) => picture(source)),
        make("span", { className: "who" }, test.label === undefined ? "" : test.label + " ", make("span", { className: "quiet" }, `no. ${position}`)),
        make("span", { className: `number ${kind}` }, signed(value))));
    });
    const list = (part) => make("ul", { className: "tests-of" }, ...part);
    const kept = pairs.length < count ? ` (the ${pairs.length} strongest are in this report)` : "";
    const rest = entries.splice(entries.length > first + 3 ? first : entries.length);
    const change = kind === "up" ? "rise" : "fall";
    return [make("h3", null, `${title}: ${count}`),
      make("p", { className: "note" }, `Without this training example, their ${data.of} would ${change} by the number shown${kept}.`),
      list(entries),
      rest.length ? make("details", null, make("summary", null, `${rest.length} more`), list(rest)) : null];
  }

  function showTrain(position) {
    const example = data.trains[position];
    const back = current === null ? null : make("p", null, make("a", { href: `#test-${current}` }, `← Test example ${current}`));
    $("detail").replaceChildren(...[back,
      head(`Training example ${position}`, example, [
        ["Given label", example.label], ["Predicted", guess(example), example.wrong ? "wrong" : ""],
        ["Self-influence", example.self === undefined ? undefined : plain(example.self)]]),
      table(example),
      ...testsOf("Test examples it helps", example.helps, example.n_helps, "up"),
      ...testsOf("Test examples it harms", example.harms, example.n_harms, "down")].filter(Boolean));
  }

  // ---- the list

  let current = null;
  const items = [...document.querySelectorAll("#tests > li")].map((li) => ({ li, link: li.firstElementChild, test: tests.get(Number(li.firstElementChild.id.slice(5))) }));
  const strength = (pairs) => (pairs.length ? Math.abs(pairs[0][1]) : 0);
  const orders = { i: (t) => t.i, loss: (t) => -t.loss, top: (t) => -strength(t.top), bottom: (t) => -strength(t.bottom) };

  function arrange() {
    const label = $("by-class") ? $("by-class").value : "";
    const result = $("by-result") ? $("by-result").value : "";
    const order = orders[$("sort").value];
    const shown = items.filter(({ test }) => (!label || test.label === label) && (!result || Boolean(test.wrong) === (result === "wrong")));
    shown.sort((a, b) => order(a.test) - order(b.test) || a.test.i - b.test.i);
    $("tests").replaceChildren(...shown.map(({ li }) => li));
    const loss = items[0].test.loss === undefined ? "" : ", each with its loss";
    $("count").textContent = `${shown.length} of ${items.length} test examples${loss}`;
    mark();
  }

  // One entry of the list is on the way of the tab key; arrows go from there.
  function mark() {
    const links = [...document.querySelectorAll("#tests a")];
    const here = links.find((link) => link.id === `item-${current}`);
    for (const link of links) {
      link.tabIndex = link === (here || links[0]) ? 0 : -1;
      if (link === here) link.setAttribute("aria-current", "true");
      else link.removeAttribute("aria-current");
    }
    if (!here) return;
    // Not `scrollIntoView`, from which the tab key would go on.
    const list = $("tests");
    const low = here.offsetTop + here.offsetHeight - list.clientHeight;
    if (list.scrollTop < low || list.scrollTop > here.offsetTop) list.scrollTop = here.offsetTop - list.clientHeight / 3;
  }

  $("tests").addEventListener("keydown", (event) => {
    const links = [...document.querySelectorAll("#tests a")];
    const at = links.indexOf(document.activeElement);
    const goal = { ArrowDown: at + 1, ArrowUp: at - 1, Home: 0, End: links.length - 1 }[event.key];
    if (goal === undefined || !links[goal]) return;
    event.preventDefault();
    links[goal].focus();
    location.replace(links[goal].getAttribute("href"));
  });
  for (const id of ["by-class", "by-result", "sort"]) if ($(id)) $(id).addEventListener("change", arrange);
  document.querySelector(".filters").addEventListener("submit", (event) => event.preventDefault());

  // ---- what was checked

  const ticks = [...document.querySelectorAll("[data-tick]")];
  const ticked = () => ticks.filter((box) => box.checked).map((box) => box.dataset.tick);
  function kept(value) {
    // A browser may keep nothing for files.
    try {
      if (value === undefined) return JSON.parse(localStorage.getItem(key) || "[]");
      localStorage.setItem(key, JSON.stringify(value));
    } catch (error) { return []; }
  }
  function count() {
    const found = ticked();
    $("export").disabled = !found.length;
    $("ticked").textContent = found.length ? `${found.length} of ${ticks.length} are ticked off.` : "Nothing is ticked off yet.";
    return found;
  }
  // A spreadsheet would run a text that begins like a formula.
  const cell = (value) => `"${String(value === undefined ? "" : value).replace(/^[=+@\t\r]/, "'$&").replaceAll('"', '""')}"`;
  function csv() {
    const lines = ticked().map((position) => {
      const example = data.trains[position];
      return [position, cell(example.label), cell(example.predicted), example.self].join(",");
    });
    return ["index,given,predicted,self_influence", ...lines, ""].join("\r\n");
  }
  if (ticks.length) {
    const before = new Set(kept());
    for (const box of ticks) {
      box.checked = before.has(box.dataset.tick);
      box.addEventListener("change", () => kept(count()));
    }
    count();
    $("export").addEventListener("click", () => {
      const url = URL.createObjectURL(new Blob([csv()], { type: "text/csv" }));
      make("a", { href: url, download: "checked.csv" }).click();
      setTimeout(() => URL.revokeObjectURL(url), 1000);
    });
  }

  // ---- where one is: the address says it, so that back and forward work

  function go(moved) {
    const [, kind, number] = /^#(test|train|suspicious|computed)-?(\d*)$/.exec(location.hash) || [];
    if (moved && !kind && location.hash) return; // The link that skips to the content.
    const position = Number(number);
    const view = kind === "suspicious" || kind === "computed" ? kind : "tests";
    for (const name of ["tests", "suspicious", "computed"]) if ($(`view-${name}`)) $(`view-${name}`).hidden = name !== view;
    for (const link of document.querySelectorAll(".views a")) {
      if (link.dataset.view === view) link.setAttribute("aria-current", "page");
      else link.removeAttribute("aria-current");
    }
    if (view === "tests") {
      const listed = $("tests").contains(document.activeElement);
      if (kind === "train" && data.trains[position]) showTrain(position);
      else showTest(tests.get((current = kind === "test" && tests.has(position) ? position : data.tests[0].i)));
      mark();
      document.querySelector(".views a").setAttribute("href", `#test-${current === null ? data.tests[0].i : current}`);
      $("shown").textContent = moved && listed ? `${$("detail").querySelector("h2").textContent} is shown beside the list` : "";
      if (moved && !listed) $("detail").querySelector("h2").focus({ preventScroll: true });
      if (moved && (!listed || innerWidth < 736)) $("detail").scrollIntoView({ block: "start" });
    } else if (moved) scrollTo(0, 0);
  }

  for (const image of document.querySelectorAll("img[data-test], img[data-train]")) {
    const example = image.dataset.test ? tests.get(Number(image.dataset.test)) : data.trains[image.dataset.train];
    image.replaceWith(picture(example.images[0]));
  }
  $("theme").addEventListener("click", () => {
    const root = document.documentElement;
    const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
    root.dataset.theme = dark ? "light" : "dark";
  });
  addEventListener("hashchange", () => go(true));
  arrange();
  go(false);
})();
