#include "coder.h"

#include <string.h>

/* Contexts by the number that `Context.native` of thinwire/contexts.py names. */
enum { NONE = 0, CHECKERBOARD = 1 };

enum { PAST_EDGES = 3, LEAN_EDGES = 4, NEAR_EDGES = 2, STRIDE = 1 + (LEAN_EDGES + 1) * (NEAR_EDGES + 1) };

/* ------------------------------------------------------------------------------------------------ tables */

int32_t tw_buckets(int context) {
    switch (context) {
        case NONE: return 1;
        case CHECKERBOARD: return (PAST_EDGES + 1) * STRIDE;
        default: return 0;
    }
}

void tw_edge_widths(int context, int32_t widths[3]) {
    const int edges = context == CHECKERBOARD;
    widths[0] = edges ? PAST_EDGES : 0;
    widths[1] = edges ? LEAN_EDGES : 0;
    widths[2] = edges ? NEAR_EDGES : 0;
}

static const char *out_of_limits(const tw_tables *t) {
    if (tw_buckets(t->context) == 0) return "the context is unknown";
    if (t->channels < 1 || t->height < 1 || t->width < 1) return "the latent is empty";
    if (t->channels > TW_MAX_SYMBOLS || t->height > TW_MAX_SYMBOLS || t->width > TW_MAX_SYMBOLS ||
        (int64_t)t->height * t->width > TW_MAX_SYMBOLS ||
        (int64_t)t->height * t->width * t->channels > TW_MAX_SYMBOLS) {
        return "the latent has too many symbols";
    }
    if (t->layers < 1 || t->layers > TW_MAX_LAYERS) return "the number of layers is out of range";
    if (t->rows < 1 || t->rows > TW_MAX_ROWS) return "the number of tables is out of range";
    if (t->alphabet < 2 || t->alphabet > TW_MAX_ALPHABET) return "the alphabet is out of range";
    if (t->low < -TW_MAX_LOW || t->low > TW_MAX_LOW) return "the smallest symbol is out of range";
    return NULL;
}

size_t tw_storage_words(const tw_tables *t) {
    if (out_of_limits(t)) return 0;
    return (size_t)t->rows * ((size_t)t->alphabet + 1) + ((size_t)t->rows + 1) / 2;
}

const char *tw_coder_init(tw_coder *coder, const tw_tables *t, uint32_t *storage) {
    const char *fault = out_of_limits(t);
    if (fault) return fault;
    coder->tables = *t;
    coder->cells = t->height * t->width;
    coder->buckets = tw_buckets(t->context);
    coder->largest = 0;
    if (t->bounds[0] != 0 || t->bounds[t->layers] != t->channels) return "the layers do not cover the channels";
    for (int32_t i = 0; i < t->layers; i++) {
        int64_t size = (int64_t)t->bounds[i + 1] - t->bounds[i];
        if (size < 1 || t->bounds[i + 1] > t->channels) return "the layers do not cover the channels in order";
        if (size * coder->cells > coder->largest) coder->largest = (int32_t)(size * coder->cells);
    }
    for (size_t i = 0; i < (size_t)t->channels * coder->buckets; i++) {
        if (t->table_of[i] >= t->rows) return "a bucket names a table that there is not";
    }
    uint32_t *cum = storage;
    uint16_t *top = (uint16_t *)(storage + (size_t)t->rows * ((size_t)t->alphabet + 1));
    coder->cum = cum;
    coder->top = top;
    for (int32_t row = 0; row < t->rows; row++, cum += t->alphabet + 1) {
        const uint32_t *freqs = t->freqs + (size_t)row * t->alphabet;
        uint64_t sum = 0;
        int32_t best = 0;
        for (int32_t a = 0; a < t->alphabet; a++) {
            if (freqs[a] == 0) return "a probability is zero";
            if (freqs[a] > freqs[best]) best = a;
            cum[a] = (uint32_t)sum;
            sum += freqs[a];
            if (sum > 1 << 24) return "a table sums to more than 2^24";
        }
        if (sum != 1 << 24) return "a table sums to less than 2^24";
        cum[t->alphabet] = (uint32_t)sum;
        top[row] = (uint16_t)best;
    }
    return NULL;
}

