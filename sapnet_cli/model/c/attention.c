/* Channel residual attention: what it pools of features, and what it scales channels by. */

#include <string.h>

#include "vectors.h"

/* What is to be pooled of a plane; `Pooling` of `native.py` has the same fields. */
typedef struct {
    const void *plane;                /* (count, height, width, channels) */
    float *columns;                   /* (parts, count, width, channels): of it over rows; what they are after is no matter */
    const long *cores;                /* (count, 4): first row and end, first column and end */
    const float *kernel, *bias;       /* of the convolution to come, (3, 3, channels, outputs) and (outputs) */
    float *means;                     /* (count, outputs): of what it will give, over cores */
    long count, height, width, channels, outputs, dilation;
    long parts;                       /* two or more */
    long halves;                      /* what the plane is, or floats */
} Pooling;

/* A position, but not beyond either end. */
static long within(long position, long length) { return position < 0 ? 0 : position > length ? length : position; }

/* Adds rows, counted through all pictures, to sums over rows, or takes them away. */
static void add_rows(const Pooling *job, long first, long end, float sign, float *columns) {
    const long line = job->width * job->channels;
    for (long row = first; row < end; row++)
        for (long value = 0; value < line; value += LANES) {
            Vector more = load_features(job->halves, job->plane, row * line + value);
            store(columns + value, plus(sign, more, load(columns + value)));
        }
}

/* Sums over columns, first those of some, so that rounding errors do not add up. */
static Vector sum_columns(const Pooling *job, const float *columns, long first, long end) {
    enum { SOME = 64 };
    Vector sum = all(0);
    for (long begin = first; begin < end; begin += SOME) {
        Vector some = all(0);
        for (long column = begin; column < end && column < begin + SOME; column++)
            some = add(some, load(columns + column * job->channels));
        sum = add(sum, some);
    }
    return sum;
}

/* Adds products of values with rows of a matrix, (number, outputs), to sums. */
static void add_products(const float *values, const float *matrix, long number, long outputs, float *sums) {
    for (long output = 0; output < outputs; output += LANES) {
        Vector sum = load(sums + output);
        for (long value = 0; value < number; value++)
            sum = product_plus(all(values[value]), load(matrix + value * outputs + output), sum);
        store(sums + output, sum);
    }
}

/* The mean over the core of each picture of what a convolution will give: its kernel times the means of what its nine
   taps see from there, of rectangles. */
void sapnet_pool(void *shared) {
    Pooling *job = shared;
    const long line = job->width * job->channels, dilation = job->dilation;
    for (long picture = 0; picture < job->count; picture++) {
        const long *core = job->cores + 4 * picture, area = (core[1] - core[0]) * (core[3] - core[2]);
        float *columns = job->columns + picture * line, *means = job->means + picture * job->outputs;
        for (long part = 1; part < job->parts; part++)
            for (long value = 0; value < line; value += LANES)
                store(columns + value, add(load(columns + value), load(columns + part * job->count * line + value)));
        float *rectangle = columns + job->count * line; /* of the second part, which has been added */
        memcpy(means, job->bias, sizeof(float) * job->outputs);
        const long top = picture * job->height;
        long seen_first = 0, seen_end = job->height; /* rows that `columns` is of */
        for (long tap = 0; tap < 9; tap += 3) {
            const long down = (tap / 3 - 1) * dilation;
            const long first = within(core[0] + down, job->height), end = within(core[1] + down, job->height);
            add_rows(job, top + seen_first, top + first, -1, columns);
            add_rows(job, top + end, top + seen_end, -1, columns);
            add_rows(job, top + seen_end, top + end, 1, columns);
            seen_first = first, seen_end = end;
            for (long right = 0; right < 3; right++) {
                const long left = within(core[2] + (right - 1) * dilation, job->width);
                const long stop = within(core[3] + (right - 1) * dilation, job->width);
                for (long channel = 0; channel < job->channels; channel += LANES)
                    store(rectangle + channel, times(1.0f / area, sum_columns(job, columns + channel, left, stop)));
                const float *kernel = job->kernel + (tap + right) * job->channels * job->outputs;
                add_products(rectangle, kernel, job->channels, job->outputs, means);
            }
        }
    }
}

/* What scales a convolution; `Attention` of `native.py` has the same fields. */
typedef struct {
    const float *pooled;              /* (channels) */
    const float *direct;              /* (channels, channels), input by input */
    const float *squeeze, *expand;    /* (squeezed, channels) both */
    const float *bias;                /* of the convolution, (channels) */
    float *scale, *scaled_bias;       /* (channels) */
    long channels, squeezed;
} Attention;

/* The paper's section 3.2: the sigmoid of A p + D2 ReLU(D1 p). */
void sapnet_attend(void *shared) {
    Attention *job = shared;
    const long channels = job->channels;
    memset(job->scale, 0, sizeof(float) * channels);
    add_products(job->pooled, job->direct, channels, channels, job->scale);
    for (long each = 0; each < job->squeezed; each++) {
        float value = 0;
        for (long channel = 0; channel < channels; channel++) value += job->pooled[channel] * job->squeeze[each * channels + channel];
        if (!(value <= 0)) add_products(&value, job->expand + each * channels, 1, channels, job->scale); /* also what is no number */
    }
    for (long channel = 0; channel < channels; channel += LANES) {
        Vector scale = sigmoid(load(job->scale + channel));
        store(job->scale + channel, scale);
        store(job->scaled_bias + channel, mul(scale, load(job->bias + channel)));
    }
}
