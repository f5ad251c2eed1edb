/* Convolutions, and an LSTM's step, by AMX, which multiplies matrices of bfloat16: all nine products of each value take
   less time than Winograd's transforms would. While one block of pixels is multiplied, that before it is written. */

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "matrices.h"

#ifdef __AMX_BF16__

enum {
    KERNEL = BLOCK * DEEP, /* values of one tap, for such a block of outputs */
    WIDE = 4 * BLOCK,      /* columns of large planes */
    HELD = 1 << 24,        /* values of a plane that caches hold */
    TOGETHER = 4,          /* pixels that are written together: what is done for one waits for what is done before */
    ROWS_AT_ONCE = 32      /* that a thread takes, unless they are summed */
};

/* What is computed. */
enum { FEATURES, SKIPPED_FEATURES, GRADIENT, IMAGE, FIRST_STATE, STATE };

INLINE int is_state(const int what) { return what == FIRST_STATE || what == STATE; }

/* Channels that are written of each pixel, and of them those that a block has. */
INLINE long channels_of(const int what, const Convolution *job) { return is_state(what) ? job->outputs / GATES : job->outputs; }
INLINE long at_once(const int what) { return is_state(what) ? SIDE : BLOCK; }

/* Lines of channels that each picture is summed in. */
INLINE long lines_of(const int what, const Convolution *job) { return what == GRADIENT ? 2 : job->width; }

/* Blocks of outputs that these are made of. */
INLINE long blocks_of(const int what) { return is_state(what) ? GATES * SIDE / BLOCK : 1; }

/* What a tap sees of some channels: pixels so many values apart, from what it sees of the first pixel of all. */
typedef struct {
    const short *seen, *kernel;
    long apart, down, right;
} Step;

/* What is multiplied, and then written: pixels of a row, of a block those from `first` to `end`. */
typedef struct {
    float *given;                     /* (blocks of outputs, BLOCK, BLOCK) */
    float *sums;                      /* of the block's first pixel */
    const float *scale, *bias;
    long pixel, channel, first, end;
    long past;                        /* whether features are written past the caches */
} Block;

/* What a thread works in. */
typedef struct {
    Step *steps, *some, *edges;       /* all of them; those that see a row; the same at its ends */
    short *aside;                     /* (steps, BLOCK, DEEP): what they see there, with zeros beyond */
    float *sums;                      /* (BLOCK, channels): that nobody asked for */
    Block blocks[2];                  /* that which is to be written, and the next one, in turn */
    long turn;
    long past;                        /* see there */
} Room;

/* Has what is read, or written, next brought nearer. */
INLINE void fetch(const short *values, const int to_be_written) {
    if (to_be_written) __builtin_prefetch(values, 1, 2);
    else __builtin_prefetch(values, 0, 2);
}

/* A line, which need not be fetched before it is written past the caches. */
INLINE void store_both(const long past, short *to, Vector first, Vector second) {
    const __m512i rounded = (__m512i)_mm512_cvtne2ps_pbh(second, first);
    if (past) _mm512_stream_si512((void *)to, rounded);
    else _mm512_storeu_si512(to, rounded);
}

static inline void store_rounded(short *to, Vector x) { _mm256_storeu_si256((void *)to, (__m256i)_mm512_cvtneps_pbh(x)); }

