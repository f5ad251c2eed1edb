/* What the threads of a convolution share. */

#ifndef SAPNET_CONVOLUTION
#define SAPNET_CONVOLUTION

/* What all threads of one convolution share; `Convolution` of `native.py` has the same fields. */
typedef struct {
    const void *source, *state;       /* (count, height, width, own) and, if any, (..., inputs - own): side by side */
    float *kernel;                    /* (places, outputs / OUTPUTS, inputs, OUTPUTS); its gradient (parts, the same) */
    const float *scale, *bias;        /* (outputs) */
    const void *skip;                 /* like target, or none */
    void *target;                     /* (count, height, width, outputs), or the gradient of it */
    void *cell;                       /* see `write_state`, or none */
    float *sums;                      /* (parts, count, width, as target): of target over rows, or none */
    long count, height, width, inputs, own, outputs, dilation;
    long side;                        /* of the tiles, SMALL or LARGE */
    long halves;                      /* what source, state, skip, target and cell are, or floats; gradients are floats */
    long relu;                        /* ReLU(ReLU(scale * convolution + bias) + skip), or without either */
    long parts;                       /* that a gradient or sums are summed in, each in order, whoever sums it */
    long next;                        /* tile or part that no thread has taken yet */
    long failed;                      /* a thread had no memory */
} Convolution;

#endif