/* ------------------------------------------------------------------------------------------------ work memory */

typedef struct {
    int32_t *layer;         /* (c, cells) the layer's symbols, clipped */
    uint32_t *order;        /* (n,) column (encoding) or position (decoding) of each symbol of a pass, in coding order */
    uint16_t *row_of;       /* (n,) table row of each symbol of a pass, by channel, then cell */
    uint32_t *ends;         /* (T,) where each row's run ends in `order` */
    uint32_t *earlier;      /* (cells,) sum of |symbol| over all channels of earlier layers */
    uint16_t *past;         /* (cells,) 16 x bucket of the above */
    int32_t *value, *magnitude; /* (h + 2, w + 2) a channel's symbols with a border of zeros */
    uint16_t *second;       /* (cells,) what the second pass adds to `past` */
} work_t;

static size_t padded(const tw_coder *c) { return ((size_t)c->tables.height + 2) * ((size_t)c->tables.width + 2); }

/* Lays out `base`, or counts bytes when it is NULL. */
static size_t lay_out(const tw_coder *c, work_t *w, char *base) {
    size_t at = 0, n = (size_t)c->largest, cells = (size_t)c->cells;
#define PART(name, type, count)                  \
    w->name = base ? (type *)(base + at) : NULL; \
    at += ((count) * sizeof(type) + 15) & ~(size_t)15
    PART(layer, int32_t, n);
    PART(order, uint32_t, n);
    PART(row_of, uint16_t, n);
    PART(ends, uint32_t, (size_t)c->tables.rows);
    PART(earlier, uint32_t, cells);
    PART(past, uint16_t, cells);
    PART(value, int32_t, padded(c));
    PART(magnitude, int32_t, padded(c));
    PART(second, uint16_t, cells);
#undef PART
    return at;
}

size_t tw_work_bytes(const tw_coder *coder) {
    work_t w;
    return lay_out(coder, &w, NULL);
}

/* ------------------------------------------------------------------------------------------------ contexts */

static uint32_t magnitude_of(int32_t symbol) { return symbol < 0 ? 0u - (uint32_t)symbol : (uint32_t)symbol; }

/* Sums wrap at 2^32, as NumPy's int32 does in the readable form; only tables far beyond any in use reach that. */
static void find_past_buckets(const tw_coder *c, work_t *w, int32_t layer) {
    const int32_t height = c->tables.height, width = c->tables.width;
    const int32_t *edges = c->tables.past_edges + (size_t)layer * PAST_EDGES;
    for (int32_t i = 0; i < height; i++) {
        for (int32_t j = 0; j < width; j++) {
            const uint32_t *here = w->earlier + (size_t)i * width + j;
            uint32_t sum = 2 * here[0];
            if (i > 0) sum += here[-width];
            if (i + 1 < height) sum += here[width];
            if (j > 0) sum += here[-1];
            if (j + 1 < width) sum += here[1];
            int32_t reached = (int32_t)sum;
            int bucket = (reached >= edges[0]) + (reached >= edges[1]) + (reached >= edges[2]);
            w->past[(size_t)i * width + j] = (uint16_t)(bucket * STRIDE);
        }
    }
}