/* Writes some pixels of a block, as `write_tile` of `convolution.c` does. */
INLINE void write_features(const int what, const int number, const Convolution *job, const Block *block, long x) {
    const long outputs = job->outputs, pixel = block->pixel + x, at = pixel * outputs + block->channel;
    const short *skip = (const short *)job->skip + at;
    const short *ahead = (const short *)job->source + (pixel + (job->dilation + 1) * job->width) * job->own + block->channel;
    const float *given = block->given + x * BLOCK;
    short *target = (short *)job->target + at;
    float *sums = block->sums + x * outputs;
    const Vector least = all(job->relu ? 0 : -INFINITY);
    Vector value[TOGETHER][2];
    for (int each = 0; each < number; each++) {
        if (!block->past) fetch(target + (each + job->width) * outputs, 1);
        fetch(ahead + each * job->own, 0);
        if (what == SKIPPED_FEATURES) fetch(skip + (each + job->width) * outputs, 0);
    }
    for (int half = 0; half < 2; half++) {
        const long lane = half * LANES;
        const Vector scale = load(block->scale + lane), bias = load(block->bias + lane);
        for (int each = 0; each < number; each++) { /* of two the second where one is no number */
            Vector sum = larger(least, product_plus(load(given + each * BLOCK + lane), scale, bias));
            if (what == SKIPPED_FEATURES) {
                if (job->activated) store_rounded((short *)job->activated + at + each * outputs + lane, sum);
                sum = larger(least, add(sum, load_upper(skip + each * outputs + lane)));
            }
            value[each][half] = sum;
        }
    }
    for (int each = 0; each < number; each++) {
        float *sum = sums + each * outputs;
        store_both(block->past, target + each * outputs, value[each][0], value[each][1]);
        store(sum, add(load(sum), value[each][0]));
        store(sum + LANES, add(load(sum + LANES), value[each][1]));
    }
}

/* The same as `write_gradient` of `convolution.c` does, but that what the inner ReLU gave tells x: less what skipped, what
   came after would be too coarse. */
INLINE void write_gradient(const int number, const Convolution *job, const Block *block, long x) {
    const long outputs = job->outputs, pixel = block->pixel + x, at = pixel * outputs + block->channel;
    const short *more = (const short *)job->skip + at, *after = (const short *)job->after + at;
    const short *tells = job->tells ? (const short *)job->tells + at : after;
    const short *ahead = (const short *)job->source + (pixel + (job->dilation + 1) * job->width) * job->own + block->channel;
    const float *given = block->given + x * BLOCK;
    short *target = (short *)job->target + at;
    for (int each = 0; each < number; each++) {
        const long below = (each + job->width) * outputs;
        fetch(target + below, 1);
        fetch(ahead + each * job->own, 0);
        fetch(after + below, 0);
        if (job->tells) fetch(tells + below, 0);
    }
    for (int half = 0; half < 2; half++) {
        const long lane = half * LANES;
        float *passed = block->sums + lane, *products = passed + outputs;
        Vector pass = load(passed), product = load(products);
        for (int each = 0; each < number; each++) {
            const long value = each * outputs + lane;
            const Vector active = load_upper(tells + value);
            Vector gradient = load(given + each * BLOCK + lane);
            if (job->skip) gradient = add(gradient, load_upper(more + value));
            gradient = where_positive(load_upper(after + value), gradient);
            store_rounded(target + value, gradient);
            gradient = where_positive(active, gradient);
            pass = add(pass, gradient);
            product = product_plus(gradient, active, product);
        }
        store(passed, pass);
        store(products, product);
    }
}

/* Writes some pixels of an image, whose kernel is the sum of two. */
INLINE void write_colours(const int number, const Convolution *job, const Block *block, long x) {
    const __mmask16 colours = (1 << COLOURS) - 1;
    const Vector bias = _mm512_maskz_loadu_ps(colours, block->bias);
    for (long each = x; each < x + number; each++) {
        const float *given = block->given + each * BLOCK;
        const Vector value = add(add(load(given), load(given + SIDE)), bias);
        _mm512_mask_storeu_ps((float *)job->target + (block->pixel + each) * COLOURS, colours, value);
        fetch((const short *)job->source + (block->pixel + each + 2 * job->width) * job->own, 0);
    }
}

/* As `decay`, but to 13 bits, more than are kept: e to the -x or, for `times` of 2, to the -2 x. It is infinite where x is
   far below zero, unless that is bounded. */
