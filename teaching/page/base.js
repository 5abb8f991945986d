// --- base: limits, state, messages, requests ---
const RATE = 12, HEIGHT = 120, MAX_FRAMES = 120, MAX_BYTES = 4 * 2 ** 20;
const MAX_FILM_BYTES = 64 * 2 ** 20, PERIOD = 1000 / RATE, QUALITY = 0.92;
const LIVE = 3000; // ms that the network sees
// Of a recording: frames; of “nothing”, frames in all and per clip; longest gap and silence in ms;
// how late its end may be.
const RECORDING = {frames: 36, nothing: 120, piece: 24, gap: 400, silence: 3000, late: 1.15};
const $ = id => document.getElementById(id), KEY = new URLSearchParams(location.search).get("key");
const video = $("video"), canvas = document.createElement("canvas");
let countdown = 2, taker = null, next = null, isBusy = false, spaceIsDown = false, session = null;
let latest = []; // pictures of the camera that nothing has taken
let recording = null; // what can cancel the countdown or the clip, an AbortController
let training = {state: "none", history: []};

class Cancelled extends Error {}
class NoAnswer extends Error {}
class Gone extends Error {} // for good

// A message is shown beside its cause, if that place is in sight, else beside the camera.
function notify(text, isBad = false, place = "message") {
  const isOver = matchMedia("(max-width: 55.99rem)").matches; // the camera is above the rest
  const top = isOver ? $("camera").getBoundingClientRect().bottom : 0;
  const box = $(place).getBoundingClientRect();
  const shown = box.top >= top && box.bottom <= innerHeight - 40 ? $(place) : $("message");
  for (const other of document.querySelectorAll(".message"))
    if (other !== shown && other.textContent) other.textContent = "";
  shown.textContent = text;
  shown.classList.toggle("bad", isBad);
}
const speak = text => { $("spoken").textContent = text; }; // for screen readers only
const pause = (ms, signal) => new Promise((done, fail) => {
  signal?.throwIfAborted();
  const timer = setTimeout(done, ms);
  signal?.addEventListener("abort", () => { clearTimeout(timer); fail(signal.reason); });
});
const percent = fraction => `${(100 * fraction).toFixed(0)}\u00a0%`;
const plural = (count, word) => `${count} ${word}${count === 1 ? "" : "s"}`;
const isAre = count => count === 1 ? "is" : "are";
const summary = (names, limit = 3) => names.slice(0, limit).join(", ") +
  (names.length > limit ? ` and ${names.length - limit} more` : "");

function element(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}
// Not `disabled`: a button that has the focus would lose it.
const setOff = (id, isOff) => $(id).setAttribute("aria-disabled", isOff);
const isOff = id => $(id).getAttribute("aria-disabled") === "true";

async function answerTo(path, fields, body, most = MAX_BYTES) {
  if (body?.size > most) throw new Error(`This is too large: more than ${most / 2 ** 20} MiB.`);
  const answer = await fetch(`${path}?${new URLSearchParams(fields)}`,
    {method: body === undefined ? "GET" : "POST", headers: {"X-Key": KEY}, body}).catch(() => {
      throw new NoAnswer("teach.py does not answer; start it again, and open the address it prints."); });
  if (answer.status === 410) throw new Gone((await answer.json()).error);
  if (!answer.ok) throw new Error((await answer.json()).error);
  return answer;
}
const ask = async (path, fields = {}, body) => (await answerTo(path, fields, body)).json();
const packed = frames => new Blob(frames.flatMap(([, blob]) => [new Uint32Array([blob.size]), blob]));
function unpacked(buffer) {
  const frames = [], view = new DataView(buffer);
  for (let place = 0; place < buffer.byteLength; place += 4 + view.getUint32(place, true))
    frames.push([frames.length * PERIOD, new Blob([buffer.slice(place + 4,
      place + 4 + view.getUint32(place, true))], {type: "image/jpeg"})]);
  return frames;
}
// A handler of an event, which shows errors at a place; a button that is off does nothing.
const doing = (action, place) => async event => {
  if (event?.currentTarget?.getAttribute?.("aria-disabled") === "true") return;
  try { await action(event); }
  catch (error) { notify(error.message, !(error instanceof Cancelled), place); } };

function show() { // what can be pressed now
  const hasCamera = document.body.dataset.ready === "camera";
  const isRunning = training.state === "running";
  setOff("record", !hasCamera || (isBusy && !recording));
  $("record").textContent = recording ? "Cancel" : "Record";
  for (const id of ["samples", "nothing"]) setOff(id, isBusy || (id === "nothing" && !hasCamera));
  setOff("train", isRunning || isBusy || $("needs").textContent !== "");
  setOff("stop", !isRunning);
  $("resume").hidden = !training.can_resume;
  $("use").hidden = !training.can_use;
  $("report").hidden = !training.has_report;
  $("unfinished").hidden = isRunning || !training.has_network || training.has_results;
  setOff("try", !hasCamera || isBusy || !training.has_network);
  setOff("export", !training.has_network || training.zip?.state === "running");
  $("try").textContent = session ? "Stop" : "Start";
  setOff("backwards", !session?.scores || Boolean(session.isReversing));
  setOff("keep", !session?.scores || !$("keep-as").value);
  for (const id of ["learnt", "keeping"]) $(id).hidden = !training.has_network;
  for (const one of document.querySelectorAll(".untrained")) one.hidden = training.has_network !== false;
}
