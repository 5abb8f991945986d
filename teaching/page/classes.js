
// --- classes and their clips ---
const groups = new Map(); // name -> {ids, isOff}
const cards = new Map(), clipElements = new Map(); // name, id -> element
const added = new Set(); // names of classes that have no clip yet
const removals = []; // what can be undone: {ids, what}
let numChanges = null; // of the data set, when it was last shown

const tidy = name => name.normalize("NFC").trim().replace(/\s+/g, " "); // as the server does
const folded = name => tidy(name).toLowerCase();
// Names that differ only in case are one class: return its spelling.
const spelling = name => [...groups.keys()].find(each => folded(each) === folded(name)) ??
  tidy(name);
function properName() { // tidies the field, too
  const name = spelling($("name").value);
  if (!name) throw new Error("Name the gesture first.");
  $("name").value = name;
  return name;
}
$("naming").onsubmit = doing(async event => { // Enter
  event.preventDefault();
  const name = properName(), isNew = !groups.has(name);
  if (isNew) { added.add(name); await showClips(); }
  notify(isNew ? `“${name}” is added: hold the space bar to record it.` :
    `“${name}” is chosen: hold the space bar to record it.`);
  $("record").focus();
});

function stripElement(id, isReversed = false) {
  const image = element("img", {alt: `clip ${id} cannot be read`, loading: "lazy",
    src: `strip?${new URLSearchParams({id, key: KEY})}`});
  const strip = element("div", {className: isReversed ? "strip reversed" : "strip"}, image);
  image.onload = () => { image.alt = ""; strip.style.width = `${image.naturalWidth / 12}px`; };
  return strip;
}
function clipElement(id) {
  const title = `remove clip ${id}`, remove = element("button", {textContent: "×", type: "button",
    className: "remove", title, ariaLabel: title});
  remove.onmousedown = event => event.preventDefault(); // it does not take the focus
  remove.onclick = doing(async () => {
    const hadFocus = document.activeElement === remove; // by the Tab key
    const name = [...groups].find(([, {ids}]) => ids.includes(id))?.[0];
    await removeClips([id], `Clip ${id} of “${name}”`);
    if (hadFocus) (cards.get(name)?.heading ?? $("record")).focus();
  });
  return element("div", {className: "clip"}, stripElement(id), remove);
}
async function removeClips(ids, what) {
  const {kept, is_full} = await ask("remove", {}, JSON.stringify(ids));
  if (is_full) removals.length = 0; // they were deleted
  if (kept.length) removals.push({ids: kept, what});
  await showClips();
  notify(`${what} ${what.startsWith("Clip ") ? "is" : "are"} removed.`);
}
const undo = doing(async () => {
  const removal = removals.pop(), {ids, what} = removal;
  try { await ask("restore", {}, JSON.stringify(ids)); } catch (error) {
    if (!(error instanceof Gone)) removals.push(removal); // it can be tried again
    throw error;
  } finally { await showClips(); }
  notify(`${what} ${what.startsWith("Clip ") ? "is" : "are"} back.`);
  if (!removals.length) $("record").focus(); // the button is hidden
});
$("undo").onclick = undo;