INLINE Vector short_decay(const int times, const int bounded, Vector x) {
    static const float log2 = 1.44269504f; /* of e */
    const Vector bound = bounded ? larger(all(-43.0f / times), x) : x;
    const Vector whole = nearest(mul(all(-times * log2), bound)), rest = plus(times * log2, bound, whole);
    const Vector sum = product_plus(product_plus(all(-5.5009e-2f), rest, all(2.422110e-1f)), rest, all(-6.932829e-1f));
    return by_power(product_plus(sum, rest, all(1)), whole);
}

static inline Vector about_one_over(Vector x) { return _mm512_rcp14_ps(x); }

/* As `let_through` of `convolution.c`, of the decays of a gate and of twice a value. */
static inline Vector through(Vector gate, Vector twice) {
    return mul(sub(all(1), twice), about_one_over(mul(add(all(1), gate), add(all(1), twice))));
}

/* Next states of some pixels, on their way. */
typedef struct {
    Vector cell[TOGETHER], gate[TOGETHER];
} States;

/* Gates of a block's pixels, one after the other. */
INLINE const float *gate_of(const Block *block, int gate, long x) {
    return block->given + (gate / 2 * BLOCK + x) * BLOCK + gate % 2 * SIDE;
}

/* Keeps a gate of some pixels, if it is to be kept. */
INLINE void keep_gate(const int what, const int number, const Convolution *job, const Block *block, long x, int gate, const Vector *values) {
    const long width = job->outputs / GATES, gates = what == STATE ? GATES : GATES - 1;
    if (!job->gates) return;
    short *kept = (short *)job->gates + ((block->pixel + x) * gates + gate) * width + block->channel;
    for (int each = 0; each < number; each++) store_rounded(kept + each * gates * width, values[each]);
}

/* Writes SIDE channels of some pixels of a block, as `write_state` of `convolution.c` does, in three steps. */
INLINE void begin_states(const int what, const int number, const Convolution *job, const Block *block, long x, States *states) {
    const long width = job->outputs / GATES;
    const float *gates = gate_of(block, 0, x), *candidates = gate_of(block, 1, x);
    const Vector bias = load(block->bias), candidate_bias = load(block->bias + width);
    Vector gate[TOGETHER], twice[TOGETHER];
    for (int each = 0; each < number; each++) {
        gate[each] = add(load(gates + each * BLOCK), bias);
        twice[each] = add(load(candidates + each * BLOCK), candidate_bias);
    }
    keep_gate(what, number, job, block, x, 0, gate);
    keep_gate(what, number, job, block, x, 1, twice);
    for (int each = 0; each < number; each++) {
        gate[each] = short_decay(1, 0, gate[each]);
        twice[each] = short_decay(2, 1, twice[each]);
    }
    for (int each = 0; each < number; each++) states->cell[each] = through(gate[each], twice[each]);
}

INLINE void keep_states(const int what, const int number, const Convolution *job, const Block *block, long x, States *states) {
    const long width = job->outputs / GATES;
    const float *gates = gate_of(block, 2, x), *forget = gate_of(block, 3, x);
    const short *before = (const short *)job->before + (block->pixel + x) * width + block->channel;
    const Vector bias = load(block->bias + 2 * width), forget_bias = load(block->bias + 3 * width);
    Vector out[TOGETHER], kept[TOGETHER];
    for (int each = 0; each < number; each++) {
        out[each] = add(load(gates + each * BLOCK), bias);
        if (what == STATE) kept[each] = add(load(forget + each * BLOCK), forget_bias);
    }
    keep_gate(what, number, job, block, x, 2, out);
    if (what == STATE) keep_gate(what, number, job, block, x, 3, kept);
    for (int each = 0; each < number; each++) {
        if (what == STATE) {
            const Vector part = about_one_over(add(all(1), short_decay(1, 0, kept[each])));
            states->cell[each] = product_plus(part, load_upper(before + each * width), states->cell[each]);
        }
        states->gate[each] = short_decay(1, 0, out[each]);
    }
}

