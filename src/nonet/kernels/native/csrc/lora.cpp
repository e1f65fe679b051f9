// Gathered low-rank products: stage 0 makes first * x of every row that has a slot, stage 1 adds second * that.
//
// Rows that follow each other and share a slot (the tokens of one sequence) share each load of a factor, up to kRows of
// them. An output element is one accumulator whatever rows stand beside it, so a row's bits do not depend on the step.
// With a slot of its own for each row nothing is shared, and reading the factors is all that takes time.
#include "lora.h"

#include <algorithm>
#include <type_traits>

namespace nonet {

namespace {

constexpr int kRows = 4;         // of a register tile
constexpr int kTerms = 4;        // rows of the first factor in a register tile
constexpr int kPanels = 4;       // vectors of columns in a register tile
constexpr int kItemRows = 8;     // rows of an item
constexpr int kItemTerms = 16;   // rows of the first factor in an item of stage 0
constexpr int kItemColumns = 512;

template <Element E>
using Stored = std::conditional_t<E == Element::kFloat32, float, uint16_t>;

// Sixteen numbers of a factor as float32, from element `at` on; the lanes past `count` are zero.
template <Element E>
NONET_INLINE f32x16 load_wide(const void* from, int64_t at, int count = kLanes) {
  if constexpr (E == Element::kFloat32) {
    return load_partial(static_cast<const float*>(from) + at, count);
  } else {
    const uint16_t* half = static_cast<const uint16_t*>(from) + at;
    u16x16 v{};
    if (count >= kLanes)
      v = load<u16x16>(half);
    else
      std::memcpy(&v, half, sizeof(uint16_t) * count);
    return as_f32(__builtin_convertvector(v, u32x16) << 16);
  }
}

// R rows of x times C rows of a factor that begins at element `at`.
template <Element E, int R, int C>
void shrink_tile(const float* x, const void* first, int64_t at, int64_t depth, float* to, int64_t stride) {
  f32x16 acc[R][C] = {};
  auto step = [&](int64_t k, int count) {
    f32x16 left[R];
    NONET_UNROLL for (int r = 0; r < R; ++r) left[r] = load_partial(x + r * depth + k, count);
    NONET_UNROLL for (int c = 0; c < C; ++c) {
      const f32x16 right = load_wide<E>(first, at + c * depth + k, count);
      NONET_UNROLL for (int r = 0; r < R; ++r) acc[r][c] += left[r] * right;
    }
  };
  int64_t k = 0;
  for (; k + kLanes <= depth; k += kLanes) step(k, kLanes);
  if (k < depth) step(k, (int)(depth - k));
  NONET_UNROLL for (int r = 0; r < R; ++r) {
    NONET_UNROLL for (int c = 0; c < C; ++c) to[r * stride + c] = sum_lanes(acc[r][c]);
  }
}

// Adds to R rows of 16 P columns the terms of `inner`; the last vector has `count` columns.
template <Element E, int R, int P>
void expand_tile(const float* inner, int64_t inner_stride, const void* second, int64_t at, int64_t columns, int rank,
                 int count, float* out) {
  f32x16 acc[R][P];
  const auto width = [&](int p) { return p == P - 1 ? count : kLanes; };
  NONET_UNROLL for (int r = 0; r < R; ++r) {
    NONET_UNROLL for (int p = 0; p < P; ++p) acc[r][p] = load_partial(out + r * columns + p * kLanes, width(p));
  }
  // The next tile's part of a term's row: too short a piece for the processor to see a stream in.
  const char* ahead = static_cast<const char*>(second) + (at + P * kLanes) * sizeof(Stored<E>);
  for (int term = 0; term < rank; ++term) {
    if constexpr (P > 1) {
      for (size_t byte = 0; byte < P * kLanes * sizeof(Stored<E>); byte += 64)
        __builtin_prefetch(ahead + term * columns * sizeof(Stored<E>) + byte);
    }
    NONET_UNROLL for (int p = 0; p < P; ++p) {
      const f32x16 right = load_wide<E>(second, at + term * columns + p * kLanes, width(p));
      NONET_UNROLL for (int r = 0; r < R; ++r) acc[r][p] += right * inner[r * inner_stride + term];
    }
  }
  NONET_UNROLL for (int r = 0; r < R; ++r) {
    NONET_UNROLL for (int p = 0; p < P; ++p) store_partial(out + r * columns + p * kLanes, acc[r][p], width(p));
  }
}

template <Element E>
class Lora {
 public:
  explicit Lora(const LoraArgs& args) : args_(args), width_(args.parts * args.rank) {}

