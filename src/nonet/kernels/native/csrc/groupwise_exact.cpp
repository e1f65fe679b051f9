// Groupwise linear layers with activations in bf16 or float32: records become dense panels in L2, then dense tiles.
//
// Slow with few rows, because every weight is widened for them; it is the yardstick for int8 activations, and what runs
// when the model's dtype is float32.
#include "dense_tile.h"
#include "groupwise.h"
#include "product.h"

namespace nonet {

namespace {

template <Element E>
struct Exact {
  using Weight = GroupwiseWeight;
  static constexpr int kPanels = kTilePanels;
  static constexpr int kRowUnits = kDenseRowUnits;
  static constexpr int kPerUnit = E == Element::kBfloat16 ? 2 : 1;
  static_assert(kPanels * kDenseRowUnits * kLanes * sizeof(uint32_t) + kSpillBytes <= kProductScratchBytes, "");

  static Blocks blocks(const GroupwiseWeight& w) { return Blocks(w.depth / kPerUnit, w.group / kPerUnit); }

  static void round_row(const float* x, const GroupwiseWeight& w, int64_t block_stride, uint32_t* left) {
    round_dense_row<E>(x, w.depth, blocks(w), block_stride, left);
  }

  static void multiply(const GroupwiseWeight& w, const uint32_t* left, int64_t block_stride, int rows, int64_t panel,
                       int panels, float* out, ptrdiff_t out_stride, char* scratch) {
    const Blocks cut = blocks(w);
    const int64_t total = w.depth / kPerUnit;
    uint32_t* dense = reinterpret_cast<uint32_t*>(scratch);
    MatrixUnit unit;
    for (int b = 0; b < cut.count; ++b) {
      const int64_t first = (int64_t)b * cut.steps;
      const int steps = (int)std::min<int64_t>(cut.steps, total - first);
      for (int p = 0; p < panels; ++p)
        widen(w, panel + p, first * kPerUnit / w.group, steps * kPerUnit / w.group, dense + p * kLanes,
              panels * kLanes);
      multiply_block<E>(unit, left + b * block_stride, rows, dense, panels, steps,
                        b == 0 ? w.bias + panel * kLanes : nullptr, out, out_stride);
    }
  }

  // `count` groups of a panel from `group` on, as units whose steps lie `step_units` apart.
  static void widen(const GroupwiseWeight& w, int64_t panel, int64_t group, int count, uint32_t* to, int step_units) {
    for (int g = 0; g < count; ++g) {
      const uint8_t* from = record(w, panel, group + g);
      const f32x16 scale = load_numbers(w, from + code_bytes(w));
      const f32x16 minimum = load_minimum(w, from, scale);
      for (int step = 0; step < w.group / 4; ++step) {
        const u32x16 codes = load_codes(w, from, step);
        f32x16 value[4];
        for (int i = 0; i < 4; ++i)
          value[i] = __builtin_convertvector((i32x16)(codes >> (8 * i) & 0xffu), f32x16) * scale + minimum;
        if constexpr (E == Element::kFloat32) {
          for (int i = 0; i < 4; ++i, to += step_units) store(to, value[i]);
        } else {
          for (int i = 0; i < 4; i += 2, to += step_units) {
            const u32x16 low = __builtin_convertvector(to_bf16(value[i]), u32x16);
            const u32x16 high = __builtin_convertvector(to_bf16(value[i + 1]), u32x16);
            store(to, low | high << 16);
          }
        }
      }
    }
  }
};

void embed_groupwise(const GroupwiseWeight& w, int64_t id, float scale, float* out) {
  const int lane = (int)(id % kLanes);
  for (int64_t g = 0; g < w.depth / w.group; ++g) {
    const uint8_t* from = record(w, id / kLanes, g);
    const f32x16 scales = load_numbers(w, from + code_bytes(w));
    const f32x16 minimums = load_minimum(w, from, scales);
    for (int step = 0; step < w.group / 4; ++step) {
      const uint32_t codes = load_codes(w, from, step)[lane];
      for (int i = 0; i < 4; ++i)
        *out++ = ((float)(codes >> (8 * i) & 0xffu) * scales[lane] + minimums[lane]) * scale;
    }
  }
}

using Float32 = Product<Exact<Element::kFloat32>>;
using Bfloat16 = Product<Exact<Element::kBfloat16>>;
using EmbedGroupwise = Embed<GroupwiseWeight, embed_groupwise>;

}  // namespace

const Kernel kLinearGroupwiseFloat32 = {"linear_groupwise_float32", sizeof(LinearArgs), 2, Float32::items,
                                        Float32::run};
const Kernel kLinearGroupwiseBfloat16 = {"linear_groupwise_bfloat16", sizeof(LinearArgs), 2, Bfloat16::items,
                                         Bfloat16::run};
const Kernel kEmbedGroupwise = {"embed_groupwise", sizeof(EmbedArgs), 1, EmbedGroupwise::items, EmbedGroupwise::run};

}  // namespace nonet
