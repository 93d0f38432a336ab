/* libFuzzer target of still_packer.c: scripts/fuzz_native.py --target packer.
 *
 * The first byte chooses form and rung. What follows is a packed still of a stranger; and, as a second reading, a frame of
 * a stranger. Whatever unpacks must pack and unpack to itself. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "still_packer.h"

static const int sides[8] = {8, 56, 80, 112, 128, 17, 200, 384};
static tw_model *model;
static tw_scratch *scratch;
static unsigned long runs, accepted;

static void say(void) { printf("accepted %lu, refused %lu\n", accepted, runs - accepted); }

static void start(void) {
    model = tw_model_new(TW_SLOT_BITS);
    scratch = tw_scratch_new(TW_SLOT_BITS);
    if (model == NULL || scratch == NULL) abort();
    tw_model_start(model);
    atexit(say);
}

/* A frame that packs must come back. */
static void check(tw_av1_form form, const uint8_t *frame, size_t size) {
    uint8_t *packed = malloc(size), *again = malloc(4 * (size_t)form.width * (size_t)form.height + 4096);
    if (packed == NULL || again == NULL) abort();
    const long bytes = tw_still_pack(model, scratch, form, frame, size, packed);
    if (bytes > 0) {
        const long back = tw_still_unpack(model, scratch, form, packed, (size_t)bytes, again, 4 * (size_t)form.width * (size_t)form.height + 4096);
        if (back != (long)size || memcmp(again, frame, size)) abort();
    }
    free(packed);
    free(again);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    if (model == NULL) start();
    if (size < 2) return 0;
    runs++;
    const tw_av1_form form = {.width = sides[data[0] & 7], .height = sides[data[0] >> 3 & 7], .cdef = data[0] >> 6 & 1, .rung = data[0] >> 7};
    const size_t capacity = 4 * (size_t)form.width * (size_t)form.height + 4096;
    uint8_t *frame = malloc(capacity);
    if (frame == NULL) abort();
    const long bytes = tw_still_unpack(model, scratch, form, data + 1, size - 1, frame, capacity);
    if (bytes > 0) {
        accepted++;
        check(form, frame, (size_t)bytes);
    }
    check(form, data + 1, size - 1);
    free(frame);
    return 0;
}
