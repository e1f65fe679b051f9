// activation(gate) * up, for the gated operation and for linear layers that take its place.
#pragma once

#include "linear.h"

namespace nonet {

// Not inlined: one copy of the arithmetic for every caller.
void gate_row(Gate gate, const float* gates, const float* ups, float* out, int count);

}  // namespace nonet
