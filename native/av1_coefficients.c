/* The residual of a block: transform types and quantised coefficients (AV1 specification, 5.11.34 to 5.11.39). */
#include "av1_walk.h"

#include <string.h>

enum { CLASS_2D, CLASS_H, CLASS_V };
enum { DCT_DCT = 0, ADST_DCT = 1, DCT_ADST = 2, ADST_ADST = 3, IDENTITY = 9, V_DCT = 10, H_DCT = 11 };

static const uint8_t types5[5] = {IDENTITY, DCT_DCT, ADST_ADST, ADST_DCT, DCT_ADST};
static const uint8_t types7[7] = {IDENTITY, DCT_DCT, V_DCT, H_DCT, ADST_ADST, ADST_DCT, DCT_ADST};
static const uint8_t chroma_types[13] = {DCT_DCT,  ADST_DCT, DCT_ADST, DCT_DCT,   ADST_ADST, ADST_DCT, DCT_ADST,
                                         DCT_ADST, ADST_DCT, ADST_ADST, ADST_DCT, DCT_ADST,  ADST_ADST};
static const uint8_t filter_modes[5] = {0, 1, 2, 6, 0}; /* the intra mode that stands for a filter's */

static const uint8_t base_offsets[3][5][5] = {
    {{0, 1, 6, 6, 21}, {1, 6, 6, 21, 21}, {6, 6, 21, 21, 21}, {6, 21, 21, 21, 21}, {21, 21, 21, 21, 21}},
    {{0, 16, 6, 6, 21}, {16, 16, 6, 21, 21}, {16, 16, 21, 21, 21}, {16, 16, 21, 21, 21}, {16, 16, 21, 21, 21}},
    {{0, 11, 11, 11, 11}, {11, 11, 11, 11, 11}, {6, 6, 21, 21, 21}, {6, 21, 21, 21, 21}, {21, 21, 21, 21, 21}}};

static const uint8_t zero_contexts[5][5] = {
    {1, 2, 2, 2, 3}, {2, 4, 4, 4, 5}, {2, 4, 4, 4, 5}, {2, 4, 4, 4, 5}, {3, 5, 5, 5, 6}};

/* One transform block while it is coded. Levels lie as [column * stride + row], with a border of zeros. */
typedef struct {
    int plane, lw, lh, columns, rows, size, type, class, end; /* size: AV1's context of the transform's size */
    int stride, sum, nonzero;
    uint8_t absolute[34 * 36];
    uint16_t place[1024]; /* of each position in scan order: column * 64 + row */
    const tw_levels *above, *left, *first_chroma, *luma;
    tw_levels *own;
    int above_sum, left_sum, zero_context;
} tw_transform;

int tw_quantised(int v) {
    if (v < 0) return 31;
    if (v < 4) return v;
    return v < 6 ? 4 : v < 9 ? 5 : v < 14 ? 6 : v < 22 ? 7 : v < 40 ? 8 : v < 80 ? 9 : v < 200 ? 10 : 11;
}

static int clipped(int v, int most) { return v > most ? most : v < -most ? -most : v; }
static int sign_of(int v) { return (v > 0) - (v < 0); }

void tw_walk_start_levels(tw_walk *w) {
    w->blocks = 0;
    memset(w->block_at, -1, sizeof w->block_at);
}

static const tw_levels *levels_at(const tw_walk *w, int plane, int x, int y) {
    if (x < 0 || y < 0) return NULL;
    const int index = w->block_at[plane][y][x];
    return index < 0 ? NULL : &w->levels[index];
}

/* The level of another block at the same frequency, for a transform of another size. */
static int level_of(const tw_levels *b, const tw_transform *t, int column, int row) {
    if (b == NULL) return 0;
    const int c = column * b->columns / t->columns, r = row * b->rows / t->rows;
    return c < TW_KEPT && r < TW_KEPT ? b->level[c][r] : 0;
}

