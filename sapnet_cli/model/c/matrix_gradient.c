/* The gradient of a kernel by AMX: products of what the convolution read, turned so that pixels are summed over, and the
   gradient of what it gave. */

#include <stdlib.h>
#include <string.h>

#include "matrices.h"

#ifdef __AMX_BF16__

enum { TAPS = 9, SUMS = BLOCK * BLOCK /* of a block of inputs and one of outputs */ };

/* What a thread works in. */
typedef struct {
    short *turned[3];                 /* rows of what was read, a dilation apart: (inputs, apart), with zeros at the end */
    short *paired[2];                 /* a row of the gradient, with zeros around: (outputs / SIDE, pairs, SIDE, 2); in the second
                                         the first pixel is the second of a pair */
    long apart, pairs, before;        /* values of a channel; pairs of pixels; of these, pixels before the row */
    long blocks;                      /* of pixels in a row */
} Rows;

/* Two pixels of a plane, value by value: of the first SIDE of BLOCK channels into one, of the others into the other. */
static inline void pair(__m512i first, __m512i second, __m512i *low, __m512i *high) {
    const __m512i up = _mm512_set1_epi32(0x00200000); /* the second one's come after 32 of the first */
    const __m512i from = _mm512_setr_epi32(0x00000000, 0x00010001, 0x00020002, 0x00030003, 0x00040004, 0x00050005, 0x00060006,
                                           0x00070007, 0x00080008, 0x00090009, 0x000a000a, 0x000b000b, 0x000c000c, 0x000d000d,
                                           0x000e000e, 0x000f000f);
    const __m512i of_low = _mm512_or_si512(from, up), of_high = _mm512_add_epi32(of_low, _mm512_set1_epi32(0x00100010));
    *low = _mm512_permutex2var_epi16(first, of_low, second);
    *high = _mm512_permutex2var_epi16(first, of_high, second);
}

/* Turns 16 rows of 16 pairs. */
static inline void turn(__m512i *rows) {
    __m512i some[16];
    for (int row = 0; row < 16; row += 2) {
        some[row] = _mm512_unpacklo_epi32(rows[row], rows[row + 1]);
        some[row + 1] = _mm512_unpackhi_epi32(rows[row], rows[row + 1]);
    }
    for (int row = 0; row < 16; row += 4)
        for (int half = 0; half < 2; half++) {
            rows[row + 2 * half] = _mm512_unpacklo_epi64(some[row + half], some[row + 2 + half]);
            rows[row + 2 * half + 1] = _mm512_unpackhi_epi64(some[row + half], some[row + 2 + half]);
        }
    for (int row = 0; row < 4; row++)
        for (int half = 0; half < 2; half++) { /* quarters of rows, which are columns of four */
            some[8 * half + row] = _mm512_shuffle_i32x4(rows[8 * half + row], rows[8 * half + 4 + row], 0x88);
            some[8 * half + 4 + row] = _mm512_shuffle_i32x4(rows[8 * half + row], rows[8 * half + 4 + row], 0xdd);
        }
    for (int row = 0; row < 8; row++) {
        rows[row] = _mm512_shuffle_i32x4(some[row], some[8 + row], 0x88);
        rows[8 + row] = _mm512_shuffle_i32x4(some[row], some[8 + row], 0xdd);
    }
}

/* BLOCK channels of a pixel, `of` values each, or zeros where a row has ended. */
INLINE __m512i pixel_of(const int full, const short *row, long x, long width, long of) {
    return full || x < width ? _mm512_loadu_si512(row + x * of) : _mm512_setzero_si512();
}

/* Turns a block of pixels, of BLOCK channels. */
INLINE void turn_block(const int full, const short *from, long left, long width, long of, short *line, long apart) {
    __m512i low[SIDE], high[SIDE];
    for (int two = 0; two < SIDE; two++) {
        const long x = left + 2 * two;
        pair(pixel_of(full, from, x, width, of), pixel_of(full, from, x + 1, width, of), &low[two], &high[two]);
    }
    turn(low);
    turn(high);
    for (int channel = 0; channel < SIDE; channel++) {
        _mm512_storeu_si512(line + channel * apart, low[channel]);
        _mm512_storeu_si512(line + (SIDE + channel) * apart, high[channel]);
    }
}

