/* AMX and the rounding to bfloat16 in plain C, so that what they are used for is tested on CPUs without them, too. */

#include <immintrin.h>
#include <string.h>

#define __AMX_BF16__ 1

static __thread unsigned char tiles[8][16][64];

static float widened(unsigned short value) {
    const unsigned bits = (unsigned)value << 16;
    float number;
    memcpy(&number, &bits, sizeof(number));
    return number;
}

static void emulate_products(int sums, int pixels, int kernel) {
    for (int row = 0; row < 16; row++) {
        for (int column = 0; column < 16; column++) {
            float sum;
            memcpy(&sum, &tiles[sums][row][4 * column], sizeof(sum));
            for (int pair = 0; pair < 16; pair++) {
                unsigned short seen[2], weights[2];
                memcpy(seen, &tiles[pixels][row][4 * pair], sizeof(seen));
                memcpy(weights, &tiles[kernel][pair][4 * column], sizeof(weights));
                sum += widened(seen[0]) * widened(weights[0]);
                sum += widened(seen[1]) * widened(weights[1]);
            }
            memcpy(&tiles[sums][row][4 * column], &sum, sizeof(sum));
        }
    }
}

static __m256i emulate_rounding(__m512 x) {
    const __m512i bits = _mm512_castps_si512(x), odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    const __m512i up = _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff));
    const __m512i rounded = _mm512_mask_add_epi32(bits, _mm512_cmp_ps_mask(x, x, _CMP_ORD_Q), bits, up);
    return _mm512_cvtepi32_epi16(_mm512_srli_epi32(rounded, 16));
}

static __m512i emulate_rounding_both(__m512 upper, __m512 lower) {
    return _mm512_inserti64x4(_mm512_castsi256_si512(emulate_rounding(lower)), emulate_rounding(upper), 1);
}

#undef _tile_zero
#undef _tile_loadd
#undef _tile_stored
#undef _tile_dpbf16ps
#define _tile_loadconfig(shapes) ((void)(shapes))
#define _tile_release()
#define _tile_zero(tile) memset(tiles[tile], 0, sizeof(tiles[tile]))
#define _tile_loadd(tile, from, apart) \
    for (int row = 0; row < 16; row++) memcpy(tiles[tile][row], (const char *)(from) + row * (long)(apart), 64)
#define _tile_stored(tile, to, apart) \
    for (int row = 0; row < 16; row++) memcpy((char *)(to) + row * (long)(apart), tiles[tile][row], 64)
#define _tile_dpbf16ps(sums, pixels, kernel) emulate_products(sums, pixels, kernel)
#define _mm512_cvtneps_pbh(x) emulate_rounding(x)
#define _mm512_cvtne2ps_pbh(upper, lower) emulate_rounding_both(upper, lower)
