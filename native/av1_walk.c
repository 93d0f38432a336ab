/* Partitions and blocks (specification 5.11) of one key frame of AV1 without inter prediction, screen content, segments or
 * loop restoration: what Pillow's libaom writes of a photograph. */
#include "av1_walk.h"

#include <string.h>

#include "av1_cdfs.h"

const tw_av1_layout_entry tw_av1_layout[TW_CDF_GROUPS] = {
    [TW_PARTITION] = {12, 9}, [TW_PARTITION8] = {4, 3}, [TW_Y_MODE] = {25, 12}, [TW_UV_MODE] = {13, 12},
    [TW_UV_MODE_CFL] = {13, 13}, [TW_ANGLE] = {8, 6}, [TW_CFL_SIGN] = {1, 7}, [TW_CFL_ALPHA] = {6, 15},
    [TW_USE_FILTER] = {22, 1}, [TW_FILTER] = {1, 4}, [TW_SKIP] = {3, 1}, [TW_TX_DEPTH8] = {3, 1}, [TW_TX_DEPTH] = {9, 2},
    [TW_TX_TYPE7] = {26, 6}, [TW_TX_TYPE5] = {39, 4}, [TW_DELTA_Q] = {1, 3}, [TW_DELTA_LF] = {5, 3},
    [TW_EOB16] = {4, 4}, [TW_EOB32] = {4, 5}, [TW_EOB64] = {4, 6}, [TW_EOB128] = {4, 7}, [TW_EOB256] = {4, 8},
    [TW_EOB512] = {2, 9}, [TW_EOB1024] = {2, 10}, [TW_EOB_BASE] = {40, 2}, [TW_BASE] = {410, 3}, [TW_RANGE] = {168, 3},
    [TW_EOB_HIGH] = {110, 1}, [TW_ALL_ZERO] = {65, 1}, [TW_DC_SIGN] = {6, 1}};

/* Row of TW_USE_FILTER by log2 of width and height in 4 pixels. */
static const uint8_t filter_row[5][5] = {
    {21, 20, 19, 0, 0}, {18, 17, 16, 15, 0}, {14, 13, 12, 11, 10}, {0, 9, 8, 7, 6}, {0, 0, 5, 4, 3}};

enum { NONE, HORIZONTAL, VERTICAL, SPLIT, TOP_SPLIT, BOTTOM_SPLIT, LEFT_SPLIT, RIGHT_SPLIT, HORIZONTAL4, VERTICAL4 };

/* What a partition leaves above and to its left, by level (64, 32, 16, 8 pixels) and kind. */
static const uint8_t above_left[2][4][10] = {
    {{0x10, 0x10, 0x18, 0, 0x10, 0x18, 0x18, 0x18, 0x10, 0x1c}, {0x18, 0x18, 0x1c, 0, 0x18, 0x1c, 0x1c, 0x1c, 0x18, 0x1e},
     {0x1c, 0x1c, 0x1e, 0, 0x1c, 0x1e, 0x1e, 0x1e, 0x1c, 0x1f}, {0x1e, 0x1e, 0x1f, 0x1f, 0, 0, 0, 0, 0, 0}},
    {{0x10, 0x18, 0x10, 0, 0x18, 0x18, 0x10, 0x18, 0x1c, 0x10}, {0x18, 0x1c, 0x18, 0, 0x1c, 0x1c, 0x18, 0x1c, 0x1e, 0x18},
     {0x1c, 0x1e, 0x1c, 0, 0x1e, 0x1e, 0x1c, 0x1e, 0x1f, 0x1c}, {0x1e, 0x1f, 0x1e, 0x1f, 0, 0, 0, 0, 0, 0}}};

static const uint8_t mode_context[13] = {0, 1, 2, 3, 4, 4, 4, 4, 3, 0, 1, 2, 0};

static int log2_of(int units) { return units >= 16 ? 4 : units >= 8 ? 3 : units >= 4 ? 2 : units >= 2; }

void tw_cdf_start(tw_pass *p, int base_q) {
    const uint16_t *from = tw_av1_modes;
    uint16_t at = 0;
    for (int group = 0; group < TW_CDF_GROUPS; group++) {
        if (group == TW_EOB16) from = tw_av1_coefs[base_q <= 20 ? 0 : base_q <= 60 ? 1 : base_q <= 120 ? 2 : 3];
        const int last = tw_av1_layout[group].last;
        p->row_at[group] = at;
        for (int row = 0; row < tw_av1_layout[group].rows; row++) {
            if (at + last >= TW_CDF_WORDS) { /* a layout that has grown without its memory: no frame is packed then */
                p->fault = 1;
                return;
            }
            memcpy(p->cdf + at, from, sizeof(uint16_t) * (size_t)last);
            p->cdf[at + last] = 0;
            from += last;
            at = (uint16_t)(at + last + 1);
        }
    }
}

