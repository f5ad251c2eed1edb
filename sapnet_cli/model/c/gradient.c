/* The gradient of a kernel, in tiles. */

#include "winograd.h"

enum { INPUTS = 4 }; /* channels of which a gradient is summed at once */

/* Reads the gradient of a tile, `to` + place * `apart`. */
INLINE void read_gradient(const long side, const Convolution *job, Place place, float *to) {
    const long outputs = job->outputs;
    for (long channel = 0; channel < outputs; channel += LANES) {
        Vector columns[LARGE][SEEN];
        for (int x = 0; x < side; x++) {
            Vector column[LARGE];
            for (int y = 0; y < side; y++) {
                int there = y < place.rows && x < place.columns;
                column[y] = there ? load_features(FLOATS, job->target, pixel_of(job, place, y, x) * outputs + channel) : all(0);
            }
            transform_gradient(side, column, columns[x]);
        }
        write_rows(side, 1, columns, to + channel, apart(side, outputs));
    }
}

/* Adds to the gradient of INPUTS times OUTPUTS channels, at one place, what so many tiles say. */
static inline void accumulate(const float *seen, const float *wanted, float *sum, long tiles, long inputs, long outputs) {
    Vector sums[INPUTS][2];
    for (int input = 0; input < INPUTS; input++) {
        sums[input][0] = load(sum + input * OUTPUTS);
        sums[input][1] = load(sum + input * OUTPUTS + LANES);
    }
    for (long tile = 0; tile < tiles; tile++) {
        Vector first = load(wanted + tile * outputs);
        Vector second = load(wanted + tile * outputs + LANES);
        for (int input = 0; input < INPUTS; input++) {
            Vector value = all(seen[tile * inputs + input]);
            sums[input][0] = product_plus(value, first, sums[input][0]);
            sums[input][1] = product_plus(value, second, sums[input][1]);
        }
    }
    for (int input = 0; input < INPUTS; input++) {
        store(sum + input * OUTPUTS, sums[input][0]);
        store(sum + input * OUTPUTS + LANES, sums[input][1]);
    }
}

/* Sums parts of the gradient of a kernel until there are none left. */
INLINE void sum_gradient(const long side, Convolution *job) {
    const long inputs = job->inputs, outputs = job->outputs, places = places_of(side), at_once = tiles_at_once(side);
    const Tiling tiling = tiling_of(job, side);
    float *wanted, *seen = make_room(job, side, &wanted);
    if (!seen) return;
    for (;;) {
        long part = __atomic_fetch_add(&job->next, 1, __ATOMIC_RELAXED);
        if (part >= job->parts) break;
        float *sums = job->kernel + part * places * inputs * outputs;
        long end = tiling.number * (part + 1) / job->parts;
        for (long begin = tiling.number * part / job->parts; begin < end; begin += at_once) {
            long number = end - begin < at_once ? end - begin : at_once;
            for (long tile = 0; tile < number; tile++) {
                Place place = place_of(job, side, tiling, begin + tile);
                read_tile(side, FLOATS, job, place, seen + tile * inputs);
                read_gradient(side, job, place, wanted + tile * outputs);
            }
            for (long place = 0; place < places; place++)
                for (long output = 0; output < outputs; output += OUTPUTS)
                    for (long input = 0; input < inputs; input += INPUTS)
                        accumulate(seen + place * apart(side, inputs) + input, wanted + place * apart(side, outputs) + output,
                                   sums + (place * outputs + output) * inputs + input * OUTPUTS, number, inputs, outputs);
        }
    }
    free(seen);
}

/* What each thread of a gradient runs. Its parts are zero before. */
void sapnet_kernel_gradient(void *shared) {
    Convolution *job = shared;
    if (job->side == SMALL) sum_gradient(SMALL, job);
    else sum_gradient(LARGE, job);
}
