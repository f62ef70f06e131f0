// Another study's results.json beside this one's.
const mine = read("data-results"), FORMAT = mine.format;
const number = (value, sign) => value === null || value === undefined ? "" : (sign && value > 0 ? "+" : "") + value.toFixed(1);
const interval = (row, name, sign) => row ? number(row[name], sign) + (row.low === null ? "" : ` (${number(row.low, sign)} to ${number(row.high, sign)})`) : "";
function table(what, heads, lines) {
  const wide = make("div", "", "wide"), made = make("table"), head = made.createTHead().insertRow(), body = made.createTBody();
  wide.tabIndex = 0;
  wide.setAttribute("role", "region");
  wide.setAttribute("aria-label", what);
  for (const text of heads) { const cell = make("th", text); cell.scope = "col"; head.append(cell); }
  for (const line of lines) {
    const row = body.insertRow(), name = make("th", line[0]);
    name.scope = "row";
    row.append(name, ...line.slice(1).map(text => make("td", text)));
  }
  wide.append(made);
  return [make("h3", what), wide];
}
function pairs(one, two, key) {
  const keys = [...new Set([...one, ...two].map(key))];
  return keys.map(name => [name, one.find(row => key(row) === name), two.find(row => key(row) === name)]);
}
function compare(other) {
  const facts = [["question", r => r.question], ["answer", r => r.answer], ["in statistical words", r => r.verdict], ["schedules", r => r.schedules.join(", ")],
    ["questions", r => `${r.questions} about ${r.images} images, ${r.dataset}`], ["folds x seeds", r => `${r.folds} x ${r.seeds.length}`],
    ["vision encoder", r => r.models.vision_encoder], ["language model", r => r.models.language_model],
    ["stages", r => r.stages.map(s => `${s.name}: ${s.data}, ${s.train.join(" and ")}, ${s.epochs} epochs${s.fraction < 1 ? ` of ${100 * s.fraction} %` : ""}${s.max_samples ? ` of at most ${s.max_samples} samples` : ""}${s.best ? ", the best one" : ""}`).join("; ")], ["code", r => r.code.join(", ")]];
  const heads = name => [name, "this study", "the other"];
  const shown = [
    ...table("The two studies", heads(""), facts.map(([name, of]) => [name, of(mine), of(other)])),
    ...table("Exact match in per cent", heads("arm"), pairs(mine.arms, other.arms, row => row.arm).map(([name, one, two]) => [name, interval(one, "accuracy"), interval(two, "accuracy")])),
    ...table("Differences in points", heads("comparison"), pairs(mine.comparisons, other.comparisons, row => `${row.first} minus ${row.second}`).map(([name, one, two]) => [name, interval(one, "effect", true), interval(two, "effect", true)])),
    ...table("Points lost with other images", heads("arm, image"), pairs(mine.lost, other.lost, row => `${row.arm}, ${row.view}`).map(([name, one, two]) => [name, interval(one, "effect", true), interval(two, "effect", true)])),
  ];
  const note = make("p", "Intervals are each study's own. Whether the studies differ from each other is not tested.", "soft");
  field("comparison").replaceChildren(note, ...shown);
}
field("other").addEventListener("change", async event => {
  const [file] = event.target.files;
  if (!file) return;
  try {
    const other = JSON.parse(await file.text());
    if (other.format !== FORMAT) throw new Error(`its format is not ${FORMAT}`);
    compare(other);
  } catch (error) {
    field("comparison").replaceChildren(make("p", `${file.name} is not the results.json of a study: ${error.message}`));
  }
});
