
// --- 4. take it with you ---
$("export").onclick = doing(async () => {
  await ask("export", {}, "");
  notify("", false, "export-message");
  await poll();
}, "export-message");
function showZip(before) { // before: what was shown last
  const {state, fraction, text, name} = training.zip;
  $("exporting").hidden = state !== "running";
  $("export-step").textContent = `${text[0]?.toUpperCase() ?? ""}${text.slice(1)} …`;
  $("exported").value = fraction;
  $("download").hidden = state !== "done";
  $("download").textContent = `Download ${name}`;
  $("download").download = name;
  $("download").href = `download?key=${KEY}`;
  if (state === before?.state) return;
  if (state === "failed") notify(`No zip: ${text}`, true, "export-message");
  if (state === "none" && before?.state === "running")
    notify("Meanwhile, a training has replaced the network: make the zip again.", true,
      "export-message");
  if (state === "done") notify(`${name} is ready: download it.`, false, "export-message");
}
