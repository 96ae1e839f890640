// Goes through testcontainers for Node, and prints a line for each step that held. It ends without stopping its last
// container, whose id it prints: that is the cleaner's.
"use strict";
const assert = require("node:assert/strict");
const { GenericContainer, Network, Wait, getContainerRuntimeClient } = require("testcontainers");

const IMAGE = "busybox:latest";
const PAGES = ["busybox", "httpd", "-f", "-v", "-p", "80", "-h", "/www"];

async function page(container) {
  const answer = await fetch(`http://${container.getHost()}:${container.getMappedPort(80)}/index.html`);
  return (await answer.text()).trim();
}

const steps = {
  async runtime() {
    const client = await getContainerRuntimeClient();
    assert.equal(client.info.containerRuntime.host, "localhost");
  },
  async http() {
    const container = await new GenericContainer(IMAGE)
      .withCommand(PAGES)
      .withExposedPorts(80)
      .withCopyContentToContainer([{ content: "welcome", target: "/www/index.html" }])
      .withWaitStrategy(Wait.forHttp("/index.html", 80))
      .start();
    assert.equal(await page(container), "welcome");
    const { output, exitCode } = await container.exec(["sh", "-c", "cat /www/index.html; exit 2"]);
    assert.deepEqual([output, exitCode], ["welcome", 2]);
    await container.copyContentToContainer([{ content: "changed", target: "/www/index.html" }]);
    assert.equal(await page(container), "changed");
    await container.restart();
    assert.equal(await page(container), "changed");
    await container.stop();
  },
  async ports() {
    const container = await new GenericContainer(IMAGE)
      .withCommand(PAGES).withExposedPorts(80).withTmpFs({ "/www": "rw" }).start();
    await container.stop();
  },
  async health() {
    const container = await new GenericContainer(IMAGE)
      .withCommand(["sh", "-c", "sleep 0.3; touch /tmp/ready; exec sleep 600"])
      .withHealthCheck({ test: ["CMD", "stat", "/tmp/ready"], interval: 200, retries: 50 })
      .withWaitStrategy(Wait.forHealthCheck())
      .start();
    await container.stop({ timeout: 1 });
  },
  async logs() {
    const container = await new GenericContainer(IMAGE)
      .withCommand(["sh", "-c", "echo before; echo ready; sleep 0.1; echo after; exec sleep 600"])
      .withWaitStrategy(Wait.forLogMessage("ready"))
      .start();
    let seen = "";
    for await (const chunk of await container.logs()) {
      seen += chunk;
      if (seen.includes("after")) break;
    }
    assert.equal(seen, "before\nready\nafter\n");
    await container.stop({ timeout: 1 });
  },
  async once() {
    const container = await new GenericContainer(IMAGE)
      .withCommand(["true"]).withWaitStrategy(Wait.forOneShotStartup()).start();
    await container.stop();
  },
  async network() {
    const network = await new Network().start();
    const served = await new GenericContainer(IMAGE)
      .withCommand(PAGES).withNetwork(network).withNetworkAliases("pages")
      .withCopyContentToContainer([{ content: "inside", target: "/www/index.html" }])
      .start();
    assert(served.getIpAddress(network.getName()).split(".").length === 4);
    const asking = await new GenericContainer(IMAGE).withCommand(["sleep", "600"]).withNetwork(network).start();
    const asked = await asking.exec(["wget", "-q", "-O", "-", "http://pages/index.html"]);
    assert.deepEqual([asked.output, asked.exitCode], ["inside", 0]);
    await Promise.all([served.stop({ timeout: 1 }), asking.stop({ timeout: 1 })]);
    await network.stop();
  },
};

setInterval(() => {}, 1000); // its streams alone keep no program going; test runners have timers
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
  const left = await new GenericContainer(IMAGE).withCommand(["sleep", "600"]).start();
  console.log(left.getId());
  process.exit(0);
})();