/* Fills `second` for all cells of a channel; only those of odd parity are used, whose neighbours are all known. */
static void find_second_buckets(const tw_coder *c, work_t *w, int32_t channel, const int32_t *plane) {
    const int32_t height = c->tables.height, width = c->tables.width, stride = width + 2;
    const int32_t *lean = c->tables.lean_edges + (size_t)channel * LEAN_EDGES;
    const int32_t *near = c->tables.near_edges + (size_t)channel * NEAR_EDGES;
    const int32_t lean0 = lean[0], lean1 = lean[1], lean2 = lean[2], lean3 = lean[3], near0 = near[0], near1 = near[1];
    for (int32_t i = 0; i < height; i++) {
        const int32_t *from = plane + (size_t)i * width;
        int32_t *value = w->value + (size_t)(i + 1) * stride + 1;
        int32_t *magnitude = w->magnitude + (size_t)(i + 1) * stride + 1;
        for (int32_t j = 0; j < width; j++) {
            value[j] = from[j];
            magnitude[j] = from[j] < 0 ? -from[j] : from[j]; /* |symbol| < 2^21: neither this nor four of them overflow */
        }
    }
    for (int32_t i = 0; i < height; i++) {
        const int32_t *restrict value = w->value + (size_t)(i + 1) * stride + 1;
        const int32_t *restrict magnitude = w->magnitude + (size_t)(i + 1) * stride + 1;
        uint16_t *restrict out = w->second + (size_t)i * width;
        for (int32_t j = 0; j < width; j++) {
            int32_t leaning = value[j - stride] + value[j + stride] + value[j - 1] + value[j + 1];
            int32_t busy = magnitude[j - stride] + magnitude[j + stride] + magnitude[j - 1] + magnitude[j + 1];
            int32_t a = (leaning >= lean0) + (leaning >= lean1) + (leaning >= lean2) + (leaning >= lean3);
            int32_t b = (busy >= near0) + (busy >= near1);
            out[j] = (uint16_t)(1 + a * (NEAR_EDGES + 1) + b);
        }
    }
}

/* Visits cells in row-major order; `first` is the first column of row i, `step` leads to the next one. */
#define FOR_CELLS(i, j, height, width, first, step)     \
    for (int32_t i = 0; i < (height); i++)              \
        for (int32_t j = (first); j < (width); j += (step))

static int32_t passes_of(int context) { return context == CHECKERBOARD ? 2 : 1; }

/* The table row of each symbol of a pass, by channel, then cell, and in `ends` how many symbols each row has.
 * Returns the number of symbols. */
static uint32_t find_rows(const tw_coder *c, work_t *w, int32_t layer, int32_t pass) {
    const int32_t height = c->tables.height, width = c->tables.width;
    const int32_t start = c->tables.bounds[layer], stop = c->tables.bounds[layer + 1];
    const int32_t step = passes_of(c->tables.context);
    uint32_t n = 0;
    memset(w->ends, 0, (size_t)c->tables.rows * sizeof *w->ends);
    for (int32_t channel = start; channel < stop; channel++) {
        const uint16_t *table_of = c->tables.table_of + (size_t)channel * c->buckets;
        if (c->tables.context == NONE) {
            for (int32_t cell = 0; cell < c->cells; cell++) w->row_of[n++] = table_of[0];
            w->ends[table_of[0]] += (uint32_t)c->cells;
            continue;
        }
        if (pass == 1) find_second_buckets(c, w, channel, w->layer + (size_t)(channel - start) * c->cells);
        FOR_CELLS(i, j, height, width, (i + pass) & 1, step) {
            size_t cell = (size_t)i * width + j;
            uint16_t row = table_of[w->past[cell] + (pass == 1 ? w->second[cell] : 0)];
            w->row_of[n++] = row;
            w->ends[row]++;
        }
    }
    return n;
}

/* Turns counts in `ends` into the start of each row's run; filling a run moves its entry on to the run's end. */
static void starts_of_runs(const tw_coder *c, work_t *w) {
    uint32_t total = 0;
    for (int32_t row = 0; row < c->tables.rows; row++) {
        uint32_t count = w->ends[row];
        w->ends[row] = total;
        total += count;
    }
}

