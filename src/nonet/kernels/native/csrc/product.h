// The work items of a linear layer, for any way of holding weights and rounding activations.
//
// Stage 0 rounds the rows of x into the shared scratch; with very few rows every thread rounds them for itself instead.
// Stage 1 multiplies: an item is a chunk of rows (which fits in L2) times a share of the columns. Rounded rows lie as
// [block][rows][row_units]: a block is a stretch along K, and rows at a constant distance suit the register tiles.
//
// A Method says how:
//   Weight, kPanels                       panels of 16 columns that it multiplies at once
//   kRowUnits                             units between two rounded rows of a block
//   blocks(weight)                        how many blocks K is cut into
//   round_row(x, weight, stride, left)    one row of x; its blocks lie `stride` units apart
//   multiply(weight, left, stride, rows, panel, panels, out, out_stride, scratch)
#pragma once

#include <algorithm>

#include "activation.h"
#include "linear.h"

namespace nonet {

constexpr int kMaxChunkRows = 64;
constexpr int kOwnRows = 2;      // up to so many rows, each thread rounds for itself
constexpr int kRoundedRows = 8;  // rows of a rounding item
constexpr int64_t kSpillBytes = kMaxChunkRows * 4 * kLanes * sizeof(float);

// Rows of x in the kernels' form.
struct Rounded {
  const uint32_t* left;
  int64_t block_stride;
};

template <class Method>
class Product {
 public:
  using Weight = typename Method::Weight;

  static int items(const void* raw, int stage, const Context& context) {
    const auto& args = *static_cast<const LinearArgs*>(raw);
    const int rows = context.rows(args.rows);
    if (stage == 0) return rows > kOwnRows ? (rows + kRoundedRows - 1) / kRoundedRows : 0;
    return rows == 0 ? 0 : cut(args, rows, context).count();
  }

  static void run(const void* raw, int stage, int item, Context& context) {
    const auto& args = *static_cast<const LinearArgs*>(raw);
    const int rows = context.rows(args.rows);
    if (stage == 1) return multiply(args, rows, item, context);
    const int last = std::min(rows, (item + 1) * kRoundedRows);
    round(args, rows, item * kRoundedRows, last, reinterpret_cast<uint32_t*>(context.shared_scratch), context);
  }

 private:
  static const Weight& weight(const LinearArgs& args) { return *static_cast<const Weight*>(args.weight); }
  static int panels(const Weight& w) { return (int)((w.columns + kLanes - 1) / kLanes); }
  static Cut cut(const LinearArgs& args, int rows, const Context& context) {
    return Cut(rows, panels(weight(args)), Method::kPanels, context.threads, kMaxChunkRows);
  }
  // The end of a thread's scratch: the method's own, before it the rows of a tile whose last columns are no whole panel
  // (in this order, so that neither depends on the rows that a thread may have rounded at the beginning).
  static char* own_scratch(const Context& context) { return context.scratch_end - kProductScratchBytes; }

  static void round(const LinearArgs& args, int rows, int first, int last, uint32_t* left, const Context& context) {
    const Weight& w = weight(args);
    const int64_t stride = (int64_t)rows * Method::kRowUnits;
    float* gated = reinterpret_cast<float*>(own_scratch(context));
    for (int64_t r = first; r < last; ++r) {
      const float* x = args.x + r * w.depth;
      if (args.gate != Gate::kNone) {
        gate_row(args.gate, args.x + 2 * r * w.depth, args.x + (2 * r + 1) * w.depth, gated, (int)w.depth);
        x = gated;
      }
      Method::round_row(x, w, stride, left + r * Method::kRowUnits);
    }
  }

  static Rounded rounded(const LinearArgs& args, int rows, Context& context) {
    const int64_t stride = (int64_t)rows * Method::kRowUnits;
    if (rows > kOwnRows) return {reinterpret_cast<uint32_t*>(context.shared_scratch), stride};
    return context.state<Rounded>([&] {
      uint32_t* left = reinterpret_cast<uint32_t*>(context.scratch);
      round(args, rows, 0, rows, left, context);
      return Rounded{left, stride};
    });
  }

  static void multiply(const LinearArgs& args, int rows, int item, Context& context) {
    const Weight& w = weight(args);
    const Rounded x = rounded(args, rows, context);
    const Cut::Item part = cut(args, rows, context).item(item);
    float* spill = reinterpret_cast<float*>(own_scratch(context));
    char* scratch = own_scratch(context) + kSpillBytes;
    for (int p = part.first_panel; p < part.last_panel; p += Method::kPanels) {
      const int count = std::min(Method::kPanels, part.last_panel - p);
      const int columns = (int)std::min<int64_t>(count * kLanes, w.columns - (int64_t)p * kLanes);
      const bool is_whole = columns == count * kLanes;
      float* out = args.out + part.first_row * w.columns + (int64_t)p * kLanes;
      float* to = is_whole ? out : spill;
      const ptrdiff_t stride = is_whole ? w.columns : Method::kPanels * kLanes;
      Method::multiply(w, x.left + part.first_row * Method::kRowUnits, x.block_stride, part.rows, p, count, to, stride,
                       scratch);
      if (args.softcap != 0.0f) soft_cap(to, stride, part.rows, columns, args.softcap);
      if (is_whole) continue;
      for (int r = 0; r < part.rows; ++r)
        std::memcpy(out + r * w.columns, spill + r * stride, sizeof(float) * columns);
    }
  }
};

// An embedding read from a packed weight, which the last linear layer may share. `Row` writes row `id` times scale.
template <class Weight, void (*Row)(const Weight&, int64_t id, float scale, float* out)>
struct Embed {
  static int items(const void* raw, int, const Context& context) {
    return (context.rows(static_cast<const EmbedArgs*>(raw)->rows) + kRoundedRows - 1) / kRoundedRows;
  }
  static void run(const void* raw, int, int item, Context& context) {
    const auto& args = *static_cast<const EmbedArgs*>(raw);
    const auto& w = *static_cast<const Weight*>(args.weight);
    const int last = std::min(context.rows(args.rows), (item + 1) * kRoundedRows);
    for (int64_t row = item * kRoundedRows; row < last; ++row) {
      float* out = args.out + row * w.depth;
      const int64_t id = args.token_ids[row];
      if (id >= 0 && id < w.columns)
        Row(w, id, args.scale, out);
      else
        std::fill(out, out + w.depth, 0.0f);
    }
  }
};

}  // namespace nonet
