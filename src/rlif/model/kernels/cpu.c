/* What a decoder does besides matrix products, each piece in one pass over memory.

   rlif.model.kernels.cpu compiles this when first needed, once for each number type (with -DBF16 a number is the upper
   half of a float), and defines BUILD, a number for source and command, CHUNKS, parts of a sum over rows that are added
   up in order, and WIDE, numbers read at once. Arithmetic is in float either way; only what is written is rounded. Rows
   of an array may lie apart (`stride`, in numbers), the numbers of a row do not. A row is the work of one thread and
   sums over rows are made in a fixed order, so results do not depend on the number of threads. */

#include <math.h>
#include <stdint.h>
#include <string.h>

#if defined(__x86_64__) && !defined(__FMA__)
#error "this processor has no fused multiply-add: the kernels would be slower than PyTorch"
#endif

/* What rlif.model.kernels.cpu asks a library first: whether it was made of this source by its own command. */
uint64_t built_as(void) { return BUILD; }

#define GRAIN 8192 /* numbers: below that, waking another thread costs more than it gains */
#define COLUMNS 64 /* scores that a query holds at once */
#define AHEAD 8    /* columns fetched before they are needed */
#define BLOCK 256  /* words of the vocabulary summed together when a token is searched */

static inline float float_of(uint32_t bits) {
    union {
        uint32_t bits;
        float value;
    } both = {bits};
    return both.value;
}

static inline uint32_t bits_of(float value) {
    union {
        float value;
        uint32_t bits;
    } both = {value};
    return both.bits;
}

#ifdef BF16
typedef uint16_t number;

static inline float wide(number x) { return float_of((uint32_t)x << 16); }

/* To the nearest, ties to even; NaN stays NaN. */
static inline number narrow(float x) {
    uint32_t bits = bits_of(x), rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
    return (number)((bits & 0x7fffffff) > 0x7f800000 ? 0x7fc0 : rounded);
}
#else
typedef float number;

static inline float wide(number x) { return x; }
static inline number narrow(float x) { return x; }
#endif

/* e^x for x <= 88, relative error below 5e-7; 0 below -87; NaN stays NaN. x = n ln 2 + r with |r| <= ln 2 / 2, and e^r
   by its Taylor series, whose next term is below 2^-25. Without a branch, so that the compiler makes vectors of it. */
static inline float exponential(float x) {
    float n = rintf(x * 1.44269504f), r = fmaf(n, -0.693147182f, x);
    float series = 1.0f / 5040;
    series = fmaf(series, r, 1.0f / 720);
    series = fmaf(series, r, 1.0f / 120);
    series = fmaf(series, r, 1.0f / 24);
    series = fmaf(series, r, 1.0f / 6);
    series = fmaf(series, r, 0.5f);
    series = fmaf(series, r, 1.0f);
    series = fmaf(series, r, 1.0f);
    float power = float_of((uint32_t)((int32_t)(n < -126.0f ? -126.0f : n) + 127) << 23);
    return x < -87.0f ? 0.0f : series * power;
}

/* --- norms --- */

/* 1 / sqrt(mean(x^2) + eps) */
static inline float inverse_rms(const number *x, float eps, long size) {
    float squares = 0.0f;
    for (long i = 0; i < size; i++) squares += wide(x[i]) * wide(x[i]);
    return 1.0f / sqrtf(squares / size + eps);
}

/* out = (offset + weight) x / rms(x) */
void rms_norm(int threads, const number *x, const number *weight, float offset, float eps, number *out, long rows,
              long size) {
#pragma omp parallel for num_threads(threads) schedule(static) if (rows * size > GRAIN)
    for (long r = 0; r < rows; r++) {
        const number *from = x + r * size;
        number *to = out + r * size;
        float scale = inverse_rms(from, eps, size);
        for (long i = 0; i < size; i++) to[i] = narrow(wide(from[i]) * scale * (offset + wide(weight[i])));
    }
}

/* With n = x / rms(x) and g = (offset + weight) gradient: to_x = (g - n mean(g n)) / rms(x), and
   to_weight[c] = sum of gradient n over the c-th of CHUNKS parts of the rows. */
