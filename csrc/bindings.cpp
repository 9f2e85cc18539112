// grokfast._C: pointers arrive as integers, tables as buffers. Python checks shapes and dtypes; here only what would
// let a wrong table read out of bounds.
#include <pybind11/pybind11.h>

#include <stdexcept>

#include "grokfast.h"

namespace py = pybind11;
using namespace grokfast;

namespace {

template <typename T>
T* pointer(int64_t address) {
  return reinterpret_cast<T*>(address);
}

static_assert(sizeof(UpdateEntry) == 11 * sizeof(int64_t), "an entry is a row of 11 64-bit integers");

void bind_update(int rule, int filter, const py::buffer& entries, const py::buffer& hyper, int64_t shared_step,
                 int threads) {
  const py::buffer_info table = entries.request(), rows = hyper.request();
  const int64_t n = table.size * table.itemsize / int64_t(sizeof(UpdateEntry));
  if (table.itemsize != 8 || table.size % 11) throw std::invalid_argument("entries must be rows of 11 64-bit integers");
  if (rows.itemsize != 8 || rows.size % hyper_count) throw std::invalid_argument("hyper has a row of the wrong length");
  const auto* first = static_cast<const UpdateEntry*>(table.ptr);
  for (int64_t i = 0; i < n; ++i) {
    if (first[i].hyper_row < 0 || first[i].hyper_row >= rows.size / hyper_count)
      throw std::out_of_range("hyper_row is outside hyper");
    if (first[i].size > 0 && !(first[i].param && first[i].grad))
      throw std::invalid_argument("a parameter or gradient has no memory");
  }
  py::gil_scoped_release release;
  update(Rule(rule), FilterKind(filter), first, n, static_cast<const double*>(rows.ptr), shared_step, threads);
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "CPU and CUDA kernels of grokfast on raw pointers; use the Python functions, which check their input.";
  m.attr("hyper_count") = int(hyper_count);
  m.def("update", &bind_update, py::arg("rule"), py::arg("filter"), py::arg("entries"), py::arg("hyper"),
        py::arg("shared_step"), py::arg("threads"));

  py::class_<PairTables>(m, "PairTables")
      .def(py::init([](int64_t w_a, int64_t w_b, int64_t bias, int64_t stride_a, int64_t stride_b, int64_t stride_bias,
                       int64_t rows_a, int64_t rows_b, int64_t width) {
        return PairTables{pointer<float>(w_a), pointer<float>(w_b), pointer<float>(bias), stride_a, stride_b,
                          stride_bias,         rows_a,              rows_b,               width};
      }));
  m.def(
      "pair_embed_forward",
      [](const PairTables& t, int64_t a, int64_t b, int64_t out, int64_t models, int64_t n, int activation, int threads) {
        pair_embed_forward(t, pointer<int64_t>(a), pointer<int64_t>(b), pointer<float>(out), models, n,
                           Activation(activation), threads);
      },
      py::call_guard<py::gil_scoped_release>());
  m.def(
      "pair_embed_backward",
      [](const PairTables& t, int64_t a, int64_t b, int64_t grad_out, int64_t grad_a, int64_t grad_b, int64_t grad_bias,
         int64_t models, int64_t n, int activation, int threads) {
        pair_embed_backward(t, pointer<int64_t>(a), pointer<int64_t>(b), pointer<float>(grad_out), pointer<float>(grad_a),
                            pointer<float>(grad_b), pointer<float>(grad_bias), models, n, Activation(activation),
                            threads);
      },
      py::call_guard<py::gil_scoped_release>());
  m.def(
      "classify",
      [](int loss, int64_t logits, int64_t target, int64_t grad_logits, int64_t loss_out, int64_t accuracy_out,
         int64_t models, int64_t n, int64_t classes, int threads) {
        classify(Loss(loss), pointer<float>(logits), pointer<int64_t>(target), pointer<float>(grad_logits),
                 pointer<float>(loss_out), pointer<float>(accuracy_out), models, n, classes, threads);
      },
      py::call_guard<py::gil_scoped_release>());

  m.def(
      "group_readers",
      [](int64_t index, int64_t n, int64_t rows, int64_t start, int64_t items) {
        group_readers(pointer<int64_t>(index), n, rows, pointer<int64_t>(start), pointer<int64_t>(items));
      },
      py::call_guard<py::gil_scoped_release>());
  py::class_<Readers>(m, "Readers").def(py::init([](int64_t start, int64_t items, int64_t rows) {
    return Readers{pointer<int64_t>(start), pointer<int64_t>(items), rows};
  }));
  m.def(
      "sum_readers",
      [](int64_t x, const Readers& readers, int64_t out, int64_t width, int threads) {
        sum_readers(pointer<float>(x), readers, pointer<float>(out), width, threads);
      },
      py::call_guard<py::gil_scoped_release>());
  m.def(
      "activate_forward",
      [](int64_t z, int64_t bias, int64_t slope, int64_t rows, int64_t width, int activation, int threads) {
        activate_forward(pointer<float>(z), pointer<float>(bias), pointer<float>(slope), rows, width,
                         Activation(activation), threads);
      },
      py::call_guard<py::gil_scoped_release>());
  m.def(
      "activate_backward",
      [](int64_t grad, int64_t kept, int64_t grad_bias, int64_t rows, int64_t width, int activation, int threads) {
        activate_backward(pointer<float>(grad), pointer<float>(kept), pointer<float>(grad_bias), rows, width,
                          Activation(activation), threads);
      },
      py::call_guard<py::gil_scoped_release>());
  m.def(
      "add_rows",
      [](int64_t out, int64_t table, int64_t index, int64_t bias, int64_t rows, int64_t width, int threads) {
        add_rows(pointer<float>(out), pointer<float>(table), pointer<int64_t>(index), pointer<float>(bias), rows, width,
                 threads);
      },
      py::call_guard<py::gil_scoped_release>());
  py::class_<GatheredAttention>(m, "GatheredAttention")
      .def(py::init([](int64_t q, int64_t kv, int64_t stride_q, int64_t stride_kv, int64_t query, int64_t keys,
                       int64_t rows, int64_t slots, int64_t n_queries, int64_t n_keys, int64_t heads, int64_t d_head) {
        return GatheredAttention{pointer<float>(q),
                                 pointer<float>(kv),
                                 stride_q,
                                 stride_kv,
                                 pointer<int64_t>(query),
                                 pointer<int64_t>(keys),
                                 rows,
                                 slots,
                                 n_queries,
                                 n_keys,
                                 heads,
                                 d_head};
      }));
  m.def(
      "layer_norm_forward",
      [](int64_t x, int64_t weight, int64_t bias, int64_t out, int64_t stats, int64_t rows, int64_t width, float eps,
         int threads) {
        layer_norm_forward(pointer<float>(x), pointer<float>(weight), pointer<float>(bias), pointer<float>(out),
                           pointer<float>(stats), rows, width, eps, threads);
      },
      py::call_guard<py::gil_scoped_release>());
  m.def(
      "layer_norm_backward",
      [](int64_t x, int64_t weight, int64_t stats, int64_t grad, int64_t grad_x, int64_t grad_weight, int64_t grad_bias,
         int64_t rows, int64_t width, int threads) {
        layer_norm_backward(pointer<float>(x), pointer<float>(weight), pointer<float>(stats), pointer<float>(grad),
                            pointer<float>(grad_x), pointer<float>(grad_weight), pointer<float>(grad_bias), rows, width,
                            threads);
      },
      py::call_guard<py::gil_scoped_release>());
  m.def(
      "gathered_attention_forward",
      [](const GatheredAttention& a, int64_t out, int64_t weights, int threads) {
        gathered_attention_forward(a, pointer<float>(out), pointer<float>(weights), threads);
      },
      py::call_guard<py::gil_scoped_release>());
  m.def(
      "gathered_attention_backward",
      [](const GatheredAttention& a, const Readers& by_query, const Readers& by_key, int64_t weights, int64_t grad_out,
         int64_t grad_q, int64_t grad_kv, int threads) {
        gathered_attention_backward(a, by_query, by_key, pointer<float>(weights), pointer<float>(grad_out),
                                    pointer<float>(grad_q), pointer<float>(grad_kv), threads);
      },
      py::call_guard<py::gil_scoped_release>());

#if defined(GROKFAST_WITH_CUDA)
  m.attr("with_cuda") = true;
  m.def("cuda_device_count", &cuda_device_count);
  m.def(
      "cuda_ema_filter",
      [](int64_t grad, int64_t ema, int64_t out, int64_t size, double alpha, float lamb, int64_t stream) {
        cuda_ema_filter(pointer<float>(grad), pointer<float>(ema), pointer<float>(out), size, alpha, lamb,
                        pointer<void>(stream));
      },
      py::call_guard<py::gil_scoped_release>());
#else
  m.attr("with_cuda") = false;
#endif
}
