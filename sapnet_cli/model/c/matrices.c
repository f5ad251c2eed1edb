/* Convolutions, and an LSTM's step, by AMX, which multiplies matrices of bfloat16: all nine products of each value take
   less time than Winograd's transforms would. While one block of pixels is multiplied, that before it is written. */

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "convolution.h"
#include "vectors.h"

#ifdef __AMX_BF16__

enum {
    SIDE = 16,             /* pixels, or outputs, of a matrix */
    DEEP = 32,             /* inputs of one */
    BLOCK = 2 * SIDE,      /* pixels, or outputs, that are multiplied at once */
    KERNEL = BLOCK * DEEP, /* values of one tap, of such a block */
    STRIP = 4 * BLOCK,     /* columns of which all rows are computed in turn: a cache holds what taps see of them */
    ROWS_AT_ONCE = 32      /* that a thread takes, unless they are summed */
};

/* What is computed. */
enum { FEATURES, SKIPPED_FEATURES, FIRST_STATE, STATE };

INLINE int is_state(const int what) { return what == FIRST_STATE || what == STATE; }

/* How matrices lie in the registers: 16 rows of 64 bytes in each of eight. */
typedef struct {
    char palette, start_row, reserved[14];
    unsigned short bytes[16];
    unsigned char rows[16];
} Shapes;

/* What a tap sees of some channels of a row: pixels so many values apart, that of the row's first one, which may be
   beyond it. */
typedef struct {
    const short *seen, *kernel;
    long apart, right;
} Step;

/* What was multiplied, and is to be written: pixels of a row, those from `first` to `end` of a block. */
typedef struct {
    float *given;                     /* (1, or 2 for an LSTM, BLOCK, BLOCK) */
    float *sums;                      /* of the block's first pixel */
    const float *scale, *bias;
    long pixel, channel, first, end;
} Block;

/* What a thread works in. */
typedef struct {
    Step *steps, *edges;
    short *aside;                     /* (steps, BLOCK, DEEP): what taps see at the edges, with zeros beyond */
    float *sums;                      /* (BLOCK, channels): that nobody asked for */
    Block before;
    float *given;                     /* where the next block goes */
    long count;
} Room;

static void begin_matrices(void) {
    Shapes shapes = {.palette = 1};
    for (int each = 0; each < 8; each++) shapes.bytes[each] = 64, shapes.rows[each] = 16;
    _tile_loadconfig(&shapes);
}

/* What is about to be read, or written, a row further down. */
static inline void fetch(const void *plane, long value, int to_be_written) {
    const char *place = (const char *)plane + value * sizeof(short);
    if (to_be_written) __builtin_prefetch(place, 1, 2);
    else __builtin_prefetch(place, 0, 2);
}

static inline void store_both(short *to, Vector first, Vector second) {
    _mm512_storeu_si512(to, (__m512i)_mm512_cvtne2ps_pbh(second, first));
}

static inline void store_rounded(short *to, Vector x) { _mm256_storeu_si256((void *)to, (__m256i)_mm512_cvtneps_pbh(x)); }

/* Writes a pixel of a block, as `write_tile` of `convolution.c` does. */
INLINE void write_pixel(const int what, const Convolution *job, const Block *block, Vector least, long x) {
    const long outputs = job->outputs, at = (block->pixel + x) * outputs + block->channel;
    const long below = at + job->width * outputs;
    Vector value[2];
    fetch(job->target, below, 1);
    fetch(job->source, (block->pixel + x + (job->dilation + 1) * job->width) * job->own + block->channel, 0);
    if (what == SKIPPED_FEATURES) fetch(job->skip, below, 0);
    for (int half = 0; half < 2; half++) {
        const long lane = half * LANES;
        value[half] = product_plus(load(block->given + x * BLOCK + lane), load(block->scale + lane), load(block->bias + lane));
        value[half] = larger(least, value[half]); /* the second where it is no number */
        if (what == SKIPPED_FEATURES) {
            value[half] = add(value[half], load_upper((const short *)job->skip + at + lane));
            value[half] = larger(least, value[half]);
        }
        float *sum = block->sums + x * outputs + lane;
        store(sum, add(load(sum), value[half]));
    }
    store_both((short *)job->target + at, value[0], value[1]);
}