static int size_absolute(const tw_levels *b, const tw_transform *t, int column, int row, int most) {
    if (b == NULL) return -1;
    const int level = level_of(b, t, column, row);
    return tw_min(level < 0 ? -level : level, most);
}

/* Scan order (section 5.11.39, get_scan): diagonals, turning back and forth in squares. */
static void scan(tw_transform *t) {
    const int columns = t->columns, rows = t->rows, count = columns * rows;
    int at = 0;
    if (t->class != CLASS_2D) {
        for (; at < count; at++) {
            const int line = t->class == CLASS_H ? rows : columns;
            const int inner = at % line, outer = at / line;
            t->place[at] = (uint16_t)(t->class == CLASS_H ? outer * 64 + inner : inner * 64 + outer);
        }
        return;
    }
    for (int diagonal = 0; at < count; diagonal++) {
        const int from = tw_max(0, diagonal - rows + 1), to = tw_min(columns - 1, diagonal);
        const int up = columns > rows || (columns == rows && diagonal % 2 == 0);
        for (int i = from; i <= to; i++) {
            const int column = up ? i : from + to - i;
            t->place[at++] = (uint16_t)(column * 64 + diagonal - column);
        }
    }
}

/* -- contexts of the model -- */

static void block_contexts(tw_walk *w, const tw_transform *t, int group, int row, int extra) {
    tw_pass *p = w->pass;
    const tw_block *b = &w->block;
    const int plane = t->plane, shape = t->lw * 5 + t->lh, size = b->lw * 5 + b->lh;
    const int a = tw_quantised(t->above_sum), l = tw_quantised(t->left_sum), both = t->above_sum + t->left_sum;
    const int luma = tw_quantised(t->luma ? t->luma->nonzero : 0), first = t->first_chroma ? t->first_chroma->nonzero : 0;
    const int u = plane == 2 ? tw_quantised(first) : 20;
    tw_begin(p, group);
    TW_ADD(p, row, extra);
    TW_ADD(p, p->form.rung, row, extra);
    TW_ADD(p, extra, plane, shape, a, l);
    TW_ADD(p, extra, plane, shape, luma, u, plane && b->cfl[plane - 1] != 0);
    TW_ADD(p, extra, plane, size, b->mode, shape);
    TW_ADD(p, extra, b->uv_mode, shape, luma, plane);
    TW_ADD(p, extra, plane, shape, t->type, b->mode);
    TW_ADD(p, extra, plane, shape, tw_quantised(both), b->angle);
    TW_ADD(p, extra, plane, shape, p->last_symbol[group], p->symbol_before[group]);
    TW_ADD(p, extra, plane, shape, t->type, tw_quantised(both));
    TW_ADD(p, extra, plane, shape, w->x >> 1, w->y >> 1);
    TW_ADD(p, extra, plane, shape, t->zero_context, u, p->form.rung);
    TW_ADD(p, extra, plane, w->above.skip[w->x] + 2 * w->left.skip[w->y & 15], size, a, l);
    TW_ADD(p, extra, plane, p->form.rung, shape, tw_quantised(both));
    p->model.place = (uint32_t)(plane * 25 + shape + 75 * (group == TW_ALL_ZERO) + 150 * (group >= TW_EOB_HIGH));
}

static void type_contexts(tw_walk *w, const tw_transform *t, int group, int row) {
    tw_pass *p = w->pass;
    const tw_block *b = &w->block;
    const int shape = t->lw * 5 + t->lh, size = b->lw * 5 + b->lh;
    const int a = tw_quantised(t->above_sum), l = tw_quantised(t->left_sum);
    tw_begin(p, group);
    TW_ADD(p, row);
    TW_ADD(p, p->form.rung, row);
    TW_ADD(p, shape, b->mode);
    TW_ADD(p, b->mode, b->angle, size);
    TW_ADD(p, shape, p->last_symbol[group], p->symbol_before[group], b->mode);
    TW_ADD(p, shape, a, l);
    TW_ADD(p, size, shape);
    TW_ADD(p, shape, b->mode, w->above.mode[w->x], w->left.mode[w->y & 15]);
    TW_ADD(p, shape, b->mode, b->filter, t->zero_context);
    TW_ADD(p, p->form.rung, shape, b->mode, size);
    p->model.place = (uint32_t)(300 + shape);
}

