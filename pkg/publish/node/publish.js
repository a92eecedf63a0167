// Publishes a segment job and follows it to its end, with nothing but NATS and JSON.
//
//   node publish.js NATS_URL DESTINATION TEMPLATE SEGMENT FILE.csv [JOB_ID]
//
// Exit codes: 0 succeeded, 1 failed, 3 dead-lettered or cancelled. Run it again with
// the same job id after a failure: a job is done once however often it is published.
"use strict";

const { createHash, randomUUID } = require("node:crypto");
const { createReadStream } = require("node:fs");
const { readFile, stat } = require("node:fs/promises");
const { Readable } = require("node:stream");
const { connect, headers, JSONCodec } = require("nats");

const maxInline = 512 * 1024; // more goes into the object store

async function digest(path) {
  const sum = createHash("sha256");
  for await (const chunk of createReadStream(path)) sum.update(chunk);
  return sum.digest("base64");
}

// source says where the rows are. An audience that is larger than a message is stored
// as an object under a name that no other one has.
async function source(js, path, jobID) {
  const s = { format: "FORMAT_CSV", sha256: await digest(path) };
  if ((await stat(path)).size <= maxInline) {
    return { ...s, inline: (await readFile(path)).toString("base64") };
  }
  const name = `${jobID}/audience.csv`;
  const objects = await js.views.os("attentive_audiences");
  if (!(await objects.info(name))) {
    await objects.put({ name }, Readable.toWeb(createReadStream(path)));
  }
  return { ...s, object: name };
}

// publish stores the job. The broker's answer means that it will not be lost.
async function publish(js, job) {
  const h = headers();
  h.set("Content-Type", "application/json");
  h.set("Attentive-Contract", "1");
  return js.publish(`attentive.v1.segment.${job.destination}`, JSONCodec().encode(job), {
    headers: h,
    msgID: `${job.destination}/${job.id}`, // our own retries are stored once
    expect: { streamName: "ATTENTIVE_JOBS" },
  });
}

// follow looks at what is true of the job until nothing more happens by itself.
async function follow(js, job) {
  const ledger = await js.views.kv("attentive_ledger");
  let seen = "";
  for (;;) {
    const stored = await ledger.get(`segment.${job.destination}.${job.id}`);
    const entry = stored && stored.operation === "PUT" ? stored.json() : { state: "waiting" };
    if (entry.state !== seen) console.log(entry.state);
    seen = entry.state;
    if (["succeeded", "dead_lettered", "cancelled"].includes(entry.state)) return entry;
    await new Promise((resolve) => setTimeout(resolve, 500));
  }
}

async function main([url, destination, template, segment, path, id = randomUUID()]) {
  const nc = await connect({ servers: url, name: "publish example" });
  try {
    const js = nc.jetstream();
    const job = {
      id,
      destination,
      template,
      orchestration: { segment_name: segment },
      groups: [{ name: segment, source: await source(js, path, id) }],
    };
    const ack = await publish(js, job);
    console.log(`job ${id} ${ack.duplicate ? "was published before" : "is published"}`);
    const end = await follow(js, job);
    if (end.state === "succeeded") {
      for (const s of end.segments ?? []) console.log(`segment ${s.name}: ${s.rows} rows`);
      return 0;
    }
    console.error(`${end.state}: ${end.reason ?? ""} ${end.detail ?? ""}`);
    return 3;
  } finally {
    await nc.close();
  }
}

if (process.argv.length < 7) {
  console.error("usage: node publish.js NATS_URL DESTINATION TEMPLATE SEGMENT FILE.csv [JOB_ID]");
  process.exit(2);
}
main(process.argv.slice(2)).then(
  (code) => process.exit(code),
  (err) => {
    console.error(err.message);
    process.exit(1);
  },
);
