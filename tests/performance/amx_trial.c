/* Convolutions, and an LSTM's step, by AMX: as they are, whose matrices are multiplied faster than Winograd's tiles are
   transformed. Planes are bfloat16, a kernel is two of them, its upper and its lower digits; sums are floats. The kernel
   of a job is (outputs / SIDE, 9, inputs / DEEP, TERMS, 16, SIDE, 2): pairs of inputs side by side. `let_through` and
   `gates_of` of `convolution.c` are taken to be in headers. For GCC 12 with -mavx512f -mavx512bw -mavx512bf16 -mamx-tile
   -mamx-bf16; a process asks for AMX by `sapnet_allow_matrices` first. */

#include "convolution.h"
#include "vectors.h"

#ifdef __AMX_BF16__
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

enum {
    DEEP = 32,               /* channels that are multiplied at once */
    SIDE = 16,               /* pixels, or outputs, of a matrix */
    MATRICES = 4,            /* of pixels that are multiplied at once, */
    BLOCK = MATRICES * SIDE, /* which are so many pixels of a row */
    TERMS = 2,               /* that a kernel is the sum of */
    VALUES = SIDE * DEEP,    /* of a matrix */
    STEPS = 18,              /* taps, of features and of a state */
    MOST = 256,              /* outputs */
};

/* Pixels of a block as a tap sees them, SIDE matrices of them a stride apart, and that tap's kernel. */
typedef struct {
    const short *seen;
    long stride;
    long kernel;
} Step;

typedef struct {
    char palette, start_row, reserved[14];
    unsigned short bytes[16];
    unsigned char rows[16];
} Shapes;

/* Eight registers of 16 rows of 64 bytes each. */
static void begin_matrices(void) {
    Shapes shapes = {.palette = 1};
    for (int each = 0; each < 8; each++) shapes.bytes[each] = 64, shapes.rows[each] = 16;
    _tile_loadconfig(&shapes);
}

/* BLOCK pixels, or fewer, of SIDE outputs. */
INLINE void multiply(const int matrices, const Step *steps, long number, const short *kernel, float *given, long outputs) {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (long step = 0; step < number; step++) {
        const short *seen = steps[step].seen;
        const long stride = steps[step].stride;
        for (int term = 0; term < TERMS; term++) {
            _tile_loadd(4, kernel + (steps[step].kernel * TERMS + term) * VALUES, 64);
            _tile_loadd(5, seen, stride);
            _tile_dpbf16ps(0, 5, 4);
            if (matrices > 1) {
                _tile_loadd(6, (const char *)seen + SIDE * stride, stride);
                _tile_dpbf16ps(1, 6, 4);
            }
            if (matrices > 2) {
                _tile_loadd(7, (const char *)seen + 2 * SIDE * stride, stride);
                _tile_dpbf16ps(2, 7, 4);
            }
            if (matrices > 3) {
                _tile_loadd(5, (const char *)seen + 3 * SIDE * stride, stride);
                _tile_dpbf16ps(3, 5, 4);
            }
        }
    }
    _tile_stored(0, given, outputs * sizeof(float));
    if (matrices > 1) _tile_stored(1, given + SIDE * outputs, outputs * sizeof(float));
    if (matrices > 2) _tile_stored(2, given + 2 * SIDE * outputs, outputs * sizeof(float));
    if (matrices > 3) _tile_stored(3, given + 3 * SIDE * outputs, outputs * sizeof(float));
}

/* To two vectors of bfloat16, side by side. */
static inline void store_both(short *to, Vector first, Vector second) {
    _mm512_storeu_si512(to, (__m512i)_mm512_cvtne2ps_pbh(second, first));
}

/* Writes some pixels of a row, as `write_tile` of `convolution.c` does. */
static void write_pixels(const Convolution *job, long picture, long first, long number, const float *given, float *sums) {
    const long outputs = job->outputs;
    const Vector zero = all(0);
    for (long channel = 0; channel < outputs; channel += 2 * LANES) {
        const long of = (job->each ? picture * outputs : 0) + channel;
        const Vector scale[2] = {load(job->scale + of), load(job->scale + of + LANES)};
        const Vector bias[2] = {load(job->bias + of), load(job->bias + of + LANES)};
        for (long x = 0; x < number; x++) {
            const long at = (first + x) * outputs + channel;
            Vector value[2];
            for (int half = 0; half < 2; half++) {
                value[half] = product_plus(load(given + x * outputs + channel + half * LANES), scale[half], bias[half]);
                if (job->relu) value[half] = larger(zero, value[half]);
                if (job->skip) value[half] = add(value[half], load_upper((const short *)job->skip + at + half * LANES));
                if (job->relu) value[half] = larger(zero, value[half]);
                if (sums) {
                    float *sum = sums + x * outputs + channel + half * LANES;
                    store(sum, add(load(sum), value[half]));
                }
            }
            store_both((short *)job->target + at, value[0], value[1]);
        }
    }
}

