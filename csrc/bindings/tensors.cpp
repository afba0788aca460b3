#include "bindings/tensors.h"

#include <algorithm>
#include <atomic>
#include <memory>

#include "bindings/objects.h"

namespace codedgrad {
namespace {

const dlpack::Api* api = nullptr;

// Takes the functions of torch's tensors from their capsule, if we know its version.
bool use_exchange(const py::object& capsule) {
  void* found = PyCapsule_GetPointer(capsule.ptr(), dlpack::kCapsule);
  if (found == nullptr) throw py::error_already_set();
  const auto* offered = static_cast<const dlpack::Api*>(found);
  while (offered != nullptr && offered->version.major != dlpack::kMajor) {
    offered = offered->older;
  }
  api = offered;
  return api != nullptr;
}

Attribute& version_attribute() {
  static Attribute& version = Attribute::named(py::str("_version"), false);
  return version;
}

bool same_type(const dlpack::Tensor& a, const dlpack::Tensor& b) {
  return a.type.code == b.type.code && a.type.bits == b.type.bits &&
         a.type.lanes == b.type.lanes;
}

// The owner of the vector in which views lie, until the last of them is gone.
struct Owner {
  std::atomic<std::size_t> views;
  PyObject* object;
};

struct View {
  dlpack::Managed managed{};
  Owner* owner = nullptr;
};

void let_go(Owner* owner, std::size_t views) {
  if (owner->views.fetch_sub(views) != views) return;
  if (!Py_IsInitialized()) return;  // the process ends
  const PyGILState_STATE state = PyGILState_Ensure();
  Py_DECREF(owner->object);
  PyGILState_Release(state);
  delete owner;
}

void end_view(dlpack::Managed* managed) {
  auto* view = static_cast<View*>(managed->context);
  let_go(view->owner, 1);
  delete view;
}

bool type_of(const dlpack::Type& type, ops::Type* out) {
  if (type.lanes != 1) return false;
  if (type.code == dlpack::kFloat && type.bits == 32)
    return *out = ops::Type::kFloat32, true;
  if (type.code == dlpack::kFloat && type.bits == 64)
    return *out = ops::Type::kFloat64, true;
  if (type.code == dlpack::kBfloat && type.bits == 16)
    return *out = ops::Type::kBFloat16, true;
  if (type.code == dlpack::kFloat && type.bits == 16)
    return *out = ops::Type::kFloat16, true;
  return false;
}

std::size_t bytes_of(ops::Type type) {
  if (type == ops::Type::kFloat64) return 8;
  return type == ops::Type::kFloat32 ? 4 : 2;
}

// Whether a gradient's elements lie in memory in the order of the row. What the stride
// of a dimension of one element is, does not matter: torch gives it several values.
bool lies_as(const dlpack::Tensor& gradient, const Gradients::Kind& kind) {
  const auto& [size, strides] = kind;
  const auto dimensions = static_cast<std::size_t>(gradient.dimensions);
  if (dimensions != strides.size()) return false;
  std::size_t elements = 1;
  for (std::size_t i = 0; i < dimensions; ++i) {
    if (gradient.shape[i] != 1 && gradient.strides[i] != strides[i]) return false;
    elements *= static_cast<std::size_t>(gradient.shape[i]);
  }
  return elements == size;
}

}  // namespace

bool describe(py::handle tensor, dlpack::Tensor* out) {
  if (api != nullptr && api->describe(tensor.ptr(), out) == 0) return true;
  PyErr_Clear();
  return false;
}

bool TensorMarks::look(py::handle tensor, Attribute* version, Mark* out) const {
  dlpack::Tensor now;
  if (!describe(tensor, &now)) return false;
  out->seen = now;
  out->seen.shape = out->seen.strides = nullptr;
  out->shape.assign(now.shape, now.shape + now.dimensions);
  out->strides.assign(now.strides, now.strides + now.dimensions);
  if (versions_) out->version = version->get(tensor).cast<std::uint64_t>();
  return true;
}

bool TensorMarks::note(const py::list& tensors) {
  Attribute& version = version_attribute();
  marks_.resize(tensors.size());
  for (std::size_t i = 0; i < marks_.size(); ++i) {
    if (look(PyList_GET_ITEM(tensors.ptr(), i), &version, &marks_[i])) continue;
    marks_.clear();
    return false;
  }
  return true;
}

bool TensorMarks::note_one(std::size_t index, py::handle tensor) {
  Attribute& version = version_attribute();
  return look(tensor, &version, &marks_.at(index));
}

bool TensorMarks::same(const py::list& tensors) const {
  if (tensors.size() != marks_.size()) return false;
  Attribute& version = version_attribute();
  for (std::size_t i = 0; i < marks_.size(); ++i) {
    PyObject* tensor = PyList_GET_ITEM(tensors.ptr(), i);
    const Mark& mark = marks_[i];
    dlpack::Tensor now;
    if (!describe(tensor, &now) || now.dimensions != mark.seen.dimensions ||
        !same_type(now, mark.seen) || now.device.type != mark.seen.device.type ||
        now.device.id != mark.seen.device.id ||
        !std::equal(mark.shape.begin(), mark.shape.end(), now.shape) ||
        !std::equal(mark.strides.begin(), mark.strides.end(), now.strides)) {
      return false;
    }
    if (addresses_ &&
        (now.data != mark.seen.data || now.byte_offset != mark.seen.byte_offset)) {
      return false;
    }
    if (!versions_) continue;
    const py::object got = version.get(tensor);
    if (PyLong_AsUnsignedLongLongMask(got.ptr()) != mark.version) return false;
  }
  return true;
}

std::vector<TensorMarks::Noted> TensorMarks::noted() const {
  std::vector<Noted> found;
  found.reserve(marks_.size());
  for (const Mark& mark : marks_) {
    std::uint64_t rest = 0;
    const auto mix = [&rest](std::int64_t value) {
      rest = (rest ^ static_cast<std::uint64_t>(value)) * 0x9E3779B97F4A7C15;
      rest ^= rest >> 29;
    };
    const dlpack::Tensor& seen = mark.seen;
    for (std::int64_t value :
         {std::int64_t{seen.device.type}, std::int64_t{seen.device.id},
          std::int64_t{seen.type.code}, std::int64_t{seen.type.bits},
          std::int64_t{seen.dimensions}}) {
      mix(value);
    }
    for (std::int64_t value : mark.shape) mix(value);
    for (std::int64_t value : mark.strides) mix(value);
    const auto data = reinterpret_cast<std::uintptr_t>(seen.data) + seen.byte_offset;
    found.emplace_back(versions_ ? mark.version : 0, addresses_ ? data : 0, rest);
  }
  return found;
}

py::list Places::views(std::uintptr_t address, std::size_t itemsize,
                       const py::object& owner) {
  if (api == nullptr) throw py::value_error("torch offers no exchange of tensors");
  py::list found(places_.size());
  if (places_.empty()) return found;
  auto* shared = new Owner{{places_.size()}, owner.inc_ref().ptr()};
  for (std::size_t i = 0; i < places_.size(); ++i) {
    auto& [shape, strides, first] = places_[i];
    auto* view = new View;
    view->owner = shared;
    view->managed.version = api->version;
    view->managed.context = view;
    view->managed.deleter = end_view;
    view->managed.tensor = {
        reinterpret_cast<void*>(address + first * itemsize),
        {dlpack::kCpu, 0},
        static_cast<std::int32_t>(shape.size()),
        {dlpack::kFloat, static_cast<std::uint8_t>(8 * itemsize), 1},
        shape.data(),
        strides.data(),
        0};
    void* made = nullptr;
    if (api->object_of(&view->managed, &made) != 0) {
      let_go(shared, places_.size() - i - 1);  // whether it ended the view is unsaid
      throw py::error_already_set();
    }
    found[i] = py::reinterpret_steal<py::object>(static_cast<PyObject*>(made));
  }
  return found;
}

bool Gradients::pieces(const py::list& parameters, std::uintptr_t tail,
                       ops::Type tail_type, std::int32_t device, Pieces* out) const {
  static Attribute& gradient = Attribute::named(py::str("grad"), false);
  out->clear();
  out->reserve(spans_.size());
  std::uint64_t end = 0;
  for (const auto& [index, first, length] : spans_) {
    end += length;
    if (index < 0) {
      out->push_back(ops::piece_of(tail + first * bytes_of(tail_type), end, tail_type));
      continue;
    }
    const auto& kind = kinds_.at(static_cast<std::size_t>(index));
    const py::object held = gradient.get(parameters[static_cast<std::size_t>(index)]);
    if (held.is_none()) {
      out->push_back(ops::piece_of(0, end, tail_type));
      continue;
    }
    dlpack::Tensor now;
    ops::Type type;
    if (!describe(held, &now) || !type_of(now.type, &type) ||
        now.device.type != device || !lies_as(now, kind)) {
      return false;
    }
    const auto at = reinterpret_cast<std::uintptr_t>(now.data) + now.byte_offset;
    out->push_back(ops::piece_of(at + first * bytes_of(type), end, type));
  }
  return true;
}

namespace {

using Contents = std::pair<py::list, py::list>;          // dictionaries, values
using Items = std::tuple<py::list, py::list, py::list>;  // dictionaries, keys, values
using Flags = std::tuple<py::list, py::str, py::list>;   // objects, name, values
using Marked = std::pair<const TensorMarks*, py::list>;

// All of these comparisons in one call; each is that of its own function.
bool unchanged(const Contents& contents, const Items& items,
               const std::vector<Flags>& flags, const std::vector<Marked>& marks) {
  if (!values_are(contents.first, contents.second)) return false;
  const auto& [holders, keys, held] = items;
  if (!items_are(holders, keys, held)) return false;
  for (const auto& [objects, name, values] : flags) {
    if (!reads(objects, name, false, values)) return false;
  }
  for (const auto& [noted, tensors] : marks) {
    if (!noted->same(tensors)) return false;
  }
  return true;
}

}  // namespace

void define_tensors(py::module_& m) {
  using namespace pybind11::literals;
  m.def("use_exchange", &use_exchange, "capsule"_a);
  py::class_<TensorMarks>(m, "TensorMarks")
      .def(py::init<bool, bool>(), "versions"_a, "addresses"_a)
      .def("note", &TensorMarks::note, "tensors"_a)
      .def("note_one", &TensorMarks::note_one, "index"_a, "tensor"_a)
      .def("same", &TensorMarks::same, "tensors"_a)
      .def("noted", &TensorMarks::noted);
  m.def("unchanged", &unchanged, "contents"_a, "items"_a, "flags"_a, "marks"_a);
  py::class_<Gradients>(m, "Gradients")
      .def(py::init<std::vector<Gradients::Span>, std::vector<Gradients::Kind>>(),
           "spans"_a, "kinds"_a);
  py::class_<Places>(m, "Places")
      .def(py::init<std::vector<Places::Place>>(), "places"_a)
      .def("views", &Places::views, "address"_a, "itemsize"_a, "owner"_a);
}

}  // namespace codedgrad