static int sum(const uint8_t *levels, int count) {
    int total = 0;
    for (int i = 0; i < count; i++) total += levels[i] & 63;
    return tw_min(total, 255);
}

static void partition_contexts(tw_walk *w, int group, int level, int row, int size, int edges) {
    tw_pass *p = w->pass;
    const int above = w->above.partition[w->x >> 1], left = w->left.partition[(w->y & 15) >> 1];
    const int a = sum(w->above.luma + w->x, size), l = sum(w->left.luma + (w->y & 15), tw_min(size, 16 - (w->y & 15)));
    tw_begin(p, group);
    TW_ADD(p, level, row, edges);
    TW_ADD(p, p->form.rung, level, row, edges);
    TW_ADD(p, level, edges, above, left);
    TW_ADD(p, level, edges, tw_quantised(a), tw_quantised(l));
    TW_ADD(p, level, edges, w->x, w->y);
    TW_ADD(p, level, row, tw_quantised(a + l), edges);
    TW_ADD(p, level, edges, p->last_symbol[TW_PARTITION], p->symbol_before[TW_PARTITION]);
    TW_ADD(p, p->form.rung, level, tw_quantised(a + l));
    TW_ADD(p, level, row, edges, w->x == 0, w->y == 0, p->form.rung);
    p->model.place = (uint32_t)(900 + level * 4 + edges);
}

static void mode_contexts(tw_walk *w, int group, int row) {
    tw_pass *p = w->pass;
    const tw_block *b = &w->block;
    const int size = b->lw * 5 + b->lh, above = w->above.mode[w->x], left = w->left.mode[w->y & 15];
    const int skips = w->above.skip[w->x] * 2 + w->left.skip[w->y & 15];
    tw_begin(p, group);
    TW_ADD(p, row);
    TW_ADD(p, p->form.rung, row);
    TW_ADD(p, row, size);
    TW_ADD(p, size, above, left);
    TW_ADD(p, size, b->mode, b->uv_mode);
    TW_ADD(p, size, w->x == 0, w->y == 0, b->mode, b->partition);
    TW_ADD(p, size, skips, b->skip);
    TW_ADD(p, b->mode, w->above.uv_mode[w->x >> 1], w->left.uv_mode[(w->y & 15) >> 1]);
    TW_ADD(p, size, w->above.tx[w->x], w->left.tx[w->y & 15]);
    TW_ADD(p, size, p->last_symbol[group], p->symbol_before[group]);
    TW_ADD(p, b->mode, b->uv_mode, b->angle, row);
    TW_ADD(p, w->x >> 1, w->y >> 1, size);
    TW_ADD(p, b->mode, above, left, size / 4);
    TW_ADD(p, row, tw_quantised(w->above.luma[w->x] & 63), tw_quantised(w->left.luma[w->y & 15] & 63), size);
    p->model.place = (uint32_t)(600 + size * 8 + (group & 7));
}

static int mode_symbol(tw_walk *w, int group, int row) {
    mode_contexts(w, group, row);
    return tw_symbol(w->pass, group, row);
}

static int delta_symbol(tw_walk *w, int group, int row, int shift) {
    tw_pass *p = w->pass;
    int value = mode_symbol(w, group, row);
    if (value == 3) {
        int bits = 0;
        for (int i = 0; i < 3; i++) {
            mode_contexts(w, TW_DELTA_BITS, i);
            bits = bits << 1 | tw_bit(p, bits);
        }
        bits++;
        value = 0;
        for (int i = 0; i < bits; i++) {
            mode_contexts(w, TW_DELTA_BITS, 8 + tw_min(i, 7));
            value = value << 1 | tw_bit(p, bits);
        }
        value += 1 + (1 << bits);
    }
    if (value) {
        mode_contexts(w, TW_DELTA_BITS, 20);
        if (tw_bit(p, 0)) value = -value;
    }
    return value * (1 << shift);
}

/* cdef_idx and the quantiser's change, at the places where they are written (5.11.38, 5.11.56). */
static void block_settings(tw_walk *w) {
    tw_pass *p = w->pass;
    const tw_header *h = w->header;
    if (!w->block.skip && w->cdef_open) {
        w->cdef_open = 0;
        int value = 0;
        for (int i = 0; i < h->cdef_bits; i++) {
            mode_contexts(w, TW_CDEF, h->cdef_bits * 4 + i);
            value = value << 1 | tw_bit(p, value);
        }
    }
    const int whole = w->block.lw == 4 && w->block.lh == 4;
    if ((w->x & 15) || (w->y & 15) || !h->delta_q || (whole && w->block.skip)) return;
    delta_symbol(w, TW_DELTA_Q, 0, h->delta_q_shift);
    for (int i = 0; h->delta_lf && i < (h->delta_lf_multi ? 4 : 1); i++) {
        delta_symbol(w, TW_DELTA_LF, i + h->delta_lf_multi, h->delta_lf_shift);
    }
}