static void add_to_earlier(const tw_coder *c, work_t *w, int32_t layer) {
    const int32_t *plane = w->layer;
    for (int32_t k = c->tables.bounds[layer]; k < c->tables.bounds[layer + 1]; k++, plane += c->cells) {
        for (int32_t cell = 0; cell < c->cells; cell++) w->earlier[cell] += magnitude_of(plane[cell]);
    }
}

static void begin(const tw_coder *c, work_t *w, void *work) {
    lay_out(c, w, (char *)work);
    memset(w->earlier, 0, (size_t)c->cells * sizeof *w->earlier);
    memset(w->value, 0, padded(c) * sizeof *w->value);
    memset(w->magnitude, 0, padded(c) * sizeof *w->magnitude);
}

/* ------------------------------------------------------------------------------------------------ range encoder */

/* `lower` is the last 64 bits of the specification's `lower`; the words before them are written already, and a carry
 * goes back into those. */
typedef struct {
    uint64_t lower, size;
    uint8_t *out;
    size_t written; /* bytes */
} encoder_t;

static void carry(encoder_t *e) {
    size_t at = e->written;
    while (at > 0 && ++e->out[--at] == 0) { /* never runs past the first byte: `lower` stays below 1 */
    }
}

static void put_word(encoder_t *e) {
    uint8_t *to = e->out + e->written;
    uint32_t word = (uint32_t)(e->lower >> 32);
    to[0] = (uint8_t)(word >> 24);
    to[1] = (uint8_t)(word >> 16);
    to[2] = (uint8_t)(word >> 8);
    to[3] = (uint8_t)word;
    e->written += 4;
    e->lower <<= 32;
    e->size <<= 32;
}

static void encode_run(encoder_t *e, const uint32_t *cum, const uint32_t *columns, uint32_t count) {
    encoder_t s = *e;
    for (uint32_t i = 0; i < count; i++) {
        uint32_t left = cum[columns[i]], right = cum[columns[i] + 1];
        uint64_t step = s.size >> 24, add = step * left;
        s.lower += add;
        if (s.lower < add) carry(&s);
        s.size = step * (right - left);
        if (s.size < (uint64_t)1 << 32) put_word(&s);
    }
    *e = s;
}

/* Appends the number of [lower, lower + size) with most trailing zero bytes (the smallest such) and cuts its zeros.
 * Returns the payload's length. */
static size_t seal(encoder_t *e) {
    uint64_t point = e->lower;
    int kept = 0; /* of the last 8 bytes */
    for (; kept < 8; kept++) {
        uint64_t mask = kept ? ((uint64_t)1 << (64 - 8 * kept)) - 1 : UINT64_MAX;
        uint64_t up = (0 - e->lower) & mask; /* to the next multiple of mask + 1 */
        if (up < e->size) {
            point = e->lower + up;
            break;
        }
    }
    if (point < e->lower) carry(e);
    for (int i = 0; i < 8; i++) e->out[e->written + i] = (uint8_t)(point >> (56 - 8 * i));
    size_t length = e->written + 8;
    while (length > 0 && e->out[length - 1] == 0) length--;
    return length;
}

size_t tw_encoded_bound(const tw_coder *coder, int32_t layers) {
    /* A symbol writes at most one word, a layer ends with eight bytes. */
    return (size_t)coder->tables.bounds[layers] * coder->cells * 4 + (size_t)layers * 8;
}

