// Paged attention, the query heads of one KV head together, keys in fixed ranges.
//
// A work item is a tile: up to kQueryRows rows (queries times the heads that share a KV head) of one sequence and one
// KV head. For each range of kRangeKeys keys, counted from key 0 of the sequence, a tile computes scores, their maximum
// m, the weights exp(score - m), their sum l and the weighted values, and folds (m, l, values) into what the ranges
// before it gave. The ranges and the order of folding depend on key positions only, and an unseen key adds an exact
// zero, so a row's result does not depend on how the queries were cut into chunks or who shares the tile.
//
// With few tiles and long sequences (one user, long context) the ranges of a tile are shared out too: every range's
// (m, l, values) goes to the shared scratch, and after a barrier the same fold runs over them.
#include "attention.h"

#include <algorithm>

#include "attention_tile.h"

namespace nonet {

namespace {

// Finds the tile of a work item; remembers where it was, because items come in rising order.
class Tiles {
 public:
  explicit Tiles(const AttentionArgs& args, int sequences) : args_(args), sequences_(sequences) {
    const int group = args.heads / args.kv_heads;
    heads_ = std::min(group, kQueryRows);
    parts_ = args.kv_heads * ((group + heads_ - 1) / heads_);
    queries_ = kQueryRows / heads_;
    for (int s = 0; s < sequences; ++s) {
      count += tiles(s);
      if (query_count(s) > 0) longest = std::max(longest, args.kv_len[s]);
    }
  }

  int count = 0;
  int longest = 0;  // kv_len

  Tile find(int item) {
    if (item < before_) sequence_ = before_ = 0;
    while (item >= before_ + tiles(sequence_)) before_ += tiles(sequence_++);
    const int group = args_.heads / args_.kv_heads;
    const int per_part = (query_count(sequence_) + queries_ - 1) / queries_;
    const int part = (item - before_) / per_part;
    const int parts_per_head = parts_ / args_.kv_heads;
    Tile tile;
    tile.sequence = sequence_;
    tile.kv_head = part / parts_per_head;
    const int first_in_group = part % parts_per_head * heads_;
    tile.first_head = tile.kv_head * group + first_in_group;
    tile.heads = std::min(heads_, group - first_in_group);
    tile.first_query = (item - before_) % per_part * queries_;
    tile.queries = std::min(queries_, query_count(sequence_) - tile.first_query);
    return tile;
  }

 private:
  int query_count(int s) const { return args_.query_start[s + 1] - args_.query_start[s]; }
  int tiles(int s) const { return (query_count(s) + queries_ - 1) / queries_ * parts_; }

  const AttentionArgs& args_;
  const int sequences_;
  int heads_, parts_, queries_;
  int sequence_ = 0;
  int before_ = 0;  // tiles of the sequences before `sequence_`
};

template <Element E>
void whole_tiles(const AttentionArgs& args, Tiles& tiles, Context& context) {
  TileAttention<E> tile_attention(args, *reinterpret_cast<Workspace*>(context.scratch));
  for (int item; (item = context.take(tiles.count)) >= 0;) {
    const Tile tile = tiles.find(item);
    tile_attention.begin(tile);
    for (int range = tile_attention.first_range(tile); range < tile_attention.last_range(tile); ++range) {
      if (!tile_attention.compute(tile, range)) continue;
      for (int row = 0; row < tile.rows(); ++row) tile_attention.fold_own(row);
    }
    tile_attention.finish(tile);
  }
}

// One range's contribution to the rows of one tile, in the shared scratch.
struct SharedParts {
  float* base;
  int ranges;
  int64_t row_floats;  // maximum, sum, 14 unused, then the values

  SharedParts(const AttentionArgs& args, const Tiles& tiles, Context& context)
      : base(reinterpret_cast<float*>(context.shared_scratch)),
        ranges((tiles.longest + kRangeKeys - 1) / kRangeKeys),
        row_floats(kLanes + args.dim) {}
  int64_t bytes(int tiles) const { return tiles * ranges * row_floats * kQueryRows * (int64_t)sizeof(float); }
  float* row(int tile, int range, int row) const {
    return base + (((int64_t)tile * ranges + range) * kQueryRows + row) * row_floats;
  }
};

template <Element E>
void shared_tiles(const AttentionArgs& args, Tiles& tiles, const SharedParts& parts, Context& context) {
  TileAttention<E> tile_attention(args, *reinterpret_cast<Workspace*>(context.scratch));
  for (int item; (item = context.take(tiles.count * parts.ranges)) >= 0;) {
    const int number = item / parts.ranges, range = item % parts.ranges;
    const Tile tile = tiles.find(number);
    if (range < tile_attention.first_range(tile) || range >= tile_attention.last_range(tile)) continue;
    tile_attention.begin(tile);
    const bool any = tile_attention.compute(tile, range);
    for (int row = 0; row < tile.rows(); ++row) {
      float* to = parts.row(number, range, row);
      const Part part = any ? tile_attention.part(row) : Part{};
      to[0] = part.maximum;
      to[1] = part.sum;
      if (any) std::memcpy(to + kLanes, tile_attention.part_values(row), sizeof(float) * args.dim);
    }
  }
  context.barrier();
  for (int item; (item = context.take(tiles.count)) >= 0;) {
    const Tile tile = tiles.find(item);
    tile_attention.begin(tile);
    for (int range = tile_attention.first_range(tile); range < tile_attention.last_range(tile); ++range) {
      for (int row = 0; row < tile.rows(); ++row) {
        const float* from = parts.row(item, range, row);
        tile_attention.fold(row, Part{from[0], from[1]}, from + kLanes);
      }
    }
    tile_attention.finish(tile);
  }
}

template <Element E>
void run(const AttentionArgs& args, Context& context) {
  Tiles tiles(args, context.rows(args.sequences));
  const SharedParts parts(args, tiles, context);
  const bool few = tiles.count < 4 * context.threads && tiles.longest > 2 * kRangeKeys;
  if (few && context.threads > 1 && parts.bytes(tiles.count) <= (int64_t)context.shared_bytes)
    shared_tiles<E>(args, tiles, parts, context);
  else
    whole_tiles<E>(args, tiles, context);
}

}  // namespace

void attention(const void* raw, Context& context) {
  const auto& args = *static_cast<const AttentionArgs*>(raw);
  if (args.element == (int32_t)Element::kBfloat16)
    run<Element::kBfloat16>(args, context);
  else
    run<Element::kFloat32>(args, context);
}

}  // namespace nonet
