/* Convolutions, and an LSTM's step, whose gates are one, in tiles. */

#include <string.h>

#include "winograd.h"

enum {
    ROWS = PAIRS /* tiles that are multiplied at once */
};

const long sapnet_lanes = LANES;

/* ROWS tiles times OUTPUTS channels, at one place. The kernel that comes next, and the tiles, are brought nearer: a CPU
   that sees a run of memory itself begins anew at each page. */
static inline void multiply(const float *seen, const float *kernel, float *given, long inputs, long outputs) {
    Vector sums[ROWS][2];
    for (int row = 0; row < ROWS; row++) sums[row][0] = sums[row][1] = all(0);
    for (long input = 0; input < inputs; input++) {
        for (long value = 0; value < OUTPUTS; value += LINE) __builtin_prefetch(kernel + OUTPUTS * (inputs + input) + value, 0, 3);
        __builtin_prefetch(seen + ROWS * inputs + LINE * (1 + input), 0, 3);
        Vector first = load(kernel + OUTPUTS * input);
        Vector second = load(kernel + OUTPUTS * input + LANES);
        for (int row = 0; row < ROWS; row++) {
            Vector value = all(seen[row * inputs + input]);
            sums[row][0] = product_plus(value, first, sums[row][0]);
            sums[row][1] = product_plus(value, second, sums[row][1]);
        }
    }
    for (int row = 0; row < ROWS; row++) {
        store(given + row * outputs, sums[row][0]);
        store(given + row * outputs + LANES, sums[row][1]);
    }
}

/* Transforms the columns of a tile back, `from` + place * distance. */
INLINE void read_columns(const long side, const float *from, long distance, Vector columns[SEEN][LARGE]) {
    for (int x = 0; x < side + BEYOND; x++) {
        Vector column[SEEN];
        for (int y = 0; y < side + BEYOND; y++) column[y] = load(from + (y * (side + BEYOND) + x) * distance);
        transform_back(side, column, columns[x]);
    }
}

/* A row of a tile, of its columns. */
INLINE void read_row(const long side, Vector columns[SEEN][LARGE], int y, Vector *row) {
    Vector line[SEEN];
    for (int x = 0; x < side + BEYOND; x++) line[x] = columns[x][y];
    transform_back(side, line, row);
}

/* Adds what a tile has in each column, of some channels, to the sums of a part, (count, width, channels). */
INLINE void add_sums(const long side, const Convolution *job, Place place, long channels, const Vector *totals, float *sums) {
    for (int x = 0; x < side && x < place.columns; x++) {
        float *sum = sums + (place.picture * job->width + place.left + x * job->dilation) * channels;
        store(sum, add(load(sum), totals[x]));
    }
}

/* Writes a tile, `from` + place * `apart`, and adds it to the sums of a part. */
INLINE void write_tile(const long side, const int kind, const Convolution *job, Place place, const float *from, float *sums) {
    const long outputs = job->outputs;
    const Vector zero = all(0);
    for (long channel = 0; channel < outputs; channel += LANES) {
        const long of = (job->each ? place.picture * outputs : 0) + channel;
        Vector scale = load(job->scale + of), bias = load(job->bias + of);
        Vector columns[SEEN][LARGE], totals[LARGE] = {zero, zero, zero, zero, zero, zero};
        read_columns(side, from + channel, apart(side, outputs), columns);
        for (int y = 0; y < side && y < place.rows; y++) {
            Vector result[LARGE];
            read_row(side, columns, y, result);
            for (int x = 0; x < side && x < place.columns; x++) {
                long pixel = pixel_of(job, place, y, x);
                Vector value = product_plus(result[x], scale, bias);
                if (job->relu) value = larger(zero, value); /* the second where it is no number */
                if (job->skip) value = add(value, load_features(kind, job->skip, pixel * outputs + channel));
                if (job->relu) value = larger(zero, value);
                store_features(kind, job->target, pixel * outputs + channel, value);
                totals[x] = add(totals[x], value);
            }
        }
        if (sums) add_sums(side, job, place, outputs, totals, sums + channel);
    }
}

