/* A sparsity pattern by rows, and its transpose by rows, from a list of entries: sorted by counting, step by step.
 *
 * The entries (row, col) are sorted by row and column, repeated ones in their order: entry k of the sorted list was entry
 * perm[k]; number p of the list by columns is to_t[p], and from_t the other way round. crow and crow_t come as zeros, and
 * `sorted` as 1: it says afterwards whether the entries came sorted, and perm is not written then. */
typedef struct {
    const int64_t *row, *col;
    int32_t *crow, *column, *crow_t, *column_t, *perm, *to_t, *from_t;
    int64_t entries, rows, cols, sorted;
} pattern;

/* Where counts (one ahead) become the starts of rows, and the starts, moved on by filling, starts again. */
static void add_up(int32_t *crow, int64_t rows) {
    for (int64_t i = 0; i < rows; i++) crow[i + 1] += crow[i];
}
static void move_back(int32_t *crow, int64_t rows) {
    memmove(crow + 1, crow, rows * sizeof *crow);
    crow[0] = 0;
}

enum { COUNTED, BY_COLUMN, BY_ROW, TURNED, BUILT };

/* Numbers first to last of one step: of the entries, and in the last step of the rows. A step's first numbers, and the last
 * ones of the last, do what lies between two steps. Returns -1 where an entry lies outside. */
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
