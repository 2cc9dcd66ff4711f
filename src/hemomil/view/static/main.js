// Begins: reads what the run is, then shows the list or the sample that the address names.

import { startKeys } from "./keys.js";
import { showRows, startList } from "./list.js";
import { find, hideTip, show } from "./page.js";
import { showSample, startSample } from "./sample.js";
import { ask } from "./server.js";
import { state } from "./state.js";

async function start() {
  // the token is in a cookie by now: it need not be seen, nor kept in the history
  if (location.search) history.replaceState(null, "", location.pathname + location.hash);
  [state.run, state.list] = await Promise.all([ask("api/run"), ask("api/samples")]);
  const { run } = state;
  find("title").textContent = run.title;
  find("caveat").textContent = run.caveat ?? "";
  show("blind", run.blind);
  const said = [`${run.samples} samples, ${run.cells.toLocaleString("en")} cells`];
  if (!run.blind) said.push(`method ${run.method}`, `healthy: ${run.control}`);
  if (!run.blind && run.run !== null) said.push(`as run ${run.run} of the study read them`);
  find("about").textContent = said.join(" · ");
  find("version").textContent = `hemomil · marks go to ${run.marks_file}.`;
  startList();
  startSample();
  startKeys();
  window.addEventListener("hashchange", route);
  await route();
}

// #/ is the list; #/sample/NAME/IMAGE is one image of one sample.
async function route() {
  const [, name, place] = location.hash.match(/^#\/sample\/([^/]+)(?:\/(\d+))?$/) ?? [];
  const index = name === undefined ? -1 : state.list.sample.indexOf(decodeURIComponent(name));
  hideTip();
  show("problem", name !== undefined && index < 0);
  if (name !== undefined && index < 0) find("problem").textContent = "This run has no such sample.";
  show("list", index < 0);
  show("sample", index >= 0);
  show("to-list", index >= 0);
  if (index < 0) {
    document.title = `${state.run.title} – hemomil view`;
    showRows();
    return;
  }
  await showSample(index, Number(place ?? 1) - 1);
  window.scrollTo(0, 0);
}

function fail(error) {
  show("problem", true);
  const said = `The server does not answer as it should: ${error.message}.`;
  find("problem").textContent = `${said} Is hemomil view still running?`;
}

window.addEventListener("unhandledrejection", (event) => fail(event.reason));
start().catch(fail);
