/* 3x3 convolutions in fp32 by Winograd's F(4x4, 3x3), and an LSTM's step, for x86 CPUs with AVX2 and FMA; `native.py`
   says what for.

   Features lie channels last, so that each pixel is a run of vectors and dilation but a larger step between pixels. A
   tile is 4x4 pixels that lie `dilation` apart, and reads the 6x6 around them. Lavin and Gray, "Fast algorithms for
   convolutional neural networks" (CVPR 2016), with other points: 0, +-sqrt(1/2), +-sqrt(2) and infinity, which keep
   rounding errors small. */

#include <immintrin.h>
#include <stdlib.h>

enum {
    LANES = 8,    /* floats of a vector */
    SIDE = 4,     /* of the pixels that a tile gives */
    SEEN = 6,     /* of those that it reads */
    PLACES = 36,  /* of a transformed tile */
    ROWS = 6,     /* tiles that are multiplied at once: with two vectors of outputs each, all registers are in use */
    INPUTS = 4,   /* channels of which a gradient is summed at once */
    TILES = 24,   /* that a thread takes at once: transformed they fit into its cache; a multiple of ROWS */
    OUTPUTS = 16  /* channels that lie side by side in a kernel */
};

typedef __m256 Vector;

/* What all threads of one convolution share; `Convolution` of `native.py` has the same fields. */
typedef struct {
    const float *source;              /* (count, height, width, inputs) */
    float *kernel;                    /* (PLACES, outputs / OUTPUTS, inputs, OUTPUTS); its gradient (parts, the same) */
    const float *scale, *bias;        /* (outputs) */
    const float *skip;                /* like target, or none */
    float *target;                    /* (count, target_height, target_width, outputs), or the gradient of it */
    float *sums;                      /* (parts, count, target_width, outputs): of target over rows, or none */
    long count, height, width, inputs, outputs, dilation;
    long above, left;                 /* zeros beyond the edges */
    long target_height, target_width;
    long relu;                        /* ReLU(ReLU(scale * convolution + bias) + skip), or without either */
    long parts;                       /* that a gradient or sums are summed in, each in order, whoever sums it */
    long next;                        /* tile or part that no thread has taken yet */
    long failed;                      /* a thread had no memory */
} Convolution;

/* What all threads of a step of the LSTM share; `Recurrence` of `native.py` has the same fields. */
typedef struct {
    const float *gates;               /* (pixels, 4 or 3 times width): input, candidate, output, and, if any, forget */
    float *cell, *hidden;             /* (pixels, width) */
    long pixels, width;
    long first;                       /* no gate forgets, and there is no cell yet */
    long next;                        /* pixel that no thread has taken yet */
} Recurrence;

static const float A = 0.70710678f, A2 = 0.5f, A3 = 0.35355339f;
static const float B = 1.41421356f, B2 = 2.0f, B3 = 2.82842712f;
static const float SQUARES = 2.5f; /* A2 + B2 */

static inline Vector all(float value) { return _mm256_set1_ps(value); }
static inline Vector add(Vector x, Vector y) { return _mm256_add_ps(x, y); }
static inline Vector sub(Vector x, Vector y) { return _mm256_sub_ps(x, y); }
static inline Vector times(float x, Vector y) { return _mm256_mul_ps(all(x), y); }
static inline Vector plus(float x, Vector y, Vector z) { return _mm256_fmadd_ps(all(x), y, z); }   /* x y + z */
static inline Vector minus(float x, Vector y, Vector z) { return _mm256_fnmadd_ps(all(x), y, z); } /* z - x y */

/* What six pixels in a line are at the points. */
static inline void transform(const Vector d[SEEN], Vector v[SEEN]) {
    Vector even = minus(B2, d[2], d[4]), odd = times(A, minus(B2, d[1], d[3]));
    Vector far_even = minus(A2, d[2], d[4]), far_odd = times(B, minus(A2, d[1], d[3]));
    v[0] = minus(SQUARES, d[2], add(d[0], d[4]));
    v[1] = add(even, odd);
    v[2] = sub(even, odd);
    v[3] = add(far_even, far_odd);
    v[4] = sub(far_even, far_odd);
    v[5] = minus(SQUARES, d[3], add(d[1], d[5]));
}

