// Runs one exported case in any build of ONNX Runtime for JavaScript: its errors against the outputs that are expected.

const ARRAYS = { float32: Float32Array, int64: BigInt64Array, bool: Uint8Array };
const RUNS = 20;

/** {rms, max, ms}: errors relative to the rms of each output (the worst one), and the median time of a run. */
export async function compare(ort, options, meta, read) {
  const session = await ort.InferenceSession.create(new Uint8Array(await read("model.onnx")), options);
  const feeds = {};
  for (const input of meta.inputs) {
    const values = new ARRAYS[input.type](await read(input.file));
    feeds[input.name] = new ort.Tensor(input.type, values, input.shape);
  }
  const found = await session.run(feeds);
  let rms = 0, max = 0;
  for (const output of meta.outputs) {
    const wanted = new Float32Array(await read(output.file)), got = found[output.name].data;
    if (got.length !== wanted.length) throw new Error(`${output.name}: ${got.length} values, not ${wanted.length}`);
    let square = 0, size = 0, largest = 0;
    for (let i = 0; i < wanted.length; i++) {
      square += (got[i] - wanted[i]) ** 2;
      size += wanted[i] ** 2;
      largest = Math.max(largest, Math.abs(got[i] - wanted[i]));
    }
    if (!Number.isFinite(square)) throw new Error(`${output.name}: not finite`);
    const scale = Math.sqrt(size / Math.max(1, wanted.length)) || 1;
    rms = Math.max(rms, Math.sqrt(square / Math.max(1, wanted.length)) / scale);
    max = Math.max(max, largest / scale);
  }
  const times = [];
  for (let i = 0; i < RUNS; i++) {
    const start = performance.now();
    await session.run(feeds);
    times.push(performance.now() - start);
  }
  return { rms, max, ms: times.sort((a, b) => a - b)[RUNS / 2] };
}
