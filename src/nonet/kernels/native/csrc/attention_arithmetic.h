// The arithmetic of an attention tile: scores, softmax weights, weighted values, folding. Compiled once for each way of
// holding numbers, in attention_numbers.cpp and attention_codes.cpp.
#pragma once

#include "attention_tile.h"
#include "codes.h"

namespace nonet {

namespace {

constexpr int kMaxSegments = kRangeKeys / kLanes + 2;

// Calls `use` with a constant equal to `rows`, or to kMost where that is less.
template <int kMost, class F>
auto with_rows(int rows, F use) {
  switch (std::min(rows, kMost)) {
    case 1: return use(std::integral_constant<int, 1>());
    case 2: return use(std::integral_constant<int, 2>());
    case 3: return use(std::integral_constant<int, 3>());
    case 4: return use(std::integral_constant<int, std::min(4, kMost)>());
    case 5: return use(std::integral_constant<int, std::min(5, kMost)>());
    case 6: return use(std::integral_constant<int, std::min(6, kMost)>());
    case 7: return use(std::integral_constant<int, std::min(7, kMost)>());
    default: return use(std::integral_constant<int, kMost>());
  }
}

// The same for `panels`, 1 to kMost.
template <int kMost, class F>
auto with_panels(int panels, F use) {
  switch (std::min(panels, kMost)) {
    case 1: return use(std::integral_constant<int, 1>());
    case 2: return use(std::integral_constant<int, std::min(2, kMost)>());
    case 3: return use(std::integral_constant<int, std::min(3, kMost)>());
    default: return use(std::integral_constant<int, kMost>());
  }
}

// Panels of weighted values that a tile of R rows takes at once. Codes are widened in registers, which leaves fewer.
template <Storage S, int R>
constexpr int kMixPanels = S == Storage::kNumbers || R <= 3 ? kAttentionPanels : std::min(2, kAttentionPanels);

alignas(64) const float kZeros[4 * kLanes] = {};

template <Element E>
void to_units(const float* from, int count, uint32_t* to) {
  if constexpr (E == Element::kFloat32) {
    std::memcpy(to, from, sizeof(float) * count);
  } else {
    for (int i = 0; i < count; i += kLanes) store(to + i / 2, to_bf16(load_f32(from + i)));
  }
}

const i32x16 kIota = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};

constexpr float kLog2e = 1.44269504088896341f;

}  // namespace

template <Element E, Storage S>
void TileAttention<E, S>::begin(const Tile& tile) {
  const int block = std::min(args_.dim, kRowUnits * kPerUnit);
  for (int row = 0; row < tile.rows(); ++row) {
    const float* q = args_.q + row_offset(tile, row);
    for (int d = 0, b = 0; d < args_.dim; d += block, ++b)
      to_units<E>(q + d, std::min(block, args_.dim - d), work_.q + (b * tile.rows() + row) * kRowUnits);
  }
  for (int row = 0; row < kPartRows; ++row) {
    work_.total.maximum[row] = kNothing;
    work_.total.sum[row] = 0.0f;
  }
  std::memset(work_.folded, 0, sizeof(float) * tile.rows() * args_.dim);
}

template <Element E, Storage S>
bool TileAttention<E, S>::compute(const Tile& tile, int range) {
  const int range_key = range * kRangeKeys;
  const int first = std::max(range_key, first_key(tile, 0));
  const int last = std::min(range_key + kRangeKeys, last_key(tile, tile.queries - 1) + 1);
  if (first >= last) return false;
  // With few rows the cache comes from memory, and it comes fastest in the order it lies there: block by block, all
  // heads of a block. With many it comes from L2, and wide tiles count.
  const bool is_stream = tile.rows_per_kv_head() <= kRows;
  const int width = is_stream ? std::min(kScorePanels, args_.block_size / kLanes) : kScorePanels;
  for (int key = first / kLanes * kLanes; key < last; key += width * kLanes) {
    const int panels = std::min(width, (last - key + kLanes - 1) / kLanes);
    for (int kv = 0; kv < tile.kv_heads; ++kv) score(tile, kv, panels, key, range_key);
  }
  for (int row = 0; row < tile.rows(); ++row) {
    if (row % tile.rows_per_kv_head() == 0) widen_scales(tile, row / tile.rows_per_kv_head(), range_key, first, last);
    weigh(tile, row, range_key, first, last);
  }
  const int stretch = is_stream ? args_.block_size : kRangeKeys;
  for (int key = first; key < last;) {
    const int end = std::min(last, (key / stretch + 1) * stretch);
    for (int kv = 0; kv < tile.kv_heads; ++kv) {
      Segment segments[kMaxSegments];
      const int count = list_segments(tile, kv, range_key, key, end, segments);
      mix(tile, kv, segments, count, key > first);
    }
    key = end;
  }
  return true;
}

