// Dense products: y = x W^T + b with weights in bf16 or float32, activations rounded to the weights' type.
//
// A work item is a chunk of rows times a chunk of columns. The thread that takes it rounds the rows of x into its own
// scratch (again only when the row chunk changes), then walks the columns in groups of kTilePanels panels. For each
// group, a block of at most kRowUnits steps of the weights (24 KB, in L1) meets all rows of the chunk (in L2).
#include <algorithm>

#include "linear.h"
#include "tile.h"

namespace nonet {

namespace {

constexpr int kMaxChunkRows = 64;

struct Blocks {
  int count;
  int steps;  // of each block but the last

  explicit Blocks(int64_t total) {
    count = (int)((total + kRowUnits - 1) / kRowUnits);
    steps = (int)((total + count - 1) / std::max(count, 1));
    count = (int)((total + steps - 1) / std::max(steps, 1));
  }
};

// x[row, depth] as units: [block][rows][kRowUnits], so that a tile's rows lie at constant distances.
template <Element E>
void round_row(const float* x, const DenseWeight& w, const Blocks& blocks, int row, int rows, uint32_t* left) {
  for (int b = 0; b < blocks.count; ++b) {
    uint32_t* to = left + ((int64_t)b * rows + row) * kRowUnits;
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
  panel_tile<E, R, P>(left, right, kLanes, steps, start, out, out_stride);
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
void multiply_group(const DenseWeight& w, const Blocks& blocks, const uint32_t* left, int rows, int64_t panel,
                    int panels, float* out, ptrdiff_t out_stride) {
  for (int b = 0; b < blocks.count; ++b) {
    const int64_t first = (int64_t)b * blocks.steps;
    const int steps = (int)std::min<int64_t>(blocks.steps, w.steps - first);
    const uint32_t* right[kTilePanels];
    for (int p = 0; p < panels; ++p) right[p] = w.units + ((panel + p) * w.steps + first) * kLanes;
    const float* start = b == 0 ? w.bias + panel * kLanes : nullptr;
    for (int r = 0; r < rows; r += kTileRows) {
      PanelTile tile = choose_tile<E>(std::min(kTileRows, rows - r), panels);
      tile(left + ((int64_t)b * rows + r) * kRowUnits, right, kLanes, steps, start, out + r * out_stride, out_stride);
    }
  }
}

template <Element E>
void multiply(const LinearArgs& args, const DenseWeight& w, Context& context) {
  const int rows = context.rows(args.rows);
  if (rows == 0) return;
  const int panels = (int)((w.columns + kLanes - 1) / kLanes);
  const Blocks blocks(w.steps);
  const Cut cut(rows, panels, kTilePanels, context.threads, kMaxChunkRows);
  uint32_t* left = reinterpret_cast<uint32_t*>(context.scratch);
  float* spill = reinterpret_cast<float*>(left + (int64_t)blocks.count * kMaxChunkRows * kRowUnits);
  int rounded = -1;
  for (int item; (item = context.take(cut.row_chunks * cut.column_chunks)) >= 0;) {
    const int chunk = item / cut.column_chunks;
    const int first_row = chunk * cut.rows_per_chunk;
    const int chunk_rows = std::min(cut.rows_per_chunk, rows - first_row);
    if (chunk != rounded) {
      for (int r = 0; r < chunk_rows; ++r)
        round_row<E>(args.x + (first_row + r) * w.depth, w, blocks, r, chunk_rows, left);
      rounded = chunk;
    }
    const int first_panel = item % cut.column_chunks * cut.panels_per_chunk;
    const int last_panel = std::min(panels, first_panel + cut.panels_per_chunk);
    for (int p = first_panel; p < last_panel; p += kTilePanels) {
      const int group = std::min(kTilePanels, last_panel - p);
      const int columns = (int)std::min<int64_t>(group * kLanes, w.columns - (int64_t)p * kLanes);
      float* out = args.out + first_row * w.columns + (int64_t)p * kLanes;
      const bool whole = columns == group * kLanes;
      const ptrdiff_t stride = whole ? w.columns : kTilePanels * kLanes;
      float* to = whole ? out : spill;
      multiply_group<E>(w, blocks, left, chunk_rows, p, group, to, stride);
      if (args.softcap != 0.0f) soft_cap(to, stride, chunk_rows, columns, args.softcap);
      if (whole) continue;
      for (int r = 0; r < chunk_rows; ++r)
        std::memcpy(out + r * w.columns, spill + r * stride, sizeof(float) * columns);
    }
  }
}

}  // namespace

Cut::Cut(int rows, int panels, int panel_group, int threads, int max_rows) {
  row_chunks = (rows + max_rows - 1) / max_rows;
  rows_per_chunk = (rows + row_chunks - 1) / row_chunks;
  rows_per_chunk = std::min(max_rows, (rows_per_chunk + 7) / 8 * 8);
  row_chunks = (rows + rows_per_chunk - 1) / rows_per_chunk;
  const int groups = (panels + panel_group - 1) / panel_group;
  // About six items for each thread: few enough to stream, enough to share out when a thread loses its core.
  const int wanted = threads == 1 ? 1 : (6 * threads + row_chunks - 1) / row_chunks;
  const int groups_per_chunk = std::max(1, groups / std::max(1, std::min(groups, wanted)));
  panels_per_chunk = groups_per_chunk * panel_group;
  column_chunks = (panels + panels_per_chunk - 1) / panels_per_chunk;
}

void soft_cap(float* out, int64_t stride, int rows, int columns, float softcap) {
  const float inverse = 1.0f / softcap;
  for (int r = 0; r < rows; ++r) {
    float* row = out + r * stride;
    for (int i = 0; i < columns; i += kLanes) {
      const int count = std::min(kLanes, columns - i);
      store_partial(row + i, tanh(load_partial(row + i, count) * inverse) * softcap, count);
    }
  }
}

void linear_dense(const void* raw, Context& context) {
  const auto& args = *static_cast<const LinearArgs*>(raw);
  const auto& weight = *static_cast<const DenseWeight*>(args.weight);
  if (weight.element == (int32_t)Element::kBfloat16)
    multiply<Element::kBfloat16>(args, weight, context);
  else
    multiply<Element::kFloat32>(args, weight, context);
}

void embed_dense(const void* raw, Context& context) {
  const auto& args = *static_cast<const EmbedArgs*>(raw);
  const auto& w = *static_cast<const DenseWeight*>(args.weight);
  const int rows = context.rows(args.rows);
  for (int row; (row = context.take(rows)) >= 0;) {
    const int64_t id = args.token_ids[row];
    float* out = args.out + row * w.depth;
    if (id < 0 || id >= w.columns) {
      std::fill(out, out + w.depth, 0.0f);
      continue;
    }
    const uint32_t* units = w.units + id / kLanes * w.steps * kLanes + id % kLanes;
    if (w.element == (int32_t)Element::kFloat32) {
      for (int64_t k = 0; k < w.depth; ++k) out[k] = bits_to_float(units[k * kLanes]) * args.scale;
      continue;
    }
    for (int64_t k = 0; k < w.depth; ++k) {
      const uint32_t unit = units[k / 2 * kLanes];
      out[k] = bits_to_float(k & 1 ? unit & 0xffff0000u : unit << 16) * args.scale;
    }
  }
}

}  // namespace nonet
