// The numbers of one cell in words: pairs of a term and what is known. A blind page has few.

import { fixed, pText, pWithSign } from "./page.js";
import { markText, state } from "./state.js";

export function factsOf(cell) {
  const { sample, run } = state;
  const facts = [["cell", sample.ids[cell]]];
  if (!run.blind) facts.push(...scores(cell));
  const mark = markText(cell);
  if (mark) facts.push(["marked", mark]);
  return facts;
}

function scores(cell) {
  const { sample, run } = state;
  const numbers = sample.numbers;
  const facts = [];
  if (!Number.isNaN(numbers.anomaly[cell])) facts.push(["anomaly", anomalyText(cell)]);
  const attention = numbers.attention_ratio[cell];
  if (!Number.isNaN(attention)) facts.push(["attention", `${fixed(attention, 2)}× the average cell`]);
  if (run.counted_by === "weight") facts.push(["weight", numbers.weight[cell].toPrecision(2)]);
  const contribution = numbers.contribution[cell];
  if (!Number.isNaN(contribution)) {
    const sign = contribution >= 0 ? "+" : "";
    const towards = sample.predicted ? ` for ${sample.predicted}` : "";
    facts.push(["contribution", `${sign}${fixed(contribution, 2)}${towards}`]);
  }
  const alone = run.classes[numbers.looks_like[cell]];
  if (alone !== undefined) facts.push(["by itself like", `${alone} (${fixed(numbers.looks_sure[cell], 2)})`]);
  if (sample.labels[cell]) facts.push(["known as", sample.labels[cell]]);
  return facts;
}

function anomalyText(cell) {
  const { sample } = state;
  const { anomaly, anomaly_p: p, anomaly_low: low, anomaly_high: high } = sample.numbers;
  const span = Number.isNaN(low[cell]) ? "" : ` [${fixed(low[cell], 1)}, ${fixed(high[cell], 1)}]`;
  const said = [pText(p[cell]) ? `p ${pWithSign(p[cell])}` : "", sample.verdicts[cell]].filter(Boolean);
  return fixed(anomaly[cell], 1) + span + (said.length ? ` (${said.join(", ")})` : "");
}

export function factsLine(cell) {
  return factsOf(cell).map(([term, text]) => (term === "cell" ? text : `${term} ${text}`)).join(" · ");
}
