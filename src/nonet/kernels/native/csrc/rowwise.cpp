// Norms, gating, rotation with the cache write, gathering: everything whose work is one pass over a row.
#include "rowwise.h"

#include <algorithm>
#include <cmath>

#include "activation.h"
#include "cache.h"
#include "codes.h"
#include "simd.h"

namespace nonet {

namespace {

// Rows are handed out in runs: long enough to outweigh taking an item, and a few rows stay with the leader.
struct Runs {
  int rows, length;

  Runs(int rows, int threads, int least) : rows(rows), length(std::max(least, std::min(32, rows / (4 * threads)))) {}
  int count() const { return (rows + length - 1) / length; }
  int first(int run) const { return run * length; }
  int last(int run) const { return std::min(rows, (run + 1) * length); }
};

// About a microsecond of work for each item.
constexpr int kNormRows = 4, kGatherRowsLeast = 8, kRopeRows = 2;
constexpr int kGatedColumns = 1024;

constexpr int kMostDim = 256;

// One row; `x` may be `out`. Not inlined: one copy of the arithmetic for every caller.
__attribute__((noinline)) void norm_row(const float* x, const float* weight, float* out, int columns, float eps) {
  f32x16 sum{};
  int i = 0;
  for (; i + kLanes <= columns; i += kLanes) {
    f32x16 v = load_f32(x + i);
    sum += v * v;
  }
  if (i < columns) {
    f32x16 v = load_partial(x + i, columns - i);
    sum += v * v;
  }
  const float factor = 1.0f / std::sqrt(sum_lanes(sum) / (float)columns + eps);
  for (i = 0; i + kLanes <= columns; i += kLanes) store(out + i, load_f32(x + i) * factor * load_f32(weight + i));
  for (; i < columns; ++i) out[i] = x[i] * factor * weight[i];
}

void add_row(const float* x, float* to, int columns) {
  int i = 0;
  for (; i + kLanes <= columns; i += kLanes) store(to + i, load_f32(to + i) + load_f32(x + i));
  for (; i < columns; ++i) to[i] += x[i];
}

// Element i turns with element i + dim / 2; `x` may be `out`.
__attribute__((noinline)) void rotate(const float* x, const float* cos_sin, float* out, int dim) {
  const int half = dim / 2;
  const float *cosine = cos_sin, *sine = cos_sin + half;
  for (int i = 0; i < half; i += kLanes) {
    const int count = std::min(kLanes, half - i);
    const f32x16 first = load_partial(x + i, count), second = load_partial(x + half + i, count);
    const f32x16 c = load_partial(cosine + i, count), s = load_partial(sine + i, count);
    store_partial(out + i, first * c - second * s, count);
    store_partial(out + half + i, second * c + first * s, count);
  }
}

void store_key(const CacheShape& shape, void* keys, int slot, int head, const float* k) {
  const int block = slot / shape.block_size, offset = slot % shape.block_size;
  uint32_t* to = shape.key_block(static_cast<uint32_t*>(keys), block, head) + offset;
  if (shape.element == Element::kFloat32) {
    for (int d = 0; d < shape.dim; ++d) to[d * shape.block_size] = float_to_bits(k[d]);
    return;
  }
  for (int d = 0; d < shape.dim; d += kLanes) {
    uint32_t pairs[kLanes / 2];
    store(pairs, to_bf16(load_f32(k + d)));
    for (int i = 0; i < kLanes / 2; ++i) to[(d / 2 + i) * shape.block_size] = pairs[i];
  }
}

void store_value(const CacheShape& shape, void* values, int slot, int head, const float* v) {
  const int block = slot / shape.block_size, offset = slot % shape.block_size;
  uint32_t* base = shape.value_block(static_cast<uint32_t*>(values), block, head);
  if (shape.element == Element::kFloat32) {
    std::memcpy(base + offset * shape.dim, v, sizeof(float) * shape.dim);
    return;
  }
  uint16_t* to = reinterpret_cast<uint16_t*>(base + offset / 2 * shape.dim) + offset % 2;
  for (int d = 0; d < shape.dim; d += kLanes) {
    uint16_t half[kLanes];
    store(half, to_bf16(load_f32(v + d)));
    for (int i = 0; i < kLanes; ++i) to[2 * (d + i)] = half[i];
  }
}

// Codes of an entry to their places, and its scale.
template <Storage S>
void store_codes(const CacheShape& shape, const RopeArgs& args, int slot, int head, const float* k, const float* v) {
  const int block = slot / shape.block_size, offset = slot % shape.block_size;
  const int64_t scale = shape.scale_index(block, head, offset);
  uint8_t codes[kMostDim];
  static_cast<uint16_t*>(args.key_scales)[scale] = encode_entry<S>(k, shape.dim, codes);
  uint8_t* keys = reinterpret_cast<uint8_t*>(shape.key_block(static_cast<uint32_t*>(args.keys), block, head));
  for (int d = 0; d < shape.dim; ++d)
    keys[d / kCodesPerWord * shape.block_size * kCodesPerWord + shape.code_byte(offset, d % kCodesPerWord)] = codes[d];
  static_cast<uint16_t*>(args.value_scales)[scale] = encode_entry<S>(v, shape.dim, codes);
  uint8_t* values = reinterpret_cast<uint8_t*>(shape.value_block(static_cast<uint32_t*>(args.values), block, head));
  values += offset / kCodesPerWord * shape.dim * kCodesPerWord;
  for (int d = 0; d < shape.dim; ++d) values[shape.code_byte(d, offset % kCodesPerWord)] = codes[d];
}

void store_entry(const CacheShape& shape, const RopeArgs& args, int slot, int head, const float* k, const float* v) {
  switch (shape.storage) {
    case Storage::kInt8: return store_codes<Storage::kInt8>(shape, args, slot, head, k, v);
    case Storage::kFloat8: return store_codes<Storage::kFloat8>(shape, args, slot, head, k, v);
    case Storage::kNumbers: break;
  }
  store_key(shape, args.keys, slot, head, k);
  store_value(shape, args.values, slot, head, v);
}

void rope_token(const RopeArgs& args, const CacheShape& shape, int token) {
  const int dim = args.dim;
  float* row = args.qkv + (int64_t)token * (args.heads + 2 * args.kv_heads) * dim;
  const float* cos_sin = args.cos_sin + (int64_t)args.positions[token] * dim;
  float* q = args.q + (int64_t)token * args.heads * dim;
  for (int h = 0; h < args.heads; ++h) {
    float* head = row + h * dim;
    if (args.q_norm) norm_row(head, args.q_norm, head, dim, args.eps);
    rotate(head, cos_sin, q + h * dim, dim);
  }
  const int slot = args.slots[token];
  if (slot < 0) return;
  for (int h = 0; h < args.kv_heads; ++h) {
    float* k = row + (args.heads + h) * dim;
    if (args.k_norm) norm_row(k, args.k_norm, k, dim, args.eps);
    rotate(k, cos_sin, k, dim);
    store_entry(shape, args, slot, h, k, k + args.kv_heads * dim);
  }
}

int norm_items(const void* raw, int, const Context& context) {
  const auto& args = *static_cast<const NormArgs*>(raw);
  return Runs(context.rows(args.rows), context.threads, kNormRows).count();
}

void norm_run(const void* raw, int, int item, Context& context) {
  const auto& args = *static_cast<const NormArgs*>(raw);
  const Runs runs(context.rows(args.rows), context.threads, kNormRows);
  for (int64_t row = runs.first(item); row < runs.last(item); ++row) {
    const float* x = args.x + row * args.columns;
    if (args.residual) {
      add_row(x, args.residual + row * args.columns, args.columns);
      x = args.residual + row * args.columns;
    }
    norm_row(x, args.weight, args.out + row * args.columns, args.columns, args.eps);
  }
}

int gated_items(const void* raw, int, const Context& context) {
  const auto& args = *static_cast<const GatedArgs*>(raw);
  return context.rows(args.rows) * ((args.columns + kGatedColumns - 1) / kGatedColumns);
}

void gated_run(const void* raw, int, int item, Context&) {
  const auto& args = *static_cast<const GatedArgs*>(raw);
  const int pieces = (args.columns + kGatedColumns - 1) / kGatedColumns;
  const int64_t row = item / pieces;
  const int first = item % pieces * kGatedColumns, last = std::min(args.columns, first + kGatedColumns);
  const float* from = args.gate_up + row * 2 * args.columns;
  gate_row((Gate)args.gate, from + first, from + args.columns + first, args.out + row * args.columns + first,
           last - first);
}

int gather_items(const void* raw, int, const Context& context) {
  const auto& args = *static_cast<const GatherArgs*>(raw);
  return Runs(context.rows(args.rows), context.threads, kGatherRowsLeast).count();
}

void gather_run(const void* raw, int, int item, Context& context) {
  const auto& args = *static_cast<const GatherArgs*>(raw);
  const Runs runs(context.rows(args.rows), context.threads, kGatherRowsLeast);
  for (int64_t row = runs.first(item); row < runs.last(item); ++row)
    std::memcpy(args.out + row * args.columns, args.x + (int64_t)args.indices[row] * args.columns,
                sizeof(float) * args.columns);
}

int rope_items(const void* raw, int, const Context& context) {
  const auto& args = *static_cast<const RopeArgs*>(raw);
  return Runs(context.rows(args.rows), context.threads, kRopeRows).count();
}

void rope_run(const void* raw, int, int item, Context& context) {
  const auto& args = *static_cast<const RopeArgs*>(raw);
  const CacheShape shape{(Element)args.element, (Storage)args.storage, args.kv_heads, args.dim, args.block_size};
  const Runs runs(context.rows(args.rows), context.threads, kRopeRows);
  for (int token = runs.first(item); token < runs.last(item); ++token) rope_token(args, shape, token);
}

}  // namespace

const Kernel kNorm = {"norm", sizeof(NormArgs), 1, norm_items, norm_run};
const Kernel kGated = {"gated", sizeof(GatedArgs), 1, gated_items, gated_run};
const Kernel kGatherRows = {"gather_rows", sizeof(GatherArgs), 1, gather_items, gather_run};
const Kernel kRopeStore = {"rope_store", sizeof(RopeArgs), 1, rope_items, rope_run};

}  // namespace nonet
