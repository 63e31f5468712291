"use strict";
for (const select of document.querySelectorAll("select.pair")) {
  select.addEventListener("change", () => {
    for (const figure of select.closest(".pairs").querySelectorAll("figure")) figure.hidden = figure.dataset.key !== select.value;
  });
}
for (const box of document.querySelectorAll(".samples")) {
  const find = (selector) => box.querySelector(selector);
  const body = find("tbody"), rows = [...body.rows], heads = [...box.querySelectorAll("th")];
  const sort = find(".sort"), direction = find(".direction"), all = find(".all");
  let down = true;
  const picked = (row) => row.querySelector("input").checked;
  const shown = () => [...body.rows].filter((row) => !row.hidden);
  const value = (row, i) => row.cells[i].dataset.v;

  function order() {
    const i = Number(sort.value), dealt = sort.value === "";
    const numbers = !dealt && rows.every((row) => value(row, i) === "" || !Number.isNaN(Number(value(row, i))));
    const sorted = dealt ? [...rows] : rows.map((row, n) => [row, value(row, i), n]).sort((a, b) => {
      if ((a[1] === "") !== (b[1] === "")) return a[1] === "" ? 1 : -1;  // what is absent comes last either way
      const by = numbers ? Number(a[1]) - Number(b[1]) : a[1].localeCompare(b[1], undefined, { numeric: true });
      return (down ? -by : by) || a[2] - b[2];
    }).map((entry) => entry[0]);
    if (dealt && !down) sorted.reverse();
    body.append(...sorted);
    direction.textContent = down ? "↓" : "↑";
    heads.forEach((head, n) => {
      if (!dealt && n === i) head.setAttribute("aria-sort", down ? "descending" : "ascending");
      else head.removeAttribute("aria-sort");
    });
  }
  function count() {
    const left = shown(), marked = left.filter(picked);
    find(".count").textContent = `${left.length} shown, ${marked.length || "none"} selected`;
    all.checked = marked.length > 0 && marked.length === left.length;
  }
  function filter() {
    const label = find(".by-label").value, lead = find(".by-lead").value;
    for (const row of rows) row.hidden = (label !== "" && row.dataset.label !== label) || (lead !== "" && row.dataset.lead !== lead);
    count();
  }
  heads.forEach((head, i) => {
    if (!("sort" in head.dataset)) return;
    const name = head.textContent, button = document.createElement("button");
    button.type = "button";
    button.textContent = name;
    head.replaceChildren(button);
    sort.append(new Option(name, i));
    button.addEventListener("click", () => {
      down = sort.value === String(i) ? !down : true;
      sort.value = i;
      order();
    });
  });
  sort.addEventListener("change", order);
  direction.addEventListener("click", () => { down = !down; order(); });
  for (const select of box.querySelectorAll(".by-label, .by-lead")) select.addEventListener("change", filter);
  all.addEventListener("change", () => { for (const row of shown()) row.querySelector("input").checked = all.checked; count(); });
  body.addEventListener("change", count);
  const quoted = (text) => /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
  for (const button of box.querySelectorAll(".export")) {
    button.addEventListener("click", () => {
      const marked = shown().filter(picked), chosen = marked.length ? marked : shown();
      const names = heads.map((head) => head.textContent).filter((name) => name.startsWith("contribution "));
      const lines = button.dataset.kind === "txt" ? chosen.map((row) => row.dataset.source) : [
        ["sample_id", "source_id", "label", ...names.map((name) => name.replace(" ", "_"))].map(quoted).join(","),
        ...chosen.map((row) => [row.dataset.id, row.dataset.source, row.dataset.label,
          ...JSON.parse(row.dataset.contributions).map((v) => v ?? "")].map((v) => quoted(String(v))).join(",")),
      ];
      const link = document.createElement("a");
      link.href = URL.createObjectURL(new Blob([lines.join("\n") + "\n"], { type: "text/plain" }));
      link.download = `one-sided-samples.${button.dataset.kind}`;
      link.click();
      setTimeout(() => URL.revokeObjectURL(link.href), 10000);
    });
  }
  count();
}
