// Paged attention, the query heads of a KV head together, keys in fixed ranges.
//
// A work item is a tile: up to kQueryRows rows (queries times the heads that share a KV head) of one sequence, and as
// many KV heads as that leaves room for: all of them when a sequence decodes one token, so that its cache is read in
// long stretches. For each range of kRangeKeys keys, counted from key 0 of the sequence, a tile computes scores, their
// maximum m, the weights 2^(score - m), their sum l and the weighted values, and folds (m, l, values) into what the
// ranges before it gave. The ranges and the order of folding depend on key positions only, and an unseen key adds an
// exact zero, so a row's result does not depend on how the queries were cut into chunks or who shares the tile.
//
// With few tiles and more than one range (one user) the ranges of a tile are shared out too: every range's (m, l,
// values) goes to the shared scratch, and a second stage runs the same fold over them.
#include "attention.h"

#include <algorithm>
#include <cstdlib>

#include "attention_tile.h"

namespace nonet {

namespace {

// Finds the tile of a work item; remembers where it was, because items come in rising order.
class Tiles {
 public:
  Tiles(const AttentionArgs& args, int sequences) : args_(args), group_(args.heads / args.kv_heads) {
    for (int s = 0; s < sequences; ++s) {
      count += shape(s).count();
      if (query_count(s) > 0) longest = std::max(longest, args.kv_len[s]);
    }
  }

  int count = 0;
  int longest = 0;  // kv_len

  Tile find(int item) {
    if (item < before_) sequence_ = before_ = 0;
    Shape cut = shape(sequence_);
    while (item >= before_ + cut.count()) {
      before_ += cut.count();
      cut = shape(++sequence_);
    }
    const int part = (item - before_) / cut.query_parts, query_part = (item - before_) % cut.query_parts;
    const int head_part = part % cut.head_parts;
    Tile tile;
    tile.sequence = sequence_;
    tile.kv_head = part / cut.head_parts * cut.kv_heads;
    tile.kv_heads = std::min(cut.kv_heads, args_.kv_heads - tile.kv_head);
    tile.first_head = tile.kv_head * group_ + head_part * cut.heads;
    tile.heads = std::min(cut.heads, group_ - head_part * cut.heads);
    tile.first_query = query_part * cut.queries;
    tile.queries = std::min(cut.queries, query_count(sequence_) - tile.first_query);
    return tile;
  }

 private:
  // How one sequence is cut: KV heads, query heads of each and queries of a tile, and how many parts that makes.
  struct Shape {
    int kv_heads, heads, queries;
    int kv_parts, head_parts, query_parts;
    int count() const { return kv_parts * head_parts * query_parts; }
  };

  int query_count(int s) const { return args_.query_start[s + 1] - args_.query_start[s]; }

  Shape shape(int s) const {
    const int queries = query_count(s);
    Shape cut;
    cut.heads = std::min(group_, kQueryRows);
    cut.queries = kQueryRows / cut.heads;
    cut.kv_heads = 1;
    if (queries > 0 && queries <= cut.queries && cut.heads == group_)
      cut.kv_heads = std::min(args_.kv_heads, kQueryRows / (queries * group_));
    cut.kv_parts = (args_.kv_heads + cut.kv_heads - 1) / cut.kv_heads;
    cut.head_parts = (group_ + cut.heads - 1) / cut.heads;
    cut.query_parts = (queries + cut.queries - 1) / cut.queries;
    return cut;
  }

  const AttentionArgs& args_;
  int group_;
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
    const bool few = tiles.count < 4 * context.threads && tiles.longest > kRangeKeys;
    is_shared = few && context.threads > 1 && parts.bytes(tiles.count) <= (int64_t)context.shared_bytes;
  }
};

template <Element E, Storage S>
void whole_tile(TileAttention<E, S>& attention, const Tile& tile) {
  attention.begin(tile);
  for (int range = attention.first_range(tile); range < attention.last_range(tile); ++range) {
    if (attention.compute(tile, range)) attention.fold(tile, attention.parts(), attention.values());
  }
  attention.finish(tile);
}

template <Element E, Storage S>
void shared_range(TileAttention<E, S>& attention, Cut& cut, const AttentionArgs& args, int item) {
  const int number = item / cut.parts.ranges, range = item % cut.parts.ranges;
  const Tile tile = cut.tiles.find(number);
  if (range < attention.first_range(tile) || range >= attention.last_range(tile)) return;
  attention.begin(tile);
  if (!attention.compute(tile, range)) std::abort();  // the range is one of the tile's
  cut.parts.parts(number, range) = attention.parts();
  std::memcpy(cut.parts.values(number, range), attention.values(), sizeof(float) * tile.rows() * args.dim);
}

template <Element E, Storage S>
void fold_tile(TileAttention<E, S>& attention, Cut& cut, int item) {
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

template <Element E, Storage S>
void run_tile(const AttentionArgs& args, int stage, int item, Context& context) {
  Cut& cut = context.state<Cut>([&] { return Cut(args, context); });
  TileAttention<E, S> attention(args, *reinterpret_cast<Workspace*>(context.scratch));
  if (stage == 1)
    fold_tile(attention, cut, item);
  else if (cut.is_shared)
    shared_range(attention, cut, args, item);
  else
    whole_tile(attention, cut.tiles.find(item));
}

template <Element E>
void run_element(const AttentionArgs& args, int stage, int item, Context& context) {
  switch ((Storage)args.storage) {
    case Storage::kNumbers: return run_tile<E, Storage::kNumbers>(args, stage, item, context);
    case Storage::kInt8: return run_tile<E, Storage::kInt8>(args, stage, item, context);
    case Storage::kFloat8: return run_tile<E, Storage::kFloat8>(args, stage, item, context);
  }
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
