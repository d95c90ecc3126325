// A plugin of callgate in JavaScript: no program gets an argument with one of these words in it.

import { log } from "callgate:policy/host@0.1.0";

let words = [];

export const policy = {
  describe() {
    const schema = {
      type: "object",
      properties: { words: { type: "array", items: { type: "string", minLength: 1 } } },
      required: ["words"],
    };
    return { name: "no-words", version: "0.1.0", configSchema: JSON.stringify(schema) };
  },

  // A mistake is thrown, with its place in the configuration (a JSON Pointer).
  configure(text) {
    const config = JSON.parse(text);
    if (!Array.isArray(config?.words)) throw mistake("/words", "takes a list of words");
    config.words.forEach((word, index) => {
      if (typeof word !== "string" || word === "") throw mistake(`/words/${index}`, "takes a word");
    });
    words = config.words;
    return { exec: true };
  },

  decide({ action: { val: exec } }) {
    const word = words.find((word) => exec.arguments.some((argument) => argument.includes(word)));
    if (word === undefined) return { tag: "abstain" };
    log("info", `${exec.file.path} was to get ${word}`);
    return { tag: "deny", val: { rule: "word", reason: `an argument has ${JSON.stringify(word)} in it` } };
  },
};

function mistake(pointer, message) {
  return { pointer, message };
}