void rms_norm_backward(int threads, const number *x, const number *weight, float offset, float eps,
                       const number *gradient, number *to_x, float *to_weight, long rows, long size) {
#pragma omp parallel for num_threads(threads) schedule(static) if (rows * size > GRAIN)
    for (long c = 0; c < CHUNKS; c++) {
        float *sums = to_weight + c * size;
        memset(sums, 0, size * sizeof(float));
        for (long r = rows * c / CHUNKS; r < rows * (c + 1) / CHUNKS; r++) {
            const number *from = x + r * size, *g = gradient + r * size;
            number *to = to_x + r * size;
            float scale = inverse_rms(from, eps, size), along = 0.0f;
            for (long i = 0; i < size; i++) {
                float product = wide(g[i]) * wide(from[i]) * scale;
                sums[i] += product;
                along += product * (offset + wide(weight[i]));
            }
            along /= size;
            for (long i = 0; i < size; i++)
                to[i] = narrow(scale * (wide(g[i]) * (offset + wide(weight[i])) - wide(from[i]) * scale * along));
        }
    }
}

/* --- gated activations --- */

/* Both activations are x s(u), s(u) = 1 / (1 + e^-u): SiLU with u = x, the tanh approximation of GELU with
   u = sqrt(8 / pi) (x + 0.044715 x^3). `slope` is du / dx. */
static inline float gate_of(float x, int gelu, float *slope) {
    float u = gelu ? 1.595769122f * (x + 0.044715f * x * x * x) : x;
    *slope = gelu ? 1.595769122f * (1.0f + 0.134145f * x * x) : 1.0f;
    return 1.0f / (1.0f + exponential(-u > 88.0f ? 88.0f : -u));
}

static inline void gated_row(const number *gate, const number *up, int gelu, number *out, long size) {
    for (long i = 0; i < size; i++) {
        float slope, x = wide(gate[i]);
        out[i] = narrow(x * gate_of(x, gelu, &slope) * wide(up[i]));
    }
}

static inline void gated_row_backward(const number *gate, const number *up, int gelu, const number *gradient,
                                      number *to_gate, number *to_up, long size) {
    for (long i = 0; i < size; i++) {
        float slope, x = wide(gate[i]), s = gate_of(x, gelu, &slope), g = wide(gradient[i]);
        to_up[i] = narrow(g * x * s);
        to_gate[i] = narrow(g * wide(up[i]) * s * (1.0f + x * slope * (1.0f - s)));
    }
}

/* out = f(gate) up */
void gated(int threads, const number *gate, long gate_stride, const number *up, long up_stride, int gelu, number *out,
           long rows, long size) {
#pragma omp parallel for num_threads(threads) schedule(static) if (rows * size > GRAIN)
    for (long r = 0; r < rows; r++) {
        const number *g = gate + r * gate_stride, *u = up + r * up_stride;
        if (gelu)
            gated_row(g, u, 1, out + r * size, size);
        else
            gated_row(g, u, 0, out + r * size, size);
    }
}

void gated_backward(int threads, const number *gate, const number *up, int gelu, const number *gradient,
                    number *to_gate, number *to_up, long rows, long size) {
#pragma omp parallel for num_threads(threads) schedule(static) if (rows * size > GRAIN)
    for (long r = 0; r < rows; r++) {
        long at = r * size;
        if (gelu)
            gated_row_backward(gate + at, up + at, 1, gradient + at, to_gate + at, to_up + at, size);
        else
            gated_row_backward(gate + at, up + at, 0, gradient + at, to_gate + at, to_up + at, size);
    }
}

/* --- rotary embedding --- */

/* Halves swapped; sines are signed: those of the first half are -sin. `turn` is 1, or -1 to turn back. */
static inline void rotate_head(const float *x, const number *cosines, const number *sines, float turn, float *out,
                               long features) {
    long half = features / 2;
    for (long f = 0; f < half; f++) {
        out[f] = x[f] * wide(cosines[f]) + turn * x[f + half] * wide(sines[f]);
        out[f + half] = x[f + half] * wide(cosines[f + half]) + turn * x[f] * wide(sines[f + half]);
    }
}

/* x and out (row, head, feature), cosines and sines (row, feature) */
void rotate(int threads, const number *x, long stride, const number *cosines, const number *sines, float turn,
            number *out, long rows, long heads, long features) {
#pragma omp parallel for num_threads(threads) schedule(static) if (rows * heads * features > GRAIN)
    for (long r = 0; r < rows; r++)
        for (long h = 0; h < heads; h++) {
            const number *from = x + r * stride + h * features;
            number *to = out + (r * heads + h) * features;
            float plain[features], turned[features];
            for (long f = 0; f < features; f++) plain[f] = wide(from[f]);
            rotate_head(plain, cosines + r * features, sines + r * features, turn, turned, features);
            for (long f = 0; f < features; f++) to[f] = narrow(turned[f]);
        }
}