/* Writes half of a pixel of a block, as `write_state` of `convolution.c` does; its gates are side by side. */
INLINE void write_state(const int what, const Convolution *job, const Block *block, long x) {
    const long width = job->outputs / GATES, at = (block->pixel + x) * width + block->channel, below = at + job->width * width;
    const float *gates = block->given + x * BLOCK, *others = gates + BLOCK * BLOCK;
    fetch(job->target, below, 1);
    fetch(job->cell, below, 1);
    fetch(job->source, (block->pixel + x + 2 * job->width) * job->own + block->channel, 0);
    Vector cell = let_through(add(load(gates), load(block->bias)), add(load(gates + LANES), load(block->bias + width)));
    if (what == STATE) {
        fetch(job->state, below + job->width * width, 0);
        Vector kept = sigmoid(add(load(others + LANES), load(block->bias + 3 * width)));
        cell = product_plus(kept, load_upper((const short *)job->before + at), cell);
    }
    Vector hidden = let_through(add(load(others), load(block->bias + 2 * width)), cell);
    store_rounded((short *)job->cell + at, cell);
    store_rounded((short *)job->target + at, hidden);
    float *sum = block->sums + x * width;
    store(sum, add(load(sum), hidden));
}

INLINE void write_pixels(const int what, const Convolution *job, const Block *block, long first, long end) {
    const Vector least = all(job->relu ? 0 : -INFINITY);
    for (long x = first; x < end; x++) {
        if (is_state(what)) write_state(what, job, block, x);
        else write_pixel(what, job, block, least, x);
    }
}

/* One tap of all pixels of a block, of a block of outputs. */
INLINE void multiply(const short *seen, long apart, const short *kernel) {
    _tile_loadd(4, kernel, 64);
    _tile_loadd(6, seen, apart);
    _tile_dpbf16ps(0, 6, 4);
    _tile_loadd(5, kernel + KERNEL / 2, 64);
    _tile_dpbf16ps(1, 6, 5);
    _tile_loadd(7, (const char *)seen + SIDE * apart, apart);
    _tile_dpbf16ps(2, 7, 4);
    _tile_dpbf16ps(3, 7, 5);
}

/* Multiplies a block of pixels by blocks of outputs, and writes another one, some pixels at each step. */
INLINE void multiply_block(const int what, const Convolution *job, const Step *steps, long count, long left, long kernel,
                           long a_block, float *given, const Block *before) {
    const long blocks = is_state(what) ? 2 : 1, at_once = is_state(what) ? 1 : 4;
    const int full = before->end - before->first == BLOCK;
    long written = before->first;
    for (long each = 0; each < blocks; each++, kernel += a_block, given += BLOCK * BLOCK) {
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
        for (long step = 0; step < count; step++) {
            const Step it = steps[step];
            multiply(it.seen + left * it.apart, it.apart * sizeof(short), it.kernel + kernel);
            if (full && written < BLOCK) {
                write_pixels(what, job, before, written, written + at_once);
                written += at_once;
            }
        }
        _tile_stored(0, given, BLOCK * sizeof(float));
        _tile_stored(1, given + SIDE, BLOCK * sizeof(float));
        _tile_stored(2, given + SIDE * BLOCK, BLOCK * sizeof(float));
        _tile_stored(3, given + SIDE * BLOCK + SIDE, BLOCK * sizeof(float));
    }
    write_pixels(what, job, before, written, before->end);
}

/* What the taps of a kernel see of a row; gives how many of them see any. */
INLINE long find_steps(const Convolution *job, long picture, long y, Step *steps) {
    const long width = job->width, depths = job->inputs / DEEP;
    long count = 0;
    for (long tap = 0; tap < 9; tap++) {
        const long row = y + (tap / 3 - 1) * job->dilation, right = (tap % 3 - 1) * job->dilation;
        if (row < 0 || row >= job->height) continue;
        for (long depth = 0; depth < depths; depth++) {
            const long channel = depth * DEEP, is_own = channel < job->own;
            const short *plane = is_own ? job->source : job->state;
            if (!plane) continue; /* an LSTM's first step */
            const long of = is_own ? job->own : job->inputs - job->own;
            const short *line = plane + (picture * job->height + row) * width * of + (is_own ? channel : channel - job->own);
            steps[count++] = (Step){line + right * of, (const short *)job->kernel + (tap * depths + depth) * KERNEL, of, right};
        }
    }
    return count;
}

/* The same of a block at an edge, with zeros beyond. */
static void copy_steps(long width, const Step *steps, long count, long left, Step *edges, short *to) {
    for (long step = 0; step < count; step++, to += BLOCK * DEEP) {
        edges[step] = steps[step];
        const Step it = steps[step];
        edges[step].seen = to - left * DEEP;
        edges[step].apart = DEEP;
        for (long x = left; x < left + BLOCK; x++) {
            const long at = x + it.right;
            if (at < 0 || at >= width) memset(to + (x - left) * DEEP, 0, sizeof(short) * DEEP);
            else memcpy(to + (x - left) * DEEP, it.seen + x * it.apart, sizeof(short) * DEEP);
        }
    }
}

