// Loss, accuracy and every gradient of a ReLU network on pairs of one-hot operands: a tile of rows goes
// from the gather of its hidden layer to the sums of the tables' gradients while it is in the cache, and every product
// with the hidden layer is made only where a unit is active (active.h).
// Classes beyond a multiple of 16, up to 8 of them, are not padded to a vector but have products along the units.
// Sums over rows are made tile by tile, in row order.
#include "active.h"
#include "classify.h"

namespace grokfast {

namespace {

using namespace active;

constexpr int64_t MOST_SINGLE = 8;
constexpr int64_t PARTS = 4;  // of the rows, each summed by itself: the same bits for any number of threads

// The classes as vectors and single ones.
struct Columns {
  int64_t vectors, singles;
  explicit Columns(int64_t classes) : vectors(classes / LANES), singles(classes % LANES) {
    if (vectors == 0 || singles > MOST_SINGLE) ++vectors, singles = 0;
  }
  int64_t width() const { return LANES * vectors; }
  int64_t stride() const { return width() + (singles ? LANES : 0); }
};

// A part of the rows, and what it adds to the results.
struct Part {
  int64_t begin, end;
  double loss = 0;
  int64_t n_right = 0;
  float *grad_a, *grad_b, *grad_weights, *grad_singles, *grad_bias;
};

// What every part reads.
struct Shared {
  const PairRows& p;
  Loss loss;
  Columns columns;
  int64_t units;  // a multiple of 16
  const float *weights, *singles, *hidden_bias, *first;
};

void compute(const Shared& shared, Part& part) {
  const PairRows& p = shared.p;
  const PairTables& t = p.tables;
  const Columns& columns = shared.columns;
  const Kernels& with = kernels();
  const int64_t units = shared.units, width = columns.width(), stride = columns.stride();
  const bool wants_gradient = p.grad_a != nullptr;
  Scratch hidden(ROWS * units), logits(ROWS * stride), buffer(p.classes), grad_hidden(wants_gradient ? ROWS * units : 0);
  Scratch tile_singles(columns.singles * units), tile_bias(stride);
  const float scale = float(1. / classify_terms(shared.loss, p.n, p.classes));
  for (int64_t begin = part.begin; begin < part.end; begin += ROWS) {
    const int64_t rows = std::min<int64_t>(ROWS, part.end - begin), padded = (rows + LANES - 1) / LANES * LANES;
    const int64_t *a = p.a + begin, *b = p.b + begin;
    for (int64_t r = 0; r < rows; ++r)
      with.hidden_row(t.w_a + a[r] * t.width, t.w_b + b[r] * t.width, shared.hidden_bias, hidden.data + r * units,
                      t.width);
    std::fill_n(hidden.data + rows * units, (padded - rows) * units, 0.f);
    for (int64_t r = 0; r < rows; ++r) std::copy_n(shared.first, stride, logits.data + r * stride);
    with.add_products(columns.vectors, hidden.data, rows, units, shared.weights, logits.data, stride);
    for (int64_t r = 0; r < rows; ++r) {
      float* x = logits.data + r * stride;
      for (int64_t s = 0; s < columns.singles; ++s)
        x[width + s] += with.dot(hidden.data + r * units, shared.singles + s * units, units);
      bool right;
      part.loss += classify_row(shared.loss, x, p.target[begin + r], wants_gradient ? x : nullptr, buffer.data,
                                p.classes, scale, right);
      part.n_right += right;
    }
    if (!wants_gradient) continue;
    with.backward_tile(columns.vectors, hidden.data, padded, units, logits.data, stride, shared.weights,
                       part.grad_weights, grad_hidden.data);
    std::fill_n(tile_bias.data, stride, 0.f);
    std::fill_n(tile_singles.data, columns.singles * units, 0.f);
    for (int64_t r = 0; r < rows; ++r) {
      float *grad = grad_hidden.data + r * units, *x = logits.data + r * stride;
      for (int64_t s = 0; s < columns.singles; ++s)
        with.single_class(x[width + s], hidden.data + r * units, shared.singles + s * units, grad,
                          tile_singles.data + s * units, units);
      with.add_to_two(part.grad_a + a[r] * t.width, part.grad_b + b[r] * t.width, grad, t.width);
      add_row(tile_bias.data, x, stride);
    }
    add_row(part.grad_bias, tile_bias.data, stride);
    add_row(part.grad_singles, tile_singles.data, columns.singles * units);
  }
}

}  // namespace

bool pair_rows_fit(int64_t classes) { return Columns(classes).vectors <= MOST; }

void pair_rows(const PairRows& p, Loss loss, double* loss_out, double* accuracy_out, int threads) {
  const PairTables& t = p.tables;
  if (!pair_rows_fit(p.classes)) throw std::invalid_argument("pair_rows takes no such number of classes");
  check_pairs(t, p.a, p.b, p.n);
  check_indices("target", p.target, p.n, p.classes);
  const Columns columns(p.classes);
  const int64_t units = (t.width + LANES - 1) / LANES * LANES, width = columns.width(), stride = columns.stride();
  const int64_t vector_classes = std::min(width, p.classes);
  Scratch weights(units * width), singles(columns.singles * units), first(stride);
  const OrZeros hidden_bias(t.bias, t.width);
  for (int64_t c = 0; c < vector_classes; ++c)
    for (int64_t j = 0; j < t.width; ++j) weights.data[j * width + c] = p.weight[c * t.width + j];
  for (int64_t s = 0; s < columns.singles; ++s)
    std::copy_n(p.weight + (width + s) * t.width, t.width, singles.data + s * units);
  if (p.bias) std::copy_n(p.bias, p.classes, first.data);
  const Shared shared{p, loss, columns, units, weights.data, singles.data, hidden_bias.at(), first.data};

  const int64_t tiles = (p.n + ROWS - 1) / ROWS, n_parts = std::min(PARTS, std::max<int64_t>(tiles, 1));
  const int64_t sizes[] = {t.rows_a * t.width, t.rows_b * t.width, units * width, columns.singles * units, stride};
  int64_t size = 0;
  for (const int64_t own : sizes) size += (own + LANES - 1) / LANES * LANES;
  Scratch grads(p.grad_a ? n_parts * size : 0);
  std::vector<Part> parts(n_parts);
  for (int64_t i = 0; i < n_parts; ++i) {
    Part& part = parts[i];
    part.begin = tiles * i / n_parts * ROWS;
    part.end = std::min(p.n, tiles * (i + 1) / n_parts * ROWS);
    float* at = grads.data + (p.grad_a ? i * size : 0);
    int which = 0;
    for (float** to : {&part.grad_a, &part.grad_b, &part.grad_weights, &part.grad_singles, &part.grad_bias}) {
      *to = at;
      at += (sizes[which++] + LANES - 1) / LANES * LANES;
    }
  }
#pragma omp parallel for num_threads(threads) schedule(dynamic, 1) if (threads > 1)
  for (int64_t i = 0; i < n_parts; ++i) compute(shared, parts[i]);

  double sum = 0;
  int64_t n_right = 0;
  for (const Part& part : parts) sum += part.loss, n_right += part.n_right;
  *loss_out = sum / classify_terms(loss, p.n, p.classes);
  *accuracy_out = double(n_right) / double(p.n);
  if (!p.grad_a) return;
  for (int64_t i = 1; i < n_parts; ++i) add_row(parts[0].grad_a, parts[i].grad_a, size);
  const Part& total = parts[0];
  std::copy_n(total.grad_a, sizes[0], p.grad_a);
  std::copy_n(total.grad_b, sizes[1], p.grad_b);
  for (int64_t c = 0; c < vector_classes; ++c)
    for (int64_t j = 0; j < t.width; ++j) p.grad_weight[c * t.width + j] = total.grad_weights[j * width + c];
  for (int64_t s = 0; s < columns.singles; ++s)
    std::copy_n(total.grad_singles + s * units, t.width, p.grad_weight + (width + s) * t.width);
  if (p.grad_bias) std::copy_n(total.grad_bias, p.classes, p.grad_bias);
}

}  // namespace grokfast
