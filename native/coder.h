/* Symbols to payloads and back: contexts, table choice and range coding of a whole packet, as thinwire/WIRE.md has it.
 *
 * Integers only, no global state, no allocation: the caller gives one block of work memory, whose size follows from the
 * bundle's shape and never from what came over the wire. A `tw_coder` is not changed after `tw_coder_init`, so that any
 * number of threads may use one, each with work memory of its own.
 */
#ifndef THINWIRE_CODER_H
#define THINWIRE_CODER_H

#include <stddef.h>
#include <stdint.h>

enum {
    TW_MAX_SYMBOLS = 1 << 22, /* C * h * w, as in thinwire/entropy.py */
    TW_MAX_LAYERS = 4096,
    TW_MAX_ROWS = 1024,
    TW_MAX_ALPHABET = 1 << 16,
    TW_MAX_LOW = 1 << 20,
};

/* What a decoded layer can be: of an encoder, unreadable under the tables, or readable and not what an encoder writes. */
enum { TW_OK = 0, TW_UNREADABLE = 1, TW_NOT_CANONICAL = 2 };

/* A bundle's shape and tables. The arrays belong to the caller and must outlive the coder. */
typedef struct {
    int context; /* `Context.native` of thinwire/contexts.py */
    int32_t channels, height, width;
    int32_t layers;
    const int32_t *bounds;     /* (layers + 1,) first channel of each layer, then `channels` */
    int32_t rows, alphabet;    /* T, A */
    const uint32_t *freqs;     /* (T, A) each row sums to 2^24, none is zero */
    const uint16_t *table_of;  /* (C, K) row of a channel in a bucket */
    int32_t low;               /* the symbol of column 0 */
    const int32_t *past_edges; /* (layers, P), (C, Q), (C, R): see tw_edge_widths */
    const int32_t *lean_edges;
    const int32_t *near_edges;
} tw_tables;

typedef struct {
    tw_tables tables;
    int32_t cells;       /* h * w */
    int32_t buckets;     /* K */
    int32_t largest;     /* symbols of the largest layer */
    const uint32_t *cum; /* (T, A + 1) sums of freqs before each column */
    const uint16_t *top; /* (T,) the likeliest column of each row */
} tw_coder;

/* K of a context, or 0 for one that is not known. */
int32_t tw_buckets(int context);

/* P, Q and R: columns of past_edges, lean_edges and near_edges under a context. */
void tw_edge_widths(int context, int32_t widths[3]);

/* 32-bit words of storage that `tw_coder_init` needs for these tables, 0 when they break a limit above. */
size_t tw_storage_words(const tw_tables *tables);

/* Checks every rule of the tables; returns NULL and fills `coder`, or returns what is wrong. */
const char *tw_coder_init(tw_coder *coder, const tw_tables *tables, uint32_t *storage);

/* Bytes of work memory (aligned for uint64_t) for a call of tw_encode or tw_decode. */
size_t tw_work_bytes(const tw_coder *coder);

/* Most bytes that the payloads of the first `layers` layers can have. */
size_t tw_encoded_bound(const tw_coder *coder, int32_t layers);

/* int32 (C, h, w) symbols, clipped to the tables' range, to payloads one after another in `out`; their lengths. */
void tw_encode(const tw_coder *coder, const int32_t *symbols, int32_t layers, uint8_t *out, size_t *lengths, void *work);

/* Payloads of the first `layers` layers to int32 (C, h, w), zeros in absent layers. Returns TW_OK, or what is wrong with
 * layer `*bad` (from 0); symbols are then without meaning. Time is bounded by C * h * w * log2(A). */
int tw_decode(const tw_coder *coder, int32_t layers, const uint8_t *const *payloads, const size_t *lengths,
              int32_t *symbols, int32_t *bad, void *work);

#endif
