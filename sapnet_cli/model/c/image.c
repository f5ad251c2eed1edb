/* A convolution to an image. */

#include <stdlib.h>

#include "convolution.h"
#include "vectors.h"

enum {
    COLOURS = 3, /* of an image */
    PIXELS = 4   /* that are computed at once: with a sum for each colour all registers of AVX2 are in use */
};

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