/* Turns a row of what was read. */
static void turn_row(const Convolution *job, long row, const Rows *rows, short *to) {
    for (long input = 0; input < job->inputs; input += BLOCK) {
        const long is_own = input < job->own, of = is_own ? job->own : job->inputs - job->own;
        const short *plane = is_own ? job->source : job->state;
        const short *from = plane + row * job->width * of + (is_own ? input : input - job->own);
        for (long left = 0; left < job->width; left += BLOCK) {
            short *line = to + input * rows->apart + left;
            if (left + BLOCK <= job->width) turn_block(1, from, left, job->width, of, line, rows->apart);
            else turn_block(0, from, left, job->width, of, line, rows->apart);
        }
    }
}

/* BLOCK channels of a pixel of the gradient. Where that is past a ReLU alone, or the outer one of two, and the convolution
   was scaled by attention, it passes that, too, and is written: see `AttentionGradient` of `backward.c`. */
INLINE __m512i gradient_of(const int passes, const Convolution *job, long value, const Vector *scale, const Vector *shift) {
    const short *gradient = (const short *)job->target + value, *tells = (const short *)job->tells + value;
    if (!passes) return _mm512_loadu_si512(gradient);
    Vector halves[2];
    for (int half = 0; half < 2; half++) {
        Vector given = load_upper(gradient + half * LANES);
        if (job->tells) given = where_positive(load_upper(tells + half * LANES), given);
        halves[half] = product_plus(given, scale[half], shift[half]);
    }
    const __m512i rounded = (__m512i)_mm512_cvtne2ps_pbh(halves[1], halves[0]);
    _mm512_storeu_si512((short *)job->passed + value, rounded);
    return rounded;
}

/* Pairs a row of the gradient; in the second way, too, if some taps are an odd number of pixels away. */
INLINE void pair_row(const int passes, const int is_odd, const Convolution *job, long row, const Rows *rows) {
    const long group = rows->pairs * 2 * SIDE, outputs = job->outputs, width = job->width, picture = row / job->height * outputs;
    for (long output = 0; output < outputs; output += BLOCK) {
        short *first = rows->paired[0] + output / SIDE * group + rows->before * SIDE;
        short *second = rows->paired[1] + output / SIDE * group + (rows->before - 2) * SIDE;
        const long value = row * width * outputs + output;
        const __m512i none = _mm512_setzero_si512();
        Vector scale[2], shift[2];
        for (int half = 0; passes && half < 2; half++) {
            scale[half] = load(job->scale + picture + output + half * LANES);
            shift[half] = load(job->bias + picture + output + half * LANES);
        }
        __m512i low, high, last = none;
        for (long x = 0; x < rows->blocks * BLOCK; x += 2, first += 2 * SIDE, second += 2 * SIDE) {
            const __m512i left = x < width ? gradient_of(passes, job, value + x * outputs, scale, shift) : none;
            const __m512i right = x + 1 < width ? gradient_of(passes, job, value + (x + 1) * outputs, scale, shift) : none;
            pair(left, right, &low, &high);
            _mm512_storeu_si512(first, low);
            _mm512_storeu_si512(first + group, high);
            if (!is_odd) continue;
            pair(last, left, &low, &high);
            _mm512_storeu_si512(second, low);
            _mm512_storeu_si512(second + group, high);
            last = right;
        }
        if (!is_odd) continue;
        pair(last, none, &low, &high);
        _mm512_storeu_si512(second, low);
        _mm512_storeu_si512(second + group, high);
    }
}

/* Adds what a row says of one tap, of a block of inputs and one of outputs. */
static inline void add_row(const Rows *rows, const short *seen, const short *wanted, float *sums) {
    const long group = rows->pairs * 2 * SIDE, line = BLOCK * sizeof(float);
    _tile_loadd(0, sums, line);
    _tile_loadd(1, sums + SIDE, line);
    _tile_loadd(2, sums + SIDE * BLOCK, line);
    _tile_loadd(3, sums + SIDE * BLOCK + SIDE, line);
    for (long block = 0; block < rows->blocks; block++) {
        const short *columns = wanted + block * BLOCK * SIDE;
        add_products(seen + block * BLOCK, rows->apart, columns, columns + group);
    }
    end_products(sums);
}