/* The sigmoid of a gate times the hyperbolic tangent of a value, for one division. */
static inline Vector let_through(Vector gate, Vector value) {
    Vector twice = decay(add(value, value));
    return over(sub(all(1), twice), mul(add(all(1), decay(gate)), add(all(1), twice)));
}

/* Of an LSTM's step; the first has no state, and nothing to forget. */
INLINE long gates_of(const Convolution *job) { return job->state ? GATES : GATES - 1; }

/* Writes a tile as `write_tile` does, but of an LSTM: what is convolved are its gates (input, candidate, output and,
   unless it is the first step, forget), and what is written is the next state, hidden into target and cell into cell. */
INLINE void write_state(const long side, const int kind, const Convolution *job, Place place, const float *from, float *sums) {
    const long outputs = job->outputs, gates = gates_of(job), width = outputs / gates;
    const Vector zero = all(0);
    for (long channel = 0; channel < width; channel += LANES) {
        Vector columns[GATES][SEEN][LARGE], totals[LARGE] = {zero, zero, zero, zero, zero, zero};
        for (int gate = 0; gate < gates; gate++)
            read_columns(side, from + gate * width + channel, apart(side, outputs), columns[gate]);
        for (int y = 0; y < side && y < place.rows; y++) {
            Vector result[GATES][LARGE];
            for (int gate = 0; gate < gates; gate++) {
                Vector bias = load(job->bias + gate * width + channel);
                read_row(side, columns[gate], y, result[gate]);
                for (int x = 0; x < side; x++) result[gate][x] = add(result[gate][x], bias);
                for (int x = 0; job->gates && x < side && x < place.columns; x++)
                    store_features(kind, job->gates, pixel_of(job, place, y, x) * outputs + gate * width + channel, result[gate][x]);
            }
            for (int x = 0; x < side && x < place.columns; x++) {
                long pixel = pixel_of(job, place, y, x);
                Vector cell = let_through(result[0][x], result[1][x]);
                if (job->state) {
                    Vector before = load_features(kind, job->before, pixel * width + channel);
                    cell = product_plus(sigmoid(result[3][x]), before, cell);
                }
                Vector hidden = let_through(result[2][x], cell);
                store_features(kind, job->cell, pixel * width + channel, cell);
                store_features(kind, job->target, pixel * width + channel, hidden);
                totals[x] = add(totals[x], hidden);
            }
        }
        if (sums) add_sums(side, job, place, width, totals, sums + channel);
    }
}

/* Has what tiles will be written to, and what is added to them, brought nearer while others are multiplied. All of a tile
   has its turn once places have been counted through. */
INLINE void fetch(const long side, const int kind, const Convolution *job, const Place *tiles, long number, long place) {
    const long y = place / (side + BEYOND), x = place % (side + BEYOND);
    if (y >= side || x >= side) return;
    const long pixel = job->outputs * feature_size(kind);
    const long way = (y * job->width + x) * job->dilation * pixel;
    for (long tile = 0; tile < number; tile++) {
        if (y >= tiles[tile].rows || x >= tiles[tile].columns) continue;
        const long first = tiles[tile].pixel * pixel + way;
        for (long byte = first; byte < first + pixel; byte += LINE * sizeof(float)) {
            __builtin_prefetch((const char *)job->target + byte, 1, 2);
            if (job->skip) __builtin_prefetch((const char *)job->skip + byte, 0, 2);
        }
    }
}

/* Writes a tile as `write_tile` does, but the gradient of what came `after`, ReLU(x) or, where something `tells`,
   ReLU(skipped + ReLU(x)): what passes the outer ReLU is written. What passes all, and the product of that with x, are
   added to sums, (count, 2, as target). What skipped tells x. */