static void level_contexts(tw_walk *w, const tw_transform *t, int group, int row, int index, int step) {
    tw_pass *p = w->pass;
    const tw_block *b = &w->block;
    const int column = t->place[index] / 64, line = t->place[index] % 64, chroma = t->plane > 0, plane = t->plane;
    const uint8_t *at = t->absolute + column * t->stride + line;
    const int n0 = at[1], n1 = at[t->stride], n2 = at[t->stride + 1], n3 = at[2], n4 = at[2 * t->stride];
    const int magnitude = tw_min(n0, 15) + tw_min(n1, 15) + tw_min(n2, 15) + tw_min(n3, 15) + tw_min(n4, 15);
    const int weighted = tw_quantised(2 * n0 + 2 * n1 + n2 + n3 + n4), kind = t->type >= V_DCT ? (t->type & 1) + 1 : t->type == IDENTITY ? 3 : 0;
    const int above = size_absolute(t->above, t, column, line, 15), left = size_absolute(t->left, t, column, line, 15);
    const int luma = tw_max(0, size_absolute(t->luma, t, column, line, 15));
    const int first = tw_max(0, size_absolute(t->first_chroma, t, column, line, 15));
    const int shape = t->lw * 5 + t->lh, size = b->lw * 5 + b->lh, rung = p->form.rung;
    tw_begin(p, group);
    TW_ADD(p, row, step);
    TW_ADD(p, rung, row, step);
    TW_ADD(p, step, plane, shape, column, line, kind);
    TW_ADD(p, step, chroma, tw_min(column, 4), tw_min(line, 4), magnitude > 10 ? 10 + tw_min(magnitude / 4, 8) : magnitude, kind);
    TW_ADD(p, step, chroma, tw_min(n0, 4), tw_min(n1, 4), tw_min(n2, 3), tw_min(n3, 3), tw_min(n4, 3));
    TW_ADD(p, step, chroma, tw_min(column, 6), tw_min(line, 6), tw_min(above, 3), tw_min(left, 3));
    TW_ADD(p, step, plane, tw_min(luma, 4), tw_min(first, 4), tw_min(column + line, 5), weighted);
    TW_ADD(p, step, chroma, shape, tw_quantised(t->end), tw_quantised(index), tw_quantised(t->nonzero));
    TW_ADD(p, step, chroma, tw_quantised(index), tw_quantised(t->sum), tw_quantised(t->nonzero), tw_quantised(t->end - index));
    TW_ADD(p, step, chroma, tw_min(column, 5), tw_min(line, 5), chroma ? b->uv_mode : b->mode, tw_min(weighted, 6));
    TW_ADD(p, step, chroma, tw_quantised(t->above_sum), tw_quantised(t->left_sum), tw_quantised(column + line), tw_min(weighted, 7));
    TW_ADD(p, step, plane, shape, t->type, tw_min(column, 8), tw_min(line, 8), tw_min(tw_min(n0, 6) + tw_min(n1, 6), 5));
    TW_ADD(p, step, chroma, tw_min(above, 4), tw_min(left, 4), weighted, index == 0);
    TW_ADD(p, step, chroma, size, tw_quantised(t->end), weighted, tw_quantised(index));
    TW_ADD(p, step, chroma, rung, weighted, tw_min(column + line, 6));
    TW_ADD(p, step, plane, shape, t->end, index);
    p->model.place = (uint32_t)(330 + (plane * 25 + shape) * 3 + (index == 0 ? 0 : index < 6 ? 1 : 2));
}