INLINE void end_states(const int what, const int number, const Convolution *job, const Block *block, long x, const States *states) {
    const long width = job->outputs / GATES, pixel = block->pixel + x, at = pixel * width + block->channel, row = job->width * width;
    const short *ahead = (const short *)job->source + (pixel + 2 * job->width) * job->own + block->channel;
    short *cell = (short *)job->cell + at, *target = (short *)job->target + at;
    float *sums = block->sums + x * width;
    Vector hidden[TOGETHER];
    for (int each = 0; each < number; each++) {
        fetch(target + each * width + row, 1);
        fetch(cell + each * width + row, 1);
        fetch(ahead + each * job->own, 0);
        if (what == STATE) fetch((const short *)job->state + at + each * width + 2 * row, 0);
    }
    for (int each = 0; each < number; each++) hidden[each] = through(states->gate[each], short_decay(2, 1, states->cell[each]));
    for (int each = 0; each < number; each++) {
        store_rounded(cell + each * width, states->cell[each]);
        store_rounded(target + each * width, hidden[each]);
        store(sums + each * width, add(load(sums + each * width), hidden[each]));
    }
}

INLINE void write_some(const int what, const int number, const Convolution *job, const Block *block, long x) {
    States states;
    if (is_state(what)) {
        begin_states(what, number, job, block, x, &states);
        keep_states(what, number, job, block, x, &states);
        end_states(what, number, job, block, x, &states);
    } else if (what == IMAGE) write_colours(number, job, block, x);
    else if (what == GRADIENT) write_gradient(number, job, block, x);
    else write_features(what, number, job, block, x);
}

INLINE void begin_products(void) {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
}

/* One step, of all pixels of a block, from the first one on, and a block of outputs. */
INLINE void multiply(const Step *step, long pixel, long kernel) {
    const short *values = step->kernel + kernel;
    add_products(step->seen + pixel * step->apart, step->apart, values, values + KERNEL / 2);
}

/* Multiplies a block of pixels by one of outputs, and writes `before`, if it is full, in between. */
INLINE void multiply_features(const int what, const int full, const long count, const Convolution *job, const Step *steps,
                              long pixel, long kernel, float *given, const Block *before) {
    begin_products();
#pragma GCC unroll 9
    for (long step = 0; step < count; step++) {
        multiply(&steps[step], pixel, kernel);
        if (full && step < BLOCK / TOGETHER) write_some(what, TOGETHER, job, before, step * TOGETHER);
    }
    end_products(given);
    for (long x = count * TOGETHER; full && x < BLOCK; x += TOGETHER) write_some(what, TOGETHER, job, before, x);
}

/* The same of the gates of an LSTM, which are two blocks; some pixels are written while as many steps are taken as there are
   for them. */
INLINE void multiply_gates(const int what, const int full, long count, const Convolution *job, const Step *steps, long pixel,
                           long kernel, float *given, const Block *before) {
    const long a_block = 9 * job->inputs / DEEP * KERNEL, steps_of_some = what == STATE ? 4 : 2, last = what == STATE ? 2 : 1;
    States states;
    long step = 0, x = 0;
    begin_products();
    for (long taken = 0; taken < 2 * count; taken++) {
        multiply(&steps[step], pixel, kernel);
        if (++step == count) {
            end_products(given);
            begin_products();
            step = 0, kernel += a_block, given += BLOCK * BLOCK;
        }
        if (!full || x >= BLOCK) continue;
        const long turn = taken % steps_of_some;
        if (turn == 0) begin_states(what, TOGETHER, job, before, x, &states);
        if (turn == 1) keep_states(what, TOGETHER, job, before, x, &states);
        if (turn == last) end_states(what, TOGETHER, job, before, x, &states), x += TOGETHER;
    }
    for (; full && x < BLOCK; x += TOGETHER) write_some(what, TOGETHER, job, before, x);
}

/* Whether the block before is full, and that there are nine steps, is known to the compiler, which unrolls them. */
INLINE void multiply_block(const int what, const int full, const Convolution *job, const Step *steps, long count, long pixel,
                           long kernel, float *given, const Block *before) {
    for (long x = before->first; !full && x < before->end; x++) write_some(what, 1, job, before, x);
    if (is_state(what)) multiply_gates(what, full, count, job, steps, pixel, kernel, given, before);
    else if (count == 9) multiply_features(what, full, 9, job, steps, pixel, kernel, given, before);
    else multiply_features(what, full, count, job, steps, pixel, kernel, given, before);
}