// Scores of up to kScorePanels groups of 16 keys, before scaling; those of keys past the sequence may be anything.
template <Element E, Storage S>
void TileAttention<E, S>::score(const Tile& tile, int kv, int panels, int key, int range_key) {
  const uint32_t* keys = static_cast<const uint32_t*>(args_.keys);
  const int units = args_.dim / kPerUnit, rows = tile.rows_per_kv_head(), first_row = kv * rows;
  const uint32_t* groups[kScorePanels];
  ptrdiff_t ahead[kScorePanels];
  for (int p = 0; p < panels; ++p) {
    const int k = key + p * kLanes;
    groups[p] = shape_.key_block(keys, block_of(tile, k), tile.kv_head + kv) + k % args_.block_size;
    ahead[p] = words_ahead(tile, k, std::max(2, panels));
  }
  for (int b = 0; b * kRowUnits < units; ++b) {
    const int64_t done = (int64_t)b * (kRowUnits / CacheWords<E, S>::kUnits) * args_.block_size;
    const uint32_t* block_groups[kScorePanels];
    for (int p = 0; p < panels; ++p) block_groups[p] = groups[p] + done;
    for (int row = 0; row < rows; row += kRows) {
      PanelTile product = with_rows<kRows>(rows - row, [&](auto r) {
        return with_panels<kScorePanels>(panels, [](auto p) -> PanelTile {
          return panel_tile<E, CacheWords<E, S>, decltype(r)::value, decltype(p)::value, kRowUnits>;
        });
      });
      product(work_.q + (b * tile.rows() + first_row + row) * kRowUnits, block_groups, args_.block_size,
              std::min(kRowUnits, units - b * kRowUnits), ahead, b == 0 ? kZeros : nullptr,
              work_.scores + (first_row + row) * kRangeKeys + key - range_key, kRangeKeys);
    }
  }
}

// The scales of a KV head for the range, as float32; those of keys past the sequence may be anything.
template <Element E, Storage S>
void TileAttention<E, S>::widen_scales(const Tile& tile, int kv, int range_key, int first, int last) {
  if constexpr (!kIsCoded) return;
  const auto widen = [&](const void* from, int64_t index, float* to) {
    const u16x16 bits = load<u16x16>(static_cast<const uint16_t*>(from) + index);
    store(to, as_f32(__builtin_convertvector(bits, u32x16) << 16));
  };
  for (int key = first / kLanes * kLanes; key < last; key += kLanes) {
    const int64_t index = shape_.scale_index(block_of(tile, key), tile.kv_head + kv, key % args_.block_size);
    widen(args_.key_scales, index, work_.key_scales + key - range_key);
    widen(args_.value_scales, index, work_.value_scales + key - range_key);
  }
}

// Scale, cap, mask, exponential of one row. Only vectors at the ends of what the row sees need the mask. Codes are
// multiplied as they are, so here a key's scale goes to its score, and a value's scale to its weight; those of keys that
// the row does not see may be anything.
template <Element E, Storage S>
void TileAttention<E, S>::weigh(const Tile& tile, int row, int range_key, int first, int last) {
  float* scores = work_.scores + row * kRangeKeys;
  uint32_t* weights = work_.weights + row * kRowUnits;
  const int low = std::max(first, first_key(tile, tile.query(row))) - range_key;
  const int high = std::min(last - 1, last_key(tile, tile.query(row))) - range_key;
  const int begin = (first - range_key) / kLanes * kLanes, end = last - range_key;
  const auto visible = [&](int i, f32x16 v, float otherwise) {
    if (i >= low && i + kLanes - 1 <= high) return v;
    const i32x16 key = kIota + i;
    return (key >= low) & (key <= high) ? v : broadcast(otherwise);
  };
  const float factor = args_.softcap == 0.0f ? args_.scale * kLog2e : kLog2e;
  f32x16 largest = broadcast(kNothing);
  for (int i = begin; i < end; i += kLanes) {
    f32x16 score = load_f32(scores + i);
    if constexpr (kIsCoded) score = score * load_f32(work_.key_scales + i);
    if (args_.softcap != 0.0f) score = tanh(score * (args_.scale / args_.softcap)) * args_.softcap;
    if (kIsCoded || args_.softcap != 0.0f) store(scores + i, score);
    largest = max(largest, visible(i, score, kNothing));
  }
  const float maximum = low <= high ? max_lanes(largest) * factor : 0.0f;
  f32x16 sum{};
  for (int i = begin; i < end; i += kLanes) {
    f32x16 weight = visible(i, exp2(load_f32(scores + i) * factor - maximum), 0.0f);
    sum += weight;
    if constexpr (kIsCoded)
      weight = visible(i, weight * load_f32(work_.value_scales + i), 0.0f);
    if constexpr (E == Element::kFloat32)
      store(weights + i, weight);
    else
      store(weights + i / 2, to_bf16(weight));
  }
  work_.range.maximum[row] = low <= high ? maximum : kNothing;
  work_.range.sum[row] = low <= high ? sum_lanes(sum) : 0.0f;
}