static void sign_contexts(tw_walk *w, const tw_transform *t, int group, int row, int index, int size) {
    tw_pass *p = w->pass;
    const tw_block *b = &w->block;
    const int column = t->place[index] / 64, line = t->place[index] % 64, chroma = t->plane > 0, plane = t->plane;
    const int inside = column < TW_KEPT && line < TW_KEPT, shape = t->lw * 5 + t->lh, mode = chroma ? b->uv_mode : b->mode;
    const int west = inside && column ? sign_of(t->own->level[column - 1][line]) : 0;
    const int north = inside && line ? sign_of(t->own->level[column][line - 1]) : 0;
    const int corner = inside && column && line ? sign_of(t->own->level[column - 1][line - 1]) : 0;
    const int above = level_of(t->above, t, column, line), left = level_of(t->left, t, column, line);
    const int luma = level_of(t->luma, t, column, line), first = level_of(t->first_chroma, t, column, line);
    const int cfl = plane ? sign_of(b->cfl[plane - 1]) : 0, most = tw_min(size, 4);
    tw_begin(p, group);
    TW_ADD(p, row, plane);
    TW_ADD(p, plane, tw_min(column, 4), tw_min(line, 4), mode);
    TW_ADD(p, plane, sign_of(first), sign_of(luma), cfl, tw_min(column + line, 3));
    TW_ADD(p, chroma, tw_min(column, 4), tw_min(line, 4), west, north, corner);
    TW_ADD(p, chroma, tw_min(column, 6), tw_min(line, 6), sign_of(above), sign_of(left));
    TW_ADD(p, chroma, tw_min(column, 4), tw_min(line, 4), mode, t->type, most);
    TW_ADD(p, chroma, clipped(above, 2), clipped(left, 2), column == 0, line == 0, row);
    TW_ADD(p, chroma, shape, t->type, column, line);
    TW_ADD(p, plane, clipped(first, 3), clipped(luma, 3), b->uv_mode);
    TW_ADD(p, row, mode, b->angle, shape, column, line);
    p->model.place = (uint32_t)(560 + plane * 3 + tw_min(column + line, 2));
}

/* -- symbols -- */

static int remembered(tw_pass *p, int group, int row) {
    const int value = tw_symbol(p, group, row);
    p->symbol_before[group] = p->last_symbol[group];
    p->last_symbol[group] = value + 1;
    return value;
}

/* Contexts of `all_zero` (section 8.3.2). above, left: what the neighbours' blocks left. */
static int all_zero_context(const tw_walk *w, const tw_transform *t, const uint8_t *above, const uint8_t *left) {
    const tw_block *b = &w->block;
    const int width = 1 << t->lw, height = 1 << t->lh;
    if (t->plane) {
        int a = 0, l = 0;
        for (int i = 0; i < width; i++) a |= above[i] != 0x40;
        for (int i = 0; i < height; i++) l |= left[i] != 0x40;
        const int several = b->lw - (b->lw > 0) > t->lw || b->lh - (b->lh > 0) > t->lh;
        return 7 + several * 3 + a + l;
    }
    if (b->lw == t->lw && b->lh == t->lh) return 0;
    int a = 0, l = 0;
    for (int i = 0; i < width; i++) a |= above[i];
    for (int i = 0; i < height; i++) l |= left[i];
    return zero_contexts[tw_min(a & 63, 4)][tw_min(l & 63, 4)];
}

static int dc_sign_context(const tw_transform *t, const uint8_t *above, const uint8_t *left) {
    int s = -(1 << t->lw) - (1 << t->lh);
    for (int i = 0; i < 1 << t->lw; i++) s += above[i] >> 6;
    for (int i = 0; i < 1 << t->lh; i++) s += left[i] >> 6;
    return (s != 0) + (s > 0);
}