/* What the taps of a kernel see; gives how many steps these are. */
static long find_steps(const Convolution *job, Step *steps) {
    const long depths = job->inputs / DEEP;
    long count = 0;
    for (long tap = 0; tap < 9; tap++) {
        const long down = (tap / 3 - 1) * job->dilation, right = (tap % 3 - 1) * job->dilation;
        for (long depth = 0; depth < depths; depth++) {
            const long channel = depth * DEEP, is_own = channel < job->own;
            const long of = is_own ? job->own : job->inputs - job->own;
            const short *plane = is_own ? job->source : job->state;
            if (!plane) continue; /* an LSTM's first step */
            const short *seen = plane + (is_own ? channel : channel - job->own) + (down * job->width + right) * of;
            steps[count++] = (Step){seen, (const short *)job->kernel + (tap * depths + depth) * KERNEL, of, down, right};
        }
    }
    return count;
}

/* Those that see anything of a row; gives how many. */
static long choose_steps(const Convolution *job, const Step *steps, long count, long y, Step *some) {
    long chosen = 0;
    for (long step = 0; step < count; step++)
        if (y + steps[step].down >= 0 && y + steps[step].down < job->height) some[chosen++] = steps[step];
    return chosen;
}

/* The same of a block at an end of a row, with zeros beyond, for those that see any. */
static void copy_steps(const Convolution *job, const Step *steps, long count, long pixel, long left, Step *edges, short *to) {
    for (long step = 0; step < count; step++, to += BLOCK * DEEP) {
        const Step it = edges[step] = steps[step];
        if (left + it.right >= 0 && left + it.right + BLOCK <= job->width) continue;
        edges[step].seen = to - pixel * DEEP;
        edges[step].apart = DEEP;
        for (long x = 0; x < BLOCK; x++) {
            const long at = left + x + it.right;
            if (at < 0 || at >= job->width) memset(to + x * DEEP, 0, sizeof(short) * DEEP);
            else memcpy(to + x * DEEP, it.seen + (pixel + x) * it.apart, sizeof(short) * DEEP);
        }
    }
}

/* A block of a row, from `left` on. */
INLINE void convolve_block(const int what, const Convolution *job, long count, long row, long left, float *sums, Room *room) {
    const long channels = channels_of(what, job), a_block = 9 * job->inputs / DEEP * KERNEL * blocks_of(what);
    const long picture = row / job->height, y = row % job->height;
    /* a last block that is not full begins earlier, so that all its pixels are there */
    const long begin = left + BLOCK <= job->width || job->width < BLOCK ? left : job->width - BLOCK;
    const long end = left + BLOCK < job->width ? left + BLOCK : job->width, pixel = row * job->width + begin;
    const Step *steps = room->steps;
    if (y < job->dilation || y + job->dilation >= job->height) {
        count = choose_steps(job, steps, count, y, room->some);
        steps = room->some;
    }
    if (begin < job->dilation || begin + BLOCK + job->dilation > job->width) {
        copy_steps(job, steps, count, pixel, begin, room->edges, room->aside);
        steps = room->edges;
    }
    for (long channel = 0; channel < channels; channel += at_once(what)) {
        const Block *before = &room->blocks[room->turn];
        Block *next = &room->blocks[room->turn ^= 1];
        const long kernel = channel / at_once(what) * a_block, of = (job->each ? picture * job->outputs : 0) + channel;
        if (before->end - before->first == BLOCK) multiply_block(what, 1, job, steps, count, pixel, kernel, next->given, before);
        else multiply_block(what, 0, job, steps, count, pixel, kernel, next->given, before);
        next->sums = sums ? sums + (picture * lines_of(what, job) + (what == GRADIENT ? 0 : begin)) * channels + channel : room->sums;
        next->scale = job->scale + of;
        next->bias = job->bias + of;
        next->pixel = pixel;
        next->past = room->past;
        next->channel = channel;
        next->first = left - begin;
        next->end = end - begin;
    }
}

