// Loss, accuracy and every gradient of a network of fully connected layers: a tile of rows goes through all layers and
// back while it is in the cache, and products pass over what is zero (products.h). A first layer of one-hot tokens is a
// sum of rows of a table. Sums over rows are made tile by tile, in row order, in parts that depend on their number
// only: the same bits for any number of threads.
#include "activation.h"
#include "products.h"
#include "row_loss.h"
#include "rows.h"

namespace grokfast {
namespace {

using namespace products;

constexpr int64_t TILE = MARKED;  // rows
constexpr int64_t PARTS = 4;      // of the rows
constexpr int64_t FEW = 2;        // outputs

// A layer as the products read it. forward [n_in, n_out] is the weights' transpose, backward [n_out, n_in] the weights,
// rows stride_of apart; of a first layer by tables neither is needed. is_turned: the gradient is summed up as `forward` lies,
// so that the relu's zeros are passed over. is_narrow: outputs so few that they are products along the units.
struct Layer : MlpLayer {
  bool is_tables, is_turned, is_narrow;
  float *forward = nullptr, *backward = nullptr;
  int64_t in() const { return stride_of(n_in); }
  int64_t out() const { return stride_of(n_out); }
  int64_t grad_rows() const { return is_tables || is_turned ? n_in : n_out; }
  int64_t grad_stride() const { return is_tables ? n_out : is_turned ? out() : in(); }
  int64_t grad_size() const { return padded(grad_rows() * grad_stride()) + out(); }  // and of the bias
};

struct Part {
  int64_t begin, end;
  double loss = 0;
  int64_t n_right = 0;
  float* grads = nullptr;  // of the layers, one after the other
};

GF_CLONES void activate_rows(float* x, float* slopes, int64_t rows, int64_t width, int64_t stride, Activation activation) {
  for (int64_t r = 0; r < rows; ++r, x += stride, slopes += slopes ? stride : 0) {
    if (slopes) {
      GF_PER_ACTIVATION(for (int64_t i = 0; i < width; ++i) slopes[i] = slope(x[i], kind))
    }
    GF_PER_ACTIVATION(for (int64_t i = 0; i < width; ++i) x[i] = activate(x[i], kind))
  }
}

// grad *= act', from the relu's output or the slopes.
GF_CLONES void back_rows(float* __restrict grad, const float* __restrict kept, int64_t n, bool is_relu) {
  if (is_relu)
    for (int64_t i = 0; i < n; ++i) grad[i] = kept[i] <= 0.f ? 0.f : grad[i];
  else
    for (int64_t i = 0; i < n; ++i) grad[i] *= kept[i];
}

// total += the sums over rows of x [rows, width], of a tile in double; sums holds `width`.
GF_CLONES void add_columns(const float* __restrict x, int64_t rows, int64_t width, double* __restrict sums,
                           float* __restrict total) {
  std::fill_n(sums, width, 0.);
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t i = 0; i < width; ++i) sums[i] += x[r * width + i];
  for (int64_t i = 0; i < width; ++i) total[i] += float(sums[i]);
}

GF_CLONES float dot(const float* x, const float* y, int64_t n) {
  float sum = 0.f;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < n; ++i) sum += x[i] * y[i];
  return sum;
}

// out [columns, stride] = the transpose of x [rows, columns].
GF_CLONES void transpose(const float* x, int64_t rows, int64_t columns, float* out, int64_t stride) {
  for (int64_t begin = 0; begin < rows; begin += LANES) {
    const int64_t end = std::min(rows, begin + LANES);
    for (int64_t j = 0; j < columns; ++j)
      for (int64_t i = begin; i < end; ++i) out[j * stride + i] = x[i * columns + j];
  }
}

struct Network {
  const MlpRows& p;
  std::vector<Layer> layers;
  bool is_relu;
  int64_t widest = 0, grads_size = 0, kept_size = 0;  // of a row; of a part; of a tile

  explicit Network(const MlpRows& p) : p(p), is_relu(p.activation == Activation::relu) {
    for (int64_t l = 0; l < p.n_layers; ++l) {
      const bool is_last = l > 0 && l == p.n_layers - 1;
      const int64_t n_out = p.layers[l].n_out;
      Layer layer{p.layers[l], l == 0 && !p.features, is_last && is_relu && 2 * n_out > padded(n_out),
                  is_last && n_out <= FEW};
      widest = std::max({widest, layer.out(), layer.is_tables ? 0 : layer.in()});
      grads_size += layer.grad_size();
      kept_size += TILE * layer.out();
      layers.push_back(layer);
    }
  }
};