static void transform_type(tw_walk *w, tw_transform *t) {
    const tw_block *b = &w->block;
    const int small = tw_min(t->lw, t->lh);
    t->type = DCT_DCT;
    if (tw_max(t->lw, t->lh) >= 3) return;
    if (t->plane) {
        if (b->uv_mode < 13) t->type = chroma_types[b->uv_mode];
        return;
    }
    const int mode = b->filter >= 0 ? filter_modes[b->filter] : b->mode;
    const int five = w->header->reduced_tx || small == 2;
    const int group = five ? TW_TX_TYPE5 : TW_TX_TYPE7, row = small * 13 + mode;
    type_contexts(w, t, group, row);
    const int value = remembered(w->pass, group, row);
    t->type = five ? types5[value] : types7[value];
}

static int end_position(tw_walk *w, tw_transform *t) {
    tw_pass *p = w->pass;
    const int chroma = t->plane > 0, area = tw_min(t->lw, 3) + tw_min(t->lh, 3), group = TW_EOB16 + area;
    const int row = area >= 5 ? chroma : chroma * 2 + (t->class != CLASS_2D);
    block_contexts(w, t, group, row, 0);
    const int bin = remembered(p, group, row);
    if (bin <= 1) return bin;
    const int high = (t->size * 2 + chroma) * 11 + bin;
    block_contexts(w, t, TW_EOB_HIGH, high, bin);
    int end = 2 | remembered(p, TW_EOB_HIGH, high);
    for (int i = bin - 3; i >= 0; i--) {
        block_contexts(w, t, TW_EOB_BITS, bin, bin * 64 + i * 4 + (i == bin - 3 ? end & 1 : 2));
        end = end << 1 | tw_bit(p, 0);
    }
    return end;
}

static int range_symbols(tw_walk *w, const tw_transform *t, int context, int index) {
    const int row = (tw_min(t->size, 3) * 2 + (t->plane > 0)) * 21 + context;
    int level = 3;
    for (int step = 0; step < 4; step++) {
        level_contexts(w, t, TW_RANGE, row, index, step);
        const int more = tw_symbol(w->pass, TW_RANGE, row);
        level += more;
        if (more < 3) break;
    }
    return level;
}

/* The context of a level by its five neighbours; `sum` gets that of the nearest. */
static int base_context(const tw_transform *t, int column, int row, int *sum) {
    const uint8_t *at = t->absolute + column * t->stride + row;
    const int s = t->stride, most = 3;
    if (t->class == CLASS_2D) {
        const int shape = t->columns == t->rows && t->lw == t->lh ? 0 : t->lw > t->lh ? 1 : 2;
        const int magnitude = tw_min(at[1], most) + tw_min(at[s], most) + tw_min(at[s + 1], most) + tw_min(at[2], most) + tw_min(at[2 * s], most);
        *sum = tw_min(at[1], 15) + tw_min(at[s], 15) + tw_min(at[s + 1], 15);
        return base_offsets[shape][tw_min(row, 4)][tw_min(column, 4)] + tw_min((magnitude + 1) >> 1, 4);
    }
    /* one-dimensional: along the direction of the transform */
    const int along = t->class == CLASS_H ? s : 1, across = t->class == CLASS_H ? 1 : s;
    const int far = t->class == CLASS_H ? column : row;
    const int magnitude = tw_min(at[along], most) + tw_min(at[across], most) + tw_min(at[2 * along], most) +
                          tw_min(at[3 * along], most) + tw_min(at[4 * along], most);
    *sum = tw_min(at[along], 15) + tw_min(at[across], 15) + tw_min(at[2 * along], 15);
    return 26 + tw_min(far, 2) * 5 + tw_min((magnitude + 1) >> 1, 4);
}

static int range_context(const tw_transform *t, int column, int row, int sum) {
    const int near = tw_min((sum + 1) >> 1, 6);
    if (column == 0 && row == 0) return near;
    if (t->class == CLASS_2D) return (column < 2 && row < 2 ? 7 : 14) + near;
    return ((t->class == CLASS_H ? column : row) == 0 ? 7 : 14) + near;
}

