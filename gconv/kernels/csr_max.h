/* The largest entry of each row, for one type and one instruction set: y[i] = max over the entries (i, j) of v_e x[j].
 *
 * The gradient is divided equally among the entries that attain the maximum; for a maximum of 0 one share is dropped, as in
 * torch's scatter_reduce, where the initial zero counts as an entry. The entries are found by computing v_e x[j] again, with
 * the same rounding, so that no indices are stored. */
static __attribute__((noinline)) void JOIN(largest, ISA, TYPE)(const product *p, int64_t batch, int64_t first, int64_t last) {
    const REAL *values = p->values, *x = (const REAL *)p->x + batch * p->x_batch;
    for (int64_t i = first; i < last; i++) {
        REAL *y = (REAL *)p->y + batch * p->y_batch + i * p->y_row;
        for (int64_t c = 0; c < p->channels; c++) y[c] = 0;
        for (int64_t k = p->crow[i]; k < p->crow[i + 1]; k++) {
            const REAL *row = x + p->col[k] * p->x_row, v = values[k];
            if (k == p->crow[i])
                for (int64_t c = 0; c < p->channels; c++) y[c] = v * row[c];
            else
                for (int64_t c = 0; c < p->channels; c++) {
                    REAL m = v * row[c]; /* NaN propagates */
                    y[c] = m > y[c] || m != m ? m : y[c];
                }
        }
    }
}

/* z: the maxima; y: the number of entries that attain each. */
static __attribute__((noinline)) void JOIN(ties, ISA, TYPE)(const product *p, int64_t batch, int64_t first, int64_t last) {
    const REAL *values = p->values, *x = (const REAL *)p->x + batch * p->x_batch;
    for (int64_t i = first; i < last; i++) {
        REAL *y = (REAL *)p->y + batch * p->y_batch + i * p->y_row;
        const REAL *z = (const REAL *)p->z + batch * p->z_batch + i * p->z_row;
        for (int64_t c = 0; c < p->channels; c++) y[c] = z[c] == 0;
        for (int64_t k = p->crow[i]; k < p->crow[i + 1]; k++) {
            const REAL *row = x + p->col[k] * p->x_row, v = values[k];
            for (int64_t c = 0; c < p->channels; c++) y[c] += v * row[c] == z[c];
        }
    }
}

/* By rows of the transpose, values read through `order`; z: the maxima, w: gradient / number of ties; y = dx. */
static __attribute__((noinline)) void JOIN(shares, ISA, TYPE)(const product *p, int64_t batch, int64_t first, int64_t last) {
    const REAL *values = p->values, *x = (const REAL *)p->x + batch * p->x_batch;
    for (int64_t j = first; j < last; j++) {
        REAL *y = (REAL *)p->y + batch * p->y_batch + j * p->y_row;
        const REAL *row = x + j * p->x_row;
        for (int64_t c = 0; c < p->channels; c++) y[c] = 0;
        for (int64_t k = p->crow[j]; k < p->crow[j + 1]; k++) {
            const REAL *z = (const REAL *)p->z + batch * p->z_batch + p->col[k] * p->z_row, v = values[p->order[k]];
            const REAL *w = (const REAL *)p->w + batch * p->w_batch + p->col[k] * p->w_row;
            for (int64_t c = 0; c < p->channels; c++) y[c] += v * row[c] == z[c] ? v * w[c] : 0;
        }
    }
}

/* By rows; z: the maxima, w: gradient / number of ties; y (e,) = the gradient of the values, summed over the batch. */
static __attribute__((noinline)) void JOIN(weights, ISA, TYPE)(const product *p, int64_t none, int64_t first, int64_t last) {
    const REAL *values = p->values;
    REAL *y = p->y;
    for (int64_t i = first; i < last; i++)
        for (int64_t k = p->crow[i]; k < p->crow[i + 1]; k++) {
            REAL sum = 0;
            for (int64_t b = none; b < p->batch; b++) {
                const REAL *row = (const REAL *)p->x + b * p->x_batch + p->col[k] * p->x_row, v = values[k];
                const REAL *z = (const REAL *)p->z + b * p->z_batch + i * p->z_row;
                const REAL *w = (const REAL *)p->w + b * p->w_batch + i * p->w_row;
                for (int64_t c = 0; c < p->channels; c++) sum += v * row[c] == z[c] ? row[c] * w[c] : 0;
            }
            y[k] = sum;
        }
}
