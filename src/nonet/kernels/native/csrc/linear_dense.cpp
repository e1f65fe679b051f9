// Dense linear layers: weights in bf16 or float32, activations rounded to the weights' type.
#include "dense_tile.h"
#include "product.h"

namespace nonet {

namespace {

template <Element E>
struct Dense {
  using Weight = DenseWeight;
  static constexpr int kPanels = kTilePanels;
  static constexpr int kRowUnits = kDenseRowUnits;

  static void round_row(const float* x, const DenseWeight& w, int64_t block_stride, uint32_t* left) {
    round_dense_row<E>(x, w.depth, Blocks(w.steps, 1), block_stride, left);
  }

  static void multiply(const DenseWeight& w, const uint32_t* left, int64_t block_stride, int rows, int64_t panel,
                       int panels, float* out, ptrdiff_t out_stride, char*) {
    const Blocks blocks(w.steps, 1);
    MatrixUnit unit;
    for (int b = 0; b < blocks.count; ++b) {
      const int64_t first = (int64_t)b * blocks.steps;
      const uint32_t* right = w.units + (panel * w.steps + first * panels) * kLanes;
      const int steps = (int)std::min<int64_t>(blocks.steps, w.steps - first);
      multiply_block<E>(unit, left + b * block_stride, rows, right, panels, steps,
                        b == 0 ? w.bias + panel * kLanes : nullptr, out, out_stride);
    }
  }
};

// The first unit of a row of the weight, and the distance to the next.
struct WeightRow {
  const uint32_t* units;
  int64_t step;

  WeightRow(const DenseWeight& w, int64_t row) {
    const int64_t panel = row / kLanes, group = panel / kTilePanels * kTilePanels;
    const int64_t panels = std::min<int64_t>(kTilePanels, (w.columns + kLanes - 1) / kLanes - group);
    units = w.units + (group * w.steps + panel - group) * kLanes + row % kLanes;
    step = panels * kLanes;
  }
};

void embed_float32(const DenseWeight& w, int64_t id, float scale, float* out) {
  const WeightRow row(w, id);
  for (int64_t k = 0; k < w.depth; ++k) out[k] = bits_to_float(row.units[k * row.step]) * scale;
}

void embed_bfloat16(const DenseWeight& w, int64_t id, float scale, float* out) {
  const WeightRow row(w, id);
  for (int64_t k = 0; k < w.depth; ++k) {
    const uint32_t unit = row.units[k / 2 * row.step];
    out[k] = bits_to_float(k & 1 ? unit & 0xffff0000u : unit << 16) * scale;
  }
}

using Float32 = Product<Dense<Element::kFloat32>>;
using Bfloat16 = Product<Dense<Element::kBfloat16>>;
using EmbedFloat32 = Embed<DenseWeight, embed_float32>;
using EmbedBfloat16 = Embed<DenseWeight, embed_bfloat16>;

}  // namespace

const Kernel kLinearFloat32 = {"linear_float32", sizeof(LinearArgs), 2, Float32::items, Float32::run};
const Kernel kLinearBfloat16 = {"linear_bfloat16", sizeof(LinearArgs), 2, Bfloat16::items, Bfloat16::run};
const Kernel kEmbedFloat32 = {"embed_float32", sizeof(EmbedArgs), 1, EmbedFloat32::items, EmbedFloat32::run};
const Kernel kEmbedBfloat16 = {"embed_bfloat16", sizeof(EmbedArgs), 1, EmbedBfloat16::items, EmbedBfloat16::run};

}  // namespace nonet
