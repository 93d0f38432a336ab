#include "still_packer.h"

#include <stdlib.h>
#include <string.h>

#include "av1_walk.h"

#define HEADER_BYTES 64

/* -- symbols: from one side to the other -- */

void tw_begin(tw_pass *p, int group) {
    p->model.group = group;
    p->model.contexts = 0;
    p->model.place = TW_PLACE_SETS - 1;
    p->model.rung = p->form.rung;
}

void tw_add(tw_pass *p, int count, const int *values) {
    uint32_t h = (uint32_t)(p->model.group * TW_MAX_CONTEXTS + p->model.contexts + 1) * 0x9E3779B1u;
    for (int i = 0; i < count; i++) {
        h = (h ^ (uint32_t)(values[i] + 4096)) * 0x85EBCA6Bu;
        h ^= h >> 13;
    }
    p->model.hashes[p->model.contexts++] = h;
}

/* 0..last as decisions: is it 0, is it 1, ... */
static int modelled(tw_pass *p, int last, int value) {
    for (int i = 0; i < last; i++) {
        if (tw_coder_bit(&p->model, i, value == i)) return i;
    }
    return last;
}

int tw_symbol(tw_pass *p, int group, int row) {
    const int last = tw_av1_layout[group].last;
    if (row < 0 || row >= tw_av1_layout[group].rows) {
        p->fault = 1;
        return 0;
    }
    uint16_t *cdf = p->cdf + p->row_at[group] + row * (last + 1);
    int value = p->writing ? -1 : tw_av1_read(&p->reader, cdf, last);
    value = modelled(p, last, value);
    if (p->writer.buffer) tw_av1_write(&p->writer, cdf, last, value);
    if (p->updates) tw_av1_adapt(cdf, last, value);
    return value;
}

static int plain_bit(tw_pass *p, uint32_t probability, int node) {
    int value = p->writing ? -1 : tw_av1_read_bool(&p->reader, probability);
    value = tw_coder_bit(&p->model, node, value);
    if (p->writer.buffer) tw_av1_write_bool(&p->writer, probability, value);
    return value;
}

int tw_bit(tw_pass *p, int node) { return plain_bit(p, 16384, node); }

int tw_edge(tw_pass *p, uint32_t probability) { return plain_bit(p, probability, 0); }

/* -- frames -- */

struct tw_scratch {
    tw_pass pass;
    tw_walk walk;
    tw_header header;
    tw_model *work;
};

tw_scratch *tw_scratch_new(int bits) {
    tw_scratch *s = calloc(1, sizeof *s);
    if (s) s->work = tw_model_new(bits);
    if (s && s->work) return s;
    tw_scratch_free(s);
    return NULL;
}

void tw_scratch_free(tw_scratch *s) {
    if (s) tw_model_free(s->work);
    free(s);
}

static void begin(tw_scratch *s, const tw_model *trained, tw_av1_form form) {
    memset(&s->pass, 0, sizeof s->pass);
    s->pass.form = form;
    tw_model_begin(s->work, trained);
}

static int packable(tw_av1_form form) {
    return form.width > 0 && form.height > 0 && form.width <= 4 * TW_MAX_UNITS && form.height <= 4 * TW_MAX_UNITS;
}

/* Reads all symbols of a frame into the coder. Returns 0 when it is one that can be packed. */
static int read_frame(tw_scratch *s, const uint8_t *frame, size_t frame_bytes) {
    tw_pass *p = &s->pass;
    p->frame = frame;
    p->frame_bytes = frame_bytes;
    if (tw_walk_header(p, &s->header)) return 1;
    const size_t header = p->header_bits / 8;
    if (header >= frame_bytes) return 1;
    tw_cdf_start(p, s->header.base_q);
    tw_av1_read_start(&p->reader, frame + header, frame_bytes - header);
    return tw_walk_tile(p, &s->header, &s->walk);
}

/* Whether the symbols of a frame, written again, are its very bytes: another encoder may end its tile in another way. */
static int comes_back(tw_scratch *s, const uint8_t *frame, size_t frame_bytes, uint8_t *again) {
    const size_t header = s->pass.header_bits / 8, tile = tw_av1_write_end(&s->pass.writer, again, frame_bytes);
    return tile == frame_bytes - header && !memcmp(again, frame + header, tile);
}

long tw_still_pack(const tw_model *trained, tw_scratch *s, tw_av1_form form, const uint8_t *frame, size_t frame_bytes,
                   uint8_t *out) {
    if (!packable(form) || frame_bytes < 2) return 0;
    uint16_t *words = malloc(sizeof *words * (frame_bytes + 8));
    uint8_t *again = malloc(frame_bytes);
    long result = -1;
    if (words && again) {
        result = 0;
        begin(s, trained, form);
        tw_coder_start(&s->pass.model, TW_ENCODE, s->work, NULL, NULL, 0, out, frame_bytes);
        tw_av1_write_start(&s->pass.writer, words, frame_bytes + 8);
        if (!read_frame(s, frame, frame_bytes) && comes_back(s, frame, frame_bytes, again)) {
            const size_t size = tw_coder_end(&s->pass.model);
            if (!s->pass.model.full && size < frame_bytes) result = (long)size;
        }
    }
    free(words);
    free(again);
    return result;
}

long tw_still_unpack(const tw_model *trained, tw_scratch *s, tw_av1_form form, const uint8_t *packed, size_t packed_bytes,
                     uint8_t *out, size_t capacity) {
    if (!packable(form) || capacity <= HEADER_BYTES) return 0;
    uint16_t *words = malloc(sizeof *words * capacity);
    if (words == NULL) return -1;
    tw_pass *p = &s->pass;
    uint8_t header[HEADER_BYTES] = {0};
    long result = 0;
    begin(s, trained, form);
    p->writing = 1;
    p->header = header;
    p->header_capacity = HEADER_BYTES;
    tw_coder_start(&p->model, TW_DECODE, s->work, NULL, packed, packed_bytes, NULL, 0);
    tw_av1_write_start(&p->writer, words, capacity);
    if (!tw_walk_header(p, &s->header)) {
        tw_cdf_start(p, s->header.base_q);
        const int fault = tw_walk_tile(p, &s->header, &s->walk);
        if (!fault && !p->writer.full && tw_coder_is_canonical(&p->model)) {
            const size_t bytes = p->header_bits / 8;
            memcpy(out, header, bytes);
            const size_t tile = tw_av1_write_end(&p->writer, out + bytes, capacity - bytes);
            if (tile) result = (long)(bytes + tile);
        }
    }
    free(words);
    return result;
}

int tw_still_learn(tw_model *master, tw_scratch *s, tw_av1_form form, const uint8_t *frame, size_t frame_bytes) {
    if (!packable(form)) return 0;
    memset(&s->pass, 0, sizeof s->pass);
    s->pass.form = form;
    memcpy(s->work->weights, master->weights, sizeof master->weights); /* its counters follow one by one: `slot_of` */
    tw_coder_start(&s->pass.model, TW_LEARN, s->work, master, NULL, 0, NULL, 0);
    const int learned = !read_frame(s, frame, frame_bytes);
    if (learned) {
        memcpy(master->weights, s->work->weights, sizeof master->weights);
        master->frames++;
    }
    return learned;
}
