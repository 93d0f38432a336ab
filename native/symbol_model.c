#include "symbol_model.h"

#include <stdlib.h>
#include <string.h>

#define CAPPED 24      /* observations that a trained counter counts for inside a frame */
#define LIMIT 120      /* inside a frame */
#define LIMIT_LEARN 900
#define FRAME_RATE 5   /* of the weights, inside a frame */
#define STATE_MAGIC 0x31535754u /* "TWS1" */

#if defined(__GNUC__) || defined(__clang__)
#define TW_SOON(address) __builtin_prefetch(address)
#else
#define TW_SOON(address) ((void)(address))
#endif

static const uint16_t levels[16] = {0, 1, 2, 3, 4, 5, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24};

/* 65536 / (1 + exp(-x / 2)) for x = -16 .. 16 */
static const int32_t curve[33] = {
    22, 36, 60, 99, 162, 268, 441, 726, 1194, 1957, 3195, 5168, 8221, 12679, 18575, 25463, 32768,
    40073, 46961, 52857, 57315, 60368, 62341, 63579, 64342, 64810, 65095, 65268, 65374, 65437, 65476, 65500, 65514};

static int32_t squash_table[4096];
static int16_t stretch_table[4096];
static uint16_t reciprocal[1024];
static int ready;

/* x in 1/256: probability in 1/65536 */
static int32_t squash(int32_t x) {
    if (x > 2047) x = 2047;
    if (x < -2047) x = -2047;
    return squash_table[x + 2048];
}

static void make_tables(void) {
    if (ready) return;
    for (int i = 0; i < 4096; i++) {
        const int x = i - 2048, part = (x + 2048) >> 7, rest = (x + 2048) & 127;
        squash_table[i] = (curve[part] * (128 - rest) + curve[part + (part < 32)] * rest) >> 7;
    }
    int at = 0; /* the inverse: the least x whose probability reaches p */
    for (int p = 0; p < 4096; p++) {
        while (at < 4095 && squash_table[at] < (p << 4) + 8) at++;
        stretch_table[p] = (int16_t)(at - 2048 < -2047 ? -2047 : at - 2048);
    }
    for (int n = 0; n < 1024; n++) reciprocal[n] = (uint16_t)(655360u / (10u * (unsigned)n + 16u));
    ready = 1;
}

#define NOTHING (1u << 31) /* even chances, never seen */

tw_model *tw_model_new(int bits) {
    tw_model *m = calloc(1, sizeof *m);
    if (m == NULL) return NULL;
    m->bits = bits;
    m->slots = malloc(sizeof *m->slots << bits);
    m->tags = malloc((size_t)1 << bits);
    if (m->slots && m->tags) return m;
    tw_model_free(m);
    return NULL;
}

int tw_model_may_learn(tw_model *m) {
    if (m->touched == NULL) m->touched = calloc((size_t)1 << m->bits, sizeof *m->touched);
    return m->touched == NULL;
}

void tw_model_free(tw_model *m) {
    if (m == NULL) return;
    free(m->slots);
    free(m->tags);
    free(m->touched);
    free(m);
}

void tw_model_start(tw_model *m) {
    make_tables();
    for (size_t i = 0; i < (size_t)1 << m->bits; i++) m->slots[i] = NOTHING;
    memset(m->tags, 0, (size_t)1 << m->bits);
    if (m->touched) memset(m->touched, 0, sizeof *m->touched << m->bits);
    for (int set = 0; set < TW_SETS; set++) {
        for (int i = 0; i < TW_INPUTS; i++) m->weights[set][i] = i % 2 == 0 && i < TW_INPUTS - 1 ? 10000 : 0;
    }
    m->frames = 0;
}

size_t tw_model_size(void) { return 12 + 3 * ((size_t)1 << TW_SLOT_BITS) + 2 * (size_t)TW_SETS * TW_INPUTS; }

static void put32(uint8_t *to, uint32_t v) {
    for (int i = 0; i < 4; i++) to[i] = (uint8_t)(v >> (8 * i));
}

