/* Winograd's F(4x4, 3x3) and F(6x6, 3x3): tiles, where they lie, and their transforms.

   Features lie channels last, so that each pixel is a run of vectors and dilation but a larger step between pixels. A
   tile is 4x4 or 6x6 pixels that lie `dilation` apart, and reads those around them, too. Lavin and Gray, "Fast
   algorithms for convolutional neural networks" (CVPR 2016). The points of small tiles are 0, +-sqrt(1/2), +-sqrt(2) and
   infinity, which keep rounding errors small; those of large ones 0, +-1, +-1/2, +-2 and infinity. */

#ifndef SAPNET_WINOGRAD
#define SAPNET_WINOGRAD

#include <stdlib.h>

#include "convolution.h"
#include "vectors.h"

enum {
    SMALL = 4,           /* side of the pixels that a tile gives */
    LARGE = 6,
    BEYOND = 2,          /* more that it reads along a side */
    SEEN = 8,            /* that it reads along a side, at most */
    OUTPUTS = 2 * LANES, /* channels that lie side by side in a kernel */
    AT_ONCE = 24 / (2 * PAIRS) * (2 * PAIRS), /* tiles of a thread, at most */
    LINE = 16            /* floats that a cache fetches together */
};

static const float A = 0.70710678f, A2 = 0.5f, A3 = 0.35355339f;
static const float B = 1.41421356f, B2 = 2.0f, B3 = 2.82842712f;
static const float SQUARES = 2.5f; /* A2 + B2 */

/* What the pixels that a tile reads in a line are at the points. */
INLINE void transform(const long side, const Vector *d, Vector *v) {
    Vector even, odd, next_even, next_odd;
    if (side == SMALL) {
        even = minus(B2, d[2], d[4]), odd = times(A, minus(B2, d[1], d[3]));
        next_even = minus(A2, d[2], d[4]), next_odd = times(B, minus(A2, d[1], d[3]));
        v[0] = minus(SQUARES, d[2], add(d[0], d[4]));
        v[5] = minus(SQUARES, d[3], add(d[1], d[5]));
    } else {
        even = add(d[2], minus(4.25f, d[4], d[6])), odd = add(d[1], minus(4.25f, d[3], d[5]));
        next_even = plus(4, d[2], minus(5, d[4], d[6])), next_odd = plus(2, d[1], minus(2.5f, d[3], times(0.5f, d[5])));
        Vector last_even = plus(0.25f, d[2], minus(1.25f, d[4], d[6]));
        Vector last_odd = plus(0.5f, d[1], minus(2.5f, d[3], add(d[5], d[5])));
        v[0] = plus(5.25f, sub(d[2], d[4]), sub(d[6], d[0]));
        v[5] = add(last_even, last_odd);
        v[6] = sub(last_even, last_odd);
        v[7] = plus(5.25f, sub(d[3], d[5]), sub(d[7], d[1]));
    }
    v[1] = add(even, odd);
    v[2] = sub(even, odd);
    v[3] = add(next_even, next_odd);
    v[4] = sub(next_even, next_odd);
}

/* The pixels that a tile gives in a line, of products at the points. */
INLINE void transform_back(const long side, const Vector *m, Vector *y) {
    Vector sum = add(m[1], m[2]), difference = sub(m[1], m[2]);
    Vector next_sum = add(m[3], m[4]), next_difference = sub(m[3], m[4]);
    if (side == SMALL) {
        y[0] = add(m[0], add(sum, next_sum));
        y[1] = plus(A, difference, times(B, next_difference));
        y[2] = plus(A2, sum, times(B2, next_sum));
        y[3] = plus(A3, difference, plus(B3, next_difference, m[5]));
    } else {
        Vector last_sum = add(m[5], m[6]), last_difference = sub(m[5], m[6]);
        y[0] = add(add(m[0], sum), add(next_sum, last_sum));
        y[1] = plus(0.5f, next_difference, plus(2, last_difference, difference));
        y[2] = plus(0.25f, next_sum, plus(4, last_sum, sum));
        y[3] = plus(0.125f, next_difference, plus(8, last_difference, difference));
        y[4] = plus(0.0625f, next_sum, plus(16, last_sum, sum));
        y[5] = plus(0.03125f, next_difference, plus(32, last_difference, add(m[7], difference)));
    }
}

/* The adjoint of `transform_back`: what products add up to, of the gradient of the pixels that a tile gives in a line. */
INLINE void transform_gradient(const long side, const Vector *y, Vector *m) {
    Vector even, odd, next_even, next_odd;
    if (side == SMALL) {
        even = plus(A2, y[2], y[0]), odd = plus(A3, y[3], times(A, y[1]));
        next_even = plus(B2, y[2], y[0]), next_odd = plus(B3, y[3], times(B, y[1]));
        m[5] = y[3];
    } else {
        even = add(y[0], add(y[2], y[4])), odd = add(y[1], add(y[3], y[5]));
        next_even = plus(0.25f, plus(0.25f, y[4], y[2]), y[0]);
        next_odd = times(0.5f, plus(0.25f, plus(0.25f, y[5], y[3]), y[1]));
        Vector last_even = plus(4, plus(4, y[4], y[2]), y[0]), last_odd = times(2, plus(4, plus(4, y[5], y[3]), y[1]));
        m[5] = add(last_even, last_odd);
        m[6] = sub(last_even, last_odd);
        m[7] = y[5];
    }
    m[0] = y[0];
    m[1] = add(even, odd);
    m[2] = sub(even, odd);
    m[3] = add(next_even, next_odd);
    m[4] = sub(next_even, next_odd);
}