INLINE void write_gradient(const long side, const Convolution *job, Place place, const float *from, float *sums) {
    const long outputs = job->outputs;
    float *passed = sums + place.picture * 2 * outputs, *products = passed + outputs;
    for (long channel = 0; channel < outputs; channel += LANES) {
        Vector columns[SEEN][LARGE], pass = all(0), product = all(0);
        read_columns(side, from + channel, apart(side, outputs), columns);
        for (int y = 0; y < side && y < place.rows; y++) {
            Vector result[LARGE];
            read_row(side, columns, y, result);
            for (int x = 0; x < side && x < place.columns; x++) {
                const long value = pixel_of(job, place, y, x) * outputs + channel;
                const Vector after = load((const float *)job->after + value);
                Vector gradient = result[x], activated = after;
                if (job->skip) gradient = add(gradient, load((const float *)job->skip + value));
                gradient = where_positive(after, gradient);
                store((float *)job->target + value, gradient);
                if (job->tells) {
                    activated = larger(all(0), sub(after, load((const float *)job->tells + value)));
                    gradient = where_positive(activated, gradient);
                }
                pass = add(pass, gradient);
                product = product_plus(gradient, activated, product);
            }
        }
        store(passed + channel, add(load(passed + channel), pass));
        store(products + channel, add(load(products + channel), product));
    }
}

/* Takes parts of the tiles until there are none left. */
INLINE void convolve(const long side, const int kind, Convolution *shared) {
    const Convolution own = *shared, *job = &own; /* which nothing that is stored can be, so that it is read once */
    const long inputs = job->inputs, outputs = job->outputs, places = places_of(side), at_once = tiles_at_once(side);
    const long channels = job->cell ? outputs / gates_of(job) : outputs;
    const Tiling tiling = tiling_of(job, side);
    const long parts = job->sums ? job->parts : (tiling.number + at_once - 1) / at_once;
    float *given, *seen = make_room(shared, side, &given);
    if (!seen) return;
    for (;;) {
        long part = __atomic_fetch_add(&shared->next, 1, __ATOMIC_RELAXED);
        if (part >= parts) break;
        const long summed = job->count * (job->after ? 2 : job->width) * channels;
        float *sums = job->sums ? memset(job->sums + part * summed, 0, sizeof(float) * summed) : NULL;
        long end = tiling.number * (part + 1) / parts;
        for (long begin = tiling.number * part / parts; begin < end; begin += at_once) {
            long number = end - begin < at_once ? end - begin : at_once;
            Place tiles[AT_ONCE];
            for (long tile = 0; tile < number; tile++) {
                tiles[tile] = place_of(job, side, tiling, begin + tile);
                read_tile(side, kind, job, tiles[tile], seen + tile * inputs);
            }
            for (long tile = number; tile % ROWS; tile++) /* multiplied, but not written */
                for (long place = 0; place < places; place++)
                    for (long input = 0; input < inputs; input++) seen[place * apart(side, inputs) + tile * inputs + input] = 0;
            for (long place = 0; place < places; place++) {
                if (!job->cell) fetch(side, kind, job, tiles, number, place);
                for (long output = 0; output < outputs; output += OUTPUTS)
                    for (long tile = 0; tile < number; tile += ROWS)
                        multiply(seen + place * apart(side, inputs) + tile * inputs,
                                 job->kernel + (place * outputs + output) * inputs,
                                 given + place * apart(side, outputs) + tile * outputs + output, inputs, outputs);
            }
            for (long tile = 0; tile < number; tile++)
                if (job->cell) write_state(side, kind, job, tiles[tile], given + tile * outputs, sums);
                else if (job->after) write_gradient(side, job, tiles[tile], given + tile * outputs, sums);
                else write_tile(side, kind, job, tiles[tile], given + tile * outputs, sums);
        }
    }
    free(seen);
}

/* What each thread of a convolution runs. */
void sapnet_convolve(void *shared) {
    Convolution *job = shared;
    const int small = job->side == SMALL;
    if (job->kind == HALVES && small) convolve(SMALL, HALVES, job);
    else if (job->kind == HALVES) convolve(LARGE, HALVES, job);
    else if (job->kind == BRAIN_FLOATS && small) convolve(SMALL, BRAIN_FLOATS, job);
    else if (job->kind == BRAIN_FLOATS) convolve(LARGE, BRAIN_FLOATS, job);
    else if (small) convolve(SMALL, FLOATS, job);
    else convolve(LARGE, FLOATS, job);
}
