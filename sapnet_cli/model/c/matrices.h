/* Matrices of bfloat16, which AMX multiplies. */

#ifndef SAPNET_MATRICES
#define SAPNET_MATRICES

#include "convolution.h"
#include "vectors.h"

#ifdef __AMX_BF16__

enum {
    SIDE = 16,       /* rows, or columns, of a sum of products */
    DEEP = 32,       /* products that are summed at once */
    BLOCK = 2 * SIDE /* rows, or columns, that are multiplied at once */
};

/* How matrices lie in the registers: 16 rows of 64 bytes in each of eight. */
typedef struct {
    char palette, start_row, reserved[14];
    unsigned short bytes[16];
    unsigned char rows[16];
} Shapes;

/* Makes the registers ready, and gives how this thread treated numbers below all normal ones, to be restored: here they are
   zeros, as they would take a hundred times as long, and what decays ends in them. */
static inline unsigned begin_matrices(void) {
    const unsigned treated = _mm_getcsr();
    Shapes shapes = {.palette = 1};
    for (int each = 0; each < 8; each++) shapes.bytes[each] = 64, shapes.rows[each] = 16;
    _tile_loadconfig(&shapes);
    _mm_setcsr(treated | _MM_FLUSH_ZERO_ON | _MM_DENORMALS_ZERO_ON);
    return treated;
}

static inline void end_matrices(unsigned treated) {
    _mm_setcsr(treated);
    _tile_release();
}

/* Adds, to sums of a block of rows and one of columns, DEEP products each: of rows that lie so many values apart, and of two
   matrices of columns. */
INLINE void add_products(const short *rows, long apart, const short *first, const short *second) {
    const long bytes = apart * sizeof(short);
    _tile_loadd(4, first, 64);
    _tile_loadd(6, rows, bytes);
    _tile_dpbf16ps(0, 6, 4);
    _tile_loadd(5, second, 64);
    _tile_dpbf16ps(1, 6, 5);
    _tile_loadd(7, rows + SIDE * apart, bytes);
    _tile_dpbf16ps(2, 7, 4);
    _tile_dpbf16ps(3, 7, 5);
}

/* Writes these sums, (BLOCK, BLOCK). */
INLINE void end_products(float *given) {
    _tile_stored(0, given, BLOCK * sizeof(float));
    _tile_stored(1, given + SIDE, BLOCK * sizeof(float));
    _tile_stored(2, given + SIDE * BLOCK, BLOCK * sizeof(float));
    _tile_stored(3, given + SIDE * BLOCK + SIDE, BLOCK * sizeof(float));
}

#endif
#endif
