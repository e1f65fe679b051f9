// One tile of attention: the rows of some queries and heads against one range of keys after the other.
#pragma once

#include <algorithm>

#include "attention.h"
#include "cache.h"
#include "tile.h"

namespace nonet {

constexpr int kRangeKeys = 128;
constexpr int kQueryRows = 24;
constexpr int kPartRows = 32;         // kQueryRows in whole vectors
constexpr int kMaxDim = 256;
constexpr int kRowUnits = 128;        // between two rows of queries or weights
constexpr float kNothing = -3.0e38f;  // the maximum of no scores

// Rows are ordered by KV head, query, head: row = (kv * queries + query) * heads + head.
struct Tile {
  int sequence;
  int kv_head, kv_heads;     // more than one only with all query heads of each
  int first_head, heads;     // query heads of each KV head
  int first_query, queries;  // within the sequence
  int rows_per_kv_head() const { return heads * queries; }
  int rows() const { return rows_per_kv_head() * kv_heads; }
  int query(int row) const { return row % rows_per_kv_head() / heads; }
};

// What a range, or all ranges so far, gave each row: the largest score in powers of two (score * scale * log2 e), and
// the sum of 2^(score - maximum).
struct alignas(64) Parts {
  float maximum[kPartRows];
  float sum[kPartRows];
};

// A thread's scratch for one tile.
struct alignas(64) Workspace {
  uint32_t q[2 * kQueryRows * kRowUnits];     // [blocks of units][rows][kRowUnits]
  float scores[kQueryRows * kRangeKeys];
  uint32_t weights[kQueryRows * kRowUnits];  // 2^(score - maximum), as units along the keys
  float values[kQueryRows * kMaxDim];         // weighted values of one range, rows `dim` apart
  float folded[kQueryRows * kMaxDim];         // of all ranges so far
  uint32_t edges[2][kMaxDim];                // pairs of values of which only one may be read
  float key_scales[kRangeKeys];              // of one KV head's codes in a range
  float value_scales[kRangeKeys];
  Parts range;
  Parts total;
};

template <Element E, Storage S>
class TileAttention {
 public:
  TileAttention(const AttentionArgs& args, Workspace& work)
      : args_(args), shape_{E, S, args.kv_heads, args.dim, args.block_size}, work_(work) {}

  int first_range(const Tile& tile) const { return std::max(0, first_key(tile, 0)) / kRangeKeys; }
  int last_range(const Tile& tile) const {
    return (std::max(0, last_key(tile, tile.queries - 1) + 1) + kRangeKeys - 1) / kRangeKeys;
  }

  // Rounds the queries to the cache's type and forgets the totals.
  void begin(const Tile& tile);
  // Scores, weights and weighted values of one range; false when no row sees a key of it.
  bool compute(const Tile& tile, int range);
  const Parts& parts() const { return work_.range; }
  const float* values() const { return work_.values; }
  // Adds one range's parts and weighted values [rows, dim] to the totals.
  void fold(const Tile& tile, const Parts& parts, const float* values);
  void finish(const Tile& tile);

 private:
  static constexpr int kPerUnit = E == Element::kBfloat16 ? 2 : 1;
  static constexpr bool kIsCoded = S != Storage::kNumbers;
  // Rows, and groups of 16 keys, that a tile of scores takes at once. Sums over codes are kept in two halves already.
  static constexpr int kRows = kIsCoded && kAttentionPanels > 1 ? 8 : kAttentionRows;
  static constexpr int kScorePanels = kIsCoded ? 1 : kAttentionPanels;

  int query_count(const Tile& tile) const {
    return args_.query_start[tile.sequence + 1] - args_.query_start[tile.sequence];
  }
  int last_key(const Tile& tile, int query) const {
    return args_.kv_len[tile.sequence] - query_count(tile) + tile.first_query + query;
  }
  int first_key(const Tile& tile, int query) const {
    return args_.window ? std::max(0, last_key(tile, query) - args_.window + 1) : 0;
  }
  int64_t block_of(const Tile& tile, int key) const {
    return args_.block_table[tile.sequence * args_.table_stride + key / args_.block_size];
  }
  // How far on, in words, lies what will be read some blocks after a key's: blocks are short and scattered, so that the
  // hardware does not foresee the next. 0 with many rows, where one reading serves much arithmetic.
  ptrdiff_t words_ahead(const Tile& tile, int key, int blocks) const {
    const int next = key + blocks * args_.block_size;
    if (tile.rows_per_kv_head() > 2 * kRows || next > last_key(tile, tile.queries - 1)) return 0;
    return (block_of(tile, next) - block_of(tile, key)) * args_.kv_heads * shape_.head_words();
  }
  int64_t row_offset(const Tile& tile, int row) const {
    const int64_t token = args_.query_start[tile.sequence] + tile.first_query + tile.query(row);
    const int head = row / tile.rows_per_kv_head() * (args_.heads / args_.kv_heads) + row % tile.heads;
    return (token * args_.heads + tile.first_head + head) * args_.dim;
  }

  void score(const Tile& tile, int kv, int panels, int key, int range_key);
  void widen_scales(const Tile& tile, int kv, int range_key, int first, int last);
  void weigh(const Tile& tile, int row, int range_key, int first, int last);
  void mix(const Tile& tile, int kv, const Segment* segments, int count, bool is_more);
  int list_segments(const Tile& tile, int kv, int range_key, int first, int last, Segment* segments);

  const AttentionArgs& args_;
  const CacheShape shape_;
  Workspace& work_;
};

extern template class TileAttention<Element::kFloat32, Storage::kNumbers>;
extern template class TileAttention<Element::kFloat32, Storage::kInt8>;
extern template class TileAttention<Element::kFloat32, Storage::kFloat8>;
extern template class TileAttention<Element::kBfloat16, Storage::kNumbers>;
extern template class TileAttention<Element::kBfloat16, Storage::kInt8>;
extern template class TileAttention<Element::kBfloat16, Storage::kFloat8>;

}  // namespace nonet
