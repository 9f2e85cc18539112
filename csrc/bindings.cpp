// grokfast._C. Operations get torch's tensors, checked by tensors.h; the optimizers' update a table of addresses as a
// buffer, of which only what would let a wrong table read out of bounds is checked here.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <limits>
#include <stdexcept>
#include <utility>
#include <vector>

#include "grokfast.h"
#include "look.h"
#include "tensors.h"

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

// Rows of 6 doubles, for each entry share, l1, l2, norm, row and whether it is held.
std::vector<RowWise> checked_row_wise(const py::buffer_info& table, Rule rule, const UpdateEntry* entries, int64_t n) {
  if (table.itemsize != 8 || table.size != 6 * n) throw std::invalid_argument("row_wise must be a row of 6 for each entry");
  if (rule == Rule::none) throw std::invalid_argument("row_wise needs the weights, which rule none does not have");
  const auto* numbers = static_cast<const double*>(table.ptr);
  std::vector<RowWise> found;
  for (int64_t i = 0; i < n; ++i, numbers += 6) {
    const auto row = int64_t(numbers[4]);
    if (row < -1 || (row > 0 && entries[i].size % row)) throw std::invalid_argument("row must divide its tensor");
    found.push_back({numbers[0], numbers[1], numbers[2], numbers[3], row, numbers[5] != 0});
  }
  return found;
}

// Rows of doubles, for each entry alpha and lamb of as many averages as there is room for.
Averages checked_averages(const py::buffer_info& table, FilterKind filter, int64_t n) {
  if (table.itemsize != 8 || table.size == 0 || n == 0 || table.size % (2 * n))
    throw std::invalid_argument("averages must be a row of pairs for each entry");
  if (filter != FilterKind::ema) throw std::invalid_argument("averages need the filter to be an EMA");
  return {static_cast<const double*>(table.ptr), table.size / (2 * n)};
}