template <Element E, Storage S>
void TileAttention<E, S>::mix(const Tile& tile, int kv, const Segment* segments, int count, bool is_more) {
  const int panels = args_.dim / kLanes, rows = tile.rows_per_kv_head(), first_row = kv * rows;
  for (int row = 0; row < rows; row += kRows) {
    with_rows<kRows>(rows - row, [&](auto r) {
      constexpr int kMost = kMixPanels<S, decltype(r)::value>;
      for (int panel = 0; panel < panels; panel += kMost) {
        SegmentTile product = with_panels<kMost>(panels - panel, [](auto p) -> SegmentTile {
          return segment_tile<E, CacheWords<E, S>, decltype(r)::value, decltype(p)::value, kRowUnits>;
        });
        product(work_.weights + (first_row + row) * kRowUnits, segments, count, panel * kLanes, args_.dim, is_more,
                work_.values + (first_row + row) * args_.dim + panel * kLanes, args_.dim);
      }
    });
  }
}

// The values of keys [first, last), block by block. Codes are finite, so keys that only share a word with one of these
// may be multiplied with their weights of zero. A bf16 pair at an edge of which one number may not be read (it may be a
// NaN from an earlier owner of the block) is copied with that number set to zero.
template <Element E, Storage S>
int TileAttention<E, S>::list_segments(const Tile& tile, int kv, int range_key, int first, int last,
                                       Segment* segments) {
  const uint32_t* values = static_cast<const uint32_t*>(args_.values);
  int count = 0;
  if constexpr (kIsCoded) {
    for (int key = first; key < last;) {
      const int offset = key % args_.block_size, skipped = offset % kCodesPerWord;
      const int end = std::min(last, key - offset + args_.block_size);
      const uint32_t* base = shape_.value_block(values, block_of(tile, key), tile.kv_head + kv);
      const ptrdiff_t ahead = words_ahead(tile, key, 2);
      const int words = (end - key + skipped + kCodesPerWord - 1) / kCodesPerWord;
      segments[count++] = Segment{base + (int64_t)(offset / kCodesPerWord) * args_.dim,
                                  (key - skipped - range_key) / kPerUnit, words * CacheWords<E, S>::kUnits, ahead};
      key = end;
    }
    return count;
  }
  const auto pair_with_mask = [&](const uint32_t* pair, int key, int edge, uint32_t mask) {
    for (int d = 0; d < args_.dim; ++d) work_.edges[edge][d] = pair[d] & mask;
    segments[count++] = Segment{work_.edges[edge], (key - range_key) / 2, 1, 0};
  };
  for (int key = first; key < last;) {
    const int offset = key % args_.block_size;
    int end = std::min(last, key - offset + args_.block_size);
    const uint32_t* base = shape_.value_block(values, block_of(tile, key), tile.kv_head + kv);
    const auto unit_row = [&](int k) { return base + (int64_t)((k % args_.block_size) / kPerUnit) * args_.dim; };
    const ptrdiff_t ahead = words_ahead(tile, key, 2);
    const int next = end;
    if (kPerUnit == 2 && key % 2 == 1) {
      pair_with_mask(unit_row(key), key - 1, 0, 0xffff0000u);
      ++key;
    }
    const bool odd_end = kPerUnit == 2 && end % 2 == 1;
    if (odd_end) --end;
    if (key < end)
      segments[count++] = Segment{unit_row(key), (key - range_key) / kPerUnit, (end - key) / kPerUnit, ahead};
    if (odd_end) pair_with_mask(unit_row(end), end, 1, 0x0000ffffu);
    key = next;
  }
  return count;
}

template <Element E, Storage S>
__attribute__((noinline)) void TileAttention<E, S>::fold(const Tile& tile, const Parts& parts, const float* values) {
  alignas(64) float keep[kPartRows], add[kPartRows];
  for (int row = 0; row < tile.rows(); row += kLanes) {
    const f32x16 before = load_f32(work_.total.maximum + row), here = load_f32(parts.maximum + row);
    const f32x16 maximum = max(before, here);
    const f32x16 keeping = exp2(before - maximum), adding = exp2(here - maximum);
    store(keep + row, keeping);
    store(add + row, adding);
    store(work_.total.maximum + row, maximum);
    store(work_.total.sum + row, load_f32(work_.total.sum + row) * keeping + load_f32(parts.sum + row) * adding);
  }
  for (int row = 0; row < tile.rows(); ++row) {
    if (parts.maximum[row] == kNothing) continue;
    float* folded = work_.folded + row * args_.dim;
    for (int d = 0; d < args_.dim; d += kLanes)
      store(folded + d, load_f32(folded + d) * keep[row] + load_f32(values + row * args_.dim + d) * add[row]);
  }
}

template <Element E, Storage S>
void TileAttention<E, S>::finish(const Tile& tile) {
  for (int row = 0; row < tile.rows(); ++row) {
    const float* folded = work_.folded + row * args_.dim;
    float* out = args_.out + row_offset(tile, row);
    const float factor = work_.total.sum[row] == 0.0f ? 0.0f : 1.0f / work_.total.sum[row];
    for (int d = 0; d < args_.dim; d += kLanes) store(out + d, load_f32(folded + d) * factor);
  }
}

}  // namespace nonet
