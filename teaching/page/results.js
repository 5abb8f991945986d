
// --- which validation clip is taken for what, and how it looks forwards and backwards ---
async function showResults() {
  $("results").hidden = !training.has_results;
  if (!training.has_results) return $("cell").replaceChildren();
  const {classes, clips} = await ask("results");
  const head = name => element("th", {scope: "col", textContent: name});
  const rows = classes.map(label => element("tr", {}, element("th", {scope: "row",
    textContent: label}), ...classes.map(predicted => cellElement(label, predicted,
    clips.filter(clip => clip.label === label && clip.predicted === predicted)))));
  $("cell").replaceChildren();
  $("matrix").replaceChildren(element("thead", {}, element("tr", {}, element("td"),
    ...classes.map(head))), element("tbody", {}, ...rows));
}
const takenFor = (label, predicted) => label === predicted ? `“${label}”, recognized` :
  `“${label}”, taken for “${predicted}”`;
function cellElement(label, predicted, clips) {
  if (!clips.length) return element("td", {textContent: "·"});
  const button = element("button", {type: "button", textContent: clips.length,
    className: label === predicted ? "right" : "wrong",
    ariaLabel: `${plural(clips.length, "clip")} of ${takenFor(label, predicted)}`});
  button.onclick = () => showCell(label, predicted, clips);
  return element("td", {}, button);
}
function showCell(label, predicted, clips) {
  const isThere = id => [...groups.values()].some(({ids}) => ids.includes(id));
  $("cell").replaceChildren(
    element("p", {textContent: `${takenFor(label, predicted)}: ${plural(clips.length, "clip")}, ` +
      "each forwards ▶ and backwards ◀"}),
    element("div", {className: "clips"}, ...clips.map(({id}) => isThere(id) ?
      element("div", {className: "row"}, "▶", stripElement(id), "◀", stripElement(id, true)) :
      element("p", {textContent: `clip ${id} was removed`}))));
}
