// Paged attention, the query heads of one KV head together, keys in fixed ranges.
//
// A work item is a tile: up to kQueryRows rows (queries times the heads that share a KV head) of one sequence and one
// KV head. For each range of kRangeKeys keys, counted from key 0 of the sequence, a tile computes scores, their maximum
// m, the weights exp(score - m) (in powers of two), their sum l and the weighted values, and folds (m, l, values) into what the ranges
// before it gave. The ranges and the order of folding depend on key positions only, and an unseen key adds an exact
// zero, so a row's result does not depend on how the queries were cut into chunks or who shares the tile.
//
// With few tiles and long sequences (one user, long context) the ranges of a tile are shared out too: every range's
// (m, l, values) goes to the shared scratch, and a second stage runs the same fold over them.
#include "attention.h"

#include <algorithm>
#include <cstdlib>

#include "attention_tile.h"

namespace nonet {

namespace {

// Finds the tile of a work item; remembers where it was, because items come in rising order.
class Tiles {
 public:
  Tiles(const AttentionArgs& args, int sequences) : args_(args) {
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
  int heads_, parts_, queries_;
  int sequence_ = 0;
  int before_ = 0;  // tiles of the sequences before `sequence_`
};

// What the ranges of all tiles gave, in the shared scratch: Parts, then values [kQueryRows, dim], for each.
struct SharedParts {
  char* base;
  int ranges;
  int64_t stride;

  SharedParts(const AttentionArgs& args, const Tiles& tiles, const Context& context)
      : base(context.shared_scratch),
        ranges((tiles.longest + kRangeKeys - 1) / kRangeKeys),
        stride(sizeof(Parts) + sizeof(float) * kQueryRows * args.dim) {}
  int64_t bytes(int tiles) const { return tiles * ranges * stride; }
  Parts& parts(int tile, int range) const {
    return *reinterpret_cast<Parts*>(base + ((int64_t)tile * ranges + range) * stride);
  }
  float* values(int tile, int range) const { return reinterpret_cast<float*>(&parts(tile, range) + 1); }
};

// How a step is cut, worked out once for each thread and stage.
struct Cut {
  Tiles tiles;
  SharedParts parts;
  bool is_shared;  // ranges of a tile go to different threads

  Cut(const AttentionArgs& args, const Context& context)
      : tiles(args, context.rows(args.sequences)), parts(args, tiles, context) {
    const bool few = tiles.count < 4 * context.threads && tiles.longest > 2 * kRangeKeys;
    is_shared = few && context.threads > 1 && parts.bytes(tiles.count) <= (int64_t)context.shared_bytes;
  }
};

template <Element E>
void whole_tile(TileAttention<E>& attention, const Tile& tile) {
  attention.begin(tile);
  for (int range = attention.first_range(tile); range < attention.last_range(tile); ++range) {
    if (attention.compute(tile, range)) attention.fold(tile, attention.parts(), attention.values());
  }
  attention.finish(tile);
}

template <Element E>
void shared_range(TileAttention<E>& attention, Cut& cut, const AttentionArgs& args, int item) {
  const int number = item / cut.parts.ranges, range = item % cut.parts.ranges;
  const Tile tile = cut.tiles.find(number);
  if (range < attention.first_range(tile) || range >= attention.last_range(tile)) return;
  attention.begin(tile);
  if (!attention.compute(tile, range)) std::abort();  // the range is one of the tile's
  cut.parts.parts(number, range) = attention.parts();
  std::memcpy(cut.parts.values(number, range), attention.values(), sizeof(float) * tile.rows() * args.dim);
}

template <Element E>
void fold_tile(TileAttention<E>& attention, Cut& cut, int item) {
  const Tile tile = cut.tiles.find(item);
  attention.begin(tile);
  for (int range = attention.first_range(tile); range < attention.last_range(tile); ++range) {
    attention.fold(tile, cut.parts.parts(item, range), cut.parts.values(item, range));
  }
  attention.finish(tile);
}

int attention_items(const void* raw, int stage, const Context& context) {
  const Cut cut(*static_cast<const AttentionArgs*>(raw), context);
  if (stage == 0) return cut.is_shared ? cut.tiles.count * cut.parts.ranges : cut.tiles.count;
  return cut.is_shared ? cut.tiles.count : 0;
}

template <Element E>
void run_element(const AttentionArgs& args, int stage, int item, Context& context) {
  Cut& cut = context.state<Cut>([&] { return Cut(args, context); });
  TileAttention<E> attention(args, *reinterpret_cast<Workspace*>(context.scratch));
  if (stage == 1)
    fold_tile(attention, cut, item);
  else if (cut.is_shared)
    shared_range(attention, cut, args, item);
  else
    whole_tile(attention, cut.tiles.find(item));
}

void attention_run(const void* raw, int stage, int item, Context& context) {
  const auto& args = *static_cast<const AttentionArgs*>(raw);
  if (args.element == (int32_t)Element::kBfloat16)
    run_element<Element::kBfloat16>(args, stage, item, context);
  else
    run_element<Element::kFloat32>(args, stage, item, context);
}

}  // namespace

const Kernel kAttention = {"attention", sizeof(AttentionArgs), 2, attention_items, attention_run};

}  // namespace nonet
