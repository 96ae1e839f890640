// Goes through dockerode against the engine of DOCKER_HOST, and prints a line for each step that held.
"use strict";
const assert = require("node:assert/strict");
const { PassThrough } = require("node:stream");
const { once } = require("node:events");
const { text } = require("node:stream/consumers");
const { pack, extract } = require("tar-fs");
const fs = require("node:fs");
const os = require("node:os");
const path = require("node:path");
const Docker = require("dockerode");

const docker = new Docker();
const Image = "busybox:latest";

async function withContainer(options, use, start = true) {
  const container = await docker.createContainer({ Image, ...options });
  try {
    if (start) await container.start();
    return await use(container);
  } finally {
    await container.remove({ force: true, v: true });
  }
}

async function withDirectory(use) {
  const directory = fs.mkdtempSync(path.join(os.tmpdir(), "cove-node-"));
  try {
    return await use(directory);
  } finally {
    fs.rmSync(directory, { recursive: true });
  }
}

function demultiplexed(stream) {
  const [out, err] = [new PassThrough(), new PassThrough()];
  docker.modem.demuxStream(stream, out, err);
  stream.on("end", () => [out, err].forEach((each) => each.end()));
  return Promise.all([text(out), text(err)]);
}

const steps = {
  async system() {
    assert.equal((await docker.ping()).toString(), "OK");
    const [version, info, usage] = [await docker.version(), await docker.info(), await docker.df()];
    assert.equal(version.Os, "linux");
    assert.equal(info.Images, usage.Images.length);
  },
  async run() {
    const out = new PassThrough();
    const gathered = text(out);
    const [result, container] = await docker.run(Image, ["sh", "-c", "echo hello; exit 3"], out, { Tty: false });
    out.end();
    assert.equal(result.StatusCode, 3);
    assert.match(await gathered, /hello/);
    await container.remove();
  },
  async states() {
    await withContainer({ Cmd: ["sleep", "600"], Labels: { walk: "node" }, name: "noded" }, async (container) => {
      const status = async () => (await container.inspect()).State.Status;
      assert.equal(await status(), "running");
      const listed = await docker.listContainers({ filters: { label: ["walk=node"] } });
      assert.deepEqual(listed.map((each) => each.Names), [["/noded"]]);
      await container.pause();
      assert.equal(await status(), "paused");
      await container.unpause();
      await container.restart({ t: 0 });
      await container.rename({ name: "renamed" });
      assert.equal((await container.inspect()).Name, "/renamed");
      await container.update({ Memory: 64 << 20, MemorySwap: -1 });
      const top = await container.top({ ps_args: "-o pid,args" });
      assert.deepEqual(top.Processes.map((each) => each[1]), ["sleep 600"]);
      assert.equal((await container.stats({ stream: false })).pids_stats.current, 1);
      await container.kill();
      assert.equal((await container.wait()).StatusCode, 137);
    });
  },
  async attach() {
    const options = { Cmd: ["sh", "-c", "cat; echo bad >&2"], OpenStdin: true, StdinOnce: true };
    await withContainer(options, async (container) => {
      const flags = { stream: true, stdin: true, stdout: true, stderr: true, hijack: true };
      const stream = await container.attach(flags);
      const gathered = demultiplexed(stream);
      await container.start();
      stream.write("given");
      stream.end();
      assert.deepEqual(await gathered, ["given", "bad\n"]);
    }, false);
  },
  async logs() {
    await withContainer({ Cmd: ["sh", "-c", "echo 1; echo e >&2; sleep 0.2; echo 2"] }, async (container) => {
      const stream = await container.logs({ follow: true, stdout: true, stderr: true });
      assert.deepEqual(await demultiplexed(stream), ["1\n2\n", "e\n"]);
      const whole = await container.logs({ stdout: true, tail: 1 });
      assert.equal(whole.subarray(8).toString(), "2\n");
    });
  },
  async exec() {
    await withContainer({ Cmd: ["sleep", "600"] }, async (container) => {
      const exec = await container.exec({
        Cmd: ["sh", "-c", "echo $A; cat; echo bad >&2; exit 5"], Env: ["A=b"],
        AttachStdin: true, AttachStdout: true, AttachStderr: true,
      });
      const stream = await exec.start({ hijack: true, stdin: true });
      const gathered = demultiplexed(stream);
      stream.write("given");
      stream.end();
      assert.deepEqual(await gathered, ["b\ngiven", "bad\n"]);
      assert.equal((await exec.inspect()).ExitCode, 5);
      const terminal = await container.exec({ Cmd: ["sh"], Tty: true, AttachStdin: true, AttachStdout: true });
      const screen = await terminal.start({ hijack: true, stdin: true, Tty: true });
      await terminal.resize({ h: 20, w: 40 });
      screen.write("echo $((6*7)); exit\n");
      assert.match(await text(screen), /\r\n42\r\n/);
    });
  },
  async archive() {
    await withContainer({ Cmd: ["sleep", "600"] }, (container) => withDirectory(async (directory) => {
      fs.mkdirSync(path.join(directory, "in", "below"), { recursive: true });
      fs.writeFileSync(path.join(directory, "in", "below", "file"), "copied");
      await container.putArchive(pack(path.join(directory, "in")), { path: "/tmp" });
      const archive = await container.getArchive({ path: "/tmp/below" });
      const unpacked = extract(path.join(directory, "out"));
      archive.pipe(unpacked);
      await once(unpacked, "finish");
      assert.equal(fs.readFileSync(path.join(directory, "out", "below", "file")).toString(), "copied");
      const changed = await container.changes();
      assert(changed.some((each) => each.Path === "/tmp/below/file" && each.Kind === 1));
    }));
  },
  async objects() {
    const volume = await docker.createVolume({ Name: "noded", Labels: { walk: "node" } });
    const network = await docker.createNetwork({ Name: "noded", Labels: { walk: "node" } });
    const filters = { label: ["walk=node"] };
    assert.deepEqual((await docker.listVolumes({ filters })).Volumes.map((each) => each.Name), ["noded"]);
    assert.deepEqual((await docker.listNetworks({ filters })).map((each) => each.Name), ["noded"]);
    const HostConfig = { Binds: ["noded:/data"], NetworkMode: "noded" };
    await withContainer({ Cmd: ["sleep", "600"], HostConfig }, async (container) => {
      const members = (await network.inspect()).Containers;
      assert.deepEqual(Object.keys(members), [container.id]);
      await network.disconnect({ Container: container.id, Force: true });
      await network.connect({ Container: container.id, EndpointConfig: { Aliases: ["again"] } });
    });
    await network.remove();
    await volume.remove();
  },
  async images() {
    await docker.getImage(Image).tag({ repo: "noded", tag: "1" });
    const image = docker.getImage("noded:1");
    const archive = await image.get();
    const answer = await docker.loadImage(archive);
    const progress = await new Promise((resolve, reject) => {
      docker.modem.followProgress(answer, (error, output) => (error ? reject(error) : resolve(output)));
    });
    assert(progress.some((each) => /Loaded image: noded:1/.test(each.stream ?? "")));
    assert.equal((await image.history()).length, 1);
    await image.remove();
  },
  async events() {
    const stream = await docker.getEvents({ filters: { type: ["container"], label: ["walk=events"] } });
    const seen = [];
    stream.on("data", (chunk) => {
      for (const line of chunk.toString().split("\n").filter(Boolean)) seen.push(JSON.parse(line).Action);
    });
    await withContainer({ Cmd: ["true"], Labels: { walk: "events" } }, (container) => container.wait());
    while (!seen.includes("destroy")) await once(stream, "data");
    stream.destroy();
    assert.deepEqual(seen, ["create", "start", "die", "destroy"]);
  },
  async errors() {
    await assert.rejects(docker.getContainer("nope").inspect(), { statusCode: 404, reason: "no such container" });
    await withContainer({ Cmd: ["sleep", "600"] }, async (container) => {
      await assert.rejects(container.start(), { statusCode: 304 });
      await assert.rejects(container.remove(), { statusCode: 409 });
    });
  },
};

(async () => {
  for (const [name, walk] of Object.entries(steps)) {
    try {
      await walk();
    } catch (error) {
      console.error(`${name}: ${error.stack}`);
      process.exit(1);
    }
    console.log(name);
  }
})();
