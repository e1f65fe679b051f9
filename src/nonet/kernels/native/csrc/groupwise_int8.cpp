// Groupwise linear layers with activations in int8: u8 codes times s8 activations, 64 products an instruction.
//
// Each row of x is rounded to q = round(x * 127 / max |x|), the maximum being that of a group or of the whole row, so x
// is about scale_x * q. With w = scale * code + minimum, a group adds
//     scale_x * scale * sum(code * q) + minimum * scale_x * sum(q)
// to an output; without minimums the zero point is taken off inside the integer sum. Integer sums are exact and groups
// are added in order, so a row's result is the same bits whatever else is multiplied.
#include <cmath>

#include "groupwise.h"
#include "product.h"
#include "tile.h"

namespace nonet {

namespace {

// A rounded row's block: units of four q, then for each group scale_x, then for each group either scale_x * sum(q) or
// the integer -zero * sum(q). Groups hold 16 numbers or more.
constexpr int kUnits = 304;
constexpr int kMostGroups = kUnits / 4;
constexpr int kScales = kUnits, kSums = kUnits + kMostGroups;
constexpr int kInt8RowUnits = 464;  // an odd number of cache lines
static_assert(kSums + kMostGroups <= kInt8RowUnits, "");

// acc + the dot products of four unsigned and four signed bytes in each lane.
NONET_INLINE i32x16 dot_bytes(i32x16 acc, u32x16 codes, uint32_t q) {
#if defined(__AVX512VNNI__)
  return (i32x16)_mm512_dpbusd_epi32((__m512i)acc, (__m512i)codes, _mm512_set1_epi32((int)q));
#elif defined(__AVX2__)
  // Even and odd bytes as 16-bit numbers: two exact multiply-and-add-pairs for each half of the lanes.
  const int8_t* each = reinterpret_cast<const int8_t*>(&q);
  const __m256i even = _mm256_set1_epi32((uint16_t)each[0] | (int32_t)each[2] * 65536);
  const __m256i odd = _mm256_set1_epi32((uint16_t)each[1] | (int32_t)each[3] * 65536);
  __m256i half[2], sum[2];
  std::memcpy(half, &codes, sizeof(codes));
  std::memcpy(sum, &acc, sizeof(acc));
  for (int i = 0; i < 2; ++i) {
    sum[i] = _mm256_add_epi32(sum[i], _mm256_madd_epi16(_mm256_and_si256(half[i], _mm256_set1_epi16(0xff)), even));
    sum[i] = _mm256_add_epi32(sum[i], _mm256_madd_epi16(_mm256_srli_epi16(half[i], 8), odd));
  }
  std::memcpy(&acc, sum, sizeof(acc));
  return acc;
#else
  const int8_t* each = reinterpret_cast<const int8_t*>(&q);
  for (int i = 0; i < 4; ++i) acc += (i32x16)(codes >> (8 * i) & 0xffu) * (int32_t)each[i];
  return acc;
#endif
}

template <int kBits, bool kMinimum, int R, int P>
void int8_tile(const GroupwiseWeight& w, const uint8_t* from, const uint32_t* left, int groups, const float* start,
               float* out, ptrdiff_t out_stride) {
  f32x16 total[R][P];
  NONET_UNROLL for (int r = 0; r < R; ++r) {
    NONET_UNROLL for (int p = 0; p < P; ++p)
      total[r][p] = load_f32(start ? start + p * kLanes : out + r * out_stride + p * kLanes);
  }
  const int loads = w.group * kBits / 32;
  const int codes_bytes = loads * 64, numbers_bytes = number_bytes(w);
  const int panel_bytes = w.record_bytes;
  for (int g = 0; g < groups; ++g, from += P * panel_bytes) {
    const uint32_t* q = left + g * (w.group / 4);
    i32x16 dot[R][P];
    NONET_UNROLL for (int r = 0; r < R; ++r) {
      const i32x16 begin = kMinimum ? i32x16{} : i32x16{} + (int32_t)left[r * kInt8RowUnits + kSums + g];
      NONET_UNROLL for (int p = 0; p < P; ++p) dot[r][p] = begin;
    }
    for (int step = 0; step < loads; ++step) {
      u32x16 raw[P];
      NONET_UNROLL for (int p = 0; p < P; ++p) {
        raw[p] = load<u32x16>(from + p * panel_bytes + step * 64);
        __builtin_prefetch(from + p * panel_bytes + step * 64 + kPrefetchBytes);
      }
      if constexpr (kBits == 8) {
        NONET_UNROLL for (int r = 0; r < R; ++r) {
          NONET_UNROLL for (int p = 0; p < P; ++p)
            dot[r][p] = dot_bytes(dot[r][p], raw[p], q[r * kInt8RowUnits + step]);
        }
      } else {
        u32x16 low[P], high[P];
        NONET_UNROLL for (int p = 0; p < P; ++p) {
          low[p] = raw[p] & 0x0f0f0f0fu;
          high[p] = raw[p] >> 4 & 0x0f0f0f0fu;
        }
        NONET_UNROLL for (int r = 0; r < R; ++r) {
          NONET_UNROLL for (int p = 0; p < P; ++p)
            dot[r][p] = dot_bytes(dot[r][p], low[p], q[r * kInt8RowUnits + step]);
        }
        NONET_UNROLL for (int r = 0; r < R; ++r) {
          NONET_UNROLL for (int p = 0; p < P; ++p)
            dot[r][p] = dot_bytes(dot[r][p], high[p], q[r * kInt8RowUnits + step + loads]);
        }
      }
    }
    NONET_UNROLL for (int p = 0; p < P; ++p) {
      const uint8_t* numbers = from + p * panel_bytes + codes_bytes;
      const f32x16 scale = load_numbers(w, numbers);
      const f32x16 minimum = kMinimum ? load_numbers(w, numbers + numbers_bytes) : f32x16{};
      NONET_UNROLL for (int r = 0; r < R; ++r) {
        const uint32_t* row = left + r * kInt8RowUnits + g;
        total[r][p] += __builtin_convertvector(dot[r][p], f32x16) * scale * bits_to_float(row[kScales]);
        if (kMinimum) total[r][p] += minimum * bits_to_float(row[kSums]);
      }
    }
  }
  NONET_UNROLL for (int r = 0; r < R; ++r) {
    NONET_UNROLL for (int p = 0; p < P; ++p) store(out + r * out_stride + p * kLanes, total[r][p]);
  }
}

using Int8Tile = decltype(&int8_tile<8, false, 1, 1>);

template <int kBits, bool kMinimum, int R>
Int8Tile int8_tile_of(int panels) {
  return panels == 1 ? int8_tile<kBits, kMinimum, R, 1> : int8_tile<kBits, kMinimum, R, kGroupwisePanels>;
}

template <int kBits, bool kMinimum>
Int8Tile choose_rows(int rows, int panels) {
  switch (rows) {
    case 1: return int8_tile_of<kBits, kMinimum, 1>(panels);
    case 2: return int8_tile_of<kBits, kMinimum, 2>(panels);
    case 3: return int8_tile_of<kBits, kMinimum, std::min(3, kGroupwiseRows)>(panels);
    case 4: return int8_tile_of<kBits, kMinimum, std::min(4, kGroupwiseRows)>(panels);
    case 5: return int8_tile_of<kBits, kMinimum, std::min(5, kGroupwiseRows)>(panels);
    default: return int8_tile_of<kBits, kMinimum, kGroupwiseRows>(panels);
  }
}

Int8Tile choose(const GroupwiseWeight& w, int rows, int panels) {
  if (w.bits == 4) return w.has_minimum ? choose_rows<4, true>(rows, panels) : choose_rows<4, false>(rows, panels);
  return w.has_minimum ? choose_rows<8, true>(rows, panels) : choose_rows<8, false>(rows, panels);
}

float largest_magnitude(const float* x, int64_t count) {
  f32x16 largest{};
  for (int64_t i = 0; i < count; i += kLanes)
    largest = max(as_f32((u32x16)load_f32(x + i) & 0x7fffffffu), largest);
  return max_lanes(largest);
}

// One group of x, nothing in it above `top`, as q; returns sum(q).
int32_t round_group(const float* x, int count, float top, int8_t* q) {
  const float inverse = top > 0.0f ? 127.0f / top : 0.0f;
  i32x16 sum{};
  for (int i = 0; i < count; i += kLanes) {
    const f32x16 shifted = load_f32(x + i) * inverse + kRoundingMagic;
    const i32x16 whole = (i32x16)shifted - (int32_t)0x4b400000;  // the bits of kRoundingMagic
    sum += whole;
    typedef int8_t i8x16 __attribute__((vector_size(16)));
    store(q + i, __builtin_convertvector(whole, i8x16));
  }
  return sum_lanes(sum);
}

struct Int8 {
  using Weight = GroupwiseWeight;
  static constexpr int kPanels = kGroupwisePanels;
  static constexpr int kRowUnits = kInt8RowUnits;

