// The settings of estimates, and the learned decoder by itself, so that tests can
// compare it with its reference in codedgrad/lab/decoders.
#include <algorithm>
#include <string>
#include <utility>

#include "bindings/bindings.h"
#include "engine/estimator.h"

using namespace pybind11::literals;

namespace codedgrad {
namespace {

using decoder::Network;

std::shared_ptr<Network> make_network(const Array<double>& w1, const Array<double>& b1,
                                      const Array<double>& w2,
                                      const Array<double>& b2) {
  auto network = std::make_shared<Network>(
      Network{to_vector(w1), to_vector(b1), to_vector(w2), to_vector(b2)});
  network->check();
  return network;
}

std::shared_ptr<ApproximateSettings> make_approximate(
    double max_error, double max_noise, double patience, bool compensate,
    const Array<int>& left, const Array<int>& right, const Array<int>& parent,
    const Array<int>& start, const Array<int>& stop, std::vector<int> units,
    std::vector<double> weights, std::vector<std::size_t> tensors,
    std::shared_ptr<Network> network) {
  auto settings = std::make_shared<ApproximateSettings>();
  settings->max_error = max_error;
  settings->max_noise = max_noise;
  settings->patience = patience;
  settings->compensate = compensate;
  settings->left = to_vector(left);
  settings->right = to_vector(right);
  settings->parent = to_vector(parent);
  settings->start = to_vector(start);
  settings->stop = to_vector(stop);
  settings->units = std::move(units);
  settings->weights = std::move(weights);
  settings->tensors = std::move(tensors);
  settings->network = std::move(network);
  if (settings->units.empty() || settings->units.size() != settings->weights.size()) {
    throw std::invalid_argument("one weight for every unit, and at least one unit");
  }
  return settings;
}

decoder::Shards make_shards(std::vector<double> alpha, std::vector<double> weight,
                            const std::vector<bool>& seen, std::vector<double> age) {
  return {std::move(alpha), std::move(weight),
          std::vector<char>(seen.begin(), seen.end()), std::move(age)};
}

decoder::Problem make_problem(const Array<double>& base,
                              const decoder::Shards& shards) {
  const int n = shards.vectors();
  if (base.ndim() != 3 || base.shape(1) != n || base.shape(2) != n) {
    throw py::value_error("base must be [tiles, 3 k + 2, 3 k + 2]");
  }
  return decoder::make_problem(to_vector(base), static_cast<int>(base.shape(0)), shards,
                               decoder::span_weights(shards));
}

Array<double> stacked(const std::vector<decoder::Coefficients>& c) {
  Array<double> out(
      {static_cast<py::ssize_t>(c.size()), static_cast<py::ssize_t>(decoder::kSpan)});
  for (std::size_t t = 0; t < c.size(); ++t) {
    std::copy(c[t].begin(), c[t].end(), out.mutable_data(t, 0));
  }
  return out;
}

decoder::Label make_label(const Array<double>& target, const Array<double>& norm,
                          const Array<double>& cross) {
  decoder::Label label;
  label.norm = to_vector(norm);
  label.cross = to_vector(cross);
  for (py::ssize_t t = 0; t < norm.size(); ++t) {
    decoder::Coefficients row;
    std::copy(target.data(t, 0), target.data(t, 0) + decoder::kSpan, row.begin());
    label.target.push_back(row);
  }
  return label;
}

}  // namespace

void define_decoder(py::module_& m) {
  py::class_<Network, std::shared_ptr<Network>>(m, "Network")
      .def(py::init(&make_network), "w1"_a, "b1"_a, "w2"_a, "b2"_a);
  py::class_<ApproximateSettings, std::shared_ptr<ApproximateSettings>>(m,
                                                                        "Approximate")
      .def(py::init(&make_approximate), py::kw_only(), "max_error"_a, "max_noise"_a,
           "patience"_a, "compensate"_a, "left"_a, "right"_a, "parent"_a, "start"_a,
           "stop"_a, "units"_a, "weights"_a, "tensors"_a, "network"_a);
  py::class_<Settled>(m, "Settled")
      .def_readonly("step", &Settled::step)
      .def_readonly("bucket", &Settled::bucket)
      .def_readonly("missing", &Settled::missing)
      .def_readonly("predicted", &Settled::predicted)
      .def_readonly("bound", &Settled::bound)
      .def_readonly("truth", &Settled::truth)
      .def_readonly("noise", &Settled::noise)
      .def_readonly("true_noise", &Settled::true_noise);
  py::class_<decoder::Shards>(m, "DecoderShards")
      .def(py::init(&make_shards), "alpha"_a, "weight"_a, "seen"_a, "age"_a);
  py::class_<decoder::Problem>(m, "DecoderProblem")
      .def(py::init(&make_problem), "base"_a, "shards"_a);
  py::class_<decoder::Chosen>(m, "DecoderChoice")
      .def_property_readonly("c", [](const decoder::Chosen& c) { return stacked(c.c); })
      .def_property_readonly("predicted",
                             [](const decoder::Chosen& c) { return c.predicted.mean; })
      .def_property_readonly("bound",
                             [](const decoder::Chosen& c) { return c.predicted.bound; })
      .def_property_readonly("noise",
                             [](const decoder::Chosen& c) { return c.excess.share; })
      .def_property_readonly(
          "expected", [](const decoder::Chosen& c) { return c.excess.expected; });
  py::class_<decoder::Learned>(m, "LearnedDecoder")
      .def(py::init([](int tiles, std::shared_ptr<Network> network) {
             return std::make_unique<decoder::Learned>(tiles, std::move(network));
           }),
           "tiles"_a, "network"_a)
      .def("choose", &decoder::Learned::choose, "problem"_a)
      .def(
          "lean",
          [](decoder::Learned& self, const decoder::Problem& problem,
             decoder::Chosen* chosen,
             double most) { self.lean(problem, most, chosen); },
          "problem"_a, "chosen"_a, "most"_a)
      .def(
          "look",
          [](decoder::Learned& self, std::int64_t step, const Array<double>& base,
             const decoder::Shards& shards, double scale) {
            self.look(step, to_vector(base), shards, decoder::span_weights(shards),
                      scale);
          },
          "step"_a, "base"_a, "shards"_a, "scale"_a)
      .def(
          "learn",
          [](decoder::Learned& self, const decoder::Problem& problem,
             const decoder::Chosen& chosen, const Array<double>& target,
             const Array<double>& norm, const Array<double>& cross) {
            self.learn(problem, chosen, make_label(target, norm, cross));
          },
          "problem"_a, "chosen"_a, "target"_a, "norm"_a, "cross"_a)
      .def("replay", &decoder::Learned::replay, "problem"_a)
      .def("state", &decoder::Learned::state)
      .def("restore", &decoder::Learned::restore, "state"_a);
}

}  // namespace codedgrad
