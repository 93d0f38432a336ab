/* Binary decisions and their probabilities: a table of counters, mixed by weights, and an arithmetic coder.
 *
 * Integers only, so that every machine computes the same. After Mahoney's lpaq (contexts hashed into counters whose
 * predictions are mixed in the logistic domain), with a trained beginning: a frame of 300 bytes is too short to learn. */
#ifndef THINWIRE_SYMBOL_MODEL_H
#define THINWIRE_SYMBOL_MODEL_H

#include <stddef.h>
#include <stdint.h>

#define TW_SLOT_BITS 18       /* of a model that codes */
#define TW_LEARNING_BITS 22   /* of one that is trained: nearly every context has a counter of its own */
#define TW_BUCKET 4           /* counters that a context may lie in */
#define TW_MAX_CONTEXTS 18
#define TW_INPUTS (2 * TW_MAX_CONTEXTS + 1)
#define TW_OWN_SETS 1024   /* sets of weights: by kind of symbol and decision in it */
#define TW_PLACE_SETS 1024 /* by what the caller says of the place */
#define TW_RUNG_SETS 1024  /* by rung and kind */
#define TW_SETS (TW_OWN_SETS + TW_PLACE_SETS + TW_RUNG_SETS)

/* slots: probability of a one in the upper 22 bits, observations in the lower 10. tags: which context each is of, 0 for
 * none. */
typedef struct {
    int bits;
    uint32_t *slots;
    uint8_t *tags;
    uint32_t *touched;                   /* training alone: the frame that last saw a slot */
    int32_t weights[TW_SETS][TW_INPUTS]; /* 16 fractional bits */
    uint32_t frames;                     /* that it has learned */
} tw_model;

enum { TW_ENCODE, TW_DECODE, TW_LEARN };

typedef struct {
    tw_model *work;   /* changes inside a frame */
    tw_model *master; /* TW_LEARN: what is trained */
    int mode;
    uint32_t low, high, window;
    const uint8_t *in;
    uint8_t *out;
    size_t in_size, in_at, out_capacity, out_size;
    int full;
    int group, contexts, rung;
    uint32_t hashes[TW_MAX_CONTEXTS], place;
} tw_coder;

/* Memory for 2^bits counters. Returns NULL without memory; `tw_model_free` takes NULL. */
tw_model *tw_model_new(int bits);
void tw_model_free(tw_model *m);
void tw_model_start(tw_model *m);
/* 1 without memory. */
int tw_model_may_learn(tw_model *m);
/* Bytes of a saved model, and a model of TW_SLOT_BITS from them: 1 for bytes that are none. */
size_t tw_model_size(void);
int tw_model_load(tw_model *m, const uint8_t *state, size_t size);
void tw_model_save(const tw_model *m, uint8_t *state);
/* work = what a frame begins with; both of one size. */
void tw_model_begin(tw_model *work, const tw_model *trained);

void tw_coder_start(tw_coder *c, int mode, tw_model *work, tw_model *master, const uint8_t *in, size_t in_size, uint8_t *out,
                    size_t out_capacity);
/* Codes one decision of the symbol whose contexts are set; `bit` is ignored when decoding. Returns the bit. */
int tw_coder_bit(tw_coder *c, int node, int bit);
size_t tw_coder_end(tw_coder *c);
/* TW_DECODE, after the last decision: whether the bytes are what `tw_coder_end` leaves for the decisions found. */
int tw_coder_is_canonical(const tw_coder *c);

#endif