/* Values of a transformed tile, of each channel. */
INLINE long places_of(const long side) { return (side + BEYOND) * (side + BEYOND); }

/* Tiles that a thread takes at once: transformed they fit into its cache; a multiple of what is multiplied at once. */
INLINE long tiles_at_once(const long side) { return side == SMALL ? AT_ONCE : AT_ONCE / 2; }

/* How far places lie from each other, of so many channels of tiles: a line of a cache further than they must, or most
   would fall into the same few sets of it. */
INLINE long apart(const long side, long channels) { return tiles_at_once(side) * channels + LINE; }

/* Tiles along a side of a picture: one for each of the pixels that are `dilation` apart, then on by `side` times that. */
static long tiles_along(long side, long length, long dilation) {
    long step = side * dilation, rest = length % step;
    return length / step * dilation + (rest < dilation ? rest : dilation);
}

/* Where a tile is. */
typedef struct {
    long picture, top, left;
    long pixel;                       /* its first, of all that are given */
    long rows, columns;               /* of it that are given: others lie beyond the picture */
} Place;

/* All tiles of a convolution. */
typedef struct {
    long down, across, number;
} Tiling;

static Tiling tiling_of(const Convolution *job, long side) {
    const long down = tiles_along(side, job->height, job->dilation);
    const long across = tiles_along(side, job->width, job->dilation);
    Tiling tiling = {down, across, job->count * down * across};
    return tiling;
}

/* First pixel of a tile along a side. */
static long first_pixel(long side, long tile, long dilation) { return tile / dilation * side * dilation + tile % dilation; }

static Place place_of(const Convolution *job, long side, Tiling tiling, long tile) {
    const long picture = tile / (tiling.down * tiling.across), step = job->dilation;
    const long top = first_pixel(side, tile / tiling.across % tiling.down, step);
    const long left = first_pixel(side, tile % tiling.across, step);
    const long rows = (job->height - top + step - 1) / step, columns = (job->width - left + step - 1) / step;
    Place place = {picture, top, left, (picture * job->height + top) * job->width + left,
                   rows < side ? rows : side, columns < side ? columns : side};
    return place;
}

/* Of a tile, counted from its first. */
static inline long pixel_of(const Convolution *job, Place place, long y, long x) {
    return place.pixel + (y * job->width + x) * job->dilation;
}

/* Transforms the rows of a tile, or of a gradient, of its transformed columns, and writes them, `to` + place * distance. */
INLINE void write_rows(const long side, const int gradient, Vector (*columns)[SEEN], float *to, long distance) {
    const long seen = side + BEYOND, columns_there = gradient ? side : seen;
    for (int y = 0; y < seen; y++) {
        Vector line[SEEN], result[SEEN];
        for (int x = 0; x < columns_there; x++) line[x] = columns[x][y];
        if (gradient) transform_gradient(side, line, result);
        else transform(side, line, result);
        for (int x = 0; x < seen; x++) store(to + (y * seen + x) * distance, result[x]);
    }
}

/* Reads a tile, `to` + place * `apart`. */
INLINE void read_tile(const long side, const int kind, const Convolution *job, Place place, float *to) {
    const long seen = side + BEYOND, step = job->dilation, inputs = job->inputs;
    const long top = place.top - step, left = place.left - step;
    const int inside = top >= 0 && left >= 0 && top + (seen - 1) * step < job->height && left + (seen - 1) * step < job->width;
    for (long channel = 0; channel < inputs; channel += LANES) {
        const long own = channel < job->own, stride = own ? job->own : inputs - job->own;
        const void *source = own ? job->source : job->state;
        const long first = place.picture * job->height * job->width * stride + (own ? channel : channel - job->own);
        Vector columns[SEEN][SEEN];
        for (int x = 0; x < seen; x++) {
            Vector column[SEEN];
            for (int y = 0; y < seen; y++) {
                long row = top + y * step, at = left + x * step;
                int there = inside || (row >= 0 && row < job->height && at >= 0 && at < job->width);
                column[y] = there ? load_features(kind, source, first + (row * job->width + at) * stride) : all(0);
            }
            transform(side, column, columns[x]);
        }
        write_rows(side, 0, columns, to + channel, apart(side, inputs));
    }
}

/* Room for the transformed tiles of a thread, and where that of their outputs begins. */
static float *make_room(Convolution *job, long side, float **given) {
    const long places = places_of(side), of_inputs = places * apart(side, job->inputs);
    float *seen = aligned_alloc(64, sizeof(float) * (of_inputs + places * apart(side, job->outputs)));
    if (!seen) __atomic_store_n(&job->failed, 1, __ATOMIC_RELAXED);
    *given = seen + of_inputs;
    return seen;
}

#endif
