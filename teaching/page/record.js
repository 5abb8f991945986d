
// --- 1. record ---
function takeFrames(count, signal) {
  return new Promise((done, fail) => {
    const got = [];
    let timer;
    const end = error => { clearTimeout(timer); take(null); if (error) fail(error); };
    const refuse = reason => end(new Error(
      `Not saved: ${reason}. More light, or fewer other programs, may help.`));
    const watch = () => { clearTimeout(timer); timer = setTimeout(() => refuse(
      "the camera sent no pictures for 3 s (keep this tab in front)"), RECORDING.silence); };
    signal?.addEventListener("abort", () => end(signal.reason));
    watch();
    take((time, blob) => {
      watch();
      const gap = got.length ? time - got.at(-1)[0] : 0;
      if (gap > RECORDING.gap) return refuse(`between two pictures there were ${gap.toFixed(0)} ms`);
      got.push([time, blob]);
      $("recorded").value = got.length / count;
      if (got.length < count) return;
      const late = (time - got[0][0]) / (PERIOD * (count - 1));
      if (late > RECORDING.late) return refuse(`it took ${percent(late - 1)} too long`);
      end();
      done(Promise.all(got.map(async ([when, promise]) => [when, await promise])));
    });
  });
}
// Count down, record `count` frames, and save them as clips of `size` frames.
async function record(count = RECORDING.frames, size = count) {
  const name = properName(), ids = [];
  if (session) stopTrying();
  recording = new AbortController();
  const {signal} = recording;
  isBusy = true;
  show();
  try {
    for (let left = countdown; left > 0; left--) { $("count").textContent = left; await pause(1000, signal); }
    $("count").textContent = "";
    recording.isCounted = true;
    const frames = await takeFrames(count, signal);
    for (let start = 0; start + size <= count; start += size)
      ids.push((await ask("add", {name}, packed(frames.slice(start, start + size)))).id);
    notify(ids.length === 1 ? `Clip ${ids[0]} of “${name}” is saved.` :
      `Clips ${ids[0]} to ${ids.at(-1)} of “${name}” are saved.`);
  } finally {
    isBusy = false; recording = null; $("count").textContent = ""; $("recorded").value = 0;
    await showClips();
  }
}
const cancel = reason => recording?.abort(new Cancelled(reason));
$("record").onclick = doing(() => recording ? cancel("Cancelled; nothing is saved.") : record());
$("nothing").onclick = doing(() => {
  $("name").value = "nothing";
  return record(RECORDING.nothing, RECORDING.piece);
});
let nameBefore = ""; // the name before the space bar was pressed in its field
async function holdSpace() {
  if (spaceIsDown || isBusy || isOff("record")) return;
  spaceIsDown = true;
  try { do await record(); while (spaceIsDown); } finally { spaceIsDown = false; }
}
onkeydown = doing(async event => {
  if (event.isComposing) return; // the key belongs to the input of a character
  if (event.key === "Escape") return cancel("Cancelled; nothing is saved.");
  if (event.key.toLowerCase() === "z" && (event.ctrlKey || event.metaKey) && removals.length &&
      !event.target.closest("input")) { event.preventDefault(); return undo(); }
  if (event.code !== "Space") return;
  if (event.target === $("name")) { // a space belongs to a name, but holding it is meant to record
    if (event.repeat) {
      event.preventDefault();
      if (spaceIsDown) return;
      $("name").value = nameBefore;
      $("record").focus();
      return holdSpace();
    }
    nameBefore = $("name").value;
    if (!$("name").selectionStart) event.preventDefault(); // none at the start
    return;
  }
  if (event.target.closest("input, select, button:not(#record, .remove), summary, a")) return;
  event.preventDefault();
  if (!event.repeat) await holdSpace();
});
function release() {
  if (spaceIsDown && recording && !recording.isCounted)
    cancel("Cancelled: hold the space bar until the recording has begun, or press Record.");
  spaceIsDown = false;
}
onkeyup = event => {
  if (event.code !== "Space") return;
  if (event.target.closest("#record, .remove")) event.preventDefault(); // no click
  release();
};
onblur = release;