static uint32_t get32(const uint8_t *from) {
    return from[0] | (uint32_t)from[1] << 8 | (uint32_t)from[2] << 16 | (uint32_t)from[3] << 24;
}

/* Of the counters that would share a small bucket the most observed ones, one a tag. */
static int kept(const tw_model *m, size_t bucket, size_t chosen[TW_BUCKET]) {
    const size_t share = TW_BUCKET * ((size_t)1 << (m->bits - TW_SLOT_BITS)), from = bucket * share;
    int count = 0;
    while (count < TW_BUCKET) {
        size_t best = 0;
        uint32_t most = 1; /* what was seen once is noise */
        for (size_t i = from; i < from + share; i++) {
            int taken = m->tags[i] == 0;
            for (int j = 0; j < count && !taken; j++) taken = m->tags[chosen[j]] == m->tags[i];
            if (!taken && (m->slots[i] & 1023) > most) {
                most = m->slots[i] & 1023;
                best = i;
            }
        }
        if (most == 1) break;
        chosen[count++] = best;
    }
    return count;
}

void tw_model_save(const tw_model *m, uint8_t *state) {
    put32(state, STATE_MAGIC);
    put32(state + 4, TW_SLOT_BITS);
    put32(state + 8, m->frames);
    uint8_t *to = state + 12, *tags = to + 2 * ((size_t)1 << TW_SLOT_BITS);
    for (size_t bucket = 0; bucket < ((size_t)1 << TW_SLOT_BITS) / TW_BUCKET; bucket++) {
        size_t chosen[TW_BUCKET];
        const int count = kept(m, bucket, chosen);
        for (int i = 0; i < TW_BUCKET; i++, to += 2) {
            const uint32_t slot = i < count ? m->slots[chosen[i]] : NOTHING, n = slot & 1023, p = slot >> 20;
            int level = 15;
            while (level > 0 && levels[level] > n) level--;
            to[0] = (uint8_t)(p << 4 | (uint32_t)level);
            to[1] = (uint8_t)(p >> 4);
            *tags++ = i < count ? m->tags[chosen[i]] : 0;
        }
    }
    to = tags;
    for (int set = 0; set < TW_SETS; set++) {
        for (int i = 0; i < TW_INPUTS; i++, to += 2) {
            int32_t w = (m->weights[set][i] + 16) >> 5;
            w = w > 32767 ? 32767 : w < -32768 ? -32768 : w;
            to[0] = (uint8_t)w;
            to[1] = (uint8_t)((uint32_t)w >> 8);
        }
    }
}

int tw_model_load(tw_model *m, const uint8_t *state, size_t size) {
    make_tables();
    if (size != tw_model_size() || get32(state) != STATE_MAGIC || get32(state + 4) != TW_SLOT_BITS) return 1;
    m->frames = get32(state + 8);
    if (m->touched) memset(m->touched, 0, sizeof *m->touched << m->bits);
    const uint8_t *from = state + 12;
    for (size_t i = 0; i < (size_t)1 << TW_SLOT_BITS; i++, from += 2) {
        const uint32_t p = (uint32_t)from[1] << 4 | from[0] >> 4;
        m->slots[i] = p << 20 | 1u << 19 | levels[from[0] & 15];
    }
    memcpy(m->tags, from, (size_t)1 << TW_SLOT_BITS);
    from += (size_t)1 << TW_SLOT_BITS;
    for (int set = 0; set < TW_SETS; set++) {
        for (int i = 0; i < TW_INPUTS; i++, from += 2) m->weights[set][i] = (int16_t)(from[0] | from[1] << 8) * 32;
    }
    return 0;
}

void tw_model_begin(tw_model *work, const tw_model *trained) { /* a saved counter is capped as it is */
    memcpy(work->slots, trained->slots, sizeof *work->slots << work->bits);
    memcpy(work->tags, trained->tags, (size_t)1 << work->bits);
    memcpy(work->weights, trained->weights, sizeof work->weights);
    work->frames = trained->frames;
}

static uint32_t capped(uint32_t slot) { return (slot & 1023) > CAPPED ? (slot & ~1023u) | CAPPED : slot; }