/* --- attention of a single query --- */

#define LANES (WIDE / 2)
typedef float floats __attribute__((vector_size(4 * LANES)));
typedef uint32_t words __attribute__((vector_size(4 * LANES)));
#define INLINE static inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 16")

/* Queries that go over a block of keys together: with AVX-512 `n`, whose sums stay in its 32 registers; on others,
   whose vectors are shorter, four: their sums do not fit, and keys read once for all of them are worth more (AVX2). */
#define QUERIES(n) (WIDE == 32 ? (n) : 4)

/* WIDE numbers as two vectors, in an order of their own: sums and products do not mind, and `store` undoes it. */
#ifdef BF16
INLINE void load(const number *x, floats *a, floats *b) {
    words pairs;
    memcpy(&pairs, x, sizeof pairs);
    *a = (floats)(pairs << 16);
    *b = (floats)(pairs & 0xffff0000u);
}
#else
INLINE void load(const number *x, floats *a, floats *b) {
    memcpy(a, x, sizeof *a);
    memcpy(b, x + LANES, sizeof *b);
}
#endif

static void store(number *x, floats a, floats b) {
    for (long i = 0; i < LANES; i++) {
#ifdef BF16
        x[2 * i] = narrow(a[i]), x[2 * i + 1] = narrow(b[i]);
#else
        x[i] = narrow(a[i]), x[i + LANES] = narrow(b[i]);
#endif
    }
}

INLINE float sum_of(floats x) {
    float sum = 0.0f;
    for (long i = 0; i < LANES; i++) sum += x[i];
    return sum;
}

/* What one query has seen so far, relative to its largest score. */
typedef struct {
    float largest, total;
    float score[COLUMNS];
} Softmax;

/* `tile` queries over the keys of `width` columns; tile and (for the usual heads) parts of WIDE features are constants
   where it is called, so that with enough registers everything but keys and values stays in them. */
INLINE void scores(const number *keys, const number *values, long width, const floats *query, Softmax *softmax,
                   const long tile, const long parts) {
    floats q[tile * parts * 2];
    memcpy(q, query, sizeof q);
    for (long c = 0; c < width; c++) {
        const number *key = keys + c * parts * WIDE, *value = values + c * parts * WIDE;
        floats dot[tile];
        UNROLL for (long g = 0; g < tile; g++) dot[g] = (floats){0};
        UNROLL for (long p = 0; p < parts; p++) {
            floats a, b;
            __builtin_prefetch(key + (AHEAD * parts + p) * WIDE);
            __builtin_prefetch(value + p * WIDE);
            load(key + p * WIDE, &a, &b);
            UNROLL for (long g = 0; g < tile; g++) dot[g] +=
                q[(g * parts + p) * 2] * a + q[(g * parts + p) * 2 + 1] * b;
        }
        UNROLL for (long g = 0; g < tile; g++) softmax[g].score[c] = sum_of(dot[g]);
    }
}

/* Scores become probabilities relative to the largest so far; returns what the sums so far are to be multiplied by. */
static float reweighted(Softmax *s, long width) {
    float largest = s->largest, added = 0.0f;
    for (long c = 0; c < width; c++) largest = s->score[c] > largest ? s->score[c] : largest;
    float decay = exponential(s->largest - largest);
    for (long c = 0; c < width; c++) {
        s->score[c] = exponential(s->score[c] - largest);
        added += s->score[c];
    }
    s->largest = largest;
    s->total = s->total * decay + added;
    return decay;
}

INLINE void weighted(const number *values, long width, const Softmax *softmax, const float *decay, floats *sums,
                     const long tile, const long parts) {
    floats sum[tile * parts * 2];
    UNROLL for (long i = 0; i < tile * parts * 2; i++) sum[i] = sums[i] * decay[i / (parts * 2)];
    for (long c = 0; c < width; c++) {
        UNROLL for (long p = 0; p < parts; p++) {
            floats a, b;
            load(values + (c * parts + p) * WIDE, &a, &b);
            UNROLL for (long g = 0; g < tile; g++) {
                sum[(g * parts + p) * 2] += softmax[g].score[c] * a;
                sum[(g * parts + p) * 2 + 1] += softmax[g].score[c] * b;
            }
        }
    }
    memcpy(sums, sum, sizeof sum);
}