void tw_encode(const tw_coder *c, const int32_t *symbols, int32_t layers, uint8_t *out, size_t *lengths, void *work) {
    work_t w;
    const int32_t low = c->tables.low, high = c->tables.low + c->tables.alphabet - 1;
    const int32_t height = c->tables.height, width = c->tables.width, step = passes_of(c->tables.context);
    begin(c, &w, work);
    for (int32_t layer = 0; layer < layers; layer++) {
        const int32_t start = c->tables.bounds[layer], stop = c->tables.bounds[layer + 1];
        const size_t n = (size_t)(stop - start) * c->cells;
        const int32_t *from = symbols + (size_t)start * c->cells;
        for (size_t i = 0; i < n; i++) w.layer[i] = from[i] < low ? low : from[i] > high ? high : from[i];
        if (c->tables.context == CHECKERBOARD) find_past_buckets(c, &w, layer);
        encoder_t e = {0, UINT64_MAX, out, 0};
        for (int32_t pass = 0; pass < step; pass++) {
            find_rows(c, &w, layer, pass);
            starts_of_runs(c, &w);
            uint32_t k = 0;
            for (int32_t channel = 0; channel < stop - start; channel++) {
                const int32_t *plane = w.layer + (size_t)channel * c->cells;
                FOR_CELLS(i, j, height, width, step == 1 ? 0 : (i + pass) & 1, step) {
                    w.order[w.ends[w.row_of[k++]]++] = (uint32_t)(plane[(size_t)i * width + j] - low);
                }
            }
            for (uint32_t row = 0, at = 0; row < (uint32_t)c->tables.rows; at = w.ends[row++]) {
                if (w.ends[row] > at) {
                    encode_run(&e, c->cum + (size_t)row * ((size_t)c->tables.alphabet + 1), w.order + at, w.ends[row] - at);
                }
            }
        }
        lengths[layer] = seal(&e);
        out += lengths[layer];
        if (layer + 1 < layers && c->tables.context != NONE) add_to_earlier(c, &w, layer);
    }
}

/* ------------------------------------------------------------------------------------------------ range decoder */

/* `point` is the payload's number minus the encoder's `lower`, in the last 64 bits; zeros follow the payload. */
typedef struct {
    uint64_t point, size;
    const uint8_t *payload;
    size_t length, read; /* bytes; `read` counts zeros beyond the end too */
} decoder_t;

static uint32_t next_word(decoder_t *d) {
    uint32_t word = 0;
    if (d->read + 4 <= d->length) {
        const uint8_t *from = d->payload + d->read;
        word = (uint32_t)from[0] << 24 | (uint32_t)from[1] << 16 | (uint32_t)from[2] << 8 | from[3];
    } else {
        for (size_t i = d->read; i < d->read + 4; i++) word = word << 8 | (i < d->length ? d->payload[i] : 0);
    }
    d->read += 4;
    return word;
}

/* Decodes a run into positions[i] of `layer`; returns 0 for a point that no encoder reaches.
 *
 * point / step >= cum[a] exactly when point >= step * cum[a], so no division is needed: the likeliest column is tried,
 * then a few beside it, then the rest by halves. */
static int decode_run(decoder_t *d, const uint32_t *cum, int32_t alphabet, int32_t top, int32_t low,
                      const uint32_t *positions, uint32_t count, int32_t *layer) {
    decoder_t s = *d;
    for (uint32_t i = 0; i < count; i++) {
        const uint64_t step = s.size >> 24;
        if (s.point >= step << 24) return 0;
        int32_t a = top;
        uint64_t left = step * cum[a], right = step * cum[a + 1];
        if (s.point < left) {
            int tries = 8;
            do {
                right = left;
                left = step * cum[--a];
            } while (s.point < left && --tries);
            if (s.point < left) { /* the column lies in [0, a) */
                int32_t from = 0, to = a;
                while (to - from > 1) {
                    int32_t middle = from + (to - from) / 2;
                    if (s.point < step * cum[middle]) to = middle; else from = middle;
                }
                a = from;
                left = step * cum[a];
                right = step * cum[a + 1];
            }
        } else if (s.point >= right) {
            int tries = 8;
            do {
                left = right;
                right = step * cum[++a + 1];
            } while (s.point >= right && --tries);
            if (s.point >= right) { /* the column lies in [a + 1, alphabet) */
                int32_t from = a + 1, to = alphabet;
                while (to - from > 1) {
                    int32_t middle = from + (to - from) / 2;
                    if (s.point < step * cum[middle]) to = middle; else from = middle;
                }
                a = from;
                left = step * cum[a];
                right = step * cum[a + 1];
            }
        }
        layer[positions[i]] = a + low;
        s.point -= left;
        s.size = right - left;
        if (s.size < (uint64_t)1 << 32) {
            s.point = s.point << 32 | next_word(&s);
            s.size <<= 32;
        }
    }
    *d = s;
    return 1;
}

