// Dense products: y = x W^T + b with weights in bf16 or float32, activations rounded to the weights' type.
//
// Stage 0 rounds x into the shared scratch; with very few rows every thread rounds them for itself instead. Stage 1
// multiplies: an item is a chunk of rows (in L2) times a share of the columns, walked in groups of kTilePanels panels.
// For each group, a block of at most kRowUnits steps of the weights (in L2) meets all rows of the chunk.
#include <algorithm>

#include "linear.h"
#include "tile.h"

namespace nonet {

namespace {

constexpr int kMaxChunkRows = 64;
// Most steps of a block, and units between two rows: an odd number of cache lines, so that the rows of a tile do not
// fall into the same sets of the cache.
constexpr int kRowUnits = 304;
constexpr int kOwnRows = 4;     // up to so many rows, each thread rounds for itself
constexpr int kRoundedRows = 8;  // rows of a rounding item

struct Blocks {
  int count;
  int steps;  // of each block but the last

  explicit Blocks(int64_t total) {
    count = (int)((total + kRowUnits - 1) / kRowUnits);
    steps = (int)((total + count - 1) / std::max(count, 1));
    count = (int)((total + steps - 1) / std::max(steps, 1));
  }
};

// One row of x as units, its blocks `block_stride` units apart: [block][rows][kRowUnits] keeps the rows of a tile at
// constant distances.
template <Element E>
void round_row(const float* x, const DenseWeight& w, const Blocks& blocks, int64_t block_stride, uint32_t* left) {
  for (int b = 0; b < blocks.count; ++b) {
    uint32_t* to = left + b * block_stride;
    const int per_unit = E == Element::kBfloat16 ? 2 : 1;
    int64_t first = (int64_t)b * blocks.steps * per_unit;
    int64_t count = std::min<int64_t>((int64_t)blocks.steps * per_unit, w.depth - first);
    const float* from = x + first;
    if constexpr (E == Element::kFloat32) {
      std::memcpy(to, from, sizeof(float) * count);
    } else {
      uint16_t* half = reinterpret_cast<uint16_t*>(to);
      int64_t i = 0;
      for (; i + kLanes <= count; i += kLanes) store(half + i, to_bf16(load_f32(from + i)));
      if (i < count) {
        u16x16 last = to_bf16(load_partial(from + i, (int)(count - i)));
        std::memcpy(half + i, &last, sizeof(uint16_t) * (count - i));
        if (count & 1) half[count] = 0;
      }
    }
  }
}

template <Element E, int R, int P>
void dense_tile(const uint32_t* left, const uint32_t* const* right, ptrdiff_t, int steps, const float* start,
                float* out, ptrdiff_t out_stride) {
  panel_tile<E, R, P, kRowUnits>(left, right, kLanes, steps, start, out, out_stride);
}

template <Element E, int R>
PanelTile choose_panels(int panels) {
  if constexpr (kTilePanels == 1) {
    return dense_tile<E, R, 1>;
  } else {
    return panels == 1 ? dense_tile<E, R, 1> : panels == 2 ? dense_tile<E, R, 2> : dense_tile<E, R, kTilePanels>;
  }
}

template <Element E>
PanelTile choose_tile(int rows, int panels) {
  switch (rows) {
    case 1: return choose_panels<E, 1>(panels);
    case 2: return choose_panels<E, 2>(panels);
    case 3: return choose_panels<E, 3>(panels);
    case 4: return choose_panels<E, std::min(4, kTileRows)>(panels);
    case 5: return choose_panels<E, std::min(5, kTileRows)>(panels);
    case 6: return choose_panels<E, std::min(6, kTileRows)>(panels);
    case 7: return choose_panels<E, std::min(7, kTileRows)>(panels);
    default: return choose_panels<E, kTileRows>(panels);
  }
}

// All rows of a chunk times `panels` (at most kTilePanels) panels from `panel`.
template <Element E>
void multiply_group(const DenseWeight& w, const Blocks& blocks, const uint32_t* left, int64_t block_stride, int rows,
                    int64_t panel, int panels, float* out, ptrdiff_t out_stride) {
  for (int b = 0; b < blocks.count; ++b) {
    const int64_t first = (int64_t)b * blocks.steps;
    const int steps = (int)std::min<int64_t>(blocks.steps, w.steps - first);
    const uint32_t* right[kTilePanels];
    for (int p = 0; p < panels; ++p) right[p] = w.units + ((panel + p) * w.steps + first) * kLanes;
    const float* start = b == 0 ? w.bias + panel * kLanes : nullptr;
    for (int r = 0; r < rows; r += kTileRows) {
      PanelTile tile = choose_tile<E>(std::min(kTileRows, rows - r), panels);
      tile(left + b * block_stride + r * kRowUnits, right, kLanes, steps, start, out + r * out_stride, out_stride);
    }
  }
}

// Rows of x in the kernels' form.
struct Rounded {
  const uint32_t* left;
  int64_t block_stride;
};

template <Element E>
Rounded rounded_rows(const LinearArgs& args, const DenseWeight& w, const Blocks& blocks, int rows, Context& context) {
  const int64_t stride = (int64_t)rows * kRowUnits;
  if (rows > kOwnRows) return {reinterpret_cast<uint32_t*>(context.shared_scratch), stride};
  return context.state<Rounded>([&] {
    uint32_t* left = reinterpret_cast<uint32_t*>(context.scratch);
    for (int r = 0; r < rows; ++r) round_row<E>(args.x + r * w.depth, w, blocks, stride, left + r * kRowUnits);
    return Rounded{left, stride};
  });
}

template <Element E>
void multiply(const LinearArgs& args, const DenseWeight& w, int item, Context& context) {
  const int rows = context.rows(args.rows);
  const int panels = (int)((w.columns + kLanes - 1) / kLanes);
  const Blocks blocks(w.steps);
  const Rounded x = rounded_rows<E>(args, w, blocks, rows, context);
  const Cut::Item part = Cut(rows, panels, kTilePanels, context.threads, kMaxChunkRows).item(item);
  float* spill = reinterpret_cast<float*>(context.scratch + w.scratch_bytes) - kMaxChunkRows * kTilePanels * kLanes;
  for (int p = part.first_panel; p < part.last_panel; p += kTilePanels) {
    const int group = std::min(kTilePanels, part.last_panel - p);
    const int columns = (int)std::min<int64_t>(group * kLanes, w.columns - (int64_t)p * kLanes);
    const bool is_whole = columns == group * kLanes;
    float* out = args.out + part.first_row * w.columns + (int64_t)p * kLanes;
    float* to = is_whole ? out : spill;
    const ptrdiff_t stride = is_whole ? w.columns : kTilePanels * kLanes;
    multiply_group<E>(w, blocks, x.left + part.first_row * kRowUnits, x.block_stride, part.rows, p, group, to, stride);
    if (args.softcap != 0.0f) soft_cap(to, stride, part.rows, columns, args.softcap);
    if (is_whole) continue;
    for (int r = 0; r < part.rows; ++r)
      std::memcpy(out + r * w.columns, spill + r * stride, sizeof(float) * columns);
  }
}

template <Element E>
void round_run(const LinearArgs& args, const DenseWeight& w, int item, Context& context) {
  const int rows = context.rows(args.rows);
  const Blocks blocks(w.steps);
  uint32_t* left = reinterpret_cast<uint32_t*>(context.shared_scratch);
  for (int64_t r = item * kRoundedRows; r < std::min(rows, (item + 1) * kRoundedRows); ++r)
    round_row<E>(args.x + r * w.depth, w, blocks, (int64_t)rows * kRowUnits, left + r * kRowUnits);
}

int linear_items(const void* raw, int stage, const Context& context) {
  const auto& args = *static_cast<const LinearArgs*>(raw);
  const auto& w = *static_cast<const DenseWeight*>(args.weight);
  const int rows = context.rows(args.rows);
  if (stage == 0) return rows > kOwnRows ? (rows + kRoundedRows - 1) / kRoundedRows : 0;
  if (rows == 0) return 0;
  return Cut(rows, (int)((w.columns + kLanes - 1) / kLanes), kTilePanels, context.threads, kMaxChunkRows).count();
}

template <Element E>
void linear_element(const LinearArgs& args, const DenseWeight& w, int stage, int item, Context& context) {
  if (stage == 0)
    round_run<E>(args, w, item, context);
  else
    multiply<E>(args, w, item, context);
}

void linear_run(const void* raw, int stage, int item, Context& context) {
  const auto& args = *static_cast<const LinearArgs*>(raw);
  const auto& w = *static_cast<const DenseWeight*>(args.weight);
  if (w.element == (int32_t)Element::kBfloat16)
    linear_element<Element::kBfloat16>(args, w, stage, item, context);
  else
    linear_element<Element::kFloat32>(args, w, stage, item, context);
}

void embed_row(const EmbedArgs& args, const DenseWeight& w, int64_t row) {
  const int64_t id = args.token_ids[row];
  float* out = args.out + row * w.depth;
  if (id < 0 || id >= w.columns) {
    std::fill(out, out + w.depth, 0.0f);
    return;
  }
  const uint32_t* units = w.units + id / kLanes * w.steps * kLanes + id % kLanes;
  if (w.element == (int32_t)Element::kFloat32) {
    for (int64_t k = 0; k < w.depth; ++k) out[k] = bits_to_float(units[k * kLanes]) * args.scale;
    return;
  }
  for (int64_t k = 0; k < w.depth; ++k) {
    const uint32_t unit = units[k / 2 * kLanes];
    out[k] = bits_to_float(k & 1 ? unit & 0xffff0000u : unit << 16) * args.scale;
  }
}

int embed_items(const void* raw, int, const Context& context) {
  return (context.rows(static_cast<const EmbedArgs*>(raw)->rows) + kRoundedRows - 1) / kRoundedRows;
}

void embed_run(const void* raw, int, int item, Context& context) {
  const auto& args = *static_cast<const EmbedArgs*>(raw);
  const int rows = context.rows(args.rows);
  for (int row = item * kRoundedRows; row < std::min(rows, (item + 1) * kRoundedRows); ++row)
    embed_row(args, *static_cast<const DenseWeight*>(args.weight), row);
}

}  // namespace

const Kernel kLinearDense = {"linear_dense", sizeof(LinearArgs), 2, linear_items, linear_run};
const Kernel kEmbedDense = {"embed_dense", sizeof(EmbedArgs), 1, embed_items, embed_run};

}  // namespace nonet
