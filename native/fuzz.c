/* libFuzzer target for coder.c; scripts/fuzz_native.py builds it with AddressSanitizer and UndefinedBehaviorSanitizer.
 *
 * An input is a coder's number, a layer count, two bytes of length for each layer but the last, and the payloads; without
 * one libFuzzer would have to guess packets, so a custom mutator starts from real ones: it encodes random symbols of that
 * coder and damages the payloads. Whatever is decoded must be what the encoder writes for the symbols found. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "coder.h"

size_t LLVMFuzzerMutate(uint8_t *data, size_t size, size_t max_size);

enum { CODERS = 64, MAX_FUZZ_LAYERS = 4 };

static tw_coder coders[CODERS];
static uint64_t accepted, refused;

static uint32_t random_word(uint64_t *state) { /* splitmix64 */
    uint64_t z = (*state += 0x9e3779b97f4a7c15u);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return (uint32_t)((z ^ (z >> 31)) >> 32);
}

static void *get(size_t bytes) {
    void *memory = malloc(bytes ? bytes : 1);
    if (memory == NULL) abort();
    return memory;
}

static void fill_row(uint64_t *state, uint32_t *freqs, int32_t alphabet) {
    /* Heavy-tailed shares of 2^24, at least 1 each; what is left over goes to a random column. */
    uint32_t left = (1u << 24) - (uint32_t)alphabet;
    for (int32_t a = 0; a < alphabet; a++) freqs[a] = 1;
    for (int32_t k = 0; k < alphabet && left; k++) {
        uint32_t share = random_word(state) % (left + 1) >> random_word(state) % 4;
        freqs[random_word(state) % (uint32_t)alphabet] += share;
        left -= share;
    }
    freqs[random_word(state) % (uint32_t)alphabet] += left;
}

static void make_coder(tw_coder *coder, uint64_t seed) {
    uint64_t state = seed;
    tw_tables t = {.context = seed % 3 != 0};
    t.layers = 1 + (int32_t)(random_word(&state) % MAX_FUZZ_LAYERS);
    t.height = 1 + (int32_t)(random_word(&state) % 6);
    t.width = 1 + (int32_t)(random_word(&state) % 6);
    int32_t *bounds = get(4 * ((size_t)t.layers + 1));
    bounds[0] = 0;
    for (int32_t i = 0; i < t.layers; i++) bounds[i + 1] = bounds[i] + 1 + (int32_t)(random_word(&state) % 4);
    t.bounds = bounds;
    t.channels = bounds[t.layers];
    t.rows = 1 + (int32_t)(random_word(&state) % 8);
    t.alphabet = 2 + (int32_t)(random_word(&state) % (seed % 5 ? 40 : 2000));
    t.low = -(int32_t)(random_word(&state) % (uint32_t)t.alphabet);
    uint32_t *freqs = get(4 * (size_t)t.rows * (size_t)t.alphabet);
    for (int32_t row = 0; row < t.rows; row++) fill_row(&state, freqs + (size_t)row * (size_t)t.alphabet, t.alphabet);
    t.freqs = freqs;
    size_t buckets = (size_t)t.channels * (size_t)tw_buckets(t.context);
    uint16_t *table_of = get(2 * buckets);
    for (size_t i = 0; i < buckets; i++) table_of[i] = (uint16_t)(random_word(&state) % (uint32_t)t.rows);
    t.table_of = table_of;
    int32_t widths[3], *edges[3];
    tw_edge_widths(t.context, widths);
    for (int k = 0; k < 3; k++) {
        const size_t count = (size_t)widths[k] * (size_t)(k == 0 ? t.layers : t.channels);
        edges[k] = get(4 * count);
        for (size_t i = 0; i < count; i++) edges[k][i] = (int32_t)(random_word(&state) % 12) - (k == 1 ? 6 : 0);
    }
    t.past_edges = edges[0];
    t.lean_edges = edges[1];
    t.near_edges = edges[2];
    const char *fault = tw_coder_init(coder, &t, get(4 * tw_storage_words(&t)));
    if (fault) {
        fprintf(stderr, "make_coder: %s\n", fault);
        abort();
    }
}

static void report(void) { /* LeakSanitizer still sees the coders: they hang on a global */
    printf("accepted %llu, refused %llu\n", (unsigned long long)accepted, (unsigned long long)refused);
}