/* The counter of a context: its own, or the least observed of its bucket begun anew. */
static uint32_t *slot_of(tw_coder *c, uint32_t hash, uint32_t **trained) {
    tw_model *m = c->mode == TW_LEARN ? c->master : c->work;
    const size_t from = (size_t)(hash >> (32 - m->bits)) / TW_BUCKET * TW_BUCKET;
    const uint8_t tag = (uint8_t)((hash * 0x9E3779B1u >> 24) | 1);
    size_t found = from + TW_BUCKET, least = from;
    for (size_t i = from; i < from + TW_BUCKET; i++) {
        if (m->tags[i] == tag) {
            found = i;
            break;
        }
        if ((m->slots[i] & 1023) < (m->slots[least] & 1023)) least = i;
    }
    if (found == from + TW_BUCKET) {
        if (m->bits == TW_SLOT_BITS && (m->slots[least] & 1023) > 2) { /* what was trained stays */
            *trained = NULL;
            return NULL;
        }
        found = least;
        m->tags[found] = tag;
        m->slots[found] = NOTHING;
        if (m->touched) m->touched[found] = 0;
    }
    if (c->mode != TW_LEARN) return &m->slots[found];
    if (m->touched[found] != m->frames + 1) { /* the first time in this frame */
        m->touched[found] = m->frames + 1;
        c->work->slots[found] = capped(m->slots[found]);
    }
    *trained = &m->slots[found];
    return &c->work->slots[found];
}

static void learn_slot(uint32_t *slot, int bit, uint32_t limit) {
    const uint32_t n = *slot & 1023;
    const int64_t p = *slot >> 10, target = bit ? (1 << 22) - 1 : 0;
    const uint32_t moved = (uint32_t)(p + ((target - p) * reciprocal[n] >> 16));
    *slot = moved << 10 | (n < limit ? n + 1 : n);
}

/* A weight is at most 2^20 and an input 2047, so their product fits into 32 bits, and so do all of them shifted. */
static int32_t mixed(const int32_t *weights, const int32_t *in, int count) {
    int32_t sum = 0;
    for (int i = 0; i < count; i++) sum += (weights[i] * in[i]) >> 6;
    sum >>= 10;
    return sum > 2047 ? 2047 : sum < -2047 ? -2047 : sum;
}

static void learn_weights(int32_t *weights, const int32_t *in, int count, int32_t error) {
    for (int i = 0; i < count; i++) {
        const int32_t w = weights[i] + ((in[i] * error + 8192) >> 14);
        weights[i] = w > 1 << 20 ? 1 << 20 : w < -(1 << 20) ? -(1 << 20) : w;
    }
}

void tw_coder_start(tw_coder *c, int mode, tw_model *work, tw_model *master, const uint8_t *in, size_t in_size, uint8_t *out,
                    size_t out_capacity) {
    memset(c, 0, sizeof *c);
    c->mode = mode;
    c->work = work;
    c->master = master;
    c->in = in;
    c->in_size = in_size;
    c->out = out;
    c->out_capacity = out_capacity;
    c->high = 0xFFFFFFFFu;
    if (mode == TW_DECODE) {
        for (int i = 0; i < 4; i++) c->window = c->window << 8 | (c->in_at < in_size ? in[c->in_at++] : 0);
    }
}

static void put(tw_coder *c, uint8_t byte) {
    if (c->out_size < c->out_capacity) c->out[c->out_size++] = byte;
    else c->full = 1;
}

static int coded(tw_coder *c, uint32_t p, int bit) {
    const uint32_t middle = c->low + (uint32_t)((uint64_t)(c->high - c->low) * p >> 16);
    if (c->mode == TW_DECODE) bit = c->window <= middle;
    if (bit) c->high = middle;
    else c->low = middle + 1;
    while ((c->low ^ c->high) < 1u << 24) {
        if (c->mode == TW_ENCODE) put(c, (uint8_t)(c->high >> 24));
        c->low <<= 8;
        c->high = c->high << 8 | 255;
        if (c->mode == TW_DECODE) c->window = c->window << 8 | (c->in_at < c->in_size ? c->in[c->in_at++] : 0);
    }
    return bit;
}

