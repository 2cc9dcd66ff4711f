// What is asked of the server, and what is told to it.

export async function ask(path) {
  const answer = await fetch(path);
  if (!answer.ok) throw new Error((await answer.text()) || `the server answered ${answer.status}`);
  return answer.json();
}

// A sample with its numbers: a Float32Array for each column, cell i of the sample at i.
export async function askSample(index) {
  const [sample, buffer] = await Promise.all([
    ask(`api/samples/${index}`),
    fetch(`api/samples/${index}/numbers`).then((answer) => answer.arrayBuffer()),
  ]);
  const n = sample.ids.length;
  sample.n = n;
  sample.numbers = {};
  sample.columns.forEach((name, k) => {
    sample.numbers[name] = new Float32Array(buffer, 4 * n * k, n);
  });
  return sample;
}

export async function tellMark(row, mark, label, note) {
  const answer = await fetch("api/marks", {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify({ row, mark, label, note }),
  });
  if (answer.ok) return answer.json();
  const text = await answer.text();
  let problem = text;
  try {
    problem = JSON.parse(text).problem;
  } catch {
    // a refusal by the server itself is plain text
  }
  throw new Error(problem);
}