/* The four pixels in a line of products at the points. */
static inline void transform_back(const Vector m[SEEN], Vector y[SIDE]) {
    Vector sum = add(m[1], m[2]), difference = sub(m[1], m[2]);
    Vector far_sum = add(m[3], m[4]), far_difference = sub(m[3], m[4]);
    y[0] = add(m[0], add(sum, far_sum));
    y[1] = plus(A, difference, times(B, far_difference));
    y[2] = plus(A2, sum, times(B2, far_sum));
    y[3] = plus(A3, difference, plus(B3, far_difference, m[5]));
}

/* ROWS tiles times OUTPUTS channels, at one place. */
static inline void multiply(const float *seen, const float *kernel, float *given, long inputs, long outputs) {
    Vector sums[ROWS][2];
    for (int row = 0; row < ROWS; row++) sums[row][0] = sums[row][1] = _mm256_setzero_ps();
    for (long input = 0; input < inputs; input++) {
        Vector first = _mm256_loadu_ps(kernel + OUTPUTS * input);
        Vector second = _mm256_loadu_ps(kernel + OUTPUTS * input + LANES);
        for (int row = 0; row < ROWS; row++) {
            Vector value = _mm256_broadcast_ss(seen + row * inputs + input);
            sums[row][0] = _mm256_fmadd_ps(value, first, sums[row][0]);
            sums[row][1] = _mm256_fmadd_ps(value, second, sums[row][1]);
        }
    }
    for (int row = 0; row < ROWS; row++) {
        _mm256_store_ps(given + row * outputs, sums[row][0]);
        _mm256_store_ps(given + row * outputs + LANES, sums[row][1]);
    }
}

/* Tiles along a side: one for each of the pixels that are `dilation` apart, then on by four times that. */
static long tiles_along(long length, long dilation) {
    long step = SIDE * dilation, rest = length % step;
    return length / step * dilation + (rest < dilation ? rest : dilation);
}

/* First pixel of a tile along a side. */
static long first_pixel(long tile, long dilation) { return tile / dilation * SIDE * dilation + tile % dilation; }

/* Where a tile is. */
typedef struct {
    long picture, top, left;
} Place;

static Place place_of(const Convolution *job, long tile, long down, long across) {
    Place place = {tile / (down * across), first_pixel(tile / across % down, job->dilation),
                   first_pixel(tile % across, job->dilation)};
    return place;
}

/* Reads a tile, `to` + place * TILES * inputs. */
static void read_tile(const Convolution *job, Place place, float *to) {
    const long step = job->dilation, inputs = job->inputs;
    const long top = place.top - job->above, left = place.left - job->left;
    const float *source = job->source + place.picture * job->height * job->width * inputs;
    const int inside = top >= 0 && left >= 0 && top + (SEEN - 1) * step < job->height && left + (SEEN - 1) * step < job->width;
    for (long channel = 0; channel < inputs; channel += LANES) {
        Vector columns[SEEN][SEEN];
        for (int x = 0; x < SEEN; x++) {
            Vector column[SEEN];
            for (int y = 0; y < SEEN; y++) {
                long row = top + y * step, at = left + x * step;
                int there = inside || (row >= 0 && row < job->height && at >= 0 && at < job->width);
                column[y] = there ? _mm256_loadu_ps(source + (row * job->width + at) * inputs + channel) : _mm256_setzero_ps();
            }
            transform(column, columns[x]);
        }
        for (int y = 0; y < SEEN; y++) {
            Vector line[SEEN], result[SEEN];
            for (int x = 0; x < SEEN; x++) line[x] = columns[x][y];
            transform(line, result);
            for (int x = 0; x < SEEN; x++) _mm256_store_ps(to + (y * SEEN + x) * TILES * inputs + channel, result[x]);
        }
    }
}