class Pass {
  const Network& net;
  Part& part;
  Scratch features, kept, slopes, grads, turned, buffer;
  std::vector<double> sums;
  std::vector<uint64_t> masks, turned_masks;
  std::vector<float*> out, slope_of;  // of each layer
  const float scale;

 public:
  Pass(const Network& net, Part& part)
      : net(net), part(part), features(net.p.features ? TILE * net.layers[0].in() : 0), kept(net.kept_size),
        slopes(net.is_relu || !net.p.wants_gradient ? 0 : net.kept_size), grads(2 * TILE * net.widest),
        turned(TILE * net.widest), buffer(net.widest), sums(net.widest), masks(TILE * words(net.widest)),
        turned_masks(net.widest),
        scale(float(1. / row_loss_terms(net.p.loss, net.p.n, net.layers.back().n_out))) {
    int64_t at = 0;
    for (const Layer& layer : net.layers) {
      out.push_back(kept.data + at);
      slope_of.push_back(slopes.memory.size() > LANES ? slopes.data + at : nullptr);
      at += TILE * layer.out();
    }
  }

  void run() {
    for (int64_t begin = part.begin; begin < part.end; begin += TILE) {
      const int64_t rows = std::min(TILE, part.end - begin);
      forward(begin, rows);
      judge(begin, rows);
      if (net.p.wants_gradient) backward(begin, rows);
    }
  }

 private:
  const float* input(int64_t l) const { return l ? out[l - 1] : features.data; }

  void forward(int64_t begin, int64_t rows) {
    const MlpRows& p = net.p;
    for (size_t l = 0; l < net.layers.size(); ++l) {
      const Layer& layer = net.layers[l];
      const int64_t stride = layer.out();
      for (int64_t r = 0; r < rows; ++r) {
        float* row = out[l] + r * stride;
        if (layer.bias)
          std::copy_n(layer.bias, layer.n_out, row);
        else
          std::fill_n(row, layer.n_out, 0.f);
        std::fill_n(row + layer.n_out, stride - layer.n_out, 0.f);
        if (layer.is_tables)
          for (int64_t t = 0; t < p.slots; ++t)
            add_row(row, layer.weight + p.index[(begin + r) * p.slots + t] * layer.n_out, layer.n_out);
      }
      if (!layer.is_tables) {
        if (l == 0)
          for (int64_t r = 0; r < rows; ++r)
            std::copy_n(p.features + (begin + r) * layer.n_in, layer.n_in, features.data + r * layer.in());
        if (layer.is_narrow) {
          for (int64_t r = 0; r < rows; ++r)
            for (int64_t j = 0; j < layer.n_out; ++j)
              out[l][r * stride + j] += dot(input(l) + r * layer.in(), layer.weight + j * layer.n_in, layer.n_in);
          continue;
        }
        mark(input(l), rows, layer.n_in, layer.in(), masks.data());
        add_product(input(l), masks.data(), rows, layer.n_in, layer.forward, out[l], layer.n_out);
      }
      if (l + 1 < net.layers.size())
        activate_rows(out[l], slope_of[l], rows, layer.n_out, stride, p.activation);
    }
  }

  // Outputs become their gradient.
  void judge(int64_t begin, int64_t rows) {
    const Layer& last = net.layers.back();
    for (int64_t r = 0; r < rows; ++r) {
      bool right;
      part.loss += row_loss(net.p.loss, out.back() + r * last.out(), net.p.target[begin + r], net.p.wants_gradient,
                            buffer.data, last.n_out, scale, right);
      part.n_right += right;
    }
  }

  void backward(int64_t begin, int64_t rows) {
    float* to = part.grads + net.grads_size;
    float* g = out.back();
    for (int64_t l = int64_t(net.layers.size()) - 1; l >= 0; --l) {
      const Layer& layer = net.layers[l];
      to -= layer.grad_size();
      if (layer.grad_bias) {
        add_columns(g, rows, layer.out(), sums.data(), to + layer.grad_size() - layer.out());
      }
      if (layer.is_tables) {
        for (int64_t r = 0; r < rows; ++r)
          for (int64_t t = 0; t < net.p.slots; ++t)
            add_row(to + net.p.index[(begin + r) * net.p.slots + t] * layer.n_out, g + r * layer.out(), layer.n_out);
        return;
      }
      const float *factors = layer.is_turned ? input(l) : g, *rows_of = layer.is_turned ? g : input(l);
      const int64_t units = layer.grad_rows();
      turn(factors, rows, units, stride_of(units), turned.data);
      mark(turned.data, units, TILE, TILE, turned_masks.data());
      add_gradient(turned.data, turned_masks.data(), units, rows_of, rows, to,
                   layer.is_turned ? layer.n_out : layer.n_in);
      if (l == 0) return;
      float* of_input = grads.data + l % 2 * TILE * net.widest;
      std::fill_n(of_input, rows * layer.in(), 0.f);
      mark(g, rows, layer.n_out, layer.out(), masks.data());
      add_product(g, masks.data(), rows, layer.n_out, layer.backward, of_input, layer.n_in);
      back_rows(of_input, net.is_relu ? input(l) : slope_of[l - 1], rows * layer.in(), net.is_relu);
      g = of_input;
    }
  }
};

