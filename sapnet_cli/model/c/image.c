/* The convolutions from images and to one, as they are, without tiles, as one side of them has few channels, and what is
   done with each pixel of one. */

#include <stdlib.h>
#include <string.h>

#include "convolution.h"
#include "vectors.h"

enum {
    PIXELS = 4,         /* that are given at once: with a sum for each colour all registers of AVX2 are in use */
    SEEN = 2 * COLOURS, /* channels of two images */
    AT_ONCE = PAIRS,    /* pixels that are embedded at once */
    SOME_ROWS = 8,      /* that a thread embeds at once, as it lays out those that they see */
    SOME_PIXELS = 4096  /* that a thread changes at once */
};

/* What the threads of an embedding share; `Embedding` of `native.py` has the same fields. */
typedef struct {
    const void *rainy;                /* (count, height, width, COLOURS), bytes, or floats up to 1 */
    const float *residual;            /* the same, floats */
    const float *kernel, *bias;       /* (3, 3, SEEN, outputs), of the rainy image in 255ths and the residual, and (outputs) */
    void *target;                     /* (count, height, width, outputs) */
    long count, height, width, outputs;
    long bytes, kind;                 /* whether the rainy image is of bytes, and the kind of the target's features */
    long next;                        /* of some rows each, that no thread has taken yet */
    long failed;                      /* a thread had no memory */
} Embedding;

/* Lays a row of both images out, pixel by pixel, with zeros beyond the edges. */
static void lay_row(const Embedding *job, long picture, long row, long room, float *line) {
    memset(line, 0, sizeof(float) * room);
    if (row < 0 || row >= job->height) return;
    const long first = (picture * job->height + row) * job->width;
    for (long at = 0; at < job->width; at++)
        for (long colour = 0; colour < COLOURS; colour++) {
            const long value = (first + at) * COLOURS + colour;
            float *pixel = line + (at + 1) * SEEN + colour;
            pixel[0] = job->bytes ? ((const unsigned char *)job->rainy)[value] : 255 * ((const float *)job->rainy)[value];
            pixel[COLOURS] = job->residual[value];
        }
}

/* ReLU of what AT_ONCE pixels give in two vectors of channels, of what they see, three lines that lie `room` apart. */
INLINE void embed_pixels(const int kind, const Embedding *job, const float *lines, long room, long output, long pixel, long number) {
    Vector sums[AT_ONCE][2];
    for (int each = 0; each < AT_ONCE; each++)
        for (int vector = 0; vector < 2; vector++) sums[each][vector] = load(job->bias + output + vector * LANES);
    const float *kernel = job->kernel + output;
    for (long down = 0; down < 3; down++)
        for (long right = 0; right < 3 * SEEN; right++, kernel += job->outputs) {
            const Vector first = load(kernel), second = load(kernel + LANES);
            for (int each = 0; each < AT_ONCE; each++) {
                const Vector value = all(lines[down * room + each * SEEN + right]);
                sums[each][0] = product_plus(value, first, sums[each][0]);
                sums[each][1] = product_plus(value, second, sums[each][1]);
            }
        }
    for (int each = 0; each < AT_ONCE; each++) /* all known to the compiler, so that sums stay in registers */
        for (int vector = 0; vector < 2; vector++)
            if (each < number) {
                const long value = (pixel + each) * job->outputs + output + vector * LANES;
                store_features(kind, job->target, value, larger(all(0), sums[each][vector]));
            }
}

/* Takes some rows of pictures at a time until there are none left. */
INLINE void embed(const int kind, Embedding *job) {
    const long height = job->height, width = job->width, room = (width + AT_ONCE + 2) * SEEN;
    const long parts = (height + SOME_ROWS - 1) / SOME_ROWS;
    float *lines = malloc(sizeof(float) * (SOME_ROWS + 2) * room);
    if (!lines) __atomic_store_n(&job->failed, 1, __ATOMIC_RELAXED);
    while (lines) {
        const long part = __atomic_fetch_add(&job->next, 1, __ATOMIC_RELAXED), picture = part / parts;
        if (picture >= job->count) break;
        const long begin = part % parts * SOME_ROWS, end = begin + SOME_ROWS < height ? begin + SOME_ROWS : height;
        for (long row = begin - 1; row <= end; row++) lay_row(job, picture, row, room, lines + (row - begin + 1) * room);
        for (long row = begin; row < end; row++)
            for (long at = 0; at < width; at += AT_ONCE)
                for (long output = 0; output < job->outputs; output += 2 * LANES)
                    embed_pixels(kind, job, lines + (row - begin) * room + at * SEEN, room, output,
                                 (picture * height + row) * width + at, width - at);
    }
    free(lines);
}

