// One row of `classify`.
#pragma once

#include "../grokfast.h"

namespace grokfast {

// Whether the answer has the first of the largest outputs.
bool row_is_right(const float* x, int64_t classes, int64_t answer);
// The row's loss, summed over classes and not yet divided by rows; grad, unless null, receives `scale` times its
// gradient and may be x; buffer holds `classes` floats. Sets `right`.
double classify_row(Loss loss, const float* x, int64_t answer, float* grad, float* buffer, int64_t classes, float scale,
                    bool& right);
// What the sum of the rows' losses is divided by for a mean over `of` rows.
double classify_terms(Loss loss, int64_t of, int64_t classes);

}  // namespace grokfast
