
// --- 2. train ---
const PERFECT = 10; // epochs without a mistake, after which the page offers to stop
const SECONDS = {running: 0.5, other: 3}; // between requests
let isToBeUsed = false, tenth = 0, problem = null; // of the last request for the progress
const train = resume => doing(async () => {
  await ask("train", {resume}, "");
  tenth = 0;
  notify(!resume && training.has_network ? "Training has started; until it is done, the previous " +
    "network stays in use." : "Training has started.", false, "train-message");
  await poll();
}, "train-message");
$("train").onclick = train(false);
$("resume").onclick = train(true);
const stop = isUse => doing(async () => {
  isToBeUsed = isUse;
  await ask("stop", {}, "");
  notify("Saving, then stopping …", false, "train-message");
}, "train-message");
$("stop").onclick = stop(false);
$("enough").onclick = stop(true);
const useNew = doing(async () => {
  await ask("use", {}, "");
  training = await ask("progress");
  showTraining();
  await showResults();
  notify("The new network is in use: try it.", false, "train-message");
}, "train-message");
$("use").onclick = useNew;

function curve(key, className) {
  const rows = training.history, points = rows.map((row, i) => [row[key], i])
    .filter(([value]) => value != null)
    .map(([value, i]) => `${44 + 366 * i / Math.max(1, rows.length - 1)},${130 - 1.2 * value}`);
  points.push(...points.slice(-1)); // a single one is a dot
  const line = document.createElementNS("http://www.w3.org/2000/svg", "polyline");
  line.setAttribute("class", className);
  line.setAttribute("points", points.join(" "));
  return line;
}
function axis(value) {
  const group = document.createElementNS("http://www.w3.org/2000/svg", "g");
  group.innerHTML = `<line class="grid" x1="44" x2="410" y1="${130 - 1.2 * value}" ` +
    `y2="${130 - 1.2 * value}"/><text x="40" y="${134 - 1.2 * value}" text-anchor="end">` +
    `${value} %</text>`; // numbers of this script only
  return group;
}
function rightOf(score) { // how many validation clips are right: 3 of 3 is not yet 100 %
  const count = training.num_validation;
  return count ? `${Math.round(score * count / 100)} of ${count}` : `${score.toFixed(0)} %`;
}
function starting() { // before the first epoch
  return training.features == null ? "Starting …" :
    `Looking at the clips: ${Math.floor(100 * training.features)} % …`;
}
function showTraining() {
  const rows = training.history, last = rows.at(-1), log = $("log"), all = training.num_epochs;
  const isRunning = training.state === "running";
  const left = last && isRunning && all > 0 ? (all - rows.length) * last.seconds : 0;
  const score = last?.val_top1 == null ? "" :
    `: ${rightOf(last.val_top1)} validation clips are right`;
  $("epoch").textContent = last ? `Epoch ${rows.length}${all > 0 ? ` of ${all}` : ""}${score}` +
    (left > 1 ? `, about ${left > 90 ? (left / 60).toFixed(0) + " min" : left.toFixed(0) + " s"} ` +
    "left" : "") : isRunning ? starting() : "";
  $("epochs").hidden = !isRunning;
  $("epochs").value = all > 0 ? rows.length / all : 0;
  if (isRunning && Math.floor(10 * $("epochs").value) > tenth) { // not each epoch: it takes breath
    tenth = Math.floor(10 * $("epochs").value);
    speak($("epoch").textContent);
  }
  $("perfect").hidden = !isRunning || rows.length < PERFECT ||
    rows.slice(-PERFECT).some(row => row.val_top1 !== 100);
  $("chart").hidden = !rows.length;
  $("messages").hidden = !training.log;
  if (last) showChart(last);
  if (log.textContent !== training.log) { log.textContent = training.log; log.scrollTop = 1e6; }
  $("report").href = `report?key=${KEY}`;
  show();
}
function showChart(last) {
  $("curves").replaceChildren(...[0, 50, 100].map(axis), curve("val_linear_top1", "linear"),
    curve("top1", "training"), curve("val_top1", "validation"));
  const texts = {"last-training": last.top1 == null ? "" : `${last.top1.toFixed(0)} %`,
    "last-validation": last.val_top1 == null ? "" : rightOf(last.val_top1),
    "last-linear": last.val_linear_top1 == null ? "" : rightOf(last.val_linear_top1)};
  for (const [id, text] of Object.entries(texts)) $(id).textContent = text;
  $("curves").setAttribute("aria-label", `accuracy per epoch; after epoch ` +
    `${training.history.length}: training ${texts["last-training"]}, validation ` +
    `${texts["last-validation"]}, a linear model ${texts["last-linear"]}`);
}
const ENDED = {done: "Training is over: try it.", stopped: "Training was stopped; everything is saved."};
async function update() {
  const before = training;
  training = await ask("progress");
  if (problem instanceof NoAnswer) notify("teach.py answers again.");
  problem = null;
  showTraining();
  showZip(before.zip);
  if (training.num_changes !== numChanges) { numChanges = training.num_changes; await showClips(); }
  const isNews = before.state !== training.state;
  if (isNews && training.state === "failed") notify(training.error, true, "train-message");
  if (isNews && before.state === "running" && ENDED[training.state])
    notify(ENDED[training.state] + (training.can_use ? " The previous network is in use." : ""),
      false, "train-message");
  if (isNews && before.state === "none" && training.state === "running")
    notify("A training is running.", false, "train-message");
  if (isToBeUsed && training.state !== "running") {
    isToBeUsed = false;
    if (training.can_use) await useNew();
  }
  if (isNews || training.has_results !== before.has_results) await showResults();
}
let polls = 0;
async function poll() { // for as long as the page is open: another tab may train, or add clips
  const own = ++polls; // an older loop ends
  while (own === polls) {
    await update().catch(error => {
      if (problem?.message !== error.message) notify(error.message, true);
      problem = error; });
    const isRunning = [training, training.zip].some(one => one?.state === "running");
    await pause(1000 * (isRunning ? SECONDS.running : SECONDS.other));
  }
}