function makeCard(name) {
  const heading = element("h3", {tabIndex: -1}), clips = element("div", {className: "clips"});
  const button = (text, label, action) => {
    const made = element("button", {type: "button", className: "small", textContent: text,
      ariaLabel: `${label} ${name}`});
    made.onclick = doing(action);
    return made;
  };
  const toggle = button("switch off", "switch off", async () => {
    const {isOff} = groups.get(name);
    await ask("enable", {name, on: isOff}, "");
    await showClips();
    notify(`“${name}” is ${isOff ? "on" : "off: the next training leaves it out"}.`);
  });
  toggle.onmousedown = event => event.preventDefault(); // the space bar records, as before
  const row = element("div", {className: "row"}, heading,
    button("more", "record more of", () => { $("name").value = name; $("record").focus(); }),
    button("rename", "rename", () => rename(name)), toggle,
    button("delete", "delete", () => removeClass(name)));
  const card = element("div", {}, row, clips);
  return Object.assign(card, {heading, clips, toggle});
}
async function removeClass(name) {
  const {ids} = groups.get(name);
  added.delete(name);
  if (ids.length) await removeClips(ids, `All clips of “${name}”`);
  else { await showClips(); notify(`“${name}” is removed.`); }
  $("record").focus();
}
function rename(name) {
  const {heading} = cards.get(name), field = element("input", {value: name, maxLength: 60, size: 14,
    ariaLabel: `new name of ${name}, then Enter`});
  let isOver = false;
  const end = () => { isOver = true; heading.textContent = ""; return showClips(); };
  heading.replaceChildren(field);
  field.select();
  field.focus();
  field.onblur = () => isOver || end();
  field.onkeydown = doing(async event => {
    if (event.isComposing) return; // the key belongs to the input of a character
    if (event.key === "Escape") { await end(); heading.focus(); }
    if (event.key !== "Enter") return;
    const changed = tidy(field.value);
    if (!changed) throw new Error("Name the gesture first.");
    const other = spelling(changed);
    if (other !== name && groups.has(other))
      throw new Error(`There is already a gesture “${other}”; choose another name.`);
    isOver = true;
    if (!groups.get(name).ids.length) { added.delete(name); added.add(changed); }
    else await ask("rename", {name, new: changed}, "").catch(error => { isOver = false; throw error; });
    if (folded($("name").value) === folded(name)) $("name").value = changed;
    await end();
    cards.get(changed)?.heading.focus();
    notify(`“${name}” is now “${changed}”.`);
  });
}

function fillCard(name, {ids, isOff}) {
  if (!cards.has(name)) cards.set(name, makeCard(name));
  const card = cards.get(name), text = `${name}: ${ids.length}${isOff ? " (off)" : ""}`;
  if (!card.heading.querySelector("input")) card.heading.textContent = text;
  card.classList.toggle("off", isOff);
  card.toggle.textContent = isOff ? "switch on" : "switch off";
  card.toggle.setAttribute("aria-label", `${card.toggle.textContent} ${name}`);
  card.toggle.hidden = !ids.length;
  for (const id of ids) if (!clipElements.has(id)) clipElements.set(id, clipElement(id));
  keepChildren(card.clips, ids.map(id => clipElements.get(id)));
  return card;
}
function keepChildren(parent, wanted) { // what stays keeps the focus
  for (const child of [...parent.children]) if (!wanted.includes(child)) child.remove();
  wanted.forEach((child, i) => {
    if (parent.children[i] !== child) parent.insertBefore(child, parent.children[i] ?? null); });
}
let numLists = 0, shownList = 0; // of clips: asked for, and shown last
async function showClips() {
  const own = ++numLists, clips = await ask("clips");
  if (own < shownList) return; // a later one has overtaken it
  shownList = own;
  groups.clear();
  for (const {id, name, is_off} of clips) {
    if (!groups.has(name)) groups.set(name, {ids: [], isOff: is_off});
    groups.get(name).ids.push(id);
  }
  for (const name of [...added]) {
    if (groups.has(spelling(name))) added.delete(name);
    else groups.set(name, {ids: [], isOff: false});
  }
  for (const name of cards.keys()) if (!groups.has(name)) cards.delete(name);
  keepChildren($("classes"), [...groups].map(([name, group]) => fillCard(name, group)));
  const on = [...groups].filter(([, {ids, isOff}]) => ids.length && !isOff);
  const few = on.filter(([, {ids}]) => ids.length < 5).map(([name]) => `“${name}”`);
  $("needs").textContent = on.length < 2 ? "Training needs two gestures with five clips each." :
    few.length ? `Record five clips of ${summary(few)}; ten are better.` : "";
  $("hint").hidden = on.length < 2 || groups.has(spelling("nothing"));
  const chosen = $("keep-as").value;
  $("keep-as").replaceChildren(...[...groups.keys()].map(value =>
    element("option", {value, textContent: value})));
  if (groups.has(chosen)) $("keep-as").value = chosen;
  $("undo").hidden = !removals.length;
  if (removals.length) $("undo").textContent = `Undo: bring back ${removals.at(-1).what.replace(
    /^[AC]/, letter => letter.toLowerCase())}`;
  show();
}
