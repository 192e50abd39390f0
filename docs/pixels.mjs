// The pixels that vitconv proved, in JavaScript: what `preprocessor_config.json` of a converted folder says, computed as
// Pillow and NumPy compute it, to the bit. The resize of transformers.js is another one: see browser.md.

/**
 * Decode an image in a browser. The colours stay as the file has them, whatever its colour profile says, as in Pillow.
 * A photo whose EXIF data say that it was taken with the camera turned is turned upright, which Pillow does not do.
 *
 * @param {Blob} blob The file.
 * @returns {Promise<ImageData>}
 */
export async function decode(blob) {
    const bitmap = await createImageBitmap(blob, { colorSpaceConversion: "none", premultiplyAlpha: "none" });
    const context = new OffscreenCanvas(bitmap.width, bitmap.height).getContext("2d");
    context.drawImage(bitmap, 0, 0);
    return context.getImageData(0, 0, bitmap.width, bitmap.height);
}

/**
 * Turn an image into the input of a model.
 *
 * @param {{data: Uint8Array | Uint8ClampedArray, width: number, height: number}} image The decoded image, with 3 or 4
 *     channels: an `ImageData` of a canvas, or a `RawImage` of transformers.js.
 * @param {object} config What `preprocessor_config.json` says.
 * @returns {{data: Float32Array, dims: number[]}} For `new Tensor("float32", data, dims)`; dims is
 *     [1, 3, height, width].
 * @throws {Error} The image or the configuration is of a kind that this function does not know.
 */
export function pixelValues(image, config) {
    check(config);
    const pixels = rgb(image);
    const { resample, size, crop_size: crop } = config;
    const short = Math.min(pixels.width, pixels.height);
    const width = size.width ?? Math.floor((size.shortest_edge * pixels.width) / short);
    const height = size.height ?? Math.floor((size.shortest_edge * pixels.height) / short);
    const { data } = resize(pixels, width, height, resample);

    // Begin half of the margin, rounded down, before or inside the image. Around it is black.
    const left = Math.floor((width - crop.width) / 2);
    const top = Math.floor((height - crop.height) / 2);
    const plane = crop.width * crop.height;
    const values = new Float32Array(3 * plane);
    for (let channel = 0; channel < 3; ++channel) {
        const mean = Math.fround(config.image_mean[channel]);
        const std = Math.fround(config.image_std[channel]);
        for (let y = 0; y < crop.height; ++y) {
            for (let x = 0; x < crop.width; ++x) {
                const [row, column] = [y + top, x + left];
                const inside = row >= 0 && row < height && column >= 0 && column < width;
                const value = inside ? data[3 * (row * width + column) + channel] : 0;
                // NumPy rounds to float32 after each step.
                const shifted = Math.fround(Math.fround(value * config.rescale_factor) - mean);
                values[channel * plane + y * crop.width + x] = shifted / std;
            }
        }
    }
    return { data: values, dims: [1, 3, crop.height, crop.width] };
}

/** Throw an error for what this file does not compute: no pixels are better than others. */
function check(config) {
    const steps = ["do_convert_rgb", "do_resize", "do_center_crop", "do_rescale", "do_normalize"];
    const missing = steps.filter((name) => config[name] !== true);
    const sides = Object.keys(config.size ?? {}).sort().join();
    if (missing.length || !(config.resample in FILTERS) || !["shortest_edge", "height,width"].includes(sides)) {
        throw new Error(`pixels.mjs does not compute what this image processor does: ${JSON.stringify(config)}`);
    }
}

/** The image with three channels, without copying one that has them. */
function rgb({ data, width, height }) {
    const channels = data.length / (width * height);
    if (channels === 3) {
        return { data, width, height };
    }
    if (channels !== 4) {
        throw new Error(`The image has ${channels} channels; convert it to RGB first.`);
    }
    const opaque = new Uint8ClampedArray(3 * width * height);
    for (let from = 0, to = 0; from < data.length; from += 4, to += 3) {
        if (data[from + 3] !== 255) {
            // A canvas rounds colours when it multiplies them with their transparency.
            throw new Error("The image has transparent pixels; paint it on white first.");
        }
        opaque[to] = data[from];
        opaque[to + 1] = data[from + 1];
        opaque[to + 2] = data[from + 2];
    }
    return { data: opaque, width, height };
}