static void write_states(const Convolution *job, long first, long number, const float *given, float *sums) {
    const long outputs = job->outputs, gates = gates_of(job), width = outputs / gates;
    for (long channel = 0; channel < width; channel += 2 * LANES) {
        for (long x = 0; x < number; x++) {
            const long at = (first + x) * width + channel;
            Vector cell[2], hidden[2];
            for (int half = 0; half < 2; half++) {
                const long lane = channel + half * LANES;
                const float *gate = given + x * outputs + lane, *bias = job->bias + lane;
                cell[half] = let_through(add(load(gate), load(bias)), add(load(gate + width), load(bias + width)));
                if (job->state) {
                    Vector before = load_upper((const short *)job->before + at + half * LANES);
                    Vector kept = sigmoid(add(load(gate + 3 * width), load(bias + 3 * width)));
                    cell[half] = product_plus(kept, before, cell[half]);
                }
                hidden[half] = let_through(add(load(gate + 2 * width), load(bias + 2 * width)), cell[half]);
                if (sums) {
                    float *sum = sums + x * width + lane;
                    store(sum, add(load(sum), hidden[half]));
                }
            }
            store_both((short *)job->cell + at, cell[0], cell[1]);
            store_both((short *)job->target + at, hidden[0], hidden[1]);
        }
    }
}

/* Pixels of a row from one on, with zeros beyond its ends. */
static const short *copy(const short *line, long width, long channels, long left, long number, short *to) {
    for (long x = 0; x < number; x++) {
        const long at = left + x;
        if (at < 0 || at >= width) memset(to + x * DEEP, 0, sizeof(short) * DEEP);
        else memcpy(to + x * DEEP, line + at * channels, sizeof(short) * DEEP);
    }
    return to;
}

void sapnet_convolve_directly(void *shared) {
    Convolution *whole = shared;
    const Convolution own = *whole, *job = &own;
    const long outputs = job->outputs, depths = job->inputs / DEEP, step = job->dilation, width = job->width;
    const long channels = job->cell ? outputs / gates_of(job) : outputs;
    const long rows = job->count * job->height, parts = job->sums ? job->parts : (rows + 31) / 32;
    const long a_group = 9 * depths * TERMS * VALUES;
    _Alignas(64) static __thread float given[BLOCK * MOST];
    _Alignas(64) static __thread short aside[STEPS][BLOCK * DEEP];
    begin_matrices();
    for (;;) {
        const long part = __atomic_fetch_add(&whole->next, 1, __ATOMIC_RELAXED);
        if (part >= parts) break;
        const long summed = job->count * width * channels;
        float *sums = job->sums ? memset(job->sums + part * summed, 0, sizeof(float) * summed) : NULL;
        const long first = rows * part / parts, end = rows * (part + 1) / parts;
        for (long left = 0; left < width; left += BLOCK) {
            const long number = width - left < BLOCK ? width - left : BLOCK;
            const int matrices = (number + SIDE - 1) / SIDE;
            for (long row = first; row < end; row++) {
                const long picture = row / job->height, y = row % job->height;
                Step steps[STEPS];
                long count = 0;
                for (long tap = 0; tap < 9; tap++) {
                    const long down = (tap / 3 - 1) * step, at = left + (tap % 3 - 1) * step;
                    if (y + down < 0 || y + down >= job->height) continue;
                    for (long depth = 0; depth < depths; depth++) {
                        const long channel = depth * DEEP, is_own = channel < job->own;
                        const long of = is_own ? job->own : job->inputs - job->own;
                        const short *line = (const short *)(is_own ? job->source : job->state);
                        line += (row + down) * width * of + (is_own ? channel : channel - job->own);
                        Step *next = &steps[count];
                        next->kernel = tap * depths + depth;
                        if (at >= 0 && at + matrices * SIDE <= width) next->seen = line + at * of, next->stride = of * sizeof(short);
                        else next->seen = copy(line, width, of, at, matrices * SIDE, aside[count]), next->stride = DEEP * sizeof(short);
                        count++;
                    }
                }
                for (long output = 0; output < outputs; output += SIDE) {
                    const short *kernel = (const short *)job->kernel + output / SIDE * a_group;
                    if (matrices == 4) multiply(4, steps, count, kernel, given + output, outputs);
                    else if (matrices == 3) multiply(3, steps, count, kernel, given + output, outputs);
                    else if (matrices == 2) multiply(2, steps, count, kernel, given + output, outputs);
                    else multiply(1, steps, count, kernel, given + output, outputs);
                }
                float *sum = sums ? sums + (picture * width + left) * channels : NULL;
                if (job->cell) write_states(job, row * width + left, number, given, sum);
                else write_pixels(job, picture, row * width + left, number, given, sum);
            }
        }
    }
    _tile_release();
}

long sapnet_allow_matrices(void) { return syscall(SYS_arch_prctl, 0x1023, 18) == 0; }
#endif
