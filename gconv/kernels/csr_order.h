/* Cuthill-McKee order of the bipartite graph of rows and columns: breadth-first search from a node with few neighbours,
 * visiting the neighbours of each node by increasing degree.
 *
 * Node v < rows is a row, and its neighbours are the columns rows + col[k]; node rows + j is column j, with the rows
 * col_t[k]. If crow_t is NULL, the pattern is its own transpose, rows and columns are the same nodes, and the neighbours are
 * col[k]. `start`: all nodes by increasing degree. The caller sets `seen` to zeros. `queue` receives the nodes in the order
 * of the search; `head` of them have been expanded and `tail` found; the first `begun` nodes of `start` have been tried as
 * starting points. */
typedef struct {
    const int32_t *crow, *col, *crow_t, *col_t;
    const int64_t *start;
    uint8_t *seen;
    int64_t *queue;
    int64_t rows, nodes, head, tail, begun;
} visit;

static int64_t neighbours(const visit *v, int64_t node) {
    return node < v->rows ? (int64_t)v->crow[node + 1] - v->crow[node]
                          : (int64_t)v->crow_t[node - v->rows + 1] - v->crow_t[node - v->rows];
}

/* Sorts nodes by increasing degree: Shell sort. */
static void by_neighbours(const visit *v, int64_t *node, int64_t count) {
    int64_t gap = 1;
    while (gap < count / 3) gap = 3 * gap + 1;
    for (; gap > 0; gap /= 3)
        for (int64_t i = gap; i < count; i++) {
            const int64_t own = node[i], many = neighbours(v, own);
            int64_t j = i;
            for (; j >= gap && neighbours(v, node[j - gap]) > many; j -= gap) node[j] = node[j - gap];
            node[j] = own;
        }
}

/* Continues the search for about this many entries; returns whether all nodes have been visited. */
int gconv_order(visit *v, int64_t entries) {
    while (entries > 0) {
        if (v->head == v->tail) {
            while (v->begun < v->nodes && v->seen[v->start[v->begun]]) v->begun++;
            if (v->begun == v->nodes) return 1;
            v->seen[v->start[v->begun]] = 1;
            v->queue[v->tail++] = v->start[v->begun];
        }
        const int64_t node = v->queue[v->head++], before = v->tail;
        const int column = node >= v->rows;
        const int32_t *crow = column ? v->crow_t + (node - v->rows) : v->crow + node, *col = column ? v->col_t : v->col;
        const int64_t shift = column || !v->crow_t ? 0 : v->rows;
        for (int64_t k = crow[0]; k < crow[1]; k++) {
            const int64_t other = col[k] + shift;
            if (v->seen[other]) continue;
            v->seen[other] = 1;
            v->queue[v->tail++] = other;
        }
        by_neighbours(v, v->queue + before, v->tail - before);
        entries -= crow[1] - crow[0] + 1;
    }
    return 0;
}

/* The transpose of a pattern, from its rows `first` to `last`. crow_t holds the position of the next entry of each column. */
void gconv_turn(const int32_t *crow, const int32_t *col, int32_t *crow_t, int32_t *col_t, int64_t first, int64_t last) {
    for (int64_t i = first; i < last; i++)
        for (int64_t k = crow[i]; k < crow[i + 1]; k++) col_t[crow_t[col[k]]++] = (int32_t)i;
}