/* Writes a tile, `from` + place * TILES * outputs, and adds it to the sums of a part, (count, target_width, outputs). */
static void write_tile(const Convolution *job, Place place, const float *from, float *sums) {
    const long step = job->dilation, outputs = job->outputs;
    const Vector zero = _mm256_setzero_ps();
    for (long channel = 0; channel < outputs; channel += LANES) {
        Vector scale = _mm256_loadu_ps(job->scale + channel), bias = _mm256_loadu_ps(job->bias + channel);
        Vector columns[SEEN][SIDE];
        for (int x = 0; x < SEEN; x++) {
            Vector column[SEEN];
            for (int y = 0; y < SEEN; y++) column[y] = _mm256_load_ps(from + (y * SEEN + x) * TILES * outputs + channel);
            transform_back(column, columns[x]);
        }
        Vector totals[SIDE] = {zero, zero, zero, zero};
        for (int y = 0; y < SIDE; y++) {
            long row = place.top + y * step;
            if (row >= job->target_height) break;
            Vector line[SEEN], result[SIDE];
            for (int x = 0; x < SEEN; x++) line[x] = columns[x][y];
            transform_back(line, result);
            for (int x = 0; x < SIDE; x++) {
                long at = place.left + x * step;
                if (at >= job->target_width) break;
                long pixel = (place.picture * job->target_height + row) * job->target_width + at;
                Vector value = _mm256_fmadd_ps(result[x], scale, bias);
                if (job->relu) value = _mm256_max_ps(zero, value); /* the second where it is no number */
                if (job->skip) value = add(value, _mm256_loadu_ps(job->skip + pixel * outputs + channel));
                if (job->relu) value = _mm256_max_ps(zero, value);
                _mm256_storeu_ps(job->target + pixel * outputs + channel, value);
                totals[x] = add(totals[x], value);
            }
        }
        for (int x = 0; sums && x < SIDE; x++) {
            long at = place.left + x * step;
            if (at >= job->target_width) break;
            float *sum = sums + (place.picture * job->target_width + at) * outputs + channel;
            _mm256_storeu_ps(sum, add(_mm256_loadu_ps(sum), totals[x]));
        }
    }
}

/* The adjoint of `transform_back`: what six products add up to, of the gradient of four pixels in a line. */
static inline void transform_gradient(const Vector y[SIDE], Vector m[SEEN]) {
    Vector even = plus(A2, y[2], y[0]), odd = plus(A3, y[3], times(A, y[1]));
    Vector far_even = plus(B2, y[2], y[0]), far_odd = plus(B3, y[3], times(B, y[1]));
    m[0] = y[0];
    m[1] = add(even, odd);
    m[2] = sub(even, odd);
    m[3] = add(far_even, far_odd);
    m[4] = sub(far_even, far_odd);
    m[5] = y[3];
}

/* Reads the gradient of a tile, `to` + place * TILES * outputs. */
static void read_gradient(const Convolution *job, Place place, float *to) {
    const long step = job->dilation, outputs = job->outputs;
    for (long channel = 0; channel < outputs; channel += LANES) {
        Vector columns[SIDE][SEEN];
        for (int x = 0; x < SIDE; x++) {
            Vector column[SIDE];
            for (int y = 0; y < SIDE; y++) {
                long row = place.top + y * step, at = place.left + x * step;
                long pixel = (place.picture * job->target_height + row) * job->target_width + at;
                int there = row < job->target_height && at < job->target_width;
                column[y] = there ? _mm256_loadu_ps(job->target + pixel * outputs + channel) : _mm256_setzero_ps();
            }
            transform_gradient(column, columns[x]);
        }
        for (int y = 0; y < SEEN; y++) {
            Vector line[SIDE], result[SEEN];
            for (int x = 0; x < SIDE; x++) line[x] = columns[x][y];
            transform_gradient(line, result);
            for (int x = 0; x < SEEN; x++) _mm256_store_ps(to + (y * SEEN + x) * TILES * outputs + channel, result[x]);
        }
    }
}