/* RMS norm if there is a weight, then rotary embedding; zeros behind, up to `padded` features. */
static void prepare(const number *x, const number *weight, float offset, float eps, const number *cosines,
                    const number *sines, number *out, long features, long padded) {
    float scale = weight ? inverse_rms(x, eps, features) : 1.0f, normed[features], rotated[features];
    for (long f = 0; f < features; f++) normed[f] = wide(x[f]) * scale * (weight ? offset + wide(weight[f]) : 1.0f);
    rotate_head(normed, cosines, sines, 1.0f, rotated, features);
    for (long f = 0; f < features; f++) out[f] = narrow(rotated[f]);
    for (long f = features; f < padded; f++) out[f] = narrow(0.0f);
}

/* The queries of one key head over the columns from `first` to before `end`, a block of columns and `tile` queries at a
   time, with a running maximum (online softmax, arXiv 1805.02867). */
INLINE void attend_head(const number *keys, const number *values, long first, long end, const floats *query,
                        floats *sums, Softmax *softmax, long share, const long most, const long parts) {
    for (long start = first; start < end; start += COLUMNS) {
        long width = end - start < COLUMNS ? end - start : COLUMNS;
        const number *key = keys + start * parts * WIDE, *value = values + start * parts * WIDE;
        for (long g = 0, tile; g < share; g += tile) {
            const floats *q = query + g * parts * 2;
            floats *sum = sums + g * parts * 2;
            Softmax *s = softmax + g;
            float decay[4];
            tile = share - g < most ? share - g : most;
#define TILE(n)                                                           \
    if (n <= most && tile == n) {                                         \
        scores(key, value, width, q, s, n, parts);                        \
        for (long i = 0; i < n; i++) decay[i] = reweighted(s + i, width); \
        weighted(value, width, s, decay, sum, n, parts);                  \
    }
            TILE(1) TILE(2) TILE(3) TILE(4)
        }
    }
}

/* One more token in each row: its key and value are written behind those of its row, then all queries that share a key
   head go over its keys together.

   q, k, v          (row, head, feature), rows a stride apart, as the products with the weights left them
   q_norm, k_norm   (feature) weights of RMS norms, or NULL
   cosines, sines   (row, feature)
   keys, values     (slot, kv_head, column, feature), features padded to a multiple of WIDE: keys with zeros
   slots, lengths   of each row: where its text lies, and how many tokens it has already
   window           how many tokens a query sees, its own included
   out              (row, head, feature) */
void attend(int threads, const number *q, const number *k, const number *v, long q_stride, long k_stride, long v_stride,
            const number *q_norm, const number *k_norm, float offset, float eps, const number *cosines,
            const number *sines, number *keys, number *values, const int64_t *slots, const int64_t *lengths, long rows,
            long heads, long kv_heads, long features, long columns, long window, float scale, number *out) {
    long share = heads / kv_heads, parts = (features + WIDE - 1) / WIDE, padded = parts * WIDE;
#pragma omp parallel for num_threads(threads) collapse(2) schedule(dynamic)
    for (long r = 0; r < rows; r++)
        for (long h = 0; h < kv_heads; h++) {
            const number *cosine = cosines + r * features, *sine = sines + r * features;
            long newest = lengths[r], first = newest + 1 > window ? newest + 1 - window : 0;
            number *key = keys + (slots[r] * kv_heads + h) * columns * padded, *value = values + (key - keys);
            number turned[padded];
            floats query[share * parts * 2], sums[share * parts * 2];
            Softmax softmax[share];

            prepare(k + r * k_stride + h * features, k_norm, offset, eps, cosine, sine, key + newest * padded, features,
                    padded);
            memcpy(value + newest * padded, v + r * v_stride + h * features, features * sizeof(number));
            for (long g = 0; g < share; g++) {
                const number *from = q + r * q_stride + (h * share + g) * features;
                prepare(from, q_norm, offset, eps, cosine, sine, turned, features, padded);
                for (long p = 0; p < parts; p++) {
                    floats *to = query + (g * parts + p) * 2;
                    load(turned + p * WIDE, to, to + 1);
                    to[0] *= scale, to[1] *= scale;
                }
                softmax[g].largest = -INFINITY, softmax[g].total = 0.0f;
            }
            memset(sums, 0, sizeof sums);

            switch (parts) {
                case 1:
                    attend_head(key, value, first, newest + 1, query, sums, softmax, share, 4, 1);
                    break;
                case 2:
                    attend_head(key, value, first, newest + 1, query, sums, softmax, share, 4, 2);
                    break;
                case 3:
                    attend_head(key, value, first, newest + 1, query, sums, softmax, share, QUERIES(2), 3);
                    break;
                case 4:
                    attend_head(key, value, first, newest + 1, query, sums, softmax, share, QUERIES(2), 4);
                    break;
                case 8:
                    attend_head(key, value, first, newest + 1, query, sums, softmax, share, QUERIES(1), 8);
                    break;
                case 16:
                    attend_head(key, value, first, newest + 1, query, sums, softmax, share, QUERIES(1), 16);
                    break;
                default:
                    attend_head(key, value, first, newest + 1, query, sums, softmax, share, QUERIES(1), parts);
            }

            for (long g = 0; g < share; g++) {
                for (long p = 0; p < parts; p++) {
                    floats *sum = sums + (g * parts + p) * 2;
                    store(turned + p * WIDE, sum[0] / softmax[g].total, sum[1] / softmax[g].total);
                }
                memcpy(out + (r * heads + h * share + g) * features, turned, features * sizeof(number));
            }
        }
}