int LLVMFuzzerInitialize(int *argc, char ***argv) {
    (void)argc;
    (void)argv;
    for (int i = 0; i < CODERS; i++) make_coder(&coders[i], (uint64_t)i);
    atexit(report);
    return 0;
}

/* Of each size exactly, so that AddressSanitizer sees every byte too far. */
static void check_coder(const tw_coder *coder, int32_t layers, const uint8_t *const *payloads, const size_t *lengths) {
    const size_t n = (size_t)coder->tables.channels * (size_t)coder->cells;
    void *work = get(tw_work_bytes(coder));
    int32_t *symbols = get(4 * n), bad = 0;
    if (tw_decode(coder, layers, payloads, lengths, symbols, &bad, work) != TW_OK) {
        refused++;
        if (bad < 0 || bad >= layers) abort();
    } else {
        accepted++;
        const size_t sent = (size_t)coder->tables.bounds[layers] * (size_t)coder->cells;
        for (size_t i = 0; i < n; i++) {
            int32_t column = symbols[i] - coder->tables.low;
            if (i < sent ? column < 0 || column >= coder->tables.alphabet : symbols[i] != 0) abort();
        }
        uint8_t *out = get(tw_encoded_bound(coder, layers)), *at = out;
        size_t again[MAX_FUZZ_LAYERS];
        tw_encode(coder, symbols, layers, out, again, work);
        for (int32_t i = 0; i < layers; at += again[i++]) {
            if (again[i] != lengths[i] || memcmp(at, payloads[i], again[i]) != 0) abort();
        }
        free(out);
    }
    free(symbols);
    free(work);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    if (size < 2) return 0;
    const tw_coder *coder = &coders[data[0] % CODERS];
    const int32_t layers = 1 + data[1] % coder->tables.layers;
    const uint8_t *payloads[MAX_FUZZ_LAYERS];
    uint8_t *copies[MAX_FUZZ_LAYERS];
    size_t lengths[MAX_FUZZ_LAYERS], at = 2 + 2 * ((size_t)layers - 1);
    if (size < at) return 0;
    for (int32_t i = 0; i < layers; i++) {
        size_t length = i + 1 < layers ? (size_t)data[2 + 2 * i] << 8 | data[3 + 2 * i] : size - at;
        if (length > size - at) length = size - at;
        lengths[i] = length;
        copies[i] = get(length);
        if (length) memcpy(copies[i], data + at, length);
        payloads[i] = copies[i];
        at += length;
    }
    check_coder(coder, layers, payloads, lengths);
    for (int32_t i = 0; i < layers; i++) free(copies[i]);
    return 0;
}

/* A real packet of a random coder, damaged by libFuzzer in most cases; now and then its own invention. */
size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t max_size, unsigned int seed) {
    uint64_t state = seed;
    if (random_word(&state) % 4 == 0) return LLVMFuzzerMutate(data, size, max_size);
    const uint32_t number = random_word(&state) % CODERS;
    const tw_coder *coder = &coders[number];
    const int32_t layers = 1 + (int32_t)(random_word(&state) % (uint32_t)coder->tables.layers);
    const size_t n = (size_t)coder->tables.channels * (size_t)coder->cells, head = 2 + 2 * ((size_t)layers - 1);
    void *work = get(tw_work_bytes(coder));
    int32_t *symbols = get(4 * n);
    const uint32_t spread = 1 + random_word(&state) % 4;
    for (size_t i = 0; i < n; i++) symbols[i] = (int32_t)(random_word(&state) % (2 * spread + 1)) - (int32_t)spread;
    uint8_t *out = get(tw_encoded_bound(coder, layers));
    size_t lengths[MAX_FUZZ_LAYERS], total = 0;
    tw_encode(coder, symbols, layers, out, lengths, work);
    for (int32_t i = 0; i < layers; i++) total += lengths[i];
    if (head + total <= max_size && total <= 65535) {
        data[0] = (uint8_t)number;
        data[1] = (uint8_t)(layers - 1);
        for (int32_t i = 0; i + 1 < layers; i++) {
            data[2 + 2 * i] = (uint8_t)(lengths[i] >> 8);
            data[3 + 2 * i] = (uint8_t)lengths[i];
        }
        memcpy(data + head, out, total);
        size = head + total;
        /* Damage in the payloads alone, so that lengths stay what they say; one in sixteen is left whole. */
        if (random_word(&state) % 16) size = head + LLVMFuzzerMutate(data + head, total, max_size - head);
    }
    free(out);
    free(symbols);
    free(work);
    return size;
}