static void chroma_mode(tw_walk *w) {
    tw_block *b = &w->block;
    const int cfl = b->lw <= 3 && b->lh <= 3;
    b->uv_mode = mode_symbol(w, cfl ? TW_UV_MODE_CFL : TW_UV_MODE, b->mode);
    if (b->uv_mode == TW_CFL_MODE) {
        const int sign = mode_symbol(w, TW_CFL_SIGN, 0) + 1, u = sign / 3, v = sign - 3 * u;
        b->cfl[0] = u ? mode_symbol(w, TW_CFL_ALPHA, (u == 2) * 3 + v) + 1 : 0;
        b->cfl[1] = v ? mode_symbol(w, TW_CFL_ALPHA, (v == 2) * 3 + u) + 1 : 0;
        if (u == 1) b->cfl[0] = -b->cfl[0];
        if (v == 1) b->cfl[1] = -b->cfl[1];
    } else if (b->lw + b->lh >= 2 && b->uv_mode >= 1 && b->uv_mode <= 8) {
        mode_symbol(w, TW_ANGLE, b->uv_mode - 1);
    }
}

static void transform_size(tw_walk *w) {
    tw_block *b = &w->block;
    b->tx_lw = b->lw;
    b->tx_lh = b->lh;
    const int largest = tw_max(b->lw, b->lh);
    if (!w->header->tx_select || largest == 0) return;
    const int context = (w->left.tx[w->y & 15] >= b->lh) + (w->above.tx[w->x] >= b->lw);
    int depth = largest == 1 ? mode_symbol(w, TW_TX_DEPTH8, context)
                             : mode_symbol(w, TW_TX_DEPTH, (largest - 2) * 3 + context);
    for (; depth > 0; depth--) {
        const int width = b->tx_lw, height = b->tx_lh;
        if (width >= height) b->tx_lw--;
        if (height >= width) b->tx_lh--;
    }
}

static void fill(uint8_t *to, int count, int value) { memset(to, value, (size_t)count); }

static void walk_block(tw_walk *w, int x, int y, int width, int height, int partition) {
    tw_pass *p = w->pass;
    if (p->fault) return;
    tw_block *b = &w->block;
    memset(b, 0, sizeof *b);
    w->x = x;
    w->y = y;
    b->width = width;
    b->height = height;
    b->lw = log2_of(width);
    b->lh = log2_of(height);
    b->partition = partition;
    b->mode = b->uv_mode = -1;
    const int y15 = y & 15;
    b->chroma = (width > 1 || (x & 1)) && (height > 1 || (y & 1));
    b->skip = mode_symbol(w, TW_SKIP, w->above.skip[x] + w->left.skip[y15]);
    block_settings(w);
    b->mode = mode_symbol(w, TW_Y_MODE, mode_context[w->above.mode[x]] * 5 + mode_context[w->left.mode[y15]]);
    if (b->lw + b->lh >= 2 && b->mode >= 1 && b->mode <= 8) b->angle = mode_symbol(w, TW_ANGLE, b->mode - 1);
    if (b->chroma) chroma_mode(w);
    b->filter = -1;
    if (b->mode == 0 && b->lw <= 3 && b->lh <= 3 && mode_symbol(w, TW_USE_FILTER, filter_row[b->lw][b->lh])) {
        b->filter = mode_symbol(w, TW_FILTER, 0);
    }
    transform_size(w);
    tw_walk_residual(w);
    fill(w->above.mode + x, width, b->mode);
    fill(w->left.mode + y15, height, b->mode);
    fill(w->above.skip + x, width, b->skip);
    fill(w->left.skip + y15, height, b->skip);
    memset(w->above.tx + x, b->tx_lw, (size_t)width);
    memset(w->left.tx + y15, b->tx_lh, (size_t)height);
    if (b->chroma) {
        fill(w->above.uv_mode + (x >> 1), (width + 1) >> 1, b->uv_mode);
        fill(w->left.uv_mode + (y15 >> 1), (height + 1) >> 1, b->uv_mode);
    }
}

/* The probability of a split where only one direction is left: the frame's edge (specification 8.3.2, split_or_...). */
static uint32_t edge_probability(const uint16_t *cdf, int rows_left) {
    if (rows_left) return (uint32_t)(cdf[0] - cdf[1] + cdf[2] - cdf[6] + cdf[7] - cdf[8]);
    return (uint32_t)(cdf[1] - cdf[4] + cdf[5] + cdf[8] - cdf[7]);
}

