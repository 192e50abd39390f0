// Node's part of test_browser.py, run in the folder that holds everything: prints what `answers` finds, as JSON.
import { readFile } from "node:fs/promises";
import { RawImage, env } from "@huggingface/transformers";
import { answers } from "./answers.mjs";

env.localModelPath = `${process.cwd()}/`;
env.allowRemoteModels = false;

const read = async (file) => new Uint8Array(await readFile(file)).buffer;
const decode = async (blob) => (await RawImage.fromBlob(blob)).rgb();
const work = JSON.parse(await readFile("work.json"));
console.log(JSON.stringify(await answers(work, read, decode, "cpu")));
