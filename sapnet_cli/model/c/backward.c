/* What gradients pass between convolutions: attention with its ReLU, and an LSTM's step. */

#include <string.h>

#include "vectors.h"

enum {
    SOME = 64, /* pixels that are taken at once, so that a cache holds them, and sums of few are added to those of many */
    GATES = 4  /* of an LSTM, at most */
};

/* What the threads of attention's gradient share; `AttentionGradient` of `gradients.py` has the same fields. */
typedef struct {
    float *gradient;                  /* of what came out, (count, pixels, channels); of `before` in the end, if there is one */
    const float *after;               /* what came out: ReLU(scale x), or ReLU(before + ReLU(scale x)) */
    const float *before;              /* what skipped it, or none */
    const float *scale, *shift;       /* (count, channels): attention's, and what it adds to the gradient of each pixel */
    float *target;                    /* the gradient of x; it may be where that of what came out is */
    float *sums;                      /* (count, parts, 2, channels): of the gradient where scale x passes, and times scale x */
    long count, pixels, channels;
    long parts, next;                 /* of a picture, and of all, that no thread has taken yet */
} AttentionGradient;

/* Some pixels of a part: the next ones, from `first` on. */
static long some_of(long first, long end) { return first + SOME < end ? first + SOME : end; }

/* What passes the ReLUs of a vector's gradient: through the outer one, which there is where something skips, and the inner. */
INLINE void pass(const AttentionGradient *job, const int skipped, long value, Vector *outer, Vector *inner, Vector *result) {
    const Vector after = load(job->after + value);
    *outer = where_positive(after, load(job->gradient + value));
    *result = skipped ? larger(all(0), sub(after, load(job->before + value))) : after; /* scale x, where it is positive */
    *inner = where_positive(*result, *outer);
}

INLINE void sum_attention(const int skipped, AttentionGradient *job) {
    const long channels = job->channels;
    for (;;) {
        const long part = __atomic_fetch_add(&job->next, 1, __ATOMIC_RELAXED), picture = part / job->parts;
        if (picture >= job->count) return;
        const long begin = job->pixels * (part % job->parts) / job->parts;
        const long end = job->pixels * (part % job->parts + 1) / job->parts;
        float *sums = memset(job->sums + part * 2 * channels, 0, sizeof(float) * 2 * channels);
        for (long first = begin; first < end; first = some_of(first, end))
            for (long channel = 0; channel < channels; channel += LANES) {
                Vector passed = all(0), product = all(0), outer, inner, result;
                for (long pixel = first; pixel < some_of(first, end); pixel++) {
                    pass(job, skipped, (picture * job->pixels + pixel) * channels + channel, &outer, &inner, &result);
                    passed = add(passed, inner);
                    product = product_plus(inner, result, product);
                }
                store(sums + channel, add(load(sums + channel), passed));
                store(sums + channels + channel, add(load(sums + channels + channel), product));
            }
    }
}

/* What each thread runs: the sums that the gradient of attention's scale, and of the bias, are told by. */
void sapnet_sum_attention(void *shared) {
    AttentionGradient *job = shared;
    if (job->before) sum_attention(1, job);
    else sum_attention(0, job);
}

INLINE void pass_attention(const int skipped, AttentionGradient *job) {
    const long channels = job->channels, pieces = (job->pixels + SOME - 1) / SOME;
    for (;;) {
        const long piece = __atomic_fetch_add(&job->next, 1, __ATOMIC_RELAXED), picture = piece / pieces;
        if (picture >= job->count) return;
        const long begin = picture * job->pixels + piece % pieces * SOME;
        const long end = some_of(begin, (picture + 1) * job->pixels);
        for (long pixel = begin; pixel < end; pixel++)
            for (long channel = 0; channel < channels; channel += LANES) {
                const long value = pixel * channels + channel, vector = picture * channels + channel;
                Vector outer, inner, result;
                pass(job, skipped, value, &outer, &inner, &result);
                if (skipped) store(job->gradient + value, outer);
                store(job->target + value, product_plus(inner, load(job->scale + vector), load(job->shift + vector)));
            }
    }
}