/* Adds to the gradient of INPUTS times OUTPUTS channels, at one place, what so many tiles say. */
static inline void accumulate(const float *seen, const float *wanted, float *sum, long tiles, long inputs, long outputs) {
    Vector sums[INPUTS][2];
    for (int input = 0; input < INPUTS; input++) {
        sums[input][0] = _mm256_loadu_ps(sum + input * OUTPUTS);
        sums[input][1] = _mm256_loadu_ps(sum + input * OUTPUTS + LANES);
    }
    for (long tile = 0; tile < tiles; tile++) {
        Vector first = _mm256_load_ps(wanted + tile * outputs);
        Vector second = _mm256_load_ps(wanted + tile * outputs + LANES);
        for (int input = 0; input < INPUTS; input++) {
            Vector value = _mm256_broadcast_ss(seen + tile * inputs + input);
            sums[input][0] = _mm256_fmadd_ps(value, first, sums[input][0]);
            sums[input][1] = _mm256_fmadd_ps(value, second, sums[input][1]);
        }
    }
    for (int input = 0; input < INPUTS; input++) {
        _mm256_storeu_ps(sum + input * OUTPUTS, sums[input][0]);
        _mm256_storeu_ps(sum + input * OUTPUTS + LANES, sums[input][1]);
    }
}

/* Room for the transformed tiles of a thread, and where that of their outputs begins. */
static float *make_room(Convolution *job, float **given) {
    float *seen = aligned_alloc(64, sizeof(float) * PLACES * TILES * (job->inputs + job->outputs));
    if (!seen) __atomic_store_n(&job->failed, 1, __ATOMIC_RELAXED);
    *given = seen + PLACES * TILES * job->inputs;
    return seen;
}

/* Sums parts of the gradient of a kernel until there are none left: what each thread runs. They are zero before. */
void sapnet_kernel_gradient(void *shared) {
    Convolution *job = shared;
    const long inputs = job->inputs, outputs = job->outputs;
    const long down = tiles_along(job->target_height, job->dilation), across = tiles_along(job->target_width, job->dilation);
    const long tiles = job->count * down * across;
    float *wanted, *seen = make_room(job, &wanted);
    if (!seen) return;
    for (;;) {
        long part = __atomic_fetch_add(&job->next, 1, __ATOMIC_RELAXED);
        if (part >= job->parts) break;
        float *sums = job->kernel + part * PLACES * inputs * outputs;
        long end = tiles * (part + 1) / job->parts;
        for (long begin = tiles * part / job->parts; begin < end; begin += TILES) {
            long number = end - begin < TILES ? end - begin : TILES;
            for (long tile = 0; tile < number; tile++) {
                Place place = place_of(job, begin + tile, down, across);
                read_tile(job, place, seen + tile * inputs);
                read_gradient(job, place, wanted + tile * outputs);
            }
            for (long place = 0; place < PLACES; place++)
                for (long output = 0; output < outputs; output += OUTPUTS)
                    for (long input = 0; input < inputs; input += INPUTS)
                        accumulate(seen + place * TILES * inputs + input, wanted + place * TILES * outputs + output,
                                   sums + (place * outputs + output) * inputs + input * OUTPUTS, number, inputs, outputs);
        }
    }
    free(seen);
}