/* A strip of a row. */
INLINE void convolve_row(const int what, const Convolution *job, long picture, long y, long left, long end, float *sums, Room *room) {
    const long channels = is_state(what) ? job->outputs / GATES : job->outputs, at_once = is_state(what) ? LANES : BLOCK;
    const long a_block = 9 * job->inputs / DEEP * KERNEL, count = find_steps(job, picture, y, room->steps);
    for (; left < end; left += BLOCK) {
        /* a last block that is not full begins earlier, so that all its pixels are there */
        const long begin = left + BLOCK <= job->width || job->width < BLOCK ? left : job->width - BLOCK;
        const Step *steps = room->steps;
        if (begin < job->dilation || begin + BLOCK + job->dilation > job->width) {
            copy_steps(job->width, steps, count, begin, room->edges, room->aside);
            steps = room->edges;
        }
        for (long channel = 0; channel < channels; channel += at_once) {
            const Block before = room->before;
            const long kernel = channel / at_once * (is_state(what) ? 2 : 1) * a_block, of = (job->each ? picture * job->outputs : 0) + channel;
            multiply_block(what, job, steps, count, begin, kernel, a_block, room->given, &before);
            room->before = (Block){
                .given = room->given,
                .sums = sums ? sums + (picture * job->width + begin) * channels + channel : room->sums,
                .scale = is_state(what) ? NULL : job->scale + of,
                .bias = job->bias + of,
                .pixel = (picture * job->height + y) * job->width + begin,
                .channel = channel,
                .first = left - begin,
                .end = (left + BLOCK < end ? left + BLOCK : end) - begin,
            };
            room->given = before.given;
        }
    }
}

static long lines(long bytes) { return (bytes + 63) / 64 * 64; }

INLINE void convolve(const int what, Convolution *shared) {
    const Convolution own = *shared, *job = &own;
    const long channels = is_state(what) ? job->outputs / GATES : job->outputs, steps = 9 * job->inputs / DEEP;
    const long rows = job->count * job->height, parts = job->sums ? job->parts : (rows + ROWS_AT_ONCE - 1) / ROWS_AT_ONCE;
    const long of_block = sizeof(float) * 2 * BLOCK * BLOCK, of_aside = sizeof(short) * steps * BLOCK * DEEP;
    const long of_steps = lines(sizeof(Step) * steps), of_sums = sizeof(float) * BLOCK * channels;
    char *memory = aligned_alloc(64, 2 * of_block + of_aside + of_sums + 2 * of_steps);
    if (!memory) {
        __atomic_store_n(&shared->failed, 1, __ATOMIC_RELAXED);
        return;
    }
    char *next = memory + 2 * of_block;
    Room room = {.aside = (short *)next, .sums = (float *)(next + of_aside), .steps = (Step *)(next + of_aside + of_sums)};
    room.edges = (Step *)(next + of_aside + of_sums + of_steps);
    memset(room.sums, 0, of_sums);
    begin_matrices();
    for (;;) {
        const long part = __atomic_fetch_add(&shared->next, 1, __ATOMIC_RELAXED);
        if (part >= parts) break;
        const long summed = job->count * job->width * channels, first = rows * part / parts, end = rows * (part + 1) / parts;
        float *sums = job->sums ? memset(job->sums + part * summed, 0, sizeof(float) * summed) : NULL;
        room.given = (float *)memory;
        room.before = (Block){.given = (float *)(memory + of_block)};
        for (long left = 0; left < job->width; left += STRIP) {
            const long right = left + STRIP < job->width ? left + STRIP : job->width;
            for (long row = first; row < end; row++)
                convolve_row(what, job, row / job->height, row % job->height, left, right, sums, &room);
        }
        write_pixels(what, job, &room.before, room.before.first, room.before.end);
    }
    _tile_release();
    free(memory);
}

/* What each thread of a convolution runs, in bfloat16. Its kernel is (outputs / BLOCK, 9, inputs / DEEP, 2, DEEP / 2, SIDE, 2)
   of it: two inputs, one after the other. Of an LSTM the outputs are, for each SIDE channels, input, candidate, output and
   forget gate; the first step, too, has all of them. */
void sapnet_multiply(void *shared) {
    Convolution *job = shared;
    if (job->cell && job->state) convolve(STATE, job);
    else if (job->cell) convolve(FIRST_STATE, job);
    else if (job->skip) convolve(SKIPPED_FEATURES, job);
    else convolve(FEATURES, job);
}
#endif