static void walk_partition(tw_walk *w, int level, int x, int y) {
    tw_pass *p = w->pass;
    const int size = 16 >> level, half = size / 2, quarter = size / 4;
    if (p->fault) return;
    const int columns = w->columns > x + half, rows = w->rows > y + half; /* whether the second half is in the frame */
    if (!columns && !rows && level < 3) {
        walk_partition(w, level + 1, x, y);
        return;
    }
    w->x = x;
    w->y = y;
    const int shift = 3 - level;
    const int above = w->above.partition[x >> 1] >> shift & 1, left = w->left.partition[(y & 15) >> 1] >> shift & 1;
    const int context = above + 2 * left, row = level == 3 ? context : level * 4 + context;
    int kind;
    if (columns && rows) {
        const int group = level == 3 ? TW_PARTITION8 : TW_PARTITION;
        partition_contexts(w, group, level, row, size, 3);
        kind = tw_symbol(p, group, row);
        p->symbol_before[TW_PARTITION] = p->last_symbol[TW_PARTITION];
        p->last_symbol[TW_PARTITION] = kind + 1;
    } else {
        if (level == 3) { /* cannot be: sides are even in 4 pixels */
            p->fault = 1;
            return;
        }
        const uint16_t *cdf = p->cdf + p->row_at[TW_PARTITION] + row * 10;
        partition_contexts(w, TW_EDGE, level, row, size, columns * 2 + rows);
        kind = tw_edge(p, edge_probability(cdf, rows)) ? SPLIT : columns ? HORIZONTAL : VERTICAL;
    }
    switch (kind) {
    case NONE:
        walk_block(w, x, y, size, size, kind);
        break;
    case HORIZONTAL:
        walk_block(w, x, y, size, half, kind);
        if (rows) walk_block(w, x, y + half, size, half, kind);
        break;
    case VERTICAL:
        walk_block(w, x, y, half, size, kind);
        if (columns) walk_block(w, x + half, y, half, size, kind);
        break;
    case SPLIT:
        for (int i = 0; i < 4; i++) {
            const int sx = x + (i & 1) * half, sy = y + (i >> 1) * half;
            if (sx >= w->columns || sy >= w->rows) continue;
            if (level == 3) walk_block(w, sx, sy, 1, 1, kind);
            else walk_partition(w, level + 1, sx, sy);
        }
        break;
    case TOP_SPLIT:
        walk_block(w, x, y, half, half, kind);
        walk_block(w, x + half, y, half, half, kind);
        walk_block(w, x, y + half, size, half, kind);
        break;
    case BOTTOM_SPLIT:
        walk_block(w, x, y, size, half, kind);
        walk_block(w, x, y + half, half, half, kind);
        walk_block(w, x + half, y + half, half, half, kind);
        break;
    case LEFT_SPLIT:
        walk_block(w, x, y, half, half, kind);
        walk_block(w, x, y + half, half, half, kind);
        walk_block(w, x + half, y, half, size, kind);
        break;
    case RIGHT_SPLIT:
        walk_block(w, x, y, half, size, kind);
        walk_block(w, x + half, y, half, half, kind);
        walk_block(w, x + half, y + half, half, half, kind);
        break;
    default:
        for (int i = 0; i < 4; i++) {
            const int sx = kind == VERTICAL4 ? x + i * quarter : x, sy = kind == HORIZONTAL4 ? y + i * quarter : y;
            if (sx >= w->columns || sy >= w->rows) continue;
            walk_block(w, sx, sy, kind == VERTICAL4 ? quarter : size, kind == HORIZONTAL4 ? quarter : size, kind);
        }
    }
    if (kind != SPLIT || level == 3) {
        fill(w->above.partition + (x >> 1), tw_max(half, 1), above_left[0][level][kind]);
        fill(w->left.partition + ((y & 15) >> 1), tw_max(half, 1), above_left[1][level][kind]);
    }
}

static void clear(tw_edge_state *e) {
    memset(e, 0, sizeof *e);
    memset(e->luma, 0x40, sizeof e->luma);
    memset(e->chroma, 0x40, sizeof e->chroma);
    memset(e->tx, -1, sizeof e->tx);
}

int tw_walk_tile(tw_pass *p, const tw_header *h, tw_walk *w) {
    w->pass = p;
    w->header = h;
    w->columns = 2 * ((p->form.width + 7) / 8);
    w->rows = 2 * ((p->form.height + 7) / 8);
    tw_walk_start_levels(w);
    clear(&w->above);
    for (int y = 0; y < w->rows && !p->fault; y += 16) {
        clear(&w->left);
        for (int x = 0; x < w->columns && !p->fault; x += 16) {
            w->cdef_open = 1;
            walk_partition(w, 0, x, y);
        }
    }
    return p->fault;
}