void bind_update(int rule, int filter, const py::buffer& entries, const py::buffer& hyper, int64_t shared_step,
                 int threads, int ring_type, const py::object& row_wise, const py::object& averages) {
  const py::buffer_info table = entries.request(), rows = hyper.request();
  if (rows.itemsize != 8 || rows.size % hyper_count) throw std::invalid_argument("hyper has a row of the wrong length");
  const auto [first, n] = checked(table, rows.size / hyper_count);
  std::vector<RowWise> own;
  if (!row_wise.is_none()) own = checked_row_wise(py::cast<py::buffer>(row_wise).request(), Rule(rule), first, n);
  py::buffer_info several;
  if (!averages.is_none()) several = py::cast<py::buffer>(averages).request();
  const Averages found = averages.is_none() ? Averages{} : checked_averages(several, FilterKind(filter), n);
  py::gil_scoped_release release;
  update(Rule(rule), FilterKind(filter), RingType(ring_type), first, n, static_cast<const double*>(rows.ptr),
         shared_step, threads, own.empty() ? nullptr : own.data(), found);
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

constexpr int64_t most = std::numeric_limits<int64_t>::max();

Activation activation_of(int kind) { return Activation(within("activation", kind, 0, int(Activation::gelu))); }
Loss loss_of(int kind) { return Loss(within("loss", kind, 0, int(Loss::mse))); }

// While it lives, others have the interpreter. Made from a number of threads, which it checks first.
struct Unlocked {
  int64_t threads;
  py::gil_scoped_release release;
  explicit Unlocked(int threads) : threads(within("threads", threads, 1, std::numeric_limits<int>::max())) {}
};

// Tables [E, rows, width] and a bias [E, width] or none, whose models may lie apart.
PairTables pair_tables(py::handle w_a, py::handle w_b, py::handle bias, int64_t models) {
  const auto a = view<float>("w_a", w_a, {models, any, any}, true);
  const auto b = view<float>("w_b", w_b, {models, any, a[2]}, true);
  const auto c = view_or_null<float>("bias", bias, {models, a[2]}, true);
  return {a.data, b.data, c.data, a.stride, b.stride, c.stride, a[1], b[1], a[2]};
}

// The same with n pairs of their rows for each model.
struct Pairs {
  PairTables tables;
  const int64_t *a, *b;
  int64_t models, n;
};
Pairs pairs_of(py::handle w_a, py::handle w_b, py::handle bias, py::handle a, py::handle b) {
  const auto at_a = view<int64_t>("a", a, {any, any});
  const auto at_b = view<int64_t>("b", b, {at_a[0], at_a[1]});
  return {pair_tables(w_a, w_b, bias, at_a[0]), at_a.data, at_b.data, at_a[0], at_a[1]};
}

// Who reads the rows of a table of `rows`: start [rows + 1] and items, or null for those that come one after the other,
// of `n` positions.
Readers readers_of(const char* name, py::handle start, py::handle items, int64_t rows, int64_t n) {
  const auto first = view<int64_t>(name, start, {rows + 1});
  const auto own = view_or_null<int64_t>(name, items, {any});
  const int64_t room = own.data || !items.is_none() ? own[0] : n;
  for (int64_t k = 0; k < rows; ++k)
    if (first.data[k] > first.data[k + 1]) throw py::value_error(std::string(name) + " are not in order");
  if (first.data[0] < 0 || first.data[rows] > room) throw py::value_error(std::string(name) + " do not fit their items");
  if (own.data) check_indices(name, own.data + first.data[0], first.data[rows] - first.data[0], n);
  return {first.data, own.data, rows};
}

GatheredAttention gathered_of(py::handle q, py::handle kv, py::handle query, py::handle keys, int64_t heads) {
  const auto queries = view<float>("q", q, {any, any}, true);
  const int64_t width = queries[1];
  const auto table = view<float>("kv", kv, {any, 2 * width}, true);
  const auto of_keys = view<int64_t>("keys", keys, {any, any});
  const int64_t rows = of_keys[0], slots = of_keys[1];
  const auto own = view_or_null<int64_t>("query", query, {rows});
  if (width % within("heads", heads, 1, most)) throw py::value_error("q must be as wide as a multiple of heads");
  if (rows > 0) within("slots", slots, 1, most);
  if (query.is_none()) within("rows of keys", rows, 0, queries[0]);
  if (own.data) check_indices("query", own.data, rows, queries[0]);
  check_below("keys", of_keys.data, rows * slots, table[0]);
  return {queries.data, table.data, queries.stride, table.stride,  own.data, of_keys.data,
          rows,         slots,      queries[0],     table[0],      heads,    width / heads};
}

MixedRows mixed_of(py::handle tables, py::handle scores, py::handle base, py::handle keys, py::handle query,
                   int64_t units, int64_t common, float rate) {
  const auto t = view<float>("tables", tables, {any, any, any});
  const int64_t heads = t[0], n_keys = t[1], width = t[2];
  const auto s = view<float>("scores", scores, {any, n_keys, heads});
  const auto b = view<float>("base", base, {s[0], width});
  const auto k = view<int64_t>("keys", keys, {any, any});
  const auto q = view_or_null<int64_t>("query", query, {k[0]});
  if (!q.data && s[0] != 1) throw py::value_error("query must not be None where there are several");
  within("units", units, 0, width);
  within("common", common, -1, n_keys - 1);
  check_indices("keys", k.data, k[0] * k[1], n_keys);
  if (q.data) check_indices("query", q.data, k[0], s[0]);
  return {t.data, s.data, b.data, k.data, q.data, k[0], k[1], n_keys, s[0], heads, units, width, common, rate};
}

Readers readers_of_all(const MixedRows& m, py::handle start, py::handle items) {
  const int64_t n = m.rows * m.slots;
  const Readers readers = readers_of("readers of keys", start, items, m.n_keys, n);
  if ((n > 0 && !readers.items) || readers.start[0] != 0 || readers.start[m.n_keys] != n)
    throw py::value_error("readers of keys must be of all of them");
  return readers;
}

void bind_operations(py::module_& m) {
  m.def("pair_embed_forward", [](py::handle w_a, py::handle w_b, py::handle bias, py::handle a, py::handle b,
                                 py::handle out, int activation, int threads) {
    const auto [tables, at_a, at_b, models, n] = pairs_of(w_a, w_b, bias, a, b);
    const auto result = view<float>("out", out, {models, n, tables.width});
    const Activation kind = activation_of(activation);
    const Unlocked unlocked(threads);
    pair_embed_forward(tables, at_a, at_b, result.data, models, n, kind, threads);
  });
  m.def("pair_embed_backward", [](py::handle w_a, py::handle w_b, py::handle bias, py::handle a, py::handle b,
                                  py::handle grad_out, py::handle grad_a, py::handle grad_b, py::handle grad_bias,
                                  int activation, int threads) {
    const auto [tables, at_a, at_b, models, n] = pairs_of(w_a, w_b, bias, a, b);
    const auto grad = view<float>("grad_out", grad_out, {models, n, tables.width});
    const auto of_a = view<float>("grad_a", grad_a, {models, tables.rows_a, tables.width});
    const auto of_b = view<float>("grad_b", grad_b, {models, tables.rows_b, tables.width});
    const auto of_bias = view_or_null<float>("grad_bias", grad_bias, {models, tables.width});
    const Activation kind = activation_of(activation);
    const Unlocked unlocked(threads);
    pair_embed_backward(tables, at_a, at_b, grad.data, of_a.data, of_b.data, of_bias.data, models, n, kind, threads);
  });
  // classes: so many columns of the logits count, the first ones; 0: all.
  m.def("classify", [](int loss, py::handle logits, py::handle target, py::handle grad_logits, py::handle loss_out,
                       py::handle accuracy_out, int64_t of, int threads, int64_t classes) {
    const auto x = view<float>("logits", logits, {any, any, any});
    const int64_t models = x[0], n = x[1], stride = x[2];
    classes = within("classes", classes, 0, stride) ? classes : stride;
    const auto answers = view<int64_t>("target", target, {models, n});
    const auto grad = view_or_null<float>("grad_logits", grad_logits, {models, n, stride});
    const auto values = view<float>("loss_out", loss_out, {models});
    const auto accuracy = view<float>("accuracy_out", accuracy_out, {models});
    const Loss kind = loss_of(loss);
    within("of", of, n, most);
    const Unlocked unlocked(threads);
    classify(kind, x.data, answers.data, grad.data, values.data, accuracy.data, models, n, of, classes, stride, threads);
  }, py::arg("loss"), py::arg("logits"), py::arg("target"), py::arg("grad_logits"), py::arg("loss_out"),
     py::arg("accuracy_out"), py::arg("of"), py::arg("threads"), py::arg("classes") = 0);
  m.def("active_isas", [] {
    py::list names;
    for (const std::string& name : active_isas()) names.append(name);
    return py::tuple(names);
  });
  m.def("active_isa", &active_isa);
  m.def("use_active_isa", &use_active_isa);
  m.def("active_products_fit", &active_products_fit);
  m.def("active_forward", [](py::handle hidden, py::handle weights, py::handle bias, py::handle skip, py::handle out,
                             int threads) {
    const auto h = view<float>("hidden", hidden, {any, any});
    const auto w = view<float>("weights", weights, {h[1], any});
    const auto b = view_or_null<float>("bias", bias, {w[1]});
    const auto residual = view_or_null<float>("skip", skip, {h[0], w[1]});
    const auto result = view<float>("out", out, {h[0], w[1]});
    const Unlocked unlocked(threads);
    active_forward(h.data, w.data, b.data, residual.data, result.data, h[0], h[1], w[1], threads);
  });
  m.def("active_backward", [](py::handle hidden, py::handle grad_out, py::handle weights, py::handle x,
                              py::handle grad_hidden, py::handle grad_weights, py::handle grad_first,
                              py::handle grad_bias, int threads) {
    const auto h = view<float>("hidden", hidden, {any, any});
    const int64_t rows = h[0], units = h[1];
    const auto grad = view<float>("grad_out", grad_out, {rows, any});
    const auto w = view<float>("weights", weights, {units, grad[1]});
    const auto input = view_or_null<float>("x", x, {rows, any});
    const auto of_hidden = view<float>("grad_hidden", grad_hidden, {rows, units});
    const auto of_weights = view<float>("grad_weights", grad_weights, {units, grad[1]});
    const auto of_first = view_or_null<float>("grad_first", grad_first, {units, input[1]});
    if (x.is_none() != grad_first.is_none()) throw py::value_error("x and grad_first must be given, or None, together");
    const auto of_bias = view_or_null<float>("grad_bias", grad_bias, {units});
    const Unlocked unlocked(threads);
    active_backward({h.data, grad.data, w.data, input.data, of_hidden.data, of_weights.data, of_first.data,
                     of_bias.data, rows, units, input[1], grad[1]},
                    threads);
  });
  m.def("pair_rows_fit", &pair_rows_fit);
  m.def("pair_rows", [](py::handle w_a, py::handle w_b, py::handle b_in, py::handle weight, py::handle bias, py::handle a,
                        py::handle b, py::handle target, py::handle grad_a, py::handle grad_b, py::handle grad_weight,
                        py::handle grad_bias, int loss, int threads) {
    const PairTables tables = pair_tables(w_a, w_b, b_in, 1);
    const int64_t width = tables.width;
    const auto w = view<float>("weight", weight, {any, width});
    const auto of_out = view_or_null<float>("out_bias", bias, {w[0]});
    const auto at_a = view<int64_t>("a", a, {any});
    const int64_t n = at_a[0];
    const auto at_b = view<int64_t>("b", b, {n}), answers = view<int64_t>("target", target, {n});
    const auto of_a = view_or_null<float>("grad_a", grad_a, {tables.rows_a, width});
    const auto of_b = view_or_null<float>("grad_b", grad_b, {tables.rows_b, width});
    const auto of_weight = view_or_null<float>("grad_weight", grad_weight, {w[0], width});
    const auto of_bias = view_or_null<float>("grad_bias", grad_bias, {w[0]});
    if (of_a.data && !(of_b.data && of_weight.data)) throw py::value_error("grad_b and grad_weight must not be None");
    const Loss kind = loss_of(loss);
    within("rows", n, 1, most);
    std::pair<double, double> found;
    const Unlocked unlocked(threads);
    pair_rows({tables, w.data, of_out.data, w[0], at_a.data, at_b.data, answers.data, n, of_a.data, of_b.data,
               of_weight.data, of_bias.data},
              kind, &found.first, &found.second, threads);
    return found;
  });
  // inputs [n, D] of features, or [n, T] of rows of the first weight, then [rows, n_out]; weights [n_out, n_in]. Gradients
  // as weights and biases, or None. loss: the kind, temperature and smoothing.
  m.def("mlp_rows_are_fast", &mlp_rows_are_fast);
  m.def("mlp_rows", [](py::handle features, py::handle index, py::handle target, const std::vector<py::object>& weights,
                       const std::vector<py::object>& biases, const std::vector<py::object>& grad_weights,
                       const std::vector<py::object>& grad_biases, int activation, int kind, float temperature,
                       float smoothing, int threads) {
    const auto answers = view<int64_t>("target", target, {any});
    const auto rows = view_or_null<float>("features", features, {answers[0], any});
    const auto at = view_or_null<int64_t>("index", index, {answers[0], any});
    if (features.is_none() == index.is_none()) throw py::value_error("one of features and index must be None");
    if (weights.empty() || biases.size() != weights.size()) throw py::value_error("biases must be as many as weights");
    const bool wants_gradient = !grad_weights.empty();
    if (wants_gradient && (grad_weights.size() != weights.size() || grad_biases.size() != weights.size()))
      throw py::value_error("gradients must be as many as weights and biases");
    std::vector<MlpLayer> layers;
    int64_t width = rows.data ? rows[1] : any;
    for (size_t i = 0; i < weights.size(); ++i) {
      const bool is_tables = i == 0 && at.data;
      const auto w = view<float>("weight", weights[i], {any, width});
      const int64_t n_in = w[is_tables ? 0 : 1];
      width = w[is_tables ? 1 : 0];
      const auto b = view_or_null<float>("bias", biases[i], {width});
      View<float> of_weight, of_bias;
      if (wants_gradient) of_weight = view<float>("grad_weight", grad_weights[i], {w[0], w[1]});
      if (wants_gradient) of_bias = view_or_null<float>("grad_bias", grad_biases[i], {width});
      layers.push_back({w.data, b.data, of_weight.data, of_bias.data, n_in, width});
    }
    const RowLoss::Kind of_rows = RowLoss::Kind(within("loss", kind, 0, int(RowLoss::signs)));
    if (of_rows == RowLoss::signs && width != 1) throw py::value_error("the loss of signs takes one output");
    within("rows", answers[0], 1, most);
    const Activation act = activation_of(activation);
    std::pair<double, double> found;
    const Unlocked unlocked(threads);
    mlp_rows({rows.data, at.data, answers.data, layers.data(), answers[0], at.data ? at[1] : 0, int64_t(layers.size()),
              act, {of_rows, temperature, smoothing}, wants_gradient},
             &found.first, &found.second, threads);
    return found;
  });
  m.def("group_readers", [](py::handle index, int64_t n_rows, py::handle start, py::handle items) {
    const auto at = view<int64_t>("index", index, {any});
    const auto first = view<int64_t>("start", start, {within("n_rows", n_rows, 0, most - 1) + 1});
    const auto own = view<int64_t>("items", items, {at[0]});
    py::gil_scoped_release release;
    check_below("index", at.data, at[0], n_rows);
    group_readers(at.data, at[0], n_rows, first.data, own.data);
  });
  m.def("sum_readers", [](py::handle x, py::handle start, py::handle items, py::handle out, int threads) {
    const auto rows = view<float>("x", x, {any, any});
    const auto sums = view<float>("out", out, {any, rows[1]});
    const Readers readers = readers_of("readers", start, items, sums[0], rows[0]);
    const Unlocked unlocked(threads);
    sum_readers(rows.data, readers, sums.data, rows[1], threads);
  });
  m.def("sum_rows", [](py::handle x, py::handle out, int threads) {
    const auto rows = view<float>("x", x, {any, any});
    const auto sum = view<float>("out", out, {rows[1]});
    const Unlocked unlocked(threads);
    const int64_t start[] = {0, rows[0]};
    sum_readers(rows.data, {start, nullptr, 1}, sum.data, rows[1], threads);
  });
  m.def("activate_forward", [](py::handle z, py::handle bias, py::handle slope, int activation, int threads) {
    const auto x = view<float>("z", z, {any, any});
    const auto b = view_or_null<float>("bias", bias, {x[1]});
    const auto slopes = view_or_null<float>("slope", slope, {x[0], x[1]});
    const Activation kind = activation_of(activation);
    const Unlocked unlocked(threads);
    activate_forward(x.data, b.data, slopes.data, x[0], x[1], kind, threads);
  });
  m.def("activate_backward", [](py::handle grad, py::handle kept, py::handle grad_bias, int activation, int threads) {
    const auto g = view<float>("grad", grad, {any, any});
    const auto what = view<float>("kept", kept, {g[0], g[1]});
    const auto of_bias = view_or_null<float>("grad_bias", grad_bias, {g[1]});
    const Activation kind = activation_of(activation);
    const Unlocked unlocked(threads);
    activate_backward(g.data, what.data, of_bias.data, g[0], g[1], kind, threads);
  });
  m.def("add_rows", [](py::handle out, py::handle table, py::handle index, py::handle bias, int threads) {
    const auto sum = view<float>("out", out, {any, any});
    const auto rows = view_or_null<float>("table", table, {index.is_none() ? sum[0] : any, sum[1]});
    const auto at = view_or_null<int64_t>("index", index, {sum[0]});
    const auto b = view_or_null<float>("bias", bias, {sum[1]});
    if (table.is_none() && bias.is_none()) throw py::value_error("table and bias must not both be None");
    const Unlocked unlocked(threads);
    if (at.data && !table.is_none()) check_indices("index", at.data, sum[0], rows[0]);
    add_rows(sum.data, rows.data, at.data, b.data, sum[0], sum[1], threads);
  });
  m.def("layer_norm_forward", [](py::handle x, py::handle weight, py::handle bias, py::handle out, py::handle stats,
                                 float eps, int threads) {
    const auto rows = view<float>("x", x, {any, any});
    const auto w = view<float>("weight", weight, {rows[1]}), b = view<float>("bias", bias, {rows[1]});
    const auto result = view<float>("out", out, {rows[0], rows[1]}), kept = view<float>("stats", stats, {rows[0], 2});
    const Unlocked unlocked(threads);
    layer_norm_forward(rows.data, w.data, b.data, result.data, kept.data, rows[0], rows[1], eps, threads);
  });
  m.def("layer_norm_backward", [](py::handle x, py::handle weight, py::handle stats, py::handle grad, py::handle grad_x,
                                  py::handle grad_weight, py::handle grad_bias, int threads) {
    const auto rows = view<float>("x", x, {any, any});
    const int64_t n = rows[0], width = rows[1];
    const auto w = view<float>("weight", weight, {width}), kept = view<float>("stats", stats, {n, 2});
    const auto g = view<float>("grad", grad, {n, width}), of_x = view<float>("grad_x", grad_x, {n, width});
    const auto of_weight = view<float>("grad_weight", grad_weight, {width});
    const auto of_bias = view<float>("grad_bias", grad_bias, {width});
    const Unlocked unlocked(threads);
    layer_norm_backward(rows.data, w.data, kept.data, g.data, of_x.data, of_weight.data, of_bias.data, n, width, threads);
  });
  m.def("residual_norm_forward", [](py::handle y, py::handle bias, py::handle skip, py::handle index, py::handle weight,
                                    py::handle offset, py::handle out, py::handle stats, float eps, int threads) {
    const auto rows = view<float>("y", y, {any, any});
    const int64_t n = rows[0], width = rows[1];
    const auto b = view_or_null<float>("bias", bias, {width});
    const auto table = view_or_null<float>("skip", skip, {index.is_none() ? n : any, width});
    const auto at = view_or_null<int64_t>("index", index, {n});
    const auto w = view<float>("weight", weight, {width}), c = view<float>("offset", offset, {width});
    const auto result = view<float>("out", out, {n, width}), kept = view<float>("stats", stats, {n, 2});
    const Unlocked unlocked(threads);
    if (at.data && !skip.is_none()) check_indices("index", at.data, n, table[0]);
    residual_norm_forward({w.data, c.data, n, width}, rows.data, b.data, table.data, at.data, result.data, kept.data,
                          eps, threads);
  });
  m.def("residual_norm_backward", [](py::handle y, py::handle weight, py::handle stats, py::handle grad,
                                     py::handle along, py::handle grad_y, py::handle grad_weight,
                                     py::handle grad_offset, py::handle grad_bias, int threads) {
    const auto rows = view<float>("y", y, {any, any});
    const int64_t n = rows[0], width = rows[1];
    const auto w = view<float>("weight", weight, {width}), kept = view<float>("stats", stats, {n, 2});
    const auto g = view<float>("grad", grad, {n, width}), of_y = view<float>("grad_y", grad_y, {n, width});
    const auto stream = view_or_null<float>("along", along, {any, width});
    const int64_t first = along.is_none() ? 0 : n - within("rows of along", stream[0], 0, n);
    const auto of_weight = view<float>("grad_weight", grad_weight, {width});
    const auto of_offset = view<float>("grad_offset", grad_offset, {width});
    const auto of_bias = view_or_null<float>("grad_bias", grad_bias, {width});
    const Unlocked unlocked(threads);
    residual_norm_backward({w.data, nullptr, n, width}, rows.data, kept.data, g.data, stream.data, first, of_y.data,
                           of_weight.data, of_offset.data, of_bias.data, threads);
  });
  m.def("gathered_attention_forward", [](py::handle q, py::handle kv, py::handle query, py::handle keys, int64_t heads,
                                         py::handle out, py::handle weights, int threads) {
    const GatheredAttention a = gathered_of(q, kv, query, keys, heads);
    const auto result = view<float>("out", out, {a.rows, a.heads * a.d_head});
    const auto kept = view<float>("weights", weights, {a.rows, a.slots, a.heads});
    const Unlocked unlocked(threads);
    gathered_attention_forward(a, result.data, kept.data, threads);
  });
  // The gradients of q and kv lie in memory as these do. Readers of queries are None where row r reads query r.
  m.def("gathered_attention_backward", [](py::handle q, py::handle kv, py::handle query, py::handle keys, int64_t heads,
                                          py::handle start_q, py::handle items_q, py::handle start_k,
                                          py::handle items_k, py::handle weights, py::handle grad_out,
                                          py::handle grad_q, py::handle grad_kv, int threads) {
    const GatheredAttention a = gathered_of(q, kv, query, keys, heads);
    const int64_t width = a.heads * a.d_head;
    const Readers by_query = readers_of("readers of q", start_q, items_q, a.n_queries, a.rows);
    const Readers by_key = readers_of("readers of kv", start_k, items_k, a.n_keys, a.rows * a.slots);
    const auto kept = view<float>("weights", weights, {a.rows, a.slots, a.heads});
    const auto grad = view<float>("grad_out", grad_out, {a.rows, width});
    const auto of_q = view<float>("grad_q", grad_q, {a.n_queries, width}, true);
    const auto of_kv = view<float>("grad_kv", grad_kv, {a.n_keys, 2 * width}, true);
    within("stride of grad_q", of_q.stride, std::max(a.stride_q, width), a.stride_q);
    within("stride of grad_kv", of_kv.stride, std::max(a.stride_kv, 2 * width), a.stride_kv);
    const Unlocked unlocked(threads);
    gathered_attention_backward(a, by_query, by_key, kept.data, grad.data, of_q.data, of_kv.data, threads);
  });
  m.def("mixed_rows_forward", [](py::handle tables, py::handle scores, py::handle base, py::handle keys,
                                 py::handle query, int64_t common, float rate, py::handle hidden, py::handle linear,
                                 py::handle weights, int threads) {
    const auto h = view<float>("hidden", hidden, {any, any});
    const MixedRows rows = mixed_of(tables, scores, base, keys, query, h[1], common, rate);
    view<float>("hidden", hidden, {rows.rows, rows.units});
    const auto rest = view<float>("linear", linear, {rows.rows, rows.width - rows.units});
    const auto kept = view<float>("weights", weights, {rows.rows, rows.slots, rows.heads});
    const Unlocked unlocked(threads);
    mixed_rows_forward(rows, h.data, rest.data, kept.data, threads);
  });
  m.def("mixed_rows_backward", [](py::handle tables, py::handle scores, py::handle base, py::handle keys,
                                  py::handle query, int64_t common, float rate, py::handle start,
                                  py::handle items, py::handle weights, py::handle grad_hidden,
                                  py::handle grad_linear, py::handle grad_tables, py::handle grad_scores,
                                  py::handle grad_base, int threads) {
    const auto h = view<float>("grad_hidden", grad_hidden, {any, any});
    const MixedRows rows = mixed_of(tables, scores, base, keys, query, h[1], common, rate);
    view<float>("grad_hidden", grad_hidden, {rows.rows, rows.units});
    const auto rest = view<float>("grad_linear", grad_linear, {rows.rows, rows.width - rows.units});
    const auto kept = view<float>("weights", weights, {rows.rows, rows.slots, rows.heads});
    const Readers readers = readers_of_all(rows, start, items);
    const auto of_tables = view<float>("grad_tables", grad_tables, {rows.heads, rows.n_keys, rows.width});
    const auto of_scores = view<float>("grad_scores", grad_scores, {rows.n_queries, rows.n_keys, rows.heads});
    const auto of_base = view<float>("grad_base", grad_base, {rows.n_queries, rows.width});
    const Unlocked unlocked(threads);
    mixed_rows_backward(rows, readers, kept.data, h.data, rest.data, of_tables.data, of_scores.data, of_base.data,
                        threads);
  });
  m.def("folded_rows_forward", [](py::handle tables, py::handle scores, py::handle base, py::handle keys,
                                  py::handle query, int64_t common, float rate, py::handle to_logits, py::handle hidden,
                                  py::handle logits, py::handle weights, int threads) {
    const auto w = view<float>("to_logits", to_logits, {any, any});
    const MixedRows rows = mixed_of(tables, scores, base, keys, query, w[0], common, rate);
    view<float>("to_logits", to_logits, {rows.units, rows.width - rows.units});
    const auto h = view<float>("hidden", hidden, {rows.rows, rows.units});
    const auto out = view<float>("logits", logits, {rows.rows, w[1]});
    const auto kept = view<float>("weights", weights, {rows.rows, rows.slots, rows.heads});
    const Unlocked unlocked(threads);
    mixed_rows_forward(rows, h.data, out.data, kept.data, threads, w.data);
  });
  m.def("folded_rows_backward", [](py::handle tables, py::handle scores, py::handle base, py::handle keys,
                                   py::handle query, int64_t common, float rate, py::handle start, py::handle items,
                                   py::handle weights, py::handle hidden, py::handle to_logits,
                                   py::handle grad_logits, py::handle scratch, py::handle grad_tables,
                                   py::handle grad_scores, py::handle grad_base, py::handle grad_to_logits) {
    const auto w = view<float>("to_logits", to_logits, {any, any});
    const MixedRows rows = mixed_of(tables, scores, base, keys, query, w[0], common, rate);
    view<float>("to_logits", to_logits, {rows.units, rows.width - rows.units});
    const auto h = view<float>("hidden", hidden, {rows.rows, rows.units});
    const auto grad = view<float>("grad_logits", grad_logits, {rows.rows, w[1]});
    const auto kept = view<float>("weights", weights, {rows.rows, rows.slots, rows.heads});
    const Readers readers = readers_of_all(rows, start, items);
    const auto room = view<float>("scratch", scratch, {any, rows.rows, 64});
    const auto of_tables = view<float>("grad_tables", grad_tables, {rows.heads, rows.n_keys, rows.width});
    const auto of_scores = view<float>("grad_scores", grad_scores, {rows.n_queries, rows.n_keys, rows.heads});
    const auto of_base = view<float>("grad_base", grad_base, {rows.n_queries, rows.width});
    const auto of_products = view<float>("grad_to_logits", grad_to_logits, {rows.units, w[1]});
    const int threads = int(room[0]);
    if (threads < 1) throw py::value_error("scratch must be of one thread at least");
    const Unlocked unlocked(threads);
    const FoldedUnits folded{h.data, w.data, of_products.data, room.data};
    mixed_rows_backward(rows, readers, kept.data, nullptr, grad.data, of_tables.data, of_scores.data, of_base.data,
                        threads, &folded);
  });
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "CPU and CUDA kernels of grokfast; use the Python functions.";
  m.attr("hyper_count") = int(hyper_count);
  m.def("look", &bind_look, py::arg("exchange"), py::arg("tensors"), py::arg("with_addresses"));
  m.def("update", &bind_update, py::arg("rule"), py::arg("filter"), py::arg("entries"), py::arg("hyper"),
        py::arg("shared_step"), py::arg("threads"), py::arg("ring_type") = 0, py::arg("row_wise") = py::none(),
        py::arg("averages") = py::none());
  m.def("update_like_cuda", &bind_update_like_cuda, py::arg("rule"), py::arg("filter"), py::arg("ring_type"),
        py::arg("entries"), py::arg("hyper"), py::arg("overrides"), py::arg("tickets"), py::arg("large_tables"));

  bind_operations(m);

#if defined(GROKFAST_WITH_CUDA)
  m.attr("with_cuda") = true;
  m.def("cuda_device_count", &cuda_device_count);
  m.def("cuda_update", &bind_cuda_update, py::arg("rule"), py::arg("filter"), py::arg("ring_type"), py::arg("entries"),
        py::arg("hyper"), py::arg("overrides"), py::arg("tickets"), py::arg("device"), py::arg("stream"));
#else
  m.attr("with_cuda") = false;
#endif
}