// Writes what the parts add up to, of one layer's gradients, which begin at `at` of a part's.
void write(const Layer& layer, const std::vector<Part>& parts, int64_t at) {
  float* sum = parts[0].grads + at;
  for (size_t i = 1; i < parts.size(); ++i) add_row(sum, parts[i].grads + at, layer.grad_size());
  if (layer.is_turned)
    for (int64_t k = 0; k < layer.n_in; ++k)
      for (int64_t j = 0; j < layer.n_out; ++j) layer.grad_weight[j * layer.n_in + k] = sum[k * layer.out() + j];
  else
    for (int64_t j = 0; j < layer.grad_rows(); ++j) {
      const int64_t width = layer.is_tables ? layer.n_out : layer.n_in;
      std::copy_n(sum + j * layer.grad_stride(), width, layer.grad_weight + j * width);
    }
  if (layer.grad_bias) std::copy_n(sum + layer.grad_size() - layer.out(), layer.n_out, layer.grad_bias);
}

}  // namespace

bool mlp_rows_are_fast() { return are_fast(); }

void mlp_rows(const MlpRows& p, double* loss_out, double* accuracy_out, int threads) {
  if (p.index) check_indices("index", p.index, p.n * p.slots, p.layers[0].n_in);
  if (p.loss.kind != RowLoss::signs) check_indices("target", p.target, p.n, p.layers[p.n_layers - 1].n_out);
  Network net(p);
  int64_t size = 0;
  for (const Layer& layer : net.layers)
    if (!layer.is_tables) size += padded(layer.n_in * layer.out() + layer.n_out * layer.in());
  Scratch weights(size);
  float* at = weights.data;
  for (size_t l = 0; l < net.layers.size(); ++l) {
    Layer& layer = net.layers[l];
    if (layer.is_tables) continue;
    layer.forward = at;
    layer.backward = at + layer.n_in * layer.out();
    at += padded(layer.n_in * layer.out() + layer.n_out * layer.in());
    if (!layer.is_narrow) transpose(layer.weight, layer.n_out, layer.n_in, layer.forward, layer.out());
    if (l > 0 && p.wants_gradient)
      for (int64_t j = 0; j < layer.n_out; ++j)
        std::copy_n(layer.weight + j * layer.n_in, layer.n_in, layer.backward + j * layer.in());
  }

  const int64_t tiles = (p.n + TILE - 1) / TILE, n_parts = std::min(PARTS, tiles);
  Scratch grads(p.wants_gradient ? n_parts * net.grads_size : 0);
  std::vector<Part> parts(n_parts);
  for (int64_t i = 0; i < n_parts; ++i) {
    parts[i].begin = tiles * i / n_parts * TILE;
    parts[i].end = std::min(p.n, tiles * (i + 1) / n_parts * TILE);
    parts[i].grads = grads.data + (p.wants_gradient ? i * net.grads_size : 0);
  }
  const bool is_parallel = threads > 1 && n_parts > 1;
#pragma omp parallel for num_threads(threads) schedule(dynamic, 1) if (is_parallel)
  for (int64_t i = 0; i < n_parts; ++i) Pass(net, parts[i]).run();

  double sum = 0;
  int64_t n_right = 0;
  for (const Part& part : parts) sum += part.loss, n_right += part.n_right;
  *loss_out = sum / row_loss_terms(p.loss, p.n, net.layers.back().n_out);
  *accuracy_out = double(n_right) / double(p.n);
  if (!p.wants_gradient) return;
  std::vector<int64_t> begin(1);
  for (const Layer& layer : net.layers) begin.push_back(begin.back() + layer.grad_size());
  const int64_t n_layers = p.n_layers;
#pragma omp parallel for num_threads(threads) schedule(dynamic, 1) if (is_parallel)
  for (int64_t l = 0; l < n_layers; ++l) write(net.layers[l], parts, begin[l]);
}

}  // namespace grokfast
