/* Vectors of floats by AVX512, by AVX2 and FMA, or by NEON, whichever it is compiled for. */

#ifndef SAPNET_VECTORS
#define SAPNET_VECTORS

#ifdef __ARM_NEON
#include <arm_neon.h>
#else
#include <immintrin.h>
#endif

/* So that what is constant where it is called is so inside. */
#define INLINE static inline __attribute__((always_inline))

#ifdef __AVX512F__
typedef __m512 Vector;
enum {
    LANES = 16,    /* floats of a vector */
    REGISTERS = 32 /* that hold one */
};

static inline Vector all(float value) { return _mm512_set1_ps(value); }
static inline Vector load(const float *from) { return _mm512_loadu_ps(from); }
static inline void store(float *to, Vector x) { _mm512_storeu_ps(to, x); }
static inline Vector product_plus(Vector x, Vector y, Vector z) { return _mm512_fmadd_ps(x, y, z); }   /* x y + z */
static inline Vector less_product(Vector x, Vector y, Vector z) { return _mm512_fnmadd_ps(x, y, z); } /* z - x y */
static inline Vector over(Vector x, Vector y) { /* by one step of Newton's from 14 bits: a division takes three times as long */
    Vector inverse = _mm512_rcp14_ps(y);
    return x * (inverse * less_product(y, inverse, all(2)));
}
static inline Vector smaller(Vector x, Vector y) { return _mm512_min_ps(x, y); } /* the second where one is no number */
static inline Vector larger(Vector x, Vector y) { return _mm512_max_ps(x, y); }
static inline Vector nearest(Vector x) { return _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
static inline Vector by_power(Vector x, Vector of) { return _mm512_scalef_ps(x, of); } /* x times two to a whole number */
static inline Vector where_positive(Vector x, Vector y) { /* y, and zero where x is not */
    return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(x, _mm512_setzero_ps(), _CMP_GT_OQ), y);
}
static inline float total(Vector x) { return _mm512_reduce_add_ps(x); }
static inline void store_halves(short *to, Vector x) {
    _mm256_storeu_si256((void *)to, _mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
static inline Vector load_halves(const short *from) { return _mm512_cvtph_ps(_mm256_loadu_si256((const void *)from)); }
static inline void store_upper(short *to, Vector x) { /* the upper half of the bits of each */
    _mm256_storeu_si256((void *)to, _mm512_cvtepi32_epi16(_mm512_srli_epi32(_mm512_castps_si512(x), 16)));
}
static inline Vector load_upper(const short *from) {
    const __m256i upper = _mm256_loadu_si256((const void *)from);
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(upper), 16));
}
#elif defined(__AVX2__)
typedef __m256 Vector;
enum {
    LANES = 8,
    REGISTERS = 16
};

