/* Packs a bare AV1 frame: the same symbols in fewer bytes. */
#ifndef THINWIRE_STILL_PACKER_H
#define THINWIRE_STILL_PACKER_H

#include "av1_frame.h"

/* What one call needs: 3 MB, for one thread at a time. `bits` of the model that it will serve. NULL without memory. */
typedef struct tw_scratch tw_scratch;
tw_scratch *tw_scratch_new(int bits);
void tw_scratch_free(tw_scratch *s);

/* A frame → packed bytes. Returns their number, 0 where the frame cannot be packed, -1 without memory. `out` holds
 * `frame_bytes`; what needs more is no gain. */
long tw_still_pack(const tw_model *trained, tw_scratch *s, tw_av1_form form, const uint8_t *frame, size_t frame_bytes,
                   uint8_t *out);

/* Packed bytes → the frame. Returns its number of bytes, 0 for bytes that are none, -1 without memory. */
long tw_still_unpack(const tw_model *trained, tw_scratch *s, tw_av1_form form, const uint8_t *packed, size_t packed_bytes,
                     uint8_t *out, size_t capacity);

/* Trains on a frame. Returns 1, or 0 for a frame that cannot be packed. The scratch serves nothing else. */
int tw_still_learn(tw_model *master, tw_scratch *s, tw_av1_form form, const uint8_t *frame, size_t frame_bytes);

#endif
