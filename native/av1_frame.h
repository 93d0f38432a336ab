/* A still AV1 frame as a sequence of symbols: read from its bytes or written to them, coded by a model of our own on the
 * way. WIRE.md, "Packed stills", says what; the AV1 specification's sections are named where they are followed. */
#ifndef THINWIRE_AV1_FRAME_H
#define THINWIRE_AV1_FRAME_H

#include <stddef.h>
#include <stdint.h>

#include "symbol_model.h"

/* Kinds of symbols. Those before TW_CDF_GROUPS have adaptive probabilities in AV1, in the order of av1_cdfs.h. */
enum {
    TW_PARTITION, TW_PARTITION8, TW_Y_MODE, TW_UV_MODE, TW_UV_MODE_CFL, TW_ANGLE, TW_CFL_SIGN, TW_CFL_ALPHA,
    TW_USE_FILTER, TW_FILTER, TW_SKIP, TW_TX_DEPTH8, TW_TX_DEPTH, TW_TX_TYPE7, TW_TX_TYPE5, TW_DELTA_Q, TW_DELTA_LF,
    TW_EOB16, TW_EOB32, TW_EOB64, TW_EOB128, TW_EOB256, TW_EOB512, TW_EOB1024, TW_EOB_BASE, TW_BASE, TW_RANGE,
    TW_EOB_HIGH, TW_ALL_ZERO, TW_DC_SIGN,
    TW_CDF_GROUPS,
    TW_EDGE = TW_CDF_GROUPS, TW_CDEF, TW_DELTA_BITS, TW_EOB_BITS, TW_SIGN, TW_GOLOMB, TW_HEADER,
    TW_GROUPS
};

typedef struct {
    uint16_t rows; /* contexts */
    uint8_t last;  /* the largest value of a symbol */
} tw_av1_layout_entry;

extern const tw_av1_layout_entry tw_av1_layout[TW_CDF_GROUPS];

#define TW_CDF_WORDS 4437 /* of all rows, each with its counter */

/* AV1's range decoder (section 8.2), bit by bit. */
typedef struct {
    const uint8_t *data;
    size_t bits, at; /* of the tile; those read */
    uint32_t value, range;
} tw_av1_reader;

/* AV1's range encoder as libaom writes it: the carry is propagated at the end. */
typedef struct {
    uint16_t *buffer;
    size_t capacity, length;
    uint32_t low, range;
    int count;
    int full;
} tw_av1_writer;

void tw_av1_read_start(tw_av1_reader *r, const uint8_t *data, size_t size);
int tw_av1_read(tw_av1_reader *r, const uint16_t *cdf, int last);
int tw_av1_read_bool(tw_av1_reader *r, uint32_t probability);
void tw_av1_write_start(tw_av1_writer *w, uint16_t *buffer, size_t capacity);
void tw_av1_write(tw_av1_writer *w, const uint16_t *cdf, int last, int value);
void tw_av1_write_bool(tw_av1_writer *w, uint32_t probability, int value);
size_t tw_av1_write_end(tw_av1_writer *w, uint8_t *out, size_t capacity);
void tw_av1_adapt(uint16_t *cdf, int last, int value);

/* What is known of a frame before its first bit (`BareForm` in bare_av1.py), and the rung that it is of. 4:2:0 only. */
typedef struct {
    int width, height, cdef, restoration, rung;
} tw_av1_form;

/* One pass over a frame. Reading, symbols come from AV1's bytes and go to the model; writing, the other way round. */
typedef struct {
    tw_coder model;
    int writing;
    const uint8_t *frame; /* reading: all its bytes; writing: where the header goes */
    size_t frame_bytes;
    uint8_t *header;
    size_t header_capacity, header_bits;
    tw_av1_reader reader;
    tw_av1_writer writer;
    uint16_t cdf[TW_CDF_WORDS];
    uint16_t row_at[TW_CDF_GROUPS];
    int updates; /* whether probabilities adapt inside the frame */
    int fault;   /* what this code does not know, or bytes that no encoder writes */
    int last_symbol[TW_GROUPS], symbol_before[TW_GROUPS];
    tw_av1_form form;
} tw_pass;

/* One symbol of a CDF; an equiprobable bit; a bit of a given probability; a bit of the header. The contexts were added. */
int tw_symbol(tw_pass *p, int group, int row);
int tw_bit(tw_pass *p, int node);
int tw_edge(tw_pass *p, uint32_t probability);

/* What the header says and blocks depend on (section 5.9). */
typedef struct {
    int base_q, delta_q, delta_q_shift, delta_lf, delta_lf_shift, delta_lf_multi;
    int cdef_bits, tx_select, reduced_tx;
} tw_header;

/* Contexts of the model: `add` takes any numbers; a group and what was added name one. */
void tw_begin(tw_pass *p, int group);
void tw_add(tw_pass *p, int count, const int *values);
#define TW_ADD(p, ...) tw_add(p, (int)(sizeof((int[]){__VA_ARGS__}) / sizeof(int)), (int[]){__VA_ARGS__})
int tw_quantised(int value);

static inline int tw_min(int a, int b) { return a < b ? a : b; }
static inline int tw_max(int a, int b) { return a > b ? a : b; }

#endif
