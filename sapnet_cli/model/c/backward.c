/* What gradients pass between convolutions: attention with its ReLU, and an LSTM's step. */

#include <string.h>

#include "convolution.h"
#include "vectors.h"

enum {
    SOME = 64 /* pixels that are taken at once, so that a cache holds them, and sums of few are added to those of many */
};

/* What the threads of attention's gradient share; `AttentionGradient` of `gradients.py` has the same fields. */
typedef struct {
    const float *gradient;            /* (count, pixels, channels): what passed the ReLU of ReLU(scale x), or the outer one of
                                         ReLU(before + ReLU(scale x)) */
    const float *scale, *shift;       /* (count, channels): attention's, and what it adds to the gradient of each pixel */
    float *target;                    /* the gradient of x; it may be where the other is */
    const float *after, *before;      /* what came out of the latter, and what skipped it; or none */
    long count, pixels, channels;
    long next;                        /* of some pixels each, that no thread has taken yet */
} AttentionGradient;

/* Some pixels, from the first on. */
static long some_of(long first, long end) { return first + SOME < end ? first + SOME : end; }

/* What each thread runs: some pixels at a time until there are none left. */
void sapnet_pass_attention(void *shared) {
    AttentionGradient *job = shared;
    const long channels = job->channels, pieces = (job->pixels + SOME - 1) / SOME;
    for (;;) {
        const long piece = __atomic_fetch_add(&job->next, 1, __ATOMIC_RELAXED), picture = piece / pieces;
        if (picture >= job->count) return;
        const long begin = picture * job->pixels + piece % pieces * SOME;
        const long end = some_of(begin, (picture + 1) * job->pixels);
        for (long pixel = begin; pixel < end; pixel++)
            for (long channel = 0; channel < channels; channel += LANES) {
                const long value = pixel * channels + channel, vector = picture * channels + channel;
                Vector gradient = load(job->gradient + value);
                if (job->before) gradient = where_positive(sub(load(job->after + value), load(job->before + value)), gradient);
                store(job->target + value, product_plus(gradient, load(job->scale + vector), load(job->shift + vector)));
            }
    }
}

/* What the threads of an LSTM's gradient share; `StepGradient` of `gradients.py` has the same fields. */
typedef struct {
    const void *gates;                /* before their sigmoid or hyperbolic tangent, (pixels, 4 or 3, channels) */
    const void *before;               /* the cell state before, (pixels, channels), or none at the first step */
    const void *hidden, *cell;        /* gradients of the hidden state, and of the cell state, or none */
    void *of_gates, *of_before;       /* gradients of the gates, and of the cell state before, or none */
    float *sums;                      /* (parts, 4 or 3, channels): of the gates' gradients */
    long pixels, channels;
    long kind;                        /* of all planes */
    long parts, next;
} StepGradient;

/* Of some channels of some pixels; adds the gradients of the gates to sums. */
INLINE void step_back(const int first, const int kind, const StepGradient *job, long begin, long end, long channel, float *sums) {
    const long channels = job->channels, gates = first ? GATES - 1 : GATES;
    const Vector one = all(1);
    Vector totals[GATES] = {all(0), all(0), all(0), all(0)};
    for (long pixel = begin; pixel < end; pixel++) {
        const long value = pixel * channels + channel;
        const long from = pixel * gates * channels + channel;
        const Vector in = sigmoid(load_features(kind, job->gates, from));
        const Vector candidate = hyperbolic_tangent(load_features(kind, job->gates, from + channels));
        const Vector out = sigmoid(load_features(kind, job->gates, from + 2 * channels));
        Vector cell = mul(in, candidate), forget, before, result[GATES];
        if (!first) {
            forget = sigmoid(load_features(kind, job->gates, from + 3 * channels));
            before = load_features(kind, job->before, value);
            cell = product_plus(forget, before, cell);
        }
        const Vector shown = hyperbolic_tangent(cell), hidden = load_features(kind, job->hidden, value);
        Vector of_cell = mul(mul(hidden, out), less_product(shown, shown, one));
        if (job->cell) of_cell = add(of_cell, load_features(kind, job->cell, value));
        result[0] = mul(mul(of_cell, candidate), mul(in, sub(one, in)));
        result[1] = mul(mul(of_cell, in), less_product(candidate, candidate, one));
        result[2] = mul(mul(hidden, shown), mul(out, sub(one, out)));
        if (!first) {
            result[3] = mul(mul(of_cell, before), mul(forget, sub(one, forget)));
            store_features(kind, job->of_before, value, mul(of_cell, forget));
        }
        for (int gate = 0; gate < gates; gate++) {
            store_features(kind, job->of_gates, from + gate * channels, result[gate]);
            totals[gate] = add(totals[gate], result[gate]);
        }
    }
    for (int gate = 0; gate < gates; gate++) {
        float *sum = sums + gate * channels + channel;
        store(sum, add(load(sum), totals[gate]));
    }
}

INLINE void go_back(const int kind, StepGradient *job) {
    const long values = (job->before ? GATES : GATES - 1) * job->channels;
    for (;;) {
        const long part = __atomic_fetch_add(&job->next, 1, __ATOMIC_RELAXED);
        if (part >= job->parts) return;
        const long end = job->pixels * (part + 1) / job->parts;
        float *sums = memset(job->sums + part * values, 0, sizeof(float) * values);
        for (long begin = job->pixels * part / job->parts; begin < end; begin = some_of(begin, end))
            for (long channel = 0; channel < job->channels; channel += LANES)
                if (job->before) step_back(0, kind, job, begin, some_of(begin, end), channel, sums);
                else step_back(1, kind, job, begin, some_of(begin, end), channel, sums);
    }
}

/* What each thread runs: parts until there are none left. */
void sapnet_step_back(void *shared) {
    StepGradient *job = shared;
    if (job->kind == FLOATS) go_back(FLOATS, job);
    else go_back(BRAIN_FLOATS, job);
}