// Pillow's filters by their number: how far they reach, and their weight at a distance.
// https://github.com/python-pillow/Pillow/blob/main/src/libImaging/Resample.c
const sinc = (x) => (x === 0 ? 1 : Math.sin(x * Math.PI) / (x * Math.PI));
const FILTERS = {
    1: { reach: 3, weight: (x) => (-3 <= x && x < 3 ? sinc(x) * sinc(x / 3) : 0) }, // Lanczos
    2: { reach: 1, weight: (x) => Math.max(0, 1 - Math.abs(x)) }, // bilinear
    3: { reach: 2, weight: cubic },
};

function cubic(distance) {
    const [a, x] = [-0.5, Math.abs(distance)];
    if (x < 1) {
        return ((a + 2) * x - (a + 3)) * x * x + 1;
    }
    return x < 2 ? (((x - 5) * x + 8) * x - 4) * a : 0;
}

/** Resize as Pillow 13 does: one side, then the other, each rounded to 8 bits. */
function resize(pixels, width, height, resample) {
    const [narrower, lower] = [pixels.width - width, pixels.height - height];
    const across = (image) => resizeSide(image, width, image.height, FILTERS[resample]);
    const down = (image) => resizeSide(image, image.width, height, FILTERS[resample]);
    // Pillow 12 always began with the rows. The order changes the rounding.
    return lower > 0 && lower > 2 * narrower ? across(down(pixels)) : down(across(pixels));
}

/** Resize one side; the other is given as it is. */
function resizeSide(image, width, height, filter) {
    if (image.width === width && image.height === height) {
        return image;
    }
    const { data } = image;
    const resized = new Uint8ClampedArray(3 * width * height);
    const isWidth = image.width !== width;
    const weights = isWidth ? coefficients(image.width, width, filter) : coefficients(image.height, height, filter);
    const step = isWidth ? 3 : 3 * width;
    for (let y = 0, place = 0; y < height; ++y) {
        for (let x = 0; x < width; ++x, place += 3) {
            const { first, values } = weights[isWidth ? x : y];
            const start = isWidth ? 3 * (y * image.width + first) : 3 * (first * width + x);
            // Whole numbers below 2^31: half of one, for rounding, and the weighted sum.
            let [red, green, blue] = [1 << (BITS - 1), 1 << (BITS - 1), 1 << (BITS - 1)];
            for (let i = 0, at = start; i < values.length; ++i, at += step) {
                red += data[at] * values[i];
                green += data[at + 1] * values[i];
                blue += data[at + 2] * values[i];
            }
            resized[place] = red >> BITS; // the array keeps it between 0 and 255
            resized[place + 1] = green >> BITS;
            resized[place + 2] = blue >> BITS;
        }
    }
    return { data: resized, width, height };
}

const BITS = 22; // of the weights' fractions

/** For each new place: the first old one that it is made of, and the weights from there on, as whole numbers. */
function coefficients(from, to, { reach, weight }) {
    const scale = from / to;
    const stretch = Math.max(scale, 1);
    return Array.from({ length: to }, (_, place) => {
        const center = (place + 0.5) * scale;
        const first = Math.max(0, Math.trunc(center - reach * stretch + 0.5));
        const end = Math.min(from, Math.trunc(center + reach * stretch + 0.5));
        const found = Array.from({ length: end - first }, (_, i) => weight((i + first - center + 0.5) * (1 / stretch)));
        const total = found.reduce((sum, value) => sum + value, 0);
        const whole = (value) => Math.trunc((value / total) * 2 ** BITS + (value / total < 0 ? -0.5 : 0.5));
        return { first, values: Int32Array.from(found, whole) };
    });
}
