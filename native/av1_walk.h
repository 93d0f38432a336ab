/* What the walk over a frame's blocks carries along: the neighbours above and to the left, and the block itself. */
#ifndef THINWIRE_AV1_WALK_H
#define THINWIRE_AV1_WALK_H

#include "av1_frame.h"

#define TW_CFL_MODE 13
#define TW_MAX_UNITS 96                      /* of 4 pixels: 384 pixels a side */
#define TW_UNITS (TW_MAX_UNITS + 32)         /* blocks may reach over the edge */
#define TW_KEPT 8                            /* low frequencies of a block that its neighbours look at, a side */
#define TW_MAX_BLOCKS (TW_UNITS * TW_UNITS * 3 / 2)

typedef struct {
    uint8_t mode[TW_UNITS], skip[TW_UNITS], partition[TW_UNITS], luma[TW_UNITS], chroma[2][TW_UNITS], uv_mode[TW_UNITS];
    int8_t tx[TW_UNITS];
} tw_edge_state;

typedef struct {
    int width, height, lw, lh; /* in 4 pixels, and log2 of them */
    int partition, chroma, skip, mode, angle, uv_mode, cfl[2], filter, tx_lw, tx_lh;
} tw_block;

/* The signed levels of a coded transform block, [column][row]; `columns`, `rows` of the transform, at most 32. */
typedef struct {
    int8_t level[TW_KEPT][TW_KEPT];
    uint8_t columns, rows;
    uint16_t nonzero;
} tw_levels;

typedef struct tw_walk {
    tw_pass *pass;
    const tw_header *header;
    int columns, rows, x, y; /* in 4 pixels */
    int cdef_open;           /* no cdef_idx yet in this superblock */
    tw_edge_state above, left;
    tw_block block;
    int blocks;
    int16_t block_at[3][TW_UNITS][TW_UNITS]; /* [plane][y][x]: its levels, or -1 */
    tw_levels levels[TW_MAX_BLOCKS];
} tw_walk;

void tw_cdf_start(tw_pass *p, int base_q);
int tw_walk_header(tw_pass *p, tw_header *h);
int tw_walk_tile(tw_pass *p, const tw_header *h, tw_walk *w);
void tw_walk_start_levels(tw_walk *w);
void tw_walk_residual(tw_walk *w);

#endif