/* The rows of a picture from `first` to `end`: of those that lie dilations apart one after the other, so that each row of
   what was read, which three of them see, is turned once. */
static void sum_rows(const Convolution *job, long picture, long first, long end, Rows *rows, float *sums) {
    const long top = picture * job->height, step = job->dilation, group = rows->pairs * 2 * SIDE;
    for (long begin = first; begin < first + step && begin < end; begin++) {
        for (long at = begin - step; at < begin + step; at += step)
            if (at >= 0 && at < job->height) turn_row(job, top + at, rows, rows->turned[(at - begin + step) / step]);
        for (long y = begin; y < end; y += step) {
            if (y + step < job->height) turn_row(job, top + y + step, rows, rows->turned[2]);
            if (job->passed && step % 2) pair_row(1, 1, job, top + y, rows);
            else if (job->passed) pair_row(1, 0, job, top + y, rows);
            else if (step % 2) pair_row(0, 1, job, top + y, rows);
            else pair_row(0, 0, job, top + y, rows);
            for (long down = 0; down < 3; down++) {
                const long at = y + (down - 1) * step;
                if (at < 0 || at >= job->height) continue;
                float *sum = sums + 3 * down * SUMS;
                for (long input = 0; input < job->inputs; input += BLOCK)
                    for (long output = 0; output < job->outputs; output += BLOCK, sum += TAPS * SUMS)
                        for (long tap = 0; tap < 3; tap++) {
                            /* what is seen `right` of a pixel is where it is, and the gradient as far to the left */
                            const long right = (tap - 1) * step, is_odd = right % 2 != 0;
                            const short *wanted = rows->paired[is_odd] + (rows->before - right - is_odd) * SIDE;
                            add_row(rows, rows->turned[down] + input * rows->apart, wanted + output / SIDE * group,
                                    sum + tap * SUMS);
                        }
            }
            short *oldest = rows->turned[0];
            rows->turned[0] = rows->turned[1], rows->turned[1] = rows->turned[2], rows->turned[2] = oldest;
        }
    }
}

/* What each thread runs, in bfloat16: parts of the rows until there are none left. What it gives is (parts, inputs / BLOCK,
   outputs / BLOCK, 9, BLOCK, BLOCK). */
void sapnet_multiply_gradient(void *shared) {
    Convolution *job = shared;
    Rows rows = {.before = (job->dilation + 1) / 2 * 2, .blocks = (job->width + BLOCK - 1) / BLOCK};
    rows.apart = (rows.blocks | 1) * BLOCK; /* an odd number of lines, so that channels lie in different sets of a cache */
    rows.pairs = rows.blocks * BLOCK / 2 + rows.before;
    const long turned = job->inputs * rows.apart, paired = job->outputs * rows.pairs * 2, whole = 3 * turned + 2 * paired;
    short *memory = aligned_alloc(64, sizeof(short) * whole);
    if (!memory) {
        __atomic_store_n(&job->failed, 1, __ATOMIC_RELAXED);
        return;
    }
    memset(memory, 0, sizeof(short) * whole);
    for (int each = 0; each < 3; each++) rows.turned[each] = memory + each * turned;
    for (int each = 0; each < 2; each++) rows.paired[each] = memory + 3 * turned + each * paired;
    const long all_rows = job->count * job->height, summed = TAPS * job->inputs * job->outputs;
    const unsigned treated = begin_matrices();
    for (;;) {
        const long part = __atomic_fetch_add(&job->next, 1, __ATOMIC_RELAXED);
        if (part >= job->parts) break;
        float *sums = memset(job->kernel + part * summed, 0, sizeof(float) * summed);
        const long end = all_rows * (part + 1) / job->parts;
        for (long row = all_rows * part / job->parts; row < end;) {
            const long picture = row / job->height, next = (picture + 1) * job->height < end ? (picture + 1) * job->height : end;
            sum_rows(job, picture, row - picture * job->height, next - picture * job->height, &rows, sums);
            row = next;
        }
    }
    end_matrices(treated);
    free(memory);
}
#endif
