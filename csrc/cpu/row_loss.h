// One row's loss, whether it is right, and the gradient of its outputs, for every loss that `mlp_rows` has.
#pragma once

#include "../grokfast.h"

namespace grokfast {

// The row's part of the loss, not yet divided by `row_loss_terms`. x [outputs] holds the outputs and, where
// `wants_gradient`, receives `scale` times their gradient; buffer holds as many floats. The answer is a class, or of
// Loss::signs -1 or 1. Sets `right`.
double row_loss(const RowLoss& loss, float* x, int64_t answer, bool wants_gradient, float* buffer, int64_t outputs,
                float scale, bool& right);
// What the sum over n rows is divided by.
double row_loss_terms(const RowLoss& loss, int64_t n, int64_t outputs);

}  // namespace grokfast
