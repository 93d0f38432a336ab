/* AV1's arithmetic coder, both ways (AV1 specification, section 8.2; the writer as libaom's entenc.c ends a tile). */
#include "av1_frame.h"

static uint32_t share(uint32_t range, uint32_t probability) { return (range >> 8) * (probability >> 6) >> 1; }

static int floor_log2(uint32_t v) {
    int n = 0;
    while (v >>= 1) n++;
    return n;
}

static uint32_t read_bits(tw_av1_reader *r, int count) {
    uint32_t v = 0;
    for (int i = 0; i < count; i++, r->at++) {
        v = v << 1 | (r->at < r->bits ? r->data[r->at >> 3] >> (7 - (r->at & 7)) & 1u : 0);
    }
    return v;
}

void tw_av1_read_start(tw_av1_reader *r, const uint8_t *data, size_t size) {
    r->data = data;
    r->bits = 8 * size;
    r->at = 0;
    r->value = ((1u << 15) - 1) ^ read_bits(r, 15); /* zeros behind the end, as the specification pads */
    r->range = 1u << 15;
}

static void shift_in(tw_av1_reader *r) {
    const int bits = 15 - floor_log2(r->range);
    r->range <<= bits;
    const uint32_t data = read_bits(r, bits);
    r->value = data ^ (((r->value + 1) << bits) - 1);
}

int tw_av1_read(tw_av1_reader *r, const uint16_t *cdf, int last) {
    uint32_t current = r->range, before;
    int value = -1;
    do {
        value++;
        before = current;
        current = value == last ? 0 : share(r->range, cdf[value]) + 4u * (uint32_t)(last - value);
    } while (r->value < current);
    r->range = before - current;
    r->value -= current;
    shift_in(r);
    return value;
}

int tw_av1_read_bool(tw_av1_reader *r, uint32_t probability) {
    const uint16_t cdf = (uint16_t)probability;
    return tw_av1_read(r, &cdf, 1);
}

void tw_av1_write_start(tw_av1_writer *w, uint16_t *buffer, size_t capacity) {
    w->buffer = buffer;
    w->capacity = capacity;
    w->length = 0;
    w->low = 0;
    w->range = 0x8000;
    w->count = -9;
    w->full = 0;
}

static void put(tw_av1_writer *w, uint32_t word) {
    if (w->length < w->capacity) w->buffer[w->length++] = (uint16_t)word;
    else w->full = 1;
}

static void shift_out(tw_av1_writer *w, uint32_t low, uint32_t range) {
    const int bits = 15 - floor_log2(range);
    int count = w->count, kept = count + bits;
    if (kept >= 0) {
        count += 16;
        uint32_t mask = (1u << count) - 1;
        if (kept >= 8) {
            put(w, low >> count);
            low &= mask;
            count -= 8;
            mask >>= 8;
        }
        put(w, low >> count);
        kept = count + bits - 24;
        low &= mask;
    }
    w->low = low << bits;
    w->range = range << bits;
    w->count = kept;
}

void tw_av1_write(tw_av1_writer *w, const uint16_t *cdf, int last, int value) {
    const uint32_t range = w->range;
    const uint32_t from = value > 0 ? share(range, cdf[value - 1]) + 4u * (uint32_t)(last - value + 1) : range;
    const uint32_t to = value < last ? share(range, cdf[value]) + 4u * (uint32_t)(last - value) : 0;
    shift_out(w, w->low + (range - from), from - to);
}

void tw_av1_write_bool(tw_av1_writer *w, uint32_t probability, int value) {
    const uint16_t cdf = (uint16_t)probability;
    tw_av1_write(w, &cdf, 1, value);
}

size_t tw_av1_write_end(tw_av1_writer *w, uint8_t *out, size_t capacity) {
    const uint32_t mask = 0x3FFF;
    uint32_t end = ((w->low + mask) & ~mask) | (mask + 1); /* with the trailing one bit */
    int count = w->count, bits = 10 + count;
    if (bits > 0) {
        uint32_t rest = (1u << (count + 16)) - 1;
        do {
            put(w, end >> (count + 16));
            end &= rest;
            bits -= 8;
            count -= 8;
            rest >>= 8;
        } while (bits > 0);
    }
    if (w->full || w->length > capacity) return 0;
    uint32_t carry = 0;
    for (size_t i = w->length; i-- > 0;) {
        carry += w->buffer[i];
        out[i] = (uint8_t)carry;
        carry >>= 8;
    }
    return w->length;
}

void tw_av1_adapt(uint16_t *cdf, int last, int value) {
    const unsigned count = cdf[last], rate = 4 + (count >> 4) + (last > 2);
    for (int i = 0; i < last; i++) {
        if (i < value) cdf[i] = (uint16_t)(cdf[i] + ((32768 - cdf[i]) >> rate));
        else cdf[i] = (uint16_t)(cdf[i] - (cdf[i] >> rate));
    }
    cdf[last] = (uint16_t)(count + (count < 32));
}