/* Whether the payload is what `seal` would write for the interval that decoding ended in.
 *
 * With p the payload's number in `read` bytes, which ends in k zero bytes after a byte b, and point = p - lower < size:
 * p is the smallest multiple of 256^k in the interval when point < 256^k, and no multiple of 256^(k + 1) lies in it when
 * the next one, p + (256 - b) 256^k, is beyond its end. (The one before p is below `lower` by the first condition.) Of
 * multiples of 2^64 an interval holds one at most. */
static int is_canonical(const decoder_t *d) {
    if (d->length > d->read) return 0;
    if (d->length == 0) return 1;
    const uint64_t last = d->payload[d->length - 1];
    const size_t k = d->read - d->length;
    if (last == 0) return 0;
    if (k >= 8) return 1;
    const uint64_t unit = (uint64_t)1 << (8 * k);
    return d->point < unit && d->size - d->point <= (256 - last) * unit;
}

int tw_decode(const tw_coder *c, int32_t layers, const uint8_t *const *payloads, const size_t *lengths,
              int32_t *symbols, int32_t *bad, void *work) {
    work_t w;
    const int32_t height = c->tables.height, width = c->tables.width, step = passes_of(c->tables.context);
    begin(c, &w, work);
    for (int32_t layer = 0; layer < layers; layer++) {
        const int32_t start = c->tables.bounds[layer], stop = c->tables.bounds[layer + 1];
        const size_t n = (size_t)(stop - start) * c->cells;
        *bad = layer;
        decoder_t d = {0, UINT64_MAX, payloads[layer], lengths[layer], 0};
        d.point = (uint64_t)next_word(&d) << 32;
        d.point |= next_word(&d);
        if (c->tables.context == CHECKERBOARD) find_past_buckets(c, &w, layer);
        memset(w.layer, 0, n * sizeof *w.layer);
        for (int32_t pass = 0; pass < step; pass++) {
            find_rows(c, &w, layer, pass);
            starts_of_runs(c, &w);
            uint32_t k = 0;
            for (int32_t channel = 0; channel < stop - start; channel++) {
                const uint32_t base = (uint32_t)channel * (uint32_t)c->cells;
                FOR_CELLS(i, j, height, width, step == 1 ? 0 : (i + pass) & 1, step) {
                    w.order[w.ends[w.row_of[k++]]++] = base + (uint32_t)(i * width + j);
                }
            }
            for (uint32_t row = 0, at = 0; row < (uint32_t)c->tables.rows; at = w.ends[row++]) {
                if (w.ends[row] == at) continue;
                const uint32_t *cum = c->cum + (size_t)row * ((size_t)c->tables.alphabet + 1);
                if (!decode_run(&d, cum, c->tables.alphabet, c->top[row], c->tables.low, w.order + at,
                                w.ends[row] - at, w.layer)) {
                    return TW_UNREADABLE;
                }
            }
        }
        if (!is_canonical(&d)) return TW_NOT_CANONICAL;
        memcpy(symbols + (size_t)start * c->cells, w.layer, n * sizeof *w.layer);
        if (layer + 1 < layers && c->tables.context != NONE) add_to_earlier(c, &w, layer);
    }
    const size_t sent = (size_t)c->tables.bounds[layers] * c->cells;
    memset(symbols + sent, 0, ((size_t)c->tables.channels * c->cells - sent) * sizeof *symbols);
    return TW_OK;
}
