/* Floats that wait in a file, as halves. */

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "vectors.h"

/* Rows of floats, and where they lie in a file as halves; `Rows` of `halves.py` has the same fields. */
typedef struct {
    float *values;                    /* (rows, count), rows `apart` */
    long rows, count, apart;
    long file, lines, line;           /* its descriptor; how many lines it has, the first after the last, of how many bytes */
    long first, column;               /* the first row's line, and where in each the rows begin, in bytes */
    long failed;                      /* what went wrong, as `errno` */
} Rows;

/* Room for the halves of a row, and for what the last vector has too much. */
static short *make_line(Rows *job) {
    short *line = malloc(sizeof(short) * (job->count + LANES));
    if (!line) job->failed = ENOMEM;
    return line;
}

static off_t place_of_row(const Rows *job, long row) { return (job->first + row) % job->lines * job->line + job->column; }

/* Writes rows. */
void sapnet_write_halves(void *shared) {
    Rows *job = shared;
    const long size = sizeof(short) * job->count;
    short *line = make_line(job);
    for (long row = 0; row < job->rows && !job->failed; row++) {
        const float *values = job->values + row * job->apart;
        long value = 0;
        for (; value + LANES <= job->count; value += LANES) store_halves(line + value, load(values + value));
        float last[LANES] = {0};
        memcpy(last, values + value, sizeof(float) * (job->count - value));
        store_halves(line + value, load(last));
        for (long done = 0; done < size && !job->failed;) {
            const ssize_t more = pwrite(job->file, (char *)line + done, size - done, place_of_row(job, row) + done);
            if (more > 0) done += more;
            else if (more == 0 || errno != EINTR) job->failed = more == 0 ? ENOSPC : errno;
        }
    }
    free(line);
}

/* Reads rows; what was not written is zero. */
void sapnet_read_halves(void *shared) {
    Rows *job = shared;
    const long size = sizeof(short) * job->count;
    short *line = make_line(job);
    for (long row = 0; row < job->rows && !job->failed; row++) {
        float *values = job->values + row * job->apart;
        for (long done = 0; done < size && !job->failed;) {
            const ssize_t more = pread(job->file, (char *)line + done, size - done, place_of_row(job, row) + done);
            if (more > 0) done += more;
            else if (more == 0) memset((char *)line + done, 0, size - done), done = size;
            else if (errno != EINTR) job->failed = errno;
        }
        long value = 0;
        for (; value + LANES <= job->count; value += LANES) store(values + value, load_halves(line + value));
        float last[LANES];
        store(last, load_halves(line + value));
        memcpy(values + value, last, sizeof(float) * (job->count - value));
    }
    free(line);
}
