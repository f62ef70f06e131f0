// Every held-out question: filters, keys, and a link to each.
const data = read("data-questions"), thumbnails = read("data-thumbnails"), PAGE = 24;
const schedules = data.arms.length - 2;
const rows = data.rows.map(line => {
  const [question, gold, image, modality, content, fold] = line.slice(1, 7).map(place => data.texts[place]);
  const said = data.arms.map((arm, number) => ({arm, answer: data.texts[line[7 + 3 * number]], right: line[8 + 3 * number], sure: line[9 + 3 * number]}));
  return {id: line[0], question, gold, image, modality, content, fold, said, hits: said.map(one => one.right)};
});
const FILTERS = [["modality", "modality"], ["kind", "content"], ["fold", "fold"]];
for (const [id, name] of FILTERS)
  for (const value of [...new Set(rows.map(row => row[name]))].sort()) field(id).add(new Option(value || "(none)", "=" + value));
const shows = {
  all: () => true,
  disagree: hits => new Set(hits.slice(0, schedules)).size > 1,
  right: hits => hits.slice(0, schedules).every(Boolean),
  wrong: hits => !hits.slice(0, schedules).some(Boolean),
  lookup: hits => !hits.slice(0, schedules).some(Boolean) && hits[hits.length - 1],
};
let found = rows, start = 0, chosen = -1;

function item(row) {
  const line = make("li", "", "item");
  line.tabIndex = -1;
  if (thumbnails[row.image]) {
    const image = new Image(96);
    image.src = thumbnails[row.image];
    image.alt = "image " + row.image;
    line.append(image);
  } else line.append(make("span", row.image, "no-image"));
  const words = make("div"), about = make("p", "gold answer ", "soft"), list = make("ul", "", "said"), asked = make("p", row.question + " ", "asked");
  const link = make("a", "#" + row.id);
  link.href = "#q=" + encodeURIComponent(row.id);
  link.setAttribute("aria-label", "Link to question " + row.id);
  asked.append(link);
  about.append(make("b", row.gold, "gold"), ` · ${row.modality} · ${row.content || "(none)"} · ${row.fold}`);
  for (const one of row.said) {
    const entry = make("li"), sign = make("span", one.right ? "✓" : "✗", one.right ? "right" : "wrong");
    sign.setAttribute("role", "img");
    sign.setAttribute("aria-label", sign.className);
    entry.append(sign, " ", make("span", one.arm, "arm"), " " + one.answer);
    if (one.sure >= 0) entry.append(" ", make("span", one.sure + " %", "soft"));
    list.append(entry);
  }
  words.append(asked, about, list);
  line.append(words);
  return line;
}
function draw() {
  start = Math.max(0, Math.min(start, Math.floor((found.length - 1) / PAGE) * PAGE));
  field("questions").replaceChildren(...found.slice(start, start + PAGE).map(item));
  field("place").textContent = found.length ? `${start + 1} to ${Math.min(start + PAGE, found.length)} of ${found.length}` : "none";
  field("before").disabled = start === 0;
  field("next").disabled = start + PAGE >= found.length;
}
function list() {
  const wanted = field("search").value.toLowerCase(), show = shows[field("filter").value];
  const values = FILTERS.map(([id, name]) => [name, field(id).value]);
  found = rows.filter(row => show(row.hits) && values.every(([name, value]) => !value || "=" + row[name] === value)
    && (!wanted || [row.id, row.question, row.gold, ...row.said.map(one => one.answer)].join(" ").toLowerCase().includes(wanted)));
  [start, chosen] = [0, -1];
  draw();
}
function choose(number) {
  if (!found.length) return;
  chosen = Math.max(0, Math.min(number, found.length - 1));
  const page = Math.floor(chosen / PAGE) * PAGE;
  if (page !== start) { start = page; draw(); }
  const items = field("questions").children;
  for (const one of items) one.classList.remove("chosen");
  const one = items[chosen - start];
  one.classList.add("chosen");
  one.focus({preventScroll: true});
  one.scrollIntoView({block: "center"});
}
function follow() {
  if (!location.hash.startsWith("#q=")) return;
  const id = decodeURIComponent(location.hash.slice(3));
  if (!found.some(row => row.id === id)) {
    for (const name of ["modality", "kind", "fold", "search"]) field(name).value = "";
    field("filter").value = "all";
    list();
  }
  const number = found.findIndex(row => row.id === id);
  if (number >= 0) choose(number);
}
for (const id of ["filter", "modality", "kind", "fold", "search"]) field(id).addEventListener("input", list);
document.querySelector(".controls").addEventListener("submit", event => event.preventDefault());
field("before").addEventListener("click", () => { start -= PAGE; chosen = -1; draw(); });
field("next").addEventListener("click", () => { start += PAGE; chosen = -1; draw(); });
document.addEventListener("keydown", event => {
  if (event.ctrlKey || event.metaKey || event.altKey || /^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName)) return;
  if (event.key === "j") choose(chosen < 0 ? start : chosen + 1);
  else if (event.key === "k") choose(chosen < 0 ? start : chosen - 1);
});
window.addEventListener("hashchange", follow);
list();
follow();