/* The 3x3 convolution of two images, and ReLU: what each of its threads runs. */
void sapnet_embed(void *shared) {
    Embedding *job = shared;
    if (job->kind == HALVES) embed(HALVES, job);
    else if (job->kind == BRAIN_FLOATS) embed(BRAIN_FLOATS, job);
    else embed(FLOATS, job);
}

/* Takes rows of pictures until there are none left. The kernel is (3, 3, COLOURS, inputs), the target of floats, and a
   row and column beyond the edges zero. */
INLINE void project(const int kind, Convolution *job) {
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
                const float *kernel = job->kernel + tap * COLOURS * inputs;
                const void *seen[PIXELS];
                for (int pixel = 0; pixel < PIXELS; pixel++) {
                    int there = first + pixel >= 0 && first + pixel < width;
                    const long value = ((line + down) * width + first + pixel) * inputs;
                    seen[pixel] = there ? (const char *)job->source + value * feature_size(kind) : (char *)zeros;
                }
                for (long channel = 0; channel < inputs; channel += LANES) {
                    Vector weights[COLOURS];
                    for (int colour = 0; colour < COLOURS; colour++)
                        weights[colour] = load(kernel + colour * inputs + channel);
                    for (int pixel = 0; pixel < PIXELS; pixel++) {
                        Vector value = load_features(kind, seen[pixel], channel);
                        for (int colour = 0; colour < COLOURS; colour++)
                            sums[pixel][colour] = product_plus(value, weights[colour], sums[pixel][colour]);
                    }
                }
            }
            float *target = (float *)job->target + (line * width + at) * COLOURS;
            for (int pixel = 0; pixel < PIXELS && at + pixel < width; pixel++)
                for (int colour = 0; colour < COLOURS; colour++)
                    target[pixel * COLOURS + colour] = total(sums[pixel][colour]) + job->bias[colour];
        }
    }
    free(zeros);
}

/* The 3x3 convolution to COLOURS: what each of its threads runs. */
void sapnet_project(void *shared) {
    Convolution *job = shared;
    if (job->kind == HALVES) project(HALVES, job);
    else if (job->kind == BRAIN_FLOATS) project(BRAIN_FLOATS, job);
    else project(FLOATS, job);
}

/* What is added to each pixel; `Change` of `native.py` has the same fields. */
typedef struct {
    const void *rainy;                /* (pixels, COLOURS), bytes, or floats up to 1 */
    float *residual;                  /* the same, floats; changed in place */
    const float *linear, *most;       /* (SEEN + 1, COLOURS), of the rainy image as it is, the residual, and 1; (COLOURS) */
    long pixels, bytes;
    long next;                        /* of some pixels each, that no thread has taken yet */
} Change;

/* Adds to the residual what is linear in a pixel's colours, but no more than `most`: what each thread runs. */
void sapnet_change(void *shared) {
    Change *job = shared;
    for (;;) {
        const long begin = __atomic_fetch_add(&job->next, 1, __ATOMIC_RELAXED) * SOME_PIXELS;
        const long end = begin + SOME_PIXELS < job->pixels ? begin + SOME_PIXELS : job->pixels;
        if (begin >= job->pixels) return;
        for (long pixel = begin; pixel < end; pixel++) {
            float *residual = job->residual + pixel * COLOURS, seen[SEEN], change[COLOURS];
            for (int colour = 0; colour < COLOURS; colour++) {
                const long value = pixel * COLOURS + colour;
                seen[colour] = job->bytes ? ((const unsigned char *)job->rainy)[value] : ((const float *)job->rainy)[value];
                seen[COLOURS + colour] = residual[colour];
                change[colour] = job->linear[SEEN * COLOURS + colour];
            }
            for (int each = 0; each < SEEN; each++)
                for (int colour = 0; colour < COLOURS; colour++) change[colour] += seen[each] * job->linear[each * COLOURS + colour];
            for (int colour = 0; colour < COLOURS; colour++) {
                const float most = job->most[colour]; /* what is no number stays none */
                residual[colour] += change[colour] < -most ? -most : change[colour] > most ? most : change[colour];
            }
        }
    }
}
