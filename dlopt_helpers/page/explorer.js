// Turns each picture of an explorer into a chart that follows its controls. No eval, no other origin.
(function () {
  "use strict";
  let count = 0;
  const none = []; // one list for ever: a new one would make the chart draw its faint runs again

  function element(name, attributes, ...children) {
    const made = document.createElement(name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    made.append(...children);
    return made;
  }

  // The page holds columns; a chart wants rows. They are made setting by setting, when first shown.
  function shelf({ columns, counts, settings, controls, keys }) {
    const keyed = keys.map((name) => controls.find((control) => control.name === name));
    const read = Object.entries(columns).map(([name, column]) =>
      column.words ? [name, (i) => column.words[column.codes[i]]] : [name, (i) => column[i]]);
    const made = new Map();
    let first = 0;
    settings.forEach((setting, i) => {
      made.set(setting.join(), { setting, first, end: (first += counts[i]), rows: null });
    });
    function rows(entry) {
      if (!entry) return null;
      if (entry.rows) return entry.rows;
      entry.rows = [];
      for (let i = entry.first; i < entry.end; i++) {
        const row = {};
        keyed.forEach((control, k) => { row[control.name] = control.values[entry.setting[k]]; });
        for (const [name, value] of read) row[name] = value(i);
        entry.rows.push(row);
      }
      return entry.rows;
    }
    return {
      find: (at) => rows(made.get(keys.map((name) => at[name]).join())),
      all: () => [...made.values()].flatMap(rows),
    };
  }

  // The operations by their places in recurrence.py.
  const operations = [
    (a, b) => a + b, (a, b) => a - b, (a, b) => a * b, (a, b) => a / b, (a, b) => a ** b, (a) => -a, Math.abs,
  ];

  // A formula as it was written down: its memory holds the inputs, the constants, each operation's result.
  function formula({ inputs, constants, code, ends }) {
    const first = inputs + constants.length;
    const memory = new Float64Array(first + code.length / 3);
    const steps = Int32Array.from(code);
    memory.set(constants, inputs);
    return (values) => {
      memory.set(values);
      for (let i = 0, place = first; i < steps.length; i += 3) {
        memory[place++] = operations[steps[i]](memory[steps[i + 1]], memory[steps[i + 2]]);
      }
      return ends.map((end) => memory[end]);
    };
  }

  // The rows that Recurrence computes in Python, computed here.
  function computer({ recurrence, controls }) {
    const { steps, sliders, choices, series, columns, programs, tables } = recurrence;
    const formulas = recurrence.formulas.map(formula);
    const named = (name) => controls.find((control) => control.name === name);

    function* run(labels, [[start, row, step], inputs], numbers) {
      let state = formulas[start](numbers);
      for (let t = 0; t <= steps; t++) {
        if (t) state = formulas[step]([...numbers, ...state, ...inputs.map((input) => tables[input][t - 1])]);
        const [room, ...cells] = formulas[row]([...numbers, ...state]);
        if (!(room > 0 && cells.every(Number.isFinite))) return;
        yield { ...labels, step: t, ...Object.fromEntries(columns.map((column, i) => [column, cells[i]])) };
      }
    }
    function find(at) {
      const numbers = sliders.map((name) => named(name).values[at[name]]);
      const choice = choices.reduce((place, name) => place * named(name).values.length + at[name], 0);
      return series.flatMap((labels, i) => [...run(labels, programs[choice * series.length + i], numbers)]);
    }
    return { find };
  }

  function makeControl(control, prefix, changed) {
    const id = `${prefix}-${control.name}`;
    const output = element("output", { for: id });
    let input;
    if (control.kind === "slider") {
      input = element("input", { id, type: "range", min: 0, max: control.values.length - 1, step: 1 });
    } else {
      input = element("select", { id }, ...control.labels.map((label, i) => element("option", { value: i }, label)));
    }
    input.value = control.start;
    function tell() {
      if (control.kind !== "slider") return;
      output.value = control.labels[input.value];
      input.setAttribute("aria-valuetext", control.labels[input.value]);
      input.style.setProperty("--fill", `${(100 * input.value) / Math.max(1, input.max)}%`);
    }
    input.addEventListener("input", () => { tell(); changed(control.name, Number(input.value)); });
    tell();
    return element("div", { class: "dlopt-control" }, element("label", { for: id }, control.label), output, input);
  }

  async function start(figure) {
    const data = JSON.parse(figure.querySelector('script[type="application/json"]').textContent);
    const prefix = `dlopt-${++count}`;
    const title = figure.getAttribute("aria-label");
    const source = data.recurrence ? computer(data) : shelf(data);
    const at = Object.fromEntries(data.controls.map((control) => [control.name, control.start]));
    const status = element("p", { class: "dlopt-status", role: "status", "aria-live": "polite" });
    const panels = element("div", { class: "dlopt-panels" });

    let rows; // those of the setting shown
    function signals() {
      rows = source.find(at);
      const values = Object.fromEntries(data.controls.map((control) => [control.name, control.values[at[control.name]]]));
      return { ...values, _rows: rows || [], _more: none };
    }

    const charts = data.panels.map((spec, i) => {
      const box = element("div", {
        class: "dlopt-panel", role: "img", "aria-label": data.panels.length > 1 ? `${title}, chart ${i + 1}` : title,
      });
      // The box speaks for the whole chart; thousands of marks inside it would only be noise.
      const inner = element("div", { "aria-hidden": "true" });
      box.append(inner);
      panels.append(box);
      return { box, inner, spec, wanted: new Set(spec.params.map((parameter) => parameter.name)), view: null };
    });

    async function embed({ inner, spec, wanted }) {
      const values = signals();
      spec.params = spec.params.map((p) => (p.name in values ? { ...p, value: values[p.name] } : p));
      spec.datasets = { ...spec.datasets, _one: [{}] };
      if (wanted.has("_more")) spec.datasets._runs = [{ rows: source.all() }];
      spec.width = "container";
      spec.autosize = { type: "fit-x", contains: "padding" };
      const options = { ast: true, actions: false, renderer: "svg", defaultStyle: false, mode: "vega-lite" };
      return (await window.dloptEmbed(inner, spec, options)).view;
    }

    let running = false;
    let again = false;
    async function draw() {
      again = true;
      if (running) return;
      running = true;
      while (again) {
        again = false;
        const values = signals();
        await Promise.all(charts.map(({ view, wanted }) => {
          for (const [name, value] of Object.entries(values)) if (wanted.has(name)) view.signal(name, value);
          return view.runAsync();
        }));
        status.textContent = rows ? "" : "This setting is not among the stored runs.";
        figure.dataset.shown = Object.values(at).join();
      }
      running = false;
    }

    const picture = figure.querySelector(".dlopt-picture");
    const controls = element("div", { class: "dlopt-controls", role: "group", "aria-label": `${title}: controls` });
    picture.before(controls, panels, status);
    for (const chart of charts) chart.view = await embed(chart);
    controls.append(...data.controls.map((control) =>
      makeControl(control, prefix, (name, position) => { at[name] = position; draw(); })));
    picture.remove();
    // A panel changes its width when the window does, when panels wrap, and when a closed box around it opens.
    const watch = new ResizeObserver((entries) => {
      for (const { target, contentRect } of entries) {
        const { view } = charts.find(({ box }) => box === target);
        const width = Math.floor(contentRect.width);
        if (width > 0 && width !== view.signal("width")) view.signal("width", width).runAsync();
      }
    });
    for (const { box } of charts) watch.observe(box);
    figure.dataset.shown = Object.values(at).join();
    figure.dataset.ready = "true";
  }

  function startAll() {
    for (const figure of document.querySelectorAll("figure.dlopt-explorer:not([data-ready])")) {
      figure.dataset.ready = "false";
      start(figure);
    }
  }
  if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", startAll);
  else startAll();
})();