  // Groups of each block but the last.
  static int block_groups(const GroupwiseWeight& w) {
    const int64_t groups = w.depth / w.group, most = kUnits / (w.group / 4);
    const int64_t blocks = std::max<int64_t>(1, (groups + most - 1) / most);
    return (int)((groups + blocks - 1) / blocks);
  }

  static void round_row(const float* x, const GroupwiseWeight& w, int64_t block_stride, uint32_t* left) {
    const int64_t groups = w.depth / w.group;
    const int per_block = block_groups(w);
    const float top_of_row = w.by_token ? largest_magnitude(x, w.depth) : 0.0f;
    for (int64_t g = 0; g < groups; ++g) {
      uint32_t* block = left + g / per_block * block_stride;
      const int here = (int)(g % per_block);
      const float* from = x + g * w.group;
      const float top = w.by_token ? top_of_row : largest_magnitude(from, w.group);
      const float scale = top * (1.0f / 127.0f);
      int8_t* q = reinterpret_cast<int8_t*>(block + here * (w.group / 4));
      const int32_t sum = round_group(from, w.group, top, q);
      block[kScales + here] = float_to_bits(scale);
      block[kSums + here] = w.has_minimum ? float_to_bits(scale * (float)sum) : (uint32_t)(-w.zero * sum);
    }
  }

  static void multiply(const GroupwiseWeight& w, const uint32_t* left, int64_t block_stride, int rows, int64_t panel,
                       int panels, float* out, ptrdiff_t out_stride, char*) {
    const int groups = (int)(w.depth / w.group), per_block = block_groups(w);
    for (int b = 0; b * per_block < groups; ++b) {
      const uint8_t* first = record(w, panel, b * per_block);
      const int here = std::min(per_block, groups - b * per_block);
      const float* start = b == 0 ? w.bias + panel * kLanes : nullptr;
      for (int r = 0; r < rows; r += kGroupwiseRows)
        choose(w, rows - r, panels)(w, first,
                                    left + b * block_stride + r * kInt8RowUnits, here, start, out + r * out_stride,
                                    out_stride);
    }
  }
};

using Int8Product = Product<Int8>;

}  // namespace

const Kernel kLinearInt8 = {"linear_int8", sizeof(LinearArgs), 2, Int8Product::items, Int8Product::run};

}  // namespace nonet