/* --- drawing a token --- */

/* One token a row from its logits, and what the row's distribution p is like, all in nats and at temperature 1:
   the token's log-probability, the entropy -sum p ln p, and the self-certainty -ln V - mean ln p.

   numbers      one in [0, 1) a row: the token is the first whose cumulative weight exceeds number times the total
   coldness     1 / temperature of the weights; 0: the likeliest token
   drawn_from   the token's log-probability under these weights
   Where a row is no distribution logprob or drawn_from is not finite. */
void draw(int threads, const number *logits, long stride, const double *numbers, float coldness, int64_t *tokens,
          float *drawn_from, float *logprob, float *entropy, float *self_certainty, long rows, long vocab) {
    long blocks = (vocab + BLOCK - 1) / BLOCK;
#pragma omp parallel for num_threads(threads) schedule(dynamic)
    for (long r = 0; r < rows; r++) {
        const number *row = logits + r * stride;
        float largest = -INFINITY, weight[BLOCK];
        for (long i = 0; i < vocab; i++) largest = wide(row[i]) > largest ? wide(row[i]) : largest;

        double total = 0.0, surprise = 0.0, plain = 0.0, cumulative[blocks];
        for (long b = 0; b < blocks; b++) {
            long start = b * BLOCK, end = start + BLOCK < vocab ? start + BLOCK : vocab;
            float sum = 0.0f, product = 0.0f, distance = 0.0f, pool = 0.0f;
            for (long i = start; i < end; i++) {
                float z = wide(row[i]) - largest, w = exponential(z);
                sum += w, product += w * z, distance += z;
            }
            if (coldness != 1.0f)
                for (long i = start; i < end; i++) pool += exponential((wide(row[i]) - largest) * coldness);
            total += sum, surprise += product, plain += distance;
            cumulative[b] = (b ? cumulative[b - 1] : 0.0) + (coldness == 1.0f ? sum : pool);
        }
        double everything = cumulative[blocks - 1];

        long token = 0;
        if (coldness == 0.0f || !isfinite(total) || !isfinite(everything)) {
            while (token < vocab - 1 && !(wide(row[token]) >= largest)) token++;
        } else {
            double target = numbers[r] * everything;
            long b = 0, last = -1;
            while (b < blocks - 1 && !(cumulative[b] > target)) b++;
            while (b > 0 && !(cumulative[b] > cumulative[b - 1]))
                b--; /* rounded up to the total: back to a block of weight */
            long start = b * BLOCK, end = start + BLOCK < vocab ? start + BLOCK : vocab;
            double so_far = b ? cumulative[b - 1] : 0.0;
            for (long i = start; i < end; i++) weight[i - start] = exponential((wide(row[i]) - largest) * coldness);
            for (long i = start; i < end; i++) {
                if (weight[i - start] > 0.0f) last = i;
                so_far += weight[i - start];
                if (last == i && so_far > target) break;
            }
            token = last < 0 ? start : last;
        }

        double z = wide(row[token]) - largest, ln = log(total), sure = ln - plain / vocab - log((double)vocab);
        double uncertain = ln - surprise / total;
        tokens[r] = token;
        logprob[r] = (float)(z - ln);
        entropy[r] = (float)(uncertain < 0.0 ? 0.0 : uncertain);
        self_certainty[r] = (float)(sure < 0.0 ? 0.0 : sure);
        drawn_from[r] = coldness == 0.0f   ? 0.0f
                        : coldness == 1.0f ? logprob[r]
                                           : (float)(z * coldness - log(everything));
    }
}
