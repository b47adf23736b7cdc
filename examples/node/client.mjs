// A client in Node.js, made from the .proto alone: appends records, and reads them back.
//
//     npm install
//     node client.mjs ../../service localhost:9595 greetings hello world
//
// The first argument is the folder that holds tidelog/proto/v1/*.proto.

import grpc from "@grpc/grpc-js";
import protoLoader from "@grpc/proto-loader";

const [protos, server, topic, ...values] = process.argv.slice(2);
const definition = protoLoader.loadSync("tidelog/proto/v1/log.proto", { includeDirs: [protos], keepCase: true, longs: Number, defaults: true, oneofs: true });
const { Log } = grpc.loadPackageDefinition(definition).tidelog.v1;
const log = new Log(server, grpc.credentials.createInsecure());

const call = (method, request) =>
  new Promise((resolve, reject) => {
    const deadline = new Date(Date.now() + 30_000);
    log[method](request, { deadline }, (error, answer) => (error ? reject(error) : resolve(answer)));
  });

try {
  const records = values.map((value) => ({ key: Buffer.from("node"), value: Buffer.from(value) }));
  const appended = await call("Append", { topic, records });
  console.log(`appended to ${topic}/${appended.partition}: offsets ${appended.base_offset} to ${appended.next_offset - 1}`);

  const partition = { topic, partition: appended.partition };
  const read = await call("Read", { partition, start: { offset: appended.base_offset }, max_records: records.length });
  for (const record of read.records) {
    console.log(`${record.offset} ${record.key}: ${record.value}`);
  }
} catch (error) {
  console.error(`${error.details} [${grpc.status[error.code]}]`);
  process.exitCode = 1;
} finally {
  log.close();
}
