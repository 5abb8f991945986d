
// --- 3. try ---
const SILENCE = 2000; // ms without a picture, after which nothing is said any more
function stopTrying() {
  session = null;
  take(null);
  $("verdict").textContent = "";
  $("scores").replaceChildren();
  show();
}
function showScores(classes, scores) {
  const box = $("scores");
  if (box.children.length !== classes.length || box.dataset.classes !== JSON.stringify(classes)) {
    box.dataset.classes = JSON.stringify(classes);
    box.replaceChildren(...classes.map(name => element("div", {className: "score"},
      element("span", {textContent: name}), element("div", {className: "track", role: "meter",
        ariaLabel: name, ariaValueMin: 0, ariaValueMax: 100}, element("div", {className: "bar"})),
      element("span"))));
  }
  scores.forEach((score, i) => {
    const [, track, text] = box.children[i].children;
    track.setAttribute("aria-valuenow", (100 * score).toFixed(0));
    track.firstChild.style.width = `${100 * score}%`;
    text.textContent = percent(score);
  });
}
const top1 = (classes, scores) => {
  const best = scores.indexOf(Math.max(...scores));
  return `“${classes[best]}” (${percent(scores[best])})`; };
function say(own) { // the verdict, if a class reaches the threshold of the slider
  const best = own.scores.indexOf(Math.max(...own.scores));
  const text = own.scores[best] >= $("sure").value ? own.classes[best] : "…";
  if ($("verdict").textContent === text) return;
  $("verdict").textContent = text; // read out, since it is a status
  if (text !== "…") speak(`${percent(own.scores[best])}`);
}
const showSure = () => { $("sure-text").textContent = percent($("sure").value); };
$("sure").oninput = () => { showSure(); if (session?.scores) say(session); };

$("try").onclick = doing(async () => {
  if (session) return stopTrying();
  const own = session = {...await ask("begin", {}, ""), kept: [], waiting: [], isAsking: false,
    seen: performance.now()};
  if (!$("sure").dataset.isSet) { $("sure").value = own.sure; $("sure").dataset.isSet = 1; showSure(); }
  $("reverse").textContent = ""; $("verdict").textContent = "Watching …";
  notify("", false, "try-message");
  show(); startTaking(own);
}, "try-message");
function startTaking(own) {
  own.waiting = latest;
  take(async (time, promise) => {
    if (document.hidden) return;
    own.seen = performance.now();
    if (own.isSilent) { own.isSilent = false; $("verdict").textContent = "Watching …"; notify(""); }
    own.waiting.push([time, promise]); // in order, however long each takes
    if (own.isAsking) return; // the next request has them all
    own.isAsking = true;
    try {
      while (own.waiting.length && session === own) await look(own);
    } catch (error) { if (session === own) { stopTrying(); notify(error.message, true, "try-message"); } }
    own.isAsking = false;
  });
}
async function look(own) {
  const frames = await Promise.all(lastSeconds(own.waiting.splice(0))
    .map(async ([time, promise]) => [time, await promise]));
  own.kept = [...own.kept, ...frames].filter(([time]) => frames.at(-1)[0] - time < LIVE);
  const times = frames.map(([time]) => time.toFixed(1)).join(",");
  const {classes, scores} = await ask("look", {turn: own.turn, times}, packed(frames));
  if (session !== own || own.isReversing || own.isSilent || !scores) return;
  Object.assign(own, {classes, scores}); // of the newest network: a training may be going on
  showScores(classes, scores);
  say(own);
  show();
}
// A camera that pauses, and a tab in the background, send no pictures: what was said is over.
function watchSilence() {
  const own = session;
  if (!own || own.isReversing || own.isSilent) return;
  if (!document.hidden && performance.now() - own.seen < SILENCE) return;
  own.isSilent = true;
  own.scores = null;
  own.kept = [];
  $("verdict").textContent = "paused";
  $("scores").replaceChildren();
  notify(document.hidden ? "Paused: this tab is in the background." :
    "Paused: the camera sends no pictures.", true);
  show();
}
setInterval(watchSilence, 500);
document.onvisibilitychange = () => {
  document.title = `${document.hidden && (session || recording) ? "(paused) " : ""}` +
    "Teach your own gestures";
  if (document.hidden) recording?.abort(new Error("Not saved: this tab was in the background."));
  watchSilence();
};

async function play(frames, isBackwards) { // on the camera's place
  const replay = $("replay"), shown = isBackwards ? [...frames].reverse() : frames;
  try {
    for (const [i, [time, blob]] of shown.entries()) {
      const image = await createImageBitmap(blob);
      replay.width = image.width; replay.height = image.height; replay.hidden = false;
      replay.getContext("2d").drawImage(image, 0, 0);
      await pause(i + 1 < shown.length ? Math.abs(shown[i + 1][0] - time) : 500);
    }
  } finally { replay.hidden = true; }
}
$("backwards").onclick = doing(async () => {
  const own = session;
  own.isReversing = true;
  take(null);
  show();
  try {
    while (own.isAsking) await pause(10); // what is kept here is what the server has
    const kept = own.kept, {classes, forwards, backwards} = await ask("backwards", {turn: own.turn}, "");
    $("verdict").textContent = "◀ backwards";
    showScores(classes, backwards);
    await play(kept, true);
    $("reverse").textContent = `The last three seconds: ${top1(classes, forwards)}. The same ` +
      `pictures backwards: ${top1(classes, backwards)}.`;
  } finally {
    own.isReversing = false;
    own.seen = performance.now();
    if (session === own) startTaking(own);
    show();
  }
}, "try-message");

function atRate(kept) { // the frames shown 12 times per second, up to the last: a clip's
  const end = kept.at(-1)[0], count = 1 + Math.floor((end - kept[0][0] + 8) / PERIOD);
  return Array.from({length: Math.min(RECORDING.frames, count)}, (_, i) =>
    end - i * PERIOD).reverse().map(time => kept.findLast(([shown]) => shown <= time + 8) ?? kept[0]);
}
$("keep").onclick = doing(async () => {
  const name = $("keep-as").value, frames = atRate(session.kept);
  const {id} = await ask("add", {name}, packed(frames));
  await showClips();
  notify(`Clip ${id} of “${name}” is saved; the next training learns from it.`, false, "try-message");
}, "try-message");

async function tryFilm(files) {
  if (session) stopTrying();
  notify(`Reading ${files[0].name} …`, false, "try-message");
  const frames = await framesOf(files);
  const {classes, forwards, backwards} = await ask("score", {}, packed(frames));
  notify("", false, "try-message");
  $("verdict").textContent = top1(classes, forwards);
  showScores(classes, forwards);
  await play(frames, false);
  $("verdict").textContent = `◀ ${top1(classes, backwards)}`;
  showScores(classes, backwards);
  await play(frames, true);
  $("verdict").textContent = "";
  showScores(classes, forwards);
  $("reverse").textContent = `${files[0].name}: ${top1(classes, forwards)}. The same pictures ` +
    `backwards: ${top1(classes, backwards)}.`;
}
$("film").onchange = doing(async () => {
  const files = [...$("film").files];
  $("film").value = "";
  if (files.length) await tryFilm(files);
}, "try-message");