/* What each thread runs: the gradient of what attention scaled. */
void sapnet_pass_attention(void *shared) {
    AttentionGradient *job = shared;
    if (job->before) pass_attention(1, job);
    else pass_attention(0, job);
}

/* What the threads of an LSTM's gradient share; `StepGradient` of `gradients.py` has the same fields. */
typedef struct {
    const float *gates;               /* before their sigmoid or hyperbolic tangent, (pixels, 4 or 3, channels) */
    const float *before;              /* the cell state before, (pixels, channels), or none at the first step */
    const float *hidden, *cell;       /* gradients of the hidden state, and of the cell state, or none */
    float *of_gates, *of_before;      /* gradients of the gates, and of the cell state before, or none */
    float *sums;                      /* (parts, 4 or 3, channels): of the gates' gradients */
    long pixels, channels;
    long parts, next;
} StepGradient;

/* Of some channels of some pixels; adds the gradients of the gates to sums. */
INLINE void step_back(const int first, const StepGradient *job, long begin, long end, long channel, float *sums) {
    const long channels = job->channels, gates = first ? GATES - 1 : GATES;
    const Vector one = all(1);
    Vector totals[GATES] = {all(0), all(0), all(0), all(0)};
    for (long pixel = begin; pixel < end; pixel++) {
        const long value = pixel * channels + channel;
        const float *from = job->gates + pixel * gates * channels + channel;
        float *to = job->of_gates + pixel * gates * channels + channel;
        const Vector in = sigmoid(load(from)), candidate = hyperbolic_tangent(load(from + channels));
        const Vector out = sigmoid(load(from + 2 * channels));
        Vector cell = mul(in, candidate), forget, before, result[GATES];
        if (!first) {
            forget = sigmoid(load(from + 3 * channels)), before = load(job->before + value);
            cell = product_plus(forget, before, cell);
        }
        const Vector shown = hyperbolic_tangent(cell), hidden = load(job->hidden + value);
        Vector of_cell = mul(mul(hidden, out), less_product(shown, shown, one));
        if (job->cell) of_cell = add(of_cell, load(job->cell + value));
        result[0] = mul(mul(of_cell, candidate), mul(in, sub(one, in)));
        result[1] = mul(mul(of_cell, in), less_product(candidate, candidate, one));
        result[2] = mul(mul(hidden, shown), mul(out, sub(one, out)));
        if (!first) {
            result[3] = mul(mul(of_cell, before), mul(forget, sub(one, forget)));
            store(job->of_before + value, mul(of_cell, forget));
        }
        for (int gate = 0; gate < gates; gate++) {
            store(to + gate * channels, result[gate]);
            totals[gate] = add(totals[gate], result[gate]);
        }
    }
    for (int gate = 0; gate < gates; gate++) {
        float *sum = sums + gate * channels + channel;
        store(sum, add(load(sum), totals[gate]));
    }
}

/* What each thread runs: parts until there are none left. */
void sapnet_step_back(void *shared) {
    StepGradient *job = shared;
    const long values = (job->before ? GATES : GATES - 1) * job->channels;
    for (;;) {
        const long part = __atomic_fetch_add(&job->next, 1, __ATOMIC_RELAXED);
        if (part >= job->parts) return;
        const long end = job->pixels * (part + 1) / job->parts;
        float *sums = memset(job->sums + part * values, 0, sizeof(float) * values);
        for (long begin = job->pixels * part / job->parts; begin < end; begin = some_of(begin, end))
            for (long channel = 0; channel < job->channels; channel += LANES)
                if (job->before) step_back(0, job, begin, some_of(begin, end), channel, sums);
                else step_back(1, job, begin, some_of(begin, end), channel, sums);
    }
}