static int golomb(tw_walk *w, int plane) {
    tw_pass *p = w->pass;
    int length = 0;
    unsigned value = 1;
    while (length < 20) {
        tw_begin(p, TW_GOLOMB);
        TW_ADD(p, plane, length);
        TW_ADD(p, length);
        if (tw_bit(p, 0)) break;
        length++;
    }
    if (length == 20) p->fault = 1; /* longer than any level */
    for (int i = length - 1; i >= 0; i--) {
        tw_begin(p, TW_GOLOMB);
        TW_ADD(p, length, i);
        value = value << 1 | (unsigned)tw_bit(p, 1);
    }
    return (int)(value - 1);
}

/* One transform block. Returns what its neighbours will see of it: the sum of its levels and the sign of its DC. */
static int walk_transform(tw_walk *w, int plane, int lw, int lh, int x, int y, const uint8_t *above, const uint8_t *left) {
    tw_pass *p = w->pass;
    tw_transform t = {.plane = plane, .lw = lw, .lh = lh, .columns = 4 << tw_min(lw, 3), .rows = 4 << tw_min(lh, 3)};
    t.size = (lw + lh + 1) >> 1;
    t.above = levels_at(w, plane, x, y - 1);
    t.left = levels_at(w, plane, x - 1, y);
    t.first_chroma = plane == 2 ? levels_at(w, 1, x, y) : NULL;
    t.luma = plane ? levels_at(w, 0, 2 * x, 2 * y) : NULL;
    for (int i = 0; i < 1 << lw; i++) t.above_sum += above[i] & 63;
    for (int i = 0; i < 1 << lh; i++) t.left_sum += left[i] & 63;
    t.above_sum = tw_min(t.above_sum, 63);
    t.left_sum = tw_min(t.left_sum, 63);
    t.type = -1;
    t.zero_context = all_zero_context(w, &t, above, left);
    const int zero_row = t.size * 13 + t.zero_context;
    block_contexts(w, &t, TW_ALL_ZERO, zero_row, 0);
    const int zero = remembered(p, TW_ALL_ZERO, zero_row);
    const int index = zero || w->blocks >= TW_MAX_BLOCKS ? -1 : w->blocks++;
    for (int j = 0; j < 1 << lh; j++) {
        for (int i = 0; i < 1 << lw; i++) w->block_at[plane][y + j][x + i] = (int16_t)index;
    }
    if (zero) return 0x40;
    if (index < 0) {
        p->fault = 1;
        return 0x40;
    }
    t.own = &w->levels[index];
    memset(t.own, 0, sizeof *t.own);
    t.own->columns = (uint8_t)t.columns;
    t.own->rows = (uint8_t)t.rows;
    transform_type(w, &t);
    t.class = t.type == V_DCT ? CLASS_V : t.type == H_DCT ? CLASS_H : CLASS_2D;
    scan(&t);
    t.stride = t.rows + 4;
    memset(t.absolute, 0, sizeof t.absolute);
    t.end = end_position(w, &t);
    if (p->fault || t.end >= t.columns * t.rows) {
        p->fault = 1;
        return 0x40;
    }
    int levels[1024];
    const int chroma = plane > 0, area = t.columns * t.rows;
    for (int i = t.end; i >= 0; i--) {
        const int column = t.place[i] / 64, row = t.place[i] % 64;
        int level, nearest = 0;
        if (i == t.end) {
            const int context = i == 0 ? 0 : 1 + (i > area / 8) + (i > area / 4), cdf_row = (t.size * 2 + chroma) * 4 + context;
            level_contexts(w, &t, TW_EOB_BASE, cdf_row, i, 0);
            level = 1 + tw_symbol(p, TW_EOB_BASE, cdf_row);
        } else {
            int context = base_context(&t, column, row, &nearest);
            if (i == 0 && t.class == CLASS_2D) context = 0;
            const int cdf_row = (t.size * 2 + chroma) * 41 + context;
            level_contexts(w, &t, TW_BASE, cdf_row, i, 0);
            level = tw_symbol(p, TW_BASE, cdf_row);
        }
        if (level == 3) level = range_symbols(w, &t, range_context(&t, column, row, nearest), i);
        t.absolute[column * t.stride + row] = (uint8_t)level;
        levels[i] = level;
        t.sum += level;
        t.nonzero += level > 0;
        if (p->fault) return 0x40;
    }
    int total = 0, dc = 1;
    for (int i = 0; i <= t.end; i++) {
        if (!levels[i]) continue;
        int negative;
        if (i == 0) {
            const int row = chroma * 3 + dc_sign_context(&t, above, left);
            sign_contexts(w, &t, TW_DC_SIGN, row, i, levels[i]);
            negative = tw_symbol(p, TW_DC_SIGN, row);
            dc = negative ? 0 : 2;
        } else {
            sign_contexts(w, &t, TW_SIGN, 0, i, levels[i]);
            negative = tw_bit(p, 0);
        }
        const int level = levels[i] == 15 ? 15 + golomb(w, plane) : levels[i];
        total = tw_min(total + level, 63);
        const int column = t.place[i] / 64, row = t.place[i] % 64;
        if (column < TW_KEPT && row < TW_KEPT) t.own->level[column][row] = (int8_t)(negative ? -levels[i] : levels[i]);
        if (p->fault) return 0x40;
    }
    t.own->nonzero = (uint16_t)t.nonzero;
    return total | dc << 6;
}