static inline Vector all(float value) { return _mm256_set1_ps(value); }
static inline Vector load(const float *from) { return _mm256_loadu_ps(from); }
static inline void store(float *to, Vector x) { _mm256_storeu_ps(to, x); }
static inline Vector product_plus(Vector x, Vector y, Vector z) { return _mm256_fmadd_ps(x, y, z); }
static inline Vector less_product(Vector x, Vector y, Vector z) { return _mm256_fnmadd_ps(x, y, z); }
static inline Vector over(Vector x, Vector y) { return x / y; }
static inline Vector smaller(Vector x, Vector y) { return _mm256_min_ps(x, y); }
static inline Vector larger(Vector x, Vector y) { return _mm256_max_ps(x, y); }
static inline Vector nearest(Vector x) { return _mm256_round_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
static inline Vector by_power(Vector x, Vector of) {
    __m256i exponent = _mm256_add_epi32(_mm256_cvtps_epi32(of), _mm256_set1_epi32(127));
    return x * _mm256_castsi256_ps(_mm256_slli_epi32(exponent, 23));
}
static inline Vector where_positive(Vector x, Vector y) { return _mm256_and_ps(_mm256_cmp_ps(x, _mm256_setzero_ps(), _CMP_GT_OQ), y); }
static inline float total(Vector x) {
    __m128 half = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    __m128 quarter = _mm_add_ps(half, _mm_movehl_ps(half, half));
    return _mm_cvtss_f32(_mm_add_ss(quarter, _mm_movehdup_ps(quarter)));
}
static inline void store_halves(short *to, Vector x) {
    _mm_storeu_si128((void *)to, _mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
static inline Vector load_halves(const short *from) { return _mm256_cvtph_ps(_mm_loadu_si128((const void *)from)); }
static inline void store_upper(short *to, Vector x) {
    const __m256i upper = _mm256_srli_epi32(_mm256_castps_si256(x), 16);
    _mm_storeu_si128((void *)to, _mm_packus_epi32(_mm256_castsi256_si128(upper), _mm256_extracti128_si256(upper, 1)));
}
static inline Vector load_upper(const short *from) {
    const __m128i upper = _mm_loadu_si128((const void *)from);
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(upper), 16));
}
#else
typedef float32x4_t Vector;
enum {
    LANES = 4,
    REGISTERS = 32
};

static inline Vector all(float value) { return vdupq_n_f32(value); }
static inline Vector load(const float *from) { return vld1q_f32(from); }
static inline void store(float *to, Vector x) { vst1q_f32(to, x); }
static inline Vector product_plus(Vector x, Vector y, Vector z) { return vfmaq_f32(z, x, y); }
static inline Vector less_product(Vector x, Vector y, Vector z) { return vfmsq_f32(z, x, y); }
static inline Vector over(Vector x, Vector y) { return x / y; }
static inline Vector smaller(Vector x, Vector y) { return vbslq_f32(vcltq_f32(x, y), x, y); }
static inline Vector larger(Vector x, Vector y) { return vbslq_f32(vcgtq_f32(x, y), x, y); }
static inline Vector nearest(Vector x) { return vrndnq_f32(x); }
static inline Vector by_power(Vector x, Vector of) {
    const int32x4_t exponent = vaddq_s32(vcvtq_s32_f32(of), vdupq_n_s32(127));
    return x * vreinterpretq_f32_s32(vshlq_n_s32(exponent, 23));
}
static inline Vector where_positive(Vector x, Vector y) { return vbslq_f32(vcgtq_f32(x, all(0)), y, all(0)); }
static inline float total(Vector x) { return vaddvq_f32(x); }
static inline void store_halves(short *to, Vector x) { vst1_s16(to, vreinterpret_s16_f16(vcvt_f16_f32(x))); }
static inline Vector load_halves(const short *from) { return vcvt_f32_f16(vreinterpret_f16_s16(vld1_s16(from))); }
static inline void store_upper(short *to, Vector x) {
    vst1_s16(to, vreinterpret_s16_u16(vshrn_n_u32(vreinterpretq_u32_f32(x), 16)));
}
static inline Vector load_upper(const short *from) {
    return vreinterpretq_f32_u32(vshll_n_u16(vreinterpret_u16_s16(vld1_s16(from)), 16));
}
#endif

/* Of vectors that are summed at once: they take most registers, and NEON, which multiplies by one value of a vector, wants
   one more for each. */
enum { PAIRS = LANES == 4 ? 8 : REGISTERS * 3 / 8 };

static inline Vector add(Vector x, Vector y) { return x + y; }
static inline Vector sub(Vector x, Vector y) { return x - y; }
static inline Vector mul(Vector x, Vector y) { return x * y; }
static inline Vector times(float x, Vector y) { return mul(all(x), y); }
static inline Vector plus(float x, Vector y, Vector z) { return product_plus(all(x), y, z); }
static inline Vector minus(float x, Vector y, Vector z) { return less_product(all(x), y, z); }

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
static inline Vector hyperbolic_tangent(Vector x) {
    Vector twice = decay(add(x, x));
    return over(sub(all(1), twice), add(all(1), twice));
}

/* To the nearest number of so many bits as the upper ones, and to the even one of two; no number stays none. */
static inline Vector to_brain_floats(Vector x) {
    typedef unsigned Bits __attribute__((vector_size(sizeof(Vector))));
    const Bits bits = (Bits)x, is_number = (Bits)(x == x);
    return (Vector)(bits + (((bits >> 16 & 1) + 0x7fff) & is_number));
}

/* What the features of a plane are, as in `PLANES` of `native.py`: computed with as floats, all of them. */
enum { FLOATS, HALVES, BRAIN_FLOATS };

INLINE long feature_size(const int kind) { return kind == FLOATS ? sizeof(float) : sizeof(short); }
INLINE Vector load_features(const int kind, const void *plane, long first) {
    if (kind == HALVES) return load_halves((const short *)plane + first);
    if (kind == BRAIN_FLOATS) return load_upper((const short *)plane + first);
    return load((const float *)plane + first);
}
INLINE void store_features(const int kind, void *plane, long first, Vector x) {
    if (kind == HALVES) store_halves((short *)plane + first, x);
    else if (kind == BRAIN_FLOATS) store_upper((short *)plane + first, to_brain_floats(x));
    else store((float *)plane + first, x);
}

#endif
