/* Sums of features over rectangles, which attention needs. */

#include "vectors.h"

/* What sums are needed over; `Sums` of `native.py` has the same fields. */
typedef struct {
    const void *plane;                /* (count, height, width, channels) */
    float *columns;                   /* (parts, count, width, channels): of it over rows; what they are after is no matter */
    float *rectangles;                /* (count, 3, 3, channels), over the area of the core */
    const long *cores;                /* (count, 4): first row and end, first column and end */
    long count, height, width, channels, dilation, parts;
    long halves;                      /* what the plane is, or floats */
} Sums;

/* A position, but not beyond either end. */
static long within(long position, long length) { return position < 0 ? 0 : position > length ? length : position; }

/* Adds rows, counted through all pictures, to sums over rows, or takes them away. */
static void add_rows(const Sums *job, long first, long end, float sign, float *columns) {
    const long line = job->width * job->channels;
    for (long row = first; row < end; row++)
        for (long value = 0; value < line; value += LANES) {
            Vector more = load_features(job->halves, job->plane, row * line + value);
            store(columns + value, plus(sign, more, load(columns + value)));
        }
}

/* Sums over columns, first those of some, so that rounding errors do not add up. */
static Vector sum_columns(const Sums *job, const float *columns, long first, long end) {
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

/* Sums over the rectangles that the nine taps of a convolution see from the core of each picture. */
void sapnet_sum(void *shared) {
    Sums *job = shared;
    const long line = job->width * job->channels, dilation = job->dilation;
    for (long picture = 0; picture < job->count; picture++) {
        const long *core = job->cores + 4 * picture, area = (core[1] - core[0]) * (core[3] - core[2]);
        float *columns = job->columns + picture * line;
        for (long part = 1; part < job->parts; part++)
            for (long value = 0; value < line; value += LANES)
                store(columns + value, add(load(columns + value), load(columns + part * job->count * line + value)));
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
                float *rectangle = job->rectangles + (picture * 9 + tap + right) * job->channels;
                for (long channel = 0; channel < job->channels; channel += LANES)
                    store(rectangle + channel, times(1.0f / area, sum_columns(job, columns + channel, left, stop)));
            }
        }
    }
}