static long whole_lines(long bytes) { return (bytes + 63) / 64 * 64; }

/* Takes parts of the rows until there are none left; of each, all rows of some columns, then the next ones: a cache holds
   what taps see of them. Of large planes, which none holds, more columns, as those beside them are fetched anew, and what is
   computed is not kept there either. */
INLINE void convolve(const int what, Convolution *shared) {
    const Convolution own = *shared, *job = &own; /* which nothing that is stored can be, so that it is read once */
    const long channels = channels_of(what, job), steps = 9 * job->inputs / DEEP, rows = job->count * job->height;
    const long parts = job->sums ? job->parts : (rows + ROWS_AT_ONCE - 1) / ROWS_AT_ONCE;
    const long strip = rows * job->width * job->own > HELD ? WIDE : BLOCK;
    const long of_block = sizeof(float) * blocks_of(what) * BLOCK * BLOCK, of_aside = sizeof(short) * steps * BLOCK * DEEP;
    const long of_steps = whole_lines(sizeof(Step) * steps), of_sums = whole_lines(sizeof(float) * BLOCK * channels);
    char *memory = aligned_alloc(64, 2 * of_block + of_aside + of_sums + 3 * of_steps);
    if (!memory) {
        __atomic_store_n(&shared->failed, 1, __ATOMIC_RELAXED);
        return;
    }
    char *next = memory + 2 * of_block, *last = next + of_aside + of_sums;
    Room room = {.past = strip == WIDE && (size_t)job->target % 64 == 0, .aside = (short *)next, .sums = (float *)(next + of_aside)};
    room.steps = (Step *)last, room.some = (Step *)(last + of_steps), room.edges = (Step *)(last + 2 * of_steps);
    memset(room.sums, 0, of_sums);
    const long count = find_steps(job, room.steps);
    const unsigned treated = begin_matrices();
    for (;;) {
        const long part = __atomic_fetch_add(&shared->next, 1, __ATOMIC_RELAXED);
        if (part >= parts) break;
        const long summed = job->count * lines_of(what, job) * channels, first = rows * part / parts, end = rows * (part + 1) / parts;
        float *sums = job->sums ? memset(job->sums + part * summed, 0, sizeof(float) * summed) : NULL;
        for (int each = 0; each < 2; each++) room.blocks[each] = (Block){.given = (float *)(memory + each * of_block)};
        for (long left = 0; left < job->width; left += strip)
            for (long row = first; row < end; row++)
                for (long block = left; block < left + strip && block < job->width; block += BLOCK)
                    convolve_block(what, job, count, row, block, sums, &room);
        const Block *unwritten = &room.blocks[room.turn];
        for (long x = unwritten->first; x < unwritten->end; x++) write_some(what, 1, job, unwritten, x);
    }
    if (room.past) _mm_sfence();
    end_matrices(treated);
    free(memory);
}

/* What each thread of a convolution runs, in bfloat16. Its kernel is (outputs / BLOCK, 9, inputs / DEEP, 2, DEEP / 2, SIDE,
   2) of it: two inputs, one after the other. Of an LSTM the outputs are, for each SIDE channels, input, candidate, output and
   forget gate; the first step, too, has all of them. To an image there is one block of outputs, whose first half has the
   kernel of each colour, and whose second half what it lost when it was rounded. */
void sapnet_multiply(void *shared) {
    Convolution *job = shared;
    if (job->cell && job->state) convolve(STATE, job);
    else if (job->cell) convolve(FIRST_STATE, job);
    else if (job->outputs == COLOURS) convolve(IMAGE, job);
    else if (job->after) convolve(GRADIENT, job);
    else if (job->skip) convolve(SKIPPED_FEATURES, job);
    else convolve(FEATURES, job);
}
#endif
