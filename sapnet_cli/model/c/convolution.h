/* What the threads of a convolution share. */

#ifndef SAPNET_CONVOLUTION
#define SAPNET_CONVOLUTION

enum {
    GATES = 4,  /* of an LSTM, at most */
    COLOURS = 3 /* of an image */
};

/* What all threads of one convolution share; `Convolution` of `native.py` has the same fields. */
typedef struct {
    const void *source, *state;       /* (count, height, width, own) and, if any, (..., inputs - own): side by side */
    float *kernel;                    /* (places, outputs / OUTPUTS, inputs, OUTPUTS); its gradient (parts, the same) */
    const float *scale, *bias;        /* (outputs), or (count, outputs) if each picture has its own */
    const void *skip;                 /* like target, or none */
    void *target;                     /* (count, height, width, outputs), or the gradient of it */
    const void *before;               /* of an LSTM, which has a cell: the cell state before, where there is a state */
    void *cell;                       /* the next one, or none; it may be that before */
    void *gates;                      /* of an LSTM, before their sigmoid or hyperbolic tangent, to be kept, or none */
    void *activated;                  /* of matrices: where what came out of the inner of two ReLUs goes, or none */
    const void *after, *tells;        /* of a gradient: see `write_gradient`; or none */
    void *passed;                     /* of a kernel's gradient by matrices: see `gradient_of`; or none */
    float *sums;                      /* (parts, count, width, as target): of target over rows, or none; see `write_gradient` */
    long count, height, width, inputs, own, outputs, dilation;
    long side;                        /* of the tiles, SMALL or LARGE */
    long kind;                        /* of all planes; gradients are floats, but of matrices */
    long each;                        /* whether each picture has a scale and a bias of its own */
    long relu;                        /* ReLU(ReLU(scale * convolution + bias) + skip), or without either */
    long parts;                       /* that a gradient or sums are summed in, each in order, whoever sums it */
    long next;                        /* tile or part that no thread has taken yet */
    long failed;                      /* a thread had no memory */
} Convolution;

#endif
