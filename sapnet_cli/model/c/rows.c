/* Rows of values that wait in a file: floats as halves, others as they are. */

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "vectors.h"

/* `Rows` of `rows.py` has the same fields. */
typedef struct {
    char *values;                     /* (rows, count), rows `apart` bytes */
    long rows, count, apart;
    long size;                        /* of a value as it is stored; floats are stored as halves */
    long as_halves;
    long file, lines, line;           /* its descriptor; how many lines it has, the first after the last, of how many bytes */
    long first, column;               /* the first row's line, and where in each the rows begin, in bytes */
    long failed;                      /* what went wrong, as `errno` */
} Rows;

/* Room for the halves of a row, and for what the last vector has too much; none where values are stored as they are. */
static short *make_line(Rows *job) {
    if (!job->as_halves) return NULL;
    short *line = malloc(sizeof(short) * (job->count + LANES));
    if (!line) job->failed = ENOMEM;
    return line;
}

static void to_halves(const float *values, long count, short *halves) {
    long value = 0;
    for (; value + LANES <= count; value += LANES) store_halves(halves + value, load(values + value));
    float last[LANES] = {0};
    memcpy(last, values + value, sizeof(float) * (count - value));
    store_halves(halves + value, load(last));
}

static void to_floats(const short *halves, long count, float *values) {
    long value = 0;
    for (; value + LANES <= count; value += LANES) store(values + value, load_halves(halves + value));
    float last[LANES];
    store(last, load_halves(halves + value));
    memcpy(values + value, last, sizeof(float) * (count - value));
}

static off_t place_of_row(const Rows *job, long row) { return (job->first + row) % job->lines * job->line + job->column; }

/* Writes rows. */
void sapnet_write_rows(void *shared) {
    Rows *job = shared;
    const long size = job->size * job->count;
    short *line = make_line(job);
    for (long row = 0; row < job->rows && !job->failed; row++) {
        const char *stored = job->values + row * job->apart;
        if (job->as_halves) {
            to_halves((const float *)stored, job->count, line);
            stored = (const char *)line;
        }
        for (long done = 0; done < size && !job->failed;) {
            const ssize_t more = pwrite(job->file, stored + done, size - done, place_of_row(job, row) + done);
            if (more > 0) done += more;
            else if (more == 0 || errno != EINTR) job->failed = more == 0 ? ENOSPC : errno;
        }
    }
    free(line);
}

/* Reads rows; what was not written is zero. */
void sapnet_read_rows(void *shared) {
    Rows *job = shared;
    const long size = job->size * job->count;
    short *line = make_line(job);
    for (long row = 0; row < job->rows && !job->failed; row++) {
        char *values = job->values + row * job->apart, *stored = job->as_halves ? (char *)line : values;
        for (long done = 0; done < size && !job->failed;) {
            const ssize_t more = pread(job->file, stored + done, size - done, place_of_row(job, row) + done);
            if (more > 0) done += more;
            else if (more == 0) memset(stored + done, 0, size - done), done = size;
            else if (errno != EINTR) job->failed = errno;
        }
        if (job->as_halves) to_floats(line, job->count, (float *)values);
    }
    free(line);
}
