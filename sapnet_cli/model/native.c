/* 3x3 convolutions in fp32 by Winograd's F(4x4, 3x3) and F(6x6, 3x3), an LSTM's step, a convolution to an image, sums,
   and halves in files, for x86 CPUs with AVX2 and FMA, or AVX512; `native.py` says what for.

   Features lie channels last, so that each pixel is a run of vectors and dilation but a larger step between pixels. A
   tile is 4x4 or 6x6 pixels that lie `dilation` apart, and reads those around them, too. Lavin and Gray, "Fast
   algorithms for convolutional neural networks" (CVPR 2016). The points of small tiles are 0, +-sqrt(1/2), +-sqrt(2) and
   infinity, which keep rounding errors small; those of large ones 0, +-1, +-1/2, +-2 and infinity. */

#include <errno.h>
#include <immintrin.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* So that what depends on the side of a tile is compiled for each of them. */
#define INLINE static inline __attribute__((always_inline))

#ifdef __AVX512F__
typedef __m512 Vector;
enum {
    LANES = 16, /* floats of a vector */
    ROWS = 12   /* tiles that are multiplied at once: with two vectors of outputs each, most registers are in use */
};

static inline Vector all(float value) { return _mm512_set1_ps(value); }
static inline Vector load(const float *from) { return _mm512_loadu_ps(from); }
static inline void store(float *to, Vector x) { _mm512_storeu_ps(to, x); }
static inline Vector add(Vector x, Vector y) { return _mm512_add_ps(x, y); }
static inline Vector sub(Vector x, Vector y) { return _mm512_sub_ps(x, y); }
static inline Vector mul(Vector x, Vector y) { return _mm512_mul_ps(x, y); }
static inline Vector over(Vector x, Vector y) { /* by one step of Newton's from 14 bits: a division takes three times as long */
    Vector inverse = _mm512_rcp14_ps(y);
    return mul(x, mul(inverse, _mm512_fnmadd_ps(y, inverse, all(2))));
}
static inline Vector product_plus(Vector x, Vector y, Vector z) { return _mm512_fmadd_ps(x, y, z); }   /* x y + z */
static inline Vector less_product(Vector x, Vector y, Vector z) { return _mm512_fnmadd_ps(x, y, z); } /* z - x y */
static inline Vector smaller(Vector x, Vector y) { return _mm512_min_ps(x, y); } /* the second where one is no number */
static inline Vector larger(Vector x, Vector y) { return _mm512_max_ps(x, y); }
static inline Vector nearest(Vector x) { return _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
static inline Vector by_power(Vector x, Vector of) { return _mm512_scalef_ps(x, of); } /* x times two to a whole number */
static inline float total(Vector x) { return _mm512_reduce_add_ps(x); }
static inline void store_halves(short *to, Vector x) {
    _mm256_storeu_si256((void *)to, _mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
static inline Vector load_halves(const short *from) { return _mm512_cvtph_ps(_mm256_loadu_si256((const void *)from)); }
#else
typedef __m256 Vector;
enum {
    LANES = 8,
    ROWS = 6
};

static inline Vector all(float value) { return _mm256_set1_ps(value); }
static inline Vector load(const float *from) { return _mm256_loadu_ps(from); }
static inline void store(float *to, Vector x) { _mm256_storeu_ps(to, x); }
static inline Vector add(Vector x, Vector y) { return _mm256_add_ps(x, y); }
static inline Vector sub(Vector x, Vector y) { return _mm256_sub_ps(x, y); }
static inline Vector mul(Vector x, Vector y) { return _mm256_mul_ps(x, y); }
static inline Vector over(Vector x, Vector y) { return _mm256_div_ps(x, y); }
static inline Vector product_plus(Vector x, Vector y, Vector z) { return _mm256_fmadd_ps(x, y, z); }
static inline Vector less_product(Vector x, Vector y, Vector z) { return _mm256_fnmadd_ps(x, y, z); }
static inline Vector smaller(Vector x, Vector y) { return _mm256_min_ps(x, y); }
static inline Vector larger(Vector x, Vector y) { return _mm256_max_ps(x, y); }
static inline Vector nearest(Vector x) { return _mm256_round_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
static inline Vector by_power(Vector x, Vector of) {
    __m256i exponent = _mm256_add_epi32(_mm256_cvtps_epi32(of), _mm256_set1_epi32(127));
    return mul(x, _mm256_castsi256_ps(_mm256_slli_epi32(exponent, 23)));
}
static inline float total(Vector x) {
    __m128 half = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    __m128 quarter = _mm_add_ps(half, _mm_movehl_ps(half, half));
    return _mm_cvtss_f32(_mm_add_ss(quarter, _mm_movehdup_ps(quarter)));
}
static inline void store_halves(short *to, Vector x) {
    _mm_storeu_si128((void *)to, _mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
static inline Vector load_halves(const short *from) { return _mm256_cvtph_ps(_mm_loadu_si128((const void *)from)); }
#endif

static inline Vector times(float x, Vector y) { return mul(all(x), y); }
static inline Vector plus(float x, Vector y, Vector z) { return product_plus(all(x), y, z); }
static inline Vector minus(float x, Vector y, Vector z) { return less_product(all(x), y, z); }

enum {
    SMALL = 4,    /* side of the pixels that a tile gives */
    LARGE = 6,
    BEYOND = 2,   /* more that it reads along a side */
    SEEN = 8,     /* that it reads along a side, at most */
    GATES = 4,    /* of an LSTM, at most */
    COLOURS = 3,  /* of an image */
    PIXELS = 4,   /* of an image that are computed at once: with a sum for each colour all registers are in use */
    INPUTS = 4,   /* channels of which a gradient is summed at once */
    OUTPUTS = 2 * LANES, /* channels that lie side by side in a kernel */
    AT_ONCE = 24, /* tiles of a thread, at most */
    LINE = 16     /* floats that a cache fetches together */
};

/* What all threads of one convolution share; `Convolution` of `native.py` has the same fields. */
typedef struct {
    const float *source, *state;      /* (count, height, width, own) and, if any, (..., inputs - own): side by side */
    float *kernel;                    /* (places, outputs / OUTPUTS, inputs, OUTPUTS); its gradient (parts, the same) */
    const float *scale, *bias;        /* (outputs) */
    const float *skip;                /* like target, or none */
    float *target;                    /* (count, target_height, target_width, outputs), or the gradient of it */
    float *cell;                      /* see `write_state`, or none */
    float *sums;                      /* (parts, count, target_width, as target): of target over rows, or none */
    long count, height, width, inputs, own, outputs, dilation;
    long above, left;                 /* zeros beyond the edges */
    long target_height, target_width;
    long side;                        /* of the tiles, SMALL or LARGE */
    long relu;                        /* ReLU(ReLU(scale * convolution + bias) + skip), or without either */
    long parts;                       /* that a gradient or sums are summed in, each in order, whoever sums it */
    long next;                        /* tile or part that no thread has taken yet */
    long failed;                      /* a thread had no memory */
} Convolution;

static const float A = 0.70710678f, A2 = 0.5f, A3 = 0.35355339f;
static const float B = 1.41421356f, B2 = 2.0f, B3 = 2.82842712f;
static const float SQUARES = 2.5f; /* A2 + B2 */

const long sapnet_lanes = LANES;

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

/* ROWS tiles times OUTPUTS channels, at one place. */
static inline void multiply(const float *seen, const float *kernel, float *given, long inputs, long outputs) {
    Vector sums[ROWS][2];
    for (int row = 0; row < ROWS; row++) sums[row][0] = sums[row][1] = all(0);
    for (long input = 0; input < inputs; input++) {
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

/* Values of a transformed tile, of each channel. */
INLINE long places_of(const long side) { return (side + BEYOND) * (side + BEYOND); }

/* Tiles that a thread takes at once: transformed they fit into its cache; a multiple of ROWS. */
INLINE long tiles_at_once(const long side) { return side == SMALL ? AT_ONCE : AT_ONCE / 2; }

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
    const long down = tiles_along(side, job->target_height, job->dilation);
    const long across = tiles_along(side, job->target_width, job->dilation);
    Tiling tiling = {down, across, job->count * down * across};
    return tiling;
}

/* First pixel of a tile along a side. */
static long first_pixel(long side, long tile, long dilation) { return tile / dilation * side * dilation + tile % dilation; }

static Place place_of(const Convolution *job, long side, Tiling tiling, long tile) {
    const long picture = tile / (tiling.down * tiling.across), step = job->dilation;
    const long top = first_pixel(side, tile / tiling.across % tiling.down, step);
    const long left = first_pixel(side, tile % tiling.across, step);
    const long rows = (job->target_height - top + step - 1) / step, columns = (job->target_width - left + step - 1) / step;
    Place place = {picture, top, left, (picture * job->target_height + top) * job->target_width + left,
                   rows < side ? rows : side, columns < side ? columns : side};
    return place;
}

/* Of a tile, counted from its first. */
static inline long pixel_of(const Convolution *job, Place place, long y, long x) {
    return place.pixel + (y * job->target_width + x) * job->dilation;
}

/* Transforms the rows of a tile, or of a gradient, of its transformed columns, and writes them, `to` + place * apart. */
INLINE void write_rows(const long side, const int gradient, Vector (*columns)[SEEN], float *to, long apart) {
    const long seen = side + BEYOND, columns_there = gradient ? side : seen;
    for (int y = 0; y < seen; y++) {
        Vector line[SEEN], result[SEEN];
        for (int x = 0; x < columns_there; x++) line[x] = columns[x][y];
        if (gradient) transform_gradient(side, line, result);
        else transform(side, line, result);
        for (int x = 0; x < seen; x++) store(to + (y * seen + x) * apart, result[x]);
    }
}

/* Reads a tile, `to` + place * tiles_at_once * inputs. */
INLINE void read_tile(const long side, const Convolution *job, Place place, float *to) {
    const long seen = side + BEYOND, step = job->dilation, inputs = job->inputs;
    const long top = place.top - job->above, left = place.left - job->left;
    const int inside = top >= 0 && left >= 0 && top + (seen - 1) * step < job->height && left + (seen - 1) * step < job->width;
    for (long channel = 0; channel < inputs; channel += LANES) {
        const long own = channel < job->own, stride = own ? job->own : inputs - job->own;
        const float *source = own ? job->source + channel : job->state + channel - job->own;
        source += place.picture * job->height * job->width * stride;
        Vector columns[SEEN][SEEN];
        for (int x = 0; x < seen; x++) {
            Vector column[SEEN];
            for (int y = 0; y < seen; y++) {
                long row = top + y * step, at = left + x * step;
                int there = inside || (row >= 0 && row < job->height && at >= 0 && at < job->width);
                column[y] = there ? load(source + (row * job->width + at) * stride) : all(0);
            }
            transform(side, column, columns[x]);
        }
        write_rows(side, 0, columns, to + channel, tiles_at_once(side) * inputs);
    }
}

/* Transforms the columns of a tile back, `from` + place * apart. */
INLINE void read_columns(const long side, const float *from, long apart, Vector columns[SEEN][LARGE]) {
    for (int x = 0; x < side + BEYOND; x++) {
        Vector column[SEEN];
        for (int y = 0; y < side + BEYOND; y++) column[y] = load(from + (y * (side + BEYOND) + x) * apart);
        transform_back(side, column, columns[x]);
    }
}

/* A row of a tile, of its columns. */
INLINE void read_row(const long side, Vector columns[SEEN][LARGE], int y, Vector *row) {
    Vector line[SEEN];
    for (int x = 0; x < side + BEYOND; x++) line[x] = columns[x][y];
    transform_back(side, line, row);
}

/* Adds what a tile has in each column, of some channels, to the sums of a part, (count, target_width, channels). */
INLINE void add_sums(const long side, const Convolution *job, Place place, long channels, const Vector *totals, float *sums) {
    for (int x = 0; x < side && x < place.columns; x++) {
        float *sum = sums + (place.picture * job->target_width + place.left + x * job->dilation) * channels;
        store(sum, add(load(sum), totals[x]));
    }
}

/* Writes a tile, `from` + place * tiles_at_once * outputs, and adds it to the sums of a part. */
INLINE void write_tile(const long side, const Convolution *job, Place place, const float *from, float *sums) {
    const long outputs = job->outputs;
    const Vector zero = all(0);
    for (long channel = 0; channel < outputs; channel += LANES) {
        Vector scale = load(job->scale + channel), bias = load(job->bias + channel);
        Vector columns[SEEN][LARGE], totals[LARGE] = {zero, zero, zero, zero, zero, zero};
        read_columns(side, from + channel, tiles_at_once(side) * outputs, columns);
        for (int y = 0; y < side && y < place.rows; y++) {
            Vector result[LARGE];
            read_row(side, columns, y, result);
            for (int x = 0; x < side && x < place.columns; x++) {
                long pixel = pixel_of(job, place, y, x);
                Vector value = product_plus(result[x], scale, bias);
                if (job->relu) value = larger(zero, value); /* the second where it is no number */
                if (job->skip) value = add(value, load(job->skip + pixel * outputs + channel));
                if (job->relu) value = larger(zero, value);
                store(job->target + pixel * outputs + channel, value);
                totals[x] = add(totals[x], value);
            }
        }
        if (sums) add_sums(side, job, place, outputs, totals, sums + channel);
    }
}

/* e to the -x, for an x that is brought so near to zero that two of these can be multiplied: two to a whole number times
   a polynomial, the best of its degree, off by 2e-9. What is no number stays none. */
static inline Vector decay(Vector x) {
    static const float series[] = {1.5345812e-4f, -1.3399931e-3f, 9.618489e-3f, -5.5503288e-2f, 2.4022647e-1f, -6.9314721e-1f, 1};
    static const float log2 = 1.44269504f; /* of e */
    Vector bound = larger(all(-43), smaller(all(43), x)), whole = nearest(times(-log2, bound));
    Vector rest = plus(log2, bound, whole), sum = all(series[0]);
    for (int term = 1; term < 7; term++) sum = product_plus(sum, rest, all(series[term]));
    return by_power(sum, whole);
}

static inline Vector sigmoid(Vector x) { return over(all(1), add(all(1), decay(x))); }

/* The sigmoid of a gate times the hyperbolic tangent of a value, for one division. */
static inline Vector let_through(Vector gate, Vector value) {
    Vector twice = decay(add(value, value));
    return over(sub(all(1), twice), mul(add(all(1), decay(gate)), add(all(1), twice)));
}

/* Of an LSTM's step; the first has no state, and nothing to forget. */
INLINE long gates_of(const Convolution *job) { return job->state ? GATES : GATES - 1; }

/* Writes a tile as `write_tile` does, but of an LSTM: what is convolved are its gates (input, candidate, output and,
   unless it is the first step, forget), and what is written is the next state, hidden into target and cell into cell. */
INLINE void write_state(const long side, const Convolution *job, Place place, const float *from, float *sums) {
    const long outputs = job->outputs, gates = gates_of(job), width = outputs / gates;
    const Vector zero = all(0);
    for (long channel = 0; channel < width; channel += LANES) {
        Vector columns[GATES][SEEN][LARGE], totals[LARGE] = {zero, zero, zero, zero, zero, zero};
        for (int gate = 0; gate < gates; gate++)
            read_columns(side, from + gate * width + channel, tiles_at_once(side) * outputs, columns[gate]);
        for (int y = 0; y < side && y < place.rows; y++) {
            Vector result[GATES][LARGE];
            for (int gate = 0; gate < gates; gate++) {
                Vector bias = load(job->bias + gate * width + channel);
                read_row(side, columns[gate], y, result[gate]);
                for (int x = 0; x < side; x++) result[gate][x] = add(result[gate][x], bias);
            }
            for (int x = 0; x < side && x < place.columns; x++) {
                long pixel = pixel_of(job, place, y, x);
                Vector cell = let_through(result[0][x], result[1][x]);
                if (job->state) {
                    Vector before = load(job->cell + pixel * width + channel);
                    cell = product_plus(sigmoid(result[3][x]), before, cell);
                }
                Vector hidden = let_through(result[2][x], cell);
                store(job->cell + pixel * width + channel, cell);
                store(job->target + pixel * width + channel, hidden);
                totals[x] = add(totals[x], hidden);
            }
        }
        if (sums) add_sums(side, job, place, width, totals, sums + channel);
    }
}

/* Reads the gradient of a tile, `to` + place * tiles_at_once * outputs. */
INLINE void read_gradient(const long side, const Convolution *job, Place place, float *to) {
    const long outputs = job->outputs;
    for (long channel = 0; channel < outputs; channel += LANES) {
        Vector columns[LARGE][SEEN];
        for (int x = 0; x < side; x++) {
            Vector column[LARGE];
            for (int y = 0; y < side; y++) {
                int there = y < place.rows && x < place.columns;
                column[y] = there ? load(job->target + pixel_of(job, place, y, x) * outputs + channel) : all(0);
            }
            transform_gradient(side, column, columns[x]);
        }
        write_rows(side, 1, columns, to + channel, tiles_at_once(side) * outputs);
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

/* Room for the transformed tiles of a thread, and where that of their outputs begins. */
static float *make_room(Convolution *job, long side, float **given) {
    const long tiles = places_of(side) * tiles_at_once(side);
    float *seen = aligned_alloc(64, sizeof(float) * tiles * (job->inputs + job->outputs));
    if (!seen) __atomic_store_n(&job->failed, 1, __ATOMIC_RELAXED);
    *given = seen + tiles * job->inputs;
    return seen;
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
                read_tile(side, job, place, seen + tile * inputs);
                read_gradient(side, job, place, wanted + tile * outputs);
            }
            for (long place = 0; place < places; place++)
                for (long output = 0; output < outputs; output += OUTPUTS)
                    for (long input = 0; input < inputs; input += INPUTS)
                        accumulate(seen + place * at_once * inputs + input, wanted + place * at_once * outputs + output,
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

/* Has what tiles will be written to, and what is added to them, brought nearer while others are multiplied. All of a tile
   has its turn once places have been counted through. */
INLINE void fetch(const long side, const Convolution *job, const Place *tiles, long number, long place) {
    const long y = place / (side + BEYOND), x = place % (side + BEYOND), outputs = job->outputs;
    for (long tile = 0; tile < number; tile++) {
        if (y >= tiles[tile].rows || x >= tiles[tile].columns) continue;
        const long first = pixel_of(job, tiles[tile], y, x) * outputs;
        for (long value = first; value < first + outputs; value += LINE) {
            __builtin_prefetch(job->target + value, 1, 2);
            if (job->skip) __builtin_prefetch(job->skip + value, 0, 2);
        }
    }
}

/* Takes parts of the tiles until there are none left. */
INLINE void convolve(const long side, Convolution *job) {
    const long inputs = job->inputs, outputs = job->outputs, places = places_of(side), at_once = tiles_at_once(side);
    const long channels = job->cell ? outputs / gates_of(job) : outputs;
    const Tiling tiling = tiling_of(job, side);
    const long parts = job->sums ? job->parts : (tiling.number + at_once - 1) / at_once;
    float *given, *seen = make_room(job, side, &given);
    if (!seen) return;
    for (;;) {
        long part = __atomic_fetch_add(&job->next, 1, __ATOMIC_RELAXED);
        if (part >= parts) break;
        const long summed = job->count * job->target_width * channels;
        float *sums = job->sums ? memset(job->sums + part * summed, 0, sizeof(float) * summed) : NULL;
        long end = tiling.number * (part + 1) / parts;
        for (long begin = tiling.number * part / parts; begin < end; begin += at_once) {
            long number = end - begin < at_once ? end - begin : at_once;
            Place tiles[AT_ONCE];
            for (long tile = 0; tile < number; tile++) {
                tiles[tile] = place_of(job, side, tiling, begin + tile);
                read_tile(side, job, tiles[tile], seen + tile * inputs);
            }
            for (long tile = number; tile % ROWS; tile++) /* multiplied, but not written */
                for (long place = 0; place < places; place++)
                    for (long input = 0; input < inputs; input++) seen[(place * at_once + tile) * inputs + input] = 0;
            for (long place = 0; place < places; place++) {
                if (!job->cell) fetch(side, job, tiles, number, place);
                for (long output = 0; output < outputs; output += OUTPUTS)
                    for (long tile = 0; tile < number; tile += ROWS)
                        multiply(seen + (place * at_once + tile) * inputs, job->kernel + (place * outputs + output) * inputs,
                                 given + (place * at_once + tile) * outputs + output, inputs, outputs);
            }
            for (long tile = 0; tile < number; tile++)
                if (job->cell) write_state(side, job, tiles[tile], given + tile * outputs, sums);
                else write_tile(side, job, tiles[tile], given + tile * outputs, sums);
        }
    }
    free(seen);
}

/* What each thread of a convolution runs. */
void sapnet_convolve(void *shared) {
    Convolution *job = shared;
    if (job->side == SMALL) convolve(SMALL, job);
    else convolve(LARGE, job);
}

/* Takes rows of images until there are none left: what each thread of a convolution to COLOURS runs, as it is, without
   tiles, as what it gives is little. The kernel is (3, 3, COLOURS, inputs), and a row and column beyond the edges zero. */
void sapnet_project(void *shared) {
    Convolution *job = shared;
    const long inputs = job->inputs, height = job->height, width = job->width;
    float *zeros = calloc(inputs, sizeof(float));
    if (!zeros) __atomic_store_n(&job->failed, 1, __ATOMIC_RELAXED);
    while (zeros) {
        const long line = __atomic_fetch_add(&job->next, 1, __ATOMIC_RELAXED), row = line % height;
        if (line >= job->count * height) break;
        for (long at = 0; at < width; at += PIXELS) {
            Vector sums[PIXELS][COLOURS];
            for (int pixel = 0; pixel < PIXELS; pixel++)
                for (int colour = 0; colour < COLOURS; colour++) sums[pixel][colour] = all(0);
            for (long tap = 0; tap < 9; tap++) {
                const long down = tap / 3 - 1, first = at + tap % 3 - 1;
                if (row + down < 0 || row + down >= height) continue;
                const float *kernel = job->kernel + tap * COLOURS * inputs, *seen[PIXELS];
                for (int pixel = 0; pixel < PIXELS; pixel++) {
                    int there = first + pixel >= 0 && first + pixel < width;
                    seen[pixel] = there ? job->source + ((line + down) * width + first + pixel) * inputs : zeros;
                }
                for (long channel = 0; channel < inputs; channel += LANES) {
                    Vector weights[COLOURS];
                    for (int colour = 0; colour < COLOURS; colour++)
                        weights[colour] = load(kernel + colour * inputs + channel);
                    for (int pixel = 0; pixel < PIXELS; pixel++) {
                        Vector value = load(seen[pixel] + channel);
                        for (int colour = 0; colour < COLOURS; colour++)
                            sums[pixel][colour] = product_plus(value, weights[colour], sums[pixel][colour]);
                    }
                }
            }
            float *target = job->target + (line * width + at) * COLOURS;
            for (int pixel = 0; pixel < PIXELS && at + pixel < width; pixel++)
                for (int colour = 0; colour < COLOURS; colour++)
                    target[pixel * COLOURS + colour] = total(sums[pixel][colour]) + job->bias[colour];
        }
    }
    free(zeros);
}

/* What sums are needed over; `Sums` of `native.py` has the same fields. */
typedef struct {
    const float *plane;               /* (count, height, width, channels) */
    float *columns;                   /* (parts, count, width, channels): of it over rows; what they are after is no matter */
    float *rectangles;                /* (count, 3, 3, channels), over the area of the core */
    const long *cores;                /* (count, 4): first row and end, first column and end */
    long count, height, width, channels, dilation, parts;
} Sums;

/* A position, but not beyond either end. */
static long within(long position, long length) { return position < 0 ? 0 : position > length ? length : position; }

/* Adds rows of a picture to its sums over rows, or takes them away. */
static void add_rows(const Sums *job, const float *picture, long first, long end, float sign, float *columns) {
    for (long row = first; row < end; row++)
        for (long value = 0; value < job->width * job->channels; value += LANES)
            store(columns + value, plus(sign, load(picture + row * job->width * job->channels + value), load(columns + value)));
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
        const float *plane = job->plane + picture * job->height * line;
        const long *core = job->cores + 4 * picture, area = (core[1] - core[0]) * (core[3] - core[2]);
        float *columns = job->columns + picture * line;
        for (long part = 1; part < job->parts; part++)
            for (long value = 0; value < line; value += LANES)
                store(columns + value, add(load(columns + value), load(columns + part * job->count * line + value)));
        long seen_first = 0, seen_end = job->height; /* rows that `columns` is of */
        for (long tap = 0; tap < 9; tap += 3) {
            const long down = (tap / 3 - 1) * dilation;
            const long first = within(core[0] + down, job->height), end = within(core[1] + down, job->height);
            add_rows(job, plane, seen_first, first, -1, columns);
            add_rows(job, plane, end, seen_end, -1, columns);
            add_rows(job, plane, seen_end, end, 1, columns);
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

/* Rows of floats, and where they lie in a file as halves; `Rows` of `native.py` has the same fields. */
typedef struct {
    float *values;                    /* (rows, count), rows `apart` */
    long rows, count, apart;
    long file, lines, line;           /* its descriptor; how many lines it has, the first after the last, of how many bytes */
    long first, column;               /* the first row's line, and where in each the rows begin, in bytes */
    long failed;                      /* what went wrong, as `errno` */
} Rows;

/* Room for the halves of a row, and for what the last vector has too much. */
static short *make_line(Rows *job) {
    short *line = malloc(sizeof(short) * (job->count + LANES));
    if (!line) job->failed = ENOMEM;
    return line;
}

static off_t place_of_row(const Rows *job, long row) { return (job->first + row) % job->lines * job->line + job->column; }

/* Writes rows. */
void sapnet_write_halves(void *shared) {
    Rows *job = shared;
    const long size = sizeof(short) * job->count;
    short *line = make_line(job);
    for (long row = 0; row < job->rows && !job->failed; row++) {
        const float *values = job->values + row * job->apart;
        long value = 0;
        for (; value + LANES <= job->count; value += LANES) store_halves(line + value, load(values + value));
        float last[LANES] = {0};
        memcpy(last, values + value, sizeof(float) * (job->count - value));
        store_halves(line + value, load(last));
        for (long done = 0; done < size && !job->failed;) {
            const ssize_t more = pwrite(job->file, (char *)line + done, size - done, place_of_row(job, row) + done);
            if (more > 0) done += more;
            else if (more == 0 || errno != EINTR) job->failed = more == 0 ? ENOSPC : errno;
        }
    }
    free(line);
}

/* Reads rows; what was not written is zero. */
void sapnet_read_halves(void *shared) {
    Rows *job = shared;
    const long size = sizeof(short) * job->count;
    short *line = make_line(job);
    for (long row = 0; row < job->rows && !job->failed; row++) {
        float *values = job->values + row * job->apart;
        for (long done = 0; done < size && !job->failed;) {
            const ssize_t more = pread(job->file, (char *)line + done, size - done, place_of_row(job, row) + done);
            if (more > 0) done += more;
            else if (more == 0) memset((char *)line + done, 0, size - done), done = size;
            else if (errno != EINTR) job->failed = errno;
        }
        long value = 0;
        for (; value + LANES <= job->count; value += LANES) store(values + value, load_halves(line + value));
        float last[LANES];
        store(last, load_halves(line + value));
        memcpy(values + value, last, sizeof(float) * (job->count - value));
    }
    free(line);
}
