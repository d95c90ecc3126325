// Makes no-words.wasm of no-words.js.
import { writeFile } from "node:fs/promises";
import { componentize } from "@bytecodealliance/componentize-js";

const { component } = await componentize({
  sourcePath: new URL("no-words.js", import.meta.url).pathname,
  witPath: new URL("../../../sdk/wit", import.meta.url).pathname,
  worldName: "plugin",
  // Everything that would make the engine import WASI.
  disableFeatures: ["stdio", "random", "clocks", "http", "fetch-event"],
});
await writeFile("no-words.wasm", component);