/* Takes parts of the tiles until there are none left: what each thread runs. Sums are zero before. */
void sapnet_convolve(void *shared) {
    Convolution *job = shared;
    const long inputs = job->inputs, outputs = job->outputs;
    const long down = tiles_along(job->target_height, job->dilation), across = tiles_along(job->target_width, job->dilation);
    const long tiles = job->count * down * across;
    const long parts = job->sums ? job->parts : (tiles + TILES - 1) / TILES;
    float *given, *seen = make_room(job, &given);
    if (!seen) return;
    for (;;) {
        long part = __atomic_fetch_add(&job->next, 1, __ATOMIC_RELAXED);
        if (part >= parts) break;
        float *sums = job->sums ? job->sums + part * job->count * job->target_width * outputs : NULL;
        long end = tiles * (part + 1) / parts;
        for (long begin = tiles * part / parts; begin < end; begin += TILES) {
            long number = end - begin < TILES ? end - begin : TILES;
            for (long tile = 0; tile < number; tile++)
                read_tile(job, place_of(job, begin + tile, down, across), seen + tile * inputs);
            for (long tile = number; tile % ROWS; tile++) /* multiplied, but not written */
                for (long place = 0; place < PLACES; place++)
                    for (long input = 0; input < inputs; input++) seen[(place * TILES + tile) * inputs + input] = 0;
            for (long place = 0; place < PLACES; place++)
                for (long output = 0; output < outputs; output += OUTPUTS)
                    for (long tile = 0; tile < number; tile += ROWS)
                        multiply(seen + (place * TILES + tile) * inputs, job->kernel + (place * outputs + output) * inputs,
                                 given + (place * TILES + tile) * outputs + output, inputs, outputs);
            for (long tile = 0; tile < number; tile++)
                write_tile(job, place_of(job, begin + tile, down, across), given + tile * outputs, sums);
        }
    }
    free(seen);
}

/* e to the x, for x up to 88: two to a whole number times a Taylor series. What is no number stays none. */
static inline Vector exponential(Vector x) {
    static const float log2 = 0.693147181f, log2_high = 0.693145752f, log2_low = 1.42860677e-6f;
    Vector whole = _mm256_round_ps(times(1 / log2, x), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    Vector rest = minus(log2_low, whole, minus(log2_high, whole, x)), sum = all(1.0f / 5040);
    static const float series[] = {1.0f / 720, 1.0f / 120, 1.0f / 24, 1.0f / 6, 1.0f / 2, 1, 1};
    for (int power = 0; power < 7; power++) sum = _mm256_fmadd_ps(sum, rest, all(series[power]));
    __m256i exponent = _mm256_add_epi32(_mm256_cvtps_epi32(whole), _mm256_set1_epi32(127));
    return _mm256_mul_ps(sum, _mm256_castsi256_ps(_mm256_slli_epi32(exponent, 23)));
}

static inline Vector sigmoid(Vector x) {
    Vector bound = _mm256_max_ps(all(-87), _mm256_min_ps(all(87), x)); /* the second where it is no number */
    return _mm256_div_ps(all(1), add(all(1), exponential(sub(_mm256_setzero_ps(), bound))));
}

static inline Vector hyperbolic_tangent(Vector x) { return plus(2, sigmoid(add(x, x)), all(-1)); }

/* Takes runs of pixels until there are none left: what each thread runs. */
void sapnet_recur(void *shared) {
    Recurrence *job = shared;
    const long width = job->width, run = 256, parts = job->first ? 3 : 4;
    for (;;) {
        long pixel = __atomic_fetch_add(&job->next, run, __ATOMIC_RELAXED);
        if (pixel >= job->pixels) break;
        long end = pixel + run < job->pixels ? pixel + run : job->pixels;
        for (; pixel < end; pixel++) {
            const float *gates = job->gates + pixel * parts * width;
            float *cells = job->cell + pixel * width, *hidden = job->hidden + pixel * width;
            for (long channel = 0; channel < width; channel += LANES) {
                Vector enter = sigmoid(_mm256_loadu_ps(gates + channel));
                Vector cell = _mm256_mul_ps(enter, hyperbolic_tangent(_mm256_loadu_ps(gates + width + channel)));
                if (!job->first) {
                    Vector keep = sigmoid(_mm256_loadu_ps(gates + 3 * width + channel));
                    cell = _mm256_fmadd_ps(keep, _mm256_loadu_ps(cells + channel), cell);
                }
                Vector leave = sigmoid(_mm256_loadu_ps(gates + 2 * width + channel));
                _mm256_storeu_ps(cells + channel, cell);
                _mm256_storeu_ps(hidden + channel, _mm256_mul_ps(leave, hyperbolic_tangent(cell)));
            }
        }
    }
}
