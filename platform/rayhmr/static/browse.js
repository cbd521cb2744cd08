"use strict";
const $ = id => document.getElementById(id);
const cards = [...document.querySelectorAll("#cards > li")];
const filters = $("filters"), dialog = $("large");
let tag = null;

function value(name) { return filters.elements[name]?.value ?? ""; }

function matches(item) {
  const data = item.dataset, least = Number(value("error")), words = value("words").toLowerCase();
  return (!value("source") || data.source === value("source"))
    && (!value("split") || data.split === value("split"))
    && (!least || Number(data.error) >= least)
    && (!words || (data.id + " " + data.subject).toLowerCase().includes(words))
    && (!tag || data.tags.split(" ").includes(tag.name));
}

function show() {
  const layer = value("layer"), sort = value("sort");
  const key = item => item.dataset[sort] === "" ? -Infinity : Number(item.dataset[sort]);
  const ordered = sort ? [...cards].sort((a, b) => key(b) - key(a)) : cards;
  let count = 0;
  for (const item of cards) {
    item.hidden = !matches(item);
    count += !item.hidden;
    const images = [...item.querySelectorAll("img")];
    const chosen = images.find(i => i.className.split(" ")[0] === layer) ?? images[0];
    for (const image of images) image.classList.toggle("shown", image === chosen);
  }
  $("cards").append(...ordered);
  const least = filters.elements.error;
  if (least) $("least").textContent = `at least ${least.value} mm`;
  $("count").textContent = `${count} of ${cards.length} pictures` + (tag ? `: ${tag.label}` : "");
  const clean = !tag && !["source", "split", "words"].some(value) && !Number(value("error"));
  $("clear").hidden = clean;
}

filters.addEventListener("input", show);
filters.addEventListener("submit", event => event.preventDefault());
$("clear").addEventListener("click", () => {
  const { layer, sort } = filters.elements, kept = [layer.value, sort.value];
  filters.reset();
  [layer.value, sort.value] = kept;
  tag = null;
  show();
});

// A finding leads to its pictures.
document.addEventListener("click", event => {
  const link = event.target.closest("[data-tag]");
  if (link) {
    event.preventDefault();
    filters.elements.source.value = filters.elements.split.value = "";
    if (filters.elements.error) filters.elements.error.value = 0;
    filters.elements.words.value = "";
    tag = { name: link.dataset.tag, label: link.dataset.label };
    show();
    $("sheet").scrollIntoView();
    $("count").focus({ preventScroll: true });
  }
  const card = event.target.closest(".card");
  if (card) enlarge(card.parentElement);
});

// In a chart the arrow keys go from bar to bar, so that it costs one tab stop.
for (const chart of document.querySelectorAll("svg")) {
  const bars = [...chart.querySelectorAll("a.bin")];
  bars.forEach((bar, place) => bar.setAttribute("tabindex", place ? -1 : 0));
  chart.addEventListener("keydown", event => {
    const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    const next = step && bars[bars.indexOf(document.activeElement) + step];
    if (next) { event.preventDefault(); next.focus(); }
  });
}

let large = null;
function enlarge(item) {
  large = item;
  const pictures = [...item.querySelectorAll("img")].map(image => {
    const figure = document.createElement("figure"), copy = document.createElement("img");
    const caption = document.createElement("figcaption");
    copy.src = image.src;
    copy.alt = caption.textContent = image.alt;
    figure.append(copy, caption);
    return figure;
  });
  $("big").replaceChildren(...pictures);
  $("name").textContent = item.dataset.id;
  $("facts").replaceChildren(...item.querySelector("template").content.cloneNode(true).childNodes);
  if (!dialog.open) dialog.showModal();
}
function neighbour(step) {
  const seen = [...$("cards").children].filter(item => !item.hidden);
  const next = seen[seen.indexOf(large) + step];
  if (next) enlarge(next);
}
$("before").addEventListener("click", () => neighbour(-1));
$("after").addEventListener("click", () => neighbour(1));
$("close").addEventListener("click", () => dialog.close());
dialog.addEventListener("close", () => large?.querySelector(".card").focus());
dialog.addEventListener("keydown", event => {
  const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
  if (step) { event.preventDefault(); neighbour(step); }
});

const reason = $("reason");
reason?.addEventListener("input", () => {
  let count = 0;
  for (const row of document.querySelectorAll("#rejections tbody tr")) {
    row.hidden = Boolean(reason.value) && row.dataset.reason !== reason.value;
    count += !row.hidden;
  }
  $("rejected-count").textContent = `${count} rows`;
});
show();