static void walk_plane(tw_walk *w, int plane) {
    const tw_block *b = &w->block;
    const int shift = plane > 0, lw = plane ? tw_min(tw_max(b->lw - 1, 0), 3) : b->tx_lw;
    const int lh = plane ? tw_min(tw_max(b->lh - 1, 0), 3) : b->tx_lh;
    const int columns = (w->columns + shift) >> shift, rows = (w->rows + shift) >> shift;
    const int x0 = w->x >> shift, y0 = w->y >> shift;
    const int width = (tw_min(b->width, w->columns - w->x) + shift) >> shift;
    const int height = (tw_min(b->height, w->rows - w->y) + shift) >> shift;
    uint8_t *above = plane ? w->above.chroma[plane - 1] : w->above.luma, *left = plane ? w->left.chroma[plane - 1] : w->left.luma;
    const int mask = plane ? 7 : 15;
    for (int y = 0; y < height; y += 1 << lh) {
        for (int x = 0; x < width; x += 1 << lw) {
            uint8_t *a = above + x0 + x, *l = left + ((y0 + y) & mask);
            const int seen = walk_transform(w, plane, lw, lh, x0 + x, y0 + y, a, l);
            if (w->pass->fault) return;
            memset(a, seen, (size_t)tw_min(1 << lw, columns - x0 - x));
            memset(l, seen, (size_t)tw_min(1 << lh, rows - y0 - y));
        }
    }
}

void tw_walk_residual(tw_walk *w) {
    const tw_block *b = &w->block;
    const int y15 = w->y & 15;
    if (!b->skip) {
        for (int plane = 0; plane < (b->chroma ? 3 : 1) && !w->pass->fault; plane++) walk_plane(w, plane);
        return;
    }
    memset(w->above.luma + w->x, 0x40, (size_t)b->width);
    memset(w->left.luma + y15, 0x40, (size_t)b->height);
    for (int j = 0; j < b->height; j++) {
        for (int i = 0; i < b->width; i++) w->block_at[0][w->y + j][w->x + i] = -1;
    }
    for (int plane = 1; plane < 3 && b->chroma; plane++) {
        const int x = w->x >> 1, y = w->y >> 1, width = (b->width + 1) >> 1, height = (b->height + 1) >> 1;
        memset(w->above.chroma[plane - 1] + x, 0x40, (size_t)width);
        memset(w->left.chroma[plane - 1] + (y15 >> 1), 0x40, (size_t)height);
        for (int j = 0; j < height; j++) {
            for (int i = 0; i < width; i++) w->block_at[plane][y + j][x + i] = -1;
        }
    }
}
