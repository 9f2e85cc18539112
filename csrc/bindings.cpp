// grokfast._C: pointers arrive as integers, tables as buffers. Python checks shapes and dtypes; here only what would
// let a wrong table read out of bounds.
#include <pybind11/pybind11.h>

#include <limits>
#include <stdexcept>
#include <utility>

#include "grokfast.h"
#include "look.h"

namespace py = pybind11;
using namespace grokfast;

namespace {

template <typename T>
T* pointer(int64_t address) {
  return reinterpret_cast<T*>(address);
}

static_assert(sizeof(UpdateEntry) == 11 * sizeof(int64_t), "an entry is a row of 11 64-bit integers");

// A host table of entries; rows of hyper-parameters lie in [0, hyper_rows).
std::pair<const UpdateEntry*, int64_t> checked(const py::buffer_info& table, int64_t hyper_rows) {
  if (table.itemsize != 8 || table.size % 11) throw std::invalid_argument("entries must be rows of 11 64-bit integers");
  const auto* entries = static_cast<const UpdateEntry*>(table.ptr);
  const int64_t n = table.size / 11;
  for (int64_t i = 0; i < n; ++i) {
    if (entries[i].hyper_row < 0 || entries[i].hyper_row >= hyper_rows)
      throw std::out_of_range("hyper_row is outside hyper");
    if (entries[i].size > 0 && !(entries[i].param && entries[i].grad))
      throw std::invalid_argument("a parameter or gradient has no memory");
  }
  return {entries, n};
}

void bind_update(int rule, int filter, const py::buffer& entries, const py::buffer& hyper, int64_t shared_step,
                 int threads, int ring_type) {
  const py::buffer_info table = entries.request(), rows = hyper.request();
  if (rows.itemsize != 8 || rows.size % hyper_count) throw std::invalid_argument("hyper has a row of the wrong length");
  const auto [first, n] = checked(table, rows.size / hyper_count);
  py::gil_scoped_release release;
  update(Rule(rule), FilterKind(filter), RingType(ring_type), first, n, static_cast<const double*>(rows.ptr),
         shared_step, threads);
}

// How a list of tensors lies in memory, to be compared with how it lay.
py::bytes bind_look(const py::capsule& exchange, const py::list& tensors, bool with_addresses) {
  const ExchangeTable* table = exchange_table(exchange.ptr());
  std::vector<int64_t> look;
  look.reserve(8 * tensors.size());
  for (const py::handle& tensor : tensors)
    if (!append_look(table, tensor.ptr(), with_addresses, look)) throw py::error_already_set();
  return py::bytes(reinterpret_cast<const char*>(look.data()), look.size() * sizeof(int64_t));
}

// As bind_update, but hyper-parameters lie where the host cannot look, and nobody else counts the steps.
std::pair<const UpdateEntry*, int64_t> checked_for_device(int rule, int filter, const py::buffer_info& table,
                                                          const DeviceTables& tables) {
  const auto [first, n] = checked(table, std::numeric_limits<int64_t>::max());
  if (n > 0 && !(tables.hyper && tables.tickets)) throw std::invalid_argument("hyper or tickets has no memory");
  for (int64_t i = 0; i < n; ++i) {
    if (Rule(rule) == Rule::adam && !first[i].step) throw std::invalid_argument("Adam needs a step");
    if (FilterKind(filter) == FilterKind::ma && !first[i].count)
      throw std::invalid_argument("a moving average needs a count");
  }
  return {first, n};
}

DeviceTables device_tables(int64_t hyper, int64_t overrides, int64_t tickets) {
  return {pointer<double>(hyper), pointer<int64_t>(overrides), pointer<int32_t>(tickets)};
}

void bind_update_like_cuda(int rule, int filter, int ring_type, const py::buffer& entries, int64_t hyper,
                           int64_t overrides, int64_t tickets, bool large_tables) {
  const py::buffer_info table = entries.request();
  const DeviceTables tables = device_tables(hyper, overrides, tickets);
  const auto [first, n] = checked_for_device(rule, filter, table, tables);
  py::gil_scoped_release release;
  update_like_cuda(Rule(rule), FilterKind(filter), RingType(ring_type), first, n, tables, large_tables);
}

#if defined(GROKFAST_WITH_CUDA)
void bind_cuda_update(int rule, int filter, int ring_type, const py::buffer& entries, int64_t hyper, int64_t overrides,
                      int64_t tickets, int device, int64_t stream) {
  const py::buffer_info table = entries.request();
  const DeviceTables tables = device_tables(hyper, overrides, tickets);
  const auto [first, n] = checked_for_device(rule, filter, table, tables);
  py::gil_scoped_release release;
  cuda_update(Rule(rule), FilterKind(filter), RingType(ring_type), first, n, tables, device, pointer<void>(stream));
}
#endif

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "CPU and CUDA kernels of grokfast on raw pointers; use the Python functions, which check their input.";
  m.attr("hyper_count") = int(hyper_count);
  m.def("look", &bind_look, py::arg("exchange"), py::arg("tensors"), py::arg("with_addresses"));
  m.def("update", &bind_update, py::arg("rule"), py::arg("filter"), py::arg("entries"), py::arg("hyper"),
        py::arg("shared_step"), py::arg("threads"), py::arg("ring_type") = 0);
  m.def("update_like_cuda", &bind_update_like_cuda, py::arg("rule"), py::arg("filter"), py::arg("ring_type"),
        py::arg("entries"), py::arg("hyper"), py::arg("overrides"), py::arg("tickets"), py::arg("large_tables"));

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
      "pair_embed_add_gradients",
      [](const PairTables& t, int64_t a, int64_t b, int64_t grad_out, int64_t grad_a, int64_t grad_b, int64_t n,
         int activation) {
        pair_embed_add_gradients(t, pointer<int64_t>(a), pointer<int64_t>(b), pointer<float>(grad_out),
                                 pointer<float>(grad_a), pointer<float>(grad_b), n, Activation(activation));
      },
      py::call_guard<py::gil_scoped_release>());
  m.def(
      "classify",
      [](int loss, int64_t logits, int64_t target, int64_t grad_logits, int64_t loss_out, int64_t accuracy_out,
         int64_t models, int64_t n, int64_t of, int64_t classes, int threads) {
        classify(Loss(loss), pointer<float>(logits), pointer<int64_t>(target), pointer<float>(grad_logits),
                 pointer<float>(loss_out), pointer<float>(accuracy_out), models, n, of, classes, threads);
      },
      py::call_guard<py::gil_scoped_release>());

  m.def("active_products_work", &active_products_work);
  m.def("active_products_fit", &active_products_fit);
  m.def(
      "active_forward",
      [](int64_t hidden, int64_t weights, int64_t bias, int64_t skip, int64_t out, int64_t rows, int64_t units,
         int64_t width, int threads) {
        active_forward(pointer<float>(hidden), pointer<float>(weights), pointer<float>(bias), pointer<float>(skip),
                       pointer<float>(out), rows, units, width, threads);
      },
      py::call_guard<py::gil_scoped_release>());
  m.def(
      "active_backward",
      [](int64_t hidden, int64_t grad_out, int64_t weights, int64_t x, int64_t grad_hidden, int64_t grad_weights,
         int64_t grad_first, int64_t grad_bias, int64_t rows, int64_t units, int64_t n_in, int64_t n_out, int threads) {
        active_backward({pointer<float>(hidden), pointer<float>(grad_out), pointer<float>(weights), pointer<float>(x),
                         pointer<float>(grad_hidden), pointer<float>(grad_weights), pointer<float>(grad_first),
                         pointer<float>(grad_bias), rows, units, n_in, n_out},
                        threads);
      },
      py::call_guard<py::gil_scoped_release>());
  m.def("pair_rows_fit", &pair_rows_fit);
  m.def("pair_rows", [](const PairTables& tables, int64_t weight, int64_t bias, int64_t classes, int64_t a, int64_t b,
                        int64_t target, int64_t n, int64_t grad_a, int64_t grad_b, int64_t grad_weight,
                        int64_t grad_bias, int loss, int threads) {
    const PairRows rows{tables,
                        pointer<float>(weight),
                        pointer<float>(bias),
                        classes,
                        pointer<int64_t>(a),
                        pointer<int64_t>(b),
                        pointer<int64_t>(target),
                        n,
                        pointer<float>(grad_a),
                        pointer<float>(grad_b),
                        pointer<float>(grad_weight),
                        pointer<float>(grad_bias)};
    std::pair<double, double> found;
    py::gil_scoped_release release;
    pair_rows(rows, Loss(loss), &found.first, &found.second, threads);
    return found;
  });

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
  m.def("cuda_update", &bind_cuda_update, py::arg("rule"), py::arg("filter"), py::arg("ring_type"), py::arg("entries"),
        py::arg("hyper"), py::arg("overrides"), py::arg("tickets"), py::arg("device"), py::arg("stream"));
#else
  m.attr("with_cuda") = false;
#endif
}
