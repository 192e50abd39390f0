// What transformers.js makes of a model's folder and of images; in Node and in a browser.
import { AutoModelForImageClassification, AutoProcessor, RawImage, Tensor, pipeline } from "@huggingface/transformers";
import { pixelValues } from "./pixels.mjs";

/**
 * @param {object} work What work.json says: the model's folder; images, and others that are only prepared; the pixels of
 *     all of them, as Python made them.
 * @param {(file: string) => Promise<ArrayBuffer>} read Read a file.
 * @param {(blob: Blob) => Promise<object>} decode Decode an image for `pixelValues`.
 * @param {string} device "cpu" in Node, "wasm" in a browser.
 */
export async function answers(work, read, decode, device) {
    const options = { device, dtype: "fp32" };
    const model = await AutoModelForImageClassification.from_pretrained(work.model, options);
    const processor = await AutoProcessor.from_pretrained(work.model);
    const classify = await pipeline("image-classification", work.model, options);

    const run = async ({ data, dims }) => {
        const { logits } = await model({ pixel_values: new Tensor("float32", data, dims) });
        return { dims: logits.dims, logits: Array.from(logits.data) };
    };
    const python = new Float32Array(await read(work.pixels));
    const [, ...dims] = work.dims;
    const length = dims.reduce((product, side) => product * side);
    const batch = [work.images.length, ...dims];
    const found = { batch: await run({ data: python.subarray(0, batch[0] * length), dims: batch }), images: [] };
    for (const [place, name] of [...work.images, ...work.others].entries()) {
        const blob = new Blob([await read(name)]);
        const expected = python.subarray(place * length, (place + 1) * length);
        const exact = pixelValues(await decode(blob), processor.image_processor.config);
        const one = { name, exact: difference(exact.data, expected) };
        if (place < work.images.length) {
            const image = await RawImage.fromBlob(blob);
            const own = (await processor(image)).pixel_values;
            Object.assign(one.exact, await run(exact));
            one.own = { ...difference(own.data, expected), ...(await run(own)) };
            one.answer = (await classify(image))[0];
        }
        found.images.push(one);
    }
    return found;
}

/** The largest and the mean difference of two lists of numbers. */
function difference(one, other) {
    if (one.length !== other.length) {
        throw new Error(`${one.length} pixels, not ${other.length}`);
    }
    let [largest, sum] = [0, 0];
    for (let i = 0; i < one.length; ++i) {
        const off = Math.abs(one[i] - other[i]);
        largest = off <= largest ? largest : off; // NaN stays
        sum += off;
    }
    return { largest, mean: sum / one.length };
}
