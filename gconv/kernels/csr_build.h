/* A sparsity pattern in CSR form, and its transpose, from a list of entries, by counting sort in steps.
 *
 * The entries (row, col) are sorted by row and column (stable): entry k of the sorted list was entry perm[k]. Entry p of the
 * list sorted by column is entry to_t[p] of the sorted list, and from_t is the inverse of to_t. The caller sets crow and
 * crow_t to zeros and `sorted` to 1; it is 0 afterwards if the entries were not sorted. perm is only written in that case. */
typedef struct {
    const int64_t *row, *col;
    int32_t *crow, *column, *crow_t, *column_t, *perm, *to_t, *from_t;
    int64_t entries, rows, cols, sorted;
} pattern;

/* Counts, shifted by one, to the starts of rows. */
static void add_up(int32_t *crow, int64_t rows) {
    for (int64_t i = 0; i < rows; i++) crow[i + 1] += crow[i];
}
/* Restores the starts of rows, after filling has advanced each to the start of the next row. */
static void move_back(int32_t *crow, int64_t rows) {
    memmove(crow + 1, crow, rows * sizeof *crow);
    crow[0] = 0;
}

enum { COUNTED, BY_COLUMN, BY_ROW, TURNED, BUILT };

/* Entries `first` to `last` of one step; in the last step, rows. The call with the first entries of a step also finishes the
 * step before it, and the call with the last rows of the last step finishes that. Returns -1 if an entry is out of range. */
int gconv_build(pattern *s, int step, int64_t first, int64_t last) {
    const int64_t *row = s->row, *col = s->col;
    int32_t *by_column = s->from_t;
    if (step == COUNTED)
        for (int64_t e = first; e < last; e++) {
            if (row[e] < 0 || row[e] >= s->rows || col[e] < 0 || col[e] >= s->cols) return -1;
            if (e && (row[e] < row[e - 1] || (row[e] == row[e - 1] && col[e] < col[e - 1]))) s->sorted = 0;
            s->crow[row[e] + 1]++;
            s->crow_t[col[e] + 1]++;
        }
    if (step == BY_COLUMN) {
        if (!first) add_up(s->crow, s->rows), add_up(s->crow_t, s->cols);
        if (s->sorted)
            for (int64_t e = first; e < last; e++) s->column[e] = (int32_t)col[e];
        else
            for (int64_t e = first; e < last; e++) by_column[s->crow_t[col[e]]++] = (int32_t)e;
    }
    if (step == BY_ROW && !s->sorted) {
        if (!first) move_back(s->crow_t, s->cols);
        for (int64_t p = first; p < last; p++) {
            const int32_t e = by_column[p], k = s->crow[row[e]]++;
            s->perm[k] = e;
            s->column[k] = (int32_t)col[e];
        }
    }
    if (step == TURNED) {
        if (!first && !s->sorted) move_back(s->crow, s->rows);
        for (int64_t i = first; i < last; i++)
            for (int32_t k = s->crow[i]; k < s->crow[i + 1]; k++) {
                const int32_t p = s->crow_t[s->column[k]]++;
                s->column_t[p] = (int32_t)i;
                s->to_t[p] = k;
                s->from_t[k] = p;
            }
        if (last == s->rows) move_back(s->crow_t, s->cols);
    }
    return 0;
}
