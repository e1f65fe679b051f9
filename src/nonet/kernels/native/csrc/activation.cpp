#include "activation.h"

#include "simd.h"

namespace nonet {

namespace {

template <class Activation>
void gate_with(const float* gates, const float* ups, float* out, int count, Activation activation) {
  int i = 0;
  for (; i + kLanes <= count; i += kLanes) store(out + i, activation(load_f32(gates + i)) * load_f32(ups + i));
  if (i < count) {
    const int rest = count - i;
    store_partial(out + i, activation(load_partial(gates + i, rest)) * load_partial(ups + i, rest), rest);
  }
}

f32x16 silu(f32x16 v) { return v / (1.0f + exp(-v)); }

f32x16 gelu_tanh(f32x16 v) {
  const float root = 0.7978845608028654f;  // sqrt(2 / pi)
  return 0.5f * v * (1.0f + tanh(root * (v + 0.044715f * v * v * v)));
}

}  // namespace

void gate_row(Gate gate, const float* gates, const float* ups, float* out, int count) {
  if (gate == Gate::kSilu)
    gate_with(gates, ups, out, count, [](f32x16 v) { return silu(v); });
  else
    gate_with(gates, ups, out, count, [](f32x16 v) { return gelu_tanh(v); });
}

}  // namespace nonet
