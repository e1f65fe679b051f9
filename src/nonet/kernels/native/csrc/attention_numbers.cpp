// Attention over a cache of numbers.
#include "attention_arithmetic.h"

namespace nonet {

template class TileAttention<Element::kFloat32, Storage::kNumbers>;
template class TileAttention<Element::kBfloat16, Storage::kNumbers>;

}  // namespace nonet
