/* Channel residual attention: what it pools of features, and what it scales channels by. */

#include <string.h>

#include "vectors.h"

enum { SOME_COLUMNS = 16 }; /* that a thread sums at once */

/* What is to be pooled of a plane; `Pooling` of `native.py` has the same fields. */
typedef struct {
    const void *plane;                /* (count, height, width, channels) */
    const float *parts;               /* (number, count, width, channels): of it over rows, in parts */
    float *columns;                   /* (3, count, width, channels): room for those over the rows that each row of taps sees */
    const long *cores;                /* (count, 4): first row and end, first column and end */
    const float *kernel, *bias;       /* of the convolution to come, (3, 3, channels, outputs) and (outputs) */
    float *rectangle;                 /* (channels): room */
    float *means;                     /* (count, outputs): of what it will give, over cores */
    long number, count, height, width, channels, outputs, dilation;
    long kind;                        /* of the plane's features */
    long next, done;                  /* of some columns each: that no thread has taken yet, and how many are summed */
} Pooling;

/* A position, but not beyond either end. */
static long within(long position, long length) { return position < 0 ? 0 : position > length ? length : position; }

/* Sums some columns of a picture over the rows that each row of taps sees from the core: parts first, then what taps see
   more or less of. */
static void sum_over_rows(const Pooling *job, long picture, long first, long end) {
    const long line = job->width * job->channels, size = job->count * line, top = picture * job->height;
    const long *core = job->cores + 4 * picture;
    for (long at = first * job->channels; at < end * job->channels; at += LANES) {
        Vector sum = all(0);
        for (long part = 0; part < job->number; part++) sum = add(sum, load(job->parts + part * size + picture * line + at));
        long seen_first = 0, seen_end = job->height; /* rows that it is of */
        for (long tap = 0; tap < 3; tap++) {
            const long down = (tap - 1) * job->dilation;
            const long from = within(core[0] + down, job->height), to = within(core[1] + down, job->height);
            const void *plane = job->plane;
            for (long row = seen_first; row < from; row++) sum = sub(sum, load_features(job->kind, plane, (top + row) * line + at));
            for (long row = to; row < seen_end; row++) sum = sub(sum, load_features(job->kind, plane, (top + row) * line + at));
            for (long row = seen_end; row < to; row++) sum = add(sum, load_features(job->kind, plane, (top + row) * line + at));
            seen_first = from, seen_end = to;
            store(job->columns + tap * size + picture * line + at, sum);
        }
    }
}

/* Sums over columns, first those of some, so that rounding errors do not add up. */
static Vector sum_columns(const float *columns, long first, long end, long channels) {
    enum { SOME = 64 };
    Vector sum = all(0);
    for (long begin = first; begin < end; begin += SOME) {
        Vector some = all(0);
        for (long column = begin; column < end && column < begin + SOME; column++)
            some = add(some, load(columns + column * channels));
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

/* The mean over the core of a picture of what a convolution will give: its kernel times the means of what its nine taps
   see from there, of rectangles. */
static void find_means(const Pooling *job, long picture) {
    const long channels = job->channels, outputs = job->outputs, *core = job->cores + 4 * picture;
    const float area = (core[1] - core[0]) * (core[3] - core[2]);
    float *means = job->means + picture * outputs;
    memcpy(means, job->bias, sizeof(float) * outputs);
    for (long tap = 0; tap < 9; tap++) {
        const float *columns = job->columns + (tap / 3 * job->count + picture) * job->width * channels;
        const long right = (tap % 3 - 1) * job->dilation;
        const long first = within(core[2] + right, job->width), end = within(core[3] + right, job->width);
        for (long channel = 0; channel < channels; channel += LANES)
            store(job->rectangle + channel, times(1 / area, sum_columns(columns + channel, first, end, channels)));
        add_products(job->rectangle, job->kernel + tap * channels * outputs, channels, outputs, means);
    }
}

/* What each thread runs: some columns at a time until there are none left; who sums the last ones finds the means. */
void sapnet_pool(void *shared) {
    Pooling *job = shared;
    const long pieces = (job->width + SOME_COLUMNS - 1) / SOME_COLUMNS, number = job->count * pieces;
    for (;;) {
        const long piece = __atomic_fetch_add(&job->next, 1, __ATOMIC_RELAXED), first = piece % pieces * SOME_COLUMNS;
        if (piece >= number) return;
        const long end = first + SOME_COLUMNS < job->width ? first + SOME_COLUMNS : job->width;
        sum_over_rows(job, piece / pieces, first, end);
        if (__atomic_add_fetch(&job->done, 1, __ATOMIC_ACQ_REL) < number) continue;
        for (long picture = 0; picture < job->count; picture++) find_means(job, picture);
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