  // Terms [from, to) of `count` rows that share a slot.
  void shrink(int row, int count, int from, int to, float* inner) const {
    const int64_t depth = args_.depth, base = slot(row) * width_ * depth;
    const float* x = args_.x + row * depth;
    float* h = inner + (int64_t)row * width_;
    for (int part = from / args_.rank; part * args_.rank < to; ++part) {
      const int start = part * args_.rank, last = std::min(to, start + used(row, part));
      for (int t = std::max(from, start); t < last;) {
        const int terms = t + kTerms <= last ? kTerms : 1;
        const auto tile = shrink_of(count, terms);
        tile(x, args_.first, base + t * depth, depth, h + t, width_);
        t += terms;
      }
    }
  }

  // Columns [from, to) of `count` rows that share a slot.
  void expand(int row, int count, int from, int to, const float* inner) const {
    const int64_t columns = args_.columns, base = slot(row) * args_.rank * columns;
    int start = 0;
    for (int part = 0; part < args_.parts; start = args_.ends[part++]) {
      const float* h = inner + (int64_t)row * width_ + part * args_.rank;
      const int last = std::min(to, args_.ends[part]), terms = used(row, part);
      if (terms == 0) continue;
      for (int c = std::max(from, start); c < last;) {
        const bool is_wide = c + kPanels * kLanes <= last;
        const int lanes = is_wide ? kLanes : std::min(kLanes, last - c);
        expand_of(count, is_wide)(h, width_, args_.second, base + c, columns, terms, lanes,
                                  args_.out + row * columns + c);
        c += is_wide ? kPanels * kLanes : lanes;
      }
    }
  }

 private:
  using Shrink = void (*)(const float*, const void*, int64_t, int64_t, float*, int64_t);
  using Expand = void (*)(const float*, int64_t, const void*, int64_t, int64_t, int, int, float*);

  int64_t slot(int row) const { return args_.slots[row] - 1; }
  int used(int row, int part) const {
    return args_.ranks == nullptr ? args_.rank : args_.ranks[slot(row) * args_.parts + part];
  }

  static Shrink shrink_of(int rows, int terms) {
    static constexpr Shrink kTiles[kRows][2] = {
        {shrink_tile<E, 1, 1>, shrink_tile<E, 1, kTerms>},
        {shrink_tile<E, 2, 1>, shrink_tile<E, 2, kTerms>},
        {shrink_tile<E, 3, 1>, shrink_tile<E, 3, kTerms>},
        {shrink_tile<E, 4, 1>, shrink_tile<E, 4, kTerms>},
    };
    return kTiles[rows - 1][terms > 1];
  }

  static Expand expand_of(int rows, bool is_wide) {
    static constexpr Expand kTiles[kRows][2] = {
        {expand_tile<E, 1, 1>, expand_tile<E, 1, kPanels>},
        {expand_tile<E, 2, 1>, expand_tile<E, 2, kPanels>},
        {expand_tile<E, 3, 1>, expand_tile<E, 3, kPanels>},
        {expand_tile<E, 4, 1>, expand_tile<E, 4, kPanels>},
    };
    return kTiles[rows - 1][is_wide];
  }

  const LoraArgs& args_;
  const int width_;  // terms of a row
};

int row_groups(int rows) { return (rows + kItemRows - 1) / kItemRows; }
int pieces(const LoraArgs& args, int stage) {
  return stage == 0 ? (args.parts * args.rank + kItemTerms - 1) / kItemTerms
                    : (args.columns + kItemColumns - 1) / kItemColumns;
}

int lora_items(const void* raw, int stage, const Context& context) {
  const auto& args = *static_cast<const LoraArgs*>(raw);
  return row_groups(context.rows(args.rows)) * pieces(args, stage);
}

template <Element E>
void run_item(const LoraArgs& args, int stage, int item, const Context& context) {
  const Lora<E> lora(args);
  const int rows = context.rows(args.rows), count = pieces(args, stage);
  const int piece = item % count, first = item / count * kItemRows, last = std::min(rows, first + kItemRows);
  float* inner = reinterpret_cast<float*>(context.shared_scratch);
  for (int row = first; row < last;) {
    const int slot = args.slots[row];
    int same = 1;
    while (same < kRows && row + same < last && args.slots[row + same] == slot) ++same;
    if (slot > 0 && stage == 0)
      lora.shrink(row, same, piece * kItemTerms, std::min(args.parts * args.rank, (piece + 1) * kItemTerms), inner);
    else if (slot > 0)
      lora.expand(row, same, piece * kItemColumns, std::min(args.columns, (piece + 1) * kItemColumns), inner);
    row += same;
  }
}

void lora_run(const void* raw, int stage, int item, Context& context) {
  const auto& args = *static_cast<const LoraArgs*>(raw);
  if ((Element)args.element == Element::kFloat32)
    run_item<Element::kFloat32>(args, stage, item, context);
  else
    run_item<Element::kBfloat16>(args, stage, item, context);
}

}  // namespace

const Kernel kLora = {"lora", sizeof(LoraArgs), 2, lora_items, lora_run};

}  // namespace nonet
