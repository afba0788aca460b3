// What many tensors show of themselves, read in one call, and many tensors made in one.
#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstddef>
#include <cstdint>
#include <tuple>
#include <utility>
#include <vector>

#include "bindings/dlpack.h"
#include "ops/piece.h"

namespace codedgrad {

namespace py = pybind11;

// Describes a tensor; false if that cannot be done (a sparse or quantised one, one on
// the device "meta"). `out` holds as long as nobody changes the tensor.
bool describe(py::handle tensor, dlpack::Tensor* out);

// Shape, type, strides and device of tensors at one moment; with `versions` and
// `addresses` those, too. It keeps no tensor alive.
class TensorMarks {
 public:
  TensorMarks(bool versions, bool addresses)
      : versions_(versions), addresses_(addresses) {}

  // Notes the tensors' state, and returns true, or notes nothing.
  bool note(const py::list& tensors);
  // Notes the state of one of them anew.
  bool note_one(std::size_t index, py::handle tensor);
  // Whether they are as they were noted.
  bool same(const py::list& tensors) const;
  // Version, address, and a hash of the rest, of each, as they were noted.
  using Noted = std::tuple<std::uint64_t, std::uintptr_t, std::uint64_t>;
  std::vector<Noted> noted() const;

 private:
  struct Mark {
    std::uint64_t version = 0;
    dlpack::Tensor seen{};  // without pointers to shape and strides
    std::vector<std::int64_t> shape, strides;
  };
  bool look(py::handle tensor, class Attribute* version, Mark* out) const;

  bool versions_, addresses_;
  std::vector<Mark> marks_;
};

// Where each of many tensors lies in one vector.
class Places {
 public:
  using Place = std::tuple<std::vector<std::int64_t>, std::vector<std::int64_t>,
                           std::size_t>;  // shape, strides, first element

  explicit Places(std::vector<Place> places) : places_(std::move(places)) {}

  // Tensors on the CPU that lie in the vector of floats of `itemsize` bytes at
  // `address`, and keep `owner` alive.
  py::list views(std::uintptr_t address, std::size_t itemsize, const py::object& owner);

 private:
  std::vector<Place> places_;
};

// Where the gradients of some parameters, and the tail, lie in a run of a row.
class Gradients {
 public:
  // The parameter's index (or less than 0: the tail), the first element, their number.
  using Span = std::tuple<int, std::size_t, std::size_t>;
  // The elements and strides that a parameter's gradient has in the row.
  using Kind = std::pair<std::size_t, std::vector<std::int64_t>>;
  using Pieces = std::vector<ops::Piece>;

  Gradients(std::vector<Span> spans, std::vector<Kind> kinds)
      : spans_(std::move(spans)), kinds_(std::move(kinds)) {}

  // Finds each span's values in the gradients that the parameters have now. False where
  // a gradient does not lie in memory as in the row, or not on a device of the kind
  // `device` (DLPack's). `tail_type` is that of the tail's values.
  bool pieces(const py::list& parameters, std::uintptr_t tail, ops::Type tail_type,
              std::int32_t device, Pieces* out) const;

 private:
  std::vector<Span> spans_;
  std::vector<Kind> kinds_;
};

void define_tensors(py::module_& m);

}  // namespace codedgrad
