/* The header of one key frame of AV1 (specification 5.9.2, for a reduced still picture header). */
#include <string.h>

#include "av1_walk.h"

static int header_bits(tw_pass *p, int field, int count) {
    int value = 0;
    for (int i = 0; i < count; i++) {
        tw_begin(p, TW_HEADER);
        TW_ADD(p, p->form.rung, field, i, value);
        TW_ADD(p, p->form.rung, field, i, value, p->last_symbol[TW_HEADER]);
        TW_ADD(p, p->form.rung, field, i, value, p->symbol_before[TW_HEADER]);
        TW_ADD(p, field, i, value);
        int bit = 0;
        if (!p->writing) {
            if (p->header_bits >= 8 * p->frame_bytes) p->fault = 1;
            else bit = p->frame[p->header_bits >> 3] >> (7 - (p->header_bits & 7)) & 1;
        }
        bit = tw_coder_bit(&p->model, 0, bit);
        if (p->writing) {
            if (p->header_bits >= 8 * p->header_capacity) p->fault = 1;
            else if (bit) p->header[p->header_bits >> 3] |= (uint8_t)(1 << (7 - (p->header_bits & 7)));
        }
        p->header_bits++;
        value = value << 1 | bit;
    }
    p->symbol_before[TW_HEADER] = p->last_symbol[TW_HEADER];
    p->last_symbol[TW_HEADER] = value;
    return value;
}

static int delta_quantiser(tw_pass *p, int field) { return header_bits(p, field, 1) ? header_bits(p, field + 1, 7) : 0; }

/* Bits of a tile count in one direction of `superblocks` (5.9.15, uniform spacing): more than one tile is not ours. */
static void one_tile(tw_pass *p, int field, int superblocks) {
    if (superblocks > 1 && header_bits(p, field, 1)) p->fault = 1;
}

int tw_walk_header(tw_pass *p, tw_header *h) {
    memset(h, 0, sizeof *h);
    p->updates = !header_bits(p, 0, 1); /* disable_cdf_update */
    if (header_bits(p, 1, 1)) p->fault = 1; /* allow_screen_content_tools */
    if (header_bits(p, 2, 1)) p->fault = 1; /* render_and_frame_size_different */
    if (!header_bits(p, 3, 1)) p->fault = 1; /* uniform_tile_spacing_flag */
    one_tile(p, 4, (p->form.width + 63) / 64);
    one_tile(p, 5, (p->form.height + 63) / 64);
    h->base_q = header_bits(p, 6, 8);
    int deltas = 0;
    for (int i = 0; i < 3; i++) deltas |= delta_quantiser(p, 8 + 2 * i); /* luma DC, chroma DC and AC */
    if (header_bits(p, 14, 1)) { /* using_qmatrix */
        header_bits(p, 15, 4);
        header_bits(p, 16, 4);
    }
    if (header_bits(p, 17, 1)) p->fault = 1;             /* segmentation_enabled */
    if (h->base_q == 0) p->fault = 1;                    /* may be lossless */
    if (p->fault) return 1;
    if (header_bits(p, 18, 1)) {
        h->delta_q = 1;
        h->delta_q_shift = header_bits(p, 19, 2);
        if (header_bits(p, 20, 1)) {
            h->delta_lf = 1;
            h->delta_lf_shift = header_bits(p, 21, 2);
            h->delta_lf_multi = header_bits(p, 22, 1);
        }
    }
    const int first = header_bits(p, 23, 6), second = header_bits(p, 24, 6); /* loop_filter_level */
    if (first || second) {
        header_bits(p, 25, 6);
        header_bits(p, 26, 6);
    }
    header_bits(p, 27, 3); /* loop_filter_sharpness */
    if (header_bits(p, 28, 1) && header_bits(p, 29, 1)) { /* loop_filter_delta_enabled, _update */
        for (int i = 0; i < 10; i++) {
            if (header_bits(p, 30 + i, 1)) header_bits(p, 40 + i, 7);
        }
    }
    if (p->form.cdef) {
        header_bits(p, 50, 2); /* cdef_damping_minus_3 */
        h->cdef_bits = header_bits(p, 51, 2);
        for (int i = 0; i < 1 << h->cdef_bits; i++) {
            header_bits(p, 52, 6);
            header_bits(p, 53, 6);
        }
    }
    if (p->form.restoration) {
        for (int plane = 0; plane < 3; plane++) {
            if (header_bits(p, 54, 2)) p->fault = 1; /* lr_type */
        }
    }
    h->tx_select = header_bits(p, 55, 1);
    h->reduced_tx = header_bits(p, 56, 1);
    while (p->header_bits & 7) {
        if (header_bits(p, 57, 1)) p->fault = 1; /* byte_alignment */
    }
    return p->fault;
}
