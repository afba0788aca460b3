// What the files of the Python module codedgrad.job._engine share. Every function that
// may wait releases Python's lock (the GIL).
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <memory>
#include <stdexcept>
#include <vector>

#include "engine/engine.h"

namespace codedgrad {

namespace py = pybind11;

using Release = py::gil_scoped_release;
using EngineClass = py::class_<Engine, std::shared_ptr<Engine>>;
template <typename T>
using Array = py::array_t<T, py::array::c_style | py::array::forcecast>;

template <typename T>
std::vector<T> to_vector(const Array<T>& array) {
  return std::vector<T>(array.data(), array.data() + array.size());
}

// The job has failed, on this worker or another; what() is the same on all of them.
// In Python it is codedgrad.errors.WorkerError.
class EngineFailure : public std::runtime_error {
  using std::runtime_error::runtime_error;
};

EngineClass define_engine(py::module_& m);
void define_transports(py::module_& m, EngineClass& engine);
void define_decoder(py::module_& m);
void define_exchange(py::module_& m);

}  // namespace codedgrad