int tw_coder_bit(tw_coder *c, int node, int bit) {
    tw_model *m = c->work;
    uint32_t *slots[TW_MAX_CONTEXTS], *trained[TW_MAX_CONTEXTS], spares[TW_MAX_CONTEXTS];
    int32_t in[TW_INPUTS];
    int count = 0;
    uint32_t hashes[TW_MAX_CONTEXTS];
    for (int i = 0; i < c->contexts; i++) {
        uint32_t h = (c->hashes[i] + (uint32_t)node * 0x9E3779B1u) * 0xC2B2AE35u;
        h ^= h >> 15;
        hashes[i] = h * 0x85EBCA6Bu;
        TW_SOON(&m->tags[(size_t)(hashes[i] >> (32 - m->bits)) / TW_BUCKET * TW_BUCKET]);
        TW_SOON(&m->slots[(size_t)(hashes[i] >> (32 - m->bits)) / TW_BUCKET * TW_BUCKET]);
    }
    for (int i = 0; i < c->contexts; i++) {
        slots[i] = slot_of(c, hashes[i], &trained[i]);
        if (slots[i] == NULL) {
            spares[i] = NOTHING;
            slots[i] = &spares[i];
        }
        const uint32_t n = *slots[i] & 1023;
        const int32_t st = stretch_table[*slots[i] >> 20];
        in[count++] = st;
        in[count++] = st * (int32_t)(n < 32 ? n : 32) / 32;
    }
    in[count++] = 256;
    int32_t *own = m->weights[(c->group * 24 + (node < 24 ? node : 23)) % TW_OWN_SETS];
    int32_t *place = m->weights[TW_OWN_SETS + c->place % TW_PLACE_SETS];
    int32_t *rung = m->weights[TW_OWN_SETS + TW_PLACE_SETS + (uint32_t)(c->rung * 40 + c->group) % TW_RUNG_SETS];
    const int32_t x = mixed(own, in, count), y = mixed(place, in, count), z = mixed(rung, in, count);
    int32_t p = squash((x + y + z) / 3);
    p = p < 24 ? 24 : p > 65536 - 24 ? 65536 - 24 : p;
    if (c->mode != TW_LEARN) bit = coded(c, (uint32_t)p, bit);
    const int32_t target = bit ? 65536 : 0;
    const int32_t rate = c->mode == TW_LEARN ? (int32_t)(3 + 24000 / (2000 + c->master->frames)) : FRAME_RATE;
    learn_weights(own, in, count, ((target - squash(x)) >> 4) * rate);
    learn_weights(place, in, count, ((target - squash(y)) >> 4) * rate);
    learn_weights(rung, in, count, ((target - squash(z)) >> 4) * rate);
    for (int i = 0; i < c->contexts; i++) {
        learn_slot(slots[i], bit, LIMIT);
        if (c->mode == TW_LEARN && trained[i]) learn_slot(trained[i], bit, LIMIT_LEARN);
    }
    return bit;
}

/* The number of the last interval that ends in most zero bytes; `bytes` becomes how many are before those. */
static uint32_t ending(const tw_coder *c, int *bytes) {
    for (*bytes = 0; *bytes < 4; (*bytes)++) {
        const uint32_t mask = *bytes == 0 ? 0xFFFFFFFFu : 0xFFFFFFFFu >> (8 * *bytes);
        const uint64_t value = ((uint64_t)c->low + mask) & ~(uint64_t)mask;
        if (value <= c->high) return (uint32_t)value;
    }
    return c->low;
}

size_t tw_coder_end(tw_coder *c) { /* zeros at the end are not sent */
    int bytes;
    const uint32_t value = ending(c, &bytes);
    for (int i = 0; i < bytes; i++) put(c, (uint8_t)(value >> (24 - 8 * i)));
    while (c->out_size > 0 && c->out[c->out_size - 1] == 0) c->out_size--;
    return c->out_size;
}

int tw_coder_is_canonical(const tw_coder *c) {
    int bytes;
    return c->in_at == c->in_size && (c->in_size == 0 || c->in[c->in_size - 1] != 0) && c->window == ending(c, &bytes);
}
